//! The Rust client against a real node: what it promises when connections break, leases
//! run out, handlers fail and servers refuse. And its examples, run.

#[path = "../doors/door.rs"]
#[allow(dead_code, reason = "the doors' tests use the rest")]
mod door;

mod consuming;
mod errors;
mod examples;
mod process;
mod publishing;
mod tls;

use std::time::{Duration, Instant};

use posthouse_client::{Client, Delivery, proto};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "it never came to that: {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits for a future, with a bound.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("it never came to that: {what}"))
}

async fn put_group(client: &Client, name: &str, topic: &str, max_attempts: u32) {
    let subscription = proto::Subscription { topic: topic.into(), filter: "*".into() };
    let subscriptions = proto::group_config::Subscriptions { subscriptions: vec![subscription] };
    let config = proto::GroupConfig {
        subscriptions: Some(subscriptions),
        max_attempts: Some(max_attempts),
        ..Default::default()
    };
    let request = proto::PutGroupRequest { name: name.into(), config: Some(config) };
    client.raw().put_group(request).await.unwrap();
}

async fn group(client: &Client, name: &str) -> proto::Group {
    let request = proto::GetGroupRequest { name: name.into() };
    client.raw().get_group(request).await.unwrap().into_inner()
}

/// All messages of a topic with one partition.
async fn all(client: &Client, topic: &str) -> Vec<Delivery> {
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(next) = from {
        let request = proto::BrowseRequest {
            topic: topic.into(),
            from: Some(next),
            limit: 1000,
            ..Default::default()
        };
        let page = client.raw().browse(request).await.unwrap().into_inner();
        all.extend(page.messages.into_iter().map(Delivery::from));
        from = page.next;
    }
    all
}

async fn history(client: &Client, id: &str) -> Vec<proto::HistoryEvent> {
    let request = proto::GetHistoryRequest { id: id.into() };
    client.raw().get_history(request).await.unwrap().into_inner().events
}
