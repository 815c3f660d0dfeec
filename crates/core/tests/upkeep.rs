//! What a shard does by itself goes on whatever else happens, in pieces that hold nobody up.

mod harness;

use std::sync::Arc;

use harness::{Msg, World, held};
use posthouse_core::catalog::{
    Group, GroupConfig, Retention, Subscription, Topic, TopicConfig, machine,
};
use posthouse_core::machine::Machine;
use posthouse_core::queue::command::{GivenBack, Reply, Target};
use posthouse_core::queue::{Ask, Command, Delivery, Due, DueBudget, Granted};
use posthouse_core::{GroupId, PartitionId};
use posthouse_frame::FrameNo;

fn limits(max_bytes: Option<u64>, max_count: Option<u64>) -> TopicConfig {
    let retention = Retention::Limits { max_age_ms: None, max_bytes, max_count };
    TopicConfig { retention, ..TopicConfig::default() }
}

fn group_of(topics: &str) -> GroupConfig {
    let subscriptions = topics
        .split(',')
        .map(|topic| Subscription { topic: topic.into(), filter: "*".into() })
        .collect();
    GroupConfig { subscriptions, ..GroupConfig::default() }
}

fn ask(group: GroupId, max: usize) -> Ask<'static> {
    Ask {
        group,
        consumer: "c",
        max,
        max_bytes: u64::MAX,
        lease_ms: 1_000,
        topic: None,
        auto_ack: false,
    }
}

fn fill(world: &mut World, topic: &Topic, count: usize, message: &Msg) {
    let mut left = count;
    while left > 0 {
        let some = left.min(5_000);
        world.publish(topic, 0, &vec![message.clone(); some]).unwrap();
        left -= some;
        world.seal();
    }
}

/// One call, applied; what it asks for is not done.
fn due(world: &mut World, budget: DueBudget) -> Due {
    let start = world.open.meta().len();
    let due = world.shard.due(&world.catalog, &world.store, world.now, budget, &mut world.open);
    let meta = world.open.meta()[start..].to_vec();
    world.shard.apply(world.open.no(), &meta).unwrap();
    due
}

/// One call, applied, and how many bytes it wrote.
fn grant(world: &mut World, ask: &Ask<'_>) -> (Granted, usize) {
    let start = world.open.meta().len();
    let granted = world.shard.grant(ask, &world.catalog, &world.store, world.now, &mut world.open);
    let meta = world.open.meta()[start..].to_vec();
    world.shard.apply(world.open.no(), &meta).unwrap();
    (granted, meta.len())
}

fn nothing(_: &posthouse_core::index::Found) -> bool {
    false
}

fn receive(world: &mut World, group: &Group, max: usize) -> Vec<Delivery> {
    world.receive(&ask(group.id, max), &nothing)
}

fn give_back(world: &mut World, deliveries: &[Delivery]) {
    let back = |d| GivenBack { held: held(d), delay_ms: Some(0), reason: Arc::from("no") };
    world.run(Command::Nack(deliveries.iter().map(back).collect()));
}

fn swept(world: &World, partition: PartitionId) -> (u64, u64) {
    let row = world.shard.partition(partition).unwrap();
    (row.swept, row.head)
}

// A trim that came in the same call as the last piece of the sweep before left the partition
// in no line at all: its space was never given back.
#[test]
fn what_is_trimmed_while_the_sweep_before_ends_is_swept_too() {
    let mut world = World::new();
    let topic = world.topic("t", limits(None, Some(10)));
    let partition = topic.partitions[0].id;
    fill(&mut world, &topic, 110, &Msg::of("m"));
    let small = DueBudget { sweep: 60, ..DueBudget::default() };
    due(&mut world, small);
    world.advance(1_000);
    due(&mut world, small);
    assert_eq!(swept(&world, partition), (0, 100));
    fill(&mut world, &topic, 50, &Msg::of("m"));
    due(&mut world, small);
    assert_eq!(swept(&world, partition), (60, 100));
    world.advance(1_000);
    due(&mut world, small);
    assert_eq!(swept(&world, partition), (100, 150), "trim and sweep came together");
    world.due();
    assert_eq!(swept(&world, partition), (150, 150));
}

