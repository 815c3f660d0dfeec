//! The shard as a [`Machine`]: replay, snapshot, restore.

use posthouse_frame::FrameNo;
use posthouse_frame::varint::Malformed;

use super::deadlines::Deadline;
use super::window::Slot;
use super::{COUNTERS, Counters, Shard};
use crate::machine::Machine;
use crate::page::{Captured, PageId, TableId};
use crate::record::{RecordError, Records};
use crate::words::{PartitionId, Position};

impl Machine for Shard {
    fn apply(&mut self, frame: FrameNo, meta: &[u8]) -> Result<(), RecordError> {
        for record in Records::new(meta) {
            self.apply_record(frame, &record?);
        }
        Ok(())
    }

    fn sealed(&mut self, frame: FrameNo, bytes: usize) {
        self.spans.sealed(&mut self.pager, frame, bytes as u64);
    }

    fn begin_snapshot(&mut self) {
        self.pager.begin();
    }

    fn walk(&mut self, pages: usize) -> (Vec<Captured>, bool) {
        for _ in 0..pages {
            let Some(id) = self.pager.next_waiting() else {
                return (self.pager.take_captured(), true);
            };
            let pager = &mut self.pager;
            match id.table {
                TableId::Globals => self.counters.capture(pager),
                TableId::Partitions => self.partitions.capture(pager, id),
                TableId::Pairs => self.pairs.capture(pager, id),
                TableId::Windows => match self.pairs.derived(id.owner) {
                    Some(pair) => pair.windows.capture(pager, id),
                    None => pager.capture_waiting(id, None, |_| ()),
                },
                TableId::Groups => self.groups.capture(pager, id),
                TableId::Dedupe => self.dedupe.capture(pager, id),
                TableId::Spans => self.spans.capture(pager, id),
                TableId::Times => self.schedule.times.capture(pager, id),
                TableId::Hours => self.schedule.hours.capture(pager, id),
                TableId::Names => self.schedule.names.capture(pager, id),
                TableId::Transactions => self.transactions.capture(pager, id),
                TableId::Carried => self.index.carried_mut().capture(pager, id),
                TableId::Recurred => self.recurred.capture(pager, id),
                table => unreachable!("a shard has no table {table:?}"),
            }
        }
        (self.pager.take_captured(), false)
    }

    fn touch_all(&mut self) {
        let pager = &mut self.pager;
        self.counters.touch(pager);
        self.partitions.touch_all(pager);
        self.pairs.touch_all(pager);
        let numbers: Vec<u32> = self.pairs.iter().map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(pair) = self.pairs.derived(number) {
                pair.windows.touch_all(pager, number);
            }
        }
        self.groups.touch_all(pager);
        self.dedupe.touch_all(pager);
        self.spans.touch_all(pager);
        self.schedule.touch_all(pager);
        self.transactions.touch_all(pager);
        self.index.carried_mut().touch_all(pager);
        self.recurred.touch_all(pager);
    }

    fn restore_page(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        match id.table {
            TableId::Globals if id == COUNTERS => self.counters = Counters::decode(bytes)?,
            TableId::Partitions => self.partitions.restore(id, bytes)?,
            TableId::Pairs => self.pairs.restore(id, bytes)?,
            TableId::Windows => {
                let pair = self.pairs.derived(id.owner).ok_or(Malformed { at: 0 })?;
                pair.windows.restore(id.number, bytes)?;
            }
            TableId::Groups => self.groups.restore(id, bytes)?,
            TableId::Dedupe => self.dedupe.restore(id.number, bytes)?,
            TableId::Spans => self.spans.restore(id.number, bytes)?,
            TableId::Times => self.schedule.times.restore(id.number, bytes)?,
            TableId::Hours => self.schedule.hours.restore(id, bytes)?,
            TableId::Names => self.schedule.names.restore(id, bytes)?,
            TableId::Transactions => self.transactions.restore(id, bytes)?,
            TableId::Carried => self.index.carried_mut().restore(id, bytes)?,
            TableId::Recurred => self.recurred.restore(id, bytes)?,
            _ => return Err(Malformed { at: 0 }),
        }
        Ok(())
    }

    fn restored(&mut self) {
        if posthouse_frame::planted("fence-restarts") {
            self.counters.fence = 0;
        }
        self.dedupe.resume(self.counters.dedupe_next);
        self.schedule.resume(self.counters.seq_next, self.counters.uncounted);
        self.transactions.restored();
        let pairs: Vec<u32> = self.pairs.iter().map(|(number, _)| number).collect();
        self.next_pair = pairs.last().map_or(0, |last| last + 1);
        self.free_pairs = (0..self.next_pair).filter(|n| pairs.binary_search(n).is_err()).collect();
        for number in pairs {
            self.restore_pair(number);
            self.link_pair(number);
        }
        let rows: Vec<(PartitionId, bool, bool)> = self
            .partitions
            .iter()
            .map(|(id, row)| {
                (PartitionId(id), row.swept < row.head || row.dropped, !row.is_empty())
            })
            .collect();
        for (id, unswept, has_messages) in rows {
            if unswept {
                self.want_sweep(id);
            }
            if has_messages {
                self.stir(id);
            }
        }
    }

    fn has_changes(&self) -> bool {
        self.pager.has_changes()
    }

    fn digest(&self) -> u64 {
        let mut digest = 0u64;
        let mut add = |id: PageId, bytes: &[u8]| digest = digest.wrapping_add(id.hash(bytes));
        let mut counters = Vec::new();
        Counters::encode(self.counters.values(), &mut counters);
        if !counters.is_empty() {
            add(COUNTERS, &counters);
        }
        self.partitions.pages(&mut add);
        self.pairs.pages(&mut add);
        for (number, pair) in self.pairs.iter() {
            pair.windows.pages(number, &mut add);
        }
        self.groups.pages(&mut add);
        self.dedupe.pages(&mut add);
        self.schedule.times.pages(&mut add);
        self.schedule.hours.pages(&mut add);
        self.schedule.names.pages(&mut add);
        self.transactions.pages(&mut add);
        self.recurred.pages(&mut add);
        digest
    }
}

impl Shard {
    /// Derives what a pair's windows say: counts, keys, deadlines.
    fn restore_pair(&mut self, number: u32) {
        let Some(pair) = self.pairs.get(number) else { return };
        let (group, floor) = (pair.group, pair.floor);
        let mut used: Vec<(Position, Slot, u64)> = Vec::new();
        pair.windows.for_each_used(|position, slot, key| used.push((position, slot, key)));
        let done_above = pair.windows.done_above(floor);
        let mut deadline: Option<Deadline> = None;
        for (position, slot, key) in used {
            self.restore_slot(number, group, slot);
            let Some(pair) = self.pairs.derived(number) else { return };
            if !posthouse_frame::planted("keys-not-restored") {
                pair.lock(key, position);
            }
            if !slot.is_chained() {
                let at = slot.visible_at();
                self.deadlines.push_one(&mut deadline, at, number, position);
            } else if key == 0 {
                self.exhausted.push_back((number, position, true));
            } else if pair.is_first_of(key, position) {
                pair.again.push_back(position);
            }
        }
        if !posthouse_frame::planted("leases-not-restored") {
            self.flush_deadline(deadline);
        }
        if let Some(pair) = self.pairs.derived(number) {
            pair.done_above = done_above;
        }
    }
}
