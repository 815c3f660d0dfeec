//! How much of the log is still needed: live bytes of bodies, by span of frames.
//!
//! A span is a stretch of neighbouring frames of at least [`SPAN_BYTES`]. The log
//! frees segments; a segment can go when no span that touches it holds a live byte
//! (and replay has no need of its frames). Where spans begin depends only on the
//! sizes of frames, so replay makes the same ones.

use std::collections::VecDeque;

use posthouse_frame::FrameNo;
use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{Mark, PageId, Pager, TableId};
use crate::record::Freed;

/// A new span begins when the last one has as many bytes of frames.
pub const SPAN_BYTES: u64 = 4 << 20;

const PER_PAGE: u64 = 256;

/// A stretch of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first frame.
    pub first: FrameNo,
    /// Bytes of its frames, whole.
    pub bytes: u64,
    /// Bytes of sealed bodies in it that are still needed.
    pub live: u64,
}

#[derive(Debug, Default)]
struct Page {
    mark: Mark,
    spans: Vec<Span>,
}

/// All spans, oldest first; those at the beginning with nothing live are forgotten,
/// a page at a time.
#[derive(Debug, Default)]
pub struct Spans {
    /// The number of the first page.
    first_page: u64,
    pages: VecDeque<Page>,
    /// Live bytes of all of them.
    live: u64,
}

impl Spans {
    fn touch(pager: &mut Pager, page: &mut Page, number: u64) {
        let Page { mark, spans } = page;
        let id = PageId::of(TableId::Spans, number);
        pager.touch(mark, id, |out| encode(spans, out));
    }

    fn last(&self) -> Option<&Span> {
        self.pages.back()?.spans.last()
    }

    /// Frame `frame` is complete, with `bytes`.
    pub fn sealed(&mut self, pager: &mut Pager, frame: FrameNo, bytes: u64) {
        self.open(pager, frame);
        let number = self.first_page + self.pages.len() as u64 - 1;
        let page = self.pages.back_mut().expect("a span was just opened");
        Self::touch(pager, page, number);
        let span = page.spans.last_mut().expect("a span was just opened");
        span.bytes += bytes;
        if span.bytes >= SPAN_BYTES {
            self.push(pager, frame.next());
        }
    }

    /// Makes sure that there is a span for a frame at the tail.
    fn open(&mut self, pager: &mut Pager, frame: FrameNo) {
        if self.last().is_none() {
            self.push(pager, frame);
        }
    }

    fn push(&mut self, pager: &mut Pager, first: FrameNo) {
        if self.pages.back().is_none_or(|page| page.spans.len() as u64 == PER_PAGE) {
            self.pages.push_back(Page::default());
        }
        let number = self.first_page + self.pages.len() as u64 - 1;
        let page = self.pages.back_mut().expect("a page was just made if there was none");
        Self::touch(pager, page, number);
        page.spans.push(Span { first, bytes: 0, live: 0 });
        self.forget_dead(pager);
    }

    /// Forgets whole pages at the beginning that have nothing live.
    fn forget_dead(&mut self, pager: &mut Pager) {
        while self.pages.len() > 1 && self.pages[0].spans.iter().all(|span| span.live == 0) {
            let number = self.first_page;
            Self::touch(pager, &mut self.pages[0], number);
            self.pages.pop_front();
            self.first_page += 1;
        }
    }

    /// The page and the index in it of the span that holds `frame`.
    fn find(&self, frame: FrameNo) -> Option<(usize, usize)> {
        let page = self
            .pages
            .partition_point(|page| page.spans.first().is_some_and(|span| span.first <= frame))
            .checked_sub(1)?;
        let spans = &self.pages[page].spans;
        let at = spans.partition_point(|span| span.first <= frame).checked_sub(1)?;
        Some((page, at))
    }

