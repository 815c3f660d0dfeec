//! What users configure: topics, groups, users. The durable form of these is JSON
//! in which a default is left out, so a default topic costs next to nothing; a
//! field that is not known is refused, never ignored.

use serde::{Deserialize, Serialize};

use crate::filter::{Filter, FilterError};
use crate::ident::Secret;
use crate::message::limits;
use crate::name::{NameError, TopicPattern};
use crate::words::UnixMs;

/// Bounds on configurations.
pub mod bounds {
    /// The most partitions of a topic.
    pub const PARTITIONS: u32 = 1024;
    /// The most subscriptions of a group.
    pub const SUBSCRIPTIONS: usize = 256;
    /// The most bytes of all filters of a group together.
    pub const FILTERS_BYTES: usize = 256 << 10;
    /// The longest lease, back-off and receive delay: 24 hours.
    pub const LEASE_MS: u64 = 86_400_000;
    /// The shortest lease.
    pub const LEASE_MIN_MS: u64 = 100;
    /// The longest step of a back-off: 30 days.
    pub const BACKOFF_MS: u64 = 30 * 86_400_000;
    /// The most steps of a back-off.
    pub const BACKOFF_STEPS: usize = 64;
    /// The most attempts.
    pub const ATTEMPTS: u16 = 10_000;
    /// The longest retention: a hundred years.
    pub const RETENTION_MS: u64 = 100 * 366 * 86_400_000;
    /// The shortest and the longest time to the first check of a transaction: 24 hours.
    pub const CHECK_AFTER_MS: (u64, u64) = (100, 86_400_000);
    /// The most checks of a transaction.
    pub const CHECKS: u16 = 100;
    /// The longest window for publish ids: 7 days.
    pub const DEDUPE_MS: u64 = 7 * 86_400_000;
    /// The widest window of a group on a partition, in messages.
    pub const WINDOW: u32 = 16 << 20;
    /// The highest rate of a quota: what is beyond it is no limit.
    pub const RATE: u64 = 1_000_000_000_000;
    /// The most grants of a user.
    pub const GRANTS: usize = 100;
    /// The most tokens of a user.
    pub const TOKENS: usize = 20;
}

/// The most bytes of a value that a refusal says back.
const SAID_BACK_BYTES: usize = 500;

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: {limit}")]
pub struct ConfigError {
    /// The field, as the interface names it.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub limit: String,
}

impl ConfigError {
    fn new(field: &str, value: impl ToString, limit: impl Into<String>) -> Self {
        // What is far too long is not said back whole.
        let mut value = value.to_string();
        if value.len() > SAID_BACK_BYTES {
            value.truncate(value.floor_char_boundary(SAID_BACK_BYTES));
            value.push_str("...");
        }
        ConfigError { field: field.into(), value, limit: limit.into() }
    }
}

/// When messages go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Retention {
    /// When every group of the topic has acknowledged them and they are old enough.
    Acknowledged {
        /// The least age in milliseconds.
        min_age_ms: u64,
    },
    /// When a limit is passed, acknowledged or not.
    Limits {
        /// The most age in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_age_ms: Option<u64>,
        /// The most bytes of bodies in a partition.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_bytes: Option<u64>,
        /// The most messages in a partition.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_count: Option<u64>,
    },
}

impl Default for Retention {
    fn default() -> Self {
        Retention::Acknowledged { min_age_ms: 86_400_000 }
    }
}

/// What becomes of a message whose time to live has passed before a group was done with
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expired {
    /// The group passes it over.
    #[default]
    Drop,
    /// It goes to the dead-letter topic of the group.
    DeadLetter,
}

/// Which sort of messages a topic takes. Each is of one sort: of a transaction, else delayed,
/// else with a key, else none of these. What it has beside that does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accepts {
    /// All.
    #[default]
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

/// How fast something may be: limits by the second, over all who do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Messages per second; `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_s: Option<u64>,
    /// Bytes of them per second, with keys, tags and headers; `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
}

