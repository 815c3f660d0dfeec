//! New messages, before they are in a chunk.
//!
//! A plain message costs four bytes here, one with a key and a tag twenty; what a
//! batch has in common (partition, frame, time) is held once. The batches of a
//! partition form a list, newest first, in which every batch also knows one further
//! back: *jump pointers* after Myers, "An applicative random-access stack" (1983).
//! Adding is constant, finding logarithmic, and nothing is allocated per partition.

use posthouse_frame::{BodyRef, FrameNo};

use super::{Found, Ids, NewMessages, OwnId, Step, TagSet};
use crate::ident::MessageId;
use crate::record::{Entries, Entry};
use crate::words::{Lookup, PartitionId, Position, Seq, UnixMs};

const NONE: u32 = u32::MAX;

/// What a partition keeps for the index: its newest batch in the table of new
/// messages and in the frozen one. Derived, never stored.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    newer: Link,
    older: Link,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    generation: u32,
    last: u32,
    first: u32,
}

impl Default for Chain {
    fn default() -> Self {
        let none = Link { generation: 0, last: NONE, first: NONE };
        Chain { newer: none, older: none }
    }
}

impl Chain {
    fn in_table(self, generation: u32) -> Option<Link> {
        [self.newer, self.older]
            .into_iter()
            .find(|link| link.generation == generation && link.last != NONE)
    }
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    partition: PartitionId,
    count: u32,
    first: Position,
    frame: FrameNo,
    at: UnixMs,
    /// Index of the first entry in `starts`.
    starts: u32,
    /// End of the last body.
    end: u32,
    /// Index of the first key, or NONE if no message of the batch has one.
    keys: u32,
    /// Index of the first tag, likewise.
    tags: u32,
    /// Index of the first number, if the messages were scheduled.
    seqs: u32,
    /// Whether some message has more than a key and a tag.
    extras: bool,
    /// Batches of the same partition before and after this one.
    previous: u32,
    next: u32,
    /// One further back, and how many are before.
    jump: u32,
    depth: u32,
}

impl Batch {
    fn end_position(&self) -> Position {
        self.first + u64::from(self.count)
    }
}

/// What few messages have.
#[derive(Clone, Debug, Default)]
struct Extra {
    expires: Option<UnixMs>,
    id: Option<MessageId>,
    tags: TagSet,
}

/// Stands in the tag column for "several, see the extras".
const SEVERAL: u64 = 1;

/// The table of new messages.
#[derive(Clone, Debug, Default)]
pub struct Memtable {
    generation: u32,
    batches: Column<Batch>,
    starts: Column<u32>,
    keys: Column<u64>,
    tags: Column<u64>,
    seqs: Column<Seq>,
    extras: Lookup<u32, Extra>,
}

impl Memtable {
    pub(super) fn new(generation: u32) -> Self {
        Memtable { generation, ..Memtable::default() }
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.batches.len == 0
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.starts.len
    }

