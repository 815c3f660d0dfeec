//! A disk in memory that fails when told to.
//!
//! [`SimFiles`] keeps apart what a program sees and what the disk holds. A sync
//! brings the second up to the first. [`SimFiles::crash`] takes the power away: of
//! what was not synced, each sector of 512 bytes survives or not, in any order, with
//! any of the contents it had since; of the unsynced changes of names a prefix
//! survives, or any choice of them. Which, follows from the seed alone.
//!
//! It has no threads and no clock. With one thread calling, the same calls on the
//! same seed end the same, byte for byte.

mod disk;
mod inode;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::disk::{Node, Outcome, State, no_power};
use super::{Access, DirLock, Entry, File, FileError, Files, Space};
use crate::rng::Rng;

/// `EIO`: the disk failed.
pub const EIO: i32 = 5;
/// `ENOSPC`: the disk is full.
pub const ENOSPC: i32 = 28;

/// How long a sync that is held waits before it is called a fault of the test.
const HELD_MAX: Duration = Duration::from_secs(30);

/// A sort of call, for faults and for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reading from a file.
    Read,
    /// Writing to a file; a vectored write is one.
    Write,
    /// Syncing a file.
    Sync,
    /// Syncing a directory.
    SyncDir,
    /// Making a file or a directory.
    Create,
    /// Renaming.
    Rename,
    /// Removing.
    Unlink,
    /// Reserving room.
    Allocate,
    /// Shortening.
    Truncate,
}

/// How often each sort of call was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// [`Op::Read`].
    pub reads: u64,
    /// [`Op::Write`].
    pub writes: u64,
    /// [`Op::Sync`].
    pub syncs: u64,
    /// [`Op::SyncDir`].
    pub dir_syncs: u64,
    /// [`Op::Create`], [`Op::Rename`], [`Op::Unlink`], [`Op::Allocate`] and [`Op::Truncate`].
    pub names: u64,
}

impl Counts {
    fn add(&mut self, op: Op) {
        let count = match op {
            Op::Read => &mut self.reads,
            Op::Write => &mut self.writes,
            Op::Sync => &mut self.syncs,
            Op::SyncDir => &mut self.dir_syncs,
            Op::Create | Op::Rename | Op::Unlink | Op::Allocate | Op::Truncate => &mut self.names,
        };
        *count += 1;
    }

    /// Calls that change something: what [`SimFiles::cut_power_after`] counts.
    pub fn changes(&self) -> u64 {
        self.writes + self.syncs + self.dir_syncs + self.names
    }
}

/// Calls that are to fail.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which sort.
    pub op: Op,
    /// Only on paths that contain this; empty for all.
    pub path: String,
    /// So many that would match go well first.
    pub after: u64,
    /// So many fail then.
    pub times: u64,
    /// With which error.
    pub errno: i32,
}

impl Fault {
    /// The next call of sort `op` fails with [`EIO`], once.
    pub fn next(op: Op) -> Fault {
        Fault { op, path: String::new(), after: 0, times: 1, errno: EIO }
    }
}

/// A handle on a simulated disk. Clones share the disk.
#[derive(Clone)]
pub struct SimFiles {
    disk: Arc<Disk>,
    boot: u64,
}

struct Disk {
    state: Mutex<State>,
    sync_passes: Condvar,
}

impl std::fmt::Debug for SimFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimFiles(boot {})", self.boot)
    }
}

impl SimFiles {
    /// An empty disk with nothing but the directory `/`.
    pub fn new(seed: u64) -> Self {
        Self::with(State::new(seed))
    }

    fn with(state: State) -> Self {
        let boot = state.boot;
        let disk = Arc::new(Disk { state: Mutex::new(state), sync_passes: Condvar::new() });
        SimFiles { disk, boot }
    }

