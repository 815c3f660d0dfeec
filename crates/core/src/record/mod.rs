//! Records: the facts that a shard's log holds. State comes from these alone.
//!
//! ```text
//! kind u8 | length varint | payload
//! ```
//! A record carries absolute results (this position, that attempt, visible at that
//! time), never something to be computed from a clock, a configuration or a disk.
//! The meaning of a kind never changes: what has to change becomes a new kind, and
//! frames that hold it name a newer `min_reader`.
//!
//! One type serves both directions: what `decide` writes from slices, `apply` reads
//! from bytes.

mod lists;
mod place;
mod publish;
mod transaction;

pub use lists::{
    AgainRun, CarriedItem, Chained, DueAt, FiredItem, Freed, Keys, List, ListItem, Pending,
    Rescheduled,
};
pub use place::{Place, PlaceReason};
pub use publish::{Draft, Entries, Entry, EntryDedupe, Later, NameTaken, Tags, When};
pub use transaction::{Commit, Prepare, PreparedPart};

use posthouse_frame::varint::{self, Cursor, Malformed};
use posthouse_frame::{FrameBuf, FrameNo};

use crate::words::{Fence, GroupId, PartitionId, Position, Run, Seq, ShardMs, TopicId, UnixMs};

/// The newest reader this build is: frames that ask for more are refused.
pub const READER: u16 = 1;

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record<'a> {
    /// The shard begins to hold a partition.
    Open {
        /// The partition.
        partition: PartitionId,
        /// Its topic.
        topic: TopicId,
    },
    /// Messages at the end of one partition.
    Publish {
        /// The partition.
        partition: PartitionId,
        /// The position of the first message; the others follow.
        first: Position,
        /// When they were taken in.
        at: UnixMs,
        /// Where the first body stands in this frame; the others follow.
        body_at: u32,
        /// The messages.
        entries: Entries<'a>,
    },
    /// One message put at the end of a partition by the system: a dead letter, or
    /// one redriven.
    Place(Place<'a>),
    /// A group begins to get a partition.
    Attach {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// The first position it gets.
        floor: Position,
    },
    /// A group gets a partition no more.
    Detach {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
    },
    /// A partition ends, with all that groups know of it.
    Drop {
        /// The partition.
        partition: PartitionId,
    },
    /// Messages leased to a consumer.
    Grant(Grant<'a>),
    /// Positions that the group is done with although nobody got them.
    Skip {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// Where the group's search goes on.
        next: Position,
        /// Why they were passed over.
        why: SkipReason,
        /// The positions.
        runs: List<'a, Run>,
    },
    /// Positions that wait for an earlier message of the same key; those without a key have
    /// expired, and wait to be buried.
    Chain {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// Where the group's search goes on.
        next: Position,
        /// The positions and their keys.
        items: List<'a, Chained>,
    },
    /// Messages done with.
    Ack {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// The positions.
        runs: List<'a, Run>,
    },
    /// A message given back.
    Nack {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// The position.
        position: Position,
        /// When it may be granted again.
        visible_at: ShardMs,
        /// What the consumer said.
        reason: &'a str,
    },
    /// Leases that end at another time.
    Extend {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// When they end.
        visible_at: ShardMs,
        /// The positions.
        runs: List<'a, Run>,
    },
    /// A group goes on at another position; what it held there is forgotten.
    Seek {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// The next position that it gets.
        position: Position,
    },
    /// The oldest messages of a partition are gone.
    Trim {
        /// The partition.
        partition: PartitionId,
        /// The first position that is left.
        head: Position,
        /// When the message at `head` was taken in, or the trim was decided if
        /// there is none.
        head_at: UnixMs,
        /// Why.
        why: TrimReason,
    },
    /// What messages that are gone occupied has been counted. Apart from the trim, so
    /// that a million messages can go at once, and be counted little by little.
    Sweep {
        /// The partition.
        partition: PartitionId,
        /// The first position that has not been counted.
        upto: Position,
        /// What was occupied, by the span of frames it lies in.
        freed: List<'a, Freed>,
    },
    /// Nothing is left of a partition that was dropped.
    Close {
        /// The partition.
        partition: PartitionId,
    },
    /// Publish ids up to a number are forgotten.
    Forget {
        /// The first slot of the window that is kept.
        upto: u64,
    },
    /// The state after a frame had this digest.
    Snapshot {
        /// The frame.
        frame: FrameNo,
        /// See [`crate::page`].
        digest: u64,
    },
    /// Messages that are not due yet, for one partition.
    Schedule {
        /// The partition.
        partition: PartitionId,
        /// The number of the first message; the others follow.
        first: Seq,
        /// When they were taken in.
        at: UnixMs,
        /// Where the first body stands in this frame; the others follow.
        body_at: u32,
        /// Whether they wait for a transaction.
        held: bool,
        /// When each is due.
        due: List<'a, DueAt>,
        /// The messages.
        entries: Entries<'a>,
    },
    /// Scheduled messages come into their partition: their time has come.
    Fire {
        /// The partition.
        partition: PartitionId,
        /// The position of the first; the others follow.
        first: Position,
        /// When.
        at: UnixMs,
        /// Which, and where their bodies are: in this frame, or where they came in.
        items: List<'a, FiredItem>,
        /// What the index holds of each.
        entries: Entries<'a>,
    },
    /// Scheduled messages are due at another time.
    Reschedule {
        /// Which, and when.
        items: List<'a, Rescheduled>,
    },
    /// Scheduled messages will not come.
    Cancel {
        /// Why.
        why: CancelReason,
        /// Which.
        items: List<'a, Pending>,
    },
    /// No message that is scheduled for a partition so far will come.
    PurgeScheduled {
        /// The partition.
        partition: PartitionId,
        /// The first number that this is not about.
        upto: Seq,
    },
    /// A transaction is prepared: the messages before it wait for a decision.
    Prepare(Prepare<'a>),
    /// The producer of a transaction is asked about it, or would have been.
    Check {
        /// The number of its first message.
        first: Seq,
        /// How often that has been now.
        checks: u16,
        /// When it may be asked again.
        next_check: ShardMs,
    },
    /// Nobody is asked about a transaction any more: an operator decides.
    Park {
        /// The number of its first message.
        first: Seq,
    },
    /// A transaction is committed: its messages have come, or will.
    Commit(Commit<'a>),
    /// A transaction is rolled back: its messages will not come.
    Rollback {
        /// The number of its first message.
        first: Seq,
        /// When.
        at: UnixMs,
    },
    /// What was decided about the oldest transactions is forgotten.
    ForgetDecisions {
        /// The first decision that is kept, counted from 0.
        upto: u64,
    },
    /// Bodies are in this frame, too, and are not needed any longer where they were.
    Carry {
        /// Where the first body stands in this frame; the others follow.
        body_at: u32,
        /// Whose bodies they are.
        items: List<'a, CarriedItem>,
    },
    /// A recurring message has come, as another record of the frame says: nothing of it up
    /// to this time comes again. Time 0: there is no such recurring message any more.
    Recur {
        /// Its number in the catalog.
        recurring: u32,
        /// The time that its rule says.
        at: UnixMs,
    },
}

/// A grant: see [`Record::Grant`].
#[derive(Clone, Debug, PartialEq)]
pub struct Grant<'a> {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// The consumer's name.
    pub consumer: &'a str,
    /// The number of the grant.
    pub fence: Fence,
    /// When the leases end; zero if the messages are acknowledged with the grant.
    pub visible_at: ShardMs,
    /// Where the group's search goes on.
    pub next: Position,
    /// Positions granted for the first time.
    pub fresh: List<'a, Run>,
    /// The keys of the fresh positions, in order, in a group that keeps the order
    /// of keys; empty in others.
    pub keys: List<'a, Keys>,
    /// Positions granted again, with the attempt.
    pub again: List<'a, AgainRun>,
}

impl Grant<'_> {
    /// Whether the messages were acknowledged with the grant.
    pub fn is_auto_ack(&self) -> bool {
        self.visible_at.0 == 0
    }
}

/// Why a group is done with messages that nobody got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SkipReason {
    /// The filter does not let them through.
    Filtered = 1,
    /// Their time to live has passed.
    Expired = 2,
    /// The last attempt has failed, and the group drops such messages.
    Exhausted = 3,
    /// An operator purged them.
    Purged = 4,
}

