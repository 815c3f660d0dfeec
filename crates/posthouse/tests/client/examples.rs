//! The client's examples do what they say.

use std::sync::Arc;

use posthouse_client::Client;
use tokio::sync::Notify;

use crate::door::Node;
use crate::{all, group, put_group, until, within};

#[path = "../../../client/examples/competing.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod competing;
#[path = "../../../client/examples/consume.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod consume;
#[path = "../../../client/examples/dead_letters.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod dead_letters;
#[path = "../../../client/examples/outbox.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod outbox;
#[path = "../../../client/examples/publish.rs"]
#[allow(dead_code, reason = "its main is not run here")]
mod publish;

async fn node() -> (Node, Client) {
    let node = Node::start().await;
    let client = Client::connect(format!("http://{}", node.address)).await.unwrap();
    (node, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_published_and_two_consumers_share_them() {
    let (node, client) = node().await;
    let published = publish::run(&client).await.unwrap();
    assert_eq!(published.len(), 1003);
    assert_eq!(all(&client, "orders").await.len(), 1002);
    assert_eq!(all(&client, "payments").await.len(), 1);
    let [one, two] = within("all is consumed", competing::run(&client)).await.unwrap();
    assert_eq!(one + two, 1002);
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_does_the_orders_and_puts_off_the_others() {
    let (node, client) = node().await;
    let bodies = ["a book", "a lamp, tomorrow", "\u{e9}"].map(|body| body.into());
    client.publish_all("orders", bodies).await.unwrap();
    client.publish("orders", vec![0xff]).await.unwrap();
    put_group(&client, "billing", "orders", 2).await;
    let stop = Arc::new(Notify::new());
    let consumer = {
        let (client, stop) = (client.clone(), stop.clone());
        tokio::spawn(async move { consume::run(&client, stop.notified()).await })
    };
    until("two are done and two wait", async || {
        let group = group(&client, "billing").await;
        group.waiting == 2 && group.lag == 2
    })
    .await;
    stop.notify_one();
    within("it stops", consumer).await.unwrap().unwrap();
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_published_once() {
    let (node, client) = node().await;
    let row = |number| outbox::Row { number, body: number.to_string(), is_sent: false };
    let mut rows: Vec<outbox::Row> = (0..100).map(row).collect();
    let before = rows.clone();
    assert_eq!(outbox::relay(&client, &mut rows).await.unwrap(), (100, 0));
    assert!(rows.iter().all(|row| row.is_sent));
    assert_eq!(outbox::relay(&client, &mut rows).await.unwrap(), (0, 0));
    // It died before its marks were written, and two rows have come since.
    let mut rows = before;
    rows.extend((100..102).map(row));
    assert_eq!(outbox::relay(&client, &mut rows).await.unwrap(), (2, 100));
    let there = all(&client, "orders").await;
    let bodies: Vec<String> =
        there.iter().map(|message| String::from_utf8_lossy(&message.body).into()).collect();
    assert_eq!(bodies, (0..102).map(|number| number.to_string()).collect::<Vec<_>>());
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_says_why_and_comes_again() {
    let (node, client) = node().await;
    let (letter, again) = within("it comes", dead_letters::run(&client)).await.unwrap();
    let origin = letter.origin.unwrap();
    assert_eq!((origin.error.as_str(), origin.attempts), ("550 no such user", 1));
    assert_eq!((again.id, again.attempt), (letter.id, 1));
    assert_eq!(again.topic, "mails", "it is the message that it was");
    assert_eq!(again.published_at, origin.published_at);
    drop(client);
    node.stop().await;
}
