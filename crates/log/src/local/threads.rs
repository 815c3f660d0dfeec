//! The threads of a local log.
//!
//! One writes and syncs. While it waits for the disk, a second one writes what has come
//! meanwhile, if that is much: copying it to the system then costs no time between two
//! syncs. Both have the writer in turn; whoever has it takes frames and writes them, so
//! they go down in order.

use std::sync::{Arc, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::options::{Durability, LocalOptions};
use super::queue::{BATCH_BYTES, Job, Stop};
use super::shared::Shared;
use super::spares::Tended;
use super::stopper::Stopper;
use super::writer::Writer;
use crate::files::FileError;
use crate::sync::Mutex;

/// Between two pieces of work on the spares: with pieces of 256 KiB, under 25 MiB/s.
const TEND_PAUSE: Duration = Duration::from_millis(10);
/// How often the tender looks whether there is work, and a second of the spares'
/// memory.
const TICK: Duration = Duration::from_secs(1);
/// Spares are filled only while the log writes less than this in a second: at a
/// higher rate the disk is needed for frames, and their syncs are large enough to
/// hide what unwritten blocks cost.
const BUSY_BYTES: u64 = 32 << 20;

/// The most bytes that share a sync on a disk whose syncs are slow, where sharing one
/// matters more.
const SLOW_BATCH_BYTES: usize = 8 << 20;
/// A disk is slow if a MiB takes this long.
const SLOW: Duration = Duration::from_millis(2);

/// How much the next sync is to cover, from how long the last one took.
fn batch_bytes(bytes: u64, took: Duration) -> usize {
    let mib = bytes.div_ceil(1 << 20).max(1);
    if took > SLOW * mib as u32 { SLOW_BATCH_BYTES } else { BATCH_BYTES }
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct Threads {
    writing: JoinHandle<()>,
    ahead: JoinHandle<()>,
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
        let pen = Arc::new(Mutex::new(writer));
        let (for_ahead, its_pen) = (shared.clone(), pen.clone());
        let ahead = named("ahead").spawn(move || write_ahead(&for_ahead, &its_pen));
        let (for_writer, pace) = (shared.clone(), Pace::new(options));
        let writing = named("write").spawn(move || write(&for_writer, &pen, pace));
        match (writing, ahead) {
            (Ok(writing), Ok(ahead)) => Ok(Threads { writing, ahead, tending, stop_tending }),
            (Err(error), _) | (_, Err(error)) => {
                stop_tending.stop();
                shared.queue.stop(Stop::Abort);
                Err(failed(error))
            }
        }
    }

    /// Ends them, and waits for that.
    pub(crate) fn stop(self, shared: &Shared, stop: Stop) {
        self.stop_tending.stop();
        shared.queue.stop(stop);
        // A thread that panicked has latched the log on its way out.
        let _ = self.writing.join();
        let _ = self.ahead.join();
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

/// Latches the log if a thread that writes dies.
struct LatchOnPanic<'a>(&'a Shared);

impl Drop for LatchOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            latch(self.0, "the log's thread has panicked".to_owned());
        }
    }
}

/// Nothing is written any more: nobody knows what is on the disk.
fn latch(shared: &Shared, error: String) {
    // The queue first: whoever learns of the failure must not be able to hand over
    // another frame.
    shared.queue.latch();
    shared.state.fail(shared.state.synced().next(), error);
}

/// Lets the writer do something, and latches the log if that fails. From then on
/// the writer must not be used: it does not know what is on the disk.
pub(crate) fn guarded(
    shared: &Shared,
    writer: &mut Writer,
    act: impl FnOnce(&mut Writer) -> Result<(), FileError>,
) -> bool {
    let done = act(writer);
    shared.set_left(writer.left());
    done.map_err(|error| latch(shared, error.to_string())).is_ok()
}

/// Writes what is left, syncs, and leaves a mark of a clean end.
pub(crate) fn finish(shared: &Shared, writer: &mut Writer) {
    let mut batch = Vec::new();
    while shared.state.is_open() && shared.queue.take(&mut batch) {
        if !guarded(shared, writer, |writer| writer.commit(&batch)) {
            return;
        }
        batch.clear();
    }
    if shared.state.is_open() {
        guarded(shared, writer, Writer::mark);
    }
}

fn write(shared: &Shared, pen: &Mutex<Writer>, pace: Pace) {
    let _latch = LatchOnPanic(shared);
    let mut batch = Vec::new();
    let mut wrote = Instant::now();
    let mut unsynced_since = wrote;
    let mut writer = pen.lock();
    loop {
        let sync_at = match writer.owes_sync() {
            true => Some(wrote),
            false => pace
                .sync_after
                .filter(|_| writer.has_unsynced())
                .map(|after| unsynced_since + after),
        };
        let mark_at = pace.mark_after.filter(|_| writer.has_unmarked()).map(|d| wrote + d);
        let until = sync_at.into_iter().chain(mark_at).min();
        let job = shared.queue.next(&mut batch, until);
        let fine = match job {
            Job::Frames => {
                let was_synced = !writer.has_unsynced();
                let fine = guarded(shared, &mut writer, |writer| writer.write(&batch));
                batch.clear();
                wrote = Instant::now();
                unsynced_since = if was_synced { wrote } else { unsynced_since };
                fine
            }
            Job::Timeout
                if !writer.has_unsynced() && mark_at.is_some_and(|at| at <= Instant::now()) =>
            {
                guarded(shared, &mut writer, Writer::mark)
            }
            Job::Sync | Job::Timeout => true,
            Job::Stop(Stop::Close) => return finish(shared, &mut writer),
            Job::Stop(Stop::Abort) => return,
        };
        if !fine {
            return;
        }
        let is_due = writer.owes_sync()
            || job == Job::Sync
            || sync_at.is_some_and(|at| at <= Instant::now());
        if is_due {
            unsynced_since = Instant::now();
            match sync(shared, pen, writer) {
                Some(again) => writer = again,
                None => return,
            }
            wrote = Instant::now();
        }
    }
}

/// Syncs all that was written. The writer can be had by others meanwhile.
fn sync<'a>(
    shared: &Shared,
    pen: &'a Mutex<Writer>,
    mut writer: MutexGuard<'a, Writer>,
) -> Option<MutexGuard<'a, Writer>> {
    let due = writer.begin_sync();
    shared.queue.sync_begins();
    drop(writer);
    let began = Instant::now();
    let synced = due.sync();
    shared.queue.sync_ends(batch_bytes(due.bytes, began.elapsed()));
    let mut writer = pen.lock();
    let fine = guarded(shared, &mut writer, |writer| synced.map(|()| writer.end_sync(&due)));
    // The other thread may have failed meanwhile.
    (fine && shared.state.is_open()).then_some(writer)
}

/// Writes what comes while the other thread syncs.
fn write_ahead(shared: &Shared, pen: &Mutex<Writer>) {
    let _latch = LatchOnPanic(shared);
    let mut batch = Vec::new();
    while shared.queue.wait_ahead() {
        let mut writer = pen.lock();
        // Taken while nobody else can write, so that frames go down in order.
        while shared.queue.take_ahead(&mut batch) {
            let fine = guarded(shared, &mut writer, |writer| writer.write(&batch));
            batch.clear();
            if !fine {
                return;
            }
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
