//! Transactions: messages that are prepared, asked about, and come together or not at all.

mod checks;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use posthouse_core::catalog::{Action, Catalog, Topic, config};
use posthouse_core::ident::{IdKind, IdParts, MessageId};
use posthouse_core::queue::command::{Preparation, Refusal, Reply};
use posthouse_core::queue::{self, Command};
use posthouse_core::record::{EntryDedupe, Pending, When};
use posthouse_core::schedule;
use posthouse_core::{Now, Position, Seq, ShardId, TopicId, UnixMs};

use super::publish::{Outbox, several_shards};
use super::schedule::Scheduled;
use super::{Broker, Caller, On, bounds};
use crate::problem::{Kind, Problem};
use crate::shard::mail::View;
use crate::shard::metrics;

pub(super) use checks::Ready;
pub use checks::{AskChecks, Check, ChecksReady};

/// Transactions that one look goes over in a shard at most before it comes back.
const SEARCH: usize = 20_000;

/// What a producer says of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Who it is: whoever goes by the same name is asked about the transaction.
    pub producer: String,
    /// How long from now it is asked for the first time, in milliseconds; `None`: as the
    /// topic of the first message says.
    pub check_after_ms: Option<u64>,
    /// How often it is asked at most; `None`: as that topic says.
    pub checks: Option<u16>,
    /// A publish id for all of its messages that have none of their own.
    pub dedupe_id: Option<String>,
}

/// How a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for a decision.
    Prepared,
    /// The same, and nobody is asked any more.
    Parked,
    /// Its messages have come, or will at their time.
    Committed,
    /// Its messages will not come.
    RolledBack,
}

/// A message of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its id, which it keeps.
    pub id: MessageId,
    /// Its topic.
    pub topic: Arc<str>,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position, if it has come.
    pub position: Option<Position>,
    /// When it is due, if it is to come at a time that is known.
    pub due: Option<UnixMs>,
}

/// A transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its id.
    pub id: MessageId,
    /// How it is.
    pub state: State,
    /// Who prepared it.
    pub producer: Arc<str>,
    /// When.
    pub prepared_at: UnixMs,
    /// How often the producer was asked, or would have been.
    pub checks: u16,
    /// How often it is asked at most.
    pub most_checks: u16,
    /// When it is asked next, while it is.
    pub next_check: Option<UnixMs>,
    /// When it was decided.
    pub decided_at: Option<UnixMs>,
    /// How many messages it has.
    pub messages: u64,
    /// Bytes of their sealed bodies.
    pub bytes: u64,
    /// The topics of its messages.
    pub topics: Vec<Arc<str>>,
    /// The messages, if they were asked for: in the order in which they were given.
    pub parts: Vec<Part>,
}

/// What was decided.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The transaction, as it is now.
    pub transaction: Transaction,
    /// Whether that had been decided before, perhaps otherwise: nothing has changed.
    pub is_late: bool,
}

/// Which transactions to list: of those that wait for a decision.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Only parked ones, or only others.
    pub is_parked: Option<bool>,
    /// Only those of this producer.
    pub producer: Option<String>,
    /// Only those whose first message is for this topic.
    pub topic: Option<String>,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

/// A place in the list of transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    shard: u16,
    first: Seq,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.shard, self.first)
    }
}

impl FromStr for Cursor {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let read = || {
            let (shard, first) = text.split_once('.')?;
            Some(Cursor { shard: shard.parse().ok()?, first: first.parse().ok()? })
        };
        read().ok_or_else(|| Problem::bad_cursor(text))
    }
}

/// A row of the core, and what is known of its messages.
struct Row {
    of: queue::Transaction,
    states: Vec<schedule::State>,
    now: Now,
}

