//! Third and fourth step: whether what ended the walk is a torn write or damage.

use posthouse_frame::{FrameNo, Kind, header};

use super::Context;
use super::survey::Survey;
use super::walk::{At, Walk, is_ended, units};
use crate::files::FileError;
use crate::local::error::OpenError;
use crate::local::units::{Bad, Fault};

/// Units behind the log's end that hold in themselves: what a batch left that was
/// torn before them, or, if the end is damage, the rest of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leftovers {
    /// The highest frame that one of them, or a segment's header, calls durable.
    pub durable: FrameNo,
    /// One of them shows by its number that what stands at the end was synced before
    /// it was written.
    pub overtaken: bool,
    /// Where the last of them ends, for each segment of the survey from the end's on.
    pub extents: Vec<(usize, u64)>,
    /// The first frame of the next segment that has a header.
    pub next_first: Option<FrameNo>,
    /// A unit of a newer layout.
    newer: Option<(usize, u64, u8)>,
    pub bytes_read: u64,
}

impl Leftovers {
    /// Probes every place behind `at`.
    pub(crate) fn find(context: &Context, survey: &Survey, at: &At) -> Result<Self, FileError> {
        let mut left = Leftovers::default();
        for segment in at.segment.unwrap_or(0)..survey.segments.len() {
            let here = at.segment == Some(segment);
            if let Some(header) = survey.segments[segment].head.as_ref().ok().filter(|_| !here) {
                left.durable = left.durable.max(header.durable);
                left.overtaken |= header.first <= at.chain.next;
                left.next_first = left.next_first.or(Some(header.first));
            }
            let mut units = units(context, survey, segment)?;
            let (from, end) = (if here { at.offset } else { 0 }, units.geometry().end());
            let mut extent = None;
            units.probe(from, |offset, found| match found {
                Ok(header) => {
                    left.durable = left.durable.max(header.durable_no);
                    // The frame at the end proves nothing about itself: torn, it can
                    // still have a good header; or it stands in the next segment,
                    // whose header was torn. Nor does an end mark prove anything,
                    // which is not synced alone.
                    let end_mark = header.kind == Kind::Mark && offset == end;
                    let lost = at.chain.next;
                    let lower = match here {
                        true => offset > at.offset && header.frame_no <= lost,
                        false => header.frame_no < lost,
                    };
                    left.overtaken |= lower && !end_mark;
                    if !end_mark {
                        let to = (offset + u64::from(header.total)).min(end);
                        extent = extent.max(Some(to));
                    }
                }
                Err(version) => left.newer = left.newer.or(Some((segment, offset, version))),
            })?;
            left.bytes_read += units.bytes_read();
            left.extents.extend(extent.map(|to| (segment, to)));
        }
        Ok(left)
    }
}

/// Third step. The end of the walk is X, the first frame not found. It is damage if
/// X was durable, and that is so if
///
/// - the manifest says so, or
/// - a unit behind it or the header of a later segment says so, or
/// - a unit behind it in its segment has a number that is not above X, or a later
///   segment begins with X and after something else: then what stands at the end was
///   a mark, and marks are synced before anything follows them.
///
/// Else nobody was ever told that X is durable: every frame that is acknowledged is
/// covered by a unit that is written after its sync, or by a mark 20 ms later.
pub(crate) fn judge(
    context: &Context,
    survey: &Survey,
    walk: &Walk,
    left: &Leftovers,
) -> Result<(), OpenError> {
    if let Some((segment, offset, version)) = left.newer {
        let bad = Bad { offset, what: String::new(), newer: Some(version) };
        super::walk::refuse_newer(survey, segment, &bad)?;
    }
    let lost = walk.at.chain.next;
    let known = context.options.known_durable;
    let evidence = if known >= lost {
        format!("the manifest says so of frame {known}")
    } else if left.durable >= lost {
        format!("a later frame says so of frame {}", left.durable)
    } else if left.overtaken {
        "what follows was written after it was synced".to_owned()
    } else {
        return Ok(());
    };
    let ended = match walk.at.segment {
        None => true,
        Some(segment) => {
            let mut units = units(context, survey, segment)?;
            is_ended(&mut units, &walk.at.chain)?
        }
    };
    let in_no_file = ended && left.next_first.is_none_or(|first| first > lost);
    match walk.at.segment {
        Some(segment) if !in_no_file => Err(OpenError::Corrupt {
            file: survey.segments[segment].path.clone(),
            offset: walk.bad.offset,
            frame: lost,
            what: walk.bad.what.clone(),
            evidence,
        }),
        _ => Err(missing(context, survey, walk, left, evidence)),
    }
}

