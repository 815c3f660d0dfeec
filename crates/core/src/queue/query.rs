//! Reads. They change nothing; what they answer may leave when everything that was
//! applied before is durable.

use super::window::State;
use super::{Pair, Shard};
use crate::chunk::{Chunks, Miss};
use crate::index::{Found, Step};
use crate::words::{Fence, GroupId, PartitionId, Position, ShardMs, TopicId, UnixMs};

/// A partition, as users see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its topic.
    pub topic: TopicId,
    /// The first message.
    pub head: Position,
    /// The position of the next message.
    pub next: Position,
    /// Bytes of sealed bodies.
    pub bytes: u64,
    /// No message came in earlier.
    pub head_at: UnixMs,
    /// Messages that are scheduled for it.
    pub scheduled: u64,
}

/// A group on a partition, as users see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairInfo {
    /// The partition.
    pub partition: PartitionId,
    /// Its topic.
    pub topic: TopicId,
    /// Everything below is done.
    pub floor: Position,
    /// Nothing from here on has been looked at.
    pub next: Position,
    /// The end of the partition.
    pub end: Position,
    /// Messages that are not done.
    pub lag: u64,
    /// Messages that somebody has.
    pub in_flight: u64,
    /// Messages that wait for a retry, or for an earlier one of their key.
    pub waiting: u64,
    /// Messages that retention took before the group was done with them.
    pub dropped: u64,
    /// Whether the group may not go on before its oldest message is done.
    pub window_full: bool,
}

/// What a message is to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// Not looked at yet.
    Ahead,
    /// A consumer has it.
    InFlight {
        /// Who.
        consumer: String,
        /// Which attempt.
        attempt: u16,
        /// The grant.
        fence: Fence,
        /// Until when, on the lease clock.
        until: ShardMs,
    },
    /// It waits for its next attempt; if there was none, to be buried.
    Waiting {
        /// How many attempts there were.
        attempts: u16,
        /// Until when, on the lease clock.
        until: ShardMs,
        /// What the last nack said.
        reason: String,
    },
    /// It waits for an earlier message of its key.
    Chained,
    /// The group is done with it.
    Done,
}

impl Shard {
    /// A partition as it is.
    pub fn partition_info(&self, id: PartitionId) -> PartitionInfo {
        self.partition(id).map_or(PartitionInfo::default(), |row| PartitionInfo {
            topic: row.topic,
            head: row.head,
            next: row.next,
            bytes: row.bytes,
            head_at: row.head_at,
            scheduled: row.pending,
        })
    }

