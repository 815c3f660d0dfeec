//! Messages that are to come later: looking at them, moving them, calling them back.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_core::catalog::{Action, Topic};
use posthouse_core::ident::{IdKind, IdParts, MessageId};
use posthouse_core::message::{self, Parts, limits};
use posthouse_core::queue::Command;
use posthouse_core::queue::command::{LaterOutcome, Reply, Shift, Which};
use posthouse_core::record::{Pending, When};
use posthouse_core::schedule::{Body, Item, Key, State};
use posthouse_core::{PartitionId, Position, Seq, ShardId, UnixMs};
use posthouse_frame::body::HEADER_BYTES;

use super::publish::check_due;
use super::{Broker, Caller, On, bounds};
use crate::problem::{Kind, Problem};

/// Entries that one look goes over in a shard at most before it comes back.
const SEARCH: usize = 200_000;

/// A scheduled message, as users name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By its id.
    Id(String),
    /// By the name that it has in a topic.
    Named {
        /// The topic.
        topic: String,
        /// The name.
        name: String,
    },
}

/// What became of a scheduled message.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// It is as was asked.
    Done {
        /// Its id.
        id: MessageId,
        /// When it is due now; of one that was called back, when it was.
        due: UnixMs,
    },
    /// It has come.
    Fired {
        /// Its id.
        id: MessageId,
        /// The partition, counted from 0.
        partition: u32,
        /// Its position there.
        position: Position,
    },
    /// It was called back before.
    Cancelled {
        /// Its id.
        id: MessageId,
    },
    /// A transaction decides about it.
    Held {
        /// Its id.
        id: MessageId,
    },
    /// There is no such message, or what became of it has been forgotten.
    Unknown,
    /// It makes no sense, or is not allowed.
    Refused(Problem),
}

/// A place in the order in which a topic's messages come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScheduleCursor {
    due: u64,
    shard: u16,
    seq: Seq,
}

impl fmt::Display for ScheduleCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.due, self.shard, self.seq)
    }
}

impl FromStr for ScheduleCursor {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let read = || {
            let mut parts = text.split('.');
            let due = parts.next()?.parse().ok()?;
            let shard = parts.next()?.parse().ok()?;
            let seq = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(ScheduleCursor { due, shard, seq })
        };
        read().ok_or_else(|| Problem::bad_cursor(text))
    }
}

impl ScheduleCursor {
    /// Where to begin in a shard.
    fn key(self, shard: ShardId) -> Key {
        match shard.0.cmp(&self.shard) {
            std::cmp::Ordering::Less => (UnixMs(self.due + 1), 0),
            std::cmp::Ordering::Equal => (UnixMs(self.due), self.seq),
            std::cmp::Ordering::Greater => (UnixMs(self.due), 0),
        }
    }

    fn of(shard: ShardId, (due, seq): Key) -> ScheduleCursor {
        ScheduleCursor { due: due.0, shard: shard.0, seq }
    }
}

/// Which scheduled messages of a topic to look at.
#[derive(Clone, Debug, Default)]
pub struct LookAhead {
    /// Due at this time or later.
    pub from: Option<UnixMs>,
    /// Due at this time or earlier.
    pub until: Option<UnixMs>,
    /// Only those with this key.
    pub key: Option<String>,
    /// Where the page before ended.
    pub after: Option<ScheduleCursor>,
    /// At most so many.
    pub limit: usize,
}

/// A scheduled message that was looked at.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Its id.
    pub id: MessageId,
    /// Its topic.
    pub topic: Arc<Topic>,
    /// The partition it will go to, counted from 0.
    pub partition: u32,
    /// When it is due.
    pub due: UnixMs,
    content: Bytes,
}

impl Scheduled {
    /// Bytes of its content.
    pub fn bytes(&self) -> usize {
        self.content.len()
    }

    /// All that the publisher gave, and the body.
    ///
    /// # Errors
    /// If the content cannot be read although its checksum holds.
    pub fn parts(&self) -> Result<(Parts<'_>, Bytes), Problem> {
        message::decode(&self.content).map_err(Problem::unreadable)
    }
}