    /// Bodies of `bytes` in `frame` are needed.
    pub fn add(&mut self, pager: &mut Pager, frame: FrameNo, bytes: u64) {
        self.open(pager, frame);
        if let Some((page_at, at)) = self.find(frame) {
            let page = &mut self.pages[page_at];
            Self::touch(pager, page, self.first_page + page_at as u64);
            page.spans[at].live += bytes;
            self.live += bytes;
        }
    }

    /// Bodies of `bytes` in `frame` are needed no more.
    pub fn subtract(&mut self, pager: &mut Pager, frame: FrameNo, bytes: u64) {
        if let Some((page_at, at)) = self.find(frame) {
            let page = &mut self.pages[page_at];
            Self::touch(pager, page, self.first_page + page_at as u64);
            let live = &mut page.spans[at].live;
            debug_assert!(*live >= bytes, "frame {frame} gives back {bytes} of {live}");
            let bytes = bytes.min(*live);
            *live -= bytes;
            self.live -= bytes;
        }
    }

    /// Adds up what was freed, frame by frame, to one item a span.
    pub fn join(&self, freed: &[Freed]) -> Vec<Freed> {
        let mut joined: Vec<((usize, usize), Freed)> = Vec::new();
        for item in freed {
            let Some(span) = self.find(item.frame) else { continue };
            match joined.iter_mut().rev().take(8).find(|(of, _)| *of == span) {
                Some((_, sum)) => sum.bytes += item.bytes,
                None => joined.push((span, *item)),
            }
        }
        joined.into_iter().map(|(_, item)| item).collect()
    }

