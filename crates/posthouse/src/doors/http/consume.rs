//! Receiving, and what consumers say of messages.

use axum::extract::State;
use posthouse_client::proto;

use super::answer::{Answer, answer};
use super::ask::{At, Of, Who};
use crate::doors::calls::Calls;
use crate::json::{Ack, Extend, Nack, Problem, Receive, Received, Settled};

/// Receive messages, with a lease each
///
/// Waits for the first message as long as `wait` says; an empty list says that nothing
/// has come.
#[utoipa::path(post, path = "/v1/groups/{group}/receive", tag = "consume",
    params(("group" = String, Path)), request_body = Receive, responses(
    (status = 200, body = Received), (status = "default", body = Problem)))]
pub async fn receive(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(ask): Of<Receive>,
) -> Answer<Received> {
    answer(calls.receive(&caller, ask.into_proto(group)).await)
}

/// Acknowledge messages: they are done
#[utoipa::path(post, path = "/v1/groups/{group}/ack", tag = "consume",
    params(("group" = String, Path)), request_body = Ack, responses(
    (status = 200, body = Settled), (status = "default", body = Problem)))]
pub async fn ack(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(Ack { receipts }): Of<Ack>,
) -> Answer<Settled> {
    answer(calls.ack(&caller, proto::AckRequest { group, receipts }).await)
}

/// Give messages back: they come again, or become dead letters
#[utoipa::path(post, path = "/v1/groups/{group}/nack", tag = "consume",
    params(("group" = String, Path)), request_body = Nack, responses(
    (status = 200, body = Settled), (status = "default", body = Problem)))]
pub async fn nack(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(Nack { receipts, delay, reason }): Of<Nack>,
) -> Answer<Settled> {
    let delay_ms = delay.map(|delay| delay.0);
    let request = proto::NackRequest { group, receipts, delay_ms, reason };
    answer(calls.nack(&caller, request).await)
}

/// Keep messages longer: their leases end later
#[utoipa::path(post, path = "/v1/groups/{group}/extend", tag = "consume",
    params(("group" = String, Path)), request_body = Extend, responses(
    (status = 200, body = Settled), (status = "default", body = Problem)))]
pub async fn extend(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(Extend { receipts, lease }): Of<Extend>,
) -> Answer<Settled> {
    let lease_ms = lease.map(|lease| lease.0);
    answer(calls.extend(&caller, proto::ExtendRequest { group, receipts, lease_ms }).await)
}
