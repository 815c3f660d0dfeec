//! A bound on what clients have begun to send and not finished.
//!
//! A request is not acted on before its message is there whole, and until then its
//! bytes are in memory. Whoever begins many large messages and finishes none would fill
//! it. So every byte of an unfinished message holds a permit of one pool for the whole
//! node; with the pool empty a body is not read on, which holds its sender back, and
//! whoever waits too long is cut off.
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

/// Bytes of unfinished messages, over all connections.
pub const POOL_BYTES: usize = 128 << 20;

/// A permit for so many bytes.
const PERMIT_BYTES: usize = 256;

/// How long a body waits for room.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a body may be without a byte in the middle of a message.
const SILENCE: Duration = Duration::from_secs(60);

/// The pool.
#[derive(Clone, Debug)]
pub struct Intake {
    pool: Arc<Semaphore>,
}

impl Default for Intake {
    fn default() -> Self {
        Intake::with_bytes(POOL_BYTES)
    }
}

impl Intake {
    fn with_bytes(bytes: usize) -> Self {
        Intake { pool: Arc::new(Semaphore::new(bytes / PERMIT_BYTES)) }
    }

    /// Lets the body of a request draw on the pool.
    pub fn bound(&self, request: Request<Body>) -> Request<Body> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let message = match kind.map(|kind| kind.as_bytes()) {
            Some(kind) if kind.starts_with(b"application/grpc") => Message::Grpc(Follow::default()),
            Some(kind) if kind.starts_with(b"application/x-ndjson") => Message::Line(false),
            _ => Message::Whole,
        };
        request.map(|body| {
            Body::new(Bounded {
                inner: body,
                pool: self.pool.clone(),
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
    /// It waited too long for room.
    #[error("too much is being sent to this server at once; come back in a moment")]
    NoRoom,
    /// It waited too long for its next bytes.
    #[error("nothing came for {} s in the middle of a message", SILENCE.as_secs())]
    Silent,
}

impl Bounded {
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
                    return Poll::Ready(Some(Err(CutOff::NoRoom.into())));
                }
                let data = body.pass(data, permit);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let frame = match Pin::new(&mut body.inner).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending if body.poll_silence(context) => {
                    return Poll::Ready(Some(Err(CutOff::Silent.into())));
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
                    body.asking = Some(Box::pin(async move {
                        tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()
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
        let intake = Intake::with_bytes(4096);
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

    #[tokio::test]
    async fn a_stream_of_whole_messages_holds_nothing() {
        let lines = [[b'x'; 999].as_slice(), b"\n"].concat().repeat(100);
        let messages: Vec<u8> = (0..100).flat_map(|_| grpc(&[1; 1000])).collect();
        for (kind, wire) in [("application/grpc", messages), ("application/x-ndjson", lines)] {
            let intake = Intake::with_bytes(4096);
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
