//! Slow, half-open, greedy and many: what such clients cost is bounded, and others do
//! not notice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Method;
use posthouse_client::proto::posthouse_client::PosthouseClient;
use posthouse_client::proto::{
    ConsumeRequest, GetGroupRequest, OutgoingMessage, PublishRequest, consume_request,
};
use posthouse_client::{Message, Outcome, ReceiveOptions};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::support::node::{Node, Setup};
use crate::support::{until, web, within};

/// How long a connection may take to say what it wants; and some more for this machine.
const HELLO_SECS: u64 = 15;
const SLACK_SECS: u64 = 15;

/// A connection that HTTP/2 gives no more room than it has to.
async fn narrow(node: &Node) -> PosthouseClient<Channel> {
    let endpoint = Endpoint::from_shared(node.url.clone()).unwrap();
    PosthouseClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(80 << 20)
}

/// Waits until the other side has closed; says how long that took.
async fn closed(mut socket: TcpStream, dribble: &'static [u8]) -> Duration {
    let began = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_secs(2));
    let mut piece = [0; 1024];
    let mut dribble = dribble.iter();
    within("the connection is closed", HELLO_SECS + SLACK_SECS, async {
        loop {
            tokio::select! {
                read = socket.read(&mut piece) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return began.elapsed(),
                },
                _ = beat.tick() => if let Some(byte) = dribble.next() {
                    web::send(&mut socket, &[*byte]).await;
                },
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_say_what_it_wants_is_closed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(&dir.path().join("plain")).start().await;
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".into()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let secret = Setup::new(&dir.path().join("tls"))
        .flag("--tls-cert", cert.to_str().unwrap())
        .flag("--tls-key", key.to_str().unwrap())
        .start()
        .await;
    let mut tasks = JoinSet::new();
    for (node, first, dribble) in [
        (&node, &b""[..], &b""[..]),
        (&node, b"PRI * HTTP", b""),
        (&node, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n", b""),
        (&node, b"GET /healthz HTTP/1.1\r\n", b"x-a: b\r\nx-c: d\r\n"),
        (&secret, b"", b""),
        (&secret, b"\x16\x03\x01\x02\x00\x01", b""),
    ] {
        let mut socket = web::connect(node.address).await;
        web::send(&mut socket, first).await;
        tasks.spawn(async move { (first, closed(socket, dribble).await) });
    }
    // Meanwhile others are served.
    let client = node.client().await;
    while let Some(done) = {
        client.publish("t", "meanwhile").await.unwrap();
        within("they are closed", HELLO_SECS + SLACK_SECS, tasks.join_next()).await
    } {
        let (first, took) = done.unwrap();
        let words = String::from_utf8_lossy(first);
        assert!(took >= Duration::from_secs(HELLO_SECS - 2), "{words:?} after {took:?}");
    }
    node.stop().await;
    secret.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_max_connections_one_more_is_closed_at_once_and_room_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).flag("--max-connections", "20").start().await;
    let client = node.client().await;
    client.publish("t", "first").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..19 {
        idle.push(web::connect(node.address).await);
    }
    // The kernel takes a connection before the node does.
    until("the places are taken", 20, || async {
        let socket = web::connect(node.address).await;
        let reads = async {
            let mut socket = socket;
            web::read_to_end(&mut socket).await
        };
        tokio::time::timeout(Duration::from_millis(500), reads).await.ok()
    })
    .await;
    for _ in 0..200 {
        let mut one_more = web::connect(node.address).await;
        let read = within("one more is closed", 5, web::read_to_end(&mut one_more)).await;
        assert_eq!(read, b"");
    }
    client.publish("t", "who is there is served").await.unwrap();
    drop(idle);
    let web = node.web();
    until("room comes back", 20, || async {
        let answer = web.send(Method::GET, "/healthz", &[], axum::body::Body::empty()).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
    let said = node.said();
    let lines = said.lines().filter(|line| line.contains("too many connections")).count();
    assert!((1..100).contains(&lines), "a flood fills the log: {lines} lines");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_stall_give_way_to_those_that_come_and_acks_flow() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).start().await;
    let (client, web) = (node.client().await, node.web());
    for n in 0..4 {
        client.publish("t", format!("{n}")).await.unwrap();
    }
    let topic = Some("t".to_owned());
    let options = ReceiveOptions { max: 2, topic, ..ReceiveOptions::default() };
    let held = client.receive("g", &options).await.unwrap();
    // Together nearly all that there is room for; none of them ends.
    let (mut stalled, sent) = (JoinSet::new(), Arc::new(Barrier::new(9)));
    for _ in 0..8 {
        let mut socket = web::connect(node.address).await;
        let sent = sent.clone();
        stalled.spawn(async move {
            let head = b"POST /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\n\
                         content-type: application/json\r\ncontent-length: 16000000\r\n\r\n";
            web::send(&mut socket, head).await;
            web::send(&mut socket, &vec![b' '; (12 << 20) - (300 << 10)]).await;
            sent.wait().await;
            web::read_to_end(&mut socket).await
        });
    }
    within("what stalls is sent", 30, sent.wait()).await;
    // The first find room beside them; for the others the stalled ones have to go.
    let kind = [("content-type", "application/octet-stream")];
    let mut publishes = JoinSet::new();
    for _ in 0..6 {
        let web = node.web();
        publishes.spawn(async move {
            let path = "/v1/topics/t/messages";
            within("a publish", 30, web.send(Method::POST, path, &kind, vec![1; 4_000_000])).await
        });
    }
    let began = Instant::now();
    let acked = client.ack("g", [held[0].receipt.clone()]).await.unwrap();
    assert_eq!(acked, [Outcome::Ok]);
    let ack = json!({ "receipts": [held[1].receipt] });
    assert_eq!(web.post("/v1/groups/g/ack", ack).await.done()["results"][0]["status"], "ok");
    assert_eq!(client.receive("g", &options).await.unwrap().len(), 2);
    web.put("/v1/topics/u", json!({})).await.done();
    assert!(began.elapsed() < Duration::from_secs(4), "acks took {:?}", began.elapsed());
    while let Some(answer) = publishes.join_next().await {
        let answer = answer.unwrap().unwrap();
        let retries = answer.headers.contains_key("retry-after");
        assert!(answer.status == 200 || (answer.status == 429 && retries), "{answer:?}");
    }
    let peak = node.peak_memory();
    eprintln!("{} MiB at most", peak >> 20);
    assert!(peak < 300 << 20, "{} MiB for uploads that may have 96", peak >> 20);
    // They are told why, as far as they read.
    let told = within("one is cut off", 60, stalled.join_next()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&told);
    assert!(told.starts_with("HTTP/1.1 429") && told.contains("came slowly"), "{told}");
    let is_taken = || async { client.publish("t", vec![1; 4_000_000]).await.ok() };
    until("publishes are taken again", 30, is_taken).await;
    stalled.abort_all();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_do_not_read_cost_a_bounded_amount_each() {
    const STREAMS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).flag("--memory", "64MiB").start().await;
    let client = node.client().await;
    for n in 0..60u8 {
        client.publish("t", vec![n; 1 << 20]).await.unwrap();
    }
    let before = node.peak_memory();
    let mut open_streams = Vec::new();
    for n in 0..STREAMS {
        let group = format!("g-{n}");
        let open = consume_request::Open {
            group: group.clone(),
            topic: Some("t".into()),
            credit: Some(consume_request::Credit { messages: u32::MAX, bytes: u64::MAX }),
            max_batch: Some(10_000),
            ..consume_request::Open::default()
        };
        let (tx, rx) = mpsc::channel(4);
        let request = consume_request::Request::Open(open);
        tx.send(ConsumeRequest { request: Some(request) }).await.unwrap();
        let mut raw = narrow(&node).await;
        // It is opened, and then not read any more.
        let stream = raw.consume(ReceiverStream::new(rx)).await.unwrap();
        open_streams.push((tx, raw, stream));
    }
    for n in 0..STREAMS {
        let name = format!("g-{n}");
        until("it has been given what may go together", 30, || async {
            let group = client.raw().get_group(GetGroupRequest { name: name.clone() }).await;
            group.is_ok_and(|group| group.into_inner().in_flight > 0).then_some(())
        })
        .await;
    }
    // Others are not held up.
    let topic = Some("u".to_owned());
    let options =
        ReceiveOptions { wait: Duration::from_secs(20), topic, ..ReceiveOptions::default() };
    client.publish("u", "quick").await.unwrap();
    assert_eq!(client.receive("quick", &options).await.unwrap().len(), 1);
    let took = node.peak_memory().saturating_sub(before);
    eprintln!("{} MiB for {STREAMS} streams", took >> 20);
    assert!(took < (STREAMS as u64 * 5) << 20, "{} MiB for {STREAMS} streams", took >> 20);
    drop(open_streams);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_does_not_read_is_held_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).start().await;
    let mut raw = narrow(&node).await;
    let (tx, rx) = mpsc::channel(1);
    // Answers that are larger than their requests, so that they fill what may be unread.
    let request = PublishRequest {
        topic: "t".into(),
        messages: vec![OutgoingMessage::default(); 5000],
        apart: true,
    };
    tx.send(request.clone()).await.unwrap();
    let answers = raw.publish_stream(ReceiverStream::new(rx)).await.unwrap();
    let mut sent = 1;
    while tokio::time::timeout(Duration::from_secs(3), tx.send(request.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 2000, "it is never held back");
    }
    let client = node.client().await;
    client.publish("t", Message::new("others are not")).await.unwrap();
    let peak = node.peak_memory();
    eprintln!("held back after {sent} requests, at {} MiB", peak >> 20);
    assert!(peak < 300 << 20, "{} MiB for a client that does not read", peak >> 20);
    // Now it reads, and everything is answered.
    let mut answers = answers.into_inner();
    drop(tx);
    let mut answered = 0;
    while let Some(answer) = within("an answer", 30, answers.message()).await.unwrap() {
        assert_eq!((answer.messages.len(), answer.problem), (5000, None));
        answered += 1;
    }
    assert!(answered == sent || answered == sent + 1, "{answered} answers for {sent} requests");
    node.stop().await;
}
