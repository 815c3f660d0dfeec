//! Transactions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Refused, answer};
use super::ask::{At, Of, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{Prepare, Problem, Transaction, TransactionChecks, Transactions};
use crate::problem;
use crate::units;

/// Which transactions that wait for a decision.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Only parked ones (`true`), or only others (`false`).
    parked: Option<bool>,
    /// Only those of this producer.
    #[serde(default)]
    producer: String,
    /// Only those whose first message is for this topic.
    #[serde(default)]
    topic: String,
    /// The `next` of the page before.
    #[serde(default)]
    after: String,
    /// At most so many; 100 by default, 1000 at most.
    #[serde(default)]
    limit: u32,
}

/// Whose checks.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    /// The producer.
    #[serde(default)]
    producer: String,
    /// Only transactions whose first message is for this topic; for any to which the caller
    /// may publish if absent.
    #[serde(default)]
    topic: String,
    /// At most so many; 10 by default, 100 at most.
    #[serde(default)]
    max: u32,
    /// How long to wait for the first, like `30s`; not at all by default, `5m` at most.
    wait: Option<String>,
}

/// Prepare messages: they come together when that is decided, or not at all
///
/// 201 when they are durable; 200 if they had been prepared before under the same publish
/// ids.
#[utoipa::path(post, path = "/v1/transactions", tag = "transactions", request_body = Prepare,
    responses((status = 201, body = Transaction), (status = 200, body = Transaction),
    (status = "default", body = Problem)))]
pub async fn prepare(
    State(calls): State<Calls>,
    Who(caller): Who,
    Of(prepare): Of<Prepare>,
) -> Result<(StatusCode, Json<Transaction>), Refused> {
    let prepared = calls.prepare_transaction(&caller, prepare.into_proto()?).await?;
    let status = if prepared.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(prepared.into())))
}

/// Transactions that wait for a decision
#[utoipa::path(get, path = "/v1/transactions", tag = "transactions", params(Which),
    responses((status = 200, body = Transactions), (status = "default", body = Problem)))]
pub async fn list(
    State(calls): State<Calls>,
    Who(caller): Who,
    Params(which): Params<Which>,
) -> Answer<Transactions> {
    let Which { parked, producer, topic, after, limit } = which;
    let request = proto::ListTransactionsRequest { parked, producer, topic, after, limit };
    answer(calls.list_transactions(&caller, request).await)
}

/// Transactions that a producer is asked about
///
/// Waits for the first as long as `wait` says. Each is given out once for every check; the
/// answer is a commit, a rollback, or nothing yet.
#[utoipa::path(get, path = "/v1/transactions/checks", tag = "transactions", params(Whose),
    responses((status = 200, body = TransactionChecks), (status = "default", body = Problem)))]
pub async fn checks(
    State(calls): State<Calls>,
    Who(caller): Who,
    Params(whose): Params<Whose>,
) -> Answer<TransactionChecks> {
    let wait_ms = match whose.wait {
        None => 0,
        Some(text) => units::duration_ms(&text)
            .map_err(|what| problem::Problem::invalid("wait", text, what))?,
    };
    let Whose { producer, topic, max, .. } = whose;
    let request = proto::TakeTransactionChecksRequest { producer, topic, max, wait_ms };
    answer(calls.take_transaction_checks(&caller, request).await)
}

/// A transaction, and what became of it
#[utoipa::path(get, path = "/v1/transactions/{id}", tag = "transactions",
    params(("id" = String, Path)), responses(
    (status = 200, body = Transaction), (status = "default", body = Problem)))]
pub async fn get(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
) -> Answer<Transaction> {
    answer(calls.get_transaction(&caller, proto::TransactionRequest { id }).await)
}

/// Let the messages of a transaction come
///
/// With 200 they have come, or will at their time; also if that was decided before.
#[utoipa::path(post, path = "/v1/transactions/{id}/commit", tag = "transactions",
    params(("id" = String, Path)), responses(
    (status = 200, body = Transaction), (status = "default", body = Problem)))]
pub async fn commit(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
) -> Answer<Transaction> {
    answer(calls.commit_transaction(&caller, proto::TransactionRequest { id }).await)
}

/// Let the messages of a transaction go
///
/// With 200 nobody will ever get them; also if that was decided before.
#[utoipa::path(post, path = "/v1/transactions/{id}/rollback", tag = "transactions",
    params(("id" = String, Path)), responses(
    (status = 200, body = Transaction), (status = "default", body = Problem)))]
pub async fn rollback(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
) -> Answer<Transaction> {
    answer(calls.rollback_transaction(&caller, proto::TransactionRequest { id }).await)
}
