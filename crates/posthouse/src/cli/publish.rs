//! `posthouse publish`: one message, or a message per line.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Args;
use posthouse_client::{Message, NameTaken, Published};
use posthouse_core::message::limits;

use super::remote::Remote;
use super::{Failure, Output, args, lines};
use crate::json;
use crate::units;

/// Publish a message, or a message per line
///
/// It is durable when the command ends with 0.
#[derive(Debug, Args)]
pub struct Publish {
    /// The topic
    topic: String,
    /// The body; read from stdin if it is -, or not given while something is piped in
    #[arg(conflicts_with = "lines")]
    body: Option<OsString>,
    #[command(flatten)]
    attributes: Attributes,
    /// The publisher's id of the message: the same again is published once
    #[arg(long, value_name = "ID", conflicts_with = "lines")]
    dedupe_id: Option<String>,
    /// Publish every line of a file as a message; - for stdin
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    #[command(flatten)]
    lines_options: LinesOptions,
    #[command(flatten)]
    remote: Remote,
}

/// What the publisher gives beside the body.
#[derive(Clone, Debug, Args)]
pub struct Attributes {
    /// The key: messages of one key keep their order in groups that ask for it
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A tag, for filters of groups; can be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A header; can be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = args::pair)]
    headers: Vec<(String, String)>,
    /// How long it is of use, like 30s or 7d
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    ttl: Option<u64>,
    /// Let it come so long from now, like 30m
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms,
        conflicts_with = "at")]
    delay: Option<u64>,
    /// Let it come at this time, like 2026-11-21T08:30:00Z
    #[arg(long, value_name = "TIME", value_parser = units::time_ms)]
    at: Option<u64>,
    /// A name, to move it or to call it back by; with --delay or --at
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What to do if a message that is to come has the name already
    #[arg(long, value_name = "WHAT", requires = "name", default_value = "replace")]
    name_taken: Taken,
}

/// What to do with a message whose name is taken.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Taken {
    /// It takes the other's place
    Replace,
    /// The other one stays
    Keep,
    /// It is an error
    Refuse,
}

/// How lines become messages.
#[derive(Clone, Debug, Args)]
pub struct LinesOptions {
    /// With --lines: line N gets the dedupe id PREFIX-N, so that a second run publishes
    /// only what the first has not, within the topic's dedupe window
    #[arg(long, value_name = "PREFIX", requires = "lines")]
    pub dedupe_prefix: Option<String>,
    /// With --lines: what a line is: text, the body as it stands, or json, a message as the
    /// HTTP interface takes it
    #[arg(long, value_name = "FORMAT", requires = "lines", default_value = "text")]
    pub line_format: lines::Format,
    /// With --lines: go on behind a line that is refused
    #[arg(long, requires = "lines")]
    pub keep_going: bool,
}

impl Attributes {
    /// Adds the attributes to a message.
    pub fn add_to(&self, mut message: Message) -> Message {
        if let Some(key) = &self.key {
            message = message.key(key);
        }
        for tag in &self.tags {
            message = message.tag(tag);
        }
        for (name, value) in &self.headers {
            message = message.header(name, value);
        }
        if let Some(ttl) = self.ttl {
            message = message.ttl(Duration::from_millis(ttl));
        }
        if let Some(delay) = self.delay {
            message = message.delay(Duration::from_millis(delay));
        }
        if let Some(at) = self.at {
            message = message.deliver_at(SystemTime::UNIX_EPOCH + Duration::from_millis(at));
        }
        if let Some(name) = &self.name {
            message = message.name(name).name_taken(match self.name_taken {
                Taken::Replace => NameTaken::Replace,
                Taken::Keep => NameTaken::Keep,
                Taken::Refuse => NameTaken::Refuse,
            });
        }
        message
    }
}

impl Publish {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Publish { topic, body, attributes, dedupe_id, lines, lines_options, remote } = self;
        if let Some(file) = lines {
            let work = lines::Lines { topic, file, attributes, options: lines_options };
            return remote.run(async |client, out| work.publish(&client, out).await);
        }
        let body = read_body(body)?;
        let mut message = attributes.add_to(Message::new(body));
        if let Some(id) = dedupe_id {
            message = message.dedupe_id(id);
        }
        remote.run(async |client, out| {
            let published = client.publish(&topic, message).await?;
            show(published, out)
        })
    }
}

fn show(published: Published, out: &mut Output) -> Result<(), Failure> {
    let message = shape(published);
    out.show(&json::Published { messages: vec![message] }, |out, published| {
        for message in &published.messages {
            let what = match (message.kept, message.duplicate) {
                (true, _) => "has the name, and stays",
                (false, true) => "had been published before",
                (false, false) => "published",
            };
            let json::PublishedMessage { id, partition, position, deliver_at, .. } = message;
            match (position, deliver_at) {
                (_, Some(at)) => {
                    let at = units::show_time(at.0);
                    out.line(format_args!("{id} {what}: partition {partition}, comes at {at}"))?;
                }
                (position, None) => {
                    let position = position.unwrap_or_default();
                    out.line(format_args!(
                        "{id} {what}: partition {partition}, position {position}"
                    ))?;
                }
            }
        }
        Ok(())
    })
}

/// A result in the shape of the HTTP interface.
pub(super) fn shape(published: Published) -> json::PublishedMessage {
    json::PublishedMessage {
        id: published.id,
        partition: published.partition,
        position: published.position,
        deliver_at: published.deliver_at.map(json::Time::from),
        duplicate: published.duplicate,
        kept: published.kept,
        problem: None,
    }
}

fn read_body(body: Option<OsString>) -> Result<Bytes, Failure> {
    match body {
        Some(body) if body != "-" => return Ok(body.into_vec().into()),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::usage(
                "there is no body: give it as the second argument, pipe it in, or type it after \
                 `posthouse publish TOPIC -` and end with Ctrl-D",
            ));
        }
        _ => {}
    }
    // One byte more tells whether it ends there.
    let most = limits::BODY_BYTES as u64;
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::from(error).at("cannot read the body from stdin"))?;
    if bytes.len() as u64 > most {
        return Err(Failure::usage(format!(
            "the body on stdin has more than {most} bytes, which no topic allows; --lines \
             publishes a message per line"
        )));
    }
    Ok(bytes.into())
}
