//! Groups.

use posthouse_client::proto;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::scalar::time_or;
use super::{Duration, Time};

/// The configuration of a group. What is absent stays as it is, or is as the default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// The topics it gets, and what of them. A list replaces the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscriptions: Option<Vec<Subscription>>,
    /// Where it begins on a topic: `earliest` (the default), `latest` or a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartName>,
    /// How long a consumer has a message before it comes again; 30 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Duration>,
    /// How often a message is given out at most; 16 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long a message that was given back waits, attempt by attempt; the last one
    /// holds for all that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Vec<Duration>>,
    /// What follows the last attempt: the group's dead letters (the default), or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterName>,
    /// Whether messages of one key come one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderName>,
    /// The most messages in flight; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// How far acknowledged messages may run ahead of the oldest open one, per partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Whether it gets nothing for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// The group goes when nobody has asked for it for so long; `0s` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_after: Option<Duration>,
}

/// A topic that a group gets.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// A name, or a pattern like `orders.*`.
    pub topic: String,
    /// Which messages: by their tags, `paid, (vip and not test), /^eu-/`; or by their
    /// headers, `sql: region = 'eu' AND price > 10`; all if absent.
    #[serde(default)]
    pub filter: String,
}

/// Where a group begins, or goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum StartName {
    /// With the oldest message.
    Earliest,
    /// Behind the newest.
    Latest,
    /// With the first message of this time or later.
    Time(Time),
}

/// What follows the last attempt.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterName {
    /// The dead-letter topic of the group.
    Topic,
    /// Nothing.
    Drop,
}

/// In which order a group gets messages.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderName {
    /// None that can be relied on.
    None,
    /// One message of a key at a time, in the order of their publishing.
    Key,
}

impl PartialSchema for StartName {
    fn schema() -> RefOr<Schema> {
        time_or("earliest, latest or a time: RFC 3339 or Unix milliseconds", "earliest")
    }
}

impl ToSchema for StartName {}

impl Serialize for StartName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            StartName::Earliest => serializer.serialize_str("earliest"),
            StartName::Latest => serializer.serialize_str("latest"),
            StartName::Time(time) => time.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for StartName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl serde::de::Visitor<'_> for Any {
            type Value = StartName;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"earliest\", \"latest\" or a time")
            }

            fn visit_u64<E: serde::de::Error>(self, ms: u64) -> Result<StartName, E> {
                Ok(StartName::Time(Time(ms)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StartName, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl std::str::FromStr for StartName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(StartName::Earliest),
            "latest" => Ok(StartName::Latest),
            time => crate::units::time_ms(time)
                .map(|ms| StartName::Time(Time(ms)))
                .map_err(|_| format!("{text:?}: \"earliest\", \"latest\" or a time is expected")),
        }
    }
}

/// A group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its configuration.
    #[serde(flatten)]
    pub config: GroupConfig,
    /// When it was made.
    pub created_at: Time,
    /// Messages that it is not done with.
    pub lag: u64,
    /// Messages that consumers have.
    pub in_flight: u64,
    /// Messages that wait for their next attempt.
    pub waiting: u64,
    /// Messages that retention took before the group was done with them.
    pub dropped: u64,
    /// Its dead letters.
    pub dead_letters: u64,
    /// Its partitions.
    pub partitions: Vec<GroupPartition>,
    /// Its consumers.
    pub consumers: Vec<Consumer>,
}

/// How far a group is on a partition.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct GroupPartition {
    /// The topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// All messages before this position are done.
    pub floor: u64,
    /// The next position that has not been looked at.
    pub next: u64,
    /// The position of the next message of the partition.
    pub end: u64,
    /// Messages that it is not done with.
    pub lag: u64,
    /// Messages that consumers have.
    pub in_flight: u64,
    /// Messages that wait for their next attempt.
    pub waiting: u64,
    /// Messages that retention took before the group was done with them.
    pub dropped: u64,
    /// When the oldest message came in that is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_at: Option<Time>,
    /// Whether its window is full: nothing more is given out before old messages are
    /// done.
    pub window_full: bool,
}

/// A consumer of a group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Messages that it has.
    pub held: u64,
}

/// A page of groups.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Groups {
    /// The groups.
    pub groups: Vec<Group>,
    /// Whether there are more: ask for those `after` the last.
    pub more: bool,
}

/// Where a group is to go on: `to` a start or a time, or at a `position` of one topic.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Seek {
    /// `earliest`, `latest` (the end) or a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<StartName>,
    /// Only on this topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The partition of `position`; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

/// Where a group goes on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct SoughtList {
    /// Partition by partition.
    pub partitions: Vec<Sought>,
}

/// Where a group goes on in a partition.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Sought {
    /// The topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// The next position that the group gets.
    pub position: u64,
}

