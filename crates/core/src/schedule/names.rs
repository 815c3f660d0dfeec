//! The names that publishers give to scheduled messages, unique in a topic.

use std::collections::BTreeSet;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{PageId, Pager, Row, Table, TableId};
use crate::words::{Lookup, PartitionId, Seq, TopicId};

/// A pending message that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The topic in which the name is unique.
    pub topic: TopicId,
    /// Hash of the name.
    pub name: u128,
    /// The message.
    pub seq: Seq,
    /// Where it will go.
    pub partition: PartitionId,
}

impl Row for Named {
    const TABLE: TableId = TableId::Names;
    const PER_PAGE: usize = 128;

    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.topic.0.into());
        out.extend_from_slice(&self.name.to_le_bytes());
        varint::put(out, self.seq);
        varint::put(out, self.partition.0.into());
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let (topic, name) = (TopicId(c.varint_u32()?), c.u128()?);
        Ok(Named { topic, name, seq: c.varint()?, partition: PartitionId(c.varint_u32()?) })
    }
}

/// All names of pending messages.
#[derive(Debug, Default)]
pub struct Names {
    rows: Table<Named>,

    // Derived.
    by_name: Lookup<(TopicId, u128), u32>,
    by_seq: Lookup<Seq, u32>,
    free: BTreeSet<u32>,
    next: u32,
}

impl Names {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes that a name takes in memory, nearly.
    pub const EACH_BYTES: usize = size_of::<Option<Named>>() + 2 * 48;

    /// The message that has this name.
    pub fn get(&self, topic: TopicId, name: u128) -> Option<&Named> {
        self.rows.get(*self.by_name.get(&(topic, name))?)
    }

    /// Gives a name to a message. Whoever had it has it no more.
    pub fn set(&mut self, pager: &mut Pager, named: Named) {
        if let Some(before) = self.get(named.topic, named.name).map(|named| named.seq) {
            self.remove(pager, before);
        }
        let row = self.free.pop_first().unwrap_or(self.next);
        self.next = self.next.max(row + 1);
        self.rows.set(pager, row, named);
        self.link(row, named);
    }

    fn link(&mut self, row: u32, named: Named) {
        self.by_name.insert((named.topic, named.name), row);
        self.by_seq.insert(named.seq, row);
    }

    /// The message is not pending any more: it has no name.
    pub fn remove(&mut self, pager: &mut Pager, seq: Seq) {
        if self.by_seq.is_empty() {
            return;
        }
        if let Some(row) = self.by_seq.remove(&seq)
            && let Some(named) = self.rows.remove(pager, row)
        {
            self.by_name.remove(&(named.topic, named.name));
            self.free.insert(row);
        }
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        self.rows.touch_all(pager);
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        self.rows.capture(pager, id);
    }

    /// Puts a page back that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page.
    pub fn restore(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        self.rows.restore(id, bytes)
    }

    /// All pages are back: derives what is derived from them.
    pub fn restored(&mut self) {
        let rows: Vec<(u32, Named)> = self.rows.iter().map(|(row, named)| (row, *named)).collect();
        self.next = rows.last().map_or(0, |(row, _)| row + 1);
        let mut used = rows.iter().map(|(row, _)| *row).peekable();
        self.free = (0..self.next).filter(|row| used.next_if_eq(row).is_none()).collect();
        rows.into_iter().for_each(|(row, named)| self.link(row, named));
    }

    /// Calls `each` with the bytes of every page.
    pub fn pages(&self, each: impl FnMut(PageId, &[u8])) {
        self.rows.pages(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_one_message_and_goes_with_it() {
        let (mut names, mut pager) = (Names::default(), Pager::default());
        let topic = TopicId(1);
        let named = |name, seq| Named { topic, name, seq, partition: PartitionId(3) };
        let get = |names: &Names, name| names.get(topic, name).map(|named| named.seq);
        names.set(&mut pager, named(7, 100));
        names.set(&mut pager, named(8, 101));
        assert_eq!((get(&names, 7), names.get(TopicId(2), 7)), (Some(100), None));
        names.set(&mut pager, named(7, 102));
        assert_eq!(get(&names, 7), Some(102));
        names.remove(&mut pager, 100);
        assert_eq!(get(&names, 7), Some(102), "the message before has lost its name");
        names.remove(&mut pager, 101);
        assert_eq!(names.len(), 1);
        let mut back = Names::default();
        names.pages(|id, bytes| back.restore(id, bytes).unwrap());
        back.restored();
        assert_eq!((get(&back, 7), get(&back, 8)), (Some(102), None));
        // Both give the same row next, so both make the same pages.
        for names in [&mut names, &mut back] {
            names.set(&mut pager, named(9, 103));
        }
        let pages = |names: &Names| {
            let mut all = Vec::new();
            names.pages(|id, bytes| all.push((id, bytes.to_vec())));
            all
        };
        assert_eq!(pages(&back), pages(&names));
    }
}
