//! The broker as a door uses it, on a real disk.

use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use posthouse::broker::consume::{Outcome, Receive, Verdict};
use posthouse::broker::inspect::Browse;
use posthouse::broker::letters::{LetterCursor, Which};
use posthouse::broker::manage::{GroupPatch, TopicPatch};
use posthouse::broker::publish::Placed;
use posthouse::broker::{Broker, BrokerOptions, Caller};
use posthouse_core::catalog::Subscription;
use posthouse_core::message::Parts;
use posthouse_log::files::RealFiles;

const ANYONE: Caller = Caller::Anyone;

async fn start(dir: &Path) -> Arc<Broker> {
    start_with(dir, |_| ()).await
}

async fn start_with(dir: &Path, change: impl FnOnce(&mut BrokerOptions)) -> Arc<Broker> {
    let mut options = BrokerOptions::new(dir.to_owned());
    options.disk_reserve = Some(0);
    options.segment_bytes = 4 << 20;
    change(&mut options);
    Broker::start(RealFiles::shared(), options).await.expect("it starts").0
}

async fn stop(broker: Arc<Broker>) {
    broker.stop(Duration::from_secs(20)).await.expect("it stops");
}

async fn publish(broker: &Broker, topic: &str, bodies: &[&str]) -> Vec<Placed> {
    let topic = broker.topic_to_publish(&ANYONE, topic).await.unwrap();
    let mut outbox = broker.outbox(None, false);
    for body in bodies {
        broker.add(&mut outbox, &topic, &Parts::default(), body.as_bytes()).unwrap();
    }
    let sent = broker.publish(outbox).await.unwrap();
    broker.placed(&sent).map(|placed| placed.unwrap()).collect()
}

fn group(topics: &[&str]) -> GroupPatch {
    let subscription = |t: &&str| Subscription { topic: t.to_string(), filter: "*".into() };
    GroupPatch {
        subscriptions: Some(topics.iter().map(subscription).collect()),
        ..GroupPatch::default()
    }
}

/// Bodies, attempts and receipts of what comes.
async fn receive(
    broker: &Broker,
    group: &str,
    max: usize,
    wait_ms: u64,
) -> Vec<(String, u16, String)> {
    let ask = Receive {
        max,
        wait: Duration::from_millis(wait_ms),
        consumer: "w".into(),
        ..Receive::default()
    };
    let received = broker.receive(&ANYONE, group, &ask).await.unwrap();
    received
        .iter()
        .map(|m| {
            let body = m.parts().unwrap().1;
            (String::from_utf8(body.to_vec()).unwrap(), m.attempt, m.receipt.clone())
        })
        .collect()
}

