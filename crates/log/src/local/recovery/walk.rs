//! Second step: from the first segment that the manifest does not vouch for to the
//! end of the log, unit by unit.

use std::collections::VecDeque;

use posthouse_frame::FrameNo;

use super::Context;
use super::survey::Survey;
use crate::SegmentNo;
use crate::files::FileError;
use crate::local::chain::Chain;
use crate::local::error::OpenError;
use crate::local::layout::SegmentHeader;
use crate::local::units::{Bad, Fault, Unit, Units};

/// A place in the log, and all that is known about what lies before it.
#[derive(Clone, Debug)]
pub(crate) struct At {
    /// Which of the survey's segments; `None` before the first.
    pub segment: Option<usize>,
    /// Where the next unit would stand.
    pub offset: u64,
    pub chain: Chain,
    pub wall_ms: u64,
    pub lease_ms: u64,
    /// The unit before is a mark: the log fell idle or was closed.
    pub marked: bool,
}

/// A frame of the last two batches: see [`settle`](super::judge::settle).
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    pub before: At,
    pub frame: FrameNo,
    /// Which of the survey's segments.
    pub segment: usize,
    pub offset: u64,
}

/// An end mark that is not there although the next segment is.
#[derive(Clone, Debug)]
pub(crate) struct LostEndMark {
    pub segment: usize,
    pub at: At,
}

/// The walk, and what it found.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Where it ended: what stands there does not continue the log.
    pub at: At,
    /// Why it ended.
    pub bad: Bad,
    /// The segment of the survey with which it began.
    pub start: usize,
    /// Frames that no unit calls durable, and those that only what can be torn does.
    pub recent: VecDeque<Recent>,
    /// What units called durable before they called durable what they do now.
    covered_before: FrameNo,
    pub lost_end_marks: Vec<LostEndMark>,
    pub bytes_read: u64,
}

impl Walk {
    /// Walks from segment `start` of the survey to the end.
    pub(crate) fn run(context: &Context, survey: &Survey, start: usize) -> Result<Walk, OpenError> {
        let mut walk = Walk {
            at: At {
                segment: None,
                offset: 0,
                chain: Chain::origin(),
                wall_ms: 0,
                lease_ms: 0,
                marked: false,
            },
            bad: Bad::new(0, "no segment holds it"),
            start,
            recent: VecDeque::new(),
            covered_before: FrameNo::ZERO,
            lost_end_marks: Vec::new(),
            bytes_read: 0,
        };
        for segment in start..survey.segments.len() {
            if !walk.enter(context, survey, segment)? {
                break;
            }
            walk.segment(context, survey, segment)?;
        }
        Ok(walk)
    }

    /// Goes from the end of one segment to the beginning of the next. `false` if
    /// that does not continue the log.
    fn enter(
        &mut self,
        context: &Context,
        survey: &Survey,
        segment: usize,
    ) -> Result<bool, OpenError> {
        let Ok(header) = &survey.segments[segment].head else {
            return Ok(false);
        };
        let vouched_for = context.options.known_durable > FrameNo::ZERO;
        if segment == self.start && vouched_for {
            self.at.chain = Chain::start_of(header);
        } else if self.at.chain.continues(header).is_err() {
            return Ok(false);
        }
        if let Some(ended) = self.at.segment {
            let mut units = units(context, survey, ended)?;
            if !is_ended(&mut units, &self.at.chain)? {
                self.lost_end_marks.push(LostEndMark { segment: ended, at: self.at.clone() });
            }
        }
        self.at.segment = Some(segment);
        self.at.offset = header.geometry().start();
        Ok(true)
    }

    /// Walks one segment as far as it goes.
    fn segment(
        &mut self,
        context: &Context,
        survey: &Survey,
        segment: usize,
    ) -> Result<(), OpenError> {
        let mut units = units(context, survey, segment)?;
        self.bad = Bad::new(units.geometry().end(), "the segment ends here");
        while self.at.offset < units.geometry().end() {
            let unit = match units.unit(self.at.offset) {
                Ok(unit) => unit,
                Err(Fault::Io(error)) => return Err(error.into()),
                Err(Fault::Bad(bad)) => {
                    refuse_newer(survey, segment, &bad)?;
                    self.bad = bad;
                    break;
                }
            };
            let mut chain = self.at.chain.clone();
            if let Err(what) = chain.step(&unit) {
                self.bad = Bad::new(unit.offset, what);
                break;
            }
            self.accept(context, segment, chain, &unit);
        }
        self.bytes_read += units.bytes_read();
        Ok(())
    }

