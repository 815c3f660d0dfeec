//! The broker: what every door talks to.
//!
//! A door turns bytes into calls on a [`Broker`] and its answers into bytes; it knows
//! nothing behind it, and no other door. Every call says who asks ([`Caller`]) and is
//! checked here, so that the same operation has the same meaning, limits, errors and
//! permissions whatever the door.

pub mod access;
pub mod access_keys;
pub mod backup;
pub mod consume;
pub mod directory;
pub mod history;
pub mod inspect;
pub mod letters;
pub mod manage;
mod open;
pub mod publish;
mod quota;
pub mod recurring;
pub mod schedule;
mod sort;
pub mod space;
mod subscribe;
pub mod transact;
pub mod users;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use posthouse_core::catalog::{Catalog, Group, Topic};
use posthouse_core::ident::{MessageId, Secret};
use posthouse_core::index::{Found, OwnId};
use posthouse_core::name;
use posthouse_core::{GroupId, PartitionId, ShardId, UnixMs};
use posthouse_log::local::LocalReader;
use tokio::sync::{Notify, Semaphore};

pub use access::{Caller, On};
pub use directory::{CatalogLimits, Directory};
pub use open::{BrokerOptions, Chance, Ground, Part, Parts, Report, StartError};

use crate::problem::Problem;
use crate::shard::ShardMetrics;
use crate::shard::attend::Bodies;
use crate::shard::clock::Time;
use crate::shard::mail::Mail;
use crate::shard::mailbox::Mailbox;
use crate::store::StoreInfo;

/// Bounds on what is asked of a broker at once.
pub mod bounds {
    use std::time::Duration;

    /// The most messages of one publish.
    pub const PUBLISH_MESSAGES: usize = 10_000;
    /// The most bytes of one publish, which is all or nothing; a single message may have
    /// more.
    pub const PUBLISH_BYTES: usize = 8 << 20;
    /// The most messages of one receive.
    pub const RECEIVE_MESSAGES: usize = 10_000;
    /// The most bytes of bodies of one receive; a single message may be larger.
    pub const RECEIVE_BYTES: u64 = 64 << 20;
    /// The bytes of one receive unless it says otherwise.
    pub const RECEIVE_BYTES_DEFAULT: u64 = 4 << 20;
    /// The most bytes of bodies that go together on a stream, whatever its credit; a single
    /// message may be larger. Whoever does not read keeps so much in memory.
    pub const STREAM_BYTES: u64 = 1 << 20;
    /// The longest wait of one receive.
    pub const WAIT: Duration = Duration::from_secs(300);
    /// The most receipts of one request.
    pub const RECEIPTS: usize = 10_000;
    /// The longest name of a consumer, in bytes.
    pub const CONSUMER_BYTES: usize = 200;
    /// The most messages that one page of a list has.
    pub const PAGE: usize = 1000;
    /// The most bytes of bodies that one page has; a single message may be larger.
    pub const PAGE_BYTES: u64 = 16 << 20;
    /// The most transactions that one ask for checks gets.
    pub const CHECKS: usize = 100;
    /// The most bytes of nack reasons that go to a shard together.
    pub const REASON_BYTES: usize = 1 << 20;
    /// Bytes of bodies on their way into the log, over all connections.
    pub const BYTES_IN_FLIGHT: usize = 64 << 20;
}

/// One shard, as the broker sees it.
#[derive(Debug)]
pub struct ShardHandle {
    /// Its number.
    pub id: ShardId,
    /// Where commands go.
    pub mailbox: Mailbox<Mail>,
    /// Its bodies.
    pub bodies: Bodies<LocalReader>,
    /// Its figures.
    pub metrics: Arc<ShardMetrics>,
}

/// A running node.
#[derive(Debug)]
pub struct Broker {
    info: StoreInfo,
    secret: Secret,
    options: BrokerOptions,
    directory: Arc<Directory>,
    shards: Vec<ShardHandle>,
    /// How far the catalog's log has come.
    meta_reader: LocalReader,
    backups: backup::Backups,
    quotas: quota::Quotas,
    /// A permit for every KiB of bodies on their way into the log.
    bytes_in_flight: Arc<Semaphore>,
    /// Where messages without a key go, by topic.
    turn: AtomicU64,
    /// Whether anybody is there of a group that goes by itself.
    seen: Arc<Mutex<HashMap<GroupId, Seen>>>,
    /// Held while a group's subscriptions are changed.
    subscribing: tokio::sync::Mutex<()>,
    space: Arc<space::SpaceGuard>,
    /// Changes of users come one after the other: each looks at all of them first.
    user_changes: Arc<tokio::sync::Mutex<()>>,
    /// Who may be asked about transactions now: looked at twice a second while anybody
    /// waits for that.
    checks: tokio::sync::watch::Sender<transact::Ready>,
    recurrence: recurring::Recurrence,
    is_stopping: AtomicBool,
    /// Rung when the node has failed and must end.
    failure: Arc<Failure>,
    threads: Mutex<Option<open::Threads>>,
    started: Instant,
    time: Arc<dyn Time>,
}

