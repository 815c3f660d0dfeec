//! Paged state: how the views are snapshotted without stopping.
//!
//! State that must survive lives in pages. A page knows whether it has changed
//! since the last snapshot began; a snapshot is the set of pages that have. While
//! it is being taken, pages are captured a few at a time between batches; a change
//! to a page that still waits for its turn captures it first. So a snapshot is one
//! point in time, costs what has changed, and nobody waits for it.
//!
//! A page's bytes are logical content only: the same records give the same bytes,
//! however they were batched. The *digest* of the state is the sum over its pages
//! of a hash of name and bytes, which is why it can be kept up page by page. (Pages
//! of physical content, like the live bytes of a span of frames, are left out of
//! the digest: see [`PageId::is_logical`].)

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;

use posthouse_frame::varint::{self, Cursor, Malformed};
use siphasher::sip::SipHasher13;

use crate::chunk::ChunkId;

/// The name of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// Which table it belongs to.
    pub table: TableId,
    /// Whose it is, for tables of tables; else 0.
    pub owner: u32,
    /// Its number in the table.
    pub number: u64,
}

/// The tables of both machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TableId {
    /// Counters of the shard.
    Globals = 1,
    /// Partitions.
    Partitions = 2,
    /// Groups on partitions.
    Pairs = 3,
    /// What a group has done above its floor.
    Windows = 4,
    /// Consumers of groups.
    Groups = 5,
    /// Publish ids.
    Dedupe = 6,
    /// Live bytes by span of frames. Physical.
    Spans = 7,
    /// When scheduled messages are due.
    Times = 8,
    /// How many are due in each hour.
    Hours = 9,
    /// The names of scheduled messages.
    Names = 10,
    /// Transactions.
    Transactions = 11,
    /// Bodies that were carried. Physical.
    Carried = 12,
    /// The occurrences of recurring messages that have been decided.
    Recurred = 13,
    /// Topics of the catalog.
    Topics = 16,
    /// Groups of the catalog.
    GroupConfigs = 17,
    /// Users of the catalog.
    Users = 18,
    /// Recurring messages of the catalog.
    Recurring = 19,
}

impl TableId {
    fn from_u8(value: u8) -> Option<TableId> {
        use TableId::*;
        let of_a_shard = [
            Globals,
            Partitions,
            Pairs,
            Windows,
            Groups,
            Dedupe,
            Spans,
            Times,
            Hours,
            Names,
            Transactions,
            Carried,
            Recurred,
        ];
        let of_the_catalog = [Topics, GroupConfigs, Users, Recurring];
        let mut all = of_a_shard.into_iter().chain(of_the_catalog);
        all.find(|table| *table as u8 == value)
    }
}

impl PageId {
    /// A page of a table that has no owners.
    pub fn of(table: TableId, number: u64) -> PageId {
        PageId { table, owner: 0, number }
    }

    /// Whether its bytes depend on records alone, and not on how they were batched
    /// into frames.
    pub fn is_logical(&self) -> bool {
        !matches!(self.table, TableId::Spans | TableId::Carried)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.table as u8);
        varint::put(out, self.owner.into());
        varint::put(out, self.number);
    }

    fn decode(c: &mut Cursor<'_>) -> Result<PageId, Malformed> {
        let at = c.position();
        let table = TableId::from_u8(c.u8()?).ok_or(Malformed { at })?;
        Ok(PageId { table, owner: c.varint_u32()?, number: c.varint()? })
    }

    /// What the page with these bytes adds to the digest.
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        if !self.is_logical() {
            return 0;
        }
        // SipHash for its spread, not for secrecy: the key is a constant.
        let mut hasher = SipHasher13::new_with_keys(0x706f_7374, 0x686f_7573);
        hasher.write_u8(self.table as u8);
        hasher.write_u32(self.owner);
        hasher.write_u64(self.number);
        hasher.write(bytes);
        hasher.finish()
    }
}

/// Where the snapshot in the making stands with one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u32);

/// A page as a snapshot holds it; `None` if the page has ceased to be. A page
/// without content is no page.
pub type Captured = (PageId, Option<Vec<u8>>);

