//! Commands become records with absolute results, and replies.

use posthouse_frame::{BodyBuf, FrameBuf};

use super::command::{
    Batch, Burial, Command, Copied, GivenBack, Held, Known, Published, Refusal, Reply, Settled,
    Target,
};
use super::window::State;
use super::{Pair, Shard};
use crate::catalog::Catalog;
use crate::chunk::{Chunks, Miss};
use crate::ident::{IdKind, IdParts, MessageId};
use crate::record::{
    Draft, Entries, EntryDedupe, List, Place, PlaceReason, Record, SkipReason, TrimReason,
};
use crate::words::{
    GroupId, Lookup, MAX_POSITION, Now, PartitionId, Position, Run, ShardMs, TopicId,
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
    /// Publish, ack, nack and extend never miss.
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
                return self.attach_at(*group, *partition, *topic, *start, chunks, out);
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
            Command::NoteSnapshot { frame, digest } => {
                Record::Snapshot { frame: *frame, digest: *digest }.write(out);
                Reply::Done
            }
        })
    }

    fn publish(
        &self,
        batches: &mut [Batch],
        apart: bool,
        catalog: &Catalog,
        now: Now,
        out: &mut FrameBuf,
    ) -> Reply {
        // Several batches may go to one partition: where its end will be.
        let mut ends: Vec<(PartitionId, Position)> = Vec::new();
        let mut planned = Vec::with_capacity(batches.len());
        let mut seen = Seen::default();
        for (number, batch) in batches.iter().enumerate() {
            match self.plan(number, batch, apart, catalog, now, &mut ends, &mut seen) {
                Ok(plan) => planned.push(plan),
                Err(refusal) => return Reply::Refused(refusal),
            }
        }
        let mut opened: Vec<PartitionId> = Vec::new();
        for (batch, plan) in batches.iter_mut().zip(&planned) {
            let (partition, topic) = (batch.partition, batch.topic);
            if self.partition(partition).is_none() && !opened.contains(&partition) {
                Record::Open { partition, topic }.write(out);
                opened.push(partition);
            }
            let bodies = std::mem::take(&mut batch.bodies);
            let mut drafts = std::mem::take(&mut batch.drafts);
            let bodies = if plan.duplicates.is_empty() && plan.conflicts.is_empty() {
                bodies
            } else {
                without(plan, bodies, &mut drafts)
            };
            if drafts.is_empty() {
                continue;
            }
            let body_at = out.bodies(bodies);
            let (first, at) = (plan.first, now.wall);
            let entries = Entries::Drafts(&drafts, at);
            Record::Publish { partition, first, at, body_at, entries }.write(out);
        }
        Reply::Published(planned)
    }

    /// Finds duplicates and conflicts, and where the batch will stand.
    #[allow(clippy::too_many_arguments)] // One batch, with all it takes to judge it.
    fn plan(
        &self,
        number: usize,
        batch: &Batch,
        apart: bool,
        catalog: &Catalog,
        now: Now,
        ends: &mut Vec<(PartitionId, Position)>,
        seen: &mut Seen,
    ) -> Result<Published, Refusal> {
        let partition = batch.partition;
        let topic = catalog.topic(batch.topic).filter(|topic| topic.is_active());
        let row = self.partition(partition);
        let (Some(topic), false) = (topic, row.is_some_and(|row| row.dropped)) else {
            return Err(Refusal::NoPartition(partition));
        };
        let at = match ends.iter().position(|(p, _)| *p == partition) {
            Some(at) => at,
            None => {
                ends.push((partition, row.map_or(0, |row| row.next)));
                ends.len() - 1
            }
        };
        let first = ends[at].1;
        let mut fresh = 0;
        let (mut duplicates, mut conflicts) = (Vec::new(), Vec::new());
        let window_ms = topic.config.dedupe_window_ms;
        for (index, draft) in (0u32..).zip(&batch.drafts) {
            let known = match draft.dedupe.as_deref() {
                Some(id) if window_ms > 0 => {
                    let here = (partition, first + fresh);
                    self.known(batch.topic, *id, window_ms, now, here, seen)
                }
                _ => None,
            };
            match known {
                None => fresh += 1,
                Some((partition, position, is_same)) => {
                    let known = Known { index, partition, position };
                    match (is_same, apart) {
                        (true, _) => duplicates.push(known),
                        (false, true) => conflicts.push(known),
                        (false, false) => {
                            let batch = number as u32;
                            return Err(Refusal::Conflict { batch, index, partition, position });
                        }
                    }
                }
            }
        }
        if first + fresh > MAX_POSITION {
            return Err(Refusal::PartitionFull(partition));
        }
        ends[at].1 += fresh;
        Ok(Published { partition, first, at: now.wall, duplicates, conflicts })
    }

    /// Where the message with this publish id went before, and whether it is the
    /// same message. If there was none, notes that it goes `here`.
    fn known(
        &self,
        topic: TopicId,
        dedupe: EntryDedupe,
        window_ms: u64,
        now: Now,
        here: (PartitionId, Position),
        seen: &mut Seen,
    ) -> Option<(PartitionId, Position, bool)> {
        let key = (topic, dedupe.id);
        if let Some((digest, partition, position)) = seen.get(&key) {
            return Some((*partition, *position, *digest == dedupe.digest));
        }
        if let Some(before) = self.dedupe.get(topic, dedupe.id)
            && now.wall.since(before.at) < window_ms
        {
            return Some((before.partition, before.position, before.digest == dedupe.digest));
        }
        seen.insert(key, (dedupe.digest, here.0, here.1));
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
            State::Used(slot) if slot.fence() != held.fence => {
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
            Record::Extend { group, partition, visible_at, runs: List::Slice(runs) }.write(out);
        })
    }

    fn nack(&self, given: &[GivenBack], catalog: &Catalog, now: Now, out: &mut FrameBuf) -> Reply {
        let mut taken: Vec<Held> = Vec::new();
        let settled = given.iter().map(|back| {
            let held = back.held;
            let slot = match self.held(&held) {
                Ok(_) if taken.contains(&held) => return Settled::GivenBack,
                Ok((_, slot)) => slot,
                Err(why) => return why,
            };
            if given.len() > 1 {
                taken.push(held);
            }
            let config = catalog.group(held.group).map(|group| &catalog.effective(group).config);
            let (most, backoff_ms) = config.map_or((u16::MAX, 0), |config| {
                (config.max_attempts, config.backoff_after(slot.attempt()))
            });
            // Nobody gets it again after the last attempt: there is nothing to wait for.
            let last = slot.attempt() >= most;
            let delay_ms = if last { 0 } else { back.delay_ms.unwrap_or(backoff_ms) };
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

    fn attach_at(
        &self,
        group: GroupId,
        partition: PartitionId,
        topic: TopicId,
        start: Target,
        chunks: &impl Chunks,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        if self.pair(group, partition).is_some() {
            return Ok(Reply::Done);
        }
        let floor = self.position_of(partition, start, chunks)?;
        if self.partition(partition).is_none() {
            Record::Open { partition, topic }.write(out);
        }
        Record::Attach { group, partition, floor }.write(out);
        Ok(Reply::Done)
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
            matches!(pair.windows.state(held.position), State::Used(slot)
                if slot.fence() == held.fence && slot.visible_at() <= now.lease)
        });
        if !still {
            return Reply::Refused(Refusal::Gone);
        }
        let source = Some((held.group, held.partition, held.position));
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
        found.id.unwrap_or_else(|| {
            let (kind, shard, number) = (IdKind::Stored, self.id, found.position);
            MessageId::new(catalog.secret(), IdParts { kind, shard, partition, number })
        })
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
        letters.sort_by_key(|(position, _)| *position);
        letters.dedup_by_key(|(position, _)| *position);
        letters.retain(|(position, _)| self.is_letter(from, *position));
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
            let source = Some((GroupId::OPERATOR, from, *position));
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

/// Publish ids of one command, and where their messages go.
type Seen = Lookup<(TopicId, u128), (u64, PartitionId, Position)>;

/// The batch without what is known already.
fn without(plan: &Published, bodies: BodyBuf, drafts: &mut Vec<Draft>) -> BodyBuf {
    let mut known: Vec<u32> =
        plan.duplicates.iter().chain(&plan.conflicts).map(|known| known.index).collect();
    known.sort_unstable();
    let mut skip = known.into_iter().peekable();
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
