//! Consuming on one stream: messages out, and what the consumer says of them in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered, StreamExt as _};
use posthouse_client::proto::consume_request::{Open, Request};
use posthouse_client::proto::consume_response::{Failed, Response, Settled};
use posthouse_client::proto::{ConsumeRequest, ConsumeResponse, SettleResponse};
use tonic::{Status, Streaming};

use super::status;
use crate::broker::consume::{Receive, Received, Verdict};
use crate::broker::{Caller, Presence, bounds};
use crate::doors::calls::consume::messages;
use crate::doors::calls::{Calls, convert};
use crate::problem::Problem;

/// How long one receive of a stream waits before it asks again.
const WAIT: Duration = Duration::from_secs(60);

/// Messages of one response of a stream, unless the client says otherwise.
const BATCH: u32 = 256;

/// Settles of one stream that are under way. Beyond it the stream is not read.
const SETTLES: usize = 256;

/// A stream of messages, as far as credits go, and of what the consumer says of them.
struct Session {
    calls: Calls,
    caller: Caller,
    incoming: Option<Streaming<ConsumeRequest>>,
    /// How the stream was opened; `None` before it was.
    open: Option<Arc<Open>>,
    credit: (u64, u64),
    receive: Option<BoxFuture<'static, Result<Vec<Received>, Problem>>>,
    settles: FuturesUnordered<BoxFuture<'static, (u64, Result<SettleResponse, Problem>)>>,
    /// What leaves before anything else.
    ready: VecDeque<Result<Response, Status>>,
    /// Nothing leaves any more.
    ended: bool,
    /// Whoever consumes is there as long as the stream is.
    presence: Option<Presence>,
}

pub(super) fn session(
    calls: Calls,
    caller: Caller,
    incoming: Streaming<ConsumeRequest>,
) -> BoxStream<'static, Result<ConsumeResponse, Status>> {
    let session = Session {
        calls,
        caller,
        incoming: Some(incoming),
        open: None,
        credit: (0, 0),
        receive: None,
        settles: FuturesUnordered::new(),
        ready: VecDeque::new(),
        ended: false,
        presence: None,
    };
    // It runs where its connection runs: no task and no queue stand between.
    Box::pin(stream::unfold(session, |mut session| async move {
        let response = session.next().await?;
        let response = response.map(|response| ConsumeResponse { response: Some(response) });
        Some((response, session))
    }))
}

