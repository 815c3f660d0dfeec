//! Records of transactions: messages that were prepared, and what was decided about
//! them.
//!
//! A transaction is known by the number of its first message; those of the others follow
//! it. The messages themselves stand before it, in the same frame, in [`Record::Schedule`]
//! records that hold them.
//!
//! [`Record::Schedule`]: super::Record::Schedule

use posthouse_frame::varint::{self, Cursor, Malformed};

use super::{DueAt, List, ListItem, RecordError, When, put_all, text};
use crate::words::{PartitionId, Run, Seq, ShardMs, UnixMs};

/// Messages of one partition in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreparedPart {
    /// The partition.
    pub partition: PartitionId,
    /// How many messages.
    pub count: u64,
    /// Whether they are to come later than the commit.
    pub is_later: bool,
}

impl ListItem for PreparedPart {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let from = before.map_or(0, |b| u64::from(b.partition.0));
        varint::put(out, varint::zigzag(u64::from(self.partition.0).wrapping_sub(from)));
        varint::put(out, self.count << 1 | u64::from(self.is_later));
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let from = before.map_or(0, |b| u64::from(b.partition.0));
        let at = c.position();
        let partition = from.wrapping_add(varint::unzigzag(c.varint()?));
        let partition = PartitionId(u32::try_from(partition).map_err(|_| Malformed { at })?);
        let count = c.varint()?;
        match count >> 1 {
            0 => Err(Malformed { at }),
            _ => Ok(PreparedPart { partition, count: count >> 1, is_later: count & 1 != 0 }),
        }
    }
}

impl ListItem for When {
    fn encode(&self, _before: Option<Self>, out: &mut Vec<u8>) {
        let (value, is_after) = match self {
            When::At(at) => (at.0, 0),
            When::After(ms) => (*ms, 1),
        };
        // Neither has more than 44 bits: see `schedule::MAX_DUE`.
        varint::put(out, value << 1 | is_after);
    }

    fn read(_before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let value = c.varint()?;
        Ok(match value & 1 {
            0 => When::At(UnixMs(value >> 1)),
            _ => When::After(value >> 1),
        })
    }
}

/// A transaction that was prepared: see [`super::Record::Prepare`].
#[derive(Clone, Debug, PartialEq)]
pub struct Prepare<'a> {
    /// The number of its first message.
    pub first: Seq,
    /// When it came in.
    pub at: UnixMs,
    /// When its producer is asked about it for the first time.
    pub next_check: ShardMs,
    /// How long that is after it came in, in milliseconds: the intervals grow from it.
    pub check_after_ms: u64,
    /// How often the producer is asked at most.
    pub most_checks: u16,
    /// Bytes of the sealed bodies.
    pub bytes: u64,
    /// Who prepared it, and is asked.
    pub producer: &'a str,
    /// Its messages, in the order of their numbers.
    pub parts: List<'a, PreparedPart>,
    /// When those are due that are to come later than the commit, in the same order.
    pub when: List<'a, When>,
}

impl Prepare<'_> {
    pub(super) fn payload(&self, out: &mut Vec<u8>) {
        let most = u64::from(self.most_checks);
        put_all(out, &[self.first, self.at.0, self.next_check.0, self.check_after_ms, most]);
        varint::put(out, self.bytes);
        varint::put_bytes(out, self.producer.as_bytes());
        self.parts.encode(out);
        self.when.encode(out);
    }

    pub(super) fn read<'a>(kind: u8, c: &mut Cursor<'a>) -> Result<Prepare<'a>, RecordError> {
        let bad = RecordError::Value { kind };
        let (first, at, next_check) = (c.varint()?, UnixMs(c.varint()?), ShardMs(c.varint()?));
        let check_after_ms = c.varint()?;
        let most_checks = u16::try_from(c.varint()?).map_err(|_| bad)?;
        let bytes = c.varint()?;
        let producer = text(c, kind)?;
        let (parts, when) = (List::<PreparedPart>::read(c)?, List::<When>::read(c)?);
        let later: u64 = parts.iter().filter(|part| part.is_later).map(|part| part.count).sum();
        if parts.is_empty() || later != when.len() as u64 {
            return Err(bad);
        }
        Ok(Prepare {
            first,
            at,
            next_check,
            check_after_ms,
            most_checks,
            bytes,
            producer,
            parts,
            when,
        })
    }
}

/// A transaction that was committed: see [`super::Record::Commit`].
#[derive(Clone, Debug, PartialEq)]
pub struct Commit<'a> {
    /// The number of its first message.
    pub first: Seq,
    /// When.
    pub at: UnixMs,
    /// Where the messages are that came at once, part by part.
    pub placed: List<'a, Run>,
    /// When the others are due.
    pub due: List<'a, DueAt>,
}

impl Commit<'_> {
    pub(super) fn payload(&self, out: &mut Vec<u8>) {
        put_all(out, &[self.first, self.at.0]);
        self.placed.encode(out);
        self.due.encode(out);
    }

    pub(super) fn read<'a>(c: &mut Cursor<'a>) -> Result<Commit<'a>, RecordError> {
        let (first, at) = (c.varint()?, UnixMs(c.varint()?));
        Ok(Commit { first, at, placed: List::read(c)?, due: List::read(c)? })
    }
}
