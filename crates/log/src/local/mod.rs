//! The local log: recycled segment files, group commit, `fdatasync`.
//!
//! A log directory holds segments of fixed size (`layout` has the bytes). Frames
//! are written one after the other, several in one write, one sync for all that were
//! waiting; full segments are freed as a whole by the owner, and used again. What
//! every frame repeats, and what the checksums are salted with, lets `recovery`
//! find the end of the log after whatever happened, and tell a torn write from
//! damage.
//!
//! ```text
//!   owner                     log threads                   tender
//!   submit ──> queue ──> Writer: place, write, sync         spares: fill,
//!     │                        │                            remove surplus
//!     └──> Tail (memory)       └──> Table (places), state ──> watcher
//!                 \                    │
//!                  └───── LocalReader ─┘
//! ```

mod bodies;
pub(crate) mod chain;
mod error;
mod extent;
mod index;
mod inspect;
pub(crate) mod layout;
mod options;
mod queue;
mod reader;
mod recovery;
mod scan;
mod shared;
mod spares;
mod stopper;
mod table;
mod tail;
mod threads;
pub(crate) mod units;
mod verify;
mod writer;

use std::path::Path;
use std::sync::Arc;

use posthouse_frame::{Frame, FrameNo};

pub use self::error::OpenError;
pub use self::extent::{Extent, extents, is_segment};
pub use self::inspect::{Inspected, Inspection, inspect};
pub use self::options::{Drive, Durability, LocalOptions};
pub use self::reader::LocalReader;
pub use self::recovery::{Cut, Recovery};
pub use self::scan::LocalScan;
pub use self::verify::{Finding, Progress, Report, verify};

use self::queue::Stop;
use self::recovery::Examination;
use self::shared::Shared;
use self::spares::{Spares, Tended};
use self::table::Table;
use self::tail::Tail;
use self::threads::Threads;
use self::writer::{Due, Writer};
use crate::files::{DirLock, FileError, Files, Space};
use crate::state::StateCell;
use crate::{Latched, Limits, Log, LogState, ReleaseError, SegmentNo, Wake};

/// A shard's log in a directory of its own. See the module's description.
#[derive(Debug)]
pub struct LocalLog {
    shared: Arc<Shared>,
    /// The last frame handed over.
    tail: FrameNo,
    engine: Option<Engine>,
    _lock: Box<dyn DirLock>,
}

/// Who holds the writing end.
#[derive(Debug)]
enum Engine {
    Threads(Threads),
    Steps(Box<Stepped>),
}

/// A writing end that is driven by steps.
#[derive(Debug)]
struct Stepped {
    writer: Writer,
    /// A sync that was made, and nobody has been told.
    made: Option<Due>,
}

impl Stepped {
    /// Ends the sync that was made, if there is one.
    fn tell(&mut self) -> bool {
        let made = self.made.take();
        made.inspect(|due| self.writer.end_sync(due)).is_some()
    }

    /// The writer, with no sync of which nobody has been told.
    fn settled(&mut self) -> &mut Writer {
        self.tell();
        &mut self.writer
    }
}

/// What can still be written without finding new room on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Pre-written segments at hand.
    pub spares: usize,
    /// Bytes of frames that fit in the active segment.
    pub left_bytes: u64,
    /// Bytes of frames in all: the above, and what the spares hold.
    pub bytes: u64,
}

/// Figures of a log, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Segments held.
    pub segments: usize,
    /// Bytes written since the log was opened, with padding.
    pub written_bytes: u64,
    /// What can still be written on a full disk.
    pub reserve: Reserve,
}

/// A log that was found sound, and is not changed yet.
#[derive(Debug)]
pub struct Examined {
    shared: Arc<Shared>,
    found: Examination,
    options: LocalOptions,
    lock: Box<dyn DirLock>,
}

impl Examined {
    /// Reads the frames up to the end that was found.
    pub fn reader(&self) -> LocalReader {
        LocalReader::new(self.shared.clone())
    }

    /// The last frame; zero if the log is empty.
    pub fn last(&self) -> FrameNo {
        self.found.last()
    }

    /// The wall clock in the last frame, Unix milliseconds, and the lease clock.
    pub fn clocks(&self) -> (u64, u64) {
        self.found.clocks()
    }

