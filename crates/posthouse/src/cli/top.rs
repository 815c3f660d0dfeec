//! `posthouse top`: rates, lag and what is in flight, by topic and group, refreshed.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use posthouse_client::{Client, proto};
use serde::Serialize;

use super::output::Table;
use super::remote::Remote;
use super::stop::Stop;
use super::{Failure, Output, group, topic};
use crate::json::{self, Time};
use crate::shard::clock::wall_ms;
use crate::units;

/// Topics, and groups, that are looked at; those behind are said to be there.
const MOST: usize = 5000;

/// Rows of each table where nobody knows how many fit.
const ROWS: usize = 20;

/// Lines that are not rows: the head, names of columns, blank lines.
const OTHER_LINES: usize = 7;

/// Show rates, lag and what is in flight, refreshed
///
/// Rates are those since the refresh before. The busiest come first. Ctrl-C ends it.
#[derive(Debug, Args)]
pub struct Top {
    /// Only topics and groups whose names begin so
    #[arg(default_value = "")]
    prefix: String,
    /// Between two refreshes
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: u64,
    /// Print one table over one interval, and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    remote: Remote,
}

fn interval(text: &str) -> Result<u64, String> {
    match units::duration_ms(text)? {
        ms @ 100..=3_600_000 => Ok(ms),
        _ => Err("an interval is from 100ms to 1h".into()),
    }
}

/// What was seen at one moment.
struct Sample {
    taken: Instant,
    at_ms: u64,
    node: proto::Node,
    topics: json::Topics,
    groups: json::Groups,
}

/// One refresh.
#[derive(Debug, Serialize)]
struct View {
    at: Time,
    topics: Vec<TopicRow>,
    groups: Vec<GroupRow>,
    /// Whether there are more topics than were looked at.
    more_topics: bool,
    /// Whether there are more groups.
    more_groups: bool,
}

#[derive(Debug, Serialize)]
struct TopicRow {
    name: String,
    messages: u64,
    bytes: u64,
    published_per_s: f64,
}

#[derive(Debug, Serialize)]
struct GroupRow {
    name: String,
    state: &'static str,
    lag: u64,
    in_flight: u64,
    waiting: u64,
    dead_letters: u64,
    done_per_s: f64,
    /// When the oldest message came in that is not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_at: Option<Time>,
}

impl Top {
    pub(super) fn run(self) -> Result<(), Failure> {
        let remote = self.remote.clone();
        remote.run(async |client, out| {
            let mut stop = Stop::listen()?;
            let is_live = !self.once && !out.is_json() && std::io::stdout().is_terminal();
            let screen = if is_live { Some(Screen::open()?) } else { None };
            let done = self.refresh(&client, &mut stop, is_live, out).await;
            drop(screen);
            done
        })
    }

    async fn refresh(
        &self,
        client: &Client,
        stop: &mut Stop,
        is_live: bool,
        out: &mut Output,
    ) -> Result<(), Failure> {
        let mut before = Sample::take(client, &self.prefix).await?;
        let mut tick = tokio::time::interval(Duration::from_millis(self.interval));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.told() => return Ok(()),
            }
            let now = tokio::select! {
                now = Sample::take(client, &self.prefix) => now?,
                () = stop.told() => return Ok(()),
            };
            let view = View::new(&before, &now);
            if out.is_json() {
                out.json(&view)?;
            } else {
                let lines = view.lines(&now.node, rows(is_live));
                // From the top left corner, every line to its end, then what is below.
                let (start, end) = if is_live { ("\x1b[H", "\x1b[K") } else { ("", "") };
                out.bytes(start.as_bytes())?;
                for line in lines {
                    out.line(format_args!("{line}{end}"))?;
                }
                out.bytes(if is_live { b"\x1b[J" } else { b"" })?;
            }
            out.flush()?;
            if self.once {
                return Ok(());
            }
            before = now;
        }
    }
}

/// Rows of each table that fit.
fn rows(is_live: bool) -> usize {
    match terminal_size::terminal_size() {
        Some((_, height)) if is_live => {
            (usize::from(height.0).saturating_sub(OTHER_LINES) / 2).max(1)
        }
        _ => ROWS,
    }
}

/// The terminal's second screen, so that what was there before comes back at the end.
struct Screen;

impl Screen {
    fn open() -> Result<Screen, Failure> {
        let mut out = std::io::stdout();
        out.write_all(b"\x1b[?1049h\x1b[?25l").and_then(|()| out.flush())?;
        Ok(Screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = std::io::stdout();
        // If the terminal has gone there is nothing to bring back.
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| out.flush());
    }
}

impl Sample {
    async fn take(client: &Client, prefix: &str) -> Result<Sample, Failure> {
        let node = client.raw().get_node(proto::GetNodeRequest {}).await?.into_inner();
        let topics = topic::all(client, prefix, MOST).await?;
        let groups = group::all(client, prefix, MOST).await?;
        Ok(Sample { taken: Instant::now(), at_ms: wall_ms(), node, topics, groups })
    }
}