/// Why the oldest messages went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TrimReason {
    /// Every group had acknowledged them, and their least age had passed.
    Acknowledged = 1,
    /// They were too old.
    Age = 2,
    /// The partition held too many bytes.
    Bytes = 3,
    /// The partition held too many messages.
    Count = 4,
    /// An operator purged them.
    Purged = 5,
}

/// Why scheduled messages will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelReason {
    /// Somebody called them back.
    Asked = 1,
    /// A message of the same name took their place.
    Replaced = 2,
    /// An operator purged them.
    Purged = 3,
    /// Their topic is no more.
    Dropped = 4,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The encoding is broken.
    #[error("broken record: {0}")]
    Malformed(#[from] Malformed),
    /// A kind that this build does not know.
    #[error("record of kind {0}, which this release does not know")]
    Kind(u8),
    /// A value that the kind does not have.
    #[error("a record of kind {kind} has a value that it cannot have")]
    Value {
        /// The kind.
        kind: u8,
    },
}

mod kind {
    pub(super) const OPEN: u8 = 1;
    pub(super) const PUBLISH: u8 = 2;
    pub(super) const PLACE: u8 = 3;
    pub(super) const ATTACH: u8 = 4;
    pub(super) const DETACH: u8 = 5;
    pub(super) const DROP: u8 = 6;
    pub(super) const GRANT: u8 = 7;
    pub(super) const SKIP: u8 = 8;
    pub(super) const CHAIN: u8 = 9;
    pub(super) const ACK: u8 = 10;
    pub(super) const NACK: u8 = 11;
    pub(super) const EXTEND: u8 = 12;
    pub(super) const SEEK: u8 = 13;
    pub(super) const TRIM: u8 = 14;
    pub(super) const SWEEP: u8 = 15;
    pub(super) const CLOSE: u8 = 16;
    pub(super) const FORGET: u8 = 17;
    pub(super) const SNAPSHOT: u8 = 18;
    pub(super) const SCHEDULE: u8 = 19;
    pub(super) const FIRE: u8 = 20;
    pub(super) const RESCHEDULE: u8 = 21;
    pub(super) const CANCEL: u8 = 22;
    pub(super) const PURGE_SCHEDULED: u8 = 23;
    pub(super) const PREPARE: u8 = 33;
    pub(super) const CHECK: u8 = 34;
    pub(super) const PARK: u8 = 35;
    pub(super) const COMMIT: u8 = 36;
    pub(super) const ROLLBACK: u8 = 37;
    pub(super) const FORGET_DECISIONS: u8 = 38;
    pub(super) const CARRY: u8 = 39;
    pub(super) const RECUR: u8 = 32;
}

