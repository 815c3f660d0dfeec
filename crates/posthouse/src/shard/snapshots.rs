//! A snapshot in steps, between the turns of a loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use posthouse_core::catalog::Catalog;
use posthouse_core::chunk::Miss;
use posthouse_core::machine::Machine;
use posthouse_core::page::Captured;
use posthouse_core::queue::Command;
use posthouse_core::{Now, ShardMs};
use posthouse_frame::FrameNo;
use posthouse_log::{Log, LogReader as _, Segment, SegmentNo};
use tokio::sync::oneshot;

use super::attend::Effect;
use super::engine::Engine;
use super::hold::Hold;
use super::mail::Mail;
use super::metrics;
use crate::store::clean::Folded;
use crate::store::snapshot::{Begin, Taken};

/// Pages captured in one turn.
const PAGES_PER_TURN: usize = 32;

/// Bytes of pages that are captured and not written yet; more are not captured then.
const PAGES_UNDER_WAY: usize = 16 << 20;

/// How long to wait before it is looked whether the disk has taken some.
const HELD_UP_MS: u64 = 5;

/// How long to wait after a snapshot that could not be taken.
const PAUSE_MS: u64 = 10_000;

/// Publishes wait when what came last has so many times the room after which a snapshot is
/// due, in the index, or in the schedule, which takes longer to write.
const FULL_INDEX: usize = 4;
const FULL_SCHEDULE: usize = 2;

/// Bytes of frames between two snapshots, however little of the log is needed.
const LOG_BYTES_LEAST: u64 = 64 << 20;

/// What a loop tells whoever writes its snapshots.
#[derive(Debug)]
pub enum SnapshotStep {
    /// A snapshot begins.
    Begin(Box<Begin>),
    /// Pages of it.
    Pages(Vec<Captured>, Load),
    /// All pages have come, and a sync has covered the frame it stands behind.
    Finish,
}

/// Bytes of pages on their way to whoever writes them; counted until this is dropped.
#[derive(Debug)]
pub struct Load {
    under_way: Arc<AtomicUsize>,
    bytes: usize,
}

