//! The durable form of the catalog's rows, in records and in pages.

use std::sync::Arc;

use posthouse_frame::varint::{self, Cursor, Malformed};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Assigned, Change, Group, GroupConfig, Lifecycle, Recurring, Role, Topic, TopicConfig, User,
    UserConfig,
};
use crate::page::{Mark, PageId, Pager, Row, TableId};
use crate::words::{GroupId, PartitionId, ShardId, TopicId, UnixMs};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicRow {
    id: TopicId,
    name: Arc<str>,
    #[serde(default, skip_serializing_if = "is_default")]
    role: Role,
    #[serde(default, skip_serializing_if = "is_default")]
    state: Lifecycle,
    created_at: UnixMs,
    #[serde(default, skip_serializing_if = "is_default")]
    config: TopicConfig,
    partitions: Vec<(PartitionId, ShardId)>,
    /// When partitions were added after the topic was made: each time, and from which on.
    #[serde(default, skip_serializing_if = "is_default")]
    added: Vec<(u32, UnixMs)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupRow {
    id: GroupId,
    name: Arc<str>,
    #[serde(default, skip_serializing_if = "is_default")]
    state: Lifecycle,
    created_at: UnixMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<GroupId>,
    config: GroupConfig,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserRow {
    id: u32,
    name: Arc<str>,
    created_at: UnixMs,
    config: UserConfig,
}

/// Something that is stored as JSON.
pub(super) trait Stored: Sized {
    fn to_json(&self) -> Vec<u8>;
    fn from_json(json: &[u8]) -> Result<Self, Malformed>;
}

fn to_json(row: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows have nothing that JSON has not")
}

fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(json).map_err(|e| Malformed { at: e.column() })
}

fn added(partitions: &[Assigned]) -> Vec<(u32, UnixMs)> {
    let mut added = Vec::new();
    let mut last = UnixMs(0);
    for (index, partition) in (0u32..).zip(partitions) {
        if partition.added_at != last {
            last = partition.added_at;
            added.push((index, last));
        }
    }
    added
}

impl Stored for Arc<Topic> {
    fn to_json(&self) -> Vec<u8> {
        to_json(&TopicRow {
            id: self.id,
            name: self.name.clone(),
            role: self.role,
            state: self.state,
            created_at: self.created_at,
            config: self.config.clone(),
            partitions: self.partitions.iter().map(|p| (p.id, p.shard)).collect(),
            added: added(&self.partitions),
        })
    }

    fn from_json(json: &[u8]) -> Result<Self, Malformed> {
        let row: TopicRow = from_json(json)?;
        let added_at = |index: u32| {
            let at = row.added.iter().rev().find(|(from, _)| *from <= index);
            at.map_or(UnixMs(0), |(_, at)| *at)
        };
        Ok(Arc::new(Topic {
            id: row.id,
            name: row.name,
            role: row.role,
            state: row.state,
            created_at: row.created_at,
            config: row.config,
            partitions: (0u32..)
                .zip(&row.partitions)
                .map(|(index, (id, shard))| Assigned {
                    id: *id,
                    shard: *shard,
                    added_at: added_at(index),
                })
                .collect(),
        }))
    }
}

impl Stored for Arc<Group> {
    fn to_json(&self) -> Vec<u8> {
        to_json(&GroupRow {
            id: self.id,
            name: self.name.clone(),
            state: self.state,
            created_at: self.created_at,
            parent: self.parent,
            config: self.config.clone(),
        })
    }

    fn from_json(json: &[u8]) -> Result<Self, Malformed> {
        let row: GroupRow = from_json(json)?;
        Ok(Arc::new(Group {
            id: row.id,
            name: row.name,
            state: row.state,
            created_at: row.created_at,
            parent: row.parent,
            config: row.config,
            subscriptions: std::sync::OnceLock::new(),
        }))
    }
}

impl Stored for Arc<User> {
    fn to_json(&self) -> Vec<u8> {
        to_json(&UserRow {
            id: self.id,
            name: self.name.clone(),
            created_at: self.created_at,
            config: self.config.clone(),
        })
    }

    fn from_json(json: &[u8]) -> Result<Self, Malformed> {
        let row: UserRow = from_json(json)?;
        Ok(Arc::new(User {
            id: row.id,
            name: row.name,
            created_at: row.created_at,
            config: row.config,
        }))
    }
}

impl Stored for Arc<Recurring> {
    fn to_json(&self) -> Vec<u8> {
        to_json(&**self)
    }

    fn from_json(json: &[u8]) -> Result<Self, Malformed> {
        from_json(json).map(Arc::new)
    }
}

macro_rules! stored_row {
    ($type:ty, $table:expr) => {
        impl Row for $type {
            const TABLE: TableId = $table;
            const PER_PAGE: usize = 16;

            fn encode(&self, out: &mut Vec<u8>) {
                varint::put_bytes(out, &self.to_json());
            }

            fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
                Self::from_json(c.bytes()?)
            }
        }
    };
}