// The trims of all topics waited for the block that one of them needed.
#[test]
fn a_trim_that_needs_a_block_holds_up_no_other() {
    let mut world = World::new();
    let cold = world.topic("cold", limits(Some(50), None));
    fill(&mut world, &cold, 100, &Msg::of("m"));
    world.take_snapshot(|_| ());
    world.store.miss_percent = 100;
    due(&mut world, DueBudget::default());
    let young = world.topic("young", limits(Some(50), None));
    fill(&mut world, &young, 100, &Msg::of("m"));
    due(&mut world, DueBudget::default());
    world.advance(1_000);
    let asked = due(&mut world, DueBudget::default());
    assert!(!asked.misses.is_empty(), "the cold one needs a block");
    assert!(swept(&world, young.partitions[0].id).1 > 0, "the other is trimmed");
    assert_eq!(swept(&world, cold.partitions[0].id).1, 0);
    for _ in 0..10 {
        due(&mut world, DueBudget::default()).misses.iter().for_each(|miss| world.fetch(*miss));
        world.advance(50);
    }
    assert!(swept(&world, cold.partitions[0].id).1 > 0);
}

// Oldest first: whoever came last went first, and under a steady load nobody else ever did.
#[test]
fn partitions_are_looked_at_in_turn() {
    let mut world = World::new();
    let topics: Vec<_> =
        (0..4).map(|n| world.topic(&format!("t{n}"), limits(None, Some(1)))).collect();
    let budget = DueBudget { partitions: 1, ..DueBudget::default() };
    for round in 0..8 {
        for topic in &topics {
            fill(&mut world, topic, 2, &Msg::of("m"));
        }
        due(&mut world, budget);
        world.advance(if round < 4 { 0 } else { 1_000 });
    }
    let first = swept(&world, topics[0].partitions[0].id).1;
    assert!(first > 0, "the first that came is trimmed although others come again and again");
}

// Counting bytes from one end to the other was one step, and held up the shard.
#[test]
fn a_bound_in_bytes_that_is_lowered_is_come_to_in_steps() {
    let mut world = World::new();
    let topic = world.topic("t", limits(None, Some(1 << 40)));
    let partition = topic.partitions[0].id;
    fill(&mut world, &topic, 70_000, &Msg::of("m"));
    world.topic("t", limits(Some(100), None));
    due(&mut world, DueBudget::default());
    world.advance(1_000);
    let mut before = 0;
    let mut steps = 0;
    while world.shard.partition(partition).unwrap().bytes > 100 {
        due(&mut world, DueBudget::default());
        let head = swept(&world, partition).1;
        assert!(head - before <= 20_000, "from {before} to {head} in one step");
        before = head;
        world.advance(2);
        steps += 1;
        assert!(steps < 100, "it goes on without a pause");
    }
}

// What was in flight on a partition that was taken away kept the group at its cap for good.
#[test]
fn a_group_at_its_cap_goes_on_when_what_it_has_is_taken_away() {
    let mut world = World::new();
    let (a, b) =
        (world.topic("a", TopicConfig::default()), world.topic("b", limits(None, Some(1 << 40))));
    let config = GroupConfig { max_in_flight: Some(1), ..group_of("a,b") };
    let group = world.group("g", config, Target::Earliest);
    fill(&mut world, &a, 1, &Msg::of("of a"));
    assert_eq!(receive(&mut world, &group, 5).len(), 1);
    fill(&mut world, &b, 1, &Msg::of("of b"));
    assert_eq!(receive(&mut world, &group, 5), []);
    world.shard.take_called();
    world.run(Command::Drop { partition: a.partitions[0].id });
    assert_eq!(world.shard.take_called(), [group.id]);
    assert_eq!(receive(&mut world, &group, 5).len(), 1);
}

