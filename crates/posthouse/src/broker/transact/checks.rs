//! Asking producers about transactions that they have not decided.

use std::sync::{Arc, Weak};
use std::time::Duration;

use posthouse_core::TopicId;
use posthouse_core::catalog::Action;
use posthouse_core::queue::Command;
use posthouse_core::queue::command::Reply;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Transaction, check_producer};
use crate::broker::schedule::Scheduled;
use crate::broker::{Broker, Caller, On, bounds};
use crate::problem::Problem;
use crate::shard::metrics;

/// How often it is looked who may be asked about something.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Who may be asked about something: producers, and the topics that it is of.
pub(in crate::broker) type Ready = Vec<(Arc<str>, TopicId)>;

/// Who asks what may be asked about.
#[derive(Clone, Debug)]
pub struct AskChecks {
    /// The producer.
    pub producer: String,
    /// Only transactions whose first message is for this topic; `None`: for any to which
    /// the caller may publish.
    pub topic: Option<String>,
    /// At most so many.
    pub max: usize,
    /// How long to wait for the first.
    pub wait: Duration,
}

/// A transaction whose producer is asked about it.
#[derive(Clone, Debug)]
pub struct Check {
    /// The transaction.
    pub transaction: Transaction,
    /// Which check it is, from 1.
    pub check: u16,
    /// Its first message. `None` if all of them together have become too large: the
    /// transaction can be looked at.
    pub message: Option<Scheduled>,
}

/// Tells when a producer may be asked about something. Keeps no node running.
#[derive(Debug)]
pub struct ChecksReady {
    producer: Arc<str>,
    ready: watch::Receiver<Ready>,
}

impl ChecksReady {
    /// The topics of which the producer may be asked about something now; `None` when the
    /// node has stopped. What is not asked about is told again soon.
    pub async fn topics(&mut self) -> Option<Vec<TopicId>> {
        loop {
            self.ready.changed().await.ok()?;
            let mut topics: Vec<TopicId> = Vec::new();
            for (who, topic) in self.ready.borrow_and_update().iter() {
                if *who == self.producer && !topics.contains(topic) {
                    topics.push(*topic);
                }
            }
            if !topics.is_empty() {
                return Some(topics);
            }
        }
    }
}

impl Broker {
    /// Tells when `producer` may be asked about something, from now on.
    pub fn checks_ready(&self, producer: &str) -> ChecksReady {
        ChecksReady { producer: producer.into(), ready: self.checks.subscribe() }
    }

    /// Transactions that a producer is asked about: waits for the first. Each is asked about
    /// once at a time, whoever asks; an answer is a commit or a rollback, or none yet.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn checks(&self, caller: &Caller, ask: &AskChecks) -> Result<Vec<Check>, Problem> {
        check_producer(&ask.producer)?;
        if !(1..=bounds::CHECKS).contains(&ask.max) {
            let limit = format!("it must be from 1 to {}", bounds::CHECKS);
            return Err(Problem::invalid("max", ask.max, limit));
        }
        if ask.wait > bounds::WAIT {
            let limit = format!("at most {} s", bounds::WAIT.as_secs());
            return Err(Problem::invalid("wait", format!("{:?}", ask.wait), limit));
        }
        let topic = match &ask.topic {
            Some(name) => {
                caller.check(Action::Publish, On::Topic(name))?;
                Some(self.topic(name)?.id)
            }
            None => None,
        };
        let producer: Arc<str> = ask.producer.as_str().into();
        let until = Instant::now() + ask.wait;
        let mut ready = self.checks.subscribe();
        loop {
            ready.borrow_and_update();
            let checks = self.take_checks(caller, &producer, topic, ask.max).await?;
            if !checks.is_empty() || Instant::now() >= until {
                return Ok(checks);
            }
            loop {
                match tokio::time::timeout_at(until, ready.changed()).await {
                    Err(_) => return Ok(Vec::new()),
                    Ok(Err(_)) => return Err(Problem::stopping()),
                    Ok(Ok(())) if !self.is_ready() => return Err(Problem::stopping()),
                    Ok(Ok(())) => {}
                }
                let is_mine = |(who, of): &(Arc<str>, TopicId)| {
                    *who == producer && topic.is_none_or(|topic| topic == *of)
                };
                if ready.borrow_and_update().iter().any(is_mine) {
                    break;
                }
            }
        }
    }

    /// What a producer may be asked about now.
    async fn take_checks(
        &self,
        caller: &Caller,
        producer: &Arc<str>,
        topic: Option<TopicId>,
        max: usize,
    ) -> Result<Vec<Check>, Problem> {
        let mut checks = Vec::new();
        let mut bytes = 0;
        for shard in self.shards.iter().filter(|shard| has_open(&shard.metrics)) {
            let who = producer.clone();
            let ready = self.directory.look(shard.id, move |view| {
                let ready = view.shard.transactions().ready(view.now.lease);
                let mine = ready
                    .filter(|(name, of)| *name == who && topic.is_none_or(|topic| topic == *of));
                Ok(mine.map(|(_, of)| *of).collect::<Vec<TopicId>>())
            });
            let mut topics = ready.await?;
            topics.retain(|of| {
                let topic = self.catalog().topic(*of).cloned();
                topic.is_some_and(|topic| caller.may(Action::Publish, On::Topic(&topic.name)))
            });
            for topic in topics {
                if checks.len() >= max {
                    return Ok(checks);
                }
                let most = max - checks.len();
                let command =
                    Command::TakeChecks { producer: producer.clone(), topic: Some(topic), most };
                let reply = self.directory.command(shard.id, command).await?;
                let Reply::Checks(taken) = reply else {
                    return Err(Problem::internal(format!("a look was answered by {reply:?}")));
                };
                for check in taken {
                    // It may have been decided meanwhile.
                    let row = self.row(shard.id, check.first).await?;
                    let Some(row) = row.filter(|row| row.of.is_open()) else { continue };
                    let message = match bytes < bounds::PAGE_BYTES {
                        true => self.first_message(shard.id, &row.of).await?,
                        false => None,
                    };
                    bytes += message.as_ref().map_or(0, |message| message.bytes() as u64);
                    let transaction = self.view(shard.id, &row, true);
                    checks.push(Check { transaction, check: check.check, message });
                }
            }
        }
        Ok(checks)
    }

    /// Looks who may be asked about something, while anybody waits for that, until the node
    /// stops.
    pub(in crate::broker) async fn look_for_checks(of: Weak<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(broker) = of.upgrade() else { return };
            if !broker.is_ready() {
                broker.checks.send_replace(Vec::new());
                return;
            }
            if broker.checks.receiver_count() == 0 {
                continue;
            }
            let mut all = Vec::new();
            for shard in broker.shards.iter().filter(|shard| has_open(&shard.metrics)) {
                let ready = broker.directory.look(shard.id, |view| {
                    Ok(view.shard.transactions().ready(view.now.lease).cloned().collect::<Ready>())
                });
                // A shard that does not answer stops, and so does the node.
                all.extend(ready.await.unwrap_or_default());
            }
            if !all.is_empty() {
                broker.checks.send_replace(all);
            }
        }
    }
}

fn has_open(metrics: &crate::shard::ShardMetrics) -> bool {
    metrics::get(&metrics.transactions_open) > 0
}
