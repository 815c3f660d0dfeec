//! Figures of a shard, counted as it works. Not gated: they are for watching.

use std::sync::atomic::{AtomicU64, Ordering};

use posthouse_core::queue::command::Reply;
use posthouse_core::queue::{Fired, Transactions};

/// A figure as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// What it is called.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Whether it only grows.
    pub grows: bool,
    /// Its value.
    pub value: u64,
}

/// How late scheduled messages came: how many up to 1 ms, 2 ms, 4 ms and so on. The last
/// counts all that were later.
#[derive(Debug, Default)]
pub struct Lateness([AtomicU64; Fired::BUCKETS]);

impl Lateness {
    /// The upper bounds in milliseconds, and how many messages came within each but not
    /// within the one before. The last has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        self.0.iter().enumerate().map(|(index, count)| {
            let bound = (index + 1 < Fired::BUCKETS).then(|| 1 << index);
            (bound, get(count))
        })
    }
}

macro_rules! figures {
    ($($kind:ident $name:ident: $help:literal;)*) => {
        /// What a shard counts.
        #[derive(Debug, Default)]
        pub struct ShardMetrics {
            $(#[doc = $help] pub $name: AtomicU64,)*
            /// How late scheduled messages came.
            pub lateness: Lateness,
        }

        impl ShardMetrics {
            /// All figures, in the same order for every shard.
            pub fn all(&self) -> Vec<Figure> {
                vec![$(Figure {
                    name: stringify!($name),
                    help: $help,
                    grows: matches!(stringify!($kind).as_bytes(), b"counter"),
                    value: get(&self.$name),
                },)*]
            }
        }
    };
}

figures! {
    counter published: "Messages published.";
    counter published_bytes: "Bytes of their sealed bodies.";
    counter duplicates: "Messages that had come before under the same publish id.";
    counter granted: "Messages granted to consumers, every attempt.";
    counter acked: "Messages acknowledged.";
    counter nacked: "Messages given back.";
    counter stale: "Receipts that were stale.";
    counter expired: "Messages whose time to live had passed before a group was done with them: passed over, or buried.";
    counter buried: "Messages moved to the dead letters.";
    counter frames: "Frames handed to the log.";
    counter frame_bytes: "Bytes of frames, without padding.";
    gauge scheduled: "Messages that are scheduled and not due yet.";
    gauge overdue_ms: "How late the message is that has waited longest after its time, in milliseconds.";
    gauge runs: "Runs of scheduled messages outside memory.";
    counter fired: "Scheduled messages that have come.";
    counter late_ms: "How late they were together, in milliseconds.";
    counter rescheduled: "Scheduled messages moved to another time.";
    counter cancelled: "Scheduled messages called back.";
    counter schedule_dropped: "Scheduled messages that did not come, because they were purged or their topic had gone.";
    gauge transactions_open: "Transactions that wait for a decision.";
    gauge transactions_parked: "Those of them about which nobody is asked any more: an operator has to decide.";
    gauge prepared_messages: "Messages of transactions that wait for a decision.";
    gauge prepared_bytes: "Bytes of their sealed bodies.";
    counter transactions_prepared: "Transactions prepared.";
    counter transactions_committed: "Transactions committed.";
    counter transactions_rolled_back: "Transactions rolled back.";
    counter transaction_checks: "Times that a producer was asked about a transaction.";
    gauge gated: "Outputs that wait for a frame to be durable.";
    gauge waiting: "Consumers that wait for a message.";
    gauge parked: "Commands that wait for a block of a chunk.";
    counter blocks_fetched: "Blocks of chunks fetched.";
    gauge block_bytes: "Bytes of blocks in memory.";
    gauge young_bytes: "Bytes of the table of new messages.";
    gauge used: "Positions in flight or waiting, over all groups.";
    gauge snapshotting: "Whether a snapshot is being taken.";
    gauge held_back: "Publishes that wait until a snapshot is written: they come faster.";
    counter carried_bytes: "Bytes of sealed bodies written again, so that segments can go.";
    counter snapshots: "Snapshots taken.";
    counter snapshots_failed: "Snapshots that could not be taken.";
    counter turns: "Turns of the loop.";
}

impl ShardMetrics {
    /// Notes how many messages are to come, `pending` with those that wait for a decision;
    /// and how many transactions those are.
    pub fn stand(&self, pending: u64, transactions: &Transactions) {
        set(&self.scheduled, pending - transactions.messages());
        set(&self.transactions_open, transactions.open());
        set(&self.transactions_parked, transactions.parked());
        set(&self.prepared_messages, transactions.messages());
        set(&self.prepared_bytes, transactions.bytes());
    }

    /// Counts what was done about transactions.
    pub fn transacted(&self, reply: &Reply) {
        match reply {
            Reply::Prepared(prepared) if !prepared.is_duplicate => {
                add(&self.transactions_prepared, 1);
            }
            Reply::Checks(checks) => add(&self.transaction_checks, checks.len() as u64),
            Reply::Ended(ended) if !ended.is_late => {
                let of = &ended.transaction;
                if of.decision.is_some_and(|decision| decision.is_commit) {
                    add(&self.transactions_committed, 1);
                    let placed = of.parts.iter().filter(|part| part.placed.is_some());
                    add(&self.published, placed.map(|part| part.count).sum());
                } else {
                    add(&self.transactions_rolled_back, 1);
                }
            }
            _ => {}
        }
    }

    /// Counts scheduled messages that have come.
    pub fn fired(&self, fired: &Fired) {
        if *fired == Fired::default() {
            return;
        }
        add(&self.fired, fired.count);
        add(&self.late_ms, fired.late_ms);
        add(&self.schedule_dropped, fired.dropped);
        for (bucket, count) in self.lateness.0.iter().zip(fired.lateness) {
            add(bucket, count);
        }
    }
}

/// Adds to a figure.
pub fn add(figure: &AtomicU64, by: u64) {
    figure.fetch_add(by, Ordering::Relaxed);
}

/// Sets a figure.
pub fn set(figure: &AtomicU64, to: u64) {
    figure.store(to, Ordering::Relaxed);
}

/// Reads a figure.
pub fn get(figure: &AtomicU64) -> u64 {
    figure.load(Ordering::Relaxed)
}