stored_row!(Arc<Topic>, TableId::Topics);
stored_row!(Arc<Group>, TableId::GroupConfigs);
stored_row!(Arc<User>, TableId::Users);
stored_row!(Arc<Recurring>, TableId::Recurring);

/// The numbers that are given next. None is ever given twice, whatever is deleted.
#[derive(Debug)]
pub(super) struct Counters {
    mark: Mark,
    pub(super) topic: u32,
    pub(super) group: u32,
    pub(super) user: u32,
    pub(super) partition: u32,
    pub(super) recurring: u32,
}

impl Default for Counters {
    fn default() -> Self {
        // Group 0 is the operator, topic 0 stands for none.
        let mark = Mark::default();
        Counters { mark, topic: 1, group: 1, user: 1, partition: 1, recurring: 1 }
    }
}

const PAGE: PageId = PageId { table: TableId::Globals, owner: 0, number: 0 };

impl Counters {
    /// The last value came later: as long as it is what it begins with, it is left out.
    fn encode(values: [u32; 5], out: &mut Vec<u8>) {
        let count = if values[4] == 1 { 4 } else { 5 };
        for value in values.into_iter().take(count) {
            varint::put(out, value.into());
        }
    }

    fn values(&self) -> [u32; 5] {
        [self.topic, self.group, self.user, self.partition, self.recurring]
    }

    pub(super) fn see(&mut self, pager: &mut Pager, change: &Change) {
        let mut next = self.values();
        match change {
            Change::Topic(topic) => {
                next[0] = next[0].max(topic.id.0 + 1);
                for partition in &topic.partitions {
                    next[3] = next[3].max(partition.id.0 + 1);
                }
            }
            Change::Group(group) => next[1] = next[1].max(group.id.0 + 1),
            Change::User(user) => next[2] = next[2].max(user.id + 1),
            Change::Recurring(recurring) => next[4] = next[4].max(recurring.id + 1),
            Change::NoTopic(_)
            | Change::NoGroup(_)
            | Change::NoUser(_)
            | Change::NoRecurring(_) => {}
        }
        if next != self.values() {
            self.touch(pager);
            [self.topic, self.group, self.user, self.partition, self.recurring] = next;
        }
    }

    pub(super) fn touch(&mut self, pager: &mut Pager) {
        let values = self.values();
        pager.touch(&mut self.mark, PAGE, |out| Self::encode(values, out));
    }

    pub(super) fn capture(&mut self, pager: &mut Pager, id: PageId) {
        let values = self.values();
        pager.capture_waiting(id, Some(&mut self.mark), |out| Self::encode(values, out));
    }

    pub(super) fn restore(bytes: &[u8]) -> Result<Counters, Malformed> {
        let mut c = Cursor::new(bytes);
        Ok(Counters {
            mark: Mark::default(),
            topic: c.varint_u32()?,
            group: c.varint_u32()?,
            user: c.varint_u32()?,
            partition: c.varint_u32()?,
            recurring: if c.is_empty() { 1 } else { c.varint_u32()? },
        })
    }

    pub(super) fn page(&self, each: &mut impl FnMut(PageId, &[u8])) {
        let fresh = Counters::default();
        if self.values() != fresh.values() {
            let mut out = Vec::new();
            Self::encode(self.values(), &mut out);
            each(PAGE, &out);
        }
    }
}
