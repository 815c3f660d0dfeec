//! Entries in memory: those that came last, and sorted runs of those before.
//!
//! With every snapshot all of them are frozen and become one run outside memory
//! (see [`super::run`]); until it is in place the frozen ones answer.

use std::ops::Range;
use std::sync::Arc;

use super::entry::{Key, Young};
use super::times::Times;
use crate::words::{Seq, UnixMs};

/// Bytes that an entry takes in memory.
const EACH_BYTES: usize = size_of::<Young>();

/// Entries in the order of their times, which never change.
#[derive(Debug)]
pub struct Sorted {
    /// The entries.
    pub entries: Vec<Young>,
    /// Numbers of those with a body: none outside, if there is any.
    seqs: Range<Seq>,
}

impl Sorted {
    /// Sorts entries.
    pub fn of(mut entries: Vec<Young>) -> Sorted {
        entries.sort_unstable_by_key(Young::key);
        Sorted { seqs: seqs(&entries), entries }
    }

    /// The index of the first entry from `key` on.
    pub fn from(&self, key: Key) -> usize {
        self.entries.partition_point(|entry| entry.key() < key)
    }

    fn find(&self, key: Key) -> Option<&Young> {
        if !self.seqs.contains(&key.1) {
            return None;
        }
        let mut entries = self.entries[self.from(key)..].iter();
        entries.by_ref().take_while(|entry| entry.key() == key).find(|entry| entry.body().is_some())
    }
}

/// The numbers of entries with a body.
pub(super) fn seqs(entries: &[Young]) -> Range<Seq> {
    let with_body = entries.iter().filter(|entry| entry.body().is_some());
    let (first, end) =
        with_body.fold((u64::MAX, 0), |(first, end), e| (first.min(e.seq), end.max(e.seq + 1)));
    first.min(end)..end
}

/// Entries in memory.
#[derive(Debug, Default)]
pub struct YoungOnes {
    active: Vec<Young>,
    /// Where in `active` the entries with a body are: in the order of their numbers, as
    /// they came.
    with_body: Vec<u32>,
    /// No entry of `active` is due earlier, but for those that were taken up.
    least: Option<UnixMs>,
    sorted: Vec<Arc<Sorted>>,
    frozen: Vec<Arc<Sorted>>,
    /// Bytes of entries and of bodies that are not frozen.
    bytes: usize,
    body_bytes: usize,
}

impl YoungOnes {
    /// Adds an entry; sorts those that came last when there are `most`. Returns the sorted
    /// run if that makes one. One that was taken up at once needs no other alarm.
    pub fn add(
        &mut self,
        entry: Young,
        is_taken_up: bool,
        most: usize,
        times: &Times,
    ) -> Option<Arc<Sorted>> {
        if !is_taken_up {
            self.least = Some(self.least.map_or(entry.due, |least| least.min(entry.due)));
        }
        self.bytes += EACH_BYTES + if entry.extra.is_some() { 96 } else { 0 };
        self.body_bytes += entry.body().map_or(0, |body| body.len as usize);
        if entry.body().is_some() {
            self.with_body.push(self.active.len() as u32);
        }
        self.active.push(entry);
        if self.active.len() >= most { self.sort(times) } else { None }
    }

    /// Sorts what came last. What is not pending any more is left out, and what was
    /// moved again.
    fn sort(&mut self, times: &Times) -> Option<Arc<Sorted>> {
        let mut entries = std::mem::take(&mut self.active);
        self.with_body.clear();
        entries.retain(|entry| match entry.body() {
            // Its time may have changed, but its body is here.
            Some(_) => times.is_pending(entry.seq),
            None => times.is_at(entry.seq, entry.due),
        });
        self.least = None;
        if entries.is_empty() {
            return None;
        }
        let sorted = Arc::new(Sorted::of(entries));
        self.sorted.push(sorted.clone());
        Some(sorted)
    }

    /// Sorts what came last before it is time.
    pub fn sort_now(&mut self, times: &Times) -> Option<Arc<Sorted>> {
        self.sort(times)
    }

    /// Bytes in memory that are not frozen: of entries, and of the bodies that will
    /// have to be read for them.
    pub fn bytes(&self) -> (usize, usize) {
        (self.bytes, self.body_bytes)
    }

    /// Whether nothing waits to be frozen.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty() && self.sorted.is_empty()
    }

    /// No entry that came last is due earlier, but for those that were taken up.
    pub fn least(&self) -> Option<UnixMs> {
        self.least
    }

    /// What is due at `upto` or earlier has been taken up: it counts no more.
    pub fn passed(&mut self, upto: UnixMs) {
        let later = self.active.iter().map(|entry| entry.due).filter(|due| *due > upto);
        self.least = later.min();
    }

    /// The entries that came last and are in no sorted run.
    pub fn active(&self) -> &[Young] {
        &self.active
    }

    /// Sorted runs, frozen or not.
    pub fn runs(&self) -> impl Iterator<Item = &Arc<Sorted>> {
        self.frozen.iter().chain(&self.sorted)
    }

    /// Freezes everything. What was frozen before and could not be kept comes again.
    /// Returns a sorted run if one was made, and all that is frozen.
    pub fn freeze(&mut self, times: &Times) -> (Option<Arc<Sorted>>, Vec<Arc<Sorted>>) {
        let last = self.sort(times);
        self.frozen.append(&mut self.sorted);
        (self.bytes, self.body_bytes) = (0, 0);
        (last, self.frozen.clone())
    }

    /// Takes away what was frozen: it is kept elsewhere.
    pub fn forget_frozen(&mut self) -> Vec<Arc<Sorted>> {
        std::mem::take(&mut self.frozen)
    }

    /// The entry with the body of a message that was due at `key` at first.
    pub fn find(&self, key: Key) -> Option<&Young> {
        let sorted = self.runs().find_map(|run| run.find(key));
        sorted.or_else(|| {
            let entry = |at: &u32| &self.active[*at as usize];
            let at = self.with_body.partition_point(|at| entry(at).seq < key.1);
            self.with_body.get(at).map(entry).filter(|entry| entry.key() == key)
        })
    }
}
