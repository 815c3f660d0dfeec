//! Topics.

use posthouse_client::proto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Time};

/// The configuration of a topic. What is absent stays as it is, or is as the default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// How many partitions; can be raised, never lowered. 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// When messages go. By default when every group has acknowledged them and 24 h have
    /// passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// The largest body in bytes: 4 MiB by default, 8 MiB at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<u32>,
    /// For how long a `dedupe_id` is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_window: Option<Duration>,
    /// Whether messages can be scheduled; they can by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delays: Option<bool>,
    /// Whether a message whose time to live has passed goes to the dead letters of a group
    /// that was not done with it. It is passed over by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bury_expired: Option<bool>,
    /// How long after a transaction was prepared its producer is asked about it for the first
    /// time: 30 s by default. The intervals between the next ones grow from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_after: Option<Duration>,
    /// How often the producer is asked at most, before an operator has to decide: 15 by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<u32>,
    /// How fast it may be published to; `{}` takes limits away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_quota: Option<PublishQuota>,
    /// Which sort of messages it takes; any by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<Accepts>,
}

/// Which sort of messages a topic takes. A message is of a transaction, else delayed, else with
/// a key, else normal; what it has beside that does not matter.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Accepts {
    /// All.
    Any,
    /// Those with no key, at once.
    Normal,
    /// Those with a key.
    Keyed,
    /// Those that come later.
    Delayed,
    /// Those of transactions.
    Prepared,
}

impl From<Accepts> for proto::Accepts {
    fn from(accepts: Accepts) -> Self {
        match accepts {
            Accepts::Any => proto::Accepts::Any,
            Accepts::Normal => proto::Accepts::Normal,
            Accepts::Keyed => proto::Accepts::Keyed,
            Accepts::Delayed => proto::Accepts::Delayed,
            Accepts::Prepared => proto::Accepts::Prepared,
        }
    }
}

impl Accepts {
    fn from_proto(accepts: i32) -> Option<Accepts> {
        match proto::Accepts::try_from(accepts).ok()? {
            proto::Accepts::Unspecified => None,
            proto::Accepts::Any => Some(Accepts::Any),
            proto::Accepts::Normal => Some(Accepts::Normal),
            proto::Accepts::Keyed => Some(Accepts::Keyed),
            proto::Accepts::Delayed => Some(Accepts::Delayed),
            proto::Accepts::Prepared => Some(Accepts::Prepared),
        }
    }
}

/// Limits by the second, over all publishers. What is absent is not limited.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishQuota {
    /// Messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_s: Option<u64>,
    /// Bytes of them, with keys, tags and headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
}

impl From<PublishQuota> for proto::PublishQuota {
    fn from(quota: PublishQuota) -> Self {
        let PublishQuota { messages_per_s, bytes_per_s } = quota;
        proto::PublishQuota { messages_per_s, bytes_per_s }
    }
}

impl From<proto::PublishQuota> for PublishQuota {
    fn from(quota: proto::PublishQuota) -> Self {
        let proto::PublishQuota { messages_per_s, bytes_per_s } = quota;
        PublishQuota { messages_per_s, bytes_per_s }
    }
}

/// When messages go: with `min_age`, when every group has acknowledged them and they are
/// that old; with any of the others, when a limit is passed, acknowledged or not.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// The least age of an acknowledged message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_age: Option<Duration>,
    /// The greatest age of any message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// The most bytes of each partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// The most messages of each partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_count: Option<u64>,
}

/// A topic.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its configuration.
    #[serde(flatten)]
    pub config: TopicConfig,
    /// When it was made.
    pub created_at: Time,
    /// Messages in it.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that are to come.
    #[serde(default)]
    pub scheduled: u64,
    /// Its partitions, as they are.
    pub partition_list: Vec<Partition>,
}

/// A partition of a topic.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Partition {
    /// Counted from 0.
    pub partition: u32,
    /// The shard that has it.
    pub shard: u32,
    /// The position of the first message.
    pub head: u64,
    /// The position of the next message.
    pub next: u64,
    /// Bytes of its messages.
    pub bytes: u64,
    /// When the first message came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at: Option<Time>,
    /// Messages that are to come.
    #[serde(default)]
    pub scheduled: u64,
}

