//! Dead letters: reading them, giving them another chance, letting them go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use posthouse_core::catalog::{Action, DeadLetter, Group, Topic};
use posthouse_core::ident::{MessageId, Receipt};
use posthouse_core::index::OwnId;
use posthouse_core::message::{self, DeadReason};
use posthouse_core::queue::command::{Burial, Reply};
use posthouse_core::queue::{Command, MessageState};
use posthouse_core::{Position, ShardId};
use tokio::time::Instant;

use super::consume::{Outcome, Verdict};
use super::inspect::Seen;
use super::{Broker, Caller, On, bounds};
use crate::problem::Problem;
use crate::shard::attend::{copy, letter};

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
        parsed.ok_or_else(|| Problem::bad_cursor(text))
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

    /// Puts a message that a consumer of a group has to the dead letters now, whatever
    /// attempts it has left; drops it if that is what follows the group's last attempt.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn give_up(
        &self,
        caller: &Caller,
        name: &str,
        receipt: &str,
    ) -> Result<Outcome, Problem> {
        caller.check(Action::Consume, On::Group(name))?;
        let group = self.group(name)?;
        let (shard, held) = match self.open_receipt(&group, receipt) {
            Ok(opened) => opened,
            Err(problem) => return Ok(Outcome::Invalid(problem)),
        };
        if self.catalog().effective(&group).config.dead_letter == DeadLetter::Drop {
            let item = vec![(receipt.to_owned(), Verdict::Ack)];
            let outcome = self.settle(caller, name, item).await?.pop();
            return outcome.ok_or_else(|| Problem::internal("a receipt had no result"));
        }
        let (of, partition, position) = (held.group, held.partition, held.position);
        let stale = |text: &str| Ok(Outcome::Stale(text.into()));
        let look = self.directory.look(shard, move |view| {
            let state = view.shard.state_for(of, partition, position);
            Ok((view.shard.message(partition, position, view.chunks)?, state))
        });
        let (found, state) = look.await?;
        if matches!(state, Some(MessageState::Done)) {
            return Ok(Outcome::Already);
        }
        let Some(found) = found else { return stale("the message has been removed") };
        let burial = Burial {
            group: of,
            partition,
            found,
            fence: held.fence,
            attempts: Receipt::open(receipt, &self.secret)?.attempt,
            reason: DeadReason::Asked,
            error: String::new(),
        };
        let dead = self.directory.dead_letters(of).await?;
        let to = dead.partitions.iter().find(|partition| partition.shard == shard);
        let to = to.ok_or_else(|| Problem::internal("no dead-letter partition in the shard"))?;
        let place = (partition, position, burial.found.body);
        let content = self.contents(shard, vec![place]).await?.remove(0);
        let content = content.map_err(Problem::unreadable)?;
        let copy = letter(&self.catalog(), &burial, &content, self.now())?;
        let command = Command::Bury { burial, to: (to.id, dead.id), copy };
        match self.directory.command(shard, command).await {
            Ok(_) => Ok(Outcome::Ok),
            Err(problem) if problem.code == "gone" => {
                stale("another attempt has followed, or the message was given back")
            }
            Err(problem) => Err(problem),
        }
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
        let redriven = match (self.dead_topic(&group), which) {
            (None, _) => 0,
            (Some(topic), Which::All) => self.redrive_all(&group, &topic, rate).await?,
            (Some(topic), Which::Ids(ids)) => self.redrive_ids(&group, &topic, ids, rate).await?,
        };
        Ok(Redriven { redriven, left: self.directory.count_letters(&group).await? })
    }

    async fn redrive_all(
        &self,
        group: &Group,
        topic: &Topic,
        rate: Option<u32>,
    ) -> Result<u64, Problem> {
        let pace = Pace::new(rate);
        let (mut redriven, mut from) = (0, LetterCursor::default());
        while redriven < REDRIVE as u64 {
            let page = self.letters(&Caller::Node, &group.name, from, pace.step()).await?;
            redriven += self.redrive_some(group, topic, &page.letters).await?;
            match page.next {
                Some(next) if !pace.is_over() => from = next,
                _ => break,
            }
            pace.keep(redriven).await;
        }
        Ok(redriven)
    }

    /// Looks in the index for letters with these ids, and reads no others.
    async fn redrive_ids(
        &self,
        group: &Group,
        topic: &Arc<Topic>,
        ids: &[MessageId],
        rate: Option<u32>,
    ) -> Result<u64, Problem> {
        let pace = Pace::new(rate);
        let mut redriven = 0;
        for (index, at) in (0u32..).zip(&topic.partitions) {
            let positions = self.letter_positions(at.shard, topic, ids).await?;
            for some in positions.chunks(pace.step()) {
                let (id, wanted) = (at.id, some.to_vec());
                let found = self
                    .directory
                    .look(at.shard, move |view| {
                        let mut found = Vec::new();
                        for position in wanted.iter().filter(|p| view.shard.is_letter(id, **p)) {
                            found.extend(view.shard.message(id, *position, view.chunks)?);
                        }
                        Ok(found)
                    })
                    .await?;
                let letters = self.see(topic, index, at.shard, found).await?;
                redriven += self.redrive_some(group, topic, &letters).await?;
                if pace.is_over() {
                    return Ok(redriven);
                }
                pace.keep(redriven).await;
            }
        }
        Ok(redriven)
    }

    async fn redrive_some(
        &self,
        group: &Group,
        topic: &Topic,
        letters: &[Seen],
    ) -> Result<u64, Problem> {
        let retries = self.directory.retries(group.id).await?;
        let mut count = 0;
        for (index, partition) in (0u32..).zip(&topic.partitions) {
            let wanted: Vec<&Seen> =
                letters.iter().filter(|seen| seen.partition == index).collect();
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
        let (of, ids) = (partition.id, Arc::new(ids.iter().copied().collect::<BTreeSet<_>>()));
        let (mut positions, mut from) = (Vec::new(), 0);
        // A page at a time: nobody else waits for a walk through all of them.
        while positions.len() < ids.len() {
            let wanted = ids.clone();
            let page = self.directory.look(shard, move |view| {
                let letters = view.shard.letters(of, from, bounds::PAGE, view.chunks)?;
                let next = letters.last().map(|letter| letter.position + 1);
                let wanted = |letter: &&posthouse_core::index::Found| {
                    matches!(letter.id, OwnId::Other(id) if wanted.contains(&id))
                };
                let found = letters.iter().filter(wanted).map(|letter| letter.position);
                Ok((found.collect::<Vec<_>>(), next))
            });
            let (found, next) = page.await?;
            positions.extend(found);
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(positions)
    }
}

/// How fast letters are redriven, and for how long.
struct Pace {
    began: Instant,
    rate: Option<u32>,
}

impl Pace {
    fn new(rate: Option<u32>) -> Pace {
        Pace { began: Instant::now(), rate }
    }

    /// How many go together.
    fn step(&self) -> usize {
        self.rate.map_or(BATCH, |rate| BATCH.min(rate as usize))
    }

    fn is_over(&self) -> bool {
        self.began.elapsed() >= REDRIVE_FOR
    }

    /// Waits until so many may have been redriven.
    async fn keep(&self, redriven: u64) {
        if let Some(rate) = self.rate {
            let earliest = Duration::from_secs_f64(redriven as f64 / f64::from(rate));
            tokio::time::sleep_until(self.began + earliest).await;
        }
    }
}

/// What a letter says of the life it had.
///
/// # Errors
/// If it cannot be read although its checksum holds.
pub fn origin<'a>(parts: &'a message::Parts<'_>) -> Result<&'a message::Origin<'a>, Problem> {
    parts.origin.as_ref().ok_or_else(|| Problem::internal("a dead letter has no origin"))
}
