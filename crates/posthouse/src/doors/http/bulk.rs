//! Publishing line by line: a message a line in, its answer a line out, in order.
//!
//! Lines are published in batches as they come, several of them under way at once. What
//! is refused is answered by its problem and keeps nothing else out. One task reads and
//! hands over, another answers, so an answer leaves as soon as its batch is durable. The
//! answers are to be read while the lines are sent: with too many of them unread the
//! request is not read on.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::StreamExt as _;
use posthouse_client::proto::{OutgoingMessage, PublishRequest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::REQUEST_BYTES;
use super::answer::Refused;
use super::ask::{cut_off, parse};
use super::publish::{entry, refusal};
use crate::broker::Caller;
use crate::broker::publish::{Sent, Submitted};
use crate::doors::calls::Calls;
use crate::json;
use crate::problem::{Kind, Problem};

/// Lines that are published together at most.
const BATCH_LINES: usize = 256;
/// Bytes of bodies that are published together, unless one alone has more.
const BATCH_BYTES: usize = 1 << 20;
/// Batches of one request that are under way.
const UNDER_WAY: usize = 16;
/// Batches whose answers wait to be read.
const UNREAD: usize = 16;

/// Publishes the lines of a request.
///
/// # Errors
/// If the caller may not publish to the topic; everything later is said line by line.
pub async fn publish(
    calls: Calls,
    caller: Caller,
    topic: String,
    request: Request,
) -> Result<Response, Refused> {
    calls.broker.topic_to_publish(&caller, &topic).await?;
    let (answers, rx) = mpsc::channel(UNREAD);
    let (batches, handed_over) = mpsc::channel(UNDER_WAY);
    tokio::spawn(answer(calls.clone(), handed_over, answers));
    tokio::spawn(Bulk { calls, caller, topic, batches }.run(request.into_body()));
    let answers = tokio_stream::wrappers::ReceiverStream::new(rx);
    let body = Body::from_stream(answers.map(Ok::<_, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The reading half.
struct Bulk {
    calls: Calls,
    caller: Caller,
    topic: String,
    batches: mpsc::Sender<Batch>,
}

/// Lines whose answers have not left.
struct Batch {
    /// Why a line was refused; `None` if it was submitted.
    refused: Vec<Option<Problem>>,
    /// What became of the others. It is waited for by a task of its own: what a publish
    /// holds has to be given back when it is durable, whether or not its answers are
    /// read.
    sent: JoinHandle<Result<Sent, Problem>>,
}

/// Lines that have been read and not been submitted.
#[derive(Default)]
struct Lines {
    refused: Vec<Option<Problem>>,
    messages: Vec<OutgoingMessage>,
    bytes: usize,
}

impl Lines {
    fn add(&mut self, read: Result<OutgoingMessage, Problem>) {
        match read {
            Ok(message) => {
                self.bytes += message.body.len();
                self.messages.push(message);
                self.refused.push(None);
            }
            Err(problem) => self.refused.push(Some(problem)),
        }
    }

    /// Whether what was read next has to go into another batch.
    fn has_no_room(&self, read: &Result<OutgoingMessage, Problem>) -> bool {
        let more = read.as_ref().map_or(0, |message| message.body.len());
        self.refused.len() == BATCH_LINES || (self.bytes > 0 && self.bytes + more > BATCH_BYTES)
    }
}

/// What has come in and is no line yet.
#[derive(Default)]
struct Unread {
    buffer: BytesMut,
    /// There is no line end before here.
    searched: usize,
}

impl Unread {
    /// Takes a line from the front, without its end. At the end of everything what is
    /// left is a line.
    fn next_line(&mut self, at_end: bool) -> Option<BytesMut> {
        match self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line = self.buffer.split_to(self.searched + end);
                self.buffer.advance(1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.buffer.len();
                (at_end && !self.buffer.is_empty()).then(|| {
                    self.searched = 0;
                    self.buffer.split()
                })
            }
        }
    }
}

/// Nobody reads the answers any more.
struct Gone;

impl Bulk {
    async fn run(self, body: Body) {
        let mut data = body.into_data_stream();
        let mut unread = Unread::default();
        let mut lines = Lines::default();
        let mut end = None;
        while end.is_none() {
            match data.next().await {
                Some(Ok(piece)) => unread.buffer.extend_from_slice(&piece),
                Some(Err(error)) => end = Some(Some(cut_off(&error, REQUEST_BYTES))),
                None => end = Some(None),
            }
            while let Some(line) = unread.next_line(end == Some(None)) {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let read = parse::<json::Outgoing>(&line).and_then(json::Outgoing::into_proto);
                if lines.has_no_room(&read) && self.hand_over(&mut lines).await.is_err() {
                    return;
                }
                lines.add(read);
            }
            if unread.buffer.len() > REQUEST_BYTES {
                let detail = format!("a line has at most {REQUEST_BYTES} bytes");
                end = Some(Some(Problem::new(Kind::TooLarge, "line_too_large", detail)));
            }
            if let Some(Some(problem)) = &end {
                lines.add(Err(problem.clone()));
            }
            // What has come so far need not wait for what has not.
            if self.hand_over(&mut lines).await.is_err() {
                return;
            }
        }
    }

    async fn hand_over(&self, lines: &mut Lines) -> Result<(), Gone> {
        if lines.refused.is_empty() {
            return Ok(());
        }
        let Lines { refused, messages, .. } = std::mem::take(lines);
        let submitted = self.submit(messages).await;
        let sent = tokio::spawn(async move { submitted?.wait().await });
        self.batches.send(Batch { refused, sent }).await.map_err(|_| Gone)
    }

    async fn submit(&self, messages: Vec<OutgoingMessage>) -> Result<Submitted, Problem> {
        let request = PublishRequest { topic: self.topic.clone(), messages, apart: true };
        self.calls.submit_in_turn(&self.caller, &request).await
    }
}

/// The answering half: a line for every line, in order, until nobody reads them.
async fn answer(calls: Calls, mut batches: mpsc::Receiver<Batch>, answers: mpsc::Sender<Bytes>) {
    while let Some(Batch { refused, sent }) = batches.recv().await {
        let sent = sent.await.unwrap_or_else(|error| Err(Problem::internal(error.to_string())));
        let mut placed = match &sent {
            Ok(sent) => Ok(calls.broker.placed(sent)),
            Err(problem) => Err(problem),
        };
        let mut out = BytesMut::new();
        for refused in &refused {
            let entry = match (refused, &mut placed) {
                (Some(problem), _) => refusal(problem),
                (None, Ok(placed)) => match placed.next() {
                    Some(placed) => entry(placed),
                    None => refusal(&Problem::internal("a line has no answer")),
                },
                (None, Err(problem)) => refusal(problem),
            };
            out.extend_from_slice(&to_line(&entry));
        }
        if answers.send(out.freeze()).await.is_err() {
            return;
        }
    }
}

fn to_line(answer: &json::PublishedMessage) -> Bytes {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