/// A page of topics.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Topics {
    /// The topics.
    pub topics: Vec<Topic>,
    /// Whether there are more: ask for those `after` the last.
    pub more: bool,
}

/// Which messages of a topic to let go.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurgeTopic {
    /// Only those of this partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Only those before this position of the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
}

impl TopicConfig {
    /// The same for the native interface.
    ///
    /// # Errors
    /// If the retention says both.
    pub fn into_proto(self) -> Result<proto::TopicConfig, crate::problem::Problem> {
        Ok(proto::TopicConfig {
            partitions: self.partitions,
            retention: self.retention.map(Retention::into_proto).transpose()?,
            max_message_bytes: self.max_message_bytes,
            dedupe_window_ms: self.dedupe_window.map(|window| window.0),
            delays: self.delays,
            bury_expired: self.bury_expired,
            check_after_ms: self.check_after.map(|after| after.0),
            checks: self.checks,
            publish_quota: self.publish_quota.map(Into::into),
            accepts: self.accepts.map(|accepts| proto::Accepts::from(accepts).into()),
        })
    }
}

impl Retention {
    fn into_proto(self) -> Result<proto::Retention, crate::problem::Problem> {
        use proto::retention::{Acknowledged, Limits, Retention as Wire};
        let limits = Limits {
            max_age_ms: self.max_age.map(|age| age.0),
            max_bytes: self.max_bytes,
            max_count: self.max_count,
        };
        let has_limits = limits != Limits::default();
        let retention = match (self.min_age, has_limits) {
            (Some(age), false) => Wire::Acknowledged(Acknowledged { min_age_ms: age.0 }),
            (None, true) => Wire::Limits(limits),
            (min_age, _) => {
                let value = if min_age.is_some() { "both" } else { "empty" };
                return Err(crate::problem::Problem::invalid(
                    "retention",
                    value,
                    "give min_age (kept until acknowledged), or any of max_age, max_bytes and \
                     max_count (dropped at the limit, acknowledged or not)",
                ));
            }
        };
        Ok(proto::Retention { retention: Some(retention) })
    }
}

impl From<proto::Retention> for Retention {
    fn from(retention: proto::Retention) -> Self {
        use proto::retention::Retention as Wire;
        match retention.retention {
            None => Retention::default(),
            Some(Wire::Acknowledged(acknowledged)) => Retention {
                min_age: Some(Duration(acknowledged.min_age_ms)),
                ..Retention::default()
            },
            Some(Wire::Limits(limits)) => Retention {
                min_age: None,
                max_age: limits.max_age_ms.map(Duration),
                max_bytes: limits.max_bytes,
                max_count: limits.max_count,
            },
        }
    }
}

impl From<proto::Topic> for Topic {
    fn from(topic: proto::Topic) -> Self {
        let config = topic.config.unwrap_or_default();
        Topic {
            name: topic.name,
            config: TopicConfig {
                partitions: config.partitions,
                retention: config.retention.map(Into::into),
                max_message_bytes: config.max_message_bytes,
                dedupe_window: config.dedupe_window_ms.map(Duration),
                delays: config.delays,
                bury_expired: config.bury_expired,
                check_after: config.check_after_ms.map(Duration),
                checks: config.checks,
                publish_quota: config.publish_quota.map(Into::into),
                accepts: config.accepts.and_then(Accepts::from_proto),
            },
            created_at: Time(topic.created_at_ms),
            messages: topic.messages,
            bytes: topic.bytes,
            scheduled: topic.scheduled,
            partition_list: topic.partitions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<proto::Partition> for Partition {
    fn from(partition: proto::Partition) -> Self {
        Partition {
            partition: partition.partition,
            shard: partition.shard,
            head: partition.head,
            next: partition.next,
            bytes: partition.bytes,
            oldest_at: partition.oldest_at_ms.map(Time),
            scheduled: partition.scheduled,
        }
    }
}

impl From<proto::ListTopicsResponse> for Topics {
    fn from(list: proto::ListTopicsResponse) -> Self {
        Topics { topics: list.topics.into_iter().map(Into::into).collect(), more: list.more }
    }
}
