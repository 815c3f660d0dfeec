//! The catalog's machine: commands in, records out, state from records.

use std::sync::{Arc, OnceLock};

use posthouse_frame::varint::{Cursor, Malformed};
use posthouse_frame::{FrameBuf, FrameNo};

use super::rows::{Counters, Stored};
use super::{
    Assigned, Catalog, Change, ConfigError, Group, GroupConfig, Lifecycle, Recurring,
    RecurringConfig, Role, Topic, TopicConfig, User, UserConfig,
};
use crate::machine::Machine;
use crate::name::NameError;
use crate::page::{Captured, PageId, TableId};
use crate::record::{READER, RecordError, framed};
use crate::words::{GroupId, PartitionId, ShardId, TopicId, UnixMs};

/// What the catalog can be asked to do. Names have been checked by whoever asks:
/// users may not name what is the system's.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Makes a topic, or gives it another configuration.
    PutTopic {
        /// Its name.
        name: String,
        /// What it is for.
        role: Role,
        /// The whole configuration.
        config: TopicConfig,
        /// How many shards there are to put partitions on.
        shards: u16,
        /// Leave it as it is if it is there.
        only_new: bool,
    },
    /// Begins to delete a topic.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Every shard has dropped the topic.
    EndTopic {
        /// The topic.
        id: TopicId,
    },
    /// Makes a group, or gives it another configuration.
    PutGroup {
        /// Its name.
        name: String,
        /// The group whose configuration counts.
        parent: Option<GroupId>,
        /// The whole configuration.
        config: GroupConfig,
        /// Leave it as it is if it is there.
        only_new: bool,
    },
    /// Begins to delete a group.
    DeleteGroup {
        /// Its name.
        name: String,
    },
    /// Every shard has forgotten the group.
    EndGroup {
        /// The group.
        id: GroupId,
    },
    /// Makes a user, or gives it another configuration.
    PutUser {
        /// Its name.
        name: String,
        /// The whole configuration.
        config: UserConfig,
    },
    /// Deletes a user.
    DeleteUser {
        /// Its name.
        name: String,
    },
    /// Makes a recurring message, or gives it another configuration.
    PutRecurring {
        /// Its name.
        name: String,
        /// The whole configuration.
        config: RecurringConfig,
    },
    /// Lets a recurring message come no more for now, or again.
    PauseRecurring {
        /// Its name.
        name: String,
        /// Whether it does not come.
        paused: bool,
    },
    /// Deletes a recurring message.
    DeleteRecurring {
        /// Its name.
        name: String,
    },
}

/// What became of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Created,
    /// It was there and has changed.
    Changed,
    /// It was there and is as it was.
    Unchanged,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The topic as it is now.
    Topic(Arc<Topic>, Outcome),
    /// The group as it is now.
    Group(Arc<Group>, Outcome),
    /// The user as it is now.
    User(Arc<User>, Outcome),
    /// The recurring message as it is now, or was.
    Recurring(Arc<Recurring>, Outcome),
    /// Done.
    Done,
}

