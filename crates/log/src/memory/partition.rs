//! One partition of a replicated log, as its clients know it.

use std::collections::VecDeque;
use std::sync::Arc;

use posthouse_frame::FrameNo;

use super::frames::Stored;
use crate::fencing::{Claim, Fence};
use crate::rng::Rng;
use crate::sync::Mutex;

/// What happens to messages on their way, each in percent of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mischief {
    /// Never arrives, and nobody is told.
    pub lose: u64,
    /// Arrives twice.
    pub repeat: u64,
    /// Arrives later, possibly after what was sent after it.
    pub delay: u64,
}

/// A sequence of messages that any number of claimants append to and read back.
/// Whatever arrives stays, in the order in which it arrived. Cheap to clone; clones
/// share it.
#[derive(Clone, Debug)]
pub struct Partition(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    messages: VecDeque<Stored>,
    /// Position of the first message held; those before were deleted.
    start: u64,
    /// The reader's rule after what was deleted.
    fence: Fence,
    under_way: Vec<Stored>,
    rng: Rng,
    mischief: Mischief,
    appended: u64,
}

impl Partition {
    /// An empty partition. What happens to messages follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Partition(Arc::new(Mutex::new(Inner {
            messages: VecDeque::new(),
            start: 0,
            fence: Fence::new(),
            under_way: Vec::new(),
            rng: Rng::new(seed),
            mischief: Mischief::default(),
            appended: 0,
        })))
    }

    /// Sets what happens to messages from now on.
    pub fn set_mischief(&self, mischief: Mischief) {
        self.0.lock().mischief = mischief;
    }

    /// Messages that were sent, whatever became of them.
    pub fn appended(&self) -> u64 {
        self.0.lock().appended
    }

    /// What every message claims, in their order: what a reader's rule is applied to.
    pub fn claims(&self) -> Vec<Claim> {
        self.0.lock().messages.iter().map(|message| Claim::from(&message.header)).collect()
    }

    /// Lets one message that is under way arrive. `false` if there is none.
    pub fn land_one(&self) -> bool {
        self.0.lock().land_one()
    }

    /// Lets all messages that are under way arrive, in any order.
    pub fn land(&self) {
        while self.land_one() {}
    }

    pub(crate) fn append(&self, message: &Stored) {
        let mut inner = self.0.lock();
        inner.appended += 1;
        let Mischief { lose, repeat, delay } = inner.mischief;
        if inner.rng.chance(lose, 100) {
            return;
        }
        for _ in 0..1 + u64::from(inner.rng.chance(repeat, 100)) {
            if inner.rng.chance(delay, 100) {
                inner.under_way.push(message.clone());
            } else {
                inner.messages.push_back(message.clone());
            }
        }
        if inner.rng.chance(1, 4) {
            inner.land_one();
        }
    }

    /// The reader's rule and the position at the beginning of what is held.
    pub(crate) fn start(&self) -> (Fence, u64) {
        let inner = self.0.lock();
        (inner.fence, inner.start)
    }

    /// The messages from position `from` on, which must not have been deleted.
    pub(crate) fn read(&self, from: u64) -> Vec<Stored> {
        let inner = self.0.lock();
        let at = from.saturating_sub(inner.start) as usize;
        inner.messages.iter().skip(at).cloned().collect()
    }

    /// Deletes what lies before position `to`, where the reader's rule is `fence`.
    pub(crate) fn delete(&self, to: u64, fence: Fence) {
        let mut inner = self.0.lock();
        if to > inner.start {
            let n = (to - inner.start) as usize;
            inner.messages.drain(..n);
            inner.start = to;
            inner.fence = fence;
        }
    }

    /// The numbers that count, from the first held on, with who wrote them.
    pub fn accepted(&self) -> Vec<(FrameNo, Claim)> {
        let (mut fence, start) = self.start();
        let mut accepted = Vec::new();
        for message in self.read(start) {
            let claim = Claim::from(&message.header);
            if let crate::fencing::Verdict::Accepted(no) = fence.judge(claim) {
                accepted.push((no, claim));
            }
        }
        accepted
    }
}

impl Inner {
    fn land_one(&mut self) -> bool {
        if self.under_way.is_empty() {
            return false;
        }
        let at = self.rng.below(self.under_way.len() as u64) as usize;
        let message = self.under_way.swap_remove(at);
        self.messages.push_back(message);
        true
    }
}
