//! Routes, sends and recalls.

use std::collections::HashMap;

use posthouse::broker::manage::TopicPatch;
use posthouse_core::catalog::Accepts;

use crate::pb::{self, Code, MessageType, Permission};
use crate::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_route_leads_to_where_the_client_came_in_and_makes_the_topic() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let route = client.route("orders").await;
    assert_eq!(route.status.unwrap().code(), Code::Ok);
    let [queue] = route.message_queues.as_slice() else { panic!("one partition, one queue") };
    assert_eq!((queue.id, queue.permission()), (0, Permission::ReadWrite));
    assert_eq!(queue.topic, resource("orders"));
    let broker = queue.broker.as_ref().unwrap();
    assert_eq!(broker.id, 0);
    assert_eq!(broker.endpoints.as_ref(), Some(&client.endpoints));
    use MessageType::{Delay, Fifo, Normal, Transaction};
    assert_eq!(queue.accept_message_types, [Normal, Fifo, Delay, Transaction].map(i32::from));
    assert_eq!(client.route("%DLQ%g").await.status.unwrap().code(), Code::TopicNotFound);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_makes_no_topics_says_that_there_is_none() {
    let node = Node::start_with(|options| options.auto_create = Some(false)).await;
    let client = Client::of(&node, "p");
    assert_eq!(client.route("orders").await.status.unwrap().code(), Code::TopicNotFound);
    let status = client.send(vec![message("orders", 1, "a")]).await.status.unwrap();
    assert_eq!(status.code(), Code::TopicNotFound);
    let refused = client.receives(at_once(simple("g", "orders"))).await;
    let Some(Content::Status(status)) = refused.first() else { panic!("{refused:?}") };
    assert_eq!(status.code(), Code::ConsumerGroupNotFound);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_was_sent_comes_back_and_nothing_else() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let mut sent = with(message("orders", 1, "body"), |system| {
        system.tag = Some("paid".into());
        system.keys = vec!["k1".into(), "k 2".into()];
        system.trace_context = Some("trace".into());
    });
    sent.user_properties = HashMap::from([("a".into(), "1".into()), ("b".into(), "".into())]);
    let entry = client.sent(sent.clone()).await;
    assert_eq!(entry.message_id, system(&sent).message_id);
    let got = client.one(simple("g", "orders")).await;
    assert_eq!(got.topic, sent.topic);
    assert_eq!(got.body, sent.body);
    assert_eq!(got.user_properties, sent.user_properties);
    let (sent, got) = (system(&sent), system(&got));
    assert_eq!(got.message_id, sent.message_id);
    assert_eq!((&got.tag, &got.keys), (&sent.tag, &sent.keys));
    assert_eq!((&got.born_host, &got.trace_context), (&sent.born_host, &sent.trace_context));
    assert_eq!(got.message_type(), MessageType::Normal);
    assert_eq!(got.body_encoding(), pb::Encoding::Identity);
    assert_eq!(got.delivery_attempt, Some(1));
    assert_eq!((got.queue_id, got.queue_offset), (0, Some(0)));
    let digest = got.body_digest.as_ref().unwrap();
    assert_eq!(digest.r#type(), pb::DigestType::Sha1);
    assert_eq!(digest.checksum, "02083F4579E08A612425C0C1A17EE47ADD783B94");
    node.stop().await;
}

/// A client that lost the answer sends the message again with the same id; only the time
/// that it was born at is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_sent_again_is_taken_in_once() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let first = client.sent(message("orders", 1, "a")).await;
    let again = with(message("orders", 1, "a"), |system| {
        system.born_timestamp = Some(prost_types::Timestamp { seconds: 99, nanos: 0 });
        system.queue_id = 3;
    });
    assert_eq!(client.sent(again).await, first);
    let other = client.send(vec![message("orders", 1, "b")]).await;
    assert_eq!(other.status.unwrap().code(), Code::IllegalMessageId);
    client.sent(message("orders", 2, "b")).await;
    let got = client.receive(simple("g", "orders")).await;
    assert_eq!(bodies(&got), ["a", "b"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_message_of_a_batch_keeps_no_other_out() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let bad = with(message("orders", 2, "b"), |system| system.tag = Some("a|b".into()));
    let batch = vec![message("orders", 1, "a"), bad, message("orders", 3, "c")];
    let response = client.send(batch).await;
    assert_eq!(response.status.unwrap().code(), Code::MultipleResults);
    let codes: Vec<Code> =
        response.entries.iter().map(|entry| entry.status.as_ref().unwrap().code()).collect();
    assert_eq!(codes, [Code::Ok, Code::IllegalMessageTag, Code::Ok]);
    assert_eq!(response.entries.iter().map(|e| e.offset).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(bodies(&client.receive(simple("g", "orders")).await), ["a", "c"]);
    node.stop().await;
}

fn in_ms(node: &Node, ms: u64) -> prost_types::Timestamp {
    let at = node.broker.now().0 + ms;
    prost_types::Timestamp { seconds: (at / 1000) as i64, nanos: (at % 1000 * 1_000_000) as i32 }
}

fn later(node: &Node, number: u32, body: &str, ms: u64) -> pb::Message {
    let at = in_ms(node, ms);
    with(message("orders", number, body), |system| {
        system.set_message_type(MessageType::Delay);
        system.delivery_timestamp = Some(at);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_comes_when_it_is_due_and_not_before() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let sent = later(&node, 1, "later", 700);
    let due = system(&sent).delivery_timestamp;
    client.sent(sent).await;
    client
        .sent(with(later(&node, 2, "past", 0), |s| s.delivery_timestamp = Some(Default::default())))
        .await;
    assert_eq!(client.one(simple("g", "orders")).await.body, "past");
    let got = client.one(simple("g", "orders")).await;
    let now = in_ms(&node, 0);
    assert_eq!(got.body, "later");
    assert_eq!(system(&got).message_type(), MessageType::Delay);
    assert_eq!(system(&got).delivery_timestamp, due);
    let due = due.unwrap();
    assert!((now.seconds, now.nanos) >= (due.seconds, due.nanos));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recalled_message_never_comes() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let recall = async |topic: &str, handle: &str| {
        let request =
            pb::RecallMessageRequest { topic: resource(topic), recall_handle: handle.into() };
        let request = client.request(request);
        client.service.clone().recall_message(request).await.unwrap().into_inner()
    };
    let entry = client.sent(later(&node, 1, "x", 3_600_000)).await;
    assert!(!entry.recall_handle.is_empty());
    let wrong = recall("invoices", &entry.recall_handle).await.status.unwrap();
    assert_eq!(wrong.code(), Code::IllegalMessageId, "{}", wrong.message);
    let done = recall("orders", &entry.recall_handle).await;
    assert_eq!(done.status.unwrap().code(), Code::Ok);
    assert_eq!(done.message_id, entry.message_id);
    let again = recall("orders", &entry.recall_handle).await;
    assert_eq!(again.status.unwrap().code(), Code::Ok, "it is as was wanted");
    let fired = client.sent(later(&node, 2, "y", 0)).await;
    assert_eq!(client.one(simple("g", "orders")).await.body, "y");
    let late = recall("orders", &fired.recall_handle).await;
    assert_eq!(late.status.unwrap().code(), Code::MessageNotFound);
    let made_up = recall("orders", "made-up").await;
    assert_eq!(made_up.status.unwrap().code(), Code::IllegalMessageId);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_have_a_group_and_come_later() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let both = with(later(&node, 1, "x", 0), |s| s.message_group = Some("k".into()));
    client.sent(both).await;
    let got = client.one(simple("g", "orders")).await;
    assert_eq!(system(&got).message_group.as_deref(), Some("k"));
    assert!(system(&got).delivery_timestamp.is_some());
    node.stop().await;
}

/// Clients refuse what the route does not list; what comes all the same is refused here.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_one_type_refuses_others() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let normal = message("orders", 1, "a");
    let keyed = with(message("orders", 2, "a"), |system| {
        system.message_group = Some("k".into());
        system.set_message_type(MessageType::Fifo);
    });
    let later = with(message("orders", 3, "a"), |system| {
        system.delivery_timestamp = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        system.set_message_type(MessageType::Delay);
    });
    let prepared = with(message("orders", 4, "a"), |system| {
        system.set_message_type(MessageType::Transaction);
    });
    let sorts = [Accepts::Normal, Accepts::Keyed, Accepts::Delayed, Accepts::Prepared];
    let all = [normal, keyed, later, prepared];
    for (own, accepts) in sorts.into_iter().enumerate() {
        let patch = TopicPatch { accepts: Some(accepts), ..Default::default() };
        node.broker.put_topic(&Caller::Node, "orders", patch).await.unwrap();
        let route = client.route("orders").await;
        let listed = &route.message_queues[0].accept_message_types;
        assert_eq!(*listed, [system(&all[own]).message_type]);
        for (of, message) in all.iter().enumerate() {
            let status = client.send(vec![message.clone()]).await.status.unwrap();
            let expected = if of == own { Code::Ok } else { Code::MessagePropertyConflictWithType };
            assert_eq!(status.code(), expected, "{accepts:?} {of}: {}", status.message);
        }
    }
    node.stop().await;
}
