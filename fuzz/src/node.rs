//! A node with all its doors, on a simulated disk: it has no thread and no clock but those
//! that it is given here, so that the same request is answered the same.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use posthouse::broker::{Broker, BrokerOptions, Chance, Ground, Parts};
use posthouse::doors;
use posthouse::shard::attend::Aside;
use posthouse::shard::clock::Time;
use posthouse_log::files::sim::SimFiles;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt as _;

use crate::memory;

/// When everything begins, Unix milliseconds.
pub const BEGIN_MS: u64 = 1_900_000_000_000;

/// So long an answer is waited for: longer than any call may wait.
pub const PATIENCE_MS: u64 = 360_000;

/// What has no end, or is left open by the client, is listened to for so long.
pub const STREAM_MS: u64 = 2_000;

/// In a byte that says what is called: the number of the method, and whether its request
/// is made large.
pub const METHOD: u8 = 0x7f;
pub const IS_LARGE: u8 = 0x80;

/// What a request may take beside what is in proportion to it: a batch for the log, and
/// what the node does meanwhile.
const BESIDE_BYTES: usize = 4 << 20;

/// A request that is made large, and what it may take. Nothing in it is larger than what it
/// is made of, so what it becomes is counted before there is memory for it.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_MOST_BYTES: usize = 64 << 20;

/// Rounds in which nothing is written, after which nothing more happens by itself.
const STILL: u32 = 4;

/// A node that runs when it is asked something.
pub struct Node {
    parts: Parts,
    router: Router,
    broker: Arc<Broker>,
    runtime: Runtime,
    disk: SimFiles,
    time: Arc<Clocks>,
    /// Changes of the disk before anybody asked.
    changes: u64,
}

/// What was answered, as far as it came.
#[derive(Debug, Default)]
pub struct Answer {
    /// The status, the headers, and what came behind the body.
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: BytesMut,
    /// Whether it began, and whether it has come to its end.
    has_begun: bool,
    pub is_whole: bool,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// What a call came to.
#[derive(Debug)]
pub struct Called {
    /// The status, if it has come to its end.
    pub code: Option<u32>,
    pub text: String,
    pub messages: Vec<Bytes>,
}

impl Called {
    /// Whether the node itself is to blame: its status is unknown, internal, or data loss.
    pub fn is_fault(&self) -> bool {
        matches!(self.code, Some(2 | 13 | 15))
    }
}

/// Clocks that stand still until they are told.
#[derive(Debug, Default)]
struct Clocks(AtomicU64);

impl Time for Clocks {
    fn wall_ms(&self) -> u64 {
        BEGIN_MS + self.steady_ms()
    }

