//! When every scheduled message is due: one word for each, under its number.
//!
//! This is the truth about what is pending; entries elsewhere (in memory, in runs)
//! count only if they agree with it. So a message is cancelled by changing a word,
//! and rescheduled by changing it and adding an entry, without a look at the disk.
//!
//! ```text
//! word:  tag 2 | moved 1 | held 1 | claimed 1 | ... | value 48
//!        0 nothing   1 pending, value is the due time   2 fired, value is the position
//!        3 cancelled
//! ```
//! A page of which few messages are pending still answers what became of the others
//! until [`KEPT_PAGES`] such pages have gathered; then the oldest keeps its pending
//! ones only, as a list.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{Mark, PageId, Pager, TableId};
use crate::words::{MAX_POSITION, Position, Seq, ShardMs, UnixMs};

/// Numbers of one page.
pub const PER_PAGE: u64 = 4096;

/// A page with fewer pending messages is thin.
const THIN: u32 = (PER_PAGE / 8) as u32;

/// Thin pages that are kept whole.
pub const KEPT_PAGES: usize = 1024;

const TAG: u64 = 3 << 62;
const PENDING: u64 = 1 << 62;
const FIRED: u64 = 2 << 62;
const CANCELLED: u64 = 3 << 62;
const MOVED: u64 = 1 << 61;
const HELD: u64 = 1 << 60;
/// Derived: what has been taken out to be fired, and is not yet. Never in a page.
const CLAIMED: u64 = 1 << 59;
const VALUE: u64 = (1 << 48) - 1;

/// The latest due time: the one that [`ShardMs::MAX`] is.
pub const MAX_DUE: UnixMs = UnixMs(ShardMs::MAX.0);

/// What is known of a scheduled message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing: the number was never given, or what became of it is forgotten.
    Unknown,
    /// It waits.
    Pending {
        /// When it is due.
        due: UnixMs,
        /// When it was due at first: under that time its body is found.
        origin: UnixMs,
        /// Whether it waits for a transaction besides.
        held: bool,
    },
    /// It was put into its partition.
    Fired(Position),
    /// It was called back.
    Cancelled,
}

#[derive(Debug)]
enum Words {
    Dense(Box<[u64; PER_PAGE as usize]>),
    /// Pending ones only, by index.
    Sparse(Vec<(u16, u64)>),
}

#[derive(Debug)]
struct Page {
    mark: Mark,
    content: Content,
}

#[derive(Debug)]
struct Content {
    pending: u32,
    words: Words,
    /// The first due times of those that were moved, by index.
    moved: Vec<(u16, u64)>,
}

impl Content {
    fn new() -> Content {
        let words = vec![0; PER_PAGE as usize].into_boxed_slice();
        let words = words.try_into().expect("the length is that of a page");
        Content { pending: 0, words: Words::Dense(words), moved: Vec::new() }
    }

    fn word(&self, index: u16) -> u64 {
        match &self.words {
            Words::Dense(words) => words[usize::from(index)],
            Words::Sparse(words) => {
                words.binary_search_by_key(&index, |(at, _)| *at).map_or(0, |found| words[found].1)
            }
        }
    }

    fn set(&mut self, index: u16, word: u64) {
        match &mut self.words {
            Words::Dense(words) => words[usize::from(index)] = word,
            Words::Sparse(words) => {
                match (words.binary_search_by_key(&index, |(at, _)| *at), word & TAG) {
                    (Ok(found), PENDING) => words[found].1 = word,
                    (Ok(found), _) => drop(words.remove(found)),
                    // Only what is pending stands in a sparse page.
                    (Err(_), _) => {}
                }
            }
        }
    }

    fn origin(&self, index: u16) -> Option<u64> {
        let found = self.moved.binary_search_by_key(&index, |(at, _)| *at);
        found.ok().map(|found| self.moved[found].1)
    }

    fn state(&self, index: u16) -> State {
        let word = self.word(index);
        match word & TAG {
            PENDING => {
                let due = word & VALUE;
                let origin = if word & MOVED == 0 { None } else { self.origin(index) };
                let (origin, held) = (UnixMs(origin.unwrap_or(due)), word & HELD != 0);
                State::Pending { due: UnixMs(due), origin, held }
            }
            FIRED => State::Fired(word & VALUE),
            CANCELLED => State::Cancelled,
            _ => State::Unknown,
        }
    }

