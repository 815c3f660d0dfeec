//! A kill with many pending messages, the time to the first reply, and to the first
//! message that comes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_core::record::When;
use serde_json::json;

use super::super::figure::ScaleFigure;
use super::super::host::{Host, kept};
use super::super::pour::{Pour, Until, pour};
use super::super::restart::{READY, Started, first_reply, kill, killed_when_ready};
use super::super::{ScalePlan, failure, probe};
use super::{fill, millions, within_a_week};
use crate::cli::Failure;

/// From when on messages come, counted from when all are scheduled: the node has been
/// killed before.
const SOON_MS: u64 = 3_000;

/// One comes every so many milliseconds,
const APART_MS: u64 = 10;

/// for so long.
const FOR_MS: u64 = 900_000;

/// What the child does until it is killed.
pub(in super::super) async fn child(
    plan: &ScalePlan,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, &plan.dir).await?);
    let topics = host.topics("load", 0..1, &kept()).await?;
    host.topics("soon", 0..1, &kept()).await?;
    host.groups("soon", 0..1, |n| format!("soon-{n}")).await?;
    let poured = fill(&host, plan, "later", plan.count, within_a_week(&host)).await?;
    let name = format!("schedule {}", millions(plan.count));
    report(ScaleFigure::new(name, poured.rate(), "msg/s").on(&host));
    let from = host.broker.now().plus(SOON_MS);
    let due = move |n: u64, _: &mut _| When::At(from.plus(n * APART_MS));
    fill(&host, plan, "soon", FOR_MS / APART_MS, Arc::new(due)).await?;
    report(ScaleFigure::new(READY, 0.0, "-"));
    let day = Until::Time(Duration::from_secs(86_400));
    pour(&host, Pour::new(plan, topics, day)).await.map(drop)
}

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    killed_when_ready(plan, dir, ["schedule", "restart"], report).await?;
    let killed = Instant::now();
    let disk = probe::disk_bytes(&dir.join("data"));
    // So that something has been due while the node was away.
    tokio::time::sleep(Duration::from_millis(SOON_MS).saturating_sub(killed.elapsed())).await;
    let Started { took, began, rss, http, node } = first_reply(dir, plan, "load-0").await?;
    let mut figure = ScaleFigure::new("first reply after a kill", took.as_secs_f64(), "s");
    (figure.disk_bytes, figure.rss_bytes) = (Some(disk), rss);
    report(figure.must("<= 2 s", took <= Duration::from_secs(2)));
    let ask = json!({ "max": 1, "wait": "60s", "auto_ack": true }).to_string();
    let received: serde_json::Value = http.post("/v1/groups/soon-0/receive", ask.into()).await?;
    let took = began.elapsed();
    if received["messages"].as_array().is_none_or(Vec::is_empty) {
        return Err(failure("nothing has come for a minute"));
    }
    let mut figure = ScaleFigure::new("first that comes, at a consumer", took.as_secs_f64(), "s");
    figure.rss_bytes = node.id().and_then(|id| probe::rss_of(&id.to_string()));
    report(figure.must("<= 3 s", took <= Duration::from_secs(3)));
    kill(node).await
}
