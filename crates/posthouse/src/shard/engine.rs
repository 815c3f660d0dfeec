//! The loop of a shard of messages, one turn at a time.
//!
//! A turn opens the mail, class by class, does what is due, matches consumers with
//! messages, and hands the frame to the log when the log is free: while one frame
//! syncs, the next is being filled, so batches size themselves. See the parent
//! module for the picture.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, RwLock};

use posthouse_core::catalog::{Catalog, Change};
use posthouse_core::chunk::{ChunkId, Miss};
use posthouse_core::machine::Machine;
use posthouse_core::message::DeadReason;
use posthouse_core::queue::command::{Command, LaterOutcome, Published, Reply, Settled};
use posthouse_core::queue::{Delivery, DueBudget, Granted, Shard};
use posthouse_core::{GroupId, Now, ShardMs, UnixMs};
use posthouse_frame::{FrameBuf, FrameNo};
use posthouse_log::{Log, LogState};

use super::Tx;
use super::attend::Effect;
use super::gate::Gate;
use super::mail::{Mail, Question, View};
use super::mailbox::Classes;
use super::metrics::{self, ShardMetrics};
use super::snapshots::Progress;
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
const SETTLE_RESERVE: usize = 256 << 10;

/// The most commands that wait for blocks.
const PARKED: usize = 1024;

/// The most consumers that wait.
const WAITING: usize = 100_000;

