//! What must hold from one unit of the log to the next.

use posthouse_frame::{FrameNo, Header, Kind};

use super::layout::SegmentHeader;
use super::units::Unit;

/// A walk's place in the log: what the next unit has to continue.
///
/// Every unit repeats the checksum of the one before it, its number follows, and
/// neither its epoch nor its `durable_no` falls. So a unit that is valid in itself
/// but was not written after exactly these units is not taken for their successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The number that the next frame has.
    pub next: FrameNo,
    /// `header_crc` of the last unit; `None` if the walk began in the middle.
    pub crc: Option<u32>,
    /// The ownership of the last unit; `None` if the walk began in the middle.
    pub epoch: Option<u32>,
    /// The highest `durable_no` so far.
    pub durable: FrameNo,
}

impl Chain {
    /// Before the first unit of a log.
    pub(crate) fn origin() -> Self {
        Chain { next: FrameNo(1), crc: Some(0), epoch: Some(0), durable: FrameNo::ZERO }
    }

    /// Before the first unit of a segment, as its header says. The header does not
    /// say whose the units before it were: an owner begins segments of its own
    /// epoch, but the first frame of an owner may stand at a segment's beginning.
    pub(crate) fn start_of(header: &SegmentHeader) -> Self {
        Chain {
            next: header.first,
            crc: Some(header.prev_header_crc),
            epoch: None,
            durable: header.durable,
        }
    }

    /// In the middle of a segment, before frame `next`.
    pub(crate) fn before(next: FrameNo) -> Self {
        Chain { next, crc: None, epoch: None, durable: FrameNo::ZERO }
    }

    /// Whether `header` continues the walk into a segment.
    pub(crate) fn continues(&self, header: &SegmentHeader) -> Result<(), String> {
        if header.first != self.next {
            return Err(format!(
                "the segment begins with frame {}, not {}",
                header.first, self.next
            ));
        }
        match self.crc {
            Some(crc) if crc != header.prev_header_crc => {
                Err("the segment does not continue the one before it".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Takes `unit` as the next one.
    ///
    /// # Errors
    /// Why it is not. Nothing has then changed.
    pub(crate) fn step(&mut self, unit: &Unit) -> Result<(), String> {
        self.step_header(&unit.header, unit.crc)
    }

    /// Takes the unit with this header as the next one.
    pub(crate) fn step_header(&mut self, header: &Header, crc: u32) -> Result<(), String> {
        self.check(header)?;
        if header.kind != Kind::Mark {
            self.next = header.frame_no.next();
        }
        self.crc = Some(crc);
        self.epoch = Some(header.epoch);
        self.durable = header.durable_no;
        Ok(())
    }

    fn check(&self, header: &Header) -> Result<(), String> {
        if self.crc.is_some_and(|crc| crc != header.prev_header_crc) {
            return Err("the frame does not continue the one before it".to_owned());
        }
        if header.frame_no != self.next {
            return Err(format!("frame {} stands in the place of {}", header.frame_no, self.next));
        }
        let follows = match (header.kind, self.epoch) {
            (_, None) => true,
            (Kind::Epoch, Some(epoch)) => header.epoch > epoch,
            (Kind::Data | Kind::Mark, Some(epoch)) => header.epoch == epoch,
        };
        if !follows {
            let epoch = self.epoch.unwrap_or(0);
            return Err(format!("a frame of epoch {} follows epoch {epoch}", header.epoch));
        }
        if header.durable_no < self.durable {
            return Err(format!(
                "what is durable falls from frame {} to {}",
                self.durable, header.durable_no
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, no: u64, epoch: u32, durable: u64, prev: u32) -> Header {
        Header {
            kind,
            flags: 0,
            total: 512,
            meta_len: 0,
            body_len: 0,
            records: 0,
            frame_no: FrameNo(no),
            epoch,
            meta_crc: 0,
            durable_no: FrameNo(durable),
            wall_ms: 0,
            lease_ms: 0,
            prev_header_crc: prev,
            writer: 1,
            min_reader: 1,
            shard: 0,
        }
    }

    #[test]
    fn a_log_begins_with_an_epoch_and_goes_on_without_a_gap() {
        let mut chain = Chain::origin();
        assert!(chain.step_header(&header(Kind::Data, 1, 0, 0, 9), 10).is_err());
        chain.step_header(&header(Kind::Epoch, 1, 1, 0, 0), 11).unwrap();
        chain.step_header(&header(Kind::Data, 2, 1, 1, 11), 12).unwrap();
        chain.step_header(&header(Kind::Mark, 3, 1, 2, 12), 13).unwrap();
        chain.step_header(&header(Kind::Data, 3, 1, 2, 13), 14).unwrap();
        chain.step_header(&header(Kind::Epoch, 4, 2, 3, 14), 15).unwrap();
        assert_eq!(chain.next, FrameNo(5));
    }

    #[test]
    fn what_does_not_follow_is_refused_and_changes_nothing() {
        let mut chain = Chain::origin();
        chain.step_header(&header(Kind::Epoch, 1, 3, 0, 0), 11).unwrap();
        chain.step_header(&header(Kind::Data, 2, 3, 1, 11), 12).unwrap();
        let before = chain.clone();
        for wrong in [
            header(Kind::Data, 3, 3, 1, 11),
            header(Kind::Data, 2, 3, 1, 12),
            header(Kind::Data, 4, 3, 1, 12),
            header(Kind::Data, 3, 2, 1, 12),
            header(Kind::Data, 3, 4, 1, 12),
            header(Kind::Epoch, 3, 3, 1, 12),
            header(Kind::Mark, 3, 4, 2, 12),
            header(Kind::Mark, 2, 3, 1, 12),
            header(Kind::Data, 3, 3, 0, 12),
        ] {
            assert!(chain.step_header(&wrong, 13).is_err(), "{wrong:?}");
            assert_eq!(chain, before);
        }
    }
}
