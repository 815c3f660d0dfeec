//! Clients of every kind at work, until the node is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use posthouse_client::proto::consume_request::{Credit, Open, Request, StreamAck, StreamNack};
use posthouse_client::proto::consume_response::Response;
use posthouse_client::proto::{
    self, ConsumeRequest, OutgoingMessage, PublishRequest, PublishedMessage, ReceivedMessage,
    SettleStatus,
};
use posthouse_client::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::journal::Journal;
use super::node::Node;
use super::rng::Rng;
use super::web::Web;

/// Topics that publishers write to, with how many partitions.
pub const TOPICS: [(&str, u32); 5] =
    [("plain", 1), ("wide", 4), ("left", 1), ("right", 1), ("poison", 1)];
/// Gets everything but what nobody can do.
pub const WORKERS: &str = "workers";
/// Gets the same in order of keys, over a stream.
pub const ORDERED: &str = "ordered";
/// Gets everything at most once.
pub const ONCE: &str = "once";
/// Gets what nobody can do, and gives up.
pub const GIVE_UP: &str = "give-up";
/// Attempts of [`GIVE_UP`].
pub const ATTEMPTS: u32 = 3;

/// Makes topics and groups.
pub async fn prepare(node: &Node) {
    let web = node.web();
    for (topic, partitions) in TOPICS {
        web.put(&format!("/v1/topics/{topic}"), json!({ "partitions": partitions })).await.done();
    }
    web.put("/v1/topics/small", json!({ "max_message_bytes": 1000 })).await.done();
    let topics = |topics: &[&str]| -> Vec<Value> {
        topics.iter().map(|topic| json!({ "topic": topic })).collect()
    };
    let most = topics(&["plain", "wide", "left", "right"]);
    let all = [
        (
            WORKERS,
            json!({ "subscriptions": most, "lease": "2s", "max_attempts": 1000,
            "backoff": ["50ms"] }),
        ),
        (
            ORDERED,
            json!({ "subscriptions": topics(&["wide"]), "lease": "3s", "order": "key",
            "max_attempts": 1000, "backoff": ["20ms"] }),
        ),
        (ONCE, json!({ "subscriptions": most })),
        (
            GIVE_UP,
            json!({ "subscriptions": topics(&["poison"]), "lease": "1s",
            "max_attempts": ATTEMPTS, "backoff": ["10ms"] }),
        ),
    ];
    for (group, config) in all {
        web.put(&format!("/v1/groups/{group}"), config).await.done();
    }
}

/// Starts everybody. Each ends when the node is gone.
pub async fn begin(node: &Node, journal: &Arc<Journal>, rng: &mut Rng) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let mut actor = |client: Client| Actor {
        client,
        web: node.web(),
        journal: journal.clone(),
        rng: rng.split(),
    };
    // A connection for each: they all break at another place.
    tasks.spawn(actor(node.client().await).stream(true));
    tasks.spawn(actor(node.client().await).stream(false));
    tasks.spawn(actor(node.client().await).batches());
    tasks.spawn(actor(node.client().await).json());
    tasks.spawn(actor(node.client().await).raw());
    tasks.spawn(actor(node.client().await).lines());
    tasks.spawn(actor(node.client().await).refusals());
    tasks.spawn(actor(node.client().await).work("grpc-1"));
    tasks.spawn(actor(node.client().await).work("grpc-2"));
    tasks.spawn(actor(node.client().await).work_over_http());
    tasks.spawn(actor(node.client().await).work_on_a_stream());
    tasks.spawn(actor(node.client().await).once());
    tasks.spawn(actor(node.client().await).give_up());
    tasks
}

/// Whether the request that was answered so may have been done.
fn may_be_done(error: &Error) -> bool {
    match error {
        Error::Refused(problem) => problem.code == "outcome_unknown",
        _ => true,
    }
}

/// One client.
pub struct Actor {
    pub client: Client,
    pub web: Web,
    pub journal: Arc<Journal>,
    pub rng: Rng,
}

impl Actor {
    pub fn message(&mut self, dedupe: bool) -> OutgoingMessage {
        let rng = &mut self.rng;
        let len = match rng.below(100) {
            0 => rng.range(100_000, 400_000),
            1..=10 => rng.range(2_000, 20_000),
            _ => rng.range(0, 500),
        };
        let mut headers = HashMap::new();
        for n in 0..rng.below(4) {
            headers.insert(format!("header-{n}"), format!("value ü {}", rng.below(1000)));
        }
        OutgoingMessage {
            body: rng.bytes(len as usize).into(),
            key: rng.percent(60).then(|| format!("key-{}", rng.below(20))),
            tags: (0..rng.below(4)).map(|n| format!("tag-{n}-{}", rng.below(3))).collect(),
            headers,
            dedupe_id: dedupe.then(|| format!("id-{}", self.journal.number())),
            ..OutgoingMessage::default()
        }
    }

