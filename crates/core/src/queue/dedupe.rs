//! Publish ids of the last while: a ring, and a map into it.
//!
//! A publish never waits for a disk, so all of the window is in memory, and its
//! size is bounded: what a topic asks for in time is kept only as far as the ring
//! reaches.

use std::collections::VecDeque;
use std::ops::Range;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{Mark, PageId, Pager, TableId};
use crate::words::{Lookup, PartitionId, Position, Seq, TopicId, UnixMs};

/// How many publish ids a shard remembers at most.
pub const CAPACITY: u64 = 1 << 20;

const PER_PAGE: u64 = 512;

/// A publish id and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The topic it counts in.
    pub topic: TopicId,
    /// Hash of the id.
    pub id: u128,
    /// Hash of the message.
    pub digest: u64,
    /// Where the message went.
    pub partition: PartitionId,
    /// Its position there; its number, if it was scheduled.
    pub position: Position,
    /// Whether it was scheduled.
    pub is_later: bool,
    /// When.
    pub at: UnixMs,
}

/// Stands where an item was that is no more.
const NOTHING: Remembered = Remembered {
    topic: TopicId(0),
    id: 0,
    digest: 0,
    partition: PartitionId(0),
    position: 0,
    is_later: false,
    at: UnixMs(0),
};

#[derive(Debug, Default)]
struct Page {
    mark: Mark,
    items: Vec<Remembered>,
}

/// The window. Items are numbered in the order they came; the ring holds `first..next`.
#[derive(Debug)]
pub struct Dedupe {
    first: u64,
    next: u64,
    capacity: u64,
    /// Pages of items, the oldest possibly with items before `first`.
    pages: VecDeque<Page>,
    newest: Lookup<(TopicId, u128), u64>,
}

impl Default for Dedupe {
    fn default() -> Self {
        Dedupe::with_capacity(CAPACITY)
    }
}

impl Dedupe {
    fn with_capacity(capacity: u64) -> Self {
        Dedupe { first: 0, next: 0, capacity, pages: VecDeque::new(), newest: Lookup::default() }
    }

    /// The number of the oldest item, and of the next.
    pub fn range(&self) -> (u64, u64) {
        (self.first, self.next)
    }

    /// Goes on with number `next`, in a ring whose pages have been put back.
    pub fn resume(&mut self, next: u64) {
        if self.pages.is_empty() {
            (self.first, self.next) = (next, next);
        }
    }

    fn item(&self, number: u64) -> &Remembered {
        let page = number / PER_PAGE - self.first / PER_PAGE;
        &self.pages[page as usize].items[(number % PER_PAGE) as usize]
    }

    /// What came of the newest publish under an id.
    pub fn get(&self, topic: TopicId, id: u128) -> Option<&Remembered> {
        self.newest.get(&(topic, id)).map(|number| self.item(*number))
    }

    /// The item of that number, if the ring has it.
    pub fn numbered(&self, number: u64) -> Option<&Remembered> {
        (self.first..self.next).contains(&number).then(|| self.item(number))
    }

    /// Adds an item; the oldest goes if the ring is full.
    pub fn push(&mut self, pager: &mut Pager, item: Remembered) {
        if self.next - self.first == self.capacity {
            self.forget(pager, self.first + 1);
        }
        if self.pages.is_empty() {
            // An empty ring starts over at the beginning of a page: what was on the
            // last one is no more.
            self.next = self.next.next_multiple_of(PER_PAGE);
            self.first = self.next;
        }
        if self.next.is_multiple_of(PER_PAGE) {
            self.pages.push_back(Page::default());
        }
        let number = self.next / PER_PAGE;
        let page = self.pages.back_mut().expect("a page was just made if there was none");
        let Page { mark, items } = page;
        let first = self.first;
        pager.touch(mark, Self::name(number), |out| encode(items, number, first, out));
        page.items.push(item);
        self.newest.insert((item.topic, item.id), self.next);
        self.next += 1;
    }

