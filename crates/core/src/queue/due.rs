//! Whatever time makes true: scheduled messages that come, leases that end, attempts that are used up, messages
//! that have been kept long enough, space that can be given back, transactions that nobody decides about.

use posthouse_frame::FrameBuf;

use super::command::Burial;
use super::grant::buries_expired;
use super::window::State;
use super::{Fired, Shard};
use crate::catalog::{Catalog, DeadLetter, Retention};
use crate::chunk::{ChunkId, Chunks, Miss};
use crate::index::Step;
use crate::message::DeadReason;
use crate::record::{Freed, List, Record, SkipReason, TrimReason};
use crate::words::{GroupId, Now, PartitionId, Position, Run, ShardMs, UnixMs};

/// How much one call may do.
#[derive(Clone, Copy, Debug)]
pub struct DueBudget {
    /// Leases to look at, messages to bury, and transactions to look at.
    pub leases: usize,
    /// Partitions to look at.
    pub partitions: usize,
    /// Messages to sweep.
    pub sweep: usize,
    /// Bytes of scheduled messages to fire.
    pub fire_bytes: usize,
}

impl Default for DueBudget {
    fn default() -> Self {
        DueBudget { leases: 10_000, partitions: 256, sweep: 20_000, fire_bytes: 512 << 10 }
    }
}

/// What a call asks of the shell.
#[derive(Debug, Default)]
pub struct Due {
    /// Blocks to fetch before it can go on.
    pub misses: Vec<Miss>,
    /// Blocks that will be needed soon.
    pub ahead: Vec<Miss>,
    /// Scheduled messages that have come.
    pub fired: Fired,
    /// Messages to bury: their bodies have to be copied.
    pub burials: Vec<Burial>,
    /// Index chunks that nobody needs.
    pub forgotten: Vec<ChunkId>,
    /// Whether the budget was used up: call again soon.
    pub more: bool,
}

/// The most messages that are on their way to the dead letters,
const BURIALS: usize = 256;

/// and of their bodies the most bytes; one more may come on top.
const BURIAL_BYTES: u64 = 16 << 20;

/// Trims of one partition are this far apart at least.
const TRIM_EVERY_MS: u64 = 1_000;

/// Messages whose bytes one trim counts.
const TRIM_LOOKS: usize = 20_000;

/// A trim that needs a block is tried again after so long.
const TRIM_AGAIN_MS: u64 = 50;

impl Shard {
    /// Does what is due: writes records into `out`, which the caller applies at once.
    pub fn due(
        &mut self,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        budget: DueBudget,
        out: &mut FrameBuf,
    ) -> Due {
        let mut due = Due::default();
        self.fire(chunks, now, budget.fire_bytes, out, &mut due);
        self.end_leases(now.lease, budget.leases, &mut due);
        self.exhaust(catalog, chunks, now, budget.leases, out, &mut due);
        self.keep_house(catalog, chunks, now, budget.partitions, out, &mut due);
        self.sweep(chunks, budget.sweep, out, &mut due);
        self.forget_ids(catalog, now.wall, out);
        due.more |= self.keep_transactions(now, budget.leases, out);
        due
    }

    /// When [`Shard::due`] has something to do next, if nothing else happens: on the
    /// lease clock, and on the wall clock.
    pub fn next_deadline(&mut self) -> (Option<ShardMs>, Option<UnixMs>) {
        let date = self.dates.peek().map(|date| UnixMs(date.0.0));
        let (check, forget) = self.transactions.deadline();
        let wall = date.into_iter().chain(self.schedule.deadline()).chain(forget).min();
        (self.deadlines.first().into_iter().chain(check).min(), wall)
    }

    /// Whether [`Shard::due`] has something to do whatever the time.
    pub fn has_chores(&self) -> bool {
        !self.exhausted.is_empty()
            || !self.stirred.is_empty()
            || !self.unswept.is_empty()
            || (!self.unburied.is_empty() && self.may_bury())
    }

    /// What ended may be granted again; its group is called.
    fn end_leases(&mut self, now: ShardMs, budget: usize, due: &mut Due) {
        let mut looked = 0;
        while let Some(deadline) = self.deadlines.pop(now) {
            let number = deadline.pair;
            let Some(pair) = self.pairs.derived(number) else { continue };
            let mut any = false;
            for position in deadline.run.iter() {
                if let State::Used(slot) = pair.windows.state(position)
                    && (slot.visible_at() == deadline.at
                        || posthouse_frame::planted("lease-of-before"))
                {
                    pair.again.push_back(position);
                    // A message whose attempts are used up, or that has expired and is
                    // to be buried, must go although nobody asks; whether it is one, the
                    // configuration says.
                    self.exhausted.push_back((number, position, false));
                    any = true;
                }
            }
            if any {
                self.make_ready(number);
            }
            looked += deadline.run.len as usize;
            if looked >= budget {
                due.more = true;
                return;
            }
        }
    }

