//! Messages that come later.

use axum::Json;
use axum::extract::State;
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, answer};
use super::ask::{At, Of, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{
    Change, Changes, Hours, Message, Move, Moves, Problem, Purged, ScheduledList, Shift, Target,
    Targets,
};
use crate::problem;
use crate::units;

/// Which messages that are to come.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// That come at this time or later.
    from: Option<String>,
    /// That come at this time or earlier.
    until: Option<String>,
    /// Only those with this key.
    key: Option<String>,
    /// The `next` of the page before.
    #[serde(default)]
    after: String,
    /// At most so many; 100 by default, 1000 at most.
    #[serde(default)]
    limit: u32,
}

/// Messages that are to come to a topic, in the order in which they will
#[utoipa::path(get, path = "/v1/topics/{topic}/scheduled", tag = "schedule",
    params(("topic" = String, Path), Which), responses(
    (status = 200, body = ScheduledList), (status = "default", body = Problem)))]
pub async fn list(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(topic): At<String>,
    Params(which): Params<Which>,
) -> Answer<ScheduledList> {
    let time = |name: &'static str, text: Option<String>| {
        text.map(|text| {
            units::time_ms(&text).map_err(|what| problem::Problem::invalid(name, text, what))
        })
        .transpose()
    };
    let request = proto::ListScheduledRequest {
        topic,
        from_ms: time("from", which.from)?,
        until_ms: time("until", which.until)?,
        key: which.key,
        name: None,
        after: which.after,
        limit: which.limit,
    };
    answer(calls.list_scheduled(&caller, request).await)
}

/// Call everything back that is to come to a topic
#[utoipa::path(delete, path = "/v1/topics/{topic}/scheduled", tag = "schedule",
    params(("topic" = String, Path)), responses(
    (status = 200, body = Purged), (status = "default", body = Problem)))]
pub async fn purge(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(topic): At<String>,
) -> Answer<Purged> {
    let request = proto::PurgeScheduledRequest { topic };
    let done = calls.purge_scheduled(&caller, request).await?;
    Ok(Json(Purged { purged: done.purged }))
}

/// How many messages are to come to a topic in each hour
#[utoipa::path(get, path = "/v1/topics/{topic}/schedule", tag = "schedule",
    params(("topic" = String, Path)), responses(
    (status = 200, body = Hours), (status = "default", body = Problem)))]
pub async fn hours(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(topic): At<String>,
) -> Answer<Hours> {
    let request = proto::GetScheduleHoursRequest { topic };
    answer(calls.get_schedule_hours(&caller, request).await)
}

/// A message that is to come, by its name
#[utoipa::path(get, path = "/v1/topics/{topic}/scheduled/{name}", tag = "schedule",
    params(("topic" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = Message), (status = "default", body = Problem)))]
pub async fn by_name(
    State(calls): State<Calls>,
    Who(caller): Who,
    At((topic, name)): At<(String, String)>,
) -> Answer<Message> {
    let request = proto::ListScheduledRequest { topic, name: Some(name), ..Default::default() };
    let found = calls.list_scheduled(&caller, request).await?;
    let message = found.messages.into_iter().next();
    let message = message.ok_or_else(|| problem::Problem::internal("the message is not there"))?;
    Ok(Json(message.into()))
}

/// Let a message come at another time, by its name
#[utoipa::path(patch, path = "/v1/topics/{topic}/scheduled/{name}", tag = "schedule",
    params(("topic" = String, Path), ("name" = String, Path)), request_body = Shift,
    responses((status = 200, body = Change), (status = "default", body = Problem)))]
pub async fn move_by_name(
    State(calls): State<Calls>,
    Who(caller): Who,
    At((topic, name)): At<(String, String)>,
    Of(shift): Of<Shift>,
) -> Answer<Change> {
    let target = Target { topic, name, ..Target::default() };
    let item = Move::of(target, shift).into_proto()?;
    answer(calls.reschedule_one(&caller, item).await)
}

/// Call a message back, by its name
#[utoipa::path(delete, path = "/v1/topics/{topic}/scheduled/{name}", tag = "schedule",
    params(("topic" = String, Path), ("name" = String, Path)), responses(
    (status = 200, body = Change), (status = "default", body = Problem)))]
pub async fn cancel_by_name(
    State(calls): State<Calls>,
    Who(caller): Who,
    At((topic, name)): At<(String, String)>,
) -> Answer<Change> {
    let target = Target { topic, name, ..Target::default() };
    answer(calls.cancel_one(&caller, target.into_proto()).await)
}

/// Let a message come at another time
#[utoipa::path(patch, path = "/v1/messages/{id}", tag = "schedule",
    params(("id" = String, Path)), request_body = Shift,
    responses((status = 200, body = Change), (status = "default", body = Problem)))]
pub async fn reschedule(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
    Of(shift): Of<Shift>,
) -> Answer<Change> {
    let item = Move::of(Target { id, ..Target::default() }, shift).into_proto()?;
    answer(calls.reschedule_one(&caller, item).await)
}

/// Call a message back that has not come yet
///
/// With 200 nobody will ever get it. If it has come already, the answer is 409
/// `already_fired`, and says where it is.
#[utoipa::path(delete, path = "/v1/messages/{id}", tag = "schedule",
    params(("id" = String, Path)), responses(
    (status = 200, body = Change), (status = "default", body = Problem)))]
pub async fn cancel(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
) -> Answer<Change> {
    let target = Target { id, ..Target::default() };
    answer(calls.cancel_one(&caller, target.into_proto()).await)
}

/// Let messages come at other times, each with its own result
#[utoipa::path(post, path = "/v1/schedule/move", tag = "schedule", request_body = Moves,
    responses((status = 200, body = Changes), (status = "default", body = Problem)))]
pub async fn move_many(
    State(calls): State<Calls>,
    Who(caller): Who,
    Of(moves): Of<Moves>,
) -> Answer<Changes> {
    let items: Result<_, problem::Problem> =
        moves.messages.into_iter().map(Move::into_proto).collect();
    answer(calls.reschedule(&caller, proto::RescheduleRequest { items: items? }).await)
}

/// Call messages back, each with its own result
#[utoipa::path(post, path = "/v1/schedule/cancel", tag = "schedule", request_body = Targets,
    responses((status = 200, body = Changes), (status = "default", body = Problem)))]
pub async fn cancel_many(
    State(calls): State<Calls>,
    Who(caller): Who,
    Of(targets): Of<Targets>,
) -> Answer<Changes> {
    let targets = targets.messages.into_iter().map(Target::into_proto).collect();
    answer(calls.cancel(&caller, proto::CancelRequest { targets }).await)
}
