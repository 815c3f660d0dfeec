//! Scheduled messages whose time has come.

use posthouse_frame::{BodyBuf, FrameBuf, FrameNo};

use super::{Due, Shard};
use crate::chunk::Chunks;
use crate::record::{CancelReason, Entries, FiredItem, List, Pending, Record};
use crate::schedule::{Body, Extra, Item, Next, Way};
use crate::words::{MAX_POSITION, Now, PartitionId, Position};

/// What one call has fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// How many messages.
    pub count: u64,
    /// How many of them were so late: up to 1 ms, 2 ms, 4 ms and so on; the last counts
    /// all that were later.
    pub lateness: [u64; Fired::BUCKETS],
    /// How late all of them were together, in milliseconds.
    pub late_ms: u64,
    /// Messages that will not come, because they were purged or their topic is gone.
    pub dropped: u64,
}

impl Fired {
    /// How many buckets lateness is counted in.
    pub const BUCKETS: usize = 24;

    fn count(&mut self, late_ms: u64) {
        let bucket = (64 - late_ms.saturating_sub(1).leading_zeros()) as usize;
        self.lateness[bucket.min(Self::BUCKETS - 1)] += 1;
        self.late_ms += late_ms;
        self.count += 1;
    }
}

/// A message costs so many bytes besides its body, nearly.
const EACH_BYTES: usize = 32;

/// The most messages that one call fires.
const MOST: usize = 16_384;

impl Shard {
    /// Fires what is due, up to `budget` bytes; of what is late half of it.
    pub(super) fn fire(
        &mut self,
        chunks: &impl Chunks,
        now: Now,
        budget: usize,
        out: &mut FrameBuf,
        due: &mut Due,
    ) {
        self.schedule.prepare(chunks, now.wall, &mut due.ahead);
        if budget == 0 {
            due.more |= self.schedule.deadline().is_some_and(|at| at <= now.wall);
            return;
        }
        let mut items: Vec<Item> = Vec::new();
        let mut gone: Vec<(CancelReason, Pending)> = Vec::new();
        let mut spent: usize = 0;
        for (way, part) in [(Way::OnTime, 1), (Way::Late, 2)] {
            // One message may be much larger than what is left: then it is the last.
            let mut left = (budget / part).min((budget + budget / 2).saturating_sub(spent));
            loop {
                if left == 0 || items.len() + gone.len() >= MOST {
                    due.more = true;
                    break;
                }
                let early = if posthouse_frame::planted("fired-early") { 40 } else { 0 };
                let upto = now.wall.plus(early);
                match self.schedule.next(way, chunks, upto, &mut due.ahead) {
                    Next::Item(item) => {
                        let bytes = item.body_len() as usize + EACH_BYTES;
                        (left, spent) = (left.saturating_sub(bytes), spent + bytes);
                        match self.is_gone(&item) {
                            Some(why) => gone.push((why, of(&item))),
                            None => {
                                due.fired.count(now.wall.since(item.due));
                                items.push(item);
                            }
                        }
                    }
                    Next::Nothing => break,
                    Next::Wait(miss) => {
                        due.misses.push(miss);
                        break;
                    }
                }
            }
        }
        // What is late goes first.
        items.sort_by_key(|item| (item.partition, item.key()));
        for of_one in items.chunk_by(|a, b| a.partition == b.partition) {
            let partition = of_one[0].partition;
            let Some(row) = self.partition(partition) else { continue };
            self.fire_into(partition, row.next, of_one, now, out);
        }
        for reason in [CancelReason::Purged, CancelReason::Dropped] {
            let items: Vec<Pending> =
                gone.iter().filter(|(why, _)| *why == reason).map(|(_, of)| *of).collect();
            if !items.is_empty() {
                due.fired.dropped += items.len() as u64;
                Record::Cancel { why: reason, items: List::Slice(&items) }.write(out);
            }
        }
    }

    /// Why a message that is due will not come.
    fn is_gone(&self, item: &Item) -> Option<CancelReason> {
        match self.partition(item.partition) {
            Some(row) if row.dropped || row.next + (MOST as u64) > MAX_POSITION => {
                Some(CancelReason::Dropped)
            }
            Some(row) if !row.awaits(item.seq) => Some(CancelReason::Purged),
            Some(_) => None,
            None => Some(CancelReason::Dropped),
        }
    }

    /// Puts messages at the end of a partition, which is at position `first`. Bodies that
    /// are in the log stay where they are.
    pub(super) fn fire_into(
        &self,
        partition: PartitionId,
        first: Position,
        items: &[Item],
        now: Now,
        out: &mut FrameBuf,
    ) {
        let here = items.iter().map(|item| match &item.body {
            Body::Sealed(bytes) => bytes.len(),
            _ => 0,
        });
        let mut bodies = BodyBuf::with_capacity(here.sum());
        let mut placed = Vec::with_capacity(items.len());
        let mut entries = Vec::with_capacity(items.len());
        for item in items {
            let (frame, at) = match &item.body {
                Body::Sealed(bytes) => {
                    let at = bodies.len() as u32;
                    bodies.append_sealed(bytes);
                    (FrameNo::ZERO, at)
                }
                Body::Log(body) => (body.frame, body.at),
                Body::Block { .. } | Body::Elsewhere => {
                    unreachable!("what is fired has its body at hand")
                }
            };
            placed.push(FiredItem { seq: item.seq, frame, at });
            entries.push(Extra::entry(item.extra.as_deref(), item.body_len(), now.wall));
        }
        let start = if bodies.is_empty() { 0 } else { out.bodies(bodies) };
        for item in placed.iter_mut().filter(|item| item.frame == FrameNo::ZERO) {
            item.frame = out.no();
            item.at += if posthouse_frame::planted("fired-body-off") { 0 } else { start };
        }
        Record::Fire {
            partition,
            first,
            at: now.wall,
            items: List::Slice(&placed),
            entries: Entries::Slice(&entries),
        }
        .write(out);
    }
}

fn of(item: &Item) -> Pending {
    Pending { partition: item.partition, seq: item.seq }
}
