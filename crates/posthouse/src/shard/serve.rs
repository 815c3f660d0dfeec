//! Matching consumers with messages: who is served when, and who waits.

use posthouse_core::catalog::{Catalog, Change};
use posthouse_core::queue::Granted;
use posthouse_core::queue::command::{Claim, Command, Reply};
use posthouse_core::{GroupId, Now};
use posthouse_log::Log;

use super::attend::Effect;
use super::engine::{Engine, FRAME_BYTES, Output, SETTLE_RESERVE};
use super::mail::Mail;
use super::metrics;
use super::waiters::{Came, Waiter};
use crate::problem::Problem;

/// The most consumers that wait.
const WAITING: usize = 100_000;

/// How many messages one turn looks at for consumers, nearly: whoever publishes or
/// acknowledges meanwhile does not wait longer for the next.
pub(super) const LOOKS: usize = 128 << 10;

/// Who does not wait for messages to come still waits so long for those that are there
/// to be found on the disk.
const LOOK_MS: u64 = 2_000;

/// What came of a look for messages.
enum Served {
    Yes,
    /// Whether the look for messages is not over, because it needs a block or was long.
    Not(Waiter, bool),
    /// Another shard looks for messages for it.
    Elsewhere(Waiter),
}

impl<L: Log> Engine<L> {
    pub(super) fn receive(&mut self, mut waiter: Waiter, catalog: &Catalog, now: Now) {
        let group = waiter.group;
        waiter.came = Came::at(now.lease);
        if waiter.is_gone() {
            return;
        }
        if !self.waiters.has_room(WAITING) {
            let problem = Problem::busy(format!("{WAITING} consumers wait already"));
            return Mail::Receive(waiter).refuse(problem);
        }
        // Who waits already has wanted nothing of what there is: it may be of another topic.
        // If it has come just now, they come first.
        if !self.waiters.has_none(group) && self.shard.has_ready(group) {
            self.serve(group, catalog, now);
        }
        let mut looks = false;
        if self.waiters.has_none(group) || self.shard.has_ready(group) {
            if self.may_look() {
                match self.try_serve(waiter, catalog, now) {
                    Served::Yes => return,
                    Served::Not(unserved, goes_on) => (waiter, looks) = (unserved, goes_on),
                    Served::Elsewhere(unserved) => (waiter, looks) = (unserved, true),
                }
            } else {
                // The next turn goes on here.
                self.ready.push_back(group);
                looks = true;
            }
        }
        self.keep_waiting(waiter, looks, now);
    }

    /// Puts a consumer for whom there was nothing in line, if it is to wait. `looks` says that
    /// the look for messages is not over.
    fn keep_waiting(&mut self, waiter: Waiter, looks: bool, now: Now) {
        if !looks && waiter.is_over(now.lease) {
            return self.pass(Output::Delivered(waiter, Vec::new()));
        }
        let least = if looks { LOOK_MS } else { 0 };
        let end = waiter.came.at.plus(waiter.wait_ms.max(least));
        self.waiters.push(waiter, end);
    }

    /// Whether there is room, in the frame and in this turn, to look for messages.
    fn may_look(&self) -> bool {
        self.looks > 0 && self.frame.content_bytes() < FRAME_BYTES + SETTLE_RESERVE
    }

    /// Looks for messages for a consumer, unless another shard does.
    fn try_serve(&mut self, waiter: Waiter, catalog: &Catalog, now: Now) -> Served {
        if !waiter.ticket.take() {
            // It says so when it has found nothing.
            return Served::Elsewhere(waiter);
        }
        let served = self.grant(waiter, catalog, now);
        if let Served::Not(waiter, _) = &served {
            waiter.ticket.give_back();
        }
        served
    }

    pub(super) fn match_consumers(&mut self, catalog: &Catalog, now: Now) {
        // What is matched may call further groups, or the same again.
        for _ in 0..8 {
            self.ready.extend(self.shard.take_called());
            for _ in 0..self.ready.len() {
                if !self.may_look() {
                    return;
                }
                let Some(group) = self.ready.pop_front() else { return };
                self.serve(group, catalog, now);
            }
            if self.ready.is_empty() {
                return;
            }
        }
    }

