//! The log: what makes frames durable, and gives them back.
//!
//! One trait ([`Log`]) with its reading half ([`LogReader`]), and one suite
//! (`conformance`) that settles every word of their contract and is run by every
//! implementation:
//!
//! - [`memory`]: frames in memory, for tests and simulation, with faults; alone, or
//!   as one partition of a replicated log, where [`fencing`] tells an owner from a
//!   zombie;
//! - [`local`]: recycled segment files, group commit, `fdatasync`.
//!
//! Beneath the local log, and for whoever keeps files beside it, lies [`files`]: the
//! disk behind a trait, with a simulated one that loses power and fails on demand.
//!
//! A log knows frames, numbers and bytes. It does not know what a record means.
//!
//! Nothing here is asynchronous: a log writes on a thread of its own, and its
//! reading calls block the thread that makes them.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod fencing;
pub mod files;
pub mod local;
pub mod memory;
pub mod rng;
mod state;
mod sync;

use bytes::Bytes;
use posthouse_frame::{BodyError, BodyRef, Frame, FrameNo};

/// What a log can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of header, meta and body that one frame may have.
    pub max_frame_bytes: usize,
    /// Whether single segments can be freed in the middle, or only the head.
    pub sparse_free: bool,
}

/// How far a log has come. Ordered in time: `Durable` only grows, and what
/// follows it (`Fenced`, `Failed`) is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogState {
    /// Every frame up to and including this one will be read back, whatever
    /// happens to the process or the power.
    Durable(FrameNo),
    /// Another owner has taken the log over. What was not durable before is void.
    Fenced {
        /// The last frame of ours that counts.
        durable: FrameNo,
        /// The epoch of the other owner.
        by: u32,
    },
    /// A write or a sync failed. Frames from `unknown_from` on may or may not be
    /// found after a restart, and nobody can know before.
    Failed {
        /// The first frame of which nothing can be said.
        unknown_from: FrameNo,
        /// What the system said, with the file.
        error: String,
    },
}

impl LogState {
    /// The last frame that is known to be durable.
    pub fn durable(&self) -> FrameNo {
        match self {
            LogState::Durable(no) => *no,
            LogState::Fenced { durable, .. } => *durable,
            LogState::Failed { unknown_from, .. } => unknown_from.prev(),
        }
    }

    /// Whether the log still takes frames.
    pub fn is_open(&self) -> bool {
        matches!(self, LogState::Durable(_))
    }
}

/// The log takes no frames any more; its [`LogState`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log has failed or has another owner, and takes no more frames")]
pub struct Latched;

/// Which sections of a frame a scan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Header and meta. Bodies are skipped, neither read nor verified.
    Meta,
    /// Everything; every body is verified.
    Whole,
}

/// A frame as a scan finds it.
#[derive(Clone, Debug)]
pub struct ScannedFrame {
    /// Its header.
    pub header: posthouse_frame::Header,
    /// Its meta section, verified.
    pub meta: Bytes,
    /// Its body section, verified; `None` with [`Part::Meta`].
    pub body: Option<Bytes>,
}

/// The number of a segment: a piece of the log that is freed as a whole. Never
/// used again in the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SegmentNo(pub u64);

/// One segment and the frames in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub no: SegmentNo,
    /// The first frame that starts in it.
    pub first: FrameNo,
    /// The last frame in it so far.
    pub last: FrameNo,
    /// Its size on the disk in bytes.
    pub bytes: u64,
    /// Whether frames are still being added to it.
    pub active: bool,
}

/// Why something could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The frame was released, or never existed.
    #[error("frame {frame} is not in the log, which holds {first} to {last}")]
    Gone {
        /// The frame asked for.
        frame: FrameNo,
        /// The oldest frame held.
        first: FrameNo,
        /// The newest durable frame.
        last: FrameNo,
    },
    /// What is stored is not what was written.
    #[error("corrupt data in {file} at byte {offset}: {what}")]
    Corrupt {
        /// The file.
        file: String,
        /// Byte offset in the file.
        offset: u64,
        /// What does not hold.
        what: String,
    },
    /// The system refused.
    #[error("cannot read {file} at byte {offset}: {error}")]
    Io {
        /// The file.
        file: String,
        /// Byte offset in the file.
        offset: u64,
        /// What the system said.
        error: String,
    },
}

