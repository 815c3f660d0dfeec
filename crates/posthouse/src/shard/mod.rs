//! Shards at work: the thread around a machine.
//!
//! ```text
//! doors -> mailbox -> engine: decide, apply, due, match -> frame -> log
//!                        ^                                       |
//!      replies, deliveries <- gate <------- durable -------------+
//! ```
//! [`engine`] is the loop of a shard of messages, [`meta`] that of the catalog. Both
//! run without a clock, a thread or a disk of their own: whoever calls them gives
//! them the time and the mail, and does what they ask for ([`Effect`]).

pub mod attend;
pub mod clean;
pub mod clock;
pub mod engine;
pub mod gate;
pub mod hold;
pub mod mail;
pub mod mailbox;
pub mod meta;
pub mod metrics;
pub mod probe;
pub mod run;
mod serve;
pub mod snapshots;
pub mod waiters;

use tokio::sync::oneshot;

use crate::problem::Problem;

pub use attend::Effect;
pub use engine::{Engine, EngineOptions};
pub use mail::{Mail, Question};
pub use metrics::ShardMetrics;
pub use waiters::{Ticket, Waiter};

/// Where an answer goes.
pub type Tx<T> = oneshot::Sender<Result<T, Problem>>;
