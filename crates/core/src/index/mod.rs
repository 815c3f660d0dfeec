//! The topic index: from a position to where the body is, and what filters and
//! look-ups need to know without reading it.
//!
//! New messages go to one [`memtable`] for the whole shard. With every snapshot it
//! is frozen, sorted by partition and position, and becomes an index chunk (see
//! [`block`] for the layout); until the chunk is in place the frozen table answers.
//! Older messages are found through the directories of the chunks, which stay in
//! memory, and one or few blocks, which may have to be fetched ([`Miss`]).
//!
//! Building chunks is physical: it is in no record and in no digest, and an index
//! rebuilt by replay gives the same answers from other chunks. So is making them anew
//! ([`fold`]), when little of them is left.
//!
//! A body may be carried to another place, so that where it was can go. [`Carried`] has
//! such places, whatever table or chunk has the rest.

pub mod block;
mod carried;
mod chunks;
pub mod fold;
pub mod memtable;

use std::sync::Arc;

use posthouse_frame::BodyRef;

pub use carried::{Carried, Rows as CarriedRows};
pub use chunks::IndexChunk;
pub use fold::{Moved, ReadBlock};
pub use memtable::{Chain, Memtable};

use crate::chunk::{ChunkId, Chunks, Miss, SealedChunk};
use crate::ident::MessageId;
use crate::page::Pager;
use crate::record::{Entries, Entry, Tags};
use crate::words::{PartitionId, Position, Seq, UnixMs};

/// The hashes of a message's tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TagSet {
    /// No tag.
    #[default]
    None,
    /// One tag.
    One(u64),
    /// Several.
    Several(Arc<[u64]>),
}

impl TagSet {
    /// All of them.
    pub fn as_slice(&self) -> &[u64] {
        match self {
            TagSet::None => &[],
            TagSet::One(tag) => std::slice::from_ref(tag),
            TagSet::Several(tags) => tags,
        }
    }

    /// From any number of hashes.
    pub fn of(tags: &[u64]) -> TagSet {
        match tags {
            [] => TagSet::None,
            [tag] => TagSet::One(*tag),
            tags => TagSet::Several(tags.into()),
        }
    }
}

/// What the index knows of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its position.
    pub position: Position,
    /// Where its body is.
    pub body: BodyRef,
    /// When it came into this partition.
    pub at: UnixMs,
    /// When it expires.
    pub expires: Option<UnixMs>,
    /// Hash of its key, 0 for none.
    pub key: u64,
    /// Hashes of its tags.
    pub tags: TagSet,
    /// What its id is made of.
    pub id: OwnId,
}

/// What the id of a message is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnId {
    /// Its partition and its position.
    #[default]
    Position,
    /// Its partition and the number that it was scheduled under.
    Seq(Seq),
    /// It is another partition's: the message was put here by the system.
    Other(MessageId),
}

impl Found {
    /// As a record holds it.
    pub fn entry(&self) -> Entry<'_> {
        Entry {
            len: self.body.len,
            key: self.key,
            tags: Tags::Slice(self.tags.as_slice()),
            expires: self.expires,
            ..Entry::default()
        }
    }

    /// Whether its time to live has passed.
    pub fn is_expired(&self, now: UnixMs) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A run of messages that come into the index together.
#[derive(Clone, Copy, Debug)]
pub struct NewMessages<'a> {
    /// Their partition.
    pub partition: PartitionId,
    /// The position of the first.
    pub first: Position,
    /// The place of the first body; the others follow it.
    pub body: BodyRef,
    /// When they came in.
    pub at: UnixMs,
    /// What their ids are made of.
    pub ids: Ids<'a>,
    /// The messages.
    pub entries: Entries<'a>,
}

/// What the ids of several messages are made of.
#[derive(Clone, Copy, Debug)]
pub enum Ids<'a> {
    /// Their positions.
    Positions,
    /// The numbers that they were scheduled under.
    Seqs(&'a [Seq]),
    /// There is one message, and this is its id.
    One(MessageId),
}

/// What a walk does after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Goes on.
    On,
    /// Stops behind this message.
    Stop,
}

/// The index of one shard.
#[derive(Debug, Default)]
pub struct Index {
    active: Memtable,
    frozen: Option<Arc<Memtable>>,
    /// Oldest first. Positions of one partition rise from chunk to chunk.
    chunks: Vec<IndexChunk>,
    carried: Carried,
    /// How often chunks were made anew.
    folds: u64,
}

impl Index {
    /// Adds messages. `chain` is what the partition keeps for the index.
    pub fn add(&mut self, chain: &mut Chain, new: NewMessages<'_>) {
        self.active.add(chain, new);
    }

    /// Bytes that the table of new messages takes in memory.
    pub fn young_bytes(&self) -> usize {
        self.active.bytes()
    }

    /// Whether a frozen table waits to become a chunk.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Freezes the table of new messages and starts another. Returns `None` if there
    /// is nothing in it.
    ///
    /// # Panics
    /// If a table is frozen: it becomes a chunk ([`Index::install`]), or new again
    /// ([`Index::thaw`]), before another is.
    pub fn freeze(&mut self) -> Option<Arc<Memtable>> {
        assert!(self.frozen.is_none(), "one table is frozen at a time");
        if self.active.is_empty() {
            return None;
        }
        let next = Memtable::new(self.active.generation() + 1);
        let frozen = Arc::new(std::mem::replace(&mut self.active, next));
        self.frozen = Some(frozen.clone());
        Some(frozen)
    }

