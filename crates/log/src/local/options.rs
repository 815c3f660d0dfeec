//! What the owner of a local log chooses.

use std::time::Duration;

use posthouse_frame::FrameNo;

use super::error::OpenError;
use super::layout::{Geometry, align_is_valid, size_is_valid};
use crate::SegmentNo;

/// When a frame counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After it was written and the file synced. What the state calls durable
    /// survives the process, the system and the power.
    Sync,
    /// After it was written. It is synced within this time. What the state calls
    /// durable survives the process; a power cut or a crash of the system can take
    /// what was written since the last sync, and nothing before it.
    Interval(Duration),
    /// After it was written. A segment is synced when it is full, and the log when
    /// it is closed; between, the system writes when it likes. A power cut or a
    /// crash of the system can take the last segment's frames.
    Os,
}

/// Who does a log's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Threads of the log's own: one writes and syncs, one writes while that one syncs,
    /// one tends the spares.
    Threads,
    /// The owner, by calling [`LocalLog::step`](super::LocalLog::step),
    /// [`LocalLog::step_write`](super::LocalLog::step_write),
    /// [`LocalLog::step_sync`](super::LocalLog::step_sync),
    /// [`LocalLog::idle`](super::LocalLog::idle) and
    /// [`LocalLog::tend`](super::LocalLog::tend): the same code without threads
    /// and without a clock, for simulation.
    Steps,
}

/// Options of a local log. [`LocalOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The random number that names the store. Frames of other stores are refused.
    pub store: u64,
    /// The shard that the log belongs to.
    pub shard: u16,
    /// A random number of this process: tells two claimants of one epoch apart.
    pub writer: u32,
    /// Bytes of each segment made from now on; those there are keep their size.
    /// At most 4 GiB - 1.
    pub segment_bytes: u64,
    /// What frames in new segments are aligned to: a power of two from 512 to
    /// 65536, and not below the disk's physical block. Otherwise a power cut in the
    /// middle of a write may destroy an acknowledged frame in the same block.
    pub align: u32,
    /// When a frame counts as durable.
    pub durability: Durability,
    /// Memory for the frames handed over last.
    pub tail_bytes: usize,
    /// Pre-written segments kept ready. They are also the reserve for a full disk:
    /// writing over them needs no new room.
    pub spares: usize,
    /// The last frame that the owner's manifest calls durable; zero without one.
    ///
    /// Up to here frames must be found, or the log does not open; and up to here
    /// segments may have been freed, so gaps are taken for that. Behind it a gap is
    /// a loss. So: publish a manifest before releasing what it no longer needs, and
    /// release no segment with frames past it. With another durability than
    /// [`Durability::Sync`] take it from
    /// [`LogReader::synced`](crate::LogReader::synced), not from the state.
    ///
    /// What lies wholly before it is not read at opening.
    pub known_durable: FrameNo,
    /// The segments that the owner's manifest needs. If one is missing, the log does
    /// not open. `None`: a segment missing before `known_durable` passes for freed.
    pub must_have: Option<Vec<SegmentNo>>,
    /// The most bytes of header, meta and body that one frame may have.
    pub max_frame_bytes: usize,
    /// How long the log is idle before it writes a mark that the last frame was
    /// durable. Until then damage to that frame cannot be told from a torn write.
    pub mark_after: Duration,
    /// Who does the work.
    pub drive: Drive,
}

impl LocalOptions {
    /// The defaults, for a shard of a store.
    pub fn new(store: u64, shard: u16) -> Self {
        LocalOptions {
            store,
            shard,
            writer: 0,
            segment_bytes: 64 << 20,
            align: 4096,
            durability: Durability::Sync,
            tail_bytes: 64 << 20,
            spares: 2,
            known_durable: FrameNo::ZERO,
            must_have: None,
            max_frame_bytes: 9 << 20,
            mark_after: Duration::from_millis(20),
            drive: Drive::Threads,
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { bytes: self.segment_bytes, align: self.align }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong = |what: String| Err(OpenError::Options { what });
        if !align_is_valid(self.align) {
            return wrong(format!(
                "align is {}; it must be a power of two from 512 to 65536",
                self.align
            ));
        }
        if !size_is_valid(self.segment_bytes, self.align) {
            return wrong(format!(
                "segment_bytes is {}; it must be a multiple of align ({}), hold a header and a \
                 frame, and be below 4 GiB",
                self.segment_bytes, self.align
            ));
        }
        let room = self.geometry().data_room();
        if self.geometry().padded(self.max_frame_bytes as u64) > room {
            return wrong(format!(
                "max_frame_bytes is {}; a segment of {} bytes has room for {room}",
                self.max_frame_bytes, self.segment_bytes
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_what_contradicts_itself_is_refused_with_words() {
        let good = LocalOptions::new(1, 0);
        good.check().unwrap();
        for (wrong, word) in [
            (LocalOptions { align: 1000, ..good.clone() }, "align"),
            (LocalOptions { segment_bytes: 4096, ..good.clone() }, "segment_bytes"),
            (LocalOptions { segment_bytes: 1 << 33, ..good.clone() }, "segment_bytes"),
            (LocalOptions { max_frame_bytes: 64 << 20, ..good.clone() }, "max_frame_bytes"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