/// How many messages of a topic are due when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hours {
    /// All of them.
    pub pending: u64,
    /// When an hour begins, and how many are due in it.
    pub hours: Vec<(UnixMs, u64)>,
}

impl Broker {
    /// Who may publish to a topic, or manage it, may change what is to come to it.
    fn check_change(&self, caller: &Caller, topic: &str) -> Result<(), Problem> {
        if caller.may(Action::Manage, On::Topic(topic)) {
            return Ok(());
        }
        caller.check(Action::Publish, On::Topic(topic))
    }

    fn check_look(&self, caller: &Caller, topic: &str) -> Result<(), Problem> {
        if caller.may(Action::Consume, On::Topic(topic)) {
            return Ok(());
        }
        self.check_change(caller, topic)
    }

    /// Lets scheduled messages be due at another time. Each has a result of its own.
    ///
    /// # Errors
    /// See [`Problem`]; with [`Kind::Unknown`] some may have been done.
    pub async fn reschedule(
        &self,
        caller: &Caller,
        items: Vec<(Target, Shift)>,
    ) -> Result<Vec<Changed>, Problem> {
        self.change(caller, items, Some, Command::Reschedule).await
    }

    /// Calls scheduled messages back. Each has a result of its own.
    ///
    /// # Errors
    /// See [`Broker::reschedule`].
    pub async fn cancel(
        &self,
        caller: &Caller,
        targets: Vec<Target>,
    ) -> Result<Vec<Changed>, Problem> {
        let items = targets.into_iter().map(|target| (target, ())).collect();
        let command = |which: Vec<(Which, ())>| {
            Command::Cancel(which.into_iter().map(|(which, ())| which).collect())
        };
        self.change(caller, items, |()| None, command).await
    }

    async fn change<T: Clone>(
        &self,
        caller: &Caller,
        items: Vec<(Target, T)>,
        shift: impl Fn(T) -> Option<Shift>,
        command: impl Fn(Vec<(Which, T)>) -> Command,
    ) -> Result<Vec<Changed>, Problem> {
        if items.len() > bounds::RECEIPTS {
            let most = format!("at most {}", bounds::RECEIPTS);
            return Err(Problem::invalid("items", items.len(), most));
        }
        let mut changed: Vec<Changed> = Vec::with_capacity(items.len());
        let mut by_shard: Vec<Vec<(usize, Which, T)>> = vec![Vec::new(); self.shards.len()];
        for (at, (target, how)) in items.into_iter().enumerate() {
            let resolved = shift(how.clone())
                .map_or(Ok(()), |shift| self.check_shift(shift))
                .and_then(|()| self.resolve(caller, &target));
            match resolved {
                Ok((which, shards)) => {
                    changed.push(Changed::Unknown);
                    for shard in shards {
                        if let Some(of_shard) = by_shard.get_mut(usize::from(shard.0)) {
                            of_shard.push((at, which, how.clone()));
                        }
                    }
                }
                Err(problem) => changed.push(Changed::Refused(problem)),
            }
        }
        let is_one = by_shard.iter().filter(|of_shard| !of_shard.is_empty()).count() == 1;
        for (shard, of_shard) in self.shards.iter().zip(by_shard) {
            if of_shard.is_empty() {
                continue;
            }
            let places: Vec<usize> = of_shard.iter().map(|(at, ..)| *at).collect();
            let which = of_shard.into_iter().map(|(_, which, how)| (which, how)).collect();
            match self.directory.command(shard.id, command(which)).await {
                Ok(Reply::Later(outcomes)) => {
                    for (at, outcome) in places.into_iter().zip(outcomes) {
                        if outcome != LaterOutcome::Unknown {
                            changed[at] = self.changed(shard.id, outcome);
                        }
                    }
                }
                Ok(reply) => {
                    return Err(Problem::internal(format!("a change was answered by {reply:?}")));
                }
                Err(problem) if is_one => return Err(problem),
                // Other shards have done theirs.
                Err(problem) => {
                    for at in places {
                        if matches!(changed[at], Changed::Unknown) {
                            changed[at] = Changed::Refused(problem.clone());
                        }
                    }
                }
            }
        }
        Ok(changed)
    }

