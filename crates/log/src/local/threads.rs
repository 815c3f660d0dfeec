//! The two threads of a local log.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::options::{Durability, LocalOptions};
use super::queue::{Job, Stop};
use super::shared::Shared;
use super::spares::Tended;
use super::stopper::Stopper;
use super::writer::Writer;
use crate::files::FileError;

/// Between two pieces of work on the spares: with pieces of 1 MiB, under 100 MiB/s.
const TEND_PAUSE: Duration = Duration::from_millis(10);
/// How often the tender looks whether there is work, and a second of the spares'
/// memory.
const TICK: Duration = Duration::from_secs(1);
/// Spares are filled only while the log writes less than this in a second: at a
/// higher rate the disk is needed for frames, and their syncs are large enough to
/// hide what unwritten blocks cost.
const BUSY_BYTES: u64 = 32 << 20;

/// The most bytes that share a sync. A batch of this size stays in the processor's
/// cache between being copied and being sent to the disk, and a disk whose syncs are
/// quick is used best by it (measured: 1 MiB 2.2 GB/s, 8 MiB 1.9 GB/s).
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// The same on a disk whose syncs are slow, where sharing one matters more.
const SLOW_BATCH_BYTES: usize = 8 << 20;
/// A disk is slow if a MiB takes this long.
const SLOW: Duration = Duration::from_millis(2);

/// How much to write before the next sync, from how long the last one took.
fn batch_bytes(bytes: u64, took: Duration) -> usize {
    let mib = bytes.div_ceil(1 << 20).max(1);
    if took > SLOW * mib as u32 { SLOW_BATCH_BYTES } else { BATCH_BYTES }
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct Threads {
    writing: JoinHandle<()>,
    tending: JoinHandle<()>,
    stop_tending: Arc<Stopper>,
}

impl Threads {
    pub(crate) fn start(
        writer: Writer,
        shared: &Arc<Shared>,
        options: &LocalOptions,
    ) -> Result<Threads, FileError> {
        let named =
            |what: &str| thread::Builder::new().name(format!("log-{what}-{}", options.shard));
        let failed = |error| FileError::new("start a thread for", &shared.dir, &error);
        let stop_tending = Arc::new(Stopper::default());
        let (for_tender, stopper) = (shared.clone(), stop_tending.clone());
        let tending = named("tend").spawn(move || tend(&for_tender, &stopper)).map_err(failed)?;
        let (for_writer, pace) = (shared.clone(), Pace::new(options));
        let writing = named("write").spawn(move || write(&for_writer, writer, pace));
        match writing {
            Ok(writing) => Ok(Threads { writing, tending, stop_tending }),
            Err(error) => {
                stop_tending.stop();
                Err(failed(error))
            }
        }
    }

    /// Ends both, and waits for that.
    pub(crate) fn stop(self, shared: &Shared, stop: Stop) {
        self.stop_tending.stop();
        shared.queue.stop(stop);
        // A thread that panicked has latched the log on its way out.
        let _ = self.writing.join();
        let _ = self.tending.join();
    }
}

/// When the writing thread does something without being told to.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// After the first frame that is not synced.
    sync_after: Option<Duration>,
    /// After the last frame; `None` if nobody relies on syncs while the log runs.
    mark_after: Option<Duration>,
}

impl Pace {
    fn new(options: &LocalOptions) -> Self {
        match options.durability {
            Durability::Sync => Pace { sync_after: None, mark_after: Some(options.mark_after) },
            Durability::Interval(every) => {
                Pace { sync_after: Some(every), mark_after: Some(options.mark_after.max(every)) }
            }
            Durability::Os => Pace { sync_after: None, mark_after: None },
        }
    }
}

/// Latches the log if the thread that writes dies.
struct LatchOnPanic<'a>(&'a Shared, posthouse_frame::FrameNo);

impl Drop for LatchOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.queue.latch();
            self.0.state.fail(self.1, "the log's thread has panicked".to_owned());
        }
    }
}

/// Lets the writer do something, and latches the log if that fails. From then on
/// the writer must not be used: it does not know what is on the disk.
pub(crate) fn guarded(
    shared: &Shared,
    writer: &mut Writer,
    act: impl FnOnce(&mut Writer) -> Result<(), FileError>,
) -> bool {
    let latch = LatchOnPanic(shared, writer.unknown_from());
    let done = act(writer);
    drop(latch);
    shared.set_left(writer.left());
    match done {
        Ok(()) => true,
        Err(error) => {
            // The queue first: whoever learns of the failure must not be able to
            // hand over another frame.
            shared.queue.latch();
            shared.state.fail(writer.unknown_from(), error.to_string());
            false
        }
    }
}

/// Writes what is left, syncs, and leaves a mark of a clean end.
pub(crate) fn finish(shared: &Shared, writer: &mut Writer) {
    let mut batch = Vec::new();
    while shared.state.is_open() && shared.queue.take(&mut batch, BATCH_BYTES) {
        if !guarded(shared, writer, |writer| writer.commit(&batch)) {
            return;
        }
        batch.clear();
    }
    if shared.state.is_open() {
        guarded(shared, writer, Writer::mark);
    }
}

fn write(shared: &Shared, mut writer: Writer, pace: Pace) {
    let mut batch = Vec::new();
    let mut most = BATCH_BYTES;
    let mut wrote = Instant::now();
    let mut unsynced_since = wrote;
    loop {
        let sync_at = pace.sync_after.filter(|_| writer.has_unsynced()).map(|d| unsynced_since + d);
        let mark_at = pace.mark_after.filter(|_| writer.has_unmarked()).map(|d| wrote + d);
        let until = sync_at.into_iter().chain(mark_at).min();
        let fine = match shared.queue.next(&mut batch, most, until) {
            Job::Frames => {
                let was_synced = !writer.has_unsynced();
                let (began, before) = (Instant::now(), shared.written_bytes());
                let fine = guarded(shared, &mut writer, |writer| writer.commit(&batch));
                batch.clear();
                wrote = Instant::now();
                most = batch_bytes(shared.written_bytes() - before, wrote - began);
                unsynced_since = if was_synced { wrote } else { unsynced_since };
                fine
            }
            Job::Timeout if mark_at.is_some_and(|at| at <= Instant::now()) => {
                guarded(shared, &mut writer, Writer::mark)
            }
            Job::Sync => guarded(shared, &mut writer, Writer::sync),
            Job::Timeout => true,
            Job::Stop(Stop::Close) => return finish(shared, &mut writer),
            Job::Stop(Stop::Abort) => return,
        };
        let sync_due = sync_at.is_some_and(|at| at <= Instant::now());
        if !fine || (sync_due && !guarded(shared, &mut writer, Writer::sync)) {
            return;
        }
    }
}

/// Keeps the spares ready, out of the log's way.
fn tend(shared: &Shared, stopper: &Stopper) {
    let (mut ticked, mut looked) = (Instant::now(), Instant::now());
    let mut before = shared.written_bytes();
    // Whoever opens a log has something to write first.
    let mut pause = TICK;
    while !stopper.wait(pause) {
        let (written, since) = (shared.written_bytes(), looked.elapsed());
        let busy = (written - before) as f64 > BUSY_BYTES as f64 * since.as_secs_f64();
        (before, looked) = (written, Instant::now());
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            shared.spares.tick();
        }
        pause = match shared.spares.tend(!busy) {
            Tended::Filled | Tended::Removed => TEND_PAUSE,
            Tended::Nothing | Tended::Failed(_) => TICK,
        };
    }
}
