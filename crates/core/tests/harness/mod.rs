//! A shard with its catalog, its log and its chunks, all in memory, driven step by
//! step. Whatever it does it can do again from the log alone, and from any snapshot.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use posthouse_core::catalog::machine::{Command as MetaCommand, Reply as MetaReply};
use posthouse_core::catalog::{Catalog, Group, GroupConfig, Role, Topic, TopicConfig};
use posthouse_core::chunk::{ChunkId, Chunks, Directory, Miss, SealedChunk};
use posthouse_core::ident::Secret;
use posthouse_core::index::{Found, IndexChunk, TagSet, block, fold};
use posthouse_core::machine::Machine;
use posthouse_core::page::PageId;
use posthouse_core::queue::clean::{self, AsOf, Candidate, Search};
use posthouse_core::queue::command::{
    Batch, Copied, Ended, Held, Preparation, Prepared, Published, Refusal, Reply, Target,
};
use posthouse_core::queue::{Ask, Command, Delivery, Due, DueBudget, Granted, Shard};
use posthouse_core::record::{Draft, EntryDedupe, Later, NameTaken, When};
use posthouse_core::schedule::{Body, Freeze, Item, Limits, Run, run};
use posthouse_core::{GroupId, Now, PartitionId, Position, Seq, ShardId, ShardMs, TopicId, UnixMs};
use posthouse_frame::{BodyBuf, BodyRef, Frame, FrameBuf, FrameNo, body};

/// Blocks of chunks. A part of the questions for a block is answered with a miss;
/// a block that was fetched stays until whoever needed it is done.
#[derive(Default)]
pub struct Store {
    blocks: BTreeMap<Miss, Bytes>,
    pinned: RefCell<BTreeSet<Miss>>,
    dice: Cell<u64>,
    /// How many questions in 100 are a miss at first.
    pub miss_percent: u64,
    pub misses: Cell<u64>,
}

impl Chunks for Store {
    fn block(&self, chunk: ChunkId, block: u32) -> Option<Bytes> {
        let name = Miss { chunk, block };
        let dice =
            self.dice.get().wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.dice.set(dice);
        if (dice >> 33) % 100 < self.miss_percent && !self.pinned.borrow().contains(&name) {
            self.misses.set(self.misses.get() + 1);
            return None;
        }
        Some(self.blocks[&name].clone())
    }
}

impl Store {
    fn keep(&mut self, chunk: &SealedChunk) {
        for (block, data) in (0..).zip(&chunk.pieces[..chunk.directory.blocks.len()]) {
            self.blocks.insert(Miss { chunk: chunk.directory.id, block }, data.clone());
        }
    }

    /// Fetches a block, and keeps it until [`Store::unpin`].
    fn fetch(&self, miss: Miss) {
        assert!(self.blocks.contains_key(&miss), "there is no {miss}");
        self.pinned.borrow_mut().insert(miss);
    }

    fn unpin(&self) {
        self.pinned.borrow_mut().clear();
    }
}

/// A snapshot: pages, and the index chunks with the frame up to which they go.
#[derive(Clone)]
pub struct Snapshot {
    pub frame: FrameNo,
    pub digest: u64,
    pages: BTreeMap<PageId, Vec<u8>>,
    chunks: Vec<Arc<Directory>>,
    runs: Vec<Arc<Directory>>,
    /// Where firing goes on.
    from: UnixMs,
}

pub struct World {
    pub secret: Secret,
    pub catalog: Catalog,
    pub shard: Shard,
    pub store: Store,
    pub now: Now,
    pub log: Vec<Frame>,
    pub open: FrameBuf,
    pub snapshot: Snapshot,
    chunks: u64,
    /// No body is read from frames up to this one any more: what was in them was carried.
    pub emptied: FrameNo,
    /// The pages of a snapshot were lost: the next holds all of them.
    lost: bool,
    meta_frames: u64,
}

