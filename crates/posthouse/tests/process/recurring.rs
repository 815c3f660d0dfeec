//! Recurring messages come once for each of their times, whenever the process is killed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::node::{Node, Setup};
use crate::support::rng::{self, Rng};
use crate::support::until;

/// The times of the messages that have come, in the order in which they came.
async fn times(node: &Node) -> Vec<u64> {
    let web = node.web();
    let (mut times, mut from) = (Vec::new(), 0);
    loop {
        let page = web.get(&format!("/v1/topics/beats/messages?limit=1000&from={from}")).await;
        if page.status == 404 {
            return times;
        }
        let page = page.done();
        for message in page["messages"].as_array().expect("a list") {
            let headers = &message["headers"];
            assert_eq!(headers["posthouse-recurring"], "beat");
            assert_eq!((&message["body"], &message["key"]), (&json!("tick"), &json!("k")));
            let at = headers["posthouse-recurring-at"].as_str().expect("a time");
            times.push(at.parse::<jiff::Timestamp>().expect("a time").as_millisecond() as u64);
        }
        match page.get("next").and_then(Value::as_u64) {
            Some(next) => from = next,
            None => return times,
        }
    }
}

fn now() -> u64 {
    jiff::Timestamp::now().as_millisecond() as u64
}

fn beat() -> Value {
    json!({ "topic": "beats", "body": "tick", "key": "k", "every": "1s" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_each_time_of_a_recurring_message_comes_once() {
    let mut rng = Rng::new(rng::seed("recurring messages killed at any moment"));
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path()).flag("--shards", "2");
    let node = setup.start().await;
    node.web()
        .put("/v1/topics/beats", json!({ "partitions": 1, "dedupe_window": "0s" }))
        .await
        .done();
    node.web().put("/v1/recurring/beat", beat()).await.done();
    let mut node = node;
    // From when to when it was away.
    let mut away: Vec<(u64, u64)> = Vec::new();
    for round in 0..6 {
        let before = times(&node).await.len();
        until("another one comes", 60, || async {
            (times(&node).await.len() > before).then_some(())
        })
        .await;
        // Around the moment at which the next one is due.
        let patience = Duration::from_millis(rng.range(700, 1_050));
        let _ = tokio::time::timeout(patience, std::future::pending::<()>()).await;
        let gone_at = now();
        node.kill().await;
        if round == 3 {
            // Killed again before it has done anything.
            setup.start().await.kill().await;
        }
        node = setup.start().await;
        away.push((gone_at, now()));
    }
    let enough = times(&node).await.len() + 1;
    until("another one comes", 60, || async { (times(&node).await.len() >= enough).then_some(()) })
        .await;
    let times = times(&node).await;
    for pair in times.windows(2) {
        assert!(pair[0] < pair[1], "{} comes after {}: {times:?}", pair[1], pair[0]);
        assert_eq!((pair[1] - pair[0]) % 1_000, 0, "{times:?}");
        // Only what is ten seconds late counts as missed.
        let was_long_away = away
            .iter()
            .any(|(from, to)| to - from >= 9_000 && (*from..=*to + 1_000).contains(&pair[1]));
        assert!(pair[1] - pair[0] == 1_000 || was_long_away, "one is left out: {times:?} {away:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_deleted_and_changed_it_does_as_it_was_told_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let node = setup.start().await;
    let web = node.web();
    let made = web.put("/v1/recurring/beat", beat()).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["next"].as_array().expect("times").len(), 10);
    until("one comes", 60, || async { (!times(&node).await.is_empty()).then_some(()) }).await;
    let paused = web.post("/v1/recurring/beat/pause", json!({})).await.done();
    assert_eq!((&paused["paused"], &paused["next"]), (&json!(true), &json!([])));
    let count = times(&node).await.len();
    // Put again without a word about it, it stays paused.
    let again = web.put("/v1/recurring/beat", beat()).await;
    assert_eq!((again.status, &again.json()["paused"]), (200, &json!(true)));
    node.kill().await;

    let node = setup.start().await;
    let web = node.web();
    let ran = web.post("/v1/recurring/beat/run", json!({})).await.done();
    assert_eq!(ran["position"], json!(count), "nothing came while it was paused");
    let resumed = web.post("/v1/recurring/beat/resume", json!({})).await.done();
    assert_eq!(resumed["paused"], json!(false));
    let next = resumed["next"][0].as_str().expect("a time").parse::<jiff::Timestamp>().unwrap();
    until("it comes again", 60, || async { (times(&node).await.len() > count + 1).then_some(()) })
        .await;
    let came = times(&node).await[count + 1];
    assert_eq!(
        came,
        next.as_millisecond() as u64,
        "what passed while it was paused is not made up for"
    );
    let known = web.get("/v1/recurring?prefix=be").await.done();
    assert_eq!(known["recurring"][0]["name"], "beat");
    let gone =
        web.send(axum::http::Method::DELETE, "/v1/recurring/beat", &[], axum::body::Body::empty());
    assert_eq!(gone.await.unwrap().status, 204);
    let count = times(&node).await.len();
    node.stop().await;

    let node = setup.start().await;
    assert_eq!(node.web().get("/v1/recurring/beat").await.code(), "recurring_not_found");
    assert_eq!(times(&node).await.len(), count, "a deleted one does not come");
    node.stop().await;
}
