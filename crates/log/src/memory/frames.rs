//! A run of frames in memory, and reading it.

use std::collections::VecDeque;
use std::vec;

use bytes::{Bytes, BytesMut};
use posthouse_frame::{BodyRef, Frame, FrameNo, Header, Kind, body, header};

use crate::{Part, ReadError, ScannedFrame, Segment, SegmentNo};

/// What errors call the place of a frame in memory.
const PLACE: &str = "memory";

/// A frame, and the header it would have in a file.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub header: Header,
    pub frame: Frame,
}

impl Stored {
    pub(crate) fn new(kind: Kind, frame: Frame, epoch: u32, writer: u32) -> Self {
        let header = Header {
            kind,
            flags: 0,
            total: frame.content_bytes() as u32,
            meta_len: frame.meta.len() as u32,
            body_len: frame.body_len,
            records: frame.records,
            frame_no: frame.no,
            epoch,
            meta_crc: 0,
            durable_no: FrameNo::ZERO,
            wall_ms: frame.wall_ms,
            lease_ms: frame.lease_ms,
            prev_header_crc: 0,
            writer,
            min_reader: frame.min_reader,
            shard: 0,
        };
        Stored { header, frame }
    }

    /// A frame that begins an epoch. It has no records.
    pub(crate) fn epoch(no: FrameNo, epoch: u32, writer: u32, clocks: (u64, u64)) -> Self {
        let frame = Frame {
            no,
            records: 0,
            min_reader: 1,
            wall_ms: clocks.0,
            lease_ms: clocks.1,
            meta: Bytes::new(),
            bodies: Vec::new(),
            body_len: 0,
        };
        Stored::new(Kind::Epoch, frame, epoch, writer)
    }

    /// The same under the number that it got, which an epoch frame only guesses.
    pub(crate) fn numbered(mut self, no: FrameNo) -> Self {
        self.header.frame_no = no;
        self.frame.no = no;
        self
    }

    fn scanned(&self, part: Part) -> ScannedFrame {
        let body = (part == Part::Whole).then(|| match &self.frame.bodies[..] {
            [] => Bytes::new(),
            [one] => one.clone(),
            pieces => {
                let mut all = BytesMut::with_capacity(self.frame.body_len as usize);
                pieces.iter().for_each(|piece| all.extend_from_slice(piece));
                all.freeze()
            }
        });
        ScannedFrame { header: self.header, meta: self.frame.meta.clone(), body }
    }
}

/// Frames in order of their numbers, with gaps where segments were freed, cut into
/// segments of so many numbers each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames {
    frames: VecDeque<Stored>,
    per_segment: u64,
}

impl Frames {
    pub(crate) fn new(per_segment: u64) -> Self {
        Frames { frames: VecDeque::new(), per_segment: per_segment.max(1) }
    }

    pub(crate) fn push(&mut self, frame: Stored) {
        debug_assert!(self.frames.back().is_none_or(|last| last.frame.no < frame.frame.no));
        self.frames.push_back(frame);
    }

    pub(crate) fn last(&self) -> Option<&Stored> {
        self.frames.back()
    }

    pub(crate) fn first(&self) -> FrameNo {
        self.frames.front().map_or(FrameNo(1), |first| first.frame.no)
    }

    /// Which segment a frame belongs to.
    pub(crate) fn segment_of(&self, frame: FrameNo) -> SegmentNo {
        SegmentNo(frame.0.saturating_sub(1) / self.per_segment + 1)
    }

    fn get(&self, frame: FrameNo) -> Option<&Stored> {
        let at = self.frames.binary_search_by_key(&frame, |stored| stored.frame.no).ok()?;
        self.frames.get(at)
    }

    pub(crate) fn body(&self, place: BodyRef, durable: FrameNo) -> Result<Bytes, ReadError> {
        let stored = self.get(place.frame).filter(|_| place.frame <= durable);
        let stored = stored.ok_or_else(|| self.gone(place.frame, durable))?;
        open(&stored.frame, place)
    }

    /// The body, durable or not.
    pub(crate) fn cached(&self, place: BodyRef) -> Option<Bytes> {
        open(&self.get(place.frame)?.frame, place).ok()
    }

    pub(crate) fn scan(
        &self,
        from: FrameNo,
        durable: FrameNo,
        part: Part,
    ) -> Result<MemoryScan, ReadError> {
        let from = if from == FrameNo::ZERO { self.first() } else { from };
        if from < self.first() || from > durable.next() {
            return Err(self.gone(from, durable));
        }
        let wanted = |stored: &&Stored| (from..=durable).contains(&stored.frame.no);
        let frames: Vec<_> =
            self.frames.iter().filter(wanted).map(|stored| Ok(stored.scanned(part))).collect();
        Ok(MemoryScan(frames.into_iter()))
    }

    fn gone(&self, frame: FrameNo, durable: FrameNo) -> ReadError {
        ReadError::Gone { frame, first: self.first(), last: durable }
    }

    pub(crate) fn segments(&self, durable: FrameNo) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for stored in self.frames.iter().filter(|stored| stored.frame.no <= durable) {
            let (frame, bytes) = (stored.frame.no, stored.frame.content_bytes() as u64);
            let no = self.segment_of(frame);
            match segments.last_mut().filter(|last| last.no == no) {
                Some(last) => {
                    last.last = frame;
                    last.bytes += bytes;
                }
                None => {
                    segments.push(Segment { no, first: frame, last: frame, bytes, active: false })
                }
            }
        }
        if let Some(last) = segments.last_mut() {
            last.active = true;
        }
        segments
    }

    /// Drops the frames of one segment.
    pub(crate) fn free(&mut self, no: SegmentNo) {
        let per_segment = self.per_segment;
        self.frames.retain(|s| (s.frame.no.0 - 1) / per_segment + 1 != no.0);
    }

    /// Drops all frames after `last`.
    pub(crate) fn cut(&mut self, last: FrameNo) {
        self.frames.retain(|stored| stored.frame.no <= last);
    }
}

fn open(frame: &Frame, place: BodyRef) -> Result<Bytes, ReadError> {
    let sealed = frame.sealed(place.at, place.len).ok_or_else(|| ReadError::Corrupt {
        file: PLACE.to_owned(),
        offset: header::HEADER_BYTES as u64 + frame.meta.len() as u64 + u64::from(place.at),
        what: format!("no body stands at {place}"),
    })?;
    body::open(sealed, place).map_err(|error| ReadError::body(PLACE, 0, error))
}

/// Frames of a log in memory, in order.
#[derive(Debug)]
pub struct MemoryScan(vec::IntoIter<Result<ScannedFrame, ReadError>>);

impl Iterator for MemoryScan {
    type Item = Result<ScannedFrame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}
