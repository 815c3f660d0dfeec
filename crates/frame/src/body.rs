//! Sealed bodies: what a body section is made of.
//!
//! ```text
//! 0 content_len u32    4 check u32    8 content
//! ```
//! The check is the CRC-32C of the content, mixed with the frame number and the
//! offset at which the body stands. So one body can be read and verified alone,
//! at random, without its frame's header or meta; a read that ended up at the
//! wrong place, or found what a recycled file held before, does not pass; and a
//! body section can be walked from end to end by someone who knows no records.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{BodyRef, FrameNo, crc32c};

/// Bytes before the content.
pub const HEADER_BYTES: usize = 8;

/// Why bytes are not the sealed body that stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The section ends within the body.
    #[error("the body at byte {at} does not fit in its section")]
    Short {
        /// Offset in the section.
        at: u32,
    },
    /// The stored length is not the one that was asked for.
    #[error("the body at byte {at} has {found} bytes, not {asked}")]
    Length {
        /// Offset in the section.
        at: u32,
        /// Sealed length as stored.
        found: u64,
        /// Sealed length as asked for.
        asked: u32,
    },
    /// The checksum does not hold.
    #[error("the checksum of the body at byte {at} does not hold")]
    Check {
        /// Offset in the section.
        at: u32,
    },
}

/// The frame and the offset, spread over 32 bits. Multiplicative hashing; the
/// constants are the 64-bit golden ratio and another odd number without pattern.
#[inline]
fn salt(frame: FrameNo, at: u32) -> u32 {
    let mixed = frame
        .0
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(at).wrapping_mul(0xd1b5_4a32_d192_ed03));
    (mixed ^ (mixed >> 32)) as u32
}

/// Verifies the sealed body `sealed`, which was read from `place`, and returns
/// its content.
///
/// # Errors
/// A length or a checksum that is not the one of `place`.
pub fn open(sealed: Bytes, place: BodyRef) -> Result<Bytes, BodyError> {
    let at = place.at;
    let (content_len, check) = head(&sealed, at)?;
    let found = u64::from(content_len) + HEADER_BYTES as u64;
    if found != sealed.len() as u64 || found != u64::from(place.len) {
        return Err(BodyError::Length { at, found, asked: place.len });
    }
    let content = sealed.slice(HEADER_BYTES..);
    if crc32c(&content) ^ salt(place.frame, at) != check {
        return Err(BodyError::Check { at });
    }
    Ok(content)
}

/// Walks a whole body section of `frame` and verifies every body in it.
/// Calls `each` with the place of each body that holds.
///
/// # Errors
/// The first body that does not hold.
pub fn walk(
    section: &[u8],
    frame: FrameNo,
    mut each: impl FnMut(BodyRef, &[u8]),
) -> Result<(), BodyError> {
    let mut at = 0usize;
    while at < section.len() {
        let place = at as u32;
        let (content_len, check) = head(&section[at..], place)?;
        let start = at + HEADER_BYTES;
        let end = start + content_len as usize;
        let content = section.get(start..end).ok_or(BodyError::Short { at: place })?;
        if crc32c(content) ^ salt(frame, place) != check {
            return Err(BodyError::Check { at: place });
        }
        each(BodyRef { frame, at: place, len: (end - at) as u32 }, content);
        at = end;
    }
    Ok(())
}

fn head(sealed: &[u8], at: u32) -> Result<(u32, u32), BodyError> {
    let h = sealed.first_chunk::<HEADER_BYTES>().ok_or(BodyError::Short { at })?;
    let content_len = u32::from_le_bytes([h[0], h[1], h[2], h[3]]);
    let check = u32::from_le_bytes([h[4], h[5], h[6], h[7]]);
    Ok((content_len, check))
}

/// Bodies on their way into a frame: sealed and checked by whoever received
/// them, not yet bound to a place.
///
/// Their checks lack the place, which is only known in the shard; binding costs
/// one exclusive-or per body ([`BodyBuf::bind`]), so the content is read once, by
/// the thread that took it in, and not copied again.
#[derive(Clone, Debug, Default)]
pub struct BodyBuf {
    buf: BytesMut,
}

