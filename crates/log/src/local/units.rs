//! Reading a segment file: its header block, and the units in it.
//!
//! A *unit* is what stands at one place of a segment's frame area: a frame (of
//! kind data or epoch) or a mark. This module reads and verifies one at a time;
//! what must hold from one to the next is [`Chain`](super::chain::Chain)'s.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::header::{HEADER_BYTES, MAGIC};
use posthouse_frame::{BodyError, FrameNo, Header, HeaderError, Kind, Salt, body};

use super::layout::{BLOCK_BYTES, Geometry, SegmentHeader, SegmentHeaderError};
use crate::files::{File, FileError};
use crate::{ReadError, SegmentNo};

/// Read at once while units are small: large enough for the disk's bandwidth.
const AHEAD_SMALL_BYTES: usize = 256 << 10;
/// Read at once at a place reached by skipping a body: header and most metas.
const AHEAD_HOP_BYTES: usize = 16 << 10;
/// Read at once when bodies are wanted.
const AHEAD_WHOLE_BYTES: usize = 1 << 20;
/// A unit up to this size is cheaper to read through than to skip.
const HOP_OVER_BYTES: u32 = 64 << 10;

/// A frame or a mark, as it stands in a segment.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub header: Header,
    /// What the next unit repeats as `prev_header_crc`.
    pub crc: u32,
    /// Byte offset in the segment.
    pub offset: u64,
    pub meta: Bytes,
}

impl Unit {
    /// Where the next unit stands.
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.header.total)
    }

    /// Whether it takes a frame number.
    pub(crate) fn is_frame(&self) -> bool {
        self.header.kind != Kind::Mark
    }
}

/// No unit stands at a place, or a damaged one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    /// Byte offset in the segment of what does not hold.
    pub offset: u64,
    pub what: String,
    /// The layout, if it is newer than this code.
    pub newer: Option<u8>,
}

impl Bad {
    pub(crate) fn new(offset: u64, what: impl Into<String>) -> Self {
        Bad { offset, what: what.into(), newer: None }
    }
}

/// Why a unit could not be had.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The content is not a unit's.
    Bad(Bad),
    /// There was no content to judge.
    Io(FileError),
}

impl From<FileError> for Fault {
    fn from(error: FileError) -> Self {
        Fault::Io(error)
    }
}

impl From<Bad> for Fault {
    fn from(bad: Bad) -> Self {
        Fault::Bad(bad)
    }
}

impl Fault {
    /// The fault in the words of a [`LogReader`](crate::LogReader).
    pub(crate) fn into_read_error(self, path: &Path) -> ReadError {
        match self {
            Fault::Bad(bad) => ReadError::Corrupt {
                file: path.display().to_string(),
                offset: bad.offset,
                what: bad.what,
            },
            Fault::Io(error) => ReadError::Io {
                file: error.path.display().to_string(),
                offset: error.offset.unwrap_or(0),
                error: error.what,
            },
        }
    }
}

/// Reads units of one segment. Keeps what it read last, so that walking units in
/// order makes large reads.
#[derive(Debug)]
pub(crate) struct Units {
    file: Arc<dyn File>,
    store: u64,
    no: SegmentNo,
    geometry: Geometry,
    file_len: u64,
    window: Bytes,
    window_at: u64,
    ahead: usize,
    ahead_small: usize,
    whole: bool,
    bytes_read: u64,
}

impl Units {
    /// A reader of the segment `no` in `file`.
    pub(crate) fn new(
        file: Arc<dyn File>,
        store: u64,
        no: SegmentNo,
        geometry: Geometry,
    ) -> Result<Self, FileError> {
        let file_len = file.size()?;
        Ok(Units {
            file,
            store,
            no,
            geometry,
            file_len,
            window: Bytes::new(),
            window_at: 0,
            ahead: AHEAD_HOP_BYTES,
            ahead_small: AHEAD_SMALL_BYTES,
            whole: false,
            bytes_read: 0,
        })
    }

    /// The same, for a walk that will ask for bodies, too.
    #[must_use]
    pub(crate) fn whole(mut self) -> Self {
        self.whole = true;
        self.ahead = AHEAD_WHOLE_BYTES;
        self
    }

    /// The same, for a walk over no more than about `bytes`.
    #[must_use]
    pub(crate) fn short(mut self, bytes: usize) -> Self {
        self.ahead_small = bytes;
        self
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes read from the file so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Forgets what was read, so that a file being written shows its new content.
    pub(crate) fn refresh(&mut self) {
        self.window = Bytes::new();
    }

    /// The `len` bytes at `offset`; fewer only where the file ends.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> Result<Bytes, FileError> {
        let held = offset.checked_sub(self.window_at).map(|from| from as usize);
        if let Some(from) = held.filter(|from| from + len <= self.window.len()) {
            return Ok(self.window.slice(from..from + len));
        }
        let left = self.file_len.saturating_sub(offset);
        let n = (len.max(self.ahead) as u64).min(left) as usize;
        let mut buf = vec![0; n];
        self.file.read_exact_at(&mut buf, offset)?;
        self.bytes_read += n as u64;
        self.window = Bytes::from(buf);
        self.window_at = offset;
        Ok(self.window.slice(..len.min(n)))
    }

