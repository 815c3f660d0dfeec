//! The core against a plain model of what a queue is: lists and maps.
//!
//! Random operations, with time, crashes, restores and misses. The model does not
//! say which of several allowed messages a consumer gets; it says what is allowed,
//! and that nothing that is allowed is held back.

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;

use harness::{Msg, World, held};
use posthouse_core::catalog::{
    Expired, Group, GroupConfig, Order, Subscription, Topic, TopicConfig,
};
use posthouse_core::machine::Machine;
use posthouse_core::name;
use posthouse_core::queue::command::{GivenBack, Reply, Settled, Target};
use posthouse_core::queue::{Ask, Command, Delivery};
use posthouse_core::{GroupId, PartitionId};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Publish { topic: usize, messages: Vec<(u8, u8, bool)> },
    Transact { topic: usize, messages: Vec<(u8, u8, bool)>, nth: usize, is_commit: bool },
    Receive { group: usize, consumer: u8, max: usize, auto: bool },
    Drain { group: usize },
    Ack { nth: usize, count: usize },
    Nack { nth: usize, delay: Option<u64> },
    Extend { nth: usize, lease: u64 },
    Advance(u64),
    Seek { group: usize, topic: usize, position: u64 },
    Purge { topic: usize, keep: u64 },
    Redrive { group: usize, position: u64 },
    Seal,
    Snapshot,
    LoseSnapshot,
    Clean { fold: bool },
    Restart { keep: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let messages = prop::collection::vec((0u8..4, 0u8..4, prop::bool::weighted(0.2)), 1..6);
    let nth = 0usize..40;
    prop_oneof![
        6 => (0usize..2, messages.clone())
            .prop_map(|(topic, messages)| Op::Publish { topic, messages }),
        2 => (0usize..2, messages, 0usize..3, any::<bool>())
            .prop_map(|(topic, messages, nth, is_commit)| {
                Op::Transact { topic, messages, nth, is_commit }
            }),
        6 => (0usize..3, 0u8..3, 1usize..6, prop::bool::weighted(0.1))
            .prop_map(|(group, consumer, max, auto)| Op::Receive { group, consumer, max, auto }),
        1 => (0usize..3).prop_map(|group| Op::Drain { group }),
        6 => (nth.clone(), 1usize..5).prop_map(|(nth, count)| Op::Ack { nth, count }),
        4 => (nth.clone(), prop::option::of(0u64..3000)).prop_map(|(nth, delay)| Op::Nack { nth, delay }),
        1 => (nth, 100u64..5000).prop_map(|(nth, lease)| Op::Extend { nth, lease }),
        3 => prop_oneof![1u64..300, Just(1000u64), Just(1001u64)].prop_map(Op::Advance),
        1 => (0usize..3, 0usize..2, 0u64..30)
            .prop_map(|(group, topic, position)| Op::Seek { group, topic, position }),
        1 => (0usize..2, 0u64..8).prop_map(|(topic, keep)| Op::Purge { topic, keep }),
        1 => (0usize..3, 0u64..4).prop_map(|(group, position)| Op::Redrive { group, position }),
        3 => Just(Op::Seal),
        1 => Just(Op::Snapshot),
        1 => Just(Op::LoseSnapshot),
        1 => any::<bool>().prop_map(|fold| Op::Clean { fold }),
        1 => any::<bool>().prop_map(|keep| Op::Restart { keep }),
    ]
}

/// What a message is to a group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    Ahead,
    InFlight { until: u64, fence: u64 },
    Waiting { until: u64, fence: u64 },
    Done,
}

#[derive(Clone, Debug)]
struct Message {
    body: String,
    key: Option<String>,
    tag: String,
    expires: Option<u64>,
}

#[derive(Clone, Debug)]
struct View {
    status: Vec<Status>,
    attempts: Vec<u16>,
    /// Fences only rise, over everything that ever happened to a message.
    fence: u64,
}

