//! Killed between a prepare and its decision, and between a decision and its answer: what is
//! prepared waits, what is decided stays, and a decision can be made again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use posthouse_client::{Client, Prepare, TransactionState, proto};
use tokio::task::JoinSet;

use crate::crash::browse;
use crate::support::node::{Node, Setup};
use crate::support::rng::{self, Rng};
use crate::support::{until, within};

/// A transaction that a producer was told of.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    body: String,
    /// What was asked for last: to commit it or not.
    wanted: Option<bool>,
    /// Whether that was answered.
    is_answered: bool,
}

type Seen = Arc<Mutex<Vec<Known>>>;

/// Prepares and decides, until the node is gone. Every seventh is left open.
async fn produce(client: Client, name: String, seen: Seen) {
    for n in 0.. {
        let body = format!("{name}.{n}");
        let prepare = Prepare::by("shop").dedupe_id(&body);
        let prepare = prepare.message("left", body.clone()).message("right", body.clone());
        let Ok(prepared) = client.prepare(prepare).await else { return };
        let (id, wanted) = (prepared.id.clone(), (n % 7 != 6).then_some(n % 3 != 0));
        let at = {
            let mut seen = seen.lock().unwrap();
            seen.push(Known { id: id.clone(), body, wanted, is_answered: false });
            seen.len() - 1
        };
        let decided = match wanted {
            Some(true) => client.commit(id).await,
            Some(false) => client.rollback(id).await,
            None => continue,
        };
        if decided.is_err() {
            return;
        }
        seen.lock().unwrap()[at].is_answered = true;
    }
}

/// What was acknowledged is as it was.
async fn verify(client: &Client, seen: &Seen) {
    let seen: Vec<Known> = seen.lock().unwrap().clone();
    for known in seen {
        let state = client.transaction(&known.id).await.expect("it is known").state;
        let decided = match known.wanted {
            Some(true) => TransactionState::Committed,
            _ => TransactionState::RolledBack,
        };
        match (known.wanted, known.is_answered) {
            (Some(_), true) => assert_eq!(state, decided, "{known:?}"),
            // Nobody knows, and either is right.
            (Some(_), false) => {
                assert!(state == decided || state == TransactionState::Prepared, "{known:?}");
            }
            (None, _) => assert_eq!(state, TransactionState::Prepared, "{known:?}"),
        }
    }
}

async fn open(client: &Client) -> Vec<String> {
    let request = proto::ListTransactionsRequest { limit: 1000, ..Default::default() };
    let page = client.raw().list_transactions(request).await.expect("a list").into_inner();
    assert_eq!(page.next, "", "fewer than one page are open");
    page.transactions.into_iter().map(|of| of.id).collect()
}

async fn bodies(node: &Node, topic: &str) -> Vec<String> {
    let messages = browse(node, topic, 0).await;
    messages.into_iter().map(|m| String::from_utf8(m.body.to_vec()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_transactions_are_prepared_and_decided_each_is_whole_and_final() {
    let mut rng = Rng::new(rng::seed("killed while transactions are decided"));
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path()).flag("--memory", "64MiB");
    let seen = Seen::default();
    for round in 0..5 {
        let node = setup.start().await;
        let client = node.client().await;
        verify(&client, &seen).await;
        let mut producers = JoinSet::new();
        for producer in 0..4 {
            let name = format!("{round}.{producer}");
            producers.spawn(produce(node.client().await, name, seen.clone()));
        }
        let enough = seen.lock().unwrap().len() + rng.range(5, 60) as usize;
        until("transactions are known", 60, || async {
            (seen.lock().unwrap().len() >= enough).then_some(())
        })
        .await;
        node.kill().await;
        within("producers notice", 60, producers.join_all()).await;
    }
    let node = setup.start().await;
    let client = node.client().await;
    verify(&client, &seen).await;
    // What nobody was told of is open, too, or decided by nobody.
    let known: Vec<Known> = seen.lock().unwrap().clone();
    let mut committed = BTreeSet::new();
    for known in &known {
        // A decision that was made is made again; one that is open is a commit.
        let is_commit = known.wanted.unwrap_or(true);
        let ended = match is_commit {
            true => client.commit(&known.id).await,
            false => client.rollback(&known.id).await,
        };
        let of = ended.unwrap_or_else(|error| panic!("{known:?}: {error}"));
        if is_commit {
            committed.insert(known.body.clone());
            assert!(of.messages.iter().all(|message| message.position.is_some()), "{of:?}");
        }
    }
    for id in open(&client).await {
        assert!(known.iter().all(|known| known.id != id), "{id} was decided, and is open");
        client.rollback(id).await.expect("it can be rolled back");
    }
    for topic in ["left", "right"] {
        let bodies = bodies(&node, topic).await;
        assert_eq!(bodies.len(), committed.len(), "each message of {topic} is there once");
        assert_eq!(bodies.into_iter().collect::<BTreeSet<_>>(), committed, "{topic}");
    }
    let is_some = |wanted| known.iter().filter(|known| known.wanted == wanted).count() > 3;
    assert!(is_some(Some(true)) && is_some(Some(false)), "there was no load");
    node.stop().await;
    // And once more, from the snapshot.
    let node = setup.start().await;
    let client = node.client().await;
    assert_eq!(open(&client).await.len(), 0);
    assert_eq!(bodies(&node, "left").await.len(), committed.len());
    node.stop().await;
}
