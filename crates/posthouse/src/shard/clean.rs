//! Keeping the log small: when it has much that nobody needs any more, a snapshot is taken so
//! that it can go, and what is still needed between is carried to the log's tail.

use std::collections::VecDeque;

use posthouse_core::index::Moved;
use posthouse_core::queue::clean::{Candidate, Search};
use posthouse_core::{Now, ShardMs};
use posthouse_frame::FrameNo;
use posthouse_log::{Log, LogReader as _, Segment};

use super::attend::Effect;
use super::engine::Engine;
use super::metrics;
use crate::store::clean::{Cleaning, Found};

/// Beside what is needed, and half of that again, the log may have so many segments before
/// anything is done.
const SLACK: u64 = 3;

/// A segment is emptied if at most one in this many of its bytes is needed. So carrying
/// writes at most what it frees.
const SPARSE: u64 = 2;

/// After so many bytes of frames a search that found nothing may find something.
const NEWS_BYTES: u64 = 4 << 20;

/// Bodies that one search is to find: their bytes, and how many they may be.
const ROUND_BYTES: u64 = 64 << 20;
const ROUND: usize = 1 << 18;

/// Bodies that are carried together: their bytes, and how many they may be. One that is larger
/// is carried alone.
const BATCH_BYTES: u64 = 256 << 10;
const BATCH: usize = 4096;

/// Bytes of a record that one of them takes at most, nearly.
const RECORD_BYTES: u64 = 32;

/// Batches that may be under way.
const UNDER_WAY: usize = 2;

/// Places of bodies that one turn forgets.
const FORGOTTEN: usize = 2_048;

/// How long after a look at the log the next is taken.
const LOOK_MS: u64 = 1_000;

/// More places of bodies that no chunk of the index has are not kept in memory.
const CARRIED: usize = 1 << 20;

/// Where cleaning stands.
#[derive(Debug, Default)]
pub struct Cleaner {
    /// What was found, and is still to be carried.
    found: VecDeque<Candidate>,
    /// How often chunks had been made anew when it was found.
    folds: u64,
    /// Batches under way.
    under_way: usize,
    /// Whether anything was carried since the last snapshot began.
    has_carried: bool,
    /// Bodies of which a chunk says where they are, after they were carried.
    settled: Vec<Moved>,
    /// The segments that the last search was for, if it found nothing.
    fruitless: Vec<(FrameNo, FrameNo)>,
    /// Bytes that were needed when the log was looked at last,
    live: u64,
    /// whether it had much that was not,
    is_crowded: bool,
    /// and when to look again.
    look_at: ShardMs,
}

impl Cleaner {
    /// Whether nothing is to be carried, and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.found.is_empty() && self.under_way == 0
    }

    /// Takes what a search has found.
    pub fn load(&mut self, found: Vec<Candidate>, folds: u64) {
        self.folds = folds;
        self.found = found.into();
    }

    /// Bodies were carried, and a chunk says now where they are.
    pub fn settled(&mut self, moved: Vec<Moved>) {
        self.settled.extend(moved);
    }

    /// What is carried together next, for a log that takes frames of so many bytes.
    fn next_batch(&mut self, frame_bytes: usize) -> Vec<Candidate> {
        let most = BATCH_BYTES.min(frame_bytes as u64 / 16);
        let (mut bytes, mut count) = (0, 0);
        for item in self.found.iter().take(BATCH) {
            bytes += u64::from(item.body.len) + RECORD_BYTES;
            if count > 0 && bytes > most {
                break;
            }
            count += 1;
        }
        self.found.drain(..count).collect()
    }
}

/// By how much the log has more than it may have: nothing, if it is not crowded.
fn crowd(live: u64, segments: &[Segment]) -> u64 {
    let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let largest = segments.iter().map(|segment| segment.bytes).max().unwrap_or(0);
    total.saturating_sub(live + live / 2 + SLACK * largest)
}

impl<L: Log> Engine<L> {
    /// What the snapshot that begins does besides. `is_held`: files are being copied, and
    /// nothing goes.
    pub(super) fn plan_cleaning(&mut self, is_held: bool) -> Cleaning {
        let fold = self.cleaner.is_idle();
        self.cleaner.has_carried = false;
        let many = self.shard.index().carried().len() >= CARRIED;
        if !fold || is_held || many || self.is_stopping() {
            return Cleaning { fold, search: None };
        }
        if self.progress.bytes().1 >= NEWS_BYTES {
            self.cleaner.fruitless.clear();
        }
        let stretches = self.stretches(&self.reader.segments());
        if stretches.is_empty() || stretches == self.cleaner.fruitless {
            return Cleaning { fold, search: None };
        }
        let search = Search { stretches, most: ROUND, most_bytes: ROUND_BYTES };
        Cleaning { fold, search: Some(search) }
    }

