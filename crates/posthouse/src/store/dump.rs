//! The frames and records of a data directory, for people and for tools. Reads only, and
//! may run beside the node.
//!
//! Partitions, topics and groups are numbers in the log; what the catalog still knows
//! gets its name, the rest its number.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use posthouse_core::catalog::Catalog;
use posthouse_core::message;
use posthouse_core::record::{
    CancelReason, CarriedItem, Entries, Grant, List, ListItem, Pending, Place, PlaceReason,
    Prepare, PreparedPart, Record, RecordError, Records, Rescheduled, SkipReason, TrimReason, When,
};
use posthouse_core::{GroupId, PartitionId, Run};
use posthouse_frame::varint::Cursor;
use posthouse_frame::{FrameNo, Kind, body};
use posthouse_log::local::{Inspected, inspect};
use posthouse_log::{Part as Read, ReadError};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::StoreError;
use super::look::{Look, Part};
use crate::units;

/// What to show.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// From this frame on.
    pub from: FrameNo,
    /// Up to this frame.
    pub to: Option<FrameNo>,
    /// Only records of these partitions, and frames that have some.
    pub partitions: Option<BTreeSet<PartitionId>>,
    /// The messages too, with their bodies.
    pub bodies: bool,
}

/// A frame or a mark.
#[derive(Clone, Debug, Serialize)]
pub struct Frame {
    /// The directory it is in: `meta`, `shard-0000` and so on.
    pub part: String,
    /// Its number; a mark repeats that of the next one.
    pub frame: u64,
    /// `data`, `epoch` or `mark`.
    pub kind: &'static str,
    /// The ownership under which it was written.
    pub epoch: u32,
    /// When it was sealed.
    pub at: String,
    /// The segment it is in.
    pub segment: u64,
    /// Byte offset there.
    pub offset: u64,
    /// Its bytes, with padding.
    pub bytes: u32,
    /// Its records.
    pub records: Vec<Map<String, Value>>,
}

