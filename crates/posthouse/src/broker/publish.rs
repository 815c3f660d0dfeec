//! Taking messages in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use posthouse_core::catalog::{Action, Topic, TopicConfig, User};
use posthouse_core::ident::{IdKind, IdParts, MessageId};
use posthouse_core::index::TagSet;
use posthouse_core::message::{Parts, limits};
use posthouse_core::queue::Command;
use posthouse_core::queue::command::{Batch, Before, Known, Occurrence, Published, Refusal, Reply};
use posthouse_core::record::{Draft, EntryDedupe, Later, When};
use posthouse_core::{Position, ShardId, UnixMs};
use posthouse_frame::BodyBuf;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError, oneshot};

use super::quota::Wanted;
use super::{Broker, Caller, On, bounds, sort};
use crate::problem::{Kind, Problem};
use crate::shard::mail::{Mail, Room};
use crate::shard::metrics;

/// A place for a message on its way in.
const PERMIT_BYTES: usize = 1024;

/// Who waits for a quota looks at it again after so long.
const QUOTA_LOOK: Duration = Duration::from_millis(500);
const QUOTA_LOOK_LEAST: Duration = Duration::from_millis(1);

/// What the log keeps of a message beside its content, at most.
const ENTRY_BYTES: usize = 64;

/// Room for bodies that are on their way into the log. Taken before a body is read
/// from a connection; given back when its publish is answered, or, if nobody waits for
/// that any more, when its bodies are in a frame.
#[derive(Debug)]
pub struct Permit {
    room: Arc<OwnedSemaphorePermit>,
    /// Whether it was waited for, and quotas with it.
    has_waited: bool,
}

/// Messages that are published together.
///
/// They are sealed as they are added, on the thread that received them, so that a
/// shard only has to put them in place.
#[derive(Debug)]
pub struct Outbox {
    pub(super) batches: Vec<Outgoing>,
    /// Which message of which batch, in the order they were added; of [`REFUSED`], which
    /// of those that were refused.
    pub(super) order: Vec<(u32, u32)>,
    refused: Vec<Problem>,
    pub(super) bytes: usize,
    /// Messages to come, and bytes of their bodies, as far as somebody has said.
    expected: (usize, usize),
    permit: Option<Permit>,
    user: Option<Arc<User>>,
    apart: bool,
    /// If the message is one of a recurring one.
    occurrence: Option<Occurrence>,
}

/// Messages for one partition, now or later.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) topic: Arc<Topic>,
    pub(super) shard: ShardId,
    pub(super) index: u32,
    is_later: bool,
    pub(super) batch: Batch,
}

/// Where a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its id.
    pub id: MessageId,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position there; `None` if it is scheduled, and not there yet.
    pub position: Option<Position>,
    /// When it is due, if it is scheduled and was taken in now.
    pub due: Option<UnixMs>,
    /// Whether it was not taken in because another one has its name, and stays: id and
    /// partition are that one's.
    pub kept: bool,
    /// Whether it had come before under the same publish id; id, partition and
    /// position are then the first one's.
    pub duplicate: bool,
    /// When it was taken in.
    pub at: UnixMs,
}

/// What became of an [`Outbox`], in the order messages were added.
#[derive(Debug)]
pub struct Sent {
    batches: Vec<(Outgoing, Result<Published, Problem>)>,
    order: Vec<(u32, u32)>,
    refused: Vec<Problem>,
}