impl ReadError {
    /// A body that does not hold, in `file`, whose body section starts at
    /// byte `section`.
    pub fn body(file: &str, section: u64, error: BodyError) -> ReadError {
        let (BodyError::Short { at } | BodyError::Length { at, .. } | BodyError::Check { at }) =
            error;
        ReadError::Corrupt {
            file: file.to_owned(),
            offset: section + u64::from(at),
            what: error.to_string(),
        }
    }
}

/// Why segments could not be released.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot free {what}: {error}")]
pub struct ReleaseError {
    /// The file.
    pub what: String,
    /// What the system said.
    pub error: String,
}

/// Called by a log whenever its [`LogState`] has moved, on the thread that moved it:
/// the log's own, if it has one. Must return at once.
pub type Wake = Box<dyn Fn(&LogState) + Send + Sync>;

/// The writing half of a shard's log. One owner; order of calls is order in the log.
pub trait Log: Send + 'static {
    /// Its reading half.
    type Reader: LogReader;

    /// What the log takes.
    fn limits(&self) -> Limits;

    /// Hands a frame over to be written. Returns at once; the frame is durable when
    /// the state says so. Several frames may share one sync.
    ///
    /// # Errors
    /// [`Latched`] once the state is no longer [`LogState::Durable`]. The frame is
    /// then not written, whatever its number: an owner may have gone on behind one that
    /// was refused.
    ///
    /// # Panics
    /// If `frame.no` does not follow the last frame that was taken, or the frame is over
    /// [`Limits::max_frame_bytes`]: a fault of the caller that must not reach a disk.
    fn submit(&mut self, frame: Frame) -> Result<(), Latched>;

    /// Asks for a sync of everything that is durable already, as far as none has covered it:
    /// a log may call frames durable before. [`LogReader::synced`] moves then, and whoever
    /// watches is called. Returns at once.
    fn request_sync(&mut self);

    /// Frames handed over that are not durable yet.
    fn backlog(&self) -> usize;

    /// The last frame handed over.
    fn tail(&self) -> FrameNo;

    /// Sets who is called when the state moves. Called once, right away, with the
    /// state as it is.
    fn watch(&mut self, wake: Wake);

    /// The reading half. Any number of them; they outlive the log's owner.
    fn reader(&self) -> Self::Reader;

    /// Frees what nobody needs: every segment whose frames are all below `head`
    /// and which is named in `free`. With [`Limits::sparse_free`] such segments may
    /// lie anywhere, else the log frees those that form its beginning. A segment
    /// that is active, or that holds `head`, a later frame or one that is not durable
    /// yet, stays, whatever `free` says. Bodies in a freed segment are gone. Whether
    /// the segment is found again after a crash is open until something else becomes
    /// durable.
    ///
    /// # Errors
    /// What the system refused; what was freed by then stays freed.
    fn release(&mut self, head: FrameNo, free: &[SegmentNo]) -> Result<(), ReleaseError>;

    /// Waits until all that was handed over is durable, leaves a mark of a clean
    /// end, and gives the last state.
    fn close(self) -> LogState;
}

/// The reading half of a log. Cheap to clone; calls block.
pub trait LogReader: Clone + Send + Sync + 'static {
    /// Iterates over frames.
    type Scan: Iterator<Item = Result<ScannedFrame, ReadError>> + Send;

    /// The state as it is now.
    fn state(&self) -> LogState;

    /// The last frame that outlives a power cut. The same as the state says, but for a log
    /// that calls frames durable before a sync has covered them.
    fn synced(&self) -> FrameNo {
        self.state().durable()
    }

    /// The content of a body, if it is in memory. Never blocks on a disk. Finds
    /// bodies of frames that are not durable yet, too: who asks must wait for them
    /// before telling anyone.
    fn cached(&self, place: BodyRef) -> Option<Bytes>;

    /// The contents of durable bodies, in the order asked for, each verified. Reads
    /// are sorted, and near ones joined.
    fn bodies(&self, places: &[BodyRef]) -> Vec<Result<Bytes, ReadError>>;

    /// Frames of kind data and epoch from `from` on, inclusive, in order, up to the
    /// last that was durable when the scan began. A `from` just past that gives an
    /// empty scan. Numbers have gaps only where segments were freed.
    ///
    /// # Errors
    /// [`ReadError::Gone`] if `from` lies before the first frame held or beyond the
    /// tail. `FrameNo::ZERO` stands for the first frame held. A `from` within a gap
    /// begins behind it.
    fn scan(&self, from: FrameNo, part: Part) -> Result<Self::Scan, ReadError>;

    /// The segments held, oldest first.
    fn segments(&self) -> Vec<Segment>;
}
