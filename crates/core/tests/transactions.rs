//! Transactions against a plain map: what each has decided, and what its partitions hold.
//!
//! Random prepares, decisions (late and repeated ones too), publishes and checks, with
//! steps of the clock, crashes, snapshots (some of them lost) and misses.

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;

use harness::{Msg, World};
use posthouse_core::catalog::{Retention, Topic, TopicConfig};
use posthouse_core::index::OwnId;
use posthouse_core::machine::Machine;
use posthouse_core::queue::command::{LaterOutcome, Refusal, Reply, Which};
use posthouse_core::queue::{Command, KEPT_MS};
use posthouse_core::record::{Pending, When};
use posthouse_core::schedule::LATE_MS;
use posthouse_core::{Position, Seq};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// Messages, each for a topic, some of them later.
    Prepare {
        producer: bool,
        messages: Vec<(usize, Option<u64>)>,
        id: Option<u8>,
    },
    End {
        nth: usize,
        is_commit: bool,
    },
    Checks {
        producer: bool,
    },
    Publish {
        topic: usize,
        id: Option<u8>,
    },
    Cancel {
        nth: usize,
    },
    Advance(u64),
    Seal,
    Snapshot,
    LoseSnapshot,
    Restart {
        keep: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let later = prop::option::weighted(0.3, prop_oneof![0u64..10, 0u64..3_000]);
    let messages = prop::collection::vec((0usize..2, later), 1..7);
    let id = prop::option::weighted(0.3, 0u8..4);
    prop_oneof![
        6 => (any::<bool>(), messages, id.clone())
            .prop_map(|(producer, messages, id)| Op::Prepare { producer, messages, id }),
        6 => (0usize..12, any::<bool>()).prop_map(|(nth, is_commit)| Op::End { nth, is_commit }),
        2 => any::<bool>().prop_map(|producer| Op::Checks { producer }),
        2 => (0usize..2, id).prop_map(|(topic, id)| Op::Publish { topic, id }),
        1 => (0usize..12).prop_map(|nth| Op::Cancel { nth }),
        5 => prop_oneof![1u64..20, 0u64..2_000, Just(KEPT_MS / 3)].prop_map(Op::Advance),
        3 => Just(Op::Seal),
        3 => Just(Op::Snapshot),
        1 => Just(Op::LoseSnapshot),
        1 => any::<bool>().prop_map(|keep| Op::Restart { keep }),
    ]
}

const CHECK_AFTER: u64 = 700;
const CHECKS: u16 = 3;

#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Open { checks: u16, next: u64, is_parked: bool },
    Committed,
    RolledBack,
}

#[derive(Clone, Debug)]
struct Transaction {
    producer: &'static str,
    messages: Vec<(usize, String, Option<u64>)>,
    id: Option<u8>,
    fate: Fate,
    decided_at: u64,
}

#[derive(Clone, Debug, Default)]
struct Model {
    transactions: BTreeMap<Seq, Transaction>,
    /// Bodies of a topic, in order.
    visible: [Vec<String>; 2],
    /// Committed messages that are to come: when, which, where, and what.
    to_come: BTreeMap<(u64, Seq), (usize, String)>,
    /// Who has a publish id, and since when: a transaction, or nobody who can be asked.
    ids: BTreeMap<(usize, String), (Option<Seq>, u64)>,
}

struct Test {
    world: World,
    topics: Vec<Arc<Topic>>,
    model: Model,
    sealed: Model,
    count: u64,
}

fn producer(name: bool) -> &'static str {
    if name { "shop" } else { "store" }
}

impl Test {
    fn new(miss_percent: u64) -> Test {
        let mut world = World::new();
        world.store.miss_percent = miss_percent;
        let retention = Retention::Acknowledged { min_age_ms: 1 << 40 };
        let config = TopicConfig {
            retention,
            check_after_ms: CHECK_AFTER,
            checks: CHECKS,
            dedupe_window_ms: 60_000,
            ..TopicConfig::default()
        };
        let topics: Vec<_> = ["a", "b"].map(|n| world.topic(n, config.clone())).into();
        world.seal();
        let model = Model::default();
        Test { world, topics, sealed: model.clone(), model, count: 0 }
    }