impl Row {
    fn read(view: &View<'_>, first: Seq) -> Option<Row> {
        let of = view.shard.transactions().get(first)?.clone();
        let mut states = Vec::new();
        if of.decision.is_some_and(|decision| decision.is_commit) {
            let mut seq = first;
            for part in &of.parts {
                let seqs = seq..seq + part.count;
                seq = seqs.end;
                let state = |seq| {
                    let partition = part.partition;
                    match part.placed {
                        Some(first) => schedule::State::Fired(first + (seq - seqs.start)),
                        None => view.shard.later_state(Pending { partition, seq }),
                    }
                };
                states.extend(seqs.clone().map(state));
            }
        }
        Some(Row { of, states, now: view.now })
    }
}

impl Broker {
    /// Takes messages in that come when that is decided, together or not at all. The same
    /// messages again, under the same publish ids, are the transaction that came before:
    /// then the second value is `true`.
    ///
    /// # Errors
    /// See [`Problem`]: then nothing was prepared. But with [`Kind::Unknown`] nobody can
    /// say.
    pub async fn prepare(
        &self,
        mut outbox: Outbox,
        terms: &Terms,
    ) -> Result<(Transaction, bool), Problem> {
        check_producer(&terms.producer)?;
        outbox.check_sorts(true)?;
        if let Some(ms) = terms.check_after_ms {
            config::check_after(ms)?;
        }
        if let Some(count) = terms.checks {
            config::checks(count)?;
        }
        self.check_room(outbox.bytes)?;
        self.space.let_in(outbox.bytes)?;
        if !self.is_ready() {
            return Err(Problem::stopping());
        }
        self.use_quotas(&outbox)?;
        let shard = self.gather(&mut outbox, terms)?;
        // The messages are numbered in the order of the batches.
        let mut starts = Vec::with_capacity(outbox.batches.len());
        let mut count = 0;
        for outgoing in &outbox.batches {
            starts.push(count);
            count += outgoing.batch.drafts.len();
        }
        let batches = outbox.batches.iter_mut().map(|o| std::mem::take(&mut o.batch)).collect();
        let command = Command::Prepare(Preparation {
            batches,
            producer: terms.producer.as_str().into(),
            check_after_ms: terms.check_after_ms,
            checks: terms.checks,
        });
        let prepared = match self.directory.ask(shard, command, outbox.room()).await? {
            Reply::Prepared(prepared) => prepared,
            Reply::Refused(Refusal::Conflict { batch, index, before }) => {
                return Err(outbox.conflict(shard, batch, index, before));
            }
            Reply::Refused(refusal) => return Err(refusal.into()),
            other => return Err(Problem::internal(format!("a prepare was answered by {other:?}"))),
        };
        let row = self.row(shard, prepared.first).await.map_err(untold)?;
        let row = row.ok_or(Refusal::NoTransaction)?;
        let mut transaction = self.view(shard, &row, true);
        let place = |(batch, index): &(u32, u32)| starts[*batch as usize] + *index as usize;
        let in_order = outbox.order.iter().filter_map(|at| transaction.parts.get(place(at)));
        let in_order = in_order.cloned().collect();
        transaction.parts = in_order;
        Ok((transaction, prepared.is_duplicate))
    }

    /// Refuses what is one too many.
    fn check_room(&self, bytes: usize) -> Result<(), Problem> {
        let limits = &self.options.limits;
        let (mut open, mut prepared) = (0, bytes as u64);
        for shard in &self.shards {
            open += metrics::get(&shard.metrics.transactions_open);
            prepared += metrics::get(&shard.metrics.prepared_bytes);
        }
        let refuse = |detail: String, setting| {
            let hint = format!(
                "decide about some (`posthouse transaction list` shows them), or raise {setting} \
                 of the node"
            );
            let problem = Problem::new(Kind::Exhausted, "too_many_transactions", detail);
            Err(problem.with_hint(hint).with_retry(1_000))
        };
        if open >= limits.transactions {
            let detail = format!(
                "{open} transactions wait for a decision; the most is {}",
                limits.transactions
            );
            return refuse(detail, "max_transactions");
        }
        if prepared > limits.prepared_bytes {
            let detail = format!(
                "messages of transactions that wait for a decision would have {prepared} bytes; \
                 the most is {}",
                limits.prepared_bytes
            );
            return refuse(detail, "max_prepared_bytes");
        }
        Ok(())
    }

