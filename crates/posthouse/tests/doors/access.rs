//! Users that change while others are at it, and callers that stay.

use std::time::Duration;

use posthouse::broker::Caller;
use posthouse_client::proto::consume_request::{Credit, Open, Request, StreamAck};
use posthouse_client::proto::consume_response::Response;
use posthouse_client::proto::{ConsumeRequest, OutgoingMessage, PublishRequest};
use posthouse_client::{Client, Error};
use posthouse_core::catalog::{AccessGrant, Action};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::door::Node;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

fn everything() -> Vec<AccessGrant> {
    let actions = vec![Action::Publish, Action::Consume, Action::Manage];
    vec![AccessGrant { actions, topics: vec!["*".into()], groups: vec!["*".into()] }]
}

/// Makes a user who may do everything, with a token of the name `one`.
async fn manager(node: &Node, name: &str) -> String {
    node.broker.put_user(&Caller::Node, name, everything(), None).await.unwrap();
    node.broker.make_token(&Caller::Node, name, "one").await.unwrap()
}

/// Each of the two found the other, and with both gone anyone could do anything.
#[tokio::test]
async fn two_managers_who_go_at_the_same_time_leave_one() {
    let node = Node::start().await;
    manager(&node, "a").await;
    manager(&node, "b").await;
    node.broker.put_user(&Caller::Node, "c", Vec::new(), None).await.unwrap();
    let (a, b) = tokio::join!(
        node.broker.delete_user(&Caller::Node, "a"),
        node.broker.delete_user(&Caller::Node, "b"),
    );
    let refused = a.and(b).unwrap_err();
    assert_eq!(refused.code, "no_manager");
    assert!(!node.broker.is_open());
    node.stop().await;
}

/// Who gave a user other grants brought back a token that was being revoked.
#[tokio::test]
async fn a_token_that_is_revoked_while_the_user_changes_is_revoked() {
    let node = Node::start().await;
    manager(&node, "root").await;
    let token = manager(&node, "shop").await;
    let (revoked, changed) = tokio::join!(
        node.broker.revoke_token(&Caller::Node, "shop", "one"),
        node.broker.put_user(&Caller::Node, "shop", Vec::new(), None),
    );
    revoked.unwrap();
    changed.unwrap();
    assert_eq!(node.broker.identify(Some(&token)).unwrap_err().code, "unauthenticated");
    // And two tokens that are made at once are both there.
    let (two, three) = tokio::join!(
        node.broker.make_token(&Caller::Node, "shop", "two"),
        node.broker.make_token(&Caller::Node, "shop", "three"),
    );
    for token in [two.unwrap(), three.unwrap()] {
        node.broker.identify(Some(&token)).unwrap();
    }
    node.stop().await;
}

/// Without its last user a node is open to anyone, which one that listens on a public
/// address must never be.
#[tokio::test]
async fn a_node_that_anyone_can_reach_keeps_somebody_who_manages_it() {
    let node = Node::start_with(|options| options.keeps_manager = true).await;
    manager(&node, "root").await;
    let refused = node.broker.delete_user(&Caller::Node, "root").await.unwrap_err();
    assert_eq!(refused.code, "no_manager");
    node.stop().await;
}

/// A stream that was open kept the rights it had begun with, for as long as it stayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_on_streams_that_are_open() {
    let node = Node::start().await;
    let url = format!("http://{}", node.address);
    let anyone = Client::connect(url.clone()).await.unwrap();
    manager(&node, "root").await;
    let token = manager(&node, "shop").await;
    let client = Client::builder(url).token(token).connect().await.unwrap();
    let caller = Caller::Node;
    node.broker.put_topic(&caller, "t", Default::default()).await.unwrap();

    let (publish, rx) = mpsc::channel(4);
    let message = OutgoingMessage { body: "x".into(), ..Default::default() };
    let request = PublishRequest { topic: "t".into(), messages: vec![message], apart: false };
    publish.send(request.clone()).await.unwrap();
    let answers = client.raw().publish_stream(ReceiverStream::new(rx)).await.unwrap();
    let mut answers = answers.into_inner();
    assert_eq!(soon(answers.message()).await.unwrap().unwrap().problem, None);

    let (consume, rx) = mpsc::channel(4);
    let say = |request| consume.send(ConsumeRequest { request: Some(request) });
    let open = Open {
        group: "g".into(),
        topic: Some("t".into()),
        credit: Some(Credit { messages: 1, bytes: 1 << 20 }),
        ..Default::default()
    };
    let patch = posthouse::broker::manage::GroupPatch {
        subscriptions: Some(vec![posthouse_core::catalog::Subscription {
            topic: "t".into(),
            filter: "*".into(),
        }]),
        ..Default::default()
    };
    node.broker.put_group(&caller, "g", patch).await.unwrap();
    say(Request::Open(open)).await.unwrap();
    let deliveries = client.raw().consume(ReceiverStream::new(rx)).await.unwrap();
    let mut deliveries = deliveries.into_inner();
    let first = soon(deliveries.message()).await.unwrap().unwrap().response;
    let Some(Response::Messages(messages)) = first else { panic!("{first:?}") };

    node.broker.revoke_token(&caller, "shop", "one").await.unwrap();
    publish.send(request).await.unwrap();
    let problem = soon(answers.message()).await.unwrap().unwrap().problem.unwrap();
    assert_eq!(problem.code, "unauthenticated");
    let receipts = vec![messages.messages[0].receipt.clone()];
    say(Request::Ack(StreamAck { seq: 7, receipts })).await.unwrap();
    let failed = soon(deliveries.message()).await.unwrap().unwrap().response;
    let Some(Response::Failed(failed)) = failed else { panic!("{failed:?}") };
    assert_eq!(failed.problem.unwrap().code, "unauthenticated");
    // It has asked for no more yet; when it does, it ends.
    say(Request::Credit(Credit { messages: 1, bytes: 1 << 20 })).await.unwrap();
    let ended: Error = soon(deliveries.message()).await.unwrap_err().into();
    assert_eq!(ended.code(), Some("unauthenticated"));
    // Who needed no token when it came needs one now.
    assert_eq!(anyone.publish("t", "x").await.unwrap_err().code(), Some("unauthenticated"));
    node.stop().await;
}
