//! What the files of a log directory are called, and how a segment begins.
//!
//! ```text
//! seg-<20 digits>.log     a segment: header block, frame area, end mark
//! spare-<n>.log           room for a segment to come; its content means nothing
//! fill-<n>.tmp            a spare in the making: being allocated or zero-filled
//! cut-<frame>-<n>.bin     a copy of what recovery cut off; for people, never read
//! ```
//! A segment of `segment_bytes`:
//! ```text
//! 0                 header block, 4096 bytes
//! max(4096, align)  frame area: frames and marks, each a multiple of align long
//! end - 5 align     from here on only epoch frames and marks
//! end - align       end mark: written when the segment is full
//! ```
//! The header block, little-endian, zero where nothing is named:
//! ```text
//!  0 magic u32        4 crc u32         8 version u16     10 shard u16     12 align u32
//! 16 store u64       24 segment u64    32 segment_bytes u64
//! 40 first u64       48 durable u64    56 previous u64
//! 64 epoch u32       68 prev_header_crc u32
//! ```
//! `crc` covers bytes 8..4096. It is not salted: the header names its store and its
//! number itself, so that a file of another store, or one that was renamed, can be
//! told from damage.

use posthouse_frame::{FrameNo, crc32c};

use crate::SegmentNo;

/// Bytes of the header block.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// The first four bytes of a segment: `PHs1`.
const MAGIC: u32 = u32::from_le_bytes(*b"PHs1");

/// The layout that this code writes, and the newest that it reads.
pub(crate) const VERSION: u16 = 1;

/// Two openings, each with a mark.
const KEPT_BLOCKS: u64 = 4;

/// Bytes of the header block that carry something.
const USED_BYTES: usize = 72;

/// How a segment begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The random number that names the store.
    pub store: u64,
    /// The shard that the log belongs to.
    pub shard: u16,
    /// Its number.
    pub no: SegmentNo,
    /// Bytes of the file.
    pub bytes: u64,
    /// What every frame's place and length is a multiple of.
    pub align: u32,
    /// The first frame in it.
    pub first: FrameNo,
    /// The last frame known durable when it was begun.
    pub durable: FrameNo,
    /// The segment before it, of which it is the continuation; 0 for none.
    pub previous: SegmentNo,
    /// The ownership under which it was begun.
    pub epoch: u32,
    /// `header_crc` of the last frame or mark in the segment before it; end marks
    /// do not count. What the first frame here repeats.
    pub prev_header_crc: u32,
}

/// Why a block is not a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SegmentHeaderError {
    #[error("no segment starts here (magic {0:#010x})")]
    Magic(u32),
    #[error("the segment header's checksum is {found:#010x}, its content makes {made:#010x}")]
    Crc { found: u32, made: u32 },
    #[error("the segment has layout {0}, this build reads up to {VERSION}")]
    Version(u16),
    #[error("the segment header contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0u8; BLOCK_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&self.shard.to_le_bytes());
        out[12..16].copy_from_slice(&self.align.to_le_bytes());
        out[16..24].copy_from_slice(&self.store.to_le_bytes());
        out[24..32].copy_from_slice(&self.no.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        out[40..48].copy_from_slice(&self.first.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.durable.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.previous.0.to_le_bytes());
        out[64..68].copy_from_slice(&self.epoch.to_le_bytes());
        out[68..72].copy_from_slice(&self.prev_header_crc.to_le_bytes());
        let crc = crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(block: &[u8; BLOCK_BYTES]) -> Result<Self, SegmentHeaderError> {
        let u32_at = |at: usize| u32::from_le_bytes(*block[at..].first_chunk().unwrap_or(&[0; 4]));
        let u64_at = |at: usize| u64::from_le_bytes(*block[at..].first_chunk().unwrap_or(&[0; 8]));
        let (magic, found) = (u32_at(0), u32_at(4));
        if magic != MAGIC {
            return Err(SegmentHeaderError::Magic(magic));
        }
        let made = crc32c(&block[8..]);
        if found != made {
            return Err(SegmentHeaderError::Crc { found, made });
        }
        let version = u32_at(8) as u16;
        if version != VERSION {
            return Err(SegmentHeaderError::Version(version));
        }
        let header = SegmentHeader {
            store: u64_at(16),
            shard: (u32_at(8) >> 16) as u16,
            no: SegmentNo(u64_at(24)),
            bytes: u64_at(32),
            align: u32_at(12),
            first: FrameNo(u64_at(40)),
            durable: FrameNo(u64_at(48)),
            previous: SegmentNo(u64_at(56)),
            epoch: u32_at(64),
            prev_header_crc: u32_at(68),
        };
        if !align_is_valid(header.align) {
            return Err(SegmentHeaderError::Inconsistent("its alignment is no power of two"));
        }
        if !size_is_valid(header.bytes, header.align) {
            return Err(SegmentHeaderError::Inconsistent("its size holds no frame"));
        }
        if header.durable >= header.first {
            return Err(SegmentHeaderError::Inconsistent("it calls its frames durable"));
        }
        if block[USED_BYTES..].iter().any(|b| *b != 0) {
            return Err(SegmentHeaderError::Inconsistent("it has fields that are not known"));
        }
        Ok(header)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { bytes: self.bytes, align: self.align }
    }
}

/// The finest alignment: a disk's smallest block.
pub(crate) const ALIGN_LEAST: u32 = 512;

/// The coarsest: more than any disk needs.
pub(crate) const ALIGN_MOST: u32 = 65536;

