//! The core of Posthouse: what a queue does, without anything it does it with.
//!
//! Commands go in, records come out, and state comes from records alone. Nothing in
//! this crate reads a clock, a file, a socket or a random number, starts a thread,
//! or lets the order of a hash map show: the same records give the same state on
//! every machine and after every crash.
//!
//! - [`queue`]: the machine of a shard: messages, groups, leases, dead letters;
//! - [`catalog`]: the machine of the metadata: topics, groups, users;
//! - [`record`]: the facts that a shard's log holds;
//! - [`index`], [`page`], [`chunk`]: how the views are kept, in memory and out of it;
//! - [`message`], [`ident`], [`filter`], [`name`]: what users give and get.

pub mod catalog;
pub mod chunk;
pub mod filter;
pub mod ident;
pub mod index;
pub mod machine;
pub mod message;
pub mod name;
pub mod page;
pub mod queue;
pub mod record;
pub mod schedule;
mod words;

pub use words::{
    Fence, GroupId, MAX_POSITION, Now, PartitionId, Position, Run, Seq, ShardId, ShardMs, TopicId,
    UnixMs,
};
