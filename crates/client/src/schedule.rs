//! Messages that come later: moved, and called back.

use std::time::{Duration, SystemTime};

use crate::message::{time, unix_ms};
use crate::proto::{self, reschedule_request::item::To};
use crate::{Client, Error, Problem};

/// A message that is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheduled {
    /// By the id that its publisher was told.
    Id(String),
    /// By the [`Message::name`](crate::Message::name) that it has in a topic.
    Name {
        /// The topic.
        topic: String,
        /// Its name there.
        name: String,
    },
}

impl Scheduled {
    /// The one with this id.
    pub fn id(id: impl Into<String>) -> Self {
        Scheduled::Id(id.into())
    }

    /// The one with this name in a topic.
    pub fn name(topic: impl Into<String>, name: impl Into<String>) -> Self {
        Scheduled::Name { topic: topic.into(), name: name.into() }
    }

    fn into_proto(self) -> proto::ScheduledTarget {
        match self {
            Scheduled::Id(id) => proto::ScheduledTarget { id, ..Default::default() },
            Scheduled::Name { topic, name } => {
                proto::ScheduledTarget { topic, name, ..Default::default() }
            }
        }
    }
}

/// When a message shall come instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time; at once if it has passed.
    At(SystemTime),
    /// So long from now.
    In(Duration),
    /// So much later than it was to come.
    Later(Duration),
    /// So much earlier than it was to come.
    Earlier(Duration),
}

impl When {
    fn into_proto(self) -> To {
        let ms = |by: Duration| i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        match self {
            When::At(at) => To::DeliverAtMs(unix_ms(at)),
            When::In(delay) => To::DelayMs(delay.as_millis() as u64),
            When::Later(by) => To::ByMs(ms(by)),
            When::Earlier(by) => To::ByMs(-ms(by)),
        }
    }
}

/// What became of a message that was to be moved or called back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScheduleOutcome {
    /// As was asked.
    Ok {
        /// Its id.
        id: String,
        /// When it comes now; of one that was called back, when it would have come.
        deliver_at: SystemTime,
    },
    /// Too late: it has come, and is in its topic.
    Fired {
        /// Its id.
        id: String,
        /// The partition, counted from 0.
        partition: u32,
        /// Its position there.
        position: u64,
    },
    /// It was called back before.
    Cancelled,
    /// There is none, or what became of it has been forgotten.
    Unknown,
    /// A transaction decides about it.
    Held,
    /// It was refused.
    Refused(Problem),
}

impl From<proto::ScheduleChange> for ScheduleOutcome {
    fn from(change: proto::ScheduleChange) -> Self {
        use proto::ScheduleStatus as Status;
        match change.status() {
            Status::Ok => ScheduleOutcome::Ok {
                id: change.id,
                deliver_at: time(change.deliver_at_ms.unwrap_or_default()),
            },
            Status::Fired => ScheduleOutcome::Fired {
                id: change.id,
                partition: change.partition.unwrap_or_default(),
                position: change.position.unwrap_or_default(),
            },
            Status::Cancelled => ScheduleOutcome::Cancelled,
            Status::Held => ScheduleOutcome::Held,
            Status::Refused => ScheduleOutcome::Refused(change.problem.unwrap_or_default().into()),
            Status::Unknown | Status::Unspecified => ScheduleOutcome::Unknown,
        }
    }
}

fn outcomes(response: tonic::Response<proto::ScheduleChangeResponse>) -> Vec<ScheduleOutcome> {
    response.into_inner().results.into_iter().map(ScheduleOutcome::from).collect()
}

impl Client {
    /// Calls messages back: those that have not come will not.
    ///
    /// # Errors
    /// See [`Error`]. An outcome for each message otherwise, durable.
    pub async fn cancel(
        &self,
        messages: impl IntoIterator<Item = Scheduled>,
    ) -> Result<Vec<ScheduleOutcome>, Error> {
        let targets = messages.into_iter().map(Scheduled::into_proto).collect();
        Ok(outcomes(self.raw().cancel(proto::CancelRequest { targets }).await?))
    }

    /// Lets messages that have not come do so at another time.
    ///
    /// # Errors
    /// See [`Error`]. An outcome for each message otherwise, durable.
    pub async fn reschedule(
        &self,
        messages: impl IntoIterator<Item = (Scheduled, When)>,
    ) -> Result<Vec<ScheduleOutcome>, Error> {
        let item = |(message, when): (Scheduled, When)| proto::reschedule_request::Item {
            target: Some(message.into_proto()),
            to: Some(when.into_proto()),
        };
        let items = messages.into_iter().map(item).collect();
        Ok(outcomes(self.raw().reschedule(proto::RescheduleRequest { items }).await?))
    }
}
