//! A history, sorted by what checkers ask for.

use std::collections::{BTreeMap, BTreeSet};

use posthouse_core::queue::command::Shift;

use super::deals::Deals;
use crate::bodies::{self, Token};
use crate::history::{
    Answer, Call, Change, Event, Fail, Got, Left, Letter, Message, Place, Put, Recur, Rule, Say,
    What,
};
use crate::scene::Scene;

/// For so long at most a node goes on after its disk has failed.
const LAST_MS: u64 = 100;

/// One message in one publish.
#[derive(Clone, Debug)]
pub struct Sent<'a> {
    /// The call.
    pub call: Call,
    /// Which event that was.
    pub from: usize,
    /// Which event the answer was, if there was one.
    pub to: Option<usize>,
    /// The message.
    pub message: &'a Message,
    /// What became of it: `None` if nobody knows.
    pub outcome: Option<Result<&'a Put, &'a Fail>>,
}

/// A delivery.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// When it was asked for.
    pub from: usize,
    /// When it came.
    pub to: usize,
    /// The group.
    pub group: &'static str,
    /// How long its lease is.
    pub lease_ms: u64,
    /// It was acknowledged with the grant.
    pub auto: bool,
    /// What came.
    pub got: &'a Got,
}

/// What a consumer said of one delivery.
#[derive(Clone, Debug)]
pub struct Settle<'a> {
    /// When.
    pub from: usize,
    /// When it was answered.
    pub to: Option<usize>,
    /// The group.
    pub group: &'static str,
    /// Of what.
    pub got: &'a Got,
    /// What.
    pub say: &'a Say,
    /// The answer: `None` if nobody knows.
    pub answer: Option<&'a Answer>,
}

/// A change of a message that is to come.
#[derive(Clone, Debug)]
pub struct Move<'a> {
    /// When.
    pub from: usize,
    /// When it was answered.
    pub to: Option<usize>,
    /// Which message.
    pub token: Token,
    /// When it is to come; `None`: not at all.
    pub shift: Option<Shift>,
    /// The answer: `None` if nobody knows.
    pub answer: Option<&'a Change>,
}

/// A message that recurs.
#[derive(Clone, Debug)]
pub struct Recurring<'a> {
    /// The call.
    pub call: Call,
    /// When.
    pub from: usize,
    /// Whether it was done; `None` if nobody knows.
    pub done: Option<bool>,
    /// The message.
    pub message: &'a Message,
    /// When it comes.
    pub rule: Rule,
    /// What was done to it: when, when it was answered, what, and whether it was done.
    pub changes: Vec<(usize, Option<usize>, Recur, Option<bool>)>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Story<'a> {
    /// Topics and groups.
    pub scene: &'a Scene,
    /// Everything.
    pub events: &'a [Event],
    /// Transactions.
    pub deals: Deals<'a>,
    /// Messages that recur, by their numbers.
    pub recurring: BTreeMap<Token, Recurring<'a>>,
    /// Publishes, by message; commits too.
    pub sent: BTreeMap<Token, Vec<Sent<'a>>>,
    /// Publishes that are all or nothing, of several messages.
    pub atomic: BTreeMap<Call, Vec<Token>>,
    /// Deliveries, in the order they came.
    pub deliveries: Vec<Delivery<'a>>,
    /// Of each place of a group, which, by their fences.
    pub by_place: BTreeMap<(&'static str, &'a Place), Vec<usize>>,
    /// Of each message, which.
    pub by_token: BTreeMap<Token, Vec<usize>>,
    /// What was said, in order.
    pub settles: Vec<Settle<'a>>,
    /// Of each place of a group, which.
    pub settles_by_place: BTreeMap<(&'static str, &'a Place), Vec<usize>>,
    /// Changes, by message.
    pub moves: BTreeMap<Token, Vec<Move<'a>>>,
    /// When each receive of a group was called that may have been given something that
    /// nobody has seen: it was never answered, or failed, or the disk gave no bodies.
    lost_receives: BTreeMap<&'static str, Vec<usize>>,
    /// What is left in the end.
    pub left: Vec<&'a Left>,
    /// The dead letters in the end.
    pub letters: BTreeMap<&'static str, &'a [Letter]>,
    /// Messages that were there in the end, or were delivered.
    pub present: BTreeSet<Token>,
    /// Topics through which a group gets redriven messages have none of these names.
    pub topics: BTreeSet<&'static str>,
}

