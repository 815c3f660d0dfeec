//! What a shard keeps of a group on a partition: a *pair*.
//!
//! ```text
//!        floor                next                     end of the partition
//!   done |  windows: done, in flight, waiting  |  not reached
//! ```
//! A position below `next` that is not done has a slot.

use std::collections::VecDeque;

use posthouse_frame::varint::{self, Cursor, Malformed};

use super::window::Windows;
use crate::page::{Row, TableId};
use crate::words::{GroupId, Lookup, PartitionId, Position};

/// Whether a pair can give anything to a consumer, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// It has seen everything; the partition will tell it of more.
    #[default]
    Idle,
    /// It is in the queue of its group.
    Ready,
    /// It has more, and may not give it before something is acknowledged, or the
    /// group resumed.
    Blocked,
    /// It waits for a block, or for someone who looks at the text of messages.
    Away,
}

/// A group on a partition.
#[derive(Debug)]
pub struct Pair {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// Everything below is done.
    pub floor: Position,
    /// Nothing from here on has been looked at.
    pub next: Position,
    /// How many messages retention took before the group was done with them.
    pub dropped: u64,
    /// What lies above the floor. Kept in pages of its own.
    pub windows: Windows,

    // Derived.
    /// Positions that somebody has.
    pub in_flight: u32,
    /// Positions that wait: for their time, or for an earlier message of their key.
    pub waiting: u32,
    /// Positions above the floor that are done.
    pub done_above: u64,
    /// Keys with a message that is out or waits, and its successors, by position.
    pub keys: Lookup<u64, VecDeque<Position>>,
    /// Positions below `next` that may be granted, as far as is known.
    pub again: VecDeque<Position>,
    /// Whether the pair can give anything.
    pub readiness: Readiness,
}

impl Pair {
    pub(super) fn new(group: GroupId, partition: PartitionId, floor: Position) -> Self {
        Pair {
            group,
            partition,
            floor,
            next: floor,
            dropped: 0,
            windows: Windows::default(),
            in_flight: 0,
            waiting: 0,
            done_above: 0,
            keys: Lookup::default(),
            again: VecDeque::new(),
            readiness: Readiness::Idle,
        }
    }

    /// How many messages up to `end`, the end of the partition, the group has not
    /// done.
    pub fn lag(&self, end: Position) -> u64 {
        end.saturating_sub(self.floor).saturating_sub(self.done_above)
    }

    /// Notes that `position` is used with `key`.
    pub(super) fn lock(&mut self, key: u64, position: Position) {
        if key != 0 {
            let queue = self.keys.entry(key).or_default();
            let at = queue.partition_point(|p| *p < position);
            if queue.get(at) != Some(&position) {
                queue.insert(at, position);
            }
        }
    }

    /// Notes that `position` is done. Returns the successor that may be granted now.
    pub(super) fn unlock(&mut self, key: u64, position: Position) -> Option<Position> {
        let queue = self.keys.get_mut(&key)?;
        let was_first = queue.front() == Some(&position);
        if was_first {
            queue.pop_front();
        } else if let Ok(at) = queue.binary_search(&position) {
            queue.remove(at);
        }
        let successor = queue.front().copied();
        if successor.is_none() {
            self.keys.remove(&key);
        }
        successor.filter(|_| was_first)
    }

    /// Whether `position` is the first of its key, or has none.
    pub(super) fn is_first_of(&self, key: u64, position: Position) -> bool {
        self.keys.get(&key).is_none_or(|queue| queue.front() == Some(&position))
    }
}

impl Row for Pair {
    const TABLE: TableId = TableId::Pairs;
    const PER_PAGE: usize = 64;

    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.group.0.into());
        varint::put(out, self.partition.0.into());
        varint::put(out, self.floor);
        varint::put(out, self.next.saturating_sub(self.floor));
        varint::put(out, self.dropped);
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let (group, partition) = (GroupId(c.varint_u32()?), PartitionId(c.varint_u32()?));
        let mut pair = Pair::new(group, partition, c.varint()?);
        let at = c.position();
        pair.next = pair.floor.checked_add(c.varint()?).ok_or(Malformed { at })?;
        pair.dropped = c.varint()?;
        Ok(pair)
    }
}
