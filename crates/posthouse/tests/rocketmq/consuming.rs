//! Receives, acks and what comes again.

use posthouse::broker::publish::Outbox;
use posthouse_core::catalog::Order;
use posthouse_core::message::Parts;

use crate::pb::Code;
use crate::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_acked_message_does_not_come_again_and_an_ack_may_be_said_twice() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.send((0..3).map(|n| message("orders", n, &n.to_string())).collect()).await;
    let got = client.receive(simple("g", "orders")).await;
    assert_eq!(bodies(&got), ["0", "1", "2"]);
    for _ in 0..2 {
        let acked = client.ack("g", &got).await;
        assert_eq!(acked.status.unwrap().code(), Code::Ok);
        assert_eq!(acked.entries.len(), 3);
        for (entry, message) in acked.entries.iter().zip(&got) {
            assert_eq!(entry.receipt_handle, handle(message));
            assert_eq!(entry.status.as_ref().unwrap().code(), Code::Ok);
        }
    }
    assert!(client.receive(at_once(simple("g", "orders"))).await.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_waits_for_a_message_and_ends_before_the_call_does() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.one(simple("g", "orders")).await }
    });
    let groups = async || node.broker.catalog().group_named("g").is_some();
    within("the group is there", async {
        while !groups().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    Client::of(&node, "p").sent(message("orders", 1, "a")).await;
    assert_eq!(within("it comes", waiting).await.unwrap().body, "a");
    let mut request = client.request(simple("g", "orders"));
    request.set_timeout(Duration::from_secs(1));
    let (stream, took) = timed(client.service.clone().receive_message(request)).await;
    let first = stream.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(Content::Status(status)) = first.content else { panic!("{first:?}") };
    assert_eq!(status.code(), Code::MessageNotFound);
    assert!(took < Duration::from_secs(1), "{took:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_comes_again_when_its_time_is_over_and_the_old_handle_is_dead() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.sent(message("orders", 1, "a")).await;
    let first = client.one(simple("g", "orders")).await;
    let changed = client.change("g", &first, 200).await;
    assert_eq!(changed.status.unwrap().code(), Code::Ok);
    assert!(!changed.receipt_handle.is_empty());
    let second = client.one(simple("g", "orders")).await;
    assert_eq!(system(&second).delivery_attempt, Some(2));
    assert_eq!(system(&second).message_id, system(&first).message_id);
    let late = client.ack("g", std::slice::from_ref(&first)).await;
    assert_eq!(late.status.unwrap().code(), Code::InvalidReceiptHandle);
    assert_eq!(late.entries[0].status.as_ref().unwrap().code(), Code::InvalidReceiptHandle);
    let both = client.ack("g", &[first.clone(), second.clone()]).await;
    assert_eq!(both.status.unwrap().code(), Code::MultipleResults);
    let after = client.change("g", &second, 10_000).await;
    assert_eq!(after.status.unwrap().code(), Code::InvalidReceiptHandle, "it is done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_gives_a_message_back_at_once() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.sent(message("orders", 1, "a")).await;
    let first = client.one(simple("g", "orders")).await;
    assert_eq!(client.change("g", &first, 0).await.status.unwrap().code(), Code::Ok);
    let second = client.one(at_once(simple("g", "orders"))).await;
    assert_eq!(system(&second).delivery_attempt, Some(2));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_consumer_could_not_do_comes_again_after_the_time_that_it_says() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.sent(message("orders", 1, "a")).await;
    let first = client.one(push("g", "orders")).await;
    assert_eq!(client.change("g", &first, 300).await.status.unwrap().code(), Code::Ok);
    assert!(client.receive(at_once(push("g", "orders"))).await.is_empty());
    let second = client.one(push("g", "orders")).await;
    assert_eq!(system(&second).delivery_attempt, Some(2));
    let late = client.ack("g", std::slice::from_ref(&first)).await;
    assert_eq!(late.status.unwrap().code(), Code::InvalidReceiptHandle);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_gets_what_its_consumers_filter_for() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let tagged = |n, tag: &str| with(message("orders", n, tag), |s| s.tag = Some(tag.into()));
    client
        .send(vec![tagged(1, "a"), tagged(2, "b"), tagged(3, "c"), message("orders", 4, "")])
        .await;
    let filtered = |group: &str, expression: &str| pb::ReceiveMessageRequest {
        filter_expression: Some(pb::FilterExpression {
            r#type: pb::FilterType::Tag.into(),
            expression: expression.into(),
        }),
        ..simple(group, "orders")
    };
    assert_eq!(bodies(&client.receive(filtered("g1", "a || c")).await), ["a", "c"]);
    assert_eq!(bodies(&client.receive(filtered("g2", "*")).await), ["a", "b", "c", ""]);
    // The consumer changes its mind: the group gets what it says now.
    client.send(vec![tagged(5, "a"), tagged(6, "b")]).await;
    assert_eq!(bodies(&client.receive(filtered("g1", "b")).await), ["b"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_can_filter_on_properties_tags_and_keys() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let of = |n, tag: &str, key: &str, properties: &[(&str, &str)]| {
        let mut message = with(message("orders", n, &n.to_string()), |s| {
            s.tag = Some(tag.into());
            s.keys = vec![key.into(), "every".into()];
        });
        let named = properties.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        message.user_properties.extend(named);
        message
    };
    client
        .send(vec![
            of(1, "a", "k1", &[("price", "2.5"), ("region", "eu")]),
            of(2, "a", "k2", &[("price", "2"), ("region", "eu")]),
            of(3, "b", "k1", &[("price", "30"), ("region", "us")]),
            of(4, "b", "k3", &[("region", "eu")]),
        ])
        .await;
    for (group, expression, expected) in [
        ("g1", "price > 2", &["1", "3"][..]),
        ("g2", "region = 'eu' AND NOT price > 2", &["2"]),
        ("g3", "price IS NULL OR region <> 'eu'", &["3", "4"]),
        ("g4", "TAGS IN ('b', 'c') AND KEYS = 'k3'", &["4"]),
        ("g5", "KEYS = 'every' AND price BETWEEN 2 AND 2.5", &["1", "2"]),
        ("g6", "region STARTSWITH 'u'", &["3"]),
    ] {
        let filter_expression = Some(pb::FilterExpression {
            r#type: pb::FilterType::Sql.into(),
            expression: expression.into(),
        });
        let request = pb::ReceiveMessageRequest { filter_expression, ..simple(group, "orders") };
        assert_eq!(bodies(&client.receive(request.clone()).await), expected, "{expression}");
        assert_eq!(client.receive(at_once(request)).await, [], "{expression}");
    }
    node.stop().await;
}

/// A consumer that had said its filter before did not say it again, and the group that was
/// made anew got everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_deleted_is_made_anew_as_its_consumers_want_it() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let tagged = |n, tag: &str| with(message("orders", n, tag), |s| s.tag = Some(tag.into()));
    client.send(vec![tagged(1, "a"), tagged(2, "b")]).await;
    let filtered = || pb::ReceiveMessageRequest {
        filter_expression: Some(pb::FilterExpression {
            r#type: pb::FilterType::Tag.into(),
            expression: "a".into(),
        }),
        ..simple("g", "orders")
    };
    assert_eq!(bodies(&client.receive(filtered()).await), ["a"]);
    node.broker.delete_group(&Caller::Node, "g", true).await.unwrap();
    assert_eq!(bodies(&client.receive(filtered()).await), ["a"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_can_have_several_topics() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.sent(message("orders", 1, "o")).await;
    client.sent(message("invoices", 2, "i")).await;
    assert_eq!(client.one(simple("g", "orders")).await.body, "o");
    assert_eq!(client.one(simple("g", "invoices")).await.body, "i");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_group_come_one_after_the_other_in_a_group_that_keeps_order() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    put_group(&node, "g", "orders", |patch| patch.order = Some(Order::Key)).await;
    let keyed = |n, key: &str| {
        with(message("orders", n, &format!("{key}{n}")), |s| {
            s.set_message_type(MessageType::Fifo);
            s.message_group = Some(key.into());
        })
    };
    client.send(vec![keyed(1, "a"), keyed(2, "a"), keyed(3, "b"), keyed(4, "a")]).await;
    let first = client.receive(simple("g", "orders")).await;
    assert_eq!(bodies(&first), ["a1", "b3"]);
    assert_eq!(system(&first[0]).message_group.as_deref(), Some("a"));
    assert_eq!(system(&first[0]).message_type(), MessageType::Fifo);
    let other = Client::of(&node, "d");
    assert!(other.receive(at_once(simple("g", "orders"))).await.is_empty());
    // A retry does not let the next one pass.
    client.change("g", &first[0], 0).await;
    assert_eq!(bodies(&other.receive(simple("g", "orders")).await), ["a1"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_other_doors_have_an_id_that_clients_can_read() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let topic = node.broker.topic_to_publish(&Caller::Node, "orders").await.unwrap();
    let mut outbox: Outbox = node.broker.outbox(None, false);
    let parts = Parts { tags: vec!["x", "y"], headers: vec![("h", "v")], ..Parts::default() };
    node.broker.add(&mut outbox, &topic, &parts, b"hello").unwrap();
    let sent = node.broker.publish(outbox).await.unwrap();
    let id = node.broker.placed(&sent).next().unwrap().unwrap().id.to_string();
    let got = client.one(simple("g", "orders")).await;
    assert_eq!(system(&got).message_id, format!("00{}", id.to_uppercase()));
    assert_eq!(system(&got).tag.as_deref(), Some("x"));
    assert_eq!(got.user_properties, HashMap::from([("h".into(), "v".into())]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_a_prefix_that_its_clients_do_not_see() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let of =
        |name: &str| Some(pb::Resource { resource_namespace: "shop".into(), name: name.into() });
    let sent = pb::Message { topic: of("orders"), ..message("orders", 1, "a") };
    client.sent(sent).await;
    assert!(node.broker.catalog().topic_named("shop.orders").is_some());
    let queue = pb::MessageQueue { topic: of("orders"), ..Default::default() };
    let request =
        pb::ReceiveMessageRequest { group: of("g"), message_queue: Some(queue), ..simple("", "") };
    let got = client.one(request).await;
    assert_eq!(got.topic, of("orders"));
    assert!(node.broker.catalog().group_named("shop.g").is_some());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_gives_up_puts_the_message_to_the_dead_letters() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let sent = with(message("orders", 1, "poison"), |system| system.tag = Some("t".into()));
    client.sent(sent.clone()).await;
    let got = client.one(push("g", "orders")).await;
    for _ in 0..2 {
        assert_eq!(client.forward("g", &got).await.code(), Code::Ok, "it may be said twice");
    }
    let late = client.change("g", &got, 1000).await.status.unwrap();
    assert_eq!(late.code(), Code::InvalidReceiptHandle);
    assert_eq!(client.route("%DLQ%g").await.status.unwrap().code(), Code::Ok);
    let letter = client.one(simple("reader", "%DLQ%g")).await;
    assert_eq!(letter.topic, resource("%DLQ%g"));
    assert_eq!(letter.body, sent.body);
    assert_eq!(system(&letter).message_id, system(&sent).message_id);
    assert_eq!(system(&letter).tag, system(&sent).tag);
    let origin = system(&letter).dead_letter_queue.as_ref().unwrap();
    assert_eq!((origin.topic.as_str(), &origin.message_id), ("orders", &system(&sent).message_id));
    assert!(client.receive(at_once(push("g", "orders"))).await.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_message_can_give_it_up() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.sent(message("orders", 1, "a")).await;
    let first = client.one(simple("g", "orders")).await;
    client.change("g", &first, 0).await;
    let second = client.one(simple("g", "orders")).await;
    assert_eq!(client.forward("g", &first).await.code(), Code::InvalidReceiptHandle);
    assert_eq!(client.forward("h", &second).await.code(), Code::ConsumerGroupNotFound);
    let acked = client.ack("g", &[second]).await;
    assert_eq!(acked.status.unwrap().code(), Code::Ok);
    node.stop().await;
}

/// The dead letters of a group come after its last attempt, as the group has it.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_attempt_a_message_is_a_dead_letter() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    put_group(&node, "g", "orders", |patch| patch.max_attempts = Some(2)).await;
    client.sent(message("orders", 1, "poison")).await;
    for attempt in 1..=2 {
        let got = client.one(push("g", "orders")).await;
        assert_eq!(system(&got).delivery_attempt, Some(attempt));
        assert_eq!(client.change("g", &got, 0).await.status.unwrap().code(), Code::Ok);
    }
    within("there are dead letters", async {
        while client.route("%DLQ%g").await.status.unwrap().code() != Code::Ok {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(client.one(simple("reader", "%DLQ%g")).await.body, "poison");
    node.stop().await;
}

/// The answer was lost: the client tries again, under the same name. What it never saw is not
/// kept from it for as long as its leases are renewed.
#[tokio::test(flavor = "multi_thread")]
async fn a_receive_that_is_tried_again_gets_the_same_messages() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.sent(message("orders", 1, "a")).await;
    let named = |attempt: &str| pb::ReceiveMessageRequest {
        attempt_id: Some(attempt.into()),
        ..push("g", "orders")
    };
    let first = client.one(named("one")).await;
    assert!(client.receive(at_once(named("two"))).await.is_empty(), "it is held");
    let again = client.one(named("one")).await;
    assert_eq!(system(&again).message_id, system(&first).message_id);
    let done = client.ack("g", &[again]).await;
    assert_eq!(done.status.unwrap().code(), Code::Ok);
    assert!(client.receive(at_once(named("one"))).await.is_empty(), "it is done");
    node.stop().await;
}