    /// The chunk that the frozen table was to become could not be kept: what it holds is
    /// new again, before what came since. `with_chain` lends what a partition keeps for
    /// the index, if the partition is still there.
    pub fn thaw(&mut self, with_chain: impl FnMut(PartitionId, &mut dyn FnMut(&mut Chain))) {
        let Some(frozen) = self.frozen.take() else { return };
        let mut table = Arc::unwrap_or_clone(frozen);
        table.absorb(&self.active, with_chain);
        self.active = table;
    }

    /// Puts the chunk in place that was built from the frozen table.
    ///
    /// # Panics
    /// If no table is frozen.
    pub fn install(&mut self, chunk: &SealedChunk) {
        self.frozen.take().expect("a chunk is built from a frozen table");
        self.chunks.push(IndexChunk::new(chunk.directory.clone()));
    }

    /// Adds a chunk that a snapshot names; oldest first.
    pub fn restore(&mut self, chunk: IndexChunk) {
        self.chunks.push(chunk);
    }

    /// Puts a chunk in place that was made of others; nothing, if nothing of them is left.
    pub fn refold(&mut self, from: &[ChunkId], to: Option<&SealedChunk>) {
        self.folds += 1;
        // Those of which nothing is left may have been taken out meanwhile.
        let at = self.chunks.iter().position(|chunk| from.contains(&chunk.id()));
        self.chunks.retain(|chunk| !from.contains(&chunk.id()));
        if let (Some(at), Some(to)) = (at, to) {
            self.chunks.insert(at, IndexChunk::new(to.directory.clone()));
        }
    }

    /// A chunk says where these bodies are: that need not be kept besides.
    pub fn forget_carried(&mut self, pager: &mut Pager, moved: &[Moved]) {
        for Moved { partition, position, body } in moved {
            self.carried.remove(pager, *partition, *position, *body);
        }
    }

    /// How often chunks were made anew, since the start.
    pub fn folds(&self) -> u64 {
        self.folds
    }

    /// Bodies that are not where tables and chunks say.
    pub fn carried(&self) -> &Carried {
        &self.carried
    }

    /// The same, to change it.
    pub fn carried_mut(&mut self) -> &mut Carried {
        &mut self.carried
    }

    /// The chunks in use, oldest first.
    pub fn chunks(&self) -> &[IndexChunk] {
        &self.chunks
    }

    /// Takes out the chunks of which nothing is left, as `is_dead` judges.
    pub fn forget(&mut self, mut is_dead: impl FnMut(&mut IndexChunk) -> bool) -> Vec<IndexChunk> {
        self.chunks.extract_if(.., |chunk| is_dead(chunk)).collect()
    }

    /// What is known of one message.
    ///
    /// # Errors
    /// A [`Miss`] if a block has to be fetched first.
    pub fn get(
        &self,
        store: &impl Chunks,
        partition: PartitionId,
        chain: Chain,
        position: Position,
    ) -> Result<Option<Found>, Miss> {
        let mut found = None;
        self.walk(store, partition, chain, position..position + 1, |message| {
            found = Some(message.clone());
            Step::Stop
        })?;
        Ok(found)
    }

    /// Calls `each` for the messages of `range`, in order, until it says stop.
    /// Returns the position after the last message it was called for, or the start.
    ///
    /// # Errors
    /// A [`Miss`] for a block that is needed before anything else can be seen; what
    /// came before it has been seen.
    pub fn walk(
        &self,
        store: &impl Chunks,
        partition: PartitionId,
        chain: Chain,
        range: std::ops::Range<Position>,
        mut each: impl FnMut(&Found) -> Step,
    ) -> Result<Position, Miss> {
        let mut each = |found: &Found| match self.carried.get(partition, found.position) {
            Some(body) => each(&Found { body, ..found.clone() }),
            None => each(found),
        };
        let mut at = range.start;
        let mut stopped = false;
        let mut visit = |found: &Found| {
            at = found.position + 1;
            stopped = each(found) == Step::Stop;
            if stopped { Step::Stop } else { Step::On }
        };
        let tables = [self.frozen.as_deref(), Some(&self.active)];
        let oldest_in_memory =
            tables.iter().flatten().find_map(|table| table.first_position(chain));
        if oldest_in_memory.is_none_or(|oldest| range.start < oldest) {
            let end = oldest_in_memory.map_or(range.end, |oldest| oldest.min(range.end));
            chunks::walk(&self.chunks, store, partition, range.start..end, &mut visit)?;
        }
        for table in tables.into_iter().flatten() {
            if !stopped && at < range.end {
                let from = at;
                let mut visit = |found: &Found| {
                    at = found.position + 1;
                    stopped = each(found) == Step::Stop;
                    if stopped { Step::Stop } else { Step::On }
                };
                table.walk(chain, from..range.end, &mut visit);
            }
        }
        Ok(at)
    }

    /// The first position of `range` whose message came in at `time` or later, or
    /// the end of the range. Times never fall within a partition.
    ///
    /// # Errors
    /// A [`Miss`], as for [`Index::walk`].
    pub fn first_at(
        &self,
        store: &impl Chunks,
        partition: PartitionId,
        chain: Chain,
        range: std::ops::Range<Position>,
        time: UnixMs,
    ) -> Result<Position, Miss> {
        let (mut low, mut high) = (range.start, range.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(store, partition, chain, middle)? {
                Some(found) if found.at < time => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests;