impl Quota {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Quota::default()
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, limit) in [
            ("publish_quota.messages_per_s", self.messages_per_s),
            ("publish_quota.bytes_per_s", self.bytes_per_s),
        ] {
            range(field, limit.unwrap_or(1), 1, bounds::RATE)?;
        }
        Ok(())
    }
}

/// A topic's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicConfig {
    /// How many partitions; can grow.
    #[serde(skip_serializing_if = "is_default_partitions")]
    pub partitions: u32,
    /// When messages go.
    #[serde(skip_serializing_if = "is_default")]
    pub retention: Retention,
    /// The largest body in bytes.
    #[serde(skip_serializing_if = "is_default_body")]
    pub max_message_bytes: u32,
    /// How long publish ids are remembered, in milliseconds; 0: not at all.
    #[serde(skip_serializing_if = "is_default_dedupe")]
    pub dedupe_window_ms: u64,
    /// Whether messages can be scheduled.
    #[serde(skip_serializing_if = "is_true")]
    pub delays: bool,
    /// What becomes of a message whose time to live has passed.
    #[serde(skip_serializing_if = "is_default")]
    pub expired: Expired,
    /// How long after a transaction came in its producer is asked about it for the first
    /// time, in milliseconds.
    #[serde(skip_serializing_if = "is_default_check_after")]
    pub check_after_ms: u64,
    /// How often it is asked at most, before an operator has to decide.
    #[serde(skip_serializing_if = "is_default_checks")]
    pub checks: u16,
    /// How fast it may be published to.
    #[serde(skip_serializing_if = "is_default")]
    pub publish_quota: Quota,
    /// Which sort of messages it takes.
    #[serde(skip_serializing_if = "is_default")]
    pub accepts: Accepts,
}

const DEDUPE_WINDOW_MS: u64 = 600_000;
const CHECK_AFTER_MS: u64 = 30_000;
const CHECKS: u16 = 15;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_default_partitions(value: &u32) -> bool {
    *value == 1
}

fn is_default_body(value: &u32) -> bool {
    *value == limits::DEFAULT_BODY_BYTES as u32
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_default_dedupe(value: &u64) -> bool {
    *value == DEDUPE_WINDOW_MS
}

fn is_default_check_after(value: &u64) -> bool {
    *value == CHECK_AFTER_MS
}

fn is_default_checks(value: &u16) -> bool {
    *value == CHECKS
}

impl Default for TopicConfig {
    fn default() -> Self {
        TopicConfig {
            partitions: 1,
            retention: Retention::default(),
            max_message_bytes: limits::DEFAULT_BODY_BYTES as u32,
            dedupe_window_ms: DEDUPE_WINDOW_MS,
            delays: true,
            expired: Expired::default(),
            check_after_ms: CHECK_AFTER_MS,
            checks: CHECKS,
            publish_quota: Quota::default(),
            accepts: Accepts::default(),
        }
    }
}

impl TopicConfig {
    /// Checks every value against its bound.
    ///
    /// # Errors
    /// The first that is out of it.
    pub fn check(&self) -> Result<(), ConfigError> {
        range("partitions", self.partitions.into(), 1, bounds::PARTITIONS.into())?;
        let body = u64::from(self.max_message_bytes);
        range("max_message_bytes", body, 1, limits::BODY_BYTES as u64)?;
        range("dedupe_window", self.dedupe_window_ms, 0, bounds::DEDUPE_MS)?;
        check_after(self.check_after_ms)?;
        checks(self.checks)?;
        self.publish_quota.check()?;
        if self.accepts == Accepts::Delayed && !self.delays {
            let limit = "a topic that takes only messages that come later has delays";
            return Err(ConfigError::new("delays", false, limit));
        }
        match &self.retention {
            Retention::Acknowledged { min_age_ms } => {
                range("retention.min_age", *min_age_ms, 0, bounds::RETENTION_MS)
            }
            Retention::Limits { max_age_ms: None, max_bytes: None, max_count: None } => {
                Err(ConfigError::new(
                    "retention",
                    "without a limit",
                    "give max_age, max_bytes or max_count, or take mode acknowledged",
                ))
            }
            Retention::Limits { max_age_ms, max_bytes, max_count } => {
                let least = |field, value: &Option<u64>, least, most| match value {
                    Some(value) => range(field, *value, least, most),
                    None => Ok(()),
                };
                least("retention.max_age", max_age_ms, 1, bounds::RETENTION_MS)?;
                least("retention.max_bytes", max_bytes, 1, u64::MAX)?;
                least("retention.max_count", max_count, 1, u64::MAX)
            }
        }
    }
}

/// Where a new group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With the oldest message kept.
    #[default]
    Earliest,
    /// With what comes next.
    Latest,
    /// With the first message at this time or later.
    Time(UnixMs),
}

