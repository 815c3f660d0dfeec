//! Finding messages through the directories of index chunks.

use std::ops::Range;
use std::sync::Arc;

use posthouse_frame::varint::Malformed;

use super::block::{self, Label};
use super::{Found, Step};
use crate::chunk::{ChunkId, Chunks, Directory, Miss};
use crate::words::{PartitionId, Position};

/// An index chunk in use: its directory, with the labels decoded.
#[derive(Clone, Debug)]
pub struct IndexChunk {
    directory: Arc<Directory>,
    labels: Arc<[Label]>,
    /// Blocks at the beginning in which nothing is left.
    dead_blocks: usize,
}

impl IndexChunk {
    /// From a directory that was just made.
    ///
    /// # Panics
    /// If it has a label that is none; see [`IndexChunk::decode`] for one that comes
    /// from a disk.
    pub fn new(directory: Arc<Directory>) -> Self {
        Self::decode(directory).expect("labels that were just made can be read")
    }

    /// From a directory.
    ///
    /// # Errors
    /// [`Malformed`] if it is not the directory of an index chunk.
    pub fn decode(directory: Arc<Directory>) -> Result<Self, Malformed> {
        let labels: Result<Vec<Label>, Malformed> =
            directory.blocks.iter().map(|block| Label::decode(&block.label)).collect();
        Ok(IndexChunk { directory, labels: labels?.into(), dead_blocks: 0 })
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.directory.id
    }

    /// Its directory.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Bytes of all of its blocks.
    pub fn bytes(&self) -> u64 {
        self.directory.block_bytes()
    }

    /// What is known of each block.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// Moves over blocks at the beginning in which nothing is left, `head` being the
    /// first position that a partition still has (`None`: the partition is no more).
    /// Returns whether all of them are dead.
    ///
    /// # Errors
    /// A [`Miss`] for a block that has several partitions and must be looked at.
    pub fn advance_dead(
        &mut self,
        store: &impl Chunks,
        head: impl Fn(PartitionId) -> Option<Position>,
    ) -> Result<bool, Miss> {
        let is_left = |partition, last| head(partition).is_some_and(|head: Position| last >= head);
        while let Some(label) = self.labels.get(self.dead_blocks) {
            if is_left(label.last.0, label.last.1) {
                return Ok(false);
            }
            if label.first.0 != label.last.0 {
                let number = self.dead_blocks as u32;
                let data = fetch(store, self.id(), number)?;
                let mut any = false;
                let walked = block::walk_all(
                    &data,
                    |partition, first, rows| {
                        any |= is_left(partition, first + rows - 1);
                        false
                    },
                    |_, _| Step::Stop,
                );
                expect_sound(walked.map(|_| ()), self.id(), number);
                if any {
                    return Ok(false);
                }
            }
            self.dead_blocks += 1;
        }
        Ok(true)
    }

    /// Whether a block can hold messages of `partition` in `range`.
    pub fn may_hold(&self, partition: PartitionId, range: &Range<Position>) -> bool {
        !self.candidates(partition, range).is_empty()
    }

    /// The blocks that can hold messages of `partition` in `range`.
    fn candidates(&self, partition: PartitionId, range: &Range<Position>) -> Range<usize> {
        let start = (partition, range.start);
        let end = (partition, range.end);
        let from = self.labels.partition_point(|label| label.last < start);
        let to = self.labels.partition_point(|label| label.first < end);
        from..to.max(from)
    }
}

fn fetch(store: &impl Chunks, chunk: ChunkId, block: u32) -> Result<bytes::Bytes, Miss> {
    store.block(chunk, block).ok_or(Miss { chunk, block })
}

/// A block that passed its checksum but cannot be read was written wrong: going on
/// would serve wrong messages.
pub(super) fn expect_sound<T>(result: Result<T, Malformed>, chunk: ChunkId, block: u32) -> T {
    result.unwrap_or_else(|e| panic!("block {block} of index chunk {chunk} is broken: {e}"))
}

/// Walks the messages of `partition` in `range` through all chunks, oldest first:
/// positions rise from chunk to chunk.
pub(super) fn walk(
    chunks: &[IndexChunk],
    store: &impl Chunks,
    partition: PartitionId,
    range: Range<Position>,
    each: &mut impl FnMut(&Found) -> Step,
) -> Result<(), Miss> {
    let mut position = range.start;
    // Newest first: what is asked for most is near the end. A chunk that has the
    // position also has what follows it, up to where the next chunk begins.
    let mut at = chunks.len();
    while at > 0 && position < range.end {
        at -= 1;
        let chunk = &chunks[at];
        let mut seen = false;
        let mut stopped = false;
        for number in chunk.candidates(partition, &(position..range.end)) {
            let number = number as u32;
            let data = fetch(store, chunk.id(), number)?;
            let end = range.end;
            let walked = block::walk(&data, partition, position..end, &mut |found| {
                if !seen && found.position > position {
                    // This chunk begins after the position that is wanted next: an
                    // older one has it.
                    return Step::Stop;
                }
                seen = true;
                position = found.position + 1;
                let step = each(found);
                stopped = step == Step::Stop;
                step
            });
            let ended = expect_sound(walked, chunk.id(), number);
            if stopped || position >= range.end {
                return Ok(());
            }
            if ended && !seen {
                break;
            }
        }
        if seen {
            // What follows is in a newer chunk: start over from there.
            at = chunks.len();
        }
    }
    Ok(())
}
