//! The contract of [`Log`], as tests that every implementation runs.
//!
//! An implementation brings a [`Harness`] and calls [`run`]. What is settled here:
//!
//! - *durable*: read back after any crash; told in order; never taken back;
//! - *inclusive*: a scan from frame n begins with n, and ends with what was durable
//!   when it began;
//! - *empty*: a new log holds the frame that began its first epoch, and a scan just
//!   past the tail is empty, not an error;
//! - *past the tail*, and before the head: [`ReadError::Gone`](crate::ReadError);
//! - *not durable*: found by `cached`, by nothing else;
//! - *released*: gone, and what nobody named or what is still needed stays;
//! - *failed*: latched for good, with nothing more written.
//!
//! [`Script`] writes frames whose content follows from their number, and knows what
//! every reader must find.

mod lifetime;
mod reading;
mod script;
mod writing;

use std::time::{Duration, Instant};

use posthouse_frame::FrameNo;

pub use self::script::Script;
use crate::{Log, LogState};

/// How long a condition may take to come true before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the suite needs of an implementation, beside the [`Log`] itself. Each harness
/// is a log of its own, empty at first, whose segments hold about ten frames of
/// [`Script`] or fewer.
pub trait Harness {
    /// The implementation.
    type Log: Log;

    /// Opens the log, for the first time or again. `known_durable` is what the
    /// owner's manifest calls durable: nothing past it was released.
    fn open(&mut self, known_durable: FrameNo) -> Self::Log;

    /// Ends the owner, and the power with it.
    fn crash(&mut self, log: Self::Log);

    /// Works until everything handed over is durable, or the log takes no more.
    fn settle(&mut self, log: &mut Self::Log);

    /// From now to the next [`Harness::settle`] nothing becomes durable. `false` if
    /// this log cannot be held.
    fn hold(&mut self, log: &mut Self::Log) -> bool;

    /// The next attempt to make something durable fails. `false` if this log cannot
    /// fail.
    fn break_down(&mut self, log: &mut Self::Log) -> bool;

    /// How often something was made durable, if that is counted.
    fn syncs(&self) -> Option<u64> {
        None
    }

    /// The epoch that began when the log was opened last.
    fn epoch(&self) -> u32;
}

/// Waits until `holds`, with a bound.
///
/// # Panics
/// If it does not within half a minute.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// Waits until everything handed over to `log` is durable, or it takes no more.
pub fn wait_settled<L: Log>(log: &L) {
    use crate::LogReader;
    let reader = log.reader();
    wait_until("all is durable", || !reader.state().is_open() || log.backlog() == 0);
}

/// Runs the whole suite, each test on a log of its own.
///
/// # Panics
/// If the implementation does not keep the contract.
pub fn run<H: Harness>(mut make: impl FnMut(&'static str) -> H) {
    writing::run(&mut make);
    reading::run(&mut make);
    lifetime::run(&mut make);
}

/// The durable frame, of a log that is fine.
fn durable<L: Log>(log: &L) -> FrameNo {
    use crate::LogReader;
    match log.reader().state() {
        LogState::Durable(no) => no,
        other => panic!("the log should be fine: {other:?}"),
    }
}
