//! The loop of a shard of messages, one turn at a time.
//!
//! A turn opens the mail, class by class, does what is due, matches consumers with
//! messages, and hands the frame to the log when the log is free: while one frame
//! syncs, the next is being filled, so batches size themselves. See the parent
//! module for the picture.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, RwLock};

use posthouse_core::catalog::Catalog;
use posthouse_core::chunk::{ChunkId, Miss};
use posthouse_core::machine::Machine;
use posthouse_core::message::DeadReason;
use posthouse_core::queue::command::{Command, LaterOutcome, Published, Reply, Settled};
use posthouse_core::queue::{Delivery, DueBudget, Shard};
use posthouse_core::{GroupId, Now, ShardMs, UnixMs};
use posthouse_frame::{FrameBuf, FrameNo, planted};
use posthouse_log::{Log, LogState};

use super::Tx;
use super::attend::Effect;
use super::clean::Cleaner;
use super::gate::Gate;
use super::mail::{Mail, Question, View};
use super::mailbox::Classes;
use super::metrics::{self, ShardMetrics};
use super::serve::LOOKS;
use super::snapshots::{HeldBack, Progress};
use super::waiters::{Waiter, Waiters};
use crate::problem::{Kind, Problem};
use crate::store::cache::BlockCache;

/// A frame is handed over when it has so many bytes. A command that alone has more
/// has a frame to itself.
pub const FRAME_BYTES: usize = 1 << 20;

/// What one piece of mail may put in the log at most. Whoever sends mail keeps below it;
/// if not, the mail is refused rather than the log asked for a frame that it cannot take.
pub const MAIL_BYTES: usize = (8 << 20) + (512 << 10);

/// Frames that may be on their way to the disk.
const PIPELINE: usize = 3;

/// With a frame on its way, the next follows it only if it has so many bytes:
/// smaller ones wait, and grow.
const FOLLOW_BYTES: usize = 256 << 10;

/// Acknowledgements still join a frame that is full, up to so many bytes beyond.
pub(super) const SETTLE_RESERVE: usize = 256 << 10;

/// The most commands that wait for blocks.
const PARKED: usize = 1024;

/// How long to wait before what is due is looked at again when it needs a block.
const DUE_PAUSE_MS: u64 = 10;

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Bytes of blocks kept in memory.
    pub cache_bytes: usize,
    /// The table of new messages becomes a chunk at this size, and what was scheduled a
    /// run.
    pub young_bytes: usize,
    /// What was scheduled becomes a run when its bodies have this size.
    pub young_body_bytes: usize,
    /// A snapshot is due after so many bytes of meta sections.
    pub snapshot_meta_bytes: u64,
    /// A snapshot is due after so many bytes of frames, so that the log can be freed.
    pub snapshot_log_bytes: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            cache_bytes: 64 << 20,
            young_bytes: 32 << 20,
            young_body_bytes: 32 << 20,
            snapshot_meta_bytes: 64 << 20,
            snapshot_log_bytes: 512 << 20,
        }
    }
}

/// What leaves through the gate.
#[derive(Debug)]
pub enum Output {
    /// A reply.
    Reply(Tx<Reply>, Reply),
    /// Messages for a consumer, or none in time.
    Delivered(Waiter, Vec<Delivery>),
    /// A look-up.
    Answer(Box<dyn Question>),
    /// A refusal.
    Refused(Box<Mail>, Problem),
    /// Something for the shell to do.
    Effect(Effect),
}

impl Output {
    fn leave(self, effects: &mut VecDeque<Effect>) {
        match self {
            Output::Reply(tx, reply) => drop(tx.send(Ok(reply))),
            Output::Delivered(waiter, deliveries) => {
                // Nobody is to have messages who went away while their grant was on its way.
                if let Err(Ok(deliveries)) = waiter.tx.send(Ok(deliveries)) {
                    effects.extend(Mail::give_back(&deliveries).map(Effect::Send));
                }
            }
            Output::Answer(question) => question.answer(),
            Output::Refused(mail, problem) => mail.refuse(problem),
            Output::Effect(effect) => effects.push_back(effect),
        }
    }

