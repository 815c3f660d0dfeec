//! The words of the format: the number of a frame, and the place of a body.

use std::fmt;

/// The number of a frame in the log of its shard: dense over *valid* frames,
/// starting at 1. Zero stands for "before the first".
///
/// It is logical on purpose. State is applied before an append has returned, so
/// a body's address has to be known before its physical place is; the log alone
/// maps a number to a file and an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FrameNo(pub u64);

impl FrameNo {
    /// Before the first frame of a log.
    pub const ZERO: FrameNo = FrameNo(0);

    /// The frame after this one.
    #[must_use]
    pub fn next(self) -> FrameNo {
        FrameNo(self.0 + 1)
    }

    /// The frame before this one; zero stays zero.
    #[must_use]
    pub fn prev(self) -> FrameNo {
        FrameNo(self.0.saturating_sub(1))
    }
}

impl fmt::Display for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a sealed body stands: its frame, and its place in the frame's body
/// section, both in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyRef {
    /// The frame that holds the body.
    pub frame: FrameNo,
    /// Byte offset of the sealed body in the frame's body section.
    pub at: u32,
    /// Length in bytes of the sealed body, its own header of
    /// [`crate::body::HEADER_BYTES`] included.
    pub len: u32,
}

impl fmt::Display for BodyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {} body {}+{}", self.frame, self.at, self.len)
    }
}
