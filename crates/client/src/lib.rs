//! The Rust client of Posthouse, a message queue.
//!
//! ```no_run
//! # async fn example() -> Result<(), posthouse_client::Error> {
//! use posthouse_client::{Client, ConsumeOptions, Delivery, Message};
//!
//! let client = Client::connect("http://127.0.0.1:7650").await?;
//! client.publish("orders", Message::new("an order").key("customer-7")).await?;
//!
//! client
//!     .consume("billing", ConsumeOptions::default(), |delivery: Delivery| async move {
//!         println!("{}", String::from_utf8_lossy(&delivery.body));
//!         Ok(()) // acknowledged; an error gives the message back, with the error's text
//!     })
//!     .await
//! # }
//! ```
//!
//! - [`Client::publish`] and [`Client::publish_all`]: one call, one answer;
//! - [`Publisher`]: many messages from many tasks, in batches, pipelined;
//! - [`Message::delay`] and [`Message::deliver_at`]: messages that come later, which
//!   [`Client::reschedule`] moves and [`Client::cancel`] calls back;
//! - [`Client::prepare`], [`Client::commit`] and [`Client::rollback`]: messages that come
//!   together when that is decided; [`Client::checks`] asks about what was left open;
//! - [`Client::receive`]: messages to handle and settle as you like;
//! - [`Client::consume`] and [`Client::consume_until`]: a handler; leases are extended
//!   while it runs, and the connection is made anew when it breaks;
//! - [`Client::raw`]: everything else, as [`proto`] has it.
//!
//! An error says whether it pays to try again: see [`Error::is_retryable`] and
//! [`Error::is_outcome_unknown`].

mod client;
#[doc(hidden)]
pub mod codec;
mod consumer;
mod error;
mod message;
mod publisher;
mod recurring;
mod schedule;
mod transaction;

/// The native interface, generated from its definition.
pub mod proto {
    #![allow(missing_docs, clippy::all, reason = "generated")]
    tonic::include_proto!("posthouse.v1");

    /// The descriptors of the interface, encoded.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/posthouse.v1.bin"));
}

pub use client::{Client, ClientBuilder};
pub use consumer::{ConsumeOptions, HandlerError};
pub use error::{Error, Problem, rpc_status};
pub use message::{Delivery, Message, NameTaken, Origin, Outcome, Published, ReceiveOptions};
pub use publisher::{Pending, Publisher, PublisherOptions};
pub use recurring::{Recurring, RecurringInfo};
pub use schedule::{ScheduleOutcome, Scheduled, When};
pub use transaction::{Check, Prepare, Transaction, TransactionMessage, TransactionState};
