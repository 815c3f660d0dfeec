//! Runs: entries outside memory, in the order of their times, with their bodies.
//!
//! A run is a chunk of two kinds of blocks, told apart by their labels.
//!
//! ```text
//! entries: per entry
//!   shape u8 | due: difference | number: zigzag difference | partition varint
//!   [key u64] [tags: count, u64 each] [ttl varint]
//!   [small body: length varint, sealed]  [large body: block, at, length]
//!   [moved: first due time]
//! bodies:  sealed bodies, back to back
//! label:   1 | first (due, number) | last (due, number) | entries | 4 x u64, a bit a partition
//!          2
//! summary: entries | entries without body | first number of a body | numbers of bodies
//! ```
//! Bodies are sealed and bound to no frame, so they can be put into one as they are.
//! Small ones stand with their entry: firing reads a run once, from end to end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use posthouse_frame::varint::{self, Cursor, Malformed};
use posthouse_frame::{BodyBuf, BodyRef};

use super::entry::{Body, Extra, Item, Key, Young};
use super::young::Sorted;
use crate::chunk::{ChunkBuilder, ChunkId, ChunkKind, Directory, Miss, SealedChunk};
use crate::index::TagSet;
use crate::words::{Lookup, PartitionId, Seq, UnixMs};

/// A sealed body of at most so many bytes stands with its entry.
pub const SMALL_BYTES: u32 = 1 << 10;

/// Blocks of large bodies are closed at this size.
const BODY_BLOCK_BYTES: usize = 256 << 10;

const KEY: u8 = 1;
const TAGS: u8 = 2;
const TTL: u8 = 4;
const SMALL: u8 = 8;
const LARGE: u8 = 16;
const MOVED: u8 = 32;

/// What is known of a block of entries without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    block: u32,
    first: Key,
    last: Key,
    entries: u64,
    partitions: [u64; 4],
}

/// The bit of a partition in a label.
fn bit(partition: PartitionId) -> (usize, u64) {
    let spread = partition.0.wrapping_mul(0x9e37_79b1) >> 24;
    ((spread >> 6) as usize, 1 << (spread & 63))
}

impl Label {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        for (due, seq) in [self.first, self.last] {
            varint::put(&mut out, due.0);
            varint::put(&mut out, seq);
        }
        varint::put(&mut out, self.entries);
        self.partitions.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        out
    }

    fn decode(block: u32, bytes: &[u8]) -> Result<Option<Label>, Malformed> {
        let mut c = Cursor::new(bytes);
        match c.u8()? {
            1 => {}
            2 if c.is_empty() => return Ok(None),
            _ => return Err(Malformed { at: 0 }),
        }
        let mut key = || -> Result<Key, Malformed> { Ok((UnixMs(c.varint()?), c.varint()?)) };
        let (first, last) = (key()?, key()?);
        let entries = c.varint()?;
        let mut partitions = [0; 4];
        for word in &mut partitions {
            *word = c.u64()?;
        }
        let label = Label { block, first, last, entries, partitions };
        if c.is_empty() { Ok(Some(label)) } else { Err(Malformed { at: c.position() }) }
    }
}

/// A run in use: its directory, with the labels decoded.
#[derive(Clone, Debug)]
pub struct Run {
    directory: Arc<Directory>,
    labels: Arc<[Label]>,
    entries: u64,
    moved: u64,
    seqs: Range<Seq>,
}

impl Run {
    /// From a directory.
    ///
    /// # Errors
    /// [`Malformed`] if it is not the directory of a run.
    pub fn decode(directory: Arc<Directory>) -> Result<Run, Malformed> {
        let mut labels = Vec::new();
        for (number, block) in (0..).zip(&directory.blocks) {
            labels.extend(Label::decode(number, &block.label)?);
        }
        let mut c = Cursor::new(&directory.summary);
        let (entries, moved) = (c.varint()?, c.varint()?);
        let (first, count) = (c.varint()?, c.varint()?);
        let end = first.checked_add(count).ok_or(Malformed { at: 0 })?;
        if directory.kind != ChunkKind::Run || labels.is_empty() || moved > entries {
            return Err(Malformed { at: 0 });
        }
        Ok(Run { labels: labels.into(), directory, entries, moved, seqs: first..end })
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.directory.id
    }

    /// Bytes of all of its blocks.
    pub fn bytes(&self) -> u64 {
        self.directory.block_bytes()
    }

