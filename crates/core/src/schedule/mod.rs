//! The schedule: messages that are not due yet.
//!
//! ```text
//!   publish ──> young (memory) ──snapshot──> runs (chunks, sorted by time, with bodies)
//!                  │                            │
//!                  └───────── lanes ────────────┘   a merge of all, in order
//!                               │
//!       times: is it so still? ─┴─> fire
//! ```
//! An *entry* says that a message is due at a time. [`Times`] says what is true; an entry
//! that does not agree is passed over. So nothing is ever looked for or taken out: to
//! cancel is to change a word, to reschedule is to change it and add an entry.
//!
//! A message that comes with a body has one entry with it. Where it was moved, a second
//! entry stands at the new time and says when it was due at first: there the body is.
//!
//! If more is due than can be fired, what is late goes a lane of its own, so that what is
//! due now does not stand behind it.

pub mod entry;
mod hours;
mod lane;
mod names;
pub mod run;
mod times;
pub mod young;

use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use crate::chunk::{ChunkId, Chunks, Miss, SealedChunk};
use crate::page::Pager;
use crate::words::{Now, PartitionId, Seq, UnixMs};

pub use entry::{Body, Extra, Item, Key, Young};
pub use hours::{HOUR_MS, Hours};
pub use names::{Named, Names};
pub use run::Run;
pub use times::{MAX_DUE, State, Times};
pub use young::Sorted;

use lane::Lane;
use young::YoungOnes;

/// Entries are taken out so long before they are due, to have their bodies at hand.
const AHEAD_MS: u64 = 1_000;

/// What is later than this is late, and goes another lane than what is due now.
pub const LATE_MS: u64 = 10;

/// Lanes are looked at anew so long after they were parted at the earliest; while something
/// goes the lane of what is late, ten times as long. It costs what waits in their queues.
const APART_MS: u64 = 100;

/// How much is kept at hand, and put together. A test makes all of it small.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// So many entries that came last are sorted at a time: long enough for sorted runs
    /// to be few, short enough for nobody to wait.
    pub sorted: usize,
    /// Entries that wait in a lane for their time.
    pub queue: usize,
    /// Entries that came last and are due soon.
    pub soon: usize,
    /// So many neighbouring runs are put together,
    pub merged_runs: usize,
    /// if all of them have at most so many bytes.
    pub merged_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sorted: 1 << 14,
            queue: 8_192,
            soon: 1 << 18,
            merged_runs: 8,
            merged_bytes: 64 << 20,
        }
    }
}

/// An item in the order of its key, least first.
#[derive(Debug)]
struct Soon(Item);

impl Ord for Soon {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.key().cmp(&self.0.key())
    }
}

impl PartialOrd for Soon {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Soon {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Soon {}

/// Which way a message came to be fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// With what is due now.
    OnTime,
    /// With what is late.
    Late,
}

/// What [`Schedule::next`] has.
#[derive(Debug)]
pub enum Next {
    /// A message that is due, with its body in the log or at hand. It is claimed.
    Item(Item),
    /// Nothing is due.
    Nothing,
    /// A block is needed first.
    Wait(Miss),
}

/// What a snapshot needs to know of the schedule.
#[derive(Debug, Default)]
pub struct Freeze {
    /// Everything that is pending is due then or later.
    pub from: UnixMs,
    /// Runs in use.
    pub runs: Vec<ChunkId>,
    /// Entries that shall become a run.
    pub frozen: Vec<Arc<Sorted>>,
    /// Neighbouring runs to be put together, oldest first.
    pub merge: Vec<Run>,
    /// Messages in those that are pending, in order: their bodies are needed.
    pub keep: Vec<Seq>,
}

/// Scheduled messages of one shard.
#[derive(Debug)]
pub struct Schedule {
    /// When they are due.
    pub times: Times,
    /// What they are called.
    pub names: Names,
    /// How many are due when.
    pub hours: Hours,

