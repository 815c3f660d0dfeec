//! Taking messages in that come later: how fast, and what they take.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::super::figure::ScaleFigure;
use super::super::host::{Host, kept, stop};
use super::super::pour::{Pour, Poured, Until, pour};
use super::super::{ScalePlan, probe};
use super::{fill, millions, within_a_week};
use crate::bench::figure::median;
use crate::cli::Failure;

/// Memory with everything else running.
const MEMORY_MB: f64 = 1500.0;

/// Room on the disk for each.
const DISK_BYTES: f64 = 250.0;

/// Plain publishes in turn with scheduled ones of the same size.
pub(super) async fn rates(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let (mut plain, mut later) = (Vec::new(), Vec::new());
    let topics = host.topics("plain", 0..1, &kept()).await?;
    let load = |due| Pour { due, ..Pour::new(plan, topics.clone(), Until::Time(plan.time)) };
    for _ in 0..plan.rounds {
        plain.push(pour(&host, load(None)).await?.rate());
        later.push(pour(&host, load(Some(within_a_week(&host)))).await?.rate());
    }
    let ratio = median(plain.iter().zip(&later).map(|(plain, later)| later / plain));
    let (plain, later) = (median(plain), median(later));
    let name = format!("publish, {} B, {} a batch", plan.size, plan.batch);
    report(ScaleFigure::new(name, plain, "msg/s").on(&host));
    let figure = ScaleFigure::new("schedule, the same", later, "msg/s").on(&host);
    report(figure.must(">= 300,000/s", later >= 300_000.0));
    let figure = ScaleFigure::new("  by publishes, of the same round", ratio, "-").on(&host);
    report(figure.must(">= 0.5", ratio >= 0.5));
    stop(host).await
}

/// As many pending messages as are asked for.
pub(super) async fn pending(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let poured = fill(&host, plan, "later", plan.count, within_a_week(&host)).await?;
    let name = format!("schedule {}", millions(plan.count));
    report(ScaleFigure::new(name, poured.rate(), "msg/s").times(&poured.times()).on(&host));
    taken(&host, plan, "full", &poured, report);
    stop(host).await?;
    let began = Instant::now();
    let host = Arc::new(Host::start(plan, dir).await?);
    let took = began.elapsed().as_secs_f64();
    report(ScaleFigure::new("start again after a clean end", took, "s").on(&host));
    taken(&host, plan, "started again", &poured, report);
    let hours = host.broker.schedule_hours(&crate::broker::Caller::Node, "later-0").await?;
    let figure = ScaleFigure::new("pending, by the hours", hours.pending as f64, "msg").on(&host);
    report(figure.must("all", hours.pending == plan.count));
    stop(host).await
}

/// What they take in memory and on the disk.
fn taken(
    host: &Host,
    plan: &ScalePlan,
    when: &str,
    poured: &Poured,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) {
    let rss = probe::rss_bytes().unwrap_or(0) as f64 / 1e6;
    let name = format!("memory with {} pending, {when}", millions(plan.count));
    let figure = ScaleFigure::new(name, rss, "MB").on(host);
    report(figure.must("<= 1500 MB", rss <= MEMORY_MB));
    let each = probe::disk_bytes(host.data()) as f64 / poured.messages.max(1) as f64;
    let figure = ScaleFigure::new(format!("disk for each, {when}"), each, "B").on(host);
    report(figure.must("<= 250 B", each <= DISK_BYTES));
}
