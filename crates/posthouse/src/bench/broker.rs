//! In this process: the calls that a door makes, without a door.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use posthouse_core::catalog::Topic;
use posthouse_core::message::Parts;

use super::lane::{Bodies, Consumes, GROUP, Publishes, WAIT};
use super::{Plan, node};
use crate::broker::consume::{Outcome, Receive, Received, Verdict};
use crate::broker::publish::Sent;
use crate::broker::{Broker, Caller};
use crate::cli::Failure;
use crate::problem::Problem;

/// Acknowledgements that a consumer has under way before it receives again.
const ACKS: usize = 4;

pub(super) struct Publisher {
    broker: Arc<Broker>,
    topics: Vec<Arc<Topic>>,
    turn: usize,
    batch: usize,
    bodies: Bodies,
    answers: VecDeque<BoxFuture<'static, Result<Sent, Problem>>>,
}

impl Publisher {
    pub(super) async fn new(
        broker: &Arc<Broker>,
        plan: &Plan,
        bodies: Bodies,
        number: usize,
    ) -> Result<Publisher, Failure> {
        let mut topics = Vec::with_capacity(plan.topics);
        for topic in 0..plan.topics {
            topics.push(broker.topic_to_publish(&Caller::Node, &node::topic(topic)).await?);
        }
        let (broker, batch) = (broker.clone(), plan.batch);
        Ok(Publisher { broker, topics, turn: number, batch, bodies, answers: VecDeque::new() })
    }
}

impl Publishes for Publisher {
    async fn send(&mut self, due: Instant) -> Result<(), Failure> {
        self.turn += 1;
        let topic = &self.topics[self.turn % self.topics.len()];
        let body = self.bodies.body(due);
        let permit = self.broker.wait_for_permit(body.len() * self.batch).await?;
        let mut outbox = self.broker.outbox(Some(permit), true);
        outbox.expect(self.batch, body.len() * self.batch);
        for _ in 0..self.batch {
            self.broker.add(&mut outbox, topic, &Parts::default(), &body)?;
        }
        self.answers.push_back(Box::pin(self.broker.submit(outbox)?.wait()));
        Ok(())
    }

    async fn answer(&mut self) -> Result<(), Failure> {
        if let Some(answer) = self.answers.front_mut() {
            let sent = answer.await;
            self.answers.pop_front();
            if let Some(Err(problem)) = self.broker.placed(&sent?).find(Result::is_err) {
                return Err(problem.into());
            }
        }
        Ok(())
    }
}

pub(super) struct Consumer {
    broker: Arc<Broker>,
    ask: Receive,
    receiving: Option<BoxFuture<'static, Result<Vec<Received>, Problem>>>,
    acks: FuturesUnordered<BoxFuture<'static, Result<Vec<Outcome>, Problem>>>,
}

impl Consumer {
    pub(super) fn new(broker: &Arc<Broker>, plan: &Plan, number: usize) -> Consumer {
        let consumer = format!("c{number}");
        let ask = Receive { max: plan.batch, wait: WAIT, consumer, ..Receive::default() };
        let acks = FuturesUnordered::new();
        Consumer { broker: broker.clone(), ask, receiving: None, acks }
    }

    fn receive(&self) -> BoxFuture<'static, Result<Vec<Received>, Problem>> {
        let (broker, ask) = (self.broker.clone(), self.ask.clone());
        async move { broker.receive(&Caller::Node, GROUP, &ask).await }.boxed()
    }

    fn ack(&self, received: Vec<Received>) -> BoxFuture<'static, Result<Vec<Outcome>, Problem>> {
        let broker = self.broker.clone();
        let items = received.into_iter().map(|message| (message.receipt, Verdict::Ack)).collect();
        async move { broker.settle(&Caller::Node, GROUP, items).await }.boxed()
    }
}

impl Consumes for Consumer {
    async fn step(&mut self, arrived: &mut (dyn FnMut(&[u8]) + Send)) -> Result<u64, Failure> {
        if self.acks.len() < ACKS && self.receiving.is_none() {
            self.receiving = Some(self.receive());
        }
        tokio::select! {
            Some(outcomes) = self.acks.next() => {
                let outcomes = outcomes?;
                match outcomes.iter().find(|outcome| **outcome != Outcome::Ok) {
                    None => Ok(outcomes.len() as u64),
                    Some(other) => Err(node::not_acknowledged(&format!("{other:?}"))),
                }
            }
            received = async { self.receiving.as_mut().expect("it was just made").await },
                if self.receiving.is_some() =>
            {
                self.receiving = None;
                let received = received?;
                for message in &received {
                    arrived(&message.parts()?.1);
                }
                if !received.is_empty() {
                    self.acks.push(self.ack(received));
                }
                Ok(0)
            }
        }
    }
}
