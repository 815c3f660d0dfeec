//! Topics and groups, as operators handle them.

use std::sync::Arc;

use posthouse_core::UnixMs;
use posthouse_core::catalog::machine::Outcome;
use posthouse_core::catalog::{
    Accepts, Action, DeadLetter, Expired, Group, GroupConfig, Order, Quota, Retention, Start,
    Subscription, Topic, TopicConfig,
};
use posthouse_core::name;
use posthouse_core::queue::Command;
use posthouse_core::queue::command::{Reply, Target};

use super::{Broker, Caller, On, bounds};
use crate::problem::Problem;

/// Where a group is to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// With the oldest message.
    Earliest,
    /// Behind the newest.
    Latest,
    /// With the first message of this time or later.
    Time(UnixMs),
    /// At a position of one partition.
    Position {
        /// The partition, counted from 0.
        partition: u32,
        /// The position.
        position: u64,
    },
}

/// Where a group went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, counted from 0.
    pub partition: u32,
    /// The next position that the group gets.
    pub position: u64,
}

/// What to change of a topic. What is not mentioned stays as it is; in a new topic it
/// is as the defaults say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicPatch {
    /// See [`TopicConfig::partitions`].
    pub partitions: Option<u32>,
    /// See [`TopicConfig::retention`].
    pub retention: Option<Retention>,
    /// See [`TopicConfig::max_message_bytes`].
    pub max_message_bytes: Option<u32>,
    /// See [`TopicConfig::dedupe_window_ms`].
    pub dedupe_window_ms: Option<u64>,
    /// See [`TopicConfig::delays`].
    pub delays: Option<bool>,
    /// See [`TopicConfig::expired`].
    pub expired: Option<Expired>,
    /// See [`TopicConfig::check_after_ms`].
    pub check_after_ms: Option<u64>,
    /// See [`TopicConfig::checks`].
    pub checks: Option<u16>,
    /// See [`TopicConfig::publish_quota`].
    pub publish_quota: Option<Quota>,
    /// See [`TopicConfig::accepts`].
    pub accepts: Option<Accepts>,
}

impl TopicPatch {
    /// The configuration with the changes.
    pub fn over(self, base: TopicConfig) -> TopicConfig {
        TopicConfig {
            partitions: self.partitions.unwrap_or(base.partitions),
            retention: self.retention.unwrap_or(base.retention),
            max_message_bytes: self.max_message_bytes.unwrap_or(base.max_message_bytes),
            dedupe_window_ms: self.dedupe_window_ms.unwrap_or(base.dedupe_window_ms),
            delays: self.delays.unwrap_or(base.delays),
            expired: self.expired.unwrap_or(base.expired),
            check_after_ms: self.check_after_ms.unwrap_or(base.check_after_ms),
            checks: self.checks.unwrap_or(base.checks),
            publish_quota: self.publish_quota.unwrap_or(base.publish_quota),
            accepts: self.accepts.unwrap_or(base.accepts),
        }
    }
}

/// What to change of a group, as for [`TopicPatch`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPatch {
    /// See [`GroupConfig::subscriptions`].
    pub subscriptions: Option<Vec<Subscription>>,
    /// See [`GroupConfig::start`].
    pub start: Option<Start>,
    /// See [`GroupConfig::lease_ms`].
    pub lease_ms: Option<u64>,
    /// See [`GroupConfig::max_attempts`].
    pub max_attempts: Option<u16>,
    /// See [`GroupConfig::backoff_ms`].
    pub backoff_ms: Option<Vec<u64>>,
    /// See [`GroupConfig::dead_letter`].
    pub dead_letter: Option<DeadLetter>,
    /// See [`GroupConfig::order`].
    pub order: Option<Order>,
    /// See [`GroupConfig::max_in_flight`]; `Some(None)` takes the limit away.
    pub max_in_flight: Option<Option<u32>>,
    /// See [`GroupConfig::window`].
    pub window: Option<u32>,
    /// See [`GroupConfig::paused`].
    pub paused: Option<bool>,
    /// See [`GroupConfig::expire_after_ms`]; `Some(None)` lets it stay for ever.
    pub expire_after_ms: Option<Option<u64>>,
}