impl Broker {
    /// The topic of that name, for a caller who wants to publish to it. Made if it is
    /// not there and the node makes topics on first use.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn topic_to_publish(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Arc<Topic>, Problem> {
        caller.check(Action::Publish, On::Topic(name))?;
        if let Ok(topic) = self.topic(name) {
            if topic.role != posthouse_core::catalog::Role::Messages {
                return Err(Problem::new(
                    Kind::Invalid,
                    "system_topic",
                    format!("{name} is a topic of the system: nobody publishes to it"),
                ));
            }
            return Ok(topic);
        }
        if !self.auto_creates() {
            return Err(Problem::no_topic(name));
        }
        let made = self.directory.put_topic(name, TopicConfig::default(), true).await?;
        Ok(made.0)
    }

    /// Room for `bytes` of bodies, at once.
    ///
    /// # Errors
    /// If so much is on its way into the log already: the caller is to come back. If the
    /// node stops.
    pub fn permit(&self, bytes: usize) -> Result<Permit, Problem> {
        let permits = permits_for(bytes);
        let taken = self.bytes_in_flight.clone().try_acquire_many_owned(permits);
        let permit = |room| Permit { room: Arc::new(room), has_waited: false };
        taken.map(permit).map_err(|error| match error {
            TryAcquireError::Closed => Problem::stopping(),
            TryAcquireError::NoPermits => {
                let most = bounds::BYTES_IN_FLIGHT >> 20;
                let detail = format!("{most} MiB of messages are on their way to the disk already");
                Problem::busy(detail).with_hint("publish less at once, or come back in a moment")
            }
        })
    }

    /// Waits for room for `bytes` of bodies: for doors that can make a client wait.
    ///
    /// # Errors
    /// If the node stops meanwhile.
    pub async fn wait_for_permit(&self, bytes: usize) -> Result<Permit, Problem> {
        let permits = permits_for(bytes);
        let taken = self.bytes_in_flight.clone().acquire_many_owned(permits).await;
        let permit = |room| Permit { room: Arc::new(room), has_waited: true };
        taken.map(permit).map_err(|_| Problem::stopping())
    }

    /// Waits until something is left of the quotas of the caller and of topics. For doors
    /// that can make a client wait; before there is a permit, so that who waits for a quota
    /// keeps nobody else out.
    ///
    /// # Errors
    /// If the node stops meanwhile.
    pub async fn wait_for_quotas<'a>(
        &self,
        caller: &Caller,
        topics: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), Problem> {
        loop {
            let user = caller.user().map(|user| self.user_now(user));
            let wait = {
                let catalog = self.catalog();
                let named = topics.clone().filter_map(|name| catalog.topic_named(name));
                let mut wanted: Vec<Wanted<'_>> =
                    named.filter_map(|topic| Wanted::of_topic(topic, 0, 0)).collect();
                wanted.extend(user.as_ref().and_then(|user| Wanted::of_user(user, 0, 0)));
                match wanted.is_empty() {
                    true => None,
                    false => self.quotas.wait(&wanted, self.quotas.now()),
                }
            };
            let Some(wait) = wait else { return Ok(()) };
            if !self.is_ready() {
                return Err(Problem::stopping());
            }
            // Quotas may be changed meanwhile, and the node may stop.
            tokio::time::sleep(wait.clamp(QUOTA_LOOK_LEAST, QUOTA_LOOK)).await;
        }
    }

    /// An empty outbox, which holds `permit` until it is answered. What is in it is
    /// published all or nothing; with `apart`, one message need not wait for another,
    /// and each has its own result.
    pub fn outbox(&self, permit: Option<Permit>, apart: bool) -> Outbox {
        Outbox {
            batches: Vec::new(),
            order: Vec::new(),
            refused: Vec::new(),
            bytes: 0,
            expected: (0, 0),
            permit,
            user: None,
            apart,
            occurrence: None,
        }
    }

    /// The same of a caller, whose quota counts.
    pub fn outbox_of(&self, caller: &Caller, permit: Option<Permit>, apart: bool) -> Outbox {
        let user = caller.user().map(|user| self.user_now(user));
        Outbox { user, ..self.outbox(permit, apart) }
    }

    /// The user as configured now: a stream brings the one that began it.
    fn user_now(&self, user: &Arc<User>) -> Arc<User> {
        self.catalog().user_named(&user.name).unwrap_or(user).clone()
    }

    /// Uses up quotas. What was waited for goes on whatever is left.
    pub(super) fn use_quotas(&self, outbox: &Outbox) -> Result<(), Problem> {
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        if let Some(user) = &outbox.user {
            let (messages, bytes) = (outbox.order.len() as u64, outbox.bytes as u64);
            wanted.extend(Wanted::of_user(user, messages, bytes));
        }
        for outgoing in &outbox.batches {
            let Batch { drafts, bodies, .. } = &outgoing.batch;
            let (messages, bytes) = (drafts.len() as u64, bodies.len() as u64);
            wanted.extend(Wanted::of_topic(&outgoing.topic, messages, bytes));
        }
        let forced = outbox.permit.as_ref().is_some_and(|permit| permit.has_waited);
        self.quotas.take(&wanted, self.quotas.now(), forced)
    }

    /// Adds a message to an outbox.
    ///
    /// # Errors
    /// What is wrong with the message. The outbox is as it was.
    pub fn add(
        &self,
        outbox: &mut Outbox,
        topic: &Arc<Topic>,
        parts: &Parts<'_>,
        payload: &[u8],
    ) -> Result<(), Problem> {
        parts.check()?;
        // Names and values come in no order of their own: the same message is to be the
        // same bytes, or its publish id would be taken for another's.
        let sorted;
        let parts = if parts.headers.is_sorted() {
            parts
        } else {
            sorted = parts.with_sorted_headers();
            &sorted
        };
        let most = topic.config.max_message_bytes as usize;
        if payload.len() > most {
            return Err(too_large(payload.len(), most, topic));
        }
        if outbox.order.len() >= bounds::PUBLISH_MESSAGES {
            let most = bounds::PUBLISH_MESSAGES;
            return Err(Problem::invalid("messages", most + 1, format!("at most {most}")));
        }
        self.check_later(topic, parts)?;
        sort::check(topic, parts)?;
        let bytes = payload.len() + parts.bytes() + ENTRY_BYTES;
        if outbox.bytes + bytes > bounds::PUBLISH_BYTES && outbox.bytes > 0 {
            let most = bounds::PUBLISH_BYTES;
            let detail = format!(
                "a publish is all or nothing, and has at most {most} bytes with keys, tags, \
                 headers and {ENTRY_BYTES} bytes for each message"
            );
            return Err(Problem::new(Kind::TooLarge, "batch_too_large", detail)
                .with_field("messages", outbox.bytes + bytes, format!("at most {most}"))
                .with_hint("publish in several batches"));
        }
        outbox.bytes += bytes;
        let key = parts.key.map_or(0, |key| self.secret.hash(key.as_bytes()));
        let dedupe = parts.dedupe_id.filter(|_| topic.config.dedupe_window_ms > 0);
        let is_later = parts.later.is_some();
        let number = outbox
            .batch_for(topic, is_later, || self.partition_for(topic, key, dedupe, parts.name));
        let batch = &mut outbox.batches[number as usize].batch;
        let at = batch.bodies.len();
        let len = batch.bodies.seal(|out| parts.encode(payload, out));
        let dedupe = dedupe.map(|id| {
            // What the message is but for when it came: the sealed content.
            let content = batch.bodies.content(at, len as usize);
            Box::new(EntryDedupe {
                id: self.secret.hash128(id.as_bytes()),
                digest: self.secret.hash(content),
            })
        });
        let tags = match parts.tags.as_slice() {
            [] => TagSet::None,
            tags => TagSet::of(
                &tags.iter().map(|tag| self.secret.hash(tag.as_bytes())).collect::<Vec<_>>(),
            ),
        };
        outbox.order.push((number, batch.drafts.len() as u32));
        let later = parts.later.map(|(when, taken)| {
            let name = parts.name.map(|name| self.secret.hash128(name.as_bytes()));
            Box::new(Later { when, name, taken })
        });
        batch.drafts.push(Draft { len, key, tags, ttl_ms: parts.ttl_ms, dedupe, later });
        Ok(())
    }

    /// Whether a message that is to be scheduled can be.
    fn check_later(&self, topic: &Topic, parts: &Parts<'_>) -> Result<(), Problem> {
        let Some((when, _)) = parts.later else { return Ok(()) };
        if !topic.config.delays {
            let detail = format!("topic {:?} takes no message that is to come later", topic.name);
            return Err(Problem::new(Kind::Invalid, "delays_off", detail)
                .with_hint("publish without deliver_at and delay, or set `delays` of the topic"));
        }
        if let When::At(at) = when {
            check_due(at, self.now())?;
        }
        self.check_scheduled()
    }

    /// Whether there is room for more scheduled messages.
    pub(super) fn check_scheduled(&self) -> Result<(), Problem> {
        let most = self.options.limits.scheduled;
        let shards = self.shards.iter();
        let scheduled: u64 = shards.map(|shard| metrics::get(&shard.metrics.scheduled)).sum();
        if scheduled < most {
            return Ok(());
        }
        let detail = format!("{scheduled} messages are scheduled; the most is {most}");
        Err(Problem::new(Kind::Exhausted, "too_many_scheduled", detail)
            .with_hint("wait until some have come, or raise max_scheduled of the node")
            .with_retry(1_000))
    }

    /// Where a message goes: by its key; else by its name or its publish id, so that the
    /// same one comes to the same place; else all of a batch to one, in turn.
    fn partition_for(
        &self,
        topic: &Topic,
        key: u64,
        dedupe: Option<&str>,
        name: Option<&str>,
    ) -> Option<u32> {
        let count = topic.partitions.len() as u64;
        if count == 1 {
            return Some(0);
        }
        let hash = match (key, name.or(dedupe)) {
            (0, None) => return None,
            (0, Some(id)) => self.secret.hash(id.as_bytes()),
            (key, _) => key,
        };
        Some((hash % count) as u32)
    }

    /// Publishes what is in an outbox. The answer comes when it is durable.
    ///
    /// # Errors
    /// See [`Problem`]: then nothing was published. But with [`Kind::Unknown`] nobody can
    /// say, and what was published apart may have been in part.
    pub async fn publish(&self, outbox: Outbox) -> Result<Sent, Problem> {
        self.submit(outbox)?.wait().await
    }

    /// Hands an outbox over, in the order of calls. [`Submitted::wait`] for the answer.
    ///
    /// # Errors
    /// See [`Broker::publish`].
    pub fn submit(&self, mut outbox: Outbox) -> Result<Submitted, Problem> {
        outbox.check_sorts(false)?;
        self.space.let_in(outbox.bytes)?;
        if !self.is_ready() {
            return Err(Problem::stopping());
        }
        self.use_quotas(&outbox)?;
        outbox.settle_partitions(self.turn.fetch_add(1, Ordering::Relaxed));
        let shards = outbox.shards();
        if shards.len() > 1 && !outbox.apart {
            return Err(several_shards("published"));
        }
        let mut answers = Vec::with_capacity(shards.len());
        for shard in shards {
            // The others may have theirs already.
            answers.push((shard, self.send_batches(shard, &mut outbox)));
        }
        Ok(Submitted { outbox, answers })
    }

    fn send_batches(&self, shard: ShardId, outbox: &mut Outbox) -> Result<Awaited, Problem> {
        let of_shard = outbox.batches.iter_mut().filter(|outgoing| outgoing.shard == shard);
        let batches = of_shard.map(|outgoing| std::mem::take(&mut outgoing.batch)).collect();
        let (tx, rx) = oneshot::channel();
        let command = match outbox.occurrence {
            Some(occurrence) => Command::Recur { occurrence, batches },
            None => Command::Publish { batches, apart: outbox.apart },
        };
        let mail = Mail::Command { command, tx, room: outbox.room() };
        let mailbox = &self.shard(shard)?.mailbox;
        mailbox.send(mail.class(), mail).map_err(|_| Problem::stopping())?;
        Ok(rx)
    }

    /// Where every message of an outbox went, in the order they were added; or why one
    /// did not, if they were published apart.
    pub fn placed<'a>(
        &'a self,
        sent: &'a Sent,
    ) -> impl Iterator<Item = Result<Placed, Problem>> + 'a {
        sent.order.iter().map(|(batch, index)| {
            if *batch == REFUSED {
                return Err(sent.refused[*index as usize].clone());
            }
            let (outgoing, published) = &sent.batches[*batch as usize];
            let published = published.as_ref().map_err(Problem::clone)?;
            let (topic, shard) = (&outgoing.topic, outgoing.shard);
            let (duplicates, duplicate) = find(&published.duplicates, *index);
            let (conflicts, conflict) = find(&published.conflicts, *index);
            let (keepers, kept) = find(&published.kept, *index);
            let (takers, taken) = find(&published.taken, *index);
            let (batch, index) = (0, *index);
            if let Some(known) = conflict {
                return Err(Refusal::Conflict { batch, index, before: known.before }.into());
            }
            if let Some(known) = taken {
                return Err(Refusal::NameTaken { batch, index, before: known.before }.into());
            }
            let at = published.at;
            let place = |before: Before| Placed {
                id: self.id_of(shard, before),
                partition: topic.index_of(before.partition).unwrap_or(outgoing.index),
                position: (!before.is_later).then_some(before.position),
                due: None,
                duplicate: false,
                kept: false,
                at,
            };
            if let Some(known) = duplicate {
                return Ok(Placed { duplicate: true, ..place(known.before) });
            }
            if let Some(known) = kept {
                return Ok(Placed { kept: true, ..place(known.before) });
            }
            let skipped = (duplicates + conflicts + keepers + takers) as u64;
            let position = published.first + u64::from(index) - skipped;
            let (partition, is_later) = (published.partition, published.is_later);
            let placed = place(Before { partition, position, is_later });
            Ok(Placed { due: published.due.get(index as usize).copied(), ..placed })
        })
    }

    fn id_of(&self, shard: ShardId, before: Before) -> MessageId {
        let Before { partition, position: number, is_later } = before;
        let kind = if is_later { IdKind::Scheduled } else { IdKind::Stored };
        MessageId::new(&self.secret, IdParts { kind, shard, partition, number })
    }
}

