//! Cleaning: bodies that are still needed, in stretches of the log of which little is, are
//! carried to its tail, so that the segments can go. A message keeps its id and its position.
//!
//! Whoever takes snapshots looks for them, in the snapshot that was just taken ([`AsOf`],
//! [`find`]): nobody waits for that. The shard is asked to carry what was found
//! ([`super::Command::Carry`]), as far as it is still where it was.

use bytes::Bytes;
use posthouse_frame::{BodyBuf, BodyRef, FrameBuf, FrameNo};

use super::command::Reply;
use super::{Partition, Shard};
use crate::index::{Carried, CarriedRows, Found, IndexChunk, ReadBlock, fold};
use crate::page::{PageId, Table};
use crate::record::{CarriedItem, List, Record};
use crate::words::{Lookup, PartitionId, Position};

/// A message whose body shall be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its partition.
    pub partition: PartitionId,
    /// Its position.
    pub position: Position,
    /// Where its body is.
    pub body: BodyRef,
}

impl Shard {
    /// `bodies` are the sealed bodies of `items`, which were found when chunks had been made
    /// anew so many times. Answers with how many bytes were carried.
    pub(super) fn carry(
        &self,
        folds: u64,
        items: &[Candidate],
        bodies: &mut BodyBuf,
        out: &mut FrameBuf,
    ) -> Reply {
        // What a chunk said that was made anew since may be of before.
        if folds != self.index.folds() {
            return Reply::Count(0);
        }
        let bodies = std::mem::take(bodies);
        let mut kept = BodyBuf::default();
        let mut carried = Vec::with_capacity(items.len());
        let mut at = 0;
        for item in items {
            let len = item.body.len;
            if self.is_there(item) {
                kept.append_one(&bodies, at, len as usize);
                let Candidate { partition, position, body } = *item;
                carried.push(CarriedItem { partition, position, from: body.frame, len });
            }
            at += len as usize;
        }
        if carried.is_empty() {
            return Reply::Count(0);
        }
        let bytes = kept.len() as u64;
        let body_at = out.bodies(kept);
        Record::Carry { body_at, items: List::Slice(&carried) }.write(out);
        Reply::Count(bytes)
    }

    fn is_there(&self, item: &Candidate) -> bool {
        let Some(row) = self.partition(item.partition) else { return false };
        let place = self.index.carried().get(item.partition, item.position);
        (row.head..row.next).contains(&item.position)
            && !row.dropped
            && place.unwrap_or(item.body) == item.body
    }

    pub(super) fn apply_carry(
        &mut self,
        frame: FrameNo,
        body_at: u32,
        items: &List<'_, CarriedItem>,
    ) {
        let mut body = BodyRef { frame, at: body_at, len: 0 };
        for item in items.iter() {
            body.len = item.len;
            let bytes = u64::from(item.len);
            self.spans.subtract(&mut self.pager, item.from, bytes);
            self.spans.add(&mut self.pager, frame, bytes);
            let carried = self.index.carried_mut();
            carried.set(&mut self.pager, item.partition, item.position, body);
            body.at += item.len;
        }
    }
}

/// Where a partition begins.
#[derive(Clone, Copy, Debug)]
struct Ends {
    swept: Position,
    head: Position,
}

/// The messages of a shard as a snapshot has them, read page by page.
pub struct AsOf<'a, E> {
    read: &'a mut dyn FnMut(PageId) -> Result<Option<Bytes>, E>,
    partitions: Lookup<PageId, Box<[Option<Ends>]>>,
    carried: Lookup<PageId, CarriedRows>,
}

impl<E> std::fmt::Debug for AsOf<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsOf").finish_non_exhaustive()
    }
}

impl<'a, E> AsOf<'a, E> {
    /// Of the snapshot whose pages `read` gives; `None` for one that it does not have.
    pub fn new(read: &'a mut dyn FnMut(PageId) -> Result<Option<Bytes>, E>) -> Self {
        AsOf { read, partitions: Lookup::default(), carried: Lookup::default() }
    }

    /// Where a partition begins; `None` if there is no such partition.
    fn ends(&mut self, id: PartitionId) -> Result<Option<Ends>, E> {
        let (page, slot) = Table::<Partition>::place_of(id.0);
        if !self.partitions.contains_key(&page) {
            let rows = (self.read)(page)?.map_or(Vec::new(), |bytes| {
                Table::<Partition>::rows_of(&bytes)
                    .expect("a page that a snapshot wrote can be read")
            });
            let ends = |row: Partition| Ends { swept: row.swept, head: row.head };
            let rows = rows.into_iter().map(|row| row.map(ends)).collect();
            self.partitions.insert(page, rows);
        }
        Ok(self.partitions[&page].get(slot).copied().flatten())
    }

