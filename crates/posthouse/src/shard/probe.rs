//! What whoever drives a loop needs of it besides its turns.

use posthouse_core::chunk::Miss;
use posthouse_core::queue::Shard;
use posthouse_log::Log;

use super::engine::Engine;

impl<L: Log> Engine<L> {
    /// The log, to close it.
    pub fn into_log(self) -> L {
        self.log
    }

    /// The log, to set who is called when it moves, or to drive it.
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// The state, to look at.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Whether all that it has applied is durable, and every answer has left.
    pub fn is_quiet(&self) -> bool {
        self.frame.is_empty() && self.log.backlog() == 0 && self.gate.is_empty()
    }

    /// Lets go of blocks of chunks, as if there were no memory for them. Returns how many.
    pub fn forget_blocks(&mut self, which: impl Fn(Miss) -> bool) -> usize {
        self.cache.forget_blocks(which)
    }
}
