//! Who owns a replicated log, and which of its frames count.
//!
//! Anyone can append to a partition of a replicated log: the owner, an owner that
//! was replaced and does not know it yet (a *zombie*), a client library that sends a
//! message twice, or late, or not at all. What makes one log of it is a rule for
//! readers, which all of them apply to the same sequence and so all come to the
//! same result:
//!
//! > A frame counts if it is an epoch frame with an epoch above the current one; it
//! > then takes the next number, whatever number it guessed. Or if its epoch and
//! > writer are the current ones, and its number is the next. Every other is void.
//!
//! So void are: duplicates (number too low), what a lost or overtaken frame leaves
//! behind (number too high) until its owner sends the missing one again, everything
//! of a zombie (epoch too low), and of two claimants of the same epoch all that the
//! second writes: the first in the log wins.
//!
//! An owner may tell others only of frames that it has seen to count. It learns that
//! by reading the partition back; that it was replaced it learns in the same way.

use posthouse_frame::{FrameNo, Header, Kind};

/// What the rule looks at in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Data or epoch. Marks do not occur in a replicated log, and are void.
    pub kind: Kind,
    /// The ownership under which it was written.
    pub epoch: u32,
    /// The random number of the process that wrote it.
    pub writer: u32,
    /// The number that its writer gave it.
    pub frame_no: FrameNo,
}

impl From<&Header> for Claim {
    fn from(header: &Header) -> Self {
        Claim {
            kind: header.kind,
            epoch: header.epoch,
            writer: header.writer,
            frame_no: header.frame_no,
        }
    }
}

/// Whether a frame counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts, under this number.
    Accepted(FrameNo),
    /// It does not.
    Void(Void),
}

/// Why a frame does not count. Only for people and counters: the rule is the same
/// for all of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Void {
    /// It was seen before, or comes after one that took its number.
    Repeated,
    /// A frame before it is missing.
    Gap,
    /// Its owner has been replaced.
    Zombie,
    /// Another process was first to claim its epoch.
    Rival,
    /// It is of an epoch that nobody has begun.
    Unclaimed,
}

/// The reader's rule, at one place of the sequence. Everything it depends on is what
/// it was shown before; readers that start at the same place agree for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    epoch: u32,
    writer: u32,
    next: FrameNo,
}

impl Default for Fence {
    fn default() -> Self {
        Fence::new()
    }
}

impl Fence {
    /// At the beginning of a log: nobody owns it, and only an epoch frame can count.
    pub fn new() -> Self {
        Fence { epoch: 0, writer: 0, next: FrameNo(1) }
    }

    /// After frame `last`, which was of `epoch` and `writer`.
    pub fn after(last: FrameNo, epoch: u32, writer: u32) -> Self {
        Fence { epoch, writer, next: last.next() }
    }

    /// The epoch of the owner; 0 before the first.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The process that is the owner.
    pub fn writer(&self) -> u32 {
        self.writer
    }

    /// The number that the next frame to count has.
    pub fn next(&self) -> FrameNo {
        self.next
    }

    /// Applies the rule to the next frame of the sequence.
    pub fn judge(&mut self, claim: Claim) -> Verdict {
        match self.void(claim) {
            Some(void) => Verdict::Void(void),
            None => {
                let number = self.next;
                self.epoch = claim.epoch;
                self.writer = claim.writer;
                self.next = number.next();
                Verdict::Accepted(number)
            }
        }
    }

