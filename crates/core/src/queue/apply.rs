//! Records change the state, and nothing else does.

use posthouse_frame::{BodyRef, FrameNo};

use super::pair::{Pair, Readiness};
use super::partition::Partition;
use super::window::{Slot, State};
use super::{GroupState, Shard};
use crate::index::{Ids, NewMessages};
use crate::record::{Chained, Entries, Grant, List, Place, Record, SkipReason, TrimReason};
use crate::words::{GroupId, PartitionId, Position, Run, ShardMs, TopicId, UnixMs};

use super::dedupe::Remembered;

/// From how many positions on a run that begins at the floor is not gone through one by one.
const LONG_RUN: u64 = 4_096;

impl Shard {
    /// Changes the state as `record`, in frame `frame`, says.
    pub(super) fn apply_record(&mut self, frame: FrameNo, record: &Record<'_>) {
        match record {
            Record::Open { partition, topic } => {
                self.partitions.set(&mut self.pager, partition.0, Partition::new(*topic));
            }
            Record::Publish { partition, first, at, body_at, entries } => {
                let body = BodyRef { frame, at: *body_at, len: 0 };
                self.remember(*partition, *first, false, *at, entries);
                self.append(*partition, *first, body, *at, Ids::Positions, *entries);
            }
            Record::Place(place) => self.apply_place(place),
            Record::Attach { group, partition, floor } => self.attach(*group, *partition, *floor),
            Record::Detach { group, partition } => self.detach(*group, *partition),
            Record::Drop { partition } => self.drop_partition(*partition),
            Record::Grant(grant) => self.apply_grant(grant),
            Record::Skip { .. } if posthouse_frame::planted("skip-dropped") => {}
            Record::Skip { group, partition, next, why, runs } => {
                if *why == SkipReason::Expired {
                    self.expired += runs.iter().map(|run| run.len).sum::<u64>();
                }
                self.finish(*group, *partition, *next, runs);
            }
            Record::Chain { .. } if posthouse_frame::planted("chain-dropped") => {}
            Record::Chain { group, partition, next, items } => {
                self.apply_chain(*group, *partition, *next, items);
            }
            Record::Ack { group, partition, runs } => self.finish(*group, *partition, 0, runs),
            Record::Nack { group, partition, position, visible_at, reason } => {
                self.apply_nack(*group, *partition, *position, *visible_at, reason);
            }
            Record::Extend { group, partition, visible_at, runs } => {
                self.apply_extend(*group, *partition, *visible_at, runs);
            }
            Record::Seek { group, partition, position } => {
                self.apply_seek(*group, *partition, *position);
            }
            Record::Trim { partition, head, head_at, why } => {
                self.apply_trim(*partition, *head, *head_at, *why);
            }
            Record::Sweep { partition, upto, freed } => {
                let mut bytes = 0;
                for item in freed.iter() {
                    bytes += item.bytes;
                    self.spans.subtract(&mut self.pager, item.frame, item.bytes);
                }
                let carried = self.index.carried_mut();
                carried.forget_below(&mut self.pager, *partition, *upto);
                if let Some(row) = self.partitions.get_mut(&mut self.pager, partition.0) {
                    row.swept = *upto;
                    row.bytes = row.bytes.saturating_sub(bytes);
                    // The head may have moved on since this was decided.
                    if row.swept < row.head {
                        self.want_sweep(*partition);
                    } else {
                        self.stir(*partition);
                    }
                }
            }
            Record::Close { partition } => {
                self.partitions.remove(&mut self.pager, partition.0);
            }
            Record::Forget { upto } => self.dedupe.forget(&mut self.pager, *upto),
            Record::Snapshot { .. } => {}
            Record::Schedule { partition, first, at, body_at, held, due, entries } => {
                self.remember(*partition, *first, true, *at, entries);
                let body = BodyRef { frame, at: *body_at, len: 0 };
                self.apply_schedule(*partition, *first, body, *held, due, entries);
            }
            Record::Fire { partition, first, at, items, entries } => {
                self.apply_fire(*partition, *first, *at, items, entries);
            }
            Record::Reschedule { items } => self.apply_reschedule(items),
            Record::Cancel { why: _, items } => self.apply_cancel(items),
            Record::PurgeScheduled { partition, upto } => {
                self.apply_purge_scheduled(*partition, *upto);
            }
            Record::Prepare(prepare) => self.apply_prepare(prepare),
            Record::Check { first, checks, next_check } => {
                self.apply_check(*first, *checks, *next_check);
            }
            Record::Park { first } => self.apply_park(*first),
            Record::Commit(commit) => self.apply_commit(commit),
            Record::Rollback { first, at } => self.apply_rollback(*first, *at),
            Record::ForgetDecisions { upto } => self.transactions.forget(&mut self.pager, *upto),
            Record::Carry { body_at, items } => self.apply_carry(frame, *body_at, items),
            Record::Recur { recurring, at } => self.apply_recur(*recurring, *at),
        }
    }

