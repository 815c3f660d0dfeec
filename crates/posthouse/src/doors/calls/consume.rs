//! Consuming.

use std::time::Duration;

use posthouse_client::proto::{
    AckRequest, ExtendRequest, NackRequest, ReceiveRequest, ReceiveResponse, SettleResponse,
};

use super::{Calls, convert};
use crate::broker::Caller;
use crate::broker::consume::{Receive, Received, Verdict};
use crate::problem::Problem;

impl Calls {
    pub(in crate::doors) async fn receive(
        &self,
        caller: &Caller,
        request: ReceiveRequest,
    ) -> Result<ReceiveResponse, Problem> {
        let defaults = Receive::default();
        let ask = Receive {
            max: request.max.map_or(defaults.max, |max| max as usize),
            max_bytes: request.max_bytes.unwrap_or(defaults.max_bytes),
            wait: Duration::from_millis(request.wait_ms.unwrap_or(0)),
            lease_ms: request.lease_ms,
            topic: request.topic,
            auto_ack: request.auto_ack,
            broadcast: request.broadcast,
            consumer: request.consumer,
        };
        let received = self.broker.receive(caller, &request.group, &ask).await?;
        messages(&received)
    }

    pub(in crate::doors) async fn ack(
        &self,
        caller: &Caller,
        request: AckRequest,
    ) -> Result<SettleResponse, Problem> {
        self.settle(caller, &request.group, request.receipts, Verdict::Ack).await
    }

    pub(in crate::doors) async fn nack(
        &self,
        caller: &Caller,
        request: NackRequest,
    ) -> Result<SettleResponse, Problem> {
        let verdict =
            Verdict::Nack { delay_ms: request.delay_ms, reason: request.reason.as_str().into() };
        self.settle(caller, &request.group, request.receipts, verdict).await
    }

    pub(in crate::doors) async fn extend(
        &self,
        caller: &Caller,
        request: ExtendRequest,
    ) -> Result<SettleResponse, Problem> {
        let verdict = Verdict::Extend { lease_ms: request.lease_ms };
        self.settle(caller, &request.group, request.receipts, verdict).await
    }

    /// Says the same of every receipt.
    pub(in crate::doors) async fn settle(
        &self,
        caller: &Caller,
        group: &str,
        receipts: Vec<String>,
        verdict: Verdict,
    ) -> Result<SettleResponse, Problem> {
        let items = receipts.into_iter().map(|receipt| (receipt, verdict.clone())).collect();
        let outcomes = self.broker.settle(caller, group, items).await?;
        let results = outcomes.into_iter().map(convert::outcome).collect();
        Ok(SettleResponse { results })
    }
}

/// What was received, as it goes over the wire.
pub(in crate::doors) fn messages(received: &[Received]) -> Result<ReceiveResponse, Problem> {
    let messages: Result<_, Problem> = received.iter().map(convert::received).collect();
    Ok(ReceiveResponse { messages: messages? })
}