impl Load {
    fn of(captured: &[Captured], under_way: &Arc<AtomicUsize>) -> Load {
        let bytes = captured.iter().map(|(_, page)| 64 + page.as_ref().map_or(0, Vec::len)).sum();
        under_way.fetch_add(bytes, Ordering::Relaxed);
        Load { under_way: under_way.clone(), bytes }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.under_way.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where a loop stands with its snapshots.
#[derive(Debug)]
pub struct Progress {
    /// The frame of the newest snapshot.
    newest: FrameNo,
    /// Bytes since it began.
    meta_bytes: u64,
    log_bytes: u64,
    state: State,
    /// Whether one is wanted whatever the figures say.
    wanted: bool,
    /// Whether the pages of one have been lost: the next holds all.
    whole: bool,
    not_before: u64,
    /// Segments to free when the snapshot in the making is there.
    free: Vec<SegmentNo>,
    /// Who copies files, so that none is freed.
    hold: Option<Arc<Hold>>,
    /// Who will, as soon as no snapshot is being taken.
    asked: Option<(Arc<Hold>, oneshot::Sender<()>)>,
    /// Bytes of pages that are captured and not written yet.
    under_way: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Pages are being captured.
    Walking(FrameNo),
    /// All have been; the frame is not durable yet.
    Walked(FrameNo),
    /// The writer is at work.
    Writing,
}

impl Progress {
    /// With a snapshot behind frame `newest`.
    pub fn new(newest: FrameNo) -> Self {
        Progress {
            newest,
            meta_bytes: 0,
            log_bytes: 0,
            state: State::Idle,
            wanted: false,
            whole: false,
            not_before: 0,
            free: Vec::new(),
            hold: None,
            asked: None,
            under_way: Arc::default(),
        }
    }

    /// Frees nothing as long as `hold` holds; `tx` is told when that is so. A snapshot
    /// that is being taken comes first: what it has found to be freed is.
    pub fn hold(&mut self, hold: Arc<Hold>, tx: oneshot::Sender<()>) {
        self.asked = Some((hold, tx));
        self.settle_hold();
    }

    fn settle_hold(&mut self) {
        if self.state == State::Idle
            && let Some((hold, tx)) = self.asked.take()
        {
            self.hold = Some(hold);
            // Who has gone away meanwhile has let go, too.
            let _ = tx.send(());
        }
    }

    /// Whether somebody copies files.
    pub fn is_held(&mut self) -> bool {
        let holds = self.hold.as_ref().is_some_and(|hold| hold.holds());
        if !holds {
            self.hold = None;
        }
        holds
    }

    /// A frame has been handed to the log.
    pub fn sealed(&mut self, meta_bytes: usize, bytes: usize) {
        self.meta_bytes += meta_bytes as u64;
        self.log_bytes += bytes as u64;
    }

    /// Asks for a snapshot as soon as may be.
    pub fn want(&mut self) {
        self.wanted = true;
        self.not_before = 0;
    }

    /// A snapshot would be of use, but not before its time after one that failed.
    pub fn suggest(&mut self) {
        self.wanted = true;
    }

    /// Whether no snapshot is being taken, or wanted.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle && !self.wanted
    }

    /// Whether no snapshot is being taken.
    pub fn is_at_rest(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether there are pages to capture, and room for them.
    pub fn is_walking(&self) -> bool {
        matches!(self.state, State::Walking(_)) && !self.is_held_up()
    }

    /// Whether the disk has to take pages before more are captured.
    fn is_held_up(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) >= PAGES_UNDER_WAY
    }

    /// When to look again at a snapshot that is held up.
    pub fn look_again(&self, now: Now) -> Option<ShardMs> {
        let is_held_up = matches!(self.state, State::Walking(_)) && self.is_held_up();
        is_held_up.then(|| now.lease.plus(HELD_UP_MS))
    }

    /// When one can begin again, after one that could not be taken.
    pub fn retry_at(&self, now: Now) -> Option<ShardMs> {
        (self.not_before > now.lease.0).then_some(ShardMs(self.not_before))
    }

    /// Whether everything of a snapshot is there but a sync of the log, which has called
    /// everything up to `durable` durable.
    pub fn waits_for_sync(&self, durable: FrameNo) -> bool {
        matches!(self.state, State::Walked(frame) if durable >= frame)
    }

    /// Bytes of meta sections and of frames since the last snapshot began.
    pub fn bytes(&self) -> (u64, u64) {
        (self.meta_bytes, self.log_bytes)
    }

    /// Whether one should begin, if `is_time` says so or one was asked for.
    pub fn should_begin(&self, is_time: bool, now: Now) -> bool {
        self.state == State::Idle
            && self.asked.is_none()
            && (self.wanted || is_time)
            && now.lease.0 >= self.not_before
    }

    /// There is nothing that a snapshot would hold.
    pub fn skip(&mut self) {
        self.wanted = false;
        self.meta_bytes = 0;
        self.log_bytes = 0;
    }

    /// Begins one. `begin` says what it needs to know; the machine is as it is behind
    /// frame `begin.frame`.
    pub fn begin<M: Machine>(&mut self, machine: &mut M, mut begin: Begin) -> SnapshotStep {
        begin.whole = self.whole;
        begin.keep = self.is_held();
        machine.begin_snapshot();
        self.state = State::Walking(begin.frame);
        self.skip();
        SnapshotStep::Begin(Box::new(begin))
    }

    /// Goes on with the one that was begun.
    /// The log outlives a power cut up to frame `synced`: with a snapshot of a later frame
    /// it would be missing what the snapshot rests on.
    pub fn step<M: Machine>(&mut self, machine: &mut M, synced: FrameNo) -> Vec<SnapshotStep> {
        self.settle_hold();
        let mut steps = Vec::new();
        if let State::Walking(frame) = self.state
            && !self.is_held_up()
        {
            let (captured, done) = machine.walk(PAGES_PER_TURN);
            if !captured.is_empty() {
                let load = Load::of(&captured, &self.under_way);
                steps.push(SnapshotStep::Pages(captured, load));
            }
            if done {
                self.state = State::Walked(frame);
            }
        }
        if let State::Walked(frame) = self.state
            && synced >= frame
        {
            steps.push(SnapshotStep::Finish);
            self.state = State::Writing;
        }
        steps
    }

    /// It has been taken, or could not be. Returns the frame from which on replay may
    /// have to start, and the segments that may go, if it has.
    pub fn taken<M: Machine>(
        &mut self,
        machine: &mut M,
        taken: &Result<Taken, String>,
        now: Now,
    ) -> Option<(FrameNo, Vec<SegmentNo>)> {
        self.state = State::Idle;
        let free = std::mem::take(&mut self.free);
        match taken {
            Ok(taken) => {
                self.whole = false;
                let replay_from = self.newest.next();
                self.newest = taken.frame;
                // What is held is found again by the next snapshot.
                let free = if self.is_held() { Vec::new() } else { free };
                Some((replay_from, free))
            }
            Err(error) => {
                // The one before still stands, and so does the log behind it.
                tracing::error!("a snapshot could not be taken: {error}");
                if !posthouse_frame::planted("lost-pages-forgotten") {
                    machine.touch_all();
                    self.whole = true;
                }
                self.not_before = now.lease.0 + PAUSE_MS;
                None
            }
        }
    }

    /// Whether replay has no need of a segment from the next snapshot on: it starts behind
    /// the newest one, which will be the older one then.
    pub fn is_behind(&self, segment: &Segment) -> bool {
        !segment.active && segment.last <= self.newest
    }

    /// The segments that are needed from the next snapshot on. Those that are not are
    /// kept in mind, and go with it: replay has no need of them, and nothing in them is live.
    pub fn needed_segments<L: Log>(
        &mut self,
        reader: &L::Reader,
        live_in: impl Fn(FrameNo, FrameNo) -> u64,
    ) -> Vec<SegmentNo> {
        let mut needed = Vec::new();
        self.free.clear();
        for segment in reader.segments() {
            let is_dead = self.is_behind(&segment)
                && (live_in(segment.first, segment.last) == 0
                    || posthouse_frame::planted("live-segment-freed"));
            if is_dead { self.free.push(segment.no) } else { needed.push(segment.no) }
        }
        needed
    }
}

/// Which publishes have to wait until a snapshot is written: they come faster than that, and
/// memory has a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldBack {
    Nothing,
    /// Those of messages that are to come later.
    Later,
    All,
}