/// Follows which pages change, and captures those of a snapshot.
#[derive(Debug)]
pub struct Pager {
    /// Rises with every snapshot. A page whose mark is this has changed since the
    /// last snapshot began; one whose mark is one less, while a snapshot is being
    /// taken, still has to be captured for it.
    turn: u32,
    changed: Vec<PageId>,
    waiting: Vec<PageId>,
    captured: Vec<Captured>,
    /// Pages that were captured because they changed. One of them may have ceased to be
    /// before its turn comes: the snapshot holds it all the same.
    early: BTreeSet<PageId>,
}

impl Default for Pager {
    fn default() -> Self {
        Pager {
            turn: 1,
            changed: Vec::new(),
            waiting: Vec::new(),
            captured: Vec::new(),
            early: BTreeSet::new(),
        }
    }
}

impl Pager {
    /// Must be called before page `id` is changed. `encode` gives its bytes as they
    /// are now; it is called only if the snapshot needs them.
    #[inline]
    pub fn touch(&mut self, mark: &mut Mark, id: PageId, encode: impl FnOnce(&mut Vec<u8>)) {
        if mark.0 == self.turn {
            return;
        }
        if self.awaits(*mark) {
            self.early.insert(id);
            self.capture(id, encode);
        }
        mark.0 = self.turn;
        self.changed.push(id);
    }

    fn awaits(&self, mark: Mark) -> bool {
        !self.waiting.is_empty() && mark.0 + 1 == self.turn
    }

    fn capture(&mut self, id: PageId, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        self.captured.push((id, (!bytes.is_empty()).then_some(bytes)));
    }

    /// Starts a snapshot of everything that has changed since the last one began.
    ///
    /// # Panics
    /// If one is being taken.
    pub fn begin(&mut self) {
        assert!(self.waiting.is_empty() && self.captured.is_empty(), "one snapshot at a time");
        self.turn += 1;
        self.early.clear();
        self.waiting = std::mem::take(&mut self.changed);
    }

    /// The next page to look at for the snapshot; `None` when all have been.
    pub fn next_waiting(&mut self) -> Option<PageId> {
        self.waiting.pop()
    }

    /// Captures a page that was next, unless a change has done it before. The mark
    /// is `None` if the page is no more.
    pub fn capture_waiting(
        &mut self,
        id: PageId,
        mark: Option<&mut Mark>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        if !self.early.insert(id) {
            // Changed, and so captured, since the snapshot began; or named twice.
            return;
        }
        match mark {
            Some(mark) if mark.0 + 1 == self.turn => {
                *mark = Mark::default();
                self.capture(id, encode);
            }
            // It is no more; or it was made since the snapshot began, when there was none.
            _ => self.captured.push((id, None)),
        }
    }

    /// What has been captured and not been taken yet.
    pub fn take_captured(&mut self) -> Vec<Captured> {
        std::mem::take(&mut self.captured)
    }

    /// Whether the next snapshot would hold anything.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }
}

/// Where the newest bytes of a page are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The chunk.
    pub chunk: ChunkId,
    /// The block in it.
    pub block: u32,
    /// What the page adds to the digest.
    pub hash: u64,
}

/// Where every page of a snapshot is kept, and the digest of them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageMap {
    pages: BTreeMap<PageId, Located>,
    digest: u64,
}

