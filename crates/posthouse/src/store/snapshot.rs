//! Taking snapshots: pages, index chunks and runs to files, a manifest over them, and
//! what is no longer needed away. Runs beside the shard, on a thread of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_core::chunk::{BLOCK_BYTES, ChunkBuilder, ChunkId, ChunkKind, Miss, SealedChunk};
use posthouse_core::index::{IndexChunk, Memtable, block};
use posthouse_core::page::{Captured, Located, PageId, PageMap};
use posthouse_core::queue::clean::Search;
use posthouse_core::schedule::run::{self, Place};
use posthouse_core::schedule::{Freeze, Run};
use posthouse_frame::{BodyRef, FrameNo};
use posthouse_log::files::Files;
use posthouse_log::{ReadError, SegmentNo};

use super::StoreError;
use super::chunks::ChunkFiles;
use super::clean::{Cleaning, Folded, Found, Known};
use super::manifest::Manifest;

/// A page chunk is closed at this size.
const PAGE_CHUNK_BYTES: u64 = 16 << 20;

/// A page chunk of whose pages fewer than one in this many are still current is
/// emptied: they are written again.
const SPARSE: usize = 4;

/// What a snapshot begins with.
#[derive(Debug)]
pub struct Begin {
    /// The frame behind which it stands.
    pub frame: FrameNo,
    /// The wall clock at that frame.
    pub wall_ms: u64,
    /// The lease clock at that frame.
    pub lease_ms: u64,
    /// The ownership.
    pub epoch: u32,
    /// The segments of the log that are needed from now on.
    pub segments: Vec<SegmentNo>,
    /// The chunks of the index in use, oldest first.
    pub index: Vec<IndexChunk>,
    /// The table of new messages that shall become a chunk.
    pub frozen: Option<Arc<Memtable>>,
    /// The schedule.
    pub schedule: Freeze,
    /// What is done besides.
    pub cleaning: Cleaning,
    /// Whether all pages come, and not only those that have changed.
    pub whole: bool,
    /// Whether chunk files stay that nothing needs any more: somebody copies them.
    pub keep: bool,
}

/// What came of a snapshot.
#[derive(Debug)]
pub struct Taken {
    /// The frame behind which it stands.
    pub frame: FrameNo,
    /// Its digest.
    pub digest: u64,
    /// The index chunk that was made.
    pub index: Option<SealedChunk>,
    /// Chunks of the index that were made anew.
    pub folded: Option<Folded>,
    /// The bodies that were looked for, if any were.
    pub found: Option<Found>,
    /// The run that was made of what was scheduled since the snapshot before.
    pub run: Option<SealedChunk>,
    /// Runs that were put together.
    pub merged: Option<Merged>,
}

/// Runs that were put together, and what came of them: nothing, if nothing of them is to
/// come any more.
pub type Merged = (Vec<ChunkId>, Option<SealedChunk>);

/// Reads the contents of bodies from the log, in the order asked for.
pub type ReadBodies = Box<dyn Fn(&[BodyRef]) -> Vec<Result<Bytes, ReadError>> + Send>;

/// Writes the snapshots of one shard.
pub struct Snapshots {
    files: Arc<dyn Files>,
    dir: PathBuf,
    store: u64,
    shard: u16,
    chunks: ChunkFiles,
    bodies: ReadBodies,
    /// The newest manifest.
    newest: Manifest,
    /// The chunks of the one before.
    older: BTreeSet<ChunkId>,
    /// Chunks that neither needs, and that were kept for somebody.
    kept: BTreeSet<ChunkId>,
    known: Known,
    making: Option<Making>,
}

#[derive(Debug)]
struct Making {
    begin: Begin,
    manifest: Manifest,
    builder: Option<(ChunkBuilder, Vec<PageId>)>,
}