impl HeldBack {
    /// Whether a publish is one of them.
    pub(super) fn holds(self, publish: &Mail) -> bool {
        match self {
            HeldBack::Nothing => false,
            HeldBack::Later => publish.is_later(),
            HeldBack::All => true,
        }
    }
}

impl<L: Log> Engine<L> {
    /// Goes on with a snapshot, or begins one if it is time.
    pub(super) fn snapshot_step(&mut self, now: Now) {
        metrics::set(&self.metrics().young_bytes, self.shard.index().young_bytes() as u64);
        metrics::set(&self.metrics().snapshotting, u64::from(!self.progress.is_at_rest()));
        self.forget_carried();
        let (meta_bytes, log_bytes) = self.progress.bytes();
        let is_time = self.is_index_young(1)
            || self.is_schedule_young(1)
            || meta_bytes >= self.options.snapshot_meta_bytes
            || log_bytes >= self.snapshot_log_bytes();
        if self.progress.should_begin(is_time, now) {
            self.begin_snapshot(now);
        }
        let steps = self.progress.step(&mut self.shard, self.reader.synced());
        if self.progress.waits_for_sync(self.gate.durable()) {
            self.log.request_sync();
        }
        push_all(&mut self.effects, steps);
    }

    /// Whether what came last, in the index, has so many times the room after which a
    /// snapshot is due.
    fn is_index_young(&self, times: usize) -> bool {
        self.shard.index().young_bytes() >= times * self.options.young_bytes
    }

    /// The same of the schedule.
    fn is_schedule_young(&self, times: usize) -> bool {
        let (entries, bodies) = self.shard.schedule().young_bytes();
        entries >= times * self.options.young_bytes
            || bodies >= times * self.options.young_body_bytes
    }

