//! Looking through a log directory while its owner writes in it.
//!
//! A write is not seen all at once: who reads beside the owner may find the front of a
//! frame and zeros behind it. That is no damage. It once was taken for it where the zeros
//! began within a frame's bodies.

mod common;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{DIR, Place, Rig, STORE, write};
use posthouse_log::conformance::Script;
use posthouse_log::files::{Access, DirLock, Entry, File, FileError, Files, Space};
use posthouse_log::local::{Report, verify};

/// A disk on which a stretch of one file reads as zeros, for so many reads.
#[derive(Debug)]
struct Lagging {
    disk: Arc<dyn Files>,
    file: PathBuf,
    stretch: Range<u64>,
    reads: Arc<AtomicUsize>,
}

impl Files for Lagging {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn File>, FileError> {
        let file = self.disk.open(path, access)?;
        if path != self.file {
            return Ok(file);
        }
        let (stretch, reads) = (self.stretch.clone(), self.reads.clone());
        Ok(Arc::new(LaggingFile { file, stretch, reads }))
    }

    fn list(&self, dir: &Path) -> Result<Vec<Entry>, FileError> {
        self.disk.list(dir)
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>, FileError> {
        self.disk.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.disk.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> Result<(), FileError> {
        self.disk.unlink(path)
    }

    fn create_dir(&self, dir: &Path) -> Result<(), FileError> {
        self.disk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), FileError> {
        self.disk.sync_dir(dir)
    }

    fn space(&self, dir: &Path) -> Result<Space, FileError> {
        self.disk.space(dir)
    }

    fn lock(&self, dir: &Path) -> Result<Box<dyn DirLock>, FileError> {
        self.disk.lock(dir)
    }
}

#[derive(Debug)]
struct LaggingFile {
    file: Arc<dyn File>,
    stretch: Range<u64>,
    reads: Arc<AtomicUsize>,
}

impl File for LaggingFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        let read = self.file.read_at(buf, offset)?;
        let end = offset + read as u64;
        let hidden = self.stretch.start.max(offset)..self.stretch.end.min(end);
        let one_less = |left: usize| left.checked_sub(1);
        if !hidden.is_empty()
            && self.reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
        {
            buf[(hidden.start - offset) as usize..(hidden.end - offset) as usize].fill(0);
        }
        Ok(read)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, FileError> {
        self.file.write_at(data, offset)
    }

    fn write_vectored_at(
        &self,
        pieces: &[std::io::IoSlice<'_>],
        offset: u64,
    ) -> Result<usize, FileError> {
        self.file.write_vectored_at(pieces, offset)
    }

    fn sync_data(&self) -> Result<(), FileError> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> Result<(), FileError> {
        self.file.sync_all()
    }

    fn size(&self) -> Result<u64, FileError> {
        self.file.size()
    }

    fn allocate(&self, len: u64) -> Result<(), FileError> {
        self.file.allocate(len)
    }

    fn truncate(&self, len: u64) -> Result<(), FileError> {
        self.file.truncate(len)
    }

    fn evict(&self) {
        self.file.evict();
    }
}

/// Verifies a log in which the bodies of the frame at `place` read as zeros for so many
/// reads.
fn verify_while(rig: &Rig, place: &Place, reads: usize) -> Report {
    let bodies = place.offset + 96 + u64::from(place.header.meta_len);
    let lagging = Lagging {
        disk: rig.disk.shared(),
        file: place.file.clone(),
        stretch: bodies + 20..place.end(),
        reads: Arc::new(AtomicUsize::new(reads)),
    };
    verify(Arc::new(lagging), Path::new(DIR), STORE, |_| ()).expect("it can be listed")
}

/// A log of some frames, without a mark behind the last.
fn log() -> Rig {
    let rig = Rig::new(3);
    let mut script = Script::new(3, 300);
    let (mut log, _) = rig.open();
    for _ in 0..6 {
        write(&mut log, &mut script, 1);
    }
    drop(log);
    rig
}

#[test]
fn a_frame_whose_bodies_are_still_on_their_way_is_no_damage() {
    let rig = log();
    let last = rig.units().pop().expect("it has frames");
    assert!(last.header.body_len > 60, "another seed is needed: {:?}", last.header);
    for reads in 0..10 {
        let report = verify_while(&rig, &last, reads);
        assert!(report.is_clean(), "after {reads} reads: {:?}", report.findings);
        let has_come = report.last == last.header.frame_no;
        assert_eq!(report.torn.is_none(), has_come, "after {reads} reads: {report:?}");
    }
    // It never comes: nothing says that it was durable, and the next opening cuts it.
    let report = verify_while(&rig, &last, usize::MAX);
    let at = (last.file.display().to_string(), last.offset);
    assert_eq!((report.is_clean(), report.torn), (true, Some(at)));
}

#[test]
fn bodies_that_were_durable_and_are_gone_are_damage() {
    let rig = log();
    let units = rig.units();
    let place = &units[units.len() - 3];
    assert!(place.header.body_len > 60, "another seed is needed: {:?}", place.header);
    let report = verify_while(&rig, place, usize::MAX);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert!(report.findings[0].offset > place.offset && report.findings[0].offset < place.end());
    assert_eq!(report.last, units[units.len() - 1].header.frame_no, "it goes on behind it");
    assert!(report.torn.is_none());
    // One that comes late is none, whatever stands behind it.
    for reads in 0..4 {
        let report = verify_while(&rig, place, reads);
        let first_two = report.findings.iter().all(|_| reads > 2);
        assert!(first_two, "after {reads} reads: {:?}", report.findings);
    }
}