    fn topic(&mut self) -> &'static str {
        ["plain", "wide", "poison"][self.rng.below(3) as usize]
    }

    /// Publishes on a stream, several requests under way.
    async fn stream(mut self, dedupe: bool) {
        let (tx, rx) = mpsc::channel::<PublishRequest>(8);
        let (marks_tx, mut marks_rx) = mpsc::channel::<Vec<String>>(8);
        let journal = self.journal.clone();
        let again = if dedupe { journal.to_send_again() } else { Vec::new() };
        let mut raw = self.client.raw();
        let writer = tokio::spawn(async move {
            for (uid, sent) in again {
                let messages = vec![sent.message];
                let request = PublishRequest { topic: sent.topic, messages, apart: true };
                let mark = marks_tx.send(vec![uid]).await;
                if mark.is_err() || tx.send(request).await.is_err() {
                    return;
                }
            }
            loop {
                let topic = self.topic();
                let (mut uids, mut messages) = (Vec::new(), Vec::new());
                // A request without publish ids is all there or not at all.
                let batch = (!dedupe).then(|| self.journal.number());
                for _ in 0..self.rng.range(1, 8) {
                    let message = self.message(dedupe);
                    let (uid, message) = self.journal.ask(topic, message, batch);
                    uids.push(uid);
                    messages.push(message);
                }
                // In the order in which the answers come.
                let request = PublishRequest { topic: topic.into(), messages, apart: dedupe };
                let mark = marks_tx.send(uids).await;
                if mark.is_err() || tx.send(request).await.is_err() {
                    return;
                }
            }
        });
        let Ok(responses) = raw.publish_stream(ReceiverStream::new(rx)).await else { return };
        let mut responses = responses.into_inner();
        while let Ok(Some(response)) = responses.message().await {
            let uids = marks_rx.recv().await.expect("an answer for each request");
            match response.problem {
                None => answered(&journal, &uids, &response.messages),
                Some(problem) if problem.code == "outcome_unknown" => {}
                Some(problem) => {
                    uids.iter().for_each(|uid| journal.refused(uid, &problem.code));
                }
            }
        }
        writer.abort();
    }

    /// Publishes to two topics, all or nothing.
    async fn batches(mut self) {
        loop {
            let batch = Some(self.journal.number());
            let (mut uids, mut messages) = (Vec::new(), Vec::new());
            for _ in 0..self.rng.range(2, 12) {
                let topic = if self.rng.percent(50) { "left" } else { "right" };
                let message = self.message(false);
                let message = OutgoingMessage { topic: topic.into(), ..message };
                let (uid, message) = self.journal.ask(topic, message, batch);
                uids.push(uid);
                messages.push(message);
            }
            let request = PublishRequest { topic: String::new(), messages, apart: false };
            match self.client.raw().publish(request).await.map_err(Error::from) {
                Ok(response) => answered(&self.journal, &uids, &response.into_inner().messages),
                Err(error) if may_be_done(&error) => return,
                Err(Error::Refused(problem)) => {
                    uids.iter().for_each(|uid| self.journal.refused(uid, &problem.code));
                    if problem.code != "several_shards" {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Publishes as JSON over HTTP.
    async fn json(mut self) {
        loop {
            let topic = self.topic();
            let message = self.message(true);
            let (uid, message) = self.journal.ask(topic, message, None);
            let body = json!({
                "body_base64": BASE64.encode(&message.body), "key": message.key,
                "tags": message.tags, "headers": message.headers,
                "dedupe_id": message.dedupe_id,
            });
            let path = format!("/v1/topics/{topic}/messages");
            let Ok(answer) = self.web.try_post(&path, &body).await else { return };
            if !http_answered(&self.journal, &[uid], &answer) {
                return;
            }
        }
    }

    /// Publishes bodies as they are over HTTP.
    async fn raw(mut self) {
        loop {
            let topic = self.topic();
            let mut message = self.message(false);
            // A header's value cannot hold everything that a tag or a name can.
            message.headers.clear();
            let (uid, message) = self.journal.ask(topic, message, None);
            let tags = message.tags.join(",");
            let mut headers = vec![
                ("content-type", "application/octet-stream"),
                ("posthouse-tags", tags.as_str()),
                ("posthouse-header-uid", uid.as_str()),
            ];
            headers.extend(message.key.as_deref().map(|key| ("posthouse-key", key)));
            let path = format!("/v1/topics/{topic}/messages");
            let sent = self.web.send(Method::POST, &path, &headers, message.body.clone()).await;
            let Ok(answer) = sent else { return };
            if !http_answered(&self.journal, &[uid], &answer) {
                return;
            }
        }
    }

    /// Publishes line by line over HTTP.
    async fn lines(mut self) {
        loop {
            let (mut uids, mut lines) = (Vec::new(), String::new());
            for _ in 0..self.rng.range(1, 40) {
                let message = self.message(true);
                let (uid, message) = self.journal.ask("plain", message, None);
                uids.push(uid);
                let line = json!({
                    "body_base64": BASE64.encode(&message.body), "key": message.key,
                    "tags": message.tags, "headers": message.headers,
                    "dedupe_id": message.dedupe_id,
                });
                lines.push_str(&format!("{line}\n"));
            }
            let kind = [("content-type", "application/x-ndjson")];
            let path = "/v1/topics/plain/messages";
            let Ok(answer) = self.web.send(Method::POST, path, &kind, lines).await else { return };
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            if answer.status != 200 {
                uids.iter().for_each(|uid| self.journal.refused(uid, &answer.code()));
                return;
            }
            for (uid, line) in uids.iter().zip(text.lines()) {
                let line: Value = serde_json::from_str(line).expect("a line of JSON");
                match line.get("problem").and_then(|problem| problem["code"].as_str()) {
                    None => self.journal.placed(uid, &published(&line)),
                    Some("outcome_unknown") => return,
                    Some(code) => self.journal.refused(uid, code),
                }
            }
        }
    }

    /// Publishes what the node refuses.
    async fn refusals(mut self) {
        loop {
            let path;
            let body = match self.rng.below(3) {
                // One of two is too large: none is taken.
                0 => {
                    path = "/v1/topics/small/messages";
                    let large = OutgoingMessage {
                        body: self.rng.bytes(1001).into(),
                        ..OutgoingMessage::default()
                    };
                    let small = OutgoingMessage::default();
                    let messages: Vec<Value> = [small, large]
                        .into_iter()
                        .map(|message| {
                            let (uid, message) = self.journal.ask("small", message, None);
                            self.journal.refused(&uid, "too large");
                            json!({ "body_base64": BASE64.encode(&message.body),
                                "headers": message.headers })
                        })
                        .collect();
                    json!({ "messages": messages })
                }
                // Another message under an id that is taken.
                1 => {
                    let Some(known) = self.journal.known_id() else {
                        self.journal.answers(1).await;
                        continue;
                    };
                    path = "/v1/publish";
                    let message = OutgoingMessage {
                        dedupe_id: known.message.dedupe_id,
                        key: known.message.key,
                        ..OutgoingMessage::default()
                    };
                    let (uid, message) = self.journal.ask(&known.topic, message, None);
                    self.journal.refused(&uid, "another body");
                    json!({ "messages": [{ "topic": known.topic, "body": "another",
                        "key": message.key, "headers": message.headers,
                        "dedupe_id": message.dedupe_id }] })
                }
                // Too many tags.
                _ => {
                    path = "/v1/topics/plain/messages";
                    let message = OutgoingMessage::default();
                    let (uid, message) = self.journal.ask("plain", message, None);
                    self.journal.refused(&uid, "too many tags");
                    let tags: Vec<String> = (0..17).map(|n| n.to_string()).collect();
                    json!({ "headers": message.headers, "tags": tags, "body": "x" })
                }
            };
            match self.web.try_post(path, &body).await {
                Ok(answer) => assert!(answer.status >= 400, "{body} was taken"),
                Err(_) => return,
            }
        }
    }

    /// Receives, and acknowledges, gives back, keeps longer, or forgets.
    async fn work(mut self, name: &'static str) {
        loop {
            let ask = proto::ReceiveRequest {
                group: WORKERS.into(),
                consumer: name.into(),
                max: Some(self.rng.range(1, 40) as u32),
                wait_ms: Some(500),
                lease_ms: self.rng.percent(20).then_some(300),
                ..proto::ReceiveRequest::default()
            };
            let Ok(received) = self.client.raw().receive(ask).await else { return };
            let received = received.into_inner().messages;
            received.iter().for_each(|message| self.journal.given(WORKERS, message));
            let (mut ack, mut nack, mut extend) = (Vec::new(), Vec::new(), Vec::new());
            for message in received {
                match self.rng.below(100) {
                    0..70 => ack.push(message),
                    70..82 => nack.push(message),
                    82..92 => extend.push(message),
                    _ => {}
                }
            }
            if nack.len() + extend.len() > 0 && !self.later(&nack, &extend).await {
                return;
            }
            ack.extend(extend);
            if !self.ack(WORKERS, &ack).await {
                return;
            }
        }
    }

    /// Gives back, and keeps longer.
    async fn later(&mut self, nack: &[ReceivedMessage], extend: &[ReceivedMessage]) -> bool {
        let receipts = |of: &[ReceivedMessage]| -> Vec<String> {
            of.iter().map(|m| m.receipt.clone()).collect()
        };
        let nacked = self.client.nack(
            WORKERS,
            receipts(nack),
            Some(Duration::from_millis(self.rng.below(200))),
            "not now",
        );
        if nacked.await.is_err() {
            return false;
        }
        let lease = Some(Duration::from_millis(1500));
        self.client.extend(WORKERS, receipts(extend), lease).await.is_ok()
    }

    /// Acknowledges. `false`: the node is gone.
    pub async fn ack(&self, group: &str, messages: &[ReceivedMessage]) -> bool {
        let receipts = messages.iter().map(|message| message.receipt.clone()).collect();
        let request = proto::AckRequest { group: group.into(), receipts };
        let Ok(response) = self.client.raw().ack(request).await else { return false };
        note_acks(&self.journal, group, messages, &response.into_inner().results);
        true
    }

    /// The same over HTTP.
    async fn work_over_http(self) {
        loop {
            let ask = json!({ "consumer": "http", "max": 20, "wait": "300ms" });
            let path = format!("/v1/groups/{WORKERS}/receive");
            let Ok(answer) = self.web.try_post(&path, &ask).await else { return };
            if answer.status != 200 {
                return;
            }
            let received = answer.json();
            let received: Vec<ReceivedMessage> =
                received["messages"].as_array().expect("messages").iter().map(message).collect();
            received.iter().for_each(|message| self.journal.given(WORKERS, message));
            let receipts: Vec<&str> = received.iter().map(|m| m.receipt.as_str()).collect();
            let path = format!("/v1/groups/{WORKERS}/ack");
            let asked = self.web.try_post(&path, &json!({ "receipts": receipts })).await;
            let Ok(answer) = asked else { return };
            if answer.status != 200 {
                return;
            }
            let results = answer.json();
            let results = results["results"].as_array().expect("results");
            for (message, result) in received.iter().zip(results) {
                if result["status"] == "ok" {
                    self.journal.acked(WORKERS, message);
                }
            }
        }
    }

    /// Consumes on a stream, in order of keys.
    async fn work_on_a_stream(mut self) {
        let (tx, rx) = mpsc::channel(64);
        let request = |request| ConsumeRequest { request: Some(request) };
        let open = Open {
            group: ORDERED.into(),
            consumer: "stream".into(),
            credit: Some(Credit { messages: 50, bytes: 4 << 20 }),
            ..Open::default()
        };
        tx.send(request(Request::Open(open))).await.expect("there is room");
        let Ok(responses) = self.client.raw().consume(ReceiverStream::new(rx)).await else {
            return;
        };
        let mut responses = responses.into_inner();
        let mut under_way: HashMap<u64, Vec<ReceivedMessage>> = HashMap::new();
        let mut seq = 0;
        while let Ok(Some(response)) = responses.message().await {
            match response.response {
                Some(Response::Messages(received)) => {
                    let count = received.messages.len() as u32;
                    let bytes = received.messages.iter().map(|m| m.body.len() as u64).sum();
                    received.messages.iter().for_each(|m| self.journal.given(ORDERED, m));
                    let receipts = received.messages.iter().map(|m| m.receipt.clone()).collect();
                    seq += 1;
                    let say = if self.rng.percent(15) {
                        let (delay_ms, reason) = (Some(20), "once more".into());
                        Request::Nack(StreamNack { seq, receipts, delay_ms, reason })
                    } else {
                        under_way.insert(seq, received.messages);
                        Request::Ack(StreamAck { seq, receipts })
                    };
                    let credit = Request::Credit(Credit { messages: count, bytes });
                    if tx.send(request(say)).await.is_err()
                        || tx.send(request(credit)).await.is_err()
                    {
                        return;
                    }
                }
                Some(Response::Settled(settled)) => {
                    if let Some(messages) = under_way.remove(&settled.seq) {
                        note_acks(&self.journal, ORDERED, &messages, &settled.results);
                    }
                }
                _ => return,
            }
        }
    }

    /// Receives at most once.
    async fn once(self) {
        loop {
            let ask = proto::ReceiveRequest {
                group: ONCE.into(),
                max: Some(100),
                wait_ms: Some(500),
                auto_ack: true,
                ..proto::ReceiveRequest::default()
            };
            let Ok(received) = self.client.raw().receive(ask).await else { return };
            for message in received.into_inner().messages {
                assert_eq!((message.attempt, message.receipt.as_str()), (1, ""));
                self.journal.given(ONCE, &message);
            }
        }
    }

    /// Receives, and can do nothing with it.
    async fn give_up(self) {
        loop {
            let ask = proto::ReceiveRequest {
                group: GIVE_UP.into(),
                max: Some(50),
                wait_ms: Some(500),
                ..proto::ReceiveRequest::default()
            };
            let Ok(received) = self.client.raw().receive(ask).await else { return };
            let received = received.into_inner().messages;
            received.iter().for_each(|message| self.journal.given(GIVE_UP, message));
            let receipts: Vec<String> = received.iter().map(|m| m.receipt.clone()).collect();
            let delay = Some(Duration::ZERO);
            if self.client.nack(GIVE_UP, receipts, delay, "cannot be done").await.is_err() {
                return;
            }
        }
    }
}

fn note_acks(
    journal: &Journal,
    group: &str,
    messages: &[ReceivedMessage],
    results: &[proto::SettleResult],
) {
    assert_eq!(messages.len(), results.len(), "a result for each receipt");
    for (message, result) in messages.iter().zip(results) {
        match result.status() {
            SettleStatus::Ok => journal.acked(group, message),
            SettleStatus::Already | SettleStatus::Stale => {}
            other => panic!("a receipt of {group} is {other:?}: {}", result.detail),
        }
    }
}

pub fn answered(journal: &Journal, uids: &[String], messages: &[PublishedMessage]) {
    assert_eq!(uids.len(), messages.len(), "an answer for each message");
    for (uid, message) in uids.iter().zip(messages) {
        match &message.problem {
            None => journal.placed(uid, message),
            Some(problem) => panic!("message {uid}: {problem:?}"),
        }
    }
}

/// Notes the answer to a publish over HTTP. `false`: the node is stopping.
fn http_answered(journal: &Journal, uids: &[String], answer: &super::web::Answer) -> bool {
    if answer.status == 200 {
        let json = answer.json();
        let messages = json["messages"].as_array().expect("messages").clone();
        for (uid, message) in uids.iter().zip(messages) {
            journal.placed(uid, &published(&message));
        }
        return true;
    }
    if answer.code() != "outcome_unknown" {
        uids.iter().for_each(|uid| journal.refused(uid, &answer.code()));
    }
    false
}

fn published(json: &Value) -> PublishedMessage {
    PublishedMessage {
        id: json["id"].as_str().expect("an id").into(),
        partition: json["partition"].as_u64().expect("a partition") as u32,
        position: json["position"].as_u64().expect("a position"),
        duplicate: json["duplicate"].as_bool().expect("whether it is one"),
        ..PublishedMessage::default()
    }
}

/// A message as HTTP gives it.
pub fn message(json: &Value) -> ReceivedMessage {
    let text = |name: &str| json[name].as_str().map(str::to_owned);
    let body = match (text("body"), text("body_base64")) {
        (Some(text), None) => text.into(),
        (None, Some(text)) => BASE64.decode(text).expect("base64").into(),
        (None, None) => bytes::Bytes::new(),
        _ => panic!("two bodies: {json}"),
    };
    let headers = json["headers"].as_object().into_iter().flatten();
    let tags = json["tags"].as_array().into_iter().flatten();
    ReceivedMessage {
        id: text("id").expect("an id"),
        topic: text("topic").expect("a topic"),
        partition: json["partition"].as_u64().expect("a partition") as u32,
        position: json["position"].as_u64().expect("a position"),
        body,
        key: text("key"),
        tags: tags.map(|tag| tag.as_str().expect("a text").into()).collect(),
        headers: headers
            .map(|(name, value)| (name.clone(), value.as_str().expect("a text").into()))
            .collect(),
        attempt: json["attempt"].as_u64().unwrap_or(0) as u32,
        fence: json["fence"].as_u64().unwrap_or(0),
        receipt: text("receipt").unwrap_or_default(),
        dedupe_id: text("dedupe_id"),
        ..ReceivedMessage::default()
    }
}
