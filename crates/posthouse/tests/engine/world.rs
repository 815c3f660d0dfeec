//! A shard's loop over a log in memory, turn by turn, with a clock that stands still.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use bytes::BufMut as _;
use posthouse::problem::Problem;
use posthouse::shard::engine::Rest;
use posthouse::shard::mailbox::Classes;
use posthouse::shard::waiters::Came;
use posthouse::shard::{Effect, Engine, EngineOptions, Mail, ShardMetrics, Ticket, Waiter};
use posthouse_core::catalog::machine::{Command as MetaCommand, Reply as MetaReply};
use posthouse_core::catalog::{
    Catalog, Change, Group, GroupConfig, Role, Subscription, Topic, TopicConfig,
};
use posthouse_core::ident::Secret;
use posthouse_core::index::TagSet;
use posthouse_core::queue::command::{Batch, Reply, Target};
use posthouse_core::queue::{Command, Delivery, Shard};
use posthouse_core::record::Draft;
use posthouse_core::{Now, ShardId, ShardMs, UnixMs};
use posthouse_frame::{FrameBuf, FrameNo};
use posthouse_log::memory::{MemoryLog, MemoryOptions, MemoryStore};
use posthouse_log::{Log, LogReader as _, Part};
use tokio::sync::oneshot;

pub const T0: u64 = 1_900_000_000_000;

pub type Answer<T> = oneshot::Receiver<Result<T, Problem>>;

pub struct World<L: Log> {
    pub engine: Engine<L>,
    pub catalog: Arc<RwLock<Catalog>>,
    pub mail: Classes<Mail>,
    pub now: Now,
    pub effects: VecDeque<Effect>,
    pub reader: L::Reader,
    secret: Secret,
    meta_frames: u64,
}

/// What a consumer of a group asks for.
#[derive(Clone, Copy, Default)]
pub struct Wants {
    pub max: usize,
    pub wait_ms: u64,
}

impl World<MemoryLog> {
    pub fn new() -> Self {
        World::with(EngineOptions::default())
    }

    pub fn with(options: EngineOptions) -> Self {
        let log = MemoryLog::open(&MemoryStore::new(), MemoryOptions::default()).unwrap();
        World::over(log, options)
    }
}

impl<L: Log> World<L> {
    pub fn over(log: L, options: EngineOptions) -> Self {
        let secret = Secret::new([7; 32]);
        let catalog = Arc::new(RwLock::new(Catalog::new(secret)));
        let reader = log.reader();
        let engine = Engine::new(
            Shard::new(ShardId(0)),
            log,
            catalog.clone(),
            options,
            (FrameNo::ZERO, 1),
            Arc::new(ShardMetrics::default()),
        );
        World {
            engine,
            catalog,
            mail: Classes::default(),
            now: Now { wall: UnixMs(T0), lease: ShardMs(T0) },
            effects: VecDeque::new(),
            reader,
            secret,
            meta_frames: 0,
        }
    }

    pub fn advance(&mut self, ms: u64) {
        self.now.wall.0 += ms;
        self.now.lease.0 += ms;
    }

    pub fn send(&mut self, mail: Mail) {
        self.mail[mail.class()].push_back(mail);
    }

    /// One turn.
    pub fn turn(&mut self) -> Rest {
        let rest = self.engine.turn(&mut self.mail, self.now);
        self.effects.extend(self.engine.take_effects());
        rest
    }

