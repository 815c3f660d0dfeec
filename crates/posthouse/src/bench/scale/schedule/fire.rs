//! How late messages come, at several rates: until a consumer has them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use posthouse_core::record::When;

use super::super::drain::{consume, leave, wait_for};
use super::super::figure::ScaleFigure;
use super::super::host::{Host, stop, until_acknowledged};
use super::super::pour::{Pour, Until, pour};
use super::super::{ScalePlan, disk_alone, failure};
use super::{ample, until};
use crate::bench::lane::quantile_ms;
use crate::cli::Failure;

/// A sync that one message shares with nobody: a frame's first block.
const SMALL: usize = 4096;

/// Messages a second, and what must be shown, in milliseconds; the last is above the
/// disk's own sync.
const RATES: [(u64, f64, bool); 3] =
    [(300_000, 20.0, false), (50_000, 5.0, false), (1_000, 2.0, true)];

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    for (number, (rate, most, is_above)) in (0..).zip(RATES) {
        let rate = if plan.count > 0 { rate.min(plan.count) } else { rate };
        let alone = disk_alone(dir, SMALL, Duration::from_secs(1)).await?;
        let sync = quantile_ms(&alone.each, 0.99);
        let fired = fire(&host, plan, number, rate).await?;
        let kept = fired.took <= plan.time + Duration::from_secs(1);
        let reached = fired.messages as f64 / fired.took.as_secs_f64();
        let name = format!("{rate} a second are due");
        let figure = ScaleFigure::new(name, reached, "msg/s").times(&fired.ages).on(&host);
        report(figure.must("kept up with", kept));
        let late = quantile_ms(&fired.ages, 0.99);
        let figure = ScaleFigure::new("  until a consumer has them", late, "ms p99");
        let figure = figure.beside(sync).on(&host);
        report(match is_above {
            true => figure.must("<= 2 ms above a sync", late <= sync + most),
            false => figure.must(&format!("<= {most} ms"), late <= most),
        });
    }
    stop(host).await
}

struct Fired {
    messages: u64,
    /// From the first that was due to the last that was acknowledged.
    took: Duration,
    ages: Histogram<u64>,
}

/// Schedules messages that are due at a rate, and consumes them.
async fn fire(
    host: &Arc<Host>,
    plan: &ScalePlan,
    number: u64,
    rate: u64,
) -> Result<Fired, Failure> {
    let count = (plan.time.as_secs_f64() * rate as f64) as u64;
    let topics = host.topics("fire", number..number + 1, &until_acknowledged()).await?;
    host.groups("fire", number..number + 1, |n| format!("fire-{n}")).await?;
    let first = host.broker.now().plus(ample(count).as_millis() as u64);
    let due = move |n: u64, _: &mut _| When::At(first.plus(n * 1000 / rate));
    let load = Pour {
        due: Some(Arc::new(due)),
        stamped: true,
        ..Pour::new(plan, topics, Until::Count(count))
    };
    pour(host, load).await?;
    if host.broker.now() > first {
        return Err(failure("messages were due before all were scheduled"));
    }
    let (drained, mut consumers) = consume(host, plan, &format!("fire-{number}"));
    until(host, first).await;
    let began = Instant::now();
    let waited = wait_for("the consumers", || {
        let acked = drained.acked.load(Ordering::Relaxed);
        (acked >= count, acked)
    })
    .await;
    let took = began.elapsed();
    let ages = leave(&drained, &mut consumers).await?;
    waited?;
    Ok(Fired { messages: count, took, ages })
}
