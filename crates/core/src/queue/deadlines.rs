//! When leases and waits end.
//!
//! One heap for the shard. Entries are not taken out when a message is
//! acknowledged: whoever takes an entry from the heap looks at the slot, and an
//! entry whose time is not the slot's is stale. The heap is swept when most of it is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::words::{Position, Run, ShardMs};

/// Positions of a pair whose slots become visible at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// The time.
    pub at: ShardMs,
    /// The pair.
    pub pair: u32,
    /// The positions.
    pub run: Run,
}

/// The heap.
#[derive(Debug, Default)]
pub struct Deadlines {
    heap: BinaryHeap<Reverse<Deadline>>,
    /// Positions in the heap, stale ones included.
    positions: u64,
}

impl Deadlines {
    /// Adds positions.
    pub fn push(&mut self, at: ShardMs, pair: u32, run: Run) {
        self.positions += run.len;
        self.heap.push(Reverse(Deadline { at, pair, run }));
    }

    /// Adds a position, to the entry before if it follows that.
    pub fn push_one(
        &mut self,
        last: &mut Option<Deadline>,
        at: ShardMs,
        pair: u32,
        position: Position,
    ) {
        match last {
            Some(d) if d.at == at && d.pair == pair && d.run.end() == position => d.run.len += 1,
            _ => {
                self.flush(last.take());
                *last = Some(Deadline { at, pair, run: Run { first: position, len: 1 } });
            }
        }
    }

    /// Adds what [`Deadlines::push_one`] has gathered.
    pub fn flush(&mut self, last: Option<Deadline>) {
        if let Some(Deadline { at, pair, run }) = last {
            self.push(at, pair, run);
        }
    }

    /// The earliest time.
    pub fn first(&self) -> Option<ShardMs> {
        self.heap.peek().map(|entry| entry.0.at)
    }

    /// Takes the earliest entry, if its time has come.
    pub fn pop(&mut self, now: ShardMs) -> Option<Deadline> {
        if self.first()? > now {
            return None;
        }
        let Reverse(deadline) = self.heap.pop()?;
        self.positions -= deadline.run.len;
        Some(deadline)
    }

    /// Whether so much is stale, with `live` positions in use, that a sweep pays.
    pub fn wants_sweep(&self, live: u64) -> bool {
        self.positions > 2 * live + 4096
    }

    /// Keeps what `is_live` says of each position.
    pub fn sweep(&mut self, is_live: impl Fn(ShardMs, u32, Position) -> bool) {
        let old = std::mem::take(&mut self.heap);
        self.positions = 0;
        for Reverse(Deadline { at, pair, run }) in old {
            let mut last = None;
            for position in run.iter().filter(|p| is_live(at, pair, *p)) {
                self.push_one(&mut last, at, pair, position);
            }
            self.flush(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_the_order_of_time_and_only_when_it_has_come() {
        let mut deadlines = Deadlines::default();
        for (at, first) in [(30, 1), (10, 2), (20, 3)] {
            deadlines.push(ShardMs(at), 0, Run { first, len: 2 });
        }
        assert_eq!(deadlines.first(), Some(ShardMs(10)));
        assert_eq!(deadlines.pop(ShardMs(9)), None);
        let mut times = Vec::new();
        while let Some(deadline) = deadlines.pop(ShardMs(25)) {
            times.push(deadline.at.0);
        }
        assert_eq!(times, [10, 20]);
    }

    #[test]
    fn a_sweep_keeps_what_is_live_and_cuts_runs() {
        let mut deadlines = Deadlines::default();
        deadlines.push(ShardMs(5), 1, Run { first: 0, len: 10_000 });
        assert!(!deadlines.wants_sweep(5_000));
        assert!(deadlines.wants_sweep(2));
        deadlines.sweep(|_, _, position| position == 3 || (7..9).contains(&position));
        assert_eq!(deadlines.pop(ShardMs(5)).unwrap().run, Run { first: 3, len: 1 });
        assert_eq!(deadlines.pop(ShardMs(5)).unwrap().run, Run { first: 7, len: 2 });
        assert_eq!(deadlines.pop(ShardMs(5)), None);
        assert!(!deadlines.wants_sweep(0));
    }
}