impl BodyBuf {
    /// An empty buffer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        BodyBuf { buf: BytesMut::with_capacity(bytes) }
    }

    /// Seals one body whose content `write` appends. Returns its sealed length.
    pub fn seal(&mut self, write: impl FnOnce(&mut BytesMut)) -> u32 {
        let start = self.buf.len();
        self.buf.put_bytes(0, HEADER_BYTES);
        write(&mut self.buf);
        let content = &self.buf[start + HEADER_BYTES..];
        let content_len = content.len() as u32;
        let check = crc32c(content);
        self.buf[start..start + 4].copy_from_slice(&content_len.to_le_bytes());
        self.buf[start + 4..start + 8].copy_from_slice(&check.to_le_bytes());
        content_len + HEADER_BYTES as u32
    }

    /// Appends bodies that are sealed already, as they stand in `other`.
    pub fn append(&mut self, other: &BodyBuf) {
        self.buf.extend_from_slice(&other.buf);
    }

    /// Appends a body that is sealed and bound to no frame, as [`BodyBuf`] holds it.
    pub fn append_sealed(&mut self, sealed: &[u8]) {
        self.buf.extend_from_slice(sealed);
    }

    /// Appends the sealed body of `len` bytes that starts at byte `at` of `other`.
    ///
    /// # Panics
    /// If `other` has no such bytes.
    pub fn append_one(&mut self, other: &BodyBuf, at: usize, len: usize) {
        self.buf.extend_from_slice(&other.buf[at..at + len]);
    }

    /// Bytes so far, headers included.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing has been sealed.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// The content of the sealed body of `len` bytes that starts at byte `at`.
    ///
    /// # Panics
    /// If the buffer has no such bytes.
    pub fn content(&self, at: usize, len: usize) -> &[u8] {
        &self.buf[at + HEADER_BYTES..at + len]
    }

    /// Binds every body to its place, `at` being where the first will stand in
    /// the body section of `frame`, and gives the bytes up.
    pub fn bind(mut self, frame: FrameNo, at: u32) -> BytesMut {
        bind_in_place(&mut self.buf, frame, at);
        self.buf
    }
}

/// Mixes the place into the check of every sealed body in `bodies`, which stand
/// back to back from byte `at` on.
pub(crate) fn bind_in_place(bodies: &mut [u8], frame: FrameNo, at: u32) {
    let mut offset = 0usize;
    while let Some(h) = bodies[offset..].first_chunk::<HEADER_BYTES>() {
        let content_len = u32::from_le_bytes([h[0], h[1], h[2], h[3]]);
        let check = u32::from_le_bytes([h[4], h[5], h[6], h[7]]) ^ salt(frame, at + offset as u32);
        bodies[offset + 4..offset + 8].copy_from_slice(&check.to_le_bytes());
        offset += HEADER_BYTES + content_len as usize;
    }
}

impl AsRef<[u8]> for BodyBuf {
    fn as_ref(&self) -> &[u8] {
        &self.buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: FrameNo = FrameNo(12);

    fn bound(at: u32) -> (Vec<BodyRef>, Bytes) {
        let mut buf = BodyBuf::default();
        let mut places = Vec::new();
        let mut next = at;
        for content in ["first", "", "the third"] {
            let len = buf.seal(|out| out.put_slice(content.as_bytes()));
            places.push(BodyRef { frame: FRAME, at: next, len });
            next += len;
        }
        (places, buf.bind(FRAME, at).freeze())
    }

    #[test]
    fn a_body_can_be_read_alone() {
        let (places, section) = bound(100);
        let contents: Vec<Bytes> = places
            .iter()
            .map(|p| {
                let start = (p.at - 100) as usize;
                open(section.slice(start..start + p.len as usize), *p).unwrap()
            })
            .collect();
        assert_eq!(contents, ["first", "", "the third"]);
    }

    #[test]
    fn a_section_can_be_walked_without_knowing_its_records() {
        let (places, section) = bound(0);
        let mut seen = Vec::new();
        walk(&section, FRAME, |place, content| seen.push((place, content.len()))).unwrap();
        assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), places);
        assert_eq!(seen.iter().map(|s| s.1).collect::<Vec<_>>(), [5, 0, 9]);
    }

    #[test]
    fn a_flip_of_any_bit_is_seen_by_the_walk_and_by_the_single_read() {
        let (places, section) = bound(0);
        for bit in 0..section.len() * 8 {
            let mut bad = section.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(walk(&bad, FRAME, |_, _| ()).is_err(), "bit {bit} went unseen by the walk");
            let hit = places
                .iter()
                .find(|p| (p.at as usize..(p.at + p.len) as usize).contains(&(bit / 8)))
                .unwrap();
            let sealed = Bytes::copy_from_slice(&bad[hit.at as usize..(hit.at + hit.len) as usize]);
            assert!(open(sealed, *hit).is_err(), "bit {bit} went unseen by the read");
        }
    }

    #[test]
    fn a_body_found_at_another_place_does_not_pass() {
        let (places, section) = bound(0);
        let place = places[2];
        let sealed = section.slice(place.at as usize..);
        for wrong in
            [BodyRef { frame: FrameNo(13), ..place }, BodyRef { at: place.at + 1, ..place }]
        {
            assert_eq!(open(sealed.clone(), wrong), Err(BodyError::Check { at: wrong.at }));
        }
    }
}
