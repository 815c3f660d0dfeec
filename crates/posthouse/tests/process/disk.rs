//! Disks that are full, and disks that fail.
//!
//! On the simulated disk, which fails on demand, under the broker as the binary runs it;
//! and once under the binary itself, which is not allowed to write.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use posthouse::broker::consume::{Outcome, Receive, Received, Verdict};
use posthouse::broker::manage::{GroupPatch, TopicPatch};
use posthouse::broker::{Broker, BrokerOptions, Caller, Report, StartError};
use posthouse::doors;
use posthouse::doors::listen::{ListenOptions, Port};
use posthouse::problem::{Kind, Problem};
use posthouse_client::Client;
use posthouse_core::catalog::{Retention, Subscription};
use posthouse_core::message::Parts;
use posthouse_log::files::sim::{EIO, ENOSPC, Fault, Op, SimFiles};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::crash;
use crate::support::node::Setup;
use crate::support::web::Web;
use crate::support::{until, within};

const ANYONE: Caller = Caller::Anyone;
const MIB: u64 = 1 << 20;

/// A broker on a simulated disk: segments of 4 MiB, and a snapshot for every 8 MiB.
pub async fn try_start(
    disk: &SimFiles,
    change: impl FnOnce(&mut BrokerOptions),
) -> Result<(Arc<Broker>, Report), StartError> {
    let mut options = BrokerOptions::new(PathBuf::from("/data"));
    options.shards = Some(1);
    options.disk_reserve = Some(0);
    options.segment_bytes = 4 * MIB;
    options.snapshot_log_bytes = 8 * MIB;
    options.memory = 64 * MIB;
    change(&mut options);
    Broker::start(disk.shared(), options).await
}

async fn start(disk: &SimFiles) -> Arc<Broker> {
    try_start(disk, |_| ()).await.expect("it starts").0
}

pub async fn stop(broker: Arc<Broker>) {
    broker.stop(Duration::from_secs(30)).await.expect("it stops");
}

/// A topic whose messages go as soon as they are done, and a group that gets them.
async fn prepare(broker: &Broker) {
    let retention = Some(Retention::Acknowledged { min_age_ms: 0 });
    let config = TopicPatch { retention, ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "t", config).await.unwrap();
    let subscription = Subscription { topic: "t".into(), filter: "*".into() };
    let config = GroupPatch { subscriptions: Some(vec![subscription]), ..GroupPatch::default() };
    broker.put_group(&ANYONE, "g", config).await.unwrap();
}

async fn publish(broker: &Broker, body: &[u8]) -> Result<u64, Problem> {
    let topic = broker.topic_to_publish(&ANYONE, "t").await?;
    let mut outbox = broker.outbox(None, false);
    broker.add(&mut outbox, &topic, &Parts::default(), body)?;
    let sent = broker.publish(outbox).await?;
    let placed = broker.placed(&sent).next().expect("an answer for the message")?;
    Ok(placed.position.expect("it was published at once"))
}

async fn receive(broker: &Broker, max: usize, wait_ms: u64) -> Result<Vec<Received>, Problem> {
    let ask = Receive { max, wait: Duration::from_millis(wait_ms), ..Receive::default() };
    broker.receive(&ANYONE, "g", &ask).await
}

async fn ack(broker: &Broker, received: &[Received]) -> Result<Vec<Outcome>, Problem> {
    let items = received.iter().map(|message| (message.receipt.clone(), Verdict::Ack));
    broker.settle(&ANYONE, "g", items.collect()).await
}

/// Bodies that are all different, and 64 KiB long.
fn body(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(8 << 10)
}

fn number(received: &Received) -> u64 {
    let body = received.parts().unwrap().1;
    let number = u64::from_le_bytes(*body.first_chunk().unwrap());
    assert!(body == body_of(number), "the body of {number}");
    number
}

