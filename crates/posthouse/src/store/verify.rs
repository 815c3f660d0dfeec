//! Verifying a data directory from end to end: the store's identity, every manifest,
//! every chunk that a manifest names, every log. Reads only, and may run beside the node.
//!
//! What the node does meanwhile is told from damage by looking again: a manifest or a
//! chunk that is no longer there was superseded if there is a newer manifest, and then
//! the look at both begins anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use posthouse_core::chunk::{ChunkError, ChunkId, ChunkKind, Directory, TRAILER_BYTES};
use posthouse_core::index::IndexChunk;
use posthouse_core::page::PageId;
use posthouse_core::schedule::Run;
use posthouse_frame::FrameNo;
use posthouse_log::files::{Access, File, FileError, Files};
use posthouse_log::local;
use serde::Serialize;

use super::chunks::ChunkFiles;
use super::copy;
use super::listing::{LISTING_FILE, Listing};
use super::look::{Part, TRIES, check_is_store, parts};
use super::manifest::Manifest;
use super::{SECRET_FILE, STORE_FILE, StoreError, read_file, read_info, read_secret};

/// Findings beyond this many are counted only.
const FINDINGS_MAX: usize = 1000;

/// Where the checksum stands in the file with the secret.
const SECRET_CHECK_AT: u64 = 32;

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, or the directory if a whole file is not there.
    pub file: String,
    /// Byte offset in it; `None` if it is not about a byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What does not hold.
    pub what: String,
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The directory it is at.
    pub part: &'a str,
    /// Bytes looked at, over all directories.
    pub bytes: u64,
    /// Bytes that there are; those of unused room too.
    pub total: u64,
    /// Findings.
    pub findings: usize,
}

/// What one log and what belongs to it has.
#[derive(Clone, Debug, Default)]
pub struct PartReport {
    /// Its directory, by name.
    pub name: String,
    /// Manifests that hold.
    pub manifests: usize,
    /// Chunks that were verified.
    pub chunks: usize,
    /// Blocks in them.
    pub blocks: u64,
    /// Segments of the log.
    pub segments: usize,
    /// Frames in it that hold.
    pub frames: u64,
    /// The first of them; zero if there is none.
    pub first: FrameNo,
    /// The last of them.
    pub last: FrameNo,
    /// The remains of a write at the log's end that did not get through: file and
    /// offset. No finding: nothing acknowledged is lost, and the next start cuts it.
    pub torn: Option<(String, u64)>,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The catalog, then every shard.
    pub parts: Vec<PartReport>,
    /// What does not hold: the first 1000.
    pub findings: Vec<Finding>,
    /// How many findings there are.
    pub found: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Time taken.
    pub took: Duration,
}

impl Report {
    /// Whether everything holds.
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    /// Bytes read per second.
    pub fn bytes_per_s(&self) -> u64 {
        (self.bytes as f64 / self.took.as_secs_f64().max(1e-9)) as u64
    }

