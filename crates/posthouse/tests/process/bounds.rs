//! Every input has a bound, which is checked before memory is taken for it.

use std::time::Duration;

use axum::http::Method;
use posthouse_client::proto;
use posthouse_client::{Client, Error, Message, ReceiveOptions};
use serde_json::{Value, json};

use crate::support::node::{Node, Setup};
use crate::support::{web, within};

/// What a node may have taken at most after all of this: its pools, and itself.
const MEMORY: u64 = 400 << 20;

struct Case {
    what: &'static str,
    method: Method,
    path: String,
    body: Value,
    status: u16,
    code: &'static str,
}

fn case(
    what: &'static str,
    (method, path): (Method, &str),
    body: Value,
    (status, code): (u16, &'static str),
) -> Case {
    Case { what, method, path: path.into(), body, status, code }
}

const INVALID: (u16, &str) = (400, "invalid_argument");
const MESSAGE: (u16, &str) = (400, "invalid_message");
const CONFIG: (u16, &str) = (400, "invalid_config");
const NAME: (u16, &str) = (400, "invalid_name");

fn text(len: usize) -> String {
    "x".repeat(len)
}

fn of_messages() -> Vec<Case> {
    let to = || (Method::POST, "/v1/topics/t/messages");
    let tags = |count: usize| -> Vec<String> { (0..count).map(|n| n.to_string()).collect() };
    let headers = |count: usize, len: usize| -> Value {
        (0..count)
            .map(|n| (format!("header-{n}"), json!(text(len))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let many =
        |count: usize| -> Vec<Value> { (0..count).map(|_| json!({ "body": "x" })).collect() };
    let large: Vec<Value> = (0..3).map(|_| json!({ "body": text(3 << 20) })).collect();
    vec![
        case("a key", to(), json!({ "key": text(1025) }), MESSAGE),
        case("tags", to(), json!({ "tags": tags(17) }), MESSAGE),
        case("a tag", to(), json!({ "tags": [text(129)] }), MESSAGE),
        case("an empty tag", to(), json!({ "tags": [""] }), MESSAGE),
        case("headers", to(), json!({ "headers": headers(129, 1) }), MESSAGE),
        case("a header's name", to(), json!({ "headers": { text(257): "x" } }), MESSAGE),
        case("all headers", to(), json!({ "headers": headers(9, 4000) }), MESSAGE),
        case("a publish id", to(), json!({ "dedupe_id": text(257) }), MESSAGE),
        case("a time to live", to(), json!({ "ttl": "0s" }), MESSAGE),
        case("a long time to live", to(), json!({ "ttl": "4000d" }), MESSAGE),
        case("a body", to(), json!({ "body": text((4 << 20) + 1) }), (413, "message_too_large")),
        case("messages", to(), json!({ "messages": many(10_001) }), INVALID),
        case("bodies", to(), json!({ "messages": large }), (413, "batch_too_large")),
        case("a request", to(), json!({ "body": text(17 << 20) }), (413, "request_too_large")),
        case("no topic", (Method::POST, "/v1/publish"), json!({ "body": "x" }), INVALID),
        case("no JSON", to(), json!([1, 2]), (400, "invalid_json")),
        case("a field", to(), json!({ "bdoy": "x" }), (400, "invalid_json")),
    ]
}

fn of_consumers() -> Vec<Case> {
    let receive = || (Method::POST, "/v1/groups/g/receive");
    let receipts: Vec<&str> = vec!["x"; 10_001];
    vec![
        case("max", receive(), json!({ "max": 10_001 }), INVALID),
        case("max 0", receive(), json!({ "max": 0 }), INVALID),
        case("max_bytes", receive(), json!({ "max_bytes": (64 << 20) + 1 }), INVALID),
        case("a wait", receive(), json!({ "wait": "301s" }), INVALID),
        case("a short lease", receive(), json!({ "lease": "99ms" }), INVALID),
        case("a long lease", receive(), json!({ "lease": "25h" }), INVALID),
        case("a consumer", receive(), json!({ "consumer": text(201) }), INVALID),
        case(
            "receipts",
            (Method::POST, "/v1/groups/g/ack"),
            json!({ "receipts": receipts }),
            INVALID,
        ),
        case(
            "a delay",
            (Method::POST, "/v1/groups/g/nack"),
            json!({ "receipts": [], "delay": "31d" }),
            (200, ""),
        ),
        case(
            "a delay of something",
            (Method::POST, "/v1/groups/g/nack"),
            json!({ "receipts": ["x"], "delay": "31d" }),
            INVALID,
        ),
        case(
            "a reason",
            (Method::POST, "/v1/groups/g/nack"),
            json!({ "receipts": ["x"], "reason": text(1025) }),
            INVALID,
        ),
        case(
            "a group",
            (Method::POST, "/v1/groups/g/seek"),
            json!({ "to": text(9000) }),
            (400, "invalid_json"),
        ),
        case("a page", (Method::GET, "/v1/topics?limit=x"), Value::Null, INVALID),
    ]
}

fn of_configurations() -> Vec<Case> {
    let long = format!("/v1/topics/{}", text(201));
    let group = || (Method::PUT, "/v1/groups/h");
    let subscriptions: Vec<Value> =
        (0..257).map(|n| json!({ "topic": format!("t-{n}") })).collect();
    let filter = |filter: String| json!({ "subscriptions": [{ "topic": "t", "filter": filter }] });
    let deep = format!("{}a{}", "(".repeat(40), ")".repeat(40));
    let steps: Vec<&str> = vec!["1s"; 65];
    vec![
        case("a name", (Method::PUT, &long), json!({}), NAME),
        case("a name with a space", (Method::PUT, "/v1/topics/a%20b"), json!({}), NAME),
        case("a name of the system", (Method::PUT, "/v1/topics/%25x"), json!({}), NAME),
        case("partitions", (Method::PUT, "/v1/topics/u"), json!({ "partitions": 1025 }), CONFIG),
        case("no partitions", (Method::PUT, "/v1/topics/u"), json!({ "partitions": 0 }), CONFIG),
        case(
            "a large largest message",
            (Method::PUT, "/v1/topics/u"),
            json!({ "max_message_bytes": (8 << 20) + 1 }),
            CONFIG,
        ),
        case("subscriptions", group(), json!({ "subscriptions": subscriptions }), CONFIG),
        case("a long filter", group(), filter(text(4097)), CONFIG),
        case("a deep filter", group(), filter(deep.clone()), CONFIG),
        case("a deep condition", group(), filter(format!("sql: {deep}")), CONFIG),
        case("a lease", group(), json!({ "lease": "25h" }), CONFIG),
        case("attempts", group(), json!({ "max_attempts": 0 }), CONFIG),
        case("steps", group(), json!({ "backoff": steps }), CONFIG),
        case("a window", group(), json!({ "window": (16 << 20) + 1 }), CONFIG),
    ]
}

async fn has_no_more(node: &Node) {
    node.client().await.publish("t", "still there").await.unwrap();
    let peak = node.peak_memory();
    eprintln!("{} MiB at most", peak >> 20);
    assert!(peak < MEMORY, "it has taken {} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_too_long_or_too_many_is_refused_with_its_limit_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).start().await;
    let web = node.web();
    web.put("/v1/topics/t", json!({})).await.done();
    web.put("/v1/groups/g", json!({ "subscriptions": [{ "topic": "t" }] })).await.done();
    let cases = [of_messages(), of_consumers(), of_configurations()].concat_all();
    for Case { what, method, path, mut body, status, code } in cases {
        // What is wrong is one thing alone.
        if path.ends_with("/messages") && body.get("messages").is_none() && body.is_object() {
            body.as_object_mut().unwrap().entry("body").or_insert(json!("x"));
        }
        let kind = [("content-type", "application/json")];
        let answer = web.send(method, &path, &kind, body.to_string()).await.expect(what);
        let told = String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
        assert_eq!(answer.status, status, "{what}: {told}");
        if status != 200 {
            assert_eq!(answer.code(), code, "{what}: {told}");
            assert!(answer.json()["detail"].as_str().unwrap().len() > 10, "{what}: {told}");
            assert!(answer.body.len() < 8192, "{what}: what is wrong is not sent back whole");
        }
    }
    assert_eq!(node.web().get("/v1/topics/t/messages").await.done()["messages"], json!([]));
    has_no_more(&node).await;
    node.stop().await;
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Case>;
}

impl<const N: usize> ConcatAll for [Vec<Case>; N] {
    fn concat_all(self) -> Vec<Case> {
        self.into_iter().flatten().collect()
    }
}

/// The status and the head of the answer to bytes on a connection of their own.
async fn spoken(node: &Node, bytes: &[u8]) -> String {
    let mut socket = web::connect(node.address).await;
    web::send(&mut socket, bytes).await;
    let answer = within("the connection is closed", 30, web::read_to_end(&mut socket)).await;
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_requests_are_bounded_and_what_is_no_http_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).start().await;
    let head = |headers: String| {
        format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
            .into_bytes()
    };
    assert!(spoken(&node, &head(String::new())).await.contains("200"));
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert!(spoken(&node, &head(many)).await.contains("431"));
    let long = format!("x-long: {}\r\n", text(1 << 20));
    assert!(spoken(&node, &head(long)).await.contains("431"));
    let target = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", text(1 << 20));
    let refused = spoken(&node, target.as_bytes()).await;
    assert!(refused.contains("414") || refused.contains("431"), "{refused}");
    for noise in [&b"\0\xff\x16\x03\x01"[..], b"HELO mail\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"] {
        let answer = spoken(&node, noise).await;
        assert!(answer.is_empty() || answer.contains("400"), "{noise:?}: {answer}");
    }
    // What is said to be longer than any request is not waited for.
    let huge = "POST /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                content-type: application/json\r\ncontent-length: 999999999999\r\n\r\n";
    assert!(spoken(&node, huge.as_bytes()).await.contains("413"));
    has_no_more(&node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_too_long_or_too_many_is_refused_over_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).start().await;
    let client = node.client().await;
    let code = |result: Result<(), Error>| match result {
        Err(Error::Refused(problem)) => problem.code,
        other => panic!("not refused: {other:?}"),
    };
    let done = |result: Result<_, Error>| result.map(drop);
    let large = Message::new(vec![0; (4 << 20) + 1]);
    assert_eq!(code(done(client.publish("t", large).await.map(drop))), "message_too_large");
    let many = (0..10_001).map(|_| Message::new("x"));
    assert_eq!(code(client.publish_all("t", many).await.map(drop)), "invalid_argument");
    let bodies = (0..3).map(|_| Message::new(vec![0; 3 << 20]));
    assert_eq!(code(client.publish_all("t", bodies).await.map(drop)), "batch_too_large");
    // Past what one request may have at all the library refuses, before it reads it.
    let bodies = (0..5).map(|_| Message::new(vec![0; 4 << 20]));
    assert_eq!(code(client.publish_all("t", bodies).await.map(drop)), "outofrange");
    let keyed = Message::new("x").key(text(1025));
    assert_eq!(code(client.publish("t", keyed).await.map(drop)), "invalid_message");
    assert_eq!(code(client.publish(&text(201), "x").await.map(drop)), "invalid_name");
    let wait = ReceiveOptions { wait: Duration::from_secs(301), ..ReceiveOptions::default() };
    assert_eq!(code(client.receive("g", &wait).await.map(drop)), "invalid_argument");
    let receipts = vec!["x".to_owned(); 10_001];
    client
        .receive("g", &ReceiveOptions { topic: Some("t".into()), ..Default::default() })
        .await
        .unwrap();
    assert_eq!(code(client.ack("g", receipts).await.map(drop)), "invalid_argument");
    // Metadata beyond what a request's head may have.
    let request = proto::GetNodeRequest {};
    let with_token = Client::builder(node.url.clone()).token(text(100_000));
    let refused = with_token.connect().await.unwrap().raw().get_node(request).await;
    assert!(refused.is_err(), "a head of 100 kB was taken");
    assert!(client.raw().get_node(request).await.is_ok(), "and nobody else minds");
    has_no_more(&node).await;
    node.stop().await;
}
