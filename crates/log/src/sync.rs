//! A mutex without poison.

use std::sync::{MutexGuard, PoisonError};

/// [`std::sync::Mutex`], whose guarded values here are never left half-changed by a
/// panic: nothing that can panic runs between two steps of a change.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
