//! The segments of a log, and what is kept in memory about them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use posthouse_frame::FrameNo;

use super::index::{Index, Located};
use super::layout::{Geometry, Name, SegmentHeader};
use super::units::{Bad, Fault, Units};
use crate::files::{Access, File, FileError, Files};
use crate::sync::Mutex;
use crate::{Segment, SegmentNo};

/// Open files kept for segments that are no longer written.
const WARM_FILES: usize = 128;
/// Memory for the tables of segments that are no longer written.
const WARM_INDEX_BYTES: usize = 64 << 20;

/// One segment of the log.
#[derive(Debug)]
pub(crate) struct SegmentInfo {
    pub header: SegmentHeader,
    /// The last frame in it; the one before its first while it has none.
    last: AtomicU64,
    active: AtomicBool,
    /// Its file may be gone, or hold something else by now.
    freed: AtomicBool,
    /// `None` until needed, for a segment that was found at the start.
    index: Mutex<Option<Index>>,
    file: Mutex<Option<Arc<dyn File>>>,
}

impl SegmentInfo {
    /// A segment that is complete.
    pub(crate) fn found(header: SegmentHeader, last: FrameNo) -> Self {
        SegmentInfo {
            header,
            last: AtomicU64::new(last.0),
            active: AtomicBool::new(false),
            freed: AtomicBool::new(false),
            index: Mutex::new(None),
            file: Mutex::new(None),
        }
    }

    /// The segment that is being written.
    pub(crate) fn active(
        header: SegmentHeader,
        last: FrameNo,
        index: Index,
        file: Arc<dyn File>,
    ) -> Self {
        SegmentInfo {
            active: AtomicBool::new(true),
            index: Mutex::new(Some(index)),
            file: Mutex::new(Some(file)),
            ..SegmentInfo::found(header, last)
        }
    }

    pub(crate) fn no(&self) -> SegmentNo {
        self.header.no
    }

    pub(crate) fn first(&self) -> FrameNo {
        self.header.first
    }

    pub(crate) fn last(&self) -> FrameNo {
        FrameNo(self.last.load(Ordering::Acquire))
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.header.geometry()
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(crate) fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Acquire)
    }

    pub(crate) fn set_freed(&self, freed: bool) {
        self.freed.store(freed, Ordering::Release);
    }

    /// Notes frames that were written, in order.
    pub(crate) fn note(&self, frames: impl IntoIterator<Item = Located>) {
        let mut index = self.index.lock();
        for frame in frames {
            if let Some(index) = index.as_mut() {
                index.note(frame);
            }
            self.last.store(frame.frame.0, Ordering::Release);
        }
    }

    /// What the sparse table says about `frame`; builds the table first if need be.
    fn look_up(
        &self,
        frame: FrameNo,
        units: impl FnOnce() -> Result<Units, FileError>,
    ) -> Result<(Option<Located>, usize), FileError> {
        let mut index = self.index.lock();
        let mut built = 0;
        if index.is_none() {
            let mut new = build_index(self, &mut units()?)?;
            new.finish();
            built = new.bytes();
            *index = Some(new);
        }
        Ok((index.as_ref().and_then(|index| index.at_or_before(frame)), built))
    }
}

/// Walks the headers of a complete segment and notes where frames stand. Steps
/// over what is damaged: the frames behind it can be found all the same.
pub(crate) fn build_index(segment: &SegmentInfo, units: &mut Units) -> Result<Index, FileError> {
    let mut index = Index::new(segment.first());
    let (mut at, end) = (segment.geometry().start(), segment.geometry().end());
    let mut next = segment.first();
    let mut lost = false;
    while next <= segment.last() && at < end {
        let header = match units.header(at) {
            Ok((header, _)) if header.frame_no >= next => header,
            Ok(_) | Err(Fault::Bad(_)) => {
                lost = true;
                at += u64::from(segment.geometry().align);
                continue;
            }
            Err(Fault::Io(error)) => return Err(error),
        };
        if header.kind != posthouse_frame::Kind::Mark {
            let place = Located { frame: header.frame_no, offset: at, meta_len: header.meta_len };
            match std::mem::take(&mut lost) {
                true => index.note_always(place),
                false => index.note(place),
            }
            next = header.frame_no.next();
        }
        at += u64::from(header.total);
    }
    Ok(index)
}

/// All segments, oldest first, and the bounded memory about them.
#[derive(Debug)]
pub(crate) struct Table {
    files: Arc<dyn Files>,
    dir: PathBuf,
    segments: RwLock<Vec<Arc<SegmentInfo>>>,
    warm: Mutex<Warm>,
}

/// Complete segments in the order in which they got an open file or a table.
#[derive(Debug, Default)]
struct Warm {
    files: VecDeque<Arc<SegmentInfo>>,
    indexes: VecDeque<(Arc<SegmentInfo>, usize)>,
    index_bytes: usize,
}

