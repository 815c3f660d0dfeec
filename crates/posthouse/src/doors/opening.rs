//! How long a connection may take to say which protocol it speaks.
//!
//! The server reads until it knows HTTP/1 from HTTP/2, and only then do the clocks of
//! either run. Without a clock of its own before that, a connection that says nothing,
//! or the first half of what HTTP/2 begins with, would keep its place for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection, until it has said enough.
#[derive(Debug)]
pub struct Opening<S> {
    inner: S,
    /// Bytes of the preface that have come.
    begun: usize,
    /// `None` once it is clear what it speaks.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Opening<S> {
    /// Gives `inner` so long.
    pub fn new(inner: S, patience: Duration) -> Self {
        Opening { inner, begun: 0, deadline: Some(Box::pin(tokio::time::sleep(patience))) }
    }

    fn see(&mut self, new: &[u8]) {
        let rest = &PREFACE[self.begun..];
        if new.len() < rest.len() && rest.starts_with(new) {
            self.begun += new.len();
        } else {
            self.deadline = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let opening = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut opening.inner).poll_read(context, buffer);
        let Some(deadline) = &mut opening.deadline else { return read };
        if read.is_pending() && deadline.as_mut().poll(context).is_ready() {
            let what = "the connection did not say in time what it speaks";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)));
        }
        opening.see(&buffer.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const PATIENCE: Duration = Duration::from_secs(15);

    /// What reading comes to when the client says `words`, one by one, and no more.
    async fn after(words: &[&[u8]]) -> Result<(), io::ErrorKind> {
        let (mut client, server) = tokio::io::duplex(100);
        let mut opening = Opening::new(server, PATIENCE);
        for word in words {
            client.write_all(word).await.unwrap();
            let mut read = vec![0; word.len()];
            opening.read_exact(&mut read).await.unwrap();
        }
        let mut one = [0];
        let more = tokio::time::timeout(4 * PATIENCE, opening.read(&mut one));
        match more.await {
            Ok(Err(error)) => Err(error.kind()),
            Ok(Ok(_)) => panic!("nothing more was said"),
            Err(_) => Ok(()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_half_a_preface_is_cut_off_and_who_has_said_enough_is_not() {
        assert_eq!(after(&[]).await, Err(io::ErrorKind::TimedOut));
        assert_eq!(after(&[b"PRI * HT"]).await, Err(io::ErrorKind::TimedOut));
        assert_eq!(after(&[b"P", b"RI", b" * HTTP/2.0"]).await, Err(io::ErrorKind::TimedOut));
        assert_eq!(after(&[PREFACE]).await, Ok(()));
        assert_eq!(after(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n", b"\r\nmore"]).await, Ok(()));
        assert_eq!(after(&[b"GET"]).await, Ok(()), "HTTP/1 has a clock of its own");
        assert_eq!(after(&[b"P", b"OST"]).await, Ok(()));
    }
}
