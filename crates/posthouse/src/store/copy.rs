//! Copying a store into an empty directory, as it was at one point: of each log, what a
//! manifest needs, and the frames behind it up to one that is durable. What is copied must
//! not be freed meanwhile; who owns the store sees to that.
//!
//! The order on the disk: `backup.json`, which says that the copy is not whole; manifests,
//! chunks and segments, each synced; `secret` and `store.json`; then it is verified; then
//! `backup.json` again, with all there is, or, of a plain copy, away with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use posthouse_frame::{Crc, FrameNo};
use posthouse_log::files::{Access, DirLock, FileError, Files, PIECE_BYTES};
use posthouse_log::local::{Extent, LocalLog, LocalOptions, extents};

use super::chunks::ChunkFiles;
use super::listing::{LISTING_FILE, ListedFile, Listing};
use super::look::{Look, Part, TRIES};
use super::manifest::Manifest;
use super::verify::{self, Finding};
use super::{SECRET_FILE, STORE_FILE, StoreError};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// As far as one log goes into a copy.
#[derive(Clone, Debug)]
pub struct Point {
    /// Where it is.
    pub part: Part,
    /// The snapshot that the copy begins with.
    pub manifest: Manifest,
    /// The last frame that is copied: durable, and not before the snapshot's.
    pub upto: FrameNo,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes copied, or verified.
    pub bytes: u64,
    /// Bytes to be copied, or to be verified.
    pub total: u64,
    /// Whether it is being verified.
    pub is_verifying: bool,
}

/// What came of a copy.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Files, without `backup.json`.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// What does not hold in it: it does not in the store either. The first 1000.
    pub findings: Vec<Finding>,
    /// How many findings there are.
    pub found: usize,
}

/// Called for every piece; with an error the copy ends.
pub type Step<'a> = &'a mut dyn FnMut(Progress) -> Result<(), StoreError>;

/// The newest manifest of a part, which must hold; also beside the node.
///
/// # Errors
/// [`StoreError::Damaged`] if it does not, or if there is none.
pub fn newest_manifest(look: &Look, part: &Part) -> Result<Manifest, StoreError> {
    let mut tries = 1;
    loop {
        let listed = Manifest::list(&*look.files, &part.dir)?;
        let Some((_, newest)) = listed.first() else {
            return Err(StoreError::damaged(&part.dir.join("manifest-*"), "it is missing"));
        };
        match Manifest::load(&*look.files, newest, look.number, part.shard) {
            Err(StoreError::File(error)) if error.is_missing() && tries < TRIES => tries += 1,
            loaded => return loaded,
        }
    }
}

/// A store that no node runs on, as far as its logs go. Nothing in it can change as long
/// as this is there.
#[derive(Debug)]
pub struct Stopped {
    /// What it is.
    pub look: Look,
    /// As far as each log goes.
    pub points: Vec<Point>,
    _locks: Vec<Box<dyn DirLock>>,
}

impl Stopped {
    /// Locks the data directory `dir`, and finds the ends of its logs as a start would.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a node uses it; else see [`StoreError`].
    pub fn open(files: Arc<dyn Files>, dir: &Path) -> Result<Stopped, StoreError> {
        let look = Look::new(files.clone(), dir)?;
        let lock = files.lock(dir).map_err(|error| match error.is_locked() {
            true => StoreError::Locked { dir: dir.to_owned() },
            false => error.into(),
        })?;
        if let Some(listing) = Listing::read(&*files, dir)? {
            listing.check(&*files, dir)?;
        }
        let mut points = Vec::new();
        for part in look.parts() {
            let manifest = newest_manifest(&look, &part)?;
            let options = LocalOptions {
                known_durable: manifest.frame,
                must_have: Some(manifest.segments.clone()),
                ..LocalOptions::new(look.number, part.shard)
            };
            let upto = LocalLog::examine(files.clone(), &part.log_dir(), options)?.last();
            points.push(Point { part, manifest, upto });
        }
        Ok(Stopped { look, points, _locks: vec![lock] })
    }
}

/// A copy in the making.
pub struct Copy<'a> {
    look: &'a Look,
    to: PathBuf,
    listing: Listing,
    step: Step<'a>,
    progress: Progress,
    _lock: Box<dyn DirLock>,
}

