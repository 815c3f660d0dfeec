//! An owner of one partition of a replicated log.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::{BodyRef, Frame, FrameNo, Kind, body};

use super::frames::{Frames, MemoryScan, Stored};
use super::partition::Partition;
use super::single::MemoryOptions;
use crate::fencing::{Claim, Fence, Verdict};
use crate::state::StateCell;
use crate::sync::Mutex;
use crate::{
    Latched, Limits, Log, LogReader, LogState, Part, ReadError, ReleaseError, Segment, SegmentNo,
    Wake,
};

/// How often a lost message is sent again before the partition is called broken.
const ATTEMPTS: usize = 1000;

/// The partition did not let an owner take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no epoch frame got through in {ATTEMPTS} attempts: the partition loses everything")]
pub struct TakeOverError;

/// A claimant of a [`Partition`]. It is the owner from opening on until it reads
/// that another has claimed a higher epoch; it then is [`LogState::Fenced`].
///
/// Its frames are durable when it has read back that they count, by the rule in
/// [`fencing`](crate::fencing). What is missing is sent again: under the rule that
/// is harmless, should the first one arrive after all.
#[derive(Debug)]
pub struct SharedLog {
    reader: SharedReader,
    partition: Partition,
    options: MemoryOptions,
    epoch: u32,
    tail: FrameNo,
    failing: Option<String>,
}

/// What an owner has read of the partition so far.
#[derive(Debug)]
struct View {
    fence: Fence,
    /// Position of the next message to read.
    at: u64,
    /// Frames that count.
    frames: Frames,
    /// Where each of them stands, and the rule before it.
    places: VecDeque<(FrameNo, u64, Fence)>,
    /// Handed over, and not seen to count yet.
    pending: VecDeque<Stored>,
}

impl View {
    fn new(partition: &Partition, per_segment: u64) -> Self {
        let (fence, at) = partition.start();
        View {
            fence,
            at,
            frames: Frames::new(per_segment),
            places: VecDeque::new(),
            pending: VecDeque::new(),
        }
    }

    /// Reads what has arrived. Returns the last frame that counts of the owner
    /// (`epoch`, `writer`), if there is a new one.
    fn read(&mut self, partition: &Partition, epoch: u32, writer: u32) -> Option<FrameNo> {
        let (fence, start) = partition.start();
        if self.at < start {
            // Deleted unread: only somebody else can have done that.
            (self.fence, self.at) = (fence, start);
        }
        let mut own = None;
        for message in partition.read(self.at) {
            let before = self.fence;
            let claim = Claim::from(&message.header);
            if let Verdict::Accepted(no) = self.fence.judge(claim) {
                self.places.push_back((no, self.at, before));
                self.frames.push(message.numbered(no));
                if (claim.epoch, claim.writer) == (epoch, writer) {
                    own = Some(no);
                    self.pending.pop_front_if(|sent| sent.frame.no == no);
                }
            }
            self.at += 1;
        }
        own
    }

    fn owner(&self) -> (u32, u32) {
        (self.fence.epoch(), self.fence.writer())
    }
}

impl SharedLog {
    /// Takes the partition over: claims the next epoch, reads back up to it. The
    /// next frame is `log.tail().next()`. Of the options, `sparse_free` and
    /// `cached_frames` have no meaning here; `writer` must differ between claimants.
    ///
    /// # Errors
    /// If nothing gets through.
    pub fn open(partition: &Partition, options: MemoryOptions) -> Result<Self, TakeOverError> {
        let mut view = View::new(partition, options.segment_frames);
        for _ in 0..ATTEMPTS {
            view.read(partition, 0, options.writer);
            let epoch = view.fence.epoch() + 1;
            let last = view.frames.last();
            let clocks = last.map_or((0, 0), |last| (last.frame.wall_ms, last.frame.lease_ms));
            let claim = Stored::epoch(view.fence.next(), epoch, options.writer, clocks);
            partition.append(&claim);
            loop {
                if let Some(own) = view.read(partition, epoch, options.writer) {
                    let log = SharedLog::own(partition, options, view, epoch, own);
                    return Ok(log);
                }
                if !partition.land_one() {
                    break;
                }
            }
        }
        Err(TakeOverError)
    }

    fn own(
        partition: &Partition,
        options: MemoryOptions,
        view: View,
        epoch: u32,
        tail: FrameNo,
    ) -> Self {
        let state = Arc::new(StateCell::new(tail));
        let reader = SharedReader { view: Arc::new(Mutex::new(view)), state };
        let mut log =
            SharedLog { reader, partition: partition.clone(), options, epoch, tail, failing: None };
        // Somebody may have been quicker still.
        log.poll();
        log
    }