    // Derived.
    young: YoungOnes,
    /// Runs outside memory, oldest first. Their messages have ranges of numbers of their
    /// own.
    runs: Vec<Run>,
    on_time: Lane,
    late: Option<Lane>,
    /// When what is late was last parted from what is not.
    parted_at: UnixMs,
    /// What came last and is due soon, besides where it is in `young`.
    soon: BinaryHeap<Soon>,
    /// What came last and is due by then is in `soon`.
    soon_upto: UnixMs,
    /// There was no room in `soon` for something.
    is_soon_short: bool,
    limits: Limits,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            times: Times::default(),
            names: Names::default(),
            hours: Hours::default(),
            young: YoungOnes::default(),
            runs: Vec::new(),
            on_time: Lane::new((UnixMs(0), 0), Vec::new()),
            late: None,
            parted_at: UnixMs(0),
            soon: BinaryHeap::new(),
            soon_upto: UnixMs(0),
            is_soon_short: false,
            limits: Limits::default(),
        }
    }
}

impl Schedule {
    /// Sets limits, before anything has come.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Messages that are pending.
    pub fn pending(&self) -> u64 {
        self.times.pending()
    }

    /// Bytes in memory that a snapshot will free: of entries, and of the bodies that will
    /// have to be read for it.
    pub fn young_bytes(&self) -> (usize, usize) {
        self.young.bytes()
    }

    /// Bytes that all of it takes in memory, nearly.
    pub fn bytes(&self) -> usize {
        self.times.bytes()
            + self.hours.bytes()
            + self.names.len() * Names::EACH_BYTES
            + self.young.bytes().0
            + (self.soon.len() + self.on_time.queue.len()) * size_of::<Item>()
    }

    /// Runs outside memory.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Adds an entry. The table says the same already.
    pub fn enter(&mut self, entry: Young) {
        let is_soon = entry.due <= self.soon_upto && self.soon.len() < self.limits.soon;
        if is_soon {
            self.soon.push(Soon(entry.item()));
        } else if entry.due <= self.soon_upto {
            self.is_soon_short = true;
        }
        if let Some(sorted) = self.young.add(entry, is_soon, self.limits.sorted, &self.times) {
            self.adopt(&sorted);
        }
    }

    /// Takes a sorted run of what came last into the lanes. What is due soon is in `soon`
    /// already, if there was room.
    fn adopt(&mut self, sorted: &Arc<Sorted>) {
        let is_short = std::mem::take(&mut self.is_soon_short);
        let from = if is_short { UnixMs(0) } else { self.soon_upto.plus(1) };
        self.on_time.add_young(sorted, (from, 0));
        if let Some(late) = &mut self.late {
            late.add_young(sorted, late.at());
        }
    }

    /// When something is to be done next, if nothing else happens.
    pub fn deadline(&mut self) -> Option<UnixMs> {
        let early = |key: Key| UnixMs(key.0.0.saturating_sub(AHEAD_MS));
        let late = self.late.as_mut().and_then(|late| {
            late.queue.front().map(Item::key).or_else(|| late.head()).map(|key| key.0)
        });
        let queued = self.on_time.queue.front().map(|item| item.due);
        let head = match self.on_time.head() {
            // A block that it needs is on its way, or the queue is full.
            Some(key) if key.0 <= self.soon_upto => queued.is_none().then_some(key.0),
            Some(key) => Some(early(key)),
            None => None,
        };
        let soon = self.soon.peek().map(|soon| soon.0.due);
        let least = self.young.least().filter(|least| *least > self.soon_upto);
        let least = least.map(|least| UnixMs(least.0.saturating_sub(AHEAD_MS / 2)));
        [late, queued, head, soon, least].into_iter().flatten().min()
    }

    /// How long the message that waits longest is late, in milliseconds.
    pub fn overdue_ms(&self, now: UnixMs) -> u64 {
        let late = self.late.as_ref().and_then(|late| late.queue.front());
        let first = late.or(self.on_time.queue.front()).map(Item::key);
        let soon = self.soon.peek().map(|soon| soon.0.key());
        first.into_iter().chain(soon).min().map_or(0, |key| now.since(key.0))
    }

