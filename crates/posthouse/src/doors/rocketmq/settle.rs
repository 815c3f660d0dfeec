//! What consumers say of messages that they have.

use std::sync::Arc;

use super::fault::{Fault, ok, sum};
use super::message::duration_ms;
use super::names;
use super::pb::{self, Code};
use super::sessions::Handle;
use super::{Call, Door};
use crate::broker::consume::{Outcome, Verdict};

/// The shortest lease of the node. To hide a message for less is to give it back.
const LEASE_MIN_MS: u64 = posthouse_core::catalog::config::bounds::LEASE_MIN_MS;

impl Door {
    pub(super) async fn ack(
        &self,
        call: &Call,
        request: pb::AckMessageRequest,
    ) -> Result<pb::AckMessageResponse, Fault> {
        let group = names::group(request.group.as_ref())?;
        let session = self.session(call)?;
        let receipts = request.entries.iter().map(|entry| {
            let handle = Handle::parse(&entry.receipt_handle);
            session.let_go(handle);
            (handle.receipt.to_owned(), Verdict::Ack)
        });
        let outcomes = self.broker().settle(&call.caller, &group, receipts.collect()).await?;
        let entries: Vec<pb::AckMessageResultEntry> = request
            .entries
            .into_iter()
            .zip(outcomes)
            .map(|(entry, outcome)| pb::AckMessageResultEntry {
                message_id: entry.message_id,
                receipt_handle: entry.receipt_handle,
                status: Some(settled(outcome).map_or_else(|fault| fault.status(), |()| ok())),
            })
            .collect();
        let status = sum(entries.iter().filter_map(|entry| entry.status.as_ref()));
        Ok(pb::AckMessageResponse { status: Some(status), entries })
    }

    /// To a consumer whose leases the node renews it means that the message comes again
    /// after that time; to one that keeps its own time, that the lease ends then.
    pub(super) async fn change_invisible(
        &self,
        call: &Call,
        request: pb::ChangeInvisibleDurationRequest,
    ) -> Result<pb::ChangeInvisibleDurationResponse, Fault> {
        let group = names::group(request.group.as_ref())?;
        let ms = request.invisible_duration.as_ref().map(duration_ms).ok_or_else(|| {
            Fault::new(Code::IllegalInvisibleTime, "the request has no invisible duration")
        })?;
        let handle = Handle::parse(&request.receipt_handle);
        let verdict = match handle.is_renewed || ms < LEASE_MIN_MS {
            true => Verdict::Nack { delay_ms: Some(ms), reason: Arc::from("") },
            false => Verdict::Extend { lease_ms: Some(ms) },
        };
        self.session(call)?.let_go(handle);
        let item = vec![(handle.receipt.to_owned(), verdict)];
        let outcomes = self.broker().settle(&call.caller, &group, item).await?;
        for outcome in outcomes {
            if outcome == Outcome::Already {
                let text = "the message is done: there is nothing to hide any more";
                return Err(Fault::new(Code::InvalidReceiptHandle, text));
            }
            settled(outcome)?;
        }
        Ok(pb::ChangeInvisibleDurationResponse {
            status: Some(ok()),
            receipt_handle: request.receipt_handle,
        })
    }

    pub(super) async fn forward(
        &self,
        call: &Call,
        request: pb::ForwardMessageToDeadLetterQueueRequest,
    ) -> Result<pb::ForwardMessageToDeadLetterQueueResponse, Fault> {
        let group = names::group(request.group.as_ref())?;
        let handle = Handle::parse(&request.receipt_handle);
        let outcome = self.broker().give_up(&call.caller, &group, handle.receipt).await?;
        self.session(call)?.let_go(handle);
        settled(outcome)?;
        Ok(pb::ForwardMessageToDeadLetterQueueResponse { status: Some(ok()) })
    }
}

fn settled(outcome: Outcome) -> Result<(), Fault> {
    match outcome {
        Outcome::Ok | Outcome::Already => Ok(()),
        Outcome::Stale(text) => Err(Fault::new(Code::InvalidReceiptHandle, text)),
        Outcome::Invalid(problem) => Err(Fault::coded(Code::InvalidReceiptHandle, &problem)),
    }
}