    fn exhaust(
        &mut self,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        budget: usize,
        out: &mut FrameBuf,
        due: &mut Due,
    ) {
        let mut waiting = Vec::new();
        for _ in 0..budget {
            let unburied = if self.may_bury() { self.unburied.pop_front() } else { None };
            let next = unburied.map(|(number, position)| (number, position, true));
            let Some(next) = next.or_else(|| self.exhausted.pop_front()) else { break };
            if let Err(miss) = self.exhaust_one(next, catalog, chunks, now, out, due) {
                due.misses.push(miss);
                waiting.push(next);
            }
        }
        due.more |= !self.exhausted.is_empty();
        self.exhausted.extend(waiting);
    }

    /// Whether another message may be on its way to the dead letters.
    fn may_bury(&self) -> bool {
        let bytes: u64 = self.burying.values().map(|len| u64::from(*len)).sum();
        self.burying.len() < BURIALS && bytes < BURIAL_BYTES
    }

    #[allow(clippy::too_many_arguments)] // One message, with all it takes to judge it.
    fn exhaust_one(
        &mut self,
        (number, position, is_alone): (u32, Position, bool),
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
        due: &mut Due,
    ) -> Result<(), Miss> {
        let Some(pair) = self.pairs.get(number) else { return Ok(()) };
        let (group, partition) = (pair.group, pair.partition);
        let State::Used(slot) = pair.windows.state(position) else { return Ok(()) };
        let Some(config) = catalog.group(group).map(|g| &catalog.effective(g).config) else {
            return Ok(());
        };
        if slot.visible_at() > now.lease || self.burying.contains_key(&(number, position)) {
            return Ok(());
        }
        let more = u16::from(posthouse_frame::planted("one-attempt-more"));
        let is_used_up = slot.attempt() >= config.max_attempts + more;
        let buries = catalog.topic_of(partition).is_some_and(|t| buries_expired(t, config));
        // It had expired when the group came to it.
        let is_over = slot.is_chained() && pair.windows.key(position) == 0;
        if !is_used_up && !is_over && !buries {
            self.give_again(number, position, is_alone);
            return Ok(());
        }
        let skips = match is_used_up {
            true => {
                config.dead_letter == DeadLetter::Drop
                    || posthouse_frame::planted("letter-not-written")
            }
            false => !buries,
        };
        if skips {
            let why = if is_used_up { SkipReason::Exhausted } else { SkipReason::Expired };
            let (next, runs) = (pair.next, [Run { first: position, len: 1 }]);
            let runs = List::Slice(&runs);
            Record::Skip { group, partition, next, why, runs }.write(out);
            return Ok(());
        }
        let Some(row) = self.partition(partition) else { return Ok(()) };
        let Some(found) = self.index.get(chunks, partition, row.chain, position)? else {
            return Ok(());
        };
        let reason = match (is_used_up, slot.is_held()) {
            (true, true) => DeadReason::LeaseExpired,
            (true, false) => DeadReason::Nacked,
            (false, _) if found.is_expired(now.wall) => DeadReason::Expired,
            (false, _) => {
                self.give_again(number, position, is_alone);
                return Ok(());
            }
        };
        if !self.may_bury() {
            self.unburied.push_back((number, position));
            return Ok(());
        }
        self.burying.insert((number, position), found.body.len);
        due.burials.push(Burial {
            group,
            partition,
            found,
            fence: slot.fence(),
            attempts: slot.attempt(),
            reason,
            error: pair.windows.reason(position).unwrap_or_default().to_owned(),
        });
        if posthouse_frame::planted("buried-twice") {
            due.burials.extend(due.burials.last().cloned());
        }
        Ok(())
    }

    /// It may have more attempts than when it was taken out to be buried.
    fn give_again(&mut self, number: u32, position: Position, is_alone: bool) {
        if is_alone && let Some(pair) = self.pairs.derived(number) {
            pair.again.push_back(position);
            self.make_ready(number);
        }
    }

    /// A burial that was asked for has failed: it will be asked for again.
    pub fn bury_again(&mut self, group: GroupId, partition: PartitionId, position: Position) {
        if let Some(number) = self.pair_of.get(&(group, partition)).copied() {
            self.burying.remove(&(number, position));
            self.exhausted.push_back((number, position, true));
        }
    }

