//! Opening a machine: the newest snapshot, then the log behind it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_core::UnixMs;
use posthouse_core::chunk::{ChunkId, ChunkKind, Miss};
use posthouse_core::index::IndexChunk;
use posthouse_core::machine::Machine;
use posthouse_core::page::{Located, PageId};
use posthouse_core::record::READER;
use posthouse_core::schedule::Run;
use posthouse_frame::{BodyRef, FrameNo, Kind};
use posthouse_log::files::Files;
use posthouse_log::local::{Examined, LocalLog, LocalOptions, Recovery};
use posthouse_log::{Log, LogReader, Part};

use super::chunks::ChunkFiles;
use super::manifest::Manifest;
use super::snapshot::{ReadBodies, Snapshots};
use super::{META_SHARD, Store, StoreError};

/// A machine as it was when the process ended, with the log it goes on in.
#[derive(Debug)]
pub struct Opened<M> {
    /// The machine.
    pub machine: M,
    /// Its log.
    pub log: LocalLog,
    /// What opening the log found.
    pub recovery: Recovery,
    /// Its chunk files.
    pub chunks: ChunkFiles,
    /// Who takes its next snapshot.
    pub snapshots: Snapshots,
    /// The clocks when it last ran: wall and lease, milliseconds.
    pub clocks: (u64, u64),
    /// What replay took.
    pub replayed: Replayed,
}

/// What replay did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replayed {
    /// Frames that were replayed.
    pub frames: u64,
    /// Bytes of their meta sections.
    pub meta_bytes: u64,
    /// Bytes of the frames, bodies included.
    pub log_bytes: u64,
    /// How long reading the snapshot and replay took together.
    pub took: Duration,
}

/// A machine that may have chunks besides its pages.
pub trait Indexed {
    /// Takes a chunk of the index back, oldest first.
    fn restore_chunk(&mut self, chunk: IndexChunk);
    /// Takes a run of the schedule back, oldest first.
    fn restore_run(&mut self, run: Run);
    /// All runs are back: everything that is scheduled is due at `from` or later.
    fn runs_restored(&mut self, from: UnixMs);
}

impl Indexed for posthouse_core::queue::Shard {
    fn restore_chunk(&mut self, chunk: IndexChunk) {
        self.index_mut().restore(chunk);
    }

    fn restore_run(&mut self, run: Run) {
        self.schedule_mut().restore_run(run);
    }

    fn runs_restored(&mut self, from: UnixMs) {
        self.schedule_mut().begin_at(from);
    }
}

impl Indexed for posthouse_core::catalog::Catalog {
    fn restore_chunk(&mut self, _chunk: IndexChunk) {}

    fn restore_run(&mut self, _run: Run) {}

    fn runs_restored(&mut self, _from: UnixMs) {}
}

/// A machine that was read, and can go on. Nothing in its directory has been changed.
#[derive(Debug)]
pub struct Found<M> {
    /// The machine, as it was when the process ended.
    pub machine: M,
    /// What replay took.
    pub replayed: Replayed,
    store: (u64, u16),
    files: Arc<dyn Files>,
    dir: PathBuf,
    log: Examined,
    chunks: ChunkFiles,
    manifest: Manifest,
    older_chunks: BTreeSet<ChunkId>,
    /// Whether one of the manifests does not hold.
    has_damage: bool,
}

/// Reads the machine that is kept in `dir`; `machine` is one in which nothing has
/// happened. `options` are the log's; what depends on the snapshot is set here.
///
/// # Errors
/// See [`StoreError`].
pub fn find<M: Machine + Indexed>(
    store: &Store,
    dir: &Path,
    mut machine: M,
    options: LocalOptions,
) -> Result<Found<M>, StoreError> {
    let began = Instant::now();
    let files = store.files.clone();
    let shard = options.shard;
    let chunks = ChunkFiles::new(files.clone(), &dir.join("chunks"), store.number);
    let Manifests { newest, older, has_damage } = manifests(store, dir, shard)?;
    let manifest = match (newest, &older) {
        (Ok(manifest), _) => manifest,
        (Err(newer @ StoreError::Newer { .. }), _) => return Err(newer),
        (Err(damage), Some(older)) => {
            tracing::error!("{damage}. Going on from the snapshot before, which is whole");
            older.clone()
        }
        (Err(damage), None) => return Err(damage),
    };
    let is_older = older.as_ref().is_some_and(|o| o.generation == manifest.generation);
    restore(&mut machine, &manifest, &chunks)?;
    machine.restored();
    let options = LocalOptions {
        known_durable: manifest.frame,
        // Segments that the newer snapshot did not need may have gone after it.
        must_have: (!is_older).then(|| manifest.segments.clone()),
        ..options
    };
    let log = LocalLog::examine(files.clone(), &dir.join("log"), options)?;
    let mut replayed = replay(&mut machine, &log.reader(), manifest.frame, dir)?;
    replayed.took = began.elapsed();
    Ok(Found {
        machine,
        replayed,
        store: (store.number, shard),
        files,
        dir: dir.to_owned(),
        log,
        chunks,
        manifest,
        older_chunks: older.as_ref().map(Manifest::chunks).unwrap_or_default(),
        has_damage,
    })
}

