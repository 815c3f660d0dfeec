//! Frames whose content follows from their number, and what readers must find.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use posthouse_frame::{BodyBuf, BodyRef, Frame, FrameBuf, FrameNo, Kind};

use crate::rng::Rng;
use crate::{Log, LogReader, Part, ReadError, ScannedFrame};

/// What was written in one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The meta section.
    pub meta: Bytes,
    /// Places and contents of the bodies.
    pub bodies: Vec<(BodyRef, Bytes)>,
    /// The whole body section.
    pub section: Bytes,
}

/// Makes frames, remembers them, and checks what is read against them.
#[derive(Clone, Debug)]
pub struct Script {
    seed: u64,
    /// About how long bodies are.
    body_bytes: u64,
    /// What was written, by frame.
    pub frames: BTreeMap<FrameNo, Written>,
}

impl Script {
    /// Frames of this seed, with bodies of up to `body_bytes`.
    pub fn new(seed: u64, body_bytes: u64) -> Self {
        Script { seed, body_bytes, frames: BTreeMap::new() }
    }

    /// The frame `no`, which is remembered as written.
    pub fn frame(&mut self, no: FrameNo) -> Frame {
        let mut rng = Rng::new(self.seed ^ no.0.wrapping_mul(0x9e37_79b9));
        let mut buf = FrameBuf::new(no);
        let mut bodies = Vec::new();
        for _ in 0..rng.below(4) {
            let mut batch = BodyBuf::default();
            let mut contents = Vec::new();
            for _ in 0..=rng.below(2) {
                let len = rng.below(self.body_bytes + 1) as usize;
                let content: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
                let sealed = batch.seal(|out| out.put_slice(&content));
                contents.push((sealed, Bytes::from(content)));
            }
            let mut at = buf.bodies(batch);
            for (len, content) in contents {
                bodies.push((buf.place(at, len), content));
                at += len;
            }
        }
        for record in 0..=rng.below(3) {
            buf.record(1, |meta| meta.put_slice(format!("frame {no} record {record};").as_bytes()));
        }
        let frame = buf.seal(1_000_000 + no.0, 10 * no.0);
        let section = Bytes::from(frame.bodies.concat());
        self.frames.insert(no, Written { meta: frame.meta.clone(), bodies, section });
        frame
    }

    /// Hands `n` frames over.
    ///
    /// # Panics
    /// If the log takes no more.
    pub fn submit<L: Log>(&mut self, log: &mut L, n: usize) {
        for _ in 0..n {
            let frame = self.frame(log.tail().next());
            log.submit(frame).expect("the log is open");
        }
    }

    /// Forgets what was written past `last`: it was lost, and was never durable.
    pub fn forget_after(&mut self, last: FrameNo) {
        self.frames.retain(|no, _| *no <= last);
    }

    /// Places of all bodies in frames from `from` to `to`.
    pub fn places(&self, from: FrameNo, to: FrameNo) -> Vec<BodyRef> {
        self.frames.range(from..=to).flat_map(|(_, w)| w.bodies.iter().map(|b| b.0)).collect()
    }

    /// The content of the body at `place`.
    ///
    /// # Panics
    /// If none was written there.
    pub fn content(&self, place: BodyRef) -> &Bytes {
        let bodies = &self.frames[&place.frame].bodies;
        &bodies.iter().find(|body| body.0 == place).expect("a place of a body").1
    }

    /// Checks that a scan gave exactly the frames from `from` to `to`: data frames
    /// as written, and nothing but epochs in place of others.
    ///
    /// # Panics
    /// If it did not.
    pub fn check_frames(&self, from: FrameNo, to: FrameNo, part: Part, found: &[ScannedFrame]) {
        let numbers: Vec<u64> = found.iter().map(|frame| frame.header.frame_no.0).collect();
        assert_eq!(numbers, (from.0..=to.0).collect::<Vec<_>>(), "numbers are dense and in order");
        self.check_contents(part, found);
    }

    /// Checks the content of frames, whichever they are.
    ///
    /// # Panics
    /// If one is not as written.
    pub fn check_contents(&self, part: Part, found: &[ScannedFrame]) {
        let mut epoch = 0;
        for frame in found {
            let no = frame.header.frame_no;
            assert!(frame.header.epoch >= epoch, "frame {no}: the epoch falls");
            epoch = frame.header.epoch;
            assert_eq!(frame.body.is_some(), part == Part::Whole);
            let Some(written) = self.frames.get(&no) else {
                assert_eq!(frame.header.kind, Kind::Epoch, "frame {no} was never written");
                assert!(frame.meta.is_empty());
                continue;
            };
            assert_eq!(frame.header.kind, Kind::Data, "frame {no}");
            assert_eq!(frame.meta, written.meta, "meta of frame {no}");
            assert_eq!(frame.header.wall_ms, 1_000_000 + no.0);
            assert_eq!(frame.header.lease_ms, 10 * no.0);
            if let Some(body) = &frame.body {
                assert_eq!(*body, written.section, "body section of frame {no}");
            }
        }
    }

    /// Checks all that a reader can find from `from` to `to`: both scans, every body
    /// by its place, and those in memory.
    ///
    /// # Panics
    /// If something is not as written.
    pub fn check<R: LogReader>(&self, reader: &R, from: FrameNo, to: FrameNo) {
        for part in [Part::Meta, Part::Whole] {
            let found = scan(reader, from, part).expect("the scan begins");
            self.check_frames(from, to, part, &found);
        }
        let places = self.places(from, to);
        for (place, body) in places.iter().zip(reader.bodies(&places)) {
            let body = body.unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!(&body, self.content(*place), "{place}");
            if let Some(cached) = reader.cached(*place) {
                assert_eq!(&cached, self.content(*place), "{place} in memory");
            }
        }
    }
}

/// A whole scan, or its first error.
pub(crate) fn scan<R: LogReader>(
    reader: &R,
    from: FrameNo,
    part: Part,
) -> Result<Vec<ScannedFrame>, ReadError> {
    reader.scan(from, part)?.collect()
}
