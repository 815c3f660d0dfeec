//! Scheduled messages against a plain map: when each is due, and what became of it.
//!
//! Random publishes, moves, recalls, names and purges, with steps of the clock,
//! crashes, snapshots (some of them lost) and misses.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use harness::{Msg, World};
use posthouse_core::catalog::{Retention, Topic, TopicConfig};
use posthouse_core::index::OwnId;
use posthouse_core::machine::Machine;
use posthouse_core::queue::Command;
use posthouse_core::queue::command::{LaterOutcome, Refusal, Reply, Shift, Which};
use posthouse_core::record::{NameTaken, Pending, When};
use posthouse_core::schedule::{HOUR_MS, LATE_MS, State};
use posthouse_core::{PartitionId, Position, Seq, UnixMs};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Publish { topic: usize, messages: Vec<(When, Option<(u8, NameTaken)>)> },
    Plain { topic: usize },
    Reschedule(Vec<(usize, Shift)>),
    Cancel(Vec<usize>),
    Named { topic: usize, name: u8, shift: Option<Shift> },
    Purge { topic: usize },
    Advance(u64),
    Seal,
    Snapshot,
    LoseSnapshot,
    Restart { keep: bool },
    Look { topic: usize, from: u64 },
}

fn delay() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..10, 0u64..3_000, 0u64..20_000, Just(500_000_000u64)]
}

fn when() -> impl Strategy<Value = When> {
    prop_oneof![
        delay().prop_map(When::After),
        delay().prop_map(|ms| When::At(UnixMs(harness::T0 + ms))),
    ]
}

fn shift() -> impl Strategy<Value = Shift> {
    prop_oneof![when().prop_map(Shift::To), (-5_000i64..20_000).prop_map(Shift::By)]
}

