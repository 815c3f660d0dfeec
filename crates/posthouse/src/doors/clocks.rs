//! The clocks of a connection: how long it may take to say which protocol it speaks, and
//! how long to take what is written to it.
//!
//! The server reads until it knows HTTP/1 from HTTP/2, and only then do the clocks of
//! either run. Without a clock of its own before that, a connection that says nothing,
//! or the first half of what HTTP/2 begins with, would keep its place for ever. And a
//! client that does not read would keep what is written for it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who takes so much in the time that there is for it reads, if slowly.
const STEP_BYTES: usize = 16 << 10;

/// A connection with its clocks.
#[derive(Debug)]
pub struct Clocks<S> {
    inner: S,
    /// Bytes of the preface that have come.
    begun: usize,
    /// `None` once it is clear what it speaks.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How long it may take to read.
    reading: Duration,
    /// Runs while there is something that the other side does not take.
    unread: Option<Pin<Box<Sleep>>>,
    /// Bytes that were taken since.
    taken: usize,
}

impl<S> Clocks<S> {
    /// Gives `inner` so long for its first words, and so long for reading.
    pub fn new(inner: S, hello: Duration, reading: Duration) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(hello)));
        Clocks { inner, begun: 0, deadline, reading, unread: None, taken: 0 }
    }

    /// Looks at what became of a write of `offered` bytes.
    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        offered: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) if self.unread.is_some() => {
                self.taken += bytes;
                if *bytes == offered || self.taken >= STEP_BYTES {
                    (self.unread, self.taken) = (None, 0);
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                let reading = self.reading;
                let clock =
                    self.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep(reading)));
                if clock.as_mut().poll(context).is_ready() {
                    let what = "the connection does not take what is written to it";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)));
                }
            }
        }
        written
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

impl<S: AsyncRead + Unpin> AsyncRead for Clocks<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let clocks = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut clocks.inner).poll_read(context, buffer);
        let Some(deadline) = &mut clocks.deadline else { return read };
        if read.is_pending() && deadline.as_mut().poll(context).is_ready() {
            let what = "the connection did not say in time what it speaks";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)));
        }
        clocks.see(&buffer.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Clocks<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, data);
        self.wrote(written, data.len(), context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        let offered = pieces.iter().map(|piece| piece.len()).sum();
        self.wrote(written, offered, context)
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
        let mut opening = Clocks::new(server, PATIENCE, PATIENCE);
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

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_off_and_who_reads_slowly_is_not() {
        // Takes so many bytes every ten seconds.
        let write = async |bytes: usize| {
            let (mut client, server) = tokio::io::duplex(1000);
            let mut server = Clocks::new(server, PATIENCE, 6 * PATIENCE);
            let mut beat = tokio::time::interval(Duration::from_secs(10));
            let reads = tokio::spawn(async move {
                beat.tick().await;
                loop {
                    beat.tick().await;
                    let mut left = vec![0; bytes];
                    if bytes > 0 && client.read_exact(&mut left).await.is_err() {
                        return;
                    }
                }
            });
            let written = server.write_all(&vec![0; 100_000]).await;
            reads.abort();
            written.map_err(|error| error.kind())
        };
        assert_eq!(write(0).await, Err(io::ErrorKind::TimedOut));
        assert_eq!(write(10).await, Err(io::ErrorKind::TimedOut), "as good as not at all");
        assert_eq!(write(3000).await, Ok(()));
    }
}
