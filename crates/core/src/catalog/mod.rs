//! The catalog: topics, groups, users, and which shard has which partition.
//!
//! It has a small log and a machine of its own ([`machine`]), apart from the
//! messages. Every shard and every door reads it; `decide` of a shard looks up
//! configurations in it, `apply` never does.

pub mod config;
pub mod machine;
mod recurring;
mod rows;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

pub use config::{
    Accepts, AccessGrant, Action, ConfigError, DeadLetter, Expired, GroupConfig, Order, Quota,
    Retention, Start, Subscription, Token, TopicConfig, UserConfig,
};
pub use recurring::{Missed, Recurring, RecurringConfig, Recurs};

use crate::filter::Filter;
use crate::ident::Secret;
use crate::name::TopicPattern;
use crate::page::{PageId, Pager, Table};
use crate::words::{GroupId, Lookup, PartitionId, ShardId, TopicId, UnixMs};

/// What a topic is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Messages of users.
    #[default]
    Messages,
    /// What a group could not do.
    DeadLetters(GroupId),
    /// What a group shall try again.
    Retry(GroupId),
}

/// Whether something is there, or on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// It is there.
    #[default]
    Active,
    /// It has been deleted, and shards are being told.
    Deleting,
}

/// A partition and the shard that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The partition.
    pub id: PartitionId,
    /// The shard.
    pub shard: ShardId,
    /// When it was added, if that was after its topic was made; else zero.
    pub added_at: UnixMs,
}

/// A topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    /// Its number.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// What it is for.
    pub role: Role,
    /// Whether it is there.
    pub state: Lifecycle,
    /// When it was made.
    pub created_at: UnixMs,
    /// Its configuration.
    pub config: TopicConfig,
    /// Its partitions, in order.
    pub partitions: Box<[Assigned]>,
}

impl Topic {
    /// Which of its partitions this is, counted from 0.
    pub fn index_of(&self, partition: PartitionId) -> Option<u32> {
        self.partitions.iter().position(|p| p.id == partition).map(|index| index as u32)
    }

    /// Whether it can be used.
    pub fn is_active(&self) -> bool {
        self.state == Lifecycle::Active
    }
}

/// A consumer group.
#[derive(Debug)]
pub struct Group {
    /// Its number.
    pub id: GroupId,
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is there.
    pub state: Lifecycle,
    /// When it was made.
    pub created_at: UnixMs,
    /// The group whose configuration counts for this one, for the own group of a
    /// consumer that asked for its own copy of everything.
    pub parent: Option<GroupId>,
    /// Its configuration.
    pub config: GroupConfig,
    subscriptions: OnceLock<Vec<(TopicPattern, Filter)>>,
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.name == other.name
            && self.state == other.state
            && self.created_at == other.created_at
            && self.parent == other.parent
            && self.config == other.config
    }
}

impl Group {
    /// Whether it can be used.
    pub fn is_active(&self) -> bool {
        self.state == Lifecycle::Active
    }

    /// Its subscriptions, ready to be matched.
    ///
    /// # Panics
    /// If the configuration was never checked: what is in the catalog was.
    pub fn subscriptions(&self, secret: &Secret) -> &[(TopicPattern, Filter)] {
        self.subscriptions.get_or_init(|| {
            self.config.compile(secret).expect("a group in the catalog was checked before")
        })
    }

    /// The filters of the subscriptions that mean this topic: a message passes if
    /// one of them lets it through.
    pub fn filters<'a>(
        &'a self,
        topic: &'a str,
        secret: &Secret,
    ) -> impl Iterator<Item = &'a Filter> + 'a {
        self.subscriptions(secret)
            .iter()
            .filter(move |(pattern, _)| pattern.matches(topic))
            .map(|(_, filter)| filter)
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: Arc<str>,
    /// When it was made.
    pub created_at: UnixMs,
    /// Its configuration.
    pub config: UserConfig,
}

/// A change of the catalog, to be adopted wherever a copy is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A topic is new or has changed.
    Topic(Arc<Topic>),
    /// A topic is no more.
    NoTopic(TopicId),
    /// A group is new or has changed.
    Group(Arc<Group>),
    /// A group is no more.
    NoGroup(GroupId),
    /// A user is new or has changed.
    User(Arc<User>),
    /// A user is no more.
    NoUser(u32),
    /// A recurring message is new or has changed.
    Recurring(Arc<Recurring>),
    /// A recurring message is no more.
    NoRecurring(u32),
}

