//! Commands become records with absolute results, and replies.

use hashbrown::HashSet;
use posthouse_frame::{BodyBuf, FrameBuf};

use super::command::{
    Batch, Before, Burial, Command, Copied, GivenBack, Held, Known, Published, Refusal, Reply,
    Settled, Target, Which,
};
use super::window::State;
use super::{Pair, Shard};
use crate::catalog::Catalog;
use crate::chunk::{Chunks, Miss};
use crate::ident::{IdKind, IdParts, MessageId};
use crate::index::OwnId;
use crate::message::DeadReason;
use crate::record::{
    CancelReason, Draft, DueAt, Entries, EntryDedupe, List, NameTaken, Pending, Place, PlaceReason,
    Record, SkipReason, TrimReason,
};
use crate::schedule::MAX_DUE;
use crate::words::{
    GroupId, Lookup, MAX_POSITION, Now, PartitionId, Position, Run, Seq, ShardMs, TopicId, UnixMs,
};

impl Shard {
    /// Decides a command: writes what follows from it into `out`, and says what to
    /// answer when that is durable. The state does not change; the caller applies
    /// what was written, at once.
    ///
    /// Bodies are taken out of the command only when it succeeds, so that it can be
    /// asked again after a miss.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory; nothing was written.
    /// Publish, prepare, rollback, ack, nack and extend never miss.
    pub fn decide(
        &self,
        command: &mut Command,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        Ok(match command {
            Command::Publish { batches, apart } => self.publish(batches, *apart, catalog, now, out),
            Command::Ack(held) => self.ack(held, out),
            Command::Nack(given) => self.nack(given, catalog, now, out),
            Command::Extend { held, lease_ms } => self.extend(held, *lease_ms, now, out),
            Command::Claim(claim) => return self.claim(claim, catalog, chunks, now, out),
            Command::Attach { group, partition, topic, start } => {
                return self.attach_at(*group, *partition, *topic, *start, catalog, chunks, out);
            }
            Command::Detach { group, partition } => {
                if self.pair(*group, *partition).is_some() {
                    Record::Detach { group: *group, partition: *partition }.write(out);
                }
                Reply::Done
            }
            Command::Drop { partition } => {
                if self.partition(*partition).is_some_and(|row| !row.dropped) {
                    Record::Drop { partition: *partition }.write(out);
                }
                Reply::Done
            }
            Command::Seek { group, partition, to } => {
                return self.seek(*group, *partition, *to, chunks, out);
            }
            Command::Purge { partition, before } => {
                return self.purge(*partition, *before, chunks, now, out);
            }
            Command::Bury { burial, to, copy } => self.bury(burial, *to, copy, catalog, now, out),
            Command::Redrive { from, to, letters } => {
                return self.redrive(*from, *to, letters, catalog, chunks, now, out);
            }
            Command::PurgeDead { from, positions } => self.purge_dead(*from, positions, out),
            Command::Reschedule(items) => self.reschedule(items, now, out),
            Command::Cancel(items) => self.cancel(items, out),
            Command::PurgeScheduled { partition } => self.purge_scheduled(*partition, out),
            Command::Prepare(what) => self.prepare(what, catalog, now, out),
            Command::Commit { first } => return self.commit(*first, chunks, now, out),
            Command::Rollback { first } => self.rollback(*first, now, out),
            Command::TakeChecks { producer, topic, most } => {
                self.take_checks(producer, *topic, *most, now, out)
            }
            Command::Recur { occurrence, batches } => {
                self.recur(*occurrence, batches, catalog, now, out)
            }
            Command::Carry { folds, items, bodies } => self.carry(*folds, items, bodies, out),
            Command::ForgetRecurring(gone) => self.forget_recurring(gone, out),
            Command::NoteSnapshot { frame, digest } => {
                Record::Snapshot { frame: *frame, digest: *digest }.write(out);
                Reply::Done
            }
        })
    }

