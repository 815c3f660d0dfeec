//! A bound on what clients have begun to send and not finished.
//!
//! A request is not acted on before its message is there whole, and until then its
//! bytes are in memory. Whoever begins many large messages and finishes none would fill
//! it. So every byte of an unfinished message holds a permit of a pool for the whole
//! node; with the pool empty a body is not read on, which holds its sender back, and
//! whoever waits too long is cut off. Publishes draw on a pool of their own: whoever
//! fills it keeps nobody from acknowledging.
//!
//! The body of a gRPC request is followed message by message, one of lines line by line;
//! any other body is one message.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::calls::convert;
use crate::problem::{Kind, Problem};

/// Bytes of unfinished publishes, over all connections.
pub const PUBLISH_BYTES: usize = 96 << 20;

/// Bytes of unfinished requests of any other sort.
pub const OTHER_BYTES: usize = 32 << 20;

/// A permit for so many bytes.
const PERMIT_BYTES: usize = 256;

/// How long a body waits for room, if it is one of many messages.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same for a single message, which can be sent again.
const SINGLE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a body may be without a byte in the middle of a message.
const SILENCE: Duration = Duration::from_secs(60);

/// The pools.
#[derive(Clone, Debug)]
pub struct Intake {
    publishes: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Default for Intake {
    fn default() -> Self {
        Intake::with_bytes(PUBLISH_BYTES, OTHER_BYTES)
    }
}

/// Whether the request at this path brings messages to publish.
fn is_publish(path: &str) -> bool {
    let to_topic = path.starts_with("/v1/topics/") && path.ends_with("/messages");
    to_topic || path == "/v1/publish" || path.starts_with("/posthouse.v1.Posthouse/Publish")
}

impl Intake {
    fn with_bytes(publishes: usize, others: usize) -> Self {
        let pool = |bytes| Arc::new(Semaphore::new(bytes / PERMIT_BYTES));
        Intake { publishes: pool(publishes), others: pool(others) }
    }

    /// Lets the body of a request draw on its pool.
    pub fn bound(&self, request: Request<Body>) -> Request<Body> {
        let is_publish = is_publish(request.uri().path());
        let pool = if is_publish { &self.publishes } else { &self.others };
        let kind = request.headers().get(header::CONTENT_TYPE);
        let message = match kind.map(|kind| kind.as_bytes()) {
            Some(kind) if kind.starts_with(b"application/grpc") => Message::Grpc(Follow::default()),
            Some(kind) if kind.starts_with(b"application/x-ndjson") => Message::Line(false),
            _ => Message::Whole,
        };
        request.map(|body| {
            Body::new(Bounded {
                inner: body,
                pool: pool.clone(),
                held: Vec::new(),
                asking: None,
                next: None,
                message,
                silence: None,
            })
        })
    }
}

/// Where a body stands among its messages.
enum Message {
    /// It is one.
    Whole,
    /// It is many, each a line. Whether a line has begun.
    Line(bool),
    /// It is many, each behind five bytes: a flag, and its length.
    Grpc(Follow),
}

#[derive(Default)]
struct Follow {
    prefix: [u8; 5],
    prefix_len: usize,
    left: u64,
}

impl Follow {
    /// Follows `data`. Returns how many of its bytes at the end belong to a message that
    /// is not whole, and whether a message ended in it.
    fn see(&mut self, mut data: &[u8]) -> (usize, bool) {
        let mut unfinished = 0;
        let mut ended = false;
        while !data.is_empty() {
            if self.left == 0 && self.prefix_len < 5 {
                let take = (5 - self.prefix_len).min(data.len());
                self.prefix[self.prefix_len..][..take].copy_from_slice(&data[..take]);
                self.prefix_len += take;
                unfinished += take;
                data = &data[take..];
                if self.prefix_len < 5 {
                    break;
                }
                let [_, a, b, c, d] = self.prefix;
                self.left = u32::from_be_bytes([a, b, c, d]).into();
            }
            let take = self.left.min(data.len() as u64) as usize;
            self.left -= take as u64;
            unfinished += take;
            data = &data[take..];
            if self.left == 0 {
                self.prefix_len = 0;
                unfinished = 0;
                ended = true;
            }
        }
        (unfinished, ended)
    }

