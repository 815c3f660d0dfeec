use std::collections::BTreeMap;

use super::*;
use crate::catalog::{Start, Subscription};
use crate::ident::Secret;

fn secret() -> Secret {
    Secret::new([1; 32])
}

struct World {
    catalog: Catalog,
    log: Vec<Vec<u8>>,
    now: UnixMs,
}

impl World {
    fn new() -> Self {
        World { catalog: Catalog::new(secret()), log: Vec::new(), now: UnixMs(7) }
    }

    fn run(&mut self, command: Command) -> Result<Reply, Refusal> {
        let number = FrameNo(self.log.len() as u64 + 1);
        let mut frame = FrameBuf::new(number);
        let reply = self.catalog.decide(&command, self.now, &mut frame)?;
        self.catalog.apply(number, frame.meta()).unwrap();
        self.log.push(frame.meta().to_vec());
        Ok(reply)
    }

    fn topic(&mut self, name: &str, partitions: u32) -> Result<Reply, Refusal> {
        self.run(Command::PutTopic {
            name: name.into(),
            role: Role::Messages,
            config: TopicConfig { partitions, ..Default::default() },
            shards: 4,
            only_new: false,
        })
    }

    fn group(&mut self, name: &str, topics: &[&str]) -> Result<Reply, Refusal> {
        let subscriptions = topics
            .iter()
            .map(|topic| Subscription { topic: topic.to_string(), filter: "*".into() })
            .collect();
        self.run(Command::PutGroup {
            name: name.into(),
            parent: None,
            config: GroupConfig { subscriptions, start: Start::Latest, ..Default::default() },
            only_new: false,
        })
    }

    fn groups_of(&self, topic: &str) -> Vec<&str> {
        let topic = self.catalog.topic_named(topic).unwrap();
        let groups = self.catalog.groups_of(topic);
        groups.iter().map(|id| &*self.catalog.group(*id).unwrap().name).collect()
    }
}