    /// Puts messages at the end of a partition.
    pub(super) fn append(
        &mut self,
        partition: PartitionId,
        first: Position,
        body: BodyRef,
        at: UnixMs,
        ids: Ids<'_>,
        entries: Entries<'_>,
    ) {
        let count = entries.len() as u64;
        let bytes: u64 = entries.iter().map(|entry| u64::from(entry.len)).sum();
        let row = self
            .partitions
            .get_mut(&mut self.pager, partition.0)
            .expect("a partition is opened before messages come to it");
        assert_eq!(row.next, first, "positions of partition {partition} are dense");
        if row.is_empty() {
            row.head_at = at;
        }
        row.next += count;
        row.bytes += bytes;
        self.index.add(&mut row.chain, NewMessages { partition, first, body, at, ids, entries });
        let idle = std::mem::take(&mut row.idle);
        self.spans.add(&mut self.pager, body.frame, bytes);
        for pair in idle {
            self.make_ready(pair);
        }
        self.stir(partition);
    }

    fn remember(
        &mut self,
        partition: PartitionId,
        first: Position,
        is_later: bool,
        at: UnixMs,
        entries: &Entries<'_>,
    ) {
        if entries.is_plain() {
            return;
        }
        let Some(topic) = self.partitions.get(partition.0).map(|row| row.topic) else { return };
        for (offset, entry) in entries.iter().enumerate() {
            if let Some(dedupe) = entry.dedupe {
                let (id, digest) = (dedupe.id, dedupe.digest);
                let position = first + offset as u64;
                let item = Remembered { topic, id, digest, partition, position, is_later, at };
                self.dedupe.push(&mut self.pager, item);
            }
        }
        self.counters.touch(&mut self.pager);
        self.counters.dedupe_next = self.dedupe.range().1;
    }

    fn apply_place(&mut self, place: &Place<'_>) {
        let entries = Entries::Slice(std::slice::from_ref(&place.entry));
        let ids = Ids::One(place.id);
        self.append(place.partition, place.position, place.body, place.at, ids, entries);
        if let Some((group, partition, position)) = place.source {
            let run = [Run { first: position, len: 1 }];
            self.finish(group, partition, 0, &List::Slice(&run));
        }
    }

    fn attach(&mut self, group: GroupId, partition: PartitionId, floor: Position) {
        if self.pair_of.contains_key(&(group, partition)) {
            return;
        }
        let number = self.free_pairs.pop_first().unwrap_or(self.next_pair);
        self.next_pair = self.next_pair.max(number + 1);
        let pair = Pair::new(group, partition, floor);
        self.pairs.set(&mut self.pager, number, pair);
        if self.groups.get(group.0).is_none() {
            self.groups.set(&mut self.pager, group.0, GroupState::default());
        }
        self.link_pair(number);
    }

    /// Makes a pair known to its group and its partition.
    pub(super) fn link_pair(&mut self, number: u32) {
        let Some(pair) = self.pairs.get(number) else { return };
        let (group, partition) = (pair.group, pair.partition);
        self.pair_of.insert((group, partition), number);
        if let Some(group) = self.groups.derived(group.0) {
            group.pairs.push(number);
        }
        if let Some(partition) = self.partitions.derived(partition.0) {
            partition.pairs.push(number);
        }
        if group != GroupId::OPERATOR {
            // Not idle, so that the partition need not be asked for it.
            if let Some(pair) = self.pairs.derived(number) {
                pair.readiness = Readiness::Away;
            }
            self.make_ready(number);
        }
    }

