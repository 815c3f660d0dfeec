//! `posthouse publish`: one message, or a message per line.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use posthouse_client::{Message, Published};
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
        match self.ttl {
            Some(ttl) => message.ttl(Duration::from_millis(ttl)),
            None => message,
        }
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
            let json::PublishedMessage { id, partition, position, duplicate, .. } = message;
            let what = if *duplicate { "had been published before" } else { "published" };
            out.line(format_args!("{id} {what}: partition {partition}, position {position}"))?;
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
        duplicate: published.duplicate,
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