    fn fail(self, problem: &Problem) {
        match self {
            Output::Reply(tx, reply) if planted("failed-answered") => drop(tx.send(Ok(reply))),
            Output::Reply(tx, _) => drop(tx.send(Err(problem.clone()))),
            Output::Delivered(waiter, _) => drop(waiter.tx.send(Err(problem.clone()))),
            Output::Answer(question) => question.refuse(problem.clone()),
            Output::Refused(mail, _) => mail.refuse(problem.clone()),
            Output::Effect(_) => {}
        }
    }
}

/// What follows a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// There is more to do right away.
    pub busy: bool,
    /// When there is something to do without any mail, on the lease clock.
    pub until: Option<ShardMs>,
    /// The same on the wall clock.
    pub until_wall: Option<UnixMs>,
    /// It has come to its end.
    pub ended: bool,
}

/// The loop of one shard.
#[derive(Debug)]
pub struct Engine<L: Log> {
    pub(super) shard: Shard,
    pub(super) log: L,
    pub(super) reader: L::Reader,
    pub(super) catalog: Arc<RwLock<Catalog>>,
    pub(super) cache: BlockCache,
    pub(super) frame: FrameBuf,
    pub(super) gate: Gate<Output>,
    pub(super) options: EngineOptions,
    pub(super) progress: Progress,
    pub(super) cleaner: Cleaner,
    pub(super) effects: VecDeque<Effect>,
    pub(super) epoch: u32,
    pub(super) waiters: Waiters,
    pub(super) ready: VecDeque<GroupId>,
    parked: BTreeMap<Miss, Vec<Mail>>,
    parked_count: usize,
    /// Mail whose block has come, and which has to wait for room in a frame.
    resumed: VecDeque<Mail>,
    fetching: HashSet<Miss>,
    /// Blocks that tell whether a chunk of the index is needed any longer.
    judging: HashSet<Miss>,
    /// How many messages may still be looked at for consumers in this turn.
    pub(super) looks: usize,
    due_not_before: ShardMs,
    /// More is due than one turn does.
    is_overdue: bool,
    pub(super) takes_waits: bool,
    stopping: Option<tokio::sync::oneshot::Sender<()>>,
    failed: Option<Problem>,
    pub(super) metrics: Arc<ShardMetrics>,
}

impl<L: Log> Engine<L> {
    /// A loop over a machine and its log. `snapshot_at` is the frame of the newest
    /// snapshot.
    pub fn new(
        mut shard: Shard,
        log: L,
        catalog: Arc<RwLock<Catalog>>,
        options: EngineOptions,
        (snapshot_at, epoch): (FrameNo, u32),
        metrics: Arc<ShardMetrics>,
    ) -> Self {
        use posthouse_log::LogReader as _;
        let reader = log.reader();
        let durable = reader.state().durable();
        // What counts is what happens from now on.
        shard.take_expired();
        Engine {
            shard,
            frame: FrameBuf::new(log.tail().next()),
            gate: Gate::new(durable),
            progress: Progress::new(snapshot_at),
            cleaner: Cleaner::default(),
            effects: VecDeque::new(),
            epoch,
            log,
            reader,
            catalog,
            cache: BlockCache::new(options.cache_bytes),
            options,
            waiters: Waiters::default(),
            ready: VecDeque::new(),
            parked: BTreeMap::new(),
            parked_count: 0,
            resumed: VecDeque::new(),
            fetching: HashSet::new(),
            judging: HashSet::new(),
            looks: 0,
            due_not_before: ShardMs(0),
            is_overdue: false,
            takes_waits: true,
            stopping: None,
            failed: None,
            metrics,
        }
    }

    /// What the shell is asked to do since this was last called.
    pub fn take_effects(&mut self) -> VecDeque<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Why the log takes no frames any more, if it does not.
    pub fn failed(&self) -> Option<&Problem> {
        self.failed.as_ref()
    }

    /// One turn at time `now`, with what is in `mail`. What cannot be taken yet stays
    /// there.
    pub fn turn(&mut self, mail: &mut Classes<Mail>, now: Now) -> Rest {
        metrics::add(&self.metrics.turns, 1);
        self.look_at_log();
        if self.failed.is_some() {
            self.fail_all(mail);
            return Rest { busy: false, until: None, until_wall: None, ended: true };
        }
        let catalog = self.catalog.clone();
        {
            // Nobody who holds this lock waits for a disk.
            let catalog = catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.looks = LOOKS;
            self.resume(&catalog, now);
            let [rest @ .., publishes] = mail;
            rest.iter_mut().for_each(|class| self.open(class, &catalog, now));
            self.open_publishes(publishes, &catalog, now);
            self.due(&catalog, now);
            self.end_waits(now);
            self.match_consumers(&catalog, now);
        }
        self.submit(now, false);
        self.snapshot_step(now);
        self.count(now);
        let [rest @ .., publishes] = mail;
        let saturated = !self.resumed.is_empty() || rest.iter().any(|class| !class.is_empty());
        self.rest(saturated, publishes, now)
    }