pub const T0: u64 = 1_900_000_000_000;

#[derive(Clone, Debug, Default)]
pub struct Msg {
    pub body: String,
    pub key: Option<String>,
    pub tags: Vec<String>,
    pub ttl_ms: Option<u64>,
    pub dedupe: Option<String>,
    /// When it is due, if not at once.
    pub when: Option<When>,
    pub name: Option<String>,
    pub taken: NameTaken,
}

impl Msg {
    pub fn of(body: &str) -> Msg {
        Msg { body: body.into(), ..Msg::default() }
    }
}

impl World {
    pub fn new() -> World {
        let secret = Secret::new([7; 32]);
        let shard = new_shard();
        let snapshot = Snapshot {
            frame: FrameNo::ZERO,
            digest: shard.digest(),
            pages: BTreeMap::new(),
            chunks: Vec::new(),
            runs: Vec::new(),
            from: UnixMs(0),
        };
        World {
            secret,
            catalog: Catalog::new(secret),
            shard,
            store: Store::default(),
            now: Now { wall: UnixMs(T0), lease: ShardMs(T0) },
            log: Vec::new(),
            open: FrameBuf::new(FrameNo(1)),
            snapshot,
            chunks: 0,
            emptied: FrameNo::ZERO,
            lost: false,
            meta_frames: 0,
        }
    }

    pub fn advance(&mut self, ms: u64) {
        self.now.wall.0 += ms;
        self.now.lease.0 += ms;
    }

    // ---- catalog

    pub fn meta(&mut self, command: MetaCommand) -> MetaReply {
        self.meta_frames += 1;
        let number = FrameNo(self.meta_frames);
        let mut frame = FrameBuf::new(number);
        let reply = self.catalog.decide(&command, self.now.wall, &mut frame).unwrap();
        self.catalog.apply(number, frame.meta()).unwrap();
        reply
    }

    pub fn topic(&mut self, name: &str, config: TopicConfig) -> Arc<Topic> {
        self.topic_as(name, Role::Messages, config)
    }

    fn topic_as(&mut self, name: &str, role: Role, config: TopicConfig) -> Arc<Topic> {
        let put =
            MetaCommand::PutTopic { name: name.into(), role, config, shards: 1, only_new: false };
        let MetaReply::Topic(topic, _) = self.meta(put) else { panic!() };
        for partition in &topic.partitions {
            for group in self.catalog.groups_of(&topic) {
                self.attach(group, partition.id, topic.id, Target::Earliest);
            }
            self.shard.reconsider(partition.id);
        }
        topic
    }

    pub fn group(&mut self, name: &str, config: GroupConfig, start: Target) -> Arc<Group> {
        let put =
            MetaCommand::PutGroup { name: name.into(), parent: None, config, only_new: false };
        let MetaReply::Group(group, _) = self.meta(put) else { panic!() };
        for topic in self.catalog.topics_of(&group) {
            for partition in &topic.partitions {
                self.attach(group.id, partition.id, topic.id, start);
            }
        }
        self.shard.poke(group.id);
        group
    }

    fn attach(&mut self, group: GroupId, partition: PartitionId, topic: TopicId, start: Target) {
        let reply = self.run(Command::Attach { group, partition, topic, start });
        assert_eq!(reply, Reply::Done);
    }

    // ---- commands

    /// Decides and applies; fetches what is missing and asks again.
    pub fn run(&mut self, mut command: Command) -> Reply {
        loop {
            let before = self.open.meta().len();
            let decided = self.shard.decide(
                &mut command,
                &self.catalog,
                &self.store,
                self.now,
                &mut self.open,
            );
            match decided {
                Ok(reply) => {
                    self.apply_from(before);
                    self.store.unpin();
                    return reply;
                }
                Err(miss) => {
                    let may = !matches!(
                        command,
                        Command::Publish { .. }
                            | Command::Prepare(_)
                            | Command::Rollback { .. }
                            | Command::TakeChecks { .. }
                            | Command::Ack(_)
                            | Command::Nack(_)
                            | Command::Extend { .. }
                    );
                    assert!(may, "{command:?} must never miss");
                    assert_eq!(self.open.meta().len(), before, "a miss has written something");
                    self.store.fetch(miss);
                }
            }
        }
    }