    fn steady_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Node {
    fn on(disk: SimFiles) -> Node {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let time = Arc::new(Clocks::default());
        let ground = Ground {
            files: disk.shared(),
            time: time.clone(),
            chance: Chance { store: 77, secret: [7; 32], writer: 5 },
            aside: Aside::Here,
        };
        let options = BrokerOptions {
            shards: Some(1),
            segment_bytes: 64 << 10,
            memory: 1 << 20,
            auto_create: Some(true),
            disk_reserve: Some(0),
            ..BrokerOptions::new(Path::new("/data").to_owned())
        };
        let guard = runtime.enter();
        let (broker, parts, _) = Broker::assemble(ground, options).expect("it opens");
        let router = doors::router(&broker);
        drop(guard);
        let mut node = Node { parts, router, broker, runtime, disk, time, changes: 0 };
        let broker = node.broker.clone();
        let settled = node.runtime.spawn(async move { broker.settle_in().await });
        node.go_on(|| settled.is_finished());
        assert!(settled.is_finished(), "it comes to serve");
        node.changes = node.disk.counts().changes();
        node
    }

    /// Asks for something, and waits for the whole answer; at least for its beginning.
    pub fn ask(&mut self, request: Request<Body>) -> Answer {
        self.ask_for(request, PATIENCE_MS)
    }

    /// The same where the answer has no end: what comes in so many milliseconds.
    pub fn ask_for(&mut self, request: Request<Body>, patience_ms: u64) -> Answer {
        let told = Arc::new(Mutex::new(Answer::default()));
        let router = self.router.clone();
        let task = self.runtime.spawn(hear(router, request, told.clone()));
        let (mut waited, mut ms) = (0, 1);
        loop {
            self.go_on(|| task.is_finished());
            if task.is_finished() || waited >= patience_ms {
                break;
            }
            self.time.0.fetch_add(ms, Ordering::Relaxed);
            let nap = async { tokio::time::sleep(Duration::from_millis(ms)).await };
            self.runtime.block_on(nap);
            (waited, ms) = (waited + ms, ms * 2);
        }
        task.abort();
        let answer = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(answer.has_begun, "nothing is answered in {waited} ms");
        answer
    }

    /// Calls a method of a gRPC service with these messages, and listens for so long.
    pub fn call(
        &mut self,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        messages: &[&[u8]],
        patience_ms: u64,
    ) -> Called {
        let mut body = Vec::new();
        for message in messages {
            body.push(0);
            body.extend_from_slice(&(message.len() as u32).to_be_bytes());
            body.extend_from_slice(message);
        }
        let request = Request::builder().method("POST").uri(path);
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let mut request = request.body(Body::from(body)).expect("a request");
        request.headers_mut().extend(headers.iter().cloned());
        let mut answer = self.ask_for(request, patience_ms);
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let mut messages = Vec::new();
        while answer.body.len() >= 5 {
            answer.body.advance(1);
            let len = answer.body.get_u32() as usize;
            messages.push(answer.body.split_to(len).freeze());
        }
        let end = [&answer.trailers, &answer.headers];
        let text = |name: &str| {
            let value = end.iter().find_map(|headers| headers.get(name));
            value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let code = text("grpc-status").map(|code| code.parse().expect("a number"));
        assert!(code.is_some() || !answer.is_whole, "{path} ends without a status");
        Called { code, text: text("grpc-message").unwrap_or_default(), messages }
    }

    /// Lets everything happen that needs no time, until `done`.
    fn go_on(&mut self, done: impl Fn() -> bool) {
        let mut still = 0;
        while still < STILL && !done() {
            self.runtime.block_on(async {
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
            });
            let now = Some(Duration::ZERO);
            self.parts.meta.runner.turn(now);
            let mut wrote = self.parts.meta.runner.engine_mut().log_mut().step();
            for shard in &mut self.parts.shards {
                shard.runner.turn(now);
                wrote |= shard.runner.engine_mut().log_mut().step();
            }
            still = if wrote { 0 } else { still + 1 };
        }
    }

    /// Whether nothing is on the disk that was not, and no time has passed.
    fn is_as_it_was(&self) -> bool {
        self.time.steady_ms() == 0 && self.disk.counts().changes() == self.changes
    }
}

async fn hear(router: Router, request: Request<Body>, told: Arc<Mutex<Answer>>) {
    let tell = || told.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(response) = router.oneshot(request).await;
    let (head, mut body) = response.into_parts();
    {
        let mut answer = tell();
        (answer.status, answer.headers, answer.has_begun) = (head.status, head.headers, true);
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("an answer is not cut off");
        let mut answer = tell();
        match frame.into_data() {
            Ok(data) => answer.body.extend_from_slice(&data),
            Err(frame) => answer.trailers.extend(frame.into_trailers().expect("trailers")),
        }
    }
    tell().is_whole = true;
}

/// What there is on the node, for examples to name.
pub struct Scene {
    disk: SimFiles,
    /// A receipt of a message that a consumer of `workers` has.
    pub receipt: String,
    /// The id of that message.
    pub message: String,
    /// The id of a message that is to come to `orders` under the name `reminder`.
    pub scheduled: String,
    /// The id of a transaction that waits for a decision.
    pub transaction: String,
    /// The id of a dead letter of `workers`.
    pub letter: String,
}

/// Messages of every sort, and a group that is not done with them.
pub static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let disk = SimFiles::new(1);
    let mut node = Node::on(disk.clone());
    let mut done = |method: &str, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json");
        let answer = node.ask(request.body(body.to_string().into()).expect("a request"));
        assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
        // What follows from it happens, too.
        node.go_on(|| false);
        answer.json()
    };
    done("PUT", "/v1/topics/orders", json!({ "partitions": 2, "retention": { "min_age": "1d" } }));
    // Whatever an answer has for each partition it has many times.
    done("PUT", "/v1/topics/wide", json!({ "partitions": 256 }));
    let subscriptions = json!([{ "topic": "orders", "filter": "not test" }]);
    let group = json!({ "subscriptions": subscriptions, "max_attempts": 1, "lease": "1m" });
    done("PUT", "/v1/groups/workers", group);
    let message = |body: &str| json!({ "body": body, "key": "k", "tags": ["eu"] });
    let messages = json!([message("one"), message("two"), message("three")]);
    let path = "/v1/topics/orders/messages";
    done("POST", path, json!({ "messages": messages }));
    let later = json!({ "body": "soon", "delay": "1h", "name": "reminder" });
    let scheduled = done("POST", path, later);
    let prepare = json!({ "producer": "p", "messages": [{ "topic": "orders", "body": "half" }] });
    let transaction = done("POST", "/v1/transactions", prepare);
    let rule = json!({ "topic": "orders", "body": "again", "every": "1d" });
    done("PUT", "/v1/recurring/daily", rule);
    let path = "/v1/groups/workers/receive";
    let received = done("POST", path, json!({ "max": 2 }));
    let receipt = |of: usize| received["messages"][of]["receipt"].clone();
    done("POST", "/v1/groups/workers/nack", json!({ "receipts": [receipt(0)], "delay": "0s" }));
    let letters = done("GET", "/v1/groups/workers/dead", json!({}));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let scene = Scene {
        disk,
        receipt: text(&receipt(1)),
        message: text(&received["messages"][1]["id"]),
        scheduled: text(&scheduled["messages"][0]["id"]),
        transaction: text(&transaction["id"]),
        letter: text(&letters["messages"][0]["id"]),
    };
    drop(node);
    scene
});

/// A node as it is in the [`SCENE`], if nothing has happened to it since.
static NODE: Mutex<Option<Node>> = Mutex::new(None);

/// Does something with a node that is as it is in the [`SCENE`].
pub fn with<T>(act: impl FnOnce(&mut Node) -> T) -> T {
    let mut place = NODE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut node = place.take().unwrap_or_else(|| Node::on(SCENE.disk.fork()));
    let done = act(&mut node);
    *place = Some(node).filter(Node::is_as_it_was);
    done
}

/// The same, with the memory that a request of these bytes may take.
pub fn with_small<T>(request: &[u8], act: impl FnOnce(&mut Node) -> T) -> T {
    with(|node| memory::within(1024 * request.len() + BESIDE_BYTES, || act(node)))
}

/// The same with what is given again and again: a message of protobuf is one message then,
/// with longer lists.
pub fn with_large<T>(piece: &[u8], act: impl FnOnce(&mut Node, &[u8]) -> T) {
    if !piece.is_empty() {
        let request = piece.repeat(LARGE_BYTES / piece.len());
        with(|node| memory::within(LARGE_MOST_BYTES, || act(node, &request)));
    }
}