/// Who does not wait for messages to come still waits so long for those that are there
/// to be found on the disk.
const LOOK_MS: u64 = 2_000;

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
            young_body_bytes: 64 << 20,
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
    pub(super) effects: VecDeque<Effect>,
    pub(super) epoch: u32,
    waiters: Waiters,
    ready: VecDeque<GroupId>,
    parked: HashMap<Miss, Vec<Mail>>,
    parked_count: usize,
    fetching: HashSet<Miss>,
    due_not_before: ShardMs,
    /// More is due than one turn does.
    is_overdue: bool,
    takes_waits: bool,
    stopping: Option<tokio::sync::oneshot::Sender<()>>,
    failed: Option<Problem>,
    metrics: Arc<ShardMetrics>,
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
            effects: VecDeque::new(),
            epoch,
            log,
            reader,
            catalog,
            cache: BlockCache::new(options.cache_bytes),
            options,
            waiters: Waiters::default(),
            ready: VecDeque::new(),
            parked: HashMap::new(),
            parked_count: 0,
            fetching: HashSet::new(),
            due_not_before: ShardMs(0),
            is_overdue: false,
            takes_waits: true,
            stopping: None,
            failed: None,
            metrics,
        }
    }

    /// The log, to close it.
    pub fn into_log(self) -> L {
        self.log
    }

    /// The log, to set who is called when it moves.
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// The state, to look at.
    pub fn shard(&self) -> &Shard {
        &self.shard
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
            for class in mail.iter_mut() {
                self.open(class, &catalog, now);
            }
            self.due(&catalog, now);
            self.end_waits(now);
            self.match_consumers(&catalog, now);
        }
        self.submit(now, false);
        let saturated = mail.iter().any(|class| !class.is_empty());
        self.snapshot_step(now);
        self.count(now);
        self.rest(saturated, now)
    }

    /// Opens the mail of one class, as far as the frame has room.
    fn open(&mut self, class: &mut VecDeque<Mail>, catalog: &Catalog, now: Now) {
        while let Some(mail) = class.pop_front() {
            if !self.make_room(&mail, now) {
                class.push_front(mail);
                return;
            }
            if mail.cost() > MAIL_BYTES {
                let detail = format!("it would take more than {MAIL_BYTES} bytes of the log");
                let problem = Problem::new(Kind::TooLarge, "request_too_large", detail);
                mail.refuse(problem.with_hint("ask for less at once"));
                continue;
            }
            self.handle(mail, catalog, now);
        }
    }

    fn handle(&mut self, mail: Mail, catalog: &Catalog, now: Now) {
        if !self.takes_waits && matches!(mail, Mail::Receive(_)) {
            return mail.refuse(Problem::stopping());
        }
        match mail {
            Mail::Command { command, tx } => self.decide(command, tx, catalog, now),
            Mail::Receive(waiter) => self.receive(waiter, catalog, now),
            Mail::Question(question) => self.look(question, catalog, now),
            Mail::Judged { claim, waiter } => self.judged(claim, waiter, catalog, now),
            Mail::Fetched { miss, data } => self.fetched(miss, data, catalog, now),
            Mail::Changed(changes) => self.changed(&changes),
            Mail::BuryAgain { group, partition, position } => {
                self.shard.bury_again(group, partition, position);
            }
            Mail::SnapshotTaken(taken) => self.snapshot_taken(taken, catalog, now),
            Mail::WantSnapshot => self.progress.suggest(),
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
            Err(miss) => self.park(miss, Mail::Command { command, tx }),
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

    fn park(&mut self, miss: Miss, mail: Mail) {
        if self.parked_count >= PARKED {
            let problem = Problem::busy(format!(
                "{PARKED} requests wait for old data to be read from the disk"
            ));
            self.pass(Output::Refused(Box::new(mail), problem));
            return;
        }
        self.parked_count += 1;
        self.parked.entry(miss).or_default().push(mail);
        self.fetch(miss);
    }

    fn fetch(&mut self, miss: Miss) {
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
                waiting.into_iter().for_each(|mail| self.handle(mail, catalog, now));
            }
            Err(error) => {
                for mail in waiting {
                    mail.refuse(Problem::unreadable(&error));
                }
            }
        }
        self.shard.fetched(miss);
    }

    // ---- consumers

    fn receive(&mut self, waiter: Waiter, catalog: &Catalog, now: Now) {
        let group = waiter.group;
        let mut end = now.lease.plus(waiter.wait_ms);
        if self.waiters.len() >= WAITING {
            let problem = Problem::busy(format!("{WAITING} consumers wait already"));
            return Mail::Receive(waiter).refuse(problem);
        }
        let mut waiter = waiter;
        if self.waiters.has_none(group) {
            if waiter.is_gone() || !waiter.ticket.take() {
                return;
            }
            let looks;
            match self.grant(waiter, catalog, now) {
                Served::Yes => return,
                Served::Not(unserved, goes_on) => (waiter, looks) = (unserved, goes_on),
            }
            waiter.ticket.give_back();
            if looks {
                end = end.max(now.lease.plus(LOOK_MS));
            } else if waiter.wait_ms == 0 {
                return self.pass(Output::Delivered(waiter, Vec::new()));
            }
        }
        self.waiters.push(waiter, end);
    }

    fn match_consumers(&mut self, catalog: &Catalog, now: Now) {
        // What is matched may call further groups, or the same again.
        for _ in 0..8 {
            self.ready.extend(self.shard.take_called());
            if self.ready.is_empty() {
                return;
            }
            for _ in 0..self.ready.len() {
                if self.frame.content_bytes() >= FRAME_BYTES + SETTLE_RESERVE {
                    return;
                }
                let Some(group) = self.ready.pop_front() else { return };
                self.serve(group, catalog, now);
            }
        }
    }

    /// Serves the consumers of a group that wait, in turn, with what there is.
    fn serve(&mut self, group: GroupId, catalog: &Catalog, now: Now) {
        if self.waiters.has_none(group) {
            return;
        }
        let mut waiting = self.waiters.take(group);
        let mut unserved = VecDeque::new();
        while let Some((number, waiter)) = waiting.pop_front() {
            if waiter.is_gone() || !waiter.ticket.take() {
                continue;
            }
            match self.grant(waiter, catalog, now) {
                Served::Yes => {}
                Served::Not(waiter, looks) => {
                    waiter.ticket.give_back();
                    if waiter.wait_ms == 0 && !looks {
                        // It has been looked at everything.
                        self.pass(Output::Delivered(waiter, Vec::new()));
                        continue;
                    }
                    // Who asks for one topic only does not stand before the others.
                    let goes_on = waiter.topic.is_some();
                    unserved.push_back((number, waiter));
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        unserved.append(&mut waiting);
        self.waiters.put_back(group, unserved);
    }

    fn grant(&mut self, waiter: Waiter, catalog: &Catalog, now: Now) -> Served {
        let start = self.frame.meta().len();
        let Granted { deliveries, misses, peek, more, too_many_consumers } =
            self.shard.grant(&waiter.ask(), catalog, &self.cache, now, &mut self.frame);
        self.apply_from(start);
        let looks = more || !misses.is_empty();
        misses.into_iter().for_each(|miss| self.fetch(miss));
        if too_many_consumers {
            let most = posthouse_core::queue::MAX_CONSUMERS;
            let problem = Problem::busy(format!("{most} consumers of the group hold messages"));
            self.pass(Output::Refused(Box::new(Mail::Receive(waiter)), problem));
            return Served::Yes;
        }
        if let Some(peek) = peek {
            self.pass(Output::Effect(Effect::Judge(peek, waiter)));
            return Served::Yes;
        }
        if deliveries.is_empty() {
            if more {
                self.ready.push_back(waiter.group);
            }
            return Served::Not(waiter, looks);
        }
        metrics::add(&self.metrics.granted, deliveries.len() as u64);
        self.pass(Output::Delivered(waiter, deliveries));
        Served::Yes
    }

    fn judged(
        &mut self,
        claim: posthouse_core::queue::command::Claim,
        waiter: Waiter,
        catalog: &Catalog,
        now: Now,
    ) {
        let (group, partition) = (claim.group, claim.partition);
        let start = self.frame.meta().len();
        let mut command = Command::Claim(claim.clone());
        let decided = self.shard.decide(&mut command, catalog, &self.cache, now, &mut self.frame);
        match decided {
            Err(miss) => return self.park(miss, Mail::Judged { claim, waiter }),
            Ok(Reply::Claimed(deliveries)) => {
                self.apply_from(start);
                self.shard.judged(group, partition);
                if !deliveries.is_empty() {
                    metrics::add(&self.metrics.granted, deliveries.len() as u64);
                    return self.pass(Output::Delivered(waiter, deliveries));
                }
            }
            Ok(other) => unreachable!("a claim is answered by {other:?}"),
        }
        waiter.ticket.give_back();
        let end = now.lease.plus(waiter.wait_ms);
        self.waiters.push(waiter, end);
    }

    fn end_waits(&mut self, now: Now) {
        for waiter in self.waiters.ended(now.lease) {
            if !waiter.is_gone() && waiter.ticket.take() {
                self.pass(Output::Delivered(waiter, Vec::new()));
            }
        }
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

    /// Takes out index chunks in which nothing is left.
    pub(super) fn forget_chunks(&mut self) -> Vec<ChunkId> {
        let mut due = posthouse_core::queue::Due::default();
        self.shard.forget_chunks(&self.cache, &mut due);
        due.misses.into_iter().for_each(|miss| self.fetch(miss));
        due.forgotten.iter().for_each(|chunk| self.cache.forget(*chunk));
        due.forgotten
    }

    fn changed(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Group(group) => {
                    self.shard.poke(group.id);
                    // Those that take their configuration from it.
                    let waiting: Vec<GroupId> = self.waiters.groups().collect();
                    waiting.into_iter().for_each(|group| self.shard.poke(group));
                }
                Change::Topic(topic) => {
                    topic.partitions.iter().for_each(|p| self.shard.reconsider(p.id));
                }
                _ => {}
            }
        }
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
        for (_, parked) in self.parked.drain() {
            parked.into_iter().for_each(|mail| mail.refuse(down.clone()));
        }
        for waiter in self.waiters.drain() {
            Mail::Receive(waiter).refuse(down.clone());
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
        if self.frame.content_bytes() + mail.cost() <= FRAME_BYTES + reserve {
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
            Mail::Receive(waiter).refuse(Problem::stopping());
        }
    }

    fn stop(&mut self, tx: tokio::sync::oneshot::Sender<()>) {
        self.stopping = Some(tx);
        self.refuse_waits();
        for (_, parked) in self.parked.drain() {
            parked.into_iter().for_each(|mail| mail.refuse(Problem::stopping()));
        }
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

    fn rest(&mut self, saturated: bool, now: Now) -> Rest {
        let ended = self.has_ended(saturated);
        let (mut until, until_wall) = self.shard.next_deadline();
        if let Some(end) = self.waiters.first_end() {
            until = Some(until.map_or(end, |until| until.min(end)));
        }
        if self.due_not_before > now.lease {
            until = Some(until.map_or(self.due_not_before, |u| u.max(self.due_not_before)));
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

enum Served {
    Yes,
    /// Whether the look for messages is not over, because it needs a block or was long.
    Not(Waiter, bool),
}

/// Messages and bytes of a publish, before it is decided and gives its bodies up.
fn published(command: &Command) -> (u64, u64) {
    let Command::Publish { batches, .. } = command else { return (0, 0) };
    batches.iter().fold((0, 0), |(count, bytes), batch| {
        (count + batch.drafts.len() as u64, bytes + batch.bodies.len() as u64)
    })
}
