//! What a history says of transactions, sorted for the checkers.

use std::collections::BTreeMap;

use posthouse::broker::transact::State;

use super::story::Sent;
use crate::bodies::Token;
use crate::history::{Call, Check, Event, Fail, Held, Message, Put, Ruling, Terms, What};

/// A prepare of a deal.
#[derive(Clone, Debug)]
pub struct Prepare<'a> {
    /// Which event that was.
    pub from: usize,
    /// The answer: `None` if nobody knows.
    pub outcome: Option<Result<&'a Held, &'a Fail>>,
}

/// Messages that were prepared together, once or again under the same publish ids. A
/// rollback makes the ids free: so it may be several transactions, one after the other.
#[derive(Clone, Debug)]
pub struct Deal<'a> {
    /// The messages.
    pub messages: &'a [Message],
    /// What was said of them.
    pub terms: &'a Terms,
    /// The call that prepared them first.
    pub call: Call,
    /// All calls.
    pub prepares: Vec<Prepare<'a>>,
}

/// What somebody decided.
#[derive(Clone, Debug)]
pub struct Decision<'a> {
    /// When.
    pub from: usize,
    /// When it was answered.
    pub to: Option<usize>,
    /// Let the messages come, or not.
    pub commit: bool,
    /// The answer: `None` if nobody knows.
    pub answer: Option<Result<&'a Ruling, &'a Fail>>,
}

/// What is known of one transaction.
#[derive(Clone, Debug, Default)]
pub struct Known<'a> {
    /// Its messages: the number of its deal. `None` if nobody has seen.
    pub deal: Option<Token>,
    /// The ids of its messages, if somebody was told.
    pub held: Option<&'a Held>,
    /// When it was answered that it waits, first.
    pub since: Option<usize>,
    /// What was decided.
    pub decisions: Vec<Decision<'a>>,
    /// What was asked: when that was asked for, when it came, and what.
    pub checks: Vec<(usize, usize, &'a Check)>,
    /// How it is in the end.
    pub became: Option<(usize, Result<&'a Ruling, &'a Fail>)>,
}

impl<'a> Known<'a> {
    /// All that was heard of how it is, with when it was asked and answered.
    pub fn rulings(&self) -> impl Iterator<Item = (usize, usize, &'a Ruling)> + '_ {
        let decided = self.decisions.iter().filter_map(|decision| match decision.answer {
            Some(Ok(ruling)) => Some((decision.from, decision.to?, ruling)),
            _ => None,
        });
        let became = self.became.and_then(|(at, outcome)| Some((at, at, outcome.ok()?)));
        decided.chain(became)
    }

    /// Whether it is known to have been rolled back.
    pub fn is_rolled_back(&self) -> bool {
        self.rulings().any(|(.., ruling)| ruling.state == State::RolledBack)
    }

    /// When a commit of it began first, unless it is known to have come to nothing.
    pub fn may_come_from(&self) -> Option<usize> {
        let commits = self.decisions.iter().filter(|decision| decision.commit);
        let first = commits.map(|decision| decision.from).min();
        first.filter(|_| !self.is_rolled_back())
    }
}

/// All transactions of a history.
#[derive(Clone, Debug, Default)]
pub struct Deals<'a> {
    /// By the number of their deal: that of the first message.
    pub all: BTreeMap<Token, Deal<'a>>,
    /// By their ids.
    pub known: BTreeMap<&'a str, Known<'a>>,
    /// Those that waited in the end, if somebody looked.
    pub waiting: Option<&'a [String]>,
}