    fn check_shift(&self, shift: Shift) -> Result<(), Problem> {
        match shift {
            Shift::To(When::At(at)) => check_due(at, self.now()),
            Shift::To(When::After(ms)) if ms > limits::DELAY_MS => {
                let limit = format!("at most {} ms (ten years)", limits::DELAY_MS);
                Err(Problem::invalid("delay", format!("{ms} ms"), limit))
            }
            Shift::By(ms) if ms.unsigned_abs() > limits::DELAY_MS => {
                let limit = format!("at most {} ms (ten years) either way", limits::DELAY_MS);
                Err(Problem::invalid("by", format!("{ms} ms"), limit))
            }
            _ => Ok(()),
        }
    }

    /// What the core knows a message by, and the shards that may have it.
    fn resolve(&self, caller: &Caller, target: &Target) -> Result<(Which, Vec<ShardId>), Problem> {
        match target {
            Target::Id(id) => {
                let id: MessageId = id.parse()?;
                let parts = id.open(&self.secret)?;
                let topic = self.catalog().topic_of(parts.partition).cloned();
                let topic = topic.ok_or_else(|| Problem::no_message(&id.to_string()))?;
                self.check_change(caller, &topic.name)?;
                if parts.kind != IdKind::Scheduled {
                    let detail = format!("message {id} was published at once");
                    return Err(Problem::new(Kind::Conflict, "not_scheduled", detail).with_hint(
                        "only a message that was published with deliver_at or delay can be \
                         moved or called back",
                    ));
                }
                let of = Pending { partition: parts.partition, seq: parts.number };
                Ok((Which::Id(of), vec![parts.shard]))
            }
            Target::Named { topic, name } => {
                self.check_change(caller, topic)?;
                let topic = self.topic(topic)?;
                let mut shards: Vec<ShardId> = topic.partitions.iter().map(|p| p.shard).collect();
                shards.sort_unstable();
                shards.dedup();
                Ok((Which::Name(topic.id, self.secret.hash128(name.as_bytes())), shards))
            }
        }
    }

    fn changed(&self, shard: ShardId, outcome: LaterOutcome) -> Changed {
        let id = |of| self.scheduled_id(shard, of);
        match outcome {
            LaterOutcome::Done { of, due } => Changed::Done { id: id(of), due },
            LaterOutcome::Fired { of, position } => {
                let topic = self.catalog().topic_of(of.partition).cloned();
                let partition = topic.and_then(|topic| topic.index_of(of.partition));
                Changed::Fired { id: id(of), partition: partition.unwrap_or(0), position }
            }
            LaterOutcome::Cancelled { of } => Changed::Cancelled { id: id(of) },
            LaterOutcome::Held { of } => Changed::Held { id: id(of) },
            LaterOutcome::Unknown => Changed::Unknown,
        }
    }

    fn scheduled_id(&self, shard: ShardId, of: Pending) -> MessageId {
        let (kind, partition, number) = (IdKind::Scheduled, of.partition, of.seq);
        MessageId::new(&self.secret, IdParts { kind, shard, partition, number })
    }

    // ---- looking

