//! The file layer: every call on a disk that the log and the store make.
//!
//! Two disks stand behind it: [`RealFiles`], the operating system's, and
//! `SimFiles` (feature `conformance`), which lives in memory, loses power when told
//! to, and fails the call it is told to fail. Whoever does its I/O through
//! [`Files`] can be tested against all of that.
//!
//! The traits are object-safe, so that nothing above them has a type parameter for
//! the disk: a virtual call is nothing beside a system call.
//!
//! What may be relied on, and what not, after the power fails:
//!
//! - written and not synced: may be there, not be there, or be there in parts of
//!   512 bytes, in any order;
//! - after [`File::sync_data`]: the content and the length are there;
//! - a name that was made, changed or removed: certain only after
//!   [`Files::sync_dir`] of its directory, even if the file itself is synced.

mod real;
#[cfg(any(test, feature = "conformance"))]
pub mod sim;

use std::fmt;
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use real::RealFiles;

/// A failed call: what was tried, on which file, where in it, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// What was tried, as a verb: `read`, `sync`.
    pub op: &'static str,
    /// The file or the directory.
    pub path: PathBuf,
    /// Byte offset in the file, for a read or a write.
    pub offset: Option<u64>,
    /// The sort of failure.
    pub kind: ErrorKind,
    /// What the system said.
    pub what: String,
}

impl FileError {
    /// The failure of `op` on `path`.
    pub fn new(op: &'static str, path: &Path, error: &std::io::Error) -> Self {
        FileError {
            op,
            path: path.to_owned(),
            offset: None,
            kind: error.kind(),
            what: error.to_string(),
        }
    }

    /// The same, at byte `offset`.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Whether the disk has no room left.
    pub fn is_full(&self) -> bool {
        matches!(self.kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    }

    /// Whether the file does not exist.
    pub fn is_missing(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// Whether somebody else holds the lock.
    pub fn is_locked(&self) -> bool {
        self.kind == ErrorKind::WouldBlock
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.op, self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.what)?;
        if self.is_full() {
            write!(f, "; free some space on this file system, or add to it")?;
        }
        Ok(())
    }
}

impl std::error::Error for FileError {}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, without the directory.
    pub name: String,
    /// Bytes in the file; 0 for a directory.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Room on the file system that holds a directory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What this process may still use.
    pub available: u64,
}

/// A disk: names, and the files behind them. Cheap to clone behind its [`Arc`].
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// Makes an empty file, open for reading and writing.
    ///
    /// # Errors
    /// What the system refused; also if the name is taken.
    fn create(&self, path: &Path) -> Result<Arc<dyn File>, FileError>;

    /// Opens a file that exists.
    ///
    /// # Errors
    /// What the system refused.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>, FileError>;

    /// Gives a file another name, in place of what had that name. Atomic.
    ///
    /// # Errors
    /// What the system refused.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system refused.
    fn unlink(&self, path: &Path) -> Result<(), FileError>;

    /// Makes a directory; its parent must exist. No error if it is there already.
    ///
    /// # Errors
    /// What the system refused.
    fn create_dir(&self, dir: &Path) -> Result<(), FileError>;

    /// Makes the names in `dir` as durable as they are now.
    ///
    /// # Errors
    /// What the system refused.
    fn sync_dir(&self, dir: &Path) -> Result<(), FileError>;

    /// What is in `dir`, sorted by name.
    ///
    /// # Errors
    /// What the system refused.
    fn list(&self, dir: &Path) -> Result<Vec<Entry>, FileError>;

    /// Room on the file system of `dir`.
    ///
    /// # Errors
    /// What the system refused.
    fn space(&self, dir: &Path) -> Result<Space, FileError>;

    /// Locks `dir` for as long as the guard lives, against other processes and
    /// against this one.
    ///
    /// # Errors
    /// [`FileError::is_locked`] if it is locked; else what the system refused.
    fn lock(&self, dir: &Path) -> Result<Box<dyn DirLock>, FileError>;
}

/// Holds a directory's lock; dropping it lets go.
pub trait DirLock: fmt::Debug + Send + Sync {}

/// An open file. All calls name their place; there is no cursor.
pub trait File: fmt::Debug + Send + Sync {
    /// The name it was opened under. It may have another by now.
    fn path(&self) -> &Path;

    /// Reads at `offset`. May give less than asked; 0 at or past the end.
    ///
    /// # Errors
    /// What the system refused.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, FileError>;

