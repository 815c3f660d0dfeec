//! Reading single bodies.

use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::header::HEADER_BYTES;
use posthouse_frame::{BodyRef, FrameNo, Kind, body};

use super::index::SPACING_BYTES;
use super::shared::Shared;
use super::table::SegmentInfo;
use super::units::{Bad, Fault, Units};
use crate::ReadError;

/// Bodies nearer to each other than this are read together.
const GAP_BYTES: u64 = 32 << 10;
/// The most that is read at once, unless one body alone is larger.
const READ_BYTES: u64 = 1 << 20;
/// Bodies up to this size get memory of their own, so that one that is kept does
/// not keep all that was read with it.
const COPY_BYTES: usize = 16 << 10;

type Answer = Result<Bytes, ReadError>;

/// A body, and where it stands in its segment.
struct Wanted {
    /// Which of the places asked for.
    n: usize,
    place: BodyRef,
    segment: Arc<SegmentInfo>,
    offset: u64,
}

impl Wanted {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.place.len)
    }
}

/// Reads the bodies at `places`, from memory where possible.
pub(crate) fn read(shared: &Shared, places: &[BodyRef]) -> Vec<Answer> {
    let durable = shared.state.durable();
    let mut answers: Vec<Option<Answer>> = vec![None; places.len()];
    let mut missed = Vec::new();
    for (n, place) in places.iter().enumerate() {
        if place.frame > durable {
            answers[n] = Some(Err(shared.gone(place.frame)));
        } else if let Some(content) = shared.tail.get(*place) {
            answers[n] = Some(Ok(content));
        } else {
            missed.push(n);
        }
    }
    missed.sort_by_key(|n| places[*n]);
    let mut finder = Finder { shared, at: None };
    let mut wanted: Vec<Wanted> = Vec::with_capacity(missed.len());
    for n in missed {
        match finder.find(places[n]) {
            Ok((segment, offset)) => {
                wanted.push(Wanted { n, place: places[n], segment, offset });
            }
            Err(error) => answers[n] = Some(Err(error)),
        }
    }
    // By place, which is the order of frames except for places that never were one.
    wanted.sort_by_key(|wanted| (wanted.segment.no(), wanted.offset));
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let (together, later) = rest.split_at(near(rest));
        for (wanted, answer) in together.iter().zip(read_together(shared, together)) {
            answers[wanted.n] = Some(answer);
        }
        rest = later;
    }
    // Every place was answered above; this only says so to the compiler.
    let unanswered = || Err(shared.gone(FrameNo::ZERO));
    answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
}

/// How many of `wanted`, from the first on, are read at once.
fn near(wanted: &[Wanted]) -> usize {
    let first = &wanted[0];
    let mut end = first.end();
    let joins = wanted.iter().skip(1).take_while(|next| {
        let joins = next.segment.no() == first.segment.no()
            && next.offset < end + GAP_BYTES
            && next.end() <= first.offset + READ_BYTES;
        end = end.max(next.end());
        joins
    });
    1 + joins.count()
}

fn read_together(shared: &Shared, wanted: &[Wanted]) -> Vec<Answer> {
    let segment = &wanted[0].segment;
    let start = wanted[0].offset;
    let end = wanted.iter().map(Wanted::end).max().unwrap_or(start);
    // A place that was never one may lie past the segment's end.
    let end = end.min(segment.header.bytes).max(start);
    let mut buf = vec![0; (end - start) as usize];
    let read = shared.table.file(segment).and_then(|file| file.read_exact_at(&mut buf, start));
    let buf = Bytes::from(buf);
    let answer = |wanted: &Wanted| {
        let fail = |fault| Err(shared.read_error(segment, wanted.place.frame, fault));
        if let Err(error) = &read {
            return fail(Fault::Io(error.clone()));
        }
        let from = ((wanted.offset - start) as usize).min(buf.len());
        let to = (from + wanted.place.len as usize).min(buf.len());
        match body::open(buf.slice(from..to), wanted.place) {
            Ok(content) if content.len() <= COPY_BYTES => Ok(Bytes::copy_from_slice(&content)),
            Ok(content) => Ok(content),
            Err(error) => fail(Bad::new(wanted.offset, error.to_string()).into()),
        }
    };
    wanted.iter().map(answer).collect()
}

/// Finds frames, asked for in order.
struct Finder<'a> {
    shared: &'a Shared,
    at: Option<FoundFrame>,
}

/// The frame found last, and the way to those after it.
struct FoundFrame {
    segment: Arc<SegmentInfo>,
    frame: FrameNo,
    /// Where its body section begins.
    section: u64,
    /// Headers read from the segment, and where the next one stands.
    way: Option<(Units, u64)>,
}

impl Finder<'_> {
    /// The segment that holds `place`, and the offset in it.
    fn find(&mut self, place: BodyRef) -> Result<(Arc<SegmentInfo>, u64), ReadError> {
        if self.at.as_ref().is_none_or(|at| at.frame != place.frame) {
            let last = self.at.take();
            let segment = self.shared.table.holding(place.frame);
            let segment = segment.ok_or_else(|| self.shared.gone(place.frame))?;
            let found = self.find_frame(&segment, place.frame, last);
            let found =
                found.map_err(|fault| self.shared.read_error(&segment, place.frame, fault))?;
            self.at = Some(found);
        }
        match &self.at {
            Some(at) => Ok((at.segment.clone(), at.section + u64::from(place.at))),
            None => Err(self.shared.gone(place.frame)),
        }
    }

    fn find_frame(
        &self,
        segment: &Arc<SegmentInfo>,
        frame: FrameNo,
        last: Option<FoundFrame>,
    ) -> Result<FoundFrame, Fault> {
        let near = self.shared.table.near(segment, frame)?;
        let header = HEADER_BYTES as u64;
        let last = last.filter(|last| last.segment.no() == segment.no());
        if near.frame == frame {
            let section = near.offset + header + u64::from(near.meta_len);
            let way = last.and_then(|last| last.way).map(|(units, _)| (units, near.offset));
            return Ok(FoundFrame { segment: segment.clone(), frame, section, way });
        }
        let (last_frame, way) = match last {
            Some(FoundFrame { frame, way, .. }) => (Some(frame), way),
            None => (None, None),
        };
        let (mut units, mut offset) = match way {
            Some((units, offset)) if last_frame > Some(near.frame) => (units, offset),
            Some((units, _)) => (units, near.offset),
            None => {
                let units = self.shared.table.units(segment)?;
                (units.short(SPACING_BYTES as usize), near.offset)
            }
        };
        loop {
            let (found, _) = units.header(offset)?;
            let next = offset + u64::from(found.total);
            if found.kind != Kind::Mark && found.frame_no >= frame {
                if found.frame_no > frame {
                    let what = format!("frame {} stands where {frame} should", found.frame_no);
                    return Err(Bad::new(offset, what).into());
                }
                let section = offset + header + u64::from(found.meta_len);
                let way = Some((units, next));
                return Ok(FoundFrame { segment: segment.clone(), frame, section, way });
            }
            offset = next;
        }
    }
}