/// The catalog.
#[derive(Debug)]
pub struct Catalog {
    secret: Secret,
    pager: Pager,
    counters: rows::Counters,
    topics: Table<Arc<Topic>>,
    groups: Table<Arc<Group>>,
    users: Table<Arc<User>>,
    recurring: Table<Arc<Recurring>>,
    topic_names: Lookup<Arc<str>, TopicId>,
    group_names: Lookup<Arc<str>, GroupId>,
    user_names: Lookup<Arc<str>, u32>,
    recurring_names: Lookup<Arc<str>, u32>,
    /// The topic of every partition, by its number.
    partitions: Vec<TopicId>,
    /// Groups by the topics that they name, and those that have patterns.
    by_topic_name: Lookup<String, Vec<GroupId>>,
    with_patterns: Vec<GroupId>,
    expiring: BTreeSet<GroupId>,
    tokens: Lookup<Box<str>, u32>,
}

impl Catalog {
    /// An empty catalog of the store with this secret.
    pub fn new(secret: Secret) -> Self {
        Catalog {
            secret,
            pager: Pager::default(),
            counters: rows::Counters::default(),
            topics: Table::default(),
            groups: Table::default(),
            users: Table::default(),
            recurring: Table::default(),
            topic_names: Lookup::default(),
            group_names: Lookup::default(),
            user_names: Lookup::default(),
            recurring_names: Lookup::default(),
            partitions: Vec::new(),
            by_topic_name: Lookup::default(),
            with_patterns: Vec::new(),
            expiring: BTreeSet::new(),
            tokens: Lookup::default(),
        }
    }