    /// Turns until there is nothing to do, and once more: what rests on the last frame leaves
    /// with the turn that sees that it is durable.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let rest = self.turn();
            if !rest.busy && self.mail.iter().all(VecDeque::is_empty) {
                self.turn();
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Bytes of the largest frame in the log.
    pub fn largest_frame(&self) -> u64 {
        let frames = self.reader.scan(FrameNo::ZERO, Part::Meta).unwrap();
        frames.map(|frame| frame.unwrap().header.content_bytes()).max().unwrap_or(0)
    }

    fn meta(&mut self, command: MetaCommand) -> MetaReply {
        self.meta_frames += 1;
        let mut frame = FrameBuf::new(FrameNo(self.meta_frames));
        let mut catalog = self.catalog.write().unwrap();
        let reply = catalog.decide(&command, self.now.wall, &mut frame).unwrap();
        let changes = Change::read_all(frame.meta()).unwrap();
        changes.iter().for_each(|change| catalog.adopt(change));
        reply
    }

    pub fn topic(&mut self, name: &str) -> Arc<Topic> {
        let put = MetaCommand::PutTopic {
            name: name.into(),
            role: Role::Messages,
            config: TopicConfig::default(),
            shards: 1,
            only_new: false,
        };
        let MetaReply::Topic(topic, _) = self.meta(put) else { panic!() };
        topic
    }

    pub fn group(&mut self, name: &str, topics: &[&Topic], mut config: GroupConfig) -> Arc<Group> {
        let filter = config.subscriptions.pop().map_or("*".into(), |of| of.filter);
        config.subscriptions = topics
            .iter()
            .map(|topic| Subscription { topic: topic.name.to_string(), filter: filter.clone() })
            .collect();
        let put =
            MetaCommand::PutGroup { name: name.into(), parent: None, config, only_new: false };
        let MetaReply::Group(group, _) = self.meta(put) else { panic!() };
        for topic in topics {
            let (group, partition, start) = (group.id, topic.partitions[0].id, Target::Earliest);
            self.command(Command::Attach { group, partition, topic: topic.id, start });
        }
        self.send(Mail::Changed(vec![Change::Group(group.clone())]));
        self.turn();
        group
    }

    /// Begins to delete a group, as the directory does.
    pub fn delete_group(&mut self, name: &str) {
        self.meta(MetaCommand::DeleteGroup { name: name.into() });
        let group = self.catalog.read().unwrap().group_named(name).unwrap().clone();
        self.send(Mail::Changed(vec![Change::Group(group)]));
    }

    pub fn command(&mut self, command: Command) -> Answer<Reply> {
        let (tx, rx) = oneshot::channel();
        self.send(Mail::Command { command, tx, room: None });
        self.turn();
        rx
    }

    pub fn batch(&self, topic: &Topic, count: usize, key: impl Fn(usize) -> u64) -> Batch {
        self.tagged(topic, count, key, "")
    }

    fn tagged(&self, topic: &Topic, count: usize, key: impl Fn(usize) -> u64, tag: &str) -> Batch {
        let (partition, topic) = (topic.partitions[0].id, topic.id);
        let mut batch = Batch { partition, topic, ..Batch::default() };
        let tags: Vec<u64> = match tag {
            "" => Vec::new(),
            tag => vec![self.secret.hash(tag.as_bytes())],
        };
        for n in 0..count {
            let len = batch.bodies.seal(|out| out.put_slice(tag.as_bytes()));
            let (key, tags) = (key(n), TagSet::of(&tags));
            batch.drafts.push(Draft { len, key, tags, ..Draft::default() });
        }
        batch
    }

    /// Publishes messages with a tag, which is also what they hold.
    pub fn publish(&mut self, topic: &Topic, count: usize, tag: &str) {
        let batches = vec![self.tagged(topic, count, |_| 0, tag)];
        let mut answer = self.command(Command::Publish { batches, apart: false });
        self.turn();
        assert!(matches!(answer.try_recv(), Ok(Ok(Reply::Published(_)))));
    }

    pub fn waiter(
        &self,
        group: &Group,
        topic: Option<&Topic>,
        wants: Wants,
    ) -> (Waiter, Answer<Vec<Delivery>>) {
        let (tx, rx) = oneshot::channel();
        let waiter = Waiter {
            group: group.id,
            consumer: "c".into(),
            max: wants.max.max(1),
            max_bytes: u64::MAX,
            lease_ms: 30_000,
            topic: topic.map(|topic| topic.id),
            auto_ack: false,
            wait_ms: wants.wait_ms,
            came: Came::default(),
            ticket: Ticket::default(),
            tx,
        };
        (waiter, rx)
    }

    pub fn receive(
        &mut self,
        group: &Group,
        topic: Option<&Topic>,
        wants: Wants,
    ) -> Answer<Vec<Delivery>> {
        let (waiter, answer) = self.waiter(group, topic, wants);
        self.send(Mail::Receive(waiter));
        answer
    }
}

/// How many messages have come; `None` if there is no answer yet.
pub fn came(answer: &mut Answer<Vec<Delivery>>) -> Option<usize> {
    match answer.try_recv() {
        Ok(deliveries) => Some(deliveries.expect("it is not refused").len()),
        Err(oneshot::error::TryRecvError::Empty) => None,
        Err(oneshot::error::TryRecvError::Closed) => panic!("nobody will answer"),
    }
}

/// The code of the problem that a request was refused with.
pub fn refused<T: std::fmt::Debug>(answer: &mut Answer<T>) -> &'static str {
    answer.try_recv().expect("there is an answer").expect_err("it is refused").code
}
