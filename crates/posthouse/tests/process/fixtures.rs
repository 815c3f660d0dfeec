//! Data directories of formats that were: every later build opens them, and has all that
//! was in them.
//!
//! A fixture is a file of JSON in `tests/fixtures`: what is not zero in each file of a data
//! directory, and what a node said that it holds. The format that is written now has one,
//! made by
//!
//! ```sh
//! rm crates/posthouse/tests/fixtures/format-1.json
//! cargo test -p posthouse --test process make_the_fixture -- --ignored
//! ```
//!
//! It is made anew only as long as its format has not been released; from then on a new
//! format gets a new file, and the old one stays.

use std::fs;
use std::path::{Path, PathBuf};

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::crash::browse;
use crate::support::files::files;
use crate::support::load::message;
use crate::support::node::{Node, Setup};
use crate::support::until;

/// The format that is written now.
const FORMAT: u32 = posthouse::store::FORMAT;

/// The largest that a fixture may be.
const FIXTURE_BYTES: u64 = 1 << 20;

/// What is kept together if less than this is zero between it.
const GAP: usize = 64;

#[derive(Deserialize, Serialize)]
struct Fixture {
    /// The release that wrote the data.
    made_by: String,
    files: Vec<Packed>,
    /// Topics, with the number of their partitions.
    topics: Vec<(String, u32)>,
    /// Every message of them, as it was looked at, in the order of topics, partitions and
    /// positions.
    messages: Vec<Value>,
    /// What was scheduled and is not due, by id, with the body of each.
    scheduled: Vec<(String, String)>,
    /// Messages that the group has acknowledged, by id.
    acknowledged: Vec<String>,
}

/// A file: its length, and what is not zero in it.
#[derive(Deserialize, Serialize)]
struct Packed {
    path: String,
    bytes: u64,
    pieces: Vec<(u64, String)>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn pack(dir: &Path) -> Vec<Packed> {
    // A spare's content means nothing.
    let is_spare = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("spare-") || name.starts_with("fill-")
    };
    let packed = |path: PathBuf| {
        let content = fs::read(dir.join(&path)).expect("a file");
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        for (at, byte) in content.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            match pieces.last_mut() {
                Some((start, piece)) if at - (*start as usize + piece.len()) < GAP => {
                    piece.resize(at - *start as usize, 0);
                    piece.push(*byte);
                }
                _ => pieces.push((at as u64, vec![*byte])),
            }
        }
        let pieces = pieces.into_iter().map(|(at, piece)| (at, BASE64.encode(piece))).collect();
        let path = path.to_str().expect("our names are UTF-8").to_owned();
        Packed { path, bytes: content.len() as u64, pieces }
    };
    files(dir).into_iter().filter(|path| !is_spare(path)).map(packed).collect()
}

fn unpack(packed: &[Packed], dir: &Path) {
    for Packed { path, bytes, pieces } in packed {
        let mut content = vec![0; *bytes as usize];
        for (at, piece) in pieces {
            let piece = BASE64.decode(piece).expect("base64");
            content[*at as usize..*at as usize + piece.len()].copy_from_slice(&piece);
        }
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, content).expect("room");
    }
}

/// What there is to know of a message that no release may change.
fn known(message: &posthouse_client::proto::ReceivedMessage) -> Value {
    let headers: std::collections::BTreeMap<_, _> = message.headers.iter().collect();
    json!({
        "id": message.id, "topic": message.topic, "partition": message.partition,
        "position": message.position, "body": BASE64.encode(&message.body), "key": message.key,
        "tags": message.tags, "headers": headers, "dedupe_id": message.dedupe_id,
        "published_at_ms": message.published_at_ms, "ttl_ms": message.ttl_ms,
    })
}

async fn messages_of(node: &Node, topics: &[(String, u32)]) -> Vec<Value> {
    let mut all = Vec::new();
    for (topic, partitions) in topics {
        for partition in 0..*partitions {
            all.extend(browse(node, topic, partition).await.iter().map(known));
        }
    }
    all
}

async fn publish(node: &Node, topic: &str, message: Value) -> String {
    let path = format!("/v1/topics/{topic}/messages");
    let published = node.web().post(&path, message).await.done();
    published["messages"][0]["id"].as_str().expect("an id").to_owned()
}

/// Messages of every kind, from number `from` on.
async fn fill(node: &Node, from: u32) {
    for n in from..from + 12 {
        let message = json!({
            "body": format!("order {n}"), "key": format!("customer-{}", n % 5),
            "tags": ["paid", format!("country-{}", n % 3)],
            "headers": { "trace": format!("t-{n}"), "käse": "Bergkäse" },
            "dedupe_id": format!("order-{n}"),
        });
        publish(node, "orders", message).await;
    }
    publish(node, "payments", json!({ "body": "x".repeat(3000 + from as usize) })).await;
    publish(node, "payments", json!({ "body_base64": "AAECA/8=", "ttl": "3650d" })).await;
    publish(node, "payments", json!({ "body": "" })).await;
    publish(node, "poison", json!({ "body": format!("nobody can do {from}") })).await;
}