    /// How many entries it has.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many of those are of messages that were moved, and have no body.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// The numbers of the messages whose bodies are here: none outside of these.
    pub fn seqs(&self) -> Range<Seq> {
        self.seqs.clone()
    }

    /// The last entry.
    pub fn last(&self) -> Key {
        self.labels.last().map_or((UnixMs(0), 0), |label| label.last)
    }

    /// How many blocks of entries there are.
    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The first entry of a block.
    pub(super) fn first_of(&self, index: usize) -> Option<Key> {
        self.labels.get(index).map(|label| label.first)
    }

    /// The block in which the first entry from `key` on is.
    pub(super) fn seek(&self, key: Key) -> usize {
        self.labels.partition_point(|label| label.last < key)
    }

    /// The name of a block of entries.
    pub(super) fn miss(&self, index: usize) -> Option<Miss> {
        let label = self.labels.get(index)?;
        Some(Miss { chunk: self.directory.id, block: label.block })
    }

    /// Whether a block can have an entry of one of these partitions. Any, if there is
    /// none.
    pub(super) fn may_have(&self, index: usize, partitions: &[PartitionId]) -> bool {
        let Some(label) = self.labels.get(index) else { return false };
        partitions.is_empty()
            || partitions.iter().any(|partition| {
                let (word, bit) = bit(*partition);
                label.partitions[word] & bit != 0
            })
    }

    /// Reads a block that was fetched.
    ///
    /// # Panics
    /// If the block, which has passed its checksum, was written wrong.
    pub(super) fn open(&self, index: usize, data: Bytes) -> Reader {
        let label = &self.labels[index];
        Reader { chunk: self.directory.id, block: label.block, data, at: 0, before: (UnixMs(0), 0) }
    }
}

/// Reads the entries of a block in order.
#[derive(Clone, Debug)]
pub struct Reader {
    chunk: ChunkId,
    block: u32,
    data: Bytes,
    at: usize,
    before: Key,
}

impl Reader {
    fn read(&mut self) -> Result<Option<Item>, Malformed> {
        let mut c = Cursor::new(&self.data[self.at..]);
        if c.is_empty() {
            return Ok(None);
        }
        let shape = c.u8()?;
        let has = |part: u8| shape & part != 0;
        let due = UnixMs(self.before.0.0.wrapping_add(c.varint()?));
        let seq = self.before.1.wrapping_add(varint::unzigzag(c.varint()?));
        let partition = PartitionId(c.varint_u32()?);
        let key = if has(KEY) { c.u64()? } else { 0 };
        let mut tags = Vec::new();
        if has(TAGS) {
            for _ in 0..c.u8()? {
                tags.push(c.u64()?);
            }
        }
        let ttl_ms = if has(TTL) { Some(c.varint()?) } else { None };
        let extra = (shape & (KEY | TAGS | TTL) != 0)
            .then(|| Arc::new(Extra { key, tags: TagSet::of(&tags), ttl_ms }));
        let mut origin = due;
        let body = if has(SMALL) {
            let len = c.bytes()?.len();
            let end = self.at + c.position();
            Body::Sealed(self.data.slice(end - len..end))
        } else if has(LARGE) {
            let miss = Miss { chunk: self.chunk, block: c.varint_u32()? };
            Body::Block { miss, at: c.varint_u32()?, len: c.varint_u32()? }
        } else {
            origin = UnixMs(c.varint()?);
            Body::Elsewhere
        };
        self.at += c.position();
        self.before = (due, seq);
        Ok(Some(Item { due, seq, partition, origin, extra, body }))
    }
}

impl Iterator for Reader {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        self.read()
            .unwrap_or_else(|e| panic!("block {} of run {} is broken: {e}", self.block, self.chunk))
    }
}

/// Reads the contents of bodies from the log, in the order asked for.
pub type ReadBodies<'a, E> = dyn FnMut(&[BodyRef]) -> Result<Vec<Bytes>, E> + 'a;

/// How many bodies are read at a time.
const READ: usize = 4096;

/// Where a chunk goes, and how large its blocks of entries are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The store.
    pub store: u64,
    /// The chunk.
    pub id: ChunkId,
    /// A block is closed at this size.
    pub block_bytes: usize,
}

