//! Looking at topics, groups and messages, without effect on anyone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use posthouse_core::catalog::{Action, Group, Topic};
use posthouse_core::ident::{IdKind, MessageId};
use posthouse_core::index::{Found, OwnId, Step};
use posthouse_core::message::{self, Parts};
use posthouse_core::queue::{MessageState, PairInfo, PartitionInfo};
use posthouse_core::record::Pending;
use posthouse_core::schedule::State;
use posthouse_core::{GroupId, PartitionId, Position, ShardId, ShardMs, UnixMs};
use posthouse_frame::BodyRef;
use posthouse_log::ReadError;
use posthouse_log::local::Durability;

use super::{Broker, Caller, On, bounds};
use crate::problem::Problem;

/// Messages that one look-up by key passes at most before it comes back.
const SEARCH: usize = 200_000;

/// Dead letters that are looked through for a message that is not where it was.
const LETTERS: usize = 10_000;

/// A partition, as users see it.
#[derive(Clone, Debug)]
pub struct PartitionStats {
    /// Counted from 0.
    pub index: u32,
    /// Its shard.
    pub shard: ShardId,
    /// What is in it.
    pub info: PartitionInfo,
}

/// A group on a partition, as users see it.
#[derive(Clone, Debug)]
pub struct PairStats {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, counted from 0.
    pub partition: u32,
    /// How far the group is.
    pub info: PairInfo,
    /// When the oldest message came in that is not done.
    pub oldest_at: Option<UnixMs>,
}

/// A consumer of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerStats {
    /// Its name.
    pub name: String,
    /// Messages that it has.
    pub held: u64,
}

/// A group, as users see it.
#[derive(Clone, Debug)]
pub struct GroupStats {
    /// Its partitions.
    pub pairs: Vec<PairStats>,
    /// Its consumers.
    pub consumers: Vec<ConsumerStats>,
    /// Its dead letters.
    pub dead_letters: u64,
}

impl GroupStats {
    /// Adds something up over all partitions.
    pub fn sum(&self, of: impl Fn(&PairInfo) -> u64) -> u64 {
        self.pairs.iter().map(|pair| of(&pair.info)).sum()
    }
}

/// A message that was looked at.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its id.
    pub id: MessageId,
    /// Its topic.
    pub topic: Arc<Topic>,
    /// The partition there, counted from 0.
    pub partition: u32,
    /// The shard that has it.
    pub shard: ShardId,
    /// What the index knows.
    pub found: Found,
    content: Bytes,
}

impl Seen {
    /// All that the publisher gave, and the body.
    ///
    /// # Errors
    /// If the content cannot be read although its checksum holds.
    pub fn parts(&self) -> Result<(Parts<'_>, Bytes), Problem> {
        message::decode(&self.content).map_err(Problem::unreadable)
    }
}

/// Which messages of a topic to look at.
#[derive(Clone, Debug, Default)]
pub struct Browse {
    /// The partition, counted from 0.
    pub partition: u32,
    /// From this position on.
    pub from: Option<Position>,
    /// From this time on.
    pub since: Option<UnixMs>,
    /// Up to this time.
    pub until: Option<UnixMs>,
    /// Only those with this key.
    pub key: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// What a look over a topic found.
#[derive(Clone, Debug)]
pub struct Browsed {
    /// The messages.
    pub messages: Vec<Seen>,
    /// Where to go on; `None` at the end.
    pub next: Option<Position>,
}

/// What a message is to each group of its topic.
#[derive(Clone, Debug)]
pub struct StateOf {
    /// The group.
    pub group: Arc<str>,
    /// What it is.
    pub state: MessageState,
}

impl Broker {
    fn check_read(&self, caller: &Caller, topic: &str) -> Result<(), Problem> {
        if caller.may(Action::Consume, On::Topic(topic)) {
            return Ok(());
        }
        caller.check(Action::Manage, On::Topic(topic))
    }

