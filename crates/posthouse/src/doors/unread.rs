//! A bound on how long an answer may wait to be read.
//!
//! What a client does not read stays in memory. Over HTTP/1 the connection itself shows
//! it ([`super::clocks`]); over HTTP/2 it does not, because a client can take everything
//! that concerns the connection, and nothing of a stream. So answers are handed on in
//! pieces, the next when there is room for it, and a connection on which a piece, the
//! first one too, has found none for too long is closed. Messages that were given out on
//! it keep their leases.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// Bytes that are handed on at once.
const PIECE_BYTES: usize = 64 << 10;

/// Nothing waits.
const NOTHING: u64 = u64::MAX;

/// The answers of one connection that are not read to their end.
#[derive(Debug)]
pub struct Readers {
    began: Instant,
    answers: Mutex<HashMap<u64, Arc<AtomicU64>>>,
    next: AtomicU64,
}

impl Readers {
    /// Of a connection that has asked for nothing.
    pub fn new() -> Arc<Readers> {
        let (answers, next) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Readers { began: Instant::now(), answers, next })
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<AtomicU64>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when a piece of an answer has not been read for `patience`.
    pub async fn stall(&self, patience: Duration) {
        let patience_ms = patience.as_millis() as u64;
        loop {
            tokio::time::sleep(patience / 4).await;
            let now = self.now_ms();
            let waits = |since: u64| since != NOTHING && now.saturating_sub(since) >= patience_ms;
            if self.answers().values().any(|since| waits(since.load(Ordering::Relaxed))) {
                return;
            }
        }
    }

    /// Follows how an answer is read.
    pub fn follow(self: &Arc<Self>, answer: Body) -> Body {
        let mut followed = Followed {
            inner: answer,
            rest: Bytes::new(),
            is_large: false,
            readers: self.clone(),
            place: None,
        };
        // Without any room nobody asks for the first piece.
        if !followed.is_end_stream() {
            followed.hand_on();
        }
        Body::new(followed)
    }
}

struct Followed {
    inner: Body,
    /// What was not handed on yet.
    rest: Bytes,
    is_large: bool,
    readers: Arc<Readers>,
    /// Its number, and when the piece was handed on that has not found room.
    place: Option<(u64, Arc<AtomicU64>)>,
}

impl Followed {
    /// A piece is handed on. Whoever asks for the next has found room for it.
    fn hand_on(&mut self) {
        let now = self.readers.now_ms();
        match &self.place {
            Some((_, since)) => since.store(now, Ordering::Relaxed),
            None => {
                let since = Arc::new(AtomicU64::new(now));
                let number = self.readers.next.fetch_add(1, Ordering::Relaxed);
                self.readers.answers().insert(number, since.clone());
                self.place = Some((number, since));
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some((number, _)) = &self.place {
            self.readers.answers().remove(number);
        }
    }
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let body = &mut *self;
        if let Some((_, since)) = &body.place {
            since.store(NOTHING, Ordering::Relaxed);
        }
        if body.rest.is_empty() {
            let frame = ready!(Pin::new(&mut body.inner).poll_frame(context));
            match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => body.rest = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        body.is_large |= body.rest.len() > PIECE_BYTES;
        let piece = body.rest.split_to(body.rest.len().min(PIECE_BYTES));
        if !body.is_end_stream() {
            body.hand_on();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        // After the last piece of a large answer there is one more question, which shows
        // that it was read.
        self.rest.is_empty() && !self.is_large && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn answers_come_whole_in_pieces_and_are_forgotten_when_they_are_read() {
        let readers = Readers::new();
        let content: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let mut body = readers.follow(Body::from(content.clone()));
        assert_eq!(body.size_hint().exact(), Some(200_000));
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), readers.answers().len()), (PIECE_BYTES, 1));
        assert_eq!(body.size_hint().exact(), Some(200_000 - PIECE_BYTES as u64));
        let rest = body.collect().await.unwrap().to_bytes();
        assert_eq!([first, rest].concat(), content);
        assert_eq!(readers.answers().len(), 0);
        // One that goes at once has no more to say.
        let mut small = readers.follow(Body::from("small"));
        assert_eq!(small.frame().await.unwrap().unwrap().into_data().unwrap(), "small");
        assert!(small.is_end_stream());
        drop(small);
        let empty = readers.follow(Body::empty());
        assert!(readers.answers().is_empty());
        drop(empty);
    }

    // Whoever gave a stream no room at all kept its answer for ever.
    #[tokio::test]
    async fn an_answer_of_which_nobody_takes_the_first_piece_is_noticed() {
        let readers = Readers::new();
        let _body = readers.follow(Body::from("small"));
        let stall = readers.stall(Duration::from_millis(40));
        tokio::time::timeout(Duration::from_secs(20), stall).await.unwrap();
    }

    #[tokio::test]
    async fn a_piece_that_finds_no_room_is_noticed_and_one_that_waits_for_more_is_not() {
        let readers = Readers::new();
        let stream = tokio_stream::iter([Ok::<_, std::io::Error>("event")]);
        let stream = futures_util::StreamExt::chain(stream, tokio_stream::pending());
        let mut body = readers.follow(Body::from_stream(stream));
        body.frame().await.unwrap().unwrap();
        let patience = Duration::from_millis(40);
        tokio::time::timeout(Duration::from_secs(20), readers.stall(patience)).await.unwrap();
        // Somebody asks for the next, which is not there yet.
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut body).poll_frame(&mut context).is_pending());
        assert!(tokio::time::timeout(4 * patience, readers.stall(patience)).await.is_err());
        drop(body);
    }
}
