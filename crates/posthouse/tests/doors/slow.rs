//! Clients that ask for much and read nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posthouse::broker::manage::GroupPatch;
use posthouse::broker::{Caller, bounds};
use posthouse::doors::listen::ListenOptions;
use posthouse_client::proto::consume_request::{Credit, Open, Request};
use posthouse_client::proto::posthouse_client::PosthouseClient;
use posthouse_client::proto::{
    AckRequest, ConsumeRequest, OutgoingMessage, PublishRequest, ReceiveRequest,
};
use posthouse_core::catalog::Subscription;
use posthouse_core::message::Parts;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::door::Node;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node with sixteen messages of a megabyte, and a group that wants them.
async fn full() -> Node {
    let port = ListenOptions { reading: Duration::from_millis(500), ..ListenOptions::default() };
    let node = Node::listening(&port, |_| ()).await;
    let broker = &node.broker;
    let topic = broker.topic_to_publish(&Caller::Node, "t").await.unwrap();
    for n in 0..16u8 {
        let mut outbox = broker.outbox(None, false);
        broker.add(&mut outbox, &topic, &Parts::default(), &vec![n; 1 << 20]).unwrap();
        broker.publish(outbox).await.unwrap();
    }
    let subscription = Subscription { topic: "t".into(), filter: "*".into() };
    let subscriptions = Some(vec![subscription]);
    let patch = GroupPatch { subscriptions, lease_ms: Some(600_000), ..GroupPatch::default() };
    broker.put_group(&Caller::Node, "g", patch).await.unwrap();
    node
}

/// Waits until the node has a connection, and then until it has none. Each connection has
/// a share of the broker.
async fn comes_and_goes(node: &Node, idle: usize) {
    let waits = async |what: &str, is_so: &dyn Fn(usize) -> bool| {
        let waiting = async {
            while !is_so(Arc::strong_count(&node.broker)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
    };
    waits("it does not come", &|count| count > idle).await;
    waits("it is not closed", &|count| count <= idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_that_nobody_reads_ends_its_connection() {
    let node = full().await;
    let idle = Arc::strong_count(&node.broker);
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    let ask = b"GET /v1/topics/t/messages?limit=1000 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    socket.write_all(ask).await.unwrap();
    comes_and_goes(&node, idle).await;
    drop(socket);
    node.stop().await;
}

/// Over HTTP/2 a client takes what concerns the connection, and nothing of its streams.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_reads_end_their_connection_and_keep_their_leases() {
    let node = full().await;
    let idle = Arc::strong_count(&node.broker);
    let open = Open {
        group: "g".into(),
        credit: Some(Credit { messages: 1000, bytes: 1 << 30 }),
        ..Open::default()
    };
    let (tx, rx) = mpsc::channel(1);
    tx.send(ConsumeRequest { request: Some(Request::Open(open)) }).await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
    let mut client = PosthouseClient::new(endpoint.connect().await.unwrap());
    let stream = client.consume(ReceiverStream::new(rx)).await.unwrap();
    comes_and_goes(&node, idle).await;
    let group = node.broker.group_for(&Caller::Node, "g").unwrap();
    let in_flight = node.broker.group_stats(&group).await.unwrap().sum(|info| info.in_flight);
    assert!(in_flight > 0, "what was sent keeps its lease");
    drop((stream, tx));
    node.stop().await;
}

/// Two streams that were held back had filled the connection, and what was acknowledged on
/// it waited behind them.
#[tokio::test(flavor = "multi_thread")]
async fn acks_flow_on_a_connection_whose_publishes_are_held_back() {
    let node = full().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
    let mut client = PosthouseClient::new(endpoint.connect().await.unwrap());
    let ask = ReceiveRequest { group: "g".into(), max: Some(1), ..ReceiveRequest::default() };
    let got = client.receive(ask).await.unwrap().into_inner();
    let all = node.broker.wait_for_permit(bounds::BYTES_IN_FLIGHT).await.unwrap();
    let (mut held_back, pulled) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..5 {
        let message = OutgoingMessage { body: vec![1; 4 << 20].into(), ..Default::default() };
        let request =
            PublishRequest { topic: "u".into(), messages: vec![message], ..Default::default() };
        let pulled = pulled.clone();
        let requests = tokio_stream::iter(vec![request; 3]).map(move |request| {
            pulled.fetch_add(1, Ordering::Relaxed);
            request
        });
        let mut client = client.clone();
        held_back.push(tokio::spawn(async move {
            let answers = client.publish_stream(requests).await.unwrap().into_inner();
            let answers: Vec<_> = answers.collect().await;
            answers.iter().filter(|a| a.as_ref().is_ok_and(|a| a.problem.is_none())).count()
        }));
    }
    // The first of each has come whole and waits, and of the next as much as may come.
    let waits = async {
        while pulled.load(Ordering::Relaxed) < 2 * held_back.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
    for _ in 0..50 {
        let ack = AckRequest { group: "g".into(), receipts: vec![got.messages[0].receipt.clone()] };
        let acked = tokio::time::timeout(Duration::from_secs(5), client.ack(ack)).await;
        assert_eq!(acked.expect("acks flow").unwrap().into_inner().results.len(), 1);
    }
    drop(all);
    for answers in held_back {
        let answered = tokio::time::timeout(PATIENCE, answers).await.unwrap().unwrap();
        assert_eq!(answered, 3);
    }
    node.stop().await;
}