    /// All partitions here, with how each is.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, PartitionInfo)> + '_ {
        self.partitions
            .iter()
            .filter(|(_, row)| !row.dropped)
            .map(|(id, _)| (PartitionId(id), self.partition_info(PartitionId(id))))
    }

    /// The groups on a partition.
    pub fn groups_on(&self, id: PartitionId) -> Vec<GroupId> {
        let pairs = self.partition(id).map_or(&[][..], |row| &row.pairs);
        pairs.iter().filter_map(|number| self.pairs.get(*number)).map(|pair| pair.group).collect()
    }

    /// Everything that groups are attached to here.
    pub fn attachments(&self) -> impl Iterator<Item = (GroupId, PartitionId)> + '_ {
        self.pairs.iter().map(|(_, pair)| (pair.group, pair.partition))
    }

    /// A group on each of its partitions here.
    pub fn pairs_of(&self, group: GroupId, window: u32) -> Vec<PairInfo> {
        let pairs = self.group(group).map_or(&[][..], |group| &group.pairs);
        pairs.iter().filter_map(|n| self.pairs.get(*n)).map(|p| self.pair_info(p, window)).collect()
    }

    fn pair_info(&self, pair: &Pair, window: u32) -> PairInfo {
        let row = self.partition(pair.partition);
        let end = row.map_or(0, |row| row.next);
        PairInfo {
            partition: pair.partition,
            topic: row.map_or(TopicId(0), |row| row.topic),
            floor: pair.floor,
            next: pair.next,
            end,
            lag: pair.lag(end),
            in_flight: pair.in_flight.into(),
            waiting: pair.waiting.into(),
            dropped: pair.dropped,
            window_full: pair.next >= pair.floor.saturating_add(window.into()) && pair.next < end,
        }
    }

    /// Messages of a partition from a position on, without effect on anyone.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory.
    pub fn browse(
        &self,
        id: PartitionId,
        from: Position,
        limit: usize,
        chunks: &impl Chunks,
    ) -> Result<Vec<Found>, Miss> {
        let mut found = Vec::new();
        self.scan(id, from, chunks, |message| {
            if found.len() < limit {
                found.push(message.clone());
            }
            if found.len() < limit { Step::On } else { Step::Stop }
        })?;
        Ok(found)
    }

    /// Calls `each` for messages from a position on. Returns where it stopped.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory.
    pub fn scan(
        &self,
        id: PartitionId,
        from: Position,
        chunks: &impl Chunks,
        each: impl FnMut(&Found) -> Step,
    ) -> Result<Position, Miss> {
        let Some(row) = self.partition(id) else { return Ok(from) };
        let from = from.max(row.head);
        if from >= row.next {
            return Ok(row.next);
        }
        self.index.walk(chunks, id, row.chain, from..row.next, each)
    }

    /// The message at a position.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory.
    pub fn message(
        &self,
        id: PartitionId,
        position: Position,
        chunks: &impl Chunks,
    ) -> Result<Option<Found>, Miss> {
        let Some(row) = self.partition(id) else { return Ok(None) };
        if !(row.head..row.next).contains(&position) {
            return Ok(None);
        }
        self.index.get(chunks, id, row.chain, position)
    }

    /// The first position at a time or later.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory.
    pub fn position_at(
        &self,
        id: PartitionId,
        time: UnixMs,
        chunks: &impl Chunks,
    ) -> Result<Position, Miss> {
        let Some(row) = self.partition(id) else { return Ok(0) };
        self.index.first_at(chunks, id, row.chain, row.head..row.next, time)
    }

    /// What a message is to a group; `None` if the group does not have the partition.
    pub fn state_for(
        &self,
        group: GroupId,
        id: PartitionId,
        position: Position,
    ) -> Option<MessageState> {
        let pair = self.pair(group, id)?;
        if position < pair.floor {
            return Some(MessageState::Done);
        }
        Some(match pair.windows.state(position) {
            State::Done => MessageState::Done,
            State::Free => MessageState::Ahead,
            State::Used(slot) if slot.is_chained() && pair.windows.key(position) != 0 => {
                MessageState::Chained
            }
            State::Used(slot) if slot.is_held() => MessageState::InFlight {
                consumer: self
                    .group(group)
                    .and_then(|state| state.consumer(slot.consumer()))
                    .map_or(String::new(), |consumer| consumer.name.to_string()),
                attempt: slot.attempt(),
                fence: slot.fence(),
                until: slot.visible_at(),
            },
            State::Used(slot) => MessageState::Waiting {
                attempts: slot.attempt(),
                until: slot.visible_at(),
                reason: pair.windows.reason(position).unwrap_or_default().to_owned(),
            },
        })
    }

    /// When the oldest message came in that a group is not done with on a partition;
    /// `None` if there is none.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory.
    pub fn oldest_open(
        &self,
        group: GroupId,
        id: PartitionId,
        chunks: &impl Chunks,
    ) -> Result<Option<UnixMs>, Miss> {
        let Some(pair) = self.pair(group, id) else { return Ok(None) };
        Ok(self.message(id, pair.floor, chunks)?.map(|found| found.at))
    }

    /// Dead letters that are there, from a position on: neither redriven nor purged.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed that is not in memory.
    pub fn letters(
        &self,
        id: PartitionId,
        from: Position,
        limit: usize,
        chunks: &impl Chunks,
    ) -> Result<Vec<Found>, Miss> {
        let mut letters = Vec::new();
        let floor = self.pair(GroupId::OPERATOR, id).map_or(0, |pair| pair.floor);
        self.scan(id, from.max(floor), chunks, |found| {
            if letters.len() < limit && self.is_letter(id, found.position) {
                letters.push(found.clone());
            }
            if letters.len() < limit { Step::On } else { Step::Stop }
        })?;
        Ok(letters)
    }

    /// How many dead letters are there: neither redriven nor purged.
    pub fn count_letters(&self, id: PartitionId) -> u64 {
        match (self.partition(id), self.pair(GroupId::OPERATOR, id)) {
            (Some(row), Some(pair)) => pair.lag(row.next),
            _ => 0,
        }
    }
}
