//! `posthouse schedule`: messages that are to come.

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::output::{Table, confirm, excerpt};
use super::remote::Remote;
use super::{Failure, Output};
use crate::json::{
    self, Change, ChangeStatus, Changes, Duration, Hours, Move, Shift, Target, Time,
};
use crate::problem::Kind;
use crate::units;

/// Messages that are fetched together.
const PAGE: u32 = 200;

/// Look at, move, call back and purge messages that are to come
#[derive(Debug, Args)]
pub struct Schedule {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List messages that are to come, in the order in which they do
    #[command(visible_alias = "ls")]
    List(List),
    /// Count the messages that are to come, by the hour
    Hours {
        /// The topic
        topic: String,
    },
    /// Let messages come at another time
    Move {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        to: To,
    },
    /// Call messages back: they will not come
    Cancel {
        #[command(flatten)]
        which: Which,
    },
    /// Call all messages of a topic back that are to come
    Purge {
        /// The topic
        topic: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct List {
    /// The topic
    topic: String,
    /// Only those that come at this time or later
    #[arg(long, value_name = "TIME", value_parser = units::time_ms)]
    from: Option<u64>,
    /// Only those that come before this time
    #[arg(long, value_name = "TIME", value_parser = units::time_ms)]
    until: Option<u64>,
    /// Only messages with this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only the one with this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N", default_value = "100",
        value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

#[derive(Debug, Args)]
struct Which {
    /// Ids of messages; with --topic, names of them
    #[arg(required = true)]
    messages: Vec<String>,
    /// The messages are given by their names in this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct To {
    /// At this time, like 2026-11-21T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = units::time_ms)]
    at: Option<u64>,
    /// So long from now, like 30m
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    delay: Option<u64>,
    /// So much later than they were to come
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    later: Option<u64>,
    /// So much earlier than they were to come
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    earlier: Option<u64>,
}

impl Which {
    fn targets(self) -> impl Iterator<Item = Target> {
        self.messages.into_iter().map(move |message| match &self.topic {
            None => Target { id: message, ..Target::default() },
            Some(topic) => Target { topic: topic.clone(), name: message, ..Target::default() },
        })
    }
}

impl Schedule {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::List(which) => list(&client, which, out).await,
            Command::Hours { topic } => hours(&client, topic, out).await,
            Command::Move { which, to } => {
                let shift = Shift {
                    deliver_at: to.at.map(Time),
                    delay: to.delay.map(Duration),
                    later: to.later.map(Duration),
                    earlier: to.earlier.map(Duration),
                };
                let names = which.messages.clone();
                let moves = which.targets().map(|to| Move::of(to, shift.clone()).into_proto());
                let items = moves.collect::<Result<_, _>>()?;
                let done = client.raw().reschedule(proto::RescheduleRequest { items }).await?;
                changed(&names, done.into_inner().into(), "comes", out)
            }
            Command::Cancel { which } => {
                let names = which.messages.clone();
                let targets = which.targets().map(Target::into_proto).collect();
                let done = client.raw().cancel(proto::CancelRequest { targets }).await?;
                changed(&names, done.into_inner().into(), "called back; it was to come", out)
            }
            Command::Purge { topic, yes } => {
                confirm(
                    &format!("Call all messages of topic {topic:?} back that are to come?"),
                    yes,
                )?;
                let request = proto::PurgeScheduledRequest { topic };
                let purged = client.raw().purge_scheduled(request).await?.into_inner().purged;
                out.show(&json::Purged { purged }, |out, done| {
                    out.line(format_args!("purged {}", units::counted(done.purged, "message")))
                })
            }
        })
    }
}

async fn list(client: &Client, which: List, out: &mut Output) -> Result<(), Failure> {
    let List { topic, from, until, key, name, limit } = which;
    let mut table = Table::new("COMES ID NAME KEY BODY");
    let (mut left, mut after) = (limit, String::new());
    loop {
        let request = proto::ListScheduledRequest {
            topic: topic.clone(),
            from_ms: from,
            until_ms: until,
            key: key.clone(),
            name: name.clone(),
            after,
            limit: left.min(PAGE.into()) as u32,
        };
        let page = client.raw().list_scheduled(request).await?.into_inner();
        left -= (page.messages.len() as u64).min(left);
        for message in page.messages {
            let body = message.body.clone();
            let message = json::Message::from(message);
            if out.is_json() {
                out.json(&message)?;
            } else {
                table.row([
                    message.deliver_at.map_or_else(String::new, |at| units::show_time(at.0)),
                    message.id,
                    message.name.unwrap_or_default(),
                    message.key.unwrap_or_default(),
                    excerpt(&body),
                ]);
            }
        }
        after = page.next;
        if after.is_empty() || left == 0 {
            break;
        }
    }
    if out.is_json() { Ok(()) } else { out.table(&table) }
}

async fn hours(client: &Client, topic: String, out: &mut Output) -> Result<(), Failure> {
    let request = proto::GetScheduleHoursRequest { topic };
    let hours = client.raw().get_schedule_hours(request).await?.into_inner();
    out.show(&Hours::from(hours), |out, hours| {
        let mut table = Table::new("FROM >MESSAGES");
        for hour in &hours.hours {
            table.row([units::show_second(hour.from.0), units::show_count(hour.messages)]);
        }
        out.table(&table)?;
        out.line(format_args!("{} in all", units::counted(hours.pending, "message")))
    })
}

/// Prints what became of messages, and fails if one is not as was asked.
fn changed(names: &[String], done: Changes, did: &str, out: &mut Output) -> Result<(), Failure> {
    out.show(&done, |out, done| {
        names
            .iter()
            .zip(&done.results)
            .try_for_each(|(name, change)| out.line(sentence(name, change, did)))
    })?;
    let worst = done.results.iter().find(|change| change.status != ChangeStatus::Ok);
    let Some(change) = worst else { return Ok(()) };
    out.flush()?;
    let count = done.results.iter().filter(|change| change.status != ChangeStatus::Ok).count();
    let kind = match change.status {
        ChangeStatus::Unknown => Kind::NotFound,
        ChangeStatus::Refused => Kind::Invalid,
        _ => Kind::Conflict,
    };
    let all = units::counted(done.results.len() as u64, "message");
    Err(Failure::new(kind, format!("{count} of {all} stayed as it was")))
}

fn sentence(name: &str, change: &Change, did: &str) -> String {
    let at = || change.deliver_at.map_or_else(String::new, |at| units::show_time(at.0));
    match change.status {
        ChangeStatus::Ok => format!("{name} {did} at {}", at()),
        ChangeStatus::Fired => format!(
            "{name} has come already: partition {}, position {}",
            change.partition.unwrap_or_default(),
            change.position.unwrap_or_default()
        ),
        ChangeStatus::Cancelled => format!("{name} was called back before"),
        ChangeStatus::Unknown => {
            format!("{name} is not to come: there is none, or what became of it is forgotten")
        }
        ChangeStatus::Held => format!("{name} is in the hands of a transaction"),
        ChangeStatus::Refused => match &change.problem {
            Some(problem) => format!("{name} was refused: {}", problem.detail),
            None => format!("{name} was refused"),
        },
    }
}
