//! Where bodies have been carried: the rows of chunks say where a body was when the chunk
//! was made, and this says where it is now.
//!
//! A row stays until its chunk is made anew with it (see [`super::fold`]), or its message
//! is gone.

use std::collections::BTreeMap;

use posthouse_frame::varint::{self, Cursor, Malformed};
use posthouse_frame::{BodyRef, FrameNo};

use crate::page::{Mark, PageId, Pager, TableId};
use crate::words::{PartitionId, Position};

/// Positions that share a page.
const STRETCH: u64 = 1024;

/// Bodies that are not where the index's tables and chunks say.
#[derive(Debug, Default)]
pub struct Carried {
    pages: BTreeMap<(PartitionId, u64), Page>,
    rows: usize,
}

#[derive(Debug, Default)]
struct Page {
    mark: Mark,
    rows: Rows,
}

/// The rows of a page: by the position's offset in the stretch.
pub type Rows = BTreeMap<u16, BodyRef>;

fn split(position: Position) -> (u64, u16) {
    (position / STRETCH, (position % STRETCH) as u16)
}

fn page_id(partition: PartitionId, number: u64) -> PageId {
    PageId { table: TableId::Carried, owner: partition.0, number }
}

impl Page {
    fn touch(&mut self, pager: &mut Pager, id: PageId) {
        let Page { mark, rows } = self;
        pager.touch(mark, id, |out| encode(rows, out));
    }
}

impl Carried {
    /// The page that has the body of a message, if it was carried, and under what it has it.
    pub fn place_of(partition: PartitionId, position: Position) -> (PageId, u16) {
        let (number, offset) = split(position);
        (page_id(partition, number), offset)
    }

    /// The positions that share a page.
    pub fn positions_of(page: PageId) -> (PartitionId, std::ops::Range<Position>) {
        let first = page.number * STRETCH;
        (PartitionId(page.owner), first..first + STRETCH)
    }

    /// The rows of a page that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page.
    pub fn rows_of(bytes: &[u8]) -> Result<Rows, Malformed> {
        let mut c = Cursor::new(bytes);
        let mut rows = Rows::new();
        while !c.is_empty() {
            let at = c.position();
            let offset = c.varint()?;
            let body =
                BodyRef { frame: FrameNo(c.varint()?), at: c.varint_u32()?, len: c.varint_u32()? };
            if offset >= STRETCH || rows.insert(offset as u16, body).is_some() {
                return Err(Malformed { at });
            }
        }
        Ok(rows)
    }

    /// How many bodies.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Where the body of a message is, if it was carried.
    #[inline]
    pub fn get(&self, partition: PartitionId, position: Position) -> Option<BodyRef> {
        if self.rows == 0 {
            return None;
        }
        let (number, offset) = split(position);
        self.pages.get(&(partition, number))?.rows.get(&offset).copied()
    }

    /// A body was carried.
    pub fn set(
        &mut self,
        pager: &mut Pager,
        partition: PartitionId,
        position: Position,
        body: BodyRef,
    ) {
        let (number, offset) = split(position);
        let page = self.pages.entry((partition, number)).or_default();
        page.touch(pager, page_id(partition, number));
        self.rows += usize::from(page.rows.insert(offset, body).is_none());
    }

    /// A chunk says where the body is.
    pub fn remove(
        &mut self,
        pager: &mut Pager,
        partition: PartitionId,
        position: Position,
        body: BodyRef,
    ) {
        let (number, offset) = split(position);
        let Some(page) = self.pages.get_mut(&(partition, number)) else { return };
        if page.rows.get(&offset) != Some(&body) {
            return;
        }
        page.touch(pager, page_id(partition, number));
        page.rows.remove(&offset);
        self.rows -= 1;
        if page.rows.is_empty() {
            self.pages.remove(&(partition, number));
        }
    }