#[derive(Clone, Debug, Default)]
struct Model {
    messages: BTreeMap<PartitionId, Vec<Message>>,
    head: BTreeMap<PartitionId, u64>,
    views: BTreeMap<(GroupId, PartitionId), View>,
    /// Dead letters by group: the body of each, and whether it is still there.
    letters: BTreeMap<GroupId, Vec<(String, bool)>>,
    deliveries: Vec<Delivery>,
    /// What is prepared: the number, the topic, the messages.
    prepared: Vec<(u64, usize, Vec<Msg>)>,
}

const LEASE: u64 = 1000;
const ATTEMPTS: u16 = 3;
const BACKOFF: u64 = 500;
const CAP: u64 = 3;

struct Test {
    world: World,
    topics: Vec<Arc<Topic>>,
    groups: Vec<Arc<Group>>,
    model: Model,
    /// The model as it was when the last frame was sealed: what a crash leaves.
    sealed: Model,
    count: u64,
}

impl Test {
    fn new(miss_percent: u64) -> Test {
        let mut world = World::new();
        world.store.miss_percent = miss_percent;
        let buries = TopicConfig { expired: Expired::DeadLetter, ..TopicConfig::default() };
        let topics = [("a", TopicConfig::default()), ("b", buries)];
        let topics: Vec<_> = topics.map(|(name, config)| world.topic(name, config)).into();
        let config = |filter: &str| GroupConfig {
            subscriptions: vec![Subscription { topic: "*".into(), filter: filter.into() }],
            lease_ms: LEASE,
            max_attempts: ATTEMPTS,
            backoff_ms: vec![BACKOFF],
            ..GroupConfig::default()
        };
        let keyed = GroupConfig {
            order: Order::Key,
            max_in_flight: Some(CAP as u32),
            ..config("t1 || t2")
        };
        let groups = [("plain", config("*")), ("keyed", keyed), ("text", config("/[12]$/"))];
        let groups: Vec<_> =
            groups.map(|(n, c)| world.group(n, c, Target::Earliest)).into_iter().collect();
        world.seal();
        let mut model = Model::default();
        for topic in &topics {
            let partition = topic.partitions[0].id;
            model.messages.insert(partition, Vec::new());
            for group in &groups {
                model.views.insert(
                    (group.id, partition),
                    View { status: Vec::new(), attempts: Vec::new(), fence: 0 },
                );
            }
        }
        let sealed = model.clone();
        Test { world, topics, groups, model, sealed, count: 0 }
    }

    fn now(&self) -> u64 {
        self.world.now.lease.0
    }

    /// Whether the group's filter lets a message of a user's topic through.
    fn passes(&self, group: usize, partition: PartitionId, message: &Message) -> bool {
        let is_retry = !self.topics.iter().any(|t| t.partitions[0].id == partition);
        is_retry || group == 0 || matches!(message.tag.as_str(), "t1" | "t2")
    }

    fn is_expired(&self, message: &Message) -> bool {
        message.expires.is_some_and(|at| at <= self.world.now.wall.0)
    }

    /// Whether the group may have the message now, but for the cap.
    fn may_have(&self, group: usize, partition: PartitionId, position: u64) -> bool {
        let id = self.groups[group].id;
        let view = &self.model.views[&(id, partition)];
        let message = &self.model.messages[&partition][position as usize];
        let at = position as usize;
        self.is_free(view.status[at])
            && view.attempts[at] < ATTEMPTS
            && position >= self.model.head.get(&partition).copied().unwrap_or(0)
            && self.passes(group, partition, message)
            && !self.is_expired(message)
            && (group != 1 || self.is_first_of_key(group, partition, position))
    }

    /// Whether nobody has it, and it does not wait for a time.
    fn is_free(&self, status: Status) -> bool {
        match status {
            Status::Ahead => true,
            Status::InFlight { until, .. } | Status::Waiting { until, .. } => until <= self.now(),
            Status::Done => false,
        }
    }

