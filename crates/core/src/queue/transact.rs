//! Transactions: prepared, asked about, committed or rolled back.

use std::sync::Arc;

use posthouse_frame::FrameBuf;

use super::command::{Before, Check, Ended, Preparation, Prepared, Refusal, Reply};
use super::{Shard, Transaction};
use crate::catalog::Catalog;
use crate::chunk::{Chunks, Miss};
use crate::record::{Commit, DueAt, Entries, List, Pending, Prepare, PreparedPart, Record, When};
use crate::schedule::{Item, MAX_DUE, State, Young};
use crate::words::{
    Lookup, MAX_POSITION, Now, PartitionId, Position, Run, Seq, ShardMs, TopicId, UnixMs,
};

use super::transaction::Decision;

impl Shard {
    pub(super) fn prepare(
        &self,
        what: &mut Preparation,
        catalog: &Catalog,
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        match self.prepared_before(what, catalog, now) {
            Ok(None) => {}
            Ok(Some(_)) if posthouse_frame::planted("prepared-twice") => {}
            Ok(Some(known)) => {
                return Reply::Prepared(Prepared { first: known.first, is_duplicate: true });
            }
            Err(refusal) => return Reply::Refused(refusal),
        }
        let first = self.schedule.times.next();
        let count: usize = what.batches.iter().map(|batch| batch.drafts.len()).sum();
        for batch in &what.batches {
            let topic = catalog.topic(batch.topic).filter(|topic| topic.is_active());
            let row = self.partition(batch.partition);
            if topic.is_none() || row.is_some_and(|row| row.dropped) {
                return Reply::Refused(Refusal::NoPartition(batch.partition));
            }
        }
        if first + count as u64 > MAX_POSITION {
            return Reply::Refused(Refusal::NumbersExhausted);
        }
        let topic = what.batches.first().and_then(|batch| catalog.topic(batch.topic));
        let (check_after_ms, checks) =
            topic.map_or((0, 0), |topic| (topic.config.check_after_ms, topic.config.checks));
        let check_after_ms = what.check_after_ms.unwrap_or(check_after_ms);

        let mut opened: Vec<PartitionId> = Vec::new();
        let mut parts: Vec<PreparedPart> = Vec::with_capacity(what.batches.len());
        let mut when: Vec<When> = Vec::new();
        let (mut seq, mut bytes) = (first, 0);
        for batch in what.batches.iter_mut().filter(|batch| !batch.drafts.is_empty()) {
            let (partition, topic) = (batch.partition, batch.topic);
            if self.partition(partition).is_none() && !opened.contains(&partition) {
                Record::Open { partition, topic }.write(out);
                opened.push(partition);
            }
            let is_later = batch.is_later();
            let drafts = std::mem::take(&mut batch.drafts);
            when.extend(drafts.iter().filter_map(|d| d.later.as_deref()).map(|later| later.when));
            let count = drafts.len() as u64;
            parts.push(PreparedPart { partition, count, is_later });
            bytes += batch.bodies.len() as u64;
            let body_at = out.bodies(std::mem::take(&mut batch.bodies));
            // What is held is due when that is decided.
            let held = !posthouse_frame::planted("prepared-comes");
            let due = vec![DueAt(if held { MAX_DUE } else { now.wall }); drafts.len()];
            let (due, entries) = (List::Slice(&due), Entries::Drafts(&drafts, UnixMs(0)));
            let (first, at) = (seq, now.wall);
            Record::Schedule { partition, first, at, body_at, held, due, entries }.write(out);
            seq += count;
        }
        let more = u16::from(posthouse_frame::planted("one-check-more"));
        Record::Prepare(Prepare {
            first,
            at: now.wall,
            next_check: now.lease.plus(check_after_ms),
            check_after_ms,
            most_checks: what.checks.unwrap_or(checks) + more,
            bytes,
            producer: &what.producer,
            parts: List::Slice(&parts),
            when: List::Slice(&when),
        })
        .write(out);
        Reply::Prepared(Prepared { first, is_duplicate: false })
    }

