//! Publishing, one request or a stream of them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, Stream, StreamExt as _};
use posthouse_client::proto::{OutgoingMessage, PublishRequest, PublishResponse, PublishedMessage};
use posthouse_core::message::Parts;
use tonic::{Status, Streaming};

use super::{Door, convert};
use crate::broker::Caller;
use crate::broker::publish::{Outbox, Permit, Sent, Submitted};
use crate::problem::{Kind, Problem};

/// Requests of one stream that are under way. Beyond it the stream is not read: the
/// client is held back by flow control.
const UNDER_WAY: usize = 64;

impl Door {
    pub(super) async fn publish(
        &self,
        caller: &Caller,
        request: PublishRequest,
    ) -> Result<PublishResponse, Problem> {
        let permit = self.broker.permit(bytes_of(&request))?;
        let outbox = self.fill(caller, &request, permit).await?;
        let sent = self.broker.publish(outbox).await?;
        Ok(self.response(&sent))
    }

    /// Puts the messages of a request in an outbox.
    async fn fill(
        &self,
        caller: &Caller,
        request: &PublishRequest,
        permit: Permit,
    ) -> Result<Outbox, Problem> {
        let mut outbox = self.broker.outbox(Some(permit), request.apart);
        let mut last = None;
        for message in &request.messages {
            let name = if message.topic.is_empty() { &request.topic } else { &message.topic };
            let topic = match &last {
                Some((known, topic)) if *known == name => topic,
                _ => {
                    let topic = self.broker.topic_to_publish(caller, name).await?;
                    &last.insert((name, topic)).1
                }
            };
            self.broker.add(&mut outbox, topic, &parts(message), &message.body)?;
        }
        Ok(outbox)
    }

    fn response(&self, sent: &Sent) -> PublishResponse {
        let messages = self.broker.placed(sent).map(|placed| match placed {
            Ok(placed) => PublishedMessage {
                id: placed.id.to_string(),
                partition: placed.partition,
                position: placed.position,
                duplicate: placed.duplicate,
                problem: None,
            },
            Err(problem) => PublishedMessage {
                problem: Some(convert::problem(&problem)),
                ..PublishedMessage::default()
            },
        });
        PublishResponse { messages: messages.collect(), problem: None }
    }
}

fn bytes_of(request: &PublishRequest) -> usize {
    request.messages.iter().map(|message| message.body.len()).sum()
}

fn parts(message: &OutgoingMessage) -> Parts<'_> {
    Parts {
        key: message.key.as_deref(),
        tags: message.tags.iter().map(String::as_str).collect(),
        headers: message.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect(),
        dedupe_id: message.dedupe_id.as_deref(),
        ttl_ms: message.ttl_ms,
        origin: None,
    }
}

/// A stream of publishes. Requests are handed to the broker in the order they come, one
/// after the other; their answers are waited for together, and leave in that order.
///
/// It runs where its connection runs: no task and no queue stand between.
pub(super) struct Session {
    door: Door,
    caller: Caller,
    incoming: Option<Streaming<PublishRequest>>,
    /// The request that is being handed over.
    intake: Option<BoxFuture<'static, Result<Submitted, Problem>>>,
    answers: FuturesOrdered<BoxFuture<'static, Result<Sent, Problem>>>,
    /// Why the stream ends when everything is answered.
    end: VecDeque<Status>,
}

impl Session {
    pub(super) fn new(door: Door, caller: Caller, incoming: Streaming<PublishRequest>) -> Self {
        Session {
            door,
            caller,
            incoming: Some(incoming),
            intake: None,
            answers: FuturesOrdered::new(),
            end: VecDeque::new(),
        }
    }

    fn take_in(&self, request: PublishRequest) -> BoxFuture<'static, Result<Submitted, Problem>> {
        let (door, caller) = (self.door.clone(), self.caller.clone());
        Box::pin(async move {
            let permit = door.broker.wait_for_permit(bytes_of(&request)).await?;
            let outbox = door.fill(&caller, &request, permit).await?;
            door.broker.submit(outbox)
        })
    }

    /// Reads and hands over as much as may be.
    fn read(&mut self, context: &mut Context<'_>) {
        loop {
            if let Some(intake) = &mut self.intake {
                let Poll::Ready(taken) = intake.as_mut().poll(context) else { return };
                self.intake = None;
                self.answers.push_back(match taken {
                    Ok(submitted) => Box::pin(submitted.wait()),
                    Err(problem) => Box::pin(async { Err(problem) }),
                });
            }
            if self.answers.len() >= UNDER_WAY {
                return;
            }
            let Some(incoming) = &mut self.incoming else { return };
            match incoming.poll_next_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(request))) => self.intake = Some(self.take_in(request)),
                Poll::Ready(Some(Err(status))) => {
                    self.end.push_back(status);
                    self.incoming = None;
                }
                Poll::Ready(None) => self.incoming = None,
            }
        }
    }
}

impl Stream for Session {
    type Item = Result<PublishResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let session = &mut *self;
        session.read(context);
        match session.answers.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(sent))) => Poll::Ready(Some(Ok(session.door.response(&sent)))),
            Poll::Ready(Some(Err(problem))) => {
                // What ends the node ends the stream; anything else is about this
                // request alone.
                let is_end = problem.kind == Kind::Unavailable;
                let response = PublishResponse {
                    messages: Vec::new(),
                    problem: Some(convert::problem(&problem)),
                };
                if is_end {
                    session.incoming = None;
                }
                Poll::Ready(Some(Ok(response)))
            }
            Poll::Ready(None) if session.incoming.is_none() && session.intake.is_none() => {
                Poll::Ready(session.end.pop_front().map(Err))
            }
            // An answer was read since: there may be room for a request again.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
