//! Making, changing and deleting topics and groups, and keeping shards in step with
//! the catalog.
//!
//! A change is durable in the catalog's log before shards are told, and shards have
//! done their part before whoever asked is answered. What a crash leaves in between
//! is found and finished at the next start ([`Directory::reconcile`]): attaching,
//! detaching and dropping can all be done again.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use posthouse_core::catalog::machine::{Command as MetaCommand, Outcome, Reply as MetaReply};
use posthouse_core::catalog::{
    Assigned, Catalog, Change, Group, GroupConfig, Lifecycle, Retention, Role, Start, Topic,
    TopicConfig,
};
use posthouse_core::name;
use posthouse_core::queue::Command;
use posthouse_core::queue::command::{Reply, Target};
use posthouse_core::{GroupId, PartitionId, ShardId};
use tokio::sync::oneshot;

use crate::problem::{Kind, Problem};
use crate::shard::hold::Hold;
use crate::shard::mail::{Look, Mail, Room, View};
use crate::shard::mailbox::Mailbox;
use crate::shard::meta::MetaMail;

/// The most that a node takes of what stays until somebody does something about it.
#[derive(Clone, Copy, Debug)]
pub struct CatalogLimits {
    /// Topics, those of the system not counted.
    pub topics: usize,
    /// Groups.
    pub groups: usize,
    /// Messages that are scheduled and not due yet.
    pub scheduled: u64,
    /// Transactions that wait for a decision.
    pub transactions: u64,
    /// Bytes of their messages.
    pub prepared_bytes: u64,
}

impl Default for CatalogLimits {
    fn default() -> Self {
        CatalogLimits {
            topics: 1_000_000,
            groups: 200_000,
            scheduled: 200_000_000,
            transactions: 100_000,
            prepared_bytes: 4 << 30,
        }
    }
}

/// So many commands for shards are under way at once when there are many: each waits for the
/// disk, and they share its syncs.
const AT_ONCE: usize = 256;

/// See the module's description.
#[derive(Debug)]
pub struct Directory {
    catalog: Arc<RwLock<Catalog>>,
    meta: Mailbox<MetaMail>,
    shards: Vec<Mailbox<Mail>>,
    limits: CatalogLimits,
}

impl Directory {
    /// Over a catalog and the shards that it speaks of.
    pub fn new(
        catalog: Arc<RwLock<Catalog>>,
        meta: Mailbox<MetaMail>,
        shards: Vec<Mailbox<Mail>>,
        limits: CatalogLimits,
    ) -> Self {
        Directory { catalog, meta, shards, limits }
    }

    /// The catalog, as far as it is durable.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Asks the catalog to do something.
    ///
    /// # Errors
    /// What the catalog says.
    pub async fn meta(&self, command: MetaCommand) -> Result<MetaReply, Problem> {
        let (tx, rx) = oneshot::channel();
        let mail = MetaMail::Command { command, tx };
        self.meta.send(mail.class(), mail).map_err(|_| Problem::stopping())?;
        rx.await.map_err(|_| Problem::stopping())?
    }

    /// Ends the loop of the catalog.
    pub(super) async fn end_meta(&self) {
        let (tx, rx) = oneshot::channel();
        let mail = MetaMail::Stop(tx);
        // A closed box: the loop has ended already.
        let _ = self.meta.send(mail.class(), mail);
        let _ = rx.await;
    }

