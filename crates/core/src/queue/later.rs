//! Scheduled messages: taken in, moved, called back, fired.

use posthouse_frame::{BodyRef, FrameBuf};

use super::Shard;
use super::command::{LaterOutcome, Reply, Shift, Which};
use crate::index::Ids;
use crate::record::{
    CancelReason, DueAt, Entries, Entry, FiredItem, List, Pending, Record, Rescheduled,
};
use crate::schedule::{Extra, MAX_DUE, Named, State, Young};
use crate::words::{Lookup, Now, PartitionId, Position, Seq, UnixMs};

/// What earlier items of the same command have decided, by message.
type Decided = Lookup<Seq, State>;

impl Shard {
    /// What is known of a scheduled message, purges and deleted topics included.
    pub fn later_state(&self, of: Pending) -> State {
        match self.schedule.times.state(of.seq) {
            State::Pending { .. }
                if !self.partition(of.partition).is_some_and(|row| row.awaits(of.seq)) =>
            {
                State::Cancelled
            }
            state => state,
        }
    }

    /// The pending message with this name.
    pub fn later_named(&self, which: Which) -> Option<Pending> {
        match which {
            Which::Id(of) => Some(of),
            Which::Name(topic, name) => {
                let named = self.schedule.names.get(topic, name)?;
                let of = Pending { partition: named.partition, seq: named.seq };
                matches!(self.later_state(of), State::Pending { .. }).then_some(of)
            }
        }
    }

    /// What there is to change: the message, and when it is due.
    fn changeable(
        &self,
        which: Which,
        decided: &Decided,
    ) -> Result<(Pending, UnixMs), LaterOutcome> {
        let of = self.later_named(which).ok_or(LaterOutcome::Unknown)?;
        let state = decided.get(&of.seq).copied().unwrap_or_else(|| self.later_state(of));
        match state {
            State::Pending { held: true, .. } => Err(LaterOutcome::Held { of }),
            State::Pending { due, .. } => Ok((of, due)),
            State::Fired(position) => Err(LaterOutcome::Fired { of, position }),
            // Whoever asks by a name asks for what has it.
            State::Cancelled if matches!(which, Which::Name(..)) => Err(LaterOutcome::Unknown),
            State::Cancelled => Err(LaterOutcome::Cancelled { of }),
            State::Unknown => Err(LaterOutcome::Unknown),
        }
    }

    pub(super) fn reschedule(
        &self,
        items: &[(Which, Shift)],
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        let mut decided = Decided::default();
        let mut moved = Vec::with_capacity(items.len());
        let outcomes = items.iter().map(|(which, shift)| {
            let (of, due) = match self.changeable(*which, &decided) {
                Ok(found) => found,
                Err(outcome) => return outcome,
            };
            let due = match shift {
                Shift::To(when) => when.due(now.wall),
                Shift::By(ms) => UnixMs(due.0.saturating_add_signed(*ms)).max(now.wall),
            };
            let due = due.min(MAX_DUE);
            if items.len() > 1 {
                decided.insert(of.seq, State::Pending { due, origin: due, held: false });
            }
            moved.push(Rescheduled { of, due });
            LaterOutcome::Done { of, due }
        });
        let outcomes = outcomes.collect();
        if !moved.is_empty() && !posthouse_frame::planted("move-unrecorded") {
            Record::Reschedule { items: List::Slice(&moved) }.write(out);
        }
        Reply::Later(outcomes)
    }

    pub(super) fn cancel(&self, items: &[Which], out: &mut FrameBuf) -> Reply {
        let mut decided = Decided::default();
        let mut cancelled = Vec::with_capacity(items.len());
        let outcomes = items.iter().map(|which| {
            let (of, due) = match self.changeable(*which, &decided) {
                Ok(found) => found,
                Err(outcome) => return outcome,
            };
            if items.len() > 1 {
                decided.insert(of.seq, State::Cancelled);
            }
            cancelled.push(of);
            LaterOutcome::Done { of, due }
        });
        let outcomes = outcomes.collect();
        if posthouse_frame::planted("cancel-loses-rest") {
            cancelled.truncate(1);
        }
        if !cancelled.is_empty() {
            let (why, items) = (CancelReason::Asked, List::Slice(&cancelled));
            Record::Cancel { why, items }.write(out);
        }
        Reply::Later(outcomes)
    }

    pub(super) fn purge_scheduled(&self, partition: PartitionId, out: &mut FrameBuf) -> Reply {
        let pending = self.partition(partition).map_or(0, |row| row.pending);
        if pending > 0 {
            let upto = self.schedule.times.next();
            Record::PurgeScheduled { partition, upto }.write(out);
        }
        Reply::Count(pending)
    }

    // ---- applied

