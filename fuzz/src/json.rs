//! The HTTP interface: requests as they stand on the wire, to a node on a simulated disk;
//! and the shapes of what they bring.

use std::convert::Infallible;
use std::fmt::Debug;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use futures_util::stream;
use posthouse::json;
use serde_json::Value;
use serde_json::value::to_value;

use crate::node::{self, Answer, Node, SCENE, STREAM_MS};
use crate::{Seeds, memory};

/// The bytes that arrive together of a body of lines.
const PIECE_BYTES: usize = 7;

/// Method and target; headers, a line each; behind an empty line the body.
pub fn run(data: &[u8]) {
    let (head, body) = match data.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &[][..]),
    };
    memory::within(512 * data.len() + (64 << 10), || shapes(body));
    let Some(asked) = Asked::read(head, body) else { return };
    node::with_small(data, |node| ask(node, &asked));
}

/// A request.
struct Asked {
    head: Request<()>,
    body: Bytes,
    is_lines: bool,
}

impl Asked {
    fn read(head: &[u8], body: &[u8]) -> Option<Asked> {
        let mut lines = head.split(|byte| *byte == b'\n');
        let (method, target) = std::str::from_utf8(lines.next()?).ok()?.split_once(' ')?;
        let mut head = Request::builder().method(method).uri(target).body(()).ok()?;
        for line in lines {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            head.headers_mut().append(name, value);
        }
        // It is taken by a thread that nobody waits for here.
        if head.uri().path().contains("backup") {
            return None;
        }
        let kind = head.headers().get(header::CONTENT_TYPE);
        let is_lines = kind.is_some_and(|kind| kind.as_bytes() == b"application/x-ndjson");
        Some(Asked { head, body: Bytes::copy_from_slice(body), is_lines })
    }

    fn request(&self) -> Request<Body> {
        let body = match self.is_lines {
            true => {
                let pieces = self.body.chunks(PIECE_BYTES).map(Bytes::copy_from_slice);
                let pieces: Vec<Result<Bytes, Infallible>> = pieces.map(Ok).collect();
                Body::from_stream(stream::iter(pieces))
            }
            false => Body::from(self.body.clone()),
        };
        self.head.clone().map(|()| body)
    }

    /// The same request with another body.
    fn with(&self, body: &Value) -> Asked {
        Asked { head: self.head.clone(), body: body.to_string().into(), is_lines: false }
    }
}

/// What is answered is a result, or a problem in words, and none of the node's own.
fn ask(node: &mut Node, asked: &Asked) {
    let (method, path) = (asked.head.method(), asked.head.uri().path());
    let answer = match path.ends_with("/stream") {
        true => node.ask_for(asked.request(), STREAM_MS),
        false => node.ask(asked.request()),
    };
    assert_ne!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}: {answer:?}");
    let is_problem = answer.status.is_client_error() || answer.status.is_server_error();
    if is_problem && method != Method::HEAD {
        let problem: json::Problem = serde_json::from_slice(&answer.body)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}: {answer:?}"));
        assert!(!problem.code.is_empty() && !problem.detail.is_empty(), "{problem:?}");
    }
    if !answer.status.is_success() {
        return;
    }
    if asked.is_lines && *method == Method::POST && path.ends_with("/messages") {
        let lines = asked.body.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.trim_ascii().is_empty()).count();
        let answers: Vec<json::PublishedMessage> = answer.body[..]
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).expect("an answer"))
            .collect();
        assert_eq!((answers.len(), answer.is_whole), (lines, true), "an answer for each line");
    }
    if *method == Method::PUT
        && let Some(config) = config(path, &answer)
    {
        let again = node.ask(asked.with(&config).request());
        assert_eq!(again.status, StatusCode::OK, "{config} is not taken again: {again:?}");
        assert_eq!(self::config(path, &again), Some(config), "{path} is another");
    }
}

/// The configuration of what was answered, as it can be put.
fn config(path: &str, answer: &Answer) -> Option<Value> {
    let of = |what: &str| path.starts_with(&format!("/v1/{what}/"));
    if of("topics") {
        let topic: json::Topic = serde_json::from_slice(&answer.body).expect("a topic");
        return to_value(topic.config).ok();
    }
    if of("groups") {
        let group: json::Group = serde_json::from_slice(&answer.body).expect("a group");
        return to_value(group.config).ok();
    }
    if of("recurring") {
        let mut recurring = answer.json();
        let fields = recurring.as_object_mut().expect("an object");
        ["name", "created_at", "next", "last"].iter().for_each(|name| drop(fields.remove(*name)));
        return Some(recurring);
    }
    None
}