impl Table {
    pub(crate) fn new(files: Arc<dyn Files>, dir: &Path, segments: Vec<Arc<SegmentInfo>>) -> Self {
        Table {
            files,
            dir: dir.to_owned(),
            segments: RwLock::new(segments),
            warm: Mutex::new(Warm::default()),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<SegmentInfo>>> {
        self.segments.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<SegmentInfo>>> {
        self.segments.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn path(&self, no: SegmentNo) -> PathBuf {
        self.dir.join(Name::Segment(no).to_string())
    }

    /// The first frame held; past the tail if none is.
    pub(crate) fn first(&self) -> FrameNo {
        self.read().first().map_or(FrameNo(1), |segment| segment.first())
    }

    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    pub(crate) fn all(&self) -> Vec<Arc<SegmentInfo>> {
        self.read().clone()
    }

    /// Segments with frames up to `durable`, as the outside is shown them.
    pub(crate) fn segments(&self, durable: FrameNo) -> Vec<Segment> {
        let held = self.read();
        let begun = held.iter().filter(|s| s.first() <= durable);
        begun
            .map(|s| Segment {
                no: s.no(),
                first: s.first(),
                last: s.last().min(durable),
                bytes: s.header.bytes,
                active: s.is_active(),
            })
            .collect()
    }

    /// The segment that holds `frame`, unless that was freed or is yet to come.
    pub(crate) fn holding(&self, frame: FrameNo) -> Option<Arc<SegmentInfo>> {
        let held = self.read();
        let after = held.partition_point(|s| s.first() <= frame);
        held[..after].last().filter(|s| frame <= s.last()).cloned()
    }

    /// Segments with frames from `from` on.
    pub(crate) fn from(&self, from: FrameNo) -> Vec<Arc<SegmentInfo>> {
        let held = self.read();
        let before = held.partition_point(|s| s.last() < from);
        held[before..].to_vec()
    }

    /// Adds the segment that is written from now on, and ends the one before.
    pub(crate) fn push(&self, segment: Arc<SegmentInfo>) {
        let ended = {
            let mut held = self.write();
            let ended = held.last().cloned();
            held.push(segment);
            ended
        };
        if let Some(ended) = ended {
            ended.active.store(false, Ordering::Release);
            let bytes = ended.index.lock().as_mut().map_or(0, |index| {
                index.finish();
                index.bytes()
            });
            self.keep_file(&ended);
            self.keep_index(&ended, bytes);
        }
    }

    /// Takes a freed segment out.
    pub(crate) fn remove(&self, no: SegmentNo) {
        self.write().retain(|s| s.no() != no);
        let mut warm = self.warm.lock();
        warm.files.retain(|s| s.no() != no);
        let kept: usize = warm.indexes.iter().filter(|(s, _)| s.no() != no).map(|s| s.1).sum();
        warm.indexes.retain(|(s, _)| s.no() != no);
        warm.index_bytes = kept;
    }

    /// The segment's file, open for reading.
    pub(crate) fn file(&self, segment: &Arc<SegmentInfo>) -> Result<Arc<dyn File>, FileError> {
        let mut slot = segment.file.lock();
        if let Some(file) = slot.as_ref() {
            return Ok(file.clone());
        }
        let file = self.files.open(&self.path(segment.no()), Access::Read)?;
        *slot = Some(file.clone());
        drop(slot);
        self.keep_file(segment);
        Ok(file)
    }

    /// A reader of the segment's units.
    pub(crate) fn units(&self, segment: &Arc<SegmentInfo>) -> Result<Units, FileError> {
        let file = self.file(segment)?;
        Units::new(file, segment.header.store, segment.no(), segment.geometry())
    }

    /// A frame at or not far before `frame`, from which one can walk to it.
    ///
    /// # Errors
    /// Also if the way to it is damaged so that nothing is known about it.
    pub(crate) fn near(
        &self,
        segment: &Arc<SegmentInfo>,
        frame: FrameNo,
    ) -> Result<Located, Fault> {
        let (found, built) = segment.look_up(frame, || self.units(segment))?;
        if built > 0 {
            self.keep_index(segment, built);
        }
        let start = segment.geometry().start();
        found.ok_or_else(|| Bad::new(start, "the first frames of the segment are damaged").into())
    }

    fn keep_file(&self, segment: &Arc<SegmentInfo>) {
        if segment.is_active() {
            return;
        }
        let mut warm = self.warm.lock();
        warm.files.push_back(segment.clone());
        let old = if warm.files.len() > WARM_FILES { warm.files.pop_front() } else { None };
        drop(warm);
        if let Some(old) = old {
            *old.file.lock() = None;
        }
    }

    fn keep_index(&self, segment: &Arc<SegmentInfo>, bytes: usize) {
        if segment.is_active() {
            return;
        }
        let mut old = Vec::new();
        let mut warm = self.warm.lock();
        warm.indexes.push_back((segment.clone(), bytes));
        warm.index_bytes += bytes;
        while warm.index_bytes > WARM_INDEX_BYTES && warm.indexes.len() > 1 {
            if let Some((segment, bytes)) = warm.indexes.pop_front() {
                warm.index_bytes -= bytes;
                old.push(segment);
            }
        }
        drop(warm);
        for segment in old {
            *segment.index.lock() = None;
        }
    }
}