/// Shows every frame of a part to `each`, oldest first, until it breaks off. What does
/// not hold is shown as an error, and the walk goes on behind it where it can.
///
/// # Errors
/// If the log cannot be looked at.
pub fn dump(
    look: &Look,
    part: &Part,
    catalog: Option<&Catalog>,
    filter: &Filter,
    mut each: impl FnMut(Result<Frame, ReadError>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, StoreError> {
    let read = if filter.bodies { Read::Whole } else { Read::Meta };
    let names = Names { catalog };
    for unit in inspect(look.files.clone(), &part.log_dir(), look.number, read)? {
        let shown = match unit {
            Err(error) => Err(error),
            Ok(unit) => match names.frame(part, &unit, filter) {
                Some(frame) => Ok(frame),
                None => continue,
            },
        };
        if each(shown).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Who knows what numbers are called.
struct Names<'a> {
    catalog: Option<&'a Catalog>,
}

type Fields = Map<String, Value>;

fn fields(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("it is written as an object here"),
    }
}

impl Names<'_> {
    fn frame(&self, part: &Part, unit: &Inspected, filter: &Filter) -> Option<Frame> {
        let header = &unit.header;
        let is_wanted = header.frame_no >= filter.from
            && filter.to.is_none_or(|to| header.frame_no <= to)
            // With records to look for, frames that have none say nothing.
            && (filter.partitions.is_none() || header.kind == Kind::Data);
        if !is_wanted {
            return None;
        }
        let records = match header.kind {
            Kind::Data if part.is_meta() => changes(&unit.meta),
            Kind::Data => self.records(unit, filter),
            _ => Vec::new(),
        };
        if filter.partitions.is_some() && records.is_empty() {
            return None;
        }
        Some(Frame {
            part: part.name.clone(),
            frame: header.frame_no.0,
            kind: match header.kind {
                Kind::Data => "data",
                Kind::Epoch => "epoch",
                Kind::Mark => "mark",
            },
            epoch: header.epoch,
            at: units::show_time(header.wall_ms),
            segment: unit.segment.0,
            offset: unit.offset,
            bytes: header.total,
            records,
        })
    }

    fn records(&self, unit: &Inspected, filter: &Filter) -> Vec<Fields> {
        let bodies = Bodies { frame: unit.header.frame_no, section: unit.body.as_ref() };
        let mut shown = Vec::new();
        for record in Records::new(&unit.meta) {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    shown.push(unreadable(&error));
                    break;
                }
            };
            let is_wanted = match (&filter.partitions, partition_of(&record)) {
                (None, _) => true,
                (Some(wanted), Some(partition)) => wanted.contains(&partition),
                (Some(_), None) => false,
            };
            if is_wanted {
                shown.push(self.record(&record, &bodies));
            }
        }
        shown
    }

    /// What a partition belongs to.
    fn partition(&self, id: PartitionId) -> Fields {
        let topic = self.catalog.and_then(|catalog| catalog.topic_of(id));
        let known = topic.and_then(|topic| Some((topic.name.as_ref(), topic.index_of(id)?)));
        fields(match known {
            Some((topic, partition)) => json!({ "topic": topic, "partition": partition }),
            None => json!({ "partition_number": id.0 }),
        })
    }

    fn group(&self, id: GroupId) -> Value {
        if id == GroupId::OPERATOR {
            return "(operator)".into();
        }
        let known = self.catalog.and_then(|catalog| catalog.group(id));
        known.map_or_else(|| format!("#{id}").into(), |group| group.name.as_ref().into())
    }

    fn record(&self, record: &Record<'_>, bodies: &Bodies<'_>) -> Fields {
        let mut out = Fields::new();
        out.insert("record".into(), name_of(record).into());
        if let Some(group) = group_of(record) {
            out.insert("group".into(), self.group(group));
        }
        if let Some(partition) = partition_of(record) {
            out.extend(self.partition(partition));
        }
        out.extend(match record {
            Record::Open { topic, .. } => fields(json!({ "topic_number": topic.0 })),
            Record::Publish { first, at, body_at, entries, .. } => {
                let mut publish = fields(json!({
                    "first": first,
                    "count": entries.len(),
                    "at": units::show_time(at.0),
                    "bytes": entries.iter().map(|entry| u64::from(entry.len)).sum::<u64>(),
                }));
                if bodies.section.is_some() {
                    publish.insert(
                        "messages".into(),
                        bodies.of("position", *first, *body_at, entries),
                    );
                }
                publish
            }
            Record::Place(place) => self.place(place, bodies),
            Record::Attach { floor, .. } => fields(json!({ "floor": floor })),
            Record::Detach { .. } | Record::Drop { .. } | Record::Close { .. } => Fields::new(),
            Record::Grant(grant) => granted(grant),
            Record::Skip { next, why, runs: positions, .. } => {
                let why = match why {
                    SkipReason::Filtered => "filtered",
                    SkipReason::Expired => "expired",
                    SkipReason::Exhausted => "exhausted",
                    SkipReason::Purged => "purged",
                };
                fields(json!({ "why": why, "positions": runs(positions), "next": next }))
            }
            Record::Chain { next, items, .. } => {
                let positions: Vec<u64> = items.iter().map(|item| item.position).collect();
                fields(json!({ "waiting": positions, "next": next }))
            }
            Record::Ack { runs: positions, .. } => fields(json!({ "positions": runs(positions) })),
            Record::Nack { position, visible_at, reason, .. } => fields(json!({
                "position": position,
                "visible_at_ms": visible_at.0,
                "reason": reason,
            })),
            Record::Extend { visible_at, runs: positions, .. } => {
                fields(json!({ "positions": runs(positions), "visible_at_ms": visible_at.0 }))
            }
            Record::Seek { position, .. } => fields(json!({ "position": position })),
            Record::Trim { head, head_at, why, .. } => {
                let why = match why {
                    TrimReason::Acknowledged => "acknowledged",
                    TrimReason::Age => "age",
                    TrimReason::Bytes => "bytes",
                    TrimReason::Count => "count",
                    TrimReason::Purged => "purged",
                };
                let head_at = units::show_time(head_at.0);
                fields(json!({ "why": why, "head": head, "head_at": head_at }))
            }
            Record::Sweep { upto, freed, .. } => {
                let bytes: u64 = freed.iter().map(|freed| freed.bytes).sum();
                fields(json!({ "upto": upto, "freed_bytes": bytes }))
            }
            Record::Forget { upto } => fields(json!({ "upto": upto })),
            Record::Schedule { first, at, body_at, held, due, entries, .. } => {
                let due: Vec<u64> = due.iter().map(|due| due.0.0).collect();
                let mut schedule = fields(json!({
                    "first_number": first,
                    "count": entries.len(),
                    "at": units::show_time(at.0),
                    "due_ms": due,
                    "held": held,
                }));
                if bodies.section.is_some() {
                    schedule
                        .insert("messages".into(), bodies.of("number", *first, *body_at, entries));
                }
                schedule
            }
            Record::Fire { first, at, items, .. } => {
                let numbers: Vec<u64> = items.iter().map(|item| item.seq).collect();
                let at = units::show_time(at.0);
                fields(json!({ "first": first, "at": at, "numbers": numbers }))
            }
            Record::Reschedule { items } => {
                let moved = |item: Rescheduled| {
                    let mut moved = self.partition(item.of.partition);
                    moved.insert("number".into(), item.of.seq.into());
                    moved.insert("due_ms".into(), item.due.0.into());
                    moved
                };
                let moved: Vec<Fields> = items.iter().map(moved).collect();
                fields(json!({ "messages": moved }))
            }
            Record::Cancel { why, items } => {
                let why = match why {
                    CancelReason::Asked => "asked",
                    CancelReason::Replaced => "replaced",
                    CancelReason::Purged => "purged",
                    CancelReason::Dropped => "dropped",
                };
                let cancelled = |item: Pending| {
                    let mut cancelled = self.partition(item.partition);
                    cancelled.insert("number".into(), item.seq.into());
                    cancelled
                };
                let cancelled: Vec<Fields> = items.iter().map(cancelled).collect();
                fields(json!({ "why": why, "messages": cancelled }))
            }
            Record::PurgeScheduled { upto, .. } => fields(json!({ "upto_number": upto })),
            Record::Prepare(prepare) => self.prepared(prepare),
            Record::Check { first, checks, next_check } => fields(
                json!({ "transaction": first, "checks": checks, "next_check_ms": next_check.0 }),
            ),
            Record::Park { first } => fields(json!({ "transaction": first })),
            Record::Commit(commit) => fields(json!({
                "transaction": commit.first,
                "at": units::show_time(commit.at.0),
                "positions": runs(&commit.placed),
                "due_ms": commit.due.iter().map(|due| due.0.0).collect::<Vec<u64>>(),
            })),
            Record::Rollback { first, at } => {
                fields(json!({ "transaction": first, "at": units::show_time(at.0) }))
            }
            Record::ForgetDecisions { upto } => fields(json!({ "upto": upto })),
            Record::Carry { items, .. } => {
                let of = |item: CarriedItem| {
                    json!({
                        "partition": item.partition.0,
                        "position": item.position,
                        "from_frame": item.from.0,
                        "bytes": item.len,
                    })
                };
                fields(json!({ "items": items.iter().map(of).collect::<Vec<_>>() }))
            }
            Record::Recur { recurring, at } => {
                fields(json!({ "recurring": recurring, "at": units::show_time(at.0) }))
            }
            Record::Snapshot { frame, digest } => {
                fields(json!({ "frame": frame.0, "digest": format!("{digest:016x}") }))
            }
        });
        out
    }

    fn prepared(&self, prepare: &Prepare<'_>) -> Fields {
        let part = |part: PreparedPart| {
            let mut out = self.partition(part.partition);
            out.insert("count".into(), part.count.into());
            out.insert("later".into(), part.is_later.into());
            out
        };
        let when = |when: When| match when {
            When::At(at) => json!({ "at_ms": at.0 }),
            When::After(ms) => json!({ "after_ms": ms }),
        };
        fields(json!({
            "transaction": prepare.first,
            "at": units::show_time(prepare.at.0),
            "producer": prepare.producer,
            "next_check_ms": prepare.next_check.0,
            "check_after_ms": prepare.check_after_ms,
            "checks": prepare.most_checks,
            "bytes": prepare.bytes,
            "parts": prepare.parts.iter().map(part).collect::<Vec<Fields>>(),
            "due": prepare.when.iter().map(when).collect::<Vec<Value>>(),
        }))
    }

    fn place(&self, place: &Place<'_>, bodies: &Bodies<'_>) -> Fields {
        let reason = match place.reason {
            PlaceReason::Dead => "dead",
            PlaceReason::Redriven => "redriven",
        };
        let mut out = fields(json!({
            "position": place.position,
            "at": units::show_time(place.at.0),
            "why": reason,
            "id": place.id.to_string(),
        }));
        if let Some((group, partition, position)) = place.source {
            let mut from = self.partition(partition);
            from.insert("position".into(), position.into());
            from.insert("group".into(), self.group(group));
            out.insert("from".into(), from.into());
        }
        if bodies.section.is_some() && place.body.frame == bodies.frame {
            let entries = Entries::Slice(std::slice::from_ref(&place.entry));
            out.insert(
                "messages".into(),
                bodies.of("position", place.position, place.body.at, &entries),
            );
        }
        out
    }
}