    fn void(&self, claim: Claim) -> Option<Void> {
        let owner = (claim.epoch, claim.writer) == (self.epoch, self.writer)
            || (posthouse_frame::planted("zombie-accepted") && claim.epoch < self.epoch);
        match claim.kind {
            Kind::Data
                if (posthouse_frame::planted("gap-accepted") && claim.frame_no > self.next)
                    || (posthouse_frame::planted("repeat-accepted")
                        && claim.frame_no < self.next) =>
            {
                (!owner).then_some(Void::Zombie)
            }
            Kind::Epoch if claim.epoch > self.epoch => None,
            Kind::Data if owner && self.epoch > 0 && claim.frame_no == self.next => None,
            _ if claim.epoch < self.epoch => Some(Void::Zombie),
            Kind::Data if claim.epoch > self.epoch => Some(Void::Unclaimed),
            _ if !owner => Some(Void::Rival),
            Kind::Data if claim.frame_no > self.next => Some(Void::Gap),
            _ => Some(Void::Repeated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Accepted, Void as No};
    use proptest::prelude::*;

    fn epoch(epoch: u32, writer: u32, no: u64) -> Claim {
        Claim { kind: Kind::Epoch, epoch, writer, frame_no: FrameNo(no) }
    }

    fn data(epoch: u32, writer: u32, no: u64) -> Claim {
        Claim { kind: Kind::Data, epoch, writer, frame_no: FrameNo(no) }
    }

    fn judge_all(claims: &[Claim]) -> Vec<Verdict> {
        let mut fence = Fence::new();
        claims.iter().map(|claim| fence.judge(*claim)).collect()
    }

    fn yes(no: u64) -> Verdict {
        Accepted(FrameNo(no))
    }

    #[test]
    fn an_owner_s_frames_count_in_order() {
        let log = [epoch(1, 7, 1), data(1, 7, 2), data(1, 7, 3)];
        assert_eq!(judge_all(&log), [yes(1), yes(2), yes(3)]);
    }

    #[test]
    fn nothing_counts_before_somebody_owns_the_log() {
        let log = [data(0, 0, 1), data(1, 7, 1), epoch(0, 7, 1)];
        let (repeated, unclaimed, rival) =
            (No(Void::Repeated), No(Void::Unclaimed), No(Void::Rival));
        assert_eq!(judge_all(&log), [repeated, unclaimed, rival]);
    }

    #[test]
    fn a_duplicate_is_void_and_what_follows_it_is_not() {
        let log = [epoch(1, 7, 1), data(1, 7, 2), data(1, 7, 2), epoch(1, 7, 1), data(1, 7, 3)];
        let no = No(Void::Repeated);
        assert_eq!(judge_all(&log), [yes(1), yes(2), no, no, yes(3)]);
    }

    #[test]
    fn behind_a_gap_everything_is_void_until_the_missing_frame_comes() {
        let log = [epoch(1, 7, 1), data(1, 7, 3), data(1, 7, 4), data(1, 7, 2), data(1, 7, 3)];
        let gap = No(Void::Gap);
        assert_eq!(judge_all(&log), [yes(1), gap, gap, yes(2), yes(3)]);
    }

    #[test]
    fn a_new_owner_takes_the_next_number_whatever_it_guessed_and_the_old_one_is_a_zombie() {
        let log = [
            epoch(1, 7, 1),
            data(1, 7, 2),
            epoch(2, 8, 2),
            data(1, 7, 3),
            data(1, 7, 4),
            data(2, 8, 4),
        ];
        let zombie = No(Void::Zombie);
        assert_eq!(judge_all(&log), [yes(1), yes(2), yes(3), zombie, zombie, yes(4)]);
    }

    #[test]
    fn of_two_claimants_of_an_epoch_the_first_in_the_log_wins() {
        let log = [epoch(1, 7, 1), epoch(2, 8, 2), epoch(2, 9, 2), data(2, 9, 3), data(2, 8, 3)];
        let rival = No(Void::Rival);
        assert_eq!(judge_all(&log), [yes(1), yes(2), rival, rival, yes(3)]);
    }

    #[test]
    fn an_owner_that_came_back_is_nobody_until_it_claims_a_new_epoch() {
        let log = [epoch(1, 7, 1), epoch(2, 8, 2), epoch(1, 7, 2), data(1, 7, 3), epoch(3, 7, 3)];
        let zombie = No(Void::Zombie);
        assert_eq!(judge_all(&log), [yes(1), yes(2), zombie, zombie, yes(3)]);
    }

    #[test]
    fn epochs_may_be_skipped_and_marks_are_void() {
        let mark = Claim { kind: Kind::Mark, ..data(5, 7, 2) };
        let log = [epoch(5, 7, 1), mark, data(5, 7, 2), epoch(4, 8, 3)];
        assert_eq!(judge_all(&log), [yes(1), No(Void::Repeated), yes(2), No(Void::Zombie)]);
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        (any::<bool>(), 0u32..4, 0u32..3, 0u64..6)
            .prop_map(|(claims, e, w, no)| if claims { epoch(e, w, no) } else { data(e, w, no) })
    }

    proptest! {
        /// Whatever stands in the log: numbers that count are dense, epochs never
        /// fall, within an epoch only one writer counts, and a reader that starts in
        /// the middle with what one before it knew agrees with it.
        #[test]
        fn what_counts_is_one_log(claims in proptest::collection::vec(any_claim(), 0..60)) {
            let mut fence = Fence::new();
            let mut last = (0, 0, FrameNo::ZERO);
            for claim in claims {
                let mut late = Fence::after(fence.next().prev(), fence.epoch(), fence.writer());
                let verdict = fence.judge(claim);
                prop_assert_eq!(late.judge(claim), verdict);
                prop_assert_eq!(late, fence);
                if let Accepted(no) = verdict {
                    prop_assert_eq!(no, last.2.next());
                    prop_assert!(claim.epoch >= last.0);
                    if claim.epoch == last.0 {
                        prop_assert_eq!(claim.writer, last.1);
                        prop_assert_eq!(claim.frame_no, no);
                    } else {
                        prop_assert_eq!(claim.kind, Kind::Epoch);
                    }
                    last = (claim.epoch, claim.writer, no);
                }
            }
        }
    }
}