async fn settle(broker: &Broker, group: &str, receipt: &str, verdict: Verdict) -> Outcome {
    broker.settle(&ANYONE, group, vec![(receipt.into(), verdict)]).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart_with_its_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.put_group(&ANYONE, "g", group(&["orders"])).await.unwrap();
    let placed = publish(&broker, "orders", &["a", "b", "c"]).await;
    assert_eq!(placed.iter().map(|p| p.position.unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    let got = receive(&broker, "g", 10, 0).await;
    assert_eq!(got.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(settle(&broker, "g", &got[0].2, Verdict::Ack).await, Outcome::Ok);
    let nack = Verdict::Nack { delay_ms: Some(0), reason: "later".into() };
    settle(&broker, "g", &got[1].2, nack).await;
    stop(broker).await;

    let broker = start(dir.path()).await;
    let got_again = receive(&broker, "g", 10, 2000).await;
    assert_eq!(got_again[0].0, "b");
    assert_eq!(got_again[0].1, 2, "the attempt before the restart counts");
    assert_eq!(got_again.len(), 1, "c is still leased");
    assert_eq!(settle(&broker, "g", &got[0].2, Verdict::Ack).await, Outcome::Already);
    assert!(matches!(settle(&broker, "g", &got[1].2, Verdict::Ack).await, Outcome::Stale(_)));
    assert_eq!(
        settle(&broker, "g", &got[2].2, Verdict::Ack).await,
        Outcome::Ok,
        "a lease outlives a restart"
    );
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_waits_gets_what_is_published_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.put_group(&ANYONE, "g", group(&["orders"])).await.unwrap();
    let waiting = {
        let broker = broker.clone();
        tokio::spawn(async move { receive(&broker, "g", 1, 10_000).await })
    };
    publish(&broker, "orders", &["a"]).await;
    assert_eq!(waiting.await.unwrap()[0].0, "a");
    assert_eq!(receive(&broker, "g", 1, 50).await, [], "a wait ends with nothing");
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_attempt_a_message_is_a_dead_letter_and_comes_back_when_redriven() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let config = GroupPatch { max_attempts: Some(1), ..group(&["orders"]) };
    broker.put_group(&ANYONE, "g", config).await.unwrap();
    let placed = publish(&broker, "orders", &["a"]).await;
    let got = receive(&broker, "g", 1, 0).await;
    let nack = Verdict::Nack { delay_ms: None, reason: "no stock".into() };
    settle(&broker, "g", &got[0].2, nack).await;
    let letters = loop {
        let page = broker.letters(&ANYONE, "g", LetterCursor::default(), 10).await.unwrap();
        if !page.letters.is_empty() {
            break page.letters;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(letters[0].id, placed[0].id, "a dead letter keeps its id");
    let (parts, body) = letters[0].parts().unwrap();
    let origin = parts.origin.unwrap();
    assert_eq!(
        (origin.topic, origin.error, origin.attempts, &body[..]),
        ("orders", "no stock", 1, &b"a"[..])
    );
    let redriven = broker.redrive(&ANYONE, "g", &Which::All, None).await.unwrap();
    assert_eq!((redriven.redriven, redriven.left), (1, 0));
    let again = receive(&broker, "g", 1, 2000).await;
    assert_eq!((again[0].0.as_str(), again[0].1), ("a", 1));
    let history = broker.history(&ANYONE, &placed[0].id.to_string()).await.unwrap();
    assert_eq!(history.events.len(), 6, "{:#?}", history.events);
    stop(broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_old_segments_come_and_go_under_load_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let load = |options: &mut BrokerOptions| {
        options.segment_bytes = 20 << 20;
        options.snapshot_log_bytes = 8 << 20;
    };
    let broker = start_with(dir.path(), load).await;
    let retention = posthouse_core::catalog::Retention::Acknowledged { min_age_ms: 0 };
    let config = TopicPatch { retention: Some(retention), ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "t", config).await.unwrap();
    broker.put_group(&ANYONE, "g", group(&["t"])).await.unwrap();
    let body = "x".repeat(4000);
    let mut acked = 0;
    for round in 0..60 {
        publish(&broker, "t", &vec![body.as_str(); 250]).await;
        let got = receive(&broker, "g", 250, 1000).await;
        assert_eq!(got.len(), 250, "round {round}");
        let items = got.iter().map(|m| (m.2.clone(), Verdict::Ack)).collect();
        let outcomes = broker.settle(&ANYONE, "g", items).await.unwrap();
        acked += outcomes.iter().filter(|o| matches!(o, Outcome::Ok)).count();
    }
    assert_eq!(acked, 15_000);
    let taken = broker.shards()[0].metrics.snapshots.load(std::sync::atomic::Ordering::Relaxed);
    assert!(taken >= 2, "{taken} snapshots");
    publish(&broker, "t", &["last"]).await;
    stop(broker).await;
    let broker = start_with(dir.path(), load).await;
    let got = receive(&broker, "g", 10, 1000).await;
    assert_eq!(got.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(), ["last"]);
    stop(broker).await;
}

/// A consumer that went away while its messages were on their way to it kept them, unseen,
/// until their leases ended.
#[tokio::test]
async fn what_was_granted_to_somebody_who_has_gone_comes_to_the_next_at_once() {
    for shards in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let broker = start_with(dir.path(), |options| options.shards = Some(shards)).await;
        publish(&broker, "orders", &["before"]).await;
        let lease = GroupPatch { lease_ms: Some(600_000), ..group(&["orders"]) };
        broker.put_group(&ANYONE, "billing", lease).await.unwrap();
        let (first, ..) = &receive(&broker, "billing", 1, 5_000).await[0];
        assert_eq!(first, "before");
        let ask = Receive { wait: Duration::from_secs(60), ..Receive::default() };
        {
            let mut gone = Box::pin(broker.receive(&ANYONE, "billing", &ask));
            let mut context = Context::from_waker(Waker::noop());
            assert!(gone.as_mut().poll(&mut context).is_pending());
            publish(&broker, "orders", &["meanwhile"]).await;
            let of = broker.group_for(&ANYONE, "billing").unwrap();
            let granted = async {
                while broker.group_stats(&of).await.unwrap().sum(|info| info.in_flight) < 2 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), granted).await.expect("it is granted");
        }
        let next = receive(&broker, "billing", 1, 20_000).await;
        let (body, attempt, _) = &next[0];
        assert_eq!((body.as_str(), *attempt), ("meanwhile", 2), "{shards} shards");
        stop(broker).await;
    }
}

fn own_copy(wait_ms: u64) -> Receive {
    Receive {
        wait: Duration::from_millis(wait_ms),
        consumer: "w".into(),
        broadcast: true,
        ..Receive::default()
    }
}

// A group that goes by itself went although its consumer was there, and waited: for a message,
// or for the end of its work. Its parent, whom nobody asked for, took it along.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_goes_by_itself_stays_while_its_consumer_waits() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let config = GroupPatch { expire_after_ms: Some(Some(1_000)), ..group(&["orders"]) };
    broker.put_group(&ANYONE, "g", config).await.unwrap();
    let other = group(&["others"]);
    broker.put_group(&ANYONE, "other", other).await.unwrap();
    let waiting = {
        let broker = broker.clone();
        tokio::spawn(async move { broker.receive(&ANYONE, "g", &own_copy(20_000)).await })
    };
    // Longer than the group has, and than it takes until that is looked at.
    assert_eq!(receive(&broker, "other", 1, 3_500).await, []);
    publish(&broker, "orders", &["a"]).await;
    let received = waiting.await.unwrap().unwrap();
    assert_eq!(received.len(), 1);
    let own = posthouse_core::name::broadcast_group("g", "w");
    assert!(broker.catalog().group_named(&own).is_some());
    for _ in 0..20 {
        if broker.catalog().group_named("g").is_none() {
            break;
        }
        assert_eq!(receive(&broker, "other", 1, 500).await, []);
    }
    assert!(broker.catalog().group_named(&own).is_none(), "away, it goes");
    assert!(broker.catalog().group_named("g").is_none());
    stop(broker).await;
}

// The topic for the dead letters of an own group had a name that no topic may have: its
// messages were never buried.
#[tokio::test(flavor = "multi_thread")]
async fn an_own_group_has_dead_letters_and_what_is_redriven_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let config = GroupPatch { max_attempts: Some(1), ..group(&["orders"]) };
    broker.put_group(&ANYONE, "g", config).await.unwrap();
    assert!(broker.receive(&ANYONE, "g", &own_copy(0)).await.unwrap().is_empty());
    publish(&broker, "orders", &["a", "b"]).await;
    let received = broker.receive(&ANYONE, "g", &own_copy(5_000)).await.unwrap();
    let nack = Verdict::Nack { delay_ms: None, reason: "no".into() };
    assert_eq!(settle(&broker, "g", &received[0].receipt, nack).await, Outcome::Ok);
    let own = posthouse_core::name::broadcast_group("g", "w");
    let letters = loop {
        let page = broker.letters(&ANYONE, &own, LetterCursor::default(), 10).await.unwrap();
        if !page.letters.is_empty() {
            break page.letters;
        }
        tokio::task::yield_now().await;
    };
    let other = letters[0].id;
    let ids = Which::Ids(vec![other]);
    let redriven = broker.redrive(&ANYONE, &own, &ids, None).await.unwrap();
    assert_eq!((redriven.redriven, redriven.left), (1, 0));
    let again = broker.redrive(&ANYONE, &own, &ids, None).await.unwrap();
    assert_eq!(again.redriven, 0, "it is redriven once");
    stop(broker).await;

    let broker = start(dir.path()).await;
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let received = broker.receive(&ANYONE, "g", &own_copy(5_000)).await.unwrap();
        bodies.extend(received.iter().map(|m| m.parts().unwrap().1.to_vec()));
    }
    bodies.sort();
    assert_eq!(bodies, [b"a", b"b"]);
    stop(broker).await;
}

// With several shards each looked for messages at the same time, and one of them let go of
// whoever waited.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_several_shards_is_woken_by_each() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start_with(dir.path(), |options| options.shards = Some(4)).await;
    let config = TopicPatch { partitions: Some(8), ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "orders", config).await.unwrap();
    broker.put_group(&ANYONE, "g", group(&["orders"])).await.unwrap();
    for round in 0..64 {
        let waiting = {
            let broker = broker.clone();
            tokio::spawn(async move { receive(&broker, "g", 1, 10_000).await })
        };
        tokio::task::yield_now().await;
        let began = std::time::Instant::now();
        publish(&broker, "orders", &["a"]).await;
        let got = waiting.await.unwrap();
        assert_eq!(got.len(), 1, "round {round}");
        assert!(began.elapsed() < Duration::from_secs(8), "it came at the end of the wait");
        settle(&broker, "g", &got[0].2, Verdict::Ack).await;
    }
    stop(broker).await;
}