impl PageMap {
    /// The digest of all pages.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The pages in order.
    pub fn iter(&self) -> impl Iterator<Item = (PageId, Located)> + '_ {
        self.pages.iter().map(|(id, at)| (*id, *at))
    }

    /// Where a page is kept.
    pub fn get(&self, id: PageId) -> Option<Located> {
        self.pages.get(&id).copied()
    }

    /// The pages of a table, in order.
    pub fn of_table(&self, table: TableId) -> impl Iterator<Item = PageId> + '_ {
        let first = PageId { table, owner: 0, number: 0 };
        self.pages.range(first..).map(|(id, _)| *id).take_while(move |id| id.table == table)
    }

    /// How many pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Notes where a page is kept now.
    pub fn set(&mut self, id: PageId, at: Located) {
        let before = self.pages.insert(id, at).map_or(0, |old| old.hash);
        self.digest = self.digest.wrapping_add(at.hash).wrapping_sub(before);
    }

    /// Notes that a page is no more.
    pub fn remove(&mut self, id: PageId) {
        if let Some(old) = self.pages.remove(&id) {
            self.digest = self.digest.wrapping_sub(old.hash);
        }
    }

    /// How many pages each chunk still holds.
    pub fn by_chunk(&self) -> BTreeMap<ChunkId, usize> {
        let mut counts = BTreeMap::new();
        for at in self.pages.values() {
            *counts.entry(at.chunk).or_default() += 1;
        }
        counts
    }

    /// Appends the encoded map.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.digest.to_le_bytes());
        varint::put(out, self.pages.len() as u64);
        for (id, at) in &self.pages {
            id.encode(out);
            varint::put(out, at.chunk.epoch.into());
            varint::put(out, at.chunk.number);
            varint::put(out, at.block.into());
            out.extend_from_slice(&at.hash.to_le_bytes());
        }
    }

    /// Reads what [`PageMap::encode`] wrote, and computes the digest anew.
    ///
    /// # Errors
    /// [`Malformed`], also if the digest is not the one that was written.
    pub fn decode(c: &mut Cursor<'_>) -> Result<PageMap, Malformed> {
        let at = c.position();
        let digest = c.u64()?;
        let count = c.varint()?;
        let mut map = PageMap::default();
        for _ in 0..count {
            let id = PageId::decode(c)?;
            let chunk = ChunkId { epoch: c.varint_u32()?, number: c.varint()? };
            map.set(id, Located { chunk, block: c.varint_u32()?, hash: c.u64()? });
        }
        if map.digest != digest || map.pages.len() as u64 != count {
            return Err(Malformed { at });
        }
        Ok(map)
    }
}

/// A row of a [`Table`].
pub trait Row: Sized {
    /// The table that such rows make.
    const TABLE: TableId;
    /// How many share a page.
    const PER_PAGE: usize;
    /// Appends what must survive. What is derived stays out.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads what [`Row::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed>;
}

/// Rows under small numbers, in pages.
#[derive(Debug)]
pub struct Table<R> {
    pages: Vec<Option<Box<TablePage<R>>>>,
    rows: usize,
}

#[derive(Debug)]
struct TablePage<R> {
    mark: Mark,
    rows: Vec<Option<R>>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Table { pages: Vec::new(), rows: 0 }
    }
}

impl<R: Row> TablePage<R> {
    fn new() -> Box<Self> {
        let mut rows = Vec::new();
        rows.resize_with(R::PER_PAGE, || None);
        Box::new(TablePage { mark: Mark::default(), rows })
    }
}

fn encode_rows<R: Row>(rows: &[Option<R>], out: &mut Vec<u8>) {
    for (slot, row) in rows.iter().enumerate() {
        if let Some(row) = row {
            varint::put(out, slot as u64 + 1);
            row.encode(out);
        }
    }
}

