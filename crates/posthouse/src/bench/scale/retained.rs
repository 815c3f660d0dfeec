//! Many messages kept in one topic: what they take, and how fast any of them is found.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hdrhistogram::Histogram;
use posthouse_core::UnixMs;

use super::figure::ScaleFigure;
use super::host::{Host, kept};
use super::pour::{Chance, Pour, Until, key, pour};
use super::{ScalePlan, failure, probe};
use crate::bench::lane::histogram;
use crate::broker::Caller;
use crate::broker::inspect::Browse;
use crate::cli::Failure;

/// Messages of one key, on average.
const OF_A_KEY: u64 = 100;

/// Pages that are looked at, at random positions.
const PAGES: u64 = 5_000;

/// Searches by key.
const SEARCHES: u64 = 200;

/// All that is kept stands for a day: an hour is one part in so many.
const HOURS: u64 = 24;

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let topics = host.topics("kept", 0..1, &kept()).await?;
    let started = host.broker.now();
    let keys = (plan.count / OF_A_KEY).max(1);
    let load = Pour { keys, ..Pour::new(plan, topics.clone(), Until::Count(plan.count)) };
    let poured = pour(&host, load).await?;
    let ended = host.broker.now();
    let name = format!("publish {} messages with keys", poured.messages);
    report(ScaleFigure::new(name, poured.rate(), "msg/s").times(&poured.times()).on(&host));
    let chunks = probe::disk_bytes(&host.data().join("shard-0000/chunks"));
    let each = chunks as f64 / poured.messages as f64;
    report(ScaleFigure::new("index on the disk", each, "B/msg").on(&host));
    let each = probe::disk_bytes(&host.data().join("shard-0000/log")) as f64;
    report(ScaleFigure::new("log on the disk", each / poured.messages as f64, "B/msg").on(&host));
    let rss = probe::rss_bytes().unwrap_or(0);
    let name = format!("memory with {} messages", poured.messages);
    let figure = ScaleFigure::new(name, rss as f64, "bytes").on(&host);
    report(figure.must("<= 1 GB", rss <= 1_000_000_000));

    for (name, seed) in [("browse anywhere, cold", 1), ("browse anywhere, warm", 1)] {
        let times = browse(&host, poured.messages, seed).await?;
        let p99 = times.value_at_quantile(0.99) as f64 / 1e6;
        let figure = ScaleFigure::new(name, p99, "ms p99").times(&times).on(&host);
        report(match name.ends_with("warm") {
            true => figure.must("p99 <= 5 ms", p99 <= 5.0),
            false => figure,
        });
    }
    let (times, found, passed) = search(&host, keys, started, ended).await?;
    let worst = times.max() as f64 / 1e6;
    let name = format!("by key in an hour of {passed} messages");
    let figure = ScaleFigure::new(name, worst, "ms worst").times(&times).on(&host);
    report(figure.must("<= 50 ms", worst <= 50.0));
    report(ScaleFigure::new("messages that such a search finds", found, "msg").on(&host));
    let rss = probe::rss_bytes().unwrap_or(0);
    let figure = ScaleFigure::new("memory after the searches", rss as f64, "bytes").on(&host);
    report(figure.must("<= 1 GB", rss <= 1_000_000_000));
    super::host::stop(host).await
}

/// Looks at pages of ten messages at random positions.
async fn browse(host: &Host, messages: u64, seed: u64) -> Result<Histogram<u64>, Failure> {
    let (mut times, mut chance) = (histogram(), Chance(seed));
    for _ in 0..PAGES {
        let from = chance.below(messages.saturating_sub(10));
        let browse = Browse { from: Some(from), limit: 10, ..Browse::default() };
        let began = Instant::now();
        let found = host.broker.browse(&Caller::Node, "kept-0", &browse).await?;
        times.saturating_record(began.elapsed().as_nanos() as u64);
        if found.messages.first().is_none_or(|first| first.found.position != from) {
            return Err(failure(format!("nothing is found at position {from}")));
        }
    }
    Ok(times)
}

/// Looks for keys in windows of time. Times, messages found on average, and messages of
/// a window.
async fn search(
    host: &Host,
    keys: u64,
    started: UnixMs,
    ended: UnixMs,
) -> Result<(Histogram<u64>, f64, u64), Failure> {
    let (mut times, mut chance) = (histogram(), Chance(7));
    let span = ended.since(started);
    let hour = (span / HOURS).max(1);
    let (mut found, mut passed) = (0, 0);
    for _ in 0..SEARCHES {
        let since = started.plus(chance.below(span.saturating_sub(hour)));
        let until = since.plus(hour);
        let text = key(chance.below(keys));
        let began = Instant::now();
        let mut from = None;
        loop {
            let browse = Browse {
                from,
                since: Some(since),
                until: Some(until),
                key: Some(text.clone()),
                limit: 1000,
                ..Browse::default()
            };
            let page = host.broker.browse(&Caller::Node, "kept-0", &browse).await?;
            found += page.messages.len() as u64;
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        times.saturating_record(began.elapsed().as_nanos() as u64);
        passed = hour;
    }
    let all = host.live_messages("kept-0").await?;
    Ok((times, found as f64 / SEARCHES as f64, all * passed / span.max(1)))
}
