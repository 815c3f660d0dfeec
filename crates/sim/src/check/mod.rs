//! Checkers: what must never be in a history. Each knows one promise, and looks at all
//! that clients asked and heard.
//!
//! | | Promise | Checker |
//! |---|---|---|
//! | 1 | nothing acknowledged is lost | `loss` |
//! | 2 | nothing comes from nowhere, and everything is as it was published | `intact` |
//! | 3 | one live lease; fences rise; stale receipts are refused | `lease`, `fence`, `stale` |
//! | 4 | an acknowledgement is final | `final` |
//! | 5 | what is not acknowledged comes again | `again` |
//! | 6 | nothing comes early | `early` |
//! | 7 | what is called back does not come; moves and cancels have an order | `moves` |
//! | 8 | nothing prepared comes before its commit, or after a rollback; each ends | `transactions` |
//! | 9 | order per key | `order` |
//! | 10 | attempts are bounded, and then there is one dead letter | `attempts` |
//! | 11 | a redrive is one | `redrive` |
//! | 12 | a publish id stands for one message, a time of a recurring one too | `dedupe`, `recurring` |
//! | 13 | positions are unique, dense, and never go back | `positions` |
//! | 14 | recovery finds one state, however often it is interrupted | the world: `recovery` |
//! | 16 | everything drains, and nodes end when they are asked to | the world: `drain` |
//! | 17 | a publish is whole or absent | `atomic` |
//! | 18 | live, replayed and restored state are one | the world: `digest` |

mod attempts;
mod deals;
mod delivery;
mod lease;
mod moves;
mod order;
mod publish;
mod recurring;
mod story;
mod transact;

pub use story::Story;

use crate::history::Event;
use crate::scene::Scene;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The promise.
    pub promise: u8,
    /// Who has seen it.
    pub checker: &'static str,
    /// What.
    pub what: String,
    /// The event that shows it.
    pub at: Option<usize>,
}

impl Violation {
    /// One that no single event shows.
    pub fn new(promise: u8, checker: &'static str, what: String) -> Violation {
        Violation { promise, checker, what, at: None }
    }

    /// One that an event shows.
    pub fn at(promise: u8, checker: &'static str, at: usize, what: String) -> Violation {
        Violation { promise, checker, what, at: Some(at) }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "promise {} ({}): {}", self.promise, self.checker, self.what)?;
        match self.at {
            Some(at) => write!(f, " [event {at}]"),
            None => Ok(()),
        }
    }
}

type Check = fn(&Story<'_>) -> Result<(), Violation>;

/// What must not be in any history.
const ALWAYS: [Check; 14] = [
    recurring::recurring,
    transact::hidden,
    transact::decided,
    delivery::intact,
    lease::lease,
    lease::fence,
    lease::stale,
    lease::finality,
    lease::early_again,
    publish::dedupe,
    moves::early,
    moves::moves,
    order::order,
    attempts::attempts,
];

/// What must not be in one that has come to its end.
const IN_THE_END: [Check; 6] = [
    recurring::complete,
    transact::ended,
    publish::positions,
    publish::atomic,
    attempts::letters,
    delivery::loss,
];

/// Looks at a history; `is_over` if it has come to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn check(scene: &Scene, events: &[Event], is_over: bool) -> Result<(), Violation> {
    let story = Story::of(scene, events);
    ALWAYS.iter().try_for_each(|check| check(&story))?;
    match is_over {
        true => IN_THE_END.iter().try_for_each(|check| check(&story)),
        false => Ok(()),
    }
}
