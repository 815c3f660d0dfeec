//! What was handed over and not taken up by the writing threads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, PoisonError};
use std::time::Instant;

use posthouse_frame::Frame;

use crate::Latched;
use crate::sync::Mutex;

/// How the writing thread is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After everything handed over was written.
    Close,
    /// Now.
    Abort,
}

/// What the writing thread is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Write the batch.
    Frames,
    /// Sync what was written.
    Sync,
    /// The time given has passed and nothing came.
    Timeout,
    /// End.
    Stop(Stop),
}

/// The most bytes that share a sync, unless [`Queue::sync_ends`] says otherwise. A batch
/// of this size stays in the processor's cache between being copied and being sent to the
/// disk, and a disk whose syncs are quick is used best by it (measured: 1 MiB 2.2 GB/s,
/// 8 MiB 1.9 GB/s).
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// What waits is written while a sync runs if it is at least this much: then copying it to
/// the system takes a noticeable part of a sync. Less than this waits for the end of the
/// sync, and is written in one piece with what has come by then.
const AHEAD_BYTES: usize = 256 << 10;

/// Frames between the owner and the writing threads.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    /// For the thread that writes and syncs.
    more: Condvar,
    /// For the thread that writes while the other syncs.
    enough: Condvar,
}

#[derive(Debug)]
struct Inner {
    frames: VecDeque<Arc<Frame>>,
    /// Bytes of all `frames`.
    bytes: usize,
    /// The most bytes that share a sync.
    most: usize,
    /// A sync is under way.
    syncing: bool,
    /// Bytes taken to be written while a sync ran: the next one covers them.
    ahead: usize,
    latched: bool,
    /// The thread that writes and syncs sleeps and wants to be woken.
    asleep: bool,
    /// The thread that writes ahead sleeps and wants to be woken.
    ahead_asleep: bool,
    /// The owner has asked for a sync.
    sync: bool,
    stop: Option<Stop>,
}

impl Default for Queue {
    fn default() -> Self {
        let inner = Inner {
            frames: VecDeque::new(),
            bytes: 0,
            most: BATCH_BYTES,
            syncing: false,
            ahead: 0,
            latched: false,
            asleep: false,
            ahead_asleep: false,
            sync: false,
            stop: None,
        };
        Queue { inner: Mutex::new(inner), more: Condvar::new(), enough: Condvar::new() }
    }
}

impl Inner {
    /// Moves what the next sync is to cover into `batch`, but at least one frame. `false` if
    /// there is none.
    fn take_all(&mut self, batch: &mut Vec<Arc<Frame>>) -> bool {
        self.take(batch);
        self.ahead = 0;
        !batch.is_empty()
    }

    /// Moves what still goes into the next sync into `batch`, but at least one frame.
    /// Returns how many bytes.
    fn take(&mut self, batch: &mut Vec<Arc<Frame>>) -> usize {
        let most = self.most.saturating_sub(self.ahead);
        let mut bytes = 0;
        while let Some(frame) = self.frames.front() {
            let more = frame.content_bytes();
            if bytes + more > most && !batch.is_empty() {
                break;
            }
            bytes += more;
            batch.extend(self.frames.pop_front());
        }
        self.bytes -= bytes;
        bytes
    }

    /// Whether it is worth while to write during the sync that runs.
    fn is_enough_ahead(&self) -> bool {
        self.syncing && self.ahead < self.most && self.bytes >= AHEAD_BYTES
    }

    /// Whether the thread that writes ahead is to be woken now.
    fn wakes_ahead(&mut self) -> bool {
        let wakes = self.ahead_asleep && self.is_enough_ahead();
        self.ahead_asleep &= !wakes;
        wakes
    }
}

impl Queue {
    pub(crate) fn push(&self, frame: Arc<Frame>) -> Result<(), Latched> {
        let mut inner = self.inner.lock();
        if inner.latched {
            return Err(Latched);
        }
        inner.bytes += frame.content_bytes();
        inner.frames.push_back(frame);
        let asleep = std::mem::take(&mut inner.asleep);
        let wakes_ahead = inner.wakes_ahead();
        drop(inner);
        if asleep {
            self.more.notify_one();
        }
        if wakes_ahead {
            self.enough.notify_one();
        }
        Ok(())
    }

    /// Whether it takes no more frames.
    pub(crate) fn is_latched(&self) -> bool {
        self.inner.lock().latched
    }

    /// Takes no more frames, and forgets those that wait.
    pub(crate) fn latch(&self) {
        let mut inner = self.inner.lock();
        inner.latched = true;
        let waiting = std::mem::take(&mut inner.frames);
        inner.bytes = 0;
        drop(inner);
        self.enough.notify_one();
        drop(waiting);
    }

    /// Asks the writing thread for a sync.
    pub(crate) fn want_sync(&self) {
        self.inner.lock().sync = true;
        self.more.notify_one();
    }

    pub(crate) fn stop(&self, stop: Stop) {
        self.inner.lock().stop = Some(stop);
        self.more.notify_one();
        self.enough.notify_one();
    }

    /// Moves what shares a sync into `batch`, but at least one frame, without waiting.
    pub(crate) fn take(&self, batch: &mut Vec<Arc<Frame>>) -> bool {
        self.inner.lock().take_all(batch)
    }

    /// A sync begins, of all that was taken until now.
    pub(crate) fn sync_begins(&self) {
        let mut inner = self.inner.lock();
        (inner.syncing, inner.ahead) = (true, 0);
        let wakes_ahead = inner.wakes_ahead();
        drop(inner);
        if wakes_ahead {
            self.enough.notify_one();
        }
    }

    /// The sync has ended; the next is to cover up to `most` bytes.
    pub(crate) fn sync_ends(&self, most: usize) {
        let mut inner = self.inner.lock();
        (inner.syncing, inner.most) = (false, most);
    }

    /// Waits until there is something to be written while a sync runs. `false` if that
    /// will not be any more.
    pub(crate) fn wait_ahead(&self) -> bool {
        let mut inner = self.inner.lock();
        loop {
            if inner.latched || inner.stop.is_some() {
                return false;
            }
            if inner.is_enough_ahead() {
                return true;
            }
            inner.ahead_asleep = true;
            inner = self.enough.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.ahead_asleep = false;
        }
    }

    /// Moves into `batch` what is to be written while a sync runs, without waiting.
    /// `false` if it is not worth while any more.
    pub(crate) fn take_ahead(&self, batch: &mut Vec<Arc<Frame>>) -> bool {
        let mut inner = self.inner.lock();
        if !inner.is_enough_ahead() {
            return false;
        }
        inner.ahead += inner.take(batch);
        true
    }

    /// Waits for something to do, at most to `until`. Sleeps at once: looking a few
    /// microseconds longer before that was measured, and on two cores it takes more
    /// from the owner than it gives.
    pub(crate) fn next(&self, batch: &mut Vec<Arc<Frame>>, until: Option<Instant>) -> Job {
        let mut inner = self.inner.lock();
        loop {
            if inner.stop == Some(Stop::Abort) {
                return Job::Stop(Stop::Abort);
            }
            // First: frames may come without an end.
            if std::mem::take(&mut inner.sync) {
                return Job::Sync;
            }
            if inner.take_all(batch) {
                return Job::Frames;
            }
            if let Some(stop) = inner.stop {
                return Job::Stop(stop);
            }
            inner.asleep = true;
            inner = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.more.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    inner.asleep = false;
                    return Job::Timeout;
                }
                Some(left) => {
                    let waited = self.more.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            inner.asleep = false;
        }
    }
}
