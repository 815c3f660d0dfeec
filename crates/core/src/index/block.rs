//! Blocks of index chunks.
//!
//! ```text
//! tags: count varint, u64 each (little-endian)
//! runs: partition varint | first position varint | rows varint | length varint | rows
//! row:  shape u8
//!       [frame: zigzag difference]  [at: u32 varint]  [len: varint]
//!       [time: difference]  [key: u64]  [tags: count, number in the tag list each]
//!       [expires: varint]  [id: 0, u128; or zigzag difference of the number it was
//!       scheduled under, plus 1]
//! ```
//! What the shape does not mention is as in the row before: the same frame, a body
//! that follows the last one, the same length and time. So a plain message of a
//! batch of equals costs one byte. A run has at most [`RUN_ROWS`] rows and says how
//! long it is, so a position is found without decoding what is not near it.
//!
//! The label of a block says which keys and times are in it, and 256 bits over its
//! tags, so that a block without a tag is passed by without a read.

use posthouse_frame::varint::{self, Cursor, Malformed};
use posthouse_frame::{BodyRef, FrameNo};

use super::{Found, Memtable, OwnId, Step, TagSet};
use crate::chunk::{BLOCK_BYTES, ChunkBuilder, ChunkId, ChunkKind, SealedChunk};
use crate::ident::MessageId;
use crate::words::{Lookup, PartitionId, Position, Seq, UnixMs};

/// The most rows of a run.
pub const RUN_ROWS: u64 = 512;

const FRAME: u8 = 1;
const AT: u8 = 2;
const LEN: u8 = 4;
const TIME: u8 = 8;
const KEY: u8 = 16;
const TAGS: u8 = 32;
const EXPIRES: u8 = 64;
const ID: u8 = 128;

/// A place in the order of the index.
pub type Key = (PartitionId, Position);

/// What is known of a block without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The first message in it.
    pub first: Key,
    /// The last message in it.
    pub last: Key,
    /// The earliest time of a message in it.
    pub from: UnixMs,
    /// The latest time of a message in it.
    pub to: UnixMs,
    /// One bit for the hash of each tag in it.
    pub tags: [u64; 4],
}

impl Label {
    /// Whether a message with this tag can be in the block.
    pub fn may_have_tag(&self, tag: u64) -> bool {
        self.tags[(tag >> 6) as usize & 3] & 1 << (tag & 63) != 0
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(80);
        for (partition, position) in [self.first, self.last] {
            varint::put(&mut out, partition.0.into());
            varint::put(&mut out, position);
        }
        varint::put(&mut out, self.from.0);
        varint::put(&mut out, self.to.0);
        if self.tags != [0; 4] {
            for word in self.tags {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        out
    }

    /// Reads a label from a chunk's directory.
    ///
    /// # Errors
    /// [`Malformed`] if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Label, Malformed> {
        let mut c = Cursor::new(bytes);
        let mut key =
            || -> Result<Key, Malformed> { Ok((PartitionId(c.varint_u32()?), c.varint()?)) };
        let (first, last) = (key()?, key()?);
        let (from, to) = (UnixMs(c.varint()?), UnixMs(c.varint()?));
        let mut tags = [0; 4];
        if !c.is_empty() {
            for word in &mut tags {
                *word = c.u64()?;
            }
        }
        Ok(Label { first, last, from, to, tags })
    }
}

/// Builds the chunk of a frozen table. Pure; takes a fraction of a second for
/// millions of messages, and so is for a thread aside.
pub fn build(table: &Memtable, store: u64, id: ChunkId) -> SealedChunk {
    let mut writer = Writer::new(store, id);
    table.for_each_sorted(|partition, found| writer.add(partition, found));
    writer.finish()
}

/// Writes messages, which come in the order of partition and position, into blocks.
pub(super) struct Writer {
    builder: ChunkBuilder,
    messages: u64,
    runs: Vec<u8>,
    run: Run,
    tags: Vec<u64>,
    tag_numbers: Lookup<u64, u32>,
    label: Option<Label>,
}

#[derive(Default)]
struct Run {
    start: Option<Key>,
    rows: u64,
    bytes: Vec<u8>,
    before: Before,
}

/// What a row is told apart from.
#[derive(Clone, Copy, Default)]
struct Before {
    frame: FrameNo,
    end: u32,
    len: u32,
    at: UnixMs,
    seq: Seq,
}

impl Writer {
    pub(super) fn new(store: u64, id: ChunkId) -> Self {
        Writer {
            builder: ChunkBuilder::new(store, id, ChunkKind::Index),
            messages: 0,
            runs: Vec::new(),
            run: Run::default(),
            tags: Vec::new(),
            tag_numbers: Lookup::default(),
            label: None,
        }
    }