    fn is_between(&self) -> bool {
        self.left == 0 && self.prefix_len == 0
    }
}

type Asking = BoxFuture<'static, Option<OwnedSemaphorePermit>>;

struct Bounded {
    inner: Body,
    pool: Arc<Semaphore>,
    /// What the unfinished message holds.
    held: Vec<OwnedSemaphorePermit>,
    /// Waits for room for `next`.
    asking: Option<Asking>,
    next: Option<Bytes>,
    message: Message,
    silence: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Why a body was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutOff {
    /// The pool is used up by others.
    #[error("too much is being sent to this server at once; come back in a moment")]
    NoRoom,
    /// Nothing more has come.
    #[error("nothing came for {} s in the middle of a message", SILENCE.as_secs())]
    Silent,
}

impl CutOff {
    /// The same as users see it.
    pub fn problem(self) -> Problem {
        match self {
            CutOff::NoRoom => {
                Problem::busy("too much is being sent to this server at once, and not finished")
                    .with_hint("come back in a moment")
            }
            CutOff::Silent => Problem::new(
                Kind::Unavailable,
                "cut_off",
                format!("the request was not read: {self}"),
            ),
        }
    }
}

impl Bounded {
    fn cut_off(&self, why: CutOff) -> axum::BoxError {
        match self.message {
            // The gRPC library looks for a status in what a body fails with.
            Message::Grpc(_) => {
                posthouse_client::rpc_status(&convert::problem(&why.problem())).into()
            }
            Message::Whole | Message::Line(_) => why.into(),
        }
    }

    fn patience(&self) -> Duration {
        if matches!(self.message, Message::Whole) { SINGLE_PATIENCE } else { PATIENCE }
    }

    /// Passes `data` on, with what of it is unfinished accounted for.
    fn pass(&mut self, data: Bytes, permit: Option<OwnedSemaphorePermit>) -> Bytes {
        match &mut self.message {
            Message::Whole => self.held.extend(permit),
            Message::Line(begun) => {
                *begun = data.last().is_some_and(|byte| *byte != b'\n');
                if data.contains(&b'\n') {
                    self.held.clear();
                }
                if *begun {
                    self.held.extend(permit);
                }
            }
            Message::Grpc(follow) => {
                let (unfinished, ended) = follow.see(&data);
                if ended {
                    self.held.clear();
                }
                if unfinished > 0 {
                    self.held.extend(permit);
                }
            }
        }
        data
    }