/// What can be read as something is written and read as the same; and what it means for
/// the native interface is found, or refused.
fn shapes(body: &[u8]) {
    let name = || "n".to_owned();
    if let Some(publish) = again::<json::Publish>(body) {
        let _ = publish.into_proto(name());
    }
    if let Some(message) = again::<json::Outgoing>(body) {
        let _ = message.into_proto();
    }
    if let Some(receive) = again::<json::Receive>(body) {
        let _ = receive.into_proto(name());
    }
    again::<json::Ack>(body);
    again::<json::Nack>(body);
    again::<json::Extend>(body);
    if let Some(topic) = again::<json::TopicConfig>(body) {
        let _ = topic.into_proto();
    }
    again::<json::PurgeTopic>(body);
    if let Some(group) = again::<json::GroupConfig>(body) {
        let wire = posthouse_client::proto::GroupConfig::from(group.clone());
        assert_eq!(json::GroupConfig::from(wire), group);
    }
    if let Some(seek) = again::<json::Seek>(body) {
        let _ = seek.into_proto(name());
    }
    if let Some(recurring) = again::<json::RecurringConfig>(body) {
        let _ = recurring.into_proto();
    }
    if let Some(prepare) = again::<json::Prepare>(body) {
        let _ = prepare.into_proto();
    }
    if let Some(moves) = again::<json::Moves>(body) {
        moves.messages.into_iter().for_each(|of| drop(of.into_proto()));
    }
    again::<json::Targets>(body);
    again::<json::Shift>(body);
    again::<json::Select>(body);
    again::<json::UserConfig>(body);
}

