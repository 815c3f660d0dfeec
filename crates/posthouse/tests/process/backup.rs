//! Backups of a node that runs: what they have, and what is left of one that was cut short.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use posthouse_client::proto;
use serde_json::{Value, json};

use crate::crash::browse;
use crate::support::files::{all_named, files};
use crate::support::journal::{Fate, Journal, Sent};
use crate::support::load::{self, TOPICS, WORKERS};
use crate::support::node::{Node, Setup};
use crate::support::rng::{self, Rng};
use crate::support::{until, within};

const PATIENCE_SECS: u64 = 60;

async fn back_up(node: &Node, to: &Path) -> Value {
    let answer = node.web().post("/v1/backup", json!({ "directory": to })).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

/// Looks at everything in a node that was started on a backup: what was acknowledged before
/// the backup began is there, and what is there was sent, whole and once.
async fn verify(node: &Node, before: &HashMap<String, Sent>, journal: &Journal) {
    let mut seen = BTreeSet::new();
    for (topic, partitions) in TOPICS {
        for partition in 0..partitions {
            for (expected, message) in (0..).zip(&browse(node, topic, partition).await) {
                let uid = journal.check(message);
                assert_eq!(message.position, expected, "positions of {topic}/{partition}");
                assert!(seen.insert(uid.clone()), "message {uid} is there twice");
            }
        }
    }
    for (uid, sent) in before.iter().filter(|(_, s)| matches!(s.fate, Fate::Placed { .. })) {
        assert!(seen.contains(uid), "message {uid} of {} was acknowledged before", sent.topic);
    }
    let mut batches: BTreeMap<u64, BTreeSet<bool>> = BTreeMap::new();
    for (uid, sent) in journal.all() {
        if let Some(batch) = sent.batch {
            batches.entry(batch).or_default().insert(seen.contains(&uid));
        }
    }
    let torn = batches.values().filter(|there| there.len() > 1).count();
    assert_eq!(torn, 0, "messages that belong together are there in part");
}

/// What the group is given of what it had acknowledged.
async fn given_again(node: &Node, acked: &BTreeSet<(String, u32, u64)>) -> usize {
    let mut raw = node.client().await.raw();
    let mut again = 0;
    loop {
        let ask = proto::ReceiveRequest {
            group: WORKERS.into(),
            max: Some(1000),
            auto_ack: true,
            ..proto::ReceiveRequest::default()
        };
        let received = raw.receive(ask).await.expect("an answer").into_inner().messages;
        if received.is_empty() {
            return again;
        }
        let is_acked = |m: &&proto::ReceivedMessage| {
            acked.contains(&(m.topic.clone(), m.partition, m.position))
        };
        again += received.iter().filter(is_acked).count();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_on_a_backup_taken_under_load_and_has_all_that_was_acknowledged_before() {
    let mut rng = Rng::new(rng::seed("backup under load"));
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(&dir.path().join("data")).flag("--shards", "2");
    // Snapshots, and with them files that are freed, come as often as may be.
    let setup = setup.flag("--memory", "64MiB");
    let journal = Arc::new(Journal::default());
    let node = setup.start().await;
    load::prepare(&node).await;
    let tasks = load::begin(&node, &journal, &mut rng).await;
    for round in 0..3 {
        within("answers come", PATIENCE_SECS, journal.answers(400)).await;
        let before = journal.all();
        let acked: BTreeSet<_> = journal
            .of_group(WORKERS)
            .into_iter()
            .filter_map(|(place, given)| given.acked.map(|_| place))
            .collect();
        let to = dir.path().join(format!("backup-{round}"));
        let backup = within("a backup", PATIENCE_SECS, back_up(&node, &to)).await;
        assert_eq!(backup["damaged"], 0, "{backup}");
        assert_eq!(backup["files"], files(&to).len() - 1, "all but the list: {backup}");
        // It says where it was begun; more than that is in it.
        within("answers come", PATIENCE_SECS, journal.answers(100)).await;
        let copy = Setup::new(&to).start().await;
        assert!(!to.join("backup.json").exists(), "it is a data directory from now on");
        verify(&copy, &before, &journal).await;
        assert_eq!(given_again(&copy, &acked).await, 0, "it was acknowledged before");
        copy.kill().await;
    }
    node.kill().await;
    within("clients notice", PATIENCE_SECS, tasks.join_all()).await;
}

async fn fill(node: &Node, messages: u64) {
    let mut raw = node.client().await.raw();
    for n in 0..messages {
        let message = proto::OutgoingMessage {
            body: vec![n as u8; 1 << 20].into(),
            ..proto::OutgoingMessage::default()
        };
        let request = proto::PublishRequest {
            topic: "large".into(),
            messages: vec![message],
            ..proto::PublishRequest::default()
        };
        raw.publish(request).await.expect("it is taken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_cut_short_by_a_kill_says_so_and_the_node_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(&dir.path().join("data"));
    let node = setup.start().await;
    fill(&node, 64).await;
    let to = dir.path().join("backup");
    let (web, directory) = (node.web(), to.clone());
    let asked = tokio::spawn(async move {
        web.try_post("/v1/backup", &json!({ "directory": directory })).await
    });
    let log = to.join("shard-0000").join("log");
    until("it copies", PATIENCE_SECS, || async { log.is_dir().then_some(()) }).await;
    node.kill().await;
    asked.await.expect("no panic").expect_err("nobody can answer");
    assert!(to.join("backup.json").exists());
    let refused = Setup::new(&to).refused().await;
    assert!(refused.said.contains("that was cut short"), "{}", refused.said);
    let node = setup.start().await;
    assert_eq!(browse(&node, "large", 0).await.len(), 64);
    // The same directory is not written over; another is.
    let again = node.web().post("/v1/backup", json!({ "directory": to })).await;
    assert_eq!((again.status, again.code().as_str()), (409, "directory_not_empty"));
    back_up(&node, &dir.path().join("another")).await;
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_ends_with_the_request_that_asked_for_it_and_files_are_freed_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(&dir.path().join("data")).start().await;
    fill(&node, 64).await;
    let to = dir.path().join("backup");
    let (web, directory) = (node.web(), to.clone());
    let asked = tokio::spawn(async move {
        web.try_post("/v1/backup", &json!({ "directory": directory })).await
    });
    let log = to.join("shard-0000").join("log");
    until("it copies", PATIENCE_SECS, || async { log.is_dir().then_some(()) }).await;
    // One at a time.
    let second = dir.path().join("second");
    let refused = node.web().post("/v1/backup", json!({ "directory": second })).await;
    assert_eq!((refused.status, refused.code().as_str()), (409, "backup_under_way"));
    asked.abort();
    until("what was copied is removed", PATIENCE_SECS, || async {
        all_named(&log, "seg-").is_empty().then_some(())
    })
    .await;
    until("another may be taken", PATIENCE_SECS, || async {
        let answer = node.web().post("/v1/backup", json!({ "directory": second })).await;
        (answer.status == 200).then_some(())
    })
    .await;
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_a_backup_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Setup::new(&data).start().await;
    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("mine"), "x").unwrap();
    let inside = data.join("inside");
    for (directory, status, code) in [
        (Path::new("relative/path"), 400, "invalid_argument"),
        (&dir.path().join("a/../b"), 400, "invalid_argument"),
        (&inside, 400, "invalid_argument"),
        (dir.path(), 400, "invalid_argument"),
        (&full, 409, "directory_not_empty"),
        (&dir.path().join("no/such/parent"), 400, "directory_unusable"),
    ] {
        let answer = node.web().post("/v1/backup", json!({ "directory": directory })).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{directory:?}");
    }
    assert_eq!(std::fs::read(full.join("mine")).unwrap(), b"x");
    node.kill().await;
}