    pub(super) fn apply_schedule(
        &mut self,
        partition: PartitionId,
        first: Seq,
        mut body: BodyRef,
        held: bool,
        due: &List<'_, DueAt>,
        entries: &Entries<'_>,
    ) {
        self.counters.touch(&mut self.pager);
        let row = self
            .partitions
            .get_mut(&mut self.pager, partition.0)
            .expect("a partition is opened before messages are scheduled for it");
        let topic = row.topic;
        if !held {
            row.pending += entries.len() as u64;
        }
        for (seq, (due, entry)) in (first..).zip(due.iter().zip(entries.iter())) {
            let due = due.0.min(MAX_DUE);
            self.schedule.times.add(&mut self.pager, seq, due, held);
            if !held {
                self.schedule.hours.add(&mut self.pager, partition, due);
            }
            if let Some(name) = entry.name {
                let named = Named { topic, name, seq, partition };
                self.schedule.names.set(&mut self.pager, named);
            }
            body.len = entry.len;
            let ttl_ms = entry.expires.map(|ttl| ttl.0);
            let extra = Extra::of(&entry, ttl_ms);
            self.schedule.enter(Young::new((due, seq), partition, body, extra));
            body.at += entry.len;
        }
        self.note_counters();
    }

    pub(super) fn note_counters(&mut self) {
        let uncounted = self.schedule.hours.uncounted();
        let next = self.schedule.times.next();
        if (self.counters.uncounted, self.counters.seq_next) != (uncounted, next) {
            self.counters.touch(&mut self.pager);
            (self.counters.uncounted, self.counters.seq_next) = (uncounted, next);
        }
    }

    /// A message that counted is pending no more, or is due at another time.
    fn uncount(&mut self, of: Pending, due: UnixMs, is_over: bool) {
        let Some(row) = self.partitions.get(of.partition.0) else { return };
        if !row.awaits(of.seq) {
            return;
        }
        self.schedule.hours.subtract(&mut self.pager, of.partition, due);
        if is_over && let Some(row) = self.partitions.get_mut(&mut self.pager, of.partition.0) {
            row.pending = row.pending.saturating_sub(1);
        }
    }

    pub(super) fn apply_fire(
        &mut self,
        partition: PartitionId,
        first: Position,
        at: UnixMs,
        items: &List<'_, FiredItem>,
        entries: &Entries<'_>,
    ) {
        let mut position = first;
        // Bodies that follow each other come into the index together.
        let mut run: Vec<Entry<'_>> = Vec::new();
        let mut seqs: Vec<Seq> = Vec::new();
        let mut start = BodyRef::default();
        let mut end = 0;
        for (item, entry) in items.iter().zip(entries.iter()) {
            let of = Pending { partition, seq: item.seq };
            self.end_later(of, Some(position + run.len() as u64));
            if !run.is_empty() && (item.frame, item.at) != (start.frame, end) {
                let entries = Entries::Slice(&run);
                self.append(partition, position, start, at, Ids::Seqs(&seqs), entries);
                position += run.len() as u64;
                run.clear();
                seqs.clear();
            }
            if run.is_empty() {
                start = BodyRef { frame: item.frame, at: item.at, len: entry.len };
                end = item.at;
            }
            run.push(entry);
            seqs.push(item.seq);
            end += entry.len;
        }
        if !run.is_empty() {
            self.append(partition, position, start, at, Ids::Seqs(&seqs), Entries::Slice(&run));
        }
        self.note_counters();
    }

    /// A message is pending no more.
    fn end_later(&mut self, of: Pending, fired: Option<Position>) {
        let was_held =
            matches!(self.schedule.times.state(of.seq), State::Pending { held: true, .. });
        if let Some(due) = self.schedule.times.end(&mut self.pager, of.seq, fired)
            && !was_held
        {
            self.uncount(of, due, true);
        }
        self.schedule.names.remove(&mut self.pager, of.seq);
    }

    pub(super) fn apply_reschedule(&mut self, items: &List<'_, Rescheduled>) {
        for Rescheduled { of, due } in items.iter() {
            let State::Pending { origin, .. } = self.schedule.times.state(of.seq) else { continue };
            let before = self.schedule.times.reschedule(&mut self.pager, of.seq, due);
            if let Some(before) = before {
                self.uncount(of, before, false);
                if self.partitions.get(of.partition.0).is_some_and(|row| row.awaits(of.seq)) {
                    self.schedule.hours.add(&mut self.pager, of.partition, due);
                }
                if !posthouse_frame::planted("moved-nowhere") {
                    self.schedule.enter(Young::moved((due, of.seq), of.partition, origin));
                }
            }
        }
        self.note_counters();
    }

    pub(super) fn apply_cancel(&mut self, items: &List<'_, Pending>) {
        for of in items.iter() {
            if posthouse_frame::planted("cancelled-comes") && of.seq % 4 == 1 {
                continue;
            }
            self.end_later(of, None);
        }
        self.note_counters();
    }

    pub(super) fn apply_purge_scheduled(&mut self, partition: PartitionId, upto: Seq) {
        if let Some(row) = self.partitions.get_mut(&mut self.pager, partition.0) {
            row.pending = 0;
            row.purged_upto = upto;
        }
        self.schedule.hours.clear(&mut self.pager, partition);
        self.note_counters();
    }
}