fn granted(grant: &Grant<'_>) -> Fields {
    let again: Vec<Value> = grant
        .again
        .iter()
        .map(|again| json!({ "positions": run(&again.run), "attempt": again.attempt }))
        .collect();
    let mut out = fields(json!({
        "consumer": grant.consumer,
        "fence": grant.fence,
        "first_attempt": runs(&grant.fresh),
        "next": grant.next,
    }));
    if !again.is_empty() {
        out.insert("again".into(), again.into());
    }
    match grant.is_auto_ack() {
        true => out.insert("auto_ack".into(), true.into()),
        false => out.insert("visible_at_ms".into(), grant.visible_at.0.into()),
    };
    out
}

/// A run as its first and its last position.
fn run(run: &Run) -> Value {
    json!([run.first, run.end() - 1])
}

fn runs(list: &List<'_, Run>) -> Value
where
    Run: ListItem,
{
    list.iter().map(|item| run(&item)).collect()
}

fn name_of(record: &Record<'_>) -> &'static str {
    match record {
        Record::Open { .. } => "open",
        Record::Publish { .. } => "publish",
        Record::Place(_) => "place",
        Record::Attach { .. } => "attach",
        Record::Detach { .. } => "detach",
        Record::Drop { .. } => "drop",
        Record::Grant(_) => "grant",
        Record::Skip { .. } => "skip",
        Record::Chain { .. } => "chain",
        Record::Ack { .. } => "ack",
        Record::Nack { .. } => "nack",
        Record::Extend { .. } => "extend",
        Record::Seek { .. } => "seek",
        Record::Trim { .. } => "trim",
        Record::Sweep { .. } => "sweep",
        Record::Close { .. } => "close",
        Record::Forget { .. } => "forget",
        Record::Snapshot { .. } => "snapshot",
        Record::Schedule { .. } => "schedule",
        Record::Fire { .. } => "fire",
        Record::Reschedule { .. } => "reschedule",
        Record::Cancel { .. } => "cancel",
        Record::PurgeScheduled { .. } => "purge_scheduled",
        Record::Prepare(_) => "prepare",
        Record::Check { .. } => "check",
        Record::Park { .. } => "park",
        Record::Commit(_) => "commit",
        Record::Rollback { .. } => "rollback",
        Record::ForgetDecisions { .. } => "forget_decisions",
        Record::Carry { .. } => "carry",
        Record::Recur { .. } => "recur",
    }
}

fn partition_of(record: &Record<'_>) -> Option<PartitionId> {
    match record {
        Record::Open { partition, .. }
        | Record::Publish { partition, .. }
        | Record::Attach { partition, .. }
        | Record::Detach { partition, .. }
        | Record::Drop { partition }
        | Record::Skip { partition, .. }
        | Record::Chain { partition, .. }
        | Record::Ack { partition, .. }
        | Record::Nack { partition, .. }
        | Record::Extend { partition, .. }
        | Record::Seek { partition, .. }
        | Record::Trim { partition, .. }
        | Record::Sweep { partition, .. }
        | Record::Close { partition }
        | Record::Schedule { partition, .. }
        | Record::Fire { partition, .. }
        | Record::PurgeScheduled { partition, .. } => Some(*partition),
        Record::Place(place) => Some(place.partition),
        Record::Grant(grant) => Some(grant.partition),
        Record::Reschedule { items } => single(items.iter().map(|item| item.of.partition)),
        Record::Cancel { items, .. } => single(items.iter().map(|item| item.partition)),
        Record::Carry { items, .. } => single(items.iter().map(|item| item.partition)),
        Record::Prepare(prepare) => single(prepare.parts.iter().map(|part| part.partition)),
        Record::Forget { .. }
        | Record::Snapshot { .. }
        | Record::Check { .. }
        | Record::Park { .. }
        | Record::Commit(_)
        | Record::Rollback { .. }
        | Record::ForgetDecisions { .. }
        | Record::Recur { .. } => None,
    }
}

/// The one partition of a record that may be about several.
fn single(mut all: impl Iterator<Item = PartitionId>) -> Option<PartitionId> {
    let first = all.next()?;
    all.all(|partition| partition == first).then_some(first)
}

fn group_of(record: &Record<'_>) -> Option<GroupId> {
    match record {
        Record::Attach { group, .. }
        | Record::Detach { group, .. }
        | Record::Skip { group, .. }
        | Record::Chain { group, .. }
        | Record::Ack { group, .. }
        | Record::Nack { group, .. }
        | Record::Extend { group, .. }
        | Record::Seek { group, .. } => Some(*group),
        Record::Grant(grant) => Some(grant.group),
        _ => None,
    }
}

/// The body section of a frame, if it was read.
struct Bodies<'a> {
    frame: FrameNo,
    section: Option<&'a Bytes>,
}

impl Bodies<'_> {
    /// The messages whose first body stands at `at`. The first is `first`, as a `count`.
    fn of(&self, count: &str, first: u64, at: u32, entries: &Entries<'_>) -> Value {
        let mut at = at as usize;
        let shown = entries.iter().zip(first..).map(|(entry, number)| {
            let (start, end) = (at + body::HEADER_BYTES, at + entry.len as usize);
            at = end;
            let inside = self.section.filter(|section| start <= end && end <= section.len());
            let mut message = match inside.map(|section| section.slice(start..end)) {
                Some(content) => content_of(&content),
                None => fields(json!({ "unreadable": "its body lies outside of the frame" })),
            };
            message.insert(count.into(), number.into());
            message
        });
        shown.map(Value::Object).collect()
    }
}

