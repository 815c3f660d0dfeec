//! The node under load, in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use posthouse_core::catalog::{Retention, Subscription, Topic};
use posthouse_log::files::RealFiles;

use super::ScalePlan;
use crate::broker::manage::{GroupPatch, TopicPatch};
use crate::broker::{Broker, Caller};
use crate::cli::Failure;
use crate::config::Resolved;
use crate::problem::Problem;
use crate::shard::metrics;

/// Topics and groups that are made at the same time.
const TOGETHER: usize = 512;

/// Messages that may be scheduled: more than any work has.
const MAX_SCHEDULED: u64 = 10_000_000_000;

/// How long a node may take to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node and where its data is.
pub(super) struct Host {
    pub broker: Arc<Broker>,
    data: PathBuf,
}

impl Host {
    /// Starts a node with its data in `dir`, which may hold one already.
    pub(super) async fn start(plan: &ScalePlan, dir: &Path) -> Result<Host, Failure> {
        Host::start_with(plan, dir, None).await
    }

    /// The same with another `disk_reserve`.
    pub(super) async fn start_with(
        plan: &ScalePlan,
        dir: &Path,
        reserve: Option<u64>,
    ) -> Result<Host, Failure> {
        let data = dir.join("data");
        let flag = |name: &str| match name {
            "data" => Some(data.display().to_string()),
            "memory" => Some(plan.memory.to_string()),
            "max_scheduled" => Some(MAX_SCHEDULED.to_string()),
            "disk_reserve" => reserve.map(|bytes| bytes.to_string()),
            _ => None,
        };
        let settings = Resolved::new(flag, |_| None, None);
        let settings = settings.and_then(|resolved| resolved.settings());
        let settings = settings.map_err(|error| Failure::usage(error.to_string()))?;
        let started = Broker::start(RealFiles::shared(), settings.broker).await?;
        Ok(Host { broker: started.0, data })
    }

    /// Its data directory.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Makes topics `from..upto` of the name `prefix`.
    pub(super) async fn topics(
        &self,
        prefix: &str,
        range: std::ops::Range<u64>,
        retention: &Retention,
    ) -> Result<Vec<Arc<Topic>>, Failure> {
        let make = |number: u64| {
            let patch = TopicPatch { retention: Some(retention.clone()), ..TopicPatch::default() };
            let name = format!("{prefix}-{number}");
            async move { Ok(self.broker.put_topic(&Caller::Node, &name, patch).await?.0) }
        };
        let made = stream::iter(range).map(make).buffered(TOGETHER);
        made.try_collect::<Vec<_>>().await.map_err(|problem: Problem| problem.into())
    }

    /// Makes groups `range` of the name `prefix`; `topic` names what each gets.
    pub(super) async fn groups(
        &self,
        prefix: &str,
        range: std::ops::Range<u64>,
        topic: impl Fn(u64) -> String,
    ) -> Result<(), Failure> {
        let make = |number: u64| {
            let of = Subscription { topic: topic(number), filter: "*".into() };
            let patch = GroupPatch { subscriptions: Some(vec![of]), ..GroupPatch::default() };
            let name = format!("{prefix}-{number}");
            async move { self.broker.put_group(&Caller::Node, &name, patch).await.map(drop) }
        };
        let made = stream::iter(range).map(make).buffer_unordered(TOGETHER);
        made.try_for_each(async |()| Ok(())).await.map_err(|problem: Problem| problem.into())
    }

    /// A figure of all shards together.
    pub(super) fn sum(
        &self,
        of: impl Fn(&metrics::ShardMetrics) -> &std::sync::atomic::AtomicU64,
    ) -> u64 {
        self.broker.shards().iter().map(|shard| metrics::get(of(&shard.metrics))).sum()
    }

    /// Whether a snapshot is being taken.
    pub(super) fn is_snapshotting(&self) -> bool {
        self.sum(|m| &m.snapshotting) > 0
    }

    /// Messages in a topic.
    pub(super) async fn live_messages(&self, topic: &str) -> Result<u64, Failure> {
        let topic = self.broker.topic_for(&Caller::Node, topic)?;
        let partitions = self.broker.topic_stats(&topic).await?;
        Ok(partitions.iter().map(|p| p.info.next - p.info.head).sum())
    }

    /// Bytes of sealed bodies that topics hold.
    pub(super) async fn live_bytes(&self, topics: &[Arc<Topic>]) -> Result<u64, Failure> {
        let mut bytes = 0;
        for topic in topics {
            let partitions = self.broker.topic_stats(topic).await?;
            bytes += partitions.iter().map(|partition| partition.info.bytes).sum::<u64>();
        }
        Ok(bytes)
    }
}

/// What is kept for ever, as far as a benchmark goes.
pub(super) fn kept() -> Retention {
    aged(30 * 86_400_000)
}

/// What is kept for so many milliseconds.
pub(super) fn aged(ms: u64) -> Retention {
    Retention::Limits { max_age_ms: Some(ms), max_bytes: None, max_count: None }
}

/// What is kept until it is acknowledged.
pub(super) fn until_acknowledged() -> Retention {
    Retention::Acknowledged { min_age_ms: 0 }
}

/// Ends a node that tasks have shared, and that nobody uses any more.
pub(super) async fn stop(host: Arc<Host>) -> Result<(), Failure> {
    Ok(host.broker.stop(PATIENCE).await?)
}
