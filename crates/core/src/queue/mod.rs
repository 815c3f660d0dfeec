//! The machine of a shard: messages, groups, leases, dead letters, retention.
//!
//! ```text
//! decide (command)   grant (a waiting consumer)   due (time)        <- write records
//!                          |
//!                        apply                                      <- changes state
//!                          |
//! partitions, pairs (group x partition), groups, dedupe, spans, index,
//! schedule, transactions                                             <- views
//! ```
//! `decide` does not change anything. `grant` and `due` change only what is derived
//! (queues, cursors); what must survive changes in `apply` alone, which reads no
//! clock, no configuration and no disk.

mod apply;
pub mod clean;
pub mod command;
mod deadlines;
mod decide;
mod dedupe;
mod due;
mod fire;
mod grant;
mod group;
mod later;
mod pair;
mod partition;
mod query;
mod recur;
mod snapshot;
mod spans;
mod transact;
mod transaction;
mod window;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use posthouse_frame::FrameNo;
use posthouse_frame::varint::{self, Cursor, Malformed};

pub use command::Command;
pub use dedupe::CAPACITY as DEDUPE_CAPACITY;
pub use due::{Due, DueBudget};
pub use fire::Fired;
pub use grant::{Ask, Delivery, Granted, Peek};
pub use group::{Consumer, GroupState, MAX_CONSUMERS};
pub use pair::Pair;
pub use partition::Partition;
pub use query::{MessageState, PairInfo, PartitionInfo};
pub use spans::{SPAN_BYTES, Span};
pub use transaction::{DECISIONS, Decision, KEPT_MS, Part, Transaction, Transactions};
pub use window::{KEPT_REASON_BYTES, Slot};

use crate::index::Index;
use crate::page::{Mark, PageId, Pager, Table, TableId};
use crate::schedule::Schedule;
use crate::words::{Fence, GroupId, Lookup, PartitionId, Position, Run, Seq, ShardId, ShardMs};
use deadlines::{Deadline, Deadlines};
use dedupe::Dedupe;
use pair::Readiness;
use recur::Recurred;
use spans::Spans;
use window::State;

/// The state of one shard.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    pager: Pager,
    counters: Counters,
    partitions: Table<Partition>,
    pairs: Table<Pair>,
    groups: Table<GroupState>,
    dedupe: Dedupe,
    spans: Spans,
    index: Index,
    schedule: Schedule,
    transactions: Transactions,
    recurred: Table<Recurred>,

    // Derived.
    pair_of: Lookup<(GroupId, PartitionId), u32>,
    free_pairs: BTreeSet<u32>,
    next_pair: u32,
    deadlines: Deadlines,
    /// Positions that somebody has or that wait, over all pairs.
    used: u64,
    /// Groups that have something to give since they were last asked for.
    called: Vec<GroupId>,
    /// Pairs that wait for a block.
    away: Vec<(crate::chunk::Miss, u32)>,
    /// Messages whose last attempt may have failed, or that may have expired and are to be
    /// buried, and whether nobody else knows of them: what is not to be buried after all is
    /// granted again then.
    exhausted: VecDeque<(u32, Position, bool)>,
    /// How many messages were passed over because they had expired.
    expired: u64,
    /// Those that wait to be buried.
    unburied: VecDeque<(u32, Position)>,
    /// Those that are being buried, with the bytes of their bodies.
    burying: BTreeMap<(u32, Position), u32>,
    /// Partitions to look at: something came or went. In turn.
    stirred: VecDeque<PartitionId>,
    /// When to look at a partition again.
    dates: BinaryHeap<std::cmp::Reverse<(u64, PartitionId)>>,
    /// Partitions with something to sweep.
    unswept: VecDeque<PartitionId>,
}

/// Numbers that only rise.
#[derive(Debug, Default)]
struct Counters {
    mark: Mark,
    /// The last grant.
    fence: Fence,
    /// The number of the next publish id.
    dedupe_next: u64,
    /// The number of the next scheduled message.
    seq_next: Seq,
    /// Scheduled messages that are in no hour: see [`crate::schedule::Hours`].
    uncounted: u64,
    /// Transactions that were decided.
    decisions: u64,
}

const COUNTERS: PageId = PageId { table: TableId::Globals, owner: 0, number: 0 };

impl Counters {
    fn values(&self) -> [u64; 5] {
        [self.fence, self.dedupe_next, self.seq_next, self.uncounted, self.decisions]
    }