    /// Forgets items before `upto`.
    pub fn forget(&mut self, pager: &mut Pager, upto: u64) {
        while self.first < upto.min(self.next) {
            let item = *self.item(self.first);
            let key = (item.topic, item.id);
            if self.newest.get(&key) == Some(&self.first) {
                self.newest.remove(&key);
            }
            let number = self.first / PER_PAGE;
            let page = &mut self.pages[0];
            let Page { mark, items } = page;
            let first = self.first;
            pager.touch(mark, Self::name(number), |out| encode(items, number, first, out));
            self.first += 1;
            if self.first / PER_PAGE != number || self.first == self.next {
                self.pages.pop_front();
            }
        }
    }

    /// Forgets the ids of scheduled messages with numbers in `seqs`, whose last item came
    /// before number `upto`: those messages are rolled back, and may come again.
    pub fn revoke(&mut self, pager: &mut Pager, upto: u64, seqs: Range<Seq>) {
        let count = seqs.end - seqs.start;
        for number in upto.saturating_sub(count).max(self.first)..upto.min(self.next) {
            let item = *self.item(number);
            if !item.is_later || !seqs.contains(&item.position) {
                continue;
            }
            if self.newest.get(&(item.topic, item.id)) == Some(&number) {
                self.newest.remove(&(item.topic, item.id));
            }
            let (page_no, first) = (number / PER_PAGE, self.first);
            let page = &mut self.pages[(page_no - first / PER_PAGE) as usize];
            let Page { mark, items } = page;
            pager.touch(mark, Self::name(page_no), |out| encode(items, page_no, first, out));
            items[(number % PER_PAGE) as usize] = NOTHING;
        }
    }

    fn name(number: u64) -> PageId {
        PageId::of(TableId::Dedupe, number)
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        let first = self.first;
        for (number, Page { mark, items }) in (first / PER_PAGE..).zip(&mut self.pages) {
            pager.touch(mark, Self::name(number), |out| encode(items, number, first, out));
        }
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        let first = self.first;
        let at = id.number.checked_sub(first / PER_PAGE).map(|at| at as usize);
        match at.and_then(|at| self.pages.get_mut(at)) {
            Some(Page { mark, items }) => {
                let encode = |out: &mut Vec<u8>| encode(items, id.number, first, out);
                pager.capture_waiting(id, Some(mark), encode);
            }
            None => pager.capture_waiting(id, None, |_| ()),
        }
    }

    /// Puts a page back that a snapshot holds. Pages come in the order of their
    /// numbers.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page, or it does not follow the last.
    pub fn restore(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let mut c = Cursor::new(bytes);
        let skipped = c.varint()?;
        let mut page = Page::default();
        let start = number * PER_PAGE;
        if skipped >= PER_PAGE || (!self.pages.is_empty() && (skipped > 0 || self.next != start)) {
            return Err(Malformed { at: 0 });
        }
        page.items.resize(skipped as usize, NOTHING);
        if self.pages.is_empty() {
            self.first = start + skipped;
        }
        self.next = start + skipped;
        while !c.is_empty() {
            let mut item = Remembered {
                topic: TopicId(c.varint_u32()?),
                partition: PartitionId(c.varint_u32()?),
                ..NOTHING
            };
            let place = c.varint()?;
            (item.position, item.is_later) = (place >> 1, place & 1 != 0);
            (item.at, item.id, item.digest) = (UnixMs(c.varint()?), c.u128()?, c.u64()?);
            if item != NOTHING {
                self.newest.insert((item.topic, item.id), self.next);
            }
            page.items.push(item);
            self.next += 1;
        }
        if page.items.len() > PER_PAGE as usize {
            return Err(Malformed { at: 0 });
        }
        self.pages.push_back(page);
        Ok(())
    }

    /// Calls `each` with the bytes of every page.
    pub fn pages(&self, each: &mut impl FnMut(PageId, &[u8])) {
        let mut bytes = Vec::new();
        for (number, page) in (self.first / PER_PAGE..).zip(&self.pages) {
            bytes.clear();
            encode(&page.items, number, self.first, &mut bytes);
            if !bytes.is_empty() {
                each(Self::name(number), &bytes);
            }
        }
    }
}