// Every message whose attempts were used up had its body read at once, however many.
#[test]
fn few_messages_are_buried_at_a_time_and_all_in_the_end() {
    let mut world = World::new();
    let topic = world.topic("t", TopicConfig::default());
    let config = GroupConfig { max_attempts: 1, ..group_of("t") };
    let group = world.group("g", config, Target::Earliest);
    fill(&mut world, &topic, 1_000, &Msg::of("m"));
    let all = receive(&mut world, &group, 1_000);
    assert_eq!(all.len(), 1_000);
    give_back(&mut world, &all);
    let mut burials = Vec::new();
    for _ in 0..5 {
        burials.extend(due(&mut world, DueBudget::default()).burials);
    }
    assert!((1..=256).contains(&burials.len()), "{} at a time", burials.len());
    assert!(!world.shard.has_chores(), "there is nothing to do before one of them is buried");
    // The attendant could not do it.
    for burial in burials {
        world.shard.bury_again(burial.group, burial.partition, burial.found.position);
    }
    world.due();
    let dead = world.catalog.topic_named("%dead.g").unwrap().partitions[0].id;
    assert_eq!(world.shard.count_letters(dead), 1_000);
}

// A message that waited for its burial when its group was given more attempts was known to
// nobody any more.
#[test]
fn a_message_that_gets_more_attempts_instead_of_a_burial_comes_again() {
    let mut world = World::new();
    let topic = world.topic("t", TopicConfig::default());
    let config = |max_attempts| GroupConfig { max_attempts, ..group_of("t") };
    let group = world.group("g", config(1), Target::Earliest);
    fill(&mut world, &topic, 1, &Msg::of("m"));
    let all = receive(&mut world, &group, 1);
    give_back(&mut world, &all);
    let burials = due(&mut world, DueBudget::default()).burials;
    assert_eq!(burials.len(), 1);
    assert_eq!(receive(&mut world, &group, 1), []);
    world.group("g", config(5), Target::Earliest);
    world.shard.bury_again(group.id, burials[0].partition, burials[0].found.position);
    world.due();
    let again = receive(&mut world, &group, 1);
    assert_eq!(again.iter().map(|d| d.attempt).collect::<Vec<_>>(), [2]);
}

// A burial under way was remembered by the number of the pair, which another group got.
#[test]
fn a_burial_under_way_does_not_keep_another_group_from_its_own() {
    let mut world = World::new();
    let topic = world.topic("t", TopicConfig::default());
    let partition = topic.partitions[0].id;
    let config = || GroupConfig { max_attempts: 1, ..group_of("t") };
    fill(&mut world, &topic, 1, &Msg::of("m"));
    for name in ["first", "second"] {
        let group = world.group(name, config(), Target::Earliest);
        let all = receive(&mut world, &group, 1);
        give_back(&mut world, &all);
        assert_eq!(due(&mut world, DueBudget::default()).burials.len(), 1, "{name}");
        world.run(Command::Detach { group: group.id, partition });
    }
}

// Each partition of a group had a search of its own: with many, one ask went on for long, and
// wrote more than a frame holds.
#[test]
fn an_ask_looks_at_a_bounded_number_of_messages_over_all_partitions() {
    let mut world = World::new();
    let mut config = group_of("t");
    config.subscriptions[0].filter = "wanted".into();
    let group = world.group("g", config, Target::Earliest);
    let topic = world.topic("t", TopicConfig { partitions: 20, ..TopicConfig::default() });
    for index in 0..20 {
        world.publish(&topic, index, &vec![Msg::of("m"); 2_000]).unwrap();
    }
    let mut asks = 0;
    loop {
        let (granted, bytes) = grant(&mut world, &ask(group.id, 10));
        assert!(granted.looked <= 16_384 && bytes < 1_000, "{} in {bytes}", granted.looked);
        asks += 1;
        if !granted.more {
            break;
        }
    }
    assert!((3..5).contains(&asks), "{asks}: each goes on where the one before ended");
    let pairs = world.shard.pairs_of(group.id, u32::MAX);
    assert!(pairs.iter().all(|pair| pair.lag == 0));
}