/// An outbox that was handed over.
#[derive(Debug)]
pub struct Submitted {
    outbox: Outbox,
    answers: Vec<(ShardId, Result<Awaited, Problem>)>,
}

/// The answer of one shard.
type Awaited = oneshot::Receiver<Result<Reply, Problem>>;

impl Submitted {
    /// Waits until everything is durable. Of several shards, each has an answer of its own:
    /// what one of them refuses, or does not know the outcome of, the others have taken.
    ///
    /// # Errors
    /// See [`Broker::publish`].
    pub async fn wait(self) -> Result<Sent, Problem> {
        let Submitted { outbox, answers } = self;
        let is_one = answers.len() == 1;
        let mut published: Vec<Option<Result<Published, Problem>>> =
            outbox.batches.iter().map(|_| None).collect();
        for (shard, answer) in answers {
            let of_shard = match answer {
                Ok(answer) => outbox.answered(shard, answer.await),
                Err(problem) => Err(problem),
            };
            if is_one {
                of_shard.as_ref().map_err(Problem::clone)?;
            }
            let mut of_shard = of_shard.map(Vec::into_iter);
            for (outgoing, published) in outbox.batches.iter().zip(&mut published) {
                if outgoing.shard == shard {
                    *published = match &mut of_shard {
                        Ok(of_shard) => of_shard.next().map(Ok),
                        Err(problem) => Some(Err(problem.clone())),
                    };
                }
            }
        }
        let batches = outbox.batches.into_iter().zip(published.into_iter().flatten()).collect();
        Ok(Sent { batches, order: outbox.order, refused: outbox.refused })
    }
}