    /// Asks a shard to do something.
    ///
    /// # Errors
    /// What the shard says; a refusal too.
    pub async fn command(&self, shard: ShardId, command: Command) -> Result<Reply, Problem> {
        match self.ask(shard, command, None).await? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// The same, with room for bodies; a refusal is a reply.
    ///
    /// # Errors
    /// If the shard does not answer.
    pub async fn ask(
        &self,
        shard: ShardId,
        command: Command,
        room: Room,
    ) -> Result<Reply, Problem> {
        let (tx, rx) = oneshot::channel();
        self.send(shard, Mail::Command { command, tx, room })?;
        rx.await.map_err(|_| Problem::stopping())?
    }

    /// Waits until neither the catalog nor a shard frees any file, as long as `hold` holds.
    ///
    /// # Errors
    /// If the node is stopping.
    pub async fn hold(&self, hold: &Arc<Hold>) -> Result<(), Problem> {
        let mut held = Vec::new();
        for shard in 0..self.shards.len() as u16 {
            let (tx, rx) = oneshot::channel();
            self.send(ShardId(shard), Mail::Hold(hold.clone(), tx))?;
            held.push(rx);
        }
        let (tx, rx) = oneshot::channel();
        let mail = MetaMail::Hold(hold.clone(), tx);
        self.meta.send(mail.class(), mail).map_err(|_| Problem::stopping())?;
        held.push(rx);
        for rx in held {
            rx.await.map_err(|_| Problem::stopping())?;
        }
        Ok(())
    }

    /// Leaves mail for a shard.
    ///
    /// # Errors
    /// If the shard takes none any more.
    pub fn send(&self, shard: ShardId, mail: Mail) -> Result<(), Problem> {
        let mailbox = self
            .shards
            .get(usize::from(shard.0))
            .ok_or_else(|| Problem::internal(format!("there is no shard {shard}")))?;
        mailbox.send(mail.class(), mail).map_err(|_| Problem::stopping())
    }

    /// Looks something up in a shard.
    ///
    /// # Errors
    /// What the shard says.
    pub async fn look<T, F>(&self, shard: ShardId, look: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnMut(&View<'_>) -> Result<T, posthouse_core::chunk::Miss> + Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        self.send(shard, Mail::Question(Look::question(look, tx)))?;
        rx.await.map_err(|_| Problem::stopping())?
    }

    // ---- topics

    /// Makes a topic of a user, or gives it another configuration.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn put_topic(
        &self,
        name: &str,
        config: TopicConfig,
        only_new: bool,
    ) -> Result<(Arc<Topic>, Outcome), Problem> {
        let known = self.catalog().topic_named(name).cloned();
        if known.is_none() {
            name::check(name)?;
            let (topics, ..) = self.catalog().counts();
            if topics >= self.limits.topics {
                return Err(too_many("topics", self.limits.topics, "max_topics"));
            }
        }
        let role = known.map_or(Role::Messages, |topic| topic.role);
        self.put_topic_as(name, role, config, only_new).await
    }

    async fn put_topic_as(
        &self,
        name: &str,
        role: Role,
        config: TopicConfig,
        only_new: bool,
    ) -> Result<(Arc<Topic>, Outcome), Problem> {
        let put = MetaCommand::PutTopic {
            name: name.into(),
            role,
            config,
            shards: self.shards.len() as u16,
            only_new,
        };
        let MetaReply::Topic(topic, outcome) = self.meta(put).await? else {
            return Err(Problem::internal("a topic was asked for"));
        };
        if outcome != Outcome::Unchanged {
            self.attach_topic(&topic).await?;
            self.tell(&Change::Topic(topic.clone()));
        }
        Ok((topic, outcome))
    }

    /// Gives every partition of a topic to the groups that get it. To a group that was
    /// there before the topic, all of it is new.
    async fn attach_topic(&self, topic: &Arc<Topic>) -> Result<(), Problem> {
        let groups = self.catalog().groups_of(topic);
        let attach = |group: GroupId, at: &Assigned| {
            let (partition, topic, start) = (at.id, topic.id, Target::Earliest);
            (at.shard, Command::Attach { group, partition, topic, start })
        };
        let commands = groups.iter().flat_map(|group| {
            topic.partitions.iter().map(move |partition| attach(*group, partition))
        });
        self.command_all(commands.collect()).await
    }

    /// Asks shards to do much, in any order.
    async fn command_all(&self, commands: Vec<(ShardId, Command)>) -> Result<(), Problem> {
        stream::iter(commands)
            .map(|(shard, command)| self.command(shard, command))
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }

    /// Deletes a topic with all its messages.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), Problem> {
        self.meta(MetaCommand::DeleteTopic { name: name.into() }).await?;
        let topic = self.catalog().topic_named(name).cloned();
        if let Some(topic) = topic.filter(|topic| !topic.is_active()) {
            self.finish_topic(&topic).await?;
        }
        Ok(())
    }

    async fn finish_topic(&self, topic: &Topic) -> Result<(), Problem> {
        for partition in &topic.partitions {
            self.command(partition.shard, Command::Drop { partition: partition.id }).await?;
        }
        self.meta(MetaCommand::EndTopic { id: topic.id }).await.map(drop)
    }

