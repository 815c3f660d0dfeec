//! How far the log has come, for all who want to know.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use posthouse_frame::FrameNo;

use crate::sync::Mutex;
use crate::{LogState, Wake};

/// The state, and who is told when it moves.
pub(crate) struct StateCell {
    /// The durable frame. While the log is open, it is the whole state.
    durable: AtomicU64,
    /// What a sync has covered: behind `durable` if the log acknowledges earlier.
    synced: AtomicU64,
    /// Somebody waits for `synced` to move.
    sync_wanted: AtomicBool,
    open: AtomicBool,
    /// How it ended; set before `open` is cleared.
    ended: Mutex<Option<LogState>>,
    /// Held while the watcher is called, so that it hears of states in order.
    watch: Mutex<Option<Wake>>,
}

impl std::fmt::Debug for StateCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

impl StateCell {
    pub(crate) fn new(durable: FrameNo) -> Self {
        StateCell {
            durable: AtomicU64::new(durable.0),
            synced: AtomicU64::new(durable.0),
            sync_wanted: AtomicBool::new(false),
            open: AtomicBool::new(true),
            ended: Mutex::new(None),
            watch: Mutex::new(None),
        }
    }

    pub(crate) fn get(&self) -> LogState {
        let ended = if self.is_open() { None } else { self.ended.lock().clone() };
        ended.unwrap_or_else(|| LogState::Durable(self.durable()))
    }

    pub(crate) fn durable(&self) -> FrameNo {
        FrameNo(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn synced(&self) -> FrameNo {
        FrameNo(self.synced.load(Ordering::Acquire))
    }

    pub(crate) fn set_synced(&self, synced: FrameNo) {
        let moved = self.synced.swap(synced.0, Ordering::AcqRel) < synced.0;
        if moved && self.sync_wanted.swap(false, Ordering::AcqRel) {
            let watch = self.watch.lock();
            if let Some(wake) = watch.as_ref() {
                wake(&self.get());
            }
        }
    }

    /// The watcher is to be called when [`StateCell::synced`] moves next.
    pub(crate) fn want_sync(&self) {
        self.sync_wanted.store(true, Ordering::Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Frames up to `durable` are durable.
    pub(crate) fn advance(&self, durable: FrameNo) {
        if self.is_open() && durable > self.durable() {
            self.set(LogState::Durable(durable));
        }
    }

    /// Final: nothing is written any more. The first failure is the one that counts.
    pub(crate) fn fail(&self, unknown_from: FrameNo, error: String) {
        if self.is_open() {
            self.set(LogState::Failed { unknown_from, error });
        }
    }

    /// Final: another owner has taken over.
    pub(crate) fn fence(&self, durable: FrameNo, by: u32) {
        if self.is_open() {
            self.set(LogState::Fenced { durable, by });
        }
    }

    fn set(&self, state: LogState) {
        let watch = self.watch.lock();
        self.durable.store(state.durable().0, Ordering::Release);
        if !state.is_open() {
            *self.ended.lock() = Some(state.clone());
            self.open.store(false, Ordering::Release);
        }
        if let Some(wake) = watch.as_ref() {
            wake(&state);
        }
    }

    pub(crate) fn watch(&self, wake: Wake) {
        let mut watch = self.watch.lock();
        wake(&self.get());
        *watch = Some(wake);
    }
}
