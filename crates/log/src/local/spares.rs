//! Room for segments to come.
//!
//! ```text
//!            allocate            zero-fill               take
//!  (nothing) ────────> fill-n ──────────────> spare-n ─────────> seg-N
//!                        │ ^ ^      surplus     │  ^               │
//!         piece by piece │ │ └──────────────────┘  │ release       │
//!                        v │                       └───────────────┤
//!                 (nothing)└───────────────────────────────────────┘
//!                                 recovery cut it
//! ```
//! Writing over blocks that were written before is cheaper to sync than growing a
//! file or filling reserved blocks for the first time, because the file system has
//! nothing to note down; and it needs no new room. So segments are recycled, and
//! spares are written once in the background. When none is left at a high rate, a
//! new file's blocks are reserved and used at once.
//!
//! **A file's content is changed only after its name is durable.** Otherwise a power
//! cut could give a file its old name back, with new content: a segment that was
//! released, and then looks damaged. Therefore `take` and `retire` sync the
//! directory, and `give`, which leaves the content alone, need not.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, PoisonError};

use super::layout::{ALIGN_MOST, Geometry, Name};
use crate::SegmentNo;
use crate::files::{Access, File, FileError, Files};
use crate::sync::Mutex;

/// Written and synced at once when a spare is filled: small, because the log's own
/// syncs wait behind it.
const FILL_BYTES: u64 = 256 << 10;
/// A file that is too many goes in so many pieces, of [`PIECE_BYTES`] with segments of the
/// usual size: the log's own syncs wait behind it, too.
///
/// [`PIECE_BYTES`]: crate::files::PIECE_BYTES
const PIECES: u64 = 64;
/// Consumption is remembered for so many ticks of a second.
const TICKS: usize = 10;
/// After the disk was full, the next try is so many ticks later.
const FULL_TICKS: u32 = 10;

/// What one step of tending did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tended {
    /// There is nothing to do.
    Nothing,
    /// A piece of a spare was filled.
    Filled,
    /// A piece of a file that was too many was given back, or the last of it.
    Removed,
    /// The system refused; another try comes later.
    Failed(FileError),
}

/// The spare files of a log directory.
#[derive(Debug)]
pub(crate) struct Spares {
    files: Arc<dyn Files>,
    dir: PathBuf,
    geometry: Geometry,
    /// How many to keep ready.
    keep: usize,
    pool: Mutex<Pool>,
    /// Told when the tender has put a fill back.
    back: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    ready: VecDeque<u64>,
    fills: VecDeque<Fill>,
    /// The file that is being given back.
    going: Option<Going>,
    /// The tender is working on a fill, which is not in `fills` meanwhile.
    busy: bool,
    next_n: u64,
    /// Spares taken, by tick; the current one first.
    taken: [u32; TICKS],
    /// Ticks until room is looked for again.
    full: u32,
}

#[derive(Debug)]
struct Fill {
    n: u64,
    /// `None` until it is worked on.
    file: Option<Arc<dyn File>>,
    /// Bytes that are zero and synced.
    done: u64,
}

#[derive(Debug)]
struct Going {
    n: u64,
    /// `None` until it is worked on.
    file: Option<Arc<dyn File>>,
    /// Its length, or more.
    left: u64,
}

impl Spares {
    /// The spares of a directory, none of them known yet.
    pub(crate) fn new(files: Arc<dyn Files>, dir: &Path, geometry: Geometry, keep: usize) -> Self {
        Spares {
            files,
            dir: dir.to_owned(),
            geometry,
            keep,
            pool: Mutex::new(Pool::default()),
            back: Condvar::new(),
        }
    }

    /// Takes over the files that were found. `next_n` is above every number in use.
    pub(crate) fn adopt(&self, found: Found) {
        let fills = found.fills.into_iter().map(|n| Fill { n, file: None, done: 0 }).collect();
        let mut pool = self.pool.lock();
        *pool = Pool { ready: found.ready.into(), fills, next_n: found.next_n, ..Pool::default() };
    }

    fn path(&self, name: Name) -> PathBuf {
        self.dir.join(name.to_string())
    }

    /// Bytes of frames that one spare holds.
    pub(crate) fn room(&self) -> u64 {
        self.geometry.data_room()
    }

    /// Spares that can be used without new room on the disk.
    pub(crate) fn ready(&self) -> usize {
        self.pool.lock().ready.len()
    }

