//! Transactions: prepared, ended, and asked about.

use pb::telemetry_command::Command;
use pb::{TransactionResolution as Resolution, TransactionSource};
use posthouse::broker::manage::TopicPatch;

use crate::pb::Code;
use crate::sessions::{Talk, producer};
use crate::*;

fn prepared(topic: &str, number: u32, body: &str) -> pb::Message {
    with(message(topic, number, body), |system| system.set_message_type(MessageType::Transaction))
}

impl Client {
    /// Says how a transaction ends.
    async fn ends(&self, id: &str, resolution: Resolution) -> pb::Status {
        let request = pb::EndTransactionRequest {
            topic: resource("orders"),
            transaction_id: id.into(),
            resolution: resolution.into(),
            source: TransactionSource::SourceClient.into(),
            ..Default::default()
        };
        let ended = self.service.clone().end_transaction(self.request(request)).await.unwrap();
        ended.into_inner().status.unwrap()
    }

    async fn commits(&self, id: &str) {
        let status = self.ends(id, Resolution::Commit).await;
        assert_eq!(status.code(), Code::Ok, "{}", status.message);
    }
}

/// A producer of `orders` that can be asked.
async fn present(node: &Node, id: &str) -> (Client, Talk) {
    let client = Client::of(node, id);
    client.route("orders").await;
    let mut talk = Talk::of(&client).await;
    talk.say(producer("orders"));
    talk.settings().await;
    (client, talk)
}

/// What a producer is asked about.
async fn asked(talk: &mut Talk) -> pb::RecoverOrphanedTransactionCommand {
    match talk.hear("the producer is asked").await {
        Command::RecoverOrphanedTransactionCommand(asked) => asked,
        other => panic!("{other:?}"),
    }
}