    /// The partitions of a topic as they are.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn topic_stats(&self, topic: &Topic) -> Result<Vec<PartitionStats>, Problem> {
        let mut stats = Vec::with_capacity(topic.partitions.len());
        for shard in &self.shards {
            let here: Vec<(u32, PartitionId)> = (0u32..)
                .zip(&topic.partitions)
                .filter(|(_, p)| p.shard == shard.id)
                .map(|(index, p)| (index, p.id))
                .collect();
            if here.is_empty() {
                continue;
            }
            let (id, asked) = (shard.id, here.clone());
            let infos: Vec<PartitionInfo> = self
                .directory
                .look(id, move |view| {
                    Ok(asked.iter().map(|(_, id)| view.shard.partition_info(*id)).collect())
                })
                .await?;
            stats.extend(here.into_iter().zip(infos).map(|((index, _), info)| PartitionStats {
                index,
                shard: id,
                info,
            }));
        }
        stats.sort_by_key(|partition| partition.index);
        Ok(stats)
    }

    /// A group as it is.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn group_stats(&self, group: &Arc<Group>) -> Result<GroupStats, Problem> {
        let window = self.catalog().effective(group).config.window;
        let id = group.id;
        let mut stats = GroupStats { pairs: Vec::new(), consumers: Vec::new(), dead_letters: 0 };
        for shard in &self.shards {
            // What was found before a block was needed is kept: with many partitions there are
            // many blocks, and not room for all of them at once.
            let mut done = Vec::new();
            let (pairs, consumers) = self
                .directory
                .look(shard.id, move |view| {
                    for pair in view.shard.pairs_of(id, window).into_iter().skip(done.len()) {
                        let oldest = view.shard.oldest_open(id, pair.partition, view.chunks)?;
                        done.push((pair, oldest));
                    }
                    let pairs = std::mem::take(&mut done);
                    let consumers: Vec<ConsumerStats> = view
                        .shard
                        .group(id)
                        .map_or(&[][..], |state| state.consumers())
                        .iter()
                        .map(|c| ConsumerStats { name: c.name.to_string(), held: c.held.into() })
                        .collect();
                    Ok((pairs, consumers))
                })
                .await?;
            for consumer in consumers {
                match stats.consumers.iter_mut().find(|known| known.name == consumer.name) {
                    Some(known) => known.held += consumer.held,
                    None => stats.consumers.push(consumer),
                }
            }
            let catalog = self.catalog();
            for (info, oldest_at) in pairs {
                let Some(topic) = catalog.topic(info.topic) else { continue };
                let Some(partition) = topic.index_of(info.partition) else { continue };
                let topic = topic.name.clone();
                stats.pairs.push(PairStats { topic, partition, info, oldest_at });
            }
        }
        stats.pairs.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        stats.consumers.sort_by(|a, b| a.name.cmp(&b.name));
        stats.dead_letters = self.directory.count_letters(group).await?;
        Ok(stats)
    }

    /// How many messages a consumer of a group has. None if there is no such group yet.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn held_by(&self, group: &str, consumer: &str) -> Result<u64, Problem> {
        let Ok(group) = self.group(group) else { return Ok(0) };
        let mut held = 0;
        for shard in &self.shards {
            let (id, name) = (group.id, consumer.to_owned());
            held += self
                .directory
                .look(shard.id, move |view| {
                    let consumers = view.shard.group(id).map_or(&[][..], |g| g.consumers());
                    let known = consumers.iter().find(|consumer| *consumer.name == *name);
                    Ok(known.map_or(0, |consumer| u64::from(consumer.held)))
                })
                .await?;
        }
        Ok(held)
    }

    /// Messages of a topic.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn browse(
        &self,
        caller: &Caller,
        topic: &str,
        browse: &Browse,
    ) -> Result<Browsed, Problem> {
        self.check_read(caller, topic)?;
        let topic = self.topic(topic)?;
        let (partition, shard) = self.partition(&topic, browse.partition)?;
        if !(1..=bounds::PAGE).contains(&browse.limit) {
            let limit = format!("it must be from 1 to {}", bounds::PAGE);
            return Err(Problem::invalid("limit", browse.limit, limit));
        }
        let key = browse.key.as_ref().map(|key| self.secret.hash(key.as_bytes()));
        let (from, since, until) = (browse.from.unwrap_or(0), browse.since, browse.until);
        let limit = browse.limit;
        let (found, next) = self
            .directory
            .look(shard, move |view| {
                let from = match since {
                    Some(time) => from.max(view.shard.position_at(partition, time, view.chunks)?),
                    None => from,
                };
                let mut found: Vec<Found> = Vec::new();
                let mut searched = 0;
                let mut bytes = 0;
                let mut is_past = false;
                let next = view.shard.scan(partition, from, view.chunks, |message| {
                    if until.is_some_and(|until| message.at > until) {
                        is_past = true;
                        return Step::Stop;
                    }
                    searched += 1;
                    if key.is_none_or(|key| key == message.key) {
                        bytes += u64::from(message.body.len);
                        found.push(message.clone());
                    }
                    let enough =
                        found.len() == limit || searched == SEARCH || bytes >= bounds::PAGE_BYTES;
                    if enough { Step::Stop } else { Step::On }
                })?;
                let end = view.shard.partition_info(partition).next;
                Ok((found, (next < end && !is_past).then_some(next)))
            })
            .await?;
        let mut messages = self.see(&topic, browse.partition, shard, found).await?;
        if let Some(key) = &browse.key {
            // Hashes collide, if seldom: the text decides.
            messages.retain(|seen| {
                seen.parts().is_ok_and(|(parts, _)| parts.key == Some(key.as_str()))
            });
        }
        Ok(Browsed { messages, next })
    }

    /// The contents of messages: where each was found, and where its body was then. A body
    /// that has been carried since, and its segment freed, is read where it is now.
    ///
    /// # Errors
    /// If the node is stopping.
    pub(super) async fn contents(
        &self,
        shard: ShardId,
        places: Vec<(PartitionId, Position, BodyRef)>,
    ) -> Result<Vec<Result<Bytes, ReadError>>, Problem> {
        let bodies = &self.shard(shard)?.bodies;
        let mut contents = bodies.read(places.iter().map(|(.., body)| *body).collect()).await;
        let is_gone = |content: &Result<Bytes, _>| matches!(content, Err(ReadError::Gone { .. }));
        let gone: Vec<usize> = (0..contents.len()).filter(|at| is_gone(&contents[*at])).collect();
        if gone.is_empty() {
            return Ok(contents);
        }
        let missing: Vec<_> = gone.iter().map(|at| places[*at]).collect();
        let now: Vec<BodyRef> = self
            .directory
            .look(shard, move |view| {
                let here = missing.iter().map(|(partition, position, before)| {
                    let found = view.shard.message(*partition, *position, view.chunks)?;
                    Ok(found.map_or(*before, |found| found.body))
                });
                here.collect()
            })
            .await?;
        for (at, content) in gone.into_iter().zip(bodies.read(now).await) {
            contents[at] = content;
        }
        Ok(contents)
    }

    /// Fetches the contents of what was found in a partition.
    pub(super) async fn see(
        &self,
        topic: &Arc<Topic>,
        partition: u32,
        shard: ShardId,
        found: Vec<Found>,
    ) -> Result<Vec<Seen>, Problem> {
        let (partition_id, _) = self.partition(topic, partition)?;
        let places = found.iter().map(|found| (partition_id, found.position, found.body));
        let contents = self.contents(shard, places.collect()).await?;
        found
            .into_iter()
            .zip(contents)
            .map(|(found, content)| {
                Ok(Seen {
                    id: self.id_at(shard, partition_id, &found),
                    topic: topic.clone(),
                    partition,
                    shard,
                    found,
                    content: content.map_err(Problem::unreadable)?,
                })
            })
            .collect()
    }

    /// A message by its id, and what it is to each group. If it is not where it was
    /// published any more, it may be a dead letter of a group.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn message(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<(Seen, Vec<StateOf>), Problem> {
        let id: MessageId = id.parse()?;
        let parts = id.open(&self.secret)?;
        let topic = self.catalog().topic_of(parts.partition).cloned();
        let topic = topic.ok_or_else(|| Problem::no_message(&id.to_string()))?;
        self.check_read(caller, &topic.name)?;
        let (partition, position, shard) = (parts.partition, parts.number, parts.shard);
        let found = match parts.kind {
            IdKind::Stored => {
                self.directory
                    .look(shard, move |view| view.shard.message(partition, position, view.chunks))
                    .await?
            }
            IdKind::Scheduled => {
                let of = Pending { partition, seq: parts.number };
                self.directory
                    .look(shard, move |view| match view.shard.later_state(of) {
                        State::Fired(at) => view.shard.message(partition, at, view.chunks),
                        _ => Ok(None),
                    })
                    .await?
            }
            IdKind::Transaction => None,
        };
        let position = found.as_ref().map_or(position, |found| found.position);
        let Some(found) = found else {
            return match self.letter_of(&topic, id).await? {
                Some(seen) => Ok((seen, Vec::new())),
                None => Err(Problem::no_message(&id.to_string())),
            };
        };
        let index = topic.index_of(partition).unwrap_or_default();
        let seen = self.see(&topic, index, shard, vec![found]).await?.remove(0);
        let states: Vec<(GroupId, MessageState)> = self
            .directory
            .look(shard, move |view| {
                let groups = view.shard.groups_on(partition);
                let state = |group| view.shard.state_for(group, partition, position);
                Ok(groups.into_iter().filter_map(|g| Some((g, state(g)?))).collect())
            })
            .await?;
        let catalog = self.catalog();
        let states = states
            .into_iter()
            .filter_map(|(group, state)| {
                Some(StateOf { group: catalog.group(group)?.name.clone(), state })
            })
            .collect();
        Ok((seen, states))
    }

    /// A message among the dead letters of the groups of its topic.
    async fn letter_of(&self, topic: &Topic, id: MessageId) -> Result<Option<Seen>, Problem> {
        let dead: Vec<Arc<Topic>> = {
            let catalog = self.catalog();
            let groups = catalog.groups_of(topic);
            groups.iter().filter_map(|group| self.dead_topic(catalog.group(*group)?)).collect()
        };
        for topic in dead {
            for (index, partition) in (0u32..).zip(&topic.partitions) {
                let of = partition.id;
                let found = self
                    .directory
                    .look(partition.shard, move |view| {
                        let letters = view.shard.letters(of, 0, LETTERS, view.chunks)?;
                        Ok(letters.into_iter().find(|letter| letter.id == OwnId::Other(id)))
                    })
                    .await?;
                if let Some(found) = found {
                    let shard = partition.shard;
                    return Ok(Some(self.see(&topic, index, shard, vec![found]).await?.remove(0)));
                }
            }
        }
        Ok(None)
    }

    /// How long until a time on a shard's lease clock, in milliseconds.
    pub async fn lease_left(&self, shard: ShardId, until: ShardMs) -> Result<u64, Problem> {
        self.directory.look(shard, move |view| Ok(until.0.saturating_sub(view.now.lease.0))).await
    }

    /// What the node is, and how it is.
    pub fn node(&self) -> NodeInfo {
        let (topics, groups, users) = self.catalog().counts();
        NodeInfo {
            version: env!("CARGO_PKG_VERSION"),
            store: self.info.store.clone(),
            shards: self.info.shards,
            uptime: self.uptime(),
            durability: match self.options.durability {
                Durability::Sync => "sync",
                Durability::Interval(_) => "interval",
                Durability::Os => "os",
            },
            topics: topics as u64,
            groups: groups as u64,
            users: users as u64,
            auto_create: self.auto_creates(),
            disk_free_bytes: self.space.available(),
            disk_full: self.space.is_full(),
        }
    }
}

/// A node, as users see it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The release.
    pub version: &'static str,
    /// What the store is named by.
    pub store: String,
    /// How many shards it has.
    pub shards: u16,
    /// How long it has run.
    pub uptime: Duration,
    /// When a message counts as durable: `sync`, `interval` or `os`.
    pub durability: &'static str,
    /// Topics, those of the system too.
    pub topics: u64,
    /// Groups.
    pub groups: u64,
    /// Users.
    pub users: u64,
    /// Whether topics and groups are made on first use.
    pub auto_create: bool,
    /// Room on the disk.
    pub disk_free_bytes: u64,
    /// Whether publishes are refused for want of room.
    pub disk_full: bool,
}
