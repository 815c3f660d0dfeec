//! Why a local log does not open.

use std::path::PathBuf;

use posthouse_frame::FrameNo;

use crate::SegmentNo;
use crate::files::FileError;

/// Why a log directory was not opened. Nothing in it has then been lost; at most a
/// torn end was copied aside and cut, which the next opening would do as well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it open.
    #[error(
        "{} is in use: another process, or another log in this one, has it open; \
         stop that first", dir.display()
    )]
    Locked {
        /// The log directory.
        dir: PathBuf,
    },
    /// The options contradict each other.
    #[error("the log's options do not fit together: {what}")]
    Options {
        /// Which, and what would fit.
        what: String,
    },
    /// The system refused something. This says nothing about what is stored.
    #[error(transparent)]
    File(#[from] FileError),
    /// Written by a newer release.
    #[error(
        "{} at byte {offset} has layout {found}, this build reads up to {known}: it was written \
         by a newer release; start that one", file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Byte offset in the file.
        offset: u64,
        /// The layout found.
        found: u32,
        /// The newest that this build reads.
        known: u32,
    },
    /// A file of another log.
    #[error(
        "{} belongs to another log ({what}): the data directory and the configuration do not \
         belong together, or a file was copied to the wrong place", file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
        /// What it says it belongs to, and what was expected.
        what: String,
    },
    /// A file that was renamed, or exchanged with another.
    #[error(
        "{} holds segment {}: files of the log were renamed or exchanged; give them back their \
         names, seg-<number>.log", file.display(), holds.0
    )]
    Exchanged {
        /// The file.
        file: PathBuf,
        /// The segment that it holds.
        holds: SegmentNo,
    },
    /// Frames that were durable are in no file.
    #[error(
        "frames {first} to {last} of the log in {} are missing ({evidence}): a segment file was \
         removed; put it back, or restore from a backup", dir.display()
    )]
    Missing {
        /// The log directory.
        dir: PathBuf,
        /// The first frame missing.
        first: FrameNo,
        /// The last frame known to be missing.
        last: FrameNo,
        /// How it is known that they were there.
        evidence: String,
    },
    /// A segment that the owner's manifest needs is not there.
    #[error(
        "{} {what}, and the manifest needs it: put it back, or restore from a backup",
        file.display()
    )]
    MissingSegment {
        /// The file.
        file: PathBuf,
        /// That it is missing, or how its header does not hold.
        what: String,
    },
    /// Something durable is damaged.
    #[error(
        "{} is corrupt at byte {offset}: {what}. Frame {frame} was durable ({evidence}), so this \
         is damage and no torn write; restore the file from a copy, or the store from a backup",
        file.display()
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Byte offset in the file.
        offset: u64,
        /// The first frame that is damaged.
        frame: FrameNo,
        /// What does not hold.
        what: String,
        /// How it is known that it was durable.
        evidence: String,
    },
}
