//! Many groups, few of them active.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::drain::{Drain, Drained, drain, leave, wait_for};
use super::figure::ScaleFigure;
use super::host::{Host, kept};
use super::pour::{Pour, Until, pour};
use super::{ScalePlan, probe};
use crate::bench::figure::median;
use crate::cli::Failure;

/// Topics that the groups share.
const TOPICS: u64 = 100;

/// Groups on a single topic, of those that are not active.
const ON_ONE: u64 = 10_000;

/// Messages that each active group gets in a round.
const MESSAGES: u64 = 500;

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let active = plan.active.min(plan.count);
    let few = host.topics("topic", 0..TOPICS, &kept()).await?;
    host.topics("crowded", 0..1, &kept()).await?;
    host.groups("group", 0..active, |n| format!("topic-{}", n % TOPICS)).await?;
    report(ScaleFigure::new(format!("{active} groups"), 0.0, "-").on(&host));

    let drained = Arc::new(Drained::default());
    let mut consumers = tokio::task::JoinSet::new();
    for number in 0..active {
        let how = Drain {
            group: format!("group-{number}"),
            consumer: format!("consumer-{number}"),
            batch: plan.batch,
            acks: 1,
            nack_one_in: 0,
        };
        consumers.spawn(drain(host.broker.clone(), how, drained.clone()));
    }
    let mut before = Vec::new();
    for _ in 0..plan.rounds {
        before.push(round(&host, plan, few.clone(), active, &drained).await?);
    }
    let before = median(before);
    let name = format!("deliver to {active} active of {active}");
    report(ScaleFigure::new(name, before, "msg/s").on(&host));

    let began = Instant::now();
    let rest = active..plan.count;
    host.groups("group", rest.clone(), |n| match n < active + ON_ONE {
        true => "crowded-0".to_owned(),
        false => format!("topic-{}", n % TOPICS),
    })
    .await?;
    let made = (plan.count - active) as f64;
    let rate = made / began.elapsed().as_secs_f64();
    report(ScaleFigure::new(format!("make {made} groups"), rate, "groups/s").on(&host));

    let mut after = Vec::new();
    for _ in 0..plan.rounds {
        after.push(round(&host, plan, few.clone(), active, &drained).await?);
    }
    let after = median(after);
    let name = format!("deliver to {active} active of {}", plan.count);
    let figure = ScaleFigure::new(name, after, "msg/s").beside(before).on(&host);
    report(figure.must(">= 0.8 of few groups", after >= 0.8 * before));
    let rss = probe::rss_bytes().unwrap_or(0);
    let name = format!("memory with {} groups", plan.count);
    let figure = ScaleFigure::new(name, rss as f64, "bytes").on(&host);
    report(figure.must("<= 1 GB", rss <= 1_000_000_000));

    let crowded = host.topics("crowded", 0..1, &kept()).await?;
    let quiet = host.topics("quiet", 0..1, &kept()).await?;
    let time = Until::Time(plan.time);
    let alone = pour(&host, Pour::new(plan, quiet, time)).await?;
    let poured = pour(&host, Pour::new(plan, crowded, time)).await?;
    let on_one = ON_ONE.min(plan.count - active);
    let name = format!("publish to a topic of {on_one} groups");
    let figure = ScaleFigure::new(name, poured.rate(), "msg/s").beside(alone.rate());
    report(figure.times(&poured.times()).on(&host));

    if let Some(before) = probe::cpu_seconds() {
        let idle = Duration::from_secs(5);
        tokio::time::sleep(idle).await;
        let used = probe::cpu_seconds().unwrap_or(before) - before;
        let share = used / idle.as_secs_f64() * 100.0;
        report(ScaleFigure::new("processor, consumers waiting", share, "%").on(&host));
    }
    leave(&drained, &mut consumers).await?;
    super::host::stop(host).await
}

/// Publishes, and waits until every active group has had everything. Deliveries a
/// second.
async fn round(
    host: &Arc<Host>,
    plan: &ScalePlan,
    topics: Vec<Arc<posthouse_core::catalog::Topic>>,
    active: u64,
    drained: &Drained,
) -> Result<f64, Failure> {
    let (began, start) = (Instant::now(), drained.acked.load(Ordering::Relaxed));
    let count = MESSAGES * topics.len() as u64;
    let poured = pour(host, Pour { batch: 10, ..Pour::new(plan, topics, Until::Count(count)) });
    let poured = poured.await?;
    // Messages go to topics in turn, and so do groups.
    let wanted = start + poured.messages * active / TOPICS;
    wait_for("the active groups", || {
        let acked = drained.acked.load(Ordering::Relaxed);
        (acked >= wanted, acked)
    })
    .await?;
    Ok((wanted - start) as f64 / began.elapsed().as_secs_f64())
}