    /// Takes the log over: cuts what is torn, begins a new epoch, and makes that
    /// durable. The next frame is `log.tail().next()`.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing that was durable is changed if it fails.
    pub fn begin(self) -> Result<(LocalLog, Recovery), OpenError> {
        let Examined { shared, found, options, lock } = self;
        let last = found.last();
        let recovered = found.settle()?;
        shared.spares.adopt(recovered.spares);
        let (wall_ms, lease_ms) = (recovered.end.wall_ms, recovered.end.lease_ms);
        let mut writer = Writer::new(shared.clone(), recovered.end, &options);
        writer.begin_epoch()?;
        shared.set_left(writer.left());
        let recovery = Recovery {
            first: shared.table.first(),
            last,
            epoch: writer.epoch(),
            wall_ms,
            lease_ms,
            clean: recovered.clean,
            cut: recovered.cut,
            segments: shared.table.segments(shared.state.durable()),
            bytes_read: recovered.bytes_read,
            took: recovered.began.elapsed(),
        };
        let engine = match options.drive {
            Drive::Threads => Engine::Threads(Threads::start(writer, &shared, &options)?),
            Drive::Steps => Engine::Steps(Box::new(Stepped { writer, made: None })),
        };
        let log = LocalLog { shared, tail: last.next(), engine: Some(engine), _lock: lock };
        Ok((log, recovery))
    }
}

impl LocalLog {
    /// Opens the log in `dir`, which must exist, and takes it over: recovers it,
    /// begins a new epoch, and makes that durable. The next frame is
    /// `log.tail().next()`.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing that was durable is changed by a failed opening.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        options: LocalOptions,
    ) -> Result<(LocalLog, Recovery), OpenError> {
        Self::examine(files, dir, options)?.begin()
    }

    /// Opens the log in `dir` to be read: finds its end, and whether it is sound. It is
    /// locked, and nothing in it is changed, before [`Examined::begin`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn examine(
        files: Arc<dyn Files>,
        dir: &Path,
        options: LocalOptions,
    ) -> Result<Examined, OpenError> {
        options.check()?;
        let lock = files.lock(dir).map_err(|error| match error.is_locked() {
            true => OpenError::Locked { dir: dir.to_owned() },
            false => error.into(),
        })?;
        let found = recovery::examine(files.clone(), dir, &options)?;
        let shared = Arc::new(Shared::new(
            files.clone(),
            dir.to_owned(),
            Limits { max_frame_bytes: options.max_frame_bytes, sparse_free: true },
            StateCell::new(found.last()),
            Table::new(files.clone(), dir, found.segments.clone()),
            Tail::new(options.tail_bytes),
            Spares::new(files, dir, options.geometry(), options.spares),
        ));
        Ok(Examined { shared, found, options, lock })
    }

    /// Room on the file system of the log. For the owner, who must stop taking
    /// messages long before the log cannot find room for a segment: that is a
    /// failure like any other, and final.
    ///
    /// # Errors
    /// What the system refused.
    pub fn free_space(&self) -> Result<Space, FileError> {
        self.shared.files.space(&self.shared.dir)
    }

    /// What can still be written on a full disk.
    pub fn reserve(&self) -> Reserve {
        self.shared.reserve()
    }

    /// Figures, for metrics.
    pub fn stats(&self) -> Stats {
        Stats {
            segments: self.shared.table.len(),
            written_bytes: self.shared.written_bytes(),
            reserve: self.reserve(),
        }
    }

    /// With [`Drive::Steps`]: writes and syncs one batch of what was handed over; or
    /// ends what [`LocalLog::step_sync`] began, or else syncs what
    /// [`LocalLog::step_write`] has written. `false` if there was nothing to do.
    ///
    /// # Panics
    /// With [`Drive::Threads`], whose threads do this.
    pub fn step(&mut self) -> bool {
        let (shared, stepped) = self.stepped();
        if !shared.state.is_open() {
            return false;
        }
        if stepped.tell() {
            return true;
        }
        let mut batch = Vec::new();
        let took = shared.queue.take(&mut batch);
        let works = took || stepped.writer.owes_sync();
        if works {
            threads::guarded(&shared, &mut stepped.writer, |writer| writer.commit(&batch));
        }
        works
    }

    /// With [`Drive::Steps`]: writes one batch, and leaves it to be synced later, as it
    /// happens while another sync runs. `false` if there was nothing to do.
    ///
    /// # Panics
    /// With [`Drive::Threads`], whose threads do this.
    pub fn step_write(&mut self) -> bool {
        let (shared, stepped) = self.stepped();
        let mut batch = Vec::new();
        if !shared.state.is_open() || !shared.queue.take(&mut batch) {
            return false;
        }
        threads::guarded(&shared, &mut stepped.writer, |writer| writer.write(&batch))
    }

    /// With [`Drive::Steps`]: syncs what was written, and tells nobody before
    /// [`LocalLog::step`] is called next. `false` if there was nothing to do.
    ///
    /// # Panics
    /// With [`Drive::Threads`], whose threads do this.
    pub fn step_sync(&mut self) -> bool {
        let (shared, stepped) = self.stepped();
        let Stepped { writer, made } = stepped;
        if !shared.state.is_open() || made.is_some() || !writer.owes_sync() {
            return false;
        }
        threads::guarded(&shared, writer, |writer| {
            let due = writer.begin_sync();
            due.sync()?;
            *made = Some(due);
            Ok(())
        })
    }

    /// With [`Drive::Steps`]: does what the log does when it is idle, which is to
    /// sync what is not synced and to leave a mark.
    ///
    /// # Panics
    /// With [`Drive::Threads`], whose threads do this.
    pub fn idle(&mut self) {
        let (shared, stepped) = self.stepped();
        if shared.state.is_open() {
            threads::guarded(&shared, stepped.settled(), Writer::mark);
        }
    }

    /// With [`Drive::Steps`]: does one small piece of work on the spares, and lets a
    /// second pass for them if there is none. `false` if there was none.
    pub fn tend(&mut self) -> bool {
        let worked = matches!(self.shared.spares.tend(true), Tended::Filled | Tended::Removed);
        if !worked {
            self.shared.spares.tick();
        }
        worked
    }

    fn stepped(&mut self) -> (Arc<Shared>, &mut Stepped) {
        match &mut self.engine {
            Some(Engine::Steps(stepped)) => (self.shared.clone(), stepped),
            _ => panic!("a log with threads of its own is not driven by steps"),
        }
    }
}

