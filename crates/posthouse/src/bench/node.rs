//! The nodes under load: one in this process, others in processes of their own.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use posthouse_core::catalog::{Retention, Subscription};
use posthouse_log::files::RealFiles;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::http::Http;
use super::lane::GROUP;
use super::{Door, Plan};
use crate::broker::manage::{GroupPatch, TopicPatch};
use crate::broker::{Broker, Caller};
use crate::cli::Failure;
use crate::config::Resolved;
use crate::shard::metrics;

/// How long a node may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the topics of a run keep, all together: enough that segments are freed and
/// used again, as on a node that has run for long.
const KEPT_BYTES: u64 = 256 << 20;

/// What the group subscribes to: all topics.
const PATTERN: &str = "bench-*";

/// The name of topic `number`.
pub(super) fn topic(number: usize) -> String {
    format!("bench-{number}")
}

pub(super) fn not_acknowledged(what: &str) -> Failure {
    Failure { text: format!("an acknowledgement did not count: {what}"), code: 1 }
}

/// A node under load.
pub(super) enum Node {
    Here(Arc<Broker>),
    Process { child: Box<Child>, url: String },
}

/// Frames that were handed to the log, and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frames {
    pub count: f64,
    pub bytes: f64,
}

impl Frames {
    /// The bytes of a frame, on average, since `before`.
    pub(super) fn bytes_each(self, before: Frames) -> f64 {
        (self.bytes - before.bytes) / (self.count - before.count).max(1.0)
    }
}

impl Node {
    /// Starts a node for a door, with its data in `dir`.
    pub(super) async fn start(door: Door, plan: &Plan, dir: &Path) -> Result<Node, Failure> {
        let data = dir.join(door.name());
        match door {
            Door::InProcess => {
                let flag = |name: &str| match name {
                    "data" => Some(data.display().to_string()),
                    "durability" => Some(plan.durability.clone()),
                    _ => None,
                };
                let settings = Resolved::new(flag, |_| None, None);
                let settings = settings.and_then(|resolved| resolved.settings());
                let settings = settings.map_err(|error| Failure::usage(error.to_string()))?;
                let started = Broker::start(RealFiles::shared(), settings.broker).await?;
                Ok(Node::Here(started.0))
            }
            Door::Grpc | Door::Http => start_process(plan, &data).await,
        }
    }

    /// Makes the topics and the group of a run. With `is_kept`, messages stay until they
    /// are acknowledged; else only the newest.
    pub(super) async fn prepare(&self, plan: &Plan, is_kept: bool) -> Result<(), Failure> {
        let share = (KEPT_BYTES / plan.topics as u64).max(1 << 20);
        match self {
            Node::Here(broker) => {
                let retention = match is_kept {
                    true => Retention::Acknowledged { min_age_ms: 0 },
                    false => Retention::Limits {
                        max_age_ms: None,
                        max_bytes: Some(share),
                        max_count: None,
                    },
                };
                for number in 0..plan.topics {
                    let patch =
                        TopicPatch { retention: Some(retention.clone()), ..TopicPatch::default() };
                    broker.put_topic(&Caller::Node, &topic(number), patch).await?;
                }
                if is_kept {
                    let all = Subscription { topic: PATTERN.into(), filter: "*".into() };
                    let patch =
                        GroupPatch { subscriptions: Some(vec![all]), ..GroupPatch::default() };
                    broker.put_group(&Caller::Node, GROUP, patch).await?;
                }
            }
            Node::Process { url, .. } => {
                let http = Http::new(url);
                let retention = match is_kept {
                    true => json!({ "min_age": "0s" }),
                    false => json!({ "max_bytes": share }),
                };
                let config = json!({ "retention": retention });
                for number in 0..plan.topics {
                    http.put(&format!("/v1/topics/{}", topic(number)), &config).await?;
                }
                if is_kept {
                    let all = json!({ "subscriptions": [{ "topic": PATTERN, "filter": "*" }] });
                    http.put(&format!("/v1/groups/{GROUP}"), &all).await?;
                }
            }
        }
        Ok(())
    }

    /// What it has handed to its logs so far.
    pub(super) async fn frames(&self) -> Result<Frames, Failure> {
        match self {
            Node::Here(broker) => {
                Ok(broker.shards().iter().fold(Frames::default(), |sum, shard| Frames {
                    count: sum.count + metrics::get(&shard.metrics.frames) as f64,
                    bytes: sum.bytes + metrics::get(&shard.metrics.frame_bytes) as f64,
                }))
            }
            Node::Process { url, .. } => {
                let page = Http::new(url).get("/metrics").await?;
                let page = String::from_utf8_lossy(&page);
                let sum = |name: &str| -> f64 {
                    let of = page.lines().filter(|line| {
                        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
                    });
                    of.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
                };
                Ok(Frames {
                    count: sum("posthouse_shard_frames_total"),
                    bytes: sum("posthouse_shard_frame_bytes_total"),
                })
            }
        }
    }

    /// Ends it. What it has on the disk does not matter any more.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        match self {
            Node::Here(broker) => Ok(broker.stop(PATIENCE).await?),
            Node::Process { mut child, .. } => Ok(child.kill().await?),
        }
    }
}

async fn start_process(plan: &Plan, data: &Path) -> Result<Node, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    // Settings of the environment are for somebody else's node.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("POSTHOUSE_") {
            command.env_remove(name);
        }
    }
    let mut child = command
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn"])
        .args(["--durability", &plan.durability])
        .arg("--data")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().expect("its stdout is piped");
    let mut lines = BufReader::new(out).lines();
    let url = async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, url)) = line.split_once(" listens on ") {
                return Ok(Some(url.to_owned()));
            }
        }
        Ok::<_, std::io::Error>(None)
    };
    let url = tokio::time::timeout(PATIENCE, url).await;
    match url {
        Ok(Ok(Some(url))) => {
            // It must be able to print what follows.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            Ok(Node::Process { child: Box::new(child), url })
        }
        _ => Err(Failure { text: "the node under load does not start".into(), code: 1 }),
    }
}
