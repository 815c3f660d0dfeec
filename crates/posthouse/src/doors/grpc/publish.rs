//! Publishing request after request on one stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, Stream, StreamExt as _};
use posthouse_client::proto::{PublishRequest, PublishResponse};
use tonic::{Status, Streaming};

use crate::broker::Caller;
use crate::broker::publish::{Sent, Submitted};
use crate::doors::calls::{Calls, convert};
use crate::problem::{Kind, Problem};

/// Requests of one stream that are under way. Beyond it the stream is not read: the
/// client is held back by flow control.
const UNDER_WAY: usize = 64;

/// A stream of publishes. Requests are handed to the broker in the order they come, one
/// after the other; their answers are waited for together, and leave in that order.
///
/// It runs where its connection runs: no task and no queue stand between.
pub(super) struct Session {
    calls: Calls,
    caller: Caller,
    incoming: Option<Streaming<PublishRequest>>,
    /// The request that is being handed over.
    intake: Option<BoxFuture<'static, Result<Submitted, Problem>>>,
    answers: FuturesOrdered<BoxFuture<'static, Result<Sent, Problem>>>,
    /// Why the stream ends when everything is answered.
    end: VecDeque<Status>,
}

impl Session {
    pub(super) fn new(calls: Calls, caller: Caller, incoming: Streaming<PublishRequest>) -> Self {
        Session {
            calls,
            caller,
            incoming: Some(incoming),
            intake: None,
            answers: FuturesOrdered::new(),
            end: VecDeque::new(),
        }
    }

    fn take_in(&self, request: PublishRequest) -> BoxFuture<'static, Result<Submitted, Problem>> {
        let (calls, caller) = (self.calls.clone(), self.caller.clone());
        Box::pin(async move { calls.submit_in_turn(&caller, &request).await })
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
            Poll::Ready(Some(Ok(sent))) => Poll::Ready(Some(Ok(session.calls.response(&sent)))),
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
