//! A log in memory with one owner.

use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::{BodyRef, Frame, FrameNo, Kind};

use super::frames::{Frames, MemoryScan, Stored};
use crate::state::StateCell;
use crate::sync::Mutex;
use crate::{
    Latched, Limits, Log, LogReader, LogState, Part, ReadError, ReleaseError, Segment, SegmentNo,
    Wake,
};

/// What the owner of a memory log chooses.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Make every frame durable as it is handed over. Else
    /// [`MemoryLog::sync`] does it.
    pub auto: bool,
    /// Frames in a segment.
    pub segment_frames: u64,
    /// The most bytes of header, meta and body that one frame may have.
    pub max_frame_bytes: usize,
    /// [`LogReader::cached`] finds so many of the last frames.
    pub cached_frames: u64,
    /// Whether segments in the middle can be freed.
    pub sparse_free: bool,
    /// A random number of this process.
    pub writer: u32,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        MemoryOptions {
            auto: true,
            segment_frames: 64,
            max_frame_bytes: 9 << 20,
            cached_frames: u64::MAX,
            sparse_free: true,
            writer: 0,
        }
    }
}

/// The log is open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory log is in use: close or crash the one that has it open")]
pub struct InUse;

/// What outlives a [`MemoryLog`]. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    frames: Frames,
    /// Frames up to this one survive for certain.
    durable: FrameNo,
    epoch: u32,
    in_use: bool,
    /// Counts crashes: an owner from before one has no effect.
    boot: u64,
    syncs: u64,
    failing: Option<String>,
}

impl MemoryStore {
    /// A store without frames.
    pub fn new() -> Self {
        MemoryStore::default()
    }

    /// How often something was made durable.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Makes the next sync fail. Whether what it was to make durable is found again
    /// is decided by [`MemoryStore::crash`].
    pub fn fail_next_sync(&self, error: &str) {
        self.0.lock().failing = Some(error.to_owned());
    }

    /// Ends whoever has the log open, without a goodbye. What was durable stays; of
    /// the rest the first frames stay, as many as `keep` decides when told how many
    /// there are.
    pub fn crash(&self, keep: impl FnOnce(u64) -> u64) {
        let mut kept = self.0.lock();
        let last = kept.frames.last().map_or(kept.durable, |last| last.frame.no);
        let more = last.0.saturating_sub(kept.durable.0);
        let end = FrameNo(kept.durable.0 + keep(more).min(more));
        kept.frames.cut(end);
        kept.durable = end;
        kept.boot += 1;
        kept.in_use = false;
        kept.failing = None;
    }
}

/// A log in memory. See [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryLog {
    reader: MemoryReader,
    options: MemoryOptions,
    epoch: u32,
    tail: FrameNo,
    boot: u64,
}

impl MemoryLog {
    /// Opens the log on `store` and begins a new epoch, durably. The next frame is
    /// `log.tail().next()`.
    ///
    /// # Errors
    /// If it is open already.
    pub fn open(store: &MemoryStore, options: MemoryOptions) -> Result<MemoryLog, InUse> {
        let mut kept = store.0.lock();
        if std::mem::replace(&mut kept.in_use, true) {
            return Err(InUse);
        }
        if kept.frames.last().is_none() {
            kept.frames = Frames::new(options.segment_frames);
        }
        let clocks = kept.frames.last().map_or((0, 0), |l| (l.frame.wall_ms, l.frame.lease_ms));
        kept.epoch += 1;
        let first = kept.durable.next();
        let epoch = Stored::epoch(first, kept.epoch, options.writer, clocks);
        kept.frames.push(epoch);
        kept.durable = first;
        let state = Arc::new(StateCell::new(first));
        let (epoch, boot) = (kept.epoch, kept.boot);
        drop(kept);
        let cached_frames = options.cached_frames;
        let reader = MemoryReader { store: store.clone(), state, cached_frames };
        Ok(MemoryLog { reader, options, epoch, tail: first, boot })
    }

    /// The epoch of this owner.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Makes everything handed over durable, and tells the watcher.
    pub fn sync(&mut self) {
        let state = &self.reader.state;
        if state.durable() == self.tail || !state.is_open() {
            return;
        }
        let mut kept = self.reader.store.0.lock();
        if kept.boot != self.boot {
            return;
        }
        kept.syncs += 1;
        let failing = kept.failing.take();
        if failing.is_none() {
            kept.durable = self.tail;
        }
        drop(kept);
        match failing {
            None => state.advance(self.tail),
            Some(error) => state.fail(state.durable().next(), error),
        }
    }
}

impl Drop for MemoryLog {
    fn drop(&mut self) {
        let mut kept = self.reader.store.0.lock();
        if kept.boot == self.boot {
            let durable = kept.durable;
            kept.frames.cut(durable);
            kept.in_use = false;
        }
    }
}

