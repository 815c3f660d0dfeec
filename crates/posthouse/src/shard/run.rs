//! The threads: a loop with its mailbox and its clock, and the writer of its
//! snapshots.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use posthouse_core::Now;
use posthouse_log::{Log, LogState};
use tokio::sync::mpsc::UnboundedSender;

use super::attend::Effect;
use super::clock::Clock;
use super::engine::{Engine, Rest};
use super::mail::Mail;
use super::mailbox::{Classes, Mailbox};
use super::meta::{MetaEngine, MetaMail};
use super::snapshots::SnapshotStep;
use crate::store::snapshot::{Snapshots, Taken};

/// Called when a loop has ended because its log failed: what the log said.
pub type OnFailure = Arc<dyn Fn(String) + Send + Sync>;

/// A loop that can be run on a thread.
pub trait Loop: Send + 'static {
    /// What it is sent.
    type Mail: Send + std::fmt::Debug + 'static;
    /// Its log.
    type Log: Log;

    /// One turn.
    fn turn(&mut self, mail: &mut Classes<Self::Mail>, now: Now) -> Rest;
    /// What it asks for.
    fn take_effects(&mut self) -> std::collections::VecDeque<Effect>;
    /// Its log.
    fn log_mut(&mut self) -> &mut Self::Log;
    /// Its log, at the end.
    fn into_log(self) -> Self::Log;
    /// Why it failed.
    fn failure(&self) -> Option<String>;
}

impl<L: Log> Loop for Engine<L> {
    type Mail = Mail;
    type Log = L;

    fn turn(&mut self, mail: &mut Classes<Mail>, now: Now) -> Rest {
        Engine::turn(self, mail, now)
    }

    fn take_effects(&mut self) -> std::collections::VecDeque<Effect> {
        Engine::take_effects(self)
    }

    fn log_mut(&mut self) -> &mut L {
        Engine::log_mut(self)
    }

    fn into_log(self) -> L {
        Engine::into_log(self)
    }

    fn failure(&self) -> Option<String> {
        self.failed().map(|problem| problem.detail.clone())
    }
}

impl<L: Log> Loop for MetaEngine<L> {
    type Mail = MetaMail;
    type Log = L;

    fn turn(&mut self, mail: &mut Classes<MetaMail>, now: Now) -> Rest {
        MetaEngine::turn(self, mail, now)
    }

    fn take_effects(&mut self) -> std::collections::VecDeque<Effect> {
        MetaEngine::take_effects(self)
    }

    fn log_mut(&mut self) -> &mut L {
        MetaEngine::log_mut(self)
    }

    fn into_log(self) -> L {
        MetaEngine::into_log(self)
    }

    fn failure(&self) -> Option<String> {
        self.failed().map(|problem| problem.detail.clone())
    }
}

/// A loop with its mailbox and its clock, to be run by a thread or turn by turn.
#[derive(Debug)]
pub struct Runner<E: Loop> {
    engine: E,
    clock: Clock,
    mailbox: Mailbox<E::Mail>,
    effects: UnboundedSender<Effect>,
    mail: Classes<E::Mail>,
}

impl<E: Loop> Runner<E> {
    /// What the engine asks for goes to `effects`.
    pub fn new(
        engine: E,
        clock: Clock,
        mailbox: Mailbox<E::Mail>,
        effects: UnboundedSender<Effect>,
    ) -> Self {
        Runner { engine, clock, mailbox, effects, mail: Classes::default() }
    }

