//! The 96 bytes that head every frame.
//!
//! Little-endian. `header_crc` covers bytes 8..96, `meta_crc` the meta section,
//! both salted with where the frame stands ([`Salt`]): what an earlier use of a
//! recycled file left behind can never pass for a frame. Body sections carry
//! their own checks, one per body.
//!
//! ```text
//!  0 magic u32        4 header_crc u32    8 version u8   9 kind u8   10 flags u16
//! 12 total u32       16 meta_len u32     20 body_len u32            24 records u32
//! 28 frame_no u64    36 epoch u32        40 meta_crc u32            44 durable_no u64
//! 52 wall_ms u64     60 lease_ms u64     68 prev_header_crc u32     72 writer u32
//! 76 min_reader u16  78 shard u16        80 reserved, zero, to 96
//! ```

use crate::{FrameNo, crc32c_of};

/// The size of the header in bytes.
pub const HEADER_BYTES: usize = 96;

/// The first four bytes of a frame: `PHf1`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PHf1");

/// The layout that this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Records of the shard.
    Data = 1,
    /// A new owner took the log over; carries no records. Takes a frame number.
    Epoch = 2,
    /// Nothing but a newer `durable_no`, written when the log falls idle and at a
    /// clean shutdown. Takes no frame number: it repeats the next one.
    Mark = 3,
}

/// Where a frame stands. Part of every CRC in the frame, so that the same bytes
/// at another place, in another file or another store are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt {
    /// The random number that names the store.
    pub store: u64,
    /// The number of the segment, never used again in its log.
    pub segment: u64,
    /// Byte offset of the frame in the segment.
    pub offset: u64,
}

impl Salt {
    fn bytes(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.store.to_le_bytes());
        out[8..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    /// The salted CRC-32C of `data`.
    pub fn crc(&self, data: &[u8]) -> u32 {
        crc32c_of(&[&self.bytes(), data])
    }
}

/// A frame's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// Reserved for compression of the sections; zero.
    pub flags: u16,
    /// Bytes from the header's first to the last of the padding.
    pub total: u32,
    /// Bytes of the meta section, which follows the header.
    pub meta_len: u32,
    /// Bytes of the body section, which follows the meta section.
    pub body_len: u32,
    /// Records in the meta section.
    pub records: u32,
    /// The frame's number.
    pub frame_no: FrameNo,
    /// The ownership under which it was written.
    pub epoch: u32,
    /// Salted CRC of the meta section.
    pub meta_crc: u32,
    /// The last frame known durable when this one was written.
    pub durable_no: FrameNo,
    /// The shard's wall clock, Unix milliseconds.
    pub wall_ms: u64,
    /// The shard's lease clock, milliseconds.
    pub lease_ms: u64,
    /// `header_crc` of the frame written before this one; 0 for the first.
    pub prev_header_crc: u32,
    /// A random number of the writing process: tells two claimants of one epoch apart.
    pub writer: u32,
    /// The oldest reader that understands every record in the frame.
    pub min_reader: u16,
    /// The shard that the log belongs to.
    pub shard: u16,
}

