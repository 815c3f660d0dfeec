//! `/metrics`, in the text format of Prometheus (version 0.0.4).

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use posthouse_core::catalog::Action;

use super::answer::Refused;
use super::ask::Who;
use crate::broker::inspect::GroupStats;
use crate::broker::{Broker, Caller, On, bounds};
use crate::doors::calls::Calls;
use crate::problem::Problem;

/// Figures for Prometheus
///
/// Of the node, its shards, and at most 1000 topics and 1000 groups. Needs a user who may
/// manage the node, once there is one.
#[utoipa::path(get, path = "/metrics", tag = "node", responses(
    (status = 200, body = String), (status = "default", body = crate::json::Problem)))]
pub async fn metrics(State(calls): State<Calls>, Who(caller): Who) -> Result<Response, Refused> {
    caller.check(Action::Manage, On::Node)?;
    let mut page = Page::default();
    of_node(&calls.broker, &mut page);
    of_shards(&calls.broker, &mut page);
    of_schedule(&calls.broker, &mut page);
    of_topics(&calls.broker, &mut page).await?;
    of_groups(&calls.broker, &mut page).await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, page.text).into_response())
}

/// A page of figures.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Begins a figure: a `counter` or a `gauge`.
    fn figure(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP posthouse_{name} {help}");
        let _ = writeln!(self.text, "# TYPE posthouse_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.text, "posthouse_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{before}{label}=\"{text}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.figure(name, kind, help);
        self.value(name, &[], value);
    }
}

fn of_node(broker: &Broker, page: &mut Page) {
    let node = broker.node();
    page.figure("info", "gauge", "What the node is.");
    page.value(
        "info",
        &[("version", node.version), ("durability", node.durability), ("store", &node.store)],
        1.0,
    );
    let flag = |flag: bool| if flag { 1.0 } else { 0.0 };
    page.single("uptime_seconds", "gauge", "Since the start.", node.uptime.as_secs_f64());
    page.single("ready", "gauge", "Whether it takes work.", flag(broker.is_ready()));
    page.single("topics", "gauge", "Topics.", node.topics as f64);
    page.single("groups", "gauge", "Groups.", node.groups as f64);
    let recurring = broker.catalog().all_recurring().count();
    page.single("recurring", "gauge", "Recurring messages.", recurring as f64);
    let counts = broker.recurring_counts();
    for (name, help, count) in [
        ("recurring_published_total", "Times at which recurring messages came.", &counts.published),
        (
            "recurring_missed_total",
            "Looks that found times of recurring messages missed.",
            &counts.missed,
        ),
        (
            "recurring_failed_total",
            "Recurring messages that could not come and are tried again.",
            &counts.failed,
        ),
    ] {
        page.single(name, "counter", help, metrics_of(count));
    }
    let free = node.disk_free_bytes as f64;
    page.single("disk_free_bytes", "gauge", "Bytes free on the disk of the data.", free);
    let help = "Publishes that were refused because a quota was used up.";
    page.single("over_quota_total", "counter", help, broker.over_quota() as f64);
    let help = "Whether publishes are refused because the disk is nearly full.";
    page.single("disk_full", "gauge", help, flag(node.disk_full));
}

fn of_shards(broker: &Broker, page: &mut Page) {
    let shards: Vec<(String, _)> =
        broker.shards().iter().map(|shard| (shard.id.to_string(), shard.metrics.all())).collect();
    let Some((_, first)) = shards.first() else { return };
    for (index, figure) in first.iter().enumerate() {
        let name = format!("shard_{}{}", figure.name, if figure.grows { "_total" } else { "" });
        let kind = if figure.grows { "counter" } else { "gauge" };
        page.figure(&name, kind, figure.help);
        for (shard, figures) in &shards {
            page.value(&name, &[("shard", shard)], figures[index].value as f64);
        }
    }
}

/// How late scheduled messages came, as Prometheus has histograms.
fn of_schedule(broker: &Broker, page: &mut Page) {
    let name = "shard_lateness_seconds";
    page.figure(name, "histogram", "How long after their time scheduled messages came.");
    for shard in broker.shards() {
        let id = shard.id.to_string();
        let mut count = 0;
        for (bound_ms, messages) in shard.metrics.lateness.buckets() {
            count += messages;
            let bound = bound_ms.map_or("+Inf".to_owned(), |ms| (ms as f64 / 1000.0).to_string());
            let labels = [("shard", id.as_str()), ("le", &bound)];
            page.value(&format!("{name}_bucket"), &labels, count as f64);
        }
        let late = metrics_of(&shard.metrics.late_ms) / 1000.0;
        page.value(&format!("{name}_sum"), &[("shard", &id)], late);
        page.value(&format!("{name}_count"), &[("shard", &id)], count as f64);
    }
}

