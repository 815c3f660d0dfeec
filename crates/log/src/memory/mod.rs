//! Logs in memory: deterministic, without threads, with faults on demand.
//!
//! - [`MemoryLog`] is a log of one owner on a [`MemoryStore`], which outlives it as a
//!   disk outlives a process;
//! - [`SharedLog`] is one of several claimants of a [`Partition`], a stand-in for one
//!   partition of a replicated log.
//!
//! Their watchers are called within the call that moved the state.

mod frames;
mod partition;
mod shared;
mod single;

pub use self::frames::MemoryScan;
pub use self::partition::{Mischief, Partition};
pub use self::shared::{SharedLog, SharedReader, TakeOverError};
pub use self::single::{InUse, MemoryLog, MemoryOptions, MemoryReader, MemoryStore};