    /// A file for segment `no`, under its name, and the name durable. Its content
    /// means nothing.
    ///
    /// # Errors
    /// [`FileError::is_full`] if there is no spare and no room for a new file.
    pub(crate) fn take(&self, no: SegmentNo) -> Result<Arc<dyn File>, FileError> {
        let ready = {
            let mut pool = self.pool.lock();
            pool.taken[0] += 1;
            // The one released last: memory still knows its blocks.
            pool.ready.pop_back()
        };
        let name = match ready {
            Some(n) => Name::Spare(n),
            None => match self.allocate() {
                Ok(n) => Name::Fill(n),
                // Slow, but better than to fail: a file that has its room already.
                Err(full) if full.is_full() => self.finish_one()?.ok_or(full)?,
                Err(other) => return Err(other),
            },
        };
        let path = self.path(Name::Segment(no));
        self.files.rename(&self.path(name), &path)?;
        self.files.sync_dir(&self.dir)?;
        self.files.open(&path, Access::Write)
    }

    /// Makes the file of a released segment a spare. Its content may only be such
    /// that nothing in it can be mistaken for a frame to come, which holds for
    /// whatever lay before the log's end.
    pub(crate) fn give(&self, no: SegmentNo, bytes: u64) -> Result<(), FileError> {
        let from = self.path(Name::Segment(no));
        if bytes != self.geometry.bytes {
            return self.files.unlink(&from);
        }
        let n = self.next_n();
        self.files.rename(&from, &self.path(Name::Spare(n)))?;
        let mut pool = self.pool.lock();
        pool.ready.push_back(n);
        pool.full = 0;
        Ok(())
    }

    fn next_n(&self) -> u64 {
        let mut pool = self.pool.lock();
        pool.next_n += 1;
        pool.next_n - 1
    }

    /// A new file with its room reserved, and its size durable.
    fn allocate(&self) -> Result<u64, FileError> {
        let n = self.next_n();
        let path = self.path(Name::Fill(n));
        let file = self.files.create(&path)?;
        let made = file.allocate(self.geometry.bytes).and_then(|()| file.sync_all());
        if made.is_err() {
            // The failure itself is what the caller wants to hear about.
            let _ = self.files.unlink(&path);
        }
        made.map(|()| n)
    }

    /// Zero-fills the rest of a file that has room already, at once.
    fn finish_one(&self) -> Result<Option<Name>, FileError> {
        let mut pool = self.pool.lock();
        while pool.busy {
            pool = self.back.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(n) = pool.ready.pop_back() {
            return Ok(Some(Name::Spare(n)));
        }
        let Some(mut fill) = pool.fills.pop_front() else {
            return Ok(None);
        };
        drop(pool);
        while fill.done < self.geometry.bytes {
            self.fill_more(&mut fill)?;
        }
        Ok(Some(Name::Fill(fill.n)))
    }

    /// Writes and syncs the next piece of zeros.
    fn fill_more(&self, fill: &mut Fill) -> Result<(), FileError> {
        let file = match &fill.file {
            Some(file) => file.clone(),
            None => self.files.open(&self.path(Name::Fill(fill.n)), Access::Write)?,
        };
        if fill.done == 0 {
            file.allocate(self.geometry.bytes)?;
        }
        let n = FILL_BYTES.min(self.geometry.bytes - fill.done);
        file.write_all_at(&vec![0; n as usize], fill.done)?;
        file.sync_data()?;
        fill.done += n;
        fill.file = Some(file);
        Ok(())
    }

    /// Lets a second pass: what was consumed ten ago no longer counts.
    pub(crate) fn tick(&self) {
        let mut pool = self.pool.lock();
        pool.taken.rotate_right(1);
        pool.taken[0] = 0;
        pool.full = pool.full.saturating_sub(1);
    }

    /// Does one small piece of work: removes a file that is too many, or fills a
    /// spare further if `may_fill`.
    pub(crate) fn tend(&self, may_fill: bool) -> Tended {
        let done = match self.next_task(may_fill) {
            Task::None => return Tended::Nothing,
            Task::Retire(n) => self.retire(n).map(|()| Tended::Removed),
            Task::Shrink(going) => self.shrink(going).map(|()| Tended::Removed),
            Task::Allocate => self.allocate().map(|n| {
                self.pool.lock().fills.push_back(Fill { n, file: None, done: 0 });
                Tended::Filled
            }),
            Task::Fill(fill) => self.tend_fill(fill).map(|()| Tended::Filled),
        };
        done.unwrap_or_else(|error| {
            self.pool.lock().full = FULL_TICKS;
            Tended::Failed(error)
        })
    }

    fn next_task(&self, may_fill: bool) -> Task {
        let mut pool = self.pool.lock();
        if let Some(going) = pool.going.take() {
            return Task::Shrink(going);
        }
        let wanted = self.keep + pool.taken.iter().sum::<u32>() as usize;
        if pool.ready.len() > wanted {
            return pool.ready.pop_front().map_or(Task::None, Task::Retire);
        }
        let short = pool.ready.len() < self.keep;
        match pool.fills.pop_front() {
            Some(fill) if short && may_fill && pool.full == 0 => {
                pool.busy = true;
                Task::Fill(fill)
            }
            Some(fill) if !short => {
                Task::Shrink(Going { n: fill.n, file: fill.file, left: self.geometry.bytes })
            }
            Some(fill) => {
                pool.fills.push_front(fill);
                Task::None
            }
            None if short && may_fill && pool.full == 0 => Task::Allocate,
            None => Task::None,
        }
    }

    /// A spare that is too many becomes a file of no fixed size. Durably: with its size
    /// changed, it must not have a segment's name again after a power cut.
    fn retire(&self, n: u64) -> Result<(), FileError> {
        self.files.rename(&self.path(Name::Spare(n)), &self.path(Name::Fill(n)))?;
        self.files.sync_dir(&self.dir)?;
        self.pool.lock().going = Some(Going { n, file: None, left: self.geometry.bytes });
        Ok(())
    }

    /// Gives back the last piece of a file, and the file itself after the first.
    fn shrink(&self, going: Going) -> Result<(), FileError> {
        let Going { n, file, left } = going;
        let path = self.path(Name::Fill(n));
        let piece = self.geometry.bytes.div_ceil(PIECES).next_multiple_of(ALIGN_MOST.into());
        if left <= piece {
            return self.files.unlink(&path);
        }
        let left = left - piece;
        let file = file.map_or_else(|| self.files.open(&path, Access::Write), Ok);
        let shortened = file.and_then(|file| file.shorten(left).map(|()| file));
        let (file, failed) = match shortened {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some(error)),
        };
        self.pool.lock().going = Some(Going { n, file, left });
        failed.map_or(Ok(()), Err)
    }