/// One topic, or all that match a pattern, and what of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// A name or a pattern: see [`TopicPattern`].
    pub topic: String,
    /// See [`Filter`].
    #[serde(default = "everything", skip_serializing_if = "is_everything")]
    pub filter: String,
}

fn everything() -> String {
    "*".into()
}

fn is_everything(filter: &str) -> bool {
    filter == "*"
}

/// What follows the last attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetter {
    /// The message goes to the dead-letter topic of the group.
    #[default]
    Topic,
    /// The message is dropped.
    Drop,
}

/// In what order messages are granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they come; a retry does not hold up others.
    #[default]
    None,
    /// One message of a key at a time; its successors wait, through retries too.
    Key,
}

/// A group's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// What it gets.
    pub subscriptions: Vec<Subscription>,
    /// Where it begins.
    #[serde(skip_serializing_if = "is_default")]
    pub start: Start,
    /// How long a consumer has for a message, in milliseconds.
    #[serde(skip_serializing_if = "is_default_lease")]
    pub lease_ms: u64,
    /// How often a message is granted at most.
    #[serde(skip_serializing_if = "is_default_attempts")]
    pub max_attempts: u16,
    /// How long to wait after each failed attempt, in milliseconds; the last step
    /// counts for all that follow.
    #[serde(skip_serializing_if = "is_default_backoff")]
    pub backoff_ms: Vec<u64>,
    /// What follows the last attempt.
    #[serde(skip_serializing_if = "is_default")]
    pub dead_letter: DeadLetter,
    /// In what order messages are granted.
    #[serde(skip_serializing_if = "is_default")]
    pub order: Order,
    /// The most messages in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// How far the group may get ahead of its oldest unfinished message, in messages
    /// of a partition.
    #[serde(skip_serializing_if = "is_default_window")]
    pub window: u32,
    /// Whether nothing is granted.
    #[serde(skip_serializing_if = "is_default")]
    pub paused: bool,
    /// The group goes when no consumer has asked for so long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_after_ms: Option<u64>,
}

const LEASE_MS: u64 = 30_000;
const ATTEMPTS: u16 = 16;
const WINDOW: u32 = 1 << 20;

/// From a second to an hour, in fifteen steps that grow.
pub const DEFAULT_BACKOFF_MS: [u64; 15] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 180_000, 300_000, 600_000,
    900_000, 1_200_000, 1_800_000, 3_600_000,
];

fn is_default_lease(value: &u64) -> bool {
    *value == LEASE_MS
}

fn is_default_attempts(value: &u16) -> bool {
    *value == ATTEMPTS
}

fn is_default_backoff(value: &[u64]) -> bool {
    value == DEFAULT_BACKOFF_MS
}

fn is_default_window(value: &u32) -> bool {
    *value == WINDOW
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            subscriptions: Vec::new(),
            start: Start::default(),
            lease_ms: LEASE_MS,
            max_attempts: ATTEMPTS,
            backoff_ms: DEFAULT_BACKOFF_MS.to_vec(),
            dead_letter: DeadLetter::default(),
            order: Order::default(),
            max_in_flight: None,
            window: WINDOW,
            paused: false,
            expire_after_ms: None,
        }
    }
}

