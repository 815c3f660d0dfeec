//! Quotas: what is asked one by one is refused, a stream is held back.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client as Http;
use hyper_util::rt::TokioExecutor;
use posthouse_client::{Client, proto};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

use crate::door::Node;

/// Messages by the second that the topic takes.
const RATE: u64 = 200;

async fn ask(node: &Node, method: Method, path: &str, kind: &str, body: String) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", node.address))
        .header("content-type", kind)
        .body(Body::from(body))
        .unwrap();
    let response = Http::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn limited() -> Node {
    let node = Node::start().await;
    let config = json!({ "publish_quota": { "messages_per_s": RATE } }).to_string();
    let made = ask(&node, Method::PUT, "/v1/topics/orders", "application/json", config).await;
    assert_eq!(made.0, 201, "{}", made.1);
    node
}

/// A second's worth goes at once, and one publish more than is left: what is sent in all
/// takes at least this long, but for what a clock may be off.
fn least(messages: u64, of_one: u64) -> Duration {
    Duration::from_millis((messages - RATE - of_one) * 1000 / RATE - 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_held_back_by_a_quota_and_none_is_refused() {
    let node = limited().await;
    let lines = "{\"body\":\"x\"}\n".repeat(800);
    let began = Instant::now();
    let path = "/v1/topics/orders/messages";
    let (_, answers) = ask(&node, Method::POST, path, "application/x-ndjson", lines).await;
    let placed = answers.lines().filter(|line| line.starts_with("{\"id\"")).count();
    assert_eq!(placed, 800, "{answers}");
    // Lines go in batches of up to 256.
    assert!(began.elapsed() >= least(800, 256), "{:?}", began.elapsed());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_held_back_by_a_quota_and_what_is_asked_apart_is_refused_meanwhile() {
    let node = limited().await;
    let client = Client::connect(format!("http://{}", node.address)).await.unwrap();
    let request = || proto::PublishRequest {
        topic: "orders".into(),
        messages: vec![proto::OutgoingMessage::default(); 100],
        ..proto::PublishRequest::default()
    };
    let began = Instant::now();
    let requests = tokio_stream::iter((0..8).map(move |_| request()));
    let mut answers = client.raw().publish_stream(requests).await.unwrap().into_inner();
    let mut answered = 0;
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.problem, None);
        answered += answer.messages.len();
        if answered == 400 {
            let body = json!({ "body": "x" }).to_string();
            let path = "/v1/topics/orders/messages";
            let (status, body) = ask(&node, Method::POST, path, "application/json", body).await;
            let problem: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((status, &problem["code"]), (429, &"too_many_requests".into()), "{body}");
            assert_eq!(problem["field"], "publish_quota.messages_per_s", "{body}");
            assert!(problem["retry_after_ms"].as_u64() >= Some(1), "{body}");
            let detail = "topic \"orders\" takes 200 messages per second, and they are used up";
            assert_eq!(problem["detail"], detail);
        }
    }
    assert_eq!(answered, 800);
    assert!(began.elapsed() >= least(800, 100), "{:?}", began.elapsed());
    let (_, metrics) = ask(&node, Method::GET, "/metrics", "text/plain", String::new()).await;
    assert!(metrics.contains("\nposthouse_over_quota_total 1\n"), "{metrics}");
    node.stop().await;
}