    fn now(&self) -> u64 {
        self.world.now.wall.0
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Prepare { producer: name, messages, id } => {
                self.prepare(producer(*name), messages, *id);
            }
            Op::End { nth, is_commit } => self.end(*nth, *is_commit),
            Op::Checks { producer: name } => self.checks(producer(*name)),
            Op::Publish { topic, id } => self.publish(*topic, *id),
            Op::Cancel { nth } => self.cancel(*nth),
            Op::Advance(ms) => {
                self.world.advance(*ms);
                self.due();
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
                self.due();
            }
        }
    }

    fn seal(&mut self) {
        self.world.seal();
        self.sealed = self.model.clone();
    }

    /// What a publish id is known for now.
    fn known(&self, topic: usize, id: &str) -> Option<Option<Seq>> {
        let (of, since) = self.model.ids.get(&(topic, id.to_owned()))?;
        (self.now() - since < 60_000).then_some(*of)
    }

    fn prepare(
        &mut self,
        producer: &'static str,
        messages: &[(usize, Option<u64>)],
        id: Option<u8>,
    ) {
        self.count += 1;
        // With an id every message has one, and the same body each time.
        let body = |index: usize| match id {
            Some(id) => format!("p{id}.{index}"),
            None => format!("m{}.{index}", self.count),
        };
        let messages: Vec<(usize, String, Option<u64>)> = (0..)
            .zip(messages)
            .map(|(index, (topic, later))| (*topic, body(index), *later))
            .collect();
        let known: Vec<Option<Option<Seq>>> =
            messages.iter().map(|(topic, body, _)| self.known(*topic, body)).collect();
        let mut lists: Vec<(Arc<Topic>, Vec<Msg>)> = Vec::new();
        for (topic, body, later) in &messages {
            let topic = &self.topics[*topic];
            let message = Msg {
                dedupe: id.map(|_| body.clone()),
                when: later.map(When::After),
                ..Msg::of(body)
            };
            match lists.last_mut() {
                Some((last, list))
                    if last.id == topic.id && list[0].when.is_some() == later.is_some() =>
                {
                    list.push(message);
                }
                _ => lists.push((topic.clone(), vec![message])),
            }
        }
        let lists: Vec<(&Topic, Vec<Msg>)> =
            lists.iter().map(|(topic, list)| (&**topic, list.clone())).collect();
        let first = self.world.shard.schedule().times.next();
        let prepared = self.world.prepare(producer, &lists);
        if let Some(Some(of)) = known.iter().flatten().next().filter(|_| id.is_some()) {
            let before = &self.model.transactions[of];
            let is_same = before.producer == producer
                && before.messages.len() == messages.len()
                && known.iter().all(|known| *known == Some(Some(*of)));
            match prepared {
                Ok(prepared) => {
                    assert!(is_same && prepared.is_duplicate && prepared.first == *of);
                }
                Err(refusal) => {
                    assert!(matches!(refusal, Refusal::Conflict { .. }), "{refusal:?}");
                    // What is forgotten is no transaction that could be named.
                    let is_forgotten = self.world.shard.transactions().get(*of).is_none();
                    assert!(!is_same || is_forgotten);
                }
            }
            return;
        }
        if id.is_some() && known.iter().any(Option::is_some) {
            assert!(matches!(prepared, Err(Refusal::Conflict { .. })), "{prepared:?}");
            return;
        }
        let prepared = prepared.unwrap();
        assert!(prepared.first == first && !prepared.is_duplicate);
        if id.is_some() {
            let now = self.now();
            for (topic, body, _) in &messages {
                self.model.ids.insert((*topic, body.clone()), (Some(first), now));
            }
        }
        let next = self.world.now.lease.0 + CHECK_AFTER;
        let fate = Fate::Open { checks: 0, next, is_parked: false };
        let of = Transaction { producer, messages, id, fate, decided_at: 0 };
        self.model.transactions.insert(first, of);
    }

    fn nth(&self, nth: usize) -> Option<Seq> {
        self.model.transactions.keys().rev().nth(nth).copied()
    }

    fn end(&mut self, nth: usize, is_commit: bool) {
        let Some(first) = self.nth(nth) else { return };
        let ended = self.world.end(first, is_commit);
        let now = self.now();
        let of = self.model.transactions.get_mut(&first).unwrap();
        match of.fate {
            Fate::Open { .. } => {
                let ended = ended.unwrap();
                assert!(!ended.is_late);
                of.fate = if is_commit { Fate::Committed } else { Fate::RolledBack };
                of.decided_at = now;
                if is_commit {
                    let placed: Vec<Option<Position>> =
                        ended.transaction.parts.iter().map(|part| part.placed).collect();
                    self.committed(first, &placed);
                } else if of.id.is_some() {
                    for (topic, body, _) in of.messages.clone() {
                        // Another message may have the id since, when the window was over.
                        let key = (topic, body);
                        if self.model.ids.get(&key).is_some_and(|(of, _)| *of == Some(first)) {
                            self.model.ids.remove(&key);
                        }
                    }
                }
            }
            ref fate => {
                let (committed, at) = (*fate == Fate::Committed, of.decided_at);
                match ended {
                    Ok(ended) => {
                        let decision = ended.transaction.decision.unwrap();
                        assert!(ended.is_late);
                        assert_eq!((decision.is_commit, decision.at.0), (committed, at));
                    }
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::NoTransaction);
                        assert!(now - at >= KEPT_MS, "forgotten too early");
                    }
                }
            }
        }
        self.due();
    }

    /// Messages of a transaction have come, or are to come.
    fn committed(&mut self, first: Seq, placed: &[Option<Position>]) {
        let now = self.now();
        let messages = self.model.transactions[&first].messages.clone();
        let mut placed = placed.iter();
        let mut last: Option<(usize, bool)> = None;
        for (seq, (topic, body, later)) in (first..).zip(messages) {
            let visible = &mut self.model.visible[topic];
            if last.replace((topic, later.is_some())) != Some((topic, later.is_some())) {
                let position = later.is_none().then_some(visible.len() as Position);
                assert_eq!(placed.next(), Some(&position));
            }
            match later {
                None => visible.push(body),
                Some(ms) => drop(self.model.to_come.insert((now + ms, seq), (topic, body))),
            }
        }
    }

    fn checks(&mut self, producer: &'static str) {
        let now = self.world.now.lease.0;
        let mut wanted = Vec::new();
        for (first, of) in &mut self.model.transactions {
            if let Fate::Open { checks, next, is_parked: false } = &mut of.fate
                && of.producer == producer
                && *next <= now
                && *checks < CHECKS
            {
                *checks += 1;
                *next = now + (CHECK_AFTER << *checks);
                wanted.push((*first, *checks));
            }
        }
        let mut asked = self.world.checks(producer);
        asked.sort_unstable();
        assert_eq!(asked, wanted);
        self.due();
    }

    fn publish(&mut self, topic: usize, id: Option<u8>) {
        self.count += 1;
        let body = id.map_or_else(|| format!("m{}", self.count), |id| format!("p{id}.0"));
        let message = Msg { dedupe: id.map(|_| body.clone()), ..Msg::of(&body) };
        let known = id.and_then(|_| self.known(topic, &body));
        let topic_of = self.topics[topic].clone();
        let published = self.world.publish(&topic_of, 0, &[message]);
        let is_open = |of: &Option<Seq>| {
            of.is_some_and(|of| matches!(self.model.transactions[&of].fate, Fate::Open { .. }))
        };
        match known {
            // Nobody knows whether what is prepared will come.
            Some(of) if is_open(&of) => assert!(published.is_err()),
            Some(_) => assert_eq!(published.unwrap().duplicates.len(), 1),
            None => {
                let visible = &mut self.model.visible[topic];
                assert_eq!(published.unwrap().first, visible.len() as Position);
                visible.push(body.clone());
                if id.is_some() {
                    let now = self.world.now.wall.0;
                    self.model.ids.insert((topic, body), (None, now));
                }
            }
        }
    }

    /// A message of a transaction is called back: that is for the transaction to decide.
    fn cancel(&mut self, nth: usize) {
        let Some(first) = self.nth(nth) else { return };
        let of = &self.model.transactions[&first];
        let Fate::Open { .. } = of.fate else { return };
        let partition = self.topics[of.messages[0].0].partitions[0].id;
        let of = Pending { partition, seq: first };
        let reply = self.world.run(Command::Cancel(vec![Which::Id(of)]));
        assert_eq!(reply, Reply::Later(vec![LaterOutcome::Held { of }]));
    }

    fn due(&mut self) {
        self.world.due();
        let (now, lease) = (self.now(), self.world.now.lease.0);
        let mut due: [BTreeMap<Seq, (u64, String)>; 2] = Default::default();
        while let Some(first) = self.model.to_come.first_entry().filter(|e| e.key().0 <= now) {
            let ((at, seq), (topic, body)) = first.remove_entry();
            due[topic].insert(seq, (at, body));
        }
        for ((topic, visible), mut due) in self.topics.iter().zip(&mut self.model.visible).zip(due)
        {
            let mut came: Vec<(u64, Seq)> = Vec::new();
            while !due.is_empty() {
                let position = visible.len() as Position;
                let found = self.world.find(topic.partitions[0].id, position).unwrap();
                let OwnId::Seq(seq) = found.id else { panic!("{found:?}") };
                let (at, body) = due.remove(&seq).unwrap_or_else(|| panic!("{seq} is not due"));
                came.push((at, seq));
                visible.push(body);
            }
            // What is late and what is on time go their own ways.
            for is_late in [false, true] {
                let mut some = came.iter().filter(|(due, _)| (now - due > LATE_MS) == is_late);
                assert!(some.by_ref().is_sorted(), "{came:?}");
            }
        }
        for of in self.model.transactions.values_mut() {
            let Fate::Open { checks, next, is_parked } = &mut of.fate else { continue };
            if *checks < CHECKS && lease >= *next + (CHECK_AFTER << (*checks + 1)) {
                (*checks, *next) = (*checks + 1, lease);
            }
            *is_parked |= *checks == CHECKS && lease >= *next;
        }
        self.check();
    }

    fn check(&mut self) {
        let all = self.world.shard.transactions();
        let open = |of: &&Transaction| matches!(of.fate, Fate::Open { .. });
        let parked = |of: &&Transaction| matches!(of.fate, Fate::Open { is_parked: true, .. });
        let model = self.model.transactions.values();
        assert_eq!(all.open(), model.clone().filter(open).count() as u64);
        assert_eq!(all.parked(), model.clone().filter(parked).count() as u64);
        let messages: usize = model.filter(open).map(|of| of.messages.len()).sum();
        assert_eq!(all.messages(), messages as u64);
        for (first, of) in &self.model.transactions {
            let Fate::Open { checks, next, is_parked } = of.fate else { continue };
            let is = all.get(*first).unwrap();
            assert_eq!((is.checks, is.is_parked), (checks, is_parked), "{first}");
            assert!(is_parked || is.next_check.0 == next, "{first}");
        }
        for (topic, visible) in self.topics.iter().zip(&self.model.visible) {
            let partition = topic.partitions[0].id;
            let row = self.world.shard.partition(partition);
            assert_eq!(row.map_or(0, |row| row.next), visible.len() as u64);
            assert!(row.is_none_or(|row| row.pending <= self.model.to_come.len() as u64));
        }
    }

    /// Every message that came is where the model has it; of transactions that are left
    /// open, too, once they are decided.
    fn finish(&mut self) {
        let open: Vec<usize> = (0..self.model.transactions.len()).collect();
        for nth in open {
            self.end(nth, nth % 2 == 0);
        }
        self.world.advance(10_000);
        self.due();
        self.seal();
        assert_eq!(self.world.shard.transactions().open(), 0);
        for (topic, visible) in self.topics.clone().iter().zip(self.model.visible.clone()) {
            for (position, body) in (0..).zip(visible) {
                let found = self.world.find(topic.partitions[0].id, position).unwrap();
                assert_eq!(self.world.body(found.body), body);
            }
        }
        let digest = self.world.shard.digest();
        assert_eq!(self.world.replayed().digest(), digest, "replayed differs from live");
        assert_eq!(self.world.restored().digest(), digest, "restored differs from live");
        self.world.take_snapshot(|_| ());
        assert_eq!(self.world.restored().digest(), digest, "restored differs from live");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn transactions_are_what_the_model_says(
        ops in prop::collection::vec(op(), 1..100),
        miss_percent in prop_oneof![Just(0u64), Just(10), Just(100)],
    ) {
        let mut test = Test::new(miss_percent);
        for op in &ops {
            test.run(op);
        }
        test.finish();
    }
}

#[test]
fn what_is_late_goes_its_own_way_while_its_block_is_fetched() {
    let mut test = Test::new(100);
    let later = [(0, Some(1)), (1, Some(5)), (0, Some(69)), (0, None), (0, Some(1))];
    test.prepare("store", &later, None);
    for _ in 0..6 {
        test.prepare("store", &[(0, None)], None);
    }
    test.prepare("store", &[(0, Some(1))], None);
    test.prepare("store", &[(0, None)], None);
    test.end(1, true);
    test.run(&Op::Snapshot);
    test.prepare("store", &[(1, None)], Some(2));
    test.end(9, true);
    test.run(&Op::Advance(1002));
    test.finish();
}
