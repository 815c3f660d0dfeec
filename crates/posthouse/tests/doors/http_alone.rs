//! What only the HTTP door has: bodies as they are, lines, events, headers, statuses,
//! and the routes that are no operation.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::door::Node;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

struct Web {
    client: Client<HttpConnector, Body>,
    address: SocketAddr,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The status, and the code of the problem.
    fn refusal(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        (self.status.as_u16(), problem["code"].as_str().unwrap().to_owned())
    }
}

impl Web {
    fn at(node: &Node) -> Web {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Web { client, address: node.address }
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Response<Body> {
        let mut request =
            Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = self.client.request(request.body(body).unwrap());
        tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap().map(Body::new)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let (parts, body) = self.open(method, path, headers, body.into()).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask(Method::GET, path, &[], Body::empty()).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        let json = [("content-type", "application/json")];
        self.ask(Method::POST, path, &json, body.to_string()).await
    }

    async fn put(&self, path: &str, body: Value) -> Reply {
        self.ask(Method::PUT, path, &[], body.to_string()).await
    }
}

/// A body that comes bit by bit, and is read by the line.
struct Lines {
    body: Body,
    unread: BytesMut,
}

impl Lines {
    fn of(body: Body) -> Self {
        Lines { body, unread: BytesMut::new() }
    }

