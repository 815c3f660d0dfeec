//! The doors: how clients come in.
//!
//! A door turns bytes into calls on the [`Broker`] and answers
//! into bytes. It knows nothing behind the broker, and no other door; what they have in
//! common is in [`calls`].

pub mod calls;
pub mod grpc;
pub mod http;
pub mod intake;
pub mod listen;
mod opening;

use std::sync::Arc;

use axum::Router;

use crate::broker::Broker;

/// Everything that one port serves.
pub fn router(broker: &Arc<Broker>) -> Router {
    grpc::router(broker).merge(http::router(broker)).fallback(http::no_route)
}
