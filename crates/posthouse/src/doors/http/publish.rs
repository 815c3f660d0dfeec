//! Publishing.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use posthouse_client::proto::{NameTaken, OutgoingMessage, PublishRequest};

use super::answer::{Answer, Refused, problem};
use super::ask::{At, Of, Who, parse, whole};
use super::{REQUEST_BYTES, bulk};
use crate::broker::publish::{Placed, Sent};
use crate::doors::calls::Calls;
use crate::json;
use crate::problem::{Kind, Problem};
use crate::units;

/// What header names of a single message begin with.
const PREFIX: &str = "posthouse-";
/// What the names of a message's own headers begin with.
const HEADER_PREFIX: &str = "posthouse-header-";

/// Publish messages: answered when they are durable
///
/// With `application/json`: a list of messages, all or nothing, or one. With
/// `application/x-ndjson`: a message a line, each with an answer line of its own, in
/// order. With any other content type the body is the message, and its attributes are
/// headers: `posthouse-key`, `posthouse-tags` (with commas between), `posthouse-ttl`,
/// `posthouse-dedupe-id`, `posthouse-delay` or `posthouse-deliver-at`, `posthouse-name`,
/// `posthouse-name-taken`, and `posthouse-header-NAME` for a header NAME.
#[utoipa::path(post, path = "/v1/topics/{topic}/messages", tag = "publish",
    params(
        ("topic" = String, Path),
        ("posthouse-key" = Option<String>, Header, description = "The key of a body as it is"),
        ("posthouse-tags" = Option<String>, Header, description = "Its tags, with commas between"),
        ("posthouse-ttl" = Option<String>, Header, description = "How long it is of use"),
        ("posthouse-dedupe-id" = Option<String>, Header, description = "An id of yours for it"),
        ("posthouse-header-NAME" = Option<String>, Header, description = "Its header NAME")),
    request_body(content(
        (json::Publish = "application/json"),
        (json::Outgoing = "application/x-ndjson"),
        (Vec<u8> = "application/octet-stream"))),
    responses(
        (status = 200, description = "Where they went", content(
            (json::Published = "application/json"),
            (json::PublishedMessage = "application/x-ndjson"))),
        (status = "default", body = json::Problem)))]
pub async fn to_topic(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(topic): At<String>,
    request: Request,
) -> Result<Response, Refused> {
    let request = match content_type(request.headers()) {
        "application/json" => {
            parse::<json::Publish>(&whole(request, REQUEST_BYTES).await?)?.into_proto(topic)?
        }
        "application/x-ndjson" => return bulk::publish(calls, caller, topic, request).await,
        _ => {
            let mut message = attributes(request.headers())?;
            message.body = whole(request, REQUEST_BYTES).await?;
            PublishRequest { topic, messages: vec![message], apart: false }
        }
    };
    let sent = calls.send(&caller, &request).await?;
    Ok(Json(published(&calls, &sent)).into_response())
}

/// Publish messages to several topics: all of them or none
///
/// Each message names its topic. They have to be in one shard.
#[utoipa::path(post, path = "/v1/publish", tag = "publish", request_body = json::Publish,
    responses((status = 200, body = json::Published), (status = "default", body = json::Problem)))]
pub async fn to_many(
    State(calls): State<Calls>,
    Who(caller): Who,
    Of(publish): Of<json::Publish>,
) -> Answer<json::Published> {
    let request = publish.into_proto(String::new())?;
    if request.messages.iter().any(|message| message.topic.is_empty()) {
        let limit = "every message names its topic";
        return Err(Refused(Problem::invalid("messages.topic", "not given", limit)));
    }
    let sent = calls.send(&caller, &request).await?;
    Ok(Json(published(&calls, &sent)))
}

/// Where messages went, and which were refused.
fn published(calls: &Calls, sent: &Sent) -> json::Published {
    json::Published { messages: calls.broker.placed(sent).map(entry).collect() }
}