    /// Looks at partitions to which something came or from which something went, and
    /// at those that have a date.
    fn keep_house(
        &mut self,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        budget: usize,
        out: &mut FrameBuf,
        due: &mut Due,
    ) {
        for _ in 0..budget {
            let Some(id) = self.stirred.pop_front() else { break };
            if let Some(row) = self.partitions.derived(id.0) {
                row.stirred = false;
                if !row.dated {
                    self.make_date(id, catalog, now);
                }
            }
        }
        for _ in 0..budget {
            let Some(id) = self.dates.peek().filter(|d| d.0.0 <= now.wall.0).map(|d| d.0.1) else {
                break;
            };
            self.dates.pop();
            match self.trim(id, catalog, chunks, now, out) {
                Ok(cut_short) => {
                    if let Some(row) = self.partitions.derived(id.0) {
                        (row.dated, row.cut_short) = (false, cut_short);
                    }
                    // What the trim left is looked at when it has been applied.
                    self.stir(id);
                }
                // Others do not wait for its block, which may be one that cannot be read.
                Err(miss) => {
                    due.misses.push(miss);
                    self.dates.push(std::cmp::Reverse((now.wall.0 + TRIM_AGAIN_MS, id)));
                }
            }
        }
        due.more |= !self.stirred.is_empty();
    }

    /// The topic's configuration has changed: what was decided about its partition is
    /// decided anew.
    pub fn reconsider(&mut self, partition: PartitionId) {
        if let Some(row) = self.partitions.derived(partition.0) {
            row.dated = false;
        }
        self.stir(partition);
    }

    /// Sets the date at which something of a partition may have to go.
    fn make_date(&mut self, id: PartitionId, catalog: &Catalog, now: Now) {
        let Some(row) = self.partitions.get(id.0) else { return };
        let Some(topic) = catalog.topic(row.topic) else { return };
        if row.is_empty() || row.dropped {
            return;
        }
        let (head_at, pause_ms) = (row.head_at, if row.cut_short { 1 } else { TRIM_EVERY_MS });
        let date = match &topic.config.retention {
            Retention::Acknowledged { min_age_ms } => {
                // Something is blocked by a group that has not got so far: its next
                // acknowledgement stirs the partition.
                if self.is_held_back(id) {
                    return;
                }
                head_at.plus(*min_age_ms)
            }
            Retention::Limits { max_age_ms, max_bytes, max_count } => {
                let over = max_bytes.is_some_and(|most| row.bytes > most)
                    || max_count.is_some_and(|most| row.len() > most);
                match max_age_ms {
                    _ if over => now.wall,
                    Some(most) => head_at.plus(*most),
                    None => return,
                }
            }
        };
        let date = date.max(now.wall.plus(pause_ms));
        self.dates.push(std::cmp::Reverse((date.0, id)));
        if let Some(row) = self.partitions.derived(id.0) {
            row.dated = true;
        }
    }

    /// Whether some group is not done with the first message. Looks on from where the
    /// last such group was found, so that with many groups it is not a search of all of
    /// them for every message.
    fn is_held_back(&mut self, id: PartitionId) -> bool {
        let Some(row) = self.partitions.get(id.0) else { return false };
        let holds =
            |number: &u32| self.pairs.get(*number).is_some_and(|pair| pair.floor <= row.head);
        let start = row.holder.min(row.pairs.len());
        let (before, from) = row.pairs.split_at(start);
        let found = match from.iter().position(holds) {
            Some(at) => Some(start + at),
            None => before.iter().position(holds),
        };
        if let (Some(at), Some(row)) = (found, self.partitions.derived(id.0)) {
            row.holder = at;
        }
        found.is_some()
    }

    /// The first position that some group is not done with.
    fn least_floor(&self, id: PartitionId) -> Position {
        let Some(row) = self.partitions.get(id.0) else { return 0 };
        let floors = row.pairs.iter().filter_map(|n| self.pairs.get(*n)).map(|pair| pair.floor);
        floors.fold(row.next, Position::min).max(row.head)
    }