    /// Opens the mail of one class, as far as the frame has room.
    fn open(&mut self, class: &mut VecDeque<Mail>, catalog: &Catalog, now: Now) {
        while let Some(mail) = class.pop_front() {
            if !self.make_room(&mail, now) {
                class.push_front(mail);
                return;
            }
            if mail.cost(self.shard.transactions()) > MAIL_BYTES {
                let detail = format!("it would take more than {MAIL_BYTES} bytes of the log");
                let problem = Problem::new(Kind::TooLarge, "request_too_large", detail);
                mail.refuse(problem.with_hint("ask for less at once"));
                continue;
            }
            self.handle(mail, catalog, now);
        }
    }

    /// The same for publishes. Those wait that come faster than snapshots are written.
    fn open_publishes(&mut self, class: &mut VecDeque<Mail>, catalog: &Catalog, now: Now) {
        let held_back = self.held_back();
        if held_back == HeldBack::Nothing {
            return self.open(class, catalog, now);
        }
        let (mut held, mut others): (VecDeque<Mail>, VecDeque<Mail>) =
            class.drain(..).partition(|mail| held_back.holds(mail));
        self.open(&mut others, catalog, now);
        held.append(&mut others);
        *class = held;
    }

    fn handle(&mut self, mail: Mail, catalog: &Catalog, now: Now) {
        if !self.takes_waits && matches!(mail, Mail::Receive(_)) {
            return mail.refuse(Problem::stopping());
        }
        match mail {
            // With the body in the frame, the room that it had on its way is free again.
            Mail::Command { command, tx, room: _ } => self.decide(command, tx, catalog, now),
            Mail::Receive(waiter) => self.receive(waiter, catalog, now),
            Mail::Question(question) => self.look(question, catalog, now),
            Mail::Judged { claim, waiter } => self.judged(claim, waiter, catalog, now),
            Mail::Fetched { miss, data } => self.fetched(miss, data, catalog, now),
            Mail::Changed(changes) => self.changed(&changes, catalog),
            Mail::LookAgain(group) => self.ready.push_back(group),
            Mail::BuryAgain { group, partition, position } => {
                self.shard.bury_again(group, partition, position);
            }
            Mail::SnapshotTaken(taken) => self.snapshot_taken(taken, catalog, now),
            Mail::Carried(bytes) => self.carried(bytes),
            Mail::WantSnapshot => self.suggest_snapshot(),
            Mail::Hold(hold, tx) => self.progress.hold(hold, tx),
            Mail::EndWaits => self.refuse_waits(),
            Mail::Stop(tx) => self.stop(tx),
        }
    }

    fn decide(&mut self, mut command: Command, tx: Tx<Reply>, catalog: &Catalog, now: Now) {
        let start = self.frame.meta().len();
        let published = published(&command);
        let decided = self.shard.decide(&mut command, catalog, &self.cache, now, &mut self.frame);
        match decided {
            Ok(reply) => {
                self.apply_from(start);
                self.count_reply(&command, &reply, published);
                self.pass(Output::Reply(tx, reply));
            }
            Err(miss) => self.park(miss, Mail::Command { command, tx, room: None }),
        }
    }

    fn look(&mut self, mut question: Box<dyn Question>, catalog: &Catalog, now: Now) {
        let view = View { shard: &self.shard, chunks: &self.cache, catalog, now };
        match question.ask(&view) {
            Ok(()) => self.pass(Output::Answer(question)),
            Err(miss) => self.park(miss, Mail::Question(question)),
        }
    }

    /// Applies what was written into the frame from byte `start` of its meta on.
    pub(super) fn apply_from(&mut self, start: usize) {
        let (no, meta) = (self.frame.no(), self.frame.meta());
        if meta.len() > start {
            self.shard
                .apply(no, &meta[start..])
                .expect("records that were just written can be read");
        }
    }

    /// The last frame that anything computed now rests on.
    fn applied(&self) -> FrameNo {
        if self.frame.is_empty() { self.frame.no().prev() } else { self.frame.no() }
    }

