//! What is done beside a snapshot so that the disk holds little more than what is needed:
//! chunks of the index of which little is left, or which are many and small, are made anew;
//! and bodies are looked for that hold up a segment of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use posthouse_core::chunk::{ChunkId, Miss, SealedChunk};
use posthouse_core::index::{Carried, IndexChunk, Moved, fold};
use posthouse_core::page::{PageId, PageMap, TableId};
use posthouse_core::queue::clean::{AsOf, Candidate, Search, find};
use posthouse_frame::FrameNo;

use super::StoreError;
use super::chunks::ChunkFiles;

/// Chunks that are put together have so many bytes at most; one alone may have more.
const FOLD_BYTES: u64 = 32 << 20;

/// The most chunks that are put together.
const FOLD_CHUNKS: usize = 8;

/// So many neighbours that are small are put together although all of them are alive.
const FEW: usize = 4;

/// A chunk of fewer bytes is small.
const SMALL_BYTES: u64 = 4 << 20;

/// Of one chunk so many blocks are looked at to guess what is left of it.
const LOOKS: usize = 1024;

/// The most pages of carried bodies that are looked at to find their chunks.
const PAGES: usize = 4096;

/// Bytes of chunks that one search reads, besides those known to have something.
const SEARCH_BYTES: u64 = 64 << 20;

/// After so many snapshots chunks are tried again that were made anew for nothing.
const FORGET_FUTILE: u64 = 64;

/// What a snapshot does besides.
#[derive(Clone, Debug, Default)]
pub struct Cleaning {
    /// Whether chunks of the index may be made anew: nothing is being carried.
    pub fold: bool,
    /// What bodies to look for.
    pub search: Option<Search>,
}

/// Chunks of the index that became one, or nothing.
#[derive(Debug)]
pub struct Folded {
    /// The chunks.
    pub from: Vec<ChunkId>,
    /// What came of them.
    pub to: Option<SealedChunk>,
    /// Bodies that it says are elsewhere than they did.
    pub moved: Vec<Moved>,
}

/// What bodies a search has found.
#[derive(Debug)]
pub struct Found {
    /// What was looked for.
    pub search: Search,
    /// What there is of it.
    pub found: Vec<Candidate>,
    /// Whether every chunk was looked at that can have some.
    pub is_all: bool,
}

/// What is known of the chunks of the index besides what they say themselves.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The first and the last frame that has a body of a chunk.
    frames: BTreeMap<ChunkId, Option<(FrameNo, FrameNo)>>,
    /// Chunks that were made anew, and of which nothing was gone.
    futile: BTreeSet<ChunkId>,
}

impl Known {
    /// Makes one chunk, with the name `id`, of some of `chunks` if that is worth while.
    /// `pages` are those of the snapshot.
    pub(super) fn fold(
        &mut self,
        chunks: &[IndexChunk],
        (store, id): (u64, ChunkId),
        pages: &PageMap,
        files: &ChunkFiles,
    ) -> Result<Option<Folded>, StoreError> {
        if id.number % FORGET_FUTILE == 0 {
            self.futile.clear();
        }
        let mut page = |id| page_of(pages, files, id);
        let mut as_of = AsOf::new(&mut page);
        let carried = with_carried(chunks, pages);
        let mut worth = Vec::with_capacity(chunks.len());
        for (at, chunk) in chunks.iter().enumerate() {
            let (dead, looked) = as_of.dead_blocks(chunk, LOOKS)?;
            let is_worth = carried.contains(&at) || dead * 2 >= looked.max(1);
            worth.push(is_worth && !self.futile.contains(&chunk.id()));
        }
        let inputs = &chunks[choose(chunks, &worth)];
        if inputs.is_empty() {
            return Ok(None);
        }
        let mut read = |miss: Miss| files.block(miss);
        let mut now = |partition, found: &_| as_of.place(partition, found);
        let (to, moved) = fold::fold(inputs, (store, id), &mut read, &mut now)?;
        if let Some(chunk) = &to {
            files.write(chunk)?;
            let before: u64 = inputs.iter().map(IndexChunk::bytes).sum();
            let after = chunk.directory.block_bytes();
            if moved.is_empty() && inputs.len() == 1 && after + after / 10 >= before {
                self.futile.insert(id);
            }
        }
        Ok(Some(Folded { from: inputs.iter().map(IndexChunk::id).collect(), to, moved }))
    }

    /// Looks in `chunks` for what is wanted, as far as one search goes.
    pub(super) fn search(
        &mut self,
        chunks: &[IndexChunk],
        search: Search,
        pages: &PageMap,
        files: &ChunkFiles,
    ) -> Result<Found, StoreError> {
        self.frames.retain(|id, _| chunks.iter().any(|chunk| chunk.id() == *id));
        let mut page = |id| page_of(pages, files, id);
        let mut as_of = AsOf::new(&mut page);
        let mut read = |miss: Miss| files.block(miss);
        let carried = with_carried(chunks, pages);
        let (mut found, mut spent, mut is_all) = (Vec::new(), 0, true);
        for (at, chunk) in chunks.iter().enumerate() {
            // What was carried since it was looked at is elsewhere.
            let known = self.frames.get(&chunk.id()).filter(|_| !carried.contains(&at));
            match known {
                Some(frames) if frames.is_none_or(|(a, b)| !search.touches(a, b)) => continue,
                Some(_) => {}
                None if spent > SEARCH_BYTES => {
                    is_all = false;
                    continue;
                }
                None => spent += chunk.bytes(),
            }
            let frames = find(chunk, &search, &mut as_of, &mut read, &mut found)?;
            self.frames.insert(chunk.id(), frames);
            if found.len() >= search.most {
                is_all = false;
                break;
            }
        }
        Ok(Found { search, found, is_all })
    }
}

fn page_of(pages: &PageMap, files: &ChunkFiles, id: PageId) -> Result<Option<Bytes>, StoreError> {
    let at = pages.get(id);
    at.map(|at| files.block(Miss { chunk: at.chunk, block: at.block })).transpose()
}

/// The chunks that may have rows of bodies that were carried, by their place in `chunks`.
fn with_carried(chunks: &[IndexChunk], pages: &PageMap) -> BTreeSet<usize> {
    let mut with = BTreeSet::new();
    for page in pages.of_table(TableId::Carried).take(PAGES) {
        let (partition, positions) = Carried::positions_of(page);
        let may_hold = chunks.iter().map(|chunk| chunk.may_hold(partition, &positions));
        with.extend(may_hold.enumerate().filter(|(_, may)| *may).map(|(at, _)| at));
    }
    with
}

/// Neighbours to be put together: of those that are small or worth it, where most are worth
/// it; else many that are small.
fn choose(chunks: &[IndexChunk], worth: &[bool]) -> Range<usize> {
    let bytes: Vec<u64> = chunks.iter().map(IndexChunk::bytes).collect();
    let mut best = (0, 0..0);
    for start in 0..chunks.len() {
        let (mut sum, mut gain, mut end) = (0, 0, start);
        while end < chunks.len() && end - start < FOLD_CHUNKS {
            let joins = worth[end] || bytes[end] < SMALL_BYTES;
            if !joins || (end > start && sum + bytes[end] > FOLD_BYTES) {
                break;
            }
            (sum, gain, end) = (sum + bytes[end], gain + usize::from(worth[end]), end + 1);
        }
        let enough = gain > 0 || end - start >= FEW;
        if enough && (gain, end - start) > (best.0, best.1.len()) {
            best = (gain, start..end);
        }
    }
    best.1
}