    fn detach(&mut self, group: GroupId, partition: PartitionId) {
        let Some(number) = self.pair_of.get(&(group, partition)).copied() else { return };
        self.forget_windows(number);
        self.pair_of.remove(&(group, partition));
        self.pairs.remove(&mut self.pager, number);
        self.free_pairs.insert(number);
        if let Some(row) = self.partitions.derived(partition.0) {
            row.pairs.retain(|p| *p != number);
            row.idle.retain(|p| *p != number);
        }
        self.stir(partition);
        let Some(state) = self.groups.derived(group.0) else { return };
        state.pairs.retain(|p| *p != number);
        state.ready.retain(|p| *p != number);
        state.blocked.retain(|p| *p != number);
        if state.pairs.is_empty() {
            self.groups.remove(&mut self.pager, group.0);
        }
        self.away.retain(|(_, pair)| *pair != number);
        // What it had in flight is so no more: others of the group may have waited for that.
        self.unblock(group);
    }

    fn drop_partition(&mut self, partition: PartitionId) {
        let Some(row) = self.partitions.get(partition.0) else { return };
        let pairs = row.pairs.clone();
        if let Some(row) = self.partitions.derived(partition.0) {
            // None of them has to be looked for in these.
            row.pairs.clear();
            row.idle.clear();
        }
        for number in pairs {
            if let Some(group) = self.pairs.get(number).map(|pair| pair.group) {
                self.detach(group, partition);
            }
        }
        if let Some(row) = self.partitions.get_mut(&mut self.pager, partition.0) {
            row.dropped = true;
            row.head = row.next;
            row.pending = 0;
        }
        self.want_sweep(partition);
        self.schedule.hours.clear(&mut self.pager, partition);
    }

    fn apply_grant(&mut self, grant: &Grant<'_>) {
        self.counters.touch(&mut self.pager);
        self.counters.fence = grant.fence;
        let Some(number) = self.pair_of.get(&(grant.group, grant.partition)).copied() else {
            return;
        };
        self.advance(number, grant.next);
        if grant.is_auto_ack() {
            self.finish(grant.group, grant.partition, 0, &grant.fresh);
            for again in grant.again.iter() {
                self.finish(grant.group, grant.partition, 0, &List::Slice(&[again.run]));
            }
            return;
        }
        let consumer = self.consumer_of(grant.group, grant.consumer);
        let mut keys = grant.keys.iter();
        let slot = |attempt| Slot::new(grant.visible_at, consumer, grant.fence, attempt);
        for run in grant.fresh.iter() {
            for position in run.iter() {
                let key = keys.next().map_or(0, |key| key.0);
                self.put(number, position, slot(1), key);
            }
            self.push_deadline(grant.visible_at, number, run);
        }
        for again in grant.again.iter() {
            for position in again.run.iter() {
                if posthouse_frame::planted("attempt-not-kept") {
                    let slot = slot(again.attempt - 1);
                    let key = self.pairs.get(number).map_or(0, |pair| pair.windows.key(position));
                    self.put(number, position, slot, key);
                    continue;
                }
                let key = self.pairs.get(number).map_or(0, |pair| pair.windows.key(position));
                self.put(number, position, slot(again.attempt), key);
            }
            self.push_deadline(grant.visible_at, number, again.run);
        }
        self.sweep_deadlines();
    }

    /// Moves the pair's search on; it never goes back but by a seek.
    fn advance(&mut self, number: u32, next: Position) {
        if let Some(pair) = self.pairs.get_mut(&mut self.pager, number) {
            pair.next = pair.next.max(next);
        }
    }

    fn consumer_of(&mut self, group: GroupId, name: &str) -> u16 {
        let state = self.groups.get(group.0).expect("a group with a pair is there");
        let (number, is_new) = state.number_of(name);
        if is_new {
            let state = self.groups.get_mut(&mut self.pager, group.0);
            state.expect("a group with a pair is there").name(number, name);
        }
        number
    }

    /// Uses a position, and keeps count.
    fn put(&mut self, number: u32, position: Position, slot: Slot, key: u64) {
        let Some(pair) = self.pairs.derived(number) else { return };
        if position < pair.floor {
            return;
        }
        let before = pair.windows.put(&mut self.pager, number, position, slot, key);
        if before.is_none() {
            pair.lock(key, position);
        }
        let group = pair.group;
        self.count(number, group, before, Some(slot));
    }

    /// Keeps the counts of a pair, its group and its consumers.
    fn count(&mut self, number: u32, group: GroupId, before: Option<Slot>, after: Option<Slot>) {
        let (Some(pair), Some(state)) = (self.pairs.derived(number), self.groups.derived(group.0))
        else {
            return;
        };
        if let Some(slot) = before {
            self.used -= 1;
            if slot.is_held() {
                pair.in_flight -= 1;
                state.release(slot.consumer());
            } else {
                pair.waiting -= 1;
            }
        }
        if let Some(slot) = after {
            self.used += 1;
            if slot.is_held() {
                pair.in_flight += 1;
                state.hold(slot.consumer());
            } else {
                pair.waiting += 1;
            }
        }
    }