impl Making {
    /// A name for a chunk.
    fn next_chunk(&mut self) -> ChunkId {
        let number = self.manifest.next_chunk;
        self.manifest.next_chunk += 1;
        ChunkId { epoch: self.begin.epoch, number }
    }
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Snapshots {
    /// Goes on from the newest manifest; `older` are the chunks of the one before. Bodies
    /// of scheduled messages are read with `bodies`.
    pub fn new(
        files: Arc<dyn Files>,
        dir: PathBuf,
        (store, shard): (u64, u16),
        (chunks, bodies): (ChunkFiles, ReadBodies),
        newest: Manifest,
        older: BTreeSet<ChunkId>,
    ) -> Self {
        Snapshots {
            files,
            dir,
            store,
            shard,
            chunks,
            bodies,
            newest,
            older,
            kept: BTreeSet::new(),
            known: Known::default(),
            making: None,
        }
    }

    /// Gives up the snapshot in the making, if there is one.
    pub fn give_up(&mut self) {
        self.making = None;
    }

    /// The frame of the newest snapshot.
    pub fn newest_frame(&self) -> FrameNo {
        self.newest.frame
    }

    /// Starts a snapshot.
    pub fn begin(&mut self, begin: Begin) {
        let mut manifest = Manifest {
            generation: self.newest.generation + 1,
            frame: begin.frame,
            epoch: begin.epoch,
            wall_ms: begin.wall_ms,
            lease_ms: begin.lease_ms,
            segments: begin.segments.clone(),
            index: begin.index.iter().map(IndexChunk::id).collect(),
            runs: begin.schedule.runs.clone(),
            due_from_ms: begin.schedule.from.0,
            ..self.newest.clone()
        };
        if begin.whole {
            manifest.pages = PageMap::default();
        }
        self.making = Some(Making { begin, manifest, builder: None });
    }

    /// Takes pages of the snapshot.
    ///
    /// # Errors
    /// What the system refused.
    ///
    /// # Panics
    /// If none was begun.
    pub fn pages(&mut self, captured: Vec<Captured>) -> Result<(), StoreError> {
        for (id, bytes) in captured {
            match bytes {
                None => self.making().manifest.pages.remove(id),
                Some(_) if posthouse_frame::planted("page-left-out") && id.hash(&[]) % 8 == 3 => {}
                Some(bytes) => self.page(id, bytes)?,
            }
        }
        Ok(())
    }

    fn making(&mut self) -> &mut Making {
        self.making.as_mut().expect("a snapshot was begun")
    }

    fn page(&mut self, id: PageId, bytes: Vec<u8>) -> Result<(), StoreError> {
        let store = self.store;
        let making = self.making();
        let hash = id.hash(&bytes);
        if making.builder.is_none() {
            let chunk = making.next_chunk();
            let builder = ChunkBuilder::new(store, chunk, ChunkKind::Pages);
            making.builder = Some((builder, Vec::new()));
        }
        let Some((builder, _)) = &mut making.builder else { unreachable!("it was just made") };
        let chunk = ChunkId { epoch: making.begin.epoch, number: making.manifest.next_chunk - 1 };
        let block = builder.block(bytes, Vec::new());
        making.manifest.pages.set(id, Located { chunk, block, hash });
        if builder.len() >= PAGE_CHUNK_BYTES {
            self.close_chunk()?;
        }
        Ok(())
    }

    fn close_chunk(&mut self) -> Result<(), StoreError> {
        if let Some((builder, _)) = self.making().builder.take() {
            self.chunks.write(&builder.finish(Vec::new()))?;
        }
        Ok(())
    }

    /// All pages are in: makes the index chunk, and publishes the snapshot. The log
    /// must have made its frame durable.
    ///
    /// # Errors
    /// What the system refused. The snapshot before is then still the newest.
    ///
    /// # Panics
    /// If none was begun.
    pub fn finish(&mut self) -> Result<Taken, StoreError> {
        self.empty_sparse_chunks()?;
        self.close_chunk()?;
        let mut making = self.making.take().expect("a snapshot was begun");
        let folded = self.fold(&mut making);
        let mut index = None;
        if let Some(frozen) = making.begin.frozen.take() {
            let chunk = block::build(&frozen, self.store, making.next_chunk());
            self.chunks.write(&chunk)?;
            if !posthouse_frame::planted("index-not-named") {
                making.manifest.index.push(chunk.directory.id);
            }
            making.begin.index.push(IndexChunk::new(chunk.directory.clone()));
            index = Some(chunk);
        }
        let merged = self.merge_runs(&mut making)?;
        let run = self.make_run(&mut making)?;
        making.manifest.write(&*self.files, &self.dir, self.store, self.shard)?;
        let (chunks, search) = (making.begin.index, making.begin.cleaning.search);
        let before = std::mem::replace(&mut self.newest, making.manifest);
        self.kept.extend(std::mem::replace(&mut self.older, before.chunks()));
        let newest = self.newest.chunks();
        self.kept.retain(|chunk| !newest.contains(chunk) && !self.older.contains(chunk));
        let found = search.and_then(|search| self.search(&chunks, search));
        if !making.begin.keep {
            for chunk in std::mem::take(&mut self.kept) {
                self.chunks.remove(chunk)?;
            }
        }
        if let Some(oldest) = before.generation.checked_sub(1) {
            let file = self.dir.join(Manifest::file_name(oldest));
            match self.files.unlink(&file) {
                Err(error) if !error.is_missing() => return Err(error.into()),
                _ => {}
            }
        }
        let (frame, digest) = (self.newest.frame, self.newest.pages.digest());
        Ok(Taken { frame, digest, index, folded, found, run, merged })
    }

    /// Makes chunks of the index anew. A snapshot does not fail over it: what is there is as
    /// good, if larger.
    fn fold(&mut self, making: &mut Making) -> Option<Folded> {
        if !making.begin.cleaning.fold || making.begin.index.is_empty() {
            return None;
        }
        let id = making.next_chunk();
        let (chunks, pages) = (&making.begin.index, &making.manifest.pages);
        let folded = match self.known.fold(chunks, (self.store, id), pages, &self.chunks) {
            Ok(folded) => folded?,
            Err(error) => {
                tracing::error!("chunks of the index could not be made anew: {error}");
                return None;
            }
        };
        let at = chunks.iter().position(|chunk| folded.from.contains(&chunk.id()))?;
        let (index, named) = (&mut making.begin.index, &mut making.manifest.index);
        index.retain(|chunk| !folded.from.contains(&chunk.id()));
        named.retain(|id| !folded.from.contains(id));
        if let Some(chunk) = &folded.to {
            index.insert(at, IndexChunk::new(chunk.directory.clone()));
            named.insert(at, chunk.directory.id);
        }
        Some(folded)
    }

    /// Looks for bodies to be carried, in the snapshot that was just taken.
    fn search(&mut self, chunks: &[IndexChunk], search: Search) -> Option<Found> {
        match self.known.search(chunks, search, &self.newest.pages, &self.chunks) {
            Ok(found) => Some(found),
            Err(error) => {
                tracing::error!("bodies that hold up segments could not be looked for: {error}");
                None
            }
        }
    }

    /// Makes a run of what was scheduled since the snapshot before.
    fn make_run(&self, making: &mut Making) -> Result<Option<SealedChunk>, StoreError> {
        let frozen = std::mem::take(&mut making.begin.schedule.frozen);
        if frozen.is_empty() {
            return Ok(None);
        }
        let mut read = |places: &[BodyRef]| -> Result<Vec<Bytes>, StoreError> {
            (self.bodies)(places).into_iter().map(|body| body.map_err(StoreError::from)).collect()
        };
        let place = Place { store: self.store, id: making.next_chunk(), block_bytes: BLOCK_BYTES };
        let made = run::build(&frozen, place, &mut read)?;
        if let Some(chunk) = &made {
            self.chunks.write(chunk)?;
            if !posthouse_frame::planted("run-not-named") {
                making.manifest.runs.push(chunk.directory.id);
            }
        }
        Ok(made)
    }

    /// Puts runs together of which there are too many, or of which little is left.
    fn merge_runs(&self, making: &mut Making) -> Result<Option<Merged>, StoreError> {
        let inputs = std::mem::take(&mut making.begin.schedule.merge);
        if inputs.is_empty() {
            return Ok(None);
        }
        let ids: Vec<ChunkId> = inputs.iter().map(Run::id).collect();
        let place = Place { store: self.store, id: making.next_chunk(), block_bytes: BLOCK_BYTES };
        let Freeze { from, keep, .. } = &making.begin.schedule;
        let mut read = |miss| self.chunks.block(miss);
        let output = run::merge(&inputs, *from, keep, place, &mut read)?;
        let runs = &mut making.manifest.runs;
        let at = runs.iter().position(|run| *run == ids[0]);
        runs.retain(|run| !ids.contains(run));
        if let (Some(chunk), Some(at)) = (&output, at) {
            self.chunks.write(chunk)?;
            runs.insert(at, chunk.directory.id);
        }
        Ok(Some((ids, output)))
    }

    /// Writes the last current pages of sparse chunks again, so that their files can go.
    fn empty_sparse_chunks(&mut self) -> Result<(), StoreError> {
        let counts = self.making().manifest.pages.by_chunk();
        let making = self.making();
        let open = making.builder.as_ref().map(|_| making.manifest.next_chunk - 1);
        for (chunk, current) in counts {
            if Some(chunk.number) == open {
                continue;
            }
            let all = self.chunks.directory(chunk)?.blocks.len();
            if current * SPARSE >= all {
                continue;
            }
            let moved: Vec<(PageId, Located)> =
                self.making().manifest.pages.iter().filter(|(_, at)| at.chunk == chunk).collect();
            for (id, at) in moved {
                let data = self.chunks.block(Miss { chunk, block: at.block })?;
                self.page(id, data.to_vec())?;
            }
        }
        Ok(())
    }
}
