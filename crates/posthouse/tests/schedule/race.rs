//! What is answered about a message that is to come holds for everybody, however close to
//! its time it was asked for: many tasks call back and move messages while they come.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthouse::broker::consume::{Receive, Verdict};
use posthouse::broker::manage::{GroupPatch, TopicPatch};
use posthouse::broker::schedule::{Changed, Target};
use posthouse::broker::{Broker, BrokerOptions, Caller};
use posthouse_core::UnixMs;
use posthouse_core::catalog::Subscription;
use posthouse_core::message::Parts;
use posthouse_core::queue::command::Shift;
use posthouse_core::record::{NameTaken, When};
use posthouse_log::files::RealFiles;

const ANYONE: Caller = Caller::Anyone;

/// Tasks that publish, and messages of each.
const TASKS: u64 = 16;
const MESSAGES: u64 = 60;

/// Numbers that look like chance, the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

async fn start(dir: &Path) -> Arc<Broker> {
    let mut options = BrokerOptions::new(dir.to_owned());
    options.disk_reserve = Some(0);
    options.segment_bytes = 4 << 20;
    options.shards = Some(2);
    Broker::start(RealFiles::shared(), options).await.expect("it starts").0
}

/// Publishes a message that comes later. Returns its id, and when it is due.
async fn publish(broker: &Broker, body: &str, when: When) -> (String, UnixMs) {
    let topic = broker.topic_to_publish(&ANYONE, "t").await.unwrap();
    let later = Some((when, NameTaken::Replace));
    let parts = Parts { key: Some(body), later, ..Parts::default() };
    let mut outbox = broker.outbox(None, false);
    broker.add(&mut outbox, &topic, &parts, body.as_bytes()).unwrap();
    let sent = broker.publish(outbox).await.unwrap();
    let placed = broker.placed(&sent).next().unwrap().unwrap();
    (placed.id.to_string(), placed.due.expect("it is to come"))
}

async fn cancel(broker: &Broker, id: &str) -> Changed {
    broker.cancel(&ANYONE, vec![Target::Id(id.into())]).await.unwrap().remove(0)
}

async fn shift(broker: &Broker, id: &str, shift: Shift) -> Changed {
    broker.reschedule(&ANYONE, vec![(Target::Id(id.into()), shift)]).await.unwrap().remove(0)
}

/// What is expected of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It comes once, and not before this time.
    Comes(UnixMs),
    /// Nobody ever sees it.
    Never,
}

/// How often each message was seen, and when first.
type Seen = Arc<Mutex<BTreeMap<String, (u32, u64)>>>;

async fn see(broker: Arc<Broker>, seen: Seen, name: String) {
    loop {
        let ask = Receive {
            max: 20,
            wait: Duration::from_millis(200),
            consumer: name.clone(),
            ..Receive::default()
        };
        let Ok(received) = broker.receive(&ANYONE, "g", &ask).await else { return };
        let now = broker.now().0;
        let mut settled = Vec::new();
        for message in received {
            let body = String::from_utf8(message.parts().unwrap().1.to_vec()).unwrap();
            assert_eq!(message.attempt, 1, "{body} comes again");
            settled.push((message.receipt.clone(), Verdict::Ack));
            seen.lock().unwrap().entry(body).or_insert((0, now)).0 += 1;
        }
        if broker.settle(&ANYONE, "g", settled).await.is_err() {
            return;
        }
    }
}