    fn is_first_of_key(&self, group: usize, partition: PartitionId, position: u64) -> bool {
        let messages = &self.model.messages[&partition];
        let view = &self.model.views[&(self.groups[group].id, partition)];
        let key = &messages[position as usize].key;
        key.is_none()
            || (0..position as usize).all(|earlier| {
                messages[earlier].key != *key
                    || view.status[earlier] == Status::Done
                    || !self.passes(group, partition, &messages[earlier])
                    || (self.is_expired(&messages[earlier]) && self.is_free(view.status[earlier]))
            })
    }

    /// Messages that somebody has. One that has expired, and whose lease has ended,
    /// is passed over when it is looked at, and may count until then.
    fn in_flight(&self, group: usize) -> u64 {
        let id = self.groups[group].id;
        let mut count = 0;
        for ((_, partition), view) in self.model.views.iter().filter(|((g, _), _)| *g == id) {
            for (status, message) in view.status.iter().zip(&self.model.messages[partition]) {
                if let Status::InFlight { until, .. } = status
                    && (*until > self.now() || !self.is_expired(message))
                {
                    count += 1;
                }
            }
        }
        count
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Publish { topic, messages } => self.publish(*topic, messages),
            Op::Transact { topic, messages, nth, is_commit } => {
                self.transact(*topic, messages, *nth, *is_commit);
            }
            Op::Receive { group, consumer, max, auto } => {
                self.receive(*group, *consumer, *max, *auto);
            }
            Op::Drain { group } => self.drain(*group),
            Op::Ack { nth, count } => self.ack(*nth, *count),
            Op::Nack { nth, delay } => self.nack(*nth, *delay),
            Op::Extend { nth, lease } => self.extend(*nth, *lease),
            Op::Advance(ms) => {
                self.world.advance(*ms);
                self.due();
            }
            Op::Seek { group, topic, position } => self.seek(*group, *topic, *position),
            Op::Purge { topic, keep } => self.purge(*topic, *keep),
            Op::Redrive { group, position } => self.redrive(*group, *position),
            Op::Seal => self.seal(),
            Op::Snapshot => {
                self.seal();
                self.world.take_snapshot(|_| ());
            }
            Op::LoseSnapshot => {
                self.seal();
                self.world.lose_snapshot();
            }
            Op::Clean { fold } => {
                self.seal();
                if *fold {
                    self.world.fold();
                }
                self.world.empty();
            }
            Op::Restart { keep } => self.restart(*keep),
        }
    }

    fn seal(&mut self) {
        self.world.seal();
        self.sealed = self.model.clone();
    }

    fn restart(&mut self, keep: bool) {
        if keep {
            self.seal();
        } else {
            self.model = self.sealed.clone();
        }
        self.world.restart(keep);
        self.due();
    }

    fn messages(&mut self, messages: &[(u8, u8, bool)]) -> Vec<Msg> {
        let message = |(key, tag, ttl): &(u8, u8, bool)| {
            self.count += 1;
            Msg {
                body: format!("m{}", self.count),
                key: (*key > 0).then(|| format!("k{key}")),
                tags: vec![format!("t{tag}")],
                ttl_ms: ttl.then_some(700),
                ..Msg::default()
            }
        };
        messages.iter().map(message).collect()
    }

    fn publish(&mut self, topic: usize, messages: &[(u8, u8, bool)]) {
        let batch = self.messages(messages);
        let topic_of = self.topics[topic].clone();
        let published = self.world.publish(&topic_of, 0, &batch).unwrap();
        self.published(topic, published.first, batch);
    }

    /// Prepares messages, and decides about those prepared `nth` before them.
    fn transact(&mut self, topic: usize, messages: &[(u8, u8, bool)], nth: usize, is_commit: bool) {
        let batch = self.messages(messages);
        let topic_of = self.topics[topic].clone();
        let prepared = self.world.prepare("shop", &[(&topic_of, batch.clone())]).unwrap();
        self.model.prepared.push((prepared.first, topic, batch));
        let count = self.model.prepared.len();
        if nth < count {
            let (first, topic, batch) = self.model.prepared.remove(count - 1 - nth);
            let ended = self.world.end(first, is_commit).unwrap().transaction;
            if is_commit {
                self.published(topic, ended.parts[0].placed.unwrap(), batch);
            }
        }
        self.due();
    }

    fn published(&mut self, topic: usize, first: u64, batch: Vec<Msg>) {
        let partition = self.topics[topic].partitions[0].id;
        let now = self.world.now.wall.0;
        let list = self.model.messages.get_mut(&partition).unwrap();
        assert_eq!(first, list.len() as u64, "positions are dense");
        list.extend(batch.into_iter().map(|m| Message {
            body: m.body,
            key: m.key,
            tag: m.tags[0].clone(),
            expires: m.ttl_ms.map(|ttl| now + ttl),
        }));
        self.extend_views(partition);
    }

    fn extend_views(&mut self, partition: PartitionId) {
        let len = self.model.messages[&partition].len();
        for ((_, p), view) in &mut self.model.views {
            if *p == partition {
                view.status.resize(len, Status::Ahead);
                view.attempts.resize(len, 0);
            }
        }
    }

    fn receive(&mut self, group: usize, consumer: u8, max: usize, auto: bool) -> usize {
        // Bodies can be read, and texts judged, of sealed frames only.
        self.seal();
        let id = self.groups[group].id;
        let consumer = format!("w{consumer}");
        let ask = Ask {
            group: id,
            consumer: &consumer,
            max,
            max_bytes: u64::MAX,
            lease_ms: LEASE,
            topic: None,
            auto_ack: auto,
        };
        let messages = self.model.messages.clone();
        // `judge` looks at the log while the world changes: it works on a copy.
        let log = self.world.log.clone();
        let judge = move |found: &posthouse_core::index::Found| {
            let body =
                log[found.body.frame.0 as usize - 1].sealed(found.body.at, found.body.len).unwrap();
            let message = messages.values().flatten().find(|m| m.body.as_bytes() == &body[8..]);
            matches!(message.expect("a body of ours").tag.as_str(), "t1" | "t2")
        };
        let deliveries = self.world.receive(&ask, &judge);
        assert!(deliveries.len() <= max, "more than asked for");
        let count = deliveries.len();
        for delivery in deliveries {
            self.delivered(group, delivery, auto);
        }
        if group == 1 {
            assert!(self.in_flight(1) <= CAP, "over the cap");
        }
        count
    }

    fn delivered(&mut self, group: usize, delivery: Delivery, auto: bool) {
        let (partition, position) = (delivery.partition, delivery.found.position);
        assert!(
            self.may_have(group, partition, position),
            "group {group} got {position} of {partition}, which it may not have"
        );
        let body = self.world.body(delivery.found.body);
        assert_eq!(body, self.model.messages[&partition][position as usize].body);
        let view = self.model.views.get_mut(&(delivery.group, partition)).unwrap();
        let at = position as usize;
        view.attempts[at] += 1;
        assert_eq!(delivery.attempt, view.attempts[at], "attempts of {body}");
        assert!(delivery.fence >= view.fence, "fences rise");
        view.fence = delivery.fence;
        let until = self.world.now.lease.0 + LEASE;
        view.status[at] = match auto {
            true => Status::Done,
            false => Status::InFlight { until, fence: delivery.fence },
        };
        self.model.deliveries.push(delivery);
    }

    /// Takes everything there is; then nothing that is allowed may be left.
    fn drain(&mut self, group: usize) {
        loop {
            let buried = self.buried(group);
            let got = self.receive(group, 9, 5, false);
            self.due();
            if got == 0 && self.buried(group) == buried {
                break;
            }
        }
        if group == 1 && self.in_flight(1) == CAP {
            return;
        }
        let id = self.groups[group].id;
        for (_, partition) in self.model.views.keys().filter(|(g, _)| *g == id) {
            for position in 0..self.model.messages[partition].len() as u64 {
                assert!(
                    !self.may_have(group, *partition, position),
                    "{position} of {partition} is held back from group {group}"
                );
                assert!(
                    group == 1 || !self.may_be_buried(group, *partition, position),
                    "{position} of {partition} has expired, and group {group} has not buried it"
                );
            }
        }
    }

    fn pick(&self, nth: usize) -> Option<Delivery> {
        let count = self.model.deliveries.len();
        (count > 0).then(|| self.model.deliveries[count - 1 - nth % count].clone())
    }

    /// What a receipt is worth, by the model.
    fn expected(&self, delivery: &Delivery) -> Expected {
        let Some(view) = self.model.views.get(&(delivery.group, delivery.partition)) else {
            return Expected::NotHeld;
        };
        let head = self.model.head.get(&delivery.partition).copied().unwrap_or(0);
        if delivery.found.position < head {
            return Expected::Already;
        }
        match view.status[delivery.found.position as usize] {
            Status::Done => Expected::Already,
            Status::Ahead => Expected::NotHeld,
            Status::InFlight { fence, .. } if fence == delivery.fence => Expected::Done,
            Status::Waiting { fence, .. } if fence == delivery.fence => Expected::GivenBack,
            _ => Expected::Regranted,
        }
    }

    fn settle(
        &mut self,
        deliveries: &[Delivery],
        command: Command,
        mut change: impl FnMut(&mut Test, &Delivery),
    ) {
        let Reply::Settled(settled) = self.world.run(command) else { panic!() };
        assert_eq!(settled.len(), deliveries.len());
        let expected: Vec<(Expected, bool)> =
            deliveries.iter().map(|d| (self.expected(d), self.may_have_lapsed(d))).collect();
        for ((delivery, settled), (expected, lapsed)) in
            deliveries.iter().zip(settled).zip(expected)
        {
            let got = match settled {
                Settled::Done { .. } => Expected::Done,
                Settled::Already => Expected::Already,
                Settled::Regranted { .. } => Expected::Regranted,
                Settled::GivenBack => Expected::GivenBack,
                Settled::NotHeld => Expected::NotHeld,
            };
            if got == Expected::Already && lapsed {
                self.set(delivery, Status::Done);
                continue;
            }
            assert_eq!(got, expected, "receipt {delivery:?}");
            if got == Expected::Done {
                change(self, delivery);
            }
        }
        self.due();
    }

    /// How many letters the group has ever had.
    fn buried(&self, group: usize) -> usize {
        self.model.letters.get(&self.groups[group].id).map_or(0, Vec::len)
    }

    /// Whether the message becomes a letter when the group comes to it.
    fn may_be_buried(&self, group: usize, partition: PartitionId, position: u64) -> bool {
        let view = &self.model.views[&(self.groups[group].id, partition)];
        let message = &self.model.messages[&partition][position as usize];
        partition == self.topics[1].partitions[0].id
            && position >= self.model.head.get(&partition).copied().unwrap_or(0)
            && self.is_free(view.status[position as usize])
            && self.is_expired(message)
            && self.passes(group, partition, message)
    }

    /// Notes which messages have become letters because they had expired.
    fn note_buried(&mut self, group: usize, found: &[String]) {
        let (id, partition) = (self.groups[group].id, self.topics[1].partitions[0].id);
        for position in 0..self.model.messages[&partition].len() as u64 {
            if !self.may_be_buried(group, partition, position) {
                continue;
            }
            let body = self.model.messages[&partition][position as usize].body.clone();
            let letters = self.model.letters.entry(id).or_default();
            let known = letters.iter().filter(|(of, there)| *of == body && *there).count();
            if found.iter().filter(|of| **of == body).count() > known {
                letters.push((body, true));
                let view = self.model.views.get_mut(&(id, partition)).unwrap();
                view.status[position as usize] = Status::Done;
            }
        }
    }

    /// An expired message is passed over when it is looked at, whenever that is.
    fn may_have_lapsed(&self, delivery: &Delivery) -> bool {
        let at = delivery.found.position as usize;
        let status = self.model.views[&(delivery.group, delivery.partition)].status[at];
        self.is_free(status) && self.is_expired(&self.model.messages[&delivery.partition][at])
    }

    fn set(&mut self, delivery: &Delivery, status: Status) {
        let view = self.model.views.get_mut(&(delivery.group, delivery.partition)).unwrap();
        view.status[delivery.found.position as usize] = status;
    }

    fn ack(&mut self, nth: usize, count: usize) {
        let mut deliveries: Vec<Delivery> = Vec::new();
        for delivery in (nth..nth + count).filter_map(|n| self.pick(n)) {
            if !deliveries.contains(&delivery) {
                deliveries.push(delivery);
            }
        }
        let command = Command::Ack(deliveries.iter().map(held).collect());
        self.settle(&deliveries, command, |test, delivery| test.set(delivery, Status::Done));
    }

    fn nack(&mut self, nth: usize, delay_ms: Option<u64>) {
        let Some(delivery) = self.pick(nth) else { return };
        let back = GivenBack { held: held(&delivery), delay_ms, reason: "why".into() };
        self.settle(&[delivery], Command::Nack(vec![back]), |test, delivery| {
            let last = delivery.attempt == ATTEMPTS;
            let delay = if last { 0 } else { delay_ms.unwrap_or(BACKOFF) };
            let (until, fence) = (test.now() + delay, delivery.fence);
            test.set(delivery, Status::Waiting { until, fence });
        });
    }

    fn extend(&mut self, nth: usize, lease_ms: u64) {
        let Some(delivery) = self.pick(nth) else { return };
        let command = Command::Extend { held: vec![held(&delivery)], lease_ms };
        self.settle(&[delivery], command, |test, delivery| {
            let (until, fence) = (test.now() + lease_ms, delivery.fence);
            test.set(delivery, Status::InFlight { until, fence });
        });
    }

    /// Messages whose last attempt has failed become letters, exactly once.
    fn due(&mut self) {
        self.world.due();
        let now = self.now();
        for (number, group) in self.groups.clone().into_iter().enumerate() {
            let mut dead = Vec::new();
            for ((g, partition), view) in &mut self.model.views {
                for at in 0..view.status.len() {
                    let ended = match view.status[at] {
                        Status::InFlight { until, .. } | Status::Waiting { until, .. } => {
                            until <= now
                        }
                        _ => false,
                    };
                    if *g == group.id && ended && view.attempts[at] >= ATTEMPTS {
                        view.status[at] = Status::Done;
                        let body = &self.model.messages[partition][at].body;
                        dead.push(body.split(' ').next().unwrap_or_default().to_owned());
                    }
                }
            }
            let letters = self.model.letters.entry(group.id).or_default();
            letters.extend(dead.iter().map(|body| (body.clone(), true)));
            self.check_letters(number, &group);
        }
        // Burying seals frames.
        if self.world.open.is_empty() {
            self.sealed = self.model.clone();
        }
    }

    fn check_letters(&mut self, number: usize, group: &Group) {
        let dead = self.world.catalog.topic_named(&name::dead_letter_topic(&group.name)).cloned();
        let Some(dead) = dead else {
            assert_eq!(self.model.letters[&group.id], []);
            return;
        };
        self.seal_if_open();
        let partition = dead.partitions[0].id;
        let mut found: Vec<String> = Vec::new();
        for position in 0..self.world.shard.partition_info(partition).next {
            if self.world.shard.is_letter(partition, position) {
                let letter = self.world.find(partition, position).unwrap();
                let body = self.world.body(letter.body);
                found.push(body.split(' ').next().unwrap().to_owned());
            }
        }
        self.note_buried(number, &found);
        let letters = self.model.letters[&group.id].iter().filter(|(_, there)| *there);
        let mut expected: Vec<String> = letters.map(|(body, _)| body.clone()).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "letters of {}", group.name);
    }

    fn seal_if_open(&mut self) {
        if !self.world.open.is_empty() {
            self.world.seal();
        }
    }

    fn seek(&mut self, group: usize, topic: usize, position: u64) {
        let (group, partition) = (self.groups[group].id, self.topics[topic].partitions[0].id);
        let to = Target::Position(position);
        let reply = self.world.run(Command::Seek { group, partition, to });
        let head = self.model.head.get(&partition).copied().unwrap_or(0);
        let end = self.model.messages[&partition].len() as u64;
        let position = position.clamp(head, end);
        assert_eq!(reply, Reply::Position(position));
        let view = self.model.views.get_mut(&(group, partition)).unwrap();
        for at in 0..view.status.len() {
            let done = (at as u64) < position;
            view.status[at] = if done { Status::Done } else { Status::Ahead };
            view.attempts[at] = 0;
        }
    }

    fn purge(&mut self, topic: usize, keep: u64) {
        let partition = self.topics[topic].partitions[0].id;
        let end = self.model.messages[&partition].len() as u64;
        let head = self.model.head.get(&partition).copied().unwrap_or(0);
        let to = end.saturating_sub(keep).max(head);
        let reply = self.world.run(Command::Purge { partition, before: Some(to) });
        assert_eq!(reply, Reply::Count(to - head));
        self.model.head.insert(partition, to);
        for ((_, p), view) in &mut self.model.views {
            if *p == partition {
                view.status[..to as usize].fill(Status::Done);
            }
        }
        self.due();
    }

    fn redrive(&mut self, group: usize, position: u64) {
        let group = self.groups[group].clone();
        let dead = self.world.catalog.topic_named(&name::dead_letter_topic(&group.name)).cloned();
        let Some(dead) = dead else { return };
        self.seal();
        let partition = dead.partitions[0].id;
        let letter = match self.world.shard.is_letter(partition, position) {
            true => Some(self.world.find(partition, position).unwrap()),
            false => None,
        };
        let count = self.world.redrive(&group, &[position]);
        assert_eq!(count, u64::from(letter.is_some()));
        let Some(letter) = letter else { return };
        let body = self.world.body(letter.body);
        let plain = body.split(' ').next().unwrap().to_owned();
        let letters = self.model.letters.get_mut(&group.id).unwrap();
        letters.iter_mut().find(|(b, there)| *b == plain && *there).unwrap().1 = false;
        let retry = self.world.catalog.topic_named(&name::retry_topic(&group.name)).unwrap();
        let retry = retry.partitions[0].id;
        let list = self.model.messages.entry(retry).or_default();
        list.push(Message { body, key: None, tag: String::new(), expires: None });
        // A copy keeps its key.
        let original = self.model.messages.values().flatten().find(|m| m.body == plain).cloned();
        let key = original.and_then(|m| m.key);
        self.model.messages.get_mut(&retry).unwrap().last_mut().unwrap().key = key;
        let view = View { status: Vec::new(), attempts: Vec::new(), fence: 0 };
        self.model.views.entry((group.id, retry)).or_insert(view);
        self.extend_views(retry);
    }

    fn check_state(&mut self) {
        self.seal();
        let digest = self.world.shard.digest();
        assert_eq!(self.world.replayed().digest(), digest, "replayed differs from live");
        assert_eq!(self.world.restored().digest(), digest, "restored differs from live");
        let (rows, spans) = self.world.live();
        assert_eq!(rows, spans, "what is live in partitions, and in the log");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    Done,
    Already,
    Regranted,
    GivenBack,
    NotHeld,
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_is_what_the_model_says(
        ops in prop::collection::vec(op(), 1..120),
        miss_percent in prop_oneof![Just(0u64), Just(10), Just(100)],
    ) {
        let mut test = Test::new(miss_percent);
        for op in &ops {
            test.apply(op);
        }
        for group in 0..3 {
            test.drain(group);
        }
        test.check_state();
    }
}