    fn encode(values: [u64; 5], out: &mut Vec<u8>) {
        if values != [0; 5] {
            // The last one came later: while there is none the page is as it always was.
            let count = if values[4] == 0 { 4 } else { 5 };
            values[..count].iter().for_each(|value| varint::put(out, *value));
        }
    }

    fn touch(&mut self, pager: &mut Pager) {
        let values = self.values();
        pager.touch(&mut self.mark, COUNTERS, |out| Self::encode(values, out));
    }

    fn capture(&mut self, pager: &mut Pager) {
        let values = self.values();
        pager.capture_waiting(COUNTERS, Some(&mut self.mark), |out| Self::encode(values, out));
    }

    fn decode(bytes: &[u8]) -> Result<Counters, Malformed> {
        let mut c = Cursor::new(bytes);
        Ok(Counters {
            mark: Mark::default(),
            fence: c.varint()?,
            dedupe_next: c.varint()?,
            seq_next: c.varint()?,
            uncounted: c.varint()?,
            decisions: if c.is_empty() { 0 } else { c.varint()? },
        })
    }
}

impl Shard {
    /// A shard in which nothing has happened.
    pub fn new(id: ShardId) -> Self {
        Shard {
            id,
            pager: Pager::default(),
            counters: Counters::default(),
            partitions: Table::default(),
            pairs: Table::default(),
            groups: Table::default(),
            dedupe: Dedupe::default(),
            spans: Spans::default(),
            index: Index::default(),
            schedule: Schedule::default(),
            transactions: Transactions::default(),
            recurred: Table::default(),
            pair_of: Lookup::default(),
            free_pairs: BTreeSet::new(),
            next_pair: 0,
            deadlines: Deadlines::default(),
            used: 0,
            called: Vec::new(),
            away: Vec::new(),
            exhausted: VecDeque::new(),
            expired: 0,
            unburied: VecDeque::new(),
            burying: BTreeMap::new(),
            stirred: VecDeque::new(),
            dates: BinaryHeap::new(),
            unswept: VecDeque::new(),
        }
    }

    /// Which shard it is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The index of its messages.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The index of its messages, to freeze a table, and to put chunks in place.
    pub fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// A snapshot could not be kept: what was frozen for it is new again.
    pub fn thaw(&mut self) {
        let partitions = &mut self.partitions;
        self.index.thaw(|partition, with| {
            if let Some(row) = partitions.derived(partition.0) {
                with(&mut row.chain);
            }
        });
    }

    /// Messages that are not due yet.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Messages that are not due yet, to freeze and to put runs in place.
    pub fn schedule_mut(&mut self) -> &mut Schedule {
        &mut self.schedule
    }

    /// Messages that wait for a decision.
    pub fn transactions(&self) -> &Transactions {
        &self.transactions
    }