/// No place in the segments found could hold the frame. Either a file with a bad
/// header does, or the file is gone.
fn missing(
    context: &Context,
    survey: &Survey,
    walk: &Walk,
    left: &Leftovers,
    evidence: String,
) -> OpenError {
    let lost = walk.at.chain.next;
    let after = walk.at.segment.map_or(0, |segment| segment + 1);
    match survey.segments.get(after) {
        Some(next) if next.head.is_err() => OpenError::Corrupt {
            file: next.path.clone(),
            offset: 0,
            frame: lost,
            what: next.head.clone().err().unwrap_or_default(),
            evidence,
        },
        _ => OpenError::Missing {
            dir: context.dir.clone(),
            first: lost,
            last: left.next_first.map_or(left.durable.max(lost), FrameNo::prev),
            evidence,
        },
    }
}

/// Fourth step. The last frames may be torn behind headers that are not: their
/// bodies and padding must hold, too. Moves the end of the walk before the first
/// that does not, unless that was durable.
///
/// This looks at every frame that no unit calls durable, *and* at those that only
/// what can be torn calls so: what the last sync was to cover, and what was written
/// while it ran. That may be about to be cut, and its word with it; should this recovery
/// be broken off then, the next one has only the frames themselves to go by. It must not
/// find them bad where this one did not look.
pub(crate) fn settle(
    context: &Context,
    survey: &Survey,
    walk: &mut Walk,
    left: &Leftovers,
) -> Result<(), OpenError> {
    let durable = walk.at.chain.durable.max(left.durable);
    for recent in &walk.recent {
        let mut units = units(context, survey, recent.segment)?;
        let found = units.unit(recent.offset).and_then(|unit| units.body(&unit));
        walk.bytes_read += units.bytes_read();
        let bad = match found {
            Ok(_) => continue,
            Err(Fault::Io(error)) => return Err(error.into()),
            Err(Fault::Bad(bad)) => bad,
        };
        if recent.frame <= durable {
            return Err(OpenError::Corrupt {
                file: survey.segments[recent.segment].path.clone(),
                offset: bad.offset,
                frame: recent.frame,
                what: bad.what,
                evidence: format!("a later frame says so of frame {durable}"),
            });
        }
        walk.at = recent.before.clone();
        walk.bad = bad;
        return Ok(());
    }
    Ok(())
}

/// Whether 96 bytes at the log's end look like the header of the frame that belongs
/// there, although their checksum does not hold. What an earlier use of the file
/// left has lower numbers, and knows nothing of this chain.
pub(crate) fn resembles(bytes: &[u8], at: &At) -> bool {
    let (Some(number), Some(crc)) = (
        bytes.get(28..36).and_then(|b| b.first_chunk::<8>()),
        bytes.get(68..72).and_then(|b| b.first_chunk::<4>()),
    ) else {
        return false;
    };
    let magic = bytes.starts_with(&header::MAGIC.to_le_bytes());
    let number = u64::from_le_bytes(*number) == at.chain.next.0;
    let chained = at.chain.crc.is_some_and(|own| own != 0 && own == u32::from_le_bytes(*crc));
    [magic, number, chained].iter().filter(|agrees| **agrees).count() >= 2
}