    /// Waits for mail for up to `patience` (`None`: for as long as it takes), and makes
    /// one turn. Returns what follows, and what time it was.
    pub fn turn(&mut self, patience: Option<Duration>) -> (Rest, Now) {
        self.mailbox.take(&mut self.mail, patience);
        let now = self.clock.now();
        let rest = self.engine.turn(&mut self.mail, now);
        for effect in self.engine.take_effects() {
            // Nobody attends any more: the process is ending.
            let _ = self.effects.send(effect);
        }
        (rest, now)
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// The engine, to drive its log by hand.
    pub fn engine_mut(&mut self) -> &mut E {
        &mut self.engine
    }

    /// Closes the mailbox and the log: the loop has ended.
    pub fn end(self) -> LogState {
        // Whoever still writes learns from the closed box that nobody reads.
        drop(self.mailbox.close());
        self.engine.into_log().close()
    }
}

/// Runs a loop on a thread of its own until it ends. The log is closed then.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn<E: Loop>(
    name: String,
    mut runner: Runner<E>,
    on_failure: OnFailure,
) -> std::io::Result<JoinHandle<LogState>> {
    let bell = runner.mailbox.clone();
    runner.engine.log_mut().watch(Box::new(move |_| bell.ring()));
    std::thread::Builder::new().name(name).spawn(move || {
        // A loop that panics has a state that nobody should rely on: the process ends
        // rather than go on without it.
        let guard = AbortOnPanic;
        let mut patience = Some(Duration::ZERO);
        loop {
            let (rest, now) = runner.turn(patience);
            if rest.ended {
                break;
            }
            patience = patience_of(&rest, now);
        }
        std::mem::forget(guard);
        if let Some(failure) = runner.engine.failure() {
            on_failure(failure);
        }
        runner.end()
    })
}

/// How long a loop may sleep.
fn patience_of(rest: &Rest, now: Now) -> Option<Duration> {
    if rest.busy {
        return Some(Duration::ZERO);
    }
    let lease = rest.until.map(|until| until.0.saturating_sub(now.lease.0));
    let wall = rest.until_wall.map(|until| until.0.saturating_sub(now.wall.0));
    let ms = match (lease, wall) {
        (Some(a), Some(b)) => a.min(b),
        (Some(ms), None) | (None, Some(ms)) => ms,
        (None, None) => return None,
    };
    // A clock that is set must not make a loop sleep for years.
    Some(Duration::from_millis(ms.clamp(1, 60_000)))
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a shard's thread has panicked; the process ends");
            std::process::abort();
        }
    }
}

/// Called with what came of each snapshot.
pub type Tell = Box<dyn Fn(Result<Taken, String>) + Send>;

/// Who writes the snapshots of one loop, step by step as they come.
pub struct SnapshotWriter {
    snapshots: Snapshots,
    steps: std::sync::mpsc::Receiver<SnapshotStep>,
    tell: Tell,
    failed: Option<String>,
}

impl std::fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotWriter").field("snapshots", &self.snapshots).finish_non_exhaustive()
    }
}

impl SnapshotWriter {
    /// Takes steps from `steps`; `tell` hears what came of each snapshot.
    pub fn new(
        snapshots: Snapshots,
        steps: std::sync::mpsc::Receiver<SnapshotStep>,
        tell: Tell,
    ) -> Self {
        SnapshotWriter { snapshots, steps, tell, failed: None }
    }

    /// Does the next step that has come. `false` if there is none.
    pub fn step(&mut self) -> bool {
        let step = self.steps.try_recv();
        let has_come = step.is_ok();
        step.into_iter().for_each(|step| self.take(step));
        has_come
    }

    fn take(&mut self, step: SnapshotStep) {
        match step {
            SnapshotStep::Begin(begin) => {
                self.failed = None;
                self.snapshots.begin(*begin);
            }
            SnapshotStep::Pages(captured, _load) => {
                if self.failed.is_none()
                    && let Err(error) = self.snapshots.pages(captured)
                {
                    self.failed = Some(error.to_string());
                }
            }
            SnapshotStep::Finish => {
                let taken = match self.failed.take() {
                    None => self.snapshots.finish().map_err(|error| error.to_string()),
                    Some(error) => Err(error),
                };
                if taken.is_err() {
                    self.snapshots.give_up();
                }
                (self.tell)(taken);
            }
        }
    }
}

/// Writes the snapshots of one loop on a thread of its own.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn_snapshots(
    name: String,
    mut writer: SnapshotWriter,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        while let Ok(step) = writer.steps.recv() {
            writer.take(step);
        }
    })
}