impl<R: Row> Table<R> {
    fn split(number: u32) -> (usize, usize) {
        (number as usize / R::PER_PAGE, number as usize % R::PER_PAGE)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// A row.
    #[inline]
    pub fn get(&self, number: u32) -> Option<&R> {
        let (page, slot) = Self::split(number);
        self.pages.get(page)?.as_ref()?.rows[slot].as_ref()
    }

    /// A row, to change what is derived in it. What [`Row::encode`] writes must not
    /// be changed through this.
    #[inline]
    pub fn derived(&mut self, number: u32) -> Option<&mut R> {
        let (page, slot) = Self::split(number);
        self.pages.get_mut(page)?.as_mut()?.rows[slot].as_mut()
    }

    /// A row, to change it.
    #[inline]
    pub fn get_mut(&mut self, pager: &mut Pager, number: u32) -> Option<&mut R> {
        let (page_no, slot) = Self::split(number);
        let page = self.pages.get_mut(page_no)?.as_mut()?;
        page.rows[slot].as_ref()?;
        let TablePage { mark, rows } = &mut **page;
        pager.touch(mark, PageId::of(R::TABLE, page_no as u64), |out| encode_rows(rows, out));
        rows[slot].as_mut()
    }

    /// Sets a row, new or not.
    pub fn set(&mut self, pager: &mut Pager, number: u32, row: R) -> &mut R {
        let (page_no, slot) = Self::split(number);
        if self.pages.len() <= page_no {
            self.pages.resize_with(page_no + 1, || None);
        }
        let page = self.pages[page_no].get_or_insert_with(TablePage::new);
        let TablePage { mark, rows } = &mut **page;
        pager.touch(mark, PageId::of(R::TABLE, page_no as u64), |out| encode_rows(rows, out));
        self.rows += usize::from(rows[slot].is_none());
        rows[slot].insert(row)
    }

    /// Removes a row.
    pub fn remove(&mut self, pager: &mut Pager, number: u32) -> Option<R> {
        self.get_mut(pager, number)?;
        let (page_no, slot) = Self::split(number);
        let page = self.pages[page_no].as_mut()?;
        self.rows -= 1;
        page.rows[slot].take()
    }

    /// All rows, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &R)> {
        self.pages.iter().enumerate().flat_map(|(page_no, page)| {
            page.iter().flat_map(move |page| {
                page.rows.iter().enumerate().filter_map(move |(slot, row)| {
                    Some(((page_no * R::PER_PAGE + slot) as u32, row.as_ref()?))
                })
            })
        })
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        for (number, page) in (0..).zip(&mut self.pages) {
            if let Some(page) = page {
                let TablePage { mark, rows } = &mut **page;
                pager.touch(mark, PageId::of(R::TABLE, number), |out| encode_rows(rows, out));
            }
        }
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        let Some(Some(page)) = self.pages.get_mut(id.number as usize) else {
            pager.capture_waiting(id, None, |_| ());
            return;
        };
        let TablePage { mark, rows } = &mut **page;
        pager.capture_waiting(id, Some(mark), |out| encode_rows(rows, out));
    }

    /// The page that has a row, and which one of it the row is.
    pub fn place_of(number: u32) -> (PageId, usize) {
        let (page, slot) = Self::split(number);
        (PageId::of(R::TABLE, page as u64), slot)
    }

    /// The rows of a page that a snapshot holds, by their place in it.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are not a page of this table.
    pub fn rows_of(bytes: &[u8]) -> Result<Vec<Option<R>>, Malformed> {
        let mut rows = Vec::new();
        rows.resize_with(R::PER_PAGE, || None);
        let mut c = Cursor::new(bytes);
        while !c.is_empty() {
            let at = c.position();
            let slot = c.varint()?.wrapping_sub(1) as usize;
            let row = R::decode(&mut c)?;
            match rows.get_mut(slot) {
                Some(free @ None) => *free = Some(row),
                _ => return Err(Malformed { at }),
            }
        }
        Ok(rows)
    }

    /// Puts a page back that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are not a page of this table.
    pub fn restore(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        let page_no = usize::try_from(id.number).map_err(|_| Malformed { at: 0 })?;
        if page_no > u32::MAX as usize / R::PER_PAGE {
            return Err(Malformed { at: 0 });
        }
        if self.pages.len() <= page_no {
            self.pages.resize_with(page_no + 1, || None);
        }
        let rows = Self::rows_of(bytes)?;
        self.rows += rows.iter().flatten().count();
        self.pages[page_no] = Some(Box::new(TablePage { mark: Mark::default(), rows }));
        Ok(())
    }