impl Record<'_> {
    /// Appends the record to the frame.
    pub fn write(&self, frame: &mut FrameBuf) {
        frame.record(READER, |out| framed(out, self.kind(), |out| self.payload(out)));
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Open { .. } => kind::OPEN,
            Record::Publish { .. } => kind::PUBLISH,
            Record::Place(_) => kind::PLACE,
            Record::Attach { .. } => kind::ATTACH,
            Record::Detach { .. } => kind::DETACH,
            Record::Drop { .. } => kind::DROP,
            Record::Grant(_) => kind::GRANT,
            Record::Skip { .. } => kind::SKIP,
            Record::Chain { .. } => kind::CHAIN,
            Record::Ack { .. } => kind::ACK,
            Record::Nack { .. } => kind::NACK,
            Record::Extend { .. } => kind::EXTEND,
            Record::Seek { .. } => kind::SEEK,
            Record::Trim { .. } => kind::TRIM,
            Record::Sweep { .. } => kind::SWEEP,
            Record::Close { .. } => kind::CLOSE,
            Record::Forget { .. } => kind::FORGET,
            Record::Snapshot { .. } => kind::SNAPSHOT,
            Record::Schedule { .. } => kind::SCHEDULE,
            Record::Fire { .. } => kind::FIRE,
            Record::Reschedule { .. } => kind::RESCHEDULE,
            Record::Cancel { .. } => kind::CANCEL,
            Record::PurgeScheduled { .. } => kind::PURGE_SCHEDULED,
            Record::Prepare(_) => kind::PREPARE,
            Record::Check { .. } => kind::CHECK,
            Record::Park { .. } => kind::PARK,
            Record::Commit(_) => kind::COMMIT,
            Record::Rollback { .. } => kind::ROLLBACK,
            Record::ForgetDecisions { .. } => kind::FORGET_DECISIONS,
            Record::Carry { .. } => kind::CARRY,
            Record::Recur { .. } => kind::RECUR,
        }
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            Record::Open { partition, topic } => {
                put_all(out, &[partition.0.into(), topic.0.into()]);
            }
            Record::Publish { partition, first, at, body_at, entries } => {
                put_all(out, &[partition.0.into(), *first, at.0, (*body_at).into()]);
                entries.encode(out);
            }
            Record::Place(place) => place.payload(out),
            Record::Attach { group, partition, floor } => {
                put_all(out, &[group.0.into(), partition.0.into(), *floor]);
            }
            Record::Detach { group, partition } => {
                put_all(out, &[group.0.into(), partition.0.into()]);
            }
            Record::Drop { partition } => varint::put(out, partition.0.into()),
            Record::Grant(grant) => grant.payload(out),
            Record::Skip { group, partition, next, why, runs } => {
                put_all(out, &[group.0.into(), partition.0.into(), *next]);
                out.push(*why as u8);
                runs.encode(out);
            }
            Record::Chain { group, partition, next, items } => {
                put_all(out, &[group.0.into(), partition.0.into(), *next]);
                items.encode(out);
            }
            Record::Ack { group, partition, runs } => {
                put_all(out, &[group.0.into(), partition.0.into()]);
                runs.encode(out);
            }
            Record::Nack { group, partition, position, visible_at, reason } => {
                put_all(out, &[group.0.into(), partition.0.into(), *position, visible_at.0]);
                varint::put_bytes(out, reason.as_bytes());
            }
            Record::Extend { group, partition, visible_at, runs } => {
                put_all(out, &[group.0.into(), partition.0.into(), visible_at.0]);
                runs.encode(out);
            }
            Record::Seek { group, partition, position } => {
                put_all(out, &[group.0.into(), partition.0.into(), *position]);
            }
            Record::Trim { partition, head, head_at, why } => {
                put_all(out, &[partition.0.into(), *head, head_at.0]);
                out.push(*why as u8);
            }
            Record::Sweep { partition, upto, freed } => {
                put_all(out, &[partition.0.into(), *upto]);
                freed.encode(out);
            }
            Record::Close { partition } => varint::put(out, partition.0.into()),
            Record::Forget { upto } => varint::put(out, *upto),
            Record::Snapshot { frame, digest } => {
                varint::put(out, frame.0);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            Record::Schedule { partition, first, at, body_at, held, due, entries } => {
                put_all(out, &[partition.0.into(), *first, at.0, (*body_at).into()]);
                out.push(u8::from(*held));
                due.encode(out);
                entries.encode(out);
            }
            Record::Fire { partition, first, at, items, entries } => {
                put_all(out, &[partition.0.into(), *first, at.0]);
                items.encode(out);
                entries.encode(out);
            }
            Record::Reschedule { items } => items.encode(out),
            Record::Cancel { why, items } => {
                out.push(*why as u8);
                items.encode(out);
            }
            Record::PurgeScheduled { partition, upto } => {
                put_all(out, &[partition.0.into(), *upto]);
            }
            Record::Prepare(prepare) => prepare.payload(out),
            Record::Check { first, checks, next_check } => {
                put_all(out, &[*first, (*checks).into(), next_check.0]);
            }
            Record::Park { first } => varint::put(out, *first),
            Record::Commit(commit) => commit.payload(out),
            Record::Rollback { first, at } => put_all(out, &[*first, at.0]),
            Record::ForgetDecisions { upto } => varint::put(out, *upto),
            Record::Recur { recurring, at } => put_all(out, &[(*recurring).into(), at.0]),
            Record::Carry { body_at, items } => {
                varint::put(out, (*body_at).into());
                items.encode(out);
            }
        }
    }
}