impl From<GroupConfig> for proto::GroupConfig {
    fn from(config: GroupConfig) -> Self {
        use proto::group_config::{Backoff, Subscriptions};
        use proto::start::Start as Wire;
        let subscription = |subscription: Subscription| proto::Subscription {
            topic: subscription.topic,
            filter: subscription.filter,
        };
        let start = |start| proto::Start {
            start: Some(match start {
                StartName::Earliest => Wire::Earliest(true),
                StartName::Latest => Wire::Latest(true),
                StartName::Time(time) => Wire::TimeMs(time.0),
            }),
        };
        proto::GroupConfig {
            subscriptions: config.subscriptions.map(|list| Subscriptions {
                subscriptions: list.into_iter().map(subscription).collect(),
            }),
            start: config.start.map(start),
            lease_ms: config.lease.map(|lease| lease.0),
            max_attempts: config.max_attempts,
            backoff: config
                .backoff
                .map(|steps| Backoff { steps_ms: steps.iter().map(|step| step.0).collect() }),
            dead_letter: match config.dead_letter {
                None => proto::DeadLetter::Unspecified.into(),
                Some(DeadLetterName::Topic) => proto::DeadLetter::Topic.into(),
                Some(DeadLetterName::Drop) => proto::DeadLetter::Drop.into(),
            },
            order: match config.order {
                None => proto::Order::Unspecified.into(),
                Some(OrderName::None) => proto::Order::None.into(),
                Some(OrderName::Key) => proto::Order::Key.into(),
            },
            max_in_flight: config.max_in_flight,
            window: config.window,
            paused: config.paused,
            expire_after_ms: config.expire_after.map(|after| after.0),
        }
    }
}

impl From<proto::GroupConfig> for GroupConfig {
    fn from(config: proto::GroupConfig) -> Self {
        use proto::start::Start as Wire;
        let dead_letter = match config.dead_letter() {
            proto::DeadLetter::Unspecified => None,
            proto::DeadLetter::Topic => Some(DeadLetterName::Topic),
            proto::DeadLetter::Drop => Some(DeadLetterName::Drop),
        };
        let order = match config.order() {
            proto::Order::Unspecified => None,
            proto::Order::None => Some(OrderName::None),
            proto::Order::Key => Some(OrderName::Key),
        };
        let subscription = |subscription: proto::Subscription| Subscription {
            topic: subscription.topic,
            filter: subscription.filter,
        };
        GroupConfig {
            subscriptions: config
                .subscriptions
                .map(|list| list.subscriptions.into_iter().map(subscription).collect()),
            start: config.start.and_then(|start| start.start).map(|start| match start {
                Wire::Earliest(_) => StartName::Earliest,
                Wire::Latest(_) => StartName::Latest,
                Wire::TimeMs(time) => StartName::Time(Time(time)),
            }),
            lease: config.lease_ms.map(Duration),
            max_attempts: config.max_attempts,
            backoff: config
                .backoff
                .map(|backoff| backoff.steps_ms.into_iter().map(Duration).collect()),
            dead_letter,
            order,
            max_in_flight: config.max_in_flight,
            window: config.window,
            paused: config.paused,
            expire_after: config.expire_after_ms.map(Duration),
        }
    }
}

impl From<proto::Group> for Group {
    fn from(group: proto::Group) -> Self {
        let consumer =
            |consumer: proto::Consumer| Consumer { name: consumer.name, held: consumer.held };
        Group {
            name: group.name,
            config: group.config.unwrap_or_default().into(),
            created_at: Time(group.created_at_ms),
            lag: group.lag,
            in_flight: group.in_flight,
            waiting: group.waiting,
            dropped: group.dropped,
            dead_letters: group.dead_letters,
            partitions: group.partitions.into_iter().map(Into::into).collect(),
            consumers: group.consumers.into_iter().map(consumer).collect(),
        }
    }
}

impl From<proto::GroupPartition> for GroupPartition {
    fn from(partition: proto::GroupPartition) -> Self {
        GroupPartition {
            topic: partition.topic,
            partition: partition.partition,
            floor: partition.floor,
            next: partition.next,
            end: partition.end,
            lag: partition.lag,
            in_flight: partition.in_flight,
            waiting: partition.waiting,
            dropped: partition.dropped,
            oldest_at: partition.oldest_at_ms.map(Time),
            window_full: partition.window_full,
        }
    }
}

impl From<proto::ListGroupsResponse> for Groups {
    fn from(list: proto::ListGroupsResponse) -> Self {
        Groups { groups: list.groups.into_iter().map(Into::into).collect(), more: list.more }
    }
}

impl Seek {
    /// The same for the native interface.
    pub fn into_proto(self, group: String) -> proto::SeekRequest {
        use proto::seek_request::To;
        let to = match (self.to, self.position) {
            (Some(StartName::Earliest), None) => Some(To::Earliest(true)),
            (Some(StartName::Latest), None) => Some(To::Latest(true)),
            (Some(StartName::Time(time)), None) => Some(To::TimeMs(time.0)),
            (None, Some(position)) => {
                let partition = self.partition.unwrap_or(0);
                Some(To::Position(proto::seek_request::AtPosition { partition, position }))
            }
            // Neither or both: refused as such.
            _ => None,
        };
        proto::SeekRequest { group, topic: self.topic, to }
    }
}

impl From<proto::SeekResponse> for SoughtList {
    fn from(response: proto::SeekResponse) -> Self {
        let sought = |sought: proto::seek_response::Sought| Sought {
            topic: sought.topic,
            partition: sought.partition,
            position: sought.position,
        };
        SoughtList { partitions: response.sought.into_iter().map(sought).collect() }
    }
}