    pub(super) fn held_back(&self) -> HeldBack {
        if self.is_index_young(FULL_INDEX) {
            HeldBack::All
        } else if self.is_schedule_young(FULL_SCHEDULE) {
            HeldBack::Later
        } else {
            HeldBack::Nothing
        }
    }

    /// After how many bytes of frames a snapshot is due. What comes in between cannot go
    /// before the one after it: with little that is needed, that is not to be much more.
    fn snapshot_log_bytes(&self) -> u64 {
        let most = self.options.snapshot_log_bytes;
        (self.shard.live() / 2).clamp(LOG_BYTES_LEAST.min(most), most)
    }

    /// A snapshot would be of use if it lets something go: else one would follow the other
    /// for nothing, on a disk that is full.
    pub(super) fn suggest_snapshot(&mut self) {
        let is_dead = |segment: &Segment| {
            !segment.active && self.shard.live_in(segment.first, segment.last) == 0
        };
        if self.reader.segments().iter().any(is_dead) {
            self.progress.suggest();
        }
    }

    /// A snapshot stands between two frames: the open one goes first.
    fn begin_snapshot(&mut self, now: Now) {
        let nothing_new = !self.shard.has_changes()
            && self.frame.is_empty()
            && self.shard.schedule().young_bytes() == (0, 0)
            && self.shard.index().young_bytes() == 0;
        if nothing_new {
            return self.progress.skip();
        }
        if !self.submit(now, true) {
            return;
        }
        self.forget_chunks();
        let shard = &self.shard;
        let segments = self
            .progress
            .needed_segments::<L>(&self.reader, |first, last| shard.live_in(first, last));
        let is_held = self.progress.is_held();
        let cleaning = self.plan_cleaning(is_held);
        let begin = Begin {
            frame: self.frame.no().prev(),
            wall_ms: now.wall.0,
            lease_ms: now.lease.0,
            epoch: self.epoch,
            segments,
            index: self.shard.index().chunks().to_vec(),
            cleaning,
            frozen: self.shard.index_mut().freeze(),
            schedule: self.shard.schedule_mut().freeze(now),
            whole: false,
            keep: false,
        };
        let step = self.progress.begin(&mut self.shard, begin);
        self.effects.push_back(Effect::Snapshot(step));
    }

    pub(super) fn snapshot_taken(
        &mut self,
        taken: Result<Taken, String>,
        catalog: &Catalog,
        now: Now,
    ) {
        let done = self.progress.taken(&mut self.shard, &taken, now);
        let (Ok(taken), Some((replay_from, free))) = (taken, done) else {
            metrics::add(&self.metrics().snapshots_failed, 1);
            self.shard.thaw();
            return;
        };
        metrics::add(&self.metrics().snapshots, 1);
        if let Some(chunk) = &taken.index {
            self.shard.index_mut().install(chunk);
            for (block, data) in (0..).zip(&chunk.pieces[..chunk.directory.blocks.len()]) {
                self.cache.insert(Miss { chunk: chunk.directory.id, block }, data.clone());
            }
        }
        if let Some(Folded { from, to, moved }) = taken.folded {
            self.shard.index_mut().refold(&from, to.as_ref());
            from.iter().for_each(|chunk| self.cache.forget(*chunk));
            self.cleaner.settled(moved);
        }
        let merged = taken.merged.as_ref().map(|(from, to)| (&from[..], to.as_ref()));
        self.shard.schedule_mut().install(taken.frame, taken.run.as_ref(), merged);
        if let Err(error) = self.log.release(replay_from, &free) {
            tracing::warn!("segments of the log could not be freed: {error}");
        }
        let (frame, digest) = (taken.frame, taken.digest);
        let start = self.frame.meta().len();
        let mut note = Command::NoteSnapshot { frame, digest };
        let noted = self.shard.decide(&mut note, catalog, &self.cache, now, &mut self.frame);
        debug_assert!(noted.is_ok());
        self.apply_from(start);
        self.found(taken.found);
    }
}

/// Hands steps over to whoever writes snapshots.
pub(super) fn push_all(effects: &mut VecDeque<Effect>, steps: Vec<SnapshotStep>) {
    effects.extend(steps.into_iter().map(Effect::Snapshot));
}
