//! The frames handed over last, kept in memory for those who read soon after.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::{BodyRef, Frame, FrameNo, body};

use crate::sync::Mutex;

/// A bounded run of frames, dense in their numbers. Its lock is held for a few
/// instructions by whoever submits and whoever looks up; never during I/O, and
/// never by the thread that writes.
#[derive(Debug)]
pub(crate) struct Tail {
    budget: usize,
    run: Mutex<Run>,
}

#[derive(Debug, Default)]
struct Run {
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
}

impl Tail {
    pub(crate) fn new(budget: usize) -> Self {
        Tail { budget, run: Mutex::new(Run::default()) }
    }

    /// Takes a frame in. Frames up to `durable` make room for it; later ones stay
    /// whatever they take, because no disk can give them yet.
    pub(crate) fn push(&self, frame: Arc<Frame>, durable: FrameNo) {
        let mut dropped = Vec::new();
        let mut run = self.run.lock();
        run.bytes += frame.content_bytes();
        run.frames.push_back(frame);
        while run.bytes > self.budget && run.frames.front().is_some_and(|f| f.no <= durable) {
            if let Some(old) = run.frames.pop_front() {
                run.bytes -= old.content_bytes();
                dropped.push(old);
            }
        }
        drop(run);
        // Giving memory back can be slow; nobody waits for it.
        drop(dropped);
    }

    /// The content of a body, if its frame is here.
    pub(crate) fn get(&self, place: BodyRef) -> Option<Bytes> {
        let frame = {
            let run = self.run.lock();
            let first = run.frames.front()?.no;
            let at = place.frame.0.checked_sub(first.0)?;
            run.frames.get(usize::try_from(at).ok()?)?.clone()
        };
        body::open(frame.sealed(place.at, place.len)?, place).ok()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.run.lock().frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use posthouse_frame::{BodyBuf, FrameBuf};

    fn frame(no: u64, content: &[u8]) -> (Arc<Frame>, BodyRef) {
        let mut buf = FrameBuf::new(FrameNo(no));
        let mut bodies = BodyBuf::default();
        let len = bodies.seal(|out| out.put_slice(content));
        let at = buf.bodies(bodies);
        let place = buf.place(at, len);
        (Arc::new(buf.seal(0, 0)), place)
    }

    #[test]
    fn old_frames_make_room_but_only_durable_ones() {
        let tail = Tail::new(1000);
        let mut places = Vec::new();
        for no in 1..=10 {
            let (frame, place) = frame(no, &[no as u8; 400]);
            places.push(place);
            tail.push(frame, FrameNo(no.saturating_sub(5)));
        }
        assert_eq!(tail.len(), 5, "what is not durable stays, whatever it takes");
        assert_eq!(tail.get(places[9]).unwrap(), vec![10u8; 400]);
        assert_eq!(tail.get(places[4]), None);
        let (last, place) = frame(11, b"x");
        tail.push(last, FrameNo(10));
        assert_eq!(tail.len(), 2);
        assert_eq!(tail.get(place).unwrap(), "x");
    }

    #[test]
    fn a_place_that_is_none_is_not_found() {
        let tail = Tail::new(1000);
        let (frame, place) = frame(7, b"abc");
        tail.push(frame, FrameNo::ZERO);
        for wrong in [
            BodyRef { frame: FrameNo(6), ..place },
            BodyRef { frame: FrameNo(8), ..place },
            BodyRef { at: 1, ..place },
            BodyRef { len: place.len - 1, ..place },
            BodyRef { len: place.len + 1, ..place },
        ] {
            assert_eq!(tail.get(wrong), None, "{wrong}");
        }
    }
}