    /// Counts a slot that a snapshot has put back.
    pub(super) fn restore_slot(&mut self, number: u32, group: GroupId, slot: Slot) {
        self.count(number, group, None, Some(slot));
    }

    fn apply_chain(
        &mut self,
        group: GroupId,
        partition: PartitionId,
        next: Position,
        items: &List<'_, Chained>,
    ) {
        let Some(number) = self.pair_of.get(&(group, partition)).copied() else { return };
        self.advance(number, next);
        for item in items.iter() {
            self.put(number, item.position, Slot::new(ShardMs(0), 0, 0, 0), item.key);
            if item.key == 0 {
                self.exhausted.push_back((number, item.position, true));
                continue;
            }
            // Whom it waits for may have gone in the same turn.
            if let Some(pair) = self.pairs.derived(number)
                && pair.is_first_of(item.key, item.position)
            {
                pair.again.push_back(item.position);
                self.make_ready(number);
            }
        }
    }

    /// Marks positions done: acknowledged, skipped, or moved elsewhere.
    fn finish(
        &mut self,
        group: GroupId,
        partition: PartitionId,
        next: Position,
        runs: &List<'_, Run>,
    ) {
        let Some(number) = self.pair_of.get(&(group, partition)).copied() else { return };
        self.advance(number, next);
        for run in runs.iter() {
            self.finish_run(number, group, run);
        }
        self.settle_floor(number, group);
    }

    fn finish_run(&mut self, number: u32, group: GroupId, run: Run) {
        let Some(pair) = self.pairs.get_mut(&mut self.pager, number) else { return };
        if run.first <= pair.floor && pair.windows.is_empty() {
            // Everything below is done, nothing above is known: the floor moves.
            let far = u64::from(posthouse_frame::planted("floor-one-far"));
            pair.floor = pair.floor.max(run.end() + far);
            pair.next = pair.next.max(pair.floor);
            return;
        }
        if run.first <= pair.floor && run.len > LONG_RUN {
            return self.finish_up_to(number, group, run.end());
        }
        for position in run.first.max(pair.floor)..run.end() {
            let Some(pair) = self.pairs.derived(number) else { return };
            let key = pair.windows.key(position);
            match pair.windows.finish(&mut self.pager, number, position) {
                State::Done => continue,
                State::Free => pair.done_above += 1,
                State::Used(slot) => {
                    pair.done_above += 1;
                    let freed = pair.unlock(key, position);
                    if let Some(successor) = freed {
                        pair.again.push_back(successor);
                        self.make_ready(number);
                    }
                    self.count(number, group, Some(slot), None);
                    self.burying.remove(&(number, position));
                }
            }
        }
    }

    /// Moves the floor over what is done, and tells who waits for that.
    fn settle_floor(&mut self, number: u32, group: GroupId) {
        let Some(pair) = self.pairs.get_mut(&mut self.pager, number) else { return };
        let floor = pair.windows.first_open(pair.floor);
        pair.done_above -= floor - pair.floor;
        pair.floor = floor;
        pair.next = pair.next.max(floor);
        pair.windows.forget_below(&mut self.pager, number, floor);
        let partition = pair.partition;
        self.stir(partition);
        self.unblock(group);
    }

    fn apply_nack(
        &mut self,
        group: GroupId,
        partition: PartitionId,
        position: Position,
        visible_at: ShardMs,
        reason: &str,
    ) {
        let Some(number) = self.pair_of.get(&(group, partition)).copied() else { return };
        let Some(pair) = self.pairs.derived(number) else { return };
        let State::Used(slot) = pair.windows.state(position) else { return };
        let key = pair.windows.key(position);
        pair.windows.set_reason(&mut self.pager, number, position, reason);
        if posthouse_frame::planted("nack-lets-key-go") {
            pair.keys.remove(&key);
        }
        // Nobody has it now; fence and attempt stay, for whoever asks what became of it.
        self.put(number, position, Slot::new(visible_at, 0, slot.fence(), slot.attempt()), key);
        self.push_deadline(visible_at, number, Run { first: position, len: 1 });
        self.unblock(group);
    }

