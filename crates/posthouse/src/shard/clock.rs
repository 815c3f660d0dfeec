//! The two clocks of a shard, read once a turn.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use posthouse_core::{Now, ShardMs, UnixMs};

use crate::units;

/// Where the time comes from.
pub trait Time: Send + Sync + std::fmt::Debug {
    /// What the time of the day is, Unix milliseconds. Can be set, back too.
    fn wall_ms(&self) -> u64;
    /// Milliseconds since some moment. Never goes back.
    fn steady_ms(&self) -> u64;
}

/// The system's clocks.
#[derive(Debug)]
pub struct SystemClocks {
    started: Instant,
}

impl SystemClocks {
    /// The system's clocks, to be shared.
    pub fn shared() -> Arc<dyn Time> {
        Arc::new(SystemClocks { started: Instant::now() })
    }
}

impl Time for SystemClocks {
    fn wall_ms(&self) -> u64 {
        wall_ms()
    }

    fn steady_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Reads both clocks so that neither ever goes back, over restarts too.
#[derive(Debug)]
pub struct Clock {
    time: Arc<dyn Time>,
    steady_at_start: u64,
    lease_at_start: u64,
    wall: u64,
}

/// The system's wall clock, Unix milliseconds.
pub fn wall_ms() -> u64 {
    units::unix_ms(SystemTime::now())
}

impl Clock {
    /// Goes on from the clocks as the log last saw them. The lease clock starts no
    /// earlier than the wall clock says, so the time that the machine was down
    /// counts; after that it follows the monotonic clock, and setting the wall clock
    /// neither ends nor prolongs a lease.
    pub fn resume(time: Arc<dyn Time>, (wall_ms_before, lease_ms_before): (u64, u64)) -> Clock {
        let (wall, steady_at_start) = (time.wall_ms(), time.steady_ms());
        Clock {
            time,
            steady_at_start,
            lease_at_start: lease_ms_before.max(wall),
            wall: wall.max(wall_ms_before),
        }
    }

    /// Both clocks now.
    pub fn now(&mut self) -> Now {
        self.wall = self.wall.max(self.time.wall_ms());
        Now { wall: UnixMs(self.wall), lease: self.lease() }
    }

    /// The lease clock now.
    pub fn lease(&self) -> ShardMs {
        ShardMs(self.lease_at_start + self.time.steady_ms() - self.steady_at_start)
    }
}