    pub(super) fn publish(
        &self,
        batches: &mut [Batch],
        apart: bool,
        catalog: &Catalog,
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        let mut planning = Planning { seq: self.schedule.times.next(), ..Planning::default() };
        let mut planned = Vec::with_capacity(batches.len());
        let mut refused = None;
        for (number, batch) in batches.iter().enumerate() {
            match self.plan(number, batch, apart, catalog, now, &mut planning) {
                Ok(plan) => planned.push(plan),
                Err(refusal)
                    if posthouse_frame::planted("publish-in-part") && !planned.is_empty() =>
                {
                    refused = Some(refusal);
                    break;
                }
                Err(refusal) => return Reply::Refused(refusal),
            }
        }
        let mut opened: HashSet<PartitionId, foldhash::fast::RandomState> = HashSet::default();
        for (batch, plan) in batches.iter_mut().zip(&planned) {
            let (partition, topic) = (batch.partition, batch.topic);
            if self.partition(partition).is_none() && opened.insert(partition) {
                Record::Open { partition, topic }.write(out);
            }
            let left_out = plan.left_out();
            let bodies = std::mem::take(&mut batch.bodies);
            let mut drafts = std::mem::take(&mut batch.drafts);
            let bodies =
                if left_out.is_empty() { bodies } else { without(&left_out, bodies, &mut drafts) };
            if drafts.is_empty() {
                continue;
            }
            let body_at = out.bodies(bodies);
            let (first, at) = (plan.first, now.wall);
            if !plan.is_later {
                let entries = Entries::Drafts(&drafts, at);
                Record::Publish { partition, first, at, body_at, entries }.write(out);
                continue;
            }
            let left_out = |index: &u32| left_out.binary_search(index).is_err();
            let due = (0u32..).zip(&plan.due).filter(|(index, _)| left_out(index));
            let due: Vec<DueAt> = due.map(|(_, due)| DueAt(*due)).collect();
            // How long a message lives counts from when it is due.
            let (due, entries) = (List::Slice(&due), Entries::Drafts(&drafts, UnixMs(0)));
            Record::Schedule { partition, first, at, body_at, held: false, due, entries }
                .write(out);
        }
        if !planning.replaced.is_empty() {
            let (why, items) = (CancelReason::Replaced, List::Slice(&planning.replaced));
            Record::Cancel { why, items }.write(out);
        }
        if posthouse_frame::planted("position-ahead") {
            let known = |plan: &&mut Published| !plan.duplicates.is_empty();
            planned.iter_mut().filter(known).for_each(|plan| plan.first += 1);
        }
        refused.map_or(Reply::Published(planned), Reply::Refused)
    }

    /// Finds duplicates and conflicts, and where the batch will stand.
    fn plan(
        &self,
        number: usize,
        batch: &Batch,
        apart: bool,
        catalog: &Catalog,
        now: Now,
        planning: &mut Planning,
    ) -> Result<Published, Refusal> {
        let partition = batch.partition;
        let topic = catalog.topic(batch.topic).filter(|topic| topic.is_active());
        let row = self.partition(partition);
        let (Some(topic), false) = (topic, row.is_some_and(|row| row.dropped)) else {
            return Err(Refusal::NoPartition(partition));
        };
        let is_later = batch.is_later();
        let first = planning.first(partition, row.map_or(0, |row| row.next), is_later);
        let mut plan =
            Published { partition, first, is_later, at: now.wall, ..Published::default() };
        let mut fresh = 0;
        let window_ms = topic.config.dedupe_window_ms;
        let batch_number = number as u32;
        for (index, draft) in (0u32..).zip(&batch.drafts) {
            let here = Before { partition, position: first + fresh, is_later };
            if let Some(later) = draft.later.as_deref() {
                plan.due.push(later.when.due(now.wall).min(MAX_DUE));
            }
            let known = match draft.dedupe.as_deref() {
                Some(id) if window_ms > 0 => {
                    self.known(batch.topic, *id, window_ms, now, here, planning)
                }
                _ => None,
            };
            if let Some((before, is_same)) = known {
                let known = Known { index, before };
                match (is_same, apart) {
                    (true, _) => plan.duplicates.push(known),
                    (false, true) => plan.conflicts.push(known),
                    (false, false) => {
                        return Err(Refusal::Conflict { batch: batch_number, index, before });
                    }
                }
                continue;
            }
            if let Some(before) = self.name_taken(batch.topic, draft, here, planning) {
                let known = Known { index, before };
                let taken = draft.later.as_deref().map_or(NameTaken::Replace, |later| later.taken);
                match (taken, apart) {
                    (NameTaken::Keep, _) => plan.kept.push(known),
                    (_, true) => plan.taken.push(known),
                    (_, false) => {
                        return Err(Refusal::NameTaken { batch: batch_number, index, before });
                    }
                }
                planning.forget(batch.topic, draft);
                continue;
            }
            fresh += 1;
        }
        if first + fresh > MAX_POSITION {
            return Err(match is_later {
                true => Refusal::NumbersExhausted,
                false => Refusal::PartitionFull(partition),
            });
        }
        planning.advance(partition, fresh, is_later);
        Ok(plan)
    }

