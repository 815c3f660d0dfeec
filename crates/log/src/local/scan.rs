//! Reading frames in order.

use std::sync::Arc;
use std::vec;

use posthouse_frame::{FrameNo, Kind};

use super::chain::Chain;
use super::shared::Shared;
use super::table::SegmentInfo;
use super::units::{Bad, Fault, Unit, Units};
use crate::{Part, ReadError, ScannedFrame};

/// Frames of a local log in order. Ends after the first error.
///
/// Verifies what it reads: checksums of header and meta, that each frame continues
/// the one before it, and with [`Part::Whole`] every body and the padding.
#[derive(Debug)]
pub struct LocalScan {
    shared: Arc<Shared>,
    part: Part,
    from: FrameNo,
    /// The last frame to give.
    until: FrameNo,
    segments: vec::IntoIter<Arc<SegmentInfo>>,
    current: Option<Current>,
    chain: Chain,
    failed: bool,
}

#[derive(Debug)]
struct Current {
    segment: Arc<SegmentInfo>,
    units: Units,
    offset: u64,
}

impl LocalScan {
    pub(crate) fn new(shared: Arc<Shared>, from: FrameNo, part: Part) -> Result<Self, ReadError> {
        let until = shared.state.durable();
        let first = shared.table.first();
        let from = if from == FrameNo::ZERO { first } else { from };
        if from < first || from > until.next() {
            return Err(shared.gone(from));
        }
        let segments = shared.table.from(from).into_iter();
        Ok(LocalScan {
            shared,
            part,
            from,
            until,
            segments,
            current: None,
            chain: Chain::before(from),
            failed: false,
        })
    }

    fn open(&self, segment: Arc<SegmentInfo>, offset: u64) -> Result<Current, Fault> {
        let units = self.shared.table.units(&segment)?;
        let units = if self.part == Part::Whole { units.whole() } else { units };
        Ok(Current { segment, units, offset })
    }

    /// Goes on to the next segment. `false` if there is none.
    fn enter(&mut self) -> Result<bool, ReadError> {
        let Some(segment) = self.segments.next().filter(|s| s.first() <= self.until) else {
            return Ok(false);
        };
        let next = self.chain.next;
        if let Some(mut left) = self.current.take() {
            let linked = self.link(&mut left, &segment);
            linked.map_err(|fault| self.shared.read_error(&left.segment, next, fault))?;
        }
        let begun = self.begin(&segment);
        let current = begun.and_then(|offset| self.open(segment.clone(), offset));
        let fail = |fault| self.shared.read_error(&segment, next, fault);
        self.current = Some(current.map_err(fail)?);
        Ok(true)
    }

    /// Where to begin in a segment: at its first frame, or as near before the first
    /// one wanted as is known.
    fn begin(&mut self, segment: &Arc<SegmentInfo>) -> Result<u64, Fault> {
        if self.from > segment.first() {
            let near = self.shared.table.near(segment, self.from)?;
            if near.frame > segment.first() {
                self.chain = Chain::before(near.frame);
                return Ok(near.offset);
            }
        }
        // The header does not name the epoch of what lies before: what is known of
        // it still holds if nothing was freed between.
        let linked = self.chain.crc == Some(segment.header.prev_header_crc);
        let epoch = self.chain.epoch.filter(|_| linked);
        self.chain = Chain { epoch, ..Chain::start_of(&segment.header) };
        Ok(segment.geometry().start())
    }

    /// Leaves a segment after its last frame. Marks behind that belong to the chain,
    /// too, if the next segment continues this one.
    fn link(&mut self, left: &mut Current, next: &SegmentInfo) -> Result<(), Fault> {
        if next.header.previous != left.segment.no() {
            return Ok(());
        }
        while self.chain.crc != Some(next.header.prev_header_crc) {
            self.unit(left)?;
        }
        let continues = self.chain.continues(&next.header);
        continues.map_err(|what| Bad::new(left.offset, what).into())
    }

    /// The next unit, whatever it is.
    fn unit(&mut self, current: &mut Current) -> Result<Unit, Fault> {
        let unit = current.units.unit(current.offset)?;
        self.chain.step(&unit).map_err(|what| Bad::new(unit.offset, what))?;
        current.offset = unit.end();
        Ok(unit)
    }

    fn frame(&mut self, current: &mut Current) -> Result<Option<ScannedFrame>, Fault> {
        let unit = self.unit(current)?;
        if unit.header.kind == Kind::Mark || unit.header.frame_no < self.from {
            return Ok(None);
        }
        let body = match self.part {
            Part::Meta => None,
            Part::Whole => Some(current.units.body(&unit)?),
        };
        Ok(Some(ScannedFrame { header: unit.header, meta: unit.meta, body }))
    }

    fn advance(&mut self) -> Result<Option<ScannedFrame>, ReadError> {
        loop {
            if self.chain.next > self.until {
                return Ok(None);
            }
            let over = |current: &Current| self.chain.next > current.segment.last();
            if self.current.as_ref().is_none_or(over) && !self.enter()? {
                return Ok(None);
            }
            let Some(mut current) = self.current.take() else {
                return Ok(None);
            };
            match self.frame(&mut current) {
                Ok(frame) => {
                    self.current = Some(current);
                    if frame.is_some() {
                        return Ok(frame);
                    }
                }
                Err(fault) => {
                    let lost = self.chain.next;
                    return Err(self.shared.read_error(&current.segment, lost, fault));
                }
            }
        }
    }
}

impl Iterator for LocalScan {
    type Item = Result<ScannedFrame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance().transpose();
        self.failed = !matches!(next, Some(Ok(_)));
        next
    }
}