impl Log for LocalLog {
    type Reader = LocalReader;

    fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn submit(&mut self, frame: Frame) -> Result<(), Latched> {
        if self.shared.queue.is_latched() {
            return Err(Latched);
        }
        assert_eq!(frame.no, self.tail.next(), "frames are handed over in order");
        let (bytes, most) = (frame.content_bytes(), self.shared.limits.max_frame_bytes);
        assert!(bytes <= most, "frame {} has {bytes} bytes, the log takes {most}", frame.no);
        let frame = Arc::new(frame);
        self.shared.queue.push(frame.clone())?;
        self.tail = frame.no;
        self.shared.tail.push(frame, self.shared.state.durable());
        Ok(())
    }

    fn request_sync(&mut self) {
        let shared = self.shared.clone();
        shared.state.want_sync();
        match &mut self.engine {
            Some(Engine::Steps(stepped)) if shared.state.is_open() => {
                threads::guarded(&shared, stepped.settled(), Writer::sync);
            }
            _ => shared.queue.want_sync(),
        }
    }

    fn backlog(&self) -> usize {
        (self.tail.0 - self.shared.state.durable().0.min(self.tail.0)) as usize
    }

    fn tail(&self) -> FrameNo {
        self.tail
    }

    fn watch(&mut self, wake: Wake) {
        self.shared.state.watch(wake);
    }

    fn reader(&self) -> LocalReader {
        LocalReader::new(self.shared.clone())
    }

    fn release(&mut self, head: FrameNo, free: &[SegmentNo]) -> Result<(), ReleaseError> {
        // What no sync has covered is needed, whatever the owner says.
        let head = head.min(self.shared.state.synced().next());
        for segment in self.shared.table.all() {
            let needed = segment.is_active() || segment.last() >= head;
            if needed || !free.contains(&segment.no()) {
                continue;
            }
            // Before its file goes: who reads in it must not call this damage.
            segment.set_freed(true);
            if let Err(error) = self.shared.spares.give(segment.no(), segment.header.bytes) {
                segment.set_freed(false);
                let what = self.shared.table.path(segment.no()).display().to_string();
                return Err(ReleaseError { what, error: error.what });
            }
            self.shared.table.remove(segment.no());
        }
        Ok(())
    }

    fn close(mut self) -> LogState {
        match self.engine.take() {
            Some(Engine::Threads(threads)) => threads.stop(&self.shared, Stop::Close),
            Some(Engine::Steps(mut stepped)) if self.shared.state.is_open() => {
                threads::finish(&self.shared, stepped.settled());
            }
            Some(Engine::Steps(_)) => {}
            None => {}
        }
        self.shared.state.get()
    }
}

impl Drop for LocalLog {
    /// Without [`Log::close`]: what is not written yet is not written any more.
    fn drop(&mut self) {
        if let Some(Engine::Threads(threads)) = self.engine.take() {
            threads.stop(&self.shared, Stop::Abort);
        }
        self.shared.end();
    }
}
