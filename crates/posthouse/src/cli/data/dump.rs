//! `posthouse data dump`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use clap::Args;
use posthouse_core::PartitionId;
use posthouse_core::catalog::Catalog;
use posthouse_frame::FrameNo;
use posthouse_log::ReadError;
use posthouse_log::files::RealFiles;
use serde_json::{Map, Value};

use crate::cli::output::{note, plain};
use crate::cli::{Failure, Output};
use crate::problem::Kind;
use crate::store::dump::{Filter, Frame, dump};
use crate::store::look::{Look, Part};

/// What of the logs to print.
#[derive(Debug, Args)]
pub(super) struct Dump {
    /// Only this shard, or meta for the catalog; all without it
    #[arg(long, value_name = "N|meta", value_parser = shard)]
    shard: Option<Shard>,
    /// From this frame on
    #[arg(long, value_name = "FRAME", default_value_t = 0)]
    from: u64,
    /// Up to this frame
    #[arg(long, value_name = "FRAME")]
    to: Option<u64>,
    /// So many frames at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only records of this topic, and frames that have some
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only records of this partition of it
    #[arg(long, value_name = "N", requires = "topic")]
    partition: Option<u32>,
    /// The messages too, with their bodies
    #[arg(long)]
    bodies: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shard {
    Meta,
    Number(u16),
}

fn shard(text: &str) -> Result<Shard, String> {
    match text {
        "meta" => Ok(Shard::Meta),
        number => number
            .parse()
            .map(Shard::Number)
            .map_err(|_| "the number of a shard, or meta, is expected".into()),
    }
}

impl Dump {
    pub(super) fn run(self, dir: &Path, out: &mut Output) -> Result<(), Failure> {
        let look = Look::new(RealFiles::shared(), dir)?;
        let catalog = match look.catalog() {
            Ok(catalog) => Some(catalog.machine),
            Err(error) => {
                note(format_args!("the catalog cannot be read, so names are numbers: {error}"));
                None
            }
        };
        let parts = self.parts(&look)?;
        let filter = Filter {
            from: FrameNo(self.from),
            to: self.to.map(FrameNo),
            partitions: self.partitions(catalog.as_ref())?,
            bodies: self.bodies,
        };
        let mut left = self.limit.unwrap_or(u64::MAX);
        let (mut damaged, mut failed) = (0u64, None);
        for part in parts {
            let flow = dump(&look, &part, catalog.as_ref(), &filter, |shown| {
                let printed = match shown {
                    Ok(frame) => {
                        left -= 1;
                        print(&frame, out)
                    }
                    Err(error) => {
                        damaged += 1;
                        tell(&error, out)
                    }
                };
                failed = printed.err();
                match failed.is_some() || left == 0 {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })?;
            if flow.is_break() {
                break;
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        if damaged > 0 {
            out.flush()?;
            let text = "some of it is damaged; `posthouse data verify` shows all damage";
            return Err(Failure::new(Kind::Corrupt, text));
        }
        Ok(())
    }

    fn parts(&self, look: &Look) -> Result<Vec<Part>, Failure> {
        let mut parts = look.parts();
        if let Some(shard) = self.shard {
            parts.retain(|part| match shard {
                Shard::Meta => part.is_meta(),
                Shard::Number(number) => part.shard == number && !part.is_meta(),
            });
        } else if self.topic.is_some() {
            parts.retain(|part| !part.is_meta());
        }
        if parts.is_empty() {
            let text = format!("there is no such shard; the store has {}", look.info.shards);
            return Err(Failure::new(Kind::NotFound, text));
        }
        Ok(parts)
    }

    fn partitions(
        &self,
        catalog: Option<&Catalog>,
    ) -> Result<Option<BTreeSet<PartitionId>>, Failure> {
        let Some(name) = &self.topic else { return Ok(None) };
        let topic = catalog.and_then(|catalog| catalog.topic_named(name)).ok_or_else(|| {
            Failure::new(Kind::NotFound, format!("there is no topic {name:?} in the catalog"))
        })?;
        let wanted = |index: u32| self.partition.is_none_or(|partition| partition == index);
        let partitions: BTreeSet<PartitionId> = (0u32..)
            .zip(&topic.partitions)
            .filter(|(index, _)| wanted(*index))
            .map(|(_, partition)| partition.id)
            .collect();
        if partitions.is_empty() {
            let text = format!("topic {name:?} has {} partitions", topic.partitions.len());
            return Err(Failure::new(Kind::NotFound, text));
        }
        Ok(Some(partitions))
    }
}

fn tell(error: &ReadError, out: &mut Output) -> Result<(), Failure> {
    // Where both go to one place, it stands where it belongs.
    out.flush()?;
    note(error);
    Ok(())
}

fn print(frame: &Frame, out: &mut Output) -> Result<(), Failure> {
    if out.is_json() {
        return out.json(frame);
    }
    let Frame { part, frame: number, kind, epoch, at, segment, offset, bytes, records } = frame;
    out.line(format_args!(
        "{part}  {kind} {number}  {at}  epoch {epoch}  segment {segment} at {offset}, {bytes} bytes"
    ))?;
    for record in records {
        out.line(format_args!("    {}", plain(&line(record))))?;
        for message in record.get("messages").and_then(Value::as_array).into_iter().flatten() {
            let fields = message.as_object().cloned().unwrap_or_default();
            out.line(format_args!("        {}", plain(&line(&fields))))?;
        }
    }
    Ok(())
}

/// What comes first in a line, because everything else is about it.
const FIRST: [&str; 6] = ["record", "group", "topic", "partition", "position", "first"];

/// A record as a line: its name, then what it says.
fn line(fields: &Map<String, Value>) -> String {
    let first = FIRST.into_iter().filter_map(|name| Some((name, fields.get(name)?)));
    let rest = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .filter(|(name, _)| !FIRST.contains(name) && *name != "messages");
    let words = first.chain(rest).map(|(name, value)| match name {
        "record" => text(value),
        "positions" | "first_attempt" => format!("{name}={}", runs(value)),
        name => format!("{name}={}", text(value)),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains([' ', '"', '=']) || text.is_empty() => {
            format!("{text:?}")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Runs of positions, each with its first and its last.
fn runs(value: &Value) -> String {
    let each = value.as_array().into_iter().flatten().map(|run| match (&run[0], &run[1]) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    each.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_line_with_what_matters_first() {
        let record = serde_json::json!({
            "record": "ack", "positions": [[0, 4], [7, 7]], "partition": 0, "topic": "orders",
            "group": "billing",
        });
        let shown = line(record.as_object().expect("it is one"));
        assert_eq!(shown, "ack group=billing topic=orders partition=0 positions=0-4,7");
    }
}