    pub(super) fn add(&mut self, partition: PartitionId, found: &Found) {
        let key = (partition, found.position);
        let follows = self
            .run
            .start
            .is_some_and(|(p, first)| p == partition && first + self.run.rows == found.position);
        if !follows || self.run.rows == RUN_ROWS {
            self.end_run();
            if self.runs.len() + self.tags.len() * 8 >= BLOCK_BYTES {
                self.end_block();
            }
            self.run.start = Some(key);
        }
        self.row(found);
        self.run.rows += 1;
        self.messages += 1;
        let label = self.label.get_or_insert(Label {
            first: key,
            last: key,
            from: found.at,
            to: found.at,
            tags: [0; 4],
        });
        label.last = key;
        label.from = label.from.min(found.at);
        label.to = label.to.max(found.at);
        for tag in found.tags.as_slice() {
            label.tags[(tag >> 6) as usize & 3] |= 1 << (tag & 63);
        }
    }

    fn row(&mut self, found: &Found) {
        let before = self.run.before;
        let body = found.body;
        let mut shape = 0;
        let same_frame = body.frame == before.frame;
        shape |= if same_frame { 0 } else { FRAME };
        shape |= if same_frame && body.at == before.end { 0 } else { AT };
        shape |= if body.len == before.len { 0 } else { LEN };
        shape |= if found.at == before.at { 0 } else { TIME };
        shape |= if found.key == 0 { 0 } else { KEY };
        shape |= if found.tags == TagSet::None { 0 } else { TAGS };
        shape |= if found.expires.is_none() { 0 } else { EXPIRES };
        shape |= if found.id == OwnId::Position { 0 } else { ID };
        let out = &mut self.run.bytes;
        out.push(shape);
        if shape & FRAME != 0 {
            varint::put(out, varint::zigzag(body.frame.0.wrapping_sub(before.frame.0)));
        }
        if shape & AT != 0 {
            varint::put(out, body.at.into());
        }
        if shape & LEN != 0 {
            varint::put(out, body.len.into());
        }
        if shape & TIME != 0 {
            varint::put(out, varint::zigzag(found.at.0.wrapping_sub(before.at.0)));
        }
        if shape & KEY != 0 {
            out.extend_from_slice(&found.key.to_le_bytes());
        }
        if shape & TAGS != 0 {
            let tags = found.tags.as_slice();
            varint::put(out, tags.len() as u64);
            for tag in tags {
                let number = *self.tag_numbers.entry(*tag).or_insert_with(|| {
                    self.tags.push(*tag);
                    self.tags.len() as u32 - 1
                });
                varint::put(out, number.into());
            }
        }
        if let Some(expires) = found.expires {
            varint::put(out, expires.0);
        }
        let mut seq = before.seq;
        match found.id {
            OwnId::Position => {}
            OwnId::Seq(own) => {
                varint::put(out, varint::zigzag(own.wrapping_sub(before.seq)) + 1);
                seq = own;
            }
            OwnId::Other(id) => {
                out.push(0);
                out.extend_from_slice(&id.to_bits().to_le_bytes());
            }
        }
        self.run.before = Before {
            frame: body.frame,
            end: body.at.wrapping_add(body.len),
            len: body.len,
            at: found.at,
            seq,
        };
    }

    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        if let Some((partition, first)) = run.start {
            varint::put(&mut self.runs, partition.0.into());
            varint::put(&mut self.runs, first);
            varint::put(&mut self.runs, run.rows);
            varint::put_bytes(&mut self.runs, &run.bytes);
        }
    }

    fn end_block(&mut self) {
        let Some(label) = self.label.take() else { return };
        let mut data = Vec::with_capacity(self.runs.len() + self.tags.len() * 8 + 4);
        varint::put(&mut data, self.tags.len() as u64);
        for tag in self.tags.drain(..) {
            data.extend_from_slice(&tag.to_le_bytes());
        }
        data.append(&mut self.runs);
        self.tag_numbers.clear();
        self.builder.block(data, label.encode());
    }

    pub(super) fn finish(mut self) -> SealedChunk {
        self.end_run();
        self.end_block();
        let mut summary = Vec::new();
        varint::put(&mut summary, self.messages);
        self.builder.finish(summary)
    }
}

/// Calls `each` for the messages of `partition` in `range` that the block holds,
/// in order, until it says stop. Returns whether it did.
///
/// # Errors
/// [`Malformed`] if the block was not made by [`build`].
pub fn walk(
    block: &[u8],
    partition: PartitionId,
    range: std::ops::Range<Position>,
    each: &mut impl FnMut(&Found) -> Step,
) -> Result<bool, Malformed> {
    walk_all(
        block,
        |of, first, rows| of == partition && first < range.end && first + rows > range.start,
        |of, found| {
            debug_assert_eq!(of, partition);
            if found.position < range.start {
                return Step::On;
            }
            if found.position >= range.end {
                return Step::Stop;
            }
            each(found)
        },
    )
}