/// `skipped varint`, then the items that are left.
fn encode(items: &[Remembered], number: u64, first: u64, out: &mut Vec<u8>) {
    let skipped = first.saturating_sub(number * PER_PAGE) as usize;
    if skipped >= items.len() {
        return;
    }
    varint::put(out, skipped as u64);
    for item in &items[skipped..] {
        varint::put(out, item.topic.0.into());
        varint::put(out, item.partition.0.into());
        varint::put(out, item.position << 1 | u64::from(item.is_later));
        varint::put(out, item.at.0);
        out.extend_from_slice(&item.id.to_le_bytes());
        out.extend_from_slice(&item.digest.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(n: u64) -> Remembered {
        Remembered {
            topic: TopicId(1),
            id: u128::from(n % 7000),
            digest: n,
            partition: PartitionId(2),
            position: n,
            is_later: n.is_multiple_of(5),
            at: UnixMs(n),
        }
    }

    fn pages(ring: &Dedupe) -> Vec<(PageId, Vec<u8>)> {
        let mut pages = Vec::new();
        ring.pages(&mut |id, bytes| pages.push((id, bytes.to_vec())));
        pages
    }

    #[test]
    fn the_ring_forgets_its_oldest_and_knows_the_newest_of_an_id() {
        let mut ring = Dedupe::with_capacity(2000);
        let mut pager = Pager::default();
        for n in 0..9000 {
            ring.push(&mut pager, item(n));
        }
        assert_eq!(ring.range(), (7000, 9000));
        assert_eq!(ring.get(TopicId(1), 1500), Some(&item(8500)));
        assert_eq!(ring.get(TopicId(1), 3000), None);
        assert_eq!(ring.get(TopicId(2), 1500), None);
        ring.forget(&mut pager, 8501);
        assert_eq!(ring.get(TopicId(1), 1500), None);
        assert_eq!(ring.numbered(8501), Some(&item(8501)));
    }

    #[test]
    fn ids_of_messages_that_are_rolled_back_are_forgotten_and_stay_so() {
        let (mut ring, mut pager) = (Dedupe::with_capacity(2000), Pager::default());
        let scheduled = |n: u64| Remembered { is_later: true, ..item(n) };
        (0..600).for_each(|n| ring.push(&mut pager, scheduled(n)));
        // One came again meanwhile, under another number.
        ring.push(&mut pager, Remembered { position: 900, ..scheduled(503) });
        ring.revoke(&mut pager, 514, 500..520);
        let mut back = Dedupe::with_capacity(2000);
        ring.pages(&mut |id, bytes| back.restore(id.number, bytes).unwrap());
        for ring in [&ring, &back] {
            let known = |id: u64| ring.get(TopicId(1), id.into()).map(|item| item.position);
            assert_eq!([known(499), known(500), known(513)], [Some(499), None, None]);
            assert_eq!([known(503), known(514)], [Some(900), Some(514)]);
        }
        assert_eq!(pages(&back), pages(&ring));
        // What is not in the ring any more does not matter.
        ring.forget(&mut pager, 550);
        ring.revoke(&mut pager, 530, 520..530);
        ring.revoke(&mut pager, 9_000, 0..10_000);
    }

    #[test]
    fn a_ring_comes_back_from_its_pages() {
        let mut ring = Dedupe::with_capacity(2000);
        let mut pager = Pager::default();
        for step in 0..40u64 {
            for n in 0..step * 13 {
                ring.push(&mut pager, item(step * 1000 + n));
            }
            let (first, next) = ring.range();
            ring.forget(&mut pager, first + (next - first) / (1 + step % 3));
            let stored = pages(&ring);
            let mut restored = Dedupe::with_capacity(2000);
            for (id, bytes) in &stored {
                restored.restore(id.number, bytes).unwrap();
            }
            assert_eq!(pages(&restored), stored, "step {step}");
            if ring.range().0 < ring.range().1 {
                assert_eq!(restored.range(), ring.range(), "step {step}");
            }
            assert_eq!(restored.newest.len(), ring.newest.len());
        }
    }
}