impl<'a> Story<'a> {
    /// Sorts a history.
    pub fn of(scene: &'a Scene, events: &'a [Event]) -> Story<'a> {
        let mut story = Story {
            scene,
            events,
            deals: Deals::default(),
            recurring: BTreeMap::new(),
            sent: BTreeMap::new(),
            atomic: BTreeMap::new(),
            deliveries: Vec::new(),
            by_place: BTreeMap::new(),
            by_token: BTreeMap::new(),
            settles: Vec::new(),
            settles_by_place: BTreeMap::new(),
            moves: BTreeMap::new(),
            lost_receives: BTreeMap::new(),
            left: Vec::new(),
            letters: BTreeMap::new(),
            present: BTreeSet::new(),
            topics: scene.topics.iter().map(|topic| topic.name).collect(),
        };
        let answers: BTreeMap<Call, usize> = (0..)
            .zip(events)
            .filter_map(|(at, event)| match &event.what {
                What::Published { call, .. }
                | What::Received { call, .. }
                | What::Settled { call, .. }
                | What::Moved { call, .. }
                | What::Prepared { call, .. }
                | What::Decided { call, .. }
                | What::Asked { call, .. }
                | What::Recurs { call, .. }
                | What::Redriven { call, .. } => Some((*call, at)),
                _ => None,
            })
            .collect();
        for (from, event) in events.iter().enumerate() {
            story.add(from, &event.what, &answers);
        }
        story.lost_receives.values_mut().for_each(|lost| lost.sort_unstable());
        story.add_recurring();
        story.add_deals(Deals::of(events, &answers));
        // Deliveries come in the order in which they were asked for; what counts is when
        // they came.
        story.deliveries.sort_by_key(|delivery| delivery.to);
        for (at, delivery) in story.deliveries.iter().enumerate() {
            let place = (delivery.group, &delivery.got.place);
            story.by_place.entry(place).or_default().push(at);
            if let Ok(token) = delivery.got.token {
                story.by_token.entry(token).or_default().push(at);
            }
            story.present.extend(delivery.got.token.iter());
        }
        // Answers that leave at once may come in any order: what was granted first has the
        // lower fence.
        let deliveries = &story.deliveries;
        story.by_place.values_mut().for_each(|of| of.sort_by_key(|at| deliveries[*at].got.fence));
        for (at, settle) in story.settles.iter().enumerate() {
            let place = (settle.group, &settle.got.place);
            story.settles_by_place.entry(place).or_default().push(at);
        }
        story
    }

    /// What was answered shortly before a node ended may have left out what the disk, which
    /// had no power or had failed, did not give any more.
    fn lost_at_end(&mut self, end: usize) {
        let time = |at: usize| self.events[at].seen.iter().map(|now| now.lease.0).max();
        let before = (0..end)
            .rev()
            .take_while(|at| time(*at) >= time(end).map(|t| t.saturating_sub(LAST_MS)));
        for at in before {
            let What::Received { call, group, outcome: Ok(_) } = &self.events[at].what else {
                continue;
            };
            let asked =
                |event: &Event| matches!(&event.what, What::Receive { call: of, .. } if of == call);
            let from = self.events[..at].iter().rposition(asked).unwrap_or(at);
            self.lost_receives.entry(group).or_default().push(from);
        }
    }

    /// Each time of a message that recurs is a message.
    fn add_recurring(&mut self) {
        let letters = self.letters.values().flat_map(|letters| letters.iter());
        let all = self.deliveries.iter().map(|delivery| &delivery.got.token);
        let left = self.left.iter().flat_map(|left| left.messages.iter().map(|(_, token)| token));
        let all = all.chain(left).chain(letters.map(|letter| &letter.token)).flatten();
        let tokens: BTreeSet<Token> = all.copied().collect();
        for token in tokens {
            let Some((of, _)) = bodies::time_of(token) else { continue };
            let Some(recurring) = self.recurring.get(&of) else { continue };
            let Recurring { call, from, message, .. } = recurring;
            let sent = Sent { call: *call, from: *from, to: None, message, outcome: None };
            self.sent.entry(token).or_default().push(sent);
        }
    }

    fn add_deals(&mut self, deals: Deals<'a>) {
        for (token, sent) in deals.as_sent() {
            self.sent.entry(token).or_default().push(sent);
        }
        for deal in deals.all.values().filter(|deal| deal.messages.len() > 1) {
            let tokens = deal.messages.iter().map(|message| message.token).collect();
            self.atomic.insert(deal.call, tokens);
        }
        self.deals = deals;
    }

    /// How many receives of a group, called before `at`, may have been given something that
    /// nobody has seen.
    pub fn unseen(&self, group: &str, at: usize) -> u64 {
        let lost = self.lost_receives.get(group).map_or(&[][..], Vec::as_slice);
        lost.partition_point(|from| *from < at) as u64
    }

    fn add(&mut self, from: usize, what: &'a What, answers: &BTreeMap<Call, usize>) {
        match what {
            What::Publish { call, messages, apart } => {
                let to = answers.get(call).copied();
                let answer = to.map(|to| &self.events[to].what);
                for (at, message) in messages.iter().enumerate() {
                    let outcome = match answer {
                        Some(What::Published { outcome: Ok(puts), .. }) => Some(puts[at].as_ref()),
                        Some(What::Published { outcome: Err(fail), .. }) if !fail.unknown => {
                            Some(Err(fail))
                        }
                        _ => None,
                    };
                    // What nobody knows of one message.
                    let outcome = outcome.filter(|o| !matches!(o, Err(fail) if fail.unknown));
                    let sent = Sent { call: *call, from, to, message, outcome };
                    self.sent.entry(message.token).or_default().push(sent);
                }
                if !apart && messages.len() > 1 {
                    let tokens = messages.iter().map(|message| message.token).collect();
                    self.atomic.insert(*call, tokens);
                }
            }
            What::Receive { call, group, lease_ms, auto } => {
                let to = answers.get(call).copied();
                let outcome = to.map(|to| (to, &self.events[to].what));
                match outcome {
                    Some((to, What::Received { outcome: Ok(got), .. })) => {
                        self.deliveries.extend(got.iter().map(|got| Delivery {
                            from,
                            to,
                            group,
                            lease_ms: *lease_ms,
                            auto: *auto,
                            got,
                        }));
                    }
                    _ => self.lost_receives.entry(group).or_default().push(from),
                }
            }
            What::Ends { .. } => self.lost_at_end(from),
            What::Fault { name: "read fails" } => {
                for group in &self.scene.groups {
                    self.lost_receives.entry(group.name).or_default().push(from);
                }
            }
            What::Settle { call, group, items } => {
                let to = answers.get(call).copied();
                let outcome = to.map(|to| &self.events[to].what);
                for (at, (got, say)) in items.iter().enumerate() {
                    let answer = match outcome {
                        Some(What::Settled { outcome: Ok(answers), .. }) => answers.get(at),
                        _ => None,
                    };
                    self.settles.push(Settle { from, to, group, got, say, answer });
                }
            }
            What::Move { call, items } => {
                let to = answers.get(call).copied();
                let outcome = to.map(|to| &self.events[to].what);
                for (at, (token, _, shift)) in items.iter().enumerate() {
                    let answer = match outcome {
                        Some(What::Moved { outcome: Ok(changes), .. }) => changes.get(at),
                        _ => None,
                    };
                    let answer =
                        answer.filter(|change| **change != Change::Refused("outcome_unknown"));
                    let change = Move { from, to, token: *token, shift: *shift, answer };
                    self.moves.entry(*token).or_default().push(change);
                }
            }
            What::Recur { call, message, rule, .. } => {
                let done = self.done(answers.get(call).copied());
                let recurring = Recurring {
                    call: *call,
                    from,
                    done,
                    message,
                    rule: *rule,
                    changes: Vec::new(),
                };
                self.recurring.insert(message.token, recurring);
            }
            What::ChangeRecurring { call, name, how } => {
                let to = answers.get(call).copied();
                let done = self.done(to);
                let mut all = self.recurring.values_mut();
                if let Some(of) = all.find(|of| bodies::name_of(of.message.token) == *name) {
                    of.changes.push((from, to, *how, done));
                }
            }
            What::Left(left) => {
                self.left.push(left);
                self.present
                    .extend(left.messages.iter().filter_map(|(_, token)| token.as_ref().ok()));
            }
            What::Letters { group, letters } => {
                self.letters.insert(group, letters);
            }
            _ => {}
        }
    }

    /// Whether it is known to have been done, or not; `None` if nobody knows.
    fn done(&self, to: Option<usize>) -> Option<bool> {
        match to.map(|to| &self.events[to].what) {
            Some(What::Recurs { outcome: Ok(()), .. }) => Some(true),
            Some(What::Recurs { outcome: Err(fail), .. }) if !fail.unknown => Some(false),
            _ => None,
        }
    }

    /// The lease clock of a shard when an event happened.
    pub fn lease_at(&self, event: usize, shard: usize) -> u64 {
        self.events[event].seen.get(shard).map_or(0, |now| now.lease.0)
    }

    /// The wall clock of a shard when an event happened.
    pub fn wall_at(&self, event: usize, shard: usize) -> u64 {
        self.events[event].seen.get(shard).map_or(0, |now| now.wall.0)
    }

    /// The lease clock when an event happened, where it said least.
    pub fn earliest(&self, event: usize) -> u64 {
        self.events[event].seen.iter().map(|now| now.lease.0).min().unwrap_or(0)
    }

    /// The same, where it said most.
    pub fn latest(&self, event: usize) -> u64 {
        self.events[event].seen.iter().map(|now| now.lease.0).max().unwrap_or(0)
    }

    /// The wall clock when an event happened, where it said least.
    pub fn wall_least(&self, event: usize) -> u64 {
        self.events[event].seen.iter().map(|now| now.wall.0).min().unwrap_or(0)
    }

    /// The same, where it said most.
    pub fn wall_most(&self, event: usize) -> u64 {
        self.events[event].seen.iter().map(|now| now.wall.0).max().unwrap_or(0)
    }

    /// Deliveries of a message, in the order in which they came.
    pub fn deliveries_with(&self, token: Token) -> impl Iterator<Item = &Delivery<'a>> {
        self.by_token.get(&token).into_iter().flatten().map(|at| &self.deliveries[*at])
    }

    /// Whether a place is in a topic of the run, and not one of redriven messages.
    pub fn is_first_life(&self, place: &Place) -> bool {
        self.topics.contains(&*place.topic)
    }

    /// A message.
    pub fn message(&self, token: Token) -> Option<&'a Message> {
        self.sent.get(&token)?.first().map(|sent| sent.message)
    }

    /// What was said of a place by a group.
    pub fn settles_of(
        &self,
        group: &'static str,
        place: &'a Place,
    ) -> impl Iterator<Item = &Settle<'a>> {
        let which = self.settles_by_place.get(&(group, place));
        which.into_iter().flatten().map(|at| &self.settles[*at])
    }

    /// Deliveries of a place to a group, in order.
    pub fn deliveries_of(
        &self,
        group: &'static str,
        place: &'a Place,
    ) -> impl Iterator<Item = &Delivery<'a>> {
        let which = self.by_place.get(&(group, place));
        which.into_iter().flatten().map(|at| &self.deliveries[*at])
    }

    /// Whether a message may have gone, or not come, for a reason that is none of a
    /// fault: its time to live, a topic that keeps few, a call back, a name taken over.
    pub fn may_go(&self, message: &Message) -> bool {
        message.ttl_ms.is_some()
            || self.scene.topic(message.topic).is_none_or(|topic| topic.lossy)
            || self.may_be_called_back(message.token)
            || self.may_be_replaced(message)
    }

    /// Whether somebody has tried to call a message back, and was not told that it was
    /// too late.
    pub fn may_be_called_back(&self, token: Token) -> bool {
        let moves = self.moves.get(&token).into_iter().flatten();
        moves
            .filter(|change| change.shift.is_none())
            .any(|change| matches!(change.answer, None | Some(Change::Done(_) | Change::Cancelled)))
    }

    /// Whether another message may have taken over its name.
    pub fn may_be_replaced(&self, message: &Message) -> bool {
        let Some((_, Some(name), _)) = &message.later else { return false };
        let others = self.sent.values().flatten();
        others.filter(|sent| sent.message.token != message.token).any(|sent| {
            let theirs = sent.message.later.as_ref().and_then(|(_, name, _)| name.as_ref());
            sent.message.topic == message.topic
                && theirs == Some(name)
                && !matches!(sent.outcome, Some(Err(_)))
        })
    }
}
