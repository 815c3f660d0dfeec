//! One connection that publishes or consumes, whatever the door.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::cli::Failure;

/// The group that consumes.
pub(super) const GROUP: &str = "bench";

/// How long a consumer waits before it looks whether it should go on.
pub(super) const WAIT: Duration = Duration::from_millis(200);

/// Digits of the time at the beginning of a body that is stamped.
pub(super) const STAMP_BYTES: usize = 20;

/// A connection that publishes batches.
pub(super) trait Publishes: Send + 'static {
    /// Sends a batch. Messages that are stamped say that they were due at `due`.
    fn send(&mut self, due: Instant) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Waits for the answer to the oldest batch without one. Can be dropped and called
    /// again.
    fn answer(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// A connection that consumes.
pub(super) trait Consumes: Send + 'static {
    /// Waits a moment for something to happen: for messages, which are acknowledged and
    /// their bodies shown to `arrived`, or for the answer to an acknowledgement. Says
    /// how many messages have been acknowledged for good.
    fn step(
        &mut self,
        arrived: &mut (dyn FnMut(&[u8]) + Send),
    ) -> impl Future<Output = Result<u64, Failure>> + Send;
}

/// The bodies of a batch, all of printable ASCII.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    size: usize,
    filler: Bytes,
    is_stamped: bool,
}

impl Bodies {
    pub(super) fn new(size: usize, is_stamped: bool) -> Bodies {
        let filler: Vec<u8> = (0..size).map(|at| b'!' + (at * 7 % 90) as u8).collect();
        // Nothing that JSON would have to escape.
        let filler = filler.into_iter().map(|b| if b"\"\\".contains(&b) { b'.' } else { b });
        Bodies { size, filler: filler.collect(), is_stamped }
    }

    /// The body of every message of a batch that is due at `due`.
    pub(super) fn body(&self, due: Instant) -> Bytes {
        if !self.is_stamped {
            return self.filler.clone();
        }
        let mut body = Vec::with_capacity(self.size.max(STAMP_BYTES));
        let nanos = due.saturating_duration_since(*ORIGIN).as_nanos();
        body.extend_from_slice(format!("{nanos:0STAMP_BYTES$}").as_bytes());
        body.extend_from_slice(self.filler.get(STAMP_BYTES..).unwrap_or(&[]));
        body.into()
    }
}

/// How long ago a stamped message was due.
pub(super) fn age(body: &[u8]) -> Option<Duration> {
    let stamp = std::str::from_utf8(body.get(..STAMP_BYTES)?).ok()?;
    let due = *ORIGIN + Duration::from_nanos(stamp.parse().ok()?);
    Some(due.elapsed())
}

/// The beginning of the time that stamps count.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// For times in nanoseconds up to a minute, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are good")
}

/// A quantile in milliseconds.
pub(super) fn quantile_ms(of: &Histogram<u64>, quantile: f64) -> f64 {
    of.value_at_quantile(quantile) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_says_when_a_message_was_due() {
        LazyLock::force(&ORIGIN);
        let due = Instant::now().checked_sub(Duration::from_millis(5)).unwrap().max(*ORIGIN);
        let bodies = Bodies::new(64, true);
        let body = bodies.body(due);
        assert_eq!(body.len(), 64);
        assert!(age(&body).unwrap() <= due.elapsed());
        assert_eq!(age(b"short"), None);
        assert_eq!(Bodies::new(64, false).body(due).len(), 64);
    }

    #[test]
    fn bodies_need_no_escapes() {
        let body = Bodies::new(500, false).body(Instant::now());
        let text = std::str::from_utf8(&body).unwrap();
        assert_eq!(serde_json::to_string(text).unwrap().len(), 502);
    }
}
