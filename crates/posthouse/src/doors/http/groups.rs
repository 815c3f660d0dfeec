//! `/v1/groups`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Refused, answer, made};
use super::ask::{At, Of, PageOf, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{self, Group, GroupConfig, Groups, Seek, SoughtList};
use crate::problem::Problem;

/// Groups, in the order they were made
#[utoipa::path(get, path = "/v1/groups", tag = "groups", params(PageOf), responses(
    (status = 200, body = Groups), (status = "default", body = json::Problem)))]
pub async fn list(
    State(calls): State<Calls>,
    Who(caller): Who,
    Params(page): Params<PageOf>,
) -> Answer<Groups> {
    let PageOf { prefix, after, limit } = page;
    let request = proto::ListGroupsRequest { prefix, after, limit };
    answer(calls.list_groups(&caller, request).await)
}

/// Make a group, or change it
///
/// What the body does not mention stays as it is.
#[utoipa::path(put, path = "/v1/groups/{group}", tag = "groups",
    params(("group" = String, Path, description = "Letters, digits, . _ -, 1 to 200 bytes")),
    request_body = GroupConfig, responses(
    (status = 201, body = Group, description = "It was made"),
    (status = 200, body = Group, description = "It was there"),
    (status = "default", body = json::Problem)))]
pub async fn put(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
    Of(config): Of<GroupConfig>,
) -> Result<(StatusCode, Json<Group>), Refused> {
    let config = Some(config.into());
    let done = calls.put_group(&caller, proto::PutGroupRequest { name, config }).await?;
    made(done.created, done.group.unwrap_or_default())
}

/// A group: its configuration, how far it is, and who consumes
#[utoipa::path(get, path = "/v1/groups/{group}", tag = "groups",
    params(("group" = String, Path)), responses(
    (status = 200, body = Group), (status = "default", body = json::Problem)))]
pub async fn get(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Group> {
    answer(calls.get_group(&caller, proto::GetGroupRequest { name }).await)
}

/// Whether dead letters may go too.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Force {
    /// Delete the group with its dead letters.
    #[serde(default)]
    force: bool,
}

/// Delete a group
///
/// One that has dead letters stays, unless `force` is set.
#[utoipa::path(delete, path = "/v1/groups/{group}", tag = "groups",
    params(("group" = String, Path), Force), responses(
    (status = 204), (status = "default", body = json::Problem)))]
pub async fn delete(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
    Params(Force { force }): Params<Force>,
) -> Result<StatusCode, Refused> {
    calls.delete_group(&caller, proto::DeleteGroupRequest { name, force }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let a group go on elsewhere
///
/// At the earliest or the latest message, at a time, or at a position of one topic. What
/// it has in flight is forgotten.
#[utoipa::path(post, path = "/v1/groups/{group}/seek", tag = "groups",
    params(("group" = String, Path)), request_body = Seek, responses(
    (status = 200, body = SoughtList), (status = "default", body = json::Problem)))]
pub async fn seek(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Of(seek): Of<Seek>,
) -> Answer<SoughtList> {
    if seek.to.is_some() && (seek.position.is_some() || seek.partition.is_some()) {
        let limit = "give to, or a position with its partition";
        return Err(Refused(Problem::invalid("to", "given with a place", limit)));
    }
    answer(calls.seek(&caller, seek.into_proto(group)).await)
}

/// Pause a group: nothing is given out, what is in flight can be acknowledged
#[utoipa::path(post, path = "/v1/groups/{group}/pause", tag = "groups",
    params(("group" = String, Path)), responses(
    (status = 200, body = Group), (status = "default", body = json::Problem)))]
pub async fn pause(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Group> {
    answer(calls.pause_group(&caller, proto::PauseGroupRequest { name }).await)
}

/// Let a paused group go on
#[utoipa::path(post, path = "/v1/groups/{group}/resume", tag = "groups",
    params(("group" = String, Path)), responses(
    (status = 200, body = Group), (status = "default", body = json::Problem)))]
pub async fn resume(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Group> {
    answer(calls.resume_group(&caller, proto::ResumeGroupRequest { name }).await)
}