    fn tend_fill(&self, mut fill: Fill) -> Result<(), FileError> {
        let filled = self.fill_more(&mut fill);
        let ready = filled.is_ok() && fill.done == self.geometry.bytes;
        let n = fill.n;
        let named = match ready {
            true => self.files.rename(&self.path(Name::Fill(n)), &self.path(Name::Spare(n))),
            false => Ok(()),
        };
        let mut pool = self.pool.lock();
        match (ready, &named) {
            (true, Ok(())) => pool.ready.push_back(n),
            // Whatever failed: begin again with this file, from its first byte.
            _ if filled.is_err() => pool.fills.push_front(Fill { n, file: None, done: 0 }),
            _ => pool.fills.push_front(fill),
        }
        pool.busy = false;
        self.back.notify_all();
        filled.and(named)
    }
}

/// The spare files that a directory holds when it is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Numbers of `spare-<n>.log` of the right size.
    pub ready: Vec<u64>,
    /// Numbers of `fill-<n>.tmp`.
    pub fills: Vec<u64>,
    /// Above every number in use.
    pub next_n: u64,
}

enum Task {
    None,
    Retire(u64),
    Shrink(Going),
    Allocate,
    Fill(Fill),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sim::{Fault, Op, SimFiles};

    const SEGMENT: u64 = 3 << 20;

    fn pool(disk: &SimFiles, keep: usize) -> Spares {
        let dir = Path::new("/log");
        disk.create_dir(dir).unwrap();
        let geometry = Geometry { bytes: SEGMENT, align: 4096 };
        Spares::new(disk.shared(), dir, geometry, keep)
    }

    fn names(disk: &SimFiles) -> Vec<String> {
        disk.list(Path::new("/log")).unwrap().into_iter().map(|e| e.name).collect()
    }

    fn tend_all(spares: &Spares) {
        while matches!(spares.tend(true), Tended::Filled | Tended::Removed) {}
    }