fn again<T>(body: &[u8]) -> Option<T>
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + Debug,
{
    let read: T = serde_json::from_slice(body).ok()?;
    let written = serde_json::to_vec(&read).expect("it can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(again, read);
    Some(read)
}

pub fn seeds() -> Seeds {
    let scene = &*SCENE;
    let request = |line: &str, body: &str| format!("{line}\n\n{body}").into_bytes();
    let plain = "POST /v1/topics/orders/messages\nposthouse-key: k\nposthouse-tags: eu, paid\n\
                 posthouse-ttl: 5m\nposthouse-dedupe-id: d-1\nposthouse-header-trace: t-9";
    let later = "POST /v1/topics/orders/messages\nposthouse-deliver-at: 2030-04-01T00:00:00Z\n\
                 posthouse-name: reminder\nposthouse-name-taken: keep";
    let lines = "POST /v1/topics/orders/messages\ncontent-type: application/x-ndjson";
    let json = "content-type: application/json";
    let one = r#"{"body":"hello","key":"k","tags":["eu"],"headers":{"a":"b"},"ttl":"1h30m","dedupe_id":"d"}"#;
    let two = r#"{"apart":true,"messages":[{"body_base64":"AAE=","delay":"250ms"},
        {"body":"","deliver_at":1900000001000,"name":"n","name_taken":"refuse","topic":"new"}]}"#;
    let topic = r#"{"partitions":2,"retention":{"max_age":"7d","max_bytes":1048576,"max_count":9},
        "max_message_bytes":1024,"dedupe_window":"1h","delays":false,"bury_expired":true,
        "check_after":"1m","checks":3,"publish_quota":{"messages_per_s":5},"accepts":"keyed"}"#;
    let group = r#"{"subscriptions":[{"topic":"orders.*","filter":"sql: a > 1"},{"topic":"x"}],
        "start":"2030-01-01T00:00:00Z","lease":"1m","max_attempts":3,"backoff":["1s","1m"],
        "dead_letter":"drop","order":"key","max_in_flight":5,"window":64,"paused":true,
        "expire_after":"7d"}"#;
    let cron = r#"{"topic":"orders","body":"b","cron":"0 30 9 * * MON-FRI","zone":"Europe/Berlin",
        "start":"2030-04-01T00:00:00Z","end":1999999999999,"jitter":"5m","missed":"skip",
        "tags":["t"],"headers":{"a":"b"},"key":"k","ttl":"1d","paused":true}"#;
    let prepare = r#"{"producer":"p","check_after":"1s","checks":2,"dedupe_id":"t-1",
        "messages":[{"topic":"orders","body":"half","delay":"1m"}]}"#;
    let user = r#"{"grants":[{"actions":["publish","consume"],"topics":["orders.*"],
        "groups":["*"]}],"publish_quota":{"bytes_per_s":1000}}"#;
    let named = r#"{"topic":"orders","name":"reminder"}"#;
    let receipts = format!(r#""receipts":["{}","x"]"#, scene.receipt);
    let letters = format!(r#"{{"ids":["{}"],"rate":5}}"#, scene.letter);
    let moves = format!(
        r#"{{"messages":[{{"id":"{}","later":"5m"}},{{"topic":"orders","name":"reminder","earlier":"1h"}}]}}"#,
        scene.scheduled
    );
    let targets = format!(r#"{{"messages":[{{"id":"{}"}},{named}]}}"#, scene.scheduled);
    let transaction = |what: &str| format!("POST /v1/transactions/{}/{what}", scene.transaction);
    let message = |what: &str| format!("GET /v1/messages/{}{what}", scene.message);
    vec![
        ("publish-plain", request(plain, "a body")),
        ("publish-later", request(later, "")),
        ("publish-lines", request(lines, &format!("{one}\n\n{{\"body\":1}}\r\n{{\"body\":\"\"}}"))),
        ("publish-one", request(&format!("POST /v1/topics/new/messages\n{json}"), one)),
        ("publish-two", request(&format!("POST /v1/topics/orders/messages\n{json}"), two)),
        ("publish-many", {
            let body = r#"{"messages":[{"topic":"orders","body":"a"},{"topic":"new","body":"b"}]}"#;
            request("POST /v1/publish", body)
        }),
        ("receive", {
            let ask = r#"{"max":10,"max_bytes":1000,"wait":"1s","lease":"5s","topic":"orders",
                "consumer":"c","broadcast":true}"#;
            request("POST /v1/groups/workers/receive", ask)
        }),
        ("receive-done", {
            let ask = r#"{"auto_ack":true,"topic":"orders"}"#;
            request("POST /v1/groups/new/receive", ask)
        }),
        (
            "stream",
            request("GET /v1/groups/workers/stream?consumer=c&lease=5s&max_in_flight=2", ""),
        ),
        ("ack", request("POST /v1/groups/workers/ack", &format!("{{{receipts}}}"))),
        ("nack", {
            let body = format!(r#"{{{receipts},"delay":"1m","reason":"no"}}"#);
            request("POST /v1/groups/workers/nack", &body)
        }),
        ("extend", {
            let body = format!(r#"{{{receipts},"lease":"1h"}}"#);
            request("POST /v1/groups/workers/extend", &body)
        }),
        ("topic", request("PUT /v1/topics/new", topic)),
        ("topic-change", request("PUT /v1/topics/orders", r#"{"retention":{"min_age":"0s"}}"#)),
        ("topics", request("GET /v1/topics?prefix=o&limit=5&after=orders", "")),
        ("topic-delete", request("DELETE /v1/topics/orders", "")),
        ("purge", request("POST /v1/topics/orders/purge", r#"{"partition":1,"before":1}"#)),
        ("browse", {
            let target = "/v1/topics/orders/messages?partition=0&from=0&key=k&limit=2";
            request(&format!("GET {target}&since=2030-01-01T00:00:00Z&until=1999999999999"), "")
        }),
        ("message", request(&message(""), "")),
        ("history", request(&message("/history"), "")),
        ("group", request("PUT /v1/groups/new", group)),
        ("group-change", request("PUT /v1/groups/workers", r#"{"start":"latest","lease":"2s"}"#)),
        ("groups", request("GET /v1/groups?limit=1", "")),
        ("group-delete", request("DELETE /v1/groups/workers?force=true", "")),
        ("pause", request("POST /v1/groups/workers/pause", "")),
        ("seek", request("POST /v1/groups/workers/seek", r#"{"to":"earliest","topic":"orders"}"#)),
        ("seek-place", {
            let place = r#"{"topic":"orders","partition":1,"position":0}"#;
            request("POST /v1/groups/workers/seek", place)
        }),
        ("letters", request("GET /v1/groups/workers/dead?limit=1", "")),
        ("redrive", request("POST /v1/groups/workers/dead/redrive", &letters)),
        ("bury", request("POST /v1/groups/workers/dead/purge", r#"{"all":true}"#)),
        ("cron", request("PUT /v1/recurring/new", cron)),
        ("every", {
            let every = r#"{"topic":"orders","body_base64":"AAE=","every":"1h"}"#;
            request("PUT /v1/recurring/daily", every)
        }),
        ("recurring", request("GET /v1/recurring?topic=orders&limit=2", "")),
        ("recurring-run", request("POST /v1/recurring/daily/run", "")),
        ("recurring-pause", request("POST /v1/recurring/daily/pause", "")),
        ("scheduled", request("GET /v1/topics/orders/scheduled?from=0&until=1999999999999", "")),
        ("hours", request("GET /v1/topics/orders/schedule", "")),
        ("shift", {
            let shift = r#"{"deliver_at":"2030-04-01T00:00:00Z"}"#;
            request("PATCH /v1/topics/orders/scheduled/reminder", shift)
        }),
        ("cancel", request(&format!("DELETE /v1/messages/{}", scene.scheduled), "")),
        ("move-many", request("POST /v1/schedule/move", &moves)),
        ("cancel-many", request("POST /v1/schedule/cancel", &targets)),
        ("prepare", request("POST /v1/transactions", prepare)),
        ("transactions", request("GET /v1/transactions?parked=false&producer=p&limit=2", "")),
        ("checks", request("GET /v1/transactions/checks?producer=p&wait=40s&max=3", "")),
        ("commit", request(&transaction("commit"), "")),
        ("rollback", request(&transaction("rollback"), "")),
        ("user", request("PUT /v1/users/shop", user)),
        ("token", request("POST /v1/users/shop/tokens", r#"{"name":"laptop"}"#)),
        ("node", request("GET /v1/node\nauthorization: Bearer ph_x\norigin: http://localhost", "")),
        ("metrics", request("GET /metrics", "")),
    ]
}
