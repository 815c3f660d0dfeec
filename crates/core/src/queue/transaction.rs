//! Transactions: messages that are prepared, and come or do not come together.
//!
//! ```text
//!              commit ──────────────> committed ─┐
//!   prepared ──rollback ────────────> rolled back ┼─> forgotten
//!      │  └─ checks, then parked ──>  (either)  ──┘
//! ```
//! The messages of a transaction are entries of the schedule that are *held*: their bodies
//! are kept, copied out of the log and found as those of any scheduled message, under
//! numbers that follow each other. Here stands only what holds them together. A
//! transaction is known by the number of its first message.
//!
//! What was decided is remembered for a while, for whoever asks or decides late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::page::{PageId, Pager, Row, Table, TableId};
use crate::record::{Prepare, When};
use crate::words::{PartitionId, Position, Seq, ShardMs, TopicId, UnixMs};

/// How long a decision is remembered, in milliseconds: an hour.
pub const KEPT_MS: u64 = 3_600_000;

/// The most decisions that a shard remembers.
pub const DECISIONS: usize = 1 << 16;

/// Decisions are forgotten this much later, so that several go together.
const KEPT_LONGER_MS: u64 = 10_000;

/// The longest interval between two checks, unless the first is longer.
const INTERVAL_MS: u64 = 3_600_000;

/// Messages of one partition in a transaction. Their numbers follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The partition.
    pub partition: PartitionId,
    /// Its topic.
    pub topic: TopicId,
    /// How many messages.
    pub count: u64,
    /// Where the first of them is, once they have come; the others follow.
    pub placed: Option<Position>,
    /// Whether they are to come later than the commit.
    pub is_later: bool,
    /// When each is due then. Empty once that has been settled.
    pub when: Vec<When>,
}

/// What was decided about a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which decision of the shard it was, counted from 0.
    pub number: u64,
    /// When.
    pub at: UnixMs,
    /// Whether the messages come.
    pub is_commit: bool,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The number of its first message.
    pub first: Seq,
    /// When it came in.
    pub at: UnixMs,
    /// Who prepared it, and is asked about it.
    pub producer: Arc<str>,
    /// Its messages, in the order of their numbers.
    pub parts: Vec<Part>,
    /// Bytes of their sealed bodies.
    pub bytes: u64,
    /// How often the producer was asked, or would have been.
    pub checks: u16,
    /// How often it is asked at most.
    pub most_checks: u16,
    /// When it is asked next.
    pub next_check: ShardMs,
    /// How long after it came in that was at first, in milliseconds.
    pub check_after_ms: u64,
    /// Whether nobody is asked any more.
    pub is_parked: bool,
    /// What was decided, if it was.
    pub decision: Option<Decision>,
    /// Its publish ids stand before this number in the window.
    pub(super) ids_upto: u64,
}

impl Transaction {
    pub(super) fn new(
        record: &Prepare<'_>,
        ids_upto: u64,
        topic_of: impl Fn(PartitionId) -> TopicId,
    ) -> Transaction {
        let mut when = record.when.iter();
        let parts = record.parts.iter().map(|part| Part {
            partition: part.partition,
            topic: topic_of(part.partition),
            count: part.count,
            placed: None,
            is_later: part.is_later,
            when: match part.is_later {
                true => when.by_ref().take(part.count as usize).collect(),
                false => Vec::new(),
            },
        });
        Transaction {
            first: record.first,
            at: record.at,
            producer: record.producer.into(),
            parts: parts.collect(),
            bytes: record.bytes,
            checks: 0,
            most_checks: record.most_checks,
            next_check: record.next_check,
            check_after_ms: record.check_after_ms,
            is_parked: false,
            decision: None,
            ids_upto,
        }
    }

    /// How many messages it has.
    pub fn messages(&self) -> u64 {
        self.parts.iter().map(|part| part.count).sum()
    }

    /// The numbers of its messages.
    pub fn seqs(&self) -> std::ops::Range<Seq> {
        self.first..self.first + self.messages()
    }