/// Messages that a topic has ever had.
fn published(topic: &json::Topic) -> u64 {
    topic.partition_list.iter().map(|partition| partition.next).sum()
}

/// Messages that a group has ever been done with, as far as its topics go.
fn done(group: &json::Group) -> u64 {
    group.partitions.iter().map(|partition| partition.end - partition.lag.min(partition.end)).sum()
}

impl View {
    fn new(before: &Sample, now: &Sample) -> View {
        let seconds = now.taken.duration_since(before.taken).as_secs_f64().max(1e-3);
        let rate = |before: Option<u64>, now: u64| {
            // Of what was not there, or was moved by a seek, nothing can be said.
            let more = before.map_or(0, |before| now.saturating_sub(before));
            (more as f64 / seconds * 10.0).round() / 10.0
        };
        let topics_before: BTreeMap<&str, u64> = before
            .topics
            .topics
            .iter()
            .map(|topic| (topic.name.as_str(), published(topic)))
            .collect();
        let groups_before: BTreeMap<&str, u64> =
            before.groups.groups.iter().map(|group| (group.name.as_str(), done(group))).collect();
        let mut topics: Vec<TopicRow> = now
            .topics
            .topics
            .iter()
            .map(|topic| TopicRow {
                name: topic.name.clone(),
                messages: topic.messages,
                bytes: topic.bytes,
                published_per_s: rate(
                    topics_before.get(topic.name.as_str()).copied(),
                    published(topic),
                ),
            })
            .collect();
        topics.sort_by(|a, b| {
            b.published_per_s.total_cmp(&a.published_per_s).then(b.messages.cmp(&a.messages))
        });
        let mut groups: Vec<GroupRow> = now
            .groups
            .groups
            .iter()
            .map(|group| GroupRow {
                name: group.name.clone(),
                state: group::state(group),
                lag: group.lag,
                in_flight: group.in_flight,
                waiting: group.waiting,
                dead_letters: group.dead_letters,
                done_per_s: rate(groups_before.get(group.name.as_str()).copied(), done(group)),
                oldest_at: group
                    .partitions
                    .iter()
                    .filter_map(|partition| partition.oldest_at)
                    .min_by_key(|time| time.0),
            })
            .collect();
        groups.sort_by(|a, b| b.lag.cmp(&a.lag).then(b.done_per_s.total_cmp(&a.done_per_s)));
        View {
            at: Time(now.at_ms),
            topics,
            groups,
            more_topics: now.topics.more,
            more_groups: now.groups.more,
        }
    }

    fn lines(&self, node: &proto::Node, rows: usize) -> Vec<String> {
        let published: f64 = self.topics.iter().map(|topic| topic.published_per_s).sum();
        let done: f64 = self.groups.iter().map(|group| group.done_per_s).sum();
        let full = if node.disk_full { "  DISK NEARLY FULL" } else { "" };
        let mut lines = vec![
            format!(
                "{}  up {}  {}  {}  {} free{full}",
                units::show_second(self.at.0),
                units::show_age(node.uptime_ms),
                units::counted(node.topics, "topic"),
                units::counted(node.groups, "group"),
                units::show_size(node.disk_free_bytes)
            ),
            format!("published {}/s  done {}/s", per_second(published), per_second(done)),
            String::new(),
        ];
        let mut table = Table::new("TOPIC >PUBLISHED/S >MESSAGES >BYTES");
        for topic in self.topics.iter().take(rows) {
            table.row([
                topic.name.clone(),
                per_second(topic.published_per_s),
                units::show_count(topic.messages),
                units::show_size(topic.bytes),
            ]);
        }
        lines.extend(table.lines());
        lines.extend(others(self.topics.len(), rows, self.more_topics));
        lines.push(String::new());
        let mut table = Table::new("GROUP >DONE/S >LAG >IN-FLIGHT >WAITING >DEAD >OLDEST STATE");
        for group in self.groups.iter().take(rows) {
            let age = group.oldest_at.map(|time| self.at.0.saturating_sub(time.0));
            table.row([
                group.name.clone(),
                per_second(group.done_per_s),
                units::show_count(group.lag),
                units::show_count(group.in_flight),
                units::show_count(group.waiting),
                units::show_count(group.dead_letters),
                age.map_or_else(String::new, units::show_age),
                group.state.into(),
            ]);
        }
        lines.extend(table.lines());
        lines.extend(others(self.groups.len(), rows, self.more_groups));
        lines
    }
}

/// Says how many rows are not shown.
fn others(all: usize, rows: usize, more: bool) -> Option<String> {
    match (all.saturating_sub(rows), more) {
        (0, false) => None,
        (hidden, false) => Some(format!("... and {hidden} more")),
        (hidden, true) => Some(format!(
            "... and {hidden} more; only the first {MOST} were looked at: give a prefix"
        )),
    }
}

fn per_second(rate: f64) -> String {
    match rate {
        0.0 => "0".into(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => units::show_count(rate.round() as u64),
    }
}
