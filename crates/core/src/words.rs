//! The words that every module uses.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A topic, by number. Given once, never again.
    TopicId(u32)
}
number! {
    /// A consumer group, by number. Given once, never again. Zero is the operator
    /// (see [`GroupId::OPERATOR`]).
    GroupId(u32)
}
number! {
    /// A partition of a topic, by number, over all topics. Given once, never again.
    /// The upper four bits are kept for lanes (priorities within a partition) and
    /// are zero.
    PartitionId(u32)
}
number! {
    /// One log with one state machine. Twelve bits: the ids of messages hold it.
    ShardId(u16)
}
number! {
    /// Wall time, milliseconds since 1970 in UTC.
    UnixMs(u64)
}
number! {
    /// The shard's own clock for leases and retries, in milliseconds. It runs on
    /// while the machine is down, and does not jump when the wall clock is set.
    ShardMs(u64)
}

impl GroupId {
    /// Stands for whoever looks after dead letters: what it has "acknowledged" in a
    /// dead-letter partition has been redriven or purged.
    pub const OPERATOR: GroupId = GroupId(0);
}

impl PartitionId {
    /// The most partitions that a node can number.
    pub const MAX: PartitionId = PartitionId((1 << 28) - 1);
}

impl UnixMs {
    /// This time and `ms` later; stops at the end of time.
    #[must_use]
    pub fn plus(self, ms: u64) -> UnixMs {
        UnixMs(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this; zero if `earlier` is later.
    pub fn since(self, earlier: UnixMs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl ShardMs {
    /// This time and `ms` later, as far as a slot of the group's window can hold it.
    #[must_use]
    pub fn plus(self, ms: u64) -> ShardMs {
        ShardMs(self.0.saturating_add(ms).min(Self::MAX.0))
    }

    /// The latest time that state can hold: 44 bits, the year 2527.
    pub const MAX: ShardMs = ShardMs((1 << 44) - 1);
}

/// The position of a message in its partition: dense from 0, given in order.
/// 48 bits: the ids of messages hold it.
pub type Position = u64;

/// The largest position.
pub const MAX_POSITION: Position = (1 << 48) - 1;

/// The number of a scheduled message: dense from 0 in a shard, in the order they came
/// in. 48 bits, like a position: the ids of messages hold it.
pub type Seq = u64;

/// The number of a grant: rises with every grant in a shard, and so with every
/// delivery of a message. A consumer's database can refuse a lower one.
pub type Fence = u64;

/// Both clocks, read by the shell around the core, once per turn. Neither ever
/// goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For what users name in time: publish times, due times, retention.
    pub wall: UnixMs,
    /// For leases and back-off.
    pub lease: ShardMs,
}

/// A run of neighbouring positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first of them.
    pub first: Position,
    /// How many; at least 1.
    pub len: u64,
}

impl Run {
    /// The position after the last.
    pub fn end(&self) -> Position {
        self.first + self.len
    }

    /// The positions, in order.
    pub fn iter(&self) -> std::ops::Range<Position> {
        self.first..self.end()
    }

    /// Adds `position` to the last of `runs` if it follows it, else as a new run.
    pub fn push(runs: &mut Vec<Run>, position: Position) {
        match runs.last_mut() {
            Some(run) if run.end() == position => run.len += 1,
            _ => runs.push(Run { first: position, len: 1 }),
        }
    }
}

/// A map inside the shard: for look-up only. Its order depends on the process, so
/// nothing that is written or answered may come from iterating over it.
pub(crate) type Lookup<K, V> = hashbrown::HashMap<K, V, foldhash::fast::RandomState>;
