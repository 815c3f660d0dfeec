//! A bound on what clients have begun to send and not finished.
//!
//! A request is not acted on before its message is there whole, and until then its
//! bytes are in memory. Whoever begins many large messages and finishes none would fill
//! it. So every byte of an unfinished message holds a permit of a pool for the whole
//! node; with the pool empty a body is not read on, which holds its sender back, and
//! whoever waits too long is cut off. Publishes draw on a pool of their own: whoever
//! fills it keeps nobody from acknowledging.
//!
//! A pool that is full of messages that come slowly would keep everybody else out. So
//! whoever waits for room, and finds none soon, takes it from those that have sent
//! slowest: as long as there is room, a message may take its time.
//!
//! The body of a gRPC request is followed message by message, one of lines line by line;
//! any other body is one message.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

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

/// How long a body waits for room before others have to give way.
const GRACE: Duration = Duration::from_millis(500);

/// Who has sent so much of a message, or its end, in so long, gives way to nobody.
const STEP_BYTES: u64 = 512 << 10;
const STEP: Duration = Duration::from_secs(2);

/// The pools.
#[derive(Clone, Debug)]
pub struct Intake {
    publishes: Arc<Pool>,
    others: Arc<Pool>,
}

/// Room for what is unfinished, and who has how much of it.
#[derive(Debug)]
struct Pool {
    permits: Arc<Semaphore>,
    slow: Mutex<Slow>,
}

/// Bodies that hold room and have been waited for.
#[derive(Debug, Default)]
struct Slow {
    bodies: HashMap<u64, Arc<Sender>>,
    next: u64,
}

/// A body that has been waited for in the middle of a message.
#[derive(Debug)]
struct Sender {
    began: Instant,
    /// Milliseconds behind `began` at which it was last a step further. The time that it
    /// has waited for room is not held against it.
    since_ms: AtomicU64,
    /// What its message holds.
    bytes: AtomicU64,
    /// It waits for room itself, so nothing can come from it.
    asks: AtomicBool,
    /// It has to give way.
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Pool {
    fn new(bytes: usize) -> Arc<Pool> {
        let permits = Arc::new(Semaphore::new(bytes / PERMIT_BYTES));
        Arc::new(Pool { permits, slow: Mutex::default() })
    }

    fn slow(&self) -> std::sync::MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room; takes it from those that send slowest if there is none soon.
    /// `None` if there is none in time.
    async fn room(
        self: Arc<Self>,
        permits: u32,
        patience: Duration,
    ) -> Option<OwnedSemaphorePermit> {
        let until = Instant::now() + patience;
        let mut asked = std::pin::pin!(self.permits.clone().acquire_many_owned(permits));
        loop {
            let round = (Instant::now() + GRACE).min(until);
            match tokio::time::timeout_at(round, asked.as_mut()).await {
                Ok(permit) => return permit.ok(),
                Err(_) if Instant::now() >= until => return None,
                Err(_) => self.take_from_the_slow(u64::from(permits) * PERMIT_BYTES as u64),
            }
        }
    }

    /// Cuts off those that send slowest, until they held `bytes` together.
    fn take_from_the_slow(&self, bytes: u64) {
        let slow = self.slow();
        let mut slowest: Vec<(Duration, &Arc<Sender>)> =
            slow.bodies.values().filter_map(|sender| Some((sender.slow_for()?, sender))).collect();
        slowest.sort_by_key(|(slow_for, _)| std::cmp::Reverse(*slow_for));
        let mut freed = 0;
        for (_, sender) in slowest {
            if freed >= bytes {
                break;
            }
            freed += sender.bytes.load(Ordering::Relaxed);
            sender.cut.store(true, Ordering::Release);
            sender.waker.wake();
        }
    }
}

impl Sender {
    /// How long it takes for a step, if it has to give way.
    fn slow_for(&self) -> Option<Duration> {
        let is_out = self.bytes.load(Ordering::Relaxed) == 0
            || self.asks.load(Ordering::Relaxed)
            || self.cut.load(Ordering::Acquire);
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        let took = self.began.elapsed().saturating_sub(since);
        (!is_out && took >= STEP).then_some(took)
    }
}

/// A body's place among those that have been waited for.
struct Place {
    pool: Arc<Pool>,
    number: u64,
    sender: Arc<Sender>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.slow().bodies.remove(&self.number);
    }
}

