//! Dead letters: reading them, giving them another chance, letting them go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_core::catalog::{Action, Group, Topic};
use posthouse_core::ident::MessageId;
use posthouse_core::index::OwnId;
use posthouse_core::message;
use posthouse_core::queue::Command;
use posthouse_core::queue::command::Reply;
use posthouse_core::{Position, ShardId};

use super::inspect::Seen;
use super::{Broker, Caller, On, bounds};
use crate::problem::Problem;
use crate::shard::attend::copy;

/// The most letters that one redrive moves before it comes back.
const REDRIVE: usize = 10_000;

/// How long one redrive with a rate takes before it comes back.
const REDRIVE_FOR: Duration = Duration::from_secs(20);

/// Letters that are read together.
const BATCH: usize = 100;

/// Letters are moved together until they have so many bytes; one more may come on top.
const MOVE_BYTES: u32 = 256 << 10;

/// Which dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// Those with these message ids.
    Ids(Vec<MessageId>),
}

impl Which {
    fn has(&self, id: &MessageId) -> bool {
        match self {
            Which::All => true,
            Which::Ids(ids) => ids.contains(id),
        }
    }
}

/// A page of dead letters.
#[derive(Clone, Debug)]
pub struct Letters {
    /// The letters: messages with an origin.
    pub letters: Vec<Seen>,
    /// Where to go on, if there are more.
    pub next: Option<LetterCursor>,
}

/// A place among the dead letters of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LetterCursor {
    /// The partition of the dead-letter topic, counted from 0.
    pub partition: u32,
    /// The position there.
    pub position: Position,
}

impl std::fmt::Display for LetterCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.partition, self.position)
    }
}

impl std::str::FromStr for LetterCursor {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let parsed = text.split_once('-').and_then(|(partition, position)| {
            Some(LetterCursor {
                partition: partition.parse().ok()?,
                position: position.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| Problem::invalid("after", text, "the `next` of the page before"))
    }
}

/// What a redrive did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redriven {
    /// Letters that got another chance.
    pub redriven: u64,
    /// Letters that are left.
    pub left: u64,
}

impl Broker {
    fn group_with_letters(&self, caller: &Caller, name: &str) -> Result<Arc<Group>, Problem> {
        if !caller.may(Action::Consume, On::Group(name)) {
            caller.check(Action::Manage, On::Group(name))?;
        }
        self.group(name)
    }

    /// A page of the dead letters of a group, oldest first.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn letters(
        &self,
        caller: &Caller,
        group: &str,
        from: LetterCursor,
        limit: usize,
    ) -> Result<Letters, Problem> {
        let group = self.group_with_letters(caller, group)?;
        if !(1..=bounds::PAGE).contains(&limit) {
            let most = bounds::PAGE;
            return Err(Problem::invalid("limit", limit, format!("it must be from 1 to {most}")));
        }
        let mut page = Letters { letters: Vec::new(), next: None };
        let Some(topic) = self.dead_topic(&group) else { return Ok(page) };
        let mut bytes = 0;
        for (index, partition) in (0u32..).zip(&topic.partitions).skip(from.partition as usize) {
            let start = if index == from.partition { from.position } else { 0 };
            let (id, wanted) = (partition.id, limit - page.letters.len() + 1);
            let mut found = self
                .directory
                .look(partition.shard, move |view| {
                    view.shard.letters(id, start, wanted, view.chunks)
                })
                .await?;
            let fits = found.iter().take_while(|letter| {
                let fits = bytes < bounds::PAGE_BYTES;
                bytes += u64::from(letter.body.len);
                fits
            });
            let fits = fits.count().min(wanted - 1);
            if let Some(next) = found.get(fits) {
                page.next = Some(LetterCursor { partition: index, position: next.position });
                found.truncate(fits);
            }
            page.letters.extend(self.see(&topic, index, partition.shard, found).await?);
            if page.next.is_some() {
                break;
            }
        }
        Ok(page)
    }