    /// The transaction that has come before under the publish ids of these messages.
    fn prepared_before(
        &self,
        what: &Preparation,
        catalog: &Catalog,
        now: Now,
    ) -> Result<Option<&Transaction>, Refusal> {
        let mut mine: Lookup<(TopicId, u128), Before> = Lookup::default();
        // The one that is known, and the first message of this one that says so.
        let mut known: Option<(&Transaction, Refusal)> = None;
        let mut is_any_new = false;
        for (number, batch) in (0u32..).zip(&what.batches) {
            let window_ms = catalog.topic(batch.topic).map_or(0, |t| t.config.dedupe_window_ms);
            for (index, draft) in (0u32..).zip(&batch.drafts) {
                let Some(id) = draft.dedupe.as_deref().filter(|_| window_ms > 0) else { continue };
                let conflict = |before| Refusal::Conflict { batch: number, index, before };
                let here = Before { partition: batch.partition, position: 0, is_later: true };
                if let Some(before) = mine.insert((batch.topic, id.id), here) {
                    return Err(conflict(before));
                }
                let before = self.dedupe.get(batch.topic, id.id);
                let Some(before) = before.filter(|b| now.wall.since(b.at) < window_ms) else {
                    is_any_new = true;
                    continue;
                };
                let (partition, position) = (before.partition, before.position);
                let refusal = conflict(Before { partition, position, is_later: before.is_later });
                let of = before.is_later.then(|| self.transactions.of(position)).flatten();
                match of.filter(|of| of.producer == what.producer && before.digest == id.digest) {
                    None => return Err(refusal),
                    Some(of)
                        if known.as_ref().is_some_and(|(known, _)| known.first != of.first) =>
                    {
                        return Err(refusal);
                    }
                    Some(of) => known = known.or(Some((of, refusal))),
                }
            }
        }
        let count: usize = what.batches.iter().map(|batch| batch.drafts.len()).sum();
        match known {
            Some((known, refusal)) if is_any_new || known.messages() != count as u64 => {
                Err(refusal)
            }
            known => Ok(known.map(|(known, _)| known)),
        }
    }

    /// Whether a message waits for the decision of a transaction.
    pub(super) fn is_held(&self, seq: Seq) -> bool {
        matches!(self.schedule.times.state(seq), State::Pending { held: true, .. })
    }

    pub(super) fn commit(
        &self,
        first: Seq,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        let Some(of) = self.transactions.get(first) else {
            return Ok(Reply::Refused(Refusal::NoTransaction));
        };
        if of.decision.is_some() {
            let is_late = !posthouse_frame::planted("late-unsaid");
            return Ok(Reply::Ended(Ended { is_late, transaction: of.clone() }));
        }
        let mut ended = of.clone();
        let mut items: Vec<(PartitionId, Position, Vec<Item>)> = Vec::new();
        let mut due: Vec<DueAt> = Vec::new();
        let mut placed: Vec<Run> = Vec::new();
        let mut seq = first;
        for part in &mut ended.parts {
            let (partition, seqs) = (part.partition, seq..seq + part.count);
            seq = seqs.end;
            let Some(row) = self.partition(partition).filter(|row| !row.dropped) else {
                return Ok(Reply::Refused(Refusal::NoPartition(partition)));
            };
            if part.is_later {
                let when = std::mem::take(&mut part.when);
                let early = if posthouse_frame::planted("commit-forgets-delay") { 100 } else { 0 };
                let due_of = |when: &When| when.due(now.wall).0.saturating_sub(early);
                due.extend(when.iter().map(|when| DueAt(UnixMs(due_of(when)).min(MAX_DUE))));
                continue;
            }
            let before = items.iter().rev().find(|(of, ..)| *of == partition);
            let first = before.map_or(row.next, |(_, first, items)| first + items.len() as u64);
            if first + part.count > MAX_POSITION {
                return Ok(Reply::Refused(Refusal::PartitionFull(partition)));
            }
            let find = |seq| {
                let item = self.schedule.find(seq, partition, chunks)?;
                Ok(item.expect("what is held is there"))
            };
            items.push((partition, first, seqs.map(find).collect::<Result<_, Miss>>()?));
            placed.push(Run { first, len: part.count });
            part.placed = Some(first);
        }
        let is_partial = posthouse_frame::planted("commit-in-part") && items.len() > 1;
        for (partition, first, items) in &items[usize::from(is_partial)..] {
            self.fire_into(*partition, *first, items, now, out);
        }
        let (placed, due) = (List::Slice(&placed), List::Slice(&due));
        Record::Commit(Commit { first, at: now.wall, placed, due }).write(out);
        ended.decision = Some(self.decision(now, true));
        Ok(Reply::Ended(Ended { is_late: false, transaction: ended }))
    }

    pub(super) fn rollback(&self, first: Seq, now: Now, out: &mut FrameBuf) -> Reply {
        let Some(of) = self.transactions.get(first) else {
            return Reply::Refused(Refusal::NoTransaction);
        };
        let mut ended = of.clone();
        let is_late = of.decision.is_some();
        if is_late && posthouse_frame::planted("rollback-overrules") {
            ended.decision = Some(self.decision(now, false));
        }
        if !is_late {
            Record::Rollback { first, at: now.wall }.write(out);
            ended.decision = Some(self.decision(now, false));
        }
        Reply::Ended(Ended { is_late, transaction: ended })
    }

    fn decision(&self, now: Now, is_commit: bool) -> Decision {
        Decision { number: self.counters.decisions, at: now.wall, is_commit }
    }

