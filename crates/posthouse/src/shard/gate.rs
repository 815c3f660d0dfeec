//! The gate: nothing leaves a shard before everything it rests on is durable.
//!
//! An output carries the last frame that was applied when it was computed: a reply,
//! a refusal, a read, a delivery, all alike. It leaves when that frame is durable; at
//! once if it is already.

use std::collections::VecDeque;

use posthouse_frame::{FrameNo, planted};

/// Outputs that wait for their frame, in the order they were computed.
#[derive(Debug)]
pub struct Gate<O> {
    waiting: VecDeque<(FrameNo, O)>,
    durable: FrameNo,
}

impl<O> Gate<O> {
    /// A gate of a log of which everything up to `durable` is.
    pub fn new(durable: FrameNo) -> Self {
        Gate { waiting: VecDeque::new(), durable }
    }

    /// Lets `output`, computed when `applied` was the last frame applied, through, or
    /// keeps it. What it lets through is returned.
    #[must_use]
    pub fn pass(&mut self, applied: FrameNo, output: O) -> Option<O> {
        // What waits is in the order of its frames, so with something waiting this
        // one's frame is not durable either.
        let ahead = if planted("gate-off-by-one") { 1 } else { 0 };
        if applied.0 <= self.durable.0 + ahead || planted("gate-open") {
            return Some(output);
        }
        self.waiting.push_back((applied, output));
        None
    }

    /// Everything up to `durable` is durable now: what that lets through.
    pub fn open_to(&mut self, durable: FrameNo) -> impl Iterator<Item = O> + '_ {
        self.durable = self.durable.max(durable);
        let count = self.waiting.partition_point(|(after, _)| *after <= self.durable);
        self.waiting.drain(..count).map(|(_, output)| output)
    }

    /// The last frame known to be durable.
    pub fn durable(&self) -> FrameNo {
        self.durable
    }

    /// How many outputs wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out everything that waits: its frames will never be known durable.
    pub fn fail(&mut self) -> impl Iterator<Item = O> + '_ {
        self.waiting.drain(..).map(|(_, output)| output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_leaves_when_its_frame_is_durable_and_not_before() {
        let mut gate = Gate::new(FrameNo(3));
        assert_eq!(
            gate.pass(FrameNo(3), "a read of what is durable"),
            Some("a read of what is durable")
        );
        assert_eq!(gate.pass(FrameNo(4), "first"), None);
        assert_eq!(gate.pass(FrameNo(4), "a refusal that saw it"), None);
        assert_eq!(gate.pass(FrameNo(6), "later"), None);
        assert_eq!(gate.open_to(FrameNo(3)).count(), 0);
        let left: Vec<&str> = gate.open_to(FrameNo(5)).collect();
        assert_eq!(left, ["first", "a refusal that saw it"]);
        assert_eq!(gate.len(), 1);
        assert_eq!(gate.fail().collect::<Vec<_>>(), ["later"]);
    }
}
