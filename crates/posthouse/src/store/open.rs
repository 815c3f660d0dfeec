//! Opening a machine: the newest snapshot, then the log behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use posthouse_core::chunk::{ChunkId, ChunkKind};
use posthouse_core::index::IndexChunk;
use posthouse_core::machine::Machine;
use posthouse_core::page::PageId;
use posthouse_core::record::READER;
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::local::{LocalLog, LocalOptions, Recovery};
use posthouse_log::{Log, LogReader, Part};

use super::chunks::ChunkFiles;
use super::manifest::Manifest;
use super::snapshot::Snapshots;
use super::{Store, StoreError};

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

/// A machine that may have an index of chunks besides its pages.
pub trait Indexed {
    /// Takes a chunk of the index back, oldest first.
    fn restore_chunk(&mut self, chunk: IndexChunk);
}

impl Indexed for posthouse_core::queue::Shard {
    fn restore_chunk(&mut self, chunk: IndexChunk) {
        self.index_mut().restore(chunk);
    }
}

impl Indexed for posthouse_core::catalog::Catalog {
    fn restore_chunk(&mut self, _chunk: IndexChunk) {}
}

/// Opens the machine that is kept in `dir`; `machine` is one in which nothing has
/// happened. `options` are the log's; what depends on the snapshot is set here.
///
/// # Errors
/// See [`StoreError`].
pub fn open<M: Machine + Indexed>(
    store: &Store,
    dir: &Path,
    mut machine: M,
    options: LocalOptions,
) -> Result<Opened<M>, StoreError> {
    let began = Instant::now();
    let files = store.files.clone();
    let shard = options.shard;
    files.create_dir(dir)?;
    let log_dir = dir.join("log");
    files.create_dir(&log_dir)?;
    let chunks = ChunkFiles::new(files.clone(), &dir.join("chunks"), store.number)?;
    let (newest, older) = manifests(store, dir, shard)?;
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
    let mut older_chunks = BTreeSet::new();
    if let Some(older) = &older {
        older_chunks = older.chunks();
    }
    remove_leftovers(&chunks, &manifest, &older_chunks)?;

    let options = LocalOptions {
        known_durable: manifest.frame,
        // Segments that the newer snapshot did not need may have gone after it.
        must_have: (!is_older).then(|| manifest.segments.clone()),
        ..options
    };
    let (log, recovery) = LocalLog::open(files.clone(), &log_dir, options)?;
    let mut replayed = replay(&mut machine, &log.reader(), manifest.frame, dir)?;
    replayed.took = began.elapsed();
    let clocks = (recovery.wall_ms.max(manifest.wall_ms), recovery.lease_ms.max(manifest.lease_ms));
    let snapshots = Snapshots::new(
        files,
        dir.to_owned(),
        (store.number, shard),
        chunks.clone(),
        manifest,
        older_chunks,
    );
    Ok(Opened { machine, log, recovery, chunks, snapshots, clocks, replayed })
}

type Manifests = (Result<Manifest, StoreError>, Option<Manifest>);

/// The newest manifest, and the one before if it is whole. Makes the first one in a
/// new directory.
fn manifests(store: &Store, dir: &Path, shard: u16) -> Result<Manifests, StoreError> {
    let files = &*store.files;
    let mut found = Manifest::list(files, dir)?;
    if found.is_empty() {
        let segments = files.list(&dir.join("log"))?;
        if segments.iter().any(|entry| entry.name.starts_with("seg-")) {
            let what = "there is a log, but no manifest beside it";
            return Err(StoreError::damaged(&dir.join("manifest-*"), what));
        }
        let first = Manifest { generation: 1, next_chunk: 1, ..Manifest::default() };
        first.write(files, dir, store.number, shard)?;
        found = Manifest::list(files, dir)?;
    }
    let load = |path: &Path| Manifest::load(files, path, store.number, shard);
    let newest = load(&found[0].1);
    let older = match found.get(1) {
        Some((_, path)) => match load(path) {
            Ok(older) => Some(older),
            // Only needed if the newest is damaged too; then both are reported.
            Err(damage) => {
                tracing::error!("{damage}");
                None
            }
        },
        None => None,
    };
    Ok((newest, older))
}

/// Puts the pages and the index of a snapshot back.
pub(super) fn restore<M: Machine + Indexed>(
    machine: &mut M,
    manifest: &Manifest,
    chunks: &ChunkFiles,
) -> Result<(), StoreError> {
    let mut loaded = BTreeMap::new();
    for chunk in manifest.pages.by_chunk().into_keys() {
        loaded.insert(chunk, chunks.whole(chunk)?);
    }
    for (id, at) in manifest.pages.iter() {
        let chunk = &loaded[&at.chunk];
        let file = chunks.path(at.chunk);
        let is_block = chunk.directory.kind == ChunkKind::Pages
            && (at.block as usize) < chunk.directory.blocks.len();
        let page = is_block.then(|| &chunk.pieces[at.block as usize]);
        let Some(page) = page.filter(|page| id.hash(page) == at.hash) else {
            return Err(not_the_page(
                &file,
                id,
                "it does not hold the page that the manifest names",
            ));
        };
        machine.restore_page(id, page).map_err(|e| not_the_page(&file, id, e))?;
    }
    for chunk in &manifest.index {
        let directory = chunks.directory(*chunk)?;
        let chunk = IndexChunk::decode(directory)
            .map_err(|e| StoreError::damaged(&chunks.path(*chunk), e))?;
        machine.restore_chunk(chunk);
    }
    Ok(())
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
    for chunk in chunks.list()? {
        if !needed.contains(&chunk) && !older.contains(&chunk) {
            chunks.remove(chunk)?;
        }
    }
    Ok(())
}

fn replay<M: Machine>(
    machine: &mut M,
    reader: &impl LogReader,
    after: FrameNo,
    dir: &Path,
) -> Result<Replayed, StoreError> {
    let mut replayed = Replayed::default();
    for frame in reader.scan(after.next(), Part::Meta)? {
        let frame = frame?;
        let header = frame.header;
        if header.min_reader > READER {
            return Err(StoreError::Newer { dir: dir.to_owned(), found: header.min_reader.into() });
        }
        replayed.log_bytes += u64::from(header.total);
        if header.kind != Kind::Data {
            continue;
        }
        machine.apply(header.frame_no, &frame.meta).map_err(|e| {
            let what = format!("frame {} of the log: {e}", header.frame_no);
            StoreError::damaged(&dir.join("log"), what)
        })?;
        machine.sealed(header.frame_no, header.content_bytes() as usize);
        replayed.frames += 1;
        replayed.meta_bytes += u64::from(header.meta_len);
    }
    Ok(replayed)
}