impl Grant<'_> {
    fn payload(&self, out: &mut Vec<u8>) {
        put_all(
            out,
            &[
                self.group.0.into(),
                self.partition.0.into(),
                self.fence,
                self.visible_at.0,
                self.next,
            ],
        );
        varint::put_bytes(out, self.consumer.as_bytes());
        self.fresh.encode(out);
        self.keys.encode(out);
        self.again.encode(out);
    }

    fn read<'a>(c: &mut Cursor<'a>) -> Result<Grant<'a>, RecordError> {
        let (group, partition) = pair(c)?;
        let (fence, visible_at, next) = (c.varint()?, ShardMs(c.varint()?), c.varint()?);
        Ok(Grant {
            group,
            partition,
            fence,
            visible_at,
            next,
            consumer: text(c, kind::GRANT)?,
            fresh: List::read(c)?,
            keys: List::read(c)?,
            again: List::read(c)?,
        })
    }
}

/// Iterates over the records of a frame's meta section.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Records<'a> {
    /// From the first record of `meta`.
    pub fn new(meta: &'a [u8]) -> Self {
        Records { cursor: Cursor::new(meta) }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.is_empty() {
            return None;
        }
        let record = read(&mut self.cursor);
        if record.is_err() {
            self.cursor.rest();
        }
        Some(record)
    }
}

fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Record<'a>, RecordError> {
    let kind = cursor.u8()?;
    let mut inner = Cursor::new(cursor.bytes()?);
    let c = &mut inner;
    let record = match kind {
        kind::OPEN => Record::Open {
            partition: PartitionId(c.varint_u32()?),
            topic: TopicId(c.varint_u32()?),
        },
        kind::PUBLISH => {
            let (partition, first) = (PartitionId(c.varint_u32()?), c.varint()?);
            let (at, body_at) = (UnixMs(c.varint()?), c.varint_u32()?);
            Record::Publish { partition, first, at, body_at, entries: Entries::read(c)? }
        }
        kind::PLACE => Record::Place(Place::read(kind, c)?),
        kind::ATTACH => {
            let (group, partition) = pair(c)?;
            Record::Attach { group, partition, floor: c.varint()? }
        }
        kind::DETACH => {
            let (group, partition) = pair(c)?;
            Record::Detach { group, partition }
        }
        kind::DROP => Record::Drop { partition: PartitionId(c.varint_u32()?) },
        kind::GRANT => Record::Grant(Grant::read(c)?),
        kind::SKIP => {
            let (group, partition) = pair(c)?;
            let next = c.varint()?;
            let why = match c.u8()? {
                1 => SkipReason::Filtered,
                2 => SkipReason::Expired,
                3 => SkipReason::Exhausted,
                4 => SkipReason::Purged,
                _ => return Err(RecordError::Value { kind }),
            };
            Record::Skip { group, partition, next, why, runs: List::read(c)? }
        }
        kind::CHAIN => {
            let (group, partition) = pair(c)?;
            Record::Chain { group, partition, next: c.varint()?, items: List::read(c)? }
        }
        kind::ACK => {
            let (group, partition) = pair(c)?;
            Record::Ack { group, partition, runs: List::read(c)? }
        }
        kind::NACK => {
            let (group, partition) = pair(c)?;
            let (position, visible_at) = (c.varint()?, ShardMs(c.varint()?));
            Record::Nack { group, partition, position, visible_at, reason: text(c, kind)? }
        }
        kind::EXTEND => {
            let (group, partition) = pair(c)?;
            let visible_at = ShardMs(c.varint()?);
            Record::Extend { group, partition, visible_at, runs: List::read(c)? }
        }
        kind::SEEK => {
            let (group, partition) = pair(c)?;
            Record::Seek { group, partition, position: c.varint()? }
        }
        kind::TRIM => {
            let (partition, head) = (PartitionId(c.varint_u32()?), c.varint()?);
            let head_at = UnixMs(c.varint()?);
            let why = match c.u8()? {
                1 => TrimReason::Acknowledged,
                2 => TrimReason::Age,
                3 => TrimReason::Bytes,
                4 => TrimReason::Count,
                5 => TrimReason::Purged,
                _ => return Err(RecordError::Value { kind }),
            };
            Record::Trim { partition, head, head_at, why }
        }
        kind::SWEEP => {
            let (partition, upto) = (PartitionId(c.varint_u32()?), c.varint()?);
            Record::Sweep { partition, upto, freed: List::read(c)? }
        }
        kind::CLOSE => Record::Close { partition: PartitionId(c.varint_u32()?) },
        kind::FORGET => Record::Forget { upto: c.varint()? },
        kind::SNAPSHOT => Record::Snapshot { frame: FrameNo(c.varint()?), digest: c.u64()? },
        kind::SCHEDULE => {
            let (partition, first) = (PartitionId(c.varint_u32()?), c.varint()?);
            let (at, body_at) = (UnixMs(c.varint()?), c.varint_u32()?);
            let held = match c.u8()? {
                held @ (0 | 1) => held == 1,
                _ => return Err(RecordError::Value { kind }),
            };
            let (due, entries) = (List::read(c)?, Entries::read(c)?);
            if due.len() != entries.len() {
                return Err(RecordError::Value { kind });
            }
            Record::Schedule { partition, first, at, body_at, held, due, entries }
        }
        kind::FIRE => {
            let (partition, first) = (PartitionId(c.varint_u32()?), c.varint()?);
            let at = UnixMs(c.varint()?);
            let (items, entries) = (List::read(c)?, Entries::read(c)?);
            if items.len() != entries.len() {
                return Err(RecordError::Value { kind });
            }
            Record::Fire { partition, first, at, items, entries }
        }
        kind::RESCHEDULE => Record::Reschedule { items: List::read(c)? },
        kind::CANCEL => {
            let why = match c.u8()? {
                1 => CancelReason::Asked,
                2 => CancelReason::Replaced,
                3 => CancelReason::Purged,
                4 => CancelReason::Dropped,
                _ => return Err(RecordError::Value { kind }),
            };
            Record::Cancel { why, items: List::read(c)? }
        }
        kind::PURGE_SCHEDULED => {
            Record::PurgeScheduled { partition: PartitionId(c.varint_u32()?), upto: c.varint()? }
        }
        kind::PREPARE => Record::Prepare(Prepare::read(kind, c)?),
        kind::CHECK => {
            let first = c.varint()?;
            let checks = u16::try_from(c.varint()?).map_err(|_| RecordError::Value { kind })?;
            Record::Check { first, checks, next_check: ShardMs(c.varint()?) }
        }
        kind::PARK => Record::Park { first: c.varint()? },
        kind::COMMIT => Record::Commit(Commit::read(c)?),
        kind::ROLLBACK => Record::Rollback { first: c.varint()?, at: UnixMs(c.varint()?) },
        kind::FORGET_DECISIONS => Record::ForgetDecisions { upto: c.varint()? },
        kind::CARRY => Record::Carry { body_at: c.varint_u32()?, items: List::read(c)? },
        kind::RECUR => Record::Recur { recurring: c.varint_u32()?, at: UnixMs(c.varint()?) },
        _ => return Err(RecordError::Kind(kind)),
    };
    if !inner.is_empty() {
        return Err(RecordError::Malformed(Malformed { at: inner.position() }));
    }
    Ok(record)
}

fn pair(c: &mut Cursor<'_>) -> Result<(GroupId, PartitionId), Malformed> {
    Ok((GroupId(c.varint_u32()?), PartitionId(c.varint_u32()?)))
}

fn text<'a>(c: &mut Cursor<'a>, kind: u8) -> Result<&'a str, RecordError> {
    std::str::from_utf8(c.bytes()?).map_err(|_| RecordError::Value { kind })
}

fn put_all(out: &mut Vec<u8>, values: &[u64]) {
    for value in values {
        varint::put(out, *value);
    }
}

/// Writes kind, length and what `payload` appends. Most records are shorter than
/// 128 bytes: their length takes the one byte kept for it, and nothing moves.
pub(crate) fn framed(out: &mut Vec<u8>, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let length_at = out.len();
    out.push(0);
    payload(out);
    let length = out.len() - length_at - 1;
    if length < 0x80 {
        out[length_at] = length as u8;
    } else {
        let mut varint = Vec::with_capacity(varint::MAX_BYTES);
        varint::put(&mut varint, length as u64);
        out.splice(length_at..=length_at, varint);
    }
}

#[cfg(test)]
mod tests;
