//! Consuming with a handler.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::proto::consume_request::{Credit, Open, Request, StreamAck, StreamExtend, StreamNack};
use crate::proto::{ConsumeRequest, consume_response::Response};
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

type Requests = mpsc::UnboundedSender<ConsumeRequest>;

/// Receipts of messages that handlers have, by a number of ours.
type Held = Arc<Mutex<HashMap<u64, String>>>;

impl Client {
    /// Calls `handler` for every message of a group, several at a time. A message is
    /// acknowledged when the handler returns `Ok`, and given back when it returns an
    /// error. Its lease is extended while the handler runs.
    ///
    /// Runs until the returned future is dropped, or the server cannot be reached for as
    /// long as the options say, or it refuses. When the connection breaks it is made
    /// anew; messages that handlers still have then are settled if they finish before
    /// the lease ends, and come again otherwise.
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
        let handler = Arc::new(handler);
        let mut pause = Duration::from_millis(50);
        let mut unreachable_since: Option<tokio::time::Instant> = None;
        loop {
            let began = tokio::time::Instant::now();
            let ended = self.consume_once(group, &options, &handler).await;
            let error = match ended {
                Err(Error::Refused(problem)) if problem.status != tonic::Code::Unavailable => {
                    return Err(Error::Refused(problem));
                }
                Err(error @ Error::Invalid(_)) => return Err(error),
                Err(error) => error,
                Ok(()) => Error::Unreachable("the server has ended the stream".into()),
            };
            if began.elapsed() > Duration::from_secs(5) {
                unreachable_since = None;
                pause = Duration::from_millis(50);
            }
            let since = *unreachable_since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() > options.retry_for {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn consume_once<H, F>(
        &self,
        group: &str,
        options: &ConsumeOptions,
        handler: &Arc<H>,
    ) -> Result<(), Error>
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let (tx, rx) = mpsc::unbounded_channel();
        let lease_ms = options.lease.as_millis() as u64;
        let concurrency = options.concurrency.max(1) as u32;
        let open = Open {
            group: group.into(),
            consumer: options.consumer.clone(),
            lease_ms: Some(lease_ms),
            topic: options.topic.clone(),
            auto_ack: false,
            broadcast: options.broadcast,
            credit: Some(Credit { messages: concurrency, bytes: options.max_bytes }),
            max_batch: Some(concurrency),
        };
        send(&tx, Request::Open(open));
        let stream = self.raw().consume(UnboundedReceiverStream::new(rx)).await?;
        let mut responses = stream.into_inner();
        let held = Held::default();
        let mut running = JoinSet::new();
        let mut next = 0u64;
        let mut beat = tokio::time::interval(options.lease / 3);
        loop {
            tokio::select! {
                response = responses.message() => match response? {
                    None => break,
                    Some(response) => match response.response {
                        Some(Response::Messages(messages)) => {
                            for message in messages.messages {
                                next += 1;
                                let work = Work {
                                    number: next,
                                    delivery: message.into(),
                                    requests: tx.clone(),
                                    held: held.clone(),
                                };
                                held.lock().await.insert(next, work.delivery.receipt.clone());
                                running.spawn(work.run(handler.clone()));
                            }
                        }
                        Some(Response::Failed(failed)) if failed.seq == 0 => {
                            let problem = failed.problem.unwrap_or_default();
                            return Err(Error::Refused(problem.into()));
                        }
                        // What became of an ack: if the message has gone to somebody else
                        // there is nothing to be done about it here.
                        Some(Response::Settled(_) | Response::Failed(_)) | None => {}
                    },
                },
                _ = beat.tick() => {
                    let receipts: Vec<String> = held.lock().await.values().cloned().collect();
                    if !receipts.is_empty() {
                        let extend = StreamExtend { seq: 1, receipts, lease_ms: Some(lease_ms) };
                        send(&tx, Request::Extend(extend));
                    }
                }
                Some(_) = running.join_next() => {}
            }
        }
        Ok(())
    }
}

fn send(requests: &Requests, request: Request) {
    // A closed stream: the lease runs out, and the message comes again.
    drop(requests.send(ConsumeRequest { request: Some(request) }));
}

/// One message and the handler's work on it.
struct Work {
    number: u64,
    delivery: Delivery,
    requests: Requests,
    held: Held,
}

impl Work {
    async fn run<H, F>(self, handler: Arc<H>)
    where
        H: Fn(Delivery) -> F,
        F: Future<Output = Result<(), HandlerError>>,
    {
        let receipt = self.delivery.receipt.clone();
        let bytes = self.delivery.body.len() as u64;
        let done = handler(self.delivery).await;
        self.held.lock().await.remove(&self.number);
        let receipts = vec![receipt];
        match done {
            Ok(()) => send(&self.requests, Request::Ack(StreamAck { seq: 1, receipts })),
            Err(error) => {
                let end = error.reason.floor_char_boundary(REASON_BYTES);
                let nack = StreamNack {
                    seq: 1,
                    receipts,
                    delay_ms: error.delay.map(|delay| delay.as_millis() as u64),
                    reason: error.reason[..end].to_owned(),
                };
                send(&self.requests, Request::Nack(nack));
            }
        }
        send(&self.requests, Request::Credit(Credit { messages: 1, bytes }));
    }
}
