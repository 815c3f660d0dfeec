//! The same commands make the same state and the same answers, however they were
//! batched into frames.

mod harness;

use harness::{Msg, World, held};
use posthouse_core::catalog::{GroupConfig, Order, Retention, Subscription, TopicConfig};
use posthouse_core::machine::Machine;
use posthouse_core::queue::command::{GivenBack, Held, Target};
use posthouse_core::queue::{Ask, Command};
use posthouse_core::record::When;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Publish(usize, usize, bool),
    Receive(usize, usize),
    Ack(usize),
    Nack(usize),
    Extend(usize),
    Advance(u64),
    Purge(usize, u64),
    Seek(usize, u64),
    Prepare(usize, usize, bool),
    End(usize, bool),
    Checks,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..2, 1usize..5, any::<bool>()).prop_map(|(t, n, id)| Op::Publish(t, n, id)),
        4 => (0usize..2, 1usize..5).prop_map(|(g, n)| Op::Receive(g, n)),
        4 => (0usize..9).prop_map(Op::Ack),
        2 => (0usize..9).prop_map(Op::Nack),
        1 => (0usize..9).prop_map(Op::Extend),
        2 => (1u64..3000).prop_map(Op::Advance),
        1 => (0usize..2, 0u64..20).prop_map(|(t, p)| Op::Purge(t, p)),
        1 => (0usize..2, 0u64..20).prop_map(|(g, p)| Op::Seek(g, p)),
        2 => (0usize..2, 1usize..4, any::<bool>()).prop_map(|(t, n, l)| Op::Prepare(t, n, l)),
        2 => (0usize..6, any::<bool>()).prop_map(|(n, commit)| Op::End(n, commit)),
        1 => Just(Op::Checks),
    ]
}

/// Runs the operations; after each of those whose bit is set the frame is sealed.
fn run(ops: &[Op], seals: &[bool], miss_percent: u64) -> (u64, Vec<(u64, u16, u64)>) {
    let mut world = World::new();
    world.store.miss_percent = miss_percent;
    let retention = Retention::Acknowledged { min_age_ms: 2000 };
    let config = TopicConfig {
        retention,
        dedupe_window_ms: 5000,
        check_after_ms: 900,
        ..TopicConfig::default()
    };
    let topics = ["a", "b"].map(|name| world.topic(name, config.clone()));
    let group = |filter: &str, order| GroupConfig {
        subscriptions: vec![Subscription { topic: "*".into(), filter: filter.into() }],
        order,
        lease_ms: 1000,
        backoff_ms: vec![300],
        max_attempts: 1000,
        ..GroupConfig::default()
    };
    let groups = [
        world.group("all", group("*", Order::None), Target::Earliest),
        world.group("keyed", group("odd", Order::Key), Target::Earliest),
    ];
    let mut seen = Vec::new();
    let mut receipts: Vec<Held> = Vec::new();
    let mut transactions: Vec<u64> = Vec::new();
    let mut count = 0u64;
    for (op, seal) in ops.iter().zip(seals.iter().cycle()) {
        let pick = |n: usize| receipts.len().checked_sub(1 + n).map(|at| receipts[at]);
        match op {
            Op::Publish(topic, n, id) => {
                let messages: Vec<Msg> = (0..*n)
                    .map(|_| {
                        count += 1;
                        let parity = if count % 2 == 1 { "odd" } else { "even" };
                        Msg {
                            key: count.is_multiple_of(3).then(|| "k".into()),
                            tags: vec![parity.into()],
                            dedupe: id.then(|| format!("{}", count % 7)),
                            ..Msg::of("same")
                        }
                    })
                    .collect();
                // One of them may have the publish id of a message that is prepared.
                let _ = world.publish(&topics[*topic], 0, &messages);
            }
            Op::Receive(group, max) => {
                let ask = Ask {
                    group: groups[*group].id,
                    consumer: "w",
                    max: *max,
                    max_bytes: 1 << 20,
                    lease_ms: 1000,
                    topic: None,
                    auto_ack: false,
                };
                for delivery in world.receive(&ask, &|_| panic!("no text is needed")) {
                    seen.push((delivery.found.position, delivery.attempt, delivery.fence));
                    receipts.push(held(&delivery));
                }
            }
            Op::Ack(n) => drop(pick(*n).map(|held| world.run(Command::Ack(vec![held])))),
            Op::Nack(n) => {
                if let Some(held) = pick(*n) {
                    let back = GivenBack { held, delay_ms: None, reason: "why".into() };
                    world.run(Command::Nack(vec![back]));
                }
            }
            Op::Extend(n) => {
                if let Some(held) = pick(*n) {
                    world.run(Command::Extend { held: vec![held], lease_ms: 700 });
                }
            }
            Op::Advance(ms) => world.advance(*ms),
            Op::Purge(topic, before) => {
                let partition = topics[*topic].partitions[0].id;
                world.run(Command::Purge { partition, before: Some(*before) });
            }
            Op::Seek(group, position) => {
                let partition = topics[0].partitions[0].id;
                let to = Target::Position(*position);
                world.run(Command::Seek { group: groups[*group].id, partition, to });
            }
            Op::Prepare(topic, n, later) => {
                let message = |at: usize| Msg {
                    dedupe: (at == 1).then(|| format!("{}", count % 7)),
                    when: later.then_some(When::After(300)),
                    ..Msg::of("same")
                };
                let messages = (0..*n).map(message).collect();
                let lists = [(&*topics[*topic], messages), (&*topics[0], vec![Msg::of("same")])];
                if let Ok(prepared) = world.prepare("shop", &lists) {
                    transactions.push(prepared.first);
                }
            }
            Op::End(n, is_commit) => {
                if let Some(first) = transactions.iter().rev().nth(*n) {
                    let ended = world.end(*first, *is_commit).unwrap().transaction;
                    let placed = ended.parts[0].placed.unwrap_or(0);
                    seen.push((placed, ended.checks, ended.decision.unwrap().number));
                }
            }
            Op::Checks => seen.extend(world.checks("shop").iter().map(|(n, c)| (*n, *c, 0))),
        }
        world.due();
        if *seal {
            world.seal();
        }
    }
    world.seal();
    assert_eq!(world.replayed().digest(), world.shard.digest());
    (world.shard.digest(), seen)
}

proptest! {
    #[test]
    fn batches_do_not_show(
        ops in prop::collection::vec(op(), 1..80),
        seals in prop::collection::vec(any::<bool>(), 1..80),
    ) {
        let one_by_one = run(&ops, &[true], 0);
        let all_at_once = run(&ops, &[false], 0);
        let somehow = run(&ops, &seals, 0);
        prop_assert_eq!(&one_by_one, &all_at_once);
        prop_assert_eq!(&one_by_one, &somehow);
    }
}
