//! Recurring messages: made, changed, paused, looked at. [`cron`] and [`plan`] say when one
//! comes, `run` lets it come.

pub mod cron;
pub mod plan;
mod run;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use posthouse_core::UnixMs;
use posthouse_core::catalog::machine::{Command as MetaCommand, Outcome, Reply as MetaReply};
use posthouse_core::catalog::{Action, Recurring, RecurringConfig, Recurs};
use posthouse_core::message::Parts;
use posthouse_core::queue::Command;
use tokio::sync::Notify;

use super::publish::{Outbox, Placed};
use super::{Broker, Caller, On, bounds};
use crate::problem::{Kind, Problem};
use plan::Plan;

/// The most recurring messages of a node.
pub const RECURRING: usize = 10_000;
/// The largest message that may recur, with its attributes, in bytes.
pub const TEMPLATE_BYTES: usize = 64 << 10;
/// The same of all recurring messages together.
pub const TEMPLATES_BYTES: usize = 64 << 20;
/// How many of its next times a look at a recurring message has.
pub const AHEAD: usize = 10;

/// The header that says which recurring message a message is of.
pub const NAME_HEADER: &str = "posthouse-recurring";
/// The header that says which time of it this is, in RFC 3339.
pub const TIME_HEADER: &str = "posthouse-recurring-at";

/// What is asked of a recurring message.
#[derive(Clone, Debug)]
pub struct RecurringPut {
    /// The configuration. Whether it is paused counts only if `keep_paused` is not set.
    pub config: RecurringConfig,
    /// Paused as it is now.
    pub keep_paused: bool,
}

/// A recurring message, with when it comes.
#[derive(Clone, Debug)]
pub struct RecurringView {
    /// What it is.
    pub recurring: Arc<Recurring>,
    /// The next times at which it comes, if it is not paused.
    pub next: Vec<UnixMs>,
    /// The last of its times that is decided: it has come then, or was missed.
    pub last: Option<UnixMs>,
}

/// What is known of recurring messages as they come.
#[derive(Debug, Default)]
pub(super) struct Recurrence {
    /// Rung when one has changed.
    pub(super) bell: Arc<Notify>,
    /// The last time of each that is decided.
    decided: Mutex<BTreeMap<u32, UnixMs>>,
    /// Figures since the start: messages that came, times that were missed, attempts that
    /// have failed.
    pub(super) counts: Counts,
}

/// Figures of recurring messages, since the start of the node.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages that came.
    pub published: AtomicU64,
    /// Looks that found times more than [`plan::LATE_MS`] past.
    pub missed: AtomicU64,
    /// Messages that could not be published; it is tried again.
    pub failed: AtomicU64,
}

impl Recurrence {
    fn decided(&self, recurring: u32) -> Option<UnixMs> {
        let decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        decided.get(&recurring).copied()
    }
}

impl Broker {
    /// Who may publish to the topic, or manage it, may let messages recur there.
    fn check_recurring(&self, caller: &Caller, topic: &str) -> Result<(), Problem> {
        if caller.may(Action::Manage, On::Topic(topic)) {
            return Ok(());
        }
        caller.check(Action::Publish, On::Topic(topic))
    }

    /// A recurring message, for a caller who may change it.
    fn recurring_to_change(&self, caller: &Caller, name: &str) -> Result<Arc<Recurring>, Problem> {
        let known = self.catalog().recurring_named(name).cloned();
        let known = known.ok_or_else(|| Problem::no_recurring(name))?;
        self.check_recurring(caller, &known.config.topic)?;
        Ok(known)
    }