/// Why 96 bytes are not a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than 96 bytes.
    #[error("{0} bytes are too few for a frame header of 96")]
    Short(usize),
    /// Another magic number: most often, no frame was ever written here.
    #[error("no frame starts here (magic {0:#010x})")]
    Magic(u32),
    /// The checksum does not hold.
    #[error("the frame header's checksum is {found:#010x}, its content makes {made:#010x}")]
    Crc {
        /// As stored.
        found: u32,
        /// As computed.
        made: u32,
    },
    /// A layout of a newer release.
    #[error("the frame has layout {0}, this build reads up to {VERSION}")]
    Version(u8),
    /// A checksum that holds over fields that contradict each other.
    #[error("the frame header contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl Header {
    /// Encodes the header for the place `salt`. Returns the bytes and the
    /// `header_crc` that the next frame's `prev_header_crc` repeats.
    pub fn encode(&self, salt: Salt) -> ([u8; HEADER_BYTES], u32) {
        let mut out = [0u8; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8] = VERSION;
        out[9] = self.kind as u8;
        out[10..12].copy_from_slice(&self.flags.to_le_bytes());
        out[12..16].copy_from_slice(&self.total.to_le_bytes());
        out[16..20].copy_from_slice(&self.meta_len.to_le_bytes());
        out[20..24].copy_from_slice(&self.body_len.to_le_bytes());
        out[24..28].copy_from_slice(&self.records.to_le_bytes());
        out[28..36].copy_from_slice(&self.frame_no.0.to_le_bytes());
        out[36..40].copy_from_slice(&self.epoch.to_le_bytes());
        out[40..44].copy_from_slice(&self.meta_crc.to_le_bytes());
        out[44..52].copy_from_slice(&self.durable_no.0.to_le_bytes());
        out[52..60].copy_from_slice(&self.wall_ms.to_le_bytes());
        out[60..68].copy_from_slice(&self.lease_ms.to_le_bytes());
        out[68..72].copy_from_slice(&self.prev_header_crc.to_le_bytes());
        out[72..76].copy_from_slice(&self.writer.to_le_bytes());
        out[76..78].copy_from_slice(&self.min_reader.to_le_bytes());
        out[78..80].copy_from_slice(&self.shard.to_le_bytes());
        let crc = salt.crc(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// Decodes and verifies a header that stands at `salt`. Returns it with its
    /// `header_crc`.
    ///
    /// # Errors
    /// See [`HeaderError`]. The checksum is verified before anything else but
    /// the magic number is believed.
    pub fn decode(data: &[u8], salt: Salt) -> Result<(Header, u32), HeaderError> {
        let Some(h) = data.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderError::Short(data.len()));
        };
        let magic = u32_at(h, 0);
        if magic != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        let found = u32_at(h, 4);
        let made = salt.crc(&h[8..]);
        if found != made {
            return Err(HeaderError::Crc { found, made });
        }
        if h[8] != VERSION {
            return Err(HeaderError::Version(h[8]));
        }
        let kind = match h[9] {
            1 => Kind::Data,
            2 => Kind::Epoch,
            3 => Kind::Mark,
            _ => return Err(HeaderError::Inconsistent("its kind is not known")),
        };
        let header = Header {
            kind,
            flags: u16_at(h, 10),
            total: u32_at(h, 12),
            meta_len: u32_at(h, 16),
            body_len: u32_at(h, 20),
            records: u32_at(h, 24),
            frame_no: FrameNo(u64_at(h, 28)),
            epoch: u32_at(h, 36),
            meta_crc: u32_at(h, 40),
            durable_no: FrameNo(u64_at(h, 44)),
            wall_ms: u64_at(h, 52),
            lease_ms: u64_at(h, 60),
            prev_header_crc: u32_at(h, 68),
            writer: u32_at(h, 72),
            min_reader: u16_at(h, 76),
            shard: u16_at(h, 78),
        };
        if header.content_bytes() > u64::from(header.total) {
            return Err(HeaderError::Inconsistent("its sections are longer than the frame"));
        }
        if header.durable_no >= header.frame_no {
            return Err(HeaderError::Inconsistent("it calls itself durable"));
        }
        if header.flags != 0 {
            return Err(HeaderError::Inconsistent("it has flags that are not known"));
        }
        Ok((header, found))
    }

    /// Header, meta and body together, without padding.
    pub fn content_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.meta_len) + u64::from(self.body_len)
    }
}

fn u16_at(h: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([h[at], h[at + 1]])
}

fn u32_at(h: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]])
}

fn u64_at(h: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(h, at)) | u64::from(u32_at(h, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt { store: 7, segment: 3, offset: 8192 };

    fn sample() -> Header {
        Header {
            kind: Kind::Data,
            flags: 0,
            total: 8192,
            meta_len: 1000,
            body_len: 4000,
            records: 12,
            frame_no: FrameNo(41),
            epoch: 2,
            meta_crc: 0xdead_beef,
            durable_no: FrameNo(40),
            wall_ms: 1_900_000_000_123,
            lease_ms: 1_900_000_000_001,
            prev_header_crc: 0x0102_0304,
            writer: 99,
            min_reader: 1,
            shard: 5,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let (bytes, crc) = sample().encode(SALT);
        assert_eq!(Header::decode(&bytes, SALT), Ok((sample(), crc)));
    }

    #[test]
    fn a_flip_of_any_bit_is_seen() {
        let (bytes, _) = sample().encode(SALT);
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, SALT).is_err(), "bit {bit} went unseen");
        }
    }

    #[test]
    fn the_same_bytes_elsewhere_are_no_frame() {
        let (bytes, _) = sample().encode(SALT);
        for salt in
            [Salt { store: 8, ..SALT }, Salt { segment: 4, ..SALT }, Salt { offset: 4096, ..SALT }]
        {
            assert!(matches!(Header::decode(&bytes, salt), Err(HeaderError::Crc { .. })));
        }
    }

    #[test]
    fn sections_longer_than_the_frame_are_refused_although_the_checksum_holds() {
        let (bytes, _) = Header { total: 4096, ..sample() }.encode(SALT);
        assert!(matches!(Header::decode(&bytes, SALT), Err(HeaderError::Inconsistent(_))));
    }
}