    /// Brings all messages to one shard, and gives publish ids to those that are to have
    /// one.
    fn gather(&self, outbox: &mut Outbox, terms: &Terms) -> Result<ShardId, Problem> {
        let named = |later: &posthouse_core::record::Later| later.name.is_some();
        for outgoing in &outbox.batches {
            if outgoing.batch.drafts.iter().any(|d| d.later.as_deref().is_some_and(named)) {
                let limit = "a message of a transaction has none: what comes under a name takes \
                             another's place, and that cannot wait for a decision";
                return Err(Problem::invalid("name", "given", limit));
            }
        }
        let turn = match &terms.dedupe_id {
            // The same again has to come to the same place.
            Some(id) => self.secret.hash(id.as_bytes()),
            None => self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
        };
        outbox.settle_together(turn);
        if let Some(id) = &terms.dedupe_id {
            check_dedupe_id(id)?;
            self.give_ids(outbox, &terms.producer, id);
        }
        match outbox.shards().as_slice() {
            [shard] => Ok(*shard),
            [] => Err(Problem::invalid("messages", "none", "a transaction has at least one")),
            _ => Err(several_shards("decided about")),
        }
    }

    fn give_ids(&self, outbox: &mut Outbox, producer: &str, id: &str) {
        let mut ends = vec![0; outbox.batches.len()];
        for (number, (batch, index)) in outbox.order.iter().enumerate() {
            let outgoing = &mut outbox.batches[*batch as usize];
            let draft = &mut outgoing.batch.drafts[*index as usize];
            let (at, len) = (ends[*batch as usize], draft.len as usize);
            ends[*batch as usize] += len;
            if draft.dedupe.is_none() && outgoing.topic.config.dedupe_window_ms > 0 {
                // Longer than any publish id can be: none is the same.
                let name = format!("{:300}\0{producer}\0{id}\0{number}", "");
                draft.dedupe = Some(Box::new(EntryDedupe {
                    id: self.secret.hash128(name.as_bytes()),
                    digest: self.secret.hash(outgoing.batch.bodies.content(at, len)),
                }));
            }
        }
    }

    /// Lets the messages of a transaction come.
    ///
    /// # Errors
    /// See [`Problem`]; what was decided before is no error.
    pub async fn commit(&self, caller: &Caller, id: &str) -> Result<Ended, Problem> {
        let (shard, first) = self.decidable(caller, id)?;
        self.end(shard, Command::Commit { first }).await
    }

    /// Lets the messages of a transaction go.
    ///
    /// # Errors
    /// As [`Broker::commit`].
    pub async fn rollback(&self, caller: &Caller, id: &str) -> Result<Ended, Problem> {
        let (shard, first) = self.decidable(caller, id)?;
        self.end(shard, Command::Rollback { first }).await
    }

    async fn end(&self, shard: ShardId, command: Command) -> Result<Ended, Problem> {
        let reply = self.directory.command(shard, command).await?;
        let Reply::Ended(ended) = reply else {
            return Err(Problem::internal(format!("a decision was answered by {reply:?}")));
        };
        let of = ended.transaction;
        // What came at once is in the answer; what comes later has to be looked up.
        let has_later = of.parts.iter().any(|part| part.is_later);
        let known = (!has_later).then(|| {
            let parts = of.parts.iter().filter_map(|part| Some((part.placed?, part.count)));
            let placed = parts.flat_map(|(first, count)| first..first + count);
            placed.map(schedule::State::Fired).collect()
        });
        let row = match known {
            Some(states) => Row { of, states, now: Now::default() },
            None => {
                let row = self.row(shard, of.first).await.map_err(untold)?;
                row.ok_or(Refusal::NoTransaction)?
            }
        };
        Ok(Ended { transaction: self.view(shard, &row, true), is_late: ended.is_late })
    }

