//! Fifth step: cut what lies behind the log's end, so that it stays cut.
//!
//! Frames behind the end can be valid in themselves: written in the same batch as
//! the torn one. The next owner writes another frame in the torn one's place, and
//! the file will be recycled one day; neither must ever bring them back, nor must a
//! body of theirs pass for one of a new frame with the same number. So nothing of
//! them is left: the rest of the last segment is zeroed where it is not zero, and
//! later segments become files to be zero-filled, before a new frame is written.
//! Then no file of the log holds anything sealed for a frame number past its end:
//! the invariant on which the checks of bodies, which know no segment, rely.
//!
//! The order makes this safe to break off at any point: the copy is durable before
//! anything is cut, and cutting removes units from behind the end but never makes
//! one appear, so that a second recovery finds the same end.

use std::path::PathBuf;

use posthouse_frame::header::HEADER_BYTES;
use posthouse_frame::{FrameNo, Header, Kind, Salt};

use super::Context;
use super::judge::{Leftovers, resembles};
use super::survey::Survey;
use super::walk::{LostEndMark, Walk, is_ended, units};
use crate::files::{File, FileError};
use crate::local::error::OpenError;
use crate::local::layout::Name;

/// Copied, zeroed and looked through in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;
/// Zeroing leaves alone what is zero already, in steps of this size.
const STEP_BYTES: usize = 64 << 10;
/// Before the copied bytes: where they come from, in words.
const COPY_HEAD_BYTES: usize = 4096;

/// A piece of a file that recovery cut off: a torn write, never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment file.
    pub file: PathBuf,
    /// Byte offset in it.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The first frame that was cut, here or in an earlier piece.
    pub frame: FrameNo,
    /// Where the bytes were copied to, after a head of 4096 bytes that says where
    /// they come from. Never read again; to be removed by hand.
    pub copy: PathBuf,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cut {} bytes of an unfinished write from {} at byte {}: frame {} was never \
             acknowledged. A copy is in {}",
            self.bytes,
            self.file.display(),
            self.offset,
            self.frame,
            self.copy.display()
        )
    }
}

/// Makes the log end at `walk.at`. Returns what was cut, and whether the last
/// segment can take no more frames because it has its end mark.
pub(crate) fn cut(
    context: &Context,
    survey: &mut Survey,
    walk: &Walk,
    left: &Leftovers,
) -> Result<(Vec<Cut>, bool), OpenError> {
    let cuts = copy_aside(context, survey, walk, left)?;
    retire_later(context, survey, walk)?;
    for lost in &walk.lost_end_marks {
        if walk.at.segment.is_some_and(|end| lost.segment < end) {
            write_end_mark(context, survey, lost)?;
        }
    }
    let Some(last) = walk.at.segment else {
        return Ok((cuts, false));
    };
    let mut units = units(context, survey, last)?;
    if is_ended(&mut units, &walk.at.chain)? {
        // Nothing is written here any more, and nothing was behind the end. The
        // mark stays: it may be all that says that the last frames are durable.
        return Ok((cuts, true));
    }
    zero_rest(&*survey.segments[last].open(context)?, walk.at.offset)?;
    Ok((cuts, false))
}

/// Copies what was cut and is this log's: from the end to the last unit behind it
/// that is valid in itself, and the frame at the end, if it looks like one. The
/// remains of an earlier use of the file are not copied.
fn copy_aside(
    context: &Context,
    survey: &mut Survey,
    walk: &Walk,
    left: &Leftovers,
) -> Result<Vec<Cut>, OpenError> {
    let mut cuts = Vec::new();
    for segment in walk.at.segment.unwrap_or(0)..survey.segments.len() {
        let here = walk.at.segment == Some(segment);
        let from = if here { walk.at.offset } else { 0 };
        let mut to = left.extents.iter().find(|extent| extent.0 == segment).map(|e| e.1);
        if here {
            to = to.max(torn_extent(context, survey, walk, segment)?);
        }
        let len = survey.segments[segment].len;
        let Some(to) = to.map(|to| to.min(len)).filter(|to| *to > from) else {
            continue;
        };
        let name = Name::Cut { frame: walk.at.chain.next, n: survey.next_cut };
        survey.next_cut += 1;
        let found = &survey.segments[segment];
        let cut = Cut {
            file: found.path.clone(),
            offset: from,
            bytes: to - from,
            frame: walk.at.chain.next,
            copy: context.dir.join(name.to_string()),
        };
        copy(context, &*found.open(context)?, &cut)?;
        cuts.push(cut);
    }
    if !cuts.is_empty() {
        context.files.sync_dir(&context.dir)?;
    }
    Ok(cuts)
}