    /// The same disk as the trait object that users take.
    pub fn shared(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that failed with the lock held has already said why.
        self.disk.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the power away and gives it back. Handles from before are dead, and
    /// so are orders for faults; the answer is the disk as the next boot finds it.
    #[must_use]
    pub fn crash(&self) -> SimFiles {
        let mut state = self.state();
        state.crash();
        self.disk.sync_passes.notify_all();
        SimFiles { disk: self.disk.clone(), boot: state.boot }
    }

    /// Another disk with the same content, on which nothing holds a lock.
    #[must_use]
    pub fn fork(&self) -> SimFiles {
        let mut state = self.state().clone();
        state.locks.clear();
        SimFiles::with(state)
    }

    /// Gives the random choices to come a seed of their own.
    pub fn reseed(&self, seed: u64) {
        self.state().rng = Rng::new(seed);
    }

    /// Orders a failure.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Takes back every order of a failure.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Sets how much room the disk has in all, in bytes. What has room keeps it.
    pub fn set_room(&self, bytes: u64) {
        self.state().room = bytes;
    }

    /// Reads and writes take less than they are given, at random.
    pub fn short_io(&self, on: bool) {
        self.state().short = on;
    }

    /// The power fails in the middle of the `n`th call from now that changes
    /// something; from then on every call fails, until [`SimFiles::crash`].
    pub fn cut_power_after(&self, n: u64) {
        self.state().power = Some(n);
    }

    /// Whether the power has failed.
    pub fn is_off(&self) -> bool {
        self.state().power == Some(0)
    }

    /// Whether a power cut would take something that was written.
    pub fn has_unsynced(&self) -> bool {
        self.state().has_unsynced()
    }

    /// How many calls there were.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// From now on syncs of files wait until [`SimFiles::let_syncs`].
    pub fn hold_syncs(&self) {
        let mut state = self.state();
        state.held = true;
        state.passes = 0;
    }

    /// Lets `n` syncs through; `None` for all from now on.
    pub fn let_syncs(&self, n: Option<u64>) {
        let mut state = self.state();
        match n {
            Some(n) => state.passes += n,
            None => state.held = false,
        }
        self.disk.sync_passes.notify_all();
    }

    /// Waits until a sync is being held.
    ///
    /// # Panics
    /// If none comes within half a minute.
    pub fn wait_for_held_sync(&self) {
        let state = self.state();
        let waited =
            self.disk.sync_passes.wait_timeout_while(state, HELD_MAX, |state| state.waiting == 0);
        let (_state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "no sync came to be held");
    }

    /// Turns bit `bit` of the file at `path`.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip(&self, path: &Path, bit: u64) {
        let mut state = self.state();
        let id = state.file(path).expect("the file to damage exists");
        state.inode(id).flip(bit);
    }

    /// The content of the file at `path`, as a program sees it.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let mut state = self.state();
        let id = state.file(path).expect("the file to look at exists");
        state.inode(id).content().to_vec()
    }

    /// Sets the content of the file at `path`, durably; makes it if need be.
    pub fn set_content(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state();
        let id = state.file(path).unwrap_or_else(|| state.new_file(path));
        state.inode(id).set_content(content);
        if let Some(dir) = path.parent() {
            state.sync_dir(dir);
        }
    }

    /// Runs one call: counts it, fails it if that was ordered, else does it.
    fn call<T>(
        &self,
        op: Op,
        verb: &'static str,
        path: &Path,
        act: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> Result<T, FileError> {
        let mut state = self.state();
        if state.boot != self.boot {
            return Err(FileError::new(verb, path, &no_power()));
        }
        match state.begin(op, verb, path) {
            Outcome::Fine => act(&mut state).map_err(|e| FileError::new(verb, path, &e)),
            Outcome::DoneButFailed(error) => {
                let _ = act(&mut state);
                Err(error)
            }
            Outcome::Failed(error) | Outcome::Refused(error) => Err(error),
        }
    }

    fn handle(&self, id: u64, path: &Path, access: Access) -> Arc<dyn File> {
        Arc::new(SimFile { files: self.clone(), id, path: path.to_owned(), access })
    }
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(2)
}