    /// Makes a recurring message, or gives one another configuration.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn put_recurring(
        &self,
        caller: &Caller,
        name: &str,
        put: RecurringPut,
    ) -> Result<(RecurringView, Outcome), Problem> {
        let RecurringPut { mut config, keep_paused } = put;
        posthouse_core::name::check(name)?;
        self.check_recurring(caller, &config.topic)?;
        let before = match self.recurring_to_change(caller, name) {
            Ok(before) => Some(before),
            Err(problem) if problem.kind == Kind::NotFound => None,
            Err(problem) => return Err(problem),
        };
        if keep_paused {
            config.paused = before.as_ref().is_some_and(|before| before.config.paused);
        }
        // It is made if it is not there, as a publish would make it. Who asks was checked.
        self.topic_to_publish(&Caller::Node, &config.topic).await?;
        let created_at = before.as_ref().map_or_else(|| self.now(), |before| before.created_at);
        let plan = Plan::of(name, created_at, &config)?;
        self.check_template(name, &config)?;
        if before.is_none() && plan.next(created_at).is_none() {
            let limit = "a time after now that the rule means";
            let end = config.end.map_or_else(String::new, |end| end.0.to_string());
            return Err(Problem::invalid("end", end, limit));
        }
        let put = MetaCommand::PutRecurring { name: name.into(), config };
        let (recurring, outcome) = self.change_recurring(put).await?;
        Ok((self.view_recurring(&recurring), outcome))
    }

    /// Whether the message could be published, and there is room for the definition.
    fn check_template(&self, name: &str, config: &RecurringConfig) -> Result<(), Problem> {
        let bytes = template_bytes(config);
        if bytes > TEMPLATE_BYTES {
            let detail = format!(
                "the message has {bytes} bytes with its attributes; one that recurs has at most \
                 {TEMPLATE_BYTES}"
            );
            return Err(Problem::new(Kind::TooLarge, "message_too_large", detail)
                .with_field("body", bytes, format!("at most {TEMPLATE_BYTES} bytes"))
                .with_hint("store large content elsewhere"));
        }
        let (count, all) = {
            let catalog = self.catalog();
            let others = catalog.all_recurring().filter(|other| *other.name != *name);
            others.fold((1, bytes), |(count, all), other| {
                (count + 1, all + template_bytes(&other.config))
            })
        };
        if count > RECURRING || all > TEMPLATES_BYTES {
            let detail = format!(
                "there would be {count} recurring messages, with {all} bytes of templates; the \
                 most is {RECURRING}, and {TEMPLATES_BYTES} bytes"
            );
            return Err(Problem::new(Kind::Exhausted, "too_many", detail)
                .with_hint("delete recurring messages that nobody needs"));
        }
        if let Some(header) =
            config.headers.keys().find(|n| [NAME_HEADER, TIME_HEADER].contains(&n.as_str()))
        {
            let limit = "this header says of which recurring message a message is";
            return Err(Problem::invalid("headers", header, limit));
        }
        self.recurring_outbox(name, config, self.now()).map(drop)
    }

    /// The message that comes at `at`, ready to be published.
    fn recurring_outbox(
        &self,
        name: &str,
        config: &RecurringConfig,
        at: UnixMs,
    ) -> Result<Outbox, Problem> {
        let topic = self.topic(&config.topic)?;
        let time = crate::units::show_time(at.0);
        let mut headers: Vec<(&str, &str)> =
            config.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers.extend([(NAME_HEADER, name), (TIME_HEADER, time.as_str())]);
        let parts = Parts {
            key: config.key.as_deref(),
            tags: config.tags.iter().map(String::as_str).collect(),
            headers,
            ttl_ms: config.ttl_ms,
            ..Parts::default()
        };
        let mut outbox = self.outbox(None, false);
        self.add(&mut outbox, &topic, &parts, &config.body)?;
        Ok(outbox)
    }

    async fn change_recurring(
        &self,
        command: MetaCommand,
    ) -> Result<(Arc<Recurring>, Outcome), Problem> {
        let reply = self.directory.meta(command).await?;
        self.recurrence.bell.notify_one();
        match reply {
            MetaReply::Recurring(recurring, outcome) => Ok((recurring, outcome)),
            other => {
                Err(Problem::internal(format!("a recurring message was answered by {other:?}")))
            }
        }
    }

    /// Lets a recurring message come no more for now, or again: only at times after that.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn pause_recurring(
        &self,
        caller: &Caller,
        name: &str,
        paused: bool,
    ) -> Result<RecurringView, Problem> {
        self.recurring_to_change(caller, name)?;
        let command = MetaCommand::PauseRecurring { name: name.into(), paused };
        let (recurring, _) = self.change_recurring(command).await?;
        Ok(self.view_recurring(&recurring))
    }

    /// Deletes a recurring message: it does not come any more. What has come stays.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn delete_recurring(&self, caller: &Caller, name: &str) -> Result<(), Problem> {
        self.recurring_to_change(caller, name)?;
        let command = MetaCommand::DeleteRecurring { name: name.into() };
        let (gone, _) = self.change_recurring(command).await?;
        self.forget_recurring(vec![gone.id]).await
    }

    async fn forget_recurring(&self, gone: Vec<u32>) -> Result<(), Problem> {
        for shard in &self.shards {
            let command = Command::ForgetRecurring(gone.clone());
            self.directory.command(shard.id, command).await?;
        }
        Ok(())
    }

    /// Publishes a recurring message now, beside its times.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn run_recurring(&self, caller: &Caller, name: &str) -> Result<Placed, Problem> {
        let recurring = self.recurring_to_change(caller, name)?;
        let outbox = self.recurring_outbox(name, &recurring.config, self.now())?;
        let sent = self.publish(outbox).await?;
        let placed = self.placed(&sent).next();
        placed.unwrap_or_else(|| Err(Problem::internal("the message is not there")))
    }

    /// A recurring message that the caller may see.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn recurring(&self, caller: &Caller, name: &str) -> Result<RecurringView, Problem> {
        let known = self.catalog().recurring_named(name).cloned();
        let known = known.ok_or_else(|| Problem::no_recurring(name))?;
        self.topic_seen(caller, &known.config.topic)?;
        Ok(self.view_recurring(&known))
    }

    fn topic_seen(&self, caller: &Caller, topic: &str) -> Result<(), Problem> {
        match caller.may(Action::Consume, On::Topic(topic)) {
            true => Ok(()),
            false => self.check_recurring(caller, topic),
        }
    }

    /// Recurring messages that the caller may see, by their names, behind the one called
    /// `after`; with `topic` only those of one.
    pub fn all_recurring(
        &self,
        caller: &Caller,
        topic: Option<&str>,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Vec<RecurringView> {
        let mut found: Vec<Arc<Recurring>> = {
            let catalog = self.catalog();
            let all = catalog.all_recurring().filter(|of| {
                of.name.starts_with(prefix)
                    && *of.name > *after
                    && topic.is_none_or(|topic| of.config.topic == topic)
                    && self.topic_seen(caller, &of.config.topic).is_ok()
            });
            all.cloned().collect()
        };
        found.sort_by(|a, b| a.name.cmp(&b.name));
        // One more than a page has says whether there is another.
        found.truncate(limit.min(bounds::PAGE + 1));
        found.iter().map(|of| self.view_recurring(of)).collect()
    }

    fn view_recurring(&self, of: &Arc<Recurring>) -> RecurringView {
        let last = self.recurrence.decided(of.id);
        let from = last.unwrap_or_default().max(of.since);
        let next = match Plan::of(&of.name, of.created_at, &of.config) {
            Ok(plan) if !of.config.paused => plan.ahead(from, AHEAD),
            _ => Vec::new(),
        };
        RecurringView { recurring: of.clone(), next, last }
    }

    /// Figures of recurring messages since the start.
    pub fn recurring_counts(&self) -> &Counts {
        &self.recurrence.counts
    }
}

fn template_bytes(config: &RecurringConfig) -> usize {
    let headers: usize = config.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let tags: usize = config.tags.iter().map(String::len).sum();
    let rule = match &config.recurs {
        Recurs::Cron { cron, zone } => cron.len() + zone.len(),
        Recurs::Every { .. } => 0,
    };
    config.body.len() + config.key.as_ref().map_or(0, String::len) + headers + tags + rule
}