    /// The stretches to be emptied so that the log gets small enough: the emptiest segments
    /// first.
    fn stretches(&self, segments: &[Segment]) -> Vec<(FrameNo, FrameNo)> {
        let shard = &self.shard;
        let over = crowd(shard.live(), segments);
        let mut sparse: Vec<(u64, &Segment)> = segments
            .iter()
            .filter(|segment| self.progress.is_behind(segment))
            .map(|segment| (shard.live_in(segment.first, segment.last), segment))
            .filter(|(live, segment)| live * SPARSE <= segment.bytes)
            .collect();
        sparse.sort_by_key(|(live, segment)| (*live, segment.no));
        let (mut freed, mut carried) = (0, 0);
        let mut stretches = Vec::new();
        for (live, segment) in sparse {
            if freed >= over || carried + live > ROUND_BYTES {
                break;
            }
            freed += segment.bytes - live;
            carried += live;
            if live > 0 {
                // What is needed is counted by spans, which begin and end elsewhere.
                stretches.push(shard.span_bounds(segment.first, segment.last));
            }
        }
        stretches.sort_unstable();
        stretches
    }

    /// A snapshot has been taken, and this was found besides.
    pub(super) fn found(&mut self, found: Option<Found>) {
        let Some(Found { search, found, is_all }) = found else { return };
        let is_fruitless = found.is_empty() && is_all;
        self.cleaner.fruitless = if is_fruitless { search.stretches } else { Vec::new() };
        self.cleaner.load(found, self.shard.index().folds());
        self.carry_on();
    }

    /// Carries more, as far as there is room on the way.
    fn carry_on(&mut self) {
        while self.cleaner.under_way < UNDER_WAY && !self.is_stopping() {
            let items = self.cleaner.next_batch(self.log.limits().max_frame_bytes);
            if items.is_empty() {
                return;
            }
            self.cleaner.under_way += 1;
            self.effects.push_back(Effect::Carry(self.cleaner.folds, items));
        }
    }

    /// Forgets a few of the places that a chunk knows.
    pub(super) fn forget_carried(&mut self) {
        let some = self.cleaner.settled.len().saturating_sub(FORGOTTEN);
        let some = self.cleaner.settled.split_off(some);
        self.shard.forget_carried(&some);
    }

    /// A batch has been carried: so many bytes of it.
    pub(super) fn carried(&mut self, bytes: u64) {
        metrics::add(&self.metrics().carried_bytes, bytes);
        self.cleaner.under_way -= 1;
        self.cleaner.has_carried |= bytes > 0;
        self.carry_on();
        if self.cleaner.is_idle() && self.cleaner.has_carried {
            // The next snapshot lets go of where it was.
            self.progress.suggest();
        }
    }

    /// Looks now and then whether a snapshot would free much, however little has come since the
    /// last. Returns when to look again.
    pub(super) fn look_for_room(&mut self, now: Now) -> Option<ShardMs> {
        if now.lease < self.cleaner.look_at {
            let is_stale = self.cleaner.is_crowded || self.shard.live() != self.cleaner.live;
            return is_stale.then_some(self.cleaner.look_at);
        }
        self.cleaner.look_at = now.lease.plus(LOOK_MS);
        let segments = self.reader.segments();
        self.cleaner.live = self.shard.live();
        self.cleaner.is_crowded = crowd(self.shard.live(), &segments) > 0;
        if !self.cleaner.is_crowded {
            return None;
        }
        let can_go = |segment: &Segment| {
            self.progress.is_behind(segment) && self.shard.live_in(segment.first, segment.last) == 0
        };
        if self.progress.is_idle() && self.cleaner.is_idle() {
            let stretches = self.stretches(&segments);
            let is_new = !stretches.is_empty() && stretches != self.cleaner.fruitless;
            if is_new || segments.iter().any(can_go) {
                self.progress.suggest();
            }
        }
        Some(self.cleaner.look_at)
    }
}