impl Session {
    async fn next(&mut self) -> Option<Result<Response, Status>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                self.ended |= response.is_err();
                return Some(response);
            }
            let is_over = self.incoming.is_none() && self.settles.is_empty();
            if self.ended || is_over {
                return None;
            }
            self.ask();
            let reads = self.incoming.is_some() && self.settles.len() < SETTLES;
            tokio::select! {
                request = read(&mut self.incoming), if reads => self.take(request),
                Some((seq, settled)) = self.settles.next() => self.settled(seq, settled),
                received = wait(&mut self.receive), if self.receive.is_some() => {
                    self.receive = None;
                    self.received(received);
                }
            }
        }
    }

    /// Asks for messages, if there is credit for any.
    fn ask(&mut self) {
        let Some(open) = &self.open else { return };
        let (messages, bytes) = self.credit;
        if self.receive.is_some() || messages == 0 || bytes == 0 || self.incoming.is_none() {
            return;
        }
        let most = open.max_batch.unwrap_or(BATCH).clamp(1, bounds::RECEIVE_MESSAGES as u32);
        let ask = Receive {
            max: messages.min(most.into()) as usize,
            max_bytes: bytes.min(bounds::STREAM_BYTES),
            wait: WAIT,
            lease_ms: open.lease_ms,
            topic: open.topic.clone(),
            auto_ack: open.auto_ack,
            broadcast: open.broadcast,
            consumer: open.consumer.clone(),
        };
        let (calls, caller, open) = (self.calls.clone(), self.caller.clone(), open.clone());
        self.receive = Some(Box::pin(async move {
            let caller = calls.broker.identify_again(&caller)?;
            let received = calls.broker.receive(&caller, &open.group, &ask).await?;
            // That may have taken long.
            if let Err(problem) = calls.broker.identify_again(&caller) {
                calls.broker.give_back(received.iter().map(|message| message.receipt.as_str()));
                return Err(problem);
            }
            Ok(received)
        }));
    }

    fn take(&mut self, request: Option<Result<ConsumeRequest, Status>>) {
        let request = match request {
            None => {
                // The client has said all it will: what it has said is answered.
                self.incoming = None;
                self.receive = None;
                return;
            }
            Some(Err(status)) => return self.ready.push_back(Err(status)),
            Some(Ok(request)) => request.request,
        };
        match (request, &self.open) {
            (Some(Request::Open(open)), None) => {
                let credit = open.credit.unwrap_or_default();
                self.credit = (credit.messages.into(), credit.bytes);
                self.open = Some(Arc::new(open));
            }
            (Some(Request::Open(_)), Some(_)) => {
                self.refuse("request", "a second open", "a stream is opened once");
            }
            (Some(_), None) => {
                self.refuse("request", "no open", "the first request of a stream is an open");
            }
            (Some(Request::Credit(credit)), _) => {
                self.credit.0 = self.credit.0.saturating_add(credit.messages.into());
                self.credit.1 = self.credit.1.saturating_add(credit.bytes);
            }
            (Some(Request::Ack(ack)), _) => self.settle(ack.seq, ack.receipts, Verdict::Ack),
            (Some(Request::Nack(nack)), _) => {
                let reason = nack.reason.as_str().into();
                let verdict = Verdict::Nack { delay_ms: nack.delay_ms, reason };
                self.settle(nack.seq, nack.receipts, verdict);
            }
            (Some(Request::Extend(extend)), _) => {
                let verdict = Verdict::Extend { lease_ms: extend.lease_ms };
                self.settle(extend.seq, extend.receipts, verdict);
            }
            // A request of a newer client: nothing that we know of.
            (None, _) => {}
        }
    }

    fn refuse(&mut self, field: &str, value: &str, limit: &str) {
        self.ready.push_back(Err(status(Problem::invalid(field, value, limit))));
    }

    fn settle(&mut self, seq: u64, receipts: Vec<String>, verdict: Verdict) {
        let Some(open) = self.open.clone() else { return };
        let (calls, caller) = (self.calls.clone(), self.caller.clone());
        self.settles.push(Box::pin(async move {
            let settled = match calls.broker.identify_again(&caller) {
                Ok(caller) => calls.settle(&caller, &open.group, receipts, verdict).await,
                Err(problem) => Err(problem),
            };
            (seq, settled)
        }));
    }

    fn settled(&mut self, seq: u64, settled: Result<SettleResponse, Problem>) {
        self.ready.push_back(Ok(match settled {
            Ok(settled) => Response::Settled(Settled { seq, results: settled.results }),
            Err(problem) => {
                Response::Failed(Failed { seq, problem: Some(convert::problem(&problem)) })
            }
        }));
    }

    fn received(&mut self, received: Result<Vec<Received>, Problem>) {
        // With its credit used up it asks for nothing, and is there all the same.
        self.presence = self.open.as_ref().map(|open| {
            let own = open.broadcast.then_some(open.consumer.as_str());
            self.calls.broker.presence(&open.group, own)
        });
        match received.and_then(|received| messages(&received)) {
            Ok(response) if response.messages.is_empty() => {}
            Ok(response) => {
                let bytes: u64 = response.messages.iter().map(|m| m.body.len() as u64).sum();
                self.credit.0 = self.credit.0.saturating_sub(response.messages.len() as u64);
                self.credit.1 = self.credit.1.saturating_sub(bytes);
                self.ready.push_back(Ok(Response::Messages(response)));
            }
            // Without messages the stream is no use: it ends.
            Err(problem) => self.ready.push_back(Err(status(problem))),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for response in &self.ready {
            if let Ok(Response::Messages(unsent)) = response {
                let receipts = unsent.messages.iter().map(|message| message.receipt.as_str());
                self.calls.broker.give_back(receipts);
            }
        }
    }
}

async fn read(
    incoming: &mut Option<Streaming<ConsumeRequest>>,
) -> Option<Result<ConsumeRequest, Status>> {
    incoming.as_mut()?.next().await
}

async fn wait(
    receive: &mut Option<BoxFuture<'static, Result<Vec<Received>, Problem>>>,
) -> Result<Vec<Received>, Problem> {
    match receive {
        Some(receive) => receive.await,
        None => std::future::pending().await,
    }
}