impl<M> Found<M> {
    /// Takes the machine over: removes what a crash has left, and begins an epoch of its
    /// log. Until all machines of a store are found none begins, so that a store that
    /// cannot be used is left as it is.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn begin(self) -> Result<Opened<M>, StoreError> {
        let Found { machine, mut replayed, store, files, dir, log, chunks, .. } = self;
        let (mut manifest, mut older_chunks) = (self.manifest, self.older_chunks);
        let began = Instant::now();
        // What a manifest names that does not hold is not known.
        if !self.has_damage {
            remove_leftovers(&chunks, &manifest, &older_chunks)?;
        }
        let (log, recovery) = log.begin()?;
        if manifest.frame == FrameNo::ZERO && replayed.frames == 0 {
            // From now on it is known that there is a log, and which file holds it.
            older_chunks = manifest.chunks();
            manifest = Manifest {
                generation: manifest.generation + 1,
                frame: log.tail(),
                epoch: recovery.epoch,
                segments: log.reader().segments().iter().map(|segment| segment.no).collect(),
                ..manifest
            };
            manifest.write(&*files, &dir, store.0, store.1)?;
        }
        replayed.took += began.elapsed();
        let clocks =
            (recovery.wall_ms.max(manifest.wall_ms), recovery.lease_ms.max(manifest.lease_ms));
        let reader = log.reader();
        let bodies = Box::new(move |places: &[BodyRef]| reader.bodies(places));
        let kept: (ChunkFiles, ReadBodies) = (chunks.clone(), bodies);
        let snapshots = Snapshots::new(files, dir, store, kept, manifest, older_chunks);
        Ok(Opened { machine, log, recovery, chunks, snapshots, clocks, replayed })
    }
}

struct Manifests {
    newest: Result<Manifest, StoreError>,
    /// The one before, if there is one and it is whole.
    older: Option<Manifest>,
    /// Whether one of them does not hold.
    has_damage: bool,
}

/// The newest manifest, and the one before if it is whole.
fn manifests(store: &Store, dir: &Path, shard: u16) -> Result<Manifests, StoreError> {
    let files = &*store.files;
    let found = match Manifest::list(files, dir) {
        Err(StoreError::File(error)) if error.is_missing() => Vec::new(),
        found => found?,
    };
    let Some((_, newest)) = found.first() else {
        return Err(StoreError::damaged(&dir.join("manifest-*"), "it is missing"));
    };
    let load = |path: &Path| Manifest::load(files, path, store.number, shard);
    let newest = load(newest);
    let mut has_damage = newest.is_err();
    let older = match found.get(1) {
        Some((_, path)) => match load(path) {
            Ok(older) => Some(older),
            // Only needed if the newest is damaged too; then both are reported.
            Err(damage) => {
                tracing::error!("{damage}");
                has_damage = true;
                None
            }
        },
        None => None,
    };
    Ok(Manifests { newest, older, has_damage })
}

/// Makes the directories and the first manifest of every machine of a store in which no
/// log has begun: a new one, or one that was being made when the process ended. In any
/// other a manifest that is missing was there.
///
/// # Errors
/// What the system refused.
pub fn prepare(store: &Store) -> Result<(), StoreError> {
    let files = &*store.files;
    let shards = (0..store.info.shards).map(|shard| (store.shard_dir(shard), shard));
    let machines: Vec<(PathBuf, u16)> =
        std::iter::once((store.meta_dir(), META_SHARD)).chain(shards).collect();
    for (dir, _) in &machines {
        match files.list(&dir.join("log")) {
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into()),
            Ok(entries) if entries.iter().any(|entry| entry.name.starts_with("seg-")) => {
                return Ok(());
            }
            Ok(_) => {}
        }
    }
    for (dir, shard) in &machines {
        files.create_dir(dir)?;
        files.create_dir(&dir.join("log"))?;
        files.create_dir(&dir.join("chunks"))?;
        if Manifest::list(files, dir)?.is_empty() {
            let first = Manifest { generation: 1, next_chunk: 1, ..Manifest::default() };
            first.write(files, dir, store.number, *shard)?;
        }
    }
    files.sync_dir(&store.dir)?;
    Ok(())
}