impl<'a> Deals<'a> {
    /// Sorts a history.
    pub fn of(events: &'a [Event], answers: &BTreeMap<Call, usize>) -> Deals<'a> {
        let mut deals = Deals::default();
        let answer = |call: &Call| {
            let to = answers.get(call).copied()?;
            Some((to, &events[to].what))
        };
        for (from, event) in events.iter().enumerate() {
            match &event.what {
                What::Prepare { call, number, messages, terms } => {
                    let (to, outcome) = match answer(call) {
                        Some((to, What::Prepared { outcome, .. })) => (to, sure(outcome)),
                        _ => (usize::MAX, None),
                    };
                    let deal = deals.all.entry(*number).or_insert_with(|| Deal {
                        messages,
                        terms,
                        call: *call,
                        prepares: Vec::new(),
                    });
                    deal.prepares.push(Prepare { from, outcome });
                    if let Some(Ok(held)) = outcome {
                        let known = deals.known.entry(&held.id).or_default();
                        known.deal = Some(*number);
                        known.held.get_or_insert(held);
                        known.since = Some(known.since.map_or(to, |since| since.min(to)));
                    }
                }
                What::Decide { call, id, commit } => {
                    let (to, answer) = match answer(call) {
                        Some((to, What::Decided { outcome, .. })) => (Some(to), sure(outcome)),
                        _ => (None, None),
                    };
                    let known = deals.known.entry(id).or_default();
                    known.decisions.push(Decision { from, to, commit: *commit, answer });
                }
                What::AskChecks { call, .. } => {
                    let Some((to, What::Asked { outcome: Ok(checks), .. })) = answer(call) else {
                        continue;
                    };
                    for check in checks {
                        let known = deals.known.entry(&check.id).or_default();
                        known.deal = known.deal.or(check.token);
                        known.since = Some(known.since.map_or(to, |since| since.min(to)));
                        known.checks.push((from, to, check));
                    }
                }
                What::Became { id, outcome } => {
                    let known = deals.known.entry(id).or_default();
                    known.became = Some((from, outcome.as_ref()));
                }
                What::Waiting { ids } => deals.waiting = Some(ids),
                _ => {}
            }
        }
        deals
    }

    /// The transactions that a deal was.
    pub fn of_deal(&self, number: Token) -> impl Iterator<Item = &Known<'a>> {
        self.known.values().filter(move |known| known.deal == Some(number))
    }

    /// Since when the messages of a deal may come, if they may.
    pub fn may_come_from(&self, number: Token) -> Option<usize> {
        let own = self.of_deal(number).filter_map(Known::may_come_from);
        // Of some nobody has seen which they are.
        let is_unsure = self.all[&number].prepares.iter().any(|p| p.outcome.is_none());
        let others = self.known.values().filter(|known| is_unsure && known.deal.is_none());
        own.chain(others.filter_map(Known::may_come_from)).min()
    }

    /// When commits began of what a call prepared; none if it is no such call.
    pub fn commits_of(&self, call: Call) -> Vec<usize> {
        let Some((number, _)) = self.all.iter().find(|(_, deal)| deal.call == call) else {
            return Vec::new();
        };
        let decisions = self.of_deal(*number).flat_map(|known| &known.decisions);
        decisions.filter(|decision| decision.commit).map(|decision| decision.from).collect()
    }

    /// The messages of all deals as if they had been published by what committed them.
    pub fn as_sent(&self) -> impl Iterator<Item = (Token, Sent<'a>)> + '_ {
        self.all.iter().flat_map(move |(number, deal)| {
            let from = self.may_come_from(*number).unwrap_or(deal.prepares[0].from);
            // Refused each time: then it is nowhere.
            let refusals = deal.prepares.iter().map(|prepare| prepare.outcome?.err());
            let refusal =
                refusals.collect::<Option<Vec<&Fail>>>().and_then(|all| all.first().copied());
            deal.messages.iter().enumerate().map(move |(at, message)| {
                let (to, outcome) = match self.put_of(*number, at) {
                    Some((to, put)) => (Some(to), Some(Ok(put))),
                    None => (None, refusal.map(Err)),
                };
                (message.token, Sent { call: deal.call, from, to, message, outcome })
            })
        })
    }

    /// Where a message of a deal went, and when that was answered.
    fn put_of(&self, number: Token, at: usize) -> Option<(usize, &'a Put)> {
        self.of_deal(number).find_map(|known| {
            let id = known.held?.ids.get(at)?;
            known.rulings().filter(|(.., ruling)| ruling.state == State::Committed).find_map(
                |(_, to, ruling)| Some((to, ruling.puts.iter().find(|put| put.id == *id)?)),
            )
        })
    }
}

fn sure<T>(outcome: &Result<T, Fail>) -> Option<Result<&T, &Fail>> {
    match outcome {
        Err(fail) if fail.unknown => None,
        outcome => Some(outcome.as_ref()),
    }
}