    /// All spans, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.pages.iter().flat_map(|page| page.spans.iter().copied())
    }

    /// Live bytes of all spans.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The first and the last frame of the spans that have a frame in `first..=last`.
    pub fn bounds(&self, first: FrameNo, last: FrameNo) -> (FrameNo, FrameNo) {
        let starts = |at: Option<(usize, usize)>| {
            at.and_then(|(page, at)| self.pages[page].spans.get(at)).map(|span| span.first)
        };
        let start = starts(self.find(first)).unwrap_or(first);
        let next = self.find(last).and_then(|(page, at)| match self.pages[page].spans.len() {
            len if at + 1 < len => starts(Some((page, at + 1))),
            _ => self.pages.get(page + 1)?.spans.first().map(|span| span.first),
        });
        (start, next.map_or(last, FrameNo::prev))
    }

    /// Live bytes in the spans that have a frame in `first..=last`.
    pub fn live_in(&self, first: FrameNo, last: FrameNo) -> u64 {
        let start = self.find(first).unwrap_or((0, 0));
        self.pages
            .iter()
            .enumerate()
            .skip(start.0)
            .flat_map(|(page_at, page)| {
                let skip = if page_at == start.0 { start.1 } else { 0 };
                page.spans.iter().skip(skip)
            })
            .take_while(|span| span.first <= last)
            .map(|span| span.live)
            .sum()
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        for (number, page) in (self.first_page..).zip(&mut self.pages) {
            Self::touch(pager, page, number);
        }
    }

    /// Captures a page that waits for the snapshot.
    pub fn capture(&mut self, pager: &mut Pager, id: PageId) {
        let at = id.number.checked_sub(self.first_page).map(|at| at as usize);
        match at.and_then(|at| self.pages.get_mut(at)) {
            Some(Page { mark, spans }) => {
                pager.capture_waiting(id, Some(mark), |out| encode(spans, out));
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
        if self.pages.is_empty() {
            self.first_page = number;
        }
        if self.first_page + self.pages.len() as u64 != number {
            return Err(Malformed { at: 0 });
        }
        let mut c = Cursor::new(bytes);
        let mut page = Page::default();
        while !c.is_empty() {
            let at = c.position();
            let (first, bytes, live) = (FrameNo(c.varint()?), c.varint()?, c.varint()?);
            page.spans.push(Span { first, bytes, live });
            self.live = self.live.checked_add(live).ok_or(Malformed { at })?;
        }
        self.pages.push_back(page);
        Ok(())
    }
}

fn encode(spans: &[Span], out: &mut Vec<u8>) {
    for span in spans {
        varint::put(out, span.first.0);
        varint::put(out, span.bytes);
        varint::put(out, span.live);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(frames: u64, each: u64) -> (Spans, Pager) {
        let mut spans = Spans::default();
        let mut pager = Pager::default();
        for frame in 1..=frames {
            spans.add(&mut pager, FrameNo(frame), 10);
            spans.sealed(&mut pager, FrameNo(frame), each);
        }
        (spans, pager)
    }

    #[test]
    fn a_span_ends_with_the_frame_that_fills_it() {
        let (spans, _) = spans(10, SPAN_BYTES / 3);
        let firsts: Vec<u64> = spans.iter().map(|span| span.first.0).collect();
        assert_eq!(firsts, [1, 5, 9]);
        assert_eq!(spans.iter().map(|span| span.live).collect::<Vec<_>>(), [40, 40, 20]);
        assert_eq!(spans.live_in(FrameNo(4), FrameNo(4)), 40);
        assert_eq!(spans.live_in(FrameNo(4), FrameNo(5)), 80);
        assert_eq!(spans.live_in(FrameNo(1), FrameNo(100)), 100);
        assert_eq!(spans.live(), 100);
        assert_eq!(spans.bounds(FrameNo(4), FrameNo(4)), (FrameNo(1), FrameNo(4)));
        assert_eq!(spans.bounds(FrameNo(3), FrameNo(6)), (FrameNo(1), FrameNo(8)));
        assert_eq!(spans.bounds(FrameNo(9), FrameNo(10)), (FrameNo(9), FrameNo(10)));
    }

    #[test]
    fn what_is_given_back_is_live_no_more_and_dead_pages_are_forgotten() {
        let (mut spans, mut pager) = spans(1000, SPAN_BYTES);
        for frame in 1..=600 {
            spans.subtract(&mut pager, FrameNo(frame), 10);
        }
        assert_eq!(spans.live_in(FrameNo(1), FrameNo(600)), 0);
        assert_eq!(spans.live_in(FrameNo(600), FrameNo(601)), 10);
        spans.sealed(&mut pager, FrameNo(1001), SPAN_BYTES);
        assert_eq!(spans.iter().next().unwrap().first, FrameNo(513));
        assert_eq!(spans.live_in(FrameNo(5), FrameNo(600)), 0);
        assert_eq!(spans.live_in(FrameNo(5), FrameNo(602)), 20);
    }

    #[test]
    fn spans_come_back_from_their_pages() {
        let (mut spans, mut pager) = spans(1000, SPAN_BYTES);
        (1..=600).for_each(|frame| spans.subtract(&mut pager, FrameNo(frame), 10));
        spans.sealed(&mut pager, FrameNo(1001), SPAN_BYTES);
        let mut restored = Spans::default();
        for (number, page) in (spans.first_page..).zip(&spans.pages) {
            let mut bytes = Vec::new();
            encode(&page.spans, &mut bytes);
            restored.restore(number, &bytes).unwrap();
        }
        assert!(restored.iter().eq(spans.iter()));
        assert_eq!(restored.live(), spans.live());
        assert!(restored.restore(1, &[]).is_err());
    }

    #[test]
    fn more_live_bytes_than_can_be_counted_are_no_page() {
        let span = Span { first: FrameNo(1), bytes: u64::MAX, live: u64::MAX };
        let mut bytes = Vec::new();
        encode(&[span], &mut bytes);
        let first = bytes.len();
        encode(&[span], &mut bytes);
        assert_eq!(Spans::default().restore(0, &bytes[..first]), Ok(()));
        assert_eq!(Spans::default().restore(0, &bytes), Err(Malformed { at: first }));
    }
}