impl GroupConfig {
    /// Checks every value against its bound, and the subscriptions for sense.
    ///
    /// # Errors
    /// The first that is no good.
    pub fn check(&self, secret: &Secret) -> Result<(), ConfigError> {
        range("lease", self.lease_ms, bounds::LEASE_MIN_MS, bounds::LEASE_MS)?;
        range("max_attempts", self.max_attempts.into(), 1, bounds::ATTEMPTS.into())?;
        let steps = self.backoff_ms.len() as u64;
        range("backoff", steps, 1, bounds::BACKOFF_STEPS as u64)?;
        for step in &self.backoff_ms {
            range("backoff", *step, 0, bounds::BACKOFF_MS)?;
        }
        if let Some(most) = self.max_in_flight {
            range("max_in_flight", most.into(), 1, bounds::WINDOW.into())?;
        }
        range("window", self.window.into(), 1, bounds::WINDOW.into())?;
        if let Some(ms) = self.expire_after_ms {
            range("expire_after", ms, 1_000, bounds::RETENTION_MS)?;
        }
        let count = self.subscriptions.len() as u64;
        range("subscriptions", count, 0, bounds::SUBSCRIPTIONS as u64)?;
        let filters: usize = self.subscriptions.iter().map(|s| s.filter.len()).sum();
        range("subscriptions.filter", filters as u64, 0, bounds::FILTERS_BYTES as u64)?;
        self.compile(secret).map(|_| ())
    }

    /// Prepares the subscriptions.
    ///
    /// # Errors
    /// The first that is no good.
    pub fn compile(&self, secret: &Secret) -> Result<Vec<(TopicPattern, Filter)>, ConfigError> {
        self.subscriptions
            .iter()
            .map(|subscription| {
                let topic = TopicPattern::parse(&subscription.topic)
                    .map_err(|e| bad_name("subscriptions.topic", &subscription.topic, &e))?;
                let filter = Filter::parse(&subscription.filter, secret)
                    .map_err(|e| bad_filter(&subscription.filter, &e))?;
                Ok((topic, filter))
            })
            .collect()
    }

    /// How long to wait after attempt `attempt` (from 1) has failed.
    pub fn backoff_after(&self, attempt: u16) -> u64 {
        let step = usize::from(attempt.max(1) - 1).min(self.backoff_ms.len().saturating_sub(1));
        self.backoff_ms.get(step).copied().unwrap_or(0)
    }
}

fn bad_name(field: &str, value: &str, error: &NameError) -> ConfigError {
    ConfigError::new(field, format!("{value:?}"), error.to_string())
}

fn bad_filter(value: &str, error: &FilterError) -> ConfigError {
    ConfigError::new("subscriptions.filter", format!("{value:?}"), error.to_string())
}

/// Whether a transaction's first check can be so late.
///
/// # Errors
/// If it is out of bounds.
pub fn check_after(ms: u64) -> Result<(), ConfigError> {
    let (least, most) = bounds::CHECK_AFTER_MS;
    range("check_after", ms, least, most)
}

/// Whether a transaction can have so many checks.
///
/// # Errors
/// If they are too many.
pub fn checks(count: u16) -> Result<(), ConfigError> {
    range("checks", count.into(), 0, bounds::CHECKS.into())
}

fn range(field: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(field, value, format!("it must be from {least} to {most}")))
}

/// What a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// To publish to topics.
    Publish,
    /// To receive as groups and to acknowledge.
    Consume,
    /// To create, change and delete, and to see everything.
    Manage,
}

/// What a user may do, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessGrant {
    /// What.
    pub actions: Vec<Action>,
    /// On which topics: names or patterns.
    #[serde(default)]
    pub topics: Vec<String>,
    /// As which groups: names or patterns.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A token: only its hash is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What it is called by.
    pub name: String,
    /// SHA-256 of the token, in hexadecimal.
    pub sha256: String,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A user's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserConfig {
    /// What the user may do.
    pub grants: Vec<AccessGrant>,
    /// By what the user is known.
    pub tokens: Vec<Token>,
    /// How fast the user may publish.
    #[serde(skip_serializing_if = "is_default")]
    pub publish_quota: Quota,
}

