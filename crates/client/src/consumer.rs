//! Consuming with a handler.
//!
//! Handlers are tasks, and what they have done is kept until the server has confirmed
//! it. Both outlive a connection: the next one begins with the credit that is left, with
//! longer leases for what is being handled, and with whatever was not confirmed.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::proto::consume_request::{Credit, Open, Request, StreamAck, StreamExtend, StreamNack};
use crate::proto::consume_response::Response;
use crate::proto::{ConsumeRequest, ConsumeResponse};
use crate::{Client, Delivery, Error};

/// How to consume.
#[derive(Clone, Debug)]
pub struct ConsumeOptions {
    /// How many messages are handled at the same time.
    pub concurrency: usize,
    /// How many bytes of bodies may be here at the same time.
    pub max_bytes: u64,
    /// How long the leases are. They are extended while handlers run.
    pub lease: Duration,
    /// Only from this topic. On a server that makes groups on first use, it also says
    /// what a group that is not there shall get.
    pub topic: Option<String>,
    /// Get an own copy of everything that the group gets.
    pub broadcast: bool,
    /// The consumer's name.
    pub consumer: String,
    /// How long to go on trying when the server cannot be reached.
    pub retry_for: Duration,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        ConsumeOptions {
            concurrency: 16,
            max_bytes: 16 << 20,
            lease: Duration::from_secs(30),
            topic: None,
            broadcast: false,
            consumer: String::new(),
            retry_for: Duration::from_secs(300),
        }
    }
}

/// Why a handler could not do a message, and when it should come again.
#[derive(Clone, Debug, Default)]
pub struct HandlerError {
    /// Why. It goes with the message to the dead letters if this was the last attempt.
    pub reason: String,
    /// When it should come again; `None`: as the group says.
    pub delay: Option<Duration>,
}

impl HandlerError {
    /// The message should come again after `delay`.
    pub fn retry_after(delay: Duration, reason: impl Into<String>) -> Self {
        HandlerError { reason: reason.into(), delay: Some(delay) }
    }
}

impl<E: std::fmt::Display> From<E> for HandlerError {
    fn from(error: E) -> Self {
        HandlerError { reason: error.to_string(), delay: None }
    }
}

/// The most bytes of a reason that a server takes.
const REASON_BYTES: usize = 1024;

/// The most receipts of one request that a server takes.
const RECEIPTS: usize = 10_000;

/// Stands in requests whose answer does not matter.
const NO_SEQ: u64 = 0;

type Requests = mpsc::UnboundedSender<ConsumeRequest>;