    /// A transaction, with its messages; while it waits for a decision with the content of
    /// the first.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn transaction(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<(Transaction, Option<Scheduled>), Problem> {
        let (shard, first) = self.decidable(caller, id)?;
        let row = self.row(shard, first).await?.ok_or(Refusal::NoTransaction)?;
        let message = self.first_message(shard, &row.of).await?;
        Ok((self.view(shard, &row, true), message))
    }

    /// Transactions that wait for a decision, in the order in which they came in: those
    /// that the caller may decide about.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn transactions(
        &self,
        caller: &Caller,
        listing: &Listing,
    ) -> Result<(Vec<Transaction>, Option<Cursor>), Problem> {
        if !(1..=bounds::PAGE).contains(&listing.limit) {
            let limit = format!("it must be from 1 to {}", bounds::PAGE);
            return Err(Problem::invalid("limit", listing.limit, limit));
        }
        let topic = match &listing.topic {
            Some(name) => Some(self.topic(name)?.id),
            None => None,
        };
        let after = listing.after.unwrap_or_default();
        let mut found = Vec::new();
        for shard in self.shards.iter().filter(|shard| shard.id.0 >= after.shard) {
            let from = if shard.id.0 == after.shard { after.first } else { 0 };
            let (is_parked, producer) = (listing.is_parked, listing.producer.clone());
            let (caller, room) = (caller.clone(), listing.limit - found.len());
            let look = move |view: &View<'_>| {
                let mut rows = Vec::new();
                let all = view.shard.transactions().iter(from);
                for (looked, of) in all.enumerate() {
                    if rows.len() == room || looked == SEARCH {
                        return Ok((rows, Some(of.first)));
                    }
                    let is_wanted = is_parked.is_none_or(|parked| parked == of.is_parked)
                        && producer.as_deref().is_none_or(|name| *name == *of.producer)
                        && topic.is_none_or(|topic| topic == of.topic())
                        && may_decide(&caller, view.catalog, of.topic());
                    if is_wanted {
                        rows.push(Row { of: of.clone(), states: Vec::new(), now: view.now });
                    }
                }
                Ok((rows, None))
            };
            let (rows, next) = self.directory.look(shard.id, look).await?;
            found.extend(rows.iter().map(|row| self.view(shard.id, row, false)));
            if let Some(first) = next {
                return Ok((found, Some(Cursor { shard: shard.id.0, first })));
            }
        }
        Ok((found, None))
    }

    async fn row(&self, shard: ShardId, first: Seq) -> Result<Option<Row>, Problem> {
        self.directory.look(shard, move |view| Ok(Row::read(view, first))).await
    }

    /// The first message of a transaction, while it waits for a decision.
    async fn first_message(
        &self,
        shard: ShardId,
        of: &queue::Transaction,
    ) -> Result<Option<Scheduled>, Problem> {
        let (Some(part), true) = (of.parts.first(), of.is_open()) else { return Ok(None) };
        let (seq, partition) = (of.first, part.partition);
        let found = self
            .directory
            .look(shard, move |view| view.shard.schedule().find(seq, partition, view.chunks))
            .await?;
        let topic = self.catalog().topic(part.topic).cloned();
        match (found, topic) {
            (Some(item), Some(topic)) => Ok(Some(self.show(&topic, shard, item).await?)),
            _ => Ok(None),
        }
    }

    /// Who may publish to the topic of its first message, or manage it, may decide.
    fn decidable(&self, caller: &Caller, id: &str) -> Result<(ShardId, Seq), Problem> {
        let id: MessageId = id.parse()?;
        let parts = id.open(&self.secret)?;
        if parts.kind != IdKind::Transaction {
            let limit = "the id of a transaction: this is that of a message";
            return Err(Problem::invalid("id", id, limit));
        }
        let catalog = self.catalog();
        let topic = catalog.topic_of(parts.partition).map(|topic| topic.id);
        if !may_decide(caller, &catalog, topic.unwrap_or(TopicId(0))) {
            let name = catalog.topic_of(parts.partition).map(|topic| topic.name.clone());
            let on = name.as_deref().map_or(On::Node, On::Topic);
            caller.check(Action::Publish, on)?;
        }
        Ok((parts.shard, parts.number))
    }

    fn view(&self, shard: ShardId, row: &Row, with_parts: bool) -> Transaction {
        let catalog = self.catalog();
        let id = |kind, partition, number| {
            MessageId::new(&self.secret, IdParts { kind, shard, partition, number })
        };
        let of = &row.of;
        let name = |topic: TopicId| -> Arc<str> {
            let name = catalog.topic(topic).map(|topic| topic.name.clone());
            name.unwrap_or_else(|| format!("(deleted topic {topic})").into())
        };
        let mut topics: Vec<Arc<str>> = of.parts.iter().map(|part| name(part.topic)).collect();
        topics.sort_unstable();
        topics.dedup();
        let mut parts = Vec::new();
        let mut seq = of.first;
        for part in of.parts.iter().filter(|_| with_parts) {
            let topic = catalog.topic(part.topic);
            let partition = topic.and_then(|topic: &Arc<Topic>| topic.index_of(part.partition));
            for at in 0..part.count {
                let state = row.states.get((seq - of.first) as usize);
                let (position, due) = match state {
                    Some(schedule::State::Fired(position)) => (Some(*position), None),
                    Some(schedule::State::Pending { due, .. }) => (None, Some(*due)),
                    Some(_) => (None, None),
                    None => match part.when.get(at as usize) {
                        Some(When::At(due)) => (None, Some(*due)),
                        _ => (None, None),
                    },
                };
                parts.push(Part {
                    id: id(IdKind::Scheduled, part.partition, seq),
                    topic: name(part.topic),
                    partition: partition.unwrap_or(0),
                    position,
                    due,
                });
                seq += 1;
            }
        }
        let state = match of.decision {
            Some(decision) if decision.is_commit => State::Committed,
            Some(_) => State::RolledBack,
            None if of.is_parked => State::Parked,
            None => State::Prepared,
        };
        let next_check = row.now.wall.plus(of.next_check.0.saturating_sub(row.now.lease.0));
        let partition = of.parts.first().map(|part| part.partition).unwrap_or_default();
        Transaction {
            id: id(IdKind::Transaction, partition, of.first),
            state,
            producer: of.producer.clone(),
            prepared_at: of.at,
            checks: of.checks,
            most_checks: of.most_checks,
            next_check: (state == State::Prepared && of.checks < of.most_checks)
                .then_some(next_check),
            decided_at: of.decision.map(|decision| decision.at),
            messages: of.messages(),
            bytes: of.bytes,
            topics,
            parts,
        }
    }
}

