//! The clocks of the machine that is simulated.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use posthouse::shard::clock::Time;
use posthouse_core::Now;

/// No run begins before this, Unix milliseconds: a moment like any other.
const BEGIN_MS: u64 = 1_800_000_000_000;

/// Clocks that go on when they are told to.
#[derive(Debug)]
pub struct SimTime {
    steady: AtomicU64,
    wall: AtomicU64,
    /// What the loops of the shards saw when they last made a turn, over restarts too.
    seen: Mutex<Vec<Now>>,
}

impl SimTime {
    /// Clocks for a node with so many shards; the wall clock shows so much more than at
    /// that moment.
    pub fn new(shards: u16, wall_ms: u64) -> Self {
        SimTime {
            steady: AtomicU64::new(0),
            wall: AtomicU64::new(BEGIN_MS + wall_ms),
            seen: Mutex::new(vec![Now::default(); shards.into()]),
        }
    }

    /// `steady_ms` pass; the wall clock makes `wall_ms` of them.
    pub fn pass(&self, steady_ms: u64, wall_ms: u64) {
        self.steady.fetch_add(steady_ms, Ordering::Relaxed);
        self.wall.fetch_add(wall_ms, Ordering::Relaxed);
    }

    /// Sets the wall clock, by so many milliseconds, back too.
    pub fn set_by(&self, ms: i64) {
        let now = self.wall.load(Ordering::Relaxed);
        self.wall.store(now.saturating_add_signed(ms), Ordering::Relaxed);
    }

    /// A shard has made a turn.
    pub fn saw(&self, shard: usize, now: Now) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen[shard] = now;
    }

    /// What each shard saw last. Nothing that a shard does from now on is earlier, and
    /// nothing that it has done so far was later.
    pub fn seen(&self) -> Vec<Now> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Time for SimTime {
    fn wall_ms(&self) -> u64 {
        self.wall.load(Ordering::Relaxed)
    }

    fn steady_ms(&self) -> u64 {
        self.steady.load(Ordering::Relaxed)
    }
}