    /// The epoch of this owner.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Makes the next step fail: the connection breaks.
    pub fn fail_next(&mut self, error: &str) {
        self.failing = Some(error.to_owned());
    }

    /// Reads what has arrived, and moves the state by it.
    pub fn poll(&mut self) {
        let mut view = self.reader.view.lock();
        let own = view.read(&self.partition, self.epoch, self.options.writer);
        let owner = view.owner();
        drop(view);
        let state = &self.reader.state;
        let durable = own.unwrap_or(state.durable()).max(state.durable());
        if owner == (self.epoch, self.options.writer) {
            state.advance(durable);
        } else {
            state.fence(durable, owner.0);
        }
    }

    /// Sends again what is not known to have arrived.
    pub fn resend(&mut self) {
        for message in &self.reader.view.lock().pending {
            self.partition.append(message);
        }
    }

    /// Lets messages arrive, and sends them again, until everything handed over
    /// counts or another owner has taken over.
    ///
    /// # Panics
    /// If nothing gets through.
    pub fn settle(&mut self) {
        for _ in 0..ATTEMPTS {
            if let Some(error) = self.failing.take() {
                let state = &self.reader.state;
                state.fail(state.durable().next(), error);
            }
            self.poll();
            if !self.reader.state.is_open() || self.backlog() == 0 {
                return;
            }
            if !self.partition.land_one() {
                self.resend();
            }
        }
        panic!("nothing got through in {ATTEMPTS} attempts");
    }
}

impl Log for SharedLog {
    type Reader = SharedReader;

    fn limits(&self) -> Limits {
        Limits { max_frame_bytes: self.options.max_frame_bytes, sparse_free: false }
    }

    fn submit(&mut self, frame: Frame) -> Result<(), Latched> {
        if !self.reader.state.is_open() {
            return Err(Latched);
        }
        assert_eq!(frame.no, self.tail.next(), "frames are handed over in order");
        let (bytes, most) = (frame.content_bytes(), self.options.max_frame_bytes);
        assert!(bytes <= most, "frame {} has {bytes} bytes, the log takes {most}", frame.no);
        self.tail = frame.no;
        let message = Stored::new(Kind::Data, frame, self.epoch, self.options.writer);
        self.partition.append(&message);
        if posthouse_frame::planted("durable-when-sent") {
            self.reader.state.advance(self.tail);
        }
        self.reader.view.lock().pending.push_back(message);
        if self.options.auto {
            self.settle();
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

    fn reader(&self) -> SharedReader {
        self.reader.clone()
    }

    fn release(&mut self, head: FrameNo, free: &[SegmentNo]) -> Result<(), ReleaseError> {
        let mut view = self.reader.view.lock();
        for segment in view.frames.segments(self.reader.state.durable()) {
            if segment.active || segment.last >= head || !free.contains(&segment.no) {
                break;
            }
            view.frames.free(segment.no);
            while view.places.pop_front_if(|(no, ..)| *no <= segment.last).is_some() {}
        }
        if let Some((_, at, fence)) = view.places.front() {
            self.partition.delete(*at, *fence);
        }
        Ok(())
    }

    fn close(mut self) -> LogState {
        self.settle();
        self.reader.state.get()
    }
}

/// Reads what the owner of a [`SharedLog`] has seen to count.
#[derive(Clone, Debug)]
pub struct SharedReader {
    view: Arc<Mutex<View>>,
    state: Arc<StateCell>,
}

impl LogReader for SharedReader {
    type Scan = MemoryScan;

    fn state(&self) -> LogState {
        self.state.get()
    }

    fn cached(&self, place: BodyRef) -> Option<Bytes> {
        let view = self.view.lock();
        if let Some(sent) = view.pending.iter().find(|sent| sent.frame.no == place.frame) {
            return body::open(sent.frame.sealed(place.at, place.len)?, place).ok();
        }
        view.frames.cached(place)
    }

    fn bodies(&self, places: &[BodyRef]) -> Vec<Result<Bytes, ReadError>> {
        let (view, durable) = (self.view.lock(), self.state.durable());
        places.iter().map(|place| view.frames.body(*place, durable)).collect()
    }

    fn scan(&self, from: FrameNo, part: Part) -> Result<MemoryScan, ReadError> {
        self.view.lock().frames.scan(from, self.state.durable(), part)
    }

    fn segments(&self) -> Vec<Segment> {
        self.view.lock().frames.segments(self.state.durable())
    }
}
