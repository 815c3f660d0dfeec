//! What a shard keeps of a group: its consumers, and which of its pairs have
//! something to give.

use std::collections::VecDeque;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{Row, TableId};
use crate::words::Lookup;

/// Consumers that hold nothing are remembered up to this number; beyond it a new
/// one takes the place of one of them.
const REMEMBERED: usize = 64;

/// The most consumers of a group that can hold something in a shard.
pub const MAX_CONSUMERS: usize = u16::MAX as usize;

/// A consumer of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name, as it gave it.
    pub name: Box<str>,
    /// How many messages it has. Derived.
    pub held: u32,
}

/// A group, as far as a shard is concerned.
#[derive(Debug, Default)]
pub struct GroupState {
    consumers: Vec<Consumer>,

    // Derived.
    by_name: Lookup<Box<str>, u16>,
    /// Consumers that hold nothing.
    free: usize,
    /// Its partitions, by the number of the pair.
    pub pairs: Vec<u32>,
    /// Those that have something to give, in turn.
    pub ready: VecDeque<u32>,
    /// Those that would have something if they might.
    pub blocked: Vec<u32>,
    /// Messages that somebody has.
    pub in_flight: u64,
    /// Whether whoever serves consumers has been told that there is something.
    pub called: bool,
}

impl GroupState {
    /// Its consumers; the number of one is its index and one.
    pub fn consumers(&self) -> &[Consumer] {
        &self.consumers
    }

    /// A consumer by number.
    pub fn consumer(&self, number: u16) -> Option<&Consumer> {
        self.consumers.get(usize::from(number).checked_sub(1)?)
    }

    /// Whether a consumer of this name can be given something.
    pub fn has_room_for(&self, name: &str) -> bool {
        self.by_name.contains_key(name) || self.consumers.len() < MAX_CONSUMERS || self.free > 0
    }

    /// The number of a consumer, and whether the name has to be noted for it.
    pub(super) fn number_of(&self, name: &str) -> (u16, bool) {
        if let Some(number) = self.by_name.get(name) {
            return (*number, false);
        }
        let reuse = self.consumers.len() >= REMEMBERED && self.free > 0;
        let at = match reuse.then(|| self.consumers.iter().position(|c| c.held == 0)).flatten() {
            Some(at) => at,
            None => self.consumers.len(),
        };
        ((at + 1) as u16, true)
    }

    /// Notes the name of a consumer under a number that [`GroupState::number_of`] gave.
    pub(super) fn name(&mut self, number: u16, name: &str) {
        let at = usize::from(number) - 1;
        let consumer = Consumer { name: name.into(), held: 0 };
        if at == self.consumers.len() {
            self.consumers.push(consumer);
            self.free += 1;
        } else {
            let before = std::mem::replace(&mut self.consumers[at], consumer);
            self.by_name.remove(&before.name);
        }
        self.by_name.insert(name.into(), number);
    }

    /// A consumer has got a message.
    pub(super) fn hold(&mut self, number: u16) {
        let consumer = &mut self.consumers[usize::from(number) - 1];
        self.free -= usize::from(consumer.held == 0);
        consumer.held += 1;
        self.in_flight += 1;
    }

    /// A consumer has a message no more.
    pub(super) fn release(&mut self, number: u16) {
        let consumer = &mut self.consumers[usize::from(number) - 1];
        consumer.held -= 1;
        self.free += usize::from(consumer.held == 0);
        self.in_flight -= 1;
    }
}

impl Row for GroupState {
    const TABLE: TableId = TableId::Groups;
    const PER_PAGE: usize = 16;

    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.consumers.len() as u64);
        for consumer in &self.consumers {
            varint::put_bytes(out, consumer.name.as_bytes());
        }
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let mut group = GroupState::default();
        let at = c.position();
        let count = c.varint()?;
        if count > MAX_CONSUMERS as u64 {
            return Err(Malformed { at });
        }
        for number in 1..=count {
            let at = c.position();
            let name = std::str::from_utf8(c.bytes()?).map_err(|_| Malformed { at })?;
            group.name(number as u16, name);
        }
        Ok(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_consumer_takes_the_place_of_one_that_holds_nothing() {
        let mut group = GroupState::default();
        let add = |group: &mut GroupState, name: &str| {
            let (number, new) = group.number_of(name);
            if new {
                group.name(number, name);
            }
            group.hold(number);
            number
        };
        for n in 1..=REMEMBERED as u16 {
            assert_eq!(add(&mut group, &format!("c{n}")), n);
        }
        assert_eq!(add(&mut group, "one more"), 65, "everybody holds something");
        assert_eq!(add(&mut group, "c7"), 7, "a known name keeps its number");
        group.release(5);
        assert_eq!(group.number_of("c5"), (5, false));
        assert_eq!(add(&mut group, "another"), 5);
        assert_eq!(group.number_of("c5"), (66, true));
        assert_eq!(group.in_flight, 66);
    }
}