    /// The topic whose publishers are asked about it: that of its first message.
    pub fn topic(&self) -> TopicId {
        self.parts.first().map_or(TopicId(0), |part| part.topic)
    }

    /// Whether it waits for a decision.
    pub fn is_open(&self) -> bool {
        self.decision.is_none()
    }

    /// How long after check `check` (from 1) the next one follows.
    pub(super) fn interval_ms(&self, check: u16) -> u64 {
        let grown = self.check_after_ms.saturating_mul(1 << check.min(32));
        grown.min(INTERVAL_MS).max(self.check_after_ms)
    }

    /// When something has to be done although nobody does anything: it is parked, or a
    /// check counts although nobody was there to be asked.
    fn deadline(&self) -> ShardMs {
        match self.checks < self.most_checks {
            true => self.next_check.plus(self.interval_ms(self.checks + 1)),
            false => self.next_check,
        }
    }

    fn asked(&self) -> (Arc<str>, TopicId) {
        (self.producer.clone(), self.topic())
    }
}

impl Row for Transaction {
    const TABLE: TableId = TableId::Transactions;
    const PER_PAGE: usize = 16;

    fn encode(&self, out: &mut Vec<u8>) {
        let (number, decided_at, how) = match self.decision {
            None => (0, 0, u64::from(self.is_parked)),
            Some(d) => (d.number, d.at.0, 2 + u64::from(d.is_commit)),
        };
        for value in [how, number, decided_at, self.first, self.at.0, self.bytes] {
            varint::put(out, value);
        }
        let checks = [self.checks, self.most_checks].map(u64::from);
        for value in [checks[0], checks[1], self.next_check.0, self.check_after_ms, self.ids_upto] {
            varint::put(out, value);
        }
        varint::put_bytes(out, self.producer.as_bytes());
        varint::put(out, self.parts.len() as u64);
        for part in &self.parts {
            varint::put(out, part.partition.0.into());
            varint::put(out, part.topic.0.into());
            varint::put(out, part.count << 1 | u64::from(part.is_later));
            varint::put(out, part.placed.map_or(0, |position| position + 1));
            varint::put(out, part.when.len() as u64);
            for when in &part.when {
                let (value, is_after) = match when {
                    When::At(at) => (at.0, 0),
                    When::After(ms) => (*ms, 1),
                };
                varint::put(out, value << 1 | is_after);
            }
        }
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let at = c.position();
        let (how, number, decided_at) = (c.varint()?, c.varint()?, UnixMs(c.varint()?));
        let (first, came_at, bytes) = (c.varint()?, UnixMs(c.varint()?), c.varint()?);
        let short = |value: u64| u16::try_from(value).map_err(|_| Malformed { at });
        let (checks, most_checks) = (short(c.varint()?)?, short(c.varint()?)?);
        let next_check = ShardMs(c.varint()?);
        let (check_after_ms, ids_upto) = (c.varint()?, c.varint()?);
        let producer = std::str::from_utf8(c.bytes()?).map_err(|_| Malformed { at })?;
        let mut parts = Vec::new();
        for _ in 0..c.varint()? {
            let (partition, topic) = (PartitionId(c.varint_u32()?), TopicId(c.varint_u32()?));
            let (count, placed) = (c.varint()?, c.varint()?);
            let mut when = Vec::new();
            for _ in 0..c.varint()? {
                let value = c.varint()?;
                when.push(match value & 1 {
                    0 => When::At(UnixMs(value >> 1)),
                    _ => When::After(value >> 1),
                });
            }
            let (count, is_later) = (count >> 1, count & 1 != 0);
            parts.push(Part {
                partition,
                topic,
                count,
                placed: placed.checked_sub(1),
                is_later,
                when,
            });
        }
        let decision = match how {
            0 | 1 => None,
            2 | 3 => Some(Decision { number, at: decided_at, is_commit: how == 3 }),
            _ => return Err(Malformed { at }),
        };
        Ok(Transaction {
            first,
            at: came_at,
            producer: producer.into(),
            parts,
            bytes,
            checks,
            most_checks,
            next_check,
            check_after_ms,
            is_parked: how == 1,
            decision,
            ids_upto,
        })
    }
}

