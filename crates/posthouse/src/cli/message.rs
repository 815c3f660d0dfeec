//! `posthouse message`: one message, by its id.

use std::fmt::Display;

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::browse::{Browse, By};
use super::output::{Facts, Table, plain};
use super::remote::Remote;
use super::{Failure, Output};
use crate::json;
use crate::units;

/// Look at one message, or find some
#[derive(Debug, Args)]
pub struct Message {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a message, and what it is to each group
    Show {
        /// Its id
        id: String,
        /// Only the body, as it is
        #[arg(long)]
        body: bool,
    },
    /// Show the life of a message: published, granted to whom and when, given back with
    /// what, acknowledged, dead
    History {
        /// Its id
        id: String,
    },
    /// Find messages of a topic by key or time
    Find {
        /// The topic
        topic: String,
        #[command(flatten)]
        by: By,
    },
}

impl Message {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        if let Command::Find { by, .. } = &command
            && !by.is_given()
        {
            return Err(Failure::usage(
                "give --key, --since or --until to find messages by; `posthouse topic browse` \
                 shows all",
            ));
        }
        self.remote.run(async |client, out| match command {
            Command::Show { id, body } => show(&client, id, body, out).await,
            Command::History { id } => history(&client, id, out).await,
            Command::Find { topic, by } => Browse::of(topic, by).run(&client, out).await,
        })
    }
}

async fn show(client: &Client, id: String, body: bool, out: &mut Output) -> Result<(), Failure> {
    let found = client.raw().get_message(proto::GetMessageRequest { id }).await?.into_inner();
    let bytes = found.message.as_ref().map(|message| message.body.clone()).unwrap_or_default();
    if body {
        return out.bytes(&bytes);
    }
    out.show(&json::MessageInfo::from(found), |out, info| people(out, info, &bytes))
}

fn people(out: &mut Output, info: &json::MessageInfo, body: &[u8]) -> Result<(), Failure> {
    attributes(&info.message).print(out)?;
    if !info.groups.is_empty() {
        out.line("")?;
        let mut table = Table::new("GROUP STATE >ATTEMPT LEFT CONSUMER REASON");
        for group in &info.groups {
            table.row([
                group.group.clone(),
                group.state.clone(),
                if group.attempt == 0 { String::new() } else { group.attempt.to_string() },
                group.left.map_or_else(String::new, |left| units::show_age(left.0)),
                group.consumer.clone().unwrap_or_default(),
                group.reason.clone().unwrap_or_default(),
            ]);
        }
        out.table(&table)?;
    }
    out.line("")?;
    let no_text = format_args!(
        "(the body is no text; `posthouse message show {} --body` gives its {} bytes)",
        info.message.id,
        units::show_count(body.len() as u64)
    );
    print_body(out, body, no_text)
}

/// Prints a body line by line, or `no_text` if it is none. What would play with the
/// terminal is not printed.
pub(super) fn print_body(
    out: &mut Output,
    body: &[u8],
    no_text: impl Display,
) -> Result<(), Failure> {
    match std::str::from_utf8(body) {
        Ok(text) => text.lines().try_for_each(|line| out.line(plain(line))),
        Err(_) => out.line(no_text),
    }
}

/// What is known of a message, one line each.
pub(super) fn attributes(message: &json::Message) -> Facts {
    let mut facts = Facts::default();
    facts.add("id", &message.id);
    facts.add("topic", &message.topic);
    facts.add("partition", message.partition);
    facts.add_some("position", message.position);
    facts.add_some("comes", message.deliver_at.map(|at| units::show_time(at.0)));
    facts.add_some("name", message.name.as_ref());
    facts.add_some("published", message.published_at.map(|at| units::show_time(at.0)));
    facts.add_some("key", message.key.as_ref());
    if !message.tags.is_empty() {
        facts.add("tags", message.tags.join(", "));
    }
    for (name, value) in &message.headers {
        facts.add(format!("header {}", plain(name)), value);
    }
    facts.add_some("time to live", message.ttl.map(|ttl| units::show_duration(ttl.0)));
    facts.add_some("dedupe id", message.dedupe_id.as_ref());
    if let Some(origin) = &message.origin {
        facts.add("died", units::show_time(origin.died_at.0));
        facts.add("reason", format!("{}, after {} attempts", origin.reason, origin.attempts));
        if !origin.error.is_empty() {
            facts.add("error", &origin.error);
        }
        let json::Origin { topic, partition, position, .. } = origin;
        facts.add("came from", format!("{topic}, partition {partition}, position {position}"));
    }
    facts
}

async fn history(client: &Client, id: String, out: &mut Output) -> Result<(), Failure> {
    let life = client.raw().get_history(proto::GetHistoryRequest { id }).await?.into_inner();
    out.show(&json::History::from(life), |out, life| {
        let mut table = Table::new("AT EVENT GROUP >ATTEMPT >FENCE CONSUMER DETAIL");
        let number = |number: u64| if number == 0 { String::new() } else { number.to_string() };
        for event in &life.events {
            let mut detail = event.reason.clone().unwrap_or_default();
            if event.auto_ack {
                detail = "acknowledged with the grant".into();
            }
            if let Some(position) = event.position {
                detail = format!("to position {position}");
            }
            table.row([
                units::show_time(event.at.0),
                event.event.clone(),
                event.group.clone().unwrap_or_default(),
                number(event.attempt.into()),
                number(event.fence),
                event.consumer.clone().unwrap_or_default(),
                detail,
            ]);
        }
        out.table(&table)?;
        if life.gaps {
            out.line("(parts of the log between have been freed: there may have been more)")?;
        }
        if !life.complete {
            out.line("(the log goes on: this is as far as one look reaches)")?;
        }
        Ok(())
    })
}