    fn is_in_message(&self) -> bool {
        match &self.message {
            Message::Whole => true,
            Message::Line(begun) => *begun,
            Message::Grpc(follow) => !follow.is_between(),
        }
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> bool {
        if !self.is_in_message() {
            self.silence = None;
            return false;
        }
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(SILENCE)));
        silence.as_mut().poll(context).is_ready()
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let body = &mut *self;
        loop {
            if let Some(asking) = &mut body.asking {
                let permit = ready!(asking.as_mut().poll(context));
                body.asking = None;
                let Some(data) = body.next.take() else { continue };
                if permit.is_none() {
                    return Poll::Ready(Some(Err(body.cut_off(CutOff::NoRoom))));
                }
                let data = body.pass(data, permit);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let frame = match Pin::new(&mut body.inner).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending if body.poll_silence(context) => {
                    return Poll::Ready(Some(Err(body.cut_off(CutOff::Silent))));
                }
                Poll::Pending => return Poll::Pending,
            };
            body.silence = None;
            let data = match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            };
            let permits = data.len().div_ceil(PERMIT_BYTES) as u32;
            match body.pool.clone().try_acquire_many_owned(permits) {
                Ok(permit) => {
                    let data = body.pass(data, Some(permit));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Err(_) => {
                    let asked = body.pool.clone().acquire_many_owned(permits);
                    body.next = Some(data);
                    let patience = body.patience();
                    body.asking = Some(Box::pin(async move {
                        tokio::time::timeout(patience, asked).await.ok()?.ok()
                    }));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn grpc(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        out.extend_from_slice(message);
        out
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        let wire = [grpc(b"first"), grpc(b""), grpc(&[7; 300]), grpc(b"last")].concat();
        for size in 1..wire.len() {
            let mut follow = Follow::default();
            let mut at = 0;
            for piece in wire.chunks(size) {
                at += piece.len();
                let (unfinished, _) = follow.see(piece);
                let is_boundary = [10, 15, 320, wire.len()].contains(&at);
                assert_eq!(follow.is_between(), is_boundary, "{size} bytes at a time, at {at}");
                assert_eq!(unfinished == 0, is_boundary);
            }
        }
    }

    fn request(body: Body, kind: &str) -> Request<Body> {
        Request::builder().header(header::CONTENT_TYPE, kind).body(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_finds_no_room_is_cut_off_in_time_and_room_comes_back() {
        let intake = Intake::with_bytes(4096, 4096);
        let open = |bytes: usize| {
            let (tx, rx) = futures_channel();
            tx.send(Ok::<_, std::io::Error>(Bytes::from(vec![0; bytes]))).unwrap();
            let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(rx);
            (tx, intake.bound(request(Body::from_stream(stream), "text/plain")).into_body())
        };
        let (_first_tx, mut first) = open(4000);
        assert!(first.frame().await.unwrap().is_ok());
        let (_second_tx, mut second) = open(1000);
        let error = second.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("too much is being sent"), "{error}");
        drop(first);
        let (_third_tx, mut third) = open(1000);
        assert!(third.frame().await.unwrap().is_ok());
        let error = third.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("nothing came for 60 s"), "{error}");
    }

    /// Uploads that were begun and not finished filled the only pool, and whoever wanted to
    /// acknowledge waited behind them.
    #[tokio::test(start_paused = true)]
    async fn publishes_that_are_not_finished_keep_no_ack_out() {
        let intake = Intake::with_bytes(4096, 4096);
        let to = |path: &str, kind: &str, bytes: usize| {
            let request = Request::builder().uri(path).header(header::CONTENT_TYPE, kind);
            let stream = tokio_stream::iter([Ok::<_, std::io::Error>(vec![0; bytes])]);
            let stream = futures_util::StreamExt::chain(stream, tokio_stream::pending());
            intake.bound(request.body(Body::from_stream(stream)).unwrap()).into_body()
        };
        let mut publishes = Vec::new();
        for path in ["/v1/topics/t/messages", "/v1/publish", "/posthouse.v1.Posthouse/Publish"] {
            let mut body = to(path, "application/json", 1280);
            assert!(body.frame().await.unwrap().is_ok());
            publishes.push(body);
        }
        let mut refused = to("/v1/publish", "application/json", 1280);
        let error = refused.frame().await.unwrap().unwrap_err();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while cause.is_some_and(|error| !error.is::<CutOff>()) {
            cause = cause.and_then(std::error::Error::source);
        }
        let cut_off = cause.and_then(|error| error.downcast_ref::<CutOff>()).unwrap();
        assert_eq!(cut_off.problem().kind, Kind::Exhausted);
        let mut stream = to("/posthouse.v1.Posthouse/PublishStream", "application/grpc", 1280);
        let error = stream.frame().await.unwrap().unwrap_err();
        assert_eq!(tonic::Status::from_error(error.into()).code(), tonic::Code::ResourceExhausted);
        for path in ["/v1/groups/g/ack", "/posthouse.v1.Posthouse/Ack", "/v1/topics/t"] {
            assert!(to(path, "application/json", 1280).frame().await.unwrap().is_ok(), "{path}");
        }
    }

    #[tokio::test]
    async fn a_stream_of_whole_messages_holds_nothing() {
        let lines = [[b'x'; 999].as_slice(), b"\n"].concat().repeat(100);
        let messages: Vec<u8> = (0..100).flat_map(|_| grpc(&[1; 1000])).collect();
        for (kind, wire) in [("application/grpc", messages), ("application/x-ndjson", lines)] {
            let intake = Intake::with_bytes(4096, 4096);
            let pieces: Vec<Result<Bytes, std::io::Error>> =
                wire.chunks(700).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let body = Body::from_stream(tokio_stream::iter(pieces));
            let body = intake.bound(request(body, kind)).into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), wire, "{kind}");
        }
    }

    fn futures_channel<T>()
    -> (tokio::sync::mpsc::UnboundedSender<T>, tokio::sync::mpsc::UnboundedReceiver<T>) {
        tokio::sync::mpsc::unbounded_channel()
    }
}
