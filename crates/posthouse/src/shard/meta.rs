//! The loop of the catalog: like that of a shard of messages, and much smaller.
//!
//! A change is seen by nobody before it is durable: what everybody reads is a copy,
//! which takes a change over when it leaves the gate.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use posthouse_core::Now;
use posthouse_core::catalog::machine::{Command, Reply};
use posthouse_core::catalog::{Catalog, Change};
use posthouse_core::machine::Machine;
use posthouse_core::schedule::Freeze;
use posthouse_frame::{FrameBuf, FrameNo};
use posthouse_log::{Log, LogReader as _, LogState};
use tokio::sync::oneshot;

use super::Tx;
use super::attend::Effect;
use super::engine::{FRAME_BYTES, Rest};
use super::gate::Gate;
use super::hold::Hold;
use super::mailbox::Classes;
use super::snapshots::{self, Progress};
use crate::problem::Problem;
use crate::store::clean::Cleaning;
use crate::store::snapshot::{Begin, Taken};

/// A snapshot is due after so many bytes of records.
const SNAPSHOT_BYTES: u64 = 4 << 20;

/// Mail for the catalog.
#[derive(Debug)]
pub enum MetaMail {
    /// Something to decide.
    Command {
        /// What.
        command: Command,
        /// Who wants to know.
        tx: Tx<Reply>,
    },
    /// A snapshot has been taken, or could not be.
    SnapshotTaken(Result<Taken, String>),
    /// Files are about to be copied: none is freed as long as it holds.
    Hold(Arc<Hold>, oneshot::Sender<()>),
    /// End, with a last snapshot.
    Stop(oneshot::Sender<()>),
}

impl MetaMail {
    /// All mail of the catalog is alike.
    pub fn class(&self) -> usize {
        0
    }

    fn refuse(self, problem: Problem) {
        match self {
            MetaMail::Command { tx, .. } => drop(tx.send(Err(problem))),
            MetaMail::SnapshotTaken(_) | MetaMail::Hold(..) => {}
            MetaMail::Stop(tx) => {
                let _ = tx.send(());
            }
        }
    }
}

#[derive(Debug)]
enum Output {
    Adopt(Vec<Change>),
    Reply(Tx<Reply>, Result<Reply, Problem>),
}

/// The loop of the catalog.
#[derive(Debug)]
pub struct MetaEngine<L: Log> {
    state: Catalog,
    published: Arc<RwLock<Catalog>>,
    log: L,
    reader: L::Reader,
    frame: FrameBuf,
    gate: Gate<Output>,
    progress: Progress,
    effects: VecDeque<Effect>,
    epoch: u32,
    stopping: Option<oneshot::Sender<()>>,
    failed: Option<Problem>,
}

impl<L: Log> MetaEngine<L> {
    /// A loop over a catalog and its log. `published` is the copy that everybody reads.
    pub fn new(
        state: Catalog,
        published: Arc<RwLock<Catalog>>,
        log: L,
        (snapshot_at, epoch): (FrameNo, u32),
    ) -> Self {
        let reader = log.reader();
        let durable = reader.state().durable();
        MetaEngine {
            state,
            published,
            frame: FrameBuf::new(log.tail().next()),
            gate: Gate::new(durable),
            progress: Progress::new(snapshot_at),
            effects: VecDeque::new(),
            epoch,
            stopping: None,
            failed: None,
            log,
            reader,
        }
    }

    /// The log, to set who is called when it moves.
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// The log, to close it.
    pub fn into_log(self) -> L {
        self.log
    }

    /// What the shell is asked to do since this was last called.
    pub fn take_effects(&mut self) -> VecDeque<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Why the log takes no frames any more, if it does not.
    pub fn failed(&self) -> Option<&Problem> {
        self.failed.as_ref()
    }

