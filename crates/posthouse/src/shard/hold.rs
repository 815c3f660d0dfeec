//! Keeps a node's files from being freed while somebody copies them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const HOLDS: u8 = 0;
const LET_GO: u8 = 1;
const CUT: u8 = 2;

/// One for all shards and the catalog. As long as it holds they free no segment and no
/// chunk: so its owner lets go soon, and whoever watches over the disk can cut it.
#[derive(Debug, Default)]
pub struct Hold {
    state: AtomicU8,
    steps: AtomicU64,
}

impl Hold {
    /// Whether nothing may be freed.
    pub fn holds(&self) -> bool {
        self.state.load(Ordering::SeqCst) == HOLDS
    }

    /// The owner goes on, and is told whether nothing was freed so far.
    pub fn step(&self) -> bool {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.holds()
    }

    /// How often the owner has gone on.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The owner lets go. Returns whether it has held until now.
    pub fn let_go(&self) -> bool {
        self.end(LET_GO)
    }

    /// Ends it against its owner's will. Returns whether it has held until now.
    pub fn cut(&self) -> bool {
        self.end(CUT)
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CUT
    }

    fn end(&self, how: u8) -> bool {
        self.state.compare_exchange(HOLDS, how, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