#[test]
fn topics_are_made_changed_and_deleted_and_no_number_is_given_twice() {
    let mut world = World::new();
    let Ok(Reply::Topic(orders, Outcome::Created)) = world.topic("orders", 3) else { panic!() };
    assert_eq!(orders.partitions.iter().map(|p| p.id.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(matches!(world.topic("orders", 3), Ok(Reply::Topic(_, Outcome::Unchanged))));
    let Ok(Reply::Topic(grown, Outcome::Changed)) = world.topic("orders", 5) else { panic!() };
    assert_eq!(grown.partitions[..3], orders.partitions[..]);
    let shrunk = world.topic("orders", 2).unwrap_err().to_string();
    assert_eq!(shrunk, "partitions is 2: the topic has 5 already, and can only grow");
    assert_eq!(world.catalog.topic_of(PartitionId(4)).unwrap().name, orders.name);

    let name = || "orders".to_string();
    world.run(Command::DeleteTopic { name: name() }).unwrap();
    let again = world.topic("orders", 1).unwrap_err();
    assert_eq!(again, Refusal::Deleting { kind: "topic", name: name() });
    world.run(Command::EndTopic { id: orders.id }).unwrap();
    assert_eq!(world.catalog.topic_named("orders"), None);
    assert_eq!(world.catalog.topic_of(PartitionId(4)), None);
    let Ok(Reply::Topic(fresh, Outcome::Created)) = world.topic("orders", 1) else { panic!() };
    assert_eq!((fresh.id, fresh.partitions[0].id), (TopicId(2), PartitionId(6)));
}

#[test]
fn groups_get_the_topics_that_they_name_or_match() {
    let mut world = World::new();
    world.topic("orders.eu", 1).unwrap();
    world.topic("payments", 1).unwrap();
    world.group("all", &["*"]).unwrap();
    world.group("orders", &["orders.*", "payments"]).unwrap();
    world.group("payments", &["payments"]).unwrap();
    assert_eq!(world.groups_of("orders.eu"), ["all", "orders"]);
    assert_eq!(world.groups_of("payments"), ["all", "orders", "payments"]);
    world.topic("orders.us", 1).unwrap();
    let group = world.catalog.group_named("orders").unwrap();
    let topics = world.catalog.topics_of(group);
    let names: Vec<&str> = topics.iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["orders.eu", "payments", "orders.us"]);
    world.group("orders", &["payments"]).unwrap();
    assert_eq!(world.groups_of("orders.us"), ["all"]);
    world.run(Command::DeleteGroup { name: "all".into() }).unwrap();
    assert_eq!(world.groups_of("orders.us"), [""; 0]);
}

#[test]
fn an_own_group_of_a_consumer_gets_what_its_parent_does() {
    let mut world = World::new();
    world.topic("news", 1).unwrap();
    let Ok(Reply::Group(parent, _)) = world.group("readers", &["news"]) else { panic!() };
    world
        .run(Command::PutGroup {
            name: "%broadcast.readers%w1".into(),
            parent: Some(parent.id),
            config: GroupConfig::default(),
            only_new: true,
        })
        .unwrap();
    assert_eq!(world.groups_of("news"), ["readers", "%broadcast.readers%w1"]);
    world.group("readers", &[]).unwrap();
    assert_eq!(world.groups_of("news"), [""; 0]);
}

fn topic_as(world: &mut World, name: &str, role: Role, partitions: u32) -> Result<Reply, Refusal> {
    let config = TopicConfig { partitions, ..Default::default() };
    let (name, shards, only_new) = (name.into(), 1, false);
    world.run(Command::PutTopic { name, role, config, shards, only_new })
}

// An own group did not get what was redriven to it after a restart, and with a pattern it got
// what was redriven to its parent.
#[test]
fn an_own_group_of_a_consumer_gets_what_is_redriven_to_it_and_not_to_its_parent() {
    let mut world = World::new();
    let Ok(Reply::Group(parent, _)) = world.group("g", &["*"]) else { panic!() };
    let config = GroupConfig::default();
    let (name, parent_id) = (crate::name::broadcast_group("g", "c"), Some(parent.id));
    let put = Command::PutGroup { name, parent: parent_id, config, only_new: false };
    let Ok(Reply::Group(own, _)) = world.run(put) else { panic!() };
    for group in [&parent, &own] {
        let name = crate::name::retry_topic(&group.name);
        topic_as(&mut world, &name, Role::Retry(group.id), 1).unwrap();
        let retry = world.catalog.topic_named(&name).unwrap();
        assert_eq!(world.groups_of(&name), [&*group.name]);
        assert!(world.catalog.gets(group, retry));
        assert_eq!(world.catalog.topics_of(group), std::slice::from_ref(retry));
    }
}

// A partition that was added to a topic of the system stood in a shard that is not there.
#[test]
fn a_topic_of_the_system_keeps_its_partitions() {
    let mut world = World::new();
    let Ok(Reply::Group(group, _)) = world.group("g", &["t"]) else { panic!() };
    let role = Role::DeadLetters(group.id);
    topic_as(&mut world, "%dead.g", role, 1).unwrap();
    let refusal = topic_as(&mut world, "%dead.g", role, 4).unwrap_err().to_string();
    assert_eq!(refusal, "partitions is 4: a topic of the system keeps its 1");
}

#[test]
fn a_group_that_is_being_deleted_gets_no_child() {
    let mut world = World::new();
    let Ok(Reply::Group(parent, _)) = world.group("g", &["t"]) else { panic!() };
    world.run(Command::DeleteGroup { name: "g".into() }).unwrap();
    let child = |parent| Command::PutGroup {
        name: "%broadcast.g%c".into(),
        parent: Some(parent),
        config: GroupConfig::default(),
        only_new: true,
    };
    let refusal = world.run(child(parent.id)).unwrap_err();
    assert_eq!(refusal, Refusal::Deleting { kind: "group", name: "g".into() });
    world.run(Command::EndGroup { id: parent.id }).unwrap();
    assert!(matches!(world.run(child(parent.id)), Err(Refusal::NotFound { .. })));
}

// What had come to a partition before a crash, between the catalog and the shard, was before
// the beginning of groups that are older than the partition, and begin with what comes next.
#[test]
fn a_group_begins_at_the_beginning_of_what_is_newer_than_it() {
    let mut world = World::new();
    world.topic("old", 1).unwrap();
    world.now = UnixMs(10);
    let Ok(Reply::Group(group, _)) = world.group("g", &["*"]) else { panic!() };
    world.now = UnixMs(20);
    let Ok(Reply::Topic(old, _)) = world.topic("old", 3) else { panic!() };
    let Ok(Reply::Topic(new, _)) = world.topic("new", 1) else { panic!() };
    let starts = |topic: &Topic| -> Vec<Start> {
        let start = |partition| world.catalog.start_on(&group, topic, partition);
        topic.partitions.iter().map(start).collect()
    };
    assert_eq!(starts(&old), [Start::Latest, Start::Earliest, Start::Earliest]);
    assert_eq!(starts(&new), [Start::Earliest]);
    let again: Arc<Topic> = Stored::from_json(&old.to_json()).unwrap();
    assert_eq!(again, old);
}

#[test]
fn a_token_finds_its_user_until_it_is_taken_away() {
    let mut world = World::new();
    let put = |tokens: &[&str]| Command::PutUser {
        name: "shop".into(),
        config: UserConfig {
            grants: vec![],
            tokens: tokens
                .iter()
                .map(|hash| crate::catalog::Token {
                    name: "t".into(),
                    sha256: hash.to_string(),
                    created_at: UnixMs(1),
                })
                .collect(),
            ..UserConfig::default()
        },
    };
    world.run(put(&["aa", "bb"])).unwrap();
    assert_eq!(&*world.catalog.user_by_token("bb").unwrap().name, "shop");
    world.run(put(&["aa"])).unwrap();
    assert_eq!(world.catalog.user_by_token("bb"), None);
    world.run(Command::DeleteUser { name: "shop".into() }).unwrap();
    assert_eq!(world.catalog.user_by_token("aa"), None);
}

#[test]
fn what_is_replayed_and_what_is_restored_is_what_was() {
    let mut world = World::new();
    let mut pages: BTreeMap<PageId, Vec<u8>> = BTreeMap::new();
    for round in 0..4 {
        for number in 0..30 {
            world.topic(&format!("t{round}.{number}"), 1 + number % 3).unwrap();
            world.group(&format!("g{number}"), &[&format!("t{round}.*")]).unwrap();
        }
        world.run(Command::DeleteTopic { name: format!("t{round}.7") }).unwrap();
        world.catalog.begin_snapshot();
        loop {
            let (captured, done) = world.catalog.walk(3);
            for (id, bytes) in captured {
                match bytes {
                    Some(bytes) => pages.insert(id, bytes),
                    None => pages.remove(&id),
                };
            }
            if done {
                break;
            }
        }
    }
    let digest = world.catalog.digest();

    let mut replayed = Catalog::new(secret());
    for (number, meta) in world.log.iter().enumerate() {
        replayed.apply(FrameNo(number as u64 + 1), meta).unwrap();
    }
    assert_eq!(replayed.digest(), digest);

    let mut restored = Catalog::new(secret());
    for (id, bytes) in &pages {
        restored.restore_page(*id, bytes).unwrap();
    }
    restored.restored();
    assert_eq!(restored.digest(), digest);
    let sum = pages.iter().fold(0u64, |sum, (id, bytes)| sum.wrapping_add(id.hash(bytes)));
    assert_eq!(sum, digest, "the digest is the sum over the pages");
    assert_eq!(restored.groups_of(restored.topic_named("t3.1").unwrap()).len(), 30);
}
