//! Transactions: a send prepares one, a call ends it, and whoever publishes to its topic is
//! asked about it.
//!
//! Producers of RocketMQ have no name: to the node they all go by the same one, and any of
//! them that has said it publishes to the topic may be asked.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use posthouse_core::catalog::{Action, Topic};

use super::fault::{Fault, ok};
use super::message::{self, duration_ms};
use super::names::Namespace;
use super::pb::telemetry_command::Command;
use super::pb::{self, Code, MessageType, TransactionResolution};
use super::send::{Taken, result};
use super::sessions::Publisher;
use super::{Call, Door, Inner};
use crate::broker::transact::{AskChecks, Check, State, Terms};
use crate::broker::{Caller, On, bounds};
use crate::problem::{Kind, Problem};

/// The name that all producers go by.
const PRODUCER: &str = "rocketmq";

/// Whether a message waits for a decision.
pub fn is_prepared(message: &pb::Message) -> bool {
    let system = message.system_properties.as_ref();
    system.is_some_and(|system| system.message_type() == MessageType::Transaction)
}

impl Door {
    pub(super) async fn prepare(
        &self,
        call: &Call,
        topic: &Arc<Topic>,
        messages: &[pb::Message],
    ) -> Result<pb::SendMessageResponse, Fault> {
        let [message] = messages else {
            let text = "a message of a transaction is sent alone";
            return Err(Fault::new(Code::BadRequest, text));
        };
        let entry = result(message, self.prepare_one(call, topic, message).await);
        Ok(pb::SendMessageResponse { status: entry.status.clone(), entries: vec![entry] })
    }

    async fn prepare_one(
        &self,
        call: &Call,
        topic: &Arc<Topic>,
        message: &pb::Message,
    ) -> Result<Taken, Fault> {
        let permit = self.broker().permit(message::bytes_of(std::slice::from_ref(message)))?;
        let mut outbox = self.broker().outbox_of(&call.caller, Some(permit), false);
        self.add(&mut outbox, topic, message)?;
        let system = message.system_properties.as_ref();
        let after = system.and_then(|of| of.orphaned_transaction_recovery_duration.as_ref());
        let terms = Terms {
            producer: PRODUCER.into(),
            check_after_ms: after.map(duration_ms),
            ..Terms::default()
        };
        let (prepared, _) = self.broker().prepare(outbox, &terms).await?;
        let namespace = message.topic.as_ref().map(Namespace::of).unwrap_or_default();
        self.session(call)?.prepares(&topic.name, namespace);
        let part = prepared.parts.first();
        let part = part.ok_or_else(|| Problem::internal("a transaction has no message"))?;
        Ok(Taken { id: part.id, transaction: prepared.id, offset: 0 })
    }

    pub(super) async fn end_transaction(
        &self,
        call: &Call,
        request: pb::EndTransactionRequest,
    ) -> Result<pb::EndTransactionResponse, Fault> {
        let id = &request.transaction_id;
        let (ended, wanted) = match request.resolution() {
            TransactionResolution::Commit => {
                (self.broker().commit(&call.caller, id).await, State::Committed)
            }
            TransactionResolution::Rollback => {
                (self.broker().rollback(&call.caller, id).await, State::RolledBack)
            }
            // The producer does not know: it is asked again.
            TransactionResolution::Unspecified => {
                return Ok(pb::EndTransactionResponse { status: Some(ok()) });
            }
        };
        let ended = ended.map_err(|problem| match problem.kind {
            Kind::Invalid => Fault::coded(Code::InvalidTransactionId, &problem),
            _ => problem.into(),
        })?;
        let of = ended.transaction;
        if of.state != wanted {
            let how = if of.state == State::Committed { "committed" } else { "rolled back" };
            let text = format!("transaction {} was {how} before: that is final", of.id);
            return Err(Fault::new(Code::InvalidTransactionId, text));
        }
        Ok(pb::EndTransactionResponse { status: Some(ok()) })
    }

    /// Asks producers of a topic about its transactions, as far as they have room.
    async fn ask_about(&self, topic: &str) -> Result<(), Problem> {
        let mut publishers = self.inner.sessions.publishers(topic);
        // Whoever was let in may have lost the right meanwhile.
        publishers.retain(|of| {
            let caller = self.broker().identify_again(&of.caller);
            caller.is_ok_and(|caller| caller.may(Action::Publish, On::Topic(topic)))
        });
        loop {
            let room: usize = publishers.iter().map(|of| of.sink.capacity()).sum();
            if room == 0 {
                return Ok(());
            }
            let max = room.min(bounds::CHECKS);
            let topic = Some(topic.to_owned());
            let ask = AskChecks { producer: PRODUCER.into(), topic, max, wait: Duration::ZERO };
            let checks = self.broker().checks(&Caller::Node, &ask).await?;
            let is_last = checks.len() < max;
            for check in checks {
                self.ask(&publishers, check).await?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Asks one producer about one transaction: another one every time, so that one that
    /// does not answer holds nothing up.
    async fn ask(&self, publishers: &[Publisher], mut check: Check) -> Result<(), Problem> {
        let id = check.transaction.id.to_string();
        if check.message.is_none() {
            check.message = self.broker().transaction(&Caller::Node, &id).await?.1;
        }
        // Without a message it has been decided meanwhile.
        let Some(of) = &check.message else { return Ok(()) };
        let first = self.inner.turn.fetch_add(1, Relaxed);
        for at in 0..publishers.len() {
            let publisher = &publishers[(first + at) % publishers.len()];
            let asked = pb::RecoverOrphanedTransactionCommand {
                message: Some(message::asked_about(&check.transaction, of, &publisher.namespace)?),
                transaction_id: id.clone(),
            };
            let command = pb::TelemetryCommand {
                status: Some(ok()),
                command: Some(Command::RecoverOrphanedTransactionCommand(asked)),
            };
            if publisher.sink.try_send(Ok(command)).is_ok() {
                return Ok(());
            }
        }
        tracing::debug!("nobody has room to be asked about transaction {id}: it is asked again");
        Ok(())
    }
}

/// Asks producers about transactions that wait for a decision, until the node stops.
pub async fn ask_producers(of: Weak<Inner>) {
    let Some(mut ready) = of.upgrade().map(|inner| inner.broker.checks_ready(PRODUCER)) else {
        return;
    };
    while let Some(topics) = ready.topics().await {
        let Some(inner) = of.upgrade() else { return };
        if !inner.broker.is_ready() {
            return;
        }
        let door = Door { inner };
        for topic in topics {
            let name = door.broker().catalog().topic(topic).map(|topic| topic.name.clone());
            let Some(name) = name else { continue };
            if let Err(problem) = door.ask_about(&name).await {
                tracing::warn!("producers of {name} are not asked about transactions: {problem}");
            }
        }
    }
}