fn content_of(content: &Bytes) -> Fields {
    let (parts, payload) = match message::decode(content) {
        Ok(decoded) => decoded,
        Err(error) => return fields(json!({ "unreadable": error.to_string() })),
    };
    let mut out = Fields::new();
    let mut put = |name: &str, value: Value| drop(out.insert(name.into(), value));
    match std::str::from_utf8(&payload) {
        Ok(text) => put("body", text.into()),
        Err(_) => put("body_base64", BASE64.encode(&payload).into()),
    }
    if let Some(key) = parts.key {
        put("key", key.into());
    }
    if !parts.tags.is_empty() {
        put("tags", parts.tags.clone().into());
    }
    if !parts.headers.is_empty() {
        let headers = parts.headers.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        put("headers", Value::Object(headers.collect()));
    }
    if let Some(id) = parts.dedupe_id {
        put("dedupe_id", id.into());
    }
    if let Some(ttl) = parts.ttl_ms {
        put("ttl", units::show_duration(ttl).into());
    }
    if let Some(origin) = &parts.origin {
        put(
            "origin",
            json!({
                "topic": origin.topic,
                "partition": origin.partition,
                "position": origin.position,
                "reason": origin.reason.as_str(),
                "attempts": origin.attempts,
                "died_at": units::show_time(origin.died_at.0),
                "error": origin.error,
            }),
        );
    }
    out
}