// The first shard that could not take its part answered for all: what the others had taken
// was called refused.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_publish_to_several_shards_each_part_has_the_answer_of_its_own_shard() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start_with(dir.path(), |options| options.shards = Some(2)).await;
    let config = TopicPatch { partitions: Some(2), ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "orders", config).await.unwrap();
    let topic = broker.topic_to_publish(&ANYONE, "orders").await.unwrap();
    let shard_of = |placed: &Placed| topic.partitions[placed.partition as usize].shard;
    let mut outbox = broker.outbox(None, true);
    let keys: Vec<String> = (0..16).map(|key| format!("k{key}")).collect();
    for key in &keys {
        let parts = Parts { key: Some(key.as_str()), ..Parts::default() };
        broker.add(&mut outbox, &topic, &parts, key.as_bytes()).unwrap();
    }
    let sent = broker.publish(outbox).await.unwrap();
    let shards: Vec<_> = broker.placed(&sent).map(|placed| shard_of(&placed.unwrap())).collect();
    let closed = &broker.shards()[1];
    assert!(shards.contains(&closed.id) && shards.iter().any(|shard| *shard != closed.id));

    drop(closed.mailbox.close());
    let mut outbox = broker.outbox(None, true);
    for key in &keys {
        let parts = Parts { key: Some(key.as_str()), ..Parts::default() };
        broker.add(&mut outbox, &topic, &parts, b"again").unwrap();
    }
    let sent = broker.publish(outbox).await.unwrap();
    for (placed, shard) in broker.placed(&sent).zip(&shards) {
        match placed {
            Ok(placed) => assert_eq!((shard_of(&placed), *shard), (*shard, broker.shards()[0].id)),
            Err(problem) => assert_eq!((problem.code, *shard), ("stopping", closed.id)),
        }
    }
    assert_eq!(sent.len(), keys.len());
}

