//! Publishing request after request on one stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::{Stream, StreamExt as _};
use posthouse_client::proto::{PublishRequest, PublishResponse};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use crate::broker::Caller;
use crate::broker::publish::{Sent, Submitted};
use crate::doors::calls::{Calls, convert};
use crate::problem::{Kind, Problem};

/// Requests of one stream that are under way. Beyond it the stream is not read: the
/// client is held back by flow control.
const UNDER_WAY: usize = 64;

/// Messages of one stream that are under way, or whose answers nobody has read; a single
/// request may have more.
const MESSAGES_UNDER_WAY: usize = 20_000;

/// A request that was handed over.
struct Handed {
    /// How many messages it has.
    messages: usize,
    /// What became of it. A task of its own waits for it: what a publish holds has to be
    /// given back when it is durable, whether or not its answer is read.
    answer: JoinHandle<Result<Sent, Problem>>,
}

/// A stream of publishes. Requests are handed to the broker in the order they come, one
/// after the other; their answers leave in that order. It runs where its connection runs.
pub(super) struct Session {
    calls: Calls,
    caller: Caller,
    incoming: Option<Streaming<PublishRequest>>,
    /// The request that is being handed over, and how many messages it has.
    intake: Option<(usize, BoxFuture<'static, Result<Submitted, Problem>>)>,
    answers: VecDeque<Handed>,
    /// Messages of all `answers`.
    messages: usize,
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
            answers: VecDeque::new(),
            messages: 0,
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
            if let Some((messages, intake)) = &mut self.intake {
                let Poll::Ready(taken) = intake.as_mut().poll(context) else { return };
                let messages = *messages;
                self.intake = None;
                let answer = tokio::spawn(async move { taken?.wait().await });
                self.messages += messages;
                self.answers.push_back(Handed { messages, answer });
            }
            if self.answers.len() >= UNDER_WAY || self.messages >= MESSAGES_UNDER_WAY {
                return;
            }
            let Some(incoming) = &mut self.incoming else { return };
            match incoming.poll_next_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(request))) => {
                    self.intake = Some((request.messages.len(), self.take_in(request)));
                }
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
        let Some(handed) = session.answers.front_mut() else {
            if session.incoming.is_none() && session.intake.is_none() {
                return Poll::Ready(session.end.pop_front().map(Err));
            }
            return Poll::Pending;
        };
        let answer = ready!(Pin::new(&mut handed.answer).poll(context));
        session.messages -= handed.messages;
        session.answers.pop_front();
        match answer.unwrap_or_else(|error| Err(Problem::internal(error.to_string()))) {
            Ok(sent) => Poll::Ready(Some(Ok(session.calls.response(&sent)))),
            Err(problem) => {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use axum::body::Body;
    use posthouse_client::codec::Codec;
    use posthouse_log::files::RealFiles;
    use tonic::codec::Codec as _;

    use super::*;
    use crate::broker::{Broker, BrokerOptions, bounds};

    /// A client that did not read its answers kept the room that its messages had on
    /// their way, and nobody else could publish.
    #[tokio::test]
    async fn what_is_durable_holds_no_room_even_if_nobody_reads_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = BrokerOptions::new(dir.path().to_owned());
        (options.disk_reserve, options.shards) = (Some(0), Some(1));
        let (broker, _) = Broker::start(RealFiles::shared(), options).await.unwrap();
        // A message "x" for topic "t", with its length before it.
        let wire: &[u8] = &[0, 0, 0, 0, 8, 10, 1, b't', 18, 3, 10, 1, b'x'];
        let body =
            tokio_stream::iter([Ok::<_, std::io::Error>(wire)]).chain(tokio_stream::pending());
        let decoder = Codec::<PublishResponse, PublishRequest>::default().decoder();
        let incoming = Streaming::new_request(decoder, Body::from_stream(body), None, None);
        let calls = Calls { broker: broker.clone() };
        let mut session = Session::new(calls, Caller::Node, incoming);
        // Looked at until it has handed the request over, and then never again.
        while session.answers.is_empty() {
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut session).poll_next(&mut context).is_pending());
            tokio::task::yield_now().await;
        }
        let all = broker.wait_for_permit(bounds::BYTES_IN_FLIGHT);
        let all = tokio::time::timeout(Duration::from_secs(20), all).await;
        assert!(all.is_ok(), "the room does not come back");
        drop(session);
        drop(all);
        broker.stop(Duration::from_secs(20)).await.unwrap();
    }
}
