//! Figures of a shard, counted as it works. Not gated: they are for watching.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a shard counts.
        #[derive(Debug, Default)]
        pub struct ShardMetrics {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }
    };
}

figures! {
    /// Messages published.
    published,
    /// Bytes of their sealed bodies.
    published_bytes,
    /// Messages that had come before under the same publish id.
    duplicates,
    /// Messages granted to consumers, every attempt.
    granted,
    /// Messages acknowledged.
    acked,
    /// Messages given back.
    nacked,
    /// Receipts that were stale.
    stale,
    /// Messages moved to the dead letters.
    buried,
    /// Frames handed to the log.
    frames,
    /// Bytes of frames, without padding.
    frame_bytes,
    /// Outputs that wait for a frame to be durable.
    gated,
    /// Consumers that wait for a message.
    waiting,
    /// Commands that wait for a block of a chunk.
    parked,
    /// Blocks of chunks fetched.
    blocks_fetched,
    /// Bytes of blocks in memory.
    block_bytes,
    /// Bytes of the table of new messages.
    young_bytes,
    /// Positions in flight or waiting, over all groups.
    used,
    /// Snapshots taken.
    snapshots,
    /// Snapshots that could not be taken.
    snapshots_failed,
    /// Turns of the loop.
    turns,
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
