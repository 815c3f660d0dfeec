//! Consumers that wait for a message.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use posthouse_core::queue::{Ask, Delivery};
use posthouse_core::{GroupId, ShardMs, TopicId};

use super::Tx;
use crate::problem::Problem;

/// What a consumer asks for, and who waits for the answer.
#[derive(Debug)]
pub struct Waiter {
    /// Its group.
    pub group: GroupId,
    /// Its name.
    pub consumer: Arc<str>,
    /// The most messages.
    pub max: usize,
    /// The most bytes.
    pub max_bytes: u64,
    /// How long the leases are.
    pub lease_ms: u64,
    /// Only from this topic.
    pub topic: Option<TopicId>,
    /// Whether messages are acknowledged with the grant.
    pub auto_ack: bool,
    /// How long to wait, in milliseconds.
    pub wait_ms: u64,
    /// When it came, and its number in line. The shard sets both.
    pub came: Came,
    /// Who waits at several shards is served by one of them.
    pub ticket: Ticket,
    /// Where the messages go. An empty list: nothing has come in time.
    pub tx: Tx<Vec<Delivery>>,
}

/// When a waiter came to a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// The time.
    pub at: ShardMs,
    /// Its number in line; zero until it has one. It keeps it when it leaves the line for a
    /// while.
    pub number: u64,
    /// When its wait ends, as it was last put in line.
    end: ShardMs,
}

impl Came {
    /// Just now, and without a number.
    pub fn at(now: ShardMs) -> Came {
        Came { at: now, ..Came::default() }
    }
}

/// Shared by the copies of one request that wait at several shards. A shard takes it
/// before it looks for messages, and gives it back if it has found none; the first that
/// finds some keeps it.
#[derive(Clone, Debug, Default)]
pub struct Ticket(Option<Arc<Shared>>);

struct Shared {
    state: AtomicU8,
    /// Tells every shard to look again.
    again: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state.fmt(f)
    }
}

const FREE: u8 = 0;
const TAKEN: u8 = 1;
/// Taken, and another shard would have had it.
const WANTED: u8 = 2;

impl Ticket {
    /// For a request that goes to several shards. `again` tells all of them to look again:
    /// one of them wanted the ticket while another had it, which has found nothing.
    pub fn shared(again: impl Fn() + Send + Sync + 'static) -> Ticket {
        let state = AtomicU8::new(FREE);
        Ticket(Some(Arc::new(Shared { state, again: Box::new(again) })))
    }

    /// Takes the ticket; `false` if another shard has it. Whoever does not get it stays in
    /// line: it may be given back.
    #[must_use]
    pub fn take(&self) -> bool {
        let Some(shared) = &self.0 else { return true };
        let taken = shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            Some(if state == FREE { TAKEN } else { WANTED })
        });
        taken == Ok(FREE)
    }

    /// Gives a ticket back that was taken.
    pub fn give_back(&self) {
        if let Some(shared) = &self.0
            && shared.state.swap(FREE, Ordering::AcqRel) == WANTED
        {
            (shared.again)();
        }
    }
}

impl Waiter {
    /// What the core is asked.
    pub fn ask(&self) -> Ask<'_> {
        Ask {
            group: self.group,
            consumer: &self.consumer,
            max: self.max,
            max_bytes: self.max_bytes,
            lease_ms: self.lease_ms,
            topic: self.topic,
            auto_ack: self.auto_ack,
        }
    }

    /// Whether nobody waits for the answer any more. Of a request that went to several
    /// shards, this also says that another has answered.
    pub fn is_gone(&self) -> bool {
        self.tx.is_closed()
    }

    /// Answers that there will be no messages, if no other shard has answered.
    pub fn refuse(self, problem: Problem) {
        if self.ticket.take() {
            drop(self.tx.send(Err(problem)));
        }
    }

    /// Whether it has waited as long as it wanted.
    pub fn is_over(&self, now: ShardMs) -> bool {
        self.came.at.plus(self.wait_ms) <= now
    }
}

/// The consumers that wait, by group, in the order they came.
#[derive(Debug, Default)]
pub struct Waiters {
    groups: BTreeMap<GroupId, BTreeMap<u64, Waiter>>,
    ends: BinaryHeap<Reverse<(ShardMs, u64, GroupId)>>,
    last: u64,
    count: usize,
    /// How many have asked for a place since those that are gone were taken out.
    asked: usize,
}

impl Waiters {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether nobody of the group waits.
    pub fn has_none(&self, group: GroupId) -> bool {
        !self.groups.contains_key(&group)
    }

    /// The groups of which somebody waits, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }

    /// Whether one more may wait, of at most `most`. Takes out who is gone now and then, so
    /// that those do not keep others out.
    pub fn has_room(&mut self, most: usize) -> bool {
        self.asked += 1;
        let is_full = self.count >= most && self.asked > most / 16;
        if is_full || self.asked > self.count / 2 + 1024 {
            self.asked = 0;
            self.groups.retain(|_, waiting| {
                waiting.retain(|_, waiter| !waiter.is_gone());
                !waiting.is_empty()
            });
            self.count = self.groups.values().map(BTreeMap::len).sum();
        }
        self.count < most
    }

    /// Lets one wait until `end`, at its place in line: the last, if it is new.
    pub fn push(&mut self, mut waiter: Waiter, end: ShardMs) {
        let group = waiter.group;
        if waiter.came.number == 0 {
            self.last += 1;
            waiter.came.number = self.last;
        }
        let number = waiter.came.number;
        if std::mem::replace(&mut waiter.came.end, end) != end {
            self.ends.push(Reverse((end, number, group)));
        }
        self.groups.entry(group).or_default().insert(number, waiter);
        self.count += 1;
        self.sweep_ends();
    }

