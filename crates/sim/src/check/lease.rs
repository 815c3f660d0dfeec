//! (3), (4): leases, fences, receipts, and acknowledgements that are final.

use super::story::{Delivery, Settle};
use super::{Story, Violation};
use crate::history::{Answer, Say};

/// Whether what was said gives the message back, or ends it.
fn lets_go(settle: &Settle<'_>) -> bool {
    matches!(settle.say, Say::Ack | Say::Nack(_))
}

/// (3) While somebody has a message, nobody else of the group gets it.
pub fn lease(story: &Story<'_>) -> Result<(), Violation> {
    for ((group, place), which) in &story.by_place {
        for pair in which.windows(2) {
            let (first, second) = (&story.deliveries[pair[0]], &story.deliveries[pair[1]]);
            if first.auto {
                let what = format!("{place:?} was acknowledged with its grant to {group}");
                return Err(Violation::at(4, "final", second.to, what));
            }
            let is_free = story.settles_of(group, place).any(|settle| {
                lets_go(settle) && settle.from < second.to && settle.got.fence <= first.got.fence
            });
            // Granted then at the latest; its lease ended then at the earliest.
            let shard = first.got.shard;
            let latest = story.lease_at(second.to, shard);
            let earliest = story.lease_at(first.from, shard) + held_ms(story, first, second.to);
            if !is_free && latest < earliest {
                let what = format!(
                    "{place:?} is given to {group} again (fence {}) at {latest}, before the lease \
                     of fence {} has ended at {earliest}",
                    second.got.fence, first.got.fence
                );
                return Err(Violation::at(3, "lease", second.to, what));
            }
        }
    }
    Ok(())
}

/// How long somebody has a delivery at least, from when it was asked for on.
fn held_ms(story: &Story<'_>, first: &Delivery<'_>, until: usize) -> u64 {
    let shard = first.got.shard;
    let start = story.lease_at(first.from, shard);
    let mut end = start + first.lease_ms;
    for settle in story.settles_of(first.group, &first.got.place) {
        if settle.got.fence != first.got.fence || settle.from > until {
            continue;
        }
        if let Say::Extend(ms) = settle.say {
            let new = story.lease_at(settle.from, shard) + ms;
            end = match (settle.answer, settle.to) {
                // It ends then, sooner or later than before.
                (Some(Answer::Ok), Some(to)) if to < until => new,
                (Some(Answer::Stale | Answer::Invalid), _) => end,
                _ => end.min(new),
            };
        }
    }
    end - start.min(end)
}

/// (3) Each delivery of a message has a higher fence than those that came before it was
/// asked for, and no two have the same.
pub fn fence(story: &Story<'_>) -> Result<(), Violation> {
    for ((group, place), which) in &story.by_place {
        for pair in which.windows(2) {
            let (first, second) = (&story.deliveries[pair[0]], &story.deliveries[pair[1]]);
            if second.got.fence == first.got.fence || second.to < first.from {
                let what = format!(
                    "{place:?} came to {group} with fence {}, then with {}",
                    second.got.fence, first.got.fence
                );
                return Err(Violation::at(3, "fence", second.to, what));
            }
        }
    }
    Ok(())
}

/// (3) A receipt is of no use once another delivery has followed.
pub fn stale(story: &Story<'_>) -> Result<(), Violation> {
    for settle in &story.settles {
        if settle.answer != Some(&Answer::Ok) {
            continue;
        }
        let mut later = story.deliveries_of(settle.group, &settle.got.place);
        let newer = later.find(|d| d.to < settle.from && d.got.fence > settle.got.fence && !d.auto);
        if let Some(newer) = newer {
            let what = format!(
                "{:?} of {:?} with fence {} was taken, although fence {} had come",
                settle.say, settle.got.place, settle.got.fence, newer.got.fence
            );
            return Err(Violation::at(3, "stale", settle.from, what));
        }
    }
    Ok(())
}

/// (4) What was acknowledged does not come to the group again.
pub fn finality(story: &Story<'_>) -> Result<(), Violation> {
    for settle in &story.settles {
        let is_done = matches!(settle.answer, Some(Answer::Ok | Answer::Already));
        let (true, Say::Ack, Some(to)) = (is_done, settle.say, settle.to) else { continue };
        let mut all = story.deliveries_of(settle.group, &settle.got.place);
        let again = all.find(|delivery| {
            delivery.from > to || (delivery.to > to && delivery.got.fence > settle.got.fence)
        });
        if let Some(again) = again {
            let what = format!(
                "{:?} (message {:?}) was acknowledged by {} and comes again",
                settle.got.place, settle.got.token, settle.group
            );
            return Err(Violation::at(4, "final", again.to, what));
        }
    }
    Ok(())
}

/// (6) What was given back for a time does not come before that.
pub fn early_again(story: &Story<'_>) -> Result<(), Violation> {
    for settle in &story.settles {
        let (Say::Nack(delay), Some(Answer::Ok)) = (settle.say, settle.answer) else { continue };
        let group = story.scene.group(settle.group);
        let delay = delay.unwrap_or_else(|| group.backoff_ms(settle.got.attempt));
        let shard = settle.got.shard;
        let due = story.lease_at(settle.from, shard) + delay;
        let mut all = story.deliveries_of(settle.group, &settle.got.place);
        let next = all.find(|delivery| delivery.got.fence > settle.got.fence);
        if let Some(next) = next
            && story.lease_at(next.to, shard) < due
        {
            let what = format!(
                "{:?} was given back by {} until {due}, and comes at {}",
                settle.got.place,
                settle.group,
                story.lease_at(next.to, shard)
            );
            return Err(Violation::at(6, "early", next.to, what));
        }
    }
    Ok(())
}