    /// Lets go what has been kept long enough. Returns whether there may be more, which
    /// was too much for one look.
    fn trim(
        &self,
        partition: PartitionId,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Result<bool, Miss> {
        let Some(row) = self.partitions.get(partition.0) else { return Ok(false) };
        let Some(topic) = catalog.topic(row.topic) else { return Ok(false) };
        let mut cut_short = false;
        let older_than = |ms: u64, end: Position| {
            let time = UnixMs((now.wall.0 + 1).saturating_sub(ms));
            self.index.first_at(chunks, partition, row.chain, row.head..end, time)
        };
        let (head, why) = match &topic.config.retention {
            Retention::Acknowledged { min_age_ms } => {
                let end = match posthouse_frame::planted("trimmed-too-far") {
                    true => row.next,
                    false => self.least_floor(partition),
                };
                (older_than(*min_age_ms, end)?, TrimReason::Acknowledged)
            }
            Retention::Limits { max_age_ms, max_bytes, max_count } => {
                let mut trim = (row.head, TrimReason::Age);
                if let Some(ms) = max_age_ms {
                    trim.0 = older_than(*ms, row.next)?;
                }
                if let Some(most) = max_count
                    && row.next - trim.0 > *most
                {
                    trim = (row.next - most, TrimReason::Count);
                }
                if let Some(most) = max_bytes {
                    let (head, is_last) = self.head_within(partition, *most, chunks)?;
                    cut_short = !is_last;
                    if head > trim.0 {
                        trim = (head, TrimReason::Bytes);
                    }
                }
                trim
            }
        };
        if head > row.head {
            let at_head = self.index.get(chunks, partition, row.chain, head)?;
            let head_at = at_head.map_or(now.wall, |found| found.at);
            Record::Trim { partition, head, head_at, why }.write(out);
        }
        Ok(cut_short)
    }

    /// The first position from which on a partition has at most `most` bytes, and `true`;
    /// if that is further than one look goes, how far it went.
    fn head_within(
        &self,
        partition: PartitionId,
        most: u64,
        chunks: &impl Chunks,
    ) -> Result<(Position, bool), Miss> {
        let Some(row) = self.partitions.get(partition.0) else { return Ok((0, true)) };
        if row.bytes <= most {
            return Ok((row.head, true));
        }
        if row.swept < row.head {
            // What the bytes are without what went before is known when that is swept.
            return Ok((row.head, false));
        }
        let (mut bytes, mut head, mut looked) = (row.bytes, row.head, 0);
        let walked = self.index.walk(chunks, partition, row.chain, row.head..row.next, |found| {
            bytes -= u64::from(found.body.len).min(bytes);
            head = found.position + 1;
            looked += 1;
            if bytes <= most || looked == TRIM_LOOKS { Step::Stop } else { Step::On }
        });
        match walked {
            Err(miss) if looked == 0 => Err(miss),
            _ => Ok((head, bytes <= most)),
        }
    }

    /// Counts what trimmed messages occupied, and gives it back.
    fn sweep(&mut self, chunks: &impl Chunks, budget: usize, out: &mut FrameBuf, due: &mut Due) {
        let mut left = budget;
        for _ in 0..self.unswept.len() {
            if left == 0 {
                due.more = true;
                break;
            }
            let Some(partition) = self.unswept.pop_front() else { break };
            let Some(row) = self.partitions.derived(partition.0) else { continue };
            row.sweeping = false;
            let Some(row) = self.partitions.get(partition.0) else { continue };
            let mut freed: Vec<Freed> = Vec::new();
            let mut upto = row.swept;
            let range = row.swept..row.head;
            let walked = self.index.walk(chunks, partition, row.chain, range, |found| {
                let bytes = u64::from(found.body.len);
                match freed.last_mut() {
                    Some(last) if last.frame == found.body.frame => last.bytes += bytes,
                    _ => freed.push(Freed { frame: found.body.frame, bytes }),
                }
                upto = found.position + 1;
                left -= 1;
                if left == 0 { Step::Stop } else { Step::On }
            });
            if upto > row.swept {
                let freed = self.spans.join(&freed);
                Record::Sweep { partition, upto, freed: List::Slice(&freed) }.write(out);
            }
            if upto < row.head {
                self.want_sweep(partition);
            } else if row.dropped {
                Record::Close { partition }.write(out);
            }
            if let Err(miss) = walked {
                due.misses.push(miss);
            }
        }
    }

    /// Forgets publish ids that are too old to count.
    fn forget_ids(&mut self, catalog: &Catalog, now: UnixMs, out: &mut FrameBuf) {
        /// Forgetting is worth a record from this many on.
        const WORTH: u64 = 256;
        let (first, next) = self.dedupe.range();
        let mut upto = first;
        while let Some(item) = self.dedupe.numbered(upto) {
            let window_ms = catalog.topic(item.topic).map_or(0, |t| t.config.dedupe_window_ms);
            let window_ms = match posthouse_frame::planted("ids-forgotten") {
                true => window_ms.min(100),
                false => window_ms,
            };
            if now.since(item.at) < window_ms || upto - first == 4 * WORTH {
                break;
            }
            upto += 1;
        }
        if upto - first >= WORTH || (upto > first && upto == next) {
            Record::Forget { upto }.write(out);
        }
    }

    /// Takes out index chunks in which nothing is left. Looks at blocks in passing;
    /// meant to be called now and then.
    pub fn forget_chunks(&mut self, chunks: &impl Chunks, due: &mut Due) {
        let partitions = &self.partitions;
        let gone = self.index.forget(|chunk| {
            let left = |id: PartitionId| partitions.get(id.0).map(|row| row.swept);
            match chunk.advance_dead(chunks, left) {
                Ok(dead) => dead,
                Err(miss) => {
                    due.misses.push(miss);
                    false
                }
            }
        });
        due.forgotten.extend(gone.iter().map(|chunk| chunk.id()));
    }
}