    /// Makes ready what is due soon, and opens or closes the lane of what is late. To be
    /// called before [`Schedule::next`], once a turn.
    pub fn prepare(&mut self, chunks: &impl Chunks, now: UnixMs, ahead: &mut Vec<Miss>) {
        if now.plus(AHEAD_MS / 2) >= self.soon_upto {
            let before = self.soon_upto;
            self.soon_upto = now.plus(AHEAD_MS);
            if self.young.least().is_some_and(|least| least <= self.soon_upto) {
                self.bring_soon(before);
            }
        }
        if self.is_soon_short
            && let Some(sorted) = self.young.sort_now(&self.times)
        {
            self.adopt(&sorted);
        }
        let queued = self.on_time.queue.front().map(Item::key).or_else(|| self.on_time.head());
        let soon = self.soon.peek().map(|soon| soon.0.key());
        let apart = if self.is_split() { 10 * APART_MS } else { APART_MS };
        // The clock may have been set back.
        let may_part = now < self.parted_at || now.since(self.parted_at) >= apart;
        if may_part && queued.into_iter().chain(soon).any(|key| now.since(key.0) > LATE_MS) {
            self.parted_at = now;
            self.split(now);
        }
        if let Some(late) = &mut self.late {
            let first = late.queue.front().map(Item::key).or_else(|| late.head());
            if first.is_none_or(|key| key >= self.on_time.began()) {
                self.late = None;
            }
        }
        let at_hand = AtHand { young: &self.young, runs: &self.runs, chunks };
        let (times, queue) = (&self.times, self.limits.queue);
        at_hand.fill(&mut self.on_time, queue, times, self.soon_upto, ahead);
        if let Some(late) = &mut self.late {
            at_hand.fill(late, queue, times, now, ahead);
        }
    }

    /// Takes up what came last and was not due soon before.
    fn bring_soon(&mut self, before: UnixMs) {
        for entry in self.young.active() {
            if entry.due > before
                && entry.due <= self.soon_upto
                && self.times.is_due_at(entry.seq, entry.due)
            {
                if self.soon.len() >= self.limits.soon {
                    self.is_soon_short = true;
                    return;
                }
                self.soon.push(Soon(entry.item()));
            }
        }
        // What is in `soon` needs no other alarm; what comes after it does.
        self.young.passed(self.soon_upto);
    }

    /// What is late goes on alone, from the first on; a new lane begins with what is due
    /// now.
    fn split(&mut self, now: UnixMs) {
        let from = UnixMs(now.0.saturating_sub(LATE_MS));
        let first = self.first_pending(now);
        self.young.sort_now(&self.times);
        self.is_soon_short = false;
        self.soon.retain(|soon| soon.0.due >= from);
        self.late = Some(self.lane((first, 0), Vec::new()));
        self.on_time = self.lane((from, 0), Vec::new());
    }

    /// A lane over everything but what came last.
    fn lane(&self, from: Key, only: Vec<PartitionId>) -> Lane {
        let mut lane = Lane::new(from, only);
        self.young.runs().for_each(|run| lane.add_young(run, from));
        self.runs.iter().for_each(|run| lane.add_run(run));
        lane
    }

    /// Whether something is late, and goes its own lane.
    pub fn is_split(&self) -> bool {
        self.late.is_some()
    }

