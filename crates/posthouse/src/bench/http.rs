//! Over HTTP/1.1 with JSON: one request after the other on every connection.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::lane::{Bodies, Consumes, GROUP, Publishes, WAIT};
use super::{Plan, node};
use crate::cli::Failure;

/// A client with as many connections as it has requests under way.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Http {
    pub(super) fn new(url: &str) -> Http {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Http { client, url: url.to_owned() }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        self.ask("GET", path, Bytes::new()).await
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Bytes, Failure> {
        self.ask("PUT", path, body.to_string().into()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        let answer = self.ask("POST", path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| failure(&error.to_string()))
    }

    async fn ask(&self, method: &str, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| failure(&error.to_string()))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| failure(&format!("{error:?}")))?;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| failure(&error.to_string()))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(failure(&format!("{status}: {}", String::from_utf8_lossy(&body))))
    }
}

fn failure(what: &str) -> Failure {
    Failure { text: format!("the node under load: {what}"), code: 1 }
}

#[derive(Deserialize)]
struct Published {
    messages: Vec<serde::de::IgnoredAny>,
}

pub(super) struct Publisher {
    http: Http,
    batch: usize,
    bodies: Bodies,
    turn: usize,
    topics: usize,
    answers: VecDeque<JoinHandle<Result<(), Failure>>>,
}

impl Publisher {
    pub(super) fn new(url: &str, plan: &Plan, bodies: Bodies, number: usize) -> Publisher {
        let (batch, topics) = (plan.batch, plan.topics);
        let answers = VecDeque::new();
        Publisher { http: Http::new(url), batch, bodies, turn: number, topics, answers }
    }

    fn request(&self, due: Instant) -> Bytes {
        let body = self.bodies.body(due);
        let mut text = Vec::with_capacity(self.batch * (body.len() + 16) + 32);
        text.extend_from_slice(b"{\"messages\":[");
        for number in 0..self.batch {
            text.extend_from_slice(if number == 0 { b"{\"body\":\"" } else { b",{\"body\":\"" });
            text.extend_from_slice(&body);
            text.extend_from_slice(b"\"}");
        }
        text.extend_from_slice(b"]}");
        text.into()
    }
}

impl Publishes for Publisher {
    async fn send(&mut self, due: Instant) -> Result<(), Failure> {
        self.turn += 1;
        let path = format!("/v1/topics/{}/messages", node::topic(self.turn % self.topics));
        let (http, request, batch) = (self.http.clone(), self.request(due), self.batch);
        self.answers.push_back(tokio::spawn(async move {
            let published: Published = http.post(&path, request).await?;
            if published.messages.len() == batch {
                return Ok(());
            }
            Err(failure("a publish was answered for fewer messages than it had"))
        }));
        Ok(())
    }

    async fn answer(&mut self) -> Result<(), Failure> {
        if let Some(answer) = self.answers.front_mut() {
            let answer = answer.await;
            self.answers.pop_front();
            answer.map_err(|error| failure(&error.to_string()))??;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Received {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    body: String,
    receipt: String,
}

#[derive(Deserialize)]
struct Settled {
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    status: String,
}

pub(super) struct Consumer {
    http: Http,
    ask: Bytes,
}

impl Consumer {
    pub(super) fn new(url: &str, plan: &Plan, number: usize) -> Consumer {
        let wait = format!("{}ms", WAIT.as_millis());
        let ask = json!({ "max": plan.batch, "wait": wait, "consumer": format!("c{number}") });
        Consumer { http: Http::new(url), ask: ask.to_string().into() }
    }
}

impl Consumes for Consumer {
    async fn step(&mut self, arrived: &mut (dyn FnMut(&[u8]) + Send)) -> Result<u64, Failure> {
        let path = format!("/v1/groups/{GROUP}/receive");
        let received: Received = self.http.post(&path, self.ask.clone()).await?;
        if received.messages.is_empty() {
            return Ok(0);
        }
        received.messages.iter().for_each(|message| arrived(message.body.as_bytes()));
        let receipts: Vec<&str> = received.messages.iter().map(|m| m.receipt.as_str()).collect();
        let ack = json!({ "receipts": receipts }).to_string().into();
        let settled: Settled = self.http.post(&format!("/v1/groups/{GROUP}/ack"), ack).await?;
        match settled.results.iter().find(|result| result.status != "ok") {
            None => Ok(settled.results.len() as u64),
            Some(other) => Err(node::not_acknowledged(&other.status)),
        }
    }
}
