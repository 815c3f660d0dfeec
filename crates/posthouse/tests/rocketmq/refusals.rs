//! What is refused, and by which code.

use crate::pb::Code;
use crate::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_message_is_refused_by_the_code_of_what_is_wrong() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    let topic = |name: &str| pb::Message { topic: resource(name), ..message("orders", 1, "a") };
    let having =
        |change: &dyn Fn(&mut pb::SystemProperties)| with(message("orders", 1, "a"), change);
    let property = |name: &str, value: &str| {
        let user_properties = HashMap::from([(name.to_owned(), value.to_owned())]);
        pb::Message { user_properties, ..message("orders", 1, "a") }
    };
    let many: HashMap<String, String> = (0..129).map(|n| (n.to_string(), String::new())).collect();
    let year = 366 * 86_400;
    let far = node.broker.now().0 as i64 / 1000 + 11 * year;
    let cases = [
        (topic(""), Code::IllegalTopic),
        (topic("a b"), Code::IllegalTopic),
        (topic(&"x".repeat(201)), Code::IllegalTopic),
        (topic("%DLQ%g"), Code::IllegalTopic),
        (having(&|s| s.tag = Some("a|b".into())), Code::IllegalMessageTag),
        (having(&|s| s.tag = Some("a\tb".into())), Code::IllegalMessageTag),
        (having(&|s| s.tag = Some(String::new())), Code::IllegalMessageTag),
        (having(&|s| s.keys = vec![" ".into()]), Code::IllegalMessageKey),
        (having(&|s| s.keys = vec!["a\nb".into()]), Code::IllegalMessageKey),
        (having(&|s| s.message_group = Some("x".repeat(1025))), Code::IllegalMessageGroup),
        (having(&|s| s.set_message_type(MessageType::Fifo)), Code::IllegalMessageGroup),
        (having(&|s| s.set_message_type(MessageType::Delay)), Code::IllegalDeliveryTime),
        (
            having(&|s| {
                s.delivery_timestamp = Some(prost_types::Timestamp { seconds: far, nanos: 0 });
            }),
            Code::IllegalDeliveryTime,
        ),
        (having(&|s| s.set_message_type(MessageType::Lite)), Code::Unsupported),
        (having(&|s| s.set_message_type(MessageType::Priority)), Code::Unsupported),
        (having(&|s| s.message_type = 99), Code::Unsupported),
        (having(&|s| s.message_id = "x".repeat(257)), Code::IllegalMessageId),
        (property("KEYS", "x"), Code::IllegalMessagePropertyKey),
        (property("rocketmq.keys", "x"), Code::IllegalMessagePropertyKey),
        (property("a", &"x".repeat(33 << 10)), Code::MessagePropertiesTooLarge),
        (
            pb::Message { user_properties: many, ..message("orders", 1, "a") },
            Code::MessagePropertiesTooLarge,
        ),
        (
            pb::Message { body: vec![0; (4 << 20) + 1].into(), ..message("orders", 1, "") },
            Code::MessageBodyTooLarge,
        ),
    ];
    for (message, expected) in cases {
        let status = client.send(vec![message]).await.status.unwrap();
        assert_eq!(status.code(), expected, "{}", status.message);
        assert!(!status.message.is_empty());
    }
    assert_eq!(client.send(vec![]).await.status.unwrap().code(), Code::BadRequest);
    let two = vec![message("orders", 1, "a"), message("invoices", 2, "b")];
    assert_eq!(client.send(two).await.status.unwrap().code(), Code::IllegalTopic);
    assert!(client.receive(at_once(simple("g", "orders"))).await.is_empty(), "nothing came in");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_receive_is_refused_by_the_code_of_what_is_wrong() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    let good = || at_once(simple("g", "orders"));
    let filter = |expression: &str, sort: pb::FilterType| {
        Some(pb::FilterExpression { r#type: sort.into(), expression: expression.into() })
    };
    let cases = [
        (
            pb::ReceiveMessageRequest { group: resource("a b"), ..good() },
            Code::IllegalConsumerGroup,
        ),
        (pb::ReceiveMessageRequest { message_queue: None, ..good() }, Code::IllegalTopic),
        (
            pb::ReceiveMessageRequest { invisible_duration: None, ..good() },
            Code::IllegalInvisibleTime,
        ),
        (
            pb::ReceiveMessageRequest { invisible_duration: seconds(0), ..good() },
            Code::IllegalInvisibleTime,
        ),
        (
            pb::ReceiveMessageRequest { invisible_duration: seconds(86_401), ..good() },
            Code::IllegalInvisibleTime,
        ),
        (
            pb::ReceiveMessageRequest {
                filter_expression: filter("a |", pb::FilterType::Tag),
                ..good()
            },
            Code::IllegalFilterExpression,
        ),
        (
            pb::ReceiveMessageRequest {
                filter_expression: filter("a = NULL", pb::FilterType::Sql),
                ..good()
            },
            Code::IllegalFilterExpression,
        ),
    ];
    for (request, expected) in cases {
        let contents = client.receives(request).await;
        let [Content::Status(status)] = contents.as_slice() else { panic!("{contents:?}") };
        assert_eq!(status.code(), expected, "{}", status.message);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_say_who_it_is_is_refused() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let request = pb::SendMessageRequest { messages: vec![message("orders", 1, "a")] };
    let answer = client.service.clone().send_message(Request::new(request)).await.unwrap();
    assert_eq!(answer.into_inner().status.unwrap().code(), Code::ClientIdRequired);
    let long = Client::of(&node, &"x".repeat(201));
    assert_eq!(long.route("orders").await.status.unwrap().code(), Code::BadRequest);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_meaning_here_says_so() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    let mut service = client.service.clone();
    let lite = client.request(pb::SyncLiteSubscriptionRequest::default());
    let lite = service.sync_lite_subscription(lite).await.unwrap().into_inner();
    assert_eq!(lite.status.unwrap().code(), Code::Unsupported);
    node.stop().await;
}