    /// Takes out the next message that is due.
    pub fn next(
        &mut self,
        way: Way,
        chunks: &impl Chunks,
        now: UnixMs,
        ahead: &mut Vec<Miss>,
    ) -> Next {
        loop {
            let upto = self.soon_upto;
            let (lane, upto) = match (way, &mut self.late) {
                (Way::OnTime, _) => (&mut self.on_time, upto),
                (Way::Late, Some(late)) => (late, now),
                (Way::Late, None) => return Next::Nothing,
            };
            let at_hand = AtHand { young: &self.young, runs: &self.runs, chunks };
            let mut missing = None;
            if lane.queue.is_empty() || lane.is_behind() {
                missing = at_hand.fill(lane, self.limits.queue, &self.times, upto, ahead);
            }
            let queued = lane.queue.front().map(Item::key);
            // What is missing may come before what the queue has.
            let missing = missing.and_then(|miss| Some((lane.head()?, miss)));
            let soon = self.soon.peek().filter(|_| way == Way::OnTime).map(|soon| soon.0.key());
            let head = missing.map(|(key, _)| key);
            let first = [queued, soon, head].into_iter().flatten().min();
            let Some(key) = first.filter(|key| key.0 <= now) else { return Next::Nothing };
            if let Some((head, miss)) = missing
                && head == key
            {
                return Next::Wait(miss);
            }
            let is_soon = soon == Some(key);
            if self.times.is_due_at(key.1, key.0) {
                // Its body, before it is taken out: a miss leaves everything as it is.
                let mut item = match is_soon {
                    true => self.soon.peek().map(|soon| soon.0.clone()),
                    false => lane.queue.front().cloned(),
                }
                .expect("the key is that of an item");
                if let Err(miss) = self.at_hand(chunks).resolve(&mut item) {
                    return Next::Wait(miss);
                }
                self.drop_first(way, is_soon);
                self.times.claim(item.seq);
                return Next::Item(item);
            }
            self.drop_first(way, is_soon);
        }
    }

    fn drop_first(&mut self, way: Way, is_soon: bool) {
        match (way, &mut self.late) {
            _ if is_soon => drop(self.soon.pop()),
            (Way::Late, Some(late)) => drop(late.queue.pop_front()),
            _ => drop(self.on_time.queue.pop_front()),
        }
    }

    fn at_hand<'a, C>(&'a self, chunks: &'a C) -> AtHand<'a, C> {
        AtHand { young: &self.young, runs: &self.runs, chunks }
    }

    // ---- looking

    /// Calls `each` for pending messages of some partitions (all, if none is named), in
    /// order, from `from` on, until it says that it has enough. At most `looked` entries
    /// are looked at. Returns where to go on, if there may be more.
    ///
    /// # Errors
    /// A [`Miss`] for a block that is needed; ask again.
    pub fn look(
        &self,
        from: Key,
        only: Vec<PartitionId>,
        mut looked: usize,
        chunks: &impl Chunks,
        mut each: impl FnMut(Item) -> bool,
    ) -> Result<Option<Key>, Miss> {
        let mut lane = self.lane(from, only);
        let active = Sorted::of(self.young.active().to_vec());
        lane.add_young(&Arc::new(active), from);
        let mut ahead = Vec::new();
        while let Some(mut item) = lane.take(chunks, MAX_DUE, &mut ahead)? {
            if self.times.is_at(item.seq, item.due) {
                self.at_hand(chunks).resolve(&mut item)?;
                if each(item) {
                    return Ok(Some(lane.at()));
                }
            }
            looked = looked.saturating_sub(1);
            if looked == 0 {
                return Ok(Some(lane.at()));
            }
        }
        Ok(None)
    }

    /// A pending message, with its body.
    ///
    /// # Errors
    /// A [`Miss`] for a block that is needed; ask again.
    pub fn find(
        &self,
        seq: Seq,
        partition: PartitionId,
        chunks: &impl Chunks,
    ) -> Result<Option<Item>, Miss> {
        let State::Pending { due, origin, .. } = self.times.state(seq) else { return Ok(None) };
        let body = Body::Elsewhere;
        let mut item = Item { due, seq, partition, origin, extra: None, body };
        self.at_hand(chunks).resolve(&mut item)?;
        Ok(Some(item))
    }

    // ---- snapshots

    /// Freezes what is in memory, and says what a snapshot needs to know.
    pub fn freeze(&mut self, now: Now) -> Freeze {
        let (last, frozen) = self.young.freeze(&self.times);
        if let Some(last) = last {
            self.adopt(&last);
        }
        let from = match posthouse_frame::planted("schedule-resumes-late") {
            true => now.wall.plus(50),
            false => self.first_pending(now.wall),
        };
        self.forget_runs(from);
        let merge = self.mergeable();
        let keep = merge.iter().flat_map(|run| self.times.list_pending(run.seqs())).collect();
        let runs = self.runs.iter().map(Run::id).collect();
        Freeze { from, runs, frozen, merge, keep }
    }

