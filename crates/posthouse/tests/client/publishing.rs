//! Publishing while the node comes and goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posthouse_client::{Client, Error, Message, Published, PublisherOptions};
use tokio::sync::mpsc;

use crate::process::Process;
use crate::{PATIENCE, all, until, within};

const MESSAGES: usize = 3000;

/// Killed once, stopped once, in the middle of it: all is published, and nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn with_ids_nothing_is_lost_and_nothing_comes_twice() {
    let mut node = Process::start();
    let client = node.client().await;
    let options = PublisherOptions {
        batch_messages: 20,
        in_flight: 4,
        queue: 50,
        retry_for: PATIENCE,
        ..PublisherOptions::default()
    };
    let publisher = client.publisher(options);
    let (tx, mut rx) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for number in 0..MESSAGES {
            let message = Message::new(format!("{number}")).dedupe_id(format!("id-{number}"));
            tx.send(publisher.send("orders", message).await.unwrap()).unwrap();
        }
    });
    let answered = Arc::new(AtomicUsize::new(0));
    let counted = answered.clone();
    let results = tokio::spawn(async move {
        let mut results: Vec<Result<Published, Error>> = Vec::new();
        while let Some(pending) = rx.recv().await {
            results.push(pending.await);
            counted.store(results.len(), Ordering::Relaxed);
        }
        results
    });
    let reaches = async |count| {
        until("some are published", async || answered.load(Ordering::Relaxed) >= count).await;
    };
    reaches(MESSAGES / 4).await;
    node.kill();
    node.start_again();
    reaches(MESSAGES / 2).await;
    node.stop();
    node.start_again();
    let results = within("all are published", results).await.unwrap();
    let published: Vec<Published> = results.into_iter().map(Result::unwrap).collect();
    let positions: BTreeSet<u64> =
        published.iter().filter_map(|message| message.position).collect();
    assert_eq!(positions.len(), MESSAGES, "each has a place of its own");
    let there = all(&node.client().await, "orders").await;
    assert_eq!(there.len(), MESSAGES, "nothing came twice");
    for (number, message) in published.iter().enumerate() {
        let found = &there[message.position.expect("it came at once") as usize];
        assert_eq!((&found.id, &found.body[..]), (&message.id, number.to_string().as_bytes()));
    }
}

/// Without an id a message that was under way is nobody's guess; what waits behind it was
/// never sent, and comes when the node is back.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_id_what_was_under_way_is_unknown_and_what_waited_is_published() {
    let mut node = Process::start();
    let client = node.client().await;
    let options =
        PublisherOptions { batch_messages: 1, in_flight: 1, queue: 1, ..Default::default() };
    let publisher = client.publisher(options);
    publisher.publish("orders", "zero").await.unwrap();
    node.freeze();
    let under_way = publisher.send("orders", "one").await.unwrap();
    // The queue has room for one: so the one before has left it.
    let waits = publisher.send("orders", "two").await.unwrap();
    node.kill();
    let error = within("it is answered", under_way).await.unwrap_err();
    assert!(error.is_outcome_unknown() && !error.is_retryable(), "{error:?}");
    node.start_again();
    let published = within("it is published", waits).await.unwrap();
    assert!(!published.duplicate);
    let there = all(&node.client().await, "orders").await;
    assert_eq!(there.last().unwrap().body, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_there_is_waited_for_and_given_up_in_time() {
    let mut node = Process::start();
    let client = node.client().await;
    client.publish("orders", "one").await.unwrap();
    let patient = client.publisher(PublisherOptions::default());
    let options = PublisherOptions { retry_for: Duration::ZERO, ..Default::default() };
    let impatient = client.publisher(options);
    node.kill();
    until("the client notices", async || {
        matches!(client.publish("orders", "x").await, Err(Error::Unreachable(_)))
    })
    .await;
    let waits = patient.send("orders", "two").await.unwrap();
    let error = within("it is given up", impatient.publish("orders", "three")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)) && error.is_retryable(), "{error:?}");
    node.start_again();
    within("it is published", waits).await.unwrap();
    // One that gave up tries anew.
    within("it is published", async {
        while impatient.publish("orders", "four").await.is_err() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_server_takes_ends_nothing_else() {
    let node = Process::start();
    let client = node.client().await;
    let publisher = client.publisher(PublisherOptions::default());
    let before = publisher.send("orders", "before").await.unwrap();
    let error = publisher.send("orders", vec![0; 10 << 20]).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    let large = publisher.send("orders", vec![0; 5 << 20]).await.unwrap();
    let after = publisher.send("orders", "after").await.unwrap();
    before.await.unwrap();
    assert_eq!(large.await.unwrap_err().code(), Some("message_too_large"));
    after.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_over_is_published_when_the_publisher_is_dropped() {
    let node = Process::start();
    let client: Client = node.client().await;
    let publisher = client.publisher(PublisherOptions::default());
    let mut pending = Vec::new();
    for number in 0..100 {
        pending.push(publisher.send("orders", format!("{number}")).await.unwrap());
    }
    drop(publisher);
    drop(pending);
    until("all are there", async || {
        let request = posthouse_client::proto::GetTopicRequest { name: "orders".into() };
        client.raw().get_topic(request).await.is_ok_and(|topic| topic.into_inner().messages == 100)
    })
    .await;
}
