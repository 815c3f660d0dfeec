//! One topic that is kept, among topics that are not: what the disk has to hold.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::figure::ScaleFigure;
use super::host::{Host, aged, kept};
use super::pour::{Pour, Until, pour};
use super::{ScalePlan, disk_alone, failure, probe};
use crate::cli::Failure;

/// Topics that are kept for a short while.
const SHORT: u64 = 19;

/// For how long, in milliseconds.
const SHORT_MS: u64 = 3_000;

/// The size of a segment.
const SEGMENT: u64 = 64 << 20;

/// What is looked at before nothing can be old enough to go does not count.
const WARM_UP: Duration = Duration::from_secs(2 * SHORT_MS / 1000);

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let disk_rate = disk_alone(dir, 1 << 20, Duration::from_secs(2)).await?.bytes_per_second;
    report(ScaleFigure::new("disk: write, fdatasync", disk_rate, "bytes/s"));
    let host = Arc::new(Host::start(plan, dir).await?);
    let mut topics = host.topics("kept", 0..1, &kept()).await?;
    topics.extend(host.topics("short", 0..SHORT, &aged(SHORT_MS)).await?);
    let load = Pour::new(plan, topics.clone(), Until::Time(plan.time));
    let pouring = {
        let host = host.clone();
        tokio::spawn(async move { pour(&host, load).await })
    };
    let (mut worst, mut files, began) = (Sample::default(), 0, Instant::now());
    while !pouring.is_finished() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let live = host.live_bytes(&topics).await?;
        let (count, disk) = probe::usage(host.data());
        files = files.max(count);
        let over = disk as f64 - 4.0 * SEGMENT as f64;
        let sample = Sample { live, disk, times: over / live.max(1) as f64 };
        if began.elapsed() > WARM_UP && sample.times > worst.times {
            worst = sample;
        }
    }
    let poured = pouring.await.map_err(|error| failure(format!("a task has ended: {error}")))??;
    let rate = poured.rate() * plan.size as f64;
    let name = format!("publish bodies of {} for {} s", plan.size, plan.time.as_secs());
    let figure = ScaleFigure::new(name, rate, "bytes/s").beside(disk_rate);
    report(figure.times(&poured.times()).on(&host));
    let slowest = poured.seconds.iter().copied().min().unwrap_or(0) * plan.size as u64;
    let figure = ScaleFigure::new("  in the slowest second", slowest as f64, "bytes/s");
    let figure = figure.beside(disk_rate).on(&host);
    report(figure.must(">= 0.4 of the disk", slowest as f64 >= 0.4 * disk_rate));
    let mut figure = ScaleFigure::new("disk beyond 4 segments, by live", worst.times, "times");
    figure.beside = Some(worst.live as f64);
    figure.disk_bytes = Some(worst.disk);
    report(figure.must("<= 2", worst.times <= 2.0));
    let written: u64 = host.sum(|m| &m.frame_bytes);
    let published: u64 = host.sum(|m| &m.published_bytes);
    let carried: u64 = host.sum(|m| &m.carried_bytes);
    let amplification = (published + carried) as f64 / published.max(1) as f64;
    let figure = ScaleFigure::new("write amplification of bodies", amplification, "times");
    report(figure.on(&host).must("<= 2", amplification <= 2.0));
    let of_log = written as f64 / published.max(1) as f64;
    report(ScaleFigure::new("  frames by bodies", of_log, "times").on(&host));
    report(ScaleFigure::new("most files at once", files as f64, "files").on(&host));
    super::host::stop(host).await
}

#[derive(Clone, Copy, Default)]
struct Sample {
    live: u64,
    disk: u64,
    times: f64,
}