/// Why a command is refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("there is no {kind} {name:?}")]
    NotFound {
        /// `topic`, `group`, `user` or `recurring message`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// It is on its way out.
    #[error("{kind} {name:?} is being deleted; try again in a moment")]
    Deleting {
        /// `topic` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A name that cannot be.
    #[error("{0}")]
    Name(NameError),
    /// A configuration that cannot be.
    #[error("{0}")]
    Config(ConfigError),
    /// Every number there is has been given.
    #[error("this store has given all numbers for {0} that it can")]
    Exhausted(&'static str),
}

mod kind {
    pub(super) const TOPIC: u8 = 1;
    pub(super) const NO_TOPIC: u8 = 2;
    pub(super) const GROUP: u8 = 3;
    pub(super) const NO_GROUP: u8 = 4;
    pub(super) const USER: u8 = 5;
    pub(super) const NO_USER: u8 = 6;
    pub(super) const RECURRING: u8 = 7;
    pub(super) const NO_RECURRING: u8 = 8;
}

impl Change {
    /// Appends the change to a frame, as a record.
    pub(super) fn write(&self, frame: &mut FrameBuf) {
        let (kind, payload) = match self {
            Change::Topic(topic) => (kind::TOPIC, topic.to_json()),
            Change::NoTopic(id) => (kind::NO_TOPIC, id.0.to_le_bytes().to_vec()),
            Change::Group(group) => (kind::GROUP, group.to_json()),
            Change::NoGroup(id) => (kind::NO_GROUP, id.0.to_le_bytes().to_vec()),
            Change::User(user) => (kind::USER, user.to_json()),
            Change::NoUser(id) => (kind::NO_USER, id.to_le_bytes().to_vec()),
            Change::Recurring(recurring) => (kind::RECURRING, recurring.to_json()),
            Change::NoRecurring(id) => (kind::NO_RECURRING, id.to_le_bytes().to_vec()),
        };
        frame.record(READER, |out| framed(out, kind, |out| out.extend_from_slice(&payload)));
    }

    /// The changes in the meta section of a frame of the catalog's log.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that are no records of the catalog.
    pub fn read_all(meta: &[u8]) -> Result<Vec<Change>, RecordError> {
        let mut c = Cursor::new(meta);
        let mut changes = Vec::new();
        while !c.is_empty() {
            let kind = c.u8()?;
            let payload = c.bytes()?;
            let id = || Cursor::new(payload).u32();
            changes.push(match kind {
                kind::TOPIC => Change::Topic(Stored::from_json(payload)?),
                kind::NO_TOPIC => Change::NoTopic(TopicId(id()?)),
                kind::GROUP => Change::Group(Stored::from_json(payload)?),
                kind::NO_GROUP => Change::NoGroup(GroupId(id()?)),
                kind::USER => Change::User(Stored::from_json(payload)?),
                kind::NO_USER => Change::NoUser(id()?),
                kind::RECURRING => Change::Recurring(Stored::from_json(payload)?),
                kind::NO_RECURRING => Change::NoRecurring(id()?),
                kind => return Err(RecordError::Kind(kind)),
            });
        }
        Ok(changes)
    }
}

impl Catalog {
    /// Decides a command: writes what follows from it, and says what to answer when
    /// that is durable. The state does not change.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing was written.
    pub fn decide(
        &self,
        command: &Command,
        now: UnixMs,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        match command {
            Command::PutTopic { name, role, config, shards, only_new } => {
                self.put_topic(name, *role, config, *shards, *only_new, now, out)
            }
            Command::DeleteTopic { name } => {
                let topic = self.topic_named(name).ok_or_else(|| not_found("topic", name))?;
                if topic.is_active() {
                    let gone = Topic { state: Lifecycle::Deleting, ..(**topic).clone() };
                    Change::Topic(Arc::new(gone)).write(out);
                }
                Ok(Reply::Topic(topic.clone(), Outcome::Changed))
            }
            Command::EndTopic { id } => {
                if self.topic(*id).is_some() {
                    Change::NoTopic(*id).write(out);
                }
                Ok(Reply::Done)
            }
            Command::PutGroup { name, parent, config, only_new } => {
                self.put_group(name, *parent, config, *only_new, now, out)
            }
            Command::DeleteGroup { name } => {
                let group = self.group_named(name).ok_or_else(|| not_found("group", name))?;
                if group.is_active() {
                    let state = Lifecycle::Deleting;
                    Change::Group(Arc::new(group.with(state, group.config.clone()))).write(out);
                }
                Ok(Reply::Group(group.clone(), Outcome::Changed))
            }
            Command::EndGroup { id } => {
                if self.group(*id).is_some() {
                    Change::NoGroup(*id).write(out);
                }
                Ok(Reply::Done)
            }
            Command::PutUser { name, config } => self.put_user(name, config, now, out),
            Command::DeleteUser { name } => {
                let user = self.user_named(name).ok_or_else(|| not_found("user", name))?;
                Change::NoUser(user.id).write(out);
                Ok(Reply::Done)
            }
            Command::PutRecurring { name, config } => self.put_recurring(name, config, now, out),
            Command::PauseRecurring { name, paused } => {
                self.pause_recurring(name, *paused, now, out)
            }
            Command::DeleteRecurring { name } => self.delete_recurring(name, out),
        }
    }

    #[allow(clippy::too_many_arguments)] // The fields of one command, matched apart.
    fn put_topic(
        &self,
        name: &str,
        role: Role,
        config: &TopicConfig,
        shards: u16,
        only_new: bool,
        now: UnixMs,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        crate::name::check_any(name).map_err(Refusal::Name)?;
        let before = self.topic_named(name);
        if let Some(topic) = before {
            if !topic.is_active() {
                return Err(Refusal::Deleting { kind: "topic", name: name.into() });
            }
            if only_new || topic.config == *config {
                return Ok(Reply::Topic(topic.clone(), Outcome::Unchanged));
            }
        }
        config.check().map_err(Refusal::Config)?;
        let (id, created_at, mut partitions) = match before {
            Some(topic) => (topic.id, topic.created_at, topic.partitions.to_vec()),
            None => (TopicId(self.counters.topic), now, Vec::new()),
        };
        if id.0 == u32::MAX {
            return Err(Refusal::Exhausted("topics"));
        }
        let wanted = config.partitions as usize;
        if before.is_some_and(|topic| topic.role != Role::Messages) && wanted != partitions.len() {
            return Err(Refusal::Config(ConfigError {
                field: "partitions".into(),
                value: wanted.to_string(),
                limit: format!("a topic of the system keeps its {}", partitions.len()),
            }));
        }
        if wanted < partitions.len() {
            return Err(Refusal::Config(ConfigError {
                field: "partitions".into(),
                value: wanted.to_string(),
                limit: format!("the topic has {} already, and can only grow", partitions.len()),
            }));
        }
        for number in self.counters.partition.. {
            if partitions.len() == wanted {
                break;
            }
            let id = PartitionId(number);
            if id > PartitionId::MAX {
                return Err(Refusal::Exhausted("partitions"));
            }
            let shard = match role {
                Role::Messages => place(id, shards),
                // Those of the system have one partition in every shard.
                _ => ShardId(partitions.len() as u16),
            };
            let added_at = if before.is_some() { now } else { UnixMs(0) };
            partitions.push(Assigned { id, shard, added_at });
        }
        let topic = Arc::new(Topic {
            id,
            name: name.into(),
            role,
            state: Lifecycle::Active,
            created_at,
            config: config.clone(),
            partitions: partitions.into(),
        });
        Change::Topic(topic.clone()).write(out);
        let outcome = if before.is_some() { Outcome::Changed } else { Outcome::Created };
        Ok(Reply::Topic(topic, outcome))
    }

    fn put_group(
        &self,
        name: &str,
        parent: Option<GroupId>,
        config: &GroupConfig,
        only_new: bool,
        now: UnixMs,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        let before = self.group_named(name);
        if let Some(group) = before {
            if !group.is_active() {
                return Err(Refusal::Deleting { kind: "group", name: name.into() });
            }
            if only_new || group.config == *config {
                return Ok(Reply::Group(group.clone(), Outcome::Unchanged));
            }
        }
        if let Some(parent) = parent.and_then(|id| self.group(id)).filter(|p| !p.is_active()) {
            return Err(Refusal::Deleting { kind: "group", name: parent.name.to_string() });
        }
        if parent.is_some_and(|id| self.group(id).is_none()) {
            return Err(not_found("group", name));
        }
        config.check(&self.secret).map_err(Refusal::Config)?;
        let group = match before {
            Some(group) => group.with(Lifecycle::Active, config.clone()),
            None => Group {
                id: GroupId(self.counters.group),
                name: name.into(),
                state: Lifecycle::Active,
                created_at: now,
                parent,
                config: config.clone(),
                subscriptions: OnceLock::new(),
            },
        };
        if group.id.0 == u32::MAX {
            return Err(Refusal::Exhausted("groups"));
        }
        let group = Arc::new(group);
        Change::Group(group.clone()).write(out);
        let outcome = if before.is_some() { Outcome::Changed } else { Outcome::Created };
        Ok(Reply::Group(group, outcome))
    }

    fn put_user(
        &self,
        name: &str,
        config: &UserConfig,
        now: UnixMs,
        out: &mut FrameBuf,
    ) -> Result<Reply, Refusal> {
        crate::name::check(name).map_err(Refusal::Name)?;
        config.check().map_err(Refusal::Config)?;
        let before = self.user_named(name);
        let (id, created_at, outcome) = match before {
            Some(user) if user.config == *config => {
                return Ok(Reply::User(user.clone(), Outcome::Unchanged));
            }
            Some(user) => (user.id, user.created_at, Outcome::Changed),
            None => (self.counters.user, now, Outcome::Created),
        };
        let user = Arc::new(User { id, name: name.into(), created_at, config: config.clone() });
        Change::User(user.clone()).write(out);
        Ok(Reply::User(user, outcome))
    }
}

impl Group {
    fn with(&self, state: Lifecycle, config: GroupConfig) -> Group {
        Group {
            id: self.id,
            name: self.name.clone(),
            state,
            created_at: self.created_at,
            parent: self.parent,
            config,
            subscriptions: OnceLock::new(),
        }
    }
}

pub(super) fn not_found(kind: &'static str, name: &str) -> Refusal {
    Refusal::NotFound { kind, name: name.into() }
}

/// Spreads partitions over shards. The outcome is stored with the topic, so this may
/// change, and so may the number of shards, without moving anything.
fn place(partition: PartitionId, shards: u16) -> ShardId {
    let spread = u64::from(partition.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ShardId((spread % u64::from(shards.max(1))) as u16)
}

impl Machine for Catalog {
    fn apply(&mut self, _frame: FrameNo, meta: &[u8]) -> Result<(), RecordError> {
        for change in Change::read_all(meta)? {
            self.adopt(&change);
        }
        Ok(())
    }

    fn sealed(&mut self, _frame: FrameNo, _bytes: usize) {}

    fn begin_snapshot(&mut self) {
        self.pager.begin();
    }

    fn walk(&mut self, pages: usize) -> (Vec<Captured>, bool) {
        for _ in 0..pages {
            let Some(id) = self.pager.next_waiting() else {
                return (self.pager.take_captured(), true);
            };
            match id.table {
                TableId::Globals => self.counters.capture(&mut self.pager, id),
                TableId::Topics => self.topics.capture(&mut self.pager, id),
                TableId::GroupConfigs => self.groups.capture(&mut self.pager, id),
                TableId::Users => self.users.capture(&mut self.pager, id),
                TableId::Recurring => self.recurring.capture(&mut self.pager, id),
                table => unreachable!("the catalog has no table {table:?}"),
            }
        }
        (self.pager.take_captured(), false)
    }

    fn touch_all(&mut self) {
        self.counters.touch(&mut self.pager);
        self.topics.touch_all(&mut self.pager);
        self.groups.touch_all(&mut self.pager);
        self.users.touch_all(&mut self.pager);
        self.recurring.touch_all(&mut self.pager);
    }

    fn restore_page(&mut self, id: PageId, bytes: &[u8]) -> Result<(), Malformed> {
        match id.table {
            TableId::Globals => self.counters = Counters::restore(bytes)?,
            TableId::Topics => self.topics.restore(id, bytes)?,
            TableId::GroupConfigs => self.groups.restore(id, bytes)?,
            TableId::Users => self.users.restore(id, bytes)?,
            TableId::Recurring => self.recurring.restore(id, bytes)?,
            _ => return Err(Malformed { at: 0 }),
        }
        Ok(())
    }

    fn restored(&mut self) {
        let topics: Vec<Arc<Topic>> = self.topics().cloned().collect();
        topics.iter().for_each(|topic| self.index_topic(topic));
        let groups: Vec<Arc<Group>> = self.groups().cloned().collect();
        groups.iter().for_each(|group| self.index_group(group));
        let users: Vec<Arc<User>> = self.users().cloned().collect();
        users.iter().for_each(|user| self.index_user(user));
        let recurring: Vec<Arc<Recurring>> = self.all_recurring().cloned().collect();
        recurring.iter().for_each(|recurring| self.index_recurring(recurring));
    }

    fn has_changes(&self) -> bool {
        self.pager.has_changes()
    }

    fn digest(&self) -> u64 {
        Catalog::digest(self)
    }
}

#[cfg(test)]
mod tests;
