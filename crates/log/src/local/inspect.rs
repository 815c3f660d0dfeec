//! Walking a log directory without owning it: for verifying and for looking.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::{FrameNo, Header, Kind};

use super::chain::Chain;
use super::layout::{ALIGN_LEAST, Geometry, SegmentHeader};
use super::recovery::survey::{Head, segment_names};
use super::units::{Fault, Unit, Units};
use crate::files::{Access, File, FileError, Files};
use crate::{Part, ReadError, SegmentNo};

/// A frame or a mark, and where it stands.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The segment.
    pub segment: SegmentNo,
    /// Byte offset in its file.
    pub offset: u64,
    /// The header. Its kind tells frames from marks.
    pub header: Header,
    /// The meta section, verified.
    pub meta: Bytes,
    /// The body section, verified; `None` with [`Part::Meta`].
    pub body: Option<Bytes>,
}

/// Goes over every unit in the log directory `dir` of the store `store`, oldest
/// first, marks included. Reads only, takes no lock, and may run beside the owner.
///
/// Damage is an item, too: the walk goes on behind it where it can. An incomplete
/// end is none, see [`Inspection::torn`]; it is told from damage as opening a log
/// tells it, by whether anything behind it, in later segments too, says that it was
/// durable. What the owner writes, frees and reuses meanwhile is told from damage by
/// looking again: a segment that is no longer there under its name was freed, and a
/// place that did not hold, header, meta or body, is read once more after it was seen
/// what stands behind it, because the owner writes in order.
///
/// # Errors
/// If the directory cannot be listed.
pub fn inspect(
    files: Arc<dyn Files>,
    dir: &Path,
    store: u64,
    part: Part,
) -> Result<Inspection, FileError> {
    segment_names(&*files, dir)?;
    Ok(Inspection {
        files,
        dir: dir.to_owned(),
        store,
        part,
        current: None,
        after: None,
        walked: None,
        chain: Chain::origin(),
        torn: None,
        segments: 0,
        bytes_read: 0,
        done: false,
    })
}

/// A walk over a log directory. Made by [`inspect`].
#[derive(Debug)]
pub struct Inspection {
    files: Arc<dyn Files>,
    dir: PathBuf,
    store: u64,
    part: Part,
    current: Option<Current>,
    /// The segment looked at last.
    after: Option<SegmentNo>,
    /// The same if it was walked to its end, as far as `chain` says.
    walked: Option<SegmentNo>,
    chain: Chain,
    torn: Option<(PathBuf, u64)>,
    segments: usize,
    bytes_read: u64,
    done: bool,
}

#[derive(Debug)]
struct Current {
    path: PathBuf,
    header: SegmentHeader,
    units: Units,
    offset: u64,
}

/// A segment file, and what its header block says.
type OpenedSegment = (Arc<dyn File>, Head);

/// What stands where the walk could not go on.
enum Ahead {
    /// It can go on after all, or look again: it was being written.
    Unit,
    /// The segment was freed meanwhile.
    Freed,
    /// The segment ends here, as it should.
    End,
    /// The log ends here; `true` if something was begun behind it.
    Tail(bool),
    /// Damage. The next unit that holds stands there, if there is one.
    Damage(Option<(u64, Header)>, String),
}

impl Inspection {
    /// Where the log's end holds the remains of a write that did not get through:
    /// the file, and the byte in it. Known after the last item. The next opening
    /// will cut them.
    pub fn torn(&self) -> Option<&(PathBuf, u64)> {
        self.torn.as_ref()
    }