    /// A partition.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(id.0)
    }

    /// A group on a partition.
    pub fn pair(&self, group: GroupId, partition: PartitionId) -> Option<&Pair> {
        self.pairs.get(*self.pair_of.get(&(group, partition))?)
    }

    /// A group, if it has a partition here.
    pub fn group(&self, group: GroupId) -> Option<&GroupState> {
        self.groups.get(group.0)
    }

    /// How many messages were passed over because they had expired, since this was last
    /// asked; at first, as far as the log was read again.
    pub fn take_expired(&mut self) -> u64 {
        std::mem::take(&mut self.expired)
    }

    /// Positions that somebody has or that wait, over all groups.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// A chunk that was put in place says where these bodies are, which were carried. Takes a
    /// while for many, and may be done little by little.
    pub fn forget_carried(&mut self, moved: &[crate::index::Moved]) {
        self.index.forget_carried(&mut self.pager, moved);
    }

    /// Live bytes in the spans that have a frame in `first..=last`.
    pub fn live_in(&self, first: FrameNo, last: FrameNo) -> u64 {
        self.spans.live_in(first, last)
    }

    /// Bytes of bodies in the log that are still needed.
    pub fn live(&self) -> u64 {
        self.spans.live()
    }

    /// The first and the last frame of the spans that have a frame in `first..=last`.
    pub fn span_bounds(&self, first: FrameNo, last: FrameNo) -> (FrameNo, FrameNo) {
        self.spans.bounds(first, last)
    }

    /// All spans of the log that may hold something live, oldest first.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.iter()
    }

    /// The groups that have got something to give since this was last called.
    pub fn take_called(&mut self) -> Vec<GroupId> {
        let called = std::mem::take(&mut self.called);
        for group in &called {
            if let Some(group) = self.groups.derived(group.0) {
                group.called = false;
            }
        }
        called
    }

    /// A block has been fetched, or a look at messages has ended: pairs that waited
    /// for it may have something to give.
    pub fn fetched(&mut self, miss: crate::chunk::Miss) {
        let back: Vec<u32> =
            self.away.extract_if(.., |(waits_for, _)| *waits_for == miss).map(|a| a.1).collect();
        for pair in back {
            self.make_ready(pair);
        }
    }

    /// The messages of a [`Peek`] have been judged, or nobody wants them any more: the
    /// pair goes on.
    pub fn judged(&mut self, group: GroupId, partition: PartitionId) {
        if let Some(number) = self.pair_of.get(&(group, partition)).copied() {
            self.make_ready(number);
        }
    }

    /// Whether anything of a group may have something to give, as far as is known.
    pub fn has_ready(&self, group: GroupId) -> bool {
        self.groups.get(group.0).is_some_and(|group| !group.ready.is_empty())
    }

    /// The group's configuration has changed: everything it has may have something to
    /// give now.
    pub fn poke(&mut self, group: GroupId) {
        let pairs = self.groups.get(group.0).map_or(Vec::new(), |group| group.pairs.clone());
        for pair in pairs {
            self.make_ready(pair);
        }
        self.call(group);
    }

    fn call(&mut self, id: GroupId) {
        if let Some(group) = self.groups.derived(id.0)
            && !group.called
        {
            group.called = true;
            self.called.push(id);
        }
    }

    /// Puts a pair in the queue of its group, and calls the group.
    fn make_ready(&mut self, number: u32) {
        let Some(pair) = self.pairs.derived(number) else { return };
        if pair.readiness == Readiness::Ready || pair.group == GroupId::OPERATOR {
            return;
        }
        let was = std::mem::replace(&mut pair.readiness, Readiness::Ready);
        let (id, partition) = (pair.group, pair.partition);
        if was == Readiness::Idle
            && let Some(partition) = self.partitions.derived(partition.0)
        {
            partition.idle.retain(|p| *p != number);
        }
        let Some(group) = self.groups.derived(id.0) else { return };
        if was == Readiness::Blocked {
            group.blocked.retain(|p| *p != number);
        }
        group.ready.push_back(number);
        self.call(id);
    }

    /// A pair has seen everything: the partition tells it of more.
    fn make_idle(&mut self, number: u32) {
        let Some(pair) = self.pairs.derived(number) else { return };
        pair.readiness = Readiness::Idle;
        let partition = pair.partition;
        if let Some(partition) = self.partitions.derived(partition.0) {
            partition.idle.push(number);
        }
    }

    /// A pair has more, and may not give it now.
    fn make_blocked(&mut self, number: u32) {
        let Some(pair) = self.pairs.derived(number) else { return };
        pair.readiness = Readiness::Blocked;
        let group = pair.group;
        if let Some(group) = self.groups.derived(group.0) {
            group.blocked.push(number);
        }
    }

    /// Tells the housekeeper that something came to a partition, or went.
    fn stir(&mut self, id: PartitionId) {
        if let Some(partition) = self.partitions.derived(id.0)
            && !partition.stirred
        {
            partition.stirred = true;
            self.stirred.push_back(id);
        }
    }

    /// Puts a partition in line for its sweep, if it is not.
    fn want_sweep(&mut self, id: PartitionId) {
        if let Some(partition) = self.partitions.derived(id.0)
            && !partition.sweeping
        {
            partition.sweeping = true;
            self.unswept.push_back(id);
        }
    }

    fn sweep_deadlines(&mut self) {
        if self.deadlines.wants_sweep(self.used) {
            let pairs = &self.pairs;
            self.deadlines.sweep(|at, pair, position| {
                let state = pairs.get(pair).map(|pair| pair.windows.state(position));
                matches!(state, Some(State::Used(slot)) if slot.visible_at() == at)
            });
        }
    }

    fn push_deadline(&mut self, at: ShardMs, pair: u32, run: Run) {
        self.deadlines.push(at, pair, run);
    }

    fn flush_deadline(&mut self, last: Option<Deadline>) {
        self.deadlines.flush(last);
    }
}