// More messages than one ask looks at waited for one in flight: the ask said that there was
// more, and was asked again, and again.
#[test]
fn a_group_at_its_cap_with_many_that_wait_is_not_asked_again_and_again() {
    let mut world = World::new();
    let topic = world.topic("t", TopicConfig::default());
    let group = world.group("g", group_of("t"), Target::Earliest);
    fill(&mut world, &topic, 20_000, &Msg::of("m"));
    for _ in 0..2 {
        let all = receive(&mut world, &group, 10_000);
        assert!(all.len() > 5_000);
        give_back(&mut world, &all);
        world.due();
    }
    let config = GroupConfig { max_in_flight: Some(1), ..group_of("t") };
    world.group("g", config, Target::Earliest);
    let one = receive(&mut world, &group, 10);
    assert_eq!(one.len(), 1);
    let mut asks = 0;
    while grant(&mut world, &ask(group.id, 10)).0.more {
        asks += 1;
        assert!(asks < 10, "nothing can come of it");
    }
    world.shard.take_called();
    world.run(Command::Ack(vec![held(&one[0])]));
    assert_eq!(world.shard.take_called(), [group.id]);
    assert_eq!(receive(&mut world, &group, 10).len(), 1);
}

#[test]
fn a_group_is_not_given_a_partition_whose_topic_is_gone() {
    let mut world = World::new();
    let topic = world.topic("t", TopicConfig::default());
    let group = world.group("g", group_of("t"), Target::Earliest);
    let partition = topic.partitions[0].id;
    world.meta(machine::Command::DeleteTopic { name: "t".into() });
    world.run(Command::Drop { partition });
    world.due();
    assert!(world.shard.partition(partition).is_none(), "it is swept and closed");
    let (group, topic, start) = (group.id, topic.id, Target::Earliest);
    world.run(Command::Attach { group, partition, topic, start });
    assert!(world.shard.partition(partition).is_none(), "and stays so");
    assert!(world.shard.pair(group, partition).is_none());
}

// A purge of many letters was gone through one by one.
#[test]
fn many_letters_are_purged_at_once_and_what_was_redriven_stays_so() {
    let mut world = World::new();
    let topic = world.topic("t", TopicConfig::default());
    let config = GroupConfig { max_attempts: 1, ..group_of("t") };
    let group = world.group("g", config, Target::Earliest);
    fill(&mut world, &topic, 5_000, &Msg::of("m"));
    let all = receive(&mut world, &group, 5_000);
    give_back(&mut world, &all);
    world.due();
    assert_eq!(world.redrive(&group, &[100, 4_900]), 2);
    let from = world.catalog.topic_named("%dead.g").unwrap().partitions[0].id;
    let purged = world.run(Command::PurgeDead { from, positions: None });
    assert_eq!(purged, Reply::Count(4_998));
    assert_eq!(world.shard.count_letters(from), 0);
    assert_eq!(receive(&mut world, &group, 10).len(), 2);
    world.seal();
    assert_eq!(world.replayed().digest(), world.shard.digest());
    world.take_snapshot(|_| ());
    assert_eq!(world.restored().digest(), world.shard.digest());
}

// Who asked for the one topic that its group gets never got what was redriven: that comes
// through a topic of its own.
#[test]
fn what_is_redriven_comes_to_who_asks_for_the_topic_if_the_group_gets_no_other() {
    for (topics, came) in [("a", 1), ("a,b", 0)] {
        let mut world = World::new();
        let topic = world.topic("a", TopicConfig::default());
        world.topic("b", TopicConfig::default());
        let config = GroupConfig { max_attempts: 1, ..group_of(topics) };
        let group = world.group("g", config, Target::Earliest);
        fill(&mut world, &topic, 1, &Msg::of("m"));
        let all = receive(&mut world, &group, 1);
        give_back(&mut world, &all);
        world.due();
        assert_eq!(world.redrive(&group, &[0]), 1);
        let of_a = Ask { topic: Some(topic.id), ..ask(group.id, 10) };
        assert_eq!(world.receive(&of_a, &nothing).len(), came, "of {topics}");
        assert_eq!(receive(&mut world, &group, 10).len(), 1 - came, "of {topics}");
    }
}

