//! The disk alone: what a frame costs that nobody had to make.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use posthouse_log::files::{File, FileError, Files as _, PIECE_BYTES, RealFiles};

use super::lane::histogram;

/// The file that is written to, over and over: a few segments long.
const FILE_BYTES: u64 = 256 << 20;

/// The alignment of a frame.
const BLOCK: usize = 4096;

/// Writes to a file that was written before, so that a write changes nothing but data.
#[derive(Debug)]
pub(super) struct Disk {
    file: Arc<dyn File>,
    offset: u64,
}

/// What the disk did.
#[derive(Clone, Debug)]
pub(super) struct Alone {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Nanoseconds that a write and its sync took.
    pub each: Histogram<u64>,
}

impl Disk {
    /// Makes the file in `dir`, and fills it.
    pub(super) fn new(dir: &Path) -> Result<Disk, FileError> {
        let file = RealFiles.create(&dir.join("disk"))?;
        let piece = vec![0xA5; PIECE_BYTES];
        for at in (0..FILE_BYTES).step_by(piece.len()) {
            file.write_all_at(&piece, at)?;
            // A node beside would wait for a sync of all.
            file.sync_data()?;
        }
        file.sync_all()?;
        Ok(Disk { file, offset: 0 })
    }

    /// Writes pieces of `bytes`, rounded up to whole blocks, one after the other for as
    /// long as `time`: write, fdatasync, and again. Blocks the thread.
    pub(super) fn run(&mut self, bytes: usize, time: Duration) -> Result<Alone, FileError> {
        let piece = vec![0x5A; bytes.next_multiple_of(BLOCK).clamp(BLOCK, 64 << 20)];
        let mut each = histogram();
        let mut written = 0u64;
        let began = Instant::now();
        while began.elapsed() < time {
            if self.offset + piece.len() as u64 > FILE_BYTES {
                self.offset = 0;
            }
            let one = Instant::now();
            self.file.write_all_at(&piece, self.offset)?;
            self.file.sync_data()?;
            each.saturating_record(one.elapsed().as_nanos() as u64);
            self.offset += piece.len() as u64;
            written += piece.len() as u64;
        }
        let bytes_per_second = written as f64 / began.elapsed().as_secs_f64();
        Ok(Alone { bytes_per_second, each })
    }
}