impl Files for SimFiles {
    fn create(&self, path: &Path) -> Result<Arc<dyn File>, FileError> {
        let id = self.call(Op::Create, "create", path, |state| {
            let parent = path.parent().and_then(|dir| state.names.get(dir));
            match (parent, state.names.get(path)) {
                (Some(Node::Dir), None) => Ok(state.new_file(path)),
                (Some(Node::Dir), Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
                _ => Err(not_found()),
            }
        })?;
        Ok(self.handle(id, path, Access::Write))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>, FileError> {
        let id =
            self.call(Op::Read, "open", path, |state| state.file(path).ok_or_else(not_found))?;
        Ok(self.handle(id, path, access))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.call(Op::Rename, "rename", from, |state| {
            state.file(from).ok_or_else(not_found)?;
            state.rename(from, to);
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> Result<(), FileError> {
        self.call(Op::Unlink, "remove", path, |state| {
            state.file(path).ok_or_else(not_found)?;
            state.remove(path);
            Ok(())
        })
    }

    fn create_dir(&self, dir: &Path) -> Result<(), FileError> {
        self.call(Op::Create, "create directory", dir, |state| {
            match (dir.parent().and_then(|up| state.names.get(up)), state.names.get(dir)) {
                (_, Some(Node::Dir)) => Ok(()),
                (_, Some(Node::File(_))) => Err(io::ErrorKind::AlreadyExists.into()),
                (Some(Node::Dir), None) => {
                    state.put(dir, Node::Dir);
                    Ok(())
                }
                _ => Err(not_found()),
            }
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), FileError> {
        self.call(Op::SyncDir, "sync directory", dir, |state| {
            state.sync_dir(dir);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<Entry>, FileError> {
        self.call(Op::Read, "list", dir, |state| {
            if state.names.get(dir) != Some(&Node::Dir) {
                return Err(not_found());
            }
            let here = state.names.iter().filter(|(path, _)| path.parent() == Some(dir));
            let entry = |(path, node): (&PathBuf, &Node)| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                match node {
                    Node::Dir => Entry { name, len: 0, is_dir: true },
                    Node::File(id) => Entry { name, len: state.len_of(*id), is_dir: false },
                }
            };
            Ok(here.map(entry).collect())
        })
    }

    fn space(&self, dir: &Path) -> Result<Space, FileError> {
        self.call(Op::Read, "measure", dir, |state| {
            Ok(Space { total: state.room, available: state.room_left() })
        })
    }

    fn lock(&self, dir: &Path) -> Result<Box<dyn DirLock>, FileError> {
        self.call(Op::Read, "lock", dir, |state| {
            if state.names.get(dir) != Some(&Node::Dir) {
                return Err(not_found());
            }
            match state.locks.insert(dir.to_owned()) {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            }
        })?;
        Ok(Box::new(SimLock { files: self.clone(), dir: dir.to_owned() }))
    }
}

#[derive(Debug)]
struct SimLock {
    files: SimFiles,
    dir: PathBuf,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.files.state();
        if state.boot == self.files.boot {
            state.locks.remove(&self.dir);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    files: SimFiles,
    id: u64,
    path: PathBuf,
    access: Access,
}

impl SimFile {
    fn sync(&self) -> Result<(), FileError> {
        self.wait_for_pass();
        let mut state = self.files.state();
        if state.boot != self.files.boot {
            return Err(FileError::new("sync", &self.path, &no_power()));
        }
        let outcome = state.begin(Op::Sync, "sync", &self.path);
        let id = self.id;
        match outcome {
            Outcome::Fine => {
                state.inode(id).sync();
                Ok(())
            }
            Outcome::DoneButFailed(error) => {
                state.inode(id).sync();
                Err(error)
            }
            Outcome::Failed(error) => {
                let mut rng = state.rng.split();
                state.inode(id).sync_fails(&mut rng);
                Err(error)
            }
            Outcome::Refused(error) => Err(error),
        }
    }

    fn wait_for_pass(&self) {
        let mut state = self.files.state();
        if !state.held {
            return;
        }
        state.waiting += 1;
        self.files.disk.sync_passes.notify_all();
        let blocked =
            |state: &mut State| state.held && state.passes == 0 && state.boot == self.files.boot;
        let waited = self.files.disk.sync_passes.wait_timeout_while(state, HELD_MAX, blocked);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "a held sync was never let through");
        state.waiting -= 1;
        state.passes = state.passes.saturating_sub(1);
    }

    /// Writes as much as there is room for, or as short writes allow.
    fn write(&self, data: &[u8], offset: u64) -> Result<usize, FileError> {
        let written = self.files.call(Op::Write, "write", &self.path, |state| {
            if self.access != Access::Write {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let mut n = data.len();
            if state.short && n > 1 {
                n = 1 + state.rng.below(n as u64) as usize;
            }
            let left = state.room_left();
            while n > 0 && state.inode(self.id).room_needed(offset, offset + n as u64) > left {
                // Back to the last block's beginning, and so on.
                let end = offset as usize + n - 1;
                n = (end - end % inode::BLOCK_BYTES).saturating_sub(offset as usize);
            }
            if n == 0 && !data.is_empty() {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
            let inode = state.inode(self.id);
            inode.take_room(offset, offset + n as u64);
            inode.write(&data[..n], offset);
            Ok(n)
        });
        written.map_err(|e| e.at(offset))
    }
}

impl File for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        let read = self.files.call(Op::Read, "read", &self.path, |state| {
            let mut n = buf.len();
            if state.short && n > 1 {
                n = 1 + state.rng.below(n as u64) as usize;
            }
            Ok(state.inode(self.id).read(&mut buf[..n], offset))
        });
        read.map_err(|e| e.at(offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FileError> {
        self.write(data, offset)
    }

    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> Result<usize, FileError> {
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.write(&all, offset)
    }

    fn sync_data(&self) -> Result<(), FileError> {
        self.sync()
    }

    fn sync_all(&self) -> Result<(), FileError> {
        self.sync()
    }

    fn size(&self) -> Result<u64, FileError> {
        self.files.call(Op::Read, "look at", &self.path, |state| Ok(state.len_of(self.id)))
    }

    fn allocate(&self, len: u64) -> Result<(), FileError> {
        self.files.call(Op::Allocate, "allocate", &self.path, |state| {
            if state.inode(self.id).room_needed(0, len) > state.room_left() {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
            let inode = state.inode(self.id);
            inode.take_room(0, len);
            inode.grow(len);
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> Result<(), FileError> {
        self.files.call(Op::Truncate, "shorten", &self.path, |state| {
            state.inode(self.id).truncate(len);
            Ok(())
        })
    }

    fn evict(&self) {
        let mut state = self.files.state();
        if state.boot == self.files.boot {
            state.inode(self.id).evict();
        }
    }
}