    /// One turn at time `now`.
    pub fn turn(&mut self, mail: &mut Classes<MetaMail>, now: Now) -> Rest {
        self.look_at_log();
        let queue = &mut mail[0];
        if let Some(problem) = self.failed.clone() {
            for output in self.gate.fail() {
                if let Output::Reply(tx, _) = output {
                    drop(tx.send(Err(problem.clone())));
                }
            }
            queue.drain(..).for_each(|mail| mail.refuse(problem.clone()));
            if let Some(stop) = self.stopping.take() {
                {
                    let _ = stop.send(());
                };
            }
            return Rest { busy: false, until: None, until_wall: None, ended: true };
        }
        while self.frame.content_bytes() < FRAME_BYTES
            && let Some(mail) = queue.pop_front()
        {
            self.handle(mail, now);
        }
        self.submit(now);
        self.snapshot_step(now);
        let is_done = queue.is_empty()
            && self.frame.is_empty()
            && self.log.backlog() == 0
            && self.gate.is_empty()
            && self.progress.is_idle();
        let ended = self.stopping.is_some() && is_done;
        if ended && let Some(stop) = self.stopping.take() {
            {
                let _ = stop.send(());
            };
        }
        let busy =
            !ended && self.log.backlog() == 0 && (!queue.is_empty() || self.progress.is_walking());
        Rest { busy, until: self.progress.look_again(now), until_wall: None, ended }
    }

    fn handle(&mut self, mail: MetaMail, now: Now) {
        match mail {
            MetaMail::Command { command, tx } => {
                let start = self.frame.meta().len();
                let decided = self.state.decide(&command, now.wall, &mut self.frame);
                let changes = Change::read_all(&self.frame.meta()[start..])
                    .expect("records that were just written can be read");
                changes.iter().for_each(|change| self.state.adopt(change));
                if !changes.is_empty() {
                    self.pass(Output::Adopt(changes));
                }
                self.pass(Output::Reply(tx, decided.map_err(Problem::from)));
            }
            MetaMail::SnapshotTaken(taken) => {
                let done = self.progress.taken(&mut self.state, &taken, now);
                if let Some((replay_from, free)) = done
                    && let Err(error) = self.log.release(replay_from, &free)
                {
                    tracing::warn!("segments of the log could not be freed: {error}");
                }
            }
            MetaMail::Hold(hold, tx) => self.progress.hold(hold, tx),
            MetaMail::Stop(tx) => {
                self.stopping = Some(tx);
                self.progress.want();
            }
        }
    }

    fn pass(&mut self, output: Output) {
        let applied = if self.frame.is_empty() { self.frame.no().prev() } else { self.frame.no() };
        if let Some(output) = self.gate.pass(applied, output) {
            leave(output, &self.published);
        }
    }

    fn look_at_log(&mut self) {
        let state = self.reader.state();
        for output in self.gate.open_to(state.durable()) {
            leave(output, &self.published);
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

    /// Hands the frame over. Returns whether it is empty now.
    fn submit(&mut self, now: Now) -> bool {
        if self.frame.is_empty() {
            return true;
        }
        if self.log.backlog() > 0 {
            return false;
        }
        let next = FrameBuf::new(self.frame.no().next());
        let frame = std::mem::replace(&mut self.frame, next).seal(now.wall.0, now.lease.0);
        self.state.sealed(frame.no, frame.content_bytes());
        self.progress.sealed(frame.meta.len(), frame.content_bytes());
        // Latched: the state says why, and the next turn looks at it.
        let _ = self.log.submit(frame);
        true
    }

    fn snapshot_step(&mut self, now: Now) {
        let is_time = self.progress.bytes().1 >= SNAPSHOT_BYTES;
        if self.progress.should_begin(is_time, now) {
            if !self.state.has_changes() && self.frame.is_empty() {
                self.progress.skip();
            } else if self.submit(now) {
                let begin = Begin {
                    frame: self.frame.no().prev(),
                    wall_ms: now.wall.0,
                    lease_ms: now.lease.0,
                    epoch: self.epoch,
                    segments: self.progress.needed_segments::<L>(&self.reader, |_, _| 0),
                    index: Vec::new(),
                    cleaning: Cleaning::default(),
                    frozen: None,
                    schedule: Freeze::default(),
                    whole: false,
                    keep: false,
                };
                let step = self.progress.begin(&mut self.state, begin);
                self.effects.push_back(Effect::Snapshot(step));
            }
        }
        let steps = self.progress.step(&mut self.state, self.reader.synced());
        if self.progress.waits_for_sync(self.gate.durable()) {
            self.log.request_sync();
        }
        snapshots::push_all(&mut self.effects, steps);
    }
}

fn leave(output: Output, published: &RwLock<Catalog>) {
    match output {
        Output::Adopt(changes) => {
            let mut published = published.write().unwrap_or_else(PoisonError::into_inner);
            changes.iter().for_each(|change| published.adopt(change));
        }
        Output::Reply(tx, reply) => drop(tx.send(reply)),
    }
}