fn unreadable(error: &RecordError) -> Fields {
    fields(json!({ "record": "unreadable", "what": error.to_string() }))
}

/// The records of the catalog: JSON, or the number of what is no more.
fn changes(meta: &[u8]) -> Vec<Fields> {
    let mut cursor = Cursor::new(meta);
    let mut shown = Vec::new();
    while !cursor.is_empty() {
        let read = cursor.u8().and_then(|kind| Ok((kind, cursor.bytes()?)));
        let (kind, payload) = match read {
            Ok(read) => read,
            Err(error) => {
                shown.push(unreadable(&RecordError::Malformed(error)));
                break;
            }
        };
        let name = match kind {
            1 => "topic",
            2 => "no_topic",
            3 => "group",
            4 => "no_group",
            5 => "user",
            6 => "no_user",
            other => {
                shown.push(unreadable(&RecordError::Kind(other)));
                continue;
            }
        };
        let mut out = Fields::new();
        out.insert("record".into(), name.into());
        match serde_json::from_slice::<Fields>(payload) {
            Ok(mut row) => {
                without_hashes(&mut row);
                out.extend(row);
            }
            Err(_) => {
                let number = Cursor::new(payload).u32().ok();
                out.insert("id".into(), number.into());
            }
        }
        shown.push(out);
    }
    shown
}

/// Takes the hashes of tokens out: what they are good for is no business of a dump.
fn without_hashes(row: &mut Fields) {
    let tokens = row.get_mut("config").and_then(|config| config.get_mut("tokens"));
    for token in tokens.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(token) = token.as_object_mut() {
            token.remove("sha256");
        }
    }
}