/// Powers of two within these bounds.
pub(crate) fn align_is_valid(align: u32) -> bool {
    align.is_power_of_two() && (ALIGN_LEAST..=ALIGN_MOST).contains(&align)
}

/// A place within a segment fits in 32 bits.
pub(crate) fn size_is_valid(bytes: u64, align: u32) -> bool {
    let least = (BLOCK_BYTES as u64).max(u64::from(align)) + (KEPT_BLOCKS + 2) * u64::from(align);
    bytes.is_multiple_of(u64::from(align)) && (least..=u64::from(u32::MAX)).contains(&bytes)
}

/// The places in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of the file.
    pub bytes: u64,
    /// What every place is a multiple of.
    pub align: u32,
}

impl Geometry {
    /// Where the first frame stands.
    pub(crate) fn start(self) -> u64 {
        (BLOCK_BYTES as u64).max(u64::from(self.align))
    }

    /// Where the frame area ends, and the end mark stands.
    pub(crate) fn end(self) -> u64 {
        self.bytes - u64::from(self.align)
    }

    /// What `content` bytes take with their padding.
    pub(crate) fn padded(self, content: u64) -> u64 {
        content.next_multiple_of(u64::from(self.align))
    }

    /// Bytes of the frame area.
    pub(crate) fn room(self) -> u64 {
        self.end() - self.start()
    }

    /// Where frames with records must end. The blocks from here on are kept for
    /// epoch frames and marks: a log that stands still because the disk is full can
    /// then still be opened a few times, so that its owner can release something.
    pub(crate) fn data_end(self) -> u64 {
        self.end() - KEPT_BLOCKS * u64::from(self.align)
    }

    /// The largest frame that a segment holds, in bytes.
    pub(crate) fn data_room(self) -> u64 {
        self.data_end() - self.start()
    }
}

/// A file of a log directory, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Segment(SegmentNo),
    Spare(u64),
    Fill(u64),
    Cut { frame: FrameNo, n: u64 },
}

impl Name {
    /// `None` for a name that is not of this directory's kinds.
    pub(crate) fn parse(name: &str) -> Option<Name> {
        let number = |digits: &str| {
            let plain = digits.len() <= 20 && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let parsed = if let Some(rest) = name.strip_prefix("seg-") {
            Name::Segment(SegmentNo(number(rest.strip_suffix(".log")?)?))
        } else if let Some(rest) = name.strip_prefix("spare-") {
            Name::Spare(number(rest.strip_suffix(".log")?)?)
        } else if let Some(rest) = name.strip_prefix("fill-") {
            Name::Fill(number(rest.strip_suffix(".tmp")?)?)
        } else {
            let rest = name.strip_prefix("cut-")?.strip_suffix(".bin")?;
            let (frame, n) = rest.split_once('-')?;
            Name::Cut { frame: FrameNo(number(frame)?), n: number(n)? }
        };
        // `seg-7.log` and `spare-007.log` are nobody's.
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Name::Segment(no) => write!(f, "seg-{:020}.log", no.0),
            Name::Spare(n) => write!(f, "spare-{n}.log"),
            Name::Fill(n) => write!(f, "fill-{n}.tmp"),
            Name::Cut { frame, n } => write!(f, "cut-{frame}-{n}.bin"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            store: 0x0123_4567_89ab_cdef,
            shard: 3,
            no: SegmentNo(17),
            bytes: 64 << 20,
            align: 4096,
            first: FrameNo(1000),
            durable: FrameNo(998),
            previous: SegmentNo(16),
            epoch: 5,
            prev_header_crc: 0xfeed_beef,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(SegmentHeader::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn a_flip_of_any_bit_is_seen() {
        let block = sample().encode();
        for bit in 0..BLOCK_BYTES * 8 {
            let mut bad = block;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit} went unseen");
        }
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused_although_the_checksum_holds() {
        let good = sample();
        for bad in [
            SegmentHeader { align: 1000, ..good },
            SegmentHeader { bytes: 4096, ..good },
            SegmentHeader { bytes: 1 << 40, ..good },
            SegmentHeader { bytes: (64 << 20) + 1, ..good },
            SegmentHeader { durable: good.first, ..good },
        ] {
            let decoded = SegmentHeader::decode(&bad.encode());
            assert!(matches!(decoded, Err(SegmentHeaderError::Inconsistent(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_newer_layout_is_called_newer() {
        let mut block = sample().encode();
        block[8] = 2;
        let crc = crc32c(&block[8..]);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), Err(SegmentHeaderError::Version(2)));
    }

    #[test]
    fn names_are_parsed_as_they_are_printed_and_no_other_way() {
        for name in [
            Name::Segment(SegmentNo(1)),
            Name::Segment(SegmentNo(u64::MAX)),
            Name::Spare(12),
            Name::Fill(0),
            Name::Cut { frame: FrameNo(9), n: 2 },
        ] {
            assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
        for other in ["seg-1.log", "spare-01.log", "spare-+1.log", "fill-1.log", "cut-1.bin", "a"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_frame_area_lies_between_the_header_and_the_end_mark() {
        let small = Geometry { bytes: 8192, align: 512 };
        assert_eq!((small.start(), small.end(), small.room()), (4096, 7680, 3584));
        let coarse = Geometry { bytes: 1 << 20, align: 65536 };
        assert_eq!(coarse.start(), 65536);
        assert_eq!(coarse.padded(1), 65536);
        assert_eq!((small.data_end(), small.data_room()), (5632, 1536));
        assert!(size_is_valid(8192, 512) && !size_is_valid(4096, 512));
    }
}