/// Calls `each` for every message of the runs that `wanted` (partition, first
/// position, rows) lets through, until it says stop. Returns whether it did.
///
/// # Errors
/// [`Malformed`] if the block was not made by [`build`].
pub fn walk_all(
    block: &[u8],
    mut wanted: impl FnMut(PartitionId, Position, u64) -> bool,
    mut each: impl FnMut(PartitionId, &Found) -> Step,
) -> Result<bool, Malformed> {
    let mut runs = Runs::of(block)?;
    while let Some(run) = runs.next_run()? {
        if wanted(run.partition, run.first, run.rows)
            && run.walk(runs.tags, |found| each(run.partition, found))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The runs of a block, one after the other.
pub(super) struct Runs<'a> {
    c: Cursor<'a>,
    pub(super) tags: &'a [u8],
}

/// A run of a block: neighbouring positions of one partition.
#[derive(Clone, Copy)]
pub(super) struct RunRows<'a> {
    pub(super) partition: PartitionId,
    pub(super) first: Position,
    rows: u64,
    bytes: &'a [u8],
}

impl<'a> Runs<'a> {
    pub(super) fn of(block: &'a [u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(block);
        let at = c.position();
        let count = c.varint()?;
        if count > (c.remaining() / 8) as u64 {
            return Err(Malformed { at });
        }
        let tags = c.take(count as usize * 8)?;
        Ok(Runs { c, tags })
    }

    /// Where the next run starts in the block.
    pub(super) fn position(&self) -> usize {
        self.c.position()
    }

    /// Goes on at a run that starts at byte `at`.
    pub(super) fn skip_to(&mut self, at: usize) -> Result<(), Malformed> {
        self.c.take(at.saturating_sub(self.c.position())).map(|_| ())
    }

    pub(super) fn next_run(&mut self) -> Result<Option<RunRows<'a>>, Malformed> {
        if self.c.is_empty() {
            return Ok(None);
        }
        let c = &mut self.c;
        let at = c.position();
        let (partition, first, rows) = (PartitionId(c.varint_u32()?), c.varint()?, c.varint()?);
        first.checked_add(rows).ok_or(Malformed { at })?;
        Ok(Some(RunRows { partition, first, rows, bytes: c.bytes()? }))
    }
}

impl RunRows<'_> {
    /// Calls `each` for its messages until it says stop. Returns whether it did.
    pub(super) fn walk(
        &self,
        tags: &[u8],
        mut each: impl FnMut(&Found) -> Step,
    ) -> Result<bool, Malformed> {
        let mut rows = Cursor::new(self.bytes);
        let mut before = Before::default();
        for offset in 0..self.rows {
            let found = read_row(&mut rows, tags, self.first + offset, &mut before)?;
            if each(&found) == Step::Stop {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn read_row(
    c: &mut Cursor<'_>,
    tags: &[u8],
    position: Position,
    before: &mut Before,
) -> Result<Found, Malformed> {
    let shape = c.u8()?;
    let has = |part: u8| shape & part != 0;
    let frame = if has(FRAME) {
        before.frame.0.wrapping_add(varint::unzigzag(c.varint()?))
    } else {
        before.frame.0
    };
    let at = if has(AT) { c.varint_u32()? } else { before.end };
    let len = if has(LEN) { c.varint_u32()? } else { before.len };
    let time = if has(TIME) {
        before.at.0.wrapping_add(varint::unzigzag(c.varint()?))
    } else {
        before.at.0
    };
    let body = BodyRef { frame: FrameNo(frame), at, len };
    let end = at.wrapping_add(len);
    *before = Before { frame: body.frame, end, len, at: UnixMs(time), seq: before.seq };
    let key = if has(KEY) { c.u64()? } else { 0 };
    let tags = if has(TAGS) { read_tags(c, tags)? } else { TagSet::None };
    let expires = if has(EXPIRES) { Some(UnixMs(c.varint()?)) } else { None };
    let id = if has(ID) { read_id(c, before)? } else { OwnId::Position };
    Ok(Found { position, body, at: UnixMs(time), expires, key, tags, id })
}

fn read_id(c: &mut Cursor<'_>, before: &mut Before) -> Result<OwnId, Malformed> {
    match c.varint()? {
        0 => Ok(OwnId::Other(MessageId::from_bits(c.u128()?))),
        difference => {
            before.seq = before.seq.wrapping_add(varint::unzigzag(difference - 1));
            Ok(OwnId::Seq(before.seq))
        }
    }
}

fn read_tags(c: &mut Cursor<'_>, list: &[u8]) -> Result<TagSet, Malformed> {
    let one = |c: &mut Cursor<'_>| -> Result<u64, Malformed> {
        let at = c.position();
        let start = (c.varint()? as usize).checked_mul(8).ok_or(Malformed { at })?;
        let bytes =
            list.get(start..).and_then(|rest| rest.first_chunk()).ok_or(Malformed { at })?;
        Ok(u64::from_le_bytes(*bytes))
    };
    let count = c.varint()?;
    if count == 1 {
        return Ok(TagSet::One(one(c)?));
    }
    let mut tags = Vec::new();
    for _ in 0..count {
        tags.push(one(c)?);
    }
    Ok(TagSet::of(&tags))
}
