//! What the owner, the writing thread, the tender and the readers share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Reserve;
use super::queue::Queue;
use super::spares::Spares;
use super::table::Table;
use super::tail::Tail;
use crate::Limits;
use crate::files::Files;
use crate::state::StateCell;

/// The shared half of a local log.
#[derive(Debug)]
pub(crate) struct Shared {
    pub files: Arc<dyn Files>,
    pub dir: PathBuf,
    pub limits: Limits,
    pub state: StateCell,
    pub table: Table,
    pub tail: Tail,
    pub spares: Spares,
    pub queue: Queue,
    /// Bytes written since the start; for the tender, which keeps out of the way.
    written_bytes: AtomicU64,
    /// Bytes that still fit in the active segment.
    left_bytes: AtomicU64,
    /// The owner is gone. Another may come and write over freed files.
    ended: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        files: Arc<dyn Files>,
        dir: PathBuf,
        limits: Limits,
        state: StateCell,
        table: Table,
        tail: Tail,
        spares: Spares,
    ) -> Self {
        Shared {
            files,
            dir,
            limits,
            state,
            table,
            tail,
            spares,
            queue: Queue::default(),
            written_bytes: AtomicU64::new(0),
            left_bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    pub(crate) fn count_written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_left(&self, bytes: u64) {
        self.left_bytes.store(bytes, Ordering::Relaxed);
    }

    fn left(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn reserve(&self) -> Reserve {
        let (spares, left_bytes) = (self.spares.ready(), self.left());
        let bytes = left_bytes + spares as u64 * self.spares.room();
        Reserve { spares, left_bytes, bytes }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}
