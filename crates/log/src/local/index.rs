//! Where frames stand in a segment: a sparse table.

use posthouse_frame::FrameNo;

/// At most one entry for so many bytes of the segment. Frames larger than this
/// have an entry each; smaller ones are found by reading headers from the entry
/// before them, over no more than about this many bytes.
pub(crate) const SPACING_BYTES: u64 = 64 << 10;

/// A frame whose place is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub frame: FrameNo,
    /// Byte offset of its header in the segment.
    pub offset: u64,
    pub meta_len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    frame: u32,
    offset: u32,
    meta_len: u32,
}

/// The sparse table of one segment: 12 bytes for at least [`SPACING_BYTES`].
#[derive(Clone, Debug)]
pub(crate) struct Index {
    first: FrameNo,
    entries: Vec<Entry>,
}

impl Index {
    /// The table of a segment that begins with frame `first`.
    pub(crate) fn new(first: FrameNo) -> Self {
        Index { first, entries: Vec::new() }
    }

    /// Notes a frame, if it is far enough from the last one noted. Frames come in
    /// order.
    pub(crate) fn note(&mut self, at: Located) {
        let far = |last: &Entry| at.offset.saturating_sub(u64::from(last.offset)) >= SPACING_BYTES;
        if self.entries.last().is_none_or(far) {
            self.note_always(at);
        }
    }

    /// Notes a frame that stands behind a damaged place: nobody can walk to it.
    pub(crate) fn note_always(&mut self, at: Located) {
        // A segment is at most 4 GiB long and a frame at least 512 bytes.
        self.entries.push(Entry {
            frame: (at.frame.0 - self.first.0) as u32,
            offset: at.offset as u32,
            meta_len: at.meta_len,
        });
    }

    /// The last frame noted that is not after `frame`.
    pub(crate) fn at_or_before(&self, frame: FrameNo) -> Option<Located> {
        let delta = frame.0.checked_sub(self.first.0)?;
        let after = self.entries.partition_point(|e| u64::from(e.frame) <= delta);
        let entry = self.entries[..after].last()?;
        Some(Located {
            frame: FrameNo(self.first.0 + u64::from(entry.frame)),
            offset: u64::from(entry.offset),
            meta_len: entry.meta_len,
        })
    }

    /// Memory that the table takes.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Gives back memory that was kept for more entries.
    pub(crate) fn finish(&mut self) {
        self.entries.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(frame: u64, offset: u64) -> Located {
        Located { frame: FrameNo(frame), offset, meta_len: 7 }
    }

    #[test]
    fn small_frames_are_found_from_one_not_far_before_and_large_ones_exactly() {
        let mut index = Index::new(FrameNo(100));
        for i in 0..64 {
            index.note(at(100 + i, 4096 + i * 4096));
        }
        for i in 64..70 {
            index.note(at(100 + i, 4096 * 65 + (i - 64) * (1 << 20)));
        }
        for i in 0..64 {
            let found = index.at_or_before(FrameNo(100 + i)).unwrap();
            let offset = 4096 + i * 4096;
            assert!(found.frame.0 <= 100 + i && offset - found.offset < SPACING_BYTES);
        }
        let large = index.at_or_before(FrameNo(168)).unwrap();
        assert_eq!(large, at(168, 4096 * 65 + 4 * (1 << 20)));
        assert_eq!(index.at_or_before(FrameNo(99)), None);
    }
}