fn metrics_of(figure: &std::sync::atomic::AtomicU64) -> f64 {
    figure.load(std::sync::atomic::Ordering::Relaxed) as f64
}

async fn of_topics(broker: &Broker, page: &mut Page) -> Result<(), Problem> {
    let mut rows = Vec::new();
    for topic in broker.topics(&Caller::Node, "", None, bounds::PAGE) {
        let partitions = broker.topic_stats(&topic).await?;
        let sum = |of: fn(&posthouse_core::queue::PartitionInfo) -> u64| {
            partitions.iter().map(|partition| of(&partition.info)).sum::<u64>()
        };
        rows.push((
            topic.name.clone(),
            [
                sum(|info| info.next - info.head),
                sum(|info| info.bytes),
                sum(|info| info.next),
                sum(|info| info.scheduled),
            ],
        ));
    }
    let figures = [
        ("topic_messages", "gauge", "Messages in a topic."),
        ("topic_bytes", "gauge", "Bytes of the messages in a topic."),
        ("topic_published_total", "counter", "Messages ever published to a topic."),
        ("topic_scheduled", "gauge", "Messages that are to come to a topic."),
    ];
    for (index, (name, kind, help)) in figures.into_iter().enumerate() {
        page.figure(name, kind, help);
        for (topic, values) in &rows {
            page.value(name, &[("topic", topic)], values[index] as f64);
        }
    }
    Ok(())
}

async fn of_groups(broker: &Broker, page: &mut Page) -> Result<(), Problem> {
    let now = broker.now().0;
    let mut rows: Vec<(std::sync::Arc<str>, GroupStats)> = Vec::new();
    for group in broker.groups(&Caller::Node, "", None, bounds::PAGE) {
        rows.push((group.name.clone(), broker.group_stats(&group).await?));
    }
    type Of = fn(&GroupStats, u64) -> f64;
    let figures: [(&str, &str, &str, Of); 7] = [
        ("group_lag", "gauge", "Messages that a group is not done with.", |stats, _| {
            stats.sum(|info| info.lag) as f64
        }),
        ("group_in_flight", "gauge", "Messages that consumers of a group have.", |stats, _| {
            stats.sum(|info| info.in_flight) as f64
        }),
        ("group_waiting", "gauge", "Messages that wait for their next attempt.", |stats, _| {
            stats.sum(|info| info.waiting) as f64
        }),
        (
            "group_dropped_total",
            "counter",
            "Messages that retention took before the group was done with them.",
            |stats, _| stats.sum(|info| info.dropped) as f64,
        ),
        ("group_dead_letters", "gauge", "Dead letters of a group.", |stats, _| {
            stats.dead_letters as f64
        }),
        ("group_consumers", "gauge", "Consumers of a group that have messages.", |stats, _| {
            stats.consumers.iter().filter(|consumer| consumer.held > 0).count() as f64
        }),
        (
            "group_oldest_age_seconds",
            "gauge",
            "Age of the oldest message that a group is not done with.",
            |stats, now| {
                let oldest = stats.pairs.iter().filter_map(|pair| pair.oldest_at).min();
                oldest.map_or(0.0, |at| now.saturating_sub(at.0) as f64 / 1000.0)
            },
        ),
    ];
    for (name, kind, help, of) in figures {
        page.figure(name, kind, help);
        for (group, stats) in &rows {
            page.value(name, &[("group", group)], of(stats, now));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_figures_described() {
        let mut page = Page::default();
        page.figure("lag", "gauge", "How far behind.");
        page.value("lag", &[("group", "a\"b\\c\nd"), ("topic", "t")], 3.0);
        page.single("up", "gauge", "Up.", 1.0);
        let expected = "# HELP posthouse_lag How far behind.\n# TYPE posthouse_lag gauge\n\
                        posthouse_lag{group=\"a\\\"b\\\\c\\nd\",topic=\"t\"} 3\n\
                        # HELP posthouse_up Up.\n# TYPE posthouse_up gauge\nposthouse_up 1\n";
        assert_eq!(page.text, expected);
    }
}