    /// Pairs of the group that might not give more may again.
    fn unblock(&mut self, group: GroupId) {
        let Some(state) = self.groups.derived(group.0) else { return };
        if state.blocked.is_empty() {
            return;
        }
        for number in std::mem::take(&mut state.blocked) {
            if let Some(pair) = self.pairs.derived(number) {
                pair.readiness = Readiness::Ready;
                state.ready.push_back(number);
            }
        }
        self.call(group);
    }

    fn apply_extend(
        &mut self,
        group: GroupId,
        partition: PartitionId,
        visible_at: ShardMs,
        runs: &List<'_, Run>,
    ) {
        let Some(number) = self.pair_of.get(&(group, partition)).copied() else { return };
        for run in runs.iter() {
            for position in run.iter() {
                let Some(pair) = self.pairs.get(number) else { return };
                if let State::Used(slot) = pair.windows.state(position) {
                    let key = pair.windows.key(position);
                    let slot = Slot::new(visible_at, slot.consumer(), slot.fence(), slot.attempt());
                    self.put(number, position, slot, key);
                }
            }
            if !posthouse_frame::planted("extended-for-ever") {
                self.push_deadline(visible_at, number, run);
            }
        }
        self.sweep_deadlines();
    }

    fn apply_seek(&mut self, group: GroupId, partition: PartitionId, position: Position) {
        let Some(number) = self.pair_of.get(&(group, partition)).copied() else { return };
        self.forget_windows(number);
        if let Some(pair) = self.pairs.get_mut(&mut self.pager, number) {
            pair.floor = position;
            pair.next = position;
            pair.done_above = 0;
        }
        self.stir(partition);
        self.make_ready(number);
        self.unblock(group);
    }

    /// Forgets what is in flight, waits or is done above the floor.
    fn forget_windows(&mut self, number: u32) {
        let Some(pair) = self.pairs.derived(number) else { return };
        let group = pair.group;
        let mut slots = Vec::new();
        pair.windows.for_each_used(|_, slot, _| slots.push(slot));
        pair.windows.clear(&mut self.pager, number);
        pair.keys.clear();
        pair.again.clear();
        for slot in slots {
            self.count(number, group, Some(slot), None);
        }
        self.exhausted.retain(|(pair, ..)| *pair != number);
        self.unburied.retain(|(pair, _)| *pair != number);
        self.burying.retain(|(pair, _), _| *pair != number);
    }

    fn apply_trim(
        &mut self,
        partition: PartitionId,
        head: Position,
        head_at: UnixMs,
        why: TrimReason,
    ) {
        let Some(row) = self.partitions.get_mut(&mut self.pager, partition.0) else { return };
        row.head = head;
        row.head_at = head_at;
        for number in row.pairs.clone() {
            self.raise_floor(number, head, why);
        }
        self.want_sweep(partition);
        self.stir(partition);
    }

    /// Messages below `head` are gone: the group is done with them, willy-nilly.
    fn raise_floor(&mut self, number: u32, head: Position, why: TrimReason) {
        let Some(pair) = self.pairs.get(number) else { return };
        if pair.floor >= head {
            return;
        }
        let (group, windows) = (pair.group, &pair.windows);
        let done = windows.done_above(pair.floor) - windows.done_above(head);
        let unread = (head - pair.floor) - done;
        self.finish_up_to(number, group, head);
        if let Some(pair) = self.pairs.get_mut(&mut self.pager, number)
            && !matches!(why, TrimReason::Purged | TrimReason::Acknowledged)
        {
            pair.dropped += unread;
        }
        self.settle_floor(number, group);
    }

    /// Everything below `end` is done, however much that is: only what is in flight or
    /// waits is looked at.
    fn finish_up_to(&mut self, number: u32, group: GroupId, end: Position) {
        let Some(pair) = self.pairs.get(number) else { return };
        let mut used = Vec::new();
        pair.windows.for_each_used(|position, _, _| {
            if position < end {
                used.push(position);
            }
        });
        for first in used {
            self.finish_run(number, group, Run { first, len: 1 });
        }
        if let Some(pair) = self.pairs.get_mut(&mut self.pager, number) {
            pair.floor = pair.floor.max(end);
            pair.next = pair.next.max(pair.floor);
            pair.done_above = pair.windows.done_above(pair.floor);
        }
    }

    /// The topic of a partition.
    pub(super) fn topic_of(&self, partition: PartitionId) -> Option<TopicId> {
        self.partitions.get(partition.0).map(|row| row.topic)
    }
}