impl GroupPatch {
    /// The configuration with the changes.
    pub fn over(self, base: GroupConfig) -> GroupConfig {
        GroupConfig {
            subscriptions: self.subscriptions.unwrap_or(base.subscriptions),
            start: self.start.unwrap_or(base.start),
            lease_ms: self.lease_ms.unwrap_or(base.lease_ms),
            max_attempts: self.max_attempts.unwrap_or(base.max_attempts),
            backoff_ms: self.backoff_ms.unwrap_or(base.backoff_ms),
            dead_letter: self.dead_letter.unwrap_or(base.dead_letter),
            order: self.order.unwrap_or(base.order),
            max_in_flight: self.max_in_flight.unwrap_or(base.max_in_flight),
            window: self.window.unwrap_or(base.window),
            paused: self.paused.unwrap_or(base.paused),
            expire_after_ms: self.expire_after_ms.unwrap_or(base.expire_after_ms),
        }
    }
}

impl Broker {
    /// Makes a topic, or changes its configuration.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn put_topic(
        &self,
        caller: &Caller,
        name: &str,
        patch: TopicPatch,
    ) -> Result<(Arc<Topic>, Outcome), Problem> {
        caller.check(Action::Manage, On::Topic(name))?;
        let base = self.topic(name).map_or(TopicConfig::default(), |topic| topic.config.clone());
        self.directory.put_topic(name, patch.over(base), false).await
    }

    /// Deletes a topic with all its messages.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn delete_topic(&self, caller: &Caller, name: &str) -> Result<(), Problem> {
        caller.check(Action::Manage, On::Topic(name))?;
        self.directory.delete_topic(name).await
    }

    /// A topic that the caller may see.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn topic_for(&self, caller: &Caller, name: &str) -> Result<Arc<Topic>, Problem> {
        let topic = self.topic(name)?;
        if !self.may_see(caller, On::Topic(name)) {
            caller.check(Action::Manage, On::Topic(name))?;
        }
        Ok(topic)
    }

    fn may_see(&self, caller: &Caller, on: On<'_>) -> bool {
        [Action::Publish, Action::Consume, Action::Manage]
            .into_iter()
            .any(|action| caller.may(action, on))
    }

    /// The topics that the caller may see, in the order they were made, behind the
    /// one called `after`.
    pub fn topics(
        &self,
        caller: &Caller,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<Arc<Topic>> {
        let catalog = self.catalog();
        let behind = after.and_then(|name| catalog.topic_named(name)).map(|topic| topic.id);
        // One more than a page has says whether there is another.
        let page = limit.min(bounds::PAGE + 1);
        catalog
            .topics()
            .filter(|topic| behind.is_none_or(|id| topic.id > id) && topic.is_active())
            .filter(|topic| topic.name.starts_with(prefix))
            .filter(|topic| self.may_see(caller, On::Topic(&topic.name)))
            .take(page)
            .cloned()
            .collect()
    }

    /// Makes a group, or changes its configuration.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn put_group(
        &self,
        caller: &Caller,
        name: &str,
        patch: GroupPatch,
    ) -> Result<(Arc<Group>, Outcome), Problem> {
        caller.check(Action::Manage, On::Group(name))?;
        let base = self.group(name).map_or(GroupConfig::default(), |group| group.config.clone());
        let config = patch.over(base);
        for subscription in &config.subscriptions {
            // Who may see a topic may have groups of it; a pattern needs a grant that
            // covers all it can ever match.
            if !self.may_see(caller, On::Topic(&subscription.topic)) {
                caller.check(Action::Manage, On::Topic(&subscription.topic))?;
            }
        }
        self.directory.put_group(name, None, config, false).await
    }

    /// Deletes a group with its dead letters; without `force` only if it has none.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn delete_group(
        &self,
        caller: &Caller,
        name: &str,
        force: bool,
    ) -> Result<(), Problem> {
        caller.check(Action::Manage, On::Group(name))?;
        self.directory.delete_group(name, force).await
    }

    /// A group that the caller may see.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn group_for(&self, caller: &Caller, name: &str) -> Result<Arc<Group>, Problem> {
        let group = self.group(name)?;
        if !self.may_see(caller, On::Group(name)) {
            caller.check(Action::Manage, On::Group(name))?;
        }
        Ok(group)
    }

    /// The groups that the caller may see, as for [`Broker::topics`].
    pub fn groups(
        &self,
        caller: &Caller,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<Arc<Group>> {
        let catalog = self.catalog();
        let behind = after.and_then(|name| catalog.group_named(name)).map(|group| group.id);
        // One more than a page has says whether there is another.
        let page = limit.min(bounds::PAGE + 1);
        catalog
            .groups()
            .filter(|group| behind.is_none_or(|id| group.id > id) && group.is_active())
            .filter(|group| group.name.starts_with(prefix))
            .filter(|group| self.may_see(caller, On::Group(&group.name)))
            .take(page)
            .cloned()
            .collect()
    }

    /// Pauses a group, or lets it go on.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn pause_group(
        &self,
        caller: &Caller,
        name: &str,
        paused: bool,
    ) -> Result<Arc<Group>, Problem> {
        caller.check(Action::Manage, On::Group(name))?;
        let group = self.group(name)?;
        let config = GroupConfig { paused, ..group.config.clone() };
        Ok(self.directory.put_group(name, group.parent, config, false).await?.0)
    }

    /// Lets a group go on elsewhere: on all its topics, or on one. What it has in
    /// flight is forgotten.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn seek(
        &self,
        caller: &Caller,
        group: &str,
        topic: Option<&str>,
        to: SeekTo,
    ) -> Result<Vec<Sought>, Problem> {
        caller.check(Action::Manage, On::Group(group))?;
        let group = self.group(group)?;
        let mut topics = self.catalog().topics_of(&group);
        if let Some(name) = topic {
            let wanted = self.topic(name)?;
            topics.retain(|topic| topic.id == wanted.id);
            if topics.is_empty() {
                let detail = format!("group {:?} has no subscription for {name:?}", &*group.name);
                return Err(Problem::new(crate::problem::Kind::NotFound, "not_subscribed", detail));
            }
        }
        if matches!(to, SeekTo::Position { .. }) && topics.len() != 1 {
            let limit = "name the one topic that the position is meant for";
            return Err(Problem::invalid("topic", "not given", limit));
        }
        let mut sought = Vec::new();
        for topic in topics {
            for (index, partition) in (0u32..).zip(&topic.partitions) {
                let to = match &to {
                    SeekTo::Earliest => Target::Earliest,
                    SeekTo::Latest => Target::Latest,
                    SeekTo::Time(time) => Target::Time(*time),
                    SeekTo::Position { partition, position } if *partition == index => {
                        Target::Position(*position)
                    }
                    SeekTo::Position { .. } => continue,
                };
                let (group, id) = (group.id, partition.id);
                let command = Command::Seek { group, partition: id, to };
                let reply = self.directory.command(partition.shard, command).await?;
                if let Reply::Position(position) = reply {
                    sought.push(Sought { topic: topic.name.clone(), partition: index, position });
                }
            }
        }
        if let SeekTo::Position { partition, .. } = to
            && sought.is_empty()
        {
            return Err(Problem::invalid("partition", partition, "the topic has no such one"));
        }
        Ok(sought)
    }

    /// Lets all messages of a topic go, or those of one partition before a position.
    /// Returns how many there were.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn purge(
        &self,
        caller: &Caller,
        topic: &str,
        before: Option<(u32, u64)>,
    ) -> Result<u64, Problem> {
        caller.check(Action::Manage, On::Topic(topic))?;
        let topic = self.topic(topic)?;
        if let Some((index, _)) = before {
            self.partition(&topic, index)?;
        }
        let mut count = 0;
        for (index, partition) in (0u32..).zip(&topic.partitions) {
            let before = match before {
                None => None,
                Some((of, position)) if of == index => Some(position),
                Some(_) => continue,
            };
            let command = Command::Purge { partition: partition.id, before };
            if let Reply::Count(some) = self.directory.command(partition.shard, command).await? {
                count += some;
            }
        }
        Ok(count)
    }

    /// The dead-letter topic of a group, if it has one.
    pub(super) fn dead_topic(&self, group: &Group) -> Option<Arc<Topic>> {
        self.topic(&name::dead_letter_topic(&group.name)).ok()
    }
}