    /// Where the body of a message is, of which a chunk says `found`; `None` if its space has
    /// been given back.
    ///
    /// # Errors
    /// What reading pages says.
    ///
    /// # Panics
    /// If a page, whose checksum holds, is none.
    pub fn place(&mut self, id: PartitionId, found: &Found) -> Result<Option<BodyRef>, E> {
        match self.ends(id)? {
            Some(ends) if found.position >= ends.swept => {}
            _ => return Ok(None),
        }
        let (page, offset) = Carried::place_of(id, found.position);
        if !self.carried.contains_key(&page) {
            let rows = (self.read)(page)?.map_or(CarriedRows::new(), |bytes| {
                Carried::rows_of(&bytes).expect("a page that a snapshot wrote can be read")
            });
            self.carried.insert(page, rows);
        }
        Ok(Some(self.carried[&page].get(&offset).copied().unwrap_or(found.body)))
    }

    /// How many of so many blocks of a chunk have nothing left in them, as far as their
    /// labels tell; and how many were looked at.
    ///
    /// # Errors
    /// What reading pages says.
    pub fn dead_blocks(&mut self, chunk: &IndexChunk, most: usize) -> Result<(usize, usize), E> {
        let labels = chunk.labels();
        let step = labels.len().div_ceil(most.max(1)).max(1);
        let (mut dead, mut looked) = (0, 0);
        for label in labels.iter().step_by(step) {
            let mut is_gone = |(partition, position): (PartitionId, Position)| {
                Ok(self.ends(partition)?.is_none_or(|ends| position < ends.swept))
            };
            looked += 1;
            // Of what lies between, the ends say enough for a guess.
            let one = label.first.0 == label.last.0;
            dead += usize::from(is_gone(label.last)? && (one || is_gone(label.first)?));
        }
        Ok((dead, looked))
    }
}

/// What [`find`] looks for.
#[derive(Clone, Debug)]
pub struct Search {
    /// Stretches of the log to be emptied: first and last frame, rising.
    pub stretches: Vec<(FrameNo, FrameNo)>,
    /// The most messages that are wanted.
    pub most: usize,
    /// The most bytes of bodies; the last one may go beyond.
    pub most_bytes: u64,
}

impl Search {
    /// Whether `frame` is in a stretch.
    pub fn has(&self, frame: FrameNo) -> bool {
        let at = self.stretches.partition_point(|(_, last)| *last < frame);
        self.stretches.get(at).is_some_and(|(first, _)| *first <= frame)
    }

    /// Whether a stretch has frames of `first..=last`.
    pub fn touches(&self, first: FrameNo, last: FrameNo) -> bool {
        let at = self.stretches.partition_point(|(_, end)| *end < first);
        self.stretches.get(at).is_some_and(|(start, _)| *start <= last)
    }
}

/// Adds the messages of a chunk whose bodies are in a stretch, and whose time is not over, to
/// `found`, as far as they are wanted. Returns the first and the last frame that has a body
/// of the chunk; `None` if none has.
///
/// # Errors
/// What reading says.
pub fn find<E>(
    chunk: &IndexChunk,
    search: &Search,
    as_of: &mut AsOf<'_, E>,
    read: &mut ReadBlock<'_, E>,
    found: &mut Vec<Candidate>,
) -> Result<Option<(FrameNo, FrameNo)>, E> {
    let mut frames: Option<(FrameNo, FrameNo)> = None;
    let mut bytes: u64 = found.iter().map(|item| u64::from(item.body.len)).sum();
    fold::rows(chunk, read, |partition, row| {
        let Some(body) = as_of.place(partition, row)? else { return Ok(()) };
        let (first, last) = frames.unwrap_or((body.frame, body.frame));
        frames = Some((first.min(body.frame), last.max(body.frame)));
        let is_wanted = found.len() < search.most
            && bytes < search.most_bytes
            && search.has(body.frame)
            && as_of.ends(partition)?.is_some_and(|ends| row.position >= ends.head);
        if is_wanted {
            bytes += u64::from(body.len);
            found.push(Candidate { partition, position: row.position, body });
        }
        Ok(())
    })?;
    Ok(frames)
}
