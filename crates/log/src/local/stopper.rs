//! Tells a thread to end while it pauses.

use std::sync::{Condvar, PoisonError};
use std::time::Duration;

use crate::sync::Mutex;

/// A pause that can be cut short, once and for good.
#[derive(Debug, Default)]
pub(crate) struct Stopper {
    stopped: Mutex<bool>,
    told: Condvar,
}

impl Stopper {
    pub(crate) fn stop(&self) {
        *self.stopped.lock() = true;
        self.told.notify_all();
    }

    /// Pauses for `pause`. Returns whether it was told to stop.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        let stopped = self.stopped.lock();
        let waited = self.told.wait_timeout_while(stopped, pause, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