/// Publishes messages that come soon, and calls back or moves each near its time.
async fn race(broker: Arc<Broker>, task: u64) -> Vec<(String, Fate)> {
    let mut dice = Dice(task * 77 + 1);
    let mut fates = Vec::new();
    for n in 0..MESSAGES {
        let body = format!("{task}-{n}");
        let delay = dice.below(25);
        let (id, mut due) = publish(&broker, &body, When::After(delay)).await;
        let mut fate = Fate::Comes(due);
        for _ in 0..=dice.below(2) {
            // Up to a few milliseconds on either side of its time.
            let left = due.since(broker.now()) as i64 + dice.below(7) as i64 - 4;
            let nap = Duration::from_millis(left.max(0) as u64);
            let _ = tokio::time::timeout(nap, std::future::pending::<()>()).await;
            let (changed, is_cancel) = match dice.below(3) {
                0 => (shift(&broker, &id, Shift::By(dice.below(40) as i64 - 10)).await, false),
                1 => (shift(&broker, &id, Shift::To(When::After(dice.below(30)))).await, false),
                _ => (cancel(&broker, &id).await, true),
            };
            match changed {
                Changed::Done { .. } if is_cancel => fate = Fate::Never,
                Changed::Done { due: at, .. } => (due, fate) = (at, Fate::Comes(at)),
                // As it was.
                Changed::Fired { .. } => break,
                Changed::Cancelled { .. } => assert_eq!(fate, Fate::Never, "{body}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        fates.push((body, fate));
    }
    fates
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_called_back_is_never_seen_and_what_is_moved_not_before_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let patch = TopicPatch { partitions: Some(4), ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "t", patch).await.unwrap();
    let subscriptions = Some(vec![Subscription { topic: "t".into(), filter: "*".into() }]);
    let group = GroupPatch { subscriptions, ..GroupPatch::default() };
    broker.put_group(&ANYONE, "g", group).await.unwrap();
    let seen = Seen::default();
    let consumers: Vec<_> =
        (0..4).map(|n| tokio::spawn(see(broker.clone(), seen.clone(), format!("c{n}")))).collect();
    let racers: Vec<_> = (0..TASKS).map(|task| tokio::spawn(race(broker.clone(), task))).collect();
    let mut fates: BTreeMap<String, Fate> = BTreeMap::new();
    for racer in racers {
        fates.extend(racer.await.unwrap());
    }
    assert_eq!(fates.len() as u64, TASKS * MESSAGES);
    let expected = fates.values().filter(|fate| **fate != Fate::Never).count();
    let until = Instant::now() + Duration::from_secs(60);
    while seen.lock().unwrap().len() < expected {
        assert!(Instant::now() < until, "{} of {expected}", seen.lock().unwrap().len());
        tokio::task::yield_now().await;
    }
    broker.stop(Duration::from_secs(20)).await.unwrap();
    for consumer in consumers {
        consumer.await.unwrap();
    }

    // Nothing is left that comes after all.
    let broker = start(dir.path()).await;
    let ask = Receive { max: 100, wait: Duration::from_millis(300), ..Receive::default() };
    let left = broker.receive(&ANYONE, "g", &ask).await.unwrap();
    assert!(left.is_empty(), "{} come again or late", left.len());
    broker.stop(Duration::from_secs(20)).await.unwrap();

    let seen = seen.lock().unwrap();
    let called_back = fates.len() - expected;
    assert!(called_back > 50 && expected > 200, "both happen: {called_back}, {expected}");
    for (body, fate) in &fates {
        match (fate, seen.get(body)) {
            (Fate::Never, None) => {}
            (Fate::Comes(due), Some((1, at))) => {
                assert!(*at >= due.0, "{body} was seen at {at}, before {}", due.0);
            }
            (fate, seen) => panic!("{body}: {fate:?}, and was seen {seen:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hours_are_what_counting_says_after_moves_cancels_and_a_restart() {
    const HOUR: u64 = 3_600_000;
    let dir = tempfile::tempdir().unwrap();
    let mut broker = start(dir.path()).await;
    let patch = TopicPatch { partitions: Some(3), ..TopicPatch::default() };
    broker.put_topic(&ANYONE, "t", patch).await.unwrap();
    let mut dice = Dice(5);
    let mut pending: BTreeMap<String, UnixMs> = BTreeMap::new();
    for round in 0..400u64 {
        let ids: Vec<String> = pending.keys().cloned().collect();
        let which = ids.get(dice.below(ids.len().max(1) as u64) as usize).cloned();
        match (dice.below(10), which) {
            (0..=1, Some(id)) => {
                assert!(matches!(cancel(&broker, &id).await, Changed::Done { .. }));
                pending.remove(&id);
            }
            (2..=3, Some(id)) => {
                let by = Shift::By(dice.below(20 * HOUR) as i64 - 5 * HOUR as i64);
                let Changed::Done { due, .. } = shift(&broker, &id, by).await else {
                    panic!("it is to come");
                };
                // What is due now comes, and counts no more.
                if due > broker.now().plus(HOUR) {
                    pending.insert(id, due);
                } else {
                    cancel(&broker, &id).await;
                    pending.remove(&id);
                }
            }
            _ => {
                let delay = 2 * HOUR + dice.below(200 * HOUR);
                let (id, due) = publish(&broker, &format!("m{round}"), When::After(delay)).await;
                pending.insert(id, due);
            }
        }
        if round == 250 {
            broker.stop(Duration::from_secs(20)).await.unwrap();
            broker = start(dir.path()).await;
        }
    }
    let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
    for due in pending.values() {
        *counted.entry(due.0 / HOUR * HOUR).or_default() += 1;
    }
    let hours = broker.schedule_hours(&ANYONE, "t").await.unwrap();
    assert_eq!(hours.pending, pending.len() as u64);
    let said: BTreeMap<u64, u64> =
        hours.hours.into_iter().map(|(from, count)| (from.0, count)).collect();
    assert_eq!(said, counted);
    broker.stop(Duration::from_secs(20)).await.unwrap();
}
