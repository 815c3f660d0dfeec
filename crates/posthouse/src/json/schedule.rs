//! Messages that come later.

use posthouse_client::proto::{self, reschedule_request};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Message, Problem, Time, given};
use crate::problem;

/// When a message shall come instead: one of these.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shift {
    /// Then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    /// So long from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// So much later than it was to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later: Option<Duration>,
    /// So much earlier than it was to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Duration>,
}

/// A scheduled message: by its id, or by the name that it has in a topic.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Its topic, with a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topic: String,
    /// Its name in the topic.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A scheduled message, and when it shall come instead.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Its topic, with a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topic: String,
    /// Its name in the topic.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    /// So long from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// So much later than it was to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later: Option<Duration>,
    /// So much earlier than it was to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Duration>,
}

/// Messages that shall come at another time.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Moves {
    /// Which, and when.
    pub messages: Vec<Move>,
}

/// Messages that shall not come.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    /// Which.
    pub messages: Vec<Target>,
}

/// What became of scheduled messages.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Changes {
    /// In the order of the request.
    pub results: Vec<Change>,
}

/// What became of a scheduled message.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Change {
    /// What.
    pub status: ChangeStatus,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it comes now; of one that was called back, when it would have come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    /// The partition where it is, if it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Its position there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What became of a scheduled message.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeStatus {
    /// As was asked.
    Ok,
    /// It has come already.
    Fired,
    /// It was called back before.
    Cancelled,
    /// There is no such message, or what became of it has been forgotten.
    Unknown,
    /// The request makes no sense, or is not allowed.
    Refused,
    /// A transaction decides about it.
    Held,
}

/// A page of messages that are to come.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ScheduledList {
    /// In the order in which they come.
    pub messages: Vec<Message>,
    /// Where to go on, if there are more: the next `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How many messages are to come, and when.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Hours {
    /// All of them.
    pub pending: u64,
    /// The hours in which something comes.
    pub hours: Vec<Hour>,
}

/// An hour in which messages come.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Hour {
    /// When it begins.
    pub from: Time,
    /// How many.
    pub messages: u64,
}

impl Shift {
    fn into_proto(self) -> Result<reschedule_request::item::To, problem::Problem> {
        use reschedule_request::item::To;
        let by = |ms: Duration| i64::try_from(ms.0).unwrap_or(i64::MAX);
        let all = [
            self.deliver_at.map(|at| To::DeliverAtMs(at.0)),
            self.delay.map(|delay| To::DelayMs(delay.0)),
            self.later.map(|ms| To::ByMs(by(ms))),
            self.earlier.map(|ms| To::ByMs(-by(ms))),
        ];
        let mut given = all.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(to), None) => Ok(to),
            (none, _) => {
                let value = if none.is_some() { "several" } else { "not given" };
                let limit = "give one of deliver_at, delay, later and earlier";
                Err(problem::Problem::invalid("deliver_at", value, limit))
            }
        }
    }
}

impl Target {
    /// The same for the native interface.
    pub fn into_proto(self) -> proto::ScheduledTarget {
        proto::ScheduledTarget { id: self.id, topic: self.topic, name: self.name }
    }
}

impl Move {
    /// A message, and when it shall come instead.
    pub fn of(target: Target, shift: Shift) -> Move {
        let Target { id, topic, name } = target;
        let Shift { deliver_at, delay, later, earlier } = shift;
        Move { id, topic, name, deliver_at, delay, later, earlier }
    }

    /// The same for the native interface.
    ///
    /// # Errors
    /// If it does not say when, or says so twice.
    pub fn into_proto(self) -> Result<reschedule_request::Item, problem::Problem> {
        let Move { id, topic, name, deliver_at, delay, later, earlier } = self;
        let target = Target { id, topic, name }.into_proto();
        let to = Shift { deliver_at, delay, later, earlier }.into_proto()?;
        Ok(reschedule_request::Item { target: Some(target), to: Some(to) })
    }
}

impl From<proto::ScheduleChange> for Change {
    fn from(change: proto::ScheduleChange) -> Self {
        use proto::ScheduleStatus as Wire;
        Change {
            status: match change.status() {
                Wire::Ok => ChangeStatus::Ok,
                Wire::Fired => ChangeStatus::Fired,
                Wire::Cancelled => ChangeStatus::Cancelled,
                Wire::Refused => ChangeStatus::Refused,
                Wire::Held => ChangeStatus::Held,
                Wire::Unknown | Wire::Unspecified => ChangeStatus::Unknown,
            },
            id: given(change.id),
            deliver_at: change.deliver_at_ms.map(Time),
            partition: change.partition,
            position: change.position,
            problem: change.problem.map(Into::into),
        }
    }
}

impl From<proto::ScheduleChangeResponse> for Changes {
    fn from(response: proto::ScheduleChangeResponse) -> Self {
        Changes { results: response.results.into_iter().map(Into::into).collect() }
    }
}

impl From<proto::ListScheduledResponse> for ScheduledList {
    fn from(response: proto::ListScheduledResponse) -> Self {
        let messages = response.messages.into_iter().map(Into::into).collect();
        ScheduledList { messages, next: given(response.next) }
    }
}

impl From<proto::GetScheduleHoursResponse> for Hours {
    fn from(response: proto::GetScheduleHoursResponse) -> Self {
        let hour = |hour: proto::get_schedule_hours_response::Hour| Hour {
            from: Time(hour.from_ms),
            messages: hour.messages,
        };
        Hours { pending: response.pending, hours: response.hours.into_iter().map(hour).collect() }
    }
}