    /// The next line, without its end; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = self.unread.split_to(end + 1);
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await;
            match frame.expect("something comes in time") {
                Some(frame) => self.unread.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => return None,
            }
        }
    }

    /// The next event: its kind and its data. Comments are passed over.
    async fn event(&mut self) -> Option<(String, Value)> {
        let (mut kind, mut data) = (String::new(), None);
        loop {
            let line = self.next().await?;
            if let Some(text) = line.strip_prefix("event: ") {
                kind = text.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(serde_json::from_str(text).unwrap());
            } else if let ("", Some(data)) = (line.as_str(), data.take()) {
                return Some((kind, data));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_any_type_is_the_message_and_its_attributes_are_headers() {
    let node = Node::start().await;
    let web = Web::at(&node);
    let bytes: Vec<u8> = (0..=255).collect();
    let headers = [
        ("content-type", "image/png"),
        ("posthouse-key", "customer-7"),
        ("posthouse-tags", "eu, paid"),
        ("posthouse-tags", "vip"),
        ("posthouse-ttl", "5m"),
        ("posthouse-dedupe-id", "d-1"),
        ("posthouse-header-Trace", "t-1"),
    ];
    let path = "/v1/topics/orders/messages";
    let first = web.ask(Method::POST, path, &headers, bytes.clone()).await;
    assert_eq!(first.status, 200);
    assert_eq!(first.json()["messages"][0]["duplicate"], false);
    let again = web.ask(Method::POST, path, &headers, bytes).await.json();
    assert_eq!(again["messages"][0]["duplicate"], true);
    let empty = web.ask(Method::POST, path, &[], Body::empty()).await;
    assert_eq!(empty.status, 200, "an empty body is a body");
    let seen = web.get(path).await.json();
    let message = &seen["messages"][0];
    assert_eq!(message["body"], Value::Null);
    assert!(message["body_base64"].as_str().unwrap().starts_with("AAECAwQ"));
    assert_eq!(message["key"], "customer-7");
    assert_eq!(message["tags"], json!(["eu", "paid", "vip"]));
    assert_eq!(message["ttl"], "5m");
    assert_eq!(message["headers"], json!({"trace": "t-1"}));
    assert_eq!(seen["messages"][1]["body"], "");

    let refused = web.ask(Method::POST, path, &[("posthouse-prio", "9")], "x").await;
    assert_eq!(refused.refusal(), (400, "no_such_attribute".into()));
    let refused = web.ask(Method::POST, path, &[("posthouse-ttl", "soon")], "x").await;
    assert_eq!(refused.refusal(), (400, "invalid_argument".into()));
    assert_eq!(refused.json()["field"], "posthouse-ttl");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_published_as_they_come_and_each_is_answered() {
    let node = Node::start().await;
    let web = Web::at(&node);
    web.post("/v1/topics/orders/messages", json!({"body": "one", "dedupe_id": "d-1"})).await;
    let (tx, rx) = mpsc::unbounded_channel::<&'static str>();
    let body = Body::from_stream(UnboundedReceiverStream::new(rx).map(Ok::<_, Infallible>));
    let lines = [("content-type", "application/x-ndjson")];
    let answer = web.open(Method::POST, "/v1/topics/orders/messages", &lines, body).await;
    assert_eq!(answer.status(), 200);
    let mut answers = Lines::of(answer.into_body());
    // The first is answered before the second is sent.
    tx.send("{\"body\":\"a\"}\n").unwrap();
    let first: Value = serde_json::from_str(&answers.next().await.unwrap()).unwrap();
    assert_eq!((&first["position"], &first["duplicate"]), (&json!(1), &json!(false)));
    // Lines in pieces, empty ones, refused ones; the last has no end.
    for piece in [
        "{\"body\":",
        "\"b\"}\n\n  \n{\"body\":\"other\",\"dedupe_id\":\"d-1\"}\n",
        "nonsense\n{\"bdy\":\"c\"}\n{\"body\":\"d\",\"topic\":\"payments\"}\n",
        "{\"body\":\"e\"}",
    ] {
        tx.send(piece).unwrap();
    }
    drop(tx);
    let mut rest = Vec::new();
    while let Some(line) = answers.next().await {
        rest.push(serde_json::from_str::<Value>(&line).unwrap());
    }
    assert_eq!(rest[0]["position"], 2);
    let codes: Vec<&Value> = rest[1..4].iter().map(|line| &line["problem"]["code"]).collect();
    assert_eq!(codes, ["dedupe_conflict", "invalid_json", "invalid_json"]);
    for line in &rest[1..4] {
        assert_eq!(line.as_object().unwrap().len(), 1, "a refused line has nothing else: {line}");
        assert!(line["problem"]["status"].is_u64());
    }
    assert_eq!(rest[4]["position"], 0, "a line names a topic of its own");
    assert_eq!(rest[5]["position"], 3);
    assert_eq!(rest.len(), 6);
    node.stop().await;
}

/// Lines of more bytes than may be on their way into the log held all the room there was
/// and waited for more, for ever: no client could publish any more.
#[tokio::test(flavor = "multi_thread")]
async fn lines_of_any_number_of_bytes_find_their_way() {
    let node = Node::start().await;
    let web = Web::at(&node);
    web.put("/v1/topics/orders", json!({"max_message_bytes": 8 << 20})).await;
    let line = Bytes::from(format!("{{\"body\":\"{}\"}}\n", "x".repeat(8_000_000)));
    let many = tokio_stream::iter(vec![Ok::<_, Infallible>(line); 12]);
    let lines = [("content-type", "application/x-ndjson")];
    let path = "/v1/topics/orders/messages";
    let answer = web.open(Method::POST, path, &lines, Body::from_stream(many)).await;
    let mut answers = Lines::of(answer.into_body());
    for position in 0..12 {
        let line: Value = serde_json::from_str(&answers.next().await.unwrap()).unwrap();
        assert_eq!(line["position"], position);
    }
    assert!(answers.next().await.is_none());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_refused_is_named_by_its_place() {
    let node = Node::start().await;
    let web = Web::at(&node);
    web.put("/v1/topics/orders", json!({"partitions": 2})).await;
    let keys: Vec<String> = (0..8).map(|n| format!("key-{n}")).collect();
    let first = json!({"body": "x", "key": keys[7], "dedupe_id": "d-1"});
    web.post("/v1/topics/orders/messages", first).await;
    let mut messages: Vec<Value> =
        keys.iter().map(|key| json!({"body": "y", "key": key})).collect();
    messages[7]["dedupe_id"] = json!("d-1");
    let refused = web.post("/v1/topics/orders/messages", json!({"messages": messages})).await;
    assert_eq!(refused.refusal(), (409, "dedupe_conflict".into()));
    assert_eq!(refused.json()["field"], "messages[7].dedupe_id");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_far_as_the_consumer_may_have_more() {
    let node = Node::start().await;
    let web = Web::at(&node);
    let config = json!({"subscriptions": [{"topic": "orders"}], "lease": "10m"});
    web.put("/v1/groups/billing", config).await;
    for body in ["a", "b", "c"] {
        web.post("/v1/topics/orders/messages", json!({ "body": body })).await;
    }
    // A HEAD takes nothing.
    let path = "/v1/groups/billing/stream?consumer=screen&max_in_flight=2";
    let head = web.ask(Method::HEAD, path, &[], Body::empty()).await;
    assert_eq!(head.header("content-type"), "text/event-stream");
    let stream = web.open(Method::GET, path, &[], Body::empty()).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut events = Lines::of(stream.into_body());
    let (kind, a) = events.event().await.unwrap();
    assert_eq!((kind.as_str(), &a["body"], &a["attempt"]), ("message", &json!("a"), &json!(1)));
    assert_eq!(events.event().await.unwrap().1["body"], "b");
    let group = web.get("/v1/groups/billing").await.json();
    assert_eq!(group["consumers"], json!([{"name": "screen", "held": 2}]));
    assert_eq!(group["partitions"][0]["next"], 2, "the third is not given out");
    let done = json!({"receipts": [a["receipt"]]});
    let settled = web.post("/v1/groups/billing/ack", done).await.json();
    assert_eq!(settled, json!({"results": [{"status": "ok"}]}));
    assert_eq!(events.event().await.unwrap().1["body"], "c");
    // The end of the group is said, and ends the stream.
    web.ask(Method::DELETE, "/v1/groups/billing", &[], Body::empty()).await;
    let (kind, problem) = events.event().await.unwrap();
    assert_eq!((kind.as_str(), &problem["code"]), ("problem", &json!("group_not_found")));
    assert!(events.event().await.is_none());

    for (path, refusal) in [
        ("/v1/groups/nobody/stream", (404, "group_not_found")),
        ("/v1/groups/nobody/stream?max_in_flight=0", (400, "invalid_argument")),
        ("/v1/groups/nobody/stream?lease=soon", (400, "invalid_argument")),
    ] {
        assert_eq!(web.get(path).await.refusal(), (refusal.0, refusal.1.into()), "{path}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_words() {
    let node = Node::start().await;
    let web = Web::at(&node);
    web.put("/v1/topics/orders", json!({})).await;
    web.put("/v1/groups/billing", json!({"subscriptions": [{"topic": "orders"}]})).await;
    let not_found = web.get("/v1/nothing").await;
    assert_eq!(not_found.refusal(), (404, "no_such_route".into()));
    let wrong = web.ask(Method::DELETE, "/v1/topics", &[], Body::empty()).await;
    assert_eq!(wrong.refusal(), (405, "method_not_allowed".into()));
    assert_eq!(wrong.header("allow"), "GET,HEAD");
    for (path, field) in [
        ("/v1/topics?limits=3", "query"),
        ("/v1/topics/orders/messages?partition=x", "query"),
        ("/v1/topics/orders/messages?since=soon", "since"),
        ("/v1/topics/orders/messages?partition=1", "partition"),
    ] {
        let refused = web.get(path).await;
        assert_eq!(refused.refusal(), (400, "invalid_argument".into()), "{path}");
        assert_eq!(refused.json()["field"], field, "{path}");
        assert!(!refused.json()["detail"].as_str().unwrap().contains("deserialize"));
    }
    assert_eq!(web.get("/v1/topics/a%ffb").await.refusal(), (400, "invalid_path".into()));
    for body in ["nonsense", "[]", "{", "{\"receipts\":[\"a\"],\"more\":1}", "{}"] {
        let refused = web.ask(Method::POST, "/v1/groups/billing/ack", &[], body).await;
        assert_eq!(refused.refusal(), (400, "invalid_json".into()), "{body}");
    }
    for (path, body, field) in [
        ("/v1/groups/billing/seek", json!({"to": "latest", "position": 1}), "to"),
        ("/v1/groups/billing/seek", json!({"to": "latest", "partition": 0}), "to"),
        ("/v1/groups/billing/dead/purge", json!({"all": true, "rate": 1}), "rate"),
        ("/v1/publish", json!({"messages": [{"body": "x"}]}), "messages.topic"),
    ] {
        let refused = web.post(path, body).await;
        assert_eq!(refused.refusal(), (400, "invalid_argument".into()), "{path}");
        assert_eq!(refused.json()["field"], field, "{path}");
    }
    let large = vec![b'x'; (16 << 20) + 1];
    let refused = web.ask(Method::POST, "/v1/topics/orders/messages", &[], large).await;
    assert_eq!(refused.refusal(), (413, "request_too_large".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_when_to_come_back() {
    let node = Node::start().await;
    let web = Web::at(&node);
    let all = node.broker.permit(64 << 20).unwrap();
    let refused = web.post("/v1/topics/orders/messages", json!({"body": "x"})).await;
    assert_eq!(refused.refusal(), (429, "too_many_requests".into()));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.json()["retry_after_ms"], 100);
    // Lines are held back instead.
    let lines = [("content-type", "application/x-ndjson")];
    let held =
        web.open(Method::POST, "/v1/topics/orders/messages", &lines, "{\"body\":\"y\"}".into());
    let held = held.await;
    drop(all);
    let line = Lines::of(held.into_body()).next().await.unwrap();
    assert!(line.starts_with("{\"id\""), "{line}");
    assert_eq!(
        web.post("/v1/topics/orders/messages", json!({"body": "x"})).await.status,
        StatusCode::OK
    );
    assert_eq!(web.get("/healthz").await.body, "ok\n");
    assert_eq!(web.get("/readyz").await.body, "ready\n");
    node.broker.begin_stop();
    let refused = web.get("/readyz").await;
    assert_eq!(refused.refusal(), (503, "stopping".into()));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(web.get("/healthz").await.status, StatusCode::OK, "it is alive all the same");
    let refused = web.post("/v1/topics/orders/messages", json!({"body": "x"})).await;
    assert_eq!(refused.refusal(), (503, "stopping".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_of_somebody_else_is_refused() {
    let node = Node::start().await;
    let web = Web::at(&node);
    let own = format!("http://{}", node.address);
    for (origin, status) in [("https://evil.example", 403), ("null", 403), (own.as_str(), 200)] {
        let asked = web.ask(Method::GET, "/v1/topics", &[("origin", origin)], Body::empty()).await;
        assert_eq!(asked.status.as_u16(), status, "{origin}");
        if status == 403 {
            assert_eq!(asked.refusal().1, "foreign_origin");
        }
    }
    let headers = [("origin", "https://evil.example"), ("access-control-request-method", "PUT")];
    let asked = web.ask(Method::OPTIONS, "/v1/topics/t", &headers, Body::empty()).await;
    assert_eq!(asked.status, StatusCode::FORBIDDEN);
    assert!(asked.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
    node.stop().await;
}

/// A page can send a body without a type to any address, and the gRPC library does not ask
/// what a body says it is: a page of anybody deleted topics.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_of_somebody_else_comes_in_at_no_door() {
    let node = Node::start().await;
    let web = Web::at(&node);
    web.put("/v1/topics/t", json!({})).await;
    let delete = async |headers: &[(&str, &str)]| {
        let body = [&[0, 0, 0, 0, 3, 10, 1][..], b"t"].concat();
        web.ask(Method::POST, "/posthouse.v1.Posthouse/DeleteTopic", headers, body).await
    };
    let evil = ("origin", "https://evil.example");
    let (plain, grpc) = (("content-type", "text/plain"), ("content-type", "application/grpc"));
    assert_eq!(delete(&[evil]).await.refusal(), (403, "foreign_origin".into()));
    assert_eq!(delete(&[evil, plain]).await.refusal(), (403, "foreign_origin".into()));
    assert_eq!(delete(&[plain]).await.refusal(), (404, "no_such_route".into()));
    assert_eq!(delete(&[evil, grpc]).await.header("grpc-status"), "7");
    assert_eq!(web.get("/v1/topics/t").await.status, StatusCode::OK);
    node.stop().await;
}

/// What is only read is asked for without an `Origin`, by an image, or by a page that has
/// a name for this machine: it took messages, and acknowledged them.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_takes_no_messages_and_a_name_that_points_here_reads_nothing() {
    let node = Node::start().await;
    let web = Web::at(&node);
    web.post("/v1/topics/t/messages", json!({"body": "x"})).await;
    web.put("/v1/groups/g", json!({"subscriptions": [{"topic": "t"}]})).await;
    let image = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
    let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    let rebound = [("host", "evil.example:7650")];
    for headers in [&image[..], &link, &rebound] {
        let path = "/v1/groups/g/stream?auto_ack=true";
        let asked = web.ask(Method::GET, path, headers, Body::empty()).await;
        assert_eq!(asked.refusal(), (403, "foreign_origin".into()), "{headers:?}");
    }
    assert_eq!(web.get("/v1/groups/g").await.json()["partitions"][0]["lag"], 1);
    // The page of the node is for whoever follows a link.
    assert_eq!(web.ask(Method::GET, "/", &link, Body::empty()).await.status, StatusCode::OK);
    // With users a page has no token to show, and names are for programs.
    let all = json!({"grants": [{"actions": ["manage"], "topics": ["*"], "groups": ["*"]}]});
    web.put("/v1/users/root", all).await;
    let token = web.post("/v1/users/root/tokens", json!({"name": "one"})).await.json();
    let token = format!("bearer {}", token["token"].as_str().unwrap());
    let named = [("host", "queue.example"), ("authorization", token.as_str())];
    let asked = web.ask(Method::GET, "/v1/topics", &named, Body::empty()).await;
    assert_eq!(asked.status, StatusCode::OK);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_makes_a_group_on_first_use_must_be_allowed_to_see_its_topic() {
    let node = Node::start_with(|options| options.auto_create = Some(true)).await;
    let web = Web::at(&node);
    web.put("/v1/topics/payments", json!({})).await;
    web.put("/v1/topics/orders.eu", json!({})).await;
    let grants = json!({"grants": [
        {"actions": ["consume"], "groups": ["shop-*"]},
        {"actions": ["publish"], "topics": ["orders.*"]},
    ]});
    web.put("/v1/users/shop", grants).await;
    let all = json!({"grants": [{"actions": ["manage"], "topics": ["*"], "groups": ["*"]}]});
    web.put("/v1/users/root", all).await;
    let token = web.post("/v1/users/shop/tokens", json!({"name": "app"})).await.json();
    web.post("/v1/users/root/tokens", json!({"name": "laptop"})).await;
    let nobody = web.get("/v1/topics").await;
    assert_eq!(nobody.refusal(), (401, "unauthenticated".into()));
    assert_eq!(nobody.header("www-authenticate"), "Bearer");
    let shop = format!("Bearer {}", token["token"].as_str().unwrap());
    let receive = async |topic: &str| {
        let body = json!({ "topic": topic }).to_string();
        let headers = [("authorization", shop.as_str())];
        web.ask(Method::POST, &format!("/v1/groups/shop-{topic}/receive"), &headers, body).await
    };
    assert_eq!(receive("payments").await.refusal(), (403, "forbidden".into()));
    assert_eq!(receive("orders.eu").await.status, StatusCode::OK);
    assert_eq!(receive("orders.us").await.status, StatusCode::OK, "who may publish may make it");
    assert_eq!(receive("letters").await.refusal(), (403, "forbidden".into()));
    node.stop().await;
}

/// The documents describe every route and every figure.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_and_every_figure_is_in_the_document() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/http.md");
    let document = std::fs::read_to_string(document).unwrap();
    let node = Node::start().await;
    let web = Web::at(&node);
    web.put("/v1/topics/orders", json!({})).await;
    web.put("/v1/groups/billing", json!({"subscriptions": [{"topic": "orders"}]})).await;
    let description = web.get("/openapi.json").await.json();
    let mut missing = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let route = format!("`{} {path}", method.to_uppercase());
            if !document.contains(&format!("{route}`")) && !document.contains(&format!("{route}?"))
            {
                missing.insert(route);
            }
        }
    }
    let figures = web.get("/metrics").await;
    assert_eq!(figures.header("content-type"), "text/plain; version=0.0.4");
    let figures = String::from_utf8(figures.body.to_vec()).unwrap();
    let names: Vec<&str> = figures
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        if !document.contains(&format!("`{name}`")) {
            missing.insert(name.to_owned());
        }
    }
    assert!(missing.is_empty(), "docs/http.md does not have {missing:#?}");
    let page = web.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    node.stop().await;
}
