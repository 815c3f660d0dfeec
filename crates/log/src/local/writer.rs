//! The writing half: gives frames their places, writes, syncs, publishes.
//!
//! One [`Writer`] has the log's end. Whoever drives it (the log's threads, or the
//! owner step by step) hands it batches; a batch is written with as few calls as
//! possible, then every file it touched is synced once, then the state moves. A sync
//! is a [`Due`] of its own, because more can be written while it runs.
//!
//! Order on the disk, on which recovery relies:
//!
//! - one sync runs at a time, so what is torn by a power cut is what that sync was to
//!   cover and what was written since it began (under [`Durability::Sync`]; else what
//!   was written since the last sync);
//! - a frame's `durable_no` names what *a sync* has covered, never less sure things. So
//!   what can be torn names two frames at most: what was covered before the last sync
//!   that ended, and what that covered;
//! - a mark is written and synced alone: if a mark is damaged and something follows
//!   it, that is no torn write;
//! - nothing is written where acknowledged data stands: units take whole blocks.

use std::io::IoSlice;
use std::sync::Arc;

use posthouse_frame::{Frame, FrameNo, Header, Kind, Salt};

use super::index::{Index, Located};
use super::layout::{ALIGN_MOST, BLOCK_BYTES, Geometry, SegmentHeader};
use super::options::{Durability, LocalOptions};
use super::shared::Shared;
use super::table::SegmentInfo;
use crate::SegmentNo;
use crate::files::{File, FileError};

/// What padding is made of: as much as the coarsest alignment can need.
static ZEROS: [u8; ALIGN_MOST as usize] = [0; ALIGN_MOST as usize];

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub segment: Arc<SegmentInfo>,
    pub file: Arc<dyn File>,
    /// Where the next unit goes.
    pub offset: u64,
    /// The header block, until it goes down together with the first frames.
    pub head: Option<Box<[u8; BLOCK_BYTES]>>,
    /// The end mark is written: nothing more fits.
    pub ended: bool,
}

/// Where recovery left the log.
#[derive(Debug)]
pub(crate) struct End {
    /// `None` if there is no segment to go on in.
    pub active: Option<Active>,
    /// The number that the next segment gets.
    pub next_segment: SegmentNo,
    pub next: FrameNo,
    /// `header_crc` of the last unit.
    pub crc: u32,
    pub epoch: u32,
    pub wall_ms: u64,
    pub lease_ms: u64,
}

/// A sync to be made, of everything written until it was asked for.
#[derive(Debug)]
pub(crate) struct Due {
    files: Vec<Arc<dyn File>>,
    /// The last frame that it covers.
    up_to: FrameNo,
    /// Bytes written since the one before, with padding.
    pub bytes: u64,
}

impl Due {
    /// Makes the sync. Needs nothing of the writer, which can write on meanwhile.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        let mut synced = self.files.iter().map(|file| file.sync_data());
        if posthouse_frame::planted("sync-error-ignored") {
            synced.for_each(drop);
            return Ok(());
        }
        synced.try_for_each(|synced| synced)
    }
}

/// The end of the log, being written.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    end: End,
    durability: Durability,
    store: u64,
    shard: u16,
    nonce: u32,
    geometry: Geometry,
    /// The last frame written.
    written: FrameNo,
    /// The last frame that a sync has covered.
    synced: FrameNo,
    /// The last frame that a unit on the disk calls durable.
    marked: FrameNo,
    /// Ended segments that hold frames not synced yet.
    unsynced: Vec<Arc<dyn File>>,
    /// Bytes written since a sync began.
    unsynced_bytes: u64,
    headers: Vec<[u8; posthouse_frame::header::HEADER_BYTES]>,
    places: Vec<Located>,
}