    /// Calls `each` with the bytes of every page, for the digest of the state as it
    /// is now.
    pub fn pages(&self, mut each: impl FnMut(PageId, &[u8])) {
        let mut bytes = Vec::new();
        for (page_no, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                bytes.clear();
                encode_rows(&page.rows, &mut bytes);
                if !bytes.is_empty() {
                    each(PageId::of(R::TABLE, page_no as u64), &bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Row for u64 {
        const TABLE: TableId = TableId::Partitions;
        const PER_PAGE: usize = 4;
        fn encode(&self, out: &mut Vec<u8>) {
            varint::put(out, *self);
        }
        fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
            c.varint()
        }
    }

    /// A window of a group that had caught up was let go before a snapshot began, and made
    /// anew before the snapshot came to it: what the snapshot before had of it stayed.
    #[test]
    fn a_page_that_went_and_is_made_anew_is_not_in_a_snapshot_that_began_between() {
        let id = PageId::of(TableId::Windows, 3);
        let (mut pager, mut mark) = (Pager::default(), Mark::default());
        pager.touch(&mut mark, id, |_| ());
        pager.begin();
        assert_eq!(pager.next_waiting(), Some(id));
        pager.capture_waiting(id, Some(&mut mark), |out| out.push(7));
        assert_eq!(pager.take_captured(), [(id, Some(vec![7]))]);
        // It changes, and goes.
        pager.touch(&mut mark, id, |out| out.push(7));
        pager.begin();
        let mut anew = Mark::default();
        pager.touch(&mut anew, id, |_| ());
        assert_eq!(pager.next_waiting(), Some(id));
        pager.capture_waiting(id, Some(&mut anew), |out| out.push(9));
        assert_eq!(pager.take_captured(), [(id, None)]);
        // The next snapshot has it.
        pager.begin();
        assert_eq!(pager.next_waiting(), Some(id));
        pager.capture_waiting(id, Some(&mut anew), |out| out.push(9));
        assert_eq!(pager.take_captured(), [(id, Some(vec![9]))]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, u64),
        Remove(u32),
        Begin,
        Walk,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u32..40, any::<u64>()).prop_map(|(n, v)| Op::Set(n, v)),
            2 => (0u32..40).prop_map(Op::Remove),
            1 => Just(Op::Begin),
            3 => Just(Op::Walk),
        ]
    }

    fn content(table: &Table<u64>) -> Vec<(u32, u64)> {
        table.iter().map(|(n, v)| (n, *v)).collect()
    }

    proptest! {
        // Every snapshot, put together from all before it, is the table as it was
        // when that snapshot began, whatever changed while it was taken.
        #[test]
        fn a_snapshot_is_one_point_in_time(ops in proptest::collection::vec(op(), 1..200)) {
            let mut table = Table::<u64>::default();
            let mut pager = Pager::default();
            let mut stored: BTreeMap<PageId, Vec<u8>> = BTreeMap::new();
            let mut wanted: Option<Vec<(u32, u64)>> = None;
            for op in ops {
                match op {
                    Op::Set(n, v) => { table.set(&mut pager, n, v); }
                    Op::Remove(n) => { table.remove(&mut pager, n); }
                    Op::Begin if wanted.is_none() => {
                        pager.begin();
                        wanted = Some(content(&table));
                    }
                    Op::Begin => {}
                    Op::Walk if wanted.is_some() => {
                        let done = match pager.next_waiting() {
                            Some(id) => { table.capture(&mut pager, id); false }
                            None => true,
                        };
                        for (id, bytes) in pager.take_captured() {
                            match bytes {
                                Some(bytes) => stored.insert(id, bytes),
                                None => stored.remove(&id),
                            };
                        }
                        if done {
                            let mut restored = Table::<u64>::default();
                            for (id, bytes) in &stored {
                                restored.restore(*id, bytes).unwrap();
                            }
                            prop_assert_eq!(content(&restored), wanted.take().unwrap());
                            prop_assert_eq!(restored.len(), content(&restored).len());
                        }
                    }
                    Op::Walk => {}
                }
            }
        }
    }

    #[test]
    fn a_map_comes_back_with_its_digest_and_not_without() {
        let mut map = PageMap::default();
        for number in 0..10 {
            let id = PageId::of(TableId::Pairs, number);
            let chunk = ChunkId { epoch: 1, number: 2 };
            map.set(id, Located { chunk, block: 3, hash: id.hash(b"bytes") });
        }
        map.remove(PageId::of(TableId::Pairs, 4));
        let mut out = Vec::new();
        map.encode(&mut out);
        assert_eq!(PageMap::decode(&mut Cursor::new(&out)), Ok(map.clone()));
        assert_eq!(map.by_chunk().into_values().collect::<Vec<_>>(), [9]);
        out[0] ^= 1;
        assert!(PageMap::decode(&mut Cursor::new(&out)).is_err());
    }

    #[test]
    fn physical_pages_add_nothing_to_the_digest() {
        assert_eq!(PageId::of(TableId::Spans, 1).hash(b"x"), 0);
        assert_eq!(PageId::of(TableId::Carried, 1).hash(b"x"), 0);
        assert_ne!(PageId::of(TableId::Pairs, 1).hash(b"x"), 0);
    }
}