/// A topic whose producers are asked soon.
async fn impatient(node: &Node) {
    let patch = TopicPatch { check_after_ms: Some(100), ..Default::default() };
    node.broker.put_topic(&Caller::Node, "orders", patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_comes_and_what_is_rolled_back_does_not() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let first = client.sent(prepared("orders", 1, "a")).await;
    let second = client.sent(prepared("orders", 2, "b")).await;
    assert_eq!(first.message_id, system(&prepared("orders", 1, "a")).message_id);
    assert!(!first.transaction_id.is_empty() && first.recall_handle.is_empty());
    assert!(client.receive(at_once(simple("g", "orders"))).await.is_empty(), "neither is decided");
    assert_eq!(client.ends(&second.transaction_id, Resolution::Rollback).await.code(), Code::Ok);
    // The producer does not know yet.
    let unknown = client.ends(&first.transaction_id, Resolution::Unspecified).await;
    assert_eq!(unknown.code(), Code::Ok);
    assert!(client.receive(at_once(simple("g", "orders"))).await.is_empty());
    client.commits(&first.transaction_id).await;
    let got = client.one(simple("g", "orders")).await;
    assert_eq!(bodies(std::slice::from_ref(&got)), ["a"]);
    assert_eq!(system(&got).message_id, first.message_id);
    assert!(got.user_properties.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_final_and_the_same_again_is_well() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let id = client.sent(prepared("orders", 1, "a")).await.transaction_id;
    client.commits(&id).await;
    client.commits(&id).await;
    let late = client.ends(&id, Resolution::Rollback).await;
    assert_eq!(late.code(), Code::InvalidTransactionId);
    assert!(late.message.contains("committed before"), "{}", late.message);
    assert_eq!(client.receive(simple("g", "orders")).await.len(), 1, "it has come once");
    let normal = client.sent(message("orders", 2, "b")).await.transaction_id;
    for other in ["", "abc", normal.as_str(), &"0".repeat(32)] {
        let status = client.ends(other, Resolution::Commit).await;
        assert_eq!(status.code(), Code::InvalidTransactionId, "{other}: {}", status.message);
    }
    node.stop().await;
}

/// The answer was lost: the client sends the message again.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_prepared_again_is_the_same_transaction() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let first = client.sent(prepared("orders", 1, "a")).await;
    assert_eq!(client.sent(prepared("orders", 1, "a")).await, first);
    client.commits(&first.transaction_id).await;
    assert_eq!(client.receive(simple("g", "orders")).await.len(), 1);
    let two = vec![prepared("orders", 2, "b"), prepared("orders", 3, "c")];
    assert_eq!(client.send(two).await.status.unwrap().code(), Code::BadRequest);
    let bad = with(prepared("orders", 4, "d"), |system| system.tag = Some("a|b".into()));
    let refused = client.send(vec![bad]).await;
    assert_eq!(refused.status.unwrap().code(), Code::IllegalMessageTag);
    assert_eq!(refused.entries[0].status.as_ref().unwrap().code(), Code::IllegalMessageTag);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_asked_about_what_it_left_open_with_the_whole_message() {
    let node = Node::start().await;
    impatient(&node).await;
    let (client, mut talk) = present(&node, "p").await;
    let mut open = with(prepared("orders", 1, "body"), |system| {
        system.tag = Some("paid".into());
        system.keys = vec!["k1".into(), "k2".into()];
        system.message_group = Some("customer".into());
        system.trace_context = Some("trace".into());
    });
    open.user_properties = HashMap::from([("a".into(), "1".into())]);
    let sent = client.sent(open.clone()).await;
    let asked = asked(&mut talk).await;
    assert_eq!(asked.transaction_id, sent.transaction_id);
    let shown = asked.message.unwrap();
    assert_eq!((&shown.topic, &shown.body), (&open.topic, &open.body));
    assert_eq!(shown.user_properties, open.user_properties);
    let (open, shown) = (system(&open), system(&shown));
    assert_eq!((&shown.message_id, &shown.tag), (&open.message_id, &open.tag));
    assert_eq!((&shown.keys, &shown.message_group), (&open.keys, &open.message_group));
    assert_eq!(shown.trace_context, open.trace_context);
    assert_eq!(shown.message_type(), MessageType::Transaction);
    let digest = &shown.body_digest.as_ref().unwrap().checksum;
    assert_eq!(digest, "02083F4579E08A612425C0C1A17EE47ADD783B94");
    client.commits(&asked.transaction_id).await;
    assert_eq!(bodies(&client.receive(simple("g", "orders")).await), ["body"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_know_is_asked_again() {
    let node = Node::start().await;
    impatient(&node).await;
    let (client, mut talk) = present(&node, "p").await;
    let id = client.sent(prepared("orders", 1, "a")).await.transaction_id;
    for _ in 0..3 {
        assert_eq!(asked(&mut talk).await.transaction_id, id);
    }
    assert_eq!(client.ends(&id, Resolution::Rollback).await.code(), Code::Ok);
    assert!(client.receive(at_once(simple("g", "orders"))).await.is_empty());
    node.stop().await;
}

/// The one that prepared it is gone before it is asked. One that publishes to another topic
/// is not asked, nor is a consumer.
#[tokio::test(flavor = "multi_thread")]
async fn another_producer_of_the_topic_answers_for_one_that_has_died() {
    let node = Node::start().await;
    impatient(&node).await;
    let (dies, talk) = present(&node, "dies").await;
    let (invoices, mut other) = present(&node, "other").await;
    invoices.route("invoices").await;
    other.say(producer("invoices"));
    other.settings().await;
    let id = dies.sent(prepared("orders", 1, "a")).await.transaction_id;
    drop((dies, talk));
    let (client, mut talk) = present(&node, "lives").await;
    assert_eq!(asked(&mut talk).await.transaction_id, id);
    client.commits(&id).await;
    assert_eq!(bodies(&client.receive(simple("g", "orders")).await), ["a"]);
    // What comes next on the other's stream is not a question.
    other.say(producer("invoices"));
    other.settings().await;
    node.stop().await;
}

/// One that never answers does not keep the others from being asked.
#[tokio::test(flavor = "multi_thread")]
async fn producers_are_asked_in_turn() {
    let node = Node::start().await;
    impatient(&node).await;
    let (client, mut silent) = present(&node, "silent").await;
    let (_other, mut talk) = present(&node, "answers").await;
    let id = client.sent(prepared("orders", 1, "a")).await.transaction_id;
    for _ in 0..2 {
        let (one, other) = tokio::join!(asked(&mut talk), asked(&mut silent));
        assert_eq!((&one.transaction_id, &other.transaction_id), (&id, &id));
    }
    node.stop().await;
}

/// As clients do that open their stream again to a node that was restarted, and do not say
/// their settings again.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_says_nothing_of_itself_is_asked_about_its_topics() {
    let node = Node::start().await;
    impatient(&node).await;
    let client = Client::of(&node, "p");
    let mut talk = Talk::of(&client).await;
    let id = client.sent(prepared("orders", 1, "a")).await.transaction_id;
    assert_eq!(asked(&mut talk).await.transaction_id, id);
    node.stop().await;
}

/// RocketMQ refuses these.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_may_be_delayed_and_have_a_group() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let due = node.broker.now().0 + 1_500;
    let later = with(prepared("orders", 1, "later"), |system| {
        system.message_group = Some("customer".into());
        system.delivery_timestamp = Some(prost_types::Timestamp {
            seconds: (due / 1000) as i64,
            nanos: (due % 1000 * 1_000_000) as i32,
        });
    });
    let sent = client.sent(later).await;
    let recall = |handle: String| {
        let request = pb::RecallMessageRequest { topic: resource("orders"), recall_handle: handle };
        let (mut service, request) = (client.service.clone(), client.request(request));
        async move { service.recall_message(request).await.unwrap().into_inner().status.unwrap() }
    };
    assert_eq!(recall(sent.recall_handle.clone()).await.code(), Code::PreconditionFailed);
    client.commits(&sent.transaction_id).await;
    assert!(client.receive(at_once(simple("g", "orders"))).await.is_empty(), "not yet");
    let got = client.one(simple("g", "orders")).await;
    assert!(node.broker.now().0 >= due, "it is not early");
    assert_eq!(system(&got).message_group.as_deref(), Some("customer"));
    // What is committed can be recalled until it comes.
    let due = node.broker.now().0 as i64 / 1000 + 3600;
    let hour = with(prepared("orders", 2, "hour"), |system| {
        system.delivery_timestamp = Some(prost_types::Timestamp { seconds: due, nanos: 0 });
    });
    let sent = client.sent(hour).await;
    client.commits(&sent.transaction_id).await;
    assert_eq!(recall(sent.recall_handle).await.code(), Code::Ok);
    node.stop().await;
}
