//! Looking at messages.

use axum::extract::State;
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, answer};
use super::ask::{At, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{Browsed, History, MessageInfo, Problem};
use crate::units;

/// Which messages.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The partition, counted from 0.
    #[serde(default)]
    partition: u32,
    /// From this position on.
    from: Option<u64>,
    /// From this time on.
    since: Option<String>,
    /// Up to this time.
    until: Option<String>,
    /// Only those with this key.
    key: Option<String>,
    /// At most so many; 100 by default, 1000 at most.
    #[serde(default)]
    limit: u32,
}

/// Look at messages of a topic, without effect on anyone
#[utoipa::path(get, path = "/v1/topics/{topic}/messages", tag = "messages",
    params(("topic" = String, Path), Which), responses(
    (status = 200, body = Browsed), (status = "default", body = Problem)))]
pub async fn browse(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(topic): At<String>,
    Params(which): Params<Which>,
) -> Answer<Browsed> {
    let time = |name: &'static str, text: Option<String>| {
        text.map(|text| {
            units::time_ms(&text).map_err(|what| crate::problem::Problem::invalid(name, text, what))
        })
        .transpose()
    };
    let request = proto::BrowseRequest {
        topic,
        partition: which.partition,
        from: which.from,
        since_ms: time("since", which.since)?,
        until_ms: time("until", which.until)?,
        key: which.key,
        limit: which.limit,
    };
    answer(calls.browse(&caller, request).await)
}

/// A message by its id, and what it is to each group
#[utoipa::path(get, path = "/v1/messages/{id}", tag = "messages",
    params(("id" = String, Path)), responses(
    (status = 200, body = MessageInfo), (status = "default", body = Problem)))]
pub async fn get(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
) -> Answer<MessageInfo> {
    answer(calls.get_message(&caller, proto::GetMessageRequest { id }).await)
}

/// The life of a message: published, granted, given back, acknowledged, dead
#[utoipa::path(get, path = "/v1/messages/{id}/history", tag = "messages",
    params(("id" = String, Path)), responses(
    (status = 200, body = History), (status = "default", body = Problem)))]
pub async fn history(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(id): At<String>,
) -> Answer<History> {
    answer(calls.get_history(&caller, proto::GetHistoryRequest { id }).await)
}