    /// The messages of a partition before a position are gone.
    pub fn forget_below(&mut self, pager: &mut Pager, partition: PartitionId, upto: Position) {
        if self.rows == 0 {
            return;
        }
        let (last, offset) = split(upto);
        let whole: Vec<u64> =
            self.pages.range((partition, 0)..(partition, last)).map(|(key, _)| key.1).collect();
        for number in whole {
            let page = self.pages.get_mut(&(partition, number)).expect("it was just found");
            page.touch(pager, page_id(partition, number));
            self.rows -= page.rows.len();
            self.pages.remove(&(partition, number));
        }
        let Some(page) = self.pages.get_mut(&(partition, last)) else { return };
        if page.rows.first_key_value().is_some_and(|(first, _)| *first < offset) {
            page.touch(pager, page_id(partition, last));
            let left = page.rows.split_off(&offset);
            self.rows -= page.rows.len();
            page.rows = left;
            if page.rows.is_empty() {
                self.pages.remove(&(partition, last));
            }
        }
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        for ((partition, number), page) in &mut self.pages {
            page.touch(pager, page_id(*partition, *number));
        }
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        match self.pages.get_mut(&(PartitionId(id.owner), id.number)) {
            Some(Page { mark, rows }) => {
                pager.capture_waiting(id, Some(mark), |out| encode(rows, out));
            }
            None => pager.capture_waiting(id, None, |_| ()),
        }
    }

    /// Puts a page back that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page.
    pub fn restore(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        let rows = Self::rows_of(bytes)?;
        self.rows += rows.len();
        let page = Page { mark: Mark::default(), rows };
        self.pages.insert((PartitionId(id.owner), id.number), page);
        Ok(())
    }
}

/// Rows as a page holds them: offset, frame, place in it and length.
fn encode(rows: &Rows, out: &mut Vec<u8>) {
    for (offset, body) in rows {
        varint::put(out, (*offset).into());
        varint::put(out, body.frame.0);
        varint::put(out, body.at.into());
        varint::put(out, body.len.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frame: u64) -> BodyRef {
        BodyRef { frame: FrameNo(frame), at: 7, len: 20 }
    }

    #[test]
    fn a_body_is_where_it_was_carried_last_until_a_chunk_says_so_or_it_is_gone() {
        let (mut carried, mut pager) = (Carried::default(), Pager::default());
        let (one, other) = (PartitionId(1), PartitionId(2));
        for position in [0, 5, STRETCH, 3 * STRETCH + 4] {
            carried.set(&mut pager, one, position, body(position + 1));
        }
        carried.set(&mut pager, other, 5, body(90));
        carried.set(&mut pager, one, 5, body(91));
        assert_eq!(carried.len(), 5);
        assert_eq!(carried.get(one, 5), Some(body(91)));
        assert_eq!(carried.get(one, 6), None);
        // A chunk that was made before it was carried again says nothing.
        carried.remove(&mut pager, one, 5, body(6));
        assert_eq!(carried.get(one, 5), Some(body(91)));
        carried.remove(&mut pager, one, 5, body(91));
        assert_eq!(carried.get(one, 5), None);
        carried.forget_below(&mut pager, one, 3 * STRETCH + 4);
        assert_eq!(carried.len(), 2);
        assert_eq!(carried.get(one, 3 * STRETCH + 4), Some(body(3 * STRETCH + 5)));
        assert_eq!(carried.get(other, 5), Some(body(90)));
        carried.forget_below(&mut pager, one, 3 * STRETCH + 5);
        carried.forget_below(&mut pager, other, 6);
        assert!(carried.is_empty() && carried.pages.is_empty());
    }

    #[test]
    fn pages_come_back() {
        let mut rows = Rows::new();
        for offset in [0, 3, 1023] {
            rows.insert(offset, body(offset.into()));
        }
        let mut bytes = Vec::new();
        encode(&rows, &mut bytes);
        assert_eq!(Carried::rows_of(&bytes), Ok(rows));
        for cut in (1..bytes.len()).filter(|cut| cut % 4 != 0) {
            assert!(Carried::rows_of(&bytes[..cut]).is_err(), "{cut} bytes");
        }
        let twice = [&bytes[..4], &bytes[..4]].concat();
        assert!(Carried::rows_of(&twice).is_err());
        let mut beyond = Vec::new();
        varint::put(&mut beyond, STRETCH);
        beyond.extend_from_slice(&[1, 1, 1]);
        assert!(Carried::rows_of(&beyond).is_err());
    }
}