    /// Everything that was given in the page and is not pending is forgotten.
    fn slim(&mut self) {
        if let Words::Dense(words) = &self.words {
            let pending = (0u16..).zip(words.iter()).filter(|(_, word)| **word & TAG == PENDING);
            self.words = Words::Sparse(pending.map(|(at, word)| (at, *word)).collect());
        }
    }

    /// The numbers of what is pending, in order.
    fn pending(&self, page: u64) -> impl Iterator<Item = Seq> + '_ {
        let (dense, sparse) = match &self.words {
            Words::Dense(words) => (&words[..], &[][..]),
            Words::Sparse(words) => (&[][..], &words[..]),
        };
        let dense = (0u16..).zip(dense.iter().copied());
        dense
            .chain(sparse.iter().copied())
            .filter(|(_, word)| word & TAG == PENDING)
            .map(move |(index, _)| page * PER_PAGE + u64::from(index))
    }

    fn is_dense(&self) -> bool {
        matches!(self.words, Words::Dense(_))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let all: &mut dyn Iterator<Item = (u16, u64)> = match &self.words {
            Words::Dense(words) => &mut (0u16..).zip(words.iter().copied()),
            Words::Sparse(words) => &mut words.iter().copied(),
        };
        let given: Vec<(u16, u64)> = all.filter(|(_, word)| word & TAG != 0).collect();
        if given.is_empty() {
            return;
        }
        let pending = given.iter().filter(|(_, word)| word & TAG == PENDING);
        let base = pending.map(|(_, word)| word & VALUE).min().unwrap_or(0);
        out.push(u8::from(!self.is_dense()));
        varint::put(out, base);
        varint::put(out, given.len() as u64);
        let mut next = 0;
        for (index, word) in given {
            // The low bit says whether some numbers before it are left out.
            let gap = u64::from(index - next);
            let code = match word & TAG {
                PENDING => ((word & VALUE) - base) << 3 | u64::from(word & HELD != 0) << 2 | 1,
                FIRED => (word & VALUE) << 2 | 2,
                _ => 3,
            };
            varint::put(out, code << 1 | u64::from(gap != 0));
            if gap != 0 {
                varint::put(out, gap);
            }
            next = index + 1;
        }
        varint::put(out, self.moved.len() as u64);
        for (index, origin) in &self.moved {
            varint::put(out, (*index).into());
            varint::put(out, *origin);
        }
    }

    fn decode(bytes: &[u8]) -> Result<Content, Malformed> {
        let mut c = Cursor::new(bytes);
        let mut page = Content::new();
        let form = c.u8()?;
        let base = c.varint()?;
        let count = c.varint()?;
        let mut next = 0u64;
        for _ in 0..count {
            let at = c.position();
            let code = c.varint()?;
            if code & 1 != 0 {
                next = next.checked_add(c.varint()?).ok_or(Malformed { at })?;
            }
            let code = code >> 1;
            let word = match code & 3 {
                1 => {
                    let due = base.checked_add(code >> 3).filter(|due| *due <= MAX_DUE.0);
                    let held = if code & 4 == 0 { 0 } else { HELD };
                    page.pending += 1;
                    PENDING | held | due.ok_or(Malformed { at })?
                }
                2 if code >> 2 <= MAX_POSITION => FIRED | code >> 2,
                3 => CANCELLED,
                _ => return Err(Malformed { at }),
            };
            if next >= PER_PAGE {
                return Err(Malformed { at });
            }
            page.set(next as u16, word);
            next += 1;
        }
        for _ in 0..c.varint()? {
            let at = c.position();
            let (index, origin) = (c.varint()?, c.varint()?);
            let index = u16::try_from(index).map_err(|_| Malformed { at })?;
            let word = if u64::from(index) < PER_PAGE { page.word(index) } else { 0 };
            let rises = page.moved.last().is_none_or(|(last, _)| *last < index);
            if word & TAG != PENDING || !rises {
                return Err(Malformed { at });
            }
            page.set(index, word | MOVED);
            page.moved.push((index, origin));
        }
        if form == 1 {
            page.slim();
        }
        if c.is_empty() && form <= 1 { Ok(page) } else { Err(Malformed { at: c.position() }) }
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Times {
    pages: BTreeMap<u64, Box<Page>>,
    next: Seq,
    pending: u64,
    /// Pages that are thin, whole, and have given all of their numbers.
    thin: BTreeSet<u64>,
}

/// The page of a number, and the index in it.
fn split(seq: Seq) -> (u64, u16) {
    (seq / PER_PAGE, (seq % PER_PAGE) as u16)
}

fn name(page: u64) -> PageId {
    PageId::of(TableId::Times, page)
}

impl Times {
    /// The number that the next message gets.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Messages that are pending.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Bytes that the table takes in memory, nearly.
    pub fn bytes(&self) -> usize {
        let dense = PER_PAGE as usize * size_of::<u64>();
        let pages = self.pages.values().map(|page| match &page.content.words {
            Words::Dense(_) => dense + page.content.moved.capacity() * 16,
            Words::Sparse(words) => (words.capacity() + page.content.moved.capacity()) * 16,
        });
        pages.sum::<usize>() + self.pages.len() * 128
    }

    fn page(&self, number: u64) -> Option<&Content> {
        self.pages.get(&number).map(|page| &page.content)
    }

    fn page_mut(&mut self, number: u64) -> Option<&mut Page> {
        self.pages.get_mut(&number).map(|page| &mut **page)
    }

    /// A page, to change it.
    fn touched(&mut self, pager: &mut Pager, number: u64) -> Option<&mut Content> {
        let page = self.page_mut(number)?;
        pager.touch(&mut page.mark, name(number), |out| page.content.encode(out));
        Some(&mut page.content)
    }

    /// What is known of a message.
    pub fn state(&self, seq: Seq) -> State {
        let (number, index) = split(seq);
        self.page(number).map_or(State::Unknown, |page| page.state(index))
    }

    fn word(&self, seq: Seq) -> u64 {
        let (number, index) = split(seq);
        self.page(number).map_or(0, |page| page.word(index))
    }

    /// Whether an entry that says `due` counts: the message is pending and due then,
    /// and neither held nor claimed.
    #[inline]
    pub fn is_due_at(&self, seq: Seq, due: UnixMs) -> bool {
        self.word(seq) & (TAG | HELD | CLAIMED | VALUE) == PENDING | due.0
    }

    /// Whether the message is pending and due at `due`, held or not.
    #[inline]
    pub fn is_at(&self, seq: Seq, due: UnixMs) -> bool {
        self.word(seq) & (TAG | VALUE) == PENDING | due.0
    }

    /// Whether the message is pending, whenever it is due.
    #[inline]
    pub fn is_pending(&self, seq: Seq) -> bool {
        self.word(seq) & TAG == PENDING
    }

    /// Takes a message out to be fired, so that nothing else takes it too. What is
    /// applied next says what became of it.
    pub fn claim(&mut self, seq: Seq) {
        let (number, index) = split(seq);
        if let Some(page) = self.page_mut(number) {
            let word = page.content.word(index);
            page.content.set(index, word | CLAIMED);
        }
    }

    /// Gives the next number to a message.
    ///
    /// # Panics
    /// If `seq` is not [`Times::next`].
    pub fn add(&mut self, pager: &mut Pager, seq: Seq, due: UnixMs, held: bool) {
        assert_eq!(seq, self.next, "numbers of scheduled messages are dense");
        let (number, index) = split(seq);
        self.pages
            .entry(number)
            .or_insert_with(|| Box::new(Page { mark: Mark::default(), content: Content::new() }));
        let page = self.touched(pager, number).expect("it was just made");
        page.set(index, PENDING | if held { HELD } else { 0 } | due.0.min(MAX_DUE.0));
        page.pending += 1;
        self.pending += 1;
        self.next += 1;
        if self.next.is_multiple_of(PER_PAGE) {
            self.judge(pager, number);
        }
    }

    /// Moves a pending message to another time. Says when it was due before.
    pub fn reschedule(&mut self, pager: &mut Pager, seq: Seq, due: UnixMs) -> Option<UnixMs> {
        let (number, index) = split(seq);
        let State::Pending { due: before, origin, held } = self.state(seq) else { return None };
        let page = self.touched(pager, number)?;
        let due = due.min(MAX_DUE);
        let moved = page.moved.binary_search_by_key(&index, |(at, _)| *at);
        match (moved, due == origin) {
            (Ok(at), true) => drop(page.moved.remove(at)),
            (Err(at), false) => page.moved.insert(at, (index, origin.0)),
            _ => {}
        }
        let flags = if held { HELD } else { 0 } | if due == origin { 0 } else { MOVED };
        page.set(index, PENDING | flags | due.0);
        Some(before)
    }

    /// Lets a message that was held wait for its time alone.
    pub fn release(&mut self, pager: &mut Pager, seq: Seq) {
        let (number, index) = split(seq);
        if self.is_pending(seq)
            && let Some(page) = self.touched(pager, number)
        {
            page.set(index, page.word(index) & !HELD);
        }
    }

    /// Notes that a pending message was put at a position, or (`None`) called back.
    /// Says when it was due.
    pub fn end(&mut self, pager: &mut Pager, seq: Seq, fired: Option<Position>) -> Option<UnixMs> {
        let (number, index) = split(seq);
        let word = self.word(seq);
        if word & TAG != PENDING {
            return None;
        }
        let page = self.touched(pager, number)?;
        if word & MOVED != 0
            && let Ok(at) = page.moved.binary_search_by_key(&index, |(at, _)| *at)
        {
            page.moved.remove(at);
        }
        page.set(index, fired.map_or(CANCELLED, |position| FIRED | position));
        page.pending -= 1;
        self.pending -= 1;
        self.judge(pager, number);
        Some(UnixMs(word & VALUE))
    }

    /// Keeps thin pages in bounds. A page is judged when it has given all of its
    /// numbers.
    fn judge(&mut self, pager: &mut Pager, number: u64) {
        let is_full = (number + 1) * PER_PAGE <= self.next;
        let Some(page) = self.page(number).filter(|_| is_full) else { return };
        if !page.is_dense() {
            if page.pending == 0 {
                self.remove(pager, number);
            }
            return;
        }
        if page.pending >= THIN {
            return;
        }
        self.thin.insert(number);
        if self.thin.len() <= KEPT_PAGES {
            return;
        }
        let Some(oldest) = self.thin.pop_first() else { return };
        let Some(page) = self.touched(pager, oldest) else { return };
        if page.pending == 0 {
            self.remove(pager, oldest);
        } else {
            page.slim();
        }
    }

    fn remove(&mut self, pager: &mut Pager, number: u64) {
        self.touched(pager, number);
        self.pages.remove(&number);
    }

    /// How many messages with numbers in `range` are pending.
    pub fn pending_in(&self, range: Range<Seq>) -> u64 {
        self.pages_of(range.clone())
            .map(|(number, content)| {
                let first = number * PER_PAGE;
                if range.start <= first && first + PER_PAGE <= range.end {
                    u64::from(content.pending)
                } else {
                    content.pending(number).filter(|seq| range.contains(seq)).count() as u64
                }
            })
            .sum()
    }

    /// Messages with numbers in `range` that are pending, in order.
    pub fn list_pending(&self, range: Range<Seq>) -> impl Iterator<Item = Seq> + '_ {
        self.pages_of(range.clone())
            .flat_map(|(number, content)| content.pending(number))
            .filter(move |seq| range.contains(seq))
    }

    fn pages_of(&self, range: Range<Seq>) -> impl Iterator<Item = (u64, &Content)> + '_ {
        let (first, end) = (range.start / PER_PAGE, range.end.div_ceil(PER_PAGE));
        let pages = self.pages.range(first..end.max(first));
        pages.map(|(number, page)| (*number, &page.content))
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        for (number, page) in &mut self.pages {
            let Page { mark, content } = &mut **page;
            pager.touch(mark, name(*number), |out| content.encode(out));
        }
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        match self.page_mut(id.number) {
            Some(Page { mark, content }) => {
                pager.capture_waiting(id, Some(mark), |out| content.encode(out));
            }
            None => pager.capture_waiting(id, None, |_| ()),
        }
    }

    /// Puts a page back that a snapshot holds.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no such page.
    pub fn restore(&mut self, number: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let content = Content::decode(bytes)?;
        if number > MAX_POSITION / PER_PAGE || self.pages.contains_key(&number) {
            return Err(Malformed { at: 0 });
        }
        self.pending += u64::from(content.pending);
        self.pages.insert(number, Box::new(Page { mark: Mark::default(), content }));
        Ok(())
    }

    /// All pages are back: goes on with number `next`.
    pub fn resume(&mut self, next: Seq) {
        self.next = next;
        for (number, page) in &self.pages {
            let is_thin = page.content.is_dense() && page.content.pending < THIN;
            if is_thin && (number + 1) * PER_PAGE <= next {
                self.thin.insert(*number);
            }
        }
    }

    /// Calls `each` with the bytes of every page.
    pub fn pages(&self, mut each: impl FnMut(PageId, &[u8])) {
        let mut bytes = Vec::new();
        for (number, page) in &self.pages {
            bytes.clear();
            page.content.encode(&mut bytes);
            if !bytes.is_empty() {
                each(name(*number), &bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Add(u64, bool),
        Reschedule(u64, u64),
        End(u64, bool),
        Release(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..1000, prop::bool::weighted(0.1)).prop_map(|(due, held)| Op::Add(due, held)),
            2 => (any::<u64>(), 0u64..1000).prop_map(|(nth, due)| Op::Reschedule(nth, due)),
            3 => (any::<u64>(), any::<bool>()).prop_map(|(nth, fired)| Op::End(nth, fired)),
            1 => any::<u64>().prop_map(Op::Release),
        ]
    }

    fn restored(times: &Times) -> Times {
        let mut back = Times::default();
        times.pages(|id, bytes| back.restore(id.number, bytes).unwrap());
        back.resume(times.next());
        back
    }

    fn all_pages(times: &Times) -> Vec<(PageId, Vec<u8>)> {
        let mut all = Vec::new();
        times.pages(|id, bytes| all.push((id, bytes.to_vec())));
        all
    }

    proptest! {
        // The table against a map, and what its pages give back.
        #[test]
        fn the_table_says_what_a_map_says(
            start in 0u64..3,
            ops in prop::collection::vec(op(), 1..300),
        ) {
            let (mut times, mut pager) = (Times::default(), Pager::default());
            // Not far from the end of a page.
            let start = start * PER_PAGE + PER_PAGE - 20;
            times.resume(start);
            let mut model: BTreeMap<Seq, State> = BTreeMap::new();
            for op in ops {
                let given = times.next() - start;
                match op {
                    Op::Add(due, held) => {
                        let (seq, due) = (times.next(), UnixMs(due));
                        times.add(&mut pager, seq, due, held);
                        model.insert(seq, State::Pending { due, origin: due, held });
                    }
                    Op::Reschedule(nth, due) if given > 0 => {
                        let seq = start + nth % given;
                        let before = times.reschedule(&mut pager, seq, UnixMs(due));
                        if let Some(State::Pending { due: at, .. }) = model.get_mut(&seq) {
                            prop_assert_eq!(before, Some(*at));
                            *at = UnixMs(due);
                        } else {
                            prop_assert_eq!(before, None);
                        }
                    }
                    Op::End(nth, fired) if given > 0 => {
                        let seq = start + nth % given;
                        let before = times.end(&mut pager, seq, fired.then_some(seq));
                        let known = model.get_mut(&seq).unwrap();
                        match *known {
                            State::Pending { due, .. } => {
                                prop_assert_eq!(before, Some(due));
                                let ended = State::Fired(seq);
                                *known = if fired { ended } else { State::Cancelled };
                            }
                            _ => prop_assert_eq!(before, None),
                        }
                    }
                    Op::Release(nth) if given > 0 => {
                        let seq = start + nth % given;
                        times.release(&mut pager, seq);
                        if let Some(State::Pending { held, .. }) = model.get_mut(&seq) {
                            *held = false;
                        }
                    }
                    _ => {}
                }
            }
            let back = restored(&times);
            for (seq, state) in &model {
                prop_assert_eq!(times.state(*seq), *state);
                prop_assert_eq!(back.state(*seq), *state);
            }
            let pending = model.values().filter(|s| matches!(s, State::Pending { .. })).count();
            prop_assert_eq!(times.pending(), pending as u64);
            prop_assert_eq!(back.pending(), pending as u64);
            prop_assert_eq!(all_pages(&back), all_pages(&times));
            let list = |times: &Times| times.list_pending(0..u64::MAX / 2).collect::<Vec<_>>();
            let wanted = model.iter().filter(|(_, state)| matches!(state, State::Pending { .. }));
            let wanted: Vec<Seq> = wanted.map(|(seq, _)| *seq).collect();
            prop_assert_eq!(&list(&times), &wanted);
            prop_assert_eq!(&list(&back), &wanted);
            let some = start + 3..start + 40;
            let in_some = wanted.iter().filter(|seq| some.contains(seq)).count();
            prop_assert_eq!(times.pending_in(some), in_some as u64);
        }
    }

    #[test]
    fn thin_pages_are_slimmed_when_too_many_have_gathered() {
        let (mut times, mut pager) = (Times::default(), Pager::default());
        let pages = KEPT_PAGES as u64 + 3;
        for seq in 0..pages * PER_PAGE {
            times.add(&mut pager, seq, UnixMs(7), false);
            // The first of each page stays; in the second page none does.
            if !seq.is_multiple_of(PER_PAGE) || seq == PER_PAGE {
                times.end(&mut pager, seq, Some(seq));
            }
        }
        let pending = State::Pending { due: UnixMs(7), origin: UnixMs(7), held: false };
        assert_eq!(times.state(0), pending);
        assert_eq!(times.state(1), State::Unknown, "the oldest keeps its pending ones only");
        assert_eq!(times.state(PER_PAGE), State::Unknown, "and goes if there are none");
        assert_eq!(times.state(3 * PER_PAGE + 1), State::Fired(3 * PER_PAGE + 1));
        assert_eq!(times.pending(), pages - 1);
        assert_eq!(all_pages(&restored(&times)), all_pages(&times));
        times.end(&mut pager, 0, None);
        assert!(!times.pages.contains_key(&0), "a page without anything is gone");
    }

    #[test]
    fn an_entry_counts_only_if_the_table_agrees() {
        let (mut times, mut pager) = (Times::default(), Pager::default());
        times.add(&mut pager, 0, UnixMs(10), false);
        times.add(&mut pager, 1, UnixMs(10), true);
        assert!(times.is_due_at(0, UnixMs(10)) && !times.is_due_at(0, UnixMs(11)));
        assert!(!times.is_due_at(1, UnixMs(10)), "held");
        times.release(&mut pager, 1);
        assert!(times.is_due_at(1, UnixMs(10)));
        times.claim(1);
        assert!(!times.is_due_at(1, UnixMs(10)) && times.is_pending(1));
        times.reschedule(&mut pager, 0, UnixMs(20));
        assert!(!times.is_due_at(0, UnixMs(10)) && times.is_due_at(0, UnixMs(20)));
        assert!(!times.is_due_at(9, UnixMs(0)), "a number that was not given");
    }

    #[test]
    fn bytes_that_are_no_page_are_refused() {
        let (mut times, mut pager) = (Times::default(), Pager::default());
        (0..9).for_each(|seq| times.add(&mut pager, seq, UnixMs(50 + seq), seq == 3));
        times.end(&mut pager, 2, Some(77));
        times.end(&mut pager, 4, None);
        times.reschedule(&mut pager, 5, UnixMs(3));
        let (_, bytes) = all_pages(&times).remove(0);
        for end in 0..bytes.len() {
            assert!(Times::default().restore(0, &bytes[..end]).is_err(), "cut at {end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Times::default().restore(0, &longer).is_err());
    }
}
