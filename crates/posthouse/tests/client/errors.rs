//! What a refusal looks like to a program, kind by kind.

use std::time::Duration;

use posthouse_client::{Client, Error, Message, ReceiveOptions, proto};

use crate::door::Node;

async fn connect(node: &Node) -> Client {
    Client::connect(format!("http://{}", node.address)).await.unwrap()
}

fn refused(error: Error) -> posthouse_client::Problem {
    match error {
        Error::Refused(problem) => problem,
        other => panic!("no refusal: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_refusal_can_be_told_apart() {
    use tonic::Code;
    let node = Node::start().await;
    let client = connect(&node).await;
    client.publish("orders", Message::new("x").dedupe_id("1")).await.unwrap();
    let receive = ReceiveOptions::default();
    for (error, code, status) in [
        (client.publish("or ders", "x").await, "invalid_name", Code::InvalidArgument),
        (
            client.publish("orders", Message::new("x").tag("")).await,
            "invalid_message",
            Code::InvalidArgument,
        ),
        (
            client.publish("orders", vec![0; 5 << 20]).await,
            "message_too_large",
            Code::InvalidArgument,
        ),
        (
            client.publish("orders", Message::new("y").dedupe_id("1")).await,
            "dedupe_conflict",
            Code::FailedPrecondition,
        ),
        (
            client.receive("nobody", &receive).await.map(|_| unreachable!("it is refused")),
            "group_not_found",
            Code::NotFound,
        ),
    ] {
        let error = error.unwrap_err();
        assert!(!error.is_retryable() && !error.is_outcome_unknown(), "{code}");
        assert_eq!(error.code(), Some(code));
        let problem = refused(error);
        assert_eq!(problem.status, status, "{code}");
        assert!(!problem.detail.is_empty());
    }

    // Later it may work.
    let all = node.broker.permit(64 << 20).unwrap();
    let busy = client.publish("orders", "x").await.unwrap_err();
    assert!(busy.is_retryable());
    let busy = refused(busy);
    assert_eq!((busy.code.as_str(), busy.status), ("too_many_requests", Code::ResourceExhausted));
    assert_eq!(busy.retry_after, Some(Duration::from_millis(100)));
    drop(all);
    node.broker.begin_stop();
    let stopping = client.publish("orders", "x").await.unwrap_err();
    assert!(stopping.is_retryable() && !stopping.is_outcome_unknown());
    let stopping = refused(stopping);
    assert_eq!((stopping.code.as_str(), stopping.status), ("stopping", Code::Unavailable));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_so() {
    let node = Node::start().await;
    let client = connect(&node).await;
    client.publish("orders", "x").await.unwrap();
    let token = async |user: &str, action: proto::Action, groups: &str| {
        let grant = proto::AccessGrant {
            actions: vec![action.into()],
            topics: vec!["*".into()],
            groups: vec![groups.into()],
        };
        let request =
            proto::PutUserRequest { name: user.into(), grants: vec![grant], publish_quota: None };
        client.raw().put_user(request).await.unwrap();
        let request = proto::CreateTokenRequest {
            user: user.into(),
            name: "test".into(),
            ..Default::default()
        };
        client.raw().create_token(request).await.unwrap().into_inner().token
    };
    let shop = token("shop", proto::Action::Publish, "none").await;
    let root = token("root", proto::Action::Manage, "*").await;
    let error = client.publish("orders", "x").await.unwrap_err();
    assert_eq!(error.code(), Some("unauthenticated"));
    let with = async |token: &str| {
        let address = format!("http://{}", node.address);
        Client::builder(address).token(token).connect().await.unwrap()
    };
    assert_eq!(
        with("ph_wrong").await.publish("orders", "x").await.unwrap_err().code(),
        Some("unauthenticated")
    );
    let shop = with(&shop).await;
    shop.publish("orders", "x").await.unwrap();
    let receive = ReceiveOptions { topic: Some("orders".into()), ..Default::default() };
    assert_eq!(shop.receive("g", &receive).await.unwrap_err().code(), Some("forbidden"));
    // A publisher and a consumer end with what they were told, and do not try for ever.
    let error = client.publisher(Default::default()).publish("orders", "x").await.unwrap_err();
    assert_eq!(error.code(), Some("unauthenticated"));
    let handler = |_: posthouse_client::Delivery| async { Ok(()) };
    let error = shop.consume("g", Default::default(), handler).await.unwrap_err();
    assert_eq!(error.code(), Some("forbidden"));
    let error = Client::builder(format!("http://{}", node.address)).token("no\ntoken");
    assert!(matches!(error.connect().await, Err(Error::Invalid(_))));
    drop((shop, with(&root).await));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_apart_and_may_have_room_later() {
    let node = Node::start_with(|options| options.disk_reserve = Some(u64::MAX)).await;
    let error = connect(&node).await.publish("orders", "x").await.unwrap_err();
    assert!(error.is_retryable() && !error.is_outcome_unknown());
    let full = refused(error);
    assert_eq!((full.code.as_str(), full.status), ("disk_full", tonic::Code::ResourceExhausted));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_unreachable() {
    let error = Client::connect("http://127.0.0.1:9").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)) && error.is_retryable(), "{error:?}");
    let client = Client::builder("http://127.0.0.1:9").connect_lazily().unwrap();
    let error = client.publish("orders", "x").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)) && !error.is_outcome_unknown(), "{error:?}");
    let error = Client::connect("no address").await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
}
