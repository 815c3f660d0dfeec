//! Publishing, and calling back what is to come later.

use std::sync::Arc;

use posthouse_core::catalog::Topic;
use posthouse_core::ident::MessageId;

use super::fault::{Fault, ok, sum};
use super::message::{self, Extra};
use super::names;
use super::pb::{self, Code};
use super::{Call, Door, transact};
use crate::broker::publish::{Outbox, Placed};
use crate::broker::schedule::{Changed, Target};

impl Door {
    pub(super) async fn send(
        &self,
        call: &Call,
        request: pb::SendMessageRequest,
    ) -> Result<pb::SendMessageResponse, Fault> {
        let first = request.messages.first();
        let first = first.ok_or_else(|| Fault::new(Code::BadRequest, "there is no message"))?;
        let name = names::topic(first.topic.as_ref())?;
        if request.messages.iter().any(|message| message.topic != first.topic) {
            return Err(Fault::new(Code::IllegalTopic, "a batch has messages of one topic"));
        }
        let topic = self.broker().topic_to_publish(&call.caller, &name).await?;
        if request.messages.iter().any(transact::is_prepared) {
            return self.prepare(call, &topic, &request.messages).await;
        }
        let bytes = request.messages.iter().map(|message| message.body.len()).sum();
        // Each has its own result: a bad one keeps no other out.
        let permit = self.broker().permit(message::bytes_of(&request.messages))?;
        let mut outbox = self.broker().outbox_of(&call.caller, Some(permit), true);
        outbox.expect(request.messages.len(), bytes);
        let mut refused: Vec<Option<Fault>> = Vec::with_capacity(request.messages.len());
        for message in &request.messages {
            refused.push(self.add(&mut outbox, &topic, message).err());
        }
        let sent = self.broker().publish(outbox).await?;
        let mut placed = self.broker().placed(&sent);
        let entries: Vec<pb::SendResultEntry> = request
            .messages
            .iter()
            .zip(refused)
            .map(|(message, refused)| {
                let placed = match refused {
                    Some(fault) => Err(fault),
                    None => placed.next().map_or_else(
                        || Err(Fault::new(Code::InternalServerError, "there is no result")),
                        |placed| placed.map_err(Fault::from),
                    ),
                };
                entry(message, placed)
            })
            .collect();
        let status = sum(entries.iter().filter_map(|entry| entry.status.as_ref()));
        Ok(pb::SendMessageResponse { status: Some(status), entries })
    }

    pub(super) fn add(
        &self,
        outbox: &mut Outbox,
        topic: &Arc<Topic>,
        message: &pb::Message,
    ) -> Result<(), Fault> {
        let nothing = pb::SystemProperties::default();
        let system = message.system_properties.as_ref().unwrap_or(&nothing);
        let extra = Extra::of(system)?;
        let parts = message::parts(message, system, &extra)?;
        Ok(self.broker().add(outbox, topic, &parts, &message.body)?)
    }

    pub(super) async fn recall(
        &self,
        call: &Call,
        request: pb::RecallMessageRequest,
    ) -> Result<pb::RecallMessageResponse, Fault> {
        let name = names::topic(request.topic.as_ref())?;
        let handle = request.recall_handle;
        let bad = |text: String| Fault::new(Code::IllegalMessageId, text);
        let id: MessageId = handle.parse().map_err(|error| bad(format!("{handle:?}: {error}")))?;
        let own = id.to_string();
        let pending = self.broker().scheduled_message(&call.caller, &own).await?;
        let mut message_id = message::id(&Default::default(), &own).into_owned();
        if let Some(pending) = pending {
            if *pending.topic.name != *name {
                let text = format!("the message is one of topic {:?}", &*pending.topic.name);
                return Err(bad(text));
            }
            message_id = message::id(&pending.parts()?.0, &own).into_owned();
        }
        let changed = self.broker().cancel(&call.caller, vec![Target::Id(own)]).await?;
        match changed.into_iter().next() {
            // Called back again: it is as was wanted.
            Some(Changed::Done { .. } | Changed::Cancelled { .. }) => {
                Ok(pb::RecallMessageResponse { status: Some(ok()), message_id })
            }
            Some(Changed::Refused(problem)) => Err(problem.into()),
            Some(Changed::Fired { .. }) => Err(Fault::new(
                Code::MessageNotFound,
                "the message has come: it cannot be recalled",
            )),
            Some(Changed::Held { .. }) => Err(Fault::new(
                Code::PreconditionFailed,
                "a transaction decides about the message: it cannot be recalled",
            )),
            Some(Changed::Unknown) | None => {
                Err(Fault::new(Code::MessageNotFound, "no such message is to come"))
            }
        }
    }
}

fn entry(message: &pb::Message, placed: Result<Placed, Fault>) -> pb::SendResultEntry {
    let taken = placed.map(|placed| Taken {
        id: placed.id,
        transaction: placed.id,
        offset: placed.position.unwrap_or(0),
    });
    result(message, taken)
}

/// What became of a message that was taken in.
pub struct Taken {
    /// Its id.
    pub id: MessageId,
    /// That of its transaction, or its own: clients are used to there being one.
    pub transaction: MessageId,
    /// Its position, 0 if it has none yet.
    pub offset: u64,
}

/// The result of one message.
pub fn result(message: &pb::Message, taken: Result<Taken, Fault>) -> pb::SendResultEntry {
    let system = message.system_properties.as_ref();
    let message_id = system.map_or_else(String::new, |system| system.message_id.clone());
    let taken = match taken {
        Ok(taken) => taken,
        Err(fault) => {
            let status = Some(fault.status());
            return pb::SendResultEntry { status, message_id, ..Default::default() };
        }
    };
    let id = taken.id.to_string();
    let is_later = system.is_some_and(|system| system.delivery_timestamp.is_some());
    pb::SendResultEntry {
        status: Some(ok()),
        message_id: match message_id.is_empty() {
            true => message::id(&Default::default(), &id).into_owned(),
            false => message_id,
        },
        recall_handle: if is_later { id } else { String::new() },
        transaction_id: taken.transaction.to_string(),
        offset: taken.offset as i64,
    }
}