/// When somebody of a group was last there.
#[derive(Clone, Copy, Debug)]
struct Seen {
    last: Instant,
    /// How many are there now.
    here: usize,
}

/// A consumer of a group is there as long as this is held: a group that goes when it has
/// been away for a time stays.
#[derive(Debug)]
#[must_use]
pub struct Presence {
    seen: Arc<Mutex<HashMap<GroupId, Seen>>>,
    /// The group, and the one whose configuration counts for it.
    groups: [Option<GroupId>; 2],
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.groups == [None; 2] {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for group in self.groups.iter().flatten() {
            if let Some(seen) = seen.get_mut(group) {
                seen.here -= 1;
                seen.last = Instant::now();
            }
        }
    }
}

/// Why a node has to end.
#[derive(Debug, Default)]
pub struct Failure {
    what: Mutex<Option<String>>,
    bell: Notify,
}

impl Failure {
    pub(crate) fn report(&self, what: String) {
        let mut held = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert(what);
        drop(held);
        self.bell.notify_waiters();
    }

    /// Waits until the node has failed, and says why.
    pub async fn wait(&self) -> String {
        loop {
            let rung = self.bell.notified();
            if let Some(what) = self.get() {
                return what;
            }
            rung.await;
        }
    }

    /// Why the node has failed, if it has.
    pub fn get(&self) -> Option<String> {
        self.what.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Broker {
    /// What the store says of itself.
    pub fn info(&self) -> &StoreInfo {
        &self.info
    }

    /// The settings that it runs with.
    pub fn options(&self) -> &BrokerOptions {
        &self.options
    }

    /// The catalog, as far as it is durable.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.directory.catalog()
    }

    /// Its shards.
    pub fn shards(&self) -> &[ShardHandle] {
        &self.shards
    }

    /// How long it has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The time of the day.
    pub fn now(&self) -> UnixMs {
        UnixMs(self.time.wall_ms())
    }

    /// Why and when it fails.
    pub fn failure(&self) -> &Arc<Failure> {
        &self.failure
    }

    /// Room on the disk, as it was last looked at.
    pub fn space(&self) -> &space::SpaceGuard {
        &self.space
    }

    /// Publishes that were refused because a quota was used up.
    pub fn over_quota(&self) -> u64 {
        self.quotas.refused()
    }

    /// Whether it takes work: it is neither stopping nor failed.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping.load(Ordering::Acquire) && self.failure.get().is_none()
    }

    /// The caller who shows `token`, or none.
    ///
    /// # Errors
    /// If users are defined and the token belongs to none.
    pub fn identify(&self, token: Option<&str>) -> Result<Caller, Problem> {
        Caller::identify(&self.catalog(), token)
    }

    /// The caller as it is now: see [`Caller::again`].
    ///
    /// # Errors
    /// If the caller may not be here any more.
    pub fn identify_again(&self, caller: &Caller) -> Result<Caller, Problem> {
        caller.again(&self.catalog())
    }

    fn shard(&self, id: ShardId) -> Result<&ShardHandle, Problem> {
        self.shards
            .get(usize::from(id.0))
            .ok_or_else(|| Problem::internal(format!("there is no shard {id}")))
    }

    /// Whether topics and groups are made on first use.
    pub fn auto_creates(&self) -> bool {
        self.options.auto_create.unwrap_or_else(|| self.is_open())
    }

    /// Whether anyone may do anything: see [`access::is_open`].
    pub fn is_open(&self) -> bool {
        access::is_open(&self.catalog())
    }

    fn topic(&self, name: &str) -> Result<Arc<Topic>, Problem> {
        let topic = self.catalog().topic_named(name).cloned();
        topic.filter(|topic| topic.is_active()).ok_or_else(|| Problem::no_topic(name))
    }

