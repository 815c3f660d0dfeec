//! What was handed over and not taken up by the writing thread.

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

/// Frames between the owner and the writing thread.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Arc<Frame>>,
    latched: bool,
    /// The writing thread sleeps and wants to be woken.
    asleep: bool,
    /// The owner has asked for a sync.
    sync: bool,
    stop: Option<Stop>,
}

impl Queue {
    pub(crate) fn push(&self, frame: Arc<Frame>) -> Result<(), Latched> {
        let mut inner = self.inner.lock();
        if inner.latched {
            return Err(Latched);
        }
        inner.frames.push_back(frame);
        let asleep = std::mem::take(&mut inner.asleep);
        drop(inner);
        if asleep {
            self.more.notify_one();
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
        drop(inner);
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
    }

    /// Moves up to `most` bytes, but at least one frame, into `batch`, without
    /// waiting.
    pub(crate) fn take(&self, batch: &mut Vec<Arc<Frame>>, most: usize) -> bool {
        take_batch(&mut self.inner.lock().frames, batch, most)
    }

    /// Waits for something to do, at most to `until`. Sleeps at once: looking a few
    /// microseconds longer before that was measured, and on two cores it takes more
    /// from the owner than it gives.
    pub(crate) fn next(
        &self,
        batch: &mut Vec<Arc<Frame>>,
        most: usize,
        until: Option<Instant>,
    ) -> Job {
        let mut inner = self.inner.lock();
        loop {
            if inner.stop == Some(Stop::Abort) {
                return Job::Stop(Stop::Abort);
            }
            // First: frames may come without an end.
            if std::mem::take(&mut inner.sync) {
                return Job::Sync;
            }
            if take_batch(&mut inner.frames, batch, most) {
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

fn take_batch(frames: &mut VecDeque<Arc<Frame>>, batch: &mut Vec<Arc<Frame>>, most: usize) -> bool {
    let mut bytes = 0;
    while let Some(frame) = frames.front() {
        bytes += frame.content_bytes();
        if bytes > most && !batch.is_empty() {
            break;
        }
        batch.extend(frames.pop_front());
    }
    !batch.is_empty()
}
