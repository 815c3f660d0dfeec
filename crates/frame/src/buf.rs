//! A frame being filled, and a frame that is sealed.

use bytes::{Bytes, BytesMut};

use crate::body::{self, BodyBuf};
use crate::{BodyRef, FrameNo};

/// From this size on a batch of bodies joins the frame by reference; below it a
/// copy is cheaper than one more piece to write.
const BY_REFERENCE_BYTES: usize = 16 << 10;

/// A sealed frame: what a log is given to keep. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its number, one above the frame before it.
    pub no: FrameNo,
    /// Records in `meta`.
    pub records: u32,
    /// The oldest reader that understands every record in it.
    pub min_reader: u16,
    /// The shard's wall clock when it was sealed, Unix milliseconds.
    pub wall_ms: u64,
    /// The shard's lease clock when it was sealed, milliseconds.
    pub lease_ms: u64,
    /// The meta section.
    pub meta: Bytes,
    /// The body section, in pieces. No sealed body is cut in two by a piece's end.
    pub bodies: Vec<Bytes>,
    /// Bytes of all pieces together.
    pub body_len: u32,
}

impl Frame {
    /// Header, meta and body together, without padding.
    pub fn content_bytes(&self) -> usize {
        crate::header::HEADER_BYTES + self.meta.len() + self.body_len as usize
    }

    /// The sealed body at `at`, if the section has these bytes in one piece.
    pub fn sealed(&self, at: u32, len: u32) -> Option<Bytes> {
        let mut start = 0u32;
        for piece in &self.bodies {
            let end = start + piece.len() as u32;
            if at < end {
                let from = (at - start) as usize;
                let to = from.checked_add(len as usize)?;
                return (to <= piece.len()).then(|| piece.slice(from..to));
            }
            start = end;
        }
        None
    }
}

/// The frame that the shard is filling: records and the bodies they name.
///
/// Its number is fixed from the start, so that what is applied can refer to the
/// bodies before the log has seen them.
#[derive(Debug)]
pub struct FrameBuf {
    no: FrameNo,
    records: u32,
    min_reader: u16,
    meta: Vec<u8>,
    pieces: Vec<Bytes>,
    tail: BytesMut,
    body_len: u32,
}

impl FrameBuf {
    /// An empty frame with the number `no`.
    pub fn new(no: FrameNo) -> Self {
        FrameBuf {
            no,
            records: 0,
            min_reader: 1,
            meta: Vec::new(),
            pieces: Vec::new(),
            tail: BytesMut::new(),
            body_len: 0,
        }
    }

    /// The frame's number.
    pub fn no(&self) -> FrameNo {
        self.no
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The records so far.
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// Bytes of the body section so far: where the next body will stand.
    pub fn body_len(&self) -> u32 {
        self.body_len
    }

    /// Header, meta and body together.
    pub fn content_bytes(&self) -> usize {
        crate::header::HEADER_BYTES + self.meta.len() + self.body_len as usize
    }

    /// Appends one record; `write` appends its bytes to the meta section.
    /// `min_reader` is the oldest reader that understands it.
    pub fn record(&mut self, min_reader: u16, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.meta);
        self.records += 1;
        self.min_reader = self.min_reader.max(min_reader);
    }

    /// Binds `bodies` to this frame and takes them in. Returns where the first
    /// of them stands; the others follow it without a gap.
    ///
    /// # Panics
    /// If the body section would pass 4 GiB. Callers keep frames under the log's
    /// `max_frame_bytes`, which is far below.
    pub fn bodies(&mut self, bodies: BodyBuf) -> u32 {
        let at = self.body_len;
        let len = u32::try_from(bodies.len()).expect("a batch of bodies is under 4 GiB");
        self.body_len = at.checked_add(len).expect("a body section is under 4 GiB");
        if bodies.len() >= BY_REFERENCE_BYTES {
            self.cut_tail();
            self.pieces.push(bodies.bind(self.no, at).freeze());
        } else {
            let start = self.tail.len();
            self.tail.extend_from_slice(bodies.as_ref());
            body::bind_in_place(&mut self.tail[start..], self.no, at);
        }
        at
    }

    /// The place of a body in this frame.
    pub fn place(&self, at: u32, len: u32) -> BodyRef {
        BodyRef { frame: self.no, at, len }
    }

    /// Closes the frame.
    pub fn seal(mut self, wall_ms: u64, lease_ms: u64) -> Frame {
        self.cut_tail();
        Frame {
            no: self.no,
            records: self.records,
            min_reader: self.min_reader,
            wall_ms,
            lease_ms,
            meta: Bytes::from(self.meta),
            bodies: self.pieces,
            body_len: self.body_len,
        }
    }

    fn cut_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.pieces.push(tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;

    fn batch(contents: &[&[u8]]) -> (BodyBuf, Vec<u32>) {
        let mut buf = BodyBuf::default();
        let lens = contents.iter().map(|c| buf.seal(|out| out.put_slice(c))).collect();
        (buf, lens)
    }

    #[test]
    fn small_and_large_batches_make_one_section_and_every_body_is_found() {
        let large = vec![7u8; BY_REFERENCE_BYTES];
        let mut frame = FrameBuf::new(FrameNo(5));
        let mut places = Vec::new();
        for contents in [&[b"a".as_slice(), b"bc"][..], &[&large[..]], &[b"def"], &[b"", b"g"]] {
            let (buf, lens) = batch(contents);
            let mut at = frame.bodies(buf);
            for (content, len) in contents.iter().zip(lens) {
                places.push((frame.place(at, len), content.to_vec()));
                at += len;
            }
        }
        frame.record(1, |meta| meta.push(1));
        let frame = frame.seal(10, 20);
        assert_eq!(frame.bodies.len(), 3, "small, large, small");
        for (place, content) in &places {
            let sealed = frame.sealed(place.at, place.len).unwrap();
            assert_eq!(&body::open(sealed, *place).unwrap(), content);
        }
        let section: Vec<u8> = frame.bodies.concat();
        assert_eq!(section.len(), frame.body_len as usize);
        let mut seen = Vec::new();
        body::walk(&section, frame.no, |place, _| seen.push(place)).unwrap();
        assert_eq!(seen, places.iter().map(|p| p.0).collect::<Vec<_>>());
    }

    #[test]
    fn a_place_outside_the_section_is_none() {
        let mut frame = FrameBuf::new(FrameNo(1));
        let (buf, lens) = batch(&[b"abc"]);
        frame.bodies(buf);
        let frame = frame.seal(0, 0);
        assert!(frame.sealed(0, lens[0]).is_some());
        assert!(frame.sealed(0, lens[0] + 1).is_none());
        assert!(frame.sealed(lens[0], 1).is_none());
        assert!(frame.sealed(1, u32::MAX).is_none());
    }
}