/// Puts the pages and the index of a snapshot back.
pub(super) fn restore<M: Machine + Indexed>(
    machine: &mut M,
    manifest: &Manifest,
    chunks: &ChunkFiles,
) -> Result<(), StoreError> {
    // What is beside them in their chunks has to hold, too: the snapshot before may need it.
    let current: BTreeSet<Miss> = manifest.pages.iter().map(|(_, at)| block_of(at)).collect();
    for chunk in manifest.pages.by_chunk().into_keys() {
        let blocks = chunks.directory(chunk)?.blocks.len() as u32;
        let others = (0..blocks).map(|block| Miss { chunk, block });
        for other in others.filter(|block| !current.contains(block)) {
            chunks.block(other)?;
        }
    }
    // One by one: all of them together would take nearly as much memory as what is made of
    // them.
    for (id, at) in manifest.pages.iter() {
        let file = chunks.path(at.chunk);
        let is_pages = chunks.directory(at.chunk)?.kind == ChunkKind::Pages;
        let page = chunks.block(block_of(at))?;
        if !is_pages || id.hash(&page) != at.hash {
            let what = "it does not hold the page that the manifest names";
            return Err(not_the_page(&file, id, what));
        }
        machine.restore_page(id, &page).map_err(|e| not_the_page(&file, id, e))?;
    }
    for chunk in &manifest.index {
        let directory = chunks.directory(*chunk)?;
        let chunk = IndexChunk::decode(directory)
            .map_err(|e| StoreError::damaged(&chunks.path(*chunk), e))?;
        machine.restore_chunk(chunk);
    }
    for chunk in &manifest.runs {
        let directory = chunks.directory(*chunk)?;
        let run =
            Run::decode(directory).map_err(|e| StoreError::damaged(&chunks.path(*chunk), e))?;
        machine.restore_run(run);
    }
    machine.runs_restored(UnixMs(manifest.due_from_ms));
    Ok(())
}

/// The block that a page is.
fn block_of(at: Located) -> Miss {
    Miss { chunk: at.chunk, block: at.block }
}

fn not_the_page(file: &Path, id: PageId, what: impl ToString) -> StoreError {
    StoreError::damaged(file, format!("{} ({id:?})", what.to_string()))
}

/// Removes chunk files that no manifest names: they were being written when the
/// process ended, or were about to be removed.
fn remove_leftovers(
    chunks: &ChunkFiles,
    manifest: &Manifest,
    older: &BTreeSet<ChunkId>,
) -> Result<(), StoreError> {
    let needed = manifest.chunks();
    let is_planted = posthouse_frame::planted("index-removed");
    chunks.remove_leftovers(|chunk| {
        let is_lost = is_planted && manifest.index.first() == Some(&chunk);
        !is_lost && (needed.contains(&chunk) || older.contains(&chunk))
    })
}

/// Applies the frames of a log behind frame `after`.
pub(super) fn replay<M: Machine>(
    machine: &mut M,
    reader: &impl LogReader,
    after: FrameNo,
    dir: &Path,
) -> Result<Replayed, StoreError> {
    let mut replayed = Replayed::default();
    for frame in reader.scan(after.next(), Part::Meta)? {
        if posthouse_frame::planted("tail-not-replayed") && replayed.frames > 4 {
            break;
        }
        let frame = frame?;
        let header = frame.header;
        if header.min_reader > READER {
            return Err(StoreError::Newer {
                path: dir.to_owned(),
                found: header.min_reader.into(),
            });
        }
        replayed.log_bytes += u64::from(header.total);
        if header.kind != Kind::Data {
            continue;
        }
        machine.apply(header.frame_no, &frame.meta).map_err(|e| {
            let what = format!("frame {} of the log: {e}", header.frame_no);
            StoreError::damaged(&dir.join("log"), what)
        })?;
        if !posthouse_frame::planted("spans-not-replayed") {
            machine.sealed(header.frame_no, header.content_bytes() as usize);
        }
        replayed.frames += 1;
        replayed.meta_bytes += u64::from(header.meta_len);
    }
    Ok(replayed)
}
