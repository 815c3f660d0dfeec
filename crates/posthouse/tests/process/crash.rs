//! Killed at any moment, and nothing that was acknowledged is lost or changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use posthouse_client::proto::{self, HistoryEvent, ReceivedMessage};
use rustix::process::Signal;

use crate::support::journal::{Fate, Journal, Place};
use crate::support::load::{self, ATTEMPTS, Actor, GIVE_UP, ONCE, ORDERED, TOPICS, WORKERS};
use crate::support::node::{Node, Setup};
use crate::support::rng::{self, Rng};
use crate::support::{until, within};

/// How long one round may take.
const ROUND_SECS: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_under_load_nothing_acknowledged_is_lost_or_changed() {
    rounds("killed at random", 1, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_with_two_shards_nothing_acknowledged_is_lost_or_changed() {
    rounds("killed at random with two shards", 2, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes; .ci/run slow runs it"]
async fn killed_a_hundred_times_under_load_nothing_acknowledged_is_lost_or_changed() {
    rounds("killed a hundred times", 1, 100).await;
}

async fn rounds(test: &str, shards: u32, count: u32) {
    let mut rng = Rng::new(rng::seed(test));
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path()).flag("--shards", &shards.to_string());
    let setup = setup.flag("--memory", "64MiB");
    let journal = Arc::new(Journal::default());
    let node = setup.start().await;
    load::prepare(&node).await;
    node.kill().await;
    for round in 0..count {
        // Sometimes it is killed while it opens.
        if rng.percent(50) {
            let mut starting = setup.begin();
            let patience = Duration::from_micros(rng.range(500, 40_000));
            let opened = tokio::time::timeout(patience, starting.listening()).await;
            assert!(!matches!(opened, Ok(None)), "round {round}: it does not start");
            starting.kill().await;
        }
        let node = setup.start().await;
        let tasks = load::begin(&node, &journal, &mut rng).await;
        let enough = rng.range(20, 1500);
        within("answers come", ROUND_SECS, journal.answers(enough)).await;
        // Sometimes it is killed while it stops, with its last snapshot half written.
        let ended = if rng.percent(35) {
            node.signal(Signal::TERM);
            let more = rng.below(30);
            let patience = Duration::from_millis(rng.below(150));
            let _ = tokio::time::timeout(patience, journal.answers(more)).await;
            node.kill_or_ended().await
        } else {
            node.kill().await
        };
        let panicked = ended.said.contains("panicked");
        assert!(!panicked, "round {round}: the node has panicked:\n{}", ended.said);
        within("clients notice", ROUND_SECS, tasks.join_all()).await;
    }
    let node = setup.start().await;
    let seen = verify(&node, &journal).await;
    drain(&node, &journal, &mut rng).await;
    finish(&node, &journal, &seen, count).await;
    node.stop().await;
    // And once more, from the snapshot.
    let node = setup.start().await;
    verify(&node, &journal).await;
    node.kill().await;
    let counts =
        |fate: fn(&Fate) -> bool| journal.all().values().filter(|sent| fate(&sent.fate)).count();
    let placed = counts(|fate| matches!(fate, Fate::Placed { .. }));
    let refused = counts(|fate| matches!(fate, Fate::Refused(_)));
    let bytes = disk_bytes(dir.path());
    eprintln!("{placed} published, {refused} refused, {} MiB on the disk", bytes >> 20);
    assert!(placed > 20 * count as usize && refused > 0, "there was no load");
}

fn disk_bytes(dir: &Path) -> u64 {
    let files = crate::support::files::files(dir);
    files.iter().map(|file| dir.join(file).metadata().unwrap().len()).sum()
}

/// Everything that is in a topic, by partition, from the first position on.
pub async fn browse(node: &Node, topic: &str, partition: u32) -> Vec<ReceivedMessage> {
    let mut raw = node.client().await.raw();
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let request = proto::BrowseRequest {
            topic: topic.into(),
            partition,
            from: Some(at),
            limit: 1000,
            ..proto::BrowseRequest::default()
        };
        let page = within("a page", 30, raw.browse(request)).await.expect("a page").into_inner();
        all.extend(page.messages);
        from = page.next;
    }
    all
}

/// Looks at all topics: what was acknowledged is there, whole and once; what was refused
/// is not; positions are dense; what was to be there together is. Returns where each is.
pub async fn verify(node: &Node, journal: &Journal) -> HashMap<String, Place> {
    let mut seen: HashMap<String, Place> = HashMap::new();
    for (topic, partitions) in TOPICS.into_iter().chain([("small", 1)]) {
        for partition in 0..partitions {
            let messages = browse(node, topic, partition).await;
            for (expected, message) in (0..).zip(&messages) {
                let uid = journal.check(message);
                assert_eq!(message.position, expected, "positions of {topic}/{partition}");
                let place = (topic.to_owned(), partition, message.position);
                let before = seen.insert(uid.clone(), place.clone());
                assert_eq!(before, None, "message {uid} is there twice, at {place:?} too");
            }
        }
    }
    let mut batches: BTreeMap<u64, BTreeSet<bool>> = BTreeMap::new();
    for (uid, sent) in journal.all() {
        let is_there = seen.contains_key(&uid);
        match &sent.fate {
            Fate::Placed { position, .. } => {
                assert!(is_there, "message {uid} of {} at {position} is lost", sent.topic);
            }
            Fate::Refused(why) => {
                assert!(!is_there, "message {uid} was refused ({why}), and is there");
            }
            Fate::Unknown => {}
        }
        if let Some(batch) = sent.batch {
            batches.entry(batch).or_default().insert(is_there);
        }
    }
    let torn: Vec<&u64> =
        batches.iter().filter(|(_, there)| there.len() > 1).map(|(batch, _)| batch).collect();
    assert!(torn.is_empty(), "batches {torn:?} are there in part");
    seen
}

/// Consumes all that is left, until every group is done with everything.
pub async fn drain(node: &Node, journal: &Arc<Journal>, rng: &mut Rng) {
    let actor = Actor {
        client: node.client().await,
        web: node.web(),
        journal: journal.clone(),
        rng: rng.split(),
    };
    for (group, auto_ack) in [(WORKERS, false), (ORDERED, false), (ONCE, true), (GIVE_UP, false)] {
        let what = format!("{group} is done with everything");
        until(&what, 120, || async {
            let ask = proto::ReceiveRequest {
                group: group.into(),
                max: Some(1000),
                wait_ms: Some(200),
                auto_ack,
                ..proto::ReceiveRequest::default()
            };
            let received = actor.client.raw().receive(ask).await.expect("messages or none");
            let received = received.into_inner().messages;
            received.iter().for_each(|message| journal.given(group, message));
            if group == GIVE_UP {
                let receipts: Vec<String> = received.iter().map(|m| m.receipt.clone()).collect();
                let delay = Some(Duration::ZERO);
                actor.client.nack(group, receipts, delay, "cannot be done").await.expect("results");
            } else if !auto_ack {
                assert!(actor.ack(group, &received).await, "acks are answered");
            }
            let request = proto::GetGroupRequest { name: group.into() };
            let state = actor.client.raw().get_group(request).await.expect("a group").into_inner();
            (state.lag == 0).then_some(())
        })
        .await;
    }
}

/// Every group was given what it had to be given, and the log tells the same story.
pub async fn finish(node: &Node, journal: &Journal, seen: &HashMap<String, Place>, kills: u32) {
    let of_topics = |topics: &[&str]| -> BTreeSet<Place> {
        seen.values().filter(|place| topics.contains(&place.0.as_str())).cloned().collect()
    };
    let given = |group: &str| journal.of_group(group);
    let most = of_topics(&["plain", "wide", "left", "right"]);
    for (group, expected) in [(WORKERS, &most), (ORDERED, &of_topics(&["wide"]))] {
        let got: BTreeSet<Place> = given(group).into_keys().collect();
        let doubtful = journal.doubtful_of_group(group);
        let missing = expected.difference(&got).filter(|place| !doubtful.contains(place));
        let missing: Vec<&Place> = missing.take(5).collect();
        // An ack whose answer got lost may have been of a delivery that was seen.
        assert!(missing.is_empty(), "{group} never got {missing:?} and others");
        assert!(got.is_subset(expected), "{group} got what is not there");
    }
    let once = given(ONCE);
    assert!(once.values().all(|given| given.fences.len() == 1), "{ONCE} got something twice");
    assert!(once.into_keys().all(|place| most.contains(&place)));
    letters(node, journal, &of_topics(&["poison"])).await;
    for group in [WORKERS, ORDERED, GIVE_UP] {
        // Those that were given most often, and some others.
        let mut all: Vec<_> = given(group).into_values().collect();
        all.sort_by_key(|given| std::cmp::Reverse(given.fences.last_key_value().map(|l| *l.0)));
        for given in all.iter().take(4).chain(all.iter().skip(4).step_by(all.len() / 3 + 1)) {
            let events = history(node, &given.id).await;
            let of_group = |e: &&HistoryEvent| e.event == "granted" && e.group == group;
            let granted: Vec<(u32, u64)> =
                events.iter().filter(of_group).map(|e| (e.attempt, e.fence)).collect();
            let attempts: Vec<u32> = granted.iter().map(|g| g.0).collect();
            let last = attempts.len() as u32;
            assert_eq!(attempts, (1..=last).collect::<Vec<_>>(), "{group}, {}", given.id);
            let lost = granted.len() - given.fences.len();
            assert!(lost <= kills as usize, "{lost} grants of {} were not delivered", given.id);
            for (attempt, fence) in &given.fences {
                assert!(granted.contains(&(*attempt, *fence)), "{}: {granted:?}", given.id);
            }
        }
    }
}

async fn history(node: &Node, id: &str) -> Vec<HistoryEvent> {
    let request = proto::GetHistoryRequest { id: id.into() };
    let mut raw = node.client().await.raw();
    let history = within("a history", 60, raw.get_history(request)).await.expect("a history");
    let history = history.into_inner();
    assert!(history.complete && !history.gaps, "the history of {id} is not whole");
    history.events
}

/// What nobody could do is a dead letter, each once, after its attempts.
async fn letters(node: &Node, journal: &Journal, expected: &BTreeSet<Place>) {
    let mut raw = node.client().await.raw();
    let (mut found, mut after) = (BTreeSet::new(), String::new());
    loop {
        let request = proto::ListDeadLettersRequest { group: GIVE_UP.into(), after, limit: 1000 };
        let page = raw.list_dead_letters(request).await.expect("letters").into_inner();
        for letter in &page.letters {
            let uid = letter_of(journal, letter);
            let origin = letter.origin.as_ref().expect("a letter has a life before");
            assert_eq!(origin.attempts, ATTEMPTS, "letter {uid}");
            let place = (origin.topic.clone(), origin.partition, origin.position);
            assert!(found.insert(place.clone()), "there are two letters of {place:?}");
        }
        after = page.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(found.len(), expected.len(), "letters of what could not be done");
    assert!(found.is_subset(expected));
}

/// A letter is what was published; its publish id is not moved.
fn letter_of(journal: &Journal, letter: &ReceivedMessage) -> String {
    let mut letter = letter.clone();
    if let Some(sent) = letter.headers.get("uid").and_then(|uid| journal.sent(uid)) {
        letter.dedupe_id = sent.message.dedupe_id;
    }
    journal.check(&letter)
}
