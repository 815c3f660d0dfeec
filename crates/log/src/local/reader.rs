//! The reading half of a local log.

use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::{BodyRef, FrameNo};

use super::bodies;
use super::recovery::survey::Head;
use super::scan::LocalScan;
use super::shared::Shared;
use super::table::SegmentInfo;
use super::units::Fault;
use crate::{LogReader, LogState, Part, ReadError, Segment};

/// Reads a local log, durable frames only; cheap to clone.
///
/// It outlives the owner. It then sees a log that no longer moves, and once another
/// owner has taken the directory over, segments may be [`ReadError::Gone`].
#[derive(Clone, Debug)]
pub struct LocalReader {
    shared: Arc<Shared>,
}

impl LocalReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        LocalReader { shared }
    }
}

impl LogReader for LocalReader {
    type Scan = LocalScan;

    fn state(&self) -> LogState {
        self.shared.state.get()
    }

    /// The last frame that a sync has covered. The same as the state says with
    /// [`Durability::Sync`](super::Durability::Sync); else it lags behind.
    fn synced(&self) -> FrameNo {
        self.shared.state.synced()
    }

    fn cached(&self, place: BodyRef) -> Option<Bytes> {
        self.shared.tail.get(place)
    }

    fn bodies(&self, places: &[BodyRef]) -> Vec<Result<Bytes, ReadError>> {
        bodies::read(&self.shared, places)
    }

    fn scan(&self, from: FrameNo, part: Part) -> Result<LocalScan, ReadError> {
        LocalScan::new(self.shared.clone(), from, part)
    }

    fn segments(&self) -> Vec<Segment> {
        self.shared.table.segments(self.shared.state.durable())
    }
}

impl Shared {
    /// `frame` is not held.
    pub(crate) fn gone(&self, frame: FrameNo) -> ReadError {
        ReadError::Gone { frame, first: self.table.first(), last: self.state.durable() }
    }

    /// Why `frame` could not be read in `segment`: it may have been freed while it
    /// was being read, and its file used again.
    pub(crate) fn read_error(
        &self,
        segment: &Arc<SegmentInfo>,
        frame: FrameNo,
        fault: Fault,
    ) -> ReadError {
        let freed = segment.is_freed() || (self.has_ended() && !self.is_still_there(segment));
        match freed {
            true => self.gone(frame),
            false => fault.into_read_error(&self.table.path(segment.no())),
        }
    }

    /// Whether another owner has left the segment's file alone.
    fn is_still_there(&self, segment: &Arc<SegmentInfo>) -> bool {
        let head = self
            .table
            .file(segment)
            .and_then(|file| Head::read(&*file, segment.header.store, segment.no()));
        match head {
            Ok(head) => head == Head::Valid(segment.header),
            Err(error) => !error.is_missing(),
        }
    }
}
