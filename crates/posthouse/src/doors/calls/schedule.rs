//! Messages that come later.

use posthouse_client::proto::{self, reschedule_request};
use posthouse_core::UnixMs;
use posthouse_core::queue::command::Shift;
use posthouse_core::record::When;

use super::{Calls, convert, manage};
use crate::broker::Caller;
use crate::broker::schedule::{Changed, LookAhead, Target};
use crate::problem::{Kind, Problem};

/// Which message is meant.
fn target(target: Option<proto::ScheduledTarget>) -> Result<Target, Problem> {
    let proto::ScheduledTarget { id, topic, name } = target.unwrap_or_default();
    match (id.is_empty(), topic.is_empty(), name.is_empty()) {
        (false, true, true) => Ok(Target::Id(id)),
        (true, false, false) => Ok(Target::Named { topic, name }),
        _ => Err(Problem::invalid("target", "not clear", "give an id, or a topic and a name")),
    }
}

fn item(item: proto::reschedule_request::Item) -> Result<(Target, Shift), Problem> {
    use reschedule_request::item::To;
    let shift = match item.to {
        Some(To::DeliverAtMs(at)) => Shift::To(When::At(UnixMs(at))),
        Some(To::DelayMs(ms)) => Shift::To(When::After(ms)),
        Some(To::ByMs(ms)) => Shift::By(ms),
        None => {
            let limit = "give deliver_at, delay (from now), or by (later or earlier)";
            return Err(Problem::invalid("to", "not given", limit));
        }
    };
    Ok((target(item.target)?, shift))
}

/// The result of a request about one message. What was not done is an error, so that
/// nobody takes it for done.
fn one(changed: Vec<Changed>, is_cancel: bool) -> Result<proto::ScheduleChange, Problem> {
    let changed = changed.into_iter().next();
    match changed.ok_or_else(|| Problem::internal("there is no result"))? {
        // Called back again: it is as was wanted.
        changed @ Changed::Cancelled { .. } if is_cancel => Ok(convert::changed(changed)),
        changed @ Changed::Done { .. } => Ok(convert::changed(changed)),
        Changed::Refused(problem) => Err(problem),
        Changed::Fired { id, partition, position } => {
            let detail = format!("{id} has come, at position {position} of partition {partition}");
            Err(Problem::new(Kind::Conflict, "already_fired", detail).with_field(
                "position",
                position,
                "a message can be moved and called back until it comes",
            ))
        }
        Changed::Cancelled { id } => {
            let detail = format!("{id} was called back before");
            Err(Problem::new(Kind::Conflict, "already_cancelled", detail))
        }
        Changed::Held { id } => {
            let detail = format!("a transaction decides about {id}");
            Err(Problem::new(Kind::Conflict, "held_by_transaction", detail))
        }
        Changed::Unknown => {
            let detail = "no such message is to come; what became of it is not known any more";
            Err(Problem::new(Kind::NotFound, "message_not_found", detail))
        }
    }
}

impl Calls {
    pub(in crate::doors) async fn reschedule(
        &self,
        caller: &Caller,
        request: proto::RescheduleRequest,
    ) -> Result<proto::ScheduleChangeResponse, Problem> {
        let items: Result<_, Problem> = request.items.into_iter().map(item).collect();
        let changed = self.broker.reschedule(caller, items?).await?;
        let results = changed.into_iter().map(convert::changed).collect();
        Ok(proto::ScheduleChangeResponse { results })
    }

    pub(in crate::doors) async fn reschedule_one(
        &self,
        caller: &Caller,
        of: proto::reschedule_request::Item,
    ) -> Result<proto::ScheduleChange, Problem> {
        one(self.broker.reschedule(caller, vec![item(of)?]).await?, false)
    }

    pub(in crate::doors) async fn cancel(
        &self,
        caller: &Caller,
        request: proto::CancelRequest,
    ) -> Result<proto::ScheduleChangeResponse, Problem> {
        let targets: Result<_, Problem> =
            request.targets.into_iter().map(|of| target(Some(of))).collect();
        let changed = self.broker.cancel(caller, targets?).await?;
        let results = changed.into_iter().map(convert::changed).collect();
        Ok(proto::ScheduleChangeResponse { results })
    }

    pub(in crate::doors) async fn cancel_one(
        &self,
        caller: &Caller,
        of: proto::ScheduledTarget,
    ) -> Result<proto::ScheduleChange, Problem> {
        one(self.broker.cancel(caller, vec![target(Some(of))?]).await?, true)
    }

    pub(in crate::doors) async fn list_scheduled(
        &self,
        caller: &Caller,
        request: proto::ListScheduledRequest,
    ) -> Result<proto::ListScheduledResponse, Problem> {
        if let Some(name) = &request.name {
            let found = self.broker.scheduled_by_name(caller, &request.topic, name).await?;
            let messages = vec![convert::scheduled(&found)?];
            return Ok(proto::ListScheduledResponse { messages, next: String::new() });
        }
        let look = LookAhead {
            from: request.from_ms.map(UnixMs),
            until: request.until_ms.map(UnixMs),
            key: request.key,
            after: Some(&*request.after)
                .filter(|after| !after.is_empty())
                .map(str::parse)
                .transpose()?,
            limit: manage::page(request.limit),
        };
        let (found, next) = self.broker.scheduled(caller, &request.topic, &look).await?;
        let messages: Result<_, Problem> = found.iter().map(convert::scheduled).collect();
        let next = next.map_or_else(String::new, |next| next.to_string());
        Ok(proto::ListScheduledResponse { messages: messages?, next })
    }

    pub(in crate::doors) async fn get_schedule_hours(
        &self,
        caller: &Caller,
        request: proto::GetScheduleHoursRequest,
    ) -> Result<proto::GetScheduleHoursResponse, Problem> {
        let hours = self.broker.schedule_hours(caller, &request.topic).await?;
        let hour = |(from, messages): (UnixMs, u64)| proto::get_schedule_hours_response::Hour {
            from_ms: from.0,
            messages,
        };
        Ok(proto::GetScheduleHoursResponse {
            pending: hours.pending,
            hours: hours.hours.into_iter().map(hour).collect(),
        })
    }

    pub(in crate::doors) async fn purge_scheduled(
        &self,
        caller: &Caller,
        request: proto::PurgeScheduledRequest,
    ) -> Result<proto::PurgeScheduledResponse, Problem> {
        let purged = self.broker.purge_scheduled(caller, &request.topic).await?;
        Ok(proto::PurgeScheduledResponse { purged })
    }
}