/// Builds a run of what was frozen. `read` reads bodies from the log. Takes its time,
/// and so is for a thread aside. `None` if there is nothing to keep.
///
/// # Errors
/// What `read` says.
pub fn build<E>(
    frozen: &[Arc<Sorted>],
    place: Place,
    read: &mut ReadBodies<'_, E>,
) -> Result<Option<SealedChunk>, E> {
    let mut writer = Writer::new(place);
    // Bodies are read in the order in which they stand in the log.
    let mut with_body: Vec<(Seq, BodyRef)> = frozen
        .iter()
        .flat_map(|run| run.entries.iter().filter_map(|e| Some((e.seq, e.body()?))))
        .collect();
    with_body.sort_unstable_by_key(|(seq, _)| *seq);
    let lens = with_body.iter().map(|(_, body)| body.len).filter(|len| *len <= SMALL_BYTES);
    let mut small = BodyBuf::with_capacity(lens.map(|len| len as usize).sum());
    let mut places = Places::of(&with_body);
    for some in with_body.chunks(READ) {
        let refs: Vec<BodyRef> = some.iter().map(|(_, body)| *body).collect();
        for ((_, body), content) in some.iter().zip(read(&refs)?) {
            let stored = if body.len <= SMALL_BYTES {
                let at = small.len();
                let len = small.seal(|out| out.extend_from_slice(&content));
                Stored::Small(at..at + len as usize)
            } else {
                writer.large(&content)
            };
            places.push(stored);
        }
    }
    drop(with_body);
    let mut heads: Vec<(usize, &Sorted)> = frozen.iter().map(|run| (0, &**run)).collect();
    let mut order = Heads::new(heads.len(), |run| heads[run].1.entries.first().map(Young::key));
    while let Some(run) = order.least() {
        let (at, sorted) = &mut heads[run];
        let entry = &sorted.entries[*at];
        *at += 1;
        let stored = match entry.body() {
            None => Stored::Moved(UnixMs(moved_from(entry))),
            Some(_) => places.get(entry.seq).clone(),
        };
        writer.entry(entry.key(), entry.partition, entry.extra.as_deref(), &stored, &small);
        order.advance(run, sorted.entries.get(*at).map(Young::key));
    }
    Ok(writer.finish())
}

/// Where bodies are that were read, by the numbers of their messages.
///
/// The numbers are cut into as many stretches as there are bodies. Most follow each other, so
/// a stretch has one; old ones, of transactions that were decided late, may lie far before.
struct Places {
    /// In order.
    seqs: Vec<Seq>,
    /// Beside them.
    stored: Vec<Stored>,
    /// Where each stretch begins in those, and where the last one ends.
    begins: Vec<u32>,
    /// Numbers of one stretch.
    width: u64,
}

impl Places {
    /// With room for these, which are in order.
    fn of(bodies: &[(Seq, BodyRef)]) -> Places {
        let seqs: Vec<Seq> = bodies.iter().map(|(seq, _)| *seq).collect();
        let mut places =
            Places { stored: Vec::with_capacity(seqs.len()), begins: Vec::new(), width: 1, seqs };
        if let [first, .., last] = places.seqs[..] {
            places.width = (last - first) / places.seqs.len() as u64 + 1;
        }
        for (at, seq) in (0..).zip(&places.seqs) {
            let stretch = places.stretch(*seq);
            places.begins.resize(stretch + 1, at);
        }
        places.begins.push(places.seqs.len() as u32);
        places
    }

    fn stretch(&self, seq: Seq) -> usize {
        ((seq - self.seqs[0]) / self.width) as usize
    }

    /// Where the body of the next number is.
    fn push(&mut self, stored: Stored) {
        self.stored.push(stored);
    }

    fn get(&self, seq: Seq) -> &Stored {
        let stretch = self.stretch(seq);
        let (from, to) = (self.begins[stretch] as usize, self.begins[stretch + 1] as usize);
        let at = self.seqs[from..to].binary_search(&seq).expect("every body was read");
        &self.stored[from + at]
    }
}

fn moved_from(entry: &Young) -> u64 {
    entry.item().origin.0
}

