//! The doors: how clients come in.
//!
//! A door turns bytes into calls on the [`Broker`] and answers
//! into bytes. It knows nothing behind the broker, and no other door.

pub mod grpc;
pub mod intake;
pub mod listen;

use std::sync::Arc;

use axum::Router;

use crate::broker::Broker;

/// Everything that one port serves.
pub fn router(broker: &Arc<Broker>) -> Router {
    grpc::router(broker)
}