    /// Asks about what may be asked about: notes that, and says what it is.
    pub(super) fn take_checks(
        &self,
        producer: &Arc<str>,
        topic: Option<TopicId>,
        most: usize,
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        let ready = self.transactions.ready_of(producer, topic, now.lease, most);
        let asked = ready.into_iter().map(|of| {
            let checks = of.checks + 1;
            let next_check = now.lease.plus(of.interval_ms(checks));
            if !posthouse_frame::planted("check-unrecorded") {
                Record::Check { first: of.first, checks, next_check }.write(out);
            }
            Check { first: of.first, check: checks }
        });
        Reply::Checks(asked.collect())
    }

    /// Counts checks that nobody was there for, and parks what has been asked about often
    /// enough. Returns whether there is more to do.
    pub(super) fn keep_transactions(
        &mut self,
        now: Now,
        budget: usize,
        out: &mut FrameBuf,
    ) -> bool {
        for of in self.transactions.overdue(now.lease, budget) {
            let first = of.first;
            if of.checks >= of.most_checks && posthouse_frame::planted("parked-dropped") {
                Record::Rollback { first, at: now.wall }.write(out);
            } else if of.checks >= of.most_checks {
                Record::Park { first }.write(out);
            } else {
                let (checks, next_check) = (of.checks + 1, now.lease);
                Record::Check { first, checks, next_check }.write(out);
            }
        }
        if let Some(upto) = self.transactions.forget_upto(now.wall) {
            Record::ForgetDecisions { upto }.write(out);
        }
        self.transactions.overdue(now.lease, budget + 1).count() > budget
    }

    // ---- applied

    pub(super) fn apply_prepare(&mut self, record: &Prepare<'_>) {
        let partitions = &self.partitions;
        let topic_of = |id: PartitionId| partitions.get(id.0).map_or(TopicId(0), |row| row.topic);
        let ids_upto = self.dedupe.range().1;
        self.transactions.add(&mut self.pager, Transaction::new(record, ids_upto, topic_of));
    }

    pub(super) fn apply_check(&mut self, first: Seq, checks: u16, next_check: ShardMs) {
        self.transactions.change(&mut self.pager, first, |of| {
            (of.checks, of.next_check) = (checks, next_check);
        });
    }

    pub(super) fn apply_park(&mut self, first: Seq) {
        self.transactions.change(&mut self.pager, first, |of| of.is_parked = true);
    }

    /// The messages that came at once have come by records before this one.
    pub(super) fn apply_commit(&mut self, record: &Commit<'_>) {
        let Some(of) = self.transactions.get(record.first) else { return };
        let later = of.parts.iter().map(|part| (part.partition, part.count, part.is_later));
        let parts: Vec<(PartitionId, u64, bool)> = later.collect();
        let (mut seq, mut due) = (record.first, record.due.iter());
        for (partition, count, is_later) in parts {
            let seqs = seq..seq + count;
            seq = seqs.end;
            if is_later {
                for (seq, due) in seqs.zip(due.by_ref()) {
                    self.release(Pending { partition, seq }, due);
                }
            }
        }
        self.note_counters();
        let mut placed = record.placed.iter();
        self.decide_on(record.first, record.at, true, |of| {
            for part in &mut of.parts {
                part.when = Vec::new();
                if !part.is_later {
                    part.placed = placed.next().map(|run| run.first);
                }
            }
        });
    }

    /// A message that was held waits for its time alone.
    fn release(&mut self, of: Pending, DueAt(due): DueAt) {
        let State::Pending { origin, held: true, .. } = self.schedule.times.state(of.seq) else {
            return;
        };
        self.schedule.times.release(&mut self.pager, of.seq);
        self.schedule.times.reschedule(&mut self.pager, of.seq, due);
        if self.partition(of.partition).is_some_and(|row| row.awaits(of.seq)) {
            self.schedule.hours.add(&mut self.pager, of.partition, due);
            if let Some(row) = self.partitions.get_mut(&mut self.pager, of.partition.0) {
                row.pending += 1;
            }
        }
        self.schedule.enter(Young::moved((due, of.seq), of.partition, origin));
    }

    pub(super) fn apply_rollback(&mut self, first: Seq, at: UnixMs) {
        let Some(of) = self.transactions.get(first) else { return };
        let (seqs, ids_upto) = (of.seqs(), of.ids_upto);
        let kept = usize::from(posthouse_frame::planted("rollback-keeps-one"));
        for seq in seqs.clone().skip(kept) {
            self.schedule.times.end(&mut self.pager, seq, None);
        }
        self.dedupe.revoke(&mut self.pager, ids_upto, seqs);
        self.decide_on(first, at, false, |of| {
            of.parts.iter_mut().for_each(|part| part.when = Vec::new());
        });
    }

    fn decide_on(
        &mut self,
        first: Seq,
        at: UnixMs,
        is_commit: bool,
        change: impl FnOnce(&mut Transaction),
    ) {
        self.counters.touch(&mut self.pager);
        let number = self.counters.decisions;
        self.counters.decisions += 1;
        self.transactions.change(&mut self.pager, first, |of| {
            of.decision = Some(Decision { number, at, is_commit });
            change(of);
        });
    }
}