fn op() -> impl Strategy<Value = Op> {
    let taken = prop_oneof![
        3 => Just(NameTaken::Replace),
        1 => Just(NameTaken::Keep),
        1 => Just(NameTaken::Refuse),
    ];
    let name = prop::option::weighted(0.3, (0u8..3, taken));
    let messages = prop::collection::vec((when(), name), 1..6);
    let topic = 0usize..2;
    prop_oneof![
        8 => (topic.clone(), messages).prop_map(|(topic, messages)| Op::Publish { topic, messages }),
        2 => topic.clone().prop_map(|topic| Op::Plain { topic }),
        5 => prop::collection::vec((0usize..30, shift()), 1..4).prop_map(Op::Reschedule),
        3 => prop::collection::vec(0usize..30, 1..4).prop_map(Op::Cancel),
        2 => (topic.clone(), 0u8..3, prop::option::of(shift()))
            .prop_map(|(topic, name, shift)| Op::Named { topic, name, shift }),
        1 => topic.clone().prop_map(|topic| Op::Purge { topic }),
        6 => prop_oneof![1u64..20, 0u64..2_000, 0u64..30_000, Just(400_000_000u64)]
            .prop_map(Op::Advance),
        3 => Just(Op::Seal),
        3 => Just(Op::Snapshot),
        1 => Just(Op::LoseSnapshot),
        1 => any::<bool>().prop_map(|keep| Op::Restart { keep }),
        2 => (topic, delay()).prop_map(|(topic, from)| Op::Look { topic, from }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Pending(u64),
    Fired(Position),
    Cancelled,
}

#[derive(Clone, Debug)]
struct Message {
    topic: usize,
    body: String,
    name: Option<u8>,
    fate: Fate,
}

#[derive(Clone, Debug, Default)]
struct Model {
    messages: BTreeMap<Seq, Message>,
    names: BTreeMap<(usize, u8), Seq>,
    ends: [u64; 2],
}

impl Model {
    fn end(&mut self, seq: Seq, fate: Fate) {
        let message = self.messages.get_mut(&seq).unwrap();
        message.fate = fate;
        if let Some(name) = message.name
            && self.names.get(&(message.topic, name)) == Some(&seq)
        {
            self.names.remove(&(message.topic, name));
        }
    }

    fn pending(&self, topic: usize) -> Vec<(u64, Seq)> {
        let mut all: Vec<(u64, Seq)> = self
            .messages
            .iter()
            .filter_map(|(seq, message)| match message.fate {
                Fate::Pending(due) if message.topic == topic => Some((due, *seq)),
                _ => None,
            })
            .collect();
        all.sort_unstable();
        all
    }
}

struct Test {
    world: World,
    topics: Vec<Arc<Topic>>,
    model: Model,
    sealed: Model,
    count: u64,
}

impl Test {
    fn new(miss_percent: u64) -> Test {
        let mut world = World::new();
        world.store.miss_percent = miss_percent;
        // Everything stays, to be looked at.
        let retention = Retention::Acknowledged { min_age_ms: 1 << 40 };
        let config = TopicConfig { retention, ..TopicConfig::default() };
        let topics: Vec<_> = ["a", "b"].map(|n| world.topic(n, config.clone())).into();
        // Partitions are opened by their first message.
        for topic in &topics {
            world.publish(topic, 0, &[Msg::of("first")]).unwrap();
        }
        world.seal();
        let model = Model { ends: [1, 1], ..Model::default() };
        Test { world, topics, sealed: model.clone(), model, count: 0 }
    }

    fn now(&self) -> u64 {
        self.world.now.wall.0
    }

    fn partition(&self, topic: usize) -> PartitionId {
        self.topics[topic].partitions[0].id
    }

    fn which(&self, nth: usize) -> Option<Which> {
        let (seq, message) = self.model.messages.iter().rev().nth(nth)?;
        Some(Which::Id(Pending { partition: self.partition(message.topic), seq: *seq }))
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Publish { topic, messages } => self.publish(*topic, messages),
            Op::Plain { topic } => {
                let topic_of = self.topics[*topic].clone();
                let published = self.world.publish(&topic_of, 0, &[Msg::of("plain")]).unwrap();
                assert_eq!(published.first, self.model.ends[*topic]);
                self.model.ends[*topic] += 1;
            }
            Op::Reschedule(items) => {
                let items: Vec<(Which, Shift)> =
                    items.iter().filter_map(|(nth, s)| Some((self.which(*nth)?, *s))).collect();
                self.reschedule(&items);
            }
            Op::Cancel(nths) => {
                let items: Vec<Which> = nths.iter().filter_map(|nth| self.which(*nth)).collect();
                self.cancel(&items);
            }
            Op::Named { topic, name, shift } => {
                let hash = self.world.secret.hash128(&[b'n', *name]);
                let which = Which::Name(self.topics[*topic].id, hash);
                match shift {
                    Some(shift) => self.reschedule(&[(which, *shift)]),
                    None => self.cancel(&[which]),
                }
            }
            Op::Purge { topic } => {
                let partition = self.partition(*topic);
                let reply = self.world.run(Command::PurgeScheduled { partition });
                let pending = self.model.pending(*topic);
                assert_eq!(reply, Reply::Count(pending.len() as u64));
                pending.iter().for_each(|(_, seq)| self.model.end(*seq, Fate::Cancelled));
            }
            Op::Advance(ms) => {
                self.world.advance(*ms);
                self.fire();
            }
            Op::Seal => self.seal(),
            Op::Snapshot => {
                self.seal();
                self.world.take_snapshot(|_| ());
            }
            Op::LoseSnapshot => {
                self.seal();
                self.world.lose_snapshot();
            }
            Op::Restart { keep } => {
                if *keep {
                    self.seal();
                }
                self.world.restart(false);
                self.model = self.sealed.clone();
                self.check_all();
                self.fire();
            }
            Op::Look { topic, from } => self.look(*topic, harness::T0 + from),
        }
    }

    fn seal(&mut self) {
        self.world.seal();
        self.sealed = self.model.clone();
    }

    fn publish(&mut self, topic: usize, messages: &[(When, Option<(u8, NameTaken)>)]) {
        let now = UnixMs(self.now());
        let mut model = self.model.clone();
        let mut seq = self.world.shard.schedule().times.next();
        let first = seq;
        let (mut refused, mut kept) = (None, BTreeSet::new());
        let messages: Vec<Msg> = (0u32..)
            .zip(messages)
            .map(|(index, (when, name))| {
                self.count += 1;
                let body = format!("m{}", self.count);
                let message = Msg {
                    body: body.clone(),
                    when: Some(*when),
                    name: name.map(|(name, _)| String::from_utf8(vec![b'n', name]).unwrap()),
                    taken: name.map_or(NameTaken::Replace, |(_, taken)| taken),
                    ..Msg::default()
                };
                let has = name.and_then(|(name, _)| model.names.get(&(topic, name)).copied());
                match (has, message.taken) {
                    (Some(_), NameTaken::Refuse) => refused = refused.or(Some(index)),
                    (Some(before), NameTaken::Keep) => drop(kept.insert((index, before))),
                    (has, _) => {
                        let fate = Fate::Pending(when.due(now).0);
                        let name = name.map(|(name, _)| name);
                        model.messages.insert(seq, Message { topic, body, name, fate });
                        if let Some(before) = has {
                            model.end(before, Fate::Cancelled);
                        }
                        if let Some(name) = name {
                            model.names.insert((topic, name), seq);
                        }
                        seq += 1;
                    }
                }
                message
            })
            .collect();
        let topic_of = self.topics[topic].clone();
        match (self.world.publish(&topic_of, 0, &messages), refused) {
            (Ok(published), None) => {
                assert!(published.is_later);
                assert_eq!(published.first, first);
                let found: BTreeSet<(u32, Seq)> =
                    published.kept.iter().map(|k| (k.index, k.before.position)).collect();
                assert_eq!(found, kept);
                self.model = model;
                self.fire();
            }
            (Err(Refusal::NameTaken { index, .. }), Some(refused)) => assert_eq!(index, refused),
            (other, _) => panic!("{other:?} to {messages:?}"),
        }
    }

    /// What the model says of `which`.
    fn fate(&self, which: Which) -> Option<(Seq, Fate)> {
        let seq = match which {
            Which::Id(of) => of.seq,
            Which::Name(topic, hash) => {
                let topic = self.topics.iter().position(|t| t.id == topic).unwrap();
                let named = self.model.names.iter().find(|((of, name), _)| {
                    *of == topic && self.world.secret.hash128(&[b'n', *name]) == hash
                })?;
                *named.1
            }
        };
        Some((seq, self.model.messages[&seq].fate.clone()))
    }

    fn reschedule(&mut self, items: &[(Which, Shift)]) {
        let reply = self.world.run(Command::Reschedule(items.to_vec()));
        let Reply::Later(outcomes) = reply else { panic!("{reply:?}") };
        assert_eq!(outcomes.len(), items.len());
        for ((which, shift), outcome) in items.iter().zip(outcomes) {
            let fate = self.fate(*which);
            if let (Some((seq, Fate::Pending(due))), LaterOutcome::Done { of, due: told }) =
                (&fate, outcome)
            {
                let now = UnixMs(self.now());
                let wanted = match shift {
                    Shift::To(when) => when.due(now).0,
                    Shift::By(ms) => due.saturating_add_signed(*ms).max(now.0),
                };
                assert_eq!((of.seq, told.0), (*seq, wanted));
                self.model.messages.get_mut(seq).unwrap().fate = Fate::Pending(wanted);
                continue;
            }
            self.check_ended(fate, outcome);
        }
        self.fire();
    }

    fn cancel(&mut self, items: &[Which]) {
        let reply = self.world.run(Command::Cancel(items.to_vec()));
        let Reply::Later(outcomes) = reply else { panic!("{reply:?}") };
        assert_eq!(outcomes.len(), items.len());
        for (which, outcome) in items.iter().zip(outcomes) {
            let fate = self.fate(*which);
            if let (Some((seq, Fate::Pending(due))), LaterOutcome::Done { of, due: told }) =
                (&fate, outcome)
            {
                assert_eq!((of.seq, told.0), (*seq, *due));
                self.model.end(*seq, Fate::Cancelled);
                continue;
            }
            self.check_ended(fate, outcome);
        }
    }

    fn check_ended(&self, fate: Option<(Seq, Fate)>, outcome: LaterOutcome) {
        match (fate, outcome) {
            (None, LaterOutcome::Unknown) => {}
            (Some((seq, Fate::Fired(at))), LaterOutcome::Fired { of, position }) => {
                assert_eq!((of.seq, position), (seq, at));
            }
            (Some((seq, Fate::Cancelled)), LaterOutcome::Cancelled { of }) => {
                assert_eq!(of.seq, seq);
            }
            (fate, outcome) => panic!("{outcome:?} of what is {fate:?}"),
        }
    }

    /// Fires what is due, and finds every message in its topic, in order.
    fn fire(&mut self) {
        self.world.due();
        let now = self.now();
        for topic in 0..2 {
            let partition = self.partition(topic);
            let due: Vec<(u64, Seq)> =
                self.model.pending(topic).into_iter().filter(|(due, _)| *due <= now).collect();
            let first = self.model.ends[topic];
            let end = self.world.shard.partition_info(partition).next;
            assert_eq!(end - first, due.len() as u64, "{due:?} are due");
            let mut came: Vec<(u64, Seq)> = Vec::new();
            for position in first..end {
                let found = self.world.find(partition, position).unwrap();
                let OwnId::Seq(seq) = found.id else { panic!("{found:?}") };
                let Fate::Pending(due) = self.model.messages[&seq].fate else {
                    panic!("{seq} came, and is {:?}", self.model.messages[&seq])
                };
                self.model.end(seq, Fate::Fired(position));
                came.push((due, seq));
            }
            // What is late and what is on time go their own ways.
            for is_late in [false, true] {
                let some: Vec<_> =
                    came.iter().filter(|(due, _)| (now - due > LATE_MS) == is_late).collect();
                assert!(some.is_sorted(), "{some:?}");
            }
            came.sort_unstable();
            assert_eq!(came, due);
            self.model.ends[topic] = end;
        }
        self.check_wakes();
    }

    /// The shard wants to be woken before the next message is due. One that was due soon hid
    /// those that were not: they came when something else woke the shard.
    fn check_wakes(&mut self) {
        // With misses, what comes of them wakes it.
        let pending = (0..2).flat_map(|topic| self.model.pending(topic)).map(|(due, _)| due);
        if let (Some(first), 0) = (pending.min(), self.world.store.miss_percent) {
            let wakes = self.world.shard.next_deadline().1;
            assert!(wakes.is_some_and(|at| at.0 <= first), "{first} is due; wakes at {wakes:?}");
        }
    }

    /// All pending messages from `from` on, as somebody who looks sees them.
    fn look(&mut self, topic: usize, from: u64) {
        self.seal();
        let wanted: Vec<(u64, Seq)> =
            self.model.pending(topic).into_iter().filter(|(due, _)| *due >= from).collect();
        let only = vec![self.partition(topic)];
        let mut key = Some((UnixMs(from), 0));
        let mut found = Vec::new();
        while let Some(at) = key {
            let shard = &self.world.shard;
            let mut some = Vec::new();
            let looked = shard.schedule().look(at, only.clone(), 7, &self.world.store, |item| {
                some.push(item);
                some.len() == 3
            });
            match looked {
                Ok(next) => {
                    key = next;
                    found.append(&mut some);
                }
                Err(miss) => self.world.fetch(miss),
            }
        }
        found.retain(|item| {
            let of = Pending { partition: item.partition, seq: item.seq };
            matches!(self.world.shard.later_state(of), State::Pending { .. })
        });
        let seen: Vec<(u64, Seq)> = found.iter().map(|item| (item.due.0, item.seq)).collect();
        assert_eq!(seen, wanted);
        for item in &found {
            assert_eq!(self.world.pending_body(item), self.model.messages[&item.seq].body);
        }
    }

    /// Everything the state says agrees with the model.
    fn check_all(&mut self) {
        for (seq, message) in &self.model.messages {
            let of = Pending { partition: self.partition(message.topic), seq: *seq };
            match (self.world.shard.later_state(of), &message.fate) {
                (State::Pending { due, .. }, Fate::Pending(at)) => assert_eq!(due.0, *at),
                (State::Fired(position), Fate::Fired(at)) => assert_eq!(position, *at),
                (State::Cancelled, Fate::Cancelled) => {}
                (state, fate) => panic!("{seq} is {state:?}, and should be {fate:?}"),
            }
        }
        for topic in 0..2 {
            let partition = self.partition(topic);
            let pending = self.model.pending(topic);
            let row = self.world.shard.partition(partition).unwrap();
            assert_eq!(row.pending, pending.len() as u64);
            let mut hours: BTreeMap<u64, u64> = BTreeMap::new();
            pending.iter().for_each(|(due, _)| *hours.entry(due / HOUR_MS).or_default() += 1);
            let told = self.world.shard.schedule().hours.of(partition);
            let told: BTreeMap<u64, u64> = told.map(|(at, n)| (at.0 / HOUR_MS, n)).collect();
            assert_eq!(told, hours);
        }
    }

    /// Bodies of everything that has come, whole.
    fn check_bodies(&mut self) {
        self.seal();
        for message in self.model.messages.values() {
            if let Fate::Fired(position) = message.fate {
                let found = self.world.find(self.partition(message.topic), position).unwrap();
                assert_eq!(self.world.body(found.body), message.body);
            }
        }
    }
}

fn play(ops: &[Op], miss_percent: u64) {
    let mut test = Test::new(miss_percent);
    for op in ops {
        test.run(op);
        test.check_all();
    }
    // Whatever is still pending comes in the end.
    test.world.advance(600_000_000);
    test.fire();
    test.check_all();
    test.check_bodies();
    assert_eq!(test.world.shard.schedule().pending(), 0);
    let digest = test.world.shard.digest();
    assert_eq!(test.world.replayed().digest(), digest, "replay differs");
    assert_eq!(test.world.restored().digest(), digest, "restore differs");
}

/// Whoever has nothing else to do sleeps until the alarm that the schedule sets. A message
/// that had come in behind one that was due earlier set none: once that one had come, it
/// came only when something else woke the shard.
#[test]
fn the_alarm_is_set_for_what_comes_after_the_first() {
    let mut test = Test::new(0);
    let messages = vec![(When::After(300), None), (When::After(9_000), None)];
    test.run(&Op::Publish { topic: 0, messages });
    let begin = test.world.now.wall.0;
    for due in [300, 9_000] {
        // Each alarm may be early, to make ready; it must come, and be of use.
        for _ in 0..10 {
            let (_, alarm) = test.world.shard.next_deadline();
            let alarm = alarm.expect("something is to come").0.min(begin + due);
            let ms = alarm.saturating_sub(test.world.now.wall.0);
            test.world.advance(ms);
            test.fire();
        }
        assert_eq!(test.world.now.wall.0, begin + due);
    }
    assert_eq!(test.world.shard.schedule().pending(), 0);
}

proptest! {
    #[test]
    fn what_is_scheduled_comes_when_it_is_due_and_once(
        ops in prop::collection::vec(op(), 1..60),
    ) {
        play(&ops, 0);
    }

    #[test]
    fn misses_change_nothing(
        ops in prop::collection::vec(op(), 1..40),
        miss_percent in prop_oneof![Just(30u64), Just(100)],
    ) {
        play(&ops, miss_percent);
    }
}
