//! The operating system's disk.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags};

use super::{Access, DirLock, Entry, File, FileError, Files, Space};

/// Pieces that one system call takes (`IOV_MAX` on Linux).
const PIECES_MAX: usize = 1024;

/// The files of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

impl RealFiles {
    /// The operating system's disk, ready to be shared.
    pub fn shared() -> Arc<dyn Files> {
        Arc::new(RealFiles)
    }
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    path: PathBuf,
}

#[derive(Debug)]
struct RealLock {
    _dir: fs::File,
}

impl DirLock for RealLock {}

/// Repeats a call that a signal broke off.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn named<T>(op: &'static str, path: &Path, done: io::Result<T>) -> Result<T, FileError> {
    done.map_err(|e| FileError::new(op, path, &e))
}

impl Files for RealFiles {
    fn create(&self, path: &Path) -> Result<Arc<dyn File>, FileError> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = named("create", path, options.open(path))?;
        Ok(Arc::new(RealFile { file, path: path.to_owned() }))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>, FileError> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(access == Access::Write);
        let file = named("open", path, options.open(path))?;
        Ok(Arc::new(RealFile { file, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        named("rename", from, fs::rename(from, to))
    }

    fn unlink(&self, path: &Path) -> Result<(), FileError> {
        named("remove", path, fs::remove_file(path))
    }

    fn create_dir(&self, dir: &Path) -> Result<(), FileError> {
        match fs::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            done => named("create directory", dir, done),
        }
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), FileError> {
        named("sync directory", dir, fs::File::open(dir).and_then(|d| d.sync_all()))
    }

    fn list(&self, dir: &Path) -> Result<Vec<Entry>, FileError> {
        let mut entries = Vec::new();
        for entry in named("list", dir, fs::read_dir(dir))? {
            let entry = named("list", dir, entry)?;
            let about = match entry.metadata() {
                // Removed since it was listed: a running log does that.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                about => named("look at", &entry.path(), about)?,
            };
            // No name of ours is anything but ASCII; a name that is not even
            // UTF-8 is somebody else's file, listed so that it is not overlooked.
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = about.is_dir();
            entries.push(Entry { name, len: if is_dir { 0 } else { about.len() }, is_dir });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn space(&self, dir: &Path) -> Result<Space, FileError> {
        let found = named("measure", dir, rustix::fs::statvfs(dir).map_err(io::Error::from))?;
        Ok(Space {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    fn lock(&self, dir: &Path) -> Result<Box<dyn DirLock>, FileError> {
        let handle = named("open", dir, fs::File::open(dir))?;
        match handle.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _dir: handle })),
            Err(fs::TryLockError::WouldBlock) => {
                let taken = io::Error::new(io::ErrorKind::WouldBlock, "it is locked");
                Err(FileError::new("lock", dir, &taken))
            }
            Err(fs::TryLockError::Error(e)) => Err(FileError::new("lock", dir, &e)),
        }
    }
}

impl RealFile {
    fn io<T>(&self, op: &'static str, done: io::Result<T>) -> Result<T, FileError> {
        named(op, &self.path, done)
    }

    fn io_at<T>(&self, op: &'static str, at: u64, done: io::Result<T>) -> Result<T, FileError> {
        self.io(op, done).map_err(|e| e.at(at))
    }
}

impl File for RealFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        self.io_at("read", offset, retry(|| self.file.read_at(buf, offset)))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FileError> {
        self.io_at("write", offset, retry(|| self.file.write_at(data, offset)))
    }

    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> Result<usize, FileError> {
        let pieces = &pieces[..pieces.len().min(PIECES_MAX)];
        let done = retry(|| Ok(rustix::io::pwritev(&self.file, pieces, offset)?));
        self.io_at("write", offset, done)
    }

    fn sync_data(&self) -> Result<(), FileError> {
        // Not retried, whatever the error: see the trait.
        self.io("sync", self.file.sync_data())
    }

    fn sync_all(&self) -> Result<(), FileError> {
        self.io("sync", self.file.sync_all())
    }

    fn size(&self) -> Result<u64, FileError> {
        Ok(self.io("look at", self.file.metadata())?.len())
    }

    fn allocate(&self, len: u64) -> Result<(), FileError> {
        let all = FallocateFlags::empty();
        let done = retry(|| Ok(rustix::fs::fallocate(&self.file, all, 0, len)?));
        match done {
            // A file system that cannot reserve: the length is then all there is,
            // and a full disk shows on a write instead of here.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                let grown = self.size()?.max(len);
                self.io("grow", self.file.set_len(grown))
            }
            done => self.io("allocate", done),
        }
    }

    fn truncate(&self, len: u64) -> Result<(), FileError> {
        match self.size()? > len {
            true => self.io("shorten", retry(|| self.file.set_len(len))),
            false => Ok(()),
        }
    }

    fn evict(&self) {
        // A request: if it is not followed there is nothing better to do.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_beyond_what_one_call_takes_are_all_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealFiles.create(&dir.path().join("a")).unwrap();
        let data: Vec<u8> = (0..PIECES_MAX * 3 + 5).map(|i| i as u8).collect();
        let mut pieces: Vec<IoSlice<'_>> = data.chunks(1).map(IoSlice::new).collect();
        pieces.insert(0, IoSlice::new(&[]));
        file.write_all_vectored_at(&mut pieces, 10).unwrap();
        let mut back = vec![0; data.len()];
        file.read_exact_at(&mut back, 10).unwrap();
        assert_eq!(back, data);
    }

    #[test]
    fn a_locked_directory_cannot_be_locked_again_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let held = RealFiles.lock(dir.path()).unwrap();
        assert!(RealFiles.lock(dir.path()).unwrap_err().is_locked());
        drop(held);
        RealFiles.lock(dir.path()).unwrap();
    }

    #[test]
    fn allocated_bytes_count_and_read_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = RealFiles.create(&path).unwrap();
        file.allocate(10_000).unwrap();
        assert_eq!(file.size().unwrap(), 10_000);
        let mut back = [1; 100];
        file.read_exact_at(&mut back, 9_900).unwrap();
        assert_eq!(back, [0; 100]);
        let eof = file.read_exact_at(&mut back, 9_950).unwrap_err();
        assert_eq!(eof.kind, io::ErrorKind::UnexpectedEof);
        assert!(eof.to_string().contains("at byte 10000"), "{eof}");
    }

    #[test]
    fn names_are_listed_in_order_and_a_missing_file_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            RealFiles.create(&dir.path().join(name)).unwrap();
        }
        RealFiles.create_dir(&dir.path().join("c")).unwrap();
        RealFiles.create_dir(&dir.path().join("c")).unwrap();
        let names: Vec<_> = RealFiles.list(dir.path()).unwrap();
        assert_eq!(names.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(names[2].is_dir);
        let missing = RealFiles.open(&dir.path().join("d"), Access::Read).unwrap_err();
        assert!(missing.is_missing());
    }
}
