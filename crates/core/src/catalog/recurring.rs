//! Recurring messages: what comes again and again, and when. When exactly, with time zones
//! and all, is worked out outside: the catalog keeps what was asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use posthouse_frame::FrameBuf;
use serde::{Deserialize, Serialize};

use super::machine::{Outcome, Refusal, Reply, not_found};
use super::{Catalog, Change};
use crate::words::UnixMs;

/// When a recurring message comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Recurs {
    /// At the local times that an expression names.
    Cron {
        /// The expression.
        cron: String,
        /// The time zone, by its IANA name; empty for UTC.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        zone: String,
    },
    /// Again and again, so far apart.
    Every {
        /// In milliseconds.
        every_ms: u64,
    },
}

/// What becomes of times that passed while the node was down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The message comes once for all of them.
    #[default]
    Once,
    /// It does not come for them.
    Skip,
}

/// A recurring message's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecurringConfig {
    /// The topic that it comes to.
    pub topic: String,
    /// The key of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its time to live, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Its body.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "body")]
    pub body: Vec<u8>,
    /// When it comes.
    pub recurs: Recurs,
    /// Not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<UnixMs>,
    /// Not after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<UnixMs>,
    /// How much later than its time it may come, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub jitter_ms: u64,
    /// What becomes of times that passed while the node was down.
    #[serde(default, skip_serializing_if = "is_once")]
    pub missed: Missed,
    /// Whether it does not come for now.
    #[serde(default, skip_serializing_if = "is_false")]
    pub paused: bool,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_once(value: &Missed) -> bool {
    *value == Missed::Once
}

fn is_false(value: &bool) -> bool {
    !*value
}

mod body {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(body: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(body))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl RecurringConfig {
    /// Whether both say the same about when it comes.
    fn comes_as(&self, other: &RecurringConfig) -> bool {
        let when = |config: &RecurringConfig| {
            (config.recurs.clone(), config.start, config.end, config.jitter_ms, config.paused)
        };
        when(self) == when(other)
    }
}

/// A recurring message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurring {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Rises with every change.
    pub revision: u32,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it was last said when it comes: only later times count.
    pub since: UnixMs,
    /// Its configuration.
    pub config: RecurringConfig,
}

impl Catalog {
    /// A recurring message by number.
    pub fn recurring(&self, id: u32) -> Option<&Arc<Recurring>> {
        self.recurring.get(id)
    }

    /// A recurring message by name.
    pub fn recurring_named(&self, name: &str) -> Option<&Arc<Recurring>> {
        self.recurring.get(*self.recurring_names.get(name)?)
    }

    /// All recurring messages, in the order they were made.
    pub fn all_recurring(&self) -> impl Iterator<Item = &Arc<Recurring>> {
        self.recurring.iter().map(|(_, recurring)| recurring)
    }

    pub(super) fn put_recurring(
        &self,
        name: &str,
        config: &RecurringConfig,
        now: UnixMs,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        crate::name::check(name).map_err(Refusal::Name)?;
        let (recurring, outcome) = match self.recurring_named(name) {
            Some(before) if before.config == *config => {
                return Ok(Reply::Recurring(before.clone(), Outcome::Unchanged));
            }
            Some(before) => {
                let since = if before.config.comes_as(config) { before.since } else { now };
                let revision = before.revision.wrapping_add(1);
                let changed =
                    Recurring { revision, since, config: config.clone(), ..(**before).clone() };
                (changed, Outcome::Changed)
            }
            None => {
                let id = self.counters.recurring;
                if id == u32::MAX {
                    return Err(Refusal::Exhausted("recurring messages"));
                }
                let (name, config) = (name.into(), config.clone());
                let (created_at, since) = (now, now);
                (Recurring { id, name, revision: 0, created_at, since, config }, Outcome::Created)
            }
        };
        let recurring = Arc::new(recurring);
        Change::Recurring(recurring.clone()).write(out);
        Ok(Reply::Recurring(recurring, outcome))
    }

    pub(super) fn pause_recurring(
        &self,
        name: &str,
        paused: bool,
        now: UnixMs,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        let before =
            self.recurring_named(name).ok_or_else(|| not_found("recurring message", name))?;
        let config = RecurringConfig { paused, ..before.config.clone() };
        self.put_recurring(name, &config, now, out)
    }

    pub(super) fn delete_recurring(
        &self,
        name: &str,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        let before =
            self.recurring_named(name).ok_or_else(|| not_found("recurring message", name))?;
        Change::NoRecurring(before.id).write(out);
        Ok(Reply::Recurring(before.clone(), Outcome::Changed))
    }

    pub(super) fn set_recurring(&mut self, recurring: &Arc<Recurring>) {
        self.recurring.set(&mut self.pager, recurring.id, recurring.clone());
        self.index_recurring(recurring);
    }

    pub(super) fn index_recurring(&mut self, recurring: &Arc<Recurring>) {
        self.recurring_names.insert(recurring.name.clone(), recurring.id);
    }

    pub(super) fn remove_recurring(&mut self, id: u32) {
        if let Some(recurring) = self.recurring.remove(&mut self.pager, id) {
            self.recurring_names.remove(&recurring.name);
        }
    }
}
