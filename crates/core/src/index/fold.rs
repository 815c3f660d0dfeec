//! Index chunks made anew: several become one, rows of messages that are gone are left
//! out, and rows of bodies that were carried say where they are now.
//!
//! Physical, like all chunks: it is in no record, and nothing that is asked of the index
//! is answered otherwise afterwards.

use bytes::Bytes;
use posthouse_frame::BodyRef;

use super::block::{RunRows, Runs, Writer};
use super::chunks::expect_sound;
use super::{Found, IndexChunk, Step};
use crate::chunk::{ChunkId, Miss, SealedChunk};
use crate::words::{PartitionId, Position};

/// A body that a chunk says is elsewhere than the chunk before did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The partition of the message.
    pub partition: PartitionId,
    /// Its position.
    pub position: Position,
    /// Where its body is.
    pub body: BodyRef,
}

/// Reads a block of a chunk.
pub type ReadBlock<'a, E> = dyn FnMut(Miss) -> Result<Bytes, E> + 'a;

/// Says where the body of a message is now; `None` if the message is gone.
pub type Where<'a, E> = dyn FnMut(PartitionId, &Found) -> Result<Option<BodyRef>, E> + 'a;

/// Makes one chunk of neighbouring ones, oldest first. `None` if nothing of them is left.
/// Also says which of its rows are others than before.
///
/// # Errors
/// What `read` and `now` say.
pub fn fold<E>(
    chunks: &[IndexChunk],
    (store, id): (u64, ChunkId),
    read: &mut ReadBlock<'_, E>,
    now: &mut Where<'_, E>,
) -> Result<(Option<SealedChunk>, Vec<Moved>), E> {
    let mut heads = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let mut head = Head { chunk, number: 0, block: Bytes::new(), at: 0, partition: None };
        head.load(read)?;
        heads.push(head);
    }
    let (mut writer, mut moved, mut any) = (Writer::new(store, id), Vec::new(), false);
    // Positions of a partition rise from chunk to chunk: of equal partitions the oldest
    // chunk's comes first, and runs never have to be taken apart.
    let least = |heads: &[Head<'_>]| {
        let first = heads.iter().enumerate().filter_map(|(at, h)| Some((h.partition?, at)));
        first.min().map(|(_, at)| at)
    };
    while let Some(at) = least(&heads) {
        heads[at].each_row(|partition, found| {
            let Some(body) = now(partition, found)? else { return Ok(()) };
            any = true;
            if body == found.body {
                writer.add(partition, found);
                return Ok(());
            }
            moved.push(Moved { partition, position: found.position, body });
            writer.add(partition, &Found { body, ..found.clone() });
            Ok(())
        })?;
        heads[at].next(read)?;
    }
    Ok((any.then(|| writer.finish()), moved))
}

/// Calls `each` for every message of a chunk.
///
/// # Errors
/// What `read` and `each` say.
pub fn rows<E>(
    chunk: &IndexChunk,
    read: &mut ReadBlock<'_, E>,
    mut each: impl FnMut(PartitionId, &Found) -> Result<(), E>,
) -> Result<(), E> {
    let mut head = Head { chunk, number: 0, block: Bytes::new(), at: 0, partition: None };
    head.load(read)?;
    while head.partition.is_some() {
        head.each_row(&mut each)?;
        head.next(read)?;
    }
    Ok(())
}

/// Where a walk through a chunk stands: at a run.
struct Head<'a> {
    chunk: &'a IndexChunk,
    /// The block,
    number: u32,
    block: Bytes,
    /// and where in it the run starts.
    at: usize,
    /// The run's partition; `None` at the end.
    partition: Option<PartitionId>,
}

impl Head<'_> {
    /// Stands at the first run of the block.
    fn load<E>(&mut self, read: &mut ReadBlock<'_, E>) -> Result<(), E> {
        self.partition = None;
        if (self.number as usize) < self.chunk.labels().len() {
            let (chunk, block) = (self.chunk.id(), self.number);
            self.block = read(Miss { chunk, block })?;
            self.at = 0;
            self.partition = self.run().map(|(run, ..)| run.partition);
        }
        Ok(())
    }

    /// The run, the tags of its block, and where the next one starts.
    fn run(&self) -> Option<(RunRows<'_>, &[u8], usize)> {
        let run = Runs::of(&self.block).and_then(|mut runs| {
            runs.skip_to(self.at)?;
            let run = runs.next_run()?;
            Ok(run.map(|run| (run, runs.tags, runs.position())))
        });
        expect_sound(run, self.chunk.id(), self.number)
    }

    fn each_row<E>(
        &self,
        mut each: impl FnMut(PartitionId, &Found) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((run, tags, _)) = self.run() else { return Ok(()) };
        let mut met = Ok(());
        let walked = run.walk(tags, |found| {
            met = each(run.partition, found);
            if met.is_ok() { Step::On } else { Step::Stop }
        });
        expect_sound(walked, self.chunk.id(), self.number);
        met
    }

    fn next<E>(&mut self, read: &mut ReadBlock<'_, E>) -> Result<(), E> {
        let Some((_, _, next)) = self.run() else { return Ok(()) };
        self.at = next;
        self.partition = self.run().map(|(run, ..)| run.partition);
        if self.partition.is_none() {
            self.number += 1;
            self.load(read)?;
        }
        Ok(())
    }
}