impl UserConfig {
    /// Checks every value against its bound.
    ///
    /// # Errors
    /// The first that is no good.
    pub fn check(&self) -> Result<(), ConfigError> {
        range("grants", self.grants.len() as u64, 0, bounds::GRANTS as u64)?;
        range("tokens", self.tokens.len() as u64, 0, bounds::TOKENS as u64)?;
        self.publish_quota.check()?;
        for grant in &self.grants {
            for (field, patterns) in
                [("grants.topics", &grant.topics), ("grants.groups", &grant.groups)]
            {
                range(field, patterns.len() as u64, 0, bounds::GRANTS as u64)?;
                for pattern in patterns {
                    TopicPattern::parse(pattern).map_err(|e| bad_name(field, pattern, &e))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_cost_nothing_and_come_back() {
        let topic = serde_json::to_string(&TopicConfig::default()).unwrap();
        assert_eq!(topic, "{}");
        assert_eq!(serde_json::from_str::<TopicConfig>(&topic).unwrap(), TopicConfig::default());
        let group = serde_json::to_string(&GroupConfig::default()).unwrap();
        assert_eq!(group, r#"{"subscriptions":[]}"#);
        assert_eq!(serde_json::from_str::<GroupConfig>(&group).unwrap(), GroupConfig::default());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(serde_json::from_str::<TopicConfig>(r#"{"partitons":3}"#).is_err());
        assert!(serde_json::from_str::<GroupConfig>(r#"{"ordre":"key"}"#).is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let error = |config: TopicConfig| config.check().unwrap_err().to_string();
        assert_eq!(
            error(TopicConfig { partitions: 0, ..Default::default() }),
            "partitions is 0: it must be from 1 to 1024"
        );
        let retention = Retention::Limits { max_age_ms: None, max_bytes: None, max_count: None };
        assert!(
            error(TopicConfig { retention, ..Default::default() })
                .starts_with("retention is without")
        );
        let secret = Secret::new([0; 32]);
        let group = |config: GroupConfig| config.check(&secret).unwrap_err().field;
        assert_eq!(group(GroupConfig { lease_ms: 5, ..Default::default() }), "lease");
        assert_eq!(group(GroupConfig { backoff_ms: vec![], ..Default::default() }), "backoff");
        let subscriptions = vec![Subscription { topic: "a b".into(), filter: "*".into() }];
        assert_eq!(
            group(GroupConfig { subscriptions, ..Default::default() }),
            "subscriptions.topic"
        );
        let subscriptions = vec![Subscription { topic: "a".into(), filter: "(".into() }];
        assert_eq!(
            group(GroupConfig { subscriptions, ..Default::default() }),
            "subscriptions.filter"
        );
    }

    #[test]
    fn a_quota_is_at_least_one_by_the_second() {
        let quota = Quota { messages_per_s: Some(0), bytes_per_s: None };
        let error = TopicConfig { publish_quota: quota, ..Default::default() }.check().unwrap_err();
        assert_eq!(error.field, "publish_quota.messages_per_s");
        let error = UserConfig { publish_quota: quota, ..Default::default() }.check().unwrap_err();
        assert_eq!(error.field, "publish_quota.messages_per_s");
    }

    #[test]
    fn the_last_step_of_a_backoff_counts_for_all_that_follow() {
        let config = GroupConfig { backoff_ms: vec![10, 20], ..Default::default() };
        let waits: Vec<u64> = (1..5).map(|attempt| config.backoff_after(attempt)).collect();
        assert_eq!(waits, [10, 20, 20, 20]);
        assert!(DEFAULT_BACKOFF_MS.is_sorted());
    }
}
