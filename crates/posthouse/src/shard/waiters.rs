//! Consumers that wait for a message.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use posthouse_core::queue::{Ask, Delivery};
use posthouse_core::{GroupId, ShardMs, TopicId};

use super::Tx;

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
    /// Who waits at several shards is served by one of them.
    pub ticket: Ticket,
    /// Where the messages go. An empty list: nothing has come in time.
    pub tx: Tx<Vec<Delivery>>,
}

/// Shared by the copies of one request that wait at several shards. The first shard
/// that has something takes it.
#[derive(Clone, Debug, Default)]
pub struct Ticket(Option<Arc<AtomicBool>>);

impl Ticket {
    /// For a request that goes to several shards.
    pub fn shared() -> Ticket {
        Ticket(Some(Arc::default()))
    }

    /// Takes the ticket; `false` if somebody has it.
    pub fn take(&self) -> bool {
        self.0.as_ref().is_none_or(|taken| !taken.swap(true, Ordering::AcqRel))
    }

    /// Gives a ticket back that was taken.
    pub fn give_back(&self) {
        if let Some(taken) = &self.0 {
            taken.store(false, Ordering::Release);
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

    /// Whether nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        self.tx.is_closed()
    }
}

/// The consumers that wait, by group, in the order they came.
#[derive(Debug, Default)]
pub struct Waiters {
    groups: HashMap<GroupId, VecDeque<(u64, Waiter)>>,
    ends: BinaryHeap<Reverse<(ShardMs, u64, GroupId)>>,
    next: u64,
    count: usize,
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

    /// The groups of which somebody waits.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }

    /// Lets one wait until `end`.
    pub fn push(&mut self, waiter: Waiter, end: ShardMs) {
        let group = waiter.group;
        self.next += 1;
        self.ends.push(Reverse((end, self.next, group)));
        self.groups.entry(group).or_default().push_back((self.next, waiter));
        self.count += 1;
        self.sweep_ends();
    }

    /// Who was served leaves the end of its wait behind: sweeps when most are such.
    fn sweep_ends(&mut self) {
        if self.ends.len() > 2 * self.count + 4096 {
            let waiting: std::collections::HashSet<u64> =
                self.groups.values().flatten().map(|(number, _)| *number).collect();
            self.ends.retain(|Reverse((_, number, _))| waiting.contains(number));
        }
    }

    /// All that wait of one group, in order; [`Waiters::put_back`] for those that go
    /// on waiting.
    pub fn take(&mut self, group: GroupId) -> VecDeque<(u64, Waiter)> {
        let taken = self.groups.remove(&group).unwrap_or_default();
        self.count -= taken.len();
        taken
    }

    /// Puts back what was taken and not served; in front of who has come since.
    pub fn put_back(&mut self, group: GroupId, mut waiters: VecDeque<(u64, Waiter)>) {
        if waiters.is_empty() {
            return;
        }
        self.count += waiters.len();
        let queue = self.groups.entry(group).or_default();
        waiters.append(queue);
        *queue = waiters;
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
            let Some(queue) = self.groups.get_mut(&group) else { continue };
            if let Some(at) = queue.iter().position(|(n, _)| *n == number) {
                ended.extend(queue.remove(at).map(|(_, waiter)| waiter));
                self.count -= 1;
            }
            if queue.is_empty() {
                self.groups.remove(&group);
            }
        }
        ended
    }

    /// Takes everybody out.
    pub fn drain(&mut self) -> Vec<Waiter> {
        self.ends.clear();
        self.count = 0;
        self.groups.drain().flat_map(|(_, queue)| queue).map(|(_, waiter)| waiter).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn waiter(group: u32) -> Waiter {
        Waiter {
            group: GroupId(group),
            consumer: "w".into(),
            max: 1,
            max_bytes: 1,
            lease_ms: 1,
            topic: None,
            auto_ack: false,
            wait_ms: 1,
            ticket: Ticket::default(),
            tx: oneshot::channel().0,
        }
    }

    #[test]
    fn who_has_waited_long_enough_is_taken_out_and_others_keep_their_turn() {
        let mut waiters = Waiters::default();
        for (group, end) in [(1, 30), (1, 10), (2, 20), (1, 40)] {
            waiters.push(waiter(group), ShardMs(end));
        }
        assert_eq!(waiters.ended(ShardMs(9)).len(), 0);
        assert_eq!(waiters.ended(ShardMs(25)).len(), 2);
        assert!(waiters.has_none(GroupId(2)));
        let taken = waiters.take(GroupId(1));
        waiters.push(waiter(1), ShardMs(50));
        waiters.put_back(GroupId(1), taken);
        let numbers: Vec<u64> = waiters.take(GroupId(1)).iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [1, 4, 5]);
        assert_eq!(waiters.len(), 0);
        assert_eq!(waiters.ended(ShardMs(100)).len(), 0, "who was served does not end");
    }

    #[test]
    fn a_shared_ticket_is_taken_once() {
        let ticket = Ticket::shared();
        let copy = ticket.clone();
        assert!(ticket.take());
        assert!(!copy.take());
        copy.give_back();
        assert!(copy.take());
        assert!(Ticket::default().take());
    }
}