/// Where a message went, or why it was refused.
pub fn entry(placed: Result<Placed, Problem>) -> json::PublishedMessage {
    match placed {
        Ok(placed) => json::PublishedMessage {
            id: placed.id.to_string(),
            partition: placed.partition,
            position: placed.position,
            deliver_at: placed.due.map(|due| json::Time(due.0)),
            duplicate: placed.duplicate,
            kept: placed.kept,
            problem: None,
        },
        Err(refused) => refusal(&refused),
    }
}

/// The entry of a message that was refused.
pub fn refusal(refused: &Problem) -> json::PublishedMessage {
    json::PublishedMessage { problem: Some(problem(refused)), ..Default::default() }
}

/// The content type without its parameters.
fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// The attributes of a message from the headers of its request.
fn attributes(headers: &HeaderMap) -> Result<OutgoingMessage, Problem> {
    let mut message = OutgoingMessage::default();
    for (name, value) in headers {
        let name = name.as_str();
        let Some(attribute) = name.strip_prefix(PREFIX) else { continue };
        let text = std::str::from_utf8(value.as_bytes())
            .map_err(|_| Problem::invalid(name, "other bytes", "it must be UTF-8"))?;
        if let Some(own) = name.strip_prefix(HEADER_PREFIX) {
            message.headers.insert(own.to_owned(), text.to_owned());
            continue;
        }
        match attribute {
            "key" => message.key = Some(text.to_owned()),
            "tags" => message.tags.extend(
                text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned),
            ),
            "dedupe-id" => message.dedupe_id = Some(text.to_owned()),
            "name" => message.name = Some(text.to_owned()),
            "name-taken" => {
                let taken = match text {
                    "replace" => NameTaken::Replace,
                    "keep" => NameTaken::Keep,
                    "refuse" => NameTaken::Refuse,
                    _ => {
                        let limit = "it must be replace, keep or refuse";
                        return Err(Problem::invalid(name, text, limit));
                    }
                };
                message.name_taken = taken as i32;
            }
            "delay" => {
                let delay = units::duration_ms(text);
                message.delay_ms = Some(delay.map_err(|what| Problem::invalid(name, text, what))?);
            }
            "deliver-at" => {
                let at = units::time_ms(text);
                message.deliver_at_ms =
                    Some(at.map_err(|what| Problem::invalid(name, text, what))?);
            }
            "ttl" => {
                let ttl = units::duration_ms(text);
                message.ttl_ms = Some(ttl.map_err(|what| Problem::invalid(name, text, what))?);
            }
            _ => {
                let detail = format!("there is no attribute {name}");
                return Err(Problem::new(Kind::Invalid, "no_such_attribute", detail).with_hint(
                    "posthouse-key, -tags, -ttl, -dedupe-id, -delay, -deliver-at, -name, \
                     -name-taken, or posthouse-header-NAME for a header of the message",
                ));
            }
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn attributes_are_read_from_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("posthouse-key", "order-7"),
            ("posthouse-tags", "paid, eu"),
            ("posthouse-ttl", "5m"),
            ("posthouse-dedupe-id", "a-1"),
            ("posthouse-header-trace", "t-9"),
            ("content-length", "3"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers.append("posthouse-tags", HeaderValue::from_static("vip"));
        let message = attributes(&headers).unwrap();
        assert_eq!(message.key.as_deref(), Some("order-7"));
        assert_eq!(message.tags, ["paid", "eu", "vip"]);
        assert_eq!(message.ttl_ms, Some(300_000));
        assert_eq!(message.dedupe_id.as_deref(), Some("a-1"));
        assert_eq!(message.headers["trace"], "t-9");
        headers.insert("posthouse-priority", HeaderValue::from_static("9"));
        assert_eq!(attributes(&headers).unwrap_err().code, "no_such_attribute");
    }

    #[test]
    fn a_content_type_counts_without_its_parameters() {
        let mut headers = HeaderMap::new();
        assert_eq!(content_type(&headers), "");
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, json);
        assert_eq!(content_type(&headers), "application/json");
    }
}
