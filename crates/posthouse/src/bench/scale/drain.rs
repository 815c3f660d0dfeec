//! Taking messages out: consumers, alone and together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::host::Host;
use super::{ScalePlan, failure};
use crate::bench::lane::{age, histogram};
use crate::broker::consume::{Outcome, Receive, Received, Verdict};
use crate::broker::{Broker, Caller};
use crate::cli::Failure;
use crate::problem::{Kind, Problem};

/// What consumers have done, counted while they work.
#[derive(Debug, Default)]
pub(super) struct Drained {
    /// Messages acknowledged for good.
    pub acked: AtomicU64,
    /// Messages that came after one with a higher position of their partition.
    pub disordered: AtomicU64,
    /// Receives and acknowledgements that were refused.
    pub refused: AtomicU64,
    /// Consumers leave.
    pub stop: AtomicBool,
}

/// How a consumer works.
#[derive(Clone)]
pub(super) struct Drain {
    pub group: String,
    pub consumer: String,
    pub batch: usize,
    /// Acknowledgements under way before it receives again.
    pub acks: usize,
    /// Of so many messages one is given back once; 0: none.
    pub nack_one_in: u64,
}

/// Consumes until told to stop. Returns the ages of stamped messages.
pub(super) async fn drain(
    broker: Arc<Broker>,
    how: Drain,
    drained: Arc<Drained>,
) -> Result<Histogram<u64>, Failure> {
    const WAIT: Duration = Duration::from_millis(500);
    let mut ages = histogram();
    let mut last: HashMap<posthouse_core::TopicId, u64> = HashMap::new();
    let mut acks = Acks::new();
    let ask = Receive {
        max: how.batch,
        wait: WAIT,
        consumer: how.consumer.clone(),
        ..Receive::default()
    };
    let mut count = 0;
    while !drained.stop.load(Ordering::Relaxed) {
        let received = match broker.receive(&Caller::Node, &how.group, &ask).await {
            Ok(received) => received,
            Err(problem) => {
                refused(&drained, problem)?;
                continue;
            }
        };
        for message in &received {
            let before = last.insert(message.topic.id, message.position);
            if message.attempt == 1 && before.is_some_and(|before| before > message.position) {
                drained.disordered.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(age) = age(&message.parts()?.1) {
                ages.saturating_record(age.as_nanos() as u64);
            }
        }
        // With nothing else to do it hears of all that it has acknowledged.
        let most = if received.is_empty() { 0 } else { how.acks.max(1) - 1 };
        if !received.is_empty() {
            acks.push(settle(&broker, &how, received, &mut count));
        }
        settled(&mut acks, most, &drained).await?;
    }
    settled(&mut acks, 0, &drained).await?;
    Ok(ages)
}

/// Acknowledgements under way.
type Acks = FuturesUnordered<BoxFuture<'static, Result<Vec<Outcome>, Problem>>>;

/// Waits until at most so many acknowledgements are under way.
async fn settled(acks: &mut Acks, most: usize, drained: &Drained) -> Result<(), Failure> {
    while acks.len() > most {
        match acks.next().await {
            Some(Ok(outcomes)) => counted(drained, &outcomes),
            Some(Err(problem)) => refused(drained, problem)?,
            None => break,
        }
    }
    Ok(())
}

fn counted(drained: &Drained, outcomes: &[Outcome]) {
    let done = outcomes.iter().filter(|outcome| **outcome == Outcome::Ok).count();
    drained.acked.fetch_add(done as u64, Ordering::Relaxed);
}

/// What is refused for now is counted; anything else ends the run.
fn refused(drained: &Drained, problem: Problem) -> Result<(), Failure> {
    match problem.kind {
        Kind::Exhausted | Kind::DiskFull => {
            drained.refused.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        _ => Err(problem.into()),
    }
}

fn settle(
    broker: &Arc<Broker>,
    how: &Drain,
    received: Vec<Received>,
    count: &mut u64,
) -> BoxFuture<'static, Result<Vec<Outcome>, Problem>> {
    let (broker, group) = (broker.clone(), how.group.clone());
    let items = received
        .into_iter()
        .map(|message| {
            *count += 1;
            let again = how.nack_one_in > 0
                && count.is_multiple_of(how.nack_one_in)
                && message.attempt == 1;
            let verdict = match again {
                true => Verdict::Nack { delay_ms: Some(100), reason: "once more".into() },
                false => Verdict::Ack,
            };
            (message.receipt, verdict)
        })
        .collect();
    async move { broker.settle(&Caller::Node, &group, items).await }.boxed()
}

/// Consumers that work together. Each ends with the ages of the stamped messages that it had.
pub(super) type Consumers = JoinSet<Result<Histogram<u64>, Failure>>;

/// Starts the consumers of the plan in a group.
pub(super) fn consume(
    host: &Arc<Host>,
    plan: &ScalePlan,
    group: &str,
) -> (Arc<Drained>, Consumers) {
    let (drained, mut consumers) = (Arc::new(Drained::default()), JoinSet::new());
    for number in 0..plan.consumers {
        let how = Drain {
            group: group.to_owned(),
            consumer: format!("consumer-{number}"),
            batch: plan.batch,
            acks: 4,
            nack_one_in: 0,
        };
        consumers.spawn(drain(host.broker.clone(), how, drained.clone()));
    }
    (drained, consumers)
}

/// Lets all consumers leave, and gives the ages of all that they had.
///
/// # Errors
/// The first that any of them has met, when all have left.
pub(super) async fn leave(
    drained: &Drained,
    consumers: &mut Consumers,
) -> Result<Histogram<u64>, Failure> {
    drained.stop.store(true, Ordering::Relaxed);
    let (mut all, mut met) = (histogram(), None);
    while let Some(ended) = consumers.join_next().await {
        let ended = ended.map_err(|error| failure(format!("a consumer has ended: {error}")));
        match ended.flatten() {
            // All have the same bounds.
            Ok(ages) => drop(all.add(&ages)),
            Err(failure) => met = met.or(Some(failure)),
        }
    }
    met.map_or(Ok(all), Err)
}

/// Waits until `done` says so; fails if nothing moves for a minute.
pub(super) async fn wait_for(
    what: &str,
    mut done: impl FnMut() -> (bool, u64),
) -> Result<(), Failure> {
    let (mut last, mut at) = (0, Instant::now());
    loop {
        let (is_done, progress) = done();
        if is_done {
            return Ok(());
        }
        if progress != last {
            (last, at) = (progress, Instant::now());
        }
        if at.elapsed() > Duration::from_secs(60) {
            return Err(failure(format!("{what}: nothing has moved for a minute, at {last}")));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
