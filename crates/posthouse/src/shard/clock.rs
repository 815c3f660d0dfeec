//! The two clocks of a shard, read once a turn.

use std::time::{Instant, SystemTime};

use posthouse_core::{Now, ShardMs, UnixMs};

use crate::units;

/// Reads both clocks so that neither ever goes back, over restarts too.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
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
    pub fn resume((wall_ms_before, lease_ms_before): (u64, u64)) -> Clock {
        let wall = wall_ms().max(wall_ms_before);
        Clock { started: Instant::now(), lease_at_start: lease_ms_before.max(wall_ms()), wall }
    }

    /// Both clocks now.
    pub fn now(&mut self) -> Now {
        self.wall = self.wall.max(wall_ms());
        Now { wall: UnixMs(self.wall), lease: self.lease() }
    }

    /// The lease clock now.
    pub fn lease(&self) -> ShardMs {
        ShardMs(self.lease_at_start + self.started.elapsed().as_millis() as u64)
    }
}
