//! Dead letters.

use axum::Json;
use axum::extract::State;
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Refused, answer};
use super::ask::{At, Of, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{Letters, LettersDone, Problem, Purged, Select};
use crate::problem;

/// A page of dead letters.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct LettersAfter {
    /// The `next` of the page before.
    #[serde(default)]
    after: String,
    /// At most so many; 100 by default, 1000 at most.
    #[serde(default)]
    limit: u32,
}

/// Dead letters of a group: what they are, why and when they died
#[utoipa::path(get, path = "/v1/groups/{group}/dead", tag = "dead letters",
    params(("group" = String, Path), LettersAfter), responses(
    (status = 200, body = Letters), (status = "default", body = Problem)))]
pub async fn list(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Params(LettersAfter { after, limit }): Params<LettersAfter>,
) -> Answer<Letters> {
    let request = proto::ListDeadLettersRequest { group, after, limit };
    answer(calls.list_dead_letters(&caller, request).await)
}

/// Give dead letters another chance
///
/// The group gets them again, with their attempts counted anew; other groups do not. It
/// comes back after a while even if there are more: see `left`.
#[utoipa::path(post, path = "/v1/groups/{group}/dead/redrive", tag = "dead letters",
    params(("group" = String, Path)), request_body = Select, responses(
    (status = 200, body = LettersDone), (status = "default", body = Problem)))]
pub async fn redrive(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(Select { ids, all, rate }): Of<Select>,
) -> Answer<LettersDone> {
    let request = proto::RedriveDeadLettersRequest { group, ids, all, rate };
    answer(calls.redrive_dead_letters(&caller, request).await)
}

/// Let dead letters go for good
#[utoipa::path(post, path = "/v1/groups/{group}/dead/purge", tag = "dead letters",
    params(("group" = String, Path)), request_body = Select, responses(
    (status = 200, body = Purged), (status = "default", body = Problem)))]
pub async fn purge(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(Select { ids, all, rate }): Of<Select>,
) -> Answer<Purged> {
    if let Some(rate) = rate {
        let limit = "a purge has no rate: leave it out";
        return Err(Refused(problem::Problem::invalid("rate", rate, limit)));
    }
    let request = proto::PurgeDeadLettersRequest { group, ids, all };
    let done = calls.purge_dead_letters(&caller, request).await?;
    Ok(Json(Purged { purged: done.purged }))
}