impl Default for Intake {
    fn default() -> Self {
        Intake::with_bytes(PUBLISH_BYTES, OTHER_BYTES)
    }
}

/// Whether the request at this path brings messages to publish.
pub fn is_publish(path: &str) -> bool {
    let to_topic = path.starts_with("/v1/topics/") && path.ends_with("/messages");
    let calls = ["/posthouse.v1.Posthouse/Publish", "/apache.rocketmq.v2.MessagingService/Send"];
    to_topic || path == "/v1/publish" || calls.iter().any(|call| path.starts_with(call))
}

impl Intake {
    fn with_bytes(publishes: usize, others: usize) -> Self {
        Intake { publishes: Pool::new(publishes), others: Pool::new(others) }
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
                held: None,
                bytes: 0,
                since: Instant::now(),
                step_bytes: 0,
                place: None,
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
    pool: Arc<Pool>,
    /// What the unfinished message holds.
    held: Option<OwnedSemaphorePermit>,
    /// The bytes of it that have come.
    bytes: u64,
    /// When it was last a step further, and the bytes since.
    since: Instant,
    step_bytes: u64,
    /// Where it can be cut off from. Only who was waited for in a message has one.
    place: Option<Place>,
    /// Waits for room for `next`, and since when.
    asking: Option<(Instant, Asking)>,
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
    /// Others needed its room, and it came slowly.
    #[error("it came slowly, and others waited for its room; come back in a moment")]
    Slow,
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
            CutOff::Slow => {
                Problem::busy("the request came slowly, and others waited for its room")
                    .with_hint("send less at once, or come back in a moment")
            }
            CutOff::Silent => Problem::new(
                Kind::Unavailable,
                "cut_off",
                format!("the request was not read: {self}"),
            )
            .with_retry(1_000),
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
        let (unfinished, ended) = match &mut self.message {
            Message::Whole => (data.len(), false),
            Message::Line(begun) => {
                let end = data.iter().rposition(|byte| *byte == b'\n');
                let unfinished = end.map_or(data.len(), |end| data.len() - end - 1);
                *begun = unfinished > 0 || (*begun && end.is_none());
                (unfinished, end.is_some())
            }
            Message::Grpc(follow) => follow.see(&data),
        };
        if ended {
            self.held = None;
            self.bytes = 0;
        }
        if unfinished > 0 {
            self.bytes += unfinished as u64;
            match (&mut self.held, permit) {
                (Some(held), Some(permit)) => held.merge(permit),
                (held, permit) => *held = permit,
            }
        }
        self.step_bytes += data.len() as u64;
        if ended || self.step_bytes >= STEP_BYTES {
            (self.since, self.step_bytes) = (Instant::now(), 0);
        }
        self.tell();
        data
    }

    /// Where it stands, for those who look for room.
    fn tell(&self) {
        if let Some(Place { sender, .. }) = &self.place {
            let since = self.since.duration_since(sender.began).as_millis() as u64;
            sender.since_ms.store(since, Ordering::Relaxed);
            sender.bytes.store(self.bytes, Ordering::Relaxed);
        }
    }