    /// The message that came before under this publish id, and whether it is the same
    /// message. If there was none, notes that it goes `here`.
    fn known(
        &self,
        topic: TopicId,
        dedupe: EntryDedupe,
        window_ms: u64,
        now: Now,
        here: Before,
        planning: &mut Planning,
    ) -> Option<(Before, bool)> {
        let key = (topic, dedupe.id);
        if let Some((digest, before)) = planning.ids.get(&key) {
            return Some((*before, *digest == dedupe.digest));
        }
        if let Some(before) = self.dedupe.get(topic, dedupe.id)
            && now.wall.since(before.at) < window_ms
            && !(posthouse_frame::planted("ids-of-last-second") && now.wall.since(before.at) > 1000)
        {
            // Nobody knows yet whether a prepared message will come.
            let is_held = before.is_later && self.is_held(before.position);
            let is_same = (before.digest == dedupe.digest
                || posthouse_frame::planted("conflict-unseen"))
                && !is_held;
            let (partition, position) = (before.partition, before.position);
            return Some((Before { partition, position, is_later: before.is_later }, is_same));
        }
        planning.ids.insert(key, (dedupe.digest, here));
        None
    }

    /// The pending message that has the name of this one, if that keeps it out. Else the
    /// name is that of the one that goes `here`.
    fn name_taken(
        &self,
        topic: TopicId,
        draft: &Draft,
        here: Before,
        planning: &mut Planning,
    ) -> Option<Before> {
        let later = draft.later.as_deref()?;
        let name = later.name?;
        let has = planning.names.get(&(topic, name)).copied().or_else(|| {
            let of = self.later_named(Which::Name(topic, name))?;
            Some(Before { partition: of.partition, position: of.seq, is_later: true })
        });
        if let Some(before) = has {
            if later.taken != NameTaken::Replace {
                return Some(before);
            }
            let (partition, seq) = (before.partition, before.position);
            planning.replaced.push(Pending { partition, seq });
        }
        planning.names.insert((topic, name), here);
        None
    }

    /// What a receipt is worth now.
    fn held(&self, held: &Held) -> Result<(&Pair, super::Slot), Settled> {
        let Some(pair) = self.pair(held.group, held.partition) else {
            return Err(Settled::NotHeld);
        };
        if held.position < pair.floor {
            return Err(Settled::Already);
        }
        match pair.windows.state(held.position) {
            State::Free => Err(Settled::NotHeld),
            State::Done => Err(Settled::Already),
            State::Used(slot)
                if slot.fence() != held.fence && !posthouse_frame::planted("any-fence") =>
            {
                if slot.fence() < held.fence || slot.is_chained() {
                    // The group went back to before this message since.
                    return Err(Settled::NotHeld);
                }
                let consumer = self
                    .group(held.group)
                    .and_then(|group| group.consumer(slot.consumer()))
                    .map_or(String::new(), |consumer| consumer.name.to_string());
                let (attempt, fence) = (slot.attempt(), slot.fence());
                Err(Settled::Regranted { attempt, fence, consumer })
            }
            State::Used(slot) if !slot.is_held() => Err(Settled::GivenBack),
            State::Used(slot) => Ok((pair, slot)),
        }
    }