/// Where a frame at the end would end by its own word, if there is one that is not
/// readable. If its word is no help, a bounded piece is taken.
fn torn_extent(
    context: &Context,
    survey: &Survey,
    walk: &Walk,
    segment: usize,
) -> Result<Option<u64>, FileError> {
    let mut units = units(context, survey, segment)?;
    let geometry = units.geometry();
    let bytes = units.bytes(walk.at.offset, HEADER_BYTES)?;
    if !resembles(&bytes, &walk.at) {
        return Ok(None);
    }
    let total = bytes.get(12..16).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
    let sane = |total: &u64| {
        *total > 0 && total.is_multiple_of(u64::from(geometry.align)) && *total <= geometry.room()
    };
    let bound = geometry.padded(context.options.max_frame_bytes as u64);
    let total = total.map(u64::from).filter(sane).unwrap_or(bound);
    Ok(Some((walk.at.offset + total).min(geometry.end())))
}

fn copy(context: &Context, from: &dyn File, cut: &Cut) -> Result<(), FileError> {
    let words = format!(
        "posthouse: cut from a log by recovery\nstore {:016x}\nshard {}\nfile {}\noffset {}\n\
         bytes {}\nfirst frame {}\n",
        context.options.store,
        context.options.shard,
        cut.file.file_name().unwrap_or_default().to_string_lossy(),
        cut.offset,
        cut.bytes,
        cut.frame,
    );
    let mut head = words.into_bytes();
    head.resize(COPY_HEAD_BYTES, 0);
    let to = context.files.create(&cut.copy)?;
    to.write_all_at(&head, 0)?;
    let mut done = 0;
    while done < cut.bytes {
        let n = PIECE_BYTES.min(cut.bytes - done);
        let mut piece = vec![0; n as usize];
        from.read_exact_at(&mut piece, cut.offset + done)?;
        to.write_all_at(&piece, COPY_HEAD_BYTES as u64 + done)?;
        done += n;
    }
    to.sync_all()
}

/// Gives files behind the last segment a name under which their content means
/// nothing, and the number in it is free of them, durably.
fn retire_later(context: &Context, survey: &mut Survey, walk: &Walk) -> Result<(), OpenError> {
    let kept = walk.at.segment.map_or(0, |last| last + 1);
    if kept == survey.segments.len() {
        return Ok(());
    }
    for found in survey.segments.drain(kept..) {
        if found.len == context.options.segment_bytes {
            let n = survey.spares.next_n;
            survey.spares.next_n += 1;
            let name = Name::Fill(n).to_string();
            context.files.rename(&found.path, &context.dir.join(name))?;
            survey.spares.fills.push(n);
        } else {
            context.files.unlink(&found.path)?;
        }
    }
    context.files.sync_dir(&context.dir)?;
    Ok(())
}

/// A segment that was ended in the batch that was torn, where that part got lost.
fn write_end_mark(context: &Context, survey: &Survey, lost: &LostEndMark) -> Result<(), OpenError> {
    let found = &survey.segments[lost.segment];
    let geometry = found.geometry(context.options.geometry());
    let at = geometry.end();
    let salt = Salt { store: context.options.store, segment: found.no.0, offset: at };
    let header = Header {
        kind: Kind::Mark,
        flags: 0,
        total: geometry.align,
        meta_len: 0,
        body_len: 0,
        records: 0,
        frame_no: lost.at.chain.next,
        epoch: lost.at.chain.epoch.unwrap_or(0),
        meta_crc: salt.crc(&[]),
        durable_no: lost.at.chain.durable,
        wall_ms: lost.at.wall_ms,
        lease_ms: lost.at.lease_ms,
        prev_header_crc: lost.at.chain.crc.unwrap_or(0),
        writer: context.options.writer,
        min_reader: 1,
        shard: context.options.shard,
    };
    let mut block = vec![0; geometry.align as usize];
    block[..HEADER_BYTES].copy_from_slice(&header.encode(salt).0);
    let file = found.open(context)?;
    file.write_all_at(&block, at)?;
    file.sync_data()?;
    Ok(())
}

/// Makes everything from `from` to the end of the file zero, durably.
fn zero_rest(file: &dyn File, from: u64) -> Result<(), FileError> {
    let (mut at, len) = (from, file.size()?);
    let mut changed = false;
    while at < len {
        let mut piece = vec![0; PIECE_BYTES.min(len - at) as usize];
        file.read_exact_at(&mut piece, at)?;
        for (n, step) in piece.chunks(STEP_BYTES).enumerate() {
            if step.iter().any(|b| *b != 0) {
                let zeros = vec![0; step.len()];
                file.write_all_at(&zeros, at + (n * STEP_BYTES) as u64)?;
                changed = true;
            }
        }
        at += piece.len() as u64;
    }
    if changed { file.sync_data() } else { Ok(()) }
}

/// Removes spares that no segment can be made of any more.
pub(crate) fn remove_misfits(context: &Context, survey: &Survey) -> Result<(), FileError> {
    for path in &survey.misfits {
        context.files.unlink(path)?;
    }
    Ok(())
}