/// Bytes of the files in a directory.
fn bytes_in(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap();
    files.map(|file| file.unwrap().metadata().map_or(0, |file| file.len())).sum()
}

async fn browsed(broker: &Broker, topic: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut from = Some(0);
    while let Some(position) = from {
        let browse = Browse { from: Some(position), limit: 1000, ..Browse::default() };
        let page = broker.browse(&ANYONE, topic, &browse).await.unwrap();
        all.extend(page.messages.iter().map(|seen| {
            let body = seen.parts().unwrap().1;
            (seen.id.to_string(), String::from_utf8(body.to_vec()).unwrap())
        }));
        from = page.next;
    }
    all
}

/// One topic that is kept, among others that are not, held every segment of the log for as long
/// as it was kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_among_what_is_not_does_not_hold_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let load = |options: &mut BrokerOptions| options.snapshot_log_bytes = 8 << 20;
    let broker = start_with(dir.path(), load).await;
    let retention = |max_count| posthouse_core::catalog::Retention::Limits {
        max_age_ms: None,
        max_bytes: None,
        max_count: Some(max_count),
    };
    for (name, most) in [("kept", 1_000_000), ("short", 10)] {
        let config = TopicPatch { retention: Some(retention(most)), ..TopicPatch::default() };
        broker.put_topic(&ANYONE, name, config).await.unwrap();
    }
    let body = "x".repeat(8_000);
    let mut ids = Vec::new();
    for round in 0..400 {
        let kept: Vec<String> = (0..5).map(|n| format!("{round} {n}")).collect();
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        ids.extend(publish(&broker, "kept", &kept).await.iter().map(|p| p.id.to_string()));
        publish(&broker, "short", &[body.as_str(); 30]).await;
    }
    let before = browsed(&broker, "kept").await;
    assert_eq!(before.iter().map(|m| &m.0).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    // 96 MB have come, and less than 1 MB is needed: what is left fits in few segments of 4.
    let (log, began) = (dir.path().join("shard-0000").join("log"), std::time::Instant::now());
    while bytes_in(&log) > 8 * (4 << 20) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} bytes are left", bytes_in(&log));
        tokio::task::yield_now().await;
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let carried = &broker.shards()[0].metrics.carried_bytes;
    let carried = carried.load(std::sync::atomic::Ordering::Relaxed);
    assert!((20_000..4_000_000).contains(&carried), "{carried} bytes were carried");
    assert_eq!(browsed(&broker, "kept").await, before);
    let history = broker.history(&ANYONE, &ids[0]).await.unwrap();
    assert!(history.gaps, "the segment it was published in is gone");
    stop(broker).await;

    let files = RealFiles::shared();
    let report = posthouse::store::verify::verify(&files, dir.path(), |_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let broker = start_with(dir.path(), load).await;
    assert_eq!(browsed(&broker, "kept").await, before);
    broker.put_group(&ANYONE, "g", group(&["kept"])).await.unwrap();
    let got = receive(&broker, "g", 2_000, 1_000).await;
    assert_eq!(
        got.iter().map(|m| &m.0).collect::<Vec<_>>(),
        before.iter().map(|m| &m.1).collect::<Vec<_>>()
    );
    stop(broker).await;
}