    /// Judges every receipt, and calls `write` with the runs of those that hold, by
    /// group and partition.
    fn settle(
        &self,
        all: &[Held],
        visible_at: Option<ShardMs>,
        mut write: impl FnMut(GroupId, PartitionId, &[Run]),
    ) -> Reply {
        let mut settled = Vec::with_capacity(all.len());
        let mut good: Vec<(GroupId, PartitionId, Position)> = Vec::with_capacity(all.len());
        for held in all {
            settled.push(match self.held(held) {
                Ok((_, slot)) => {
                    good.push((held.group, held.partition, held.position));
                    Settled::Done { attempt: slot.attempt(), visible_at }
                }
                Err(why) => why,
            });
        }
        if !good.is_sorted() {
            good.sort_unstable();
        }
        good.dedup();
        if posthouse_frame::planted("settle-loses-last") && good.len() > 1 {
            good.pop();
        }
        let mut runs = Vec::new();
        for of_pair in good.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            runs.clear();
            of_pair.iter().for_each(|(_, _, position)| Run::push(&mut runs, *position));
            write(of_pair[0].0, of_pair[0].1, &runs);
        }
        Reply::Settled(settled)
    }

    fn ack(&self, held: &[Held], out: &mut FrameBuf) -> Reply {
        self.settle(held, None, |group, partition, runs| {
            Record::Ack { group, partition, runs: List::Slice(runs) }.write(out);
        })
    }

    fn extend(&self, held: &[Held], lease_ms: u64, now: Now, out: &mut FrameBuf) -> Reply {
        let visible_at = now.lease.plus(lease_ms);
        self.settle(held, Some(visible_at), |group, partition, runs| {
            if posthouse_frame::planted("extend-unrecorded") {
                return;
            }
            Record::Extend { group, partition, visible_at, runs: List::Slice(runs) }.write(out);
        })
    }

    fn nack(&self, given: &[GivenBack], catalog: &Catalog, now: Now, out: &mut FrameBuf) -> Reply {
        let mut taken: HashSet<Held, foldhash::fast::RandomState> = HashSet::default();
        let settled = given.iter().map(|back| {
            let held = back.held;
            let slot = match self.held(&held) {
                Ok(_) if taken.contains(&held) => return Settled::GivenBack,
                Ok((_, slot)) => slot,
                Err(why) => return why,
            };
            if given.len() > 1 {
                taken.insert(held);
            }
            let config = catalog.group(held.group).map(|group| &catalog.effective(group).config);
            let (most, backoff_ms) = config.map_or((u16::MAX, 0), |config| {
                (config.max_attempts, config.backoff_after(slot.attempt()))
            });
            // Nobody gets it again after the last attempt: there is nothing to wait for.
            let last = slot.attempt() >= most;
            let delay_ms = match last || posthouse_frame::planted("nack-at-once") {
                true => 0,
                false => back.delay_ms.unwrap_or(backoff_ms),
            };
            let visible_at = now.lease.plus(delay_ms);
            Record::Nack {
                group: held.group,
                partition: held.partition,
                position: held.position,
                visible_at,
                reason: &back.reason,
            }
            .write(out);
            Settled::Done { attempt: slot.attempt(), visible_at: Some(visible_at) }
        });
        Reply::Settled(settled.collect())
    }

    #[allow(clippy::too_many_arguments)] // The fields of one command, matched apart.
    fn attach_at(
        &self,
        group: GroupId,
        partition: PartitionId,
        topic: TopicId,
        start: Target,
        catalog: &Catalog,
        chunks: &impl Chunks,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        // Topic or group may have been deleted while this was on its way.
        let is_there = self.takes(partition, topic, catalog)
            && catalog.group(group).is_some_and(|group| group.is_active());
        if !is_there || self.pair(group, partition).is_some() {
            return Ok(Reply::Done);
        }
        let floor = self.position_of(partition, start, chunks)?;
        if self.partition(partition).is_none() {
            Record::Open { partition, topic }.write(out);
        }
        Record::Attach { group, partition, floor }.write(out);
        Ok(Reply::Done)
    }

    /// Whether anything can come to a partition: it is there, and so is its topic.
    fn takes(&self, partition: PartitionId, topic: TopicId, catalog: &Catalog) -> bool {
        catalog.topic(topic).is_some_and(|topic| topic.is_active())
            && self.partition(partition).is_none_or(|row| !row.dropped)
    }

    /// The position that a target means now.
    fn position_of(
        &self,
        partition: PartitionId,
        target: Target,
        chunks: &impl Chunks,
    ) -> Result<Position, Miss> {
        let Some(row) = self.partition(partition) else { return Ok(0) };
        Ok(match target {
            Target::Earliest => row.head,
            Target::Latest => row.next,
            Target::Position(position) => position.clamp(row.head, row.next),
            Target::Time(time) => {
                self.index.first_at(chunks, partition, row.chain, row.head..row.next, time)?
            }
        })
    }

    fn seek(
        &self,
        group: GroupId,
        partition: PartitionId,
        to: Target,
        chunks: &impl Chunks,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        if self.pair(group, partition).is_none() {
            return Ok(Reply::Refused(Refusal::NotAttached(partition)));
        }
        let position = self.position_of(partition, to, chunks)?;
        Record::Seek { group, partition, position }.write(out);
        Ok(Reply::Position(position))
    }

    fn purge(
        &self,
        partition: PartitionId,
        before: Option<Position>,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        let Some(row) = self.partition(partition) else { return Ok(Reply::Count(0)) };
        let head = before.unwrap_or(row.next).clamp(row.head, row.next);
        if head > row.head {
            let at_head = self.index.get(chunks, partition, row.chain, head)?;
            let head_at = at_head.map_or(now.wall, |found| found.at);
            Record::Trim { partition, head, head_at, why: TrimReason::Purged }.write(out);
        }
        Ok(Reply::Count(head - row.head))
    }

    fn bury(
        &self,
        burial: &Burial,
        (to, topic): (PartitionId, TopicId),
        copy: &mut Copied,
        catalog: &Catalog,
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        let held = Held {
            group: burial.group,
            partition: burial.partition,
            position: burial.found.position,
            fence: burial.fence,
        };
        let still = self.pair(held.group, held.partition).is_some_and(|pair| {
            // Whoever has it may ask for that; else its time has to be over.
            let asked = burial.reason == DeadReason::Asked;
            matches!(pair.windows.state(held.position), State::Used(slot)
                if slot.fence() == held.fence && (asked || slot.visible_at() <= now.lease))
        });
        if !still && !posthouse_frame::planted("buried-twice") {
            return Reply::Refused(Refusal::Gone);
        }
        if !self.takes(to, topic, catalog) {
            return Reply::Refused(Refusal::NoPartition(to));
        }
        let source = Some((held.group, held.partition, held.position))
            .filter(|_| !posthouse_frame::planted("buried-and-kept"));
        let next = self.open_for(to, topic, GroupId::OPERATOR, out);
        let id = self.id_of(burial.partition, &burial.found, catalog);
        place(to, next, PlaceReason::Dead, id, copy, source, now, out);
        Reply::Position(next)
    }

    /// Opens a partition of the system if it is not, with the group that it is for.
    /// Returns its end.
    fn open_for(
        &self,
        partition: PartitionId,
        topic: TopicId,
        group: GroupId,
        out: &mut FrameBuf,
    ) -> Position {
        let next = self.partition(partition).map(|row| row.next);
        if next.is_none() {
            Record::Open { partition, topic }.write(out);
        }
        if self.pair(group, partition).is_none() {
            let floor = self.partition(partition).map_or(0, |row| row.head);
            Record::Attach { group, partition, floor }.write(out);
        }
        next.unwrap_or(0)
    }

    /// The id of a message: the one it was published under.
    pub fn id_of(
        &self,
        partition: PartitionId,
        found: &crate::index::Found,
        catalog: &Catalog,
    ) -> MessageId {
        let (kind, number) = match found.id {
            OwnId::Position => (IdKind::Stored, found.position),
            OwnId::Seq(seq) => (IdKind::Scheduled, seq),
            OwnId::Other(id) => return id,
        };
        MessageId::new(catalog.secret(), IdParts { kind, shard: self.id, partition, number })
    }

    #[allow(clippy::too_many_arguments)] // The fields of one command, matched apart.
    fn redrive(
        &self,
        from: PartitionId,
        (group, to, topic): (GroupId, PartitionId, TopicId),
        letters: &mut Vec<(Position, Copied)>,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        let Some(row) = self.partition(from) else { return Ok(Reply::Count(0)) };
        if !self.takes(to, topic, catalog) {
            return Ok(Reply::Refused(Refusal::NoPartition(to)));
        }
        letters.sort_by_key(|(position, _)| *position);
        letters.dedup_by_key(|(position, _)| *position);
        if !posthouse_frame::planted("redriven-again") {
            letters.retain(|(position, _)| self.is_letter(from, *position));
        }
        let mut ids = Vec::with_capacity(letters.len());
        for (position, _) in letters.iter() {
            let found = self.index.get(chunks, from, row.chain, *position)?;
            let found = found.expect("a partition's index has all its positions");
            ids.push(self.id_of(from, &found, catalog));
        }
        if letters.is_empty() {
            return Ok(Reply::Count(0));
        }
        let first = self.open_for(to, topic, group, out);
        for (next, ((position, copy), id)) in (first..).zip(letters.iter_mut().zip(ids)) {
            let source = Some((GroupId::OPERATOR, from, *position))
                .filter(|_| !posthouse_frame::planted("letter-stays"));
            place(to, next, PlaceReason::Redriven, id, copy, source, now, out);
        }
        Ok(Reply::Count(letters.len() as u64))
    }

    /// Whether a dead letter is there, neither redriven nor purged.
    pub fn is_letter(&self, partition: PartitionId, position: Position) -> bool {
        let (Some(row), Some(pair)) =
            (self.partition(partition), self.pair(GroupId::OPERATOR, partition))
        else {
            return false;
        };
        (row.head.max(pair.floor)..row.next).contains(&position)
            && pair.windows.state(position) != State::Done
    }

    fn purge_dead(
        &self,
        from: PartitionId,
        positions: &Option<Vec<Position>>,
        out: &mut FrameBuf,
    ) -> Reply {
        let group = GroupId::OPERATOR;
        let (Some(row), Some(pair)) = (self.partition(from), self.pair(group, from)) else {
            return Reply::Count(0);
        };
        let mut runs = Vec::new();
        let count = match positions {
            None => {
                let len = row.next - pair.floor;
                if len > 0 {
                    runs.push(Run { first: pair.floor, len });
                }
                len - pair.done_above
            }
            Some(positions) => {
                let mut there: Vec<Position> =
                    positions.iter().copied().filter(|p| self.is_letter(from, *p)).collect();
                there.sort_unstable();
                there.dedup();
                there.iter().for_each(|position| Run::push(&mut runs, *position));
                there.len() as u64
            }
        };
        if !runs.is_empty() {
            let (why, runs) = (SkipReason::Purged, List::Slice(&runs));
            Record::Skip { group, partition: from, next: pair.next, why, runs }.write(out);
        }
        Reply::Count(count)
    }
}