    /// Everything that is pending is due then or later.
    fn first_pending(&mut self, now: UnixMs) -> UnixMs {
        let queued = |lane: &mut Lane| {
            lane.queue.front().map(Item::key).or_else(|| lane.head()).map(|key| key.0)
        };
        let late = self.late.as_mut().and_then(queued);
        let on_time = queued(&mut self.on_time);
        let soon = self.soon.peek().map(|soon| soon.0.due);
        let least = self.young.least();
        [late, on_time, soon, least].into_iter().flatten().fold(now, UnixMs::min)
    }

    /// Takes out runs of which nothing is left.
    fn forget_runs(&mut self, from: UnixMs) {
        let times = &self.times;
        let is_gone = |run: &mut Run| {
            // Where a message was moved to counts until its time is over.
            (run.moved() == 0 || run.last().0 < from) && times.pending_in(run.seqs()) == 0
        };
        let gone: Vec<ChunkId> = self.runs.extract_if(.., is_gone).map(|run| run.id()).collect();
        self.remove_runs(&gone);
    }

    fn remove_runs(&mut self, gone: &[ChunkId]) {
        if gone.is_empty() {
            return;
        }
        for lane in std::iter::once(&mut self.on_time).chain(&mut self.late) {
            lane.remove_runs(gone);
        }
        self.unsettle(
            |body| matches!(body, Body::Block { miss, .. } if gone.contains(&miss.chunk)),
        );
    }

    /// Runs to be put together: the longest row of neighbours that are small; else one
    /// that is mostly dead.
    fn mergeable(&self) -> Vec<Run> {
        let mut best: Range<usize> = 0..0;
        let (mut start, mut bytes) = (0, 0);
        for (at, run) in self.runs.iter().enumerate() {
            bytes += run.bytes();
            while bytes > self.limits.merged_bytes {
                bytes -= self.runs[start].bytes();
                start += 1;
            }
            if (start..at + 1).len() > best.len() {
                best = start..at + 1;
            }
        }
        if best.len() >= self.limits.merged_runs {
            return self.runs[best].to_vec();
        }
        let is_dead = |run: &&Run| {
            let bodies = run.entries() - run.moved();
            run.bytes() <= 2 * self.limits.merged_bytes
                && self.times.pending_in(run.seqs()) * 2 < bodies
        };
        self.runs.iter().find(is_dead).cloned().into_iter().collect()
    }

    /// A snapshot has been taken behind frame `frame`: what was frozen is in `made`, and
    /// `merged` (which may be nothing) stands for the runs that were put together.
    pub fn install(
        &mut self,
        frame: posthouse_frame::FrameNo,
        made: Option<&SealedChunk>,
        merged: Option<(&[ChunkId], Option<&SealedChunk>)>,
    ) {
        let decode = |chunk: &SealedChunk| {
            Run::decode(chunk.directory.clone()).expect("a run that was just made can be read")
        };
        if let Some((inputs, output)) = merged {
            let at = self.runs.iter().position(|run| Some(&run.id()) == inputs.first());
            self.runs.retain(|run| !inputs.contains(&run.id()));
            self.remove_runs(inputs);
            if let (Some(at), Some(output)) = (at, output) {
                self.add_run(at, decode(output));
            }
        }
        let gone = self.young.forget_frozen();
        for lane in std::iter::once(&mut self.on_time).chain(&mut self.late) {
            lane.remove_young(&gone);
        }
        // The log need not keep their bodies any longer.
        self.unsettle(|body| matches!(body, Body::Log(body) if body.frame <= frame));
        if let Some(made) = made.filter(|_| !posthouse_frame::planted("run-not-installed")) {
            self.add_run(self.runs.len(), decode(made));
        }
    }

    fn add_run(&mut self, at: usize, run: Run) {
        for lane in std::iter::once(&mut self.on_time).chain(&mut self.late) {
            lane.add_run(&run);
        }
        self.runs.insert(at, run);
    }