    /// The secret of the store.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// A topic by number.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(id.0)
    }

    /// A topic by name, also one that is being deleted.
    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topic(*self.topic_names.get(name)?)
    }

    /// The topic of a partition.
    pub fn topic_of(&self, partition: PartitionId) -> Option<&Arc<Topic>> {
        self.topic(*self.partitions.get(partition.0 as usize)?)
    }

    /// A group by number.
    pub fn group(&self, id: GroupId) -> Option<&Arc<Group>> {
        self.groups.get(id.0)
    }

    /// A group by name, also one that is being deleted.
    pub fn group_named(&self, name: &str) -> Option<&Arc<Group>> {
        self.group(*self.group_names.get(name)?)
    }

    /// The group whose configuration counts for `group`: itself, or its parent.
    pub fn effective<'a>(&'a self, group: &'a Arc<Group>) -> &'a Arc<Group> {
        group.parent.and_then(|parent| self.group(parent)).unwrap_or(group)
    }

    /// A user by name.
    pub fn user_named(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(*self.user_names.get(name)?)
    }

    /// The user that a token's hash belongs to.
    pub fn user_by_token(&self, sha256: &str) -> Option<&Arc<User>> {
        self.users.get(*self.tokens.get(sha256)?)
    }

    /// All topics, in the order they were made.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.iter().map(|(_, topic)| topic)
    }

    /// All groups, in the order they were made.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.iter().map(|(_, group)| group)
    }

    /// All users, in the order they were made.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.iter().map(|(_, user)| user)
    }

    /// How many topics, groups and users there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.topics.len(), self.groups.len(), self.users.len())
    }

    /// The groups that get something of a topic, in the order they were made.
    pub fn groups_of(&self, topic: &Topic) -> Vec<GroupId> {
        if let Role::Retry(group) = topic.role {
            return vec![group];
        }
        let exact = self.by_topic_name.get(&*topic.name).map_or(&[][..], |groups| groups);
        let mut groups: Vec<GroupId> = exact
            .iter()
            .chain(&self.with_patterns)
            .copied()
            .filter(|id| self.group(*id).is_some_and(|g| self.gets(g, topic)))
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Whether a group gets something of a topic; an own group of a consumer gets
    /// what its parent does.
    pub fn gets(&self, group: &Arc<Group>, topic: &Topic) -> bool {
        let passes = match topic.role {
            // What is redriven is for the one group that could not do it.
            Role::Retry(of) => of == group.id,
            _ => self.effective(group).filters(&topic.name, &self.secret).next().is_some(),
        };
        passes && group.is_active() && topic.is_active()
    }

    /// Where a group begins on a partition of a topic that it gets, if it has it not yet and
    /// nobody says where: what is newer than the group it gets from the first message on.
    pub fn start_on(&self, group: &Group, topic: &Topic, partition: &Assigned) -> Start {
        match topic.created_at.max(partition.added_at) >= group.created_at {
            true => Start::Earliest,
            false => group.config.start,
        }
    }

    /// Groups that go when nobody has asked for them for a time, in the order they were
    /// made.
    pub fn expiring(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.expiring.iter().filter_map(|id| self.group(*id))
    }

    /// The topics that a group gets something of, in the order they were made.
    pub fn topics_of(&self, group: &Arc<Group>) -> Vec<Arc<Topic>> {
        let effective = self.effective(group);
        let subscriptions = effective.subscriptions(&self.secret);
        let mut topics: Vec<Arc<Topic>> = if subscriptions.iter().all(|(p, _)| p.exact().is_some())
        {
            subscriptions
                .iter()
                .filter_map(|(pattern, _)| self.topic_named(pattern.exact()?))
                .chain(self.topic_named(&crate::name::retry_topic(&group.name)))
                .cloned()
                .collect()
        } else {
            self.topics().cloned().collect()
        };
        topics.retain(|topic| self.gets(group, topic));
        topics.sort_by_key(|topic| topic.id);
        topics.dedup_by_key(|topic| topic.id);
        topics
    }

    /// Takes a change over.
    pub fn adopt(&mut self, change: &Change) {
        self.counters.see(&mut self.pager, change);
        match change {
            Change::Topic(topic) => self.set_topic(topic),
            Change::NoTopic(id) => self.remove_topic(*id),
            Change::Group(group) => self.set_group(group),
            Change::NoGroup(id) => self.remove_group(*id),
            Change::User(user) => self.set_user(user),
            Change::NoUser(id) => self.remove_user(*id),
            Change::Recurring(recurring) => self.set_recurring(recurring),
            Change::NoRecurring(id) => self.remove_recurring(*id),
        }
    }

    fn set_topic(&mut self, topic: &Arc<Topic>) {
        self.topics.set(&mut self.pager, topic.id.0, topic.clone());
        self.index_topic(topic);
    }

    fn index_topic(&mut self, topic: &Arc<Topic>) {
        self.topic_names.insert(topic.name.clone(), topic.id);
        for assigned in &topic.partitions {
            let number = assigned.id.0 as usize;
            if self.partitions.len() <= number {
                self.partitions.resize(number + 1, TopicId(0));
            }
            self.partitions[number] = topic.id;
        }
    }

    fn remove_topic(&mut self, id: TopicId) {
        let Some(topic) = self.topics.remove(&mut self.pager, id.0) else { return };
        self.topic_names.remove(&topic.name);
        for assigned in &topic.partitions {
            self.partitions[assigned.id.0 as usize] = TopicId(0);
        }
    }

    fn set_group(&mut self, group: &Arc<Group>) {
        if let Some(before) = self.groups.get(group.id.0).cloned() {
            self.unindex_group(&before);
        }
        self.groups.set(&mut self.pager, group.id.0, group.clone());
        self.index_group(group);
    }

    fn index_group(&mut self, group: &Arc<Group>) {
        self.group_names.insert(group.name.clone(), group.id);
        if group.config.expire_after_ms.is_some() {
            self.expiring.insert(group.id);
        }
        // A child is found by going through all that have patterns: its parent's
        // subscriptions may change without it.
        let mut patterns = group.parent.is_some();
        for (pattern, _) in group.subscriptions(&self.secret) {
            match pattern.exact() {
                Some(name) => {
                    self.by_topic_name.entry(name.to_owned()).or_default().push(group.id);
                }
                None => patterns = true,
            }
        }
        if patterns {
            self.with_patterns.push(group.id);
        }
    }

    fn unindex_group(&mut self, group: &Group) {
        self.expiring.remove(&group.id);
        for (pattern, _) in group.subscriptions(&self.secret) {
            if let Some(name) = pattern.exact()
                && let Some(groups) = self.by_topic_name.get_mut(name)
            {
                groups.retain(|id| *id != group.id);
                if groups.is_empty() {
                    self.by_topic_name.remove(name);
                }
            }
        }
        self.with_patterns.retain(|id| *id != group.id);
    }

    fn remove_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.remove(&mut self.pager, id.0) else { return };
        self.unindex_group(&group);
        self.group_names.remove(&group.name);
    }

    fn set_user(&mut self, user: &Arc<User>) {
        if let Some(before) = self.users.get(user.id).cloned() {
            self.unindex_user(&before);
        }
        self.users.set(&mut self.pager, user.id, user.clone());
        self.index_user(user);
    }

    fn index_user(&mut self, user: &Arc<User>) {
        self.user_names.insert(user.name.clone(), user.id);
        for token in &user.config.tokens {
            self.tokens.insert(token.sha256.as_str().into(), user.id);
        }
    }

    fn unindex_user(&mut self, user: &User) {
        for token in &user.config.tokens {
            self.tokens.remove(token.sha256.as_str());
        }
    }

    fn remove_user(&mut self, id: u32) {
        let Some(user) = self.users.remove(&mut self.pager, id) else { return };
        self.unindex_user(&user);
        self.user_names.remove(&user.name);
    }

    /// The digest of the state as it is now.
    pub fn digest(&self) -> u64 {
        let mut digest = 0u64;
        let mut add = |id: PageId, bytes: &[u8]| digest = digest.wrapping_add(id.hash(bytes));
        self.counters.page(&mut add);
        self.topics.pages(&mut add);
        self.groups.pages(&mut add);
        self.users.pages(&mut add);
        self.recurring.pages(&mut add);
        digest
    }
}
