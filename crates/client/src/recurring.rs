//! Messages that come again and again.

use std::time::{Duration, SystemTime};

use crate::message::{time, unix_ms};
use crate::proto::{self, recurring_config};
use crate::{Client, Error};

/// A message that comes again and again, and when.
///
/// ```
/// use posthouse_client::Recurring;
///
/// let report = Recurring::cron("reports", "make one", "0 30 9 * * MON-FRI", "Europe/Berlin");
/// let beat = Recurring::every("beats", "tick", std::time::Duration::from_secs(10));
/// # let _ = (report, beat);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Recurring(proto::RecurringConfig);

/// A recurring message as the node has it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecurringInfo {
    /// Its name.
    pub name: String,
    /// The topic that it comes to.
    pub topic: String,
    /// Whether it does not come for now.
    pub paused: bool,
    /// The next times at which it comes, at most ten; none while it is paused.
    pub next: Vec<SystemTime>,
    /// The last time that is decided: it has come, or was missed.
    pub last: Option<SystemTime>,
}

impl Recurring {
    fn of(topic: String, body: Vec<u8>, recurs: recurring_config::Recurs) -> Recurring {
        let (body, recurs) = (body.into(), Some(recurs));
        Recurring(proto::RecurringConfig { topic, body, recurs, ..Default::default() })
    }

    /// Comes at the local times that an expression names (second minute hour day month
    /// weekday, or without the second), in an IANA time zone.
    pub fn cron(
        topic: impl Into<String>,
        body: impl Into<Vec<u8>>,
        expression: impl Into<String>,
        zone: impl Into<String>,
    ) -> Recurring {
        let (expression, zone) = (expression.into(), zone.into());
        let cron = recurring_config::Cron { expression, zone };
        Recurring::of(topic.into(), body.into(), recurring_config::Recurs::Cron(cron))
    }

    /// Comes so far apart: a second at least.
    pub fn every(
        topic: impl Into<String>,
        body: impl Into<Vec<u8>>,
        interval: Duration,
    ) -> Recurring {
        let every = recurring_config::Recurs::EveryMs(interval.as_millis() as u64);
        Recurring::of(topic.into(), body.into(), every)
    }

    /// With this key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.0.key = Some(key.into());
        self
    }

    /// With this tag, too.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.0.tags.push(tag.into());
        self
    }

    /// With this header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.headers.insert(name.into(), value.into());
        self
    }

    /// Each message is of use for so long.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.0.ttl_ms = Some(ttl.as_millis() as u64);
        self
    }

    /// Not before this time. An interval is counted from it.
    pub fn start(mut self, at: SystemTime) -> Self {
        self.0.start_ms = Some(unix_ms(at));
        self
    }

    /// Not after this time.
    pub fn end(mut self, at: SystemTime) -> Self {
        self.0.end_ms = Some(unix_ms(at));
        self
    }

    /// Later than its time, by at most so much: always the same for the same time.
    pub fn jitter(mut self, most: Duration) -> Self {
        self.0.jitter_ms = most.as_millis() as u64;
        self
    }

    /// Does not come for times that passed while the node was down. Else it comes once for
    /// all of them.
    pub fn skip_missed(mut self) -> Self {
        self.0.missed = proto::Missed::Skip as i32;
        self
    }

    /// Does not come for now, or does.
    pub fn paused(mut self, paused: bool) -> Self {
        self.0.paused = Some(paused);
        self
    }
}

impl From<proto::Recurring> for RecurringInfo {
    fn from(recurring: proto::Recurring) -> Self {
        let config = recurring.config.unwrap_or_default();
        RecurringInfo {
            name: recurring.name,
            topic: config.topic,
            paused: config.paused.unwrap_or_default(),
            next: recurring.next_ms.into_iter().map(time).collect(),
            last: recurring.last_ms.map(time),
        }
    }
}

impl Client {
    /// Makes a recurring message, or replaces the one of that name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_recurring(
        &self,
        name: impl Into<String>,
        recurring: Recurring,
    ) -> Result<RecurringInfo, Error> {
        let request = proto::PutRecurringRequest { name: name.into(), config: Some(recurring.0) };
        let done = self.raw().put_recurring(request).await?.into_inner();
        Ok(done.recurring.unwrap_or_default().into())
    }

    /// A recurring message, with its next times.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn recurring(&self, name: impl Into<String>) -> Result<RecurringInfo, Error> {
        let request = proto::GetRecurringRequest { name: name.into() };
        Ok(self.raw().get_recurring(request).await?.into_inner().into())
    }

    /// Lets a recurring message come no more for now.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pause_recurring(&self, name: impl Into<String>) -> Result<(), Error> {
        let request = proto::PauseRecurringRequest { name: name.into() };
        self.raw().pause_recurring(request).await?;
        Ok(())
    }

    /// Lets a recurring message come again, at times from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resume_recurring(&self, name: impl Into<String>) -> Result<(), Error> {
        let request = proto::ResumeRecurringRequest { name: name.into() };
        self.raw().resume_recurring(request).await?;
        Ok(())
    }

    /// Publishes a recurring message now, beside its times. Returns the message's id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_recurring(&self, name: impl Into<String>) -> Result<String, Error> {
        let request = proto::RunRecurringRequest { name: name.into() };
        Ok(self.raw().run_recurring(request).await?.into_inner().id)
    }

    /// Deletes a recurring message. What has come stays.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_recurring(&self, name: impl Into<String>) -> Result<(), Error> {
        let request = proto::DeleteRecurringRequest { name: name.into() };
        self.raw().delete_recurring(request).await?;
        Ok(())
    }
}