    /// The dead-letter topic of a group, made if it is not there.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn dead_letters(&self, group: GroupId) -> Result<Arc<Topic>, Problem> {
        self.system_topic(group, Role::DeadLetters(group)).await
    }

    /// The topic through which a group gets redriven messages, made if it is not there.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn retries(&self, group: GroupId) -> Result<Arc<Topic>, Problem> {
        self.system_topic(group, Role::Retry(group)).await
    }

    async fn system_topic(&self, id: GroupId, role: Role) -> Result<Arc<Topic>, Problem> {
        let (name, known) = {
            let catalog = self.catalog();
            let group = catalog.group(id).filter(|group| group.is_active());
            // One that is being deleted must not leave a topic behind.
            let group = group.ok_or_else(|| Problem::no_group("of this message"))?;
            let name = match role {
                Role::Retry(_) => name::retry_topic(&group.name),
                _ => name::dead_letter_topic(&group.name),
            };
            let known = catalog.topic_named(&name).cloned();
            (name, known)
        };
        if let Some(topic) = known.filter(|topic| topic.is_active()) {
            return Ok(topic);
        }
        // What an operator, or the group, is done with goes at once.
        let config = TopicConfig {
            partitions: self.shards.len() as u32,
            retention: Retention::Acknowledged { min_age_ms: 0 },
            max_message_bytes: posthouse_core::message::limits::BODY_BYTES as u32,
            dedupe_window_ms: 0,
            ..TopicConfig::default()
        };
        Ok(self.put_topic_as(&name, role, config, true).await?.0)
    }

    // ---- groups

    /// Makes a group, or gives it another configuration.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn put_group(
        &self,
        name: &str,
        parent: Option<GroupId>,
        config: GroupConfig,
        only_new: bool,
    ) -> Result<(Arc<Group>, Outcome), Problem> {
        if self.catalog().group_named(name).is_none() {
            if parent.is_none() {
                name::check(name)?;
            }
            let (_, groups, _) = self.catalog().counts();
            if groups >= self.limits.groups {
                return Err(too_many("groups", self.limits.groups, "max_groups"));
            }
        }
        let start = config.start;
        let put = MetaCommand::PutGroup { name: name.into(), parent, config, only_new };
        let MetaReply::Group(group, outcome) = self.meta(put).await? else {
            return Err(Problem::internal("a group was asked for"));
        };
        if outcome != Outcome::Unchanged {
            self.sync_group(&group, Some(start)).await?;
            let children: Vec<Arc<Group>> = {
                let catalog = self.catalog();
                catalog.groups().filter(|g| g.parent == Some(group.id)).cloned().collect()
            };
            for child in children {
                self.sync_group(&child, None).await?;
            }
            self.tell(&Change::Group(group.clone()));
        }
        Ok((group, outcome))
    }

    /// Attaches a group to what it gets and detaches it from what it does not. `start`
    /// says where it begins; without it, what the group was made with does for topics
    /// that were there before it.
    async fn sync_group(&self, group: &Arc<Group>, start: Option<Start>) -> Result<(), Problem> {
        let topics = match group.is_active() {
            true => self.catalog().topics_of(group),
            false => Vec::new(),
        };
        for shard in 0..self.shards.len() as u16 {
            let shard = ShardId(shard);
            let id = group.id;
            let attached: BTreeSet<PartitionId> = self
                .look(shard, move |view| {
                    Ok(view.shard.pairs_of(id, u32::MAX).iter().map(|p| p.partition).collect())
                })
                .await?;
            let mut wanted = BTreeSet::new();
            let mut commands = Vec::new();
            for topic in &topics {
                for at in topic.partitions.iter().filter(|p| p.shard == shard) {
                    wanted.insert(at.id);
                    if !attached.contains(&at.id) {
                        let start =
                            start.unwrap_or_else(|| self.catalog().start_on(group, topic, at));
                        let (group, start) = (id, target(start));
                        let (partition, topic) = (at.id, topic.id);
                        commands.push((shard, Command::Attach { group, partition, topic, start }));
                    }
                }
            }
            for partition in attached.difference(&wanted).copied() {
                commands.push((shard, Command::Detach { group: id, partition }));
            }
            self.command_all(commands).await?;
        }
        Ok(())
    }

    /// Deletes a group with its dead letters.
    ///
    /// # Errors
    /// See [`Problem`]. Without `force`, a group that has dead letters stays.
    pub async fn delete_group(&self, name: &str, force: bool) -> Result<(), Problem> {
        let group = self.catalog().group_named(name).cloned();
        let group = group.ok_or_else(|| Problem::no_group(name))?;
        if !force {
            let letters = self.count_letters(&group).await?;
            if letters > 0 {
                let detail = format!("group {name:?} has {letters} dead letters");
                return Err(Problem::new(Kind::Conflict, "group_has_dead_letters", detail)
                    .with_hint("redrive or purge them first, or delete with force=true"));
            }
        }
        self.meta(MetaCommand::DeleteGroup { name: name.into() }).await?;
        let group = self.catalog().group_named(name).cloned();
        match group {
            Some(group) => self.finish_group(&group).await,
            None => Ok(()),
        }
    }

    /// How many dead letters a group has.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn count_letters(&self, group: &Group) -> Result<u64, Problem> {
        let topic = self.catalog().topic_named(&name::dead_letter_topic(&group.name)).cloned();
        let mut count = 0;
        for partition in topic.iter().flat_map(|topic| &topic.partitions) {
            let id = partition.id;
            count +=
                self.look(partition.shard, move |view| Ok(view.shard.count_letters(id))).await?;
        }
        Ok(count)
    }

    async fn finish_group(&self, group: &Arc<Group>) -> Result<(), Problem> {
        // Who waits for its messages is told.
        self.tell(&Change::Group(group.clone()));
        self.sync_group(group, None).await?;
        let children: Vec<Arc<str>> = {
            let catalog = self.catalog();
            let of_it = |g: &&Arc<Group>| g.parent == Some(group.id);
            catalog.groups().filter(of_it).map(|g| g.name.clone()).collect()
        };
        for child in children {
            Box::pin(self.delete_group(&child, true)).await?;
        }
        for topic in [name::dead_letter_topic(&group.name), name::retry_topic(&group.name)] {
            if self.catalog().topic_named(&topic).is_some() {
                self.delete_topic(&topic).await?;
            }
        }
        self.meta(MetaCommand::EndGroup { id: group.id }).await.map(drop)
    }

    // ---- keeping in step

    /// Tells every shard of a change.
    fn tell(&self, change: &Change) {
        for shard in &self.shards {
            let mail = Mail::Changed(vec![change.clone()]);
            // A closed box: the shard has ended, and needs to know nothing any more.
            let _ = shard.send(mail.class(), mail);
        }
    }

    /// Finishes what a crash has left unfinished. Called once, before anybody is served.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn reconcile(&self) -> Result<(), Problem> {
        let (deleting_topics, deleting_groups) = {
            let catalog = self.catalog();
            let topics: Vec<Arc<Topic>> =
                catalog.topics().filter(|t| t.state == Lifecycle::Deleting).cloned().collect();
            let groups: Vec<Arc<Group>> =
                catalog.groups().filter(|g| g.state == Lifecycle::Deleting).cloned().collect();
            (topics, groups)
        };
        for topic in deleting_topics {
            self.finish_topic(&topic).await?;
        }
        for group in deleting_groups {
            self.finish_group(&group).await?;
        }
        for shard in 0..self.shards.len() as u16 {
            self.reconcile_shard(ShardId(shard)).await?;
        }
        Ok(())
    }

    async fn reconcile_shard(&self, shard: ShardId) -> Result<(), Problem> {
        let attached: BTreeSet<(GroupId, PartitionId)> =
            self.look(shard, |view| Ok(view.shard.attachments().collect())).await?;
        let mut missing = Vec::new();
        {
            let catalog = self.catalog();
            for topic in catalog.topics().filter(|topic| topic.is_active()) {
                for group in catalog.groups_of(topic) {
                    let Some(group) = catalog.group(group) else { continue };
                    for at in topic.partitions.iter().filter(|p| p.shard == shard) {
                        // A retry partition is attached with its first message.
                        let has =
                            attached.contains(&(group.id, at.id)) || topic.role != Role::Messages;
                        if !has {
                            let start = target(catalog.start_on(group, topic, at));
                            let (group, partition, topic) = (group.id, at.id, topic.id);
                            let attach = Command::Attach { group, partition, topic, start };
                            missing.push((shard, attach));
                        }
                    }
                }
            }
        }
        self.command_all(missing).await?;
        let gone: Vec<(ShardId, Command)> = {
            let catalog = self.catalog();
            let is_gone = |(group, partition): &&(GroupId, PartitionId)| {
                *group != GroupId::OPERATOR
                    && !matches!(
                        (catalog.group(*group), catalog.topic_of(*partition)),
                        (Some(group), Some(topic)) if catalog.gets(group, topic)
                    )
            };
            let detach = |of: &(GroupId, PartitionId)| {
                (shard, Command::Detach { group: of.0, partition: of.1 })
            };
            attached.iter().filter(is_gone).map(detach).collect()
        };
        self.command_all(gone).await
    }
}

fn target(start: Start) -> Target {
    match start {
        Start::Earliest => Target::Earliest,
        Start::Latest => Target::Latest,
        Start::Time(time) => Target::Time(time),
    }
}

fn too_many(what: &str, most: usize, setting: &str) -> Problem {
    let detail = format!("there are {most} {what} already");
    Problem::new(Kind::Exhausted, "too_many", detail)
        .with_field(what, most, format!("at most {most}"))
        .with_hint(format!("delete some, or raise `{setting}` in the configuration"))
}
