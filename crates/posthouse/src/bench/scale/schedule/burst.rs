//! Very many messages due in one millisecond, beside others and beside plain publishes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use posthouse_core::record::When;

use super::super::drain::{consume, leave, wait_for};
use super::super::figure::ScaleFigure;
use super::super::host::{Host, kept, stop, until_acknowledged};
use super::super::pour::{Pour, Until, pour};
use super::super::{ScalePlan, failure};
use super::{all_at, ample, fill, millions, until};
use crate::bench::lane::quantile_ms;
use crate::cli::Failure;

/// Messages a second that are on time.
const ON_TIME: f64 = 1000.0;

/// How long before they are due they are scheduled.
const AHEAD_MS: u64 = 500;

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let before = plan.time + Duration::from_secs(2);
    let at = host.broker.now().plus((ample(plan.count) + before).as_millis() as u64);
    let poured = fill(&host, plan, "burst", plan.count, all_at(at)).await?;
    let name = format!("schedule {} for one millisecond", millions(plan.count));
    report(ScaleFigure::new(name, poured.rate(), "msg/s").on(&host));
    if host.broker.now().plus(before.as_millis() as u64) > at {
        return Err(failure("messages were due before all were scheduled"));
    }
    let fired = |host: &Host| host.sum(|m| &m.fired);
    let calm = beside(&host, plan, 0).await?;
    until(&host, at).await;
    let (began, first) = (Instant::now(), fired(&host));
    let busy = beside(&host, plan, 1).await?;
    let (come, took) = (fired(&host) - first, began.elapsed().as_secs_f64());
    let late = host.sum(|m| &m.overdue_ms);
    report(ScaleFigure::new("  came while it was measured", come as f64 / took, "msg/s").on(&host));
    if late == 0 {
        report(ScaleFigure::new("  all had come before the end", come as f64, "msg").on(&host));
    }
    let (without, with) = (quantile_ms(&calm.late, 0.99), quantile_ms(&busy.late, 0.99));
    let figure = ScaleFigure::new("others, until a consumer has them", with, "ms p99");
    let figure = figure.beside(without).times(&busy.late).on(&host);
    report(figure.must("<= 20 ms", with <= 20.0));
    let figure = ScaleFigure::new("plain publishes meanwhile", busy.rate, "msg/s");
    let figure = figure.beside(calm.rate).on(&host);
    report(figure.must(">= 0.7 of before", busy.rate >= 0.7 * calm.rate));
    wait_for("the burst", || {
        let left = host.sum(|m| &m.scheduled);
        (left == 0, left)
    })
    .await?;
    let all = began.elapsed().as_secs_f64();
    report(ScaleFigure::new("all have come", plan.count as f64 / all, "msg/s").on(&host));
    stop(host).await
}

struct Beside {
    /// Nanoseconds from when a message that is on time was due.
    late: hdrhistogram::Histogram<u64>,
    /// Plain publishes a second.
    rate: f64,
}

/// Schedules and consumes at a pace, and publishes at full speed, for as long as the plan
/// says.
async fn beside(host: &Arc<Host>, plan: &ScalePlan, number: u64) -> Result<Beside, Failure> {
    let topics = host.topics("on-time", number..number + 1, &until_acknowledged()).await?;
    host.groups("on-time", number..number + 1, |n| format!("on-time-{n}")).await?;
    let few = ScalePlan { consumers: 1, ..plan.clone() };
    let (drained, mut consumers) = consume(host, &few, &format!("on-time-{number}"));
    let load = Pour {
        batch: 1,
        producers: 1,
        depth: 64,
        pace: Some(ON_TIME),
        stamped: true,
        due: Some(Arc::new(|_, _| When::After(AHEAD_MS))),
        ..Pour::new(plan, topics, Until::Time(plan.time))
    };
    let paced = tokio::spawn({
        let host = host.clone();
        async move { pour(&host, load).await }
    });
    let plain = host.topics("plain", 0..1, &kept()).await?;
    let poured = pour(host, Pour::new(plan, plain, Until::Time(plan.time))).await?;
    let paced = paced.await.map_err(|error| failure(format!("a task has ended: {error}")))??;
    let waited = wait_for("the consumer", || {
        let acked = drained.acked.load(Ordering::Relaxed);
        (acked >= paced.messages, acked)
    })
    .await;
    let late = leave(&drained, &mut consumers).await?;
    waited?;
    Ok(Beside { late, rate: poured.rate() })
}
