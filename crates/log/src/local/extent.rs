//! Which files of a log directory hold the log up to a frame, and how much of each
//! counts: for copying it, also beside its owner.

use std::path::Path;

use posthouse_frame::{FrameNo, Kind};

use super::layout::Name;
use super::recovery::survey::{Head, segment_names};
use super::units::{Fault, Units};
use crate::files::{Access, FileError, Files};
use crate::{ReadError, SegmentNo};

/// A segment's file, and how much of it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its name in the log directory.
    pub name: String,
    /// Bytes from its beginning that count. In a copy, what follows them is zero.
    pub used: u64,
    /// Bytes of the file; a copy has as many.
    pub bytes: u64,
}

/// The segments in the log directory `dir` of the store `store` that have frames up to
/// `upto`, inclusive: those in `needed`, and all that were begun after them. `upto` must
/// be durable. Takes no lock, and may run beside the owner, as long as that frees none of
/// them.
///
/// A log made of them ends behind `upto`, as if the power had failed then.
///
/// # Errors
/// [`ReadError::Io`] if a file is missing or cannot be read, [`ReadError::Corrupt`] if
/// what stands before `upto` in its segment, or the header of a segment, does not hold.
/// Other segments are not looked into.
pub fn extents(
    files: &dyn Files,
    dir: &Path,
    store: u64,
    needed: &[SegmentNo],
    upto: FrameNo,
) -> Result<Vec<Extent>, ReadError> {
    let io = |error: FileError| Fault::Io(error).into_read_error(dir);
    let newest = needed.iter().max();
    let found = segment_names(files, dir).map_err(io)?.into_iter().map(|(no, _)| no);
    let mut wanted: Vec<SegmentNo> = found.filter(|no| Some(no) > newest).collect();
    wanted.extend(needed);
    wanted.sort_unstable();
    wanted.dedup();
    let mut extents = Vec::new();
    let mut last = None;
    for no in wanted {
        let path = dir.join(Name::Segment(no).to_string());
        let corrupt = |offset, what: String| ReadError::Corrupt {
            file: path.display().to_string(),
            offset,
            what,
        };
        let file = files.open(&path, Access::Read).map_err(io)?;
        let header = match Head::read(&*file, store, no).map_err(io)? {
            Head::Valid(header) if header.first <= upto => header,
            // It is being begun, or was begun behind what is wanted.
            Head::Valid(_) | Head::Blank(_) | Head::Stale(_) if !needed.contains(&no) => continue,
            head => return Err(corrupt(0, format!("segment {} is not there: {head:?}", no.0))),
        };
        extents.push(Extent {
            name: Name::Segment(no).to_string(),
            used: header.bytes,
            bytes: header.bytes,
        });
        last = Some((path, file, header));
    }
    let (Some((path, file, header)), Some(extent)) = (last, extents.last_mut()) else {
        return Ok(extents);
    };
    let geometry = header.geometry();
    let mut units = Units::new(file, store, header.no, geometry).map_err(io)?;
    let mut at = geometry.start();
    while at < geometry.end() {
        let (unit, _) = units.header(at).map_err(|fault| fault.into_read_error(&path))?;
        at += u64::from(unit.total);
        if unit.kind != Kind::Mark && unit.frame_no == upto {
            extent.used = at;
            return Ok(extents);
        }
    }
    let (file, what) = (path.display().to_string(), format!("frame {upto} is not in it"));
    Err(ReadError::Corrupt { file, offset: at, what })
}

/// Whether the file of a segment is there, with the header that it should have.
///
/// # Errors
/// What the system refused.
pub fn is_segment(
    files: &dyn Files,
    dir: &Path,
    store: u64,
    no: SegmentNo,
) -> Result<bool, FileError> {
    match files.open(&dir.join(Name::Segment(no).to_string()), Access::Read) {
        Err(error) if error.is_missing() => Ok(false),
        opened => Ok(matches!(Head::read(&*opened?, store, no)?, Head::Valid(_))),
    }
}
