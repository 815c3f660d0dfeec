//! Records of the catalog: topics, groups, users, recurring messages.

use posthouse_core::UnixMs;
use posthouse_core::catalog::machine::Command;
use posthouse_core::catalog::{
    AccessGrant, Action, Catalog, Change, GroupConfig, Role, Subscription, TopicConfig, UserConfig,
};
use posthouse_core::machine::Machine as _;
use posthouse_frame::{FrameBuf, FrameNo};

use crate::{Seeds, memory, secret};

const NOW: UnixMs = UnixMs(1_900_000_000_000);

pub fn run(data: &[u8]) {
    memory::within(256 * data.len() + (64 << 10), || {
        if let Ok(changes) = Change::read_all(data) {
            assert_eq!(Change::read_all(data), Ok(changes), "the same is read in two ways");
        }
    });
}

/// The records of commands, one after the other, and the catalog that they lead to.
pub fn made() -> (Catalog, Seeds) {
    let mut catalog = Catalog::new(secret());
    let subscription = |topic: &str| Subscription { topic: topic.into(), filter: "eu".into() };
    let group = GroupConfig {
        subscriptions: vec![subscription("orders"), subscription("x.*")],
        ..GroupConfig::default()
    };
    let user = UserConfig {
        grants: vec![AccessGrant {
            actions: vec![Action::Publish, Action::Consume],
            topics: vec!["orders.*".into()],
            groups: vec!["*".into()],
        }],
        ..UserConfig::default()
    };
    let topic = |only_new| Command::PutTopic {
        name: "orders".into(),
        role: Role::Messages,
        config: TopicConfig::default(),
        shards: 2,
        only_new,
    };
    let (name, parent, only_new) = ("workers".to_owned(), None, false);
    let commands = [
        ("topic", topic(false)),
        ("group", Command::PutGroup { name, parent, config: group, only_new }),
        ("user", Command::PutUser { name: "shop".into(), config: user }),
        ("no-user", Command::DeleteUser { name: "shop".into() }),
    ];
    let mut seeds = Seeds::new();
    for (no, (name, command)) in (1..).zip(commands) {
        let mut frame = FrameBuf::new(FrameNo(no));
        catalog.decide(&command, NOW, &mut frame).expect("it is done");
        catalog.apply(FrameNo(no), frame.meta()).expect("it was just written");
        seeds.push((name, frame.meta().to_vec()));
    }
    (catalog, seeds)
}

pub fn seeds() -> Seeds {
    made().1
}