fn body_of(n: u64) -> bytes::Bytes {
    body(n).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_disk_is_full_publishes_are_refused_and_what_is_consumed_makes_room_again() {
    let disk = SimFiles::new(1);
    disk.set_room(100 * MIB);
    let (broker, _) = try_start(&disk, |o| o.disk_reserve = Some(24 * MIB)).await.unwrap();
    prepare(&broker).await;
    let mut published = 0;
    for round in 0..3 {
        let refusal = within("publishes are refused", 60, async {
            loop {
                match publish(&broker, &body(published)).await {
                    Ok(_) => published += 1,
                    Err(refusal) => return refusal,
                }
            }
        })
        .await;
        assert_eq!((refusal.kind, refusal.code), (Kind::DiskFull, "disk_full"), "{refusal}");
        assert!(refusal.retry_after_ms.is_some() && refusal.detail.contains("/data"), "{refusal}");
        assert!(broker.failure().get().is_none(), "round {round}: {:?}", broker.failure().get());
        // Consumers go on, and what they have done makes room.
        let mut consumed = 0;
        within("everything is consumed", 60, async {
            loop {
                let received = receive(&broker, 50, 100).await.unwrap();
                let acked = ack(&broker, &received).await.unwrap();
                assert!(acked.iter().all(|outcome| *outcome == Outcome::Ok));
                consumed += received.len();
                if received.is_empty() {
                    return;
                }
            }
        })
        .await;
        assert!(consumed > 100, "round {round}: {consumed} of {published} were consumed");
        let is_taken = || async { publish(&broker, &body(published)).await.ok() };
        until("publishes are taken again, by themselves", 60, is_taken).await;
    }
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_faster_than_it_is_looked_at_does_not_fail_the_node() {
    // Somebody else takes the room. Looked at once a second, the disk would have been
    // full long before.
    let disk = SimFiles::new(1);
    disk.set_room(200 * MIB);
    let (broker, _) = try_start(&disk, |o| o.disk_reserve = Some(40 * MIB)).await.unwrap();
    prepare(&broker).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let broker = broker.clone();
        tasks.spawn(async move {
            let body = vec![7; 1 << 20];
            loop {
                if let Err(refusal) = publish(&broker, &body).await {
                    return refusal.code;
                }
            }
        });
    }
    let codes = within("publishes are refused", 60, tasks.join_all()).await;
    assert!(
        codes.iter().all(|code| *code == "disk_full"),
        "{codes:?}: {:?}",
        broker.failure().get()
    );
    assert_eq!(broker.failure().get(), None);
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_finds_no_room_fails_with_words_and_the_next_start_has_everything() {
    let disk = SimFiles::new(1);
    disk.set_room(64 * MIB);
    let broker = start(&disk).await;
    prepare(&broker).await;
    let mut published = 0;
    let failed = within("the log finds no room", 60, async {
        loop {
            match publish(&broker, &body(published)).await {
                Ok(position) => assert_eq!(position, published),
                Err(problem) => return problem,
            }
            published += 1;
        }
    })
    .await;
    assert_eq!((failed.kind, failed.code), (Kind::Unknown, "outcome_unknown"), "{failed}");
    let said = within("the node says so", 10, broker.failure().wait()).await;
    assert!(said.contains("free some space") && said.contains("/data/shard-0000"), "{said}");
    let later = publish(&broker, b"later").await.unwrap_err();
    assert_eq!(later.kind, Kind::Unavailable, "{later}");
    stop(broker).await;

    // On the disk that is still full it starts, and gives out what it has.
    let broker = start(&disk).await;
    let received = receive(&broker, 1, 1000).await.unwrap();
    assert_eq!(number(&received[0]), 0);
    stop(broker).await;
    disk.set_room(200 * MIB);
    let broker = start(&disk).await;
    ack(&broker, &received).await.unwrap();
    let mut seen = 1;
    while seen < published {
        for received in receive(&broker, 50, 1000).await.unwrap() {
            assert_eq!(number(&received), seen, "nothing acknowledged is missing");
            seen += 1;
        }
    }
    publish(&broker, &body(0)).await.unwrap();
    stop(broker).await;
}

/// Requests that are under way when the log's disk fails, and what becomes of each.
async fn fails_in_the_middle(op: Op) {
    let disk = SimFiles::new(7);
    let broker = start(&disk).await;
    prepare(&broker).await;
    for n in 0..20 {
        publish(&broker, &body(n)).await.unwrap();
    }
    let held = receive(&broker, 3, 1000).await.unwrap();
    assert_eq!(ack(&broker, &held[..1]).await.unwrap(), [Outcome::Ok]);
    let waits = {
        let broker = broker.clone();
        tokio::spawn(async move {
            let ask = Receive {
                wait: Duration::from_secs(100),
                topic: Some("empty".into()),
                ..Receive::default()
            };
            broker.receive(&ANYONE, "waits", &ask).await.map(|received| received.len())
        })
    };
    until("a consumer waits", 20, || async {
        let metrics = &broker.shards()[0].metrics;
        let waiting = metrics.waiting.load(std::sync::atomic::Ordering::Relaxed);
        (waiting > 0).then_some(())
    })
    .await;
    let path = "shard-0000/log/seg".to_owned();
    disk.fail(Fault { op, path, after: 0, times: 1, errno: EIO });
    let mut tasks = JoinSet::new();
    for n in 0..5 {
        let (broker, held) = (broker.clone(), held.clone());
        tasks.spawn(async move {
            match n {
                0 => ack(&broker, &held[1..2]).await.map(drop),
                1 => receive(&broker, 5, 0).await.map(drop),
                n => publish(&broker, &body(100 + n)).await.map(drop),
            }
        });
    }
    let answers = within("everybody is answered", 20, tasks.join_all()).await;
    for answer in answers {
        let problem = answer.expect_err("nothing is acknowledged by a disk that has failed");
        // What came before the failure is unknown; what came after was not taken.
        let kinds = [(Kind::Unknown, "outcome_unknown"), (Kind::Unavailable, "failed")];
        let told = (problem.kind, problem.code);
        assert!(kinds.contains(&told) || problem.code == "stopping", "{problem:?}");
    }
    let waited = within("who waits is answered", 20, waits).await.unwrap();
    assert!(waited.is_err(), "nothing has come");
    let said = within("the node says so", 20, broker.failure().wait()).await;
    assert!(said.contains("/data/shard-0000/log/seg"), "{said}");
    assert!(!broker.is_ready());
    stop(broker).await;

    // The power fails before anybody can look: what was acknowledged is there.
    let disk = disk.crash();
    let broker = start(&disk).await;
    let acked = ack(&broker, &held[..1]).await.unwrap();
    assert_eq!(acked, [Outcome::Already], "an ack that was answered is kept");
    let mut expected = 3..20;
    while !expected.is_empty() {
        for received in receive(&broker, 50, 1000).await.unwrap() {
            let number = number(&received);
            // The receive whose answer got lost may have had the first of them.
            while Some(number) != expected.next() {
                assert!(expected.start < 8 + 1, "message {} is missing", expected.start - 1);
            }
        }
    }
    publish(&broker, &body(1000)).await.unwrap();
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_write_fails_requests_under_way_are_unknown_and_the_node_says_why() {
    fails_in_the_middle(Op::Write).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_sync_fails_requests_under_way_are_unknown_and_the_node_says_why() {
    fails_in_the_middle(Op::Sync).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_catalogs_log_fails_the_node_ends_too() {
    let disk = SimFiles::new(1);
    let broker = start(&disk).await;
    prepare(&broker).await;
    disk.fail(Fault { path: "meta/log/seg".into(), ..Fault::next(Op::Sync) });
    let put = broker.put_topic(&ANYONE, "u", TopicPatch::default()).await.unwrap_err();
    assert_eq!((put.kind, put.code), (Kind::Unknown, "outcome_unknown"), "{put}");
    let said = within("the node says so", 20, broker.failure().wait()).await;
    assert!(said.contains("/data/meta/log/seg"), "{said}");
    stop(broker).await;
    let broker = start(&disk.crash()).await;
    publish(&broker, b"x").await.unwrap();
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_written_costs_nothing_but_a_longer_replay() {
    for (op, path, errno) in [
        (Op::Write, "/chunks/", ENOSPC),
        (Op::Create, "/chunks/", EIO),
        (Op::Sync, "/manifest-", EIO),
        (Op::Rename, "/manifest-", EIO),
    ] {
        let disk = SimFiles::new(3);
        let (broker, _) = try_start(&disk, |o| o.snapshot_log_bytes = MIB).await.unwrap();
        prepare(&broker).await;
        let path = format!("shard-0000{path}");
        disk.fail(Fault { op, path, after: 0, times: u64::MAX, errno });
        let failed = || {
            broker.shards()[0].metrics.snapshots_failed.load(std::sync::atomic::Ordering::Relaxed)
        };
        let mut published = 0;
        while published < 40 || failed() == 0 {
            publish(&broker, &body(published)).await.unwrap();
            published += 1;
        }
        assert_eq!(broker.failure().get(), None);
        // As after kill -9, on a disk that works again.
        let after = disk.fork();
        after.clear_faults();
        let broker_after = start(&after).await;
        for n in 0..published {
            let received = receive(&broker_after, 1, 1000).await.unwrap();
            assert_eq!(number(&received[0]), n, "{op:?} failed");
        }
        stop(broker_after).await;
        disk.clear_faults();
        stop(broker).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_cannot_be_read_is_not_served_and_comes_again() {
    let disk = SimFiles::new(1);
    let broker = start(&disk).await;
    prepare(&broker).await;
    for n in 0..3 {
        publish(&broker, &body(n)).await.unwrap();
    }
    stop(broker).await;
    // Nothing of it is in memory now.
    let broker = start(&disk).await;
    let ask = Receive { lease_ms: Some(100), ..Receive::default() };
    disk.fail(Fault { path: "shard-0000/log/seg".into(), ..Fault::next(Op::Read) });
    let problem = broker.receive(&ANYONE, "g", &ask).await.unwrap_err();
    assert_eq!((problem.kind, problem.code), (Kind::Corrupt, "unreadable"), "{problem}");
    assert!(problem.detail.contains("/data/shard-0000/log/seg"), "{problem}");
    assert_eq!(broker.failure().get(), None, "a read that fails is no end");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let received = receive(&broker, 10, 2000).await.unwrap();
        seen.extend(received.iter().map(|received| (number(received), received.attempt)));
    }
    seen.sort_unstable();
    assert_eq!(seen, [(0, 2), (1, 1), (2, 1)], "the attempt that was not delivered counts");
    stop(broker).await;
}

/// With the disk holding everything up, what is on its way in is bounded: beyond that a
/// client is told to come back, and whoever has something to acknowledge is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_too_much_on_its_way_publishes_are_put_off_and_acks_are_not() {
    let disk = SimFiles::new(1);
    let (broker, _) = try_start(&disk, |o| o.segment_bytes = 20 * MIB).await.unwrap();
    prepare(&broker).await;
    let large = TopicPatch { max_message_bytes: Some(8 << 20), ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "t", large).await.unwrap();
    publish(&broker, b"first").await.unwrap();
    let held = receive(&broker, 1, 1000).await.unwrap();

    let port = Port::bind("127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).await.unwrap();
    let url = format!("http://{}", port.address().unwrap());
    let (stop_tx, stop_rx) = oneshot::channel::<()>();
    let router = doors::router(&broker);
    let serving = tokio::spawn(async move {
        let stopped = async move { stop_rx.await.unwrap_or_default() };
        port.serve(router, stopped, Duration::from_secs(5)).await;
    });
    disk.hold_syncs();
    let web = Web::at(&url);
    let path = "/v1/topics/t/messages";
    let kind = [("content-type", "application/octet-stream")];
    // Eight have room, with what a message takes beside its body; the ninth, whichever it
    // is, is put off.
    const BODY: usize = (8 << 20) - 4096;
    let mut uploads = JoinSet::new();
    for _ in 0..9 {
        let web = web.clone();
        uploads.spawn(
            async move { web.send(Method::POST, path, &kind, vec![1; BODY]).await.unwrap() },
        );
    }
    let put_off = within("one is put off", 25, uploads.join_next()).await.unwrap().unwrap();
    assert_eq!((put_off.status, put_off.code().as_str()), (429, "too_many_requests"));
    assert!(put_off.headers.contains_key("retry-after"), "{:?}", put_off.headers);
    let client = Client::connect(url.clone()).await.unwrap();
    // What the eight have left of the room is less than this.
    let error = client.publish("t", vec![1; 64 << 10]).await.unwrap_err();
    assert_eq!(error.code(), Some("too_many_requests"), "{error}");
    assert!(error.is_retryable());
    // Acks are taken: they wait for the disk as everything does, and are not put off.
    let ack = json_ack(&held);
    let acked = tokio::spawn({
        let web = web.clone();
        async move { web.try_post("/v1/groups/g/ack", &ack).await.unwrap() }
    });
    disk.let_syncs(None);
    let acked = within("the ack is answered", 20, acked).await.unwrap();
    assert_eq!(acked.done()["results"][0]["status"], "ok");
    let answers = within("uploads are answered", 20, uploads.join_all()).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200; 8]);
    let is_taken = || async { client.publish("t", "x").await.ok() };
    until("publishes are taken again", 20, is_taken).await;
    drop((client, web));
    stop_tx.send(()).unwrap();
    within("connections end", 20, serving).await.unwrap();
    stop(broker).await;
}

fn json_ack(held: &[Received]) -> serde_json::Value {
    let receipts: Vec<&str> = held.iter().map(|message| message.receipt.as_str()).collect();
    serde_json::json!({ "receipts": receipts })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_writes_fail_ends_with_words_and_code_1_and_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path()).ignoring_size_signal();
    let node = setup.start().await;
    let client = node.client().await;
    for n in 0..10 {
        client.publish("t", format!("message {n}")).await.unwrap();
    }
    node.limit_file_size(4096);
    let error = within("the write fails", 20, client.publish("t", "unknown")).await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
    let ended = node.ended(40).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    for words in ["stopped because a disk failed", "shard-0000/log/seg-"] {
        assert!(ended.said.contains(words), "{words}: {}", ended.said);
    }
    let node = setup.start().await;
    let there = crash::browse(&node, "t", 0).await;
    assert!((10..=11).contains(&there.len()), "{}", there.len());
    node.client().await.publish("t", "goes on").await.unwrap();
    node.stop().await;
}