    /// The header of the unit at `offset`, and its checksum.
    pub(crate) fn header(&mut self, offset: u64) -> Result<(Header, u32), Fault> {
        let bytes = self.bytes(offset, HEADER_BYTES)?;
        let salt = self.salt(offset);
        let (header, crc) = Header::decode(&bytes, salt).map_err(|error| Bad {
            offset,
            newer: match error {
                HeaderError::Version(version) => Some(version),
                _ => None,
            },
            what: error.to_string(),
        })?;
        check_shape(&header, offset, self.geometry).map_err(|what| Bad::new(offset, what))?;
        if !self.whole {
            let small = header.total <= HOP_OVER_BYTES;
            self.ahead = if small { self.ahead_small } else { AHEAD_HOP_BYTES };
        }
        Ok((header, crc))
    }

    /// The unit at `offset`, header and meta verified.
    pub(crate) fn unit(&mut self, offset: u64) -> Result<Unit, Fault> {
        let (header, crc) = self.header(offset)?;
        let at = offset + HEADER_BYTES as u64;
        let meta = self.bytes(at, header.meta_len as usize)?;
        if self.salt(offset).crc(&meta) != header.meta_crc || meta.len() < header.meta_len as usize
        {
            return Err(Bad::new(at, "the checksum of the meta section does not hold").into());
        }
        Ok(Unit { header, crc, offset, meta })
    }

    /// The body section of `unit`, every body in it verified, and the padding.
    pub(crate) fn body(&mut self, unit: &Unit) -> Result<Bytes, Fault> {
        let content = unit.header.content_bytes() as usize;
        let all = self.bytes(unit.offset, unit.header.total as usize)?;
        if all.len() < unit.header.total as usize {
            return Err(Bad::new(unit.offset, "the file ends within the frame").into());
        }
        let start = HEADER_BYTES + unit.header.meta_len as usize;
        let section = all.slice(start..content);
        body::walk(&section, unit.header.frame_no, |_, _| ()).map_err(|error| {
            let (BodyError::Short { at } | BodyError::Length { at, .. } | BodyError::Check { at }) =
                error;
            Bad::new(unit.offset + start as u64 + u64::from(at), error.to_string())
        })?;
        if let Some(at) = all[content..].iter().position(|b| *b != 0) {
            let at = unit.offset + (content + at) as u64;
            return Err(Bad::new(at, "the padding after the frame is not zero").into());
        }
        Ok(section)
    }

    /// The end mark, if it stands at its place.
    pub(crate) fn end_mark(&mut self) -> Result<Unit, Fault> {
        self.unit(self.geometry.end())
    }

    /// Looks at every place from `from` to the end of the file for a unit's header
    /// that holds, whatever stands around it, and shows it to `each`.
    pub(crate) fn probe(
        &mut self,
        from: u64,
        mut each: impl FnMut(u64, Result<Header, u8>),
    ) -> Result<(), FileError> {
        let align = u64::from(self.geometry.align);
        let ahead = std::mem::replace(&mut self.ahead, AHEAD_WHOLE_BYTES);
        let mut at = from.next_multiple_of(align).max(self.geometry.start());
        while at + HEADER_BYTES as u64 <= self.file_len {
            let bytes = self.bytes(at, HEADER_BYTES)?;
            // Nearly all places fail here, so this is all that most of them cost.
            if bytes.starts_with(&MAGIC.to_le_bytes()) {
                match Header::decode(&bytes, self.salt(at)) {
                    Ok((header, _)) => each(at, Ok(header)),
                    Err(HeaderError::Version(version)) => each(at, Err(version)),
                    Err(_) => {}
                }
            }
            at += align;
        }
        self.ahead = ahead;
        Ok(())
    }

    fn salt(&self, offset: u64) -> Salt {
        Salt { store: self.store, segment: self.no.0, offset }
    }
}

/// What a checksum cannot show: a header that holds, of a unit that cannot stand
/// where it stands.
fn check_shape(header: &Header, offset: u64, geometry: Geometry) -> Result<(), &'static str> {
    let total = u64::from(header.total);
    if total == 0 || !total.is_multiple_of(u64::from(geometry.align)) {
        return Err("the frame's length is not aligned");
    }
    let end_mark = header.kind == Kind::Mark && offset == geometry.end();
    if offset + total > geometry.end() && !end_mark {
        return Err("the frame does not fit in its segment");
    }
    let bare = header.meta_len == 0 && header.body_len == 0;
    if header.kind == Kind::Mark && (!bare || total != u64::from(geometry.align)) {
        return Err("the mark has content");
    }
    if header.frame_no == FrameNo::ZERO {
        return Err("the frame has no number");
    }
    Ok(())
}

/// Reads the header block of a segment file.
pub(crate) fn read_segment_header(
    file: &dyn File,
) -> Result<Result<SegmentHeader, SegmentHeaderError>, FileError> {
    let mut block = [0u8; BLOCK_BYTES];
    if file.size()? >= BLOCK_BYTES as u64 {
        file.read_exact_at(&mut block, 0)?;
    }
    Ok(SegmentHeader::decode(&block))
}
