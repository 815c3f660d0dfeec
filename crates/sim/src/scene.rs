//! The topics and groups of a run.

use posthouse::broker::manage::{GroupPatch, TopicPatch};
use posthouse_core::catalog::{Expired, Order, Retention, Subscription};
use posthouse_core::filter::Filter;
use posthouse_core::ident::Secret;
use posthouse_core::message::Parts;

use crate::plan::{Part, Plan};

/// The tags that messages have.
pub const TAGS: [&str; 4] = ["a", "b", "c1", "c2"];

/// A topic.
#[derive(Clone, Debug)]
pub struct SimTopic {
    /// Its name.
    pub name: &'static str,
    /// Its configuration.
    pub patch: TopicPatch,
    /// Messages may go before every group is done with them.
    pub lossy: bool,
}

/// A group.
#[derive(Clone, Debug)]
pub struct SimGroup {
    /// Its name.
    pub name: &'static str,
    /// Its configuration.
    pub patch: GroupPatch,
    /// Messages are acknowledged with the grant.
    pub auto: bool,
    /// It keeps the order of keys.
    pub keyed: bool,
    /// What it gets.
    pub filter: &'static str,
}

impl SimGroup {
    /// The most attempts.
    pub fn max_attempts(&self) -> u16 {
        self.patch.max_attempts.unwrap_or(16)
    }

    /// Whether a message with these tags passes its filter.
    pub fn passes(&self, tags: &[&str]) -> bool {
        let filter = Filter::parse(self.filter, &Secret::new([7; 32]));
        let parts = Parts { tags: tags.to_vec(), ..Parts::default() };
        filter.expect("the filters of the scene are filters").passes(&parts)
    }

    /// How long a message waits at least after a failed attempt.
    pub fn backoff_ms(&self, attempt: u16) -> u64 {
        let steps = self.patch.backoff_ms.as_deref().unwrap_or(&[0]);
        steps[usize::from(attempt.max(1) - 1).min(steps.len() - 1)]
    }
}

/// Everything that is set up before clients come.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The topics.
    pub topics: Vec<SimTopic>,
    /// The groups.
    pub groups: Vec<SimGroup>,
}

impl Scene {
    /// What a plan asks for.
    pub fn of(plan: &Plan) -> Scene {
        let shards = u32::from(plan.shards);
        let kept = Retention::Acknowledged { min_age_ms: 86_400_000 };
        let at_once = Retention::Acknowledged { min_age_ms: 300 };
        let some = Retention::Limits { max_age_ms: None, max_bytes: None, max_count: Some(20) };
        let topic = |name, partitions, retention: &Retention, lossy: bool| SimTopic {
            name,
            patch: TopicPatch {
                partitions: Some(partitions),
                retention: Some(retention.clone()),
                expired: lossy.then_some(Expired::DeadLetter),
                ..TopicPatch::default()
            },
            lossy,
        };
        let mut topics =
            vec![topic("one", 1, &kept, false), topic("many", 2 * shards, &kept, false)];
        if plan.has(Part::Retention) {
            topics.push(topic("short", shards, &at_once, false));
            topics.push(topic("few", 1, &some, true));
        }
        // What was there before is nobody's.
        let names: Vec<&str> = match plan.has(Part::Upgrade) {
            true => topics.iter().map(|topic| topic.name).collect(),
            false => vec!["*"],
        };
        let subscriptions = |filter: &str| {
            let all = names
                .iter()
                .map(|name| Subscription { topic: (*name).into(), filter: filter.into() });
            all.collect::<Vec<_>>()
        };
        let group = |name, filter: &'static str| SimGroup {
            name,
            patch: GroupPatch {
                subscriptions: Some(subscriptions(filter)),
                lease_ms: Some(400),
                max_attempts: Some(3),
                backoff_ms: Some(vec![50, 200]),
                ..GroupPatch::default()
            },
            auto: false,
            keyed: false,
            filter,
        };
        let mut groups = vec![group("plain", "*")];
        if plan.has(Part::Keyed) {
            let mut keyed = group("keyed", "*");
            keyed.keyed = true;
            keyed.patch.order = Some(Order::Key);
            keyed.patch.max_in_flight = Some(Some(6));
            groups.push(keyed);
        }
        if plan.has(Part::Auto) {
            groups.push(SimGroup { auto: true, ..group("auto", "*") });
        }
        if plan.has(Part::Picky) {
            let mut picky = group("picky", "a || c1");
            picky.patch.window = Some(64);
            groups.push(picky);
        }
        if plan.has(Part::Text) {
            groups.push(group("text", "/^c/"));
        }
        Scene { topics, groups }
    }

    /// A topic by its name.
    pub fn topic(&self, name: &str) -> Option<&SimTopic> {
        self.topics.iter().find(|topic| topic.name == name)
    }

    /// A group by its name.
    ///
    /// # Panics
    /// If there is none.
    pub fn group(&self, name: &str) -> &SimGroup {
        let group = self.groups.iter().find(|group| group.name == name);
        group.expect("histories name the groups of their scene")
    }
}