    pub(super) fn pass(&mut self, output: Output) {
        if let Some(output) = self.gate.pass(self.applied(), output) {
            output.leave(&mut self.effects);
        }
    }

    // ---- waiting for blocks

    pub(super) fn park(&mut self, miss: Miss, mail: Mail) {
        if self.parked_count >= PARKED {
            let problem = Problem::busy(format!(
                "{PARKED} requests wait for old data to be read from the disk"
            ));
            return self.refuse(mail, problem);
        }
        self.parked_count += 1;
        self.parked.entry(miss).or_default().push(mail);
        self.fetch(miss);
    }

    /// Refuses mail that was begun with.
    fn refuse(&mut self, mail: Mail, problem: Problem) {
        if let Mail::Judged { claim, .. } = &mail {
            // Nobody comes back with it: its partition goes on without.
            self.shard.judged(claim.group, claim.partition);
        }
        self.pass(Output::Refused(Box::new(mail), problem));
    }

    /// Goes on with mail that waited for a block, as far as the frame has room.
    fn resume(&mut self, catalog: &Catalog, now: Now) {
        let mut resumed = std::mem::take(&mut self.resumed);
        self.open(&mut resumed, catalog, now);
        self.resumed.append(&mut resumed);
    }

    pub(super) fn fetch(&mut self, miss: Miss) {
        if self.fetching.insert(miss) {
            self.effects.push_back(Effect::Fetch(miss));
        }
    }

    fn fetched(
        &mut self,
        miss: Miss,
        data: Result<bytes::Bytes, String>,
        catalog: &Catalog,
        now: Now,
    ) {
        self.fetching.remove(&miss);
        let waiting = self.parked.remove(&miss).unwrap_or_default();
        self.parked_count -= waiting.len();
        match data {
            Ok(data) => {
                self.cache.insert(miss, data);
                self.due_not_before = ShardMs(0);
                self.resumed.extend(waiting);
                self.resume(catalog, now);
                if self.judging.remove(&miss) {
                    self.forget_chunks();
                }
            }
            // It has been made anew, and its file is gone: what waits asks the new one.
            Err(_) if !self.is_in_use(miss.chunk) => {
                self.resumed.extend(waiting);
                self.resume(catalog, now);
            }
            Err(error) => {
                self.judging.remove(&miss);
                for mail in waiting {
                    self.refuse(mail, Problem::unreadable(&error));
                }
            }
        }
        if !planted("fetched-untold") {
            self.shard.fetched(miss);
        }
    }

    fn is_in_use(&self, chunk: ChunkId) -> bool {
        self.shard.index().chunks().iter().any(|of| of.id() == chunk)
            || self.shard.schedule().runs().iter().any(|run| run.id() == chunk)
    }

    // ---- time

    fn due(&mut self, catalog: &Catalog, now: Now) {
        let (lease, wall) = self.shard.next_deadline();
        self.is_overdue = false;
        let is_due = self.shard.has_chores()
            || lease.is_some_and(|at| at <= now.lease)
            || wall.is_some_and(|at| at <= now.wall);
        if !is_due || now.lease < self.due_not_before {
            return;
        }
        let start = self.frame.meta().len();
        // What publishes leave of the frame, and then some: they do not keep out what is
        // due, nor that them.
        let room = (FRAME_BYTES + SETTLE_RESERVE).saturating_sub(self.frame.content_bytes());
        let budget = DueBudget::default();
        let budget = DueBudget { fire_bytes: budget.fire_bytes.min(room), ..budget };
        let due = self.shard.due(catalog, &self.cache, now, budget, &mut self.frame);
        self.apply_from(start);
        self.is_overdue = due.more && due.misses.is_empty();
        self.metrics.fired(&due.fired);
        due.ahead.into_iter().for_each(|miss| self.fetch(miss));
        if !due.misses.is_empty() {
            self.due_not_before = now.lease.plus(DUE_PAUSE_MS);
        }
        due.misses.into_iter().for_each(|miss| self.fetch(miss));
        for burial in due.burials {
            self.pass(Output::Effect(Effect::Bury(Box::new(burial))));
        }
    }

