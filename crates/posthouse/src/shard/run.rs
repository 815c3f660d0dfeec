//! The threads: a loop with its mailbox and its clock, and the writer of its
//! snapshots.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

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
    type Mail: Send + 'static;
    /// Its log.
    type Log: Log;

    /// One turn.
    fn turn(&mut self, mail: &mut Classes<Self::Mail>, now: posthouse_core::Now) -> Rest;
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

    fn turn(&mut self, mail: &mut Classes<Mail>, now: posthouse_core::Now) -> Rest {
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

    fn turn(&mut self, mail: &mut Classes<MetaMail>, now: posthouse_core::Now) -> Rest {
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

/// Runs a loop on a thread of its own until it ends. The log is closed then.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn<E: Loop>(
    name: String,
    mut engine: E,
    mut clock: Clock,
    mailbox: Mailbox<E::Mail>,
    effects: UnboundedSender<Effect>,
    on_failure: OnFailure,
) -> std::io::Result<JoinHandle<LogState>> {
    let bell = mailbox.clone();
    engine.log_mut().watch(Box::new(move |_| bell.ring()));
    std::thread::Builder::new().name(name).spawn(move || {
        // A loop that panics has a state that nobody should rely on: the process ends
        // rather than go on without it.
        let guard = AbortOnPanic;
        let mut mail = Classes::default();
        let mut patience = Some(Duration::ZERO);
        loop {
            mailbox.take(&mut mail, patience);
            let now = clock.now();
            let rest = engine.turn(&mut mail, now);
            for effect in engine.take_effects() {
                // Nobody attends any more: the process is ending.
                let _ = effects.send(effect);
            }
            if rest.ended {
                break;
            }
            patience = patience_of(&rest, now);
        }
        std::mem::forget(guard);
        // Whoever still writes learns from the closed box that nobody reads.
        drop(mailbox.close());
        if let Some(failure) = engine.failure() {
            on_failure(failure);
        }
        engine.into_log().close()
    })
}

/// How long a loop may sleep.
fn patience_of(rest: &Rest, now: posthouse_core::Now) -> Option<Duration> {
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

/// Writes the snapshots of one loop on a thread of its own; `tell` says what came of
/// each.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn_snapshots(
    name: String,
    mut snapshots: Snapshots,
    steps: std::sync::mpsc::Receiver<SnapshotStep>,
    tell: impl Fn(Result<Taken, String>) + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        let mut failed: Option<String> = None;
        for step in steps {
            match step {
                SnapshotStep::Begin(begin) => {
                    failed = None;
                    snapshots.begin(*begin);
                }
                SnapshotStep::Pages(captured, _load) => {
                    if failed.is_none()
                        && let Err(error) = snapshots.pages(captured)
                    {
                        failed = Some(error.to_string());
                    }
                }
                SnapshotStep::Finish => {
                    let taken = match failed.take() {
                        None => snapshots.finish().map_err(|error| error.to_string()),
                        Some(error) => Err(error),
                    };
                    if taken.is_err() {
                        snapshots.give_up();
                    }
                    tell(taken);
                }
            }
        }
    })
}
