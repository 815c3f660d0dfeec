//! Over gRPC: a stream of publishes, a stream of messages.

use std::time::Instant;

use posthouse_client::proto::consume_request::{Credit, Open, Request, StreamAck};
use posthouse_client::proto::consume_response::Response;
use posthouse_client::proto::{
    ConsumeRequest, ConsumeResponse, OutgoingMessage, PublishRequest, PublishResponse, SettleStatus,
};
use posthouse_client::{Client, Error};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::lane::{Bodies, Consumes, GROUP, Publishes, WAIT};
use super::{Plan, node};
use crate::cli::Failure;

pub(super) struct Publisher {
    requests: mpsc::Sender<PublishRequest>,
    answers: Streaming<PublishResponse>,
    batch: usize,
    bodies: Bodies,
    turn: usize,
    topics: usize,
}

impl Publisher {
    pub(super) async fn new(
        url: &str,
        plan: &Plan,
        bodies: Bodies,
        number: usize,
    ) -> Result<Publisher, Failure> {
        let client = Client::connect(url).await.map_err(failure)?;
        let (requests, rx) = mpsc::channel(plan.depth);
        let answers = client.raw().publish_stream(ReceiverStream::new(rx)).await;
        let answers = answers.map_err(|status| failure(status.into()))?.into_inner();
        let (batch, topics) = (plan.batch, plan.topics);
        Ok(Publisher { requests, answers, batch, bodies, turn: number, topics })
    }
}

impl Publishes for Publisher {
    async fn send(&mut self, due: Instant) -> Result<(), Failure> {
        self.turn += 1;
        let body = self.bodies.body(due);
        let message = OutgoingMessage { body, ..OutgoingMessage::default() };
        let request = PublishRequest {
            topic: node::topic(self.turn % self.topics),
            messages: vec![message; self.batch],
            apart: true,
        };
        self.requests.send(request).await.map_err(|_| failure(Error::Closed))
    }

    async fn answer(&mut self) -> Result<(), Failure> {
        let response = self.answers.message().await.map_err(|status| failure(status.into()))?;
        let response = response.ok_or_else(|| failure(Error::Closed))?;
        let of_one = response.messages.into_iter().find_map(|message| message.problem);
        match response.problem.or(of_one) {
            None => Ok(()),
            Some(problem) => Err(failure(Error::Refused(problem.into()))),
        }
    }
}

pub(super) struct Consumer {
    requests: mpsc::Sender<ConsumeRequest>,
    responses: Streaming<ConsumeResponse>,
}

impl Consumer {
    pub(super) async fn new(url: &str, plan: &Plan, number: usize) -> Result<Consumer, Failure> {
        let client = Client::connect(url).await.map_err(failure)?;
        let (requests, rx) = mpsc::channel(64);
        let credit = Credit {
            messages: (plan.batch * plan.depth) as u32,
            bytes: (plan.batch * plan.depth * plan.size) as u64,
        };
        let open = Open {
            group: GROUP.into(),
            consumer: format!("c{number}"),
            credit: Some(credit),
            max_batch: Some(plan.batch as u32),
            ..Open::default()
        };
        let open = ConsumeRequest { request: Some(Request::Open(open)) };
        requests.send(open).await.map_err(|_| failure(Error::Closed))?;
        let responses = client.raw().consume(ReceiverStream::new(rx)).await;
        let responses = responses.map_err(|status| failure(status.into()))?.into_inner();
        Ok(Consumer { requests, responses })
    }

    async fn say(&self, request: Request) -> Result<(), Failure> {
        let request = ConsumeRequest { request: Some(request) };
        self.requests.send(request).await.map_err(|_| failure(Error::Closed))
    }
}

impl Consumes for Consumer {
    async fn step(&mut self, arrived: &mut (dyn FnMut(&[u8]) + Send)) -> Result<u64, Failure> {
        let Ok(response) = tokio::time::timeout(WAIT, self.responses.message()).await else {
            return Ok(0);
        };
        let response = response.map_err(|status| failure(status.into()))?;
        match response.ok_or_else(|| failure(Error::Closed))?.response {
            Some(Response::Messages(received)) => {
                let messages = received.messages.len() as u32;
                let mut bytes = 0;
                let mut receipts = Vec::with_capacity(received.messages.len());
                for message in received.messages {
                    arrived(&message.body);
                    bytes += message.body.len() as u64;
                    receipts.push(message.receipt);
                }
                self.say(Request::Ack(StreamAck { seq: 1, receipts })).await?;
                self.say(Request::Credit(Credit { messages, bytes })).await?;
                Ok(0)
            }
            Some(Response::Settled(settled)) => {
                let good = SettleStatus::Ok as i32;
                match settled.results.iter().find(|result| result.status != good) {
                    None => Ok(settled.results.len() as u64),
                    Some(other) => Err(node::not_acknowledged(&other.detail)),
                }
            }
            Some(Response::Failed(failed)) => {
                Err(failure(Error::Refused(failed.problem.unwrap_or_default().into())))
            }
            None => Ok(0),
        }
    }
}

pub(super) fn failure(error: Error) -> Failure {
    Failure { text: format!("the node under load: {error}"), code: 1 }
}