    fn accept(&mut self, context: &Context, segment: usize, chain: Chain, unit: &Unit) {
        let frame = unit.header.frame_no;
        if unit.is_frame() && frame > context.options.known_durable {
            let before = self.at.clone();
            self.recent.push_back(Recent { before, frame, segment, offset: unit.offset });
        }
        let covered = self.at.chain.durable;
        if unit.header.durable_no > covered {
            // What can be torn calls two frames durable; only what lies before both is
            // called so by a unit that certainly stays.
            let sure = std::mem::replace(&mut self.covered_before, covered);
            while self.recent.front().is_some_and(|recent| recent.frame <= sure) {
                self.recent.pop_front();
            }
        }
        self.at = At {
            segment: Some(segment),
            offset: unit.end(),
            chain,
            wall_ms: unit.header.wall_ms,
            lease_ms: unit.header.lease_ms,
            marked: !unit.is_frame(),
        };
    }
}

/// A reader of one of the survey's segments.
pub(crate) fn units(
    context: &Context,
    survey: &Survey,
    segment: usize,
) -> Result<Units, FileError> {
    let found = &survey.segments[segment];
    let geometry = found.geometry(context.options.geometry());
    Units::new(found.open(context)?, context.options.store, found.no, geometry)
}

/// Whether the segment has an end mark that says: so far, and no further.
pub(crate) fn is_ended(units: &mut Units, chain: &Chain) -> Result<bool, FileError> {
    match units.end_mark() {
        Ok(mark) => {
            let follows = chain.crc.is_none_or(|crc| mark.header.prev_header_crc == crc);
            Ok(mark.header.frame_no == chain.next && follows)
        }
        Err(Fault::Bad(_)) => Ok(false),
        Err(Fault::Io(error)) => Err(error),
    }
}

/// A newer layout is no damage, and nothing to be cut.
pub(crate) fn refuse_newer(survey: &Survey, segment: usize, bad: &Bad) -> Result<(), OpenError> {
    match bad.newer {
        None => Ok(()),
        Some(found) => Err(OpenError::Newer {
            file: survey.segments[segment].path.clone(),
            offset: bad.offset,
            found: found.into(),
            known: posthouse_frame::header::VERSION.into(),
        }),
    }
}

/// The segment to begin with: the last that begins no later than what the manifest
/// calls durable. Those before it must be in order, but are not read.
pub(crate) fn start(context: &Context, survey: &Survey) -> Result<usize, OpenError> {
    let known = context.options.known_durable;
    if known == FrameNo::ZERO {
        return Ok(0);
    }
    let begins_before = |head: &Result<SegmentHeader, String>| {
        head.as_ref().is_ok_and(|header| header.first <= known)
    };
    let Some(start) = survey.segments.iter().rposition(|segment| begins_before(&segment.head))
    else {
        let found = survey.segments.iter().find_map(|segment| segment.head.as_ref().ok());
        return Err(OpenError::Missing {
            dir: context.dir.clone(),
            first: FrameNo(1),
            last: found.map_or(known, |header| header.first.prev()),
            evidence: format!("the manifest calls frame {known} durable"),
        });
    };
    let mut first = FrameNo::ZERO;
    for segment in &survey.segments[..=start] {
        let what = match &segment.head {
            Ok(header) if header.first > first => {
                first = header.first;
                continue;
            }
            Ok(header) => format!("it begins with frame {}, which is held already", header.first),
            Err(what) => what.clone(),
        };
        return Err(OpenError::Corrupt {
            file: segment.path.clone(),
            offset: 0,
            frame: first.next(),
            what,
            evidence: format!("the manifest calls frame {known} durable"),
        });
    }
    Ok(start)
}

/// The last frame of a segment that was not walked, because the one after it says
/// so, or its own end mark.
pub(crate) fn last_frame(
    context: &Context,
    survey: &Survey,
    segment: usize,
) -> Result<FrameNo, OpenError> {
    let found = &survey.segments[segment];
    if let Some(Ok(next)) = survey.segments.get(segment + 1).map(|next| &next.head)
        && next.previous == found.no
    {
        return Ok(next.first.prev());
    }
    let mut units = units(context, survey, segment)?;
    match units.end_mark() {
        Ok(mark) => Ok(mark.header.frame_no.prev()),
        Err(Fault::Io(error)) => Err(error.into()),
        Err(Fault::Bad(bad)) => Err(OpenError::Corrupt {
            file: found.path.clone(),
            offset: bad.offset,
            frame: found.head.as_ref().map_or(FrameNo::ZERO, |header| header.first),
            what: format!("{}, and so it is not known where the segment ends", bad.what),
            evidence: format!("segment {} was begun after it", next_no(survey, segment).0),
        }),
    }
}

fn next_no(survey: &Survey, segment: usize) -> SegmentNo {
    survey.segments.get(segment + 1).map_or(SegmentNo(0), |next| next.no)
}