    #[test]
    fn spares_are_filled_in_pieces_and_only_while_that_is_allowed() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 2);
        assert_eq!(spares.tend(false), Tended::Nothing);
        tend_all(&spares);
        assert_eq!(spares.ready(), 2);
        assert_eq!(names(&disk), ["spare-0.log", "spare-1.log"]);
        assert!(disk.counts().writes >= 2 * SEGMENT / FILL_BYTES);
    }

    #[test]
    fn without_a_spare_a_file_is_reserved_but_not_filled() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 2);
        let file = spares.take(SegmentNo(7)).unwrap();
        assert_eq!(file.size().unwrap(), SEGMENT);
        assert_eq!(disk.counts().writes, 0);
        assert_eq!(names(&disk), [Name::Segment(SegmentNo(7)).to_string()]);
    }

    #[test]
    fn what_is_released_is_used_again_and_the_surplus_removed_later() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 1);
        for no in 1..=5 {
            spares.take(SegmentNo(no)).unwrap();
        }
        for no in 1..=5 {
            spares.give(SegmentNo(no), SEGMENT).unwrap();
        }
        assert_eq!(spares.tend(true), Tended::Nothing, "five were just taken: keep 1 + 5");
        for _ in 0..TICKS {
            spares.tick();
        }
        tend_all(&spares);
        assert_eq!(spares.ready(), 1);
        assert_eq!(names(&disk), ["spare-9.log"]);
        spares.take(SegmentNo(6)).unwrap();
        spares.give(SegmentNo(6), SEGMENT / 2).unwrap();
        assert_eq!(spares.ready(), 0, "a file of another size is no spare");
    }

    #[test]
    fn a_surplus_gives_its_room_back_piece_by_piece() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 1);
        tend_all(&spares);
        spares.take(SegmentNo(1)).unwrap();
        tend_all(&spares);
        (0..TICKS).for_each(|_| spares.tick());
        spares.give(SegmentNo(1), SEGMENT).unwrap();
        let mut room = disk.space(Path::new("/log")).unwrap().available;
        let mut pieces = 0;
        while spares.tend(true) == Tended::Removed {
            let now = disk.space(Path::new("/log")).unwrap().available;
            assert!(now - room <= SEGMENT.div_ceil(PIECES).next_multiple_of(1 << 16));
            pieces += u64::from(now > room);
            room = now;
        }
        assert_eq!(pieces, SEGMENT / (1 << 16));
        assert_eq!(spares.ready(), 1);
    }

    #[test]
    fn what_fails_while_a_surplus_goes_is_tried_again() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 0);
        spares.take(SegmentNo(1)).unwrap();
        spares.give(SegmentNo(1), SEGMENT).unwrap();
        (0..TICKS).for_each(|_| spares.tick());
        for after in 0..3 {
            disk.fail(Fault { after, ..Fault::next(Op::Truncate) });
        }
        let mut failed = 0;
        while !names(&disk).is_empty() {
            failed += usize::from(matches!(spares.tend(true), Tended::Failed(_)));
        }
        assert_eq!(failed, 3);
    }

    #[test]
    fn on_a_full_disk_the_spares_there_are_go_on_serving() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 2);
        tend_all(&spares);
        disk.set_room(2 * SEGMENT);
        spares.take(SegmentNo(1)).unwrap();
        assert!(matches!(spares.tend(true), Tended::Failed(e) if e.is_full()));
        assert_eq!(spares.tend(true), Tended::Nothing, "not at once again");
        spares.take(SegmentNo(2)).unwrap();
        assert!(spares.take(SegmentNo(3)).unwrap_err().is_full());
        spares.give(SegmentNo(1), SEGMENT).unwrap();
        spares.take(SegmentNo(3)).unwrap();
        assert!(!names(&disk).iter().any(|n| n.starts_with("fill")), "{:?}", names(&disk));
    }

    #[test]
    fn on_a_full_disk_a_half_filled_spare_is_finished_and_used() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 1);
        spares.tend(true);
        spares.tend(true);
        disk.set_room(SEGMENT);
        spares.take(SegmentNo(1)).unwrap();
        assert_eq!(
            disk.content(&Path::new("/log").join(Name::Segment(SegmentNo(1)).to_string())),
            vec![0; SEGMENT as usize]
        );
    }

    #[test]
    fn a_fill_that_failed_begins_again() {
        let disk = SimFiles::new(1);
        let spares = pool(&disk, 1);
        spares.tend(true);
        disk.fail(Fault::next(Op::Sync));
        assert!(matches!(spares.tend(true), Tended::Failed(_)));
        for _ in 0..FULL_TICKS {
            spares.tick();
        }
        tend_all(&spares);
        assert_eq!(spares.ready(), 1);
    }
}
