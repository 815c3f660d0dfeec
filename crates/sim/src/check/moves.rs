//! (6), (7): messages that come later: not early, and not when they were called back.

use posthouse_core::queue::command::Shift;
use posthouse_core::record::When;

use super::story::Move;
use super::{Story, Violation};
use crate::history::Change;

/// (6) Nothing comes before it is due.
pub fn early(story: &Story<'_>) -> Result<(), Violation> {
    for delivery in &story.deliveries {
        let Ok(token) = delivery.got.token else { continue };
        let Some(sent) = story.sent.get(&token).and_then(|sent| sent.first()) else { continue };
        let Some((when, ..)) = &sent.message.later else { continue };
        let shard = delivery.got.shard;
        // Which of several commits it was nobody may know.
        let commits = story.deals.commits_of(sent.call);
        let from = commits.iter().chain(commits.is_empty().then_some(&sent.from));
        let due = from.map(|from| due_of(story, *from, shard, Shift::To(*when))).min();
        let mut due = due.unwrap_or(0);
        if let Some(Ok(put)) = sent.outcome {
            due = put.due.unwrap_or(due);
        }
        // What is known to hold when it came; where several may, the earliest.
        for change in story.moves.get(&token).into_iter().flatten() {
            let Some(shift) = change.shift.filter(|_| change.from < delivery.to) else { continue };
            due = match (change.answer, change.to) {
                (Some(Change::Done(new)), Some(to)) if to < delivery.from => {
                    match overlaps(story, token, change) {
                        true => due.min(*new),
                        false => *new,
                    }
                }
                (Some(Change::Done(new)), _) => due.min(*new),
                (Some(_), _) => due,
                (None, _) => match shift {
                    Shift::By(ms) => due.min(due.saturating_add_signed(ms)),
                    shift => due.min(due_of(story, change.from, shard, shift)),
                },
            };
        }
        let now = story.wall_at(delivery.to, shard);
        if now < due {
            let what = format!("message {token} is due at {due}, and comes at {now}");
            return Err(Violation::at(6, "early", delivery.to, what));
        }
    }
    Ok(())
}

fn due_of(story: &Story<'_>, from: usize, shard: usize, shift: Shift) -> u64 {
    match shift {
        Shift::To(When::At(at)) => at.0,
        Shift::To(When::After(ms)) => story.wall_at(from, shard) + ms,
        Shift::By(_) => 0,
    }
}

/// Whether somebody else changed the message at the same time.
fn overlaps(story: &Story<'_>, token: u64, change: &Move<'_>) -> bool {
    let moves = story.moves.get(&token).into_iter().flatten();
    moves.filter(|other| other.from != change.from).any(|other| {
        let begun = other.from < change.to.unwrap_or(usize::MAX);
        begun && other.to.is_none_or(|to| to > change.from)
    })
}

/// (7) A message that was called back never comes; one that has come cannot be called
/// back; and who is told that it has come is told where.
pub fn moves(story: &Story<'_>) -> Result<(), Violation> {
    for (token, moves) in &story.moves {
        let deliveries = || story.deliveries_with(*token);
        let first = deliveries().map(|delivery| delivery.to).min();
        for change in moves {
            let broken = |what: String| Violation::at(7, "moves", change.from, what);
            match (change.answer, change.shift) {
                (Some(Change::Done(_)), None) => {
                    if let Some(came) = first {
                        let what = format!("message {token} was called back, and came [{came}]");
                        return Err(broken(what));
                    }
                }
                (Some(Change::Done(_)), Some(_))
                    if first.is_some_and(|came| came < change.from) =>
                {
                    return Err(broken(format!("message {token} was moved after it came")));
                }
                (Some(Change::Cancelled), _) => {
                    let called_back = moves.iter().any(|other| {
                        other.shift.is_none()
                            && other.from <= change.to.unwrap_or(usize::MAX)
                            && matches!(other.answer, None | Some(Change::Done(_)))
                    });
                    let replaced = story.message(*token).is_some_and(|m| story.may_be_replaced(m));
                    if !called_back && !replaced {
                        let what = format!("nobody has called message {token} back");
                        return Err(broken(what));
                    }
                }
                (Some(Change::Fired(partition, position)), _) => {
                    let mut elsewhere = deliveries().filter(|delivery| {
                        let place = &delivery.got.place;
                        story.is_first_life(place)
                            && (place.partition, place.position) != (*partition, *position)
                    });
                    if let Some(other) = elsewhere.next() {
                        let what = format!(
                            "message {token} is said to be at {partition}/{position}, and is at \
                             {:?}",
                            other.got.place
                        );
                        return Err(broken(what));
                    }
                }
                _ => {}
            }
        }
        // Two orders that contradict each other.
        let ok = |change: &&Move<'_>| matches!(change.answer, Some(Change::Done(_)));
        if let Some(cancel) = moves.iter().filter(ok).find(|change| change.shift.is_none()) {
            let after = moves
                .iter()
                .filter(ok)
                .find(|change| change.from > cancel.to.unwrap_or(usize::MAX));
            if let Some(after) = after {
                let what = format!("message {token} was called back, and changed after that");
                return Err(Violation::at(7, "moves", after.from, what));
            }
        }
    }
    Ok(())
}
