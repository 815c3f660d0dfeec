//! Recurring messages.

use std::collections::BTreeMap;

use posthouse_client::proto::{self, recurring_config};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::message::{body_in, body_out};
use super::{Duration, Time, is_zero};
use crate::problem;

/// What comes again and again, and when.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RecurringConfig {
    /// The topic that it comes to.
    pub topic: String,
    /// The body as a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body as bytes in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// The key of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Its headers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// How long it is of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// At the local times that this expression names: second minute hour day month weekday,
    /// or without the second. Either this or `every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// With `cron`: an IANA time zone; UTC by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// So far apart, from `start` on, or from when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Time>,
    /// Not after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Time>,
    /// How much later than its time it comes at most: always the same for the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
    /// What becomes of times that passed while the node was down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<MissedName>,
    /// Whether it does not come for now. As it is, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// What becomes of times that passed while the node was down.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedName {
    /// The message comes once for all of them: the default.
    Once,
    /// It does not come for them.
    Skip,
}

/// A recurring message.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Recurring {
    /// Its name.
    pub name: String,
    /// What comes, and when.
    #[serde(flatten)]
    pub config: RecurringConfig,
    /// When it was made.
    pub created_at: Time,
    /// The next ten times at which it comes; none while it is paused.
    pub next: Vec<Time>,
    /// The last time that is decided: it has come, or was missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Time>,
}

/// A page of recurring messages.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RecurringList {
    /// In the order of their names.
    pub recurring: Vec<Recurring>,
    /// Whether there are more, behind the last name.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: bool,
}

impl RecurringConfig {
    /// The same for the native interface.
    ///
    /// # Errors
    /// If it does not say what comes, or when, or says so twice.
    pub fn into_proto(self) -> Result<proto::RecurringConfig, problem::Problem> {
        use recurring_config::{Cron, Recurs};
        let recurs = match (self.cron, self.every, self.zone) {
            (Some(expression), None, zone) => {
                Recurs::Cron(Cron { expression, zone: zone.unwrap_or_default() })
            }
            (None, Some(every), None) => Recurs::EveryMs(every.0),
            (None, Some(_), Some(zone)) => {
                let limit = "a zone belongs to a cron expression, not to an interval";
                return Err(problem::Problem::invalid("zone", zone, limit));
            }
            (cron, _, _) => {
                let value = if cron.is_some() { "both" } else { "not given" };
                let limit = "give either cron or every";
                return Err(problem::Problem::invalid("cron", value, limit));
            }
        };
        Ok(proto::RecurringConfig {
            topic: self.topic,
            body: body_in(self.body, self.body_base64)?,
            key: self.key,
            tags: self.tags,
            headers: self.headers.into_iter().collect(),
            ttl_ms: self.ttl.map(|ttl| ttl.0),
            recurs: Some(recurs),
            start_ms: self.start.map(|at| at.0),
            end_ms: self.end.map(|at| at.0),
            jitter_ms: self.jitter.map_or(0, |jitter| jitter.0),
            missed: match self.missed {
                None => proto::Missed::Unspecified as i32,
                Some(MissedName::Once) => proto::Missed::Once as i32,
                Some(MissedName::Skip) => proto::Missed::Skip as i32,
            },
            paused: self.paused,
        })
    }
}

impl From<proto::RecurringConfig> for RecurringConfig {
    fn from(config: proto::RecurringConfig) -> Self {
        use recurring_config::Recurs;
        let missed = match config.missed() {
            proto::Missed::Unspecified | proto::Missed::Once => MissedName::Once,
            proto::Missed::Skip => MissedName::Skip,
        };
        let (body, body_base64) = body_out(&config.body);
        let (cron, zone, every) = match config.recurs {
            Some(Recurs::Cron(cron)) => (Some(cron.expression), Some(cron.zone), None),
            Some(Recurs::EveryMs(ms)) => (None, None, Some(Duration(ms))),
            None => (None, None, None),
        };
        RecurringConfig {
            topic: config.topic,
            body,
            body_base64,
            key: config.key,
            tags: config.tags,
            headers: config.headers.into_iter().collect(),
            ttl: config.ttl_ms.map(Duration),
            cron,
            zone: zone.map(|zone| if zone.is_empty() { "UTC".into() } else { zone }),
            every,
            start: config.start_ms.map(Time),
            end: config.end_ms.map(Time),
            jitter: (config.jitter_ms > 0).then_some(Duration(config.jitter_ms)),
            missed: Some(missed),
            paused: Some(config.paused.unwrap_or_default()),
        }
    }
}

impl From<proto::Recurring> for Recurring {
    fn from(recurring: proto::Recurring) -> Self {
        Recurring {
            name: recurring.name,
            config: recurring.config.unwrap_or_default().into(),
            created_at: Time(recurring.created_at_ms),
            next: recurring.next_ms.into_iter().map(Time).collect(),
            last: recurring.last_ms.map(Time),
        }
    }
}

impl From<proto::ListRecurringResponse> for RecurringList {
    fn from(list: proto::ListRecurringResponse) -> Self {
        RecurringList {
            recurring: list.recurring.into_iter().map(Into::into).collect(),
            more: list.more,
        }
    }
}