    /// Takes out index chunks in which nothing is left. Where a block has to be looked at for
    /// that, goes on when it has come.
    pub(super) fn forget_chunks(&mut self) -> Vec<ChunkId> {
        let mut due = posthouse_core::queue::Due::default();
        self.shard.forget_chunks(&self.cache, &mut due);
        for miss in due.misses {
            self.judging.insert(miss);
            self.fetch(miss);
        }
        due.forgotten.iter().for_each(|chunk| self.cache.forget(*chunk));
        due.forgotten
    }

    // ---- the log

    fn look_at_log(&mut self) {
        use posthouse_log::LogReader as _;
        let state = self.reader.state();
        for output in self.gate.open_to(state.durable()) {
            output.leave(&mut self.effects);
        }
        match state {
            LogState::Durable(_) => {}
            LogState::Failed { error, .. } => self.failed = Some(Problem::unknown(&error)),
            LogState::Fenced { by, .. } => {
                let error = format!("another owner (epoch {by}) has taken the log over");
                self.failed = Some(Problem::unknown(&error));
            }
        }
    }

    fn fail_all(&mut self, mail: &mut Classes<Mail>) {
        let Some(problem) = self.failed.clone() else { return };
        self.gate.fail().for_each(|output| output.fail(&problem));
        let down = Problem {
            kind: crate::problem::Kind::Unavailable,
            code: "failed",
            detail: problem.detail.clone(),
            ..Problem::stopping()
        };
        for class in mail.iter_mut() {
            class.drain(..).for_each(|mail| mail.refuse(down.clone()));
        }
        let parked = std::mem::take(&mut self.parked).into_values().flatten();
        parked.chain(self.resumed.drain(..)).for_each(|mail| mail.refuse(down.clone()));
        for waiter in self.waiters.drain() {
            waiter.refuse(down.clone());
        }
        if let Some(stop) = self.stopping.take() {
            let _ = stop.send(());
        }
    }

    /// Makes sure that the mail fits in the frame; `false` if it has to wait until
    /// the log has taken one.
    fn make_room(&mut self, mail: &Mail, now: Now) -> bool {
        if self.frame.is_empty() {
            return true;
        }
        let reserve = if mail.class() == 3 { 0 } else { SETTLE_RESERVE };
        if self.frame.content_bytes() + mail.cost(self.shard.transactions())
            <= FRAME_BYTES + reserve
        {
            return true;
        }
        self.submit(now, true)
    }

    /// Hands the frame over if the log is free for it, or if it is full. Returns
    /// whether the frame is empty now.
    pub(super) fn submit(&mut self, now: Now, is_full: bool) -> bool {
        if self.frame.is_empty() {
            return true;
        }
        let follows = is_full || self.frame.content_bytes() >= FOLLOW_BYTES;
        let backlog = self.log.backlog();
        if backlog > 0 && (backlog >= PIPELINE || !follows) {
            return false;
        }
        let next = FrameBuf::new(self.frame.no().next());
        let frame = std::mem::replace(&mut self.frame, next).seal(now.wall.0, now.lease.0);
        let bytes = frame.content_bytes();
        self.shard.sealed(frame.no, bytes);
        self.progress.sealed(frame.meta.len(), bytes);
        metrics::add(&self.metrics.frames, 1);
        metrics::add(&self.metrics.frame_bytes, bytes as u64);
        // Latched: the state says why, and the next turn looks at it.
        let _ = self.log.submit(frame);
        true
    }

    // ---- the end

    fn refuse_waits(&mut self) {
        self.takes_waits = false;
        for waiter in self.waiters.drain() {
            waiter.refuse(Problem::stopping());
        }
    }