    /// Messages that are to come to a topic, in the order in which they will.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn scheduled(
        &self,
        caller: &Caller,
        topic: &str,
        look: &LookAhead,
    ) -> Result<(Vec<Scheduled>, Option<ScheduleCursor>), Problem> {
        self.check_look(caller, topic)?;
        let topic = self.topic(topic)?;
        if !(1..=bounds::PAGE).contains(&look.limit) {
            let limit = format!("it must be from 1 to {}", bounds::PAGE);
            return Err(Problem::invalid("limit", look.limit, limit));
        }
        let first = ScheduleCursor { due: look.from.map_or(0, |from| from.0), shard: 0, seq: 0 };
        let start = look.after.map_or(first, |after| after.max(first));
        let key = look.key.as_ref().map(|key| self.secret.hash(key.as_bytes()));
        let until = look.until.unwrap_or(UnixMs(u64::MAX));
        let mut found: Vec<(ScheduleCursor, ShardId, Item)> = Vec::new();
        let mut next: Option<ScheduleCursor> = None;
        for shard in &self.shards {
            let here: Vec<PartitionId> =
                topic.partitions.iter().filter(|p| p.shard == shard.id).map(|p| p.id).collect();
            if here.is_empty() {
                continue;
            }
            let (from, limit) = (start.key(shard.id), look.limit);
            let (items, on) = self
                .directory
                .look(shard.id, move |view| {
                    let mut items: Vec<Item> = Vec::new();
                    let mut bytes = 0;
                    let mut is_past = false;
                    let schedule = view.shard.schedule();
                    let on = schedule.look(from, here.clone(), SEARCH, view.chunks, |item| {
                        is_past = item.due > until;
                        let of = Pending { partition: item.partition, seq: item.seq };
                        let state = view.shard.later_state(of);
                        let has_key = item.extra.as_ref().map_or(0, |extra| extra.key);
                        let is_wanted = !is_past
                            && matches!(state, State::Pending { held: false, .. })
                            && key.is_none_or(|key| key == has_key);
                        if is_wanted {
                            bytes += u64::from(item.body_len());
                            items.push(item);
                        }
                        is_past || items.len() == limit || bytes >= bounds::PAGE_BYTES
                    })?;
                    Ok((items, on.filter(|_| !is_past)))
                })
                .await?;
            let cursor = |key| ScheduleCursor::of(shard.id, key);
            found.extend(items.into_iter().map(|item| (cursor(item.key()), shard.id, item)));
            next = [next, on.map(cursor)].into_iter().flatten().min();
        }
        // Behind where a shard has stopped, it may have something that comes before.
        found.sort_by_key(|(at, ..)| *at);
        found.retain(|(at, ..)| next.is_none_or(|next| *at < next));
        if found.len() > look.limit {
            next = Some(found[look.limit].0);
            found.truncate(look.limit);
        }
        let mut scheduled = Vec::with_capacity(found.len());
        for (_, shard, item) in found {
            scheduled.push(self.show(&topic, shard, item).await?);
        }
        if let Some(key) = &look.key {
            // Hashes collide, if seldom: the text decides.
            scheduled.retain(|message| {
                message.parts().is_ok_and(|(parts, _)| parts.key == Some(key.as_str()))
            });
        }
        Ok((scheduled, next))
    }

    /// What was found, with its content.
    pub(super) async fn show(
        &self,
        topic: &Arc<Topic>,
        shard: ShardId,
        item: Item,
    ) -> Result<Scheduled, Problem> {
        let id = self.scheduled_id(shard, Pending { partition: item.partition, seq: item.seq });
        let content = match item.body {
            Body::Log(place) => {
                let mut read = self.shard(shard)?.bodies.read(vec![place]).await;
                read.remove(0).map_err(Problem::unreadable)?
            }
            // Sealed: the block that it stood in has passed its checksum.
            Body::Sealed(sealed) => sealed.slice(HEADER_BYTES.min(sealed.len())..),
            Body::Block { .. } | Body::Elsewhere => {
                return Err(Problem::internal("a body is not at hand"));
            }
        };
        let partition = topic.index_of(item.partition).unwrap_or(0);
        Ok(Scheduled { id, topic: topic.clone(), partition, due: item.due, content })
    }

    /// A message that is to come, by its id; `None` if it is not to come any more.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn scheduled_message(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Option<Scheduled>, Problem> {
        let id: MessageId = id.parse()?;
        let parts = id.open(&self.secret)?;
        if parts.kind != IdKind::Scheduled {
            return Ok(None);
        }
        let topic = self.catalog().topic_of(parts.partition).cloned();
        let topic = topic.ok_or_else(|| Problem::no_message(&id.to_string()))?;
        self.check_look(caller, &topic.name)?;
        let of = Pending { partition: parts.partition, seq: parts.number };
        self.find_pending(&topic, parts.shard, Which::Id(of)).await
    }

    /// Whether the caller may look at what is, or was, scheduled under an id.
    pub(super) async fn check_scheduled_id(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<(), Problem> {
        self.scheduled_message(caller, id).await.map(drop)
    }

    /// A message that is to come to a topic, by its name.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn scheduled_by_name(
        &self,
        caller: &Caller,
        topic: &str,
        name: &str,
    ) -> Result<Scheduled, Problem> {
        self.check_look(caller, topic)?;
        let of = self.topic(topic)?;
        let which = Which::Name(of.id, self.secret.hash128(name.as_bytes()));
        for shard in &self.shards {
            if let Some(found) = self.find_pending(&of, shard.id, which).await? {
                return Ok(found);
            }
        }
        Err(Problem::no_scheduled(topic, name))
    }

    async fn find_pending(
        &self,
        topic: &Arc<Topic>,
        shard: ShardId,
        which: Which,
    ) -> Result<Option<Scheduled>, Problem> {
        let found = self
            .directory
            .look(shard, move |view| {
                let Some(of) = view.shard.later_named(which) else { return Ok(None) };
                match view.shard.later_state(of) {
                    State::Pending { held: false, .. } => {
                        view.shard.schedule().find(of.seq, of.partition, view.chunks)
                    }
                    _ => Ok(None),
                }
            })
            .await?;
        match found {
            Some(item) => Ok(Some(self.show(topic, shard, item).await?)),
            None => Ok(None),
        }
    }

    /// How many messages of a topic are due in each hour.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn schedule_hours(&self, caller: &Caller, topic: &str) -> Result<Hours, Problem> {
        self.check_look(caller, topic)?;
        let topic = self.topic(topic)?;
        let mut hours = Hours::default();
        let mut counts = std::collections::BTreeMap::<UnixMs, u64>::new();
        for shard in &self.shards {
            let here: Vec<PartitionId> =
                topic.partitions.iter().filter(|p| p.shard == shard.id).map(|p| p.id).collect();
            let (pending, of_shard) = self
                .directory
                .look(shard.id, move |view| {
                    let row = |id: &PartitionId| view.shard.partition(*id);
                    let pending: u64 = here.iter().filter_map(row).map(|row| row.pending).sum();
                    let schedule = view.shard.schedule();
                    let hours = here.iter().flat_map(|id| schedule.hours.of(*id));
                    Ok((pending, hours.collect::<Vec<_>>()))
                })
                .await?;
            hours.pending += pending;
            of_shard.into_iter().for_each(|(at, count)| *counts.entry(at).or_default() += count);
        }
        hours.hours = counts.into_iter().collect();
        Ok(hours)
    }

    /// Calls everything back that is to come to a topic. Returns how many there were.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn purge_scheduled(&self, caller: &Caller, topic: &str) -> Result<u64, Problem> {
        caller.check(Action::Manage, On::Topic(topic))?;
        let topic = self.topic(topic)?;
        let mut purged = 0;
        for partition in &topic.partitions {
            let command = Command::PurgeScheduled { partition: partition.id };
            if let Reply::Count(count) = self.directory.command(partition.shard, command).await? {
                purged += count;
            }
        }
        Ok(purged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_stands_in_every_shard() {
        let cursor = ScheduleCursor { due: 1_900_000_000_000, shard: 2, seq: 77 };
        assert_eq!(cursor.to_string().parse::<ScheduleCursor>(), Ok(cursor));
        assert_eq!(cursor.key(ShardId(1)), (UnixMs(1_900_000_000_001), 0));
        assert_eq!(cursor.key(ShardId(2)), (UnixMs(1_900_000_000_000), 77));
        assert_eq!(cursor.key(ShardId(3)), (UnixMs(1_900_000_000_000), 0));
        for bad in ["", "1.2", "1.2.3.4", "a.b.c"] {
            assert!(bad.parse::<ScheduleCursor>().is_err(), "{bad:?}");
        }
    }
}
