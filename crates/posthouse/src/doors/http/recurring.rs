//! `/v1/recurring`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Refused, answer, made};
use super::ask::{At, Of, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{Problem, PublishedMessage, Recurring, RecurringConfig, RecurringList};

/// Which recurring messages.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct Which {
    /// Only names that begin so.
    prefix: String,
    /// Only those of this topic.
    topic: String,
    /// The last name of the page before.
    after: String,
    /// At most so many; 100 by default, 1000 at most.
    limit: u32,
}

/// Recurring messages, in the order of their names
#[utoipa::path(get, path = "/v1/recurring", tag = "recurring", params(Which), responses(
    (status = 200, body = RecurringList), (status = "default", body = Problem)))]
pub async fn list(
    State(calls): State<Calls>,
    Who(caller): Who,
    Params(which): Params<Which>,
) -> Answer<RecurringList> {
    let Which { prefix, topic, after, limit } = which;
    let request = proto::ListRecurringRequest { prefix, topic, after, limit };
    answer(calls.list_recurring(&caller, request).await)
}

/// Make a recurring message, or replace one
#[utoipa::path(put, path = "/v1/recurring/{name}", tag = "recurring",
    params(("name" = String, Path, description = "Letters, digits, . _ -, 1 to 200 bytes")),
    request_body = RecurringConfig, responses(
    (status = 201, body = Recurring, description = "It was made"),
    (status = 200, body = Recurring, description = "It was there"),
    (status = "default", body = Problem)))]
pub async fn put(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
    Of(config): Of<RecurringConfig>,
) -> Result<(StatusCode, Json<Recurring>), Refused> {
    let config = Some(config.into_proto()?);
    let done = calls.put_recurring(&caller, proto::PutRecurringRequest { name, config }).await?;
    made(done.created, done.recurring.unwrap_or_default())
}

/// A recurring message, with its next ten times
#[utoipa::path(get, path = "/v1/recurring/{name}", tag = "recurring",
    params(("name" = String, Path)), responses(
    (status = 200, body = Recurring), (status = "default", body = Problem)))]
pub async fn get(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Recurring> {
    answer(calls.get_recurring(&caller, proto::GetRecurringRequest { name }).await)
}

/// Delete a recurring message
///
/// It does not come any more. What has come stays.
#[utoipa::path(delete, path = "/v1/recurring/{name}", tag = "recurring",
    params(("name" = String, Path)), responses(
    (status = 204), (status = "default", body = Problem)))]
pub async fn delete(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Result<StatusCode, Refused> {
    calls.delete_recurring(&caller, proto::DeleteRecurringRequest { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let a recurring message come no more for now
#[utoipa::path(post, path = "/v1/recurring/{name}/pause", tag = "recurring",
    params(("name" = String, Path)), responses(
    (status = 200, body = Recurring), (status = "default", body = Problem)))]
pub async fn pause(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Recurring> {
    answer(calls.pause_recurring(&caller, proto::PauseRecurringRequest { name }).await)
}

/// Let a recurring message come again, at times from now on
#[utoipa::path(post, path = "/v1/recurring/{name}/resume", tag = "recurring",
    params(("name" = String, Path)), responses(
    (status = 200, body = Recurring), (status = "default", body = Problem)))]
pub async fn resume(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Recurring> {
    answer(calls.resume_recurring(&caller, proto::ResumeRecurringRequest { name }).await)
}

/// Publish the message of a recurring one now, beside its times
#[utoipa::path(post, path = "/v1/recurring/{name}/run", tag = "recurring",
    params(("name" = String, Path)), responses(
    (status = 200, body = PublishedMessage), (status = "default", body = Problem)))]
pub async fn run(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<PublishedMessage> {
    answer(calls.run_recurring(&caller, proto::RunRecurringRequest { name }).await)
}
