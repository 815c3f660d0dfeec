//! A backlog, consumed in order, beside topics that have none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::drain::{Drain, Drained, consume, drain, leave, wait_for};
use super::figure::ScaleFigure;
use super::host::{Host, until_acknowledged};
use super::pour::{Pour, Until, pour};
use super::{ScalePlan, failure};
use crate::bench::figure::median;
use crate::cli::Failure;

/// A fresh topic has one part in so many of the backlog.
const FRESH: u64 = 50;

/// Messages a second of the topic that is watched beside.
const BESIDE: f64 = 500.0;

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let deep = host.topics("deep", 0..1, &until_acknowledged()).await?;
    host.groups("deep", 0..1, |_| "deep-0".to_owned()).await?;
    let poured = pour(&host, Pour::new(plan, deep, Until::Count(plan.count))).await?;
    let name = format!("publish a backlog of {}", poured.messages);
    report(ScaleFigure::new(name, poured.rate(), "msg/s").times(&poured.times()).on(&host));

    let (mut fresh, mut beside_fresh) = (Vec::new(), crate::bench::lane::histogram());
    for round in 0..plan.rounds as u64 {
        let topics = host.topics("fresh", round..round + 1, &until_acknowledged()).await?;
        host.groups("fresh", round..round + 1, |n| format!("fresh-{n}")).await?;
        let count = (plan.count / FRESH).max(1000);
        pour(&host, Pour::new(plan, topics, Until::Count(count))).await?;
        let number = round * 2;
        let taken = take(&host, plan, &format!("fresh-{round}"), count, number).await?;
        fresh.push(taken.rate);
        // All have the same bounds.
        let _ = beside_fresh.add(&taken.beside);
    }
    let fresh = median(fresh);
    report(ScaleFigure::new("consume a fresh topic", fresh, "msg/s").on(&host));
    let p99_fresh = beside_fresh.value_at_quantile(0.99) as f64 / 1e6;
    let figure = ScaleFigure::new("  another topic's end to end", p99_fresh, "ms p99");
    report(figure.times(&beside_fresh).on(&host));

    let taken = take(&host, plan, "deep-0", poured.messages, 1).await?;
    let name = format!("consume the backlog by {}", plan.consumers);
    let figure = ScaleFigure::new(name, taken.rate, "msg/s").beside(fresh).on(&host);
    report(figure.must(">= 0.8 of fresh", taken.rate >= 0.8 * fresh));
    let p99 = taken.beside.value_at_quantile(0.99) as f64 / 1e6;
    let figure = ScaleFigure::new("  another topic's end to end", p99, "ms p99");
    let figure = figure.beside(p99_fresh).times(&taken.beside).on(&host);
    report(figure.must("at most doubled", p99 <= 2.0 * p99_fresh));
    let figure = ScaleFigure::new("  out of order, by consumer", taken.disordered as f64, "msg");
    report(figure.on(&host).must("none", taken.disordered == 0));
    super::host::stop(host).await
}

struct Taken {
    rate: f64,
    beside: Histogram<u64>,
    disordered: u64,
}

/// Consumes `count` messages of a group, with another topic in use beside.
async fn take(
    host: &Arc<Host>,
    plan: &ScalePlan,
    group: &str,
    count: u64,
    number: u64,
) -> Result<Taken, Failure> {
    let beside = tokio::spawn(beside(host.clone(), plan.clone(), number));
    // What is measured beside has begun when the first messages are taken.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    let (drained, mut consumers) = consume(host, plan, group);
    let waited = wait_for("the consumers", || {
        let acked = drained.acked.load(Ordering::Relaxed);
        (acked >= count, acked)
    })
    .await;
    let took = began.elapsed().as_secs_f64();
    let left = leave(&drained, &mut consumers).await;
    STOP_BESIDE.notify_waiters();
    let beside = beside.await.map_err(|error| failure(format!("a task has ended: {error}")))??;
    left?;
    waited?;
    let disordered = drained.disordered.load(Ordering::Relaxed);
    Ok(Taken { rate: count as f64 / took, beside, disordered })
}

static STOP_BESIDE: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Publishes to a topic of its own at a pace, and consumes it, until it is told to stop.
/// Ages of what arrived.
async fn beside(host: Arc<Host>, plan: ScalePlan, number: u64) -> Result<Histogram<u64>, Failure> {
    let stopped = STOP_BESIDE.notified();
    let topics = host.topics("beside", number..number + 1, &until_acknowledged()).await?;
    host.groups("beside", number..number + 1, |n| format!("beside-{n}")).await?;
    let drained = Arc::new(Drained::default());
    let how = Drain {
        group: format!("beside-{number}"),
        consumer: "b".into(),
        batch: 100,
        acks: 4,
        nack_one_in: 0,
    };
    let consumer = tokio::spawn(drain(host.broker.clone(), how, drained.clone()));
    let load = Pour {
        batch: 1,
        producers: 1,
        depth: 64,
        pace: Some(BESIDE),
        stamped: true,
        ..Pour::new(&plan, topics, Until::Time(Duration::from_secs(86_400)))
    };
    let stop = load.stop.clone();
    let pouring = tokio::spawn(async move { pour(&host, load).await.map(drop) });
    stopped.await;
    stop.store(true, Ordering::Relaxed);
    pouring.await.map_err(|error| failure(format!("a task has ended: {error}")))??;
    drained.stop.store(true, Ordering::Relaxed);
    consumer.await.map_err(|error| failure(format!("a task has ended: {error}")))?
}
