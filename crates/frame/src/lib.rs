//! The frame: one batch of records, the unit that the core writes, a log keeps
//! and a sync makes durable.
//!
//! The core must not know a log, and a log must not know what a record means;
//! both speak frames. This crate holds the words and the byte layout they share,
//! and nothing that does I/O.
//!
//! A frame has a header of 96 bytes ([`header`]), a *meta* section (the records,
//! opaque here) and a *body* section: sealed bodies back to back ([`body`]).
//! Replay reads the meta section only; a single body can be read and verified
//! without its frame.

pub mod body;
pub mod buf;
pub mod header;
#[cfg(feature = "planted")]
mod plant;
pub mod varint;
mod words;

pub use body::{BodyBuf, BodyError};
pub use buf::{Frame, FrameBuf};
pub use header::{Header, HeaderError, Kind, Salt};
pub use words::{BodyRef, FrameNo};

#[cfg(feature = "planted")]
pub use plant::{plant, planted};

/// Whether a bug that tests put in on purpose is active: in a build without the feature
/// `planted` never, and nothing is left of the question.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// CRC-32C (Castagnoli) of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    // The algorithm is a 32-bit one: the upper half of the result is zero.
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// CRC-32C of several slices, as if they stood in a row.
pub fn crc32c_of(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::default();
    parts.iter().for_each(|part| crc.update(part));
    crc.value()
}

/// CRC-32C of data that comes in pieces.
#[derive(Clone, Debug)]
pub struct Crc(crc_fast::Digest);

impl Default for Crc {
    fn default() -> Self {
        Crc(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }
}

impl Crc {
    /// Takes the next piece.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The checksum of all pieces so far.
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}