    /// Gives dead letters of a group another chance: the group gets them again, with
    /// their attempts counted anew; other groups do not. With a rate, at most so many a
    /// second. Comes back after a while even if there are more; ask again then.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn redrive(
        &self,
        caller: &Caller,
        group: &str,
        which: &Which,
        rate: Option<u32>,
    ) -> Result<Redriven, Problem> {
        caller.check(Action::Manage, On::Group(group))?;
        if rate == Some(0) {
            return Err(Problem::invalid("rate", 0, "it must be 1 or more a second"));
        }
        let group = self.group(group)?;
        let mut redriven = 0;
        if let Some(topic) = self.dead_topic(&group) {
            let began = Instant::now();
            let limit = match which {
                Which::All => REDRIVE,
                Which::Ids(ids) => ids.len(),
            };
            let mut from = LetterCursor::default();
            while redriven < limit as u64 {
                let step = rate.map_or(BATCH, |rate| BATCH.min(rate as usize));
                let page = self.letters(&Caller::Node, &group.name, from, step).await?;
                redriven += self.redrive_page(&group, &topic, &page, which).await?;
                match page.next {
                    Some(next) if began.elapsed() < REDRIVE_FOR => from = next,
                    _ => break,
                }
                if let Some(rate) = rate {
                    let earliest = Duration::from_secs_f64(redriven as f64 / f64::from(rate));
                    tokio::time::sleep_until((began + earliest).into()).await;
                }
            }
        }
        Ok(Redriven { redriven, left: self.directory.count_letters(&group).await? })
    }

    async fn redrive_page(
        &self,
        group: &Group,
        topic: &Topic,
        page: &Letters,
        which: &Which,
    ) -> Result<u64, Problem> {
        let retries = self.directory.retries(group.id).await?;
        let mut count = 0;
        for (index, partition) in (0u32..).zip(&topic.partitions) {
            let mut wanted = Vec::new();
            for seen in &page.letters {
                if seen.partition == index && which.has(&seen.id) {
                    wanted.push(seen);
                }
            }
            let to = retries.partitions.iter().find(|p| p.shard == partition.shard);
            let Some(to) = to else { continue };
            let mut wanted = wanted.as_slice();
            while !wanted.is_empty() {
                let (mut letters, mut bytes) = (Vec::new(), 0);
                while let [seen, rest @ ..] = wanted
                    && bytes < MOVE_BYTES
                {
                    let (parts, payload) = seen.parts()?;
                    let (key, tags) = (seen.found.key, seen.found.tags.clone());
                    bytes += seen.found.body.len;
                    letters.push((seen.found.position, copy(&parts, &payload, key, tags)));
                    wanted = rest;
                }
                let to = (group.id, to.id, retries.id);
                let command = Command::Redrive { from: partition.id, to, letters };
                let reply = self.directory.command(partition.shard, command).await?;
                if let Reply::Count(some) = reply {
                    count += some;
                }
            }
        }
        Ok(count)
    }

    /// Lets dead letters of a group go. Returns how many there were.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn purge_letters(
        &self,
        caller: &Caller,
        group: &str,
        which: &Which,
    ) -> Result<u64, Problem> {
        caller.check(Action::Manage, On::Group(group))?;
        let group = self.group(group)?;
        let Some(topic) = self.dead_topic(&group) else { return Ok(0) };
        let mut count = 0;
        for partition in &topic.partitions {
            let positions = match which {
                Which::All => None,
                Which::Ids(ids) => Some(self.letter_positions(partition.shard, &topic, ids).await?),
            };
            let command = Command::PurgeDead { from: partition.id, positions };
            if let Reply::Count(some) = self.directory.command(partition.shard, command).await? {
                count += some;
            }
        }
        Ok(count)
    }

    /// Where the letters with these ids are, in the partition that `shard` has.
    async fn letter_positions(
        &self,
        shard: ShardId,
        topic: &Topic,
        ids: &[MessageId],
    ) -> Result<Vec<Position>, Problem> {
        let Some(partition) = topic.partitions.iter().find(|p| p.shard == shard) else {
            return Ok(Vec::new());
        };
        let (of, ids) = (partition.id, ids.iter().copied().collect::<BTreeSet<_>>());
        self.directory
            .look(shard, move |view| {
                let letters = view.shard.letters(of, 0, usize::MAX, view.chunks)?;
                let wanted = |letter: &&posthouse_core::index::Found| {
                    matches!(letter.id, OwnId::Other(id) if ids.contains(&id))
                };
                Ok(letters.iter().filter(wanted).map(|letter| letter.position).collect())
            })
            .await
    }
}

/// What a letter says of the life it had.
///
/// # Errors
/// If it cannot be read although its checksum holds.
pub fn origin<'a>(parts: &'a message::Parts<'_>) -> Result<&'a message::Origin<'a>, Problem> {
    parts.origin.as_ref().ok_or_else(|| Problem::internal("a dead letter has no origin"))
}