    fn add(&mut self, finding: Finding) {
        self.found += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn find(&mut self, file: &Path, offset: impl Into<Option<u64>>, what: impl ToString) {
        let (file, offset) = (file.display().to_string(), offset.into());
        self.add(Finding { file, offset, what: what.to_string() });
    }

    fn find_io(&mut self, error: FileError) {
        self.find(&error.path, error.offset, format!("cannot {}: {}", error.op, error.what));
    }
}

/// Verifies everything that a checksum covers in the data directory `dir`. Unused room in
/// segments, spares, copies of what was cut, and chunk files that no manifest names (a
/// start removes them) are not looked at: nothing in them can do harm. Of a backup, every
/// file is held against its list, too.
///
/// # Errors
/// [`StoreError::NoStore`] if there is nothing to verify, [`StoreError::Newer`] if this
/// release cannot. A file that cannot be read is a finding.
pub fn verify(
    files: &Arc<dyn Files>,
    dir: &Path,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<Report, StoreError> {
    let began = Instant::now();
    let listing = match Listing::read(&**files, dir) {
        Err(StoreError::Damaged { file, what }) => Err((file, what)),
        read => Ok(read?),
    };
    if let Ok(Some(Listing { complete: false, .. })) = listing {
        let mut report = Report::default();
        let what = "the copy was cut short, and is not whole: make another";
        report.find(&dir.join(LISTING_FILE), None, what);
        return Ok(report);
    }
    let mut report = verify_store(files, dir, on_progress)?;
    match listing {
        Ok(Some(listing)) => listed(&**files, dir, &listing, &mut report),
        Ok(None) => {}
        Err((file, what)) => report.find(&file, None, what),
    }
    report.took = began.elapsed();
    Ok(report)
}

/// Holds every file of a backup against its list.
fn listed(files: &dyn Files, dir: &Path, listing: &Listing, report: &mut Report) {
    for listed in &listing.files {
        let path = dir.join(&listed.path);
        match copy::sum(files, &path) {
            Ok((bytes, crc32c)) => {
                report.bytes += bytes;
                if (bytes, &crc32c) != (listed.bytes, &listed.crc32c) {
                    let what = format!(
                        "it has {bytes} bytes with the checksum {crc32c}, and {LISTING_FILE} says \
                         {} bytes with {}",
                        listed.bytes, listed.crc32c
                    );
                    report.find(&path, None, what);
                }
            }
            Err(error) => report.find_io(error),
        }
    }
}

/// The same without the list of a backup.
pub(super) fn verify_store(
    files: &Arc<dyn Files>,
    dir: &Path,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<Report, StoreError> {
    let began = Instant::now();
    check_is_store(&**files, dir)?;
    let mut report = Report::default();
    let identity = identity(&**files, dir, &mut report)?;
    let Some((store, shards)) = identity else {
        let what = "without the store's number nothing else can be verified";
        report.find(&dir.join(STORE_FILE), None, what);
        report.took = began.elapsed();
        return Ok(report);
    };
    let parts = parts(dir, shards);
    let total = parts.iter().map(|part| bytes_in(&**files, part)).sum();
    let mut verifier = Verifier { files, store, total, report, on_progress };
    let was_started = parts.iter().any(|part| files.list(&part.dir).is_ok());
    for part in &parts {
        match files.list(&part.dir) {
            Ok(_) => verifier.part(part)?,
            // A node that never got as far as that.
            Err(error) if error.is_missing() && !was_started => {}
            Err(error) if error.is_missing() => {
                verifier.report.find(&part.dir, None, "the directory is missing");
            }
            Err(error) => verifier.report.find_io(error),
        }
    }
    let mut report = verifier.report;
    report.took = began.elapsed();
    Ok(report)
}

/// Verifies `store.json` and `secret`. Returns the number of the store and how many
/// shards it has, if anything says so.
fn identity(
    files: &dyn Files,
    dir: &Path,
    report: &mut Report,
) -> Result<Option<(u64, u16)>, StoreError> {
    let (store_file, secret_file) = (dir.join(STORE_FILE), dir.join(SECRET_FILE));
    for file in [&store_file, &secret_file] {
        report.bytes += read_file(files, file).map_or(0, |bytes| bytes.len() as u64);
    }
    let info = match read_info(files, dir) {
        Err(newer @ StoreError::Newer { .. }) => return Err(newer),
        Err(StoreError::File(error)) => {
            report.find_io(error);
            None
        }
        Err(StoreError::Damaged { what, .. }) => {
            report.find(&store_file, 0, what);
            None
        }
        other => other.ok(),
    };
    match read_secret(files, dir) {
        Err(StoreError::File(error)) => report.find_io(error),
        // With store.json gone this has been said.
        Err(StoreError::Damaged { what, .. }) if info.is_some() => {
            report.find(&secret_file, SECRET_CHECK_AT, what);
        }
        _ => {}
    }
    if let Some((number, shards)) = info.and_then(|info| Some((info.number()?, info.shards))) {
        return Ok(Some((number, shards)));
    }
    // What can be verified is verified: the directories say how many there are, and any
    // manifest whose store they are.
    let is_shard = |name: &str| name.starts_with("shard-");
    let shards = files.list(dir)?.iter().filter(|e| e.is_dir && is_shard(&e.name)).count() as u16;
    let all = parts(dir, shards);
    let mut manifests = all
        .iter()
        .flat_map(|part| Manifest::list_if_there(files, &part.dir).unwrap_or_default().into_iter());
    let number = manifests
        .find_map(|(_, path)| Manifest::store_of(&read_file(files, &path).unwrap_or_default()));
    Ok(number.map(|number| (number, shards)))
}

/// Bytes of everything in a part that may be looked at.
fn bytes_in(files: &dyn Files, part: &Part) -> u64 {
    let sum = |dir: PathBuf, prefix: &str| -> u64 {
        let entries = files.list(&dir).unwrap_or_default();
        entries.iter().filter(|e| e.name.starts_with(prefix)).map(|e| e.len).sum()
    };
    sum(part.log_dir(), "seg-") + sum(part.chunk_dir(), "c-") + sum(part.dir.clone(), "manifest-")
}

struct Verifier<'a, F> {
    files: &'a Arc<dyn Files>,
    store: u64,
    total: u64,
    report: Report,
    on_progress: F,
}

/// What manifests say of a chunk: the pages they look for in it, by block and hash, and
/// whether it is one of the index, or a run of the schedule.
#[derive(Debug, Default)]
struct Wanted {
    is_index: bool,
    is_run: bool,
    pages: Vec<(u32, PageId, u64)>,
}

/// A file went away: the node has taken a snapshot meanwhile, or it is missing.
struct Gone(PathBuf);

impl<F: FnMut(Progress<'_>)> Verifier<'_, F> {
    fn part(&mut self, part: &Part) -> Result<(), StoreError> {
        let mut found = PartReport { name: part.name.clone(), ..PartReport::default() };
        let newest = self.snapshots(part, &mut found)?;
        self.log(part, newest.as_ref(), &mut found);
        self.report.parts.push(found);
        Ok(())
    }

    fn tell(&mut self, part: &str, more: u64) {
        let (bytes, total) = (self.report.bytes + more, self.total);
        (self.on_progress)(Progress { part, bytes, total, findings: self.report.found });
    }

    /// Verifies the manifests, and the chunks and segments that they name. Returns the
    /// newest that holds.
    fn snapshots(
        &mut self,
        part: &Part,
        found: &mut PartReport,
    ) -> Result<Option<Manifest>, StoreError> {
        for attempt in 1.. {
            let before = self.report.clone();
            let generation = Manifest::newest_generation(&**self.files, &part.dir)?;
            let gone = match self.snapshots_once(part, found)? {
                Ok(newest) => return Ok(newest),
                Err(gone) => gone,
            };
            let now = Manifest::newest_generation(&**self.files, &part.dir)?;
            if attempt < TRIES && now != generation {
                let bytes = self.report.bytes;
                self.report = Report { bytes, ..before };
                continue;
            }
            self.report.find(&gone.0, None, "the file is missing");
            break;
        }
        Ok(None)
    }

    fn snapshots_once(
        &mut self,
        part: &Part,
        found: &mut PartReport,
    ) -> Result<Result<Option<Manifest>, Gone>, StoreError> {
        (found.manifests, found.chunks, found.blocks) = (0, 0, 0);
        let listed = Manifest::list_if_there(&**self.files, &part.dir)?;
        let mut newest: Option<Manifest> = None;
        let mut wanted: BTreeMap<ChunkId, Wanted> = BTreeMap::new();
        // Older ones than two are on their way out.
        for (_, path) in listed.iter().take(2) {
            let manifest = match Manifest::load(&**self.files, path, self.store, part.shard) {
                Ok(manifest) => manifest,
                Err(newer @ StoreError::Newer { .. }) => return Err(newer),
                Err(StoreError::File(error)) if error.is_missing() => {
                    return Ok(Err(Gone(path.clone())));
                }
                Err(StoreError::File(error)) => {
                    self.report.find_io(error);
                    continue;
                }
                Err(error) => {
                    self.damaged_manifest(path, error);
                    continue;
                }
            };
            found.manifests += 1;
            self.report.bytes += self.files.open(path, Access::Read)?.size()?;
            for chunk in &manifest.index {
                wanted.entry(*chunk).or_default().is_index = true;
            }
            for chunk in &manifest.runs {
                wanted.entry(*chunk).or_default().is_run = true;
            }
            for (id, at) in manifest.pages.iter() {
                wanted.entry(at.chunk).or_default().pages.push((at.block, id, at.hash));
            }
            newest = newest.or(Some(manifest));
        }
        if listed.is_empty() && has_segments(&**self.files, part) {
            let what = "there is a log, but no manifest beside it";
            self.report.find(&part.dir.join("manifest-*"), None, what);
        }
        let chunks = ChunkFiles::new(self.files.clone(), &part.chunk_dir(), self.store);
        for (id, wanted) in wanted {
            let path = chunks.path(id);
            let before = self.report.found;
            match self.chunk(&path, id, wanted, found) {
                Ok(()) => {}
                Err(error) if error.is_missing() => return Ok(Err(Gone(path))),
                Err(error) => self.report.find_io(error),
            }
            if self.report.found > before && self.is_gone(&path) {
                // It was being removed while it was read: that is no damage.
                return Ok(Err(Gone(path)));
            }
            self.tell(&part.name, 0);
        }
        let holds_newest = newest.as_ref().map(|m| m.generation) == listed.first().map(|l| l.0);
        if let Some(manifest) = newest.as_ref().filter(|_| holds_newest) {
            for segment in &manifest.segments {
                let path = part.log_dir().join(format!("seg-{:020}.log", segment.0));
                if self.is_gone(&path) {
                    return Ok(Err(Gone(path)));
                }
            }
        }
        Ok(Ok(newest))
    }

    fn is_gone(&self, path: &Path) -> bool {
        self.files.open(path, Access::Read).is_err_and(|error| error.is_missing())
    }

    fn damaged_manifest(&mut self, path: &Path, error: StoreError) {
        let what = match error {
            StoreError::Damaged { what, .. } => what,
            other => other.to_string(),
        };
        // One checksum for the whole, at its end.
        let len = read_file(&**self.files, path).map_or(0, |bytes| bytes.len() as u64);
        self.report.bytes += len;
        self.report.find(path, len.saturating_sub(4), what);
    }

    fn chunk(
        &mut self,
        path: &Path,
        id: ChunkId,
        wanted: Wanted,
        found: &mut PartReport,
    ) -> Result<(), FileError> {
        let file = self.files.open(path, Access::Read)?;
        let len = file.size()?;
        let Some(directory) = self.directory(path, &*file, len, id)? else { return Ok(()) };
        self.report.bytes += len;
        found.chunks += 1;
        let mut pages: BTreeMap<u32, Vec<(PageId, u64)>> = BTreeMap::new();
        for (block, page, hash) in wanted.pages {
            pages.entry(block).or_default().push((page, hash));
        }
        for (number, block) in (0u32..).zip(&directory.blocks) {
            let mut data = vec![0; block.len as usize];
            file.read_exact_at(&mut data, block.offset)?;
            found.blocks += 1;
            if let Err(error) = directory.verify(number, &data) {
                self.report.find(path, block.offset, error);
                continue;
            }
            let is_page = |(page, hash): &(PageId, u64)| {
                directory.kind == ChunkKind::Pages && page.hash(&data) == *hash
            };
            if !pages.remove(&number).unwrap_or_default().iter().all(is_page) {
                let what = format!("block {number} is not the page that the manifest names");
                self.report.find(path, block.offset, what);
            }
        }
        if let Some((number, _)) = pages.first_key_value() {
            let what = format!("it has no block {number}, which the manifest names");
            self.report.find(path, None, what);
        }
        let directory = Arc::new(directory);
        let is_index =
            || directory.kind == ChunkKind::Index && IndexChunk::decode(directory.clone()).is_ok();
        if wanted.is_index && !is_index() {
            self.report.find(path, None, "it is no chunk of the index");
        }
        if wanted.is_run && Run::decode(directory).is_err() {
            self.report.find(path, None, "it is no run of the schedule");
        }
        Ok(())
    }

    /// The directory of a chunk; `None` if it does not hold, which has been noted.
    fn directory(
        &mut self,
        path: &Path,
        file: &dyn File,
        len: u64,
        id: ChunkId,
    ) -> Result<Option<Directory>, FileError> {
        let Some(trailer_at) = len.checked_sub(TRAILER_BYTES as u64) else {
            self.report.find(path, 0, ChunkError::Short("no trailer"));
            return Ok(None);
        };
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, trailer_at)?;
        let range = match Directory::footer_range(&trailer, len, self.store, id) {
            Ok(range) => range,
            Err(error) => {
                self.report.find(path, trailer_at, error);
                return Ok(None);
            }
        };
        let mut footer = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut footer, range.start)?;
        let footer = Bytes::from(footer);
        match Directory::decode(&footer, &trailer, range.start, self.store, id) {
            Ok(directory) => Ok(Some(directory)),
            Err(error) => {
                self.report.find(path, range.start, error);
                Ok(None)
            }
        }
    }

    fn log(&mut self, part: &Part, newest: Option<&Manifest>, found: &mut PartReport) {
        let dir = part.log_dir();
        let files = self.files.clone();
        let (bytes, total, findings) = (self.report.bytes, self.total, self.report.found);
        let on_progress = &mut self.on_progress;
        let told = local::verify(files, &dir, self.store, |progress| {
            let (bytes, findings) = (bytes + progress.bytes, findings + progress.findings);
            on_progress(Progress { part: &part.name, bytes, total, findings });
        });
        let log = match told {
            Ok(log) => log,
            Err(error) => return self.report.find_io(error),
        };
        let is_clean = log.is_clean();
        self.report.bytes += log.total.bytes;
        self.report.found += log.total.findings - log.findings.len();
        for local::Finding { file, offset, what } in log.findings {
            self.report.add(Finding { file, offset: Some(offset), what });
        }
        (found.segments, found.frames) = (log.total.segments, log.total.frames);
        (found.first, found.last, found.torn) = (log.first, log.last, log.torn);
        let durable = newest.map_or(FrameNo::ZERO, |manifest| manifest.frame);
        if is_clean && log.last < durable {
            let what = format!(
                "the log ends with frame {}, but the snapshot stands behind frame {durable}",
                log.last
            );
            self.report.find(&dir, None, what);
        }
    }
}

fn has_segments(files: &dyn Files, part: &Part) -> bool {
    let entries = files.list(&part.log_dir()).unwrap_or_default();
    entries.iter().any(|entry| entry.name.starts_with("seg-"))
}