    fn apply_from(&mut self, start: usize) {
        let meta = self.open.meta()[start..].to_vec();
        self.shard.apply(self.open.no(), &meta).unwrap();
    }

    pub fn batch(&self, partition: PartitionId, topic: TopicId, messages: &[Msg]) -> Batch {
        let mut batch = Batch { partition, topic, ..Batch::default() };
        for message in messages {
            let len = batch.bodies.seal(|out| out.put_slice(message.body.as_bytes()));
            let tags: Vec<u64> =
                message.tags.iter().map(|tag| self.secret.hash(tag.as_bytes())).collect();
            batch.drafts.push(Draft {
                len,
                key: message.key.as_ref().map_or(0, |key| self.secret.hash(key.as_bytes())),
                tags: TagSet::of(&tags),
                ttl_ms: message.ttl_ms,
                dedupe: message.dedupe.as_ref().map(|id| {
                    Box::new(EntryDedupe {
                        id: self.secret.hash128(id.as_bytes()),
                        digest: self.secret.hash(message.body.as_bytes()),
                    })
                }),
                later: message.when.map(|when| {
                    let name = message.name.as_ref().map(|n| self.secret.hash128(n.as_bytes()));
                    Box::new(Later { when, name, taken: message.taken })
                }),
            });
        }
        batch
    }

