//! Topics that take only one sort of messages.

use posthouse_core::catalog::{Accepts, Topic};
use posthouse_core::message::Parts;

use super::publish::{Outbox, Outgoing};
use crate::problem::{Kind, Problem};

/// Whether a topic takes the sort of message, as far as that can be seen before it is known
/// whether it is one of a transaction.
pub(super) fn check(topic: &Topic, parts: &Parts<'_>) -> Result<(), Problem> {
    let sort = match (&parts.later, parts.key) {
        (Some(_), _) => Accepts::Delayed,
        (None, Some(_)) => Accepts::Keyed,
        (None, None) => Accepts::Normal,
    };
    match topic.config.accepts {
        Accepts::Any | Accepts::Prepared => Ok(()),
        accepts if accepts == sort => Ok(()),
        accepts => Err(wrong_sort(topic, accepts)),
    }
}

fn wrong_sort(topic: &Topic, accepts: Accepts) -> Problem {
    let what = match accepts {
        Accepts::Any => "any messages",
        Accepts::Normal => "messages without a key, at once",
        Accepts::Keyed => "messages with a key, at once",
        Accepts::Delayed => "messages that come later",
        Accepts::Prepared => "messages of transactions",
    };
    let detail = format!("topic {:?} takes only {what}", topic.name);
    Problem::new(Kind::Invalid, "wrong_sort", detail)
        .with_hint("publish to another topic, or set `accepts` of this one to any")
}

impl Outbox {
    /// Refuses messages of transactions, or others, if a topic takes none of that sort.
    pub(super) fn check_sorts(&self, is_prepared: bool) -> Result<(), Problem> {
        for Outgoing { topic, .. } in &self.batches {
            match (topic.config.accepts, is_prepared) {
                (Accepts::Any | Accepts::Prepared, true) => {}
                (accepts, true) => return Err(wrong_sort(topic, accepts)),
                (Accepts::Prepared, false) => return Err(wrong_sort(topic, Accepts::Prepared)),
                (_, false) => {}
            }
        }
        Ok(())
    }
}
