//! Room on the disk. Publishes are refused before there is none, so that what is
//! there can still be consumed, and frees itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use posthouse_log::files::Files;

use crate::problem::{Kind, Problem};

/// Publishes are refused when less than one part in this many of the disk is free.
const RESERVE_PART: u64 = 20;

/// They are refused below this many free bytes whatever the size of the disk, unless
/// the configuration says otherwise.
pub const RESERVE_BYTES: u64 = 2 << 30;

/// What is let in may take so many times its bytes: a frame that does not fit behind
/// others in a segment leaves the room there unused, and snapshots take some.
const SPREAD: u64 = 4;

/// Watches the file system of the data directory.
#[derive(Debug)]
pub struct SpaceGuard {
    files: Arc<dyn Files>,
    dir: PathBuf,
    reserve: Option<u64>,
    total: AtomicU64,
    available: AtomicU64,
    /// Bytes that were let in since it was last looked.
    spent: AtomicU64,
    is_full: AtomicBool,
}

impl SpaceGuard {
    /// Watches the file system of `dir`. `reserve` bytes are to stay free; without it
    /// the larger of a twentieth of the disk and [`RESERVE_BYTES`].
    pub fn new(files: Arc<dyn Files>, dir: PathBuf, reserve: Option<u64>) -> Self {
        let guard = SpaceGuard {
            files,
            dir,
            reserve,
            total: AtomicU64::new(0),
            available: AtomicU64::new(u64::MAX),
            spent: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
        };
        guard.look();
        guard
    }

    /// The disk.
    pub fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    /// Looks how much room there is.
    pub fn look(&self) {
        match self.files.space(&self.dir) {
            Ok(space) => {
                self.total.store(space.total, Ordering::Relaxed);
                self.available.store(space.available, Ordering::Relaxed);
                self.spent.store(0, Ordering::Relaxed);
                let is_full = space.available < self.reserve();
                if is_full != self.is_full.swap(is_full, Ordering::Relaxed) {
                    if is_full {
                        tracing::error!("{}", self.refusal());
                    } else {
                        tracing::info!("there is room on the disk again, publishes are taken");
                    }
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Bytes that are to stay free.
    pub fn reserve(&self) -> u64 {
        let part = self.total.load(Ordering::Relaxed) / RESERVE_PART;
        self.reserve.unwrap_or(part.max(RESERVE_BYTES))
    }

    /// Bytes that are free.
    pub fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    /// Whether publishes are refused.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Refuses what would need room that is not there. It is looked anew when so much was
    /// let in since the last look that the reserve may be touched.
    ///
    /// # Errors
    /// [`Kind::DiskFull`], with the path, what is free, and the way out.
    pub fn let_in(&self, bytes: usize) -> Result<(), Problem> {
        if self.is_full() {
            return Err(self.refusal());
        }
        let spent = self.spent.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let taken = spent.saturating_mul(SPREAD);
        if self.available().saturating_sub(taken) < self.reserve() {
            self.look();
            if self.is_full() {
                return Err(self.refusal());
            }
        }
        Ok(())
    }

    fn refusal(&self) -> Problem {
        let (available, reserve) = (self.available() >> 20, self.reserve() >> 20);
        let detail = format!(
            "the disk of {} has {available} MiB free, and {reserve} MiB are kept for what is \
             there to be consumed: publishes are refused",
            self.dir.display()
        );
        Problem::new(Kind::DiskFull, "disk_full", detail)
            .with_field("free_bytes", self.available(), format!("at least {}", self.reserve()))
            .with_hint(
                "consume, purge or shorten the retention of topics, or give the disk more room; \
                 publishes are taken again by themselves",
            )
            .with_retry(5_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_log::files::RealFiles;

    #[test]
    fn publishes_are_refused_while_the_reserve_is_touched_and_no_longer() {
        let dir = std::env::temp_dir();
        let guard = SpaceGuard::new(RealFiles::shared(), dir.clone(), Some(u64::MAX));
        let refusal = guard.let_in(1).unwrap_err();
        assert_eq!((refusal.kind, refusal.code), (Kind::DiskFull, "disk_full"));
        assert!(refusal.detail.contains(&dir.display().to_string()), "{refusal}");
        let guard = SpaceGuard { reserve: Some(1), ..guard };
        guard.look();
        assert_eq!(guard.let_in(1), Ok(()));
    }

    /// It was looked at once a second, and in a second a fast disk takes more than the
    /// reserve: the log found no room, and the node failed.
    #[test]
    fn it_is_looked_again_when_what_was_let_in_may_touch_the_reserve() {
        let disk = posthouse_log::files::sim::SimFiles::new(1);
        disk.set_room(100);
        let guard = SpaceGuard::new(disk.shared(), "/".into(), Some(40));
        guard.let_in(50).unwrap();
        disk.set_room(70);
        guard.let_in(5).unwrap();
        assert_eq!(guard.available(), 100, "there is no need to look yet");
        guard.let_in(20).unwrap();
        assert_eq!(guard.available(), 70);
        disk.set_room(30);
        assert_eq!(guard.let_in(40).unwrap_err().code, "disk_full");
    }
    /// Bodies that filled half of each segment took twice their bytes, and the disk was full
    /// when half of it was thought to be free.
    #[test]
    fn what_is_let_in_takes_more_room_than_its_bytes() {
        let disk = posthouse_log::files::sim::SimFiles::new(1);
        disk.set_room(100);
        let guard = SpaceGuard::new(disk.shared(), "/".into(), Some(40));
        guard.let_in(15).unwrap();
        disk.set_room(70);
        guard.let_in(1).unwrap();
        assert_eq!(guard.available(), 70);
    }
}