    /// Writes at `offset`. May take less than given. Grows the file.
    ///
    /// # Errors
    /// What the system refused.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FileError>;

    /// Writes pieces in a row, in one call. May take less than given.
    ///
    /// # Errors
    /// What the system refused.
    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> Result<usize, FileError>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the system refused. What was written since the last sync is then lost
    /// or not, nobody can say, **and another sync will not tell**: the system has
    /// forgotten what it could not write.
    fn sync_data(&self) -> Result<(), FileError>;

    /// Makes content and all metadata durable; for a file just made.
    ///
    /// # Errors
    /// As [`File::sync_data`].
    fn sync_all(&self) -> Result<(), FileError>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// What the system refused.
    fn size(&self) -> Result<u64, FileError>;

    /// Reserves disk blocks for the first `len` bytes and grows the file to that;
    /// new bytes read as zero.
    ///
    /// # Errors
    /// [`FileError::is_full`] if there is no room; nothing has then changed.
    fn allocate(&self, len: u64) -> Result<(), FileError>;

    /// Cuts the file off behind `len` bytes and gives their room back. A file that is not
    /// longer stays as it is.
    ///
    /// # Errors
    /// What the system refused.
    fn truncate(&self, len: u64) -> Result<(), FileError>;

    /// Forgets what memory holds of this file and need not write, so that the next
    /// read asks the disk. After a failed sync that is the only way to see what the
    /// disk holds: the system goes on showing the content that it failed to write.
    /// A request, which the system may follow in part.
    fn evict(&self);
}

/// Bytes written or given back between two syncs where other files are synced beside: what one
/// sync has to do, theirs wait for. (Measured on a file system that tells its disk what is
/// free: 60 ms for 64 MiB given back at once, 5 ms in such pieces; 160 ms and 6 ms for
/// writing them.)
pub const PIECE_BYTES: usize = 1 << 20;

impl dyn Files + '_ {
    /// Removes a file piece by piece, so that nobody's sync has to wait for all of it.
    /// Whoever has it open sees it shrink.
    ///
    /// # Errors
    /// What the system refused. The file can be shorter then.
    pub fn unlink_slowly(&self, path: &Path) -> Result<(), FileError> {
        let file = self.open(path, Access::Write)?;
        let mut left = file.size()?;
        while left > PIECE_BYTES as u64 {
            left -= PIECE_BYTES as u64;
            file.shorten(left)?;
        }
        self.unlink(path)
    }
}

impl dyn File + '_ {
    /// Cuts the file off behind `len` bytes, durably: the file system has nothing of it left
    /// to do that somebody else's sync would wait for.
    ///
    /// # Errors
    /// What the system refused.
    pub fn shorten(&self, len: u64) -> Result<(), FileError> {
        self.truncate(len)?;
        self.sync_data()
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// What the system refused; `UnexpectedEof` if the file ends before.
    pub fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<(), FileError> {
        while !buf.is_empty() {
            match self.read_at(buf, offset)? {
                0 => {
                    let end = std::io::Error::new(ErrorKind::UnexpectedEof, "the file ends here");
                    return Err(FileError::new("read", self.path(), &end).at(offset));
                }
                n => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// What the system refused; a part may have been written.
    pub fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> Result<(), FileError> {
        while !data.is_empty() {
            let n = self.write_at(data, offset)?;
            self.took_something(n, offset)?;
            data = &data[n..];
            offset += n as u64;
        }
        Ok(())
    }

    /// Writes all pieces in a row. Uses up `pieces`.
    ///
    /// # Errors
    /// What the system refused; a part may have been written.
    pub fn write_all_vectored_at(
        &self,
        mut pieces: &mut [IoSlice<'_>],
        mut offset: u64,
    ) -> Result<(), FileError> {
        // An empty piece at the front would look like a disk that takes nothing.
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            let n = self.write_vectored_at(pieces, offset)?;
            self.took_something(n, offset)?;
            IoSlice::advance_slices(&mut pieces, n);
            offset += n as u64;
        }
        Ok(())
    }

    fn took_something(&self, n: usize, offset: u64) -> Result<(), FileError> {
        if n > 0 {
            return Ok(());
        }
        let zero = std::io::Error::new(ErrorKind::WriteZero, "the system took no bytes");
        Err(FileError::new("write", self.path(), &zero).at(offset))
    }
}
