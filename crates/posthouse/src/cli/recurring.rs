//! `posthouse recurring`: messages that come again and again.

use clap::{Args, Subcommand, ValueEnum};
use posthouse_client::{Client, proto};

use super::args::pair;
use super::output::{Facts, Table, confirm, plain};
use super::remote::Remote;
use super::{Failure, Output};
use crate::json::{self, Duration, MissedName, Time};
use crate::units;

/// Recurring messages that are fetched together.
const PAGE: u32 = 200;

/// Messages that come again and again: make, look at, pause, run
#[derive(Debug, Args)]
pub struct Recurring {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List recurring messages, with the next time of each
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this topic
        #[arg(long, value_name = "TOPIC")]
        topic: Option<String>,
        /// Only names that begin so
        #[arg(long, value_name = "TEXT", default_value = "")]
        prefix: String,
    },
    /// Show a recurring message, with its next ten times
    Show {
        /// Its name
        name: String,
    },
    /// Make a recurring message, or replace one
    Put(Box<Put>),
    /// Let recurring messages come no more for now
    Pause {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let recurring messages come again, at times from now on
    Resume {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Publish the message of a recurring one now, beside its times
    Run {
        /// Its name
        name: String,
    },
    /// Delete recurring messages; what has come stays
    #[command(visible_alias = "rm")]
    Delete {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct Put {
    /// Its name
    name: String,
    /// The topic that it comes to
    topic: String,
    /// The body
    #[arg(default_value = "")]
    body: String,
    #[command(flatten)]
    when: When,
    /// With --cron: an IANA time zone, like Europe/Berlin; UTC by default
    #[arg(long, value_name = "ZONE", conflicts_with = "every")]
    zone: Option<String>,
    /// Not before this time, like 2026-11-21T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = units::time_ms)]
    start: Option<u64>,
    /// Not after this time
    #[arg(long, value_name = "TIME", value_parser = units::time_ms)]
    end: Option<u64>,
    /// Later than its time by at most so much
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    jitter: Option<u64>,
    /// What becomes of times that pass while the node is down
    #[arg(long, value_name = "WHAT", default_value = "once")]
    missed: Missed,
    /// Whether it does not come for now; as it is by default
    #[arg(long, value_name = "BOOL")]
    paused: Option<bool>,
    /// The key
    #[arg(long, short, value_name = "KEY")]
    key: Option<String>,
    /// A tag; may stand several times
    #[arg(long = "tag", short, value_name = "TAG")]
    tags: Vec<String>,
    /// A header; may stand several times
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// How long each message is of use
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    ttl: Option<u64>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct When {
    /// At the times of this expression: second minute hour day month weekday, or without
    /// the second
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// So far apart, like 30s
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    every: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Missed {
    /// It comes once for all of them
    Once,
    /// It does not come for them
    Skip,
}

impl Put {
    fn into_proto(self) -> Result<proto::PutRecurringRequest, Failure> {
        let config = json::RecurringConfig {
            topic: self.topic,
            body: Some(self.body),
            body_base64: None,
            key: self.key,
            tags: self.tags,
            headers: self.headers.into_iter().collect(),
            ttl: self.ttl.map(Duration),
            cron: self.when.cron,
            zone: self.zone,
            every: self.when.every.map(Duration),
            start: self.start.map(Time),
            end: self.end.map(Time),
            jitter: self.jitter.map(Duration),
            missed: Some(match self.missed {
                Missed::Once => MissedName::Once,
                Missed::Skip => MissedName::Skip,
            }),
            paused: self.paused,
        };
        Ok(proto::PutRecurringRequest { name: self.name, config: Some(config.into_proto()?) })
    }
}

impl Recurring {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::List { topic, prefix } => list(&client, topic, prefix, out).await,
            Command::Show { name } => {
                let request = proto::GetRecurringRequest { name };
                show(client.raw().get_recurring(request).await?.into_inner(), out)
            }
            Command::Put(put) => {
                let done = client.raw().put_recurring(put.into_proto()?).await?.into_inner();
                show(done.recurring.unwrap_or_default(), out)
            }
            Command::Pause { names } => {
                for name in names {
                    let request = proto::PauseRecurringRequest { name };
                    let done = client.raw().pause_recurring(request).await?.into_inner();
                    changed(done, "is paused", out)?;
                }
                Ok(())
            }
            Command::Resume { names } => {
                for name in names {
                    let request = proto::ResumeRecurringRequest { name };
                    let done = client.raw().resume_recurring(request).await?.into_inner();
                    changed(done, "comes again", out)?;
                }
                Ok(())
            }
            Command::Run { name } => {
                let request = proto::RunRecurringRequest { name };
                let done = client.raw().run_recurring(request).await?.into_inner();
                out.show(&json::PublishedMessage::from(done), |out, done| out.line(&done.id))
            }
            Command::Delete { names, yes } => {
                let what = units::counted(names.len() as u64, "recurring message");
                confirm(&format!("Delete {what}: {}?", names.join(", ")), yes)?;
                for name in names {
                    let request = proto::DeleteRecurringRequest { name: name.clone() };
                    client.raw().delete_recurring(request).await?;
                    out.say(format_args!("deleted {name}"))?;
                }
                Ok(())
            }
        })
    }
}

async fn list(
    client: &Client,
    topic: Option<String>,
    prefix: String,
    out: &mut Output,
) -> Result<(), Failure> {
    let topic = topic.unwrap_or_default();
    let mut table = Table::new("NAME TOPIC RULE NEXT LAST");
    let mut after = String::new();
    loop {
        let (prefix, topic) = (prefix.clone(), topic.clone());
        let request = proto::ListRecurringRequest { prefix, topic, after, limit: PAGE };
        let page = client.raw().list_recurring(request).await?.into_inner();
        after = page.recurring.last().map_or_else(String::new, |last| last.name.clone());
        for of in page.recurring {
            let of = json::Recurring::from(of);
            if out.is_json() {
                out.json(&of)?;
            } else {
                table.row([
                    of.name.clone(),
                    of.config.topic.clone(),
                    rule(&of.config),
                    next(&of),
                    of.last.map_or_else(String::new, |at| units::show_second(at.0)),
                ]);
            }
        }
        if !page.more {
            break;
        }
    }
    if out.is_json() { Ok(()) } else { out.table(&table) }
}

fn rule(config: &json::RecurringConfig) -> String {
    match (&config.cron, &config.every) {
        (Some(cron), _) => format!("{cron} ({})", config.zone.as_deref().unwrap_or("UTC")),
        (None, Some(every)) => format!("every {}", units::show_duration(every.0)),
        (None, None) => String::new(),
    }
}

fn next(of: &json::Recurring) -> String {
    match of.next.first() {
        Some(at) => units::show_second(at.0),
        None if of.config.paused == Some(true) => "paused".into(),
        None => "never".into(),
    }
}

fn changed(of: proto::Recurring, did: &str, out: &mut Output) -> Result<(), Failure> {
    out.show(&json::Recurring::from(of), |out, of| out.line(format_args!("{} {did}", of.name)))
}

fn show(of: proto::Recurring, out: &mut Output) -> Result<(), Failure> {
    let bytes = of.config.as_ref().map_or(0, |config| config.body.len());
    out.show(&json::Recurring::from(of), |out, of| {
        let config = &of.config;
        let mut facts = Facts::default();
        facts.add("name", &of.name);
        facts.add("topic", &config.topic);
        facts.add("comes", rule(config));
        facts.add_some("from", config.start.map(|at| units::show_time(at.0)));
        facts.add_some("until", config.end.map(|at| units::show_time(at.0)));
        facts.add_some("jitter", config.jitter.map(|jitter| units::show_duration(jitter.0)));
        facts.add(
            "missed times",
            match config.missed {
                Some(MissedName::Skip) => "skipped",
                _ => "made up for once",
            },
        );
        facts.add("paused", if config.paused == Some(true) { "yes" } else { "no" });
        facts.add_some("key", config.key.as_ref());
        if !config.tags.is_empty() {
            facts.add("tags", config.tags.join(", "));
        }
        for (name, value) in &config.headers {
            facts.add(format!("header {}", plain(name)), value);
        }
        facts.add_some("time to live", config.ttl.map(|ttl| units::show_duration(ttl.0)));
        facts.add("body", format!("{bytes} bytes"));
        facts.add("made", units::show_time(of.created_at.0));
        facts.add_some("last", of.last.map(|at| units::show_time(at.0)));
        facts.print(out)?;
        of.next.iter().try_for_each(|at| out.line(format_args!("next  {}", units::show_time(at.0))))
    })
}