    pub fn publish(
        &mut self,
        topic: &Topic,
        index: usize,
        messages: &[Msg],
    ) -> Result<Published, Refusal> {
        let batch = self.batch(topic.partitions[index].id, topic.id, messages);
        match self.run(Command::Publish { batches: vec![batch], apart: false }) {
            Reply::Published(mut published) => Ok(published.remove(0)),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// Prepares messages, each list for the first partition of a topic. Returns the number
    /// of the transaction, and whether it had come before.
    pub fn prepare(
        &mut self,
        producer: &str,
        lists: &[(&Topic, Vec<Msg>)],
    ) -> Result<Prepared, Refusal> {
        let batch = |(topic, messages): &(&Topic, Vec<Msg>)| {
            self.batch(topic.partitions[0].id, topic.id, messages)
        };
        let batches = lists.iter().map(batch).collect();
        let what = Preparation { batches, producer: producer.into(), ..Preparation::default() };
        match self.run(Command::Prepare(what)) {
            Reply::Prepared(prepared) => Ok(prepared),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// Commits a transaction, or rolls it back.
    pub fn end(&mut self, first: Seq, is_commit: bool) -> Result<Ended, Refusal> {
        let command = match is_commit {
            true => Command::Commit { first },
            false => Command::Rollback { first },
        };
        match self.run(command) {
            Reply::Ended(ended) => Ok(ended),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// What a producer is asked about now: numbers of transactions, and which check it is.
    pub fn checks(&mut self, producer: &str) -> Vec<(Seq, u16)> {
        let producer = producer.into();
        let take = Command::TakeChecks { producer, topic: None, most: 100 };
        match self.run(take) {
            Reply::Checks(checks) => checks.iter().map(|c| (c.first, c.check)).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Asks until there is nothing more to fetch, judging texts as it goes.
    pub fn receive(&mut self, ask: &Ask<'_>, judge: &dyn Fn(&Found) -> bool) -> Vec<Delivery> {
        for _ in 0..1000 {
            let before = self.open.meta().len();
            let Granted { deliveries, misses, peek, more, too_many_consumers, .. } =
                self.shard.grant(ask, &self.catalog, &self.store, self.now, &mut self.open);
            assert!(!too_many_consumers);
            self.apply_from(before);
            for miss in &misses {
                self.store.fetch(*miss);
                self.shard.fetched(*miss);
            }
            if let Some(peek) = peek {
                assert!(deliveries.is_empty(), "who has got something does not wait");
                let pass: Vec<Position> =
                    peek.candidates.iter().filter(|f| judge(f)).map(|f| f.position).collect();
                let claim = Command::Claim(posthouse_core::queue::command::Claim {
                    group: peek.group,
                    partition: peek.partition,
                    from: peek.from,
                    upto: peek.upto,
                    pass,
                    max: ask.max,
                    max_bytes: ask.max_bytes,
                    consumer: ask.consumer.into(),
                    lease_ms: ask.lease_ms,
                    auto_ack: ask.auto_ack,
                });
                let Reply::Claimed(deliveries) = self.run(claim) else { panic!() };
                self.shard.judged(peek.group, peek.partition);
                if !deliveries.is_empty() {
                    return deliveries;
                }
                continue;
            }
            // What was applied may have called the group again.
            let called = self.shard.take_called().contains(&ask.group);
            if !deliveries.is_empty() || (misses.is_empty() && !more && !called) {
                self.store.unpin();
                return deliveries;
            }
        }
        panic!("a receive does not end");
    }

    /// Does all that is due now, and buries what is to be buried.
    pub fn due(&mut self) {
        for _ in 0..10_000 {
            let before = self.open.meta().len();
            let due: Due = self.shard.due(
                &self.catalog,
                &self.store,
                self.now,
                DueBudget::default(),
                &mut self.open,
            );
            let wrote = self.open.meta().len() > before;
            self.apply_from(before);
            due.misses.iter().chain(&due.ahead).for_each(|miss| self.store.fetch(*miss));
            let buried = !due.burials.is_empty();
            if buried {
                self.seal();
            }
            for burial in due.burials {
                self.bury(burial);
            }
            let fetches = !due.misses.is_empty() || !due.ahead.is_empty();
            if !wrote && !buried && !fetches && !due.more {
                self.store.unpin();
                return;
            }
        }
        panic!("what is due never ends");
    }

    fn bury(&mut self, burial: posthouse_core::queue::command::Burial) {
        let group = self.catalog.group(burial.group).unwrap().clone();
        let name = posthouse_core::name::dead_letter_topic(&group.name);
        let topic = match self.catalog.topic_named(&name) {
            Some(topic) => topic.clone(),
            None => self.topic_as(&name, Role::DeadLetters(group.id), keep_nothing()),
        };
        let copy = self.copy(&burial.found, &format!(" <{}>", burial.error));
        let to = (topic.partitions[0].id, topic.id);
        self.run(Command::Bury { burial, to, copy });
    }

    /// The body again, with something at its end.
    pub fn copy(&self, found: &Found, end: &str) -> Copied {
        let content = self.body(found.body) + end;
        let mut body = BodyBuf::default();
        let len = body.seal(|out| out.put_slice(content.as_bytes()));
        let draft = Draft { len, key: found.key, tags: found.tags.clone(), ..Draft::default() };
        Copied { body, draft }
    }

    pub fn redrive(&mut self, group: &Group, positions: &[Position]) -> u64 {
        let dead = posthouse_core::name::dead_letter_topic(&group.name);
        let Some(dead) = self.catalog.topic_named(&dead).cloned() else { return 0 };
        let name = posthouse_core::name::retry_topic(&group.name);
        let retry = match self.catalog.topic_named(&name) {
            Some(topic) => topic.clone(),
            None => self.topic_as(&name, Role::Retry(group.id), keep_nothing()),
        };
        self.seal();
        let from = dead.partitions[0].id;
        let mut letters = Vec::new();
        for position in positions {
            if let Some(found) = self.find(from, *position) {
                letters.push((*position, self.copy(&found, "")));
            }
        }
        let to = (group.id, retry.partitions[0].id, retry.id);
        match self.run(Command::Redrive { from, to, letters }) {
            Reply::Count(count) => count,
            other => panic!("{other:?}"),
        }
    }

    pub fn find(&self, partition: PartitionId, position: Position) -> Option<Found> {
        loop {
            match self.shard.message(partition, position, &self.store) {
                Ok(found) => return found,
                Err(miss) => self.store.fetch(miss),
            }
        }
    }

    /// What a body holds, wherever it is.
    pub fn body(&self, place: BodyRef) -> String {
        assert!(place.frame < self.open.no(), "seal before you read {place}");
        assert!(place.frame > self.emptied, "the body at {place} was to be carried");
        let frame = &self.log[place.frame.0 as usize - 1];
        let sealed = frame.sealed(place.at, place.len).expect("the body is in its frame");
        let content = body::open(sealed, place).expect("the body holds");
        String::from_utf8(content.to_vec()).unwrap()
    }

    /// Fetches a block, until whoever needs it is done.
    pub fn fetch(&self, miss: Miss) {
        self.store.fetch(miss);
    }

    // ---- frames, snapshots, restarts

    /// Closes the open frame, if it holds anything.
    pub fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let next = FrameBuf::new(self.open.no().next());
        let frame = std::mem::replace(&mut self.open, next).seal(self.now.wall.0, self.now.lease.0);
        self.shard.sealed(frame.no, frame.content_bytes());
        self.log.push(frame);
    }

    /// Takes a snapshot, with `meanwhile` called while it is being taken.
    pub fn take_snapshot(&mut self, mut meanwhile: impl FnMut(&mut World)) {
        self.seal();
        let frame = FrameNo(self.log.len() as u64);
        let digest = self.shard.digest();
        let frozen = self.shard.index_mut().freeze();
        let schedule = self.shard.schedule_mut().freeze(self.now);
        self.shard.begin_snapshot();
        let mut pages = match std::mem::take(&mut self.lost) {
            true => BTreeMap::new(),
            false => self.snapshot.pages.clone(),
        };
        loop {
            let (captured, done) = self.shard.walk(2);
            for (id, bytes) in captured {
                match bytes {
                    Some(bytes) => pages.insert(id, bytes),
                    None => pages.remove(&id),
                };
            }
            if done {
                break;
            }
            meanwhile(self);
        }
        let mut chunks = self.snapshot.chunks.clone();
        if let Some(frozen) = frozen {
            self.chunks += 1;
            let id = ChunkId { epoch: 1, number: self.chunks };
            let chunk = block::build(&frozen, 5, id);
            self.store.keep(&chunk);
            self.shard.index_mut().install(&chunk);
            chunks.push(chunk.directory.clone());
        }
        let from = schedule.from;
        let runs = self.keep_runs(frame, schedule);
        let sum = pages.iter().fold(0u64, |sum, (id, bytes)| sum.wrapping_add(id.hash(bytes)));
        assert_eq!(sum, digest, "the digest is the sum over the pages of the snapshot");
        self.snapshot = Snapshot { frame, digest, pages, chunks, runs, from };
    }

    /// Takes a snapshot, and makes one chunk of the index of all of them.
    pub fn fold(&mut self) {
        self.take_snapshot(|_| ());
        self.chunks += 1;
        let id = ChunkId { epoch: 1, number: self.chunks };
        let inputs = self.shard.index().chunks().to_vec();
        let made = {
            let (mut page, mut block) = (page_of(&self.snapshot), block_of(&self.store));
            let mut as_of = AsOf::new(&mut page);
            fold::fold(&inputs, (5, id), &mut block, &mut |of, found| as_of.place(of, found))
        };
        let (chunk, moved) = made.unwrap();
        let from: Vec<ChunkId> = inputs.iter().map(IndexChunk::id).collect();
        self.shard.index_mut().refold(&from, chunk.as_ref());
        self.shard.forget_carried(&moved);
        self.snapshot.chunks = chunk.iter().map(|chunk| chunk.directory.clone()).collect();
        chunk.iter().for_each(|chunk| self.store.keep(chunk));
    }

    /// Takes a snapshot, and says which messages have their bodies in the frames before it.
    pub fn find_all(&mut self) -> Vec<Candidate> {
        self.take_snapshot(|_| ());
        let stretches = vec![(FrameNo(1), self.snapshot.frame)];
        let search = Search { stretches, most: usize::MAX, most_bytes: u64::MAX };
        let (mut page, mut block) = (page_of(&self.snapshot), block_of(&self.store));
        let mut as_of = AsOf::new(&mut page);
        let mut found = Vec::new();
        for chunk in self.shard.index().chunks() {
            clean::find(chunk, &search, &mut as_of, &mut block, &mut found).unwrap();
        }
        found
    }

    /// Carries the bodies of messages. Returns how many bytes that was.
    pub fn carry(&mut self, folds: u64, items: &[Candidate]) -> u64 {
        let mut bodies = BodyBuf::default();
        for item in items {
            let content = self.body(item.body);
            bodies.seal(|out| out.put_slice(content.as_bytes()));
        }
        match self.run(Command::Carry { folds, items: items.to_vec(), bodies }) {
            Reply::Count(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    /// Carries everything that there is: no frame before is needed any more for a body.
    pub fn empty(&mut self) {
        let found = self.find_all();
        let upto = self.snapshot.frame;
        self.carry(self.shard.index().folds(), &found);
        self.seal();
        self.emptied = upto;
    }

    /// Bytes of bodies that are needed, as the partitions say, and as the log does.
    pub fn live(&self) -> (u64, u64) {
        let partitions = self.catalog.topics().flat_map(|topic| topic.partitions.clone());
        let rows = partitions.filter_map(|p| Some(self.shard.partition(p.id)?.bytes));
        (rows.sum(), self.shard.spans().map(|span| span.live).sum())
    }

    /// Makes runs of what was frozen, and puts runs together, as a snapshot does.
    fn keep_runs(&mut self, frame: FrameNo, schedule: Freeze) -> Vec<Arc<Directory>> {
        let mut runs: Vec<Arc<Directory>> = self.snapshot.runs.clone();
        runs.retain(|run| schedule.runs.contains(&run.id));
        self.chunks += 2;
        let place =
            |number| run::Place { store: 5, id: ChunkId { epoch: 1, number }, block_bytes: 60 };
        let log = &self.log;
        let mut read = |bodies: &[BodyRef]| -> Result<Vec<Bytes>, ()> {
            let content = |place: &BodyRef| {
                let sealed = log[place.frame.0 as usize - 1].sealed(place.at, place.len).unwrap();
                body::open(sealed, *place).expect("the body holds")
            };
            Ok(bodies.iter().map(content).collect())
        };
        let made = run::build(&schedule.frozen, place(self.chunks - 1), &mut read).unwrap();
        let inputs: Vec<ChunkId> = schedule.merge.iter().map(Run::id).collect();
        let mut merged = None;
        if !inputs.is_empty() {
            let blocks = &self.store.blocks;
            let mut read = |miss: Miss| -> Result<Bytes, ()> { Ok(blocks[&miss].clone()) };
            let (merge, keep) = (&schedule.merge, &schedule.keep);
            let output = run::merge(merge, schedule.from, keep, place(self.chunks), &mut read);
            let output = output.unwrap();
            let at = runs.iter().position(|run| run.id == inputs[0]).unwrap();
            runs.retain(|run| !inputs.contains(&run.id));
            if let Some(output) = &output {
                self.store.keep(output);
                runs.insert(at, output.directory.clone());
            }
            merged = Some((&inputs[..], output));
        }
        if let Some(made) = &made {
            self.store.keep(made);
            runs.push(made.directory.clone());
        }
        let merged = merged.as_ref().map(|(inputs, output)| (*inputs, output.as_ref()));
        self.shard.schedule_mut().install(frame, made.as_ref(), merged);
        runs
    }

    /// What a pending message holds.
    pub fn pending_body(&self, item: &Item) -> String {
        match &item.body {
            Body::Log(place) => self.body(*place),
            Body::Sealed(bytes) => String::from_utf8(bytes[8..].to_vec()).unwrap(),
            other => panic!("the body is not at hand: {other:?}"),
        }
    }

    /// Takes a snapshot whose pages get lost: the next one has to hold all of them.
    pub fn lose_snapshot(&mut self) {
        self.seal();
        self.shard.index_mut().freeze();
        self.shard.schedule_mut().freeze(self.now);
        self.shard.begin_snapshot();
        while !self.shard.walk(1000).1 {}
        self.shard.touch_all();
        self.shard.thaw();
        self.lost = true;
    }

    /// A shard from the last snapshot and the log behind it.
    pub fn restored(&self) -> Shard {
        let mut shard = new_shard();
        for (id, bytes) in &self.snapshot.pages {
            shard.restore_page(*id, bytes).unwrap();
        }
        shard.restored();
        assert_eq!(shard.digest(), self.snapshot.digest, "restored is not what was stored");
        for directory in &self.snapshot.chunks {
            let chunk = posthouse_core::index::IndexChunk::decode(directory.clone()).unwrap();
            shard.index_mut().restore(chunk);
        }
        for directory in &self.snapshot.runs {
            shard.schedule_mut().restore_run(Run::decode(directory.clone()).unwrap());
        }
        shard.schedule_mut().begin_at(self.snapshot.from);
        for frame in &self.log[self.snapshot.frame.0 as usize..] {
            shard.apply(frame.no, &frame.meta).unwrap();
            shard.sealed(frame.no, frame.content_bytes());
        }
        shard
    }

    /// A shard from the log alone.
    pub fn replayed(&self) -> Shard {
        let mut shard = new_shard();
        for frame in &self.log {
            shard.apply(frame.no, &frame.meta).unwrap();
            shard.sealed(frame.no, frame.content_bytes());
        }
        shard
    }

    /// The process ends and starts again: what was not sealed is lost unless `keep`.
    pub fn restart(&mut self, keep: bool) {
        if keep {
            self.seal();
        }
        self.open = FrameBuf::new(FrameNo(self.log.len() as u64 + 1));
        self.shard = self.restored();
        self.lost = false;
    }
}

fn page_of(snapshot: &Snapshot) -> impl FnMut(PageId) -> Result<Option<Bytes>, ()> + '_ {
    |page| Ok(snapshot.pages.get(&page).map(|bytes| Bytes::copy_from_slice(bytes)))
}

fn block_of(store: &Store) -> impl FnMut(Miss) -> Result<Bytes, ()> + '_ {
    |miss| Ok(store.blocks[&miss].clone())
}

/// A shard in which limits are small, so that what is rare is common.
fn new_shard() -> Shard {
    let mut shard = Shard::new(ShardId(0));
    let limits = Limits { sorted: 5, queue: 4, soon: 3, merged_runs: 3, merged_bytes: 400 };
    shard.schedule_mut().limit(limits);
    shard
}

/// Retention of the system's own topics: what is done with goes at once.
pub fn keep_nothing() -> TopicConfig {
    let retention = posthouse_core::catalog::Retention::Acknowledged { min_age_ms: 0 };
    TopicConfig { retention, ..TopicConfig::default() }
}

pub fn held(delivery: &Delivery) -> Held {
    Held {
        group: delivery.group,
        partition: delivery.partition,
        position: delivery.found.position,
        fence: delivery.fence,
    }
}