impl Client {
    /// Calls `handler` for every message of a group, several at a time. A message is
    /// acknowledged when the handler returns `Ok`, and given back when it returns an
    /// error or panics. Its lease is extended while the handler runs.
    ///
    /// Runs until the server cannot be reached for as long as the options say, or it
    /// refuses, or the returned future is dropped: then handlers are dropped where they
    /// are, and their messages come again. See [`Client::consume_until`] to end in
    /// peace.
    ///
    /// When the connection breaks it is made anew. Handlers go on meanwhile, and what
    /// they have done is told to the server when it is back; that counts if nobody else
    /// has got the message since.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn consume<H, F>(
        &self,
        group: &str,
        options: ConsumeOptions,
        handler: H,
    ) -> Result<(), Error>
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.consume_until(group, options, std::future::pending(), handler).await
    }

    /// As [`Client::consume`], until `stop` is ready. Then handlers that run finish and
    /// their messages are settled; what comes meanwhile is given back at once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn consume_until<H, F>(
        &self,
        group: &str,
        options: ConsumeOptions,
        stop: impl Future<Output = ()> + Send,
        handler: H,
    ) -> Result<(), Error>
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let mut stop = pin!(stop);
        let mut consumer = Consumer::new(self.clone(), group, options, handler);
        let mut pause = Duration::from_millis(50);
        let mut unreachable_since: Option<Instant> = None;
        loop {
            let error = match consumer.connection(stop.as_mut()).await {
                Ok(()) => return Ok(()),
                Err(error) if is_worth_trying_again(&error) => error,
                Err(error) => return Err(error),
            };
            if std::mem::take(&mut consumer.has_heard) {
                unreachable_since = None;
                pause = Duration::from_millis(50);
            }
            let since = *unreachable_since.get_or_insert_with(Instant::now);
            if since.elapsed() > consumer.options.retry_for {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.as_mut(), if !consumer.is_stopping => consumer.is_stopping = true,
            }
            if consumer.is_stopping && consumer.has_nothing() {
                return Ok(());
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

/// Whether a stream that ended so is to be opened again.
fn is_worth_trying_again(error: &Error) -> bool {
    match error {
        Error::Refused(problem) => {
            // A damaged message comes again like any other, and others go on.
            let is_damaged = problem.status == tonic::Code::DataLoss;
            error.is_retryable() || error.is_outcome_unknown() || is_damaged
        }
        Error::Invalid(_) | Error::Closed => false,
        Error::Unreachable(_) | Error::OutcomeUnknown(_) => true,
    }
}

/// A message that a handler has.
struct Held {
    receipt: String,
    bytes: u64,
}

type Handled = Result<(), HandlerError>;

struct Consumer<H> {
    client: Client,
    group: String,
    options: ConsumeOptions,
    handler: Arc<H>,
    running: JoinSet<Handled>,
    held: HashMap<Id, Held>,
    /// What the server has been told and has not confirmed, by its number.
    unconfirmed: BTreeMap<u64, Request>,
    next_seq: u64,
    /// No new messages are wanted.
    is_stopping: bool,
    /// Something has come from the server since the last break.
    has_heard: bool,
    /// Extensions of leases that the server has not answered on this stream. With any, no
    /// more are sent: it would only have more to read when it does not.
    extending: usize,
}

impl<H, F> Consumer<H>
where
    H: Fn(Delivery) -> F + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    fn new(client: Client, group: &str, options: ConsumeOptions, handler: H) -> Self {
        Consumer {
            client,
            group: group.into(),
            options,
            handler: Arc::new(handler),
            running: JoinSet::new(),
            held: HashMap::new(),
            unconfirmed: BTreeMap::new(),
            next_seq: NO_SEQ + 1,
            is_stopping: false,
            has_heard: false,
            extending: 0,
        }
    }

    fn has_nothing(&self) -> bool {
        self.running.is_empty() && self.unconfirmed.is_empty()
    }

    fn concurrency(&self) -> u32 {
        u32::try_from(self.options.concurrency).unwrap_or(u32::MAX).max(1)
    }

    /// How a stream begins: with the credit that is left.
    fn open(&self) -> Open {
        let running = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let bytes: u64 = self.held.values().map(|held| held.bytes).sum();
        let credit = match self.is_stopping {
            true => Credit { messages: 0, bytes: 0 },
            false => Credit {
                messages: self.concurrency().saturating_sub(running),
                bytes: self.options.max_bytes.max(1).saturating_sub(bytes),
            },
        };
        Open {
            group: self.group.clone(),
            consumer: self.options.consumer.clone(),
            lease_ms: Some(self.lease_ms()),
            topic: self.options.topic.clone(),
            auto_ack: false,
            broadcast: self.options.broadcast,
            credit: Some(credit),
            max_batch: Some(self.concurrency().min(RECEIPTS as u32)),
        }
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.options.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Consumes over one stream. `Ok` says that all is done after a stop.
    async fn connection(
        &mut self,
        mut stop: std::pin::Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<(), Error> {
        // What waits here is bounded by what the server has given out: an answer and a
        // credit for each message, and one extension of them all.
        let (tx, rx) = mpsc::unbounded_channel();
        self.extending = 0;
        send(&tx, Request::Open(self.open()));
        for request in self.unconfirmed.values() {
            send(&tx, request.clone());
        }
        let stream = self.client.raw().consume(UnboundedReceiverStream::new(rx)).await?;
        let mut responses = stream.into_inner();
        // The first beat is at once: the last connection may have ended long ago.
        let mut beat =
            tokio::time::interval((self.options.lease / 3).max(Duration::from_millis(10)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.is_stopping && self.has_nothing() {
                return Ok(());
            }
            tokio::select! {
                response = responses.message() => match response? {
                    None => return Err(Error::Unreachable("the server has ended the stream".into())),
                    Some(response) => self.take(response, &tx)?,
                },
                _ = beat.tick() => self.extend(&tx),
                Some(done) = self.running.join_next_with_id() => self.handled(done, &tx),
                () = stop.as_mut(), if !self.is_stopping => self.is_stopping = true,
            }
        }
    }

    fn take(&mut self, response: ConsumeResponse, requests: &Requests) -> Result<(), Error> {
        self.has_heard = true;
        match response.response {
            Some(Response::Messages(messages)) if self.is_stopping => {
                let receipts = messages.messages.into_iter().map(|message| message.receipt);
                let nack = StreamNack {
                    seq: NO_SEQ,
                    receipts: receipts.collect(),
                    delay_ms: Some(0),
                    reason: "the consumer was stopping".into(),
                };
                self.settle(Request::Nack(nack), requests);
            }
            Some(Response::Messages(messages)) => {
                for message in messages.messages {
                    let delivery = Delivery::from(message);
                    let (receipt, bytes) = (delivery.receipt.clone(), delivery.body.len() as u64);
                    let handler = self.handler.clone();
                    // Called inside: a handler may panic before its first await.
                    let work = self.running.spawn(async move { handler(delivery).await });
                    self.held.insert(work.id(), Held { receipt, bytes });
                }
            }
            // If the message has gone to somebody else there is nothing to be done about it
            // here: each receipt's result is only as good as the work it stands for.
            Some(Response::Settled(settled)) if settled.seq == NO_SEQ => self.extended(),
            Some(Response::Settled(settled)) => drop(self.unconfirmed.remove(&settled.seq)),
            Some(Response::Failed(failed)) => {
                if failed.seq == NO_SEQ {
                    self.extended();
                }
                let error = Error::Refused(failed.problem.unwrap_or_default().into());
                // What it can do later is told again, on the next stream.
                let is_awaited = self.unconfirmed.contains_key(&failed.seq);
                if is_awaited && is_worth_trying_again(&error) {
                    return Err(error);
                }
                self.unconfirmed.remove(&failed.seq);
            }
            None => {}
        }
        Ok(())
    }

    /// Tells the server something that it has to confirm.
    fn settle(&mut self, request: Request, requests: &Requests) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let request = match request {
            Request::Ack(ack) => Request::Ack(StreamAck { seq, ..ack }),
            Request::Nack(nack) => Request::Nack(StreamNack { seq, ..nack }),
            other => other,
        };
        send(requests, request.clone());
        self.unconfirmed.insert(seq, request);
    }

    /// Takes over what a handler has done, and all others that are done by now.
    fn handled(&mut self, first: Result<(Id, Handled), JoinError>, requests: &Requests) {
        let mut acked = Vec::new();
        let mut credit = Credit { messages: 0, bytes: 0 };
        let mut next = Some(first);
        while let Some(done) = next.take() {
            let (id, done) = match done {
                Ok(done) => done,
                Err(error) => (error.id(), Err(panicked(error))),
            };
            if let Some(held) = self.held.remove(&id) {
                credit.messages += 1;
                credit.bytes += held.bytes;
                match done {
                    Ok(()) => acked.push(held.receipt),
                    Err(error) => self.settle(nack(held.receipt, error), requests),
                }
            }
            if acked.len() < RECEIPTS {
                next = self.running.try_join_next_with_id();
            }
        }
        if !acked.is_empty() {
            let ack = StreamAck { seq: NO_SEQ, receipts: acked };
            self.settle(Request::Ack(ack), requests);
        }
        if !self.is_stopping {
            send(requests, Request::Credit(credit));
        }
    }

    fn extended(&mut self) {
        self.extending = self.extending.saturating_sub(1);
    }

    /// Makes the leases of what is being handled longer.
    fn extend(&mut self, requests: &Requests) {
        if self.extending > 0 {
            return;
        }
        let receipts: Vec<String> = self.held.values().map(|held| held.receipt.clone()).collect();
        for receipts in receipts.chunks(RECEIPTS) {
            let lease_ms = Some(self.lease_ms());
            let extend = StreamExtend { seq: NO_SEQ, receipts: receipts.to_vec(), lease_ms };
            send(requests, Request::Extend(extend));
            self.extending += 1;
        }
    }
}

fn send(requests: &Requests, request: Request) {
    // A closed stream: what matters is told again on the next one.
    drop(requests.send(ConsumeRequest { request: Some(request) }));
}

fn nack(receipt: String, error: HandlerError) -> Request {
    let end = error.reason.floor_char_boundary(REASON_BYTES);
    Request::Nack(StreamNack {
        seq: NO_SEQ,
        receipts: vec![receipt],
        delay_ms: error.delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        reason: error.reason[..end].to_owned(),
    })
}

/// What a panic of a handler says of its message.
fn panicked(error: JoinError) -> HandlerError {
    let text = error.try_into_panic().ok().and_then(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
    });
    HandlerError {
        reason: format!("the handler panicked: {}", text.unwrap_or_default()),
        delay: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ReceiveResponse;
    use crate::proto::consume_response::Settled;

    fn response(response: Response) -> ConsumeResponse {
        ConsumeResponse { response: Some(response) }
    }

    fn messages(receipts: &[&str]) -> ConsumeResponse {
        let message = |receipt: &&str| crate::proto::ReceivedMessage {
            receipt: (*receipt).into(),
            ..Default::default()
        };
        let messages = receipts.iter().map(message).collect();
        response(Response::Messages(ReceiveResponse { messages }))
    }

    /// What was sent since: acks and extensions, with their receipts.
    fn sent(rx: &mut mpsc::UnboundedReceiver<ConsumeRequest>) -> Vec<(&'static str, Vec<String>)> {
        let mut sent = Vec::new();
        while let Ok(request) = rx.try_recv() {
            match request.request {
                Some(Request::Ack(ack)) => sent.push(("ack", ack.receipts)),
                Some(Request::Extend(mut extend)) => {
                    extend.receipts.sort();
                    sent.push(("extend", extend.receipts));
                }
                _ => {}
            }
        }
        sent
    }

    /// A server that did not read was sent the same extensions again and again, without any
    /// bound on what waited for it.
    #[tokio::test]
    async fn leases_are_extended_while_handlers_run_and_once_at_a_time() {
        let client = Client::builder("http://127.0.0.1:1").connect_lazily().unwrap();
        let gate = Arc::new(tokio::sync::Notify::new());
        let opened = gate.clone();
        let handler = move |delivery: Delivery| {
            let gate = opened.clone();
            async move {
                if delivery.receipt == "slow" {
                    gate.notified().await;
                }
                Ok(())
            }
        };
        let mut consumer = Consumer::new(client, "g", ConsumeOptions::default(), handler);
        let (tx, mut rx) = mpsc::unbounded_channel();
        consumer.take(messages(&["quick", "slow"]), &tx).unwrap();
        let done = consumer.running.join_next_with_id().await.unwrap();
        consumer.handled(done, &tx);
        consumer.extend(&tx);
        consumer.extend(&tx);
        let texts =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let (ack, extend) = (("ack", texts(&["quick"])), ("extend", texts(&["slow"])));
        assert_eq!(sent(&mut rx), [ack, extend.clone()]);
        let answered = response(Response::Settled(Settled { seq: NO_SEQ, results: Vec::new() }));
        consumer.take(answered, &tx).unwrap();
        consumer.extend(&tx);
        assert_eq!(sent(&mut rx), [extend]);
        gate.notify_one();
        let done = consumer.running.join_next_with_id().await.unwrap();
        consumer.handled(done, &tx);
        consumer.extending = 0;
        consumer.extend(&tx);
        assert_eq!(sent(&mut rx), [("ack", texts(&["slow"]))], "and not any more when they end");
    }
}