impl Writer {
    /// Goes on where recovery ended. All frames before are durable.
    pub(crate) fn new(shared: Arc<Shared>, end: End, options: &LocalOptions) -> Self {
        let last = end.next.prev();
        Writer {
            shared,
            end,
            durability: options.durability,
            store: options.store,
            shard: options.shard,
            nonce: options.writer,
            geometry: options.geometry(),
            written: last,
            synced: last,
            marked: FrameNo::ZERO,
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            headers: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Takes the log over: a frame of a new epoch, durable when this returns.
    pub(crate) fn begin_epoch(&mut self) -> Result<(), FileError> {
        self.end.epoch += 1;
        let frame = Frame {
            no: self.end.next,
            records: 0,
            min_reader: 1,
            wall_ms: self.end.wall_ms,
            lease_ms: self.end.lease_ms,
            meta: bytes::Bytes::new(),
            bodies: Vec::new(),
            body_len: 0,
        };
        self.place(Kind::Epoch, &[Arc::new(frame)])?;
        self.sync()
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.end.epoch
    }

    /// Whether a sync is due some time.
    pub(crate) fn has_unsynced(&self) -> bool {
        self.synced < self.written
    }

    /// Whether a mark would say something new.
    pub(crate) fn has_unmarked(&self) -> bool {
        self.marked < self.written
    }

    /// Whether something was written that is durable only when it is synced.
    pub(crate) fn owes_sync(&self) -> bool {
        self.durability == Durability::Sync && self.has_unsynced()
    }

    /// Writes a batch. It is durable now if no sync is needed for that here.
    pub(crate) fn write(&mut self, batch: &[Arc<Frame>]) -> Result<(), FileError> {
        self.place(Kind::Data, batch)?;
        if posthouse_frame::planted("durable-before-sync") {
            self.shared.state.advance(self.written);
        }
        self.publish();
        Ok(())
    }

    /// Writes a batch, and makes it durable.
    pub(crate) fn commit(&mut self, batch: &[Arc<Frame>]) -> Result<(), FileError> {
        self.write(batch)?;
        if self.owes_sync() { self.sync() } else { Ok(()) }
    }

    fn publish(&self) {
        self.shared.state.set_synced(self.synced);
        self.shared.state.advance(match self.durability {
            Durability::Sync => self.synced,
            Durability::Interval(_) | Durability::Os => self.written,
        });
    }

    fn place(&mut self, kind: Kind, batch: &[Arc<Frame>]) -> Result<(), FileError> {
        let mut rest = batch;
        while !rest.is_empty() {
            let fitting = self.fitting(kind, rest);
            if fitting == 0 {
                self.rotate()?;
                continue;
            }
            let (run, later) = rest.split_at(fitting);
            self.write_run(kind, run)?;
            rest = later;
        }
        Ok(())
    }

    /// How many of `frames` fit in the rest of the segment.
    fn fitting(&self, kind: Kind, frames: &[Arc<Frame>]) -> usize {
        let Some(active) = self.end.active.as_ref().filter(|active| !active.ended) else {
            return 0;
        };
        let geometry = active.segment.geometry();
        let end = if kind == Kind::Data { geometry.data_end() } else { geometry.end() };
        let mut left = end.saturating_sub(active.offset);
        let fits = frames.iter().take_while(|frame| {
            let total = geometry.padded(frame.content_bytes() as u64);
            let fits = total <= left;
            left = left.saturating_sub(total);
            fits
        });
        fits.count()
    }

    /// Writes frames that fit in the active segment, back to back.
    fn write_run(&mut self, kind: Kind, run: &[Arc<Frame>]) -> Result<(), FileError> {
        self.place_run(kind, run);
        let Some(active) = self.end.active.as_mut() else {
            unreachable!("frames fit in a segment only if there is one");
        };
        let geometry = active.segment.geometry();
        let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(run.len() * 5 + 2);
        let mut from = active.offset;
        if let Some(head) = &active.head {
            from = 0;
            pieces.push(IoSlice::new(&head[..]));
            pieces.push(IoSlice::new(&ZEROS[..geometry.start() as usize - BLOCK_BYTES]));
        }
        for (frame, header) in run.iter().zip(&self.headers) {
            pieces.push(IoSlice::new(header));
            pieces.push(IoSlice::new(&frame.meta));
            pieces.extend(frame.bodies.iter().map(|piece| IoSlice::new(piece)));
            let content = frame.content_bytes() as u64;
            let padding = (geometry.padded(content) - content) as usize;
            pieces.push(IoSlice::new(&ZEROS[..padding]));
        }
        active.file.write_all_vectored_at(&mut pieces, from)?;
        active.head = None;
        if let (Some(last), Some(place)) = (run.last(), self.places.last()) {
            let total = geometry.padded(last.content_bytes() as u64);
            active.offset = place.offset + total;
            self.written = last.no;
            self.end.next = last.no.next();
            (self.end.wall_ms, self.end.lease_ms) = (last.wall_ms, last.lease_ms);
        }
        self.shared.count_written(active.offset - from);
        self.unsynced_bytes += active.offset - from;
        active.segment.note(self.places.iter().copied());
        Ok(())
    }

    /// Makes the headers of frames that go down together.
    fn place_run(&mut self, kind: Kind, run: &[Arc<Frame>]) {
        self.headers.clear();
        self.places.clear();
        let Some((segment, mut offset)) =
            self.end.active.as_ref().map(|active| (active.segment.clone(), active.offset))
        else {
            return;
        };
        for frame in run {
            let salt = Salt { store: self.store, segment: segment.no().0, offset };
            let total = segment.geometry().padded(frame.content_bytes() as u64);
            let header = Header {
                kind,
                // Checked against the segment's size, which is below 4 GiB.
                total: total as u32,
                meta_len: frame.meta.len() as u32,
                body_len: frame.body_len,
                records: frame.records,
                frame_no: frame.no,
                meta_crc: salt.crc(&frame.meta),
                wall_ms: frame.wall_ms,
                lease_ms: frame.lease_ms,
                min_reader: frame.min_reader,
                ..self.bare_header()
            };
            let (bytes, crc) = header.encode(salt);
            self.end.crc = crc;
            self.headers.push(bytes);
            let meta_len = header.meta_len;
            self.places.push(Located { frame: frame.no, offset, meta_len });
            offset += total;
        }
        // A batch's frames follow each other; that they follow the log is checked
        // where they are handed over.
        debug_assert_eq!(run.first().map(|frame| frame.no), Some(self.end.next));
    }

    /// The fields that every unit written now shares.
    fn bare_header(&self) -> Header {
        Header {
            kind: Kind::Mark,
            flags: 0,
            total: 0,
            meta_len: 0,
            body_len: 0,
            records: 0,
            frame_no: self.end.next,
            epoch: self.end.epoch,
            meta_crc: 0,
            durable_no: match posthouse_frame::planted("claims-unsynced") {
                true => self.end.next,
                false => self.synced,
            },
            wall_ms: self.end.wall_ms,
            lease_ms: self.end.lease_ms,
            prev_header_crc: self.end.crc,
            writer: self.nonce,
            min_reader: 1,
            shard: self.shard,
        }
    }

    /// Ends the active segment and begins the next.
    fn rotate(&mut self) -> Result<(), FileError> {
        // First of all, because a full disk shows here: what room is left in the old
        // segment must then stay usable for the next owner.
        let no = self.end.next_segment;
        let file = self.shared.spares.take(no)?;
        self.end.next_segment = SegmentNo(no.0 + 1);
        let mut previous = SegmentNo(0);
        if self.end.active.as_ref().is_some_and(|active| !active.ended) {
            self.write_end_mark()?;
        }
        if let Some(active) = self.end.active.take() {
            previous = active.segment.no();
            self.unsynced.push(active.file);
        }
        if self.durability == Durability::Os {
            self.sync()?;
        }
        let header = SegmentHeader {
            store: self.store,
            shard: self.shard,
            no,
            bytes: self.geometry.bytes,
            align: self.geometry.align,
            first: self.end.next,
            durable: self.synced,
            previous,
            epoch: self.end.epoch,
            prev_header_crc: self.end.crc,
        };
        let (first, empty) = (header.first, header.first.prev());
        let segment = SegmentInfo::active(header, empty, Index::new(first), file.clone());
        let segment = Arc::new(segment);
        self.shared.table.push(segment.clone());
        let offset = header.geometry().start();
        let head = Some(Box::new(header.encode()));
        self.end.active = Some(Active { segment, file, offset, head, ended: false });
        Ok(())
    }

    /// Writes what tells where a full segment ends, without reading all of it.
    fn write_end_mark(&mut self) -> Result<(), FileError> {
        let Some(active) = &self.end.active else {
            return Ok(());
        };
        let at = active.segment.geometry().end();
        let (block, _) = self.mark_block(active, at);
        active.file.write_all_at(&block, at)?;
        if let Some(active) = &mut self.end.active {
            active.ended = true;
        }
        Ok(())
    }

    fn mark_block(&self, active: &Active, at: u64) -> (Vec<u8>, u32) {
        let salt = Salt { store: self.store, segment: active.segment.no().0, offset: at };
        let total = active.segment.geometry().align;
        let header = Header { total, meta_crc: salt.crc(&[]), ..self.bare_header() };
        let (bytes, crc) = header.encode(salt);
        let mut block = vec![0; total as usize];
        block[..bytes.len()].copy_from_slice(&bytes);
        (block, crc)
    }

    /// The sync that makes everything written until now durable. At most one is under
    /// way; it ends with [`Writer::end_sync`].
    pub(crate) fn begin_sync(&mut self) -> Due {
        let mut files = std::mem::take(&mut self.unsynced);
        if posthouse_frame::planted("rotated-unsynced") {
            files.clear();
        }
        if let Some(active) = self.end.active.as_ref().filter(|_| self.synced < self.written)
            && !posthouse_frame::planted("sync-skipped")
        {
            files.push(active.file.clone());
        }
        Due { files, up_to: self.written, bytes: std::mem::take(&mut self.unsynced_bytes) }
    }

    /// A sync has been made: what it covered is durable, and that is told.
    pub(crate) fn end_sync(&mut self, due: &Due) {
        self.synced = match posthouse_frame::planted("sync-covers-later-writes") {
            true => self.written,
            false => due.up_to,
        };
        self.publish();
    }

    /// Syncs all that was written, while nobody else does.
    pub(crate) fn sync(&mut self) -> Result<(), FileError> {
        let due = self.begin_sync();
        due.sync()?;
        self.end_sync(&due);
        Ok(())
    }

    /// Leaves a mark that everything written is durable, so that damage to the last
    /// frames cannot pass for a torn write. Syncs before, and the mark itself.
    pub(crate) fn mark(&mut self) -> Result<(), FileError> {
        if !self.has_unmarked() {
            return Ok(());
        }
        self.sync()?;
        let Some(active) = &self.end.active else {
            return Ok(());
        };
        let at = active.offset;
        if active.ended {
            // Ended without a frame after it: the end mark has said it all.
        } else if at < active.segment.geometry().end() {
            let (block, crc) = self.mark_block(active, at);
            active.file.write_all_at(&block, at)?;
            active.file.sync_data()?;
            self.end.crc = crc;
            if let Some(active) = &mut self.end.active {
                active.offset += block.len() as u64;
            }
        } else {
            self.write_end_mark()?;
            if let Some(active) = &self.end.active {
                active.file.sync_data()?;
            }
        }
        self.marked = self.written;
        Ok(())
    }

    /// Bytes of frames that still fit in the active segment.
    pub(crate) fn left(&self) -> u64 {
        let active = self.end.active.as_ref().filter(|active| !active.ended);
        active.map_or(0, |a| a.segment.geometry().data_end().saturating_sub(a.offset))
    }
}
