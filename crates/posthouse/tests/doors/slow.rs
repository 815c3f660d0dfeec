//! Clients that ask for much and read nothing.

use std::sync::Arc;
use std::time::Duration;

use posthouse::broker::Caller;
use posthouse::broker::manage::GroupPatch;
use posthouse::doors::listen::ListenOptions;
use posthouse_client::proto::ConsumeRequest;
use posthouse_client::proto::consume_request::{Credit, Open, Request};
use posthouse_client::proto::posthouse_client::PosthouseClient;
use posthouse_core::catalog::Subscription;
use posthouse_core::message::Parts;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
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
