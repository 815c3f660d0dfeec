//! Consuming with handlers that take long, fail, and outlive their connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthouse_client::{
    Client, ConsumeOptions, Delivery, Error, HandlerError, Outcome, ReceiveOptions, proto,
};
use tokio::sync::Notify;

use crate::process::Process;
use crate::{PATIENCE, group, history, put_group, until, within};

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.to_vec()).unwrap()
}

async fn publish(client: &Client, topic: &str, bodies: impl IntoIterator<Item = String>) {
    client.publish_all(topic, bodies.into_iter().map(Into::into)).await.unwrap();
}

/// Killed in the middle of it: everything is handled, and a handler that runs meanwhile
/// goes on, and is acknowledged by the node that comes after.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_when_the_node_is_back() {
    let mut node = Process::start();
    let client = node.client().await;
    put_group(&client, "g", "orders", 100).await;
    publish(&client, "orders", (0..300).map(|n| n.to_string())).await;
    let handled = Arc::new(Mutex::new(HashMap::<String, Vec<u32>>::new()));
    let (gate, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let options = ConsumeOptions {
        concurrency: 8,
        lease: Duration::from_secs(10),
        retry_for: PATIENCE,
        ..ConsumeOptions::default()
    };
    let consumer = {
        let (client, handled) = (client.clone(), handled.clone());
        let (gate, stop) = (gate.clone(), stop.clone());
        tokio::spawn(async move {
            let handler = move |delivery: Delivery| {
                let (handled, gate) = (handled.clone(), gate.clone());
                async move {
                    let text = text(&delivery);
                    if text == "20" {
                        gate.notified().await;
                    }
                    handled.lock().unwrap().entry(text).or_default().push(delivery.attempt);
                    Ok(())
                }
            };
            client.consume_until("g", options, stop.notified(), handler).await
        })
    };
    let count = || handled.lock().unwrap().len();
    until("some are handled", async || count() >= 60).await;
    node.kill();
    node.start_again();
    until("it goes on", async || count() >= 299).await;
    assert!(!handled.lock().unwrap().contains_key("20"));
    gate.notify_one();
    until("all is done", async || {
        let group = group(&client, "g").await;
        group.lag == 0 && group.in_flight == 0
    })
    .await;
    assert_eq!(handled.lock().unwrap()["20"], [1], "once, and over two connections");
    stop.notify_one();
    within("it stops", consumer).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_extended_as_long_as_the_handler_runs() {
    let node = Process::start();
    let client = node.client().await;
    put_group(&client, "g", "orders", 100).await;
    publish(&client, "orders", ["slow".to_owned()]).await;
    let stop = Arc::new(Notify::new());
    let lease = Duration::from_millis(1500);
    let options = ConsumeOptions { concurrency: 4, lease, ..ConsumeOptions::default() };
    let (inside, finished) = (client.clone(), stop.clone());
    let handler = move |delivery: Delivery| {
        let (client, finished) = (inside.clone(), finished.clone());
        async move {
            // Five extensions, a third of a lease apart, are more than a lease.
            let is_extended = |event: &proto::HistoryEvent| event.event == "extended";
            while history(&client, &delivery.id).await.into_iter().filter(is_extended).count() < 5 {
                tokio::task::yield_now().await;
            }
            finished.notify_one();
            Ok(())
        }
    };
    let consumed = client.consume_until("g", options, stop.notified(), handler);
    within("it is handled", consumed).await.unwrap();
    let state = group(&client, "g").await;
    assert_eq!((state.lag, state.in_flight), (0, 0), "it is acknowledged");
    let message = crate::all(&client, "orders").await.remove(0);
    let events = history(&client, &message.id).await;
    let granted = events.iter().filter(|event| event.event == "granted").count();
    assert_eq!(granted, 1, "nobody else got it: {events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_cannot_do_comes_again_or_dies_with_its_reason() {
    let node = Process::start();
    let client = node.client().await;
    put_group(&client, "once", "orders", 1).await;
    put_group(&client, "twice", "orders", 2).await;
    let bodies = ["fails", "panics", "works"].map(str::to_owned);
    publish(&client, "orders", bodies).await;
    let consumer = {
        let client = client.clone();
        tokio::spawn(async move {
            let handler = |delivery: Delivery| async move {
                match text(&delivery).as_str() {
                    "fails" => Err("no stock".into()),
                    "panics" => panic!("a bug"),
                    _ => Ok(()),
                }
            };
            client.consume("once", ConsumeOptions::default(), handler).await
        })
    };
    let letters = async || {
        let request = proto::ListDeadLettersRequest { group: "once".into(), ..Default::default() };
        let page = client.raw().list_dead_letters(request).await.unwrap().into_inner();
        let mut letters: Vec<Delivery> = page.letters.into_iter().map(Delivery::from).collect();
        letters.sort_by_key(text);
        letters
    };
    until("both are dead", async || letters().await.len() == 2).await;
    let errors: Vec<String> =
        letters().await.into_iter().map(|letter| letter.origin.unwrap().error).collect();
    assert_eq!(errors, ["no stock", "the handler panicked: a bug"]);
    until("all is done", async || group(&client, "once").await.lag == 0).await;
    consumer.abort();

    // With a delay of its own, and another attempt.
    let stop = Arc::new(Notify::new());
    let (attempts, finished) = (Arc::new(Mutex::new(Vec::new())), stop.clone());
    let seen = attempts.clone();
    let handler = move |delivery: Delivery| {
        let (seen, finished) = (seen.clone(), finished.clone());
        async move {
            if text(&delivery) != "fails" {
                return Ok(());
            }
            seen.lock().unwrap().push(delivery.attempt);
            if delivery.attempt == 1 {
                return Err(HandlerError::retry_after(Duration::from_millis(10), "later"));
            }
            finished.notify_one();
            Ok(())
        }
    };
    let consumed =
        client.consume_until("twice", ConsumeOptions::default(), stop.notified(), handler);
    within("it comes again", consumed).await.unwrap();
    assert_eq!(*attempts.lock().unwrap(), [1, 2]);
}

/// A consumer that is told to stop finishes what it has begun, and leaves the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ends_in_peace() {
    let node = Process::start();
    let client = node.client().await;
    put_group(&client, "g", "orders", 100).await;
    publish(&client, "orders", (0..10).map(|n| n.to_string())).await;
    let (begun, gate, stop) =
        (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let consumer = {
        let (client, stop) = (client.clone(), stop.clone());
        let (begun, gate) = (begun.clone(), gate.clone());
        tokio::spawn(async move {
            let handler = move |_: Delivery| {
                let (begun, gate) = (begun.clone(), gate.clone());
                async move {
                    begun.notify_one();
                    gate.notified().await;
                    Ok(())
                }
            };
            let options = ConsumeOptions { concurrency: 1, ..ConsumeOptions::default() };
            client.consume_until("g", options, stop.notified(), handler).await
        })
    };
    within("a handler runs", begun.notified()).await;
    stop.notify_one();
    assert!(!consumer.is_finished(), "it is not left alone");
    gate.notify_one();
    within("it stops", consumer).await.unwrap().unwrap();
    // What was on its way as the stream ended goes back a moment later.
    until("one is done, the others wait", async || {
        let state = group(&client, "g").await;
        (state.lag, state.in_flight) == (9, 0)
    })
    .await;
    let options = ReceiveOptions { max: 100, wait: PATIENCE, ..ReceiveOptions::default() };
    let left = client.receive("g", &options).await.unwrap();
    assert_eq!(left.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_consumed_is_said_at_once() {
    let node = Process::start();
    let client = node.client().await;
    let handler = |_: Delivery| async { Ok(()) };
    let nobody = client.consume("nobody", ConsumeOptions::default(), handler);
    let error = within("it is refused", nobody).await.unwrap_err();
    assert_eq!(error.code(), Some("group_not_found"));
    put_group(&client, "g", "orders", 1).await;
    let options = ConsumeOptions { lease: Duration::ZERO, ..ConsumeOptions::default() };
    let error = within("it is refused", client.consume("g", options, handler)).await.unwrap_err();
    assert_eq!(error.code(), Some("invalid_argument"));
    let options = ConsumeOptions { retry_for: Duration::ZERO, ..ConsumeOptions::default() };
    let nowhere = Client::builder("http://127.0.0.1:9").connect_lazily().unwrap();
    let error = within("it is given up", nowhere.consume("g", options, handler)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
}

/// Each consumer its own copy; and each receipt its own result.
#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_answered_one_by_one() {
    let node = Process::start();
    let client = node.client().await;
    put_group(&client, "g", "orders", 100).await;
    publish(&client, "orders", ["a", "b", "c"].map(str::to_owned)).await;
    let options = ReceiveOptions { max: 3, ..ReceiveOptions::default() };
    let got = client.receive("g", &options).await.unwrap();
    let receipts: Vec<&str> = got.iter().map(|delivery| delivery.receipt.as_str()).collect();
    let lease = Some(Duration::from_secs(60));
    assert_eq!(client.extend("g", [receipts[0]], lease).await.unwrap(), [Outcome::Ok]);
    let nacked = client.nack("g", [receipts[1]], Some(PATIENCE), "not now").await.unwrap();
    assert_eq!(nacked, [Outcome::Ok]);
    assert_eq!(client.ack("g", [receipts[0]]).await.unwrap(), [Outcome::Ok]);
    let outcomes = client.ack("g", [receipts[0], receipts[1], receipts[2], "x"]).await.unwrap();
    assert_eq!(outcomes[0], Outcome::Already);
    assert!(matches!(&outcomes[1], Outcome::Stale(what) if what.contains("given back")));
    assert_eq!(outcomes[2], Outcome::Ok);
    assert!(matches!(&outcomes[3], Outcome::Invalid(what) if what.contains("44 characters")));
}