/// How many known messages come before the one at `index`, and that one if it is known.
fn find(known: &[Known], index: u32) -> (usize, Option<&Known>) {
    let before = known.partition_point(|known| known.index < index);
    (before, known.get(before).filter(|known| known.index == index))
}

impl Sent {
    /// How many messages there were.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// Stands for "wherever it is this batch's turn".
const ANYWHERE: u32 = u32::MAX;

/// Stands for "in no batch: it was refused".
const REFUSED: u32 = u32::MAX;

impl Outbox {
    /// What a shard has made of its batches.
    fn answered(
        &self,
        shard: ShardId,
        answer: Result<Result<Reply, Problem>, oneshot::error::RecvError>,
    ) -> Result<Vec<Published>, Problem> {
        match answer.map_err(|_| Problem::stopping())?? {
            Reply::Published(published) => Ok(published),
            Reply::Refused(Refusal::Conflict { batch, index, before }) => {
                Err(self.conflict(shard, batch, index, before))
            }
            Reply::Refused(Refusal::NameTaken { batch, index, .. }) => {
                let at = self.place_of(shard, batch, index);
                Err(Problem::name_taken(at.filter(|_| self.order.len() > 1)))
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(Problem::internal(format!("a publish was answered by {other:?}"))),
        }
    }

    /// Says what is to be added, so that room for it is taken once: so many messages with
    /// so many bytes of bodies. They are taken for messages of one topic; if they are not,
    /// room is taken for the first one's.
    pub fn expect(&mut self, messages: usize, bytes: usize) {
        self.expected = (messages.min(bounds::PUBLISH_MESSAGES), bytes.min(bounds::PUBLISH_BYTES));
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The same, of a recurring message: taken in if this time of it has not come.
    pub(super) fn of(self, occurrence: Occurrence) -> Outbox {
        Outbox { occurrence: Some(occurrence), ..self }
    }

    /// Whether one message need not wait for another.
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// Notes that the next message was refused before it could be added. Only where
    /// messages are published apart: it keeps no other out.
    pub fn refuse(&mut self, problem: Problem) {
        debug_assert!(self.apart, "what is all or nothing is refused as a whole");
        self.order.push((REFUSED, self.refused.len() as u32));
        self.refused.push(problem);
    }

    /// Which message it is, in the order they were added, that went to `shard` in this
    /// batch at this place.
    fn place_of(&self, shard: ShardId, batch: u32, index: u32) -> Option<usize> {
        let mut of_shard = (0u32..).zip(&self.batches).filter(|(_, of)| of.shard == shard);
        let (number, _) = of_shard.nth(batch as usize)?;
        self.order.iter().position(|place| *place == (number, index))
    }

    /// One of its messages has the publish id of another one.
    pub(super) fn conflict(
        &self,
        shard: ShardId,
        batch: u32,
        index: u32,
        before: Before,
    ) -> Problem {
        let is_alone = self.order.len() == 1;
        let at = self.place_of(shard, batch, index);
        Problem::dedupe_conflict(before, at.filter(|_| !is_alone))
    }

    /// What keeps room for its bodies.
    pub(super) fn room(&self) -> Room {
        self.permit.as_ref().map(|permit| permit.room.clone())
    }

    /// The shards that its messages go to.
    pub(super) fn shards(&self) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> = self.batches.iter().map(|o| o.shard).collect();
        shards.dedup();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// Sends what may go anywhere to the shard of the rest, in turn, so that all of it can
    /// go together.
    pub(super) fn settle_together(&mut self, turn: u64) {
        let settled = self.batches.iter().find(|outgoing| outgoing.index != ANYWHERE);
        let mut shard = settled.map(|outgoing| outgoing.shard);
        for outgoing in self.batches.iter_mut().filter(|outgoing| outgoing.index == ANYWHERE) {
            let places = (0u32..).zip(&outgoing.topic.partitions);
            let here: Vec<_> =
                places.filter(|(_, p)| shard.is_none_or(|shard| p.shard == shard)).collect();
            let at = turn as usize % here.len().max(1);
            // Where there is none the transaction is refused: any will do.
            let (index, place) =
                here.get(at).copied().unwrap_or((0, &outgoing.topic.partitions[0]));
            (outgoing.index, outgoing.shard) = (index, place.shard);
            outgoing.batch.partition = place.id;
            shard = shard.or(Some(outgoing.shard));
        }
    }

    /// Bytes of bodies, with all that comes with them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The batch for a partition of a topic, made if there is none.
    fn batch_for(
        &mut self,
        topic: &Arc<Topic>,
        is_later: bool,
        partition: impl FnOnce() -> Option<u32>,
    ) -> u32 {
        let index = partition().unwrap_or(ANYWHERE);
        let known = self.batches.iter().rposition(|outgoing| {
            outgoing.index == index
                && outgoing.topic.id == topic.id
                && outgoing.is_later == is_later
        });
        if let Some(at) = known {
            return at as u32;
        }
        let place = topic.partitions[if index == ANYWHERE { 0 } else { index as usize }];
        let (messages, bytes) = std::mem::take(&mut self.expected);
        self.batches.push(Outgoing {
            topic: topic.clone(),
            shard: place.shard,
            index,
            is_later,
            batch: Batch {
                partition: place.id,
                topic: topic.id,
                bodies: BodyBuf::with_capacity(bytes + messages * SEALED_BYTES),
                drafts: Vec::with_capacity(messages),
            },
        });
        self.batches.len() as u32 - 1
    }

    /// Sends what may go anywhere to one partition of its topic, in turn.
    fn settle_partitions(&mut self, turn: u64) {
        for outgoing in &mut self.batches {
            if outgoing.index == ANYWHERE {
                let index = (turn % outgoing.topic.partitions.len() as u64) as u32;
                let place = outgoing.topic.partitions[index as usize];
                outgoing.index = index;
                outgoing.shard = place.shard;
                outgoing.batch.partition = place.id;
            }
        }
    }
}

/// Messages that are to be together go to several shards.
pub(super) fn several_shards(what: &str) -> Problem {
    let detail = format!(
        "the messages go to partitions on different shards, and cannot be {what} all or nothing"
    );
    Problem::new(Kind::Invalid, "several_shards", detail)
        .with_hint("publish to each topic apart, or give keys that go to one partition")
}

/// Refuses a time that is too far away.
pub(super) fn check_due(at: UnixMs, now: UnixMs) -> Result<(), Problem> {
    let most = limits::DELAY_MS;
    if at.since(now) <= most {
        return Ok(());
    }
    let limit = format!("at most {most} ms (ten years) from now, which is {}", now.0);
    Err(Problem::invalid("deliver_at", at.0, limit))
}

/// What a message without key, tags and headers takes beside its body, and some more.
const SEALED_BYTES: usize = 32;

fn permits_for(bytes: usize) -> u32 {
    let most = bounds::BYTES_IN_FLIGHT / PERMIT_BYTES;
    bytes.div_ceil(PERMIT_BYTES).clamp(1, most) as u32
}

/// The semaphore that [`Broker::permit`] draws from.
pub(super) fn all_permits() -> usize {
    bounds::BYTES_IN_FLIGHT / PERMIT_BYTES
}

fn too_large(bytes: usize, most: usize, topic: &Topic) -> Problem {
    let name = &topic.name;
    let detail = format!("the body has {bytes} bytes; topic {name:?} takes at most {most}");
    Problem::new(Kind::TooLarge, "message_too_large", detail)
        .with_field("body", bytes, format!("at most {most} bytes"))
        .with_hint("store large content elsewhere, or raise max_message_bytes of the topic")
}