/// Puts runs together that are neighbours, oldest first. Left out are bodies of messages
/// that are not in `keep`, which is in order; and of the times to which a message was
/// moved those before `from`, and those that an older run has if a younger has one.
///
/// # Errors
/// What `read`, which reads a block, says.
pub fn merge<E>(
    runs: &[Run],
    from: UnixMs,
    keep: &[Seq],
    place: Place,
    read: &mut dyn FnMut(Miss) -> Result<Bytes, E>,
) -> Result<Option<SealedChunk>, E> {
    let mut youngest = Lookup::<Seq, usize>::default();
    for (number, run) in runs.iter().enumerate().filter(|(_, run)| run.moved > 0) {
        let mut entries = Entries::of(run);
        while let Some(item) = entries.next(read)? {
            if item.body == Body::Elsewhere && item.due >= from {
                youngest.insert(item.seq, number);
            }
        }
    }
    let mut writer = Writer::new(place);
    let mut heads: Vec<(Option<Item>, Entries<'_>)> = Vec::with_capacity(runs.len());
    for run in runs {
        let mut entries = Entries::of(run);
        heads.push((entries.next(read)?, entries));
    }
    let mut order = Heads::new(heads.len(), |run| heads[run].0.as_ref().map(Item::key));
    let none = BodyBuf::default();
    while let Some(run) = order.least() {
        let (head, entries) = &mut heads[run];
        let next = entries.next(read)?;
        order.advance(run, next.as_ref().map(Item::key));
        let Some(item) = std::mem::replace(head, next) else { continue };
        let is_kept = || keep.binary_search(&item.seq).is_ok();
        let stored = match &item.body {
            Body::Sealed(bytes) if is_kept() => Stored::Here(bytes.clone()),
            Body::Block { miss, at, len } if is_kept() => {
                let block = read(*miss)?;
                writer.large_sealed(&block[*at as usize..(*at + *len) as usize])
            }
            Body::Elsewhere if item.due >= from && youngest.get(&item.seq) == Some(&run) => {
                Stored::Moved(item.origin)
            }
            _ => continue,
        };
        writer.entry(item.key(), item.partition, item.extra.as_deref(), &stored, &none);
    }
    Ok(writer.finish())
}

/// All entries of a run, block by block.
struct Entries<'a> {
    run: &'a Run,
    block: usize,
    open: Option<Reader>,
}

impl Entries<'_> {
    fn of(run: &Run) -> Entries<'_> {
        Entries { run, block: 0, open: None }
    }

    fn next<E>(
        &mut self,
        read: &mut dyn FnMut(Miss) -> Result<Bytes, E>,
    ) -> Result<Option<Item>, E> {
        loop {
            if let Some(item) = self.open.as_mut().and_then(Iterator::next) {
                return Ok(Some(item));
            }
            let Some(miss) = self.run.miss(self.block) else { return Ok(None) };
            self.open = Some(self.run.open(self.block, read(miss)?));
            self.block += 1;
        }
    }
}

/// The least of several heads.
struct Heads(BinaryHeap<Reverse<(Key, usize)>>);

impl Heads {
    fn new(count: usize, key: impl Fn(usize) -> Option<Key>) -> Heads {
        let heads = (0..count).filter_map(|run| Some(Reverse((key(run)?, run))));
        Heads(heads.collect())
    }

    fn least(&mut self) -> Option<usize> {
        self.0.peek().map(|head| head.0.1)
    }

    fn advance(&mut self, run: usize, key: Option<Key>) {
        let Some(mut least) = self.0.peek_mut() else { return };
        match key {
            Some(key) => *least = Reverse((key, run)),
            None => drop(PeekMut::pop(least)),
        }
    }
}

/// Where a writer has a body.
#[derive(Clone, Debug)]
enum Stored {
    Small(Range<usize>),
    Here(Bytes),
    Large { block: u32, at: u32, len: u32 },
    Moved(UnixMs),
}

struct Writer {
    builder: ChunkBuilder,
    block_bytes: usize,
    bodies: BytesMut,
    data: Vec<u8>,
    label: Option<Label>,
    before: Key,
    entries: u64,
    moved: u64,
    seqs: Option<Range<Seq>>,
}

impl Writer {
    fn new(place: Place) -> Writer {
        Writer {
            builder: ChunkBuilder::new(place.store, place.id, ChunkKind::Run),
            block_bytes: place.block_bytes,
            bodies: BytesMut::new(),
            data: Vec::new(),
            label: None,
            before: (UnixMs(0), 0),
            entries: 0,
            moved: 0,
            seqs: None,
        }
    }

    /// Takes a large body in, before the entries that have it.
    fn large(&mut self, content: &[u8]) -> Stored {
        let mut sealed = BodyBuf::with_capacity(content.len() + 16);
        sealed.seal(|out| out.extend_from_slice(content));
        self.large_sealed(sealed.as_ref())
    }

    fn large_sealed(&mut self, sealed: &[u8]) -> Stored {
        // The block that is being filled is the next one to be closed: before one of
        // entries is, it is.
        let (block, at) = (self.builder.blocks(), self.bodies.len() as u32);
        self.bodies.extend_from_slice(sealed);
        if self.bodies.len() >= BODY_BLOCK_BYTES.min(self.block_bytes * 8) {
            self.end_bodies();
        }
        Stored::Large { block, at, len: sealed.len() as u32 }
    }