    /// Whether nothing new is begun.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    fn stop(&mut self, tx: tokio::sync::oneshot::Sender<()>) {
        self.stopping = Some(tx);
        self.refuse_waits();
        let parked = std::mem::take(&mut self.parked).into_values().flatten();
        parked.chain(self.resumed.drain(..)).for_each(|mail| mail.refuse(Problem::stopping()));
        self.parked_count = 0;
        self.progress.want();
    }

    /// Whether everything is done that has to be before the end.
    fn has_ended(&mut self, saturated: bool) -> bool {
        let done = self.stopping.is_some()
            && !saturated
            && self.frame.is_empty()
            && self.log.backlog() == 0
            && self.gate.is_empty()
            && self.progress.is_idle();
        if done && let Some(tx) = self.stopping.take() {
            let _ = tx.send(());
        }
        done
    }

    fn rest(&mut self, saturated: bool, publishes: &VecDeque<Mail>, now: Now) -> Rest {
        let ended = self.has_ended(saturated || !publishes.is_empty());
        let held_back = self.held_back();
        let held = publishes.iter().filter(|mail| held_back.holds(mail)).count();
        metrics::set(&self.metrics.held_back, held as u64);
        let saturated = saturated || held < publishes.len();
        let (mut until, until_wall) = self.shard.next_deadline();
        if let Some(end) = self.waiters.first_end() {
            until = Some(until.map_or(end, |until| until.min(end)));
        }
        if self.due_not_before > now.lease {
            until = Some(until.map_or(self.due_not_before, |u| u.max(self.due_not_before)));
        }
        let retry = self.progress.retry_at(now).filter(|_| held > 0);
        let looks = [self.progress.look_again(now), self.look_for_room(now), retry];
        for at in looks.into_iter().flatten() {
            until = Some(until.map_or(at, |until| until.min(at)));
        }
        let chores = self.shard.has_chores() && now.lease >= self.due_not_before;
        let log_is_free = self.log.backlog() < PIPELINE;
        let busy = !ended
            && log_is_free
            && (saturated
                || !self.ready.is_empty()
                || chores
                || self.is_overdue
                || self.progress.is_walking());
        Rest { busy, until, until_wall, ended }
    }

    fn count(&mut self, now: Now) {
        metrics::add(&self.metrics.expired, self.shard.take_expired());
        let m = &self.metrics;
        let schedule = self.shard.schedule();
        m.stand(schedule.pending(), self.shard.transactions());
        metrics::set(&m.overdue_ms, schedule.overdue_ms(now.wall));
        metrics::set(&m.runs, schedule.runs().len() as u64);
        metrics::set(&m.gated, self.gate.len() as u64);
        metrics::set(&m.waiting, self.waiters.len() as u64);
        metrics::set(&m.parked, self.parked_count as u64);
        metrics::set(&m.blocks_fetched, self.cache.fetched());
        metrics::set(&m.block_bytes, self.cache.bytes() as u64);
        metrics::set(&m.used, self.shard.used());
    }

    fn count_reply(&self, command: &Command, reply: &Reply, published: (u64, u64)) {
        let m = &self.metrics;
        match (command, reply) {
            (_, Reply::Published(batches)) => {
                let count =
                    |of: &dyn Fn(&Published) -> usize| batches.iter().map(of).sum::<usize>() as u64;
                let duplicates = count(&|b| b.duplicates.len());
                let left_out = count(&|b| b.left_out().len());
                metrics::add(&m.published, published.0 - left_out);
                metrics::add(&m.published_bytes, published.1);
                metrics::add(&m.duplicates, duplicates);
            }
            (_, Reply::Settled(settled)) => {
                let done =
                    settled.iter().filter(|s| matches!(s, Settled::Done { .. })).count() as u64;
                let stale = settled
                    .iter()
                    .filter(|s| !matches!(s, Settled::Done { .. } | Settled::Already))
                    .count();
                metrics::add(&m.stale, stale as u64);
                match command {
                    Command::Ack(_) => metrics::add(&m.acked, done),
                    Command::Nack(_) => metrics::add(&m.nacked, done),
                    _ => {}
                }
            }
            (_, Reply::Prepared(_) | Reply::Ended(_) | Reply::Checks(_)) => m.transacted(reply),
            (Command::Bury { burial, .. }, Reply::Position(_)) => {
                metrics::add(&m.buried, 1);
                let is_expired = burial.reason == DeadReason::Expired;
                metrics::add(&m.expired, u64::from(is_expired));
            }
            (_, Reply::Later(outcomes)) => {
                let done = outcomes.iter().filter(|o| matches!(o, LaterOutcome::Done { .. }));
                match command {
                    Command::Cancel(_) => metrics::add(&m.cancelled, done.count() as u64),
                    _ => metrics::add(&m.rescheduled, done.count() as u64),
                }
            }
            _ => {}
        }
    }

    /// Figures of snapshots.
    pub(super) fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }
}

/// Messages and bytes of a publish, before it is decided and gives its bodies up.
fn published(command: &Command) -> (u64, u64) {
    let (Command::Publish { batches, .. } | Command::Recur { batches, .. }) = command else {
        return (0, 0);
    };
    batches.iter().fold((0, 0), |(count, bytes), batch| {
        (count + batch.drafts.len() as u64, bytes + batch.bodies.len() as u64)
    })
}
