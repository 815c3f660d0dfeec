//! A mixed load for long: nothing may grow that should not.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::drain::{Drain, Drained, drain, leave};
use super::figure::ScaleFigure;
use super::host::{Host, aged, until_acknowledged};
use super::pour::{Pour, Spread, Until, pour};
use super::{ScalePlan, failure, probe};
use crate::bench::figure::median;
use crate::cli::Failure;

/// Topics whose messages go when they are acknowledged, each with a group.
const WORK: u64 = 16;

/// Topics whose messages go with age.
const FEED: u64 = 64;

/// How long those stay, in milliseconds.
const FEED_MS: u64 = 10_000;

/// Into so many stretches the time is cut.
const STRETCHES: u32 = 12;

/// Messages a second, of the work and of the feeds together.
const PACE: f64 = 60_000.0;

struct Stretch {
    rss: f64,
    disk: f64,
    files: f64,
    published: f64,
    acked: f64,
}

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let work = host.topics("work", 0..WORK, &until_acknowledged()).await?;
    host.groups("work", 0..WORK, |n| format!("work-{n}")).await?;
    let feed = host.topics("feed", 0..FEED, &aged(FEED_MS)).await?;
    let drained = Arc::new(Drained::default());
    let mut consumers = tokio::task::JoinSet::new();
    for number in 0..WORK {
        let how = Drain {
            group: format!("work-{number}"),
            consumer: "c".to_owned(),
            batch: plan.batch,
            acks: 4,
            nack_one_in: 100,
        };
        consumers.spawn(drain(host.broker.clone(), how, drained.clone()));
    }
    let mut pouring = tokio::task::JoinSet::new();
    for (topics, spread) in [(work, Spread::Publishes), (feed, Spread::Turn)] {
        let load = Pour {
            pace: Some(PACE / 2.0),
            spread,
            keys: 1000,
            producers: 2,
            ..Pour::new(plan, topics, Until::Time(plan.time))
        };
        let host = host.clone();
        pouring.spawn(async move { pour(&host, load).await });
    }
    let mut stretches = Vec::new();
    for number in 1..=STRETCHES {
        let (began, published, acked) =
            (Instant::now(), host.sum(|m| &m.published), drained.acked.load(Ordering::Relaxed));
        tokio::time::sleep(plan.time / STRETCHES).await;
        let took = began.elapsed().as_secs_f64();
        let (files, disk) = probe::usage(host.data());
        let stretch = Stretch {
            rss: probe::rss_bytes().unwrap_or(0) as f64,
            disk: disk as f64,
            files: files as f64,
            published: (host.sum(|m| &m.published) - published) as f64 / took,
            acked: (drained.acked.load(Ordering::Relaxed) - acked) as f64 / took,
        };
        let name = format!("stretch {number}: published");
        let figure = ScaleFigure::new(name, stretch.published, "msg/s").beside(stretch.acked);
        report(figure.on(&host));
        stretches.push(stretch);
    }
    while let Some(ended) = pouring.join_next().await {
        ended.map_err(|error| failure(format!("a producer has ended: {error}")))??;
    }
    // The first third fills what has a bound.
    let third = stretches.len() / 3;
    let (second, last) = (&stretches[third..2 * third], &stretches[2 * third..]);
    let of = |some: &[Stretch], value: fn(&Stretch) -> f64| median(some.iter().map(value));
    type Row = (&'static str, fn(&Stretch) -> f64, &'static str, fn(f64) -> bool, &'static str);
    let rows: [Row; 5] = [
        ("memory, last third by second", |s| s.rss, "bytes", |r| r <= 1.05, "<= 1.05"),
        ("disk, last third by second", |s| s.disk, "bytes", |r| r <= 1.1, "<= 1.1"),
        ("files, last third by second", |s| s.files, "files", |r| r <= 1.1, "<= 1.1"),
        ("published, last third by second", |s| s.published, "msg/s", |r| r >= 0.95, ">= 0.95"),
        ("acknowledged, last third by second", |s| s.acked, "msg/s", |r| r >= 0.95, ">= 0.95"),
    ];
    for (name, value, unit, holds, must) in rows {
        let (now, before) = (of(last, value), of(second, value));
        let figure = ScaleFigure::new(name, now, unit).beside(before).on(&host);
        report(figure.must(must, holds(now / before.max(1.0))));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    leave(&drained, &mut consumers).await?;
    super::host::stop(host).await
}