impl Log for MemoryLog {
    type Reader = MemoryReader;

    fn limits(&self) -> Limits {
        Limits {
            max_frame_bytes: self.options.max_frame_bytes,
            sparse_free: self.options.sparse_free,
        }
    }

    fn submit(&mut self, frame: Frame) -> Result<(), Latched> {
        let mut kept = self.reader.store.0.lock();
        if !self.reader.state.is_open() || kept.boot != self.boot {
            return Err(Latched);
        }
        assert_eq!(frame.no, self.tail.next(), "frames are handed over in order");
        let (bytes, most) = (frame.content_bytes(), self.options.max_frame_bytes);
        assert!(bytes <= most, "frame {} has {bytes} bytes, the log takes {most}", frame.no);
        self.tail = frame.no;
        kept.frames.push(Stored::new(Kind::Data, frame, self.epoch, self.options.writer));
        drop(kept);
        if self.options.auto {
            self.sync();
        }
        Ok(())
    }

    /// What is durable here outlives everything.
    fn request_sync(&mut self) {}

    fn backlog(&self) -> usize {
        (self.tail.0 - self.reader.state.durable().0) as usize
    }

    fn tail(&self) -> FrameNo {
        self.tail
    }

    fn watch(&mut self, wake: Wake) {
        self.reader.state.watch(wake);
    }

    fn reader(&self) -> MemoryReader {
        self.reader.clone()
    }

    fn release(&mut self, head: FrameNo, free: &[SegmentNo]) -> Result<(), ReleaseError> {
        let mut kept = self.reader.store.0.lock();
        for segment in kept.frames.segments(self.tail) {
            let frees = !segment.active && segment.last < head && free.contains(&segment.no);
            if frees {
                kept.frames.free(segment.no);
            } else if !self.options.sparse_free {
                break;
            }
        }
        Ok(())
    }

    fn close(mut self) -> LogState {
        self.sync();
        self.reader.state.get()
    }
}

/// Reads a [`MemoryLog`].
#[derive(Clone, Debug)]
pub struct MemoryReader {
    store: MemoryStore,
    state: Arc<StateCell>,
    cached_frames: u64,
}

impl LogReader for MemoryReader {
    type Scan = MemoryScan;

    fn state(&self) -> LogState {
        self.state.get()
    }

    fn cached(&self, place: BodyRef) -> Option<Bytes> {
        let kept = self.store.0.lock();
        let last = kept.frames.last()?.frame.no;
        let young = last.0.saturating_sub(place.frame.0) < self.cached_frames;
        kept.frames.cached(place).filter(|_| young)
    }

    fn bodies(&self, places: &[BodyRef]) -> Vec<Result<Bytes, ReadError>> {
        let (kept, durable) = (self.store.0.lock(), self.state.durable());
        places.iter().map(|place| kept.frames.body(*place, durable)).collect()
    }

    fn scan(&self, from: FrameNo, part: Part) -> Result<MemoryScan, ReadError> {
        self.store.0.lock().frames.scan(from, self.state.durable(), part)
    }

    fn segments(&self) -> Vec<Segment> {
        self.store.0.lock().frames.segments(self.state.durable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_frame::FrameBuf;

    fn submit(log: &mut MemoryLog) {
        let frame = FrameBuf::new(log.tail().next()).seal(1, 1);
        log.submit(frame).unwrap();
    }

    #[test]
    fn a_crash_keeps_what_was_durable_and_as_much_more_as_it_is_told() {
        for more in 0..=3 {
            let store = MemoryStore::new();
            let options = MemoryOptions { auto: false, ..MemoryOptions::default() };
            let mut log = MemoryLog::open(&store, options).unwrap();
            submit(&mut log);
            log.sync();
            submit(&mut log);
            submit(&mut log);
            store.crash(|left| {
                assert_eq!(left, 2);
                more
            });
            assert_eq!(log.submit(FrameBuf::new(log.tail().next()).seal(1, 1)), Err(Latched));
            drop(log);
            let log = MemoryLog::open(&store, options).unwrap();
            assert_eq!(log.tail(), FrameNo(2 + more.min(2) + 1));
            assert_eq!(log.epoch(), 2);
        }
    }

    #[test]
    fn a_log_has_one_owner() {
        let store = MemoryStore::new();
        let log = MemoryLog::open(&store, MemoryOptions::default()).unwrap();
        assert_eq!(MemoryLog::open(&store, MemoryOptions::default()).unwrap_err(), InUse);
        log.close();
        MemoryLog::open(&store, MemoryOptions::default()).unwrap();
    }
}