    fn group(&self, name: &str) -> Result<Arc<Group>, Problem> {
        let group = self.catalog().group_named(name).cloned();
        group.filter(|group| group.is_active()).ok_or_else(|| Problem::no_group(name))
    }

    /// The partition that users call number `index` of a topic.
    fn partition(&self, topic: &Topic, index: u32) -> Result<(PartitionId, ShardId), Problem> {
        topic.partitions.get(index as usize).map(|p| (p.id, p.shard)).ok_or_else(|| {
            let count = topic.partitions.len();
            Problem::invalid("partition", index, format!("the topic has {count}, from 0"))
        })
    }

    /// The id of a message in a partition.
    fn id_at(&self, shard: ShardId, partition: PartitionId, found: &Found) -> MessageId {
        use posthouse_core::ident::{IdKind, IdParts};
        let (kind, number) = match found.id {
            OwnId::Position => (IdKind::Stored, found.position),
            OwnId::Seq(seq) => (IdKind::Scheduled, seq),
            OwnId::Other(id) => return id,
        };
        MessageId::new(&self.secret, IdParts { kind, shard, partition, number })
    }

    /// Does what has to be done now and then, until the node stops.
    async fn keep_house(of: Weak<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Some(broker) = of.upgrade().filter(|broker| broker.is_ready()) else { return };
            broker.space.look();
            if broker.space.is_full() {
                broker.free_segments();
            }
            broker.watch_backup();
            broker.quotas.tidy();
            broker.expire_groups().await;
        }
    }

    /// With no room nothing comes in, and without that no snapshot is due: but only a
    /// snapshot lets segments go in which nothing is left.
    fn free_segments(&self) {
        for shard in &self.shards {
            let mail = crate::shard::mail::Mail::WantSnapshot;
            // A closed box: the loop has ended, and frees nothing any more.
            let _ = shard.mailbox.send(mail.class(), mail);
        }
    }

    /// Lets groups go of which nobody has been there in the time they have.
    async fn expire_groups(&self) {
        let groups: Vec<Arc<Group>> = self.catalog().expiring().cloned().collect();
        let expired: Vec<Arc<Group>> = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that are there are in order.
            let is_there = |id: &GroupId| groups.binary_search_by_key(id, |group| group.id).is_ok();
            seen.retain(|id, seen| seen.here > 0 || is_there(id));
            // After a start a group counts as seen then.
            let now = Seen { last: Instant::now(), here: 0 };
            for group in &groups {
                seen.entry(group.id).or_insert(now);
            }
            let is_over = |group: &Arc<Group>| group.is_active() && is_away(group, &seen);
            groups.into_iter().filter(is_over).collect()
        };
        for group in expired {
            // It may have come back while others went.
            let is_back = {
                let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                !is_away(&group, &seen)
            };
            if is_back {
                continue;
            }
            let name = &group.name;
            tracing::info!("group {name} has been away for the time it has, and goes");
            if let Err(problem) = self.directory.delete_group(name, true).await {
                tracing::warn!("group {name} cannot be deleted: {problem}");
            }
        }
    }

    /// Somebody of a group is there, until this is dropped.
    fn be_present(&self, group: &Group) -> Presence {
        let goes = |group: &Group| group.config.expire_after_ms.map(|_| group.id);
        let parent = group.parent.and_then(|id| goes(self.catalog().group(id)?));
        let groups = [goes(group), parent];
        if groups != [None; 2] {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            for group in groups.into_iter().flatten() {
                let now = Seen { last: Instant::now(), here: 0 };
                seen.entry(group).or_insert(now).here += 1;
            }
        }
        Presence { seen: self.seen.clone(), groups }
    }

    /// A consumer of a group is there although it asks for nothing: for doors whose consumers
    /// stay. `consumer` if it has its own copy of everything.
    pub fn presence(&self, group: &str, consumer: Option<&str>) -> Presence {
        let own = consumer.map(|consumer| name::broadcast_group(group, consumer));
        match self.group(own.as_deref().unwrap_or(group)) {
            Ok(group) => self.be_present(&group),
            Err(_) => Presence { seen: self.seen.clone(), groups: [None; 2] },
        }
    }
}

/// Whether a group that goes by itself has been away for the time it has.
fn is_away(group: &Group, seen: &HashMap<GroupId, Seen>) -> bool {
    let Some(ms) = group.config.expire_after_ms else { return false };
    let away = |seen: &Seen| seen.here == 0 && seen.last.elapsed() >= Duration::from_millis(ms);
    seen.get(&group.id).is_some_and(away)
}