fn texts(world: &World, topic: &Topic) -> Vec<String> {
    let partition = topic.partitions[0].id;
    let row = world.shard.partition(partition).unwrap();
    let found = (row.head..row.next).map(|position| world.find(partition, position).unwrap());
    found.map(|found| world.body(found.body)).collect()
}

// One topic that was kept among others held every segment for as long.
#[test]
fn what_is_carried_is_where_it_was_and_its_old_place_is_free() {
    let mut world = World::new();
    let (kept, short) = (
        world.topic("kept", limits(None, Some(1000))),
        world.topic("short", limits(None, Some(2))),
    );
    // So that it is several spans.
    let long = "short".repeat(2_000);
    for n in 0..50 {
        fill(&mut world, &kept, 1, &Msg::of(&format!("kept {n}")));
        fill(&mut world, &short, 20, &Msg { key: Some("k".into()), ..Msg::of(&long) });
    }
    world.due();
    world.advance(2_000);
    world.due();
    let before = texts(&world, &kept);
    assert_eq!(before.len(), 50);
    world.empty();
    let upto = world.emptied;
    assert_eq!(world.shard.live_in(FrameNo(1), FrameNo(upto.0 / 2)), 0, "it can go");
    assert_eq!(texts(&world, &kept), before);
    assert_eq!(world.shard.index().carried().len(), 52);
    let (rows, spans) = world.live();
    assert_eq!(rows, spans);
    // It is so after a restart, from the records, and from the pages.
    world.restart(true);
    assert_eq!(texts(&world, &kept), before);
    world.take_snapshot(|_| ());
    world.restart(true);
    assert_eq!(texts(&world, &kept), before);
    // Chunks made anew say it themselves, and leave out what is gone.
    world.fold();
    assert!(world.shard.index().carried().is_empty());
    let [chunk] = world.shard.index().chunks() else { panic!("one chunk is left") };
    assert!(chunk.bytes() < 400, "{} bytes for 52 messages", chunk.bytes());
    assert_eq!(texts(&world, &kept), before);
    world.restart(true);
    assert_eq!(texts(&world, &kept), before);
    // Carried again, and then gone.
    world.empty();
    assert_eq!(texts(&world, &kept), before);
    world.topic("kept", limits(None, Some(1)));
    world.topic("short", limits(None, Some(1)));
    world.due();
    world.advance(2_000);
    world.due();
    assert_eq!(world.shard.index().carried().len(), 2);
    world.seal();
    assert_eq!(texts(&world, &kept), ["kept 49"]);
}

// A message that went, was carried, or came to be in another chunk meanwhile is let alone.
#[test]
fn only_what_is_where_it_was_found_is_carried() {
    let mut world = World::new();
    let topic = world.topic("t", limits(None, Some(3)));
    fill(&mut world, &topic, 6, &Msg::of("m"));
    world.due();
    let found = world.find_all();
    assert_eq!(found.len(), 6);
    world.advance(2_000);
    world.due();
    let folds = world.shard.index().folds();
    let each = u64::from(found[0].body.len);
    assert_eq!(world.carry(folds, &found), 3 * each, "three are gone");
    world.seal();
    assert_eq!(world.carry(folds, &found), 0, "they are elsewhere now");
    let again = world.find_all();
    assert_eq!(again.len(), 3);
    world.fold();
    assert_eq!(world.carry(folds, &again), 0, "found before chunks were made anew");
    let folds = world.shard.index().folds();
    assert_eq!(world.carry(folds, &again), 3 * each);
    let (rows, spans) = world.live();
    assert_eq!(rows, spans);
}