/// Rows by a time.
type Agenda = BTreeSet<(ShardMs, u32)>;

/// All transactions of a shard that are open, and those that were decided lately.
#[derive(Debug, Default)]
pub struct Transactions {
    rows: Table<Transaction>,

    // Derived.
    by_first: BTreeMap<Seq, u32>,
    open: BTreeSet<Seq>,
    free: BTreeSet<u32>,
    next: u32,
    /// Open ones that are not parked, by their deadline.
    agenda: Agenda,
    /// The same by who is asked, and when that may be.
    asked: BTreeMap<(Arc<str>, TopicId), Agenda>,
    /// Decided ones, the oldest decision first.
    decided: VecDeque<u32>,
    parked: u64,
    messages: u64,
    bytes: u64,
}

impl Transactions {
    /// How many are open, parked ones included.
    pub fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// How many are parked.
    pub fn parked(&self) -> u64 {
        self.parked
    }

    /// How many messages the open ones have.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes of the sealed bodies of the open ones.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The transaction whose first message has this number.
    pub fn get(&self, first: Seq) -> Option<&Transaction> {
        self.rows.get(*self.by_first.get(&first)?)
    }

    /// The transaction that a message belongs to.
    pub fn of(&self, seq: Seq) -> Option<&Transaction> {
        let (_, row) = self.by_first.range(..=seq).next_back()?;
        self.rows.get(*row).filter(|of| of.seqs().contains(&seq))
    }

    /// The open ones from a number on, in the order in which they came in.
    pub fn iter(&self, from: Seq) -> impl Iterator<Item = &Transaction> {
        self.open.range(from..).filter_map(|first| self.get(*first))
    }

    /// Who may be asked about something now, and the topic that it is of.
    pub fn ready(&self, now: ShardMs) -> impl Iterator<Item = &(Arc<str>, TopicId)> {
        self.asked
            .iter()
            .filter(move |(_, rows)| rows.first().is_some_and(|(at, _)| *at <= now))
            .map(|(who, _)| who)
    }

    /// Up to `most` transactions that a producer may be asked about now, what has waited
    /// longest first in each topic.
    pub(super) fn ready_of(
        &self,
        producer: &Arc<str>,
        topic: Option<TopicId>,
        now: ShardMs,
        most: usize,
    ) -> Vec<&Transaction> {
        let (first, last) = topic.map_or((0, u32::MAX), |topic| (topic.0, topic.0));
        let range = (producer.clone(), TopicId(first))..=(producer.clone(), TopicId(last));
        let rows = self.asked.range(range).flat_map(|(_, rows)| rows.range(..=(now, u32::MAX)));
        rows.filter_map(|(_, row)| self.rows.get(*row))
            .filter(|of| of.checks < of.most_checks)
            .take(most)
            .collect()
    }

    /// Up to `most` whose deadline has come.
    pub(super) fn overdue(&self, now: ShardMs, most: usize) -> impl Iterator<Item = &Transaction> {
        let overdue = self.agenda.range(..=(now, u32::MAX)).take(most);
        overdue.filter_map(|(_, row)| self.rows.get(*row))
    }

    /// When something is to be done next.
    pub(super) fn deadline(&self) -> (Option<ShardMs>, Option<UnixMs>) {
        let forget = self.oldest_decision().map(|d| d.at.plus(KEPT_MS + KEPT_LONGER_MS));
        (self.agenda.first().map(|(at, _)| *at), forget)
    }

    fn oldest_decision(&self) -> Option<Decision> {
        self.rows.get(*self.decided.front()?)?.decision
    }

    /// The first decision that is not to be forgotten, if any is.
    pub(super) fn forget_upto(&self, now: UnixMs) -> Option<u64> {
        let oldest = self.oldest_decision()?;
        if now.since(oldest.at) < KEPT_MS + KEPT_LONGER_MS {
            return None;
        }
        let decisions = self.decided.iter().filter_map(|row| self.rows.get(*row)?.decision);
        decisions.take_while(|d| now.since(d.at) >= KEPT_MS).last().map(|d| d.number + 1)
    }