    /// Nothing more has come: from now on others may take its room. Whether they have.
    fn wait_in_message(&mut self, waker: &Waker) -> bool {
        if self.bytes == 0 {
            return false;
        }
        let place = self.place.get_or_insert_with(|| {
            let sender = Arc::new(Sender {
                began: self.since,
                since_ms: AtomicU64::new(0),
                bytes: AtomicU64::new(self.bytes),
                asks: AtomicBool::new(false),
                cut: AtomicBool::new(false),
                waker: AtomicWaker::new(),
            });
            let mut slow = self.pool.slow();
            let number = slow.next;
            slow.next += 1;
            slow.bodies.insert(number, sender.clone());
            Place { pool: self.pool.clone(), number, sender }
        });
        place.sender.waker.register(waker);
        place.sender.cut.load(Ordering::Acquire)
    }

    /// Whether it waits for room now.
    fn asks(&self, asks: bool) {
        if let Some(place) = &self.place {
            place.sender.asks.store(asks, Ordering::Relaxed);
        }
    }

    fn is_cut(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.sender.cut.load(Ordering::Acquire))
    }

    fn give_way(&mut self) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        (self.held, self.place) = (None, None);
        Poll::Ready(Some(Err(self.cut_off(CutOff::Slow))))
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
        if body.is_cut() {
            return body.give_way();
        }
        loop {
            if let Some((since, asking)) = &mut body.asking {
                let permit = ready!(asking.as_mut().poll(context));
                body.since += since.elapsed();
                body.asking = None;
                body.tell();
                body.asks(false);
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
                Poll::Pending if body.wait_in_message(context.waker()) => return body.give_way(),
                Poll::Pending => return Poll::Pending,
            };
            body.silence = None;
            let data = match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            };
            let permits = data.len().div_ceil(PERMIT_BYTES) as u32;
            match body.pool.permits.clone().try_acquire_many_owned(permits) {
                Ok(permit) => {
                    let data = body.pass(data, Some(permit));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Err(_) => {
                    body.next = Some(data);
                    body.asks(true);
                    let asked = body.pool.clone().room(permits, body.patience());
                    body.asking = Some((Instant::now(), Box::pin(asked)));
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

    /// Whoever began large messages and sent nothing more kept everybody else out.
    #[tokio::test(start_paused = true)]
    async fn who_sends_slowly_gives_way_and_keeps_its_time_while_there_is_room() {
        let intake = Intake::with_bytes(16 << 20, 4096);
        // So many bytes at once, and then as many every second.
        let send = |first: usize, each: usize| {
            let (tx, rx) = futures_channel();
            tx.send(Ok::<_, std::io::Error>(Bytes::from(vec![0; first]))).unwrap();
            let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(rx);
            let request = Request::builder().uri("/v1/publish");
            let body = intake.bound(request.body(Body::from_stream(stream)).unwrap()).into_body();
            let mut beat = tokio::time::interval(Duration::from_secs(1));
            tokio::spawn(async move {
                beat.tick().await;
                while each > 0 && tx.send(Ok(Bytes::from(vec![0; each]))).is_ok() {
                    beat.tick().await;
                }
                tx.closed().await;
            });
            tokio::spawn(async move { axum::body::to_bytes(Body::new(body), 12 << 20).await })
        };
        let (stalled, slow) = (send(3 << 20, 0), send(2 << 20, 10));
        let fast = send(1 << 20, 600 << 10);
        let in_ten_seconds = Instant::now() + Duration::from_secs(10);
        tokio::time::interval_at(in_ten_seconds, Duration::from_secs(10)).tick().await;
        assert!(!stalled.is_finished() && !slow.is_finished(), "there is room");
        // There is none for another; the one that has stood still for longest goes.
        let began = Instant::now();
        let other = send(6 << 20, 100 << 10);
        let error = stalled.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("came slowly"), "{error}");
        assert!(began.elapsed() < SINGLE_PATIENCE, "it took {:?}", began.elapsed());
        assert!(!other.is_finished() && !fast.is_finished());
        slow.abort();
        other.abort();
        // With nobody else in its way it comes to the end that this allows it.
        let error = fast.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("length limit"), "{error}");
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
