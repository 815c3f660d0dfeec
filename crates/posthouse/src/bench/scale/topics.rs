//! Many topics: what they cost when they lie idle, and what publishes all over them do.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::figure::ScaleFigure;
use super::host::{Host, kept};
use super::pour::{Pour, Spread, Until, pour};
use super::{ScalePlan, probe};
use crate::bench::figure::median;
use crate::cli::Failure;

/// How long the idle node is looked at.
const IDLE: Duration = Duration::from_secs(5);

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    report(ScaleFigure::new("an empty node", 0.0, "topics").on(&host));
    let one = host.topics("one", 0..1, &kept()).await?;
    let began = Instant::now();
    let many = host.topics("many", 0..plan.count, &kept()).await?;
    let rate = plan.count as f64 / began.elapsed().as_secs_f64();
    report(ScaleFigure::new(format!("make {} topics", plan.count), rate, "topics/s").on(&host));

    // Every topic gets a message, so that none of them costs less than it does in use.
    let all =
        Pour { spread: Spread::Turn, ..Pour::new(plan, many.clone(), Until::Count(plan.count)) };
    let poured = pour(&host, all).await?;
    let name = "first message of each topic";
    report(ScaleFigure::new(name, poured.rate(), "msg/s").times(&poured.times()).on(&host));

    let (mut single, mut random) = (Vec::new(), Vec::new());
    let mut times = crate::bench::lane::histogram();
    for _ in 0..plan.rounds {
        let to_one = Pour::new(plan, one.clone(), Until::Time(plan.time));
        single.push(pour(&host, to_one).await?.rate());
        let to_all = Pour {
            spread: Spread::Random,
            ..Pour::new(plan, many.clone(), Until::Time(plan.time))
        };
        let poured = pour(&host, to_all).await?;
        random.push(poured.rate());
        // Both have the same bounds.
        let _ = times.add(poured.times());
    }
    let (single, random) = (median(single), median(random));
    report(ScaleFigure::new("publish to one topic", single, "msg/s").on(&host));
    let name = format!("publish at random to {} topics", plan.count);
    let figure = ScaleFigure::new(name, random, "msg/s").beside(single).times(&times).on(&host);
    report(figure.must(">= 0.8 of one topic", random >= 0.8 * single));
    let rss = probe::rss_bytes().unwrap_or(0);
    let figure =
        ScaleFigure::new(format!("memory with {} topics", plan.count), rss as f64, "bytes");
    report(figure.on(&host).must("<= 2 GB", rss <= 2_000_000_000));

    if let Some(before) = probe::cpu_seconds() {
        tokio::time::sleep(IDLE).await;
        let used = probe::cpu_seconds().unwrap_or(before) - before;
        let share = used / IDLE.as_secs_f64() * 100.0;
        let figure = ScaleFigure::new("processor of the idle node", share, "%");
        report(figure.on(&host).must("<= 1 %", share <= 1.0));
    }
    super::host::stop(host).await
}