    // ---- applied

    pub(super) fn add(&mut self, pager: &mut Pager, transaction: Transaction) {
        let row = self.free.pop_first().unwrap_or(self.next);
        self.next = self.next.max(row + 1);
        self.rows.set(pager, row, transaction);
        self.link(row);
    }

    /// Makes a row known wherever it has to be.
    fn link(&mut self, row: u32) {
        let Some(of) = self.rows.get(row) else { return };
        self.by_first.insert(of.first, row);
        if !of.is_open() {
            return;
        }
        self.open.insert(of.first);
        self.messages += of.messages();
        self.bytes += of.bytes;
        if of.is_parked {
            self.parked += 1;
        } else {
            self.agenda.insert((of.deadline(), row));
            self.asked.entry(of.asked()).or_default().insert((of.next_check, row));
        }
    }

    /// Takes an open row out of all that [`Transactions::link`] put it in.
    fn unlink(&mut self, row: u32) {
        let Some(of) = self.rows.get(row).filter(|of| of.is_open()) else { return };
        self.open.remove(&of.first);
        self.messages -= of.messages();
        self.bytes -= of.bytes;
        if of.is_parked {
            self.parked -= 1;
            return;
        }
        self.agenda.remove(&(of.deadline(), row));
        let who = of.asked();
        if let Some(rows) = self.asked.get_mut(&who) {
            rows.remove(&(of.next_check, row));
            if rows.is_empty() {
                self.asked.remove(&who);
            }
        }
    }

    /// Changes an open transaction.
    pub(super) fn change(
        &mut self,
        pager: &mut Pager,
        first: Seq,
        change: impl FnOnce(&mut Transaction),
    ) {
        let Some(row) = self.by_first.get(&first).copied() else { return };
        if !self.open.contains(&first) {
            return;
        }
        self.unlink(row);
        if let Some(of) = self.rows.get_mut(pager, row) {
            change(of);
        }
        self.link(row);
        if self.rows.get(row).is_some_and(|of| !of.is_open()) {
            self.decided.push_back(row);
        }
        if self.decided.len() > DECISIONS {
            self.forget_oldest(pager);
        }
    }

    fn forget_oldest(&mut self, pager: &mut Pager) {
        let Some(row) = self.decided.pop_front() else { return };
        if let Some(of) = self.rows.remove(pager, row) {
            self.by_first.remove(&of.first);
            self.free.insert(row);
        }
    }

    pub(super) fn forget(&mut self, pager: &mut Pager, upto: u64) {
        while self.oldest_decision().is_some_and(|d| d.number < upto) {
            self.forget_oldest(pager);
        }
    }

    // ---- snapshots

    pub(super) fn touch_all(&mut self, pager: &mut Pager) {
        self.rows.touch_all(pager);
    }

    pub(super) fn capture(&mut self, pager: &mut Pager, id: PageId) {
        self.rows.capture(pager, id);
    }

    pub(super) fn restore(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        self.rows.restore(id, bytes)
    }

    /// All pages are back: derives what is derived from them.
    pub(super) fn restored(&mut self) {
        let rows: Vec<(u32, Option<u64>)> =
            self.rows.iter().map(|(row, of)| (row, of.decision.map(|d| d.number))).collect();
        self.next = rows.last().map_or(0, |(row, _)| row + 1);
        let mut used = rows.iter().map(|(row, _)| *row).peekable();
        self.free = (0..self.next).filter(|row| used.next_if_eq(row).is_none()).collect();
        let mut decided: Vec<(u64, u32)> =
            rows.iter().filter_map(|(row, number)| Some(((*number)?, *row))).collect();
        decided.sort_unstable();
        self.decided = decided.into_iter().map(|(_, row)| row).collect();
        if posthouse_frame::planted("transactions-not-restored") {
            return;
        }
        rows.into_iter().for_each(|(row, _)| self.link(row));
    }

    pub(super) fn pages(&self, each: impl FnMut(PageId, &[u8])) {
        self.rows.pages(each);
    }
}