    /// Bodies of items that wait will have to be looked for.
    fn unsettle(&mut self, is_gone: impl Fn(&Body) -> bool) {
        let lanes = std::iter::once(&mut self.on_time).chain(&mut self.late);
        for item in lanes.flat_map(|lane| &mut lane.queue) {
            if is_gone(&item.body) {
                item.body = Body::Elsewhere;
            }
        }
        let mut soon = std::mem::take(&mut self.soon).into_vec();
        for Soon(item) in &mut soon {
            if is_gone(&item.body) {
                item.body = Body::Elsewhere;
            }
        }
        self.soon = soon.into();
    }

    /// Puts a run back that a snapshot names, oldest first.
    pub fn restore_run(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// All is back: firing goes on with what is due at `from` or later.
    pub fn resume(&mut self, next: Seq, uncounted: u64) {
        self.times.resume(next);
        self.hours.resume(uncounted);
        self.names.restored();
    }

    /// Firing begins with what is due at `from` or later. Call when all runs are back.
    pub fn begin_at(&mut self, from: UnixMs) {
        self.on_time = self.lane((from, 0), Vec::new());
    }

    /// Counts every page as changed.
    pub fn touch_all(&mut self, pager: &mut Pager) {
        self.times.touch_all(pager);
        self.hours.touch_all(pager);
        self.names.touch_all(pager);
    }
}

/// Where bodies can be found.
struct AtHand<'a, C> {
    young: &'a YoungOnes,
    runs: &'a [Run],
    chunks: &'a C,
}

impl<C: Chunks> AtHand<'_, C> {
    /// Fills the queue of a lane with what is due by `upto`. Returns the block that it
    /// needs to go on.
    fn fill(
        &self,
        lane: &mut Lane,
        queue: usize,
        times: &Times,
        upto: UnixMs,
        ahead: &mut Vec<Miss>,
    ) -> Option<Miss> {
        while lane.queue.len() < queue || lane.is_behind() {
            match lane.take(self.chunks, upto, ahead) {
                Ok(Some(mut item)) if times.is_pending(item.seq) => {
                    if let Err(miss) = self.resolve(&mut item) {
                        ahead.push(miss);
                    }
                    let at = match lane.queue.back() {
                        Some(last) if last.key() > item.key() => {
                            lane.queue.partition_point(|queued| queued.key() < item.key())
                        }
                        _ => lane.queue.len(),
                    };
                    lane.queue.insert(at, item);
                }
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(miss) => {
                    ahead.push(miss);
                    return Some(miss);
                }
            }
        }
        None
    }

    /// Finds the body of an item.
    fn resolve(&self, item: &mut Item) -> Result<(), Miss> {
        loop {
            match &item.body {
                Body::Log(_) | Body::Sealed(_) => return Ok(()),
                Body::Block { miss, at, len } => {
                    let data = self.chunks.block(miss.chunk, miss.block).ok_or(*miss)?;
                    item.body = Body::Sealed(data.slice(*at as usize..(*at + *len) as usize));
                }
                Body::Elsewhere => {
                    let found = self.locate((item.origin, item.seq))?;
                    (item.body, item.extra) = (found.body, found.extra);
                }
            }
        }
    }

    /// The entry with the body of a message that was due at `key` at first.
    fn locate(&self, key: Key) -> Result<Item, Miss> {
        if let Some(entry) = self.young.find(key) {
            return Ok(entry.item());
        }
        if let Some(run) = self.runs.iter().find(|run| run.seqs().contains(&key.1)) {
            let index = run.seek(key);
            if let Some(miss) = run.miss(index) {
                let data = self.chunks.block(miss.chunk, miss.block).ok_or(miss)?;
                let mut items = run.open(index, data);
                let found = items.find(|item| item.key() == key && item.body != Body::Elsewhere);
                if let Some(item) = found {
                    return Ok(item);
                }
            }
        }
        // Every pending message has one entry with its body until it is fired: going on
        // would lose it without a word.
        panic!("the body of scheduled message {} (first due at {}) is nowhere", key.1, key.0.0)
    }
}