async fn receive(node: &Node, group: &str, max: u32) -> Vec<Value> {
    let ask = json!({ "max": max });
    let answer = node.web().post(&format!("/v1/groups/{group}/receive"), ask).await.done();
    answer["messages"].as_array().expect("messages").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it makes a fixture; from a release on that is done once for a format"]
async fn make_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let node = setup.start().await;
    let web = node.web();
    let topics = [("orders", 2), ("payments", 1), ("poison", 1)];
    for (topic, partitions) in topics {
        // What is acknowledged stays, too.
        let config = json!({ "partitions": partitions, "retention": { "max_count": 1_000_000 } });
        web.put(&format!("/v1/topics/{topic}"), config).await.done();
    }
    let subscriptions = json!([{ "topic": "orders" }, { "topic": "payments" }]);
    let billing = json!({ "subscriptions": subscriptions, "lease": "1h" });
    web.put("/v1/groups/billing", billing).await.done();
    let config =
        json!({ "subscriptions": [{ "topic": "orders", "filter": "paid && !country-1" }] });
    web.put("/v1/groups/audit", config).await.done();
    let config = json!({ "subscriptions": [{ "topic": "poison" }], "max_attempts": 1 });
    web.put("/v1/groups/give-up", config).await.done();
    let grants = json!([{ "actions": ["publish"], "topics": ["orders.*"] }]);
    web.put("/v1/users/shop", json!({ "grants": grants })).await.done();
    fill(&node, 0).await;
    let mut acknowledged = Vec::new();
    for message in receive(&node, "billing", 6).await.iter().take(4) {
        let receipts = json!({ "receipts": [message["receipt"]] });
        web.post("/v1/groups/billing/ack", receipts).await.done();
        acknowledged.push(message["id"].as_str().expect("an id").to_owned());
    }
    receive(&node, "audit", 3).await;
    let poison = receive(&node, "give-up", 1).await;
    let nack = json!({ "receipts": [poison[0]["receipt"]], "reason": "cannot be done" });
    web.post("/v1/groups/give-up/nack", nack).await.done();
    until("it is a dead letter", 30, || async {
        let letters = node.web().get("/v1/groups/give-up/dead").await.done();
        letters["messages"].as_array().filter(|letters| letters.len() == 1).map(drop)
    })
    .await;
    let mut scheduled = Vec::new();
    for n in 0..4 {
        let body = format!("in nine years, {n}");
        let later = json!({ "body": body, "name": format!("later-{n}"), "delay": "3285d" });
        scheduled.push((publish(&node, "orders", later).await, body));
    }
    let (cancelled, _) = scheduled.remove(3);
    let cancel = web.send(Method::DELETE, &format!("/v1/messages/{cancelled}"), &[], "").await;
    assert_eq!(cancel.expect("an answer").status, 200);
    node.stop().await;
    // Behind the snapshot, and in another epoch; killed, so that the log alone has it.
    let node = setup.start().await;
    fill(&node, 100).await;
    let topics: Vec<(String, u32)> = topics.map(|(topic, n)| (topic.to_owned(), n)).to_vec();
    let messages = messages_of(&node, &topics).await;
    node.kill().await;
    let made_by = env!("CARGO_PKG_VERSION").to_owned();
    let files = pack(dir.path());
    let fixture = Fixture { made_by, files, topics, messages, scheduled, acknowledged };
    let mut json = serde_json::to_string_pretty(&fixture).expect("JSON");
    json.push('\n');
    assert!((json.len() as u64) < FIXTURE_BYTES, "{} bytes", json.len());
    let path = fixtures().join(format!("format-{FORMAT}.json"));
    match path.exists() {
        true => eprintln!("{} stays; remove it to have it made anew", path.display()),
        false => fs::write(path, json).expect("room"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_on_every_fixture_and_has_all_that_was_in_it() {
    let mut found: Vec<PathBuf> =
        fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let named = |format| fixtures().join(format!("format-{format}.json"));
    assert_eq!(found, (1..=FORMAT).map(named).collect::<Vec<_>>(), "one of each format");
    for path in found {
        assert!(path.metadata().unwrap().len() < FIXTURE_BYTES);
        let fixture: Fixture = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(&fixture.files, dir.path());
        let node = Setup::new(dir.path()).start().await;
        check(&node, &fixture).await;
        // It goes on where it was, and is the same after a snapshot of this build.
        let more = publish(&node, "orders", json!({ "body": "more", "key": "customer-1" })).await;
        assert!(fixture.messages.iter().all(|message| message["id"] != more.as_str()));
        node.stop().await;
        let node = Setup::new(dir.path()).start().await;
        let after = messages_of(&node, &fixture.topics).await;
        let same = after.iter().filter(|message| message["id"] != more.as_str());
        assert!(same.eq(&fixture.messages), "{}", path.display());
        node.kill().await;
    }
}

async fn check(node: &Node, fixture: &Fixture) {
    assert_eq!(messages_of(node, &fixture.topics).await, fixture.messages);
    for message in &fixture.messages {
        let id = message["id"].as_str().unwrap();
        let found = node.web().get(&format!("/v1/messages/{id}")).await.done();
        let found = found.get("message").unwrap_or(&found);
        assert_eq!(BASE64.encode(&self::message(found).body), message["body"], "{id}");
    }
    for (id, body) in &fixture.scheduled {
        let found = node.web().get(&format!("/v1/messages/{id}")).await.done();
        assert!(found.to_string().contains(body.as_str()), "{id}: {found}");
    }
    let users = node.web().get("/v1/users").await.done();
    assert_eq!(users["users"][0]["name"], "shop");
    let letters = node.web().get("/v1/groups/give-up/dead").await.done();
    assert_eq!(letters["messages"].as_array().unwrap().len(), 1, "{letters}");
    // The group gets what it has not acknowledged, unless a lease holds it.
    let given = receive(node, "billing", 1000).await;
    assert!(given.len() > 20, "{} are left", given.len());
    for message in &given {
        let id = message["id"].as_str().unwrap().to_owned();
        assert!(!fixture.acknowledged.contains(&id), "{id} was acknowledged");
        assert!(fixture.messages.iter().any(|known| known["id"] == id.as_str()), "{id}");
    }
}