    fn entry(
        &mut self,
        key: Key,
        partition: PartitionId,
        extra: Option<&Extra>,
        stored: &Stored,
        small: &BodyBuf,
    ) {
        if self.data.len() >= self.block_bytes {
            self.end_bodies();
            self.end_entries();
        }
        let mut shape = match stored {
            Stored::Small(_) | Stored::Here(_) => SMALL,
            Stored::Large { .. } => LARGE,
            Stored::Moved(_) => MOVED,
        };
        if let Some(extra) = extra {
            shape |= if extra.key == 0 { 0 } else { KEY };
            shape |= if extra.tags == TagSet::None { 0 } else { TAGS };
            shape |= if extra.ttl_ms.is_none() { 0 } else { TTL };
        }
        let out = &mut self.data;
        out.push(shape);
        varint::put(out, key.0.0.wrapping_sub(self.before.0.0));
        varint::put(out, varint::zigzag(key.1.wrapping_sub(self.before.1)));
        varint::put(out, partition.0.into());
        if let Some(extra) = extra {
            if extra.key != 0 {
                out.extend_from_slice(&extra.key.to_le_bytes());
            }
            if extra.tags != TagSet::None {
                let tags = extra.tags.as_slice();
                out.push(tags.len() as u8);
                tags.iter().for_each(|tag| out.extend_from_slice(&tag.to_le_bytes()));
            }
            if let Some(ttl_ms) = extra.ttl_ms {
                varint::put(out, ttl_ms);
            }
        }
        match stored {
            Stored::Small(range) => varint::put_bytes(out, &small.as_ref()[range.clone()]),
            Stored::Here(bytes) => varint::put_bytes(out, bytes),
            Stored::Large { block, at, len } => {
                [block, at, len].into_iter().for_each(|value| varint::put(out, (*value).into()));
            }
            Stored::Moved(origin) => varint::put(out, origin.0),
        }
        if shape & MOVED != 0 {
            self.moved += 1;
        } else {
            let seqs = self.seqs.get_or_insert(key.1..key.1);
            *seqs = seqs.start.min(key.1)..seqs.end.max(key.1 + 1);
        }
        self.before = key;
        self.entries += 1;
        let label = self.label.get_or_insert(Label {
            block: 0,
            first: key,
            last: key,
            entries: 0,
            partitions: [0; 4],
        });
        label.last = key;
        label.entries += 1;
        let (word, bit) = bit(partition);
        label.partitions[word] |= bit;
    }

    fn end_entries(&mut self) {
        if let Some(label) = self.label.take() {
            self.builder.block(std::mem::take(&mut self.data), label.encode());
        }
        self.before = (UnixMs(0), 0);
    }

    fn end_bodies(&mut self) {
        if !self.bodies.is_empty() {
            let data = std::mem::take(&mut self.bodies);
            self.builder.block(data.to_vec(), vec![2]);
        }
    }

    fn finish(mut self) -> Option<SealedChunk> {
        self.end_bodies();
        self.end_entries();
        if self.entries == 0 {
            return None;
        }
        let mut summary = Vec::new();
        varint::put(&mut summary, self.entries);
        varint::put(&mut summary, self.moved);
        let seqs = self.seqs.unwrap_or(0..0);
        varint::put(&mut summary, seqs.start);
        varint::put(&mut summary, seqs.end - seqs.start);
        Some(self.builder.finish(summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_frame::FrameNo;

    #[test]
    fn bodies_are_found_by_their_numbers_however_far_apart_those_are() {
        let far = (0..500).map(|n| n * n * n).collect();
        let late = [3, 1 << 40].into_iter().chain((1 << 50)..(1 << 50) + 99).collect();
        for seqs in [vec![7], (5..105).collect(), far, late] {
            let body = BodyRef { frame: FrameNo(1), at: 0, len: 0 };
            let bodies: Vec<(Seq, BodyRef)> = seqs.iter().map(|seq| (*seq, body)).collect();
            let mut places = Places::of(&bodies);
            seqs.iter().for_each(|seq| places.push(Stored::Moved(UnixMs(*seq))));
            for seq in &seqs {
                let found = matches!(places.get(*seq), Stored::Moved(UnixMs(of)) if of == seq);
                assert!(found, "{seq} of {seqs:?}");
            }
            assert!(places.begins.len() <= seqs.len() + 1, "memory is in proportion");
        }
    }
}