    /// Serves the consumers of a group that wait, in turn, with what there is.
    fn serve(&mut self, group: GroupId, catalog: &Catalog, now: Now) {
        if self.waiters.has_none(group) {
            return;
        }
        let mut waiting = self.waiters.take(group);
        let mut unserved = Vec::new();
        while let Some((number, waiter)) = waiting.pop_first() {
            if waiter.is_gone() {
                continue;
            }
            if !self.may_look() {
                // The next turn goes on here.
                unserved.push((number, waiter));
                self.ready.push_back(group);
                break;
            }
            match self.try_serve(waiter, catalog, now) {
                Served::Yes => {}
                Served::Elsewhere(waiter) => unserved.push((number, waiter)),
                Served::Not(waiter, looks) => {
                    if !looks && waiter.is_over(now.lease) {
                        // It has been looked at everything.
                        self.pass(Output::Delivered(waiter, Vec::new()));
                        continue;
                    }
                    // Who asks for one topic only does not stand before the others.
                    let goes_on = waiter.topic.is_some();
                    unserved.push((number, waiter));
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        waiting.extend(unserved);
        self.waiters.put_back(group, waiting);
    }

    fn grant(&mut self, waiter: Waiter, catalog: &Catalog, now: Now) -> Served {
        let start = self.frame.meta().len();
        let Granted { deliveries, misses, peek, more, looked, too_many_consumers } =
            self.shard.grant(&waiter.ask(), catalog, &self.cache, now, &mut self.frame);
        self.looks = self.looks.saturating_sub(looked);
        self.apply_from(start);
        let looks = more || !misses.is_empty();
        misses.into_iter().for_each(|miss| self.fetch(miss));
        if too_many_consumers {
            let most = posthouse_core::queue::MAX_CONSUMERS;
            let problem = Problem::busy(format!("{most} consumers of the group hold messages"));
            // Whoever refuses it takes the ticket.
            waiter.ticket.give_back();
            self.pass(Output::Refused(Box::new(Mail::Receive(waiter)), problem));
            return Served::Yes;
        }
        if let Some(peek) = peek {
            self.pass(Output::Effect(Effect::Judge(peek, waiter)));
            return Served::Yes;
        }
        if deliveries.is_empty() {
            if more {
                self.ready.push_back(waiter.group);
            }
            return Served::Not(waiter, looks);
        }
        metrics::add(&self.metrics.granted, deliveries.len() as u64);
        self.pass(Output::Delivered(waiter, deliveries));
        Served::Yes
    }

    pub(super) fn judged(&mut self, claim: Claim, waiter: Waiter, catalog: &Catalog, now: Now) {
        let (group, partition) = (claim.group, claim.partition);
        let start = self.frame.meta().len();
        let mut command = Command::Claim(claim.clone());
        let decided = self.shard.decide(&mut command, catalog, &self.cache, now, &mut self.frame);
        match decided {
            Err(miss) => return self.park(miss, Mail::Judged { claim, waiter }),
            Ok(Reply::Claimed(deliveries)) => {
                self.apply_from(start);
                self.shard.judged(group, partition);
                if !deliveries.is_empty() {
                    metrics::add(&self.metrics.granted, deliveries.len() as u64);
                    return self.pass(Output::Delivered(waiter, deliveries));
                }
            }
            Ok(other) => unreachable!("a claim is answered by {other:?}"),
        }
        waiter.ticket.give_back();
        if !self.takes_waits {
            return waiter.refuse(Problem::stopping());
        }
        // None of these has passed; it has its place in line again, for what follows.
        let goes_on = !waiter.is_gone() && now.lease < waiter.came.at.plus(LOOK_MS);
        if goes_on || !waiter.is_over(now.lease) {
            return self.keep_waiting(waiter, goes_on, now);
        }
        self.pass(Output::Delivered(waiter, Vec::new()));
    }

    pub(super) fn end_waits(&mut self, now: Now) {
        for waiter in self.waiters.ended(now.lease) {
            if !waiter.is_gone() && waiter.ticket.take() {
                self.pass(Output::Delivered(waiter, Vec::new()));
            }
        }
    }

    pub(super) fn changed(&mut self, changes: &[Change], catalog: &Catalog) {
        for change in changes {
            match change {
                Change::Group(group) if !group.is_active() => {
                    for waiter in self.waiters.take(group.id).into_values() {
                        waiter.refuse(Problem::no_group(&group.name));
                    }
                }
                Change::Group(group) => {
                    self.shard.poke(group.id);
                    if group.parent.is_none() {
                        self.poke_children(group.id, catalog);
                    }
                }
                Change::Topic(topic) => {
                    topic.partitions.iter().for_each(|p| self.shard.reconsider(p.id));
                }
                _ => {}
            }
        }
    }

    /// Those that take their configuration from a group, as far as anybody waits for them.
    fn poke_children(&mut self, of: GroupId, catalog: &Catalog) {
        let is_child = |id: &GroupId| catalog.group(*id).is_some_and(|g| g.parent == Some(of));
        let children = self.waiters.groups().into_iter().filter(is_child);
        children.for_each(|group| self.shard.poke(group));
    }
}