impl std::fmt::Debug for Copy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy").field("to", &self.to).finish_non_exhaustive()
    }
}

impl<'a> Copy<'a> {
    /// Begins a copy of a store in `to`, which is empty or not there, at time `now_ms`.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`]; else what the system refused.
    pub fn begin(
        look: &'a Look,
        to: &Path,
        now_ms: u64,
        step: Step<'a>,
    ) -> Result<Copy<'a>, StoreError> {
        let files = &*look.files;
        files.create_dir(to)?;
        if let Some(parent) = to.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            files.sync_dir(parent)?;
        }
        let lock = files.lock(to).map_err(|error| match error.is_locked() {
            true => StoreError::Locked { dir: to.to_owned() },
            false => error.into(),
        })?;
        if files.list(to)?.iter().any(|entry| entry.name != "lost+found") {
            if Listing::read(files, to).is_ok_and(|found| found.is_some_and(|l| !l.complete)) {
                return Err(StoreError::Unfinished { dir: to.to_owned() });
            }
            return Err(StoreError::NotEmpty { dir: to.to_owned() });
        }
        let listing = Listing::begin(look.number, now_ms);
        listing.write(files, to)?;
        let progress = Progress { bytes: 0, total: 0, is_verifying: false };
        Ok(Copy { look, to: to.to_owned(), listing, step, progress, _lock: lock })
    }

    /// Copies everything that the store has up to `points`. When it is done, what was
    /// copied from may change again. If it fails, files that were copied are removed, so
    /// that they do not fill the disk; that the copy is not whole stays written down.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn parts(&mut self, points: &[Point]) -> Result<(), StoreError> {
        let copied = self.try_parts(points);
        if copied.is_err() {
            for listed in &self.listing.files {
                // The failure is what counts; this only gives room back.
                let _ = self.look.files.unlink(&self.to.join(&listed.path));
            }
        }
        copied
    }

    fn try_parts(&mut self, points: &[Point]) -> Result<(), StoreError> {
        let files = self.look.files.clone();
        let mut plans = Vec::new();
        for point in points {
            let dir = point.part.log_dir();
            let segments = &point.manifest.segments;
            let segments = extents(&*files, &dir, self.look.number, segments, point.upto)?;
            let chunks = ChunkFiles::new(files.clone(), &point.part.chunk_dir(), self.look.number);
            let chunks: Vec<PathBuf> =
                point.manifest.chunks().into_iter().map(|id| chunks.path(id)).collect();
            self.progress.total += segments.iter().map(|segment| segment.used).sum::<u64>();
            for chunk in &chunks {
                self.progress.total += files.open(chunk, Access::Read)?.size()?;
            }
            plans.push((point, segments, chunks));
        }
        let room = files.space(&self.to)?.available;
        if room < self.progress.total {
            let (dir, needed) = (self.to.clone(), self.progress.total);
            return Err(StoreError::NoRoom { dir, room, needed });
        }
        for (point, segments, chunks) in plans {
            self.part(point, &segments, &chunks)?;
        }
        Ok(())
    }

    fn part(
        &mut self,
        point: &Point,
        segments: &[Extent],
        chunks: &[PathBuf],
    ) -> Result<(), StoreError> {
        let files = self.look.files.clone();
        let Point { part, manifest, .. } = point;
        let dir = self.to.join(&part.name);
        for dir in [&dir, &dir.join("chunks"), &dir.join("log")] {
            files.create_dir(dir)?;
        }
        for chunk in chunks {
            let name = chunk.file_name().unwrap_or_default().to_string_lossy();
            let bytes = files.open(chunk, Access::Read)?.size()?;
            self.file(chunk, &format!("{}/chunks/{name}", part.name), bytes, bytes)?;
        }
        for Extent { name, used, bytes } in segments {
            let from = part.log_dir().join(name);
            self.file(&from, &format!("{}/log/{name}", part.name), *used, *bytes)?;
        }
        files.sync_dir(&dir.join("chunks"))?;
        files.sync_dir(&dir.join("log"))?;
        manifest.write(&*files, &dir, self.look.number, part.shard)?;
        self.list(&format!("{}/{}", part.name, Manifest::file_name(manifest.generation)))
    }

    /// Copies the first `used` bytes of a file to `path` in the copy, which gets `bytes`
    /// bytes, the rest of them zero.
    fn file(&mut self, from: &Path, path: &str, used: u64, bytes: u64) -> Result<(), StoreError> {
        let files = &self.look.files;
        let (source, target) = (files.open(from, Access::Read)?, self.to.join(path));
        let target = files.create(&target)?;
        let listed = ListedFile { path: path.into(), bytes, crc32c: String::new() };
        self.listing.files.push(listed);
        if bytes > used {
            target.allocate(bytes)?;
        }
        let (mut crc, mut at) = (Crc::default(), 0);
        let mut piece = vec![0; PIECE_BYTES.min(used as usize)];
        while at < used {
            let piece = &mut piece[..(PIECE_BYTES as u64).min(used - at) as usize];
            source.read_exact_at(piece, at)?;
            crc.update(piece);
            target.write_all_at(piece, at)?;
            target.sync_data()?;
            at += piece.len() as u64;
            self.progress.bytes += piece.len() as u64;
            (self.step)(self.progress)?;
        }
        target.sync_all()?;
        while at < bytes {
            let zeros = &ZEROS[..(ZEROS.len() as u64).min(bytes - at) as usize];
            crc.update(zeros);
            at += zeros.len() as u64;
        }
        if let Some(listed) = self.listing.files.last_mut() {
            listed.crc32c = format!("{:08x}", crc.value());
        }
        Ok(())
    }

    /// Lists a small file that was written otherwise.
    fn list(&mut self, path: &str) -> Result<(), StoreError> {
        let content = super::read_file(&*self.look.files, &self.to.join(path))?;
        let (bytes, crc) = (content.len() as u64, posthouse_frame::crc32c(&content));
        let (path, crc32c) = (path.to_owned(), format!("{crc:08x}"));
        self.listing.files.push(ListedFile { path, bytes, crc32c });
        Ok(())
    }

    /// Everything is there: verifies it, and says so. A `backup` keeps its list; any other
    /// copy becomes a data directory like the one it was made from.
    ///
    /// # Errors
    /// See [`StoreError`]. What does not hold is no error, but a finding.
    pub fn finish(mut self, backup: bool) -> Result<Copied, StoreError> {
        let files = self.look.files.clone();
        for name in [SECRET_FILE, STORE_FILE] {
            let content = super::read_file(&*files, &self.look.dir.join(name))?;
            super::write_file(&*files, &self.to, name, &content)?;
            self.list(name)?;
        }
        let (step, mut stopped) = (&mut self.step, Ok(()));
        let report = verify::verify_store(&files, &self.to, |progress| {
            let verify::Progress { bytes, total, .. } = progress;
            if stopped.is_ok() {
                stopped = step(Progress { bytes, total, is_verifying: true });
            }
        })?;
        stopped?;
        let Copy { mut listing, to, .. } = self;
        (listing.complete, listing.findings) = (true, report.found as u64);
        match backup {
            true => listing.write(&*files, &to)?,
            false => {
                files.unlink(&to.join(LISTING_FILE))?;
                files.sync_dir(&to)?;
            }
        }
        Ok(Copied {
            files: listing.files.len(),
            bytes: listing.files.iter().map(|file| file.bytes).sum(),
            findings: report.findings,
            found: report.found,
        })
    }
}

/// CRC-32C of a whole file, 8 hexadecimal digits, and its length.
///
/// # Errors
/// What the system refused.
pub(super) fn sum(files: &dyn Files, path: &Path) -> Result<(u64, String), FileError> {
    let file = files.open(path, Access::Read)?;
    let bytes = file.size()?;
    let (mut crc, mut at) = (Crc::default(), 0);
    let mut piece = vec![0; PIECE_BYTES.min(bytes as usize)];
    while at < bytes {
        let piece = &mut piece[..(PIECE_BYTES as u64).min(bytes - at) as usize];
        file.read_exact_at(piece, at)?;
        crc.update(piece);
        at += piece.len() as u64;
    }
    Ok((bytes, format!("{:08x}", crc.value())))
}