    /// Who was served leaves the end of its wait behind: sweeps when most are such.
    fn sweep_ends(&mut self) {
        if self.ends.len() > 2 * self.count + 4096 {
            let groups = &self.groups;
            self.ends.retain(|Reverse((_, number, group))| {
                groups.get(group).is_some_and(|waiting| waiting.contains_key(number))
            });
        }
    }

    /// All that wait of one group, by number; [`Waiters::put_back`] for those that go on
    /// waiting.
    pub fn take(&mut self, group: GroupId) -> BTreeMap<u64, Waiter> {
        let taken = self.groups.remove(&group).unwrap_or_default();
        self.count -= taken.len();
        taken
    }

    /// Puts back what was taken and not served.
    pub fn put_back(&mut self, group: GroupId, mut waiters: BTreeMap<u64, Waiter>) {
        if waiters.is_empty() {
            return;
        }
        self.count += waiters.len();
        match self.groups.get_mut(&group) {
            Some(waiting) => waiting.append(&mut waiters),
            None => drop(self.groups.insert(group, waiters)),
        }
    }

    /// When the first has waited long enough.
    pub fn first_end(&self) -> Option<ShardMs> {
        self.ends.peek().map(|end| end.0.0)
    }

    /// Takes out who has waited long enough.
    pub fn ended(&mut self, now: ShardMs) -> Vec<Waiter> {
        let mut ended = Vec::new();
        while let Some(Reverse((end, number, group))) = self.ends.peek().copied() {
            if end > now {
                break;
            }
            self.ends.pop();
            let Some(waiting) = self.groups.get_mut(&group) else { continue };
            if let Some(waiter) = waiting.remove(&number) {
                ended.push(waiter);
                self.count -= 1;
            }
            if waiting.is_empty() {
                self.groups.remove(&group);
            }
        }
        ended
    }

    /// Takes everybody out, in the order they came.
    pub fn drain(&mut self) -> Vec<Waiter> {
        self.ends.clear();
        self.count = 0;
        let mut all: Vec<Waiter> = std::mem::take(&mut self.groups)
            .into_values()
            .flat_map(BTreeMap::into_values)
            .collect();
        all.sort_unstable_by_key(|waiter| waiter.came.number);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::oneshot;

    type Answer = oneshot::Receiver<Result<Vec<Delivery>, crate::problem::Problem>>;

    fn waiter(group: u32) -> (Waiter, Answer) {
        let (tx, rx) = oneshot::channel();
        let waiter = Waiter {
            group: GroupId(group),
            consumer: "w".into(),
            max: 1,
            max_bytes: 1,
            lease_ms: 1,
            topic: None,
            auto_ack: false,
            wait_ms: 1,
            came: Came::default(),
            ticket: Ticket::default(),
            tx,
        };
        (waiter, rx)
    }

    #[test]
    fn who_has_waited_long_enough_is_taken_out_and_others_keep_their_turn() {
        let mut waiters = Waiters::default();
        for (group, end) in [(1, 30), (1, 10), (2, 20), (1, 40)] {
            waiters.push(waiter(group).0, ShardMs(end));
        }
        assert_eq!(waiters.ended(ShardMs(9)).len(), 0);
        assert_eq!(waiters.ended(ShardMs(25)).len(), 2);
        assert!(waiters.has_none(GroupId(2)));
        let mut taken = waiters.take(GroupId(1));
        let (_, away) = taken.pop_first().expect("two wait");
        waiters.push(waiter(1).0, ShardMs(50));
        waiters.put_back(GroupId(1), taken);
        waiters.push(away, ShardMs(60));
        let numbers: Vec<u64> = waiters.take(GroupId(1)).into_keys().collect();
        assert_eq!(numbers, [1, 4, 5], "who was away for a while has its place again");
        assert_eq!(waiters.len(), 0);
        assert_eq!(waiters.ended(ShardMs(100)).len(), 0, "who was served does not end");
    }

    // Who had been answered by another shard, or had hung up, counted until its time was
    // over, and kept others out.
    #[test]
    fn who_is_gone_takes_no_room() {
        let mut waiters = Waiters::default();
        let mut here = Vec::new();
        for n in 0..20_000 {
            assert!(waiters.has_room(5_000), "{n}");
            let (waiter, answer) = waiter(n % 7);
            waiters.push(waiter, ShardMs(1_000_000));
            if n % 10 == 0 {
                here.push(answer);
            }
        }
        assert!((2_000..5_000).contains(&waiters.len()), "{}", waiters.len());
        let left = waiters.drain();
        assert_eq!(left.iter().filter(|waiter| !waiter.is_gone()).count(), here.len());
        assert!(left.is_sorted_by_key(|waiter| waiter.came.number));
    }

    // Who found the ticket taken went away for good, although it was given back.
    #[test]
    fn a_shared_ticket_is_taken_once_and_who_wanted_it_is_told_when_it_is_given_back() {
        let told = Arc::new(AtomicUsize::new(0));
        let bell = told.clone();
        let ticket = Ticket::shared(move || {
            bell.fetch_add(1, Ordering::Relaxed);
        });
        let copy = ticket.clone();
        assert!(ticket.take());
        ticket.give_back();
        assert_eq!(told.load(Ordering::Relaxed), 0, "nobody wanted it");
        assert!(ticket.take());
        assert!(!copy.take() && !copy.take());
        ticket.give_back();
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert!(copy.take());
        assert!(Ticket::default().take());
    }
}
