//! A log of some size, a kill at full load, and the time to the first reply.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_core::catalog::Retention;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::figure::ScaleFigure;
use super::host::{Host, kept};
use super::pour::{Pour, Spread, Until, pour};
use super::{ScalePlan, failure};
use crate::bench::http::Http;
use crate::cli::Failure;

/// What the child says when it is full, and goes on at full load.
pub(super) const READY: &str = "ready";

/// How long a node may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the child is at full load before it is killed.
const AT_FULL_LOAD: Duration = Duration::from_millis(1500);

/// Topics of the load.
const TOPICS: u64 = 16;

/// What the child measures, and then loads until it is killed.
pub(super) async fn child(
    plan: &ScalePlan,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, &plan.dir).await?);
    if plan.count > 0 {
        let topics = host.topics("idle", 0..plan.count, &kept()).await?;
        let all = Until::Count(plan.count);
        let load =
            Pour { spread: Spread::Turn, size: 100, batch: 1000, ..Pour::new(plan, topics, all) };
        pour(&host, load).await?;
    }
    if plan.active > 0 {
        host.groups("idle", 0..plan.active, |n| format!("idle-{}", n % plan.count.max(1))).await?;
    }
    let topics = host.topics("load", 0..TOPICS, &Retention::default()).await?;
    let messages = plan.bytes / plan.size.max(1) as u64;
    let poured = pour(&host, Pour::new(plan, topics.clone(), Until::Count(messages))).await?;
    let name = format!("publish {} of {} B", poured.messages, plan.size);
    report(ScaleFigure::new(name, poured.rate(), "msg/s").times(&poured.times()).on(&host));
    let rate = |(messages, seconds): (u64, f64)| messages as f64 / seconds.max(1e-9);
    let [calm, snapshot] = poured.rates;
    let share = snapshot.1 / (calm.1 + snapshot.1).max(1e-9);
    // What snapshots cost of the whole: the rate of all, by that without one.
    let all = (calm.0 + snapshot.0, calm.1 + snapshot.1);
    let figure = ScaleFigure::new("  rate, by that without a snapshot", rate(all), "msg/s");
    let figure = figure.beside(rate(calm)).on(&host);
    let holds = figure.ratio.is_none_or(|ratio| ratio >= 0.9);
    report(figure.must(">= 0.9", holds));
    report(ScaleFigure::new("  time with a snapshot", share * 100.0, "%").on(&host));
    let p99 = |times: &hdrhistogram::Histogram<u64>| times.value_at_quantile(0.99) as f64 / 1e6;
    let (without, with) = (p99(&poured.calm), p99(&poured.snapshot));
    let figure = ScaleFigure::new("  publish during a snapshot", with, "ms p99").beside(without);
    let figure = figure.times(&poured.snapshot).on(&host);
    report(figure.must("<= 5 ms above that without", with <= without + 5.0));
    let worst = poured.snapshot.max() as f64 / 1e6;
    let figure = ScaleFigure::new("  the worst during a snapshot", worst, "ms").beside(without);
    report(figure.on(&host).must("<= 5 ms above p99 without", worst <= without + 5.0));
    report(ScaleFigure::new(READY, 0.0, "-"));
    let day = Until::Time(Duration::from_secs(86_400));
    pour(&host, Pour::new(plan, topics, day)).await.map(drop)
}

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    killed_when_ready(plan, dir, ["scale", "restart"], report).await?;
    for round in 1..=plan.rounds {
        let Started { took, rss, node, .. } = first_reply(dir, plan, "load-0").await?;
        let disk = super::probe::disk_bytes(&dir.join("data"));
        let name = format!("first reply after a kill, {round}");
        let mut figure = ScaleFigure::new(name, took.as_secs_f64(), "s");
        (figure.disk_bytes, figure.rss_bytes) = (Some(disk), rss);
        report(figure.must("<= 2 s", took <= Duration::from_secs(2)));
        // As after a kill, over and over: each start finds what the last one left.
        kill(node).await?;
    }
    Ok(())
}

/// Runs the child of a work until it is full, and kills it at full load.
pub(super) async fn killed_when_ready(
    plan: &ScalePlan,
    dir: &Path,
    work: [&str; 2],
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        // Settings of the environment are for somebody else's node.
        if name.to_string_lossy().starts_with("POSTHOUSE_") {
            command.env_remove(name);
        }
    }
    let mut child = command
        .arg("bench")
        .args(work)
        .args(["--child", "--json", "--dir"])
        .arg(dir)
        .args(["--bytes", &plan.bytes.to_string(), "--size", &plan.size.to_string()])
        .args(["--count", &plan.count.to_string(), "--active", &plan.active.to_string()])
        .args(["--batch", &plan.batch.to_string(), "--memory", &plan.memory.to_string()])
        .args(["--producers", &plan.producers.to_string(), "--depth", &plan.depth.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().expect("its stdout is piped");
    let mut lines = BufReader::new(out).lines();
    loop {
        let line = lines.next_line().await?;
        let line = line.ok_or_else(|| failure("the node has ended before it was full"))?;
        let figure: ScaleFigure =
            serde_json::from_str(&line).map_err(|error| failure(format!("{line}: {error}")))?;
        if figure.name == READY {
            break;
        }
        report(figure);
    }
    tokio::time::sleep(AT_FULL_LOAD).await;
    kill(child).await
}

/// Ends a node as a power cut would end it.
pub(super) async fn kill(mut node: Child) -> Result<(), Failure> {
    node.kill().await?;
    node.wait().await?;
    Ok(())
}

/// A node that has answered.
pub(super) struct Started {
    /// From the start of the process to its first answer.
    pub took: Duration,
    /// When the process was started.
    pub began: Instant,
    /// Memory that it has in use then.
    pub rss: Option<u64>,
    /// What asks it.
    pub http: Http,
    /// The process.
    pub node: Child,
}

/// Starts a node on the data, and publishes a message to a topic.
pub(super) async fn first_reply(
    dir: &Path,
    plan: &ScalePlan,
    topic: &str,
) -> Result<Started, Failure> {
    let began = Instant::now();
    let mut node = Command::new(std::env::current_exe()?)
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--memory"])
        .arg(plan.memory.to_string())
        .arg("--data")
        .arg(dir.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = node.stdout.take().expect("its stdout is piped");
    let mut lines = BufReader::new(out).lines();
    let url = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, url)) = line.split_once(" listens on ") {
                return Ok(Some(url.to_owned()));
            }
        }
        Ok::<_, std::io::Error>(None)
    });
    let Ok(Ok(Some(url))) = url.await else {
        return Err(failure("the node does not start again"));
    };
    let message = serde_json::json!({ "messages": [{ "body": "first" }] });
    let message = message.to_string().into();
    let http = Http::new(&url);
    let path = format!("/v1/topics/{topic}/messages");
    let _: serde_json::Value = http.post(&path, message).await?;
    let took = began.elapsed();
    let rss = node.id().and_then(|id| super::probe::rss_of(&id.to_string()));
    Ok(Started { took, began, rss, http, node })
}