/// What the batches of one publish have decided so far.
#[derive(Default)]
struct Planning {
    /// Several batches may go to one partition: where its end will be.
    ends: Lookup<PartitionId, Position>,
    /// The number of the next scheduled message.
    seq: Seq,
    /// Publish ids: the digest of the message, and where it goes.
    ids: Lookup<(TopicId, u128), (u64, Before)>,
    /// Names, and whose they are.
    names: Lookup<(TopicId, u128), Before>,
    /// Messages that have lost their names, and so their place.
    replaced: Vec<Pending>,
}

impl Planning {
    /// Where the next message for a partition that ends at `next` will stand; the number
    /// that it gets, if it is scheduled.
    fn first(&mut self, partition: PartitionId, next: Position, is_later: bool) -> Position {
        if is_later {
            return self.seq;
        }
        *self.ends.entry(partition).or_insert(next)
    }

    fn advance(&mut self, partition: PartitionId, count: u64, is_later: bool) {
        if is_later {
            self.seq += count;
        } else if let Some(end) = self.ends.get_mut(&partition) {
            *end += count;
        }
    }

    /// The message is not taken in after all: its publish id leads nowhere.
    fn forget(&mut self, topic: TopicId, draft: &Draft) {
        if let Some(dedupe) = draft.dedupe.as_deref() {
            self.ids.remove(&(topic, dedupe.id));
        }
    }
}

/// The batch without the messages of these indexes, which are in order.
fn without(left_out: &[u32], bodies: BodyBuf, drafts: &mut Vec<Draft>) -> BodyBuf {
    let mut skip = left_out.iter().copied().peekable();
    let mut kept = BodyBuf::with_capacity(bodies.len());
    let mut at = 0;
    let mut index = 0;
    drafts.retain(|draft| {
        let is_known = skip.next_if_eq(&index).is_some();
        if !is_known {
            kept.append_one(&bodies, at, draft.len as usize);
        }
        at += draft.len as usize;
        index += 1;
        !is_known
    });
    kept
}

#[allow(clippy::too_many_arguments)] // The fields of one record.
fn place(
    partition: PartitionId,
    position: Position,
    reason: PlaceReason,
    id: MessageId,
    copy: &mut Copied,
    source: Option<(GroupId, PartitionId, Position)>,
    now: Now,
    out: &mut FrameBuf,
) {
    let draft = std::mem::take(&mut copy.draft);
    let body_at = out.bodies(std::mem::take(&mut copy.body));
    let body = out.place(body_at, draft.len);
    let entry = draft.entry(now.wall);
    let at = now.wall;
    Record::Place(Place { partition, position, at, reason, id, body, entry, source }).write(out);
}
