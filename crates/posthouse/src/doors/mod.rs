//! The doors: how clients come in.
//!
//! A door turns bytes into calls on the [`Broker`] and answers
//! into bytes. It knows nothing behind the broker, and no other door; what they have in
//! common is in [`calls`].

pub mod calls;
mod certificate;
mod clocks;
pub mod grpc;
pub mod http;
pub mod intake;
pub mod listen;
mod origin;
pub mod rocketmq;
mod unread;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::Response;

use crate::broker::Broker;

/// Everything that one port serves.
pub fn router(broker: &Arc<Broker>) -> Router {
    routers(broker, None).0
}

/// The same, and what a port for RocketMQ clients alone serves. They are told to find the
/// node at `advertise`, or where they came in.
pub fn routers(broker: &Arc<Broker>, advertise: Option<rocketmq::Advertise>) -> (Router, Router) {
    let guard = || middleware::from_fn_with_state(broker.clone(), keep_pages_out);
    let only_grpc = || middleware::from_fn(only_grpc);
    let rocketmq = rocketmq::router(broker, advertise).layer(only_grpc());
    let grpc = grpc::router(broker).layer(only_grpc()).merge(rocketmq.clone());
    let all = grpc.merge(http::router(broker)).fallback(no_route).layer(guard());
    (all, rocketmq.fallback(no_route).layer(guard()))
}

/// Whether a request is gRPC.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Refuses what web pages of others ask, in the terms of the door that they ask at.
async fn keep_pages_out(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response {
    match origin::check(&broker, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) if is_grpc(request.headers()) => grpc::status(problem).into_http(),
        Err(problem) => http::refuse(problem),
    }
}

/// The gRPC library does not look at the content type, and a web page can send any body
/// to any address as long as it does not say that it is gRPC.
async fn only_grpc(request: Request, next: Next) -> Response {
    if is_grpc(request.headers()) { next.run(request).await } else { no_route(request).await }
}

async fn no_route(request: Request) -> Response {
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented("there is no such service or method").into_http();
    }
    http::no_route(request).await
}