    /// Bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        const EXTRA_BYTES: usize = size_of::<(u32, Extra)>() * 2;
        self.batches.bytes()
            + self.starts.bytes()
            + self.keys.bytes()
            + self.tags.bytes()
            + self.seqs.bytes()
            + self.extras.len() * EXTRA_BYTES
    }

    pub(super) fn add(&mut self, chain: &mut Chain, new: NewMessages<'_>) {
        let number = self.batches.len as u32;
        let starts = self.starts.len as u32;
        let (mut keys, mut tags, mut seqs, mut extras) = (NONE, NONE, NONE, false);
        match new.ids {
            Ids::Positions => {}
            Ids::Seqs(numbers) => {
                debug_assert_eq!(numbers.len(), new.entries.len());
                seqs = self.seqs.len as u32;
                numbers.iter().for_each(|seq| self.seqs.push(*seq));
            }
            Ids::One(id) => {
                extras = true;
                self.extras.insert(starts, Extra { id: Some(id), ..Extra::default() });
            }
        }
        if !new.entries.is_plain() {
            (keys, tags) = self.add_columns(&new, &mut extras);
        }
        let mut at = new.body.at;
        for entry in new.entries.iter() {
            self.starts.push(at);
            at += entry.len;
        }
        let previous = self.link(chain, number);
        let (jump, depth) = self.jump_from(previous, number);
        self.batches.push(Batch {
            partition: new.partition,
            count: new.entries.len() as u32,
            first: new.first,
            frame: new.body.frame,
            at: new.at,
            starts,
            end: at,
            keys,
            tags,
            seqs,
            extras,
            previous,
            next: NONE,
            jump,
            depth,
        });
    }

    fn add_columns(&mut self, new: &NewMessages<'_>, extras: &mut bool) -> (u32, u32) {
        let starts = self.starts.len as u32;
        let has_key = new.entries.iter().any(|e| e.key != 0);
        let has_tag = new.entries.iter().any(|e| !e.tags.is_empty());
        let keys = if has_key { self.keys.len as u32 } else { NONE };
        let tags = if has_tag { self.tags.len as u32 } else { NONE };
        for (offset, entry) in new.entries.iter().enumerate() {
            if has_key {
                self.keys.push(entry.key);
            }
            if has_tag {
                self.tags.push(match entry.tags.len() {
                    0 => 0,
                    1 => entry.tags.get(0),
                    _ => SEVERAL,
                });
            }
            if entry.tags.len() > 1 || entry.expires.is_some() {
                *extras = true;
                let extra = self.extras.entry(starts + offset as u32).or_default();
                extra.expires = entry.expires;
                if entry.tags.len() > 1 {
                    extra.tags = TagSet::of(&entry.tags.to_vec());
                }
            }
        }
        (keys, tags)
    }

    /// Makes `number` the newest batch of the chain. Returns the one before it.
    fn link(&mut self, chain: &mut Chain, number: u32) -> u32 {
        if chain.newer.generation != self.generation || chain.newer.last == NONE {
            chain.older = chain.newer;
            chain.newer = Link { generation: self.generation, last: number, first: number };
            return NONE;
        }
        let previous = std::mem::replace(&mut chain.newer.last, number);
        self.batches.get_mut(previous).next = number;
        previous
    }

    fn jump_from(&self, previous: u32, number: u32) -> (u32, u32) {
        if previous == NONE {
            return (number, 0);
        }
        let p = self.batches.get(previous);
        let j = self.batches.get(p.jump);
        let jj = self.batches.get(j.jump);
        let jump = if p.depth - j.depth == j.depth - jj.depth { j.jump } else { previous };
        (jump, p.depth + 1)
    }

    /// The oldest position that the chain has here.
    pub(super) fn first_position(&self, chain: Chain) -> Option<Position> {
        let link = chain.in_table(self.generation)?;
        Some(self.batches.get(link.first).first)
    }

    /// The batch that holds `position`.
    fn find(&self, chain: Chain, position: Position) -> Option<u32> {
        let mut number = chain.in_table(self.generation)?.last;
        loop {
            let batch = self.batches.get(number);
            if batch.first <= position {
                return (position < batch.end_position()).then_some(number);
            }
            // The oldest one jumps to itself, and has none before it.
            let further = self.batches.get(batch.jump);
            let jumps = further.first > position && batch.jump != number;
            number = if jumps { batch.jump } else { batch.previous };
            if number == NONE {
                return None;
            }
        }
    }

    pub(super) fn walk(
        &self,
        chain: Chain,
        range: std::ops::Range<Position>,
        each: &mut impl FnMut(&Found) -> Step,
    ) {
        let Some(mut number) = self.find(chain, range.start) else { return };
        let mut position = range.start;
        while number != NONE {
            let batch = self.batches.get(number);
            while position < batch.end_position() {
                if position >= range.end || each(&self.found(batch, position)) == Step::Stop {
                    return;
                }
                position += 1;
            }
            number = batch.next;
        }
    }

    fn found(&self, batch: &Batch, position: Position) -> Found {
        let offset = (position - batch.first) as u32;
        let entry = batch.starts + offset;
        let at = *self.starts.get(entry);
        let end = if offset + 1 == batch.count { batch.end } else { *self.starts.get(entry + 1) };
        let column = |first: u32, column: &Column<u64>| {
            if first == NONE { 0 } else { *column.get(first + offset) }
        };
        let mut found = Found {
            position,
            body: BodyRef { frame: batch.frame, at, len: end - at },
            at: batch.at,
            expires: None,
            key: column(batch.keys, &self.keys),
            tags: match column(batch.tags, &self.tags) {
                0 | SEVERAL => TagSet::None,
                tag => TagSet::One(tag),
            },
            id: match batch.seqs {
                NONE => OwnId::Position,
                first => OwnId::Seq(*self.seqs.get(first + offset)),
            },
        };
        if batch.extras
            && let Some(extra) = self.extras.get(&entry)
        {
            found.expires = extra.expires;
            found.id = extra.id.map_or(found.id, OwnId::Other);
            if extra.tags != TagSet::None {
                found.tags = extra.tags.clone();
            }
        }
        found
    }

    /// Adds everything that a younger table holds. `with_chain` lends what a partition
    /// keeps for the index, if the partition is still there.
    pub(super) fn absorb(
        &mut self,
        younger: &Memtable,
        mut with_chain: impl FnMut(PartitionId, &mut dyn FnMut(&mut Chain)),
    ) {
        for number in 0..younger.batches.len as u32 {
            let batch = younger.batches.get(number);
            let found: Vec<Found> = (batch.first..batch.end_position())
                .map(|position| younger.found(batch, position))
                .collect();
            let Some(first) = found.first() else { continue };
            let entries: Vec<Entry<'_>> = found.iter().map(Found::entry).collect();
            let seqs: Vec<Seq> = found
                .iter()
                .filter_map(|found| match found.id {
                    OwnId::Seq(seq) => Some(seq),
                    _ => None,
                })
                .collect();
            let ids = match first.id {
                OwnId::Position => Ids::Positions,
                OwnId::Seq(_) => Ids::Seqs(&seqs),
                OwnId::Other(id) => Ids::One(id),
            };
            let new = NewMessages {
                partition: batch.partition,
                first: batch.first,
                body: first.body,
                at: batch.at,
                ids,
                entries: Entries::Slice(&entries),
            };
            with_chain(batch.partition, &mut |chain| {
                if chain.newer.generation == younger.generation {
                    chain.newer = chain.older;
                    chain.older = Chain::default().older;
                }
                self.add(chain, new);
            });
        }
    }

    /// Calls `each` for every message, by partition and position.
    pub(super) fn for_each_sorted(&self, mut each: impl FnMut(PartitionId, &Found)) {
        let mut order: Vec<(PartitionId, Position, u32)> = (0..self.batches.len as u32)
            .map(|number| {
                let batch = self.batches.get(number);
                (batch.partition, batch.first, number)
            })
            .collect();
        order.sort_unstable();
        for (partition, _, number) in order {
            let batch = self.batches.get(number);
            for position in batch.first..batch.end_position() {
                each(partition, &self.found(batch, position));
            }
        }
    }
}

/// A growing array that never moves what it holds: no copy of many megabytes in the
/// middle of a batch.
#[derive(Clone, Debug)]
struct Column<T> {
    parts: Vec<Vec<T>>,
    len: usize,
}

/// Items per part. The first part grows as a vector does, so that a table with few
/// messages is small.
const PART: usize = 1 << 14;

impl<T> Default for Column<T> {
    fn default() -> Self {
        Column { parts: Vec::new(), len: 0 }
    }
}

impl<T> Column<T> {
    #[inline]
    fn push(&mut self, item: T) {
        if self.len.is_multiple_of(PART) {
            let capacity = if self.parts.is_empty() { 0 } else { PART };
            self.parts.push(Vec::with_capacity(capacity));
        }
        self.parts[self.len / PART].push(item);
        self.len += 1;
    }

    #[inline]
    fn get(&self, index: u32) -> &T {
        &self.parts[index as usize / PART][index as usize % PART]
    }

    fn get_mut(&mut self, index: u32) -> &mut T {
        &mut self.parts[index as usize / PART][index as usize % PART]
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.capacity() * size_of::<T>()).sum()
    }
}