    /// Segments looked at so far.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read + self.current.as_ref().map_or(0, |current| current.units.bytes_read())
    }

    fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> ReadError {
        ReadError::Corrupt { file: path.display().to_string(), offset, what: what.into() }
    }

    fn names_after(&self) -> Result<Vec<(SegmentNo, PathBuf)>, FileError> {
        let mut names = segment_names(&*self.files, &self.dir)?;
        names.retain(|(no, _)| Some(*no) > self.after);
        Ok(names)
    }

    /// Opens the next segment. `false` if there is none.
    fn enter(&mut self) -> Result<bool, ReadError> {
        let path = self.dir.clone();
        let io = |error: FileError| Fault::Io(error).into_read_error(&path);
        let names = self.names_after().map_err(io)?;
        let Some((no, path)) = names.first().cloned() else {
            return Ok(false);
        };
        let previous = self.after.replace(no);
        let Some((file, head)) = self.read_head(&path, no).map_err(io)? else {
            return Ok(true);
        };
        let what = match head {
            Head::Valid(header) => {
                let entered = self.begin(&header);
                let units = Units::new(file, self.store, no, header.geometry()).map_err(io)?;
                let units = if self.part == Part::Whole { units.whole() } else { units };
                let offset = header.geometry().start();
                self.segments += 1;
                self.current = Some(Current { path: path.clone(), header, units, offset });
                return entered.map(|()| true).map_err(|what| Self::corrupt(&path, 0, what));
            }
            // It may be one that is just being begun, or that was when the power failed.
            Head::Blank(_) | Head::Stale(_)
                if self.durable_in(&names, self.chain.next).map_err(io)? < self.chain.next =>
            {
                self.torn = Some((path, 0));
                return Ok(false);
            }
            Head::Blank(what) => what,
            Head::Stale(header) | Head::Exchanged(header) => {
                format!("the file holds segment {}", header.no.0)
            }
            Head::Foreign(header) => format!("the file is of store {:016x}", header.store),
            Head::Newer(version) => format!("the segment has layout {version}, which is newer"),
            Head::WrongSize(header) => format!("the file should have {} bytes", header.bytes),
        };
        if let Some((_, Head::Valid(_))) = self.read_head(&path, no).map_err(io)? {
            // It was begun while what is in it was looked at: once more.
            self.after = previous;
            return Ok(true);
        }
        Err(Self::corrupt(&path, 0, what))
    }

    /// Opens a segment file. `None` if it was freed meanwhile.
    fn open(&self, path: &Path) -> Result<Option<Arc<dyn File>>, FileError> {
        match self.files.open(path, Access::Read) {
            Err(error) if error.is_missing() => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens a segment file and reads its header. `None` if it was freed meanwhile.
    fn read_head(&self, path: &Path, no: SegmentNo) -> Result<Option<OpenedSegment>, FileError> {
        let mut found = None;
        // Once more if it is not as it should be: between being found under its name
        // and being read it may have been freed, or begun.
        for _ in 0..2 {
            let Some(file) = self.open(path)? else { return Ok(None) };
            let head = Head::read(&*file, self.store, no)?;
            let valid = matches!(head, Head::Valid(_));
            found = Some((file, head));
            if valid {
                break;
            }
        }
        Ok(found)
    }

    /// The highest frame that anything in the segments `names` calls durable; some frame
    /// not below `frame`, if there is one.
    fn durable_in(
        &self,
        names: &[(SegmentNo, PathBuf)],
        frame: FrameNo,
    ) -> Result<FrameNo, FileError> {
        let mut durable = FrameNo::ZERO;
        for (no, path) in names {
            let Some(file) = self.open(path)? else { continue };
            let geometry = match Head::read(&*file, self.store, *no)? {
                Head::Valid(header) => {
                    durable = durable.max(header.durable);
                    header.geometry()
                }
                _ => Geometry { bytes: file.size()?, align: ALIGN_LEAST },
            };
            if durable < frame {
                Units::new(file, self.store, *no, geometry)?.probe(0, |_, found| {
                    durable = durable.max(found.map_or(FrameNo::ZERO, |header| header.durable_no));
                })?;
            }
            if durable >= frame {
                break;
            }
        }
        Ok(durable)
    }

    /// Whether the segment continues the one before it. Goes on with it anyway.
    fn begin(&mut self, header: &SegmentHeader) -> Result<(), String> {
        let linked = Some(header.previous) == self.walked.take();
        let continues = if linked { self.chain.continues(header) } else { Ok(()) };
        let epoch = self.chain.epoch.filter(|_| linked);
        self.chain = Chain { epoch, ..Chain::start_of(header) };
        continues
    }

    /// The next item, or a step towards it.
    fn step(&mut self) -> Result<Option<Inspected>, ReadError> {
        let Some(mut current) = self.current.take() else {
            self.done = !self.enter()?;
            return Ok(None);
        };
        let before = self.chain.clone();
        let (found, bad) = match self.next_unit(&mut current) {
            Ok(unit) => (Some((unit, before)), None),
            Err(Fault::Bad(bad)) => (None, Some(bad)),
            Err(fault) => {
                // Nothing more is to be had from this segment.
                self.leave(current);
                return Err(fault.into_read_error(&self.dir));
            }
        };
        if let Some((unit, before)) = found {
            return self.item(current, unit, before);
        }
        match self.look_ahead(&mut current) {
            Ok(Ahead::Unit) => self.current = Some(current),
            Ok(Ahead::Freed) => self.leave(current),
            Ok(Ahead::End) => {
                self.walked = Some(current.header.no);
                self.leave(current);
            }
            Ok(Ahead::Tail(begun)) => {
                // Here it ends, even if the owner has gone on meanwhile.
                self.torn = begun.then(|| (current.path.clone(), current.offset));
                self.leave(current);
                self.done = true;
            }
            Ok(Ahead::Damage(next, what)) => {
                let offset = bad.as_ref().map_or(current.offset, |bad| bad.offset);
                let what = bad.map_or(what, |bad| bad.what);
                let error = Self::corrupt(&current.path, offset, what);
                match next {
                    Some((offset, header)) => {
                        self.chain = Chain::before(header.frame_no);
                        current.offset = offset;
                        self.current = Some(current);
                    }
                    None => self.leave(current),
                }
                return Err(error);
            }
            Err(error) => {
                self.leave(current);
                return Err(Fault::Io(error).into_read_error(&self.dir));
            }
        }
        Ok(None)
    }

    fn leave(&mut self, current: Current) {
        self.bytes_read += current.units.bytes_read();
    }

    fn next_unit(&mut self, current: &mut Current) -> Result<Unit, Fault> {
        if current.offset >= current.units.geometry().end() {
            return Err(super::units::Bad::new(current.offset, "the segment ends here").into());
        }
        let unit = current.units.unit(current.offset)?;
        let mut chain = self.chain.clone();
        chain.step(&unit).map_err(|what| super::units::Bad::new(current.offset, what))?;
        self.chain = chain;
        Ok(unit)
    }

    /// The body section of a unit, if it is asked for.
    fn body_of(&self, current: &mut Current, unit: &Unit) -> Result<Option<Bytes>, Fault> {
        match self.part {
            Part::Meta => Ok(None),
            // A mark is its header; what follows in its block is unused.
            Part::Whole if unit.header.kind == Kind::Mark => Ok(Some(Bytes::new())),
            Part::Whole => current.units.body(unit).map(Some),
        }
    }

    /// Makes an item of a unit whose header and meta hold; `before` is the chain without
    /// it.
    fn item(
        &mut self,
        mut current: Current,
        unit: Unit,
        before: Chain,
    ) -> Result<Option<Inspected>, ReadError> {
        let segment = current.header.no;
        let bad = match self.body_of(&mut current, &unit) {
            Ok(body) => {
                current.offset = unit.end();
                self.current = Some(current);
                let (header, offset, meta) = (unit.header, unit.offset, unit.meta);
                return Ok(Some(Inspected { segment, offset, header, meta, body }));
            }
            Err(Fault::Bad(bad)) => bad,
            Err(fault) => {
                let error = fault.into_read_error(&current.path);
                current.offset = unit.end();
                self.current = Some(current);
                return Err(error);
            }
        };
        // A frame is written from its front: its end may still have been on its way, or
        // not have got through. What stands behind it tells.
        let after = std::mem::replace(&mut self.chain, before);
        match self.look_ahead(&mut current) {
            Ok(Ahead::Unit) => self.current = Some(current),
            Ok(Ahead::Freed) => self.leave(current),
            Ok(Ahead::Tail(_)) => {
                self.torn = Some((current.path.clone(), current.offset));
                self.leave(current);
                self.done = true;
            }
            Ok(Ahead::End | Ahead::Damage(..)) => {
                self.chain = after;
                current.offset = unit.end();
                let error = Self::corrupt(&current.path, bad.offset, bad.what);
                self.current = Some(current);
                return Err(error);
            }
            Err(error) => {
                self.leave(current);
                return Err(Fault::Io(error).into_read_error(&self.dir));
            }
        }
        Ok(None)
    }

    fn is_still_there(&self, current: &Current) -> bool {
        let head = self
            .files
            .open(&current.path, Access::Read)
            .and_then(|file| Head::read(&*file, self.store, current.header.no));
        head.is_ok_and(|head| head == Head::Valid(current.header))
    }

    /// Finds out why there is no unit at the current place.
    fn look_ahead(&mut self, current: &mut Current) -> Result<Ahead, FileError> {
        // In this order: what is behind, and the place once more. The owner wrote them the
        // other way round.
        let (expected, end) = (self.chain.next, current.units.geometry().end());
        let names = self.names_after()?;
        let later = self.first_after(current, &names)?;
        let (mut next, mut durable, mut overtaken) = (None, FrameNo::ZERO, false);
        let mut end_mark = None;
        current.units.refresh();
        current.units.probe(current.offset, |offset, found| {
            let Ok(header) = found else { return };
            durable = durable.max(header.durable_no);
            if offset == end {
                end_mark = Some(header.frame_no);
            } else if offset > current.offset {
                overtaken |= header.frame_no <= expected;
                next = next.or(Some((offset, header)));
            }
        })?;
        let is_end = end_mark == Some(expected) && next.is_none();
        // Most segments end as they should: later ones are not read for that.
        if !is_end && durable < expected {
            durable = durable.max(self.durable_in(&names, expected)?);
        }
        current.units.refresh();
        // Or it was ended meanwhile, and what is behind it is of later.
        let has_ended = end_mark != Some(expected) && ends_before(current, expected)?;
        if has_ended || self.next_unit_holds(current)? {
            return Ok(Ahead::Unit);
        }
        if !self.is_still_there(current) {
            return Ok(Ahead::Freed);
        }
        if is_end {
            return Ok(Ahead::End);
        }
        // An end mark is written with the first frame behind it, and synced with that one.
        let only_end_mark = later == Some(expected) && next.is_none();
        if durable < expected && !overtaken {
            let begun = later.is_some() || next.is_some() || end_mark.is_some();
            return Ok(if only_end_mark { Ahead::End } else { Ahead::Tail(begun) });
        }
        let what = match later {
            Some(_) if only_end_mark => "the segment's end mark does not hold",
            Some(_) => "frames are missing at the segment's end",
            None => "a later frame says that this one was durable",
        };
        Ok(Ahead::Damage(next, what.to_owned()))
    }

    fn next_unit_holds(&mut self, current: &mut Current) -> Result<bool, FileError> {
        let chain = self.chain.clone();
        let found = self.next_unit(current).and_then(|unit| self.body_of(current, &unit));
        self.chain = chain;
        match found {
            Ok(_) => Ok(true),
            Err(Fault::Bad(_)) => Ok(false),
            Err(Fault::Io(error)) => Err(error),
        }
    }

    /// The first frame of a later segment that was begun. One that is not continued
    /// by it ends nobody knows where; any number but the expected one says so.
    fn first_after(
        &self,
        current: &Current,
        names: &[(SegmentNo, PathBuf)],
    ) -> Result<Option<FrameNo>, FileError> {
        for (no, path) in names {
            let Some(file) = self.open(path)? else { continue };
            if let Head::Valid(header) = Head::read(&*file, self.store, *no)? {
                let continued = header.previous == current.header.no;
                return Ok(Some(if continued { header.first } else { FrameNo::ZERO }));
            }
        }
        Ok(None)
    }
}

/// Whether the segment's end mark says that it ends before `frame`.
fn ends_before(current: &mut Current, frame: FrameNo) -> Result<bool, FileError> {
    match current.units.end_mark() {
        Ok(mark) => Ok(mark.header.frame_no == frame),
        Err(Fault::Bad(_)) => Ok(false),
        Err(Fault::Io(error)) => Err(error),
    }
}

impl Iterator for Inspection {
    type Item = Result<Inspected, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if let Some(item) = self.step().transpose() {
                return Some(item);
            }
        }
        None
    }
}