/// It was done, and the node ends before it can say how it is: whoever asked cannot know.
fn untold(problem: Problem) -> Problem {
    Problem { kind: Kind::Unknown, code: "outcome_unknown", ..problem }
}

fn may_decide(caller: &Caller, catalog: &Catalog, topic: TopicId) -> bool {
    match catalog.topic(topic) {
        Some(topic) => {
            let on = On::Topic(&topic.name);
            caller.may(Action::Publish, on) || caller.may(Action::Manage, on)
        }
        None => caller.may(Action::Manage, On::Node),
    }
}

fn check_producer(name: &str) -> Result<(), Problem> {
    let most = bounds::CONSUMER_BYTES;
    if (1..=most).contains(&name.len()) {
        return Ok(());
    }
    let limit = format!("from 1 to {most} bytes: who is asked about the transaction");
    Err(Problem::invalid("producer", format!("{} bytes", name.len()), limit))
}

fn check_dedupe_id(id: &str) -> Result<(), Problem> {
    let most = posthouse_core::message::limits::DEDUPE_ID_BYTES;
    if (1..=most).contains(&id.len()) {
        return Ok(());
    }
    let limit = format!("from 1 to {most} bytes");
    Err(Problem::invalid("dedupe_id", format!("{} bytes", id.len()), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back() {
        let cursor = Cursor { shard: 3, first: 77 };
        assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        for bad in ["", "1", "1.2.3", "a.1"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad:?}");
        }
    }
}
