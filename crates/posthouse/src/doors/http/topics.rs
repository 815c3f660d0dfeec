//! `/v1/topics`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use posthouse_client::proto;

use super::answer::{Answer, Refused, answer, made};
use super::ask::{At, Of, PageOf, Params, Who};
use crate::doors::calls::Calls;
use crate::json::{Problem, PurgeTopic, Purged, Topic, TopicConfig, Topics};

/// Topics, in the order they were made
#[utoipa::path(get, path = "/v1/topics", tag = "topics", params(PageOf), responses(
    (status = 200, body = Topics), (status = "default", body = Problem)))]
pub async fn list(
    State(calls): State<Calls>,
    Who(caller): Who,
    Params(page): Params<PageOf>,
) -> Answer<Topics> {
    let PageOf { prefix, after, limit } = page;
    let request = proto::ListTopicsRequest { prefix, after, limit };
    answer(calls.list_topics(&caller, request).await)
}

/// Make a topic, or change it
///
/// What the body does not mention stays as it is.
#[utoipa::path(put, path = "/v1/topics/{topic}", tag = "topics",
    params(("topic" = String, Path, description = "Letters, digits, . _ -, 1 to 200 bytes")),
    request_body = TopicConfig, responses(
    (status = 201, body = Topic, description = "It was made"),
    (status = 200, body = Topic, description = "It was there"),
    (status = "default", body = Problem)))]
pub async fn put(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
    Of(config): Of<TopicConfig>,
) -> Result<(StatusCode, Json<Topic>), Refused> {
    let config = Some(config.into_proto()?);
    let done = calls.put_topic(&caller, proto::PutTopicRequest { name, config }).await?;
    made(done.created, done.topic.unwrap_or_default())
}

/// A topic, with its configuration and its partitions
#[utoipa::path(get, path = "/v1/topics/{topic}", tag = "topics",
    params(("topic" = String, Path)), responses(
    (status = 200, body = Topic), (status = "default", body = Problem)))]
pub async fn get(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<Topic> {
    answer(calls.get_topic(&caller, proto::GetTopicRequest { name }).await)
}

/// Delete a topic with all its messages
#[utoipa::path(delete, path = "/v1/topics/{topic}", tag = "topics",
    params(("topic" = String, Path)), responses(
    (status = 204), (status = "default", body = Problem)))]
pub async fn delete(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Result<StatusCode, Refused> {
    calls.delete_topic(&caller, proto::DeleteTopicRequest { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let messages of a topic go
///
/// All of them, those of one partition, or those of it before a position.
#[utoipa::path(post, path = "/v1/topics/{topic}/purge", tag = "topics",
    params(("topic" = String, Path)), request_body = PurgeTopic, responses(
    (status = 200, body = Purged), (status = "default", body = Problem)))]
pub async fn purge(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
    Of(which): Of<PurgeTopic>,
) -> Answer<Purged> {
    let PurgeTopic { partition, before } = which;
    let request = proto::PurgeTopicRequest { name, partition, before };
    let done = calls.purge_topic(&caller, request).await?;
    Ok(Json(Purged { purged: done.purged }))
}
