//! Opening a log directory: finding the log's end, whatever happened to it.
//!
//! ```text
//!  Survey ──> Walk ──────> Judge ─────> Settle ────> Cut ──────> (a new epoch)
//!  names,     units from   torn, or     bodies of    copy the
//!  headers    the manifest damage?      the last     torn end,
//!             on to the    (refuse)     frames       make it
//!             end                                    vanish
//! ```
//! A machine without a clock, random choices or memory of earlier runs: what it
//! decides follows from the content of the directory and the options. It may be
//! broken off anywhere and run again with the same result; until the last step it
//! changes nothing.
//!
//! What is *torn* (never acknowledged, because the sync that was to make it durable
//! did not return) is cut; what is *damage* is refused, and left as it is; an error
//! of the disk is neither, and refused. [`judge`](judge::judge) tells them apart.
//! One thing it cannot tell: if the process dies less than 20 ms after the last sync
//! and before another, *and* a bit of those last frames turns, this looks torn. The
//! frames are then cut, reported, and kept in a copy.

pub(crate) mod cut;
pub(crate) mod judge;
pub(crate) mod survey;
pub(crate) mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_frame::FrameNo;

pub use self::cut::Cut;
use self::judge::Leftovers;
use self::survey::Survey;
use self::walk::Walk;
use super::error::OpenError;
use super::options::LocalOptions;
use super::spares;
use super::table::{SegmentInfo, build_index};
use super::writer::{Active, End};
use crate::files::Files;
use crate::{Segment, SegmentNo};

/// What opening a log found.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// The oldest frame held; of the new epoch, if the log was empty.
    pub first: FrameNo,
    /// The last frame that was found; zero if the log was empty. The frame after it
    /// is the one that begins the new epoch.
    pub last: FrameNo,
    /// The epoch that has begun.
    pub epoch: u32,
    /// The wall clock in the last frame found, Unix milliseconds.
    pub wall_ms: u64,
    /// The lease clock in the last frame found, milliseconds.
    pub lease_ms: u64,
    /// Whether the log had fallen idle or been closed: nothing was on its way when
    /// it ended.
    pub clean: bool,
    /// What was cut off. Empty also if a torn write left nothing of itself.
    pub cut: Vec<Cut>,
    /// The segments held.
    pub segments: Vec<Segment>,
    /// Bytes read.
    pub bytes_read: u64,
    /// Time taken, with the new epoch.
    pub took: Duration,
}

/// What recovery works on.
#[derive(Debug)]
pub(crate) struct Context {
    pub files: Arc<dyn Files>,
    pub dir: PathBuf,
    pub options: LocalOptions,
}

/// A log whose end is known. Nothing has been changed.
#[derive(Debug)]
pub(crate) struct Examination {
    context: Context,
    survey: Survey,
    walk: Walk,
    left: Leftovers,
    /// The segments that stay, the last one ready to be written.
    pub segments: Vec<Arc<SegmentInfo>>,
    began: Instant,
}

/// A log whose end is known and clean, before the new epoch.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub end: End,
    pub spares: spares::Found,
    pub cut: Vec<Cut>,
    pub clean: bool,
    pub bytes_read: u64,
    pub began: Instant,
}

/// Runs the machine up to where it would change something.
pub(crate) fn examine(
    files: Arc<dyn Files>,
    dir: &Path,
    options: &LocalOptions,
) -> Result<Examination, OpenError> {
    let began = Instant::now();
    let context = Context { files, dir: dir.to_owned(), options: options.clone() };
    let mut survey = Survey::take(&context)?;
    let start = walk::start(&context, &survey)?;
    survey.face_the_disk(&context, start)?;
    let mut walk = Walk::run(&context, &survey, start)?;
    let mut left = Leftovers::find(&context, &survey, &walk.at)?;
    judge::judge(&context, &survey, &walk, &left)?;
    let end = walk.at.chain.next;
    judge::settle(&context, &survey, &mut walk, &left)?;
    if walk.at.chain.next != end {
        left = Leftovers::find(&context, &survey, &walk.at)?;
    }
    let segments = segments(&context, &survey, &walk)?;
    Ok(Examination { context, survey, walk, left, segments, began })
}

impl Examination {
    /// The last frame of the log; zero if there is none.
    pub(crate) fn last(&self) -> FrameNo {
        self.walk.at.chain.next.prev()
    }

    /// The wall and the lease clock in the last frame, milliseconds.
    pub(crate) fn clocks(&self) -> (u64, u64) {
        (self.walk.at.wall_ms, self.walk.at.lease_ms)
    }

    /// The last step: cuts what lies behind the end.
    pub(crate) fn settle(self) -> Result<Recovered, OpenError> {
        let Examination { context, mut survey, walk, left, segments, began } = self;
        let (cut, ended) = cut::cut(&context, &mut survey, &walk, &left)?;
        cut::remove_misfits(&context, &survey)?;
        let active = match (walk.at.segment, segments.last()) {
            (Some(last), Some(segment)) => Some(Active {
                segment: segment.clone(),
                file: survey.segments[last].open(&context)?,
                offset: walk.at.offset,
                head: None,
                ended,
            }),
            _ => None,
        };
        let end = End {
            active,
            next_segment: SegmentNo(survey.next_segment),
            next: walk.at.chain.next,
            crc: walk.at.chain.crc.unwrap_or(0),
            epoch: walk.at.chain.epoch.unwrap_or(0),
            wall_ms: walk.at.wall_ms,
            lease_ms: walk.at.lease_ms,
        };
        Ok(Recovered {
            end,
            spares: std::mem::take(&mut survey.spares),
            cut,
            clean: walk.at.marked,
            bytes_read: walk.bytes_read + left.bytes_read,
            began,
        })
    }
}

/// The segments that stay, the last one ready to be written.
fn segments(
    context: &Context,
    survey: &Survey,
    walk: &Walk,
) -> Result<Vec<Arc<SegmentInfo>>, OpenError> {
    let mut segments = Vec::new();
    let Some(last) = walk.at.segment else {
        return Ok(segments);
    };
    for (n, found) in survey.segments.iter().enumerate().take(last + 1) {
        let Ok(header) = found.head else {
            unreachable!("the walk enters no segment without a header, nor do those before");
        };
        let last_frame = match n == last {
            true => walk.at.chain.next.prev(),
            false => walk::last_frame(context, survey, n)?,
        };
        let info = SegmentInfo::found(header, last_frame);
        segments.push(Arc::new(match n == last {
            false => info,
            true => {
                let index = build_index(&info, &mut walk::units(context, survey, n)?)?;
                SegmentInfo::active(header, last_frame, index, found.open(context)?)
            }
        }));
    }
    Ok(segments)
}
