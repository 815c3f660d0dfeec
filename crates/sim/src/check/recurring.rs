//! (12): messages that recur: each time of one comes once.

use std::collections::{BTreeMap, BTreeSet};

use posthouse::broker::recurring::plan;

use super::story::Recurring;
use super::{Story, Violation};
use crate::bodies::{self, Token};
use crate::history::{Place, Recur};

fn broken(at: usize, what: String) -> Violation {
    Violation::at(12, "recurring", at, what)
}

/// (12) What recurs comes at the times that its rule says, once at each, not early, and
/// not while it is paused.
pub fn recurring(story: &Story<'_>) -> Result<(), Violation> {
    let mut places: BTreeMap<Token, &Place> = BTreeMap::new();
    for delivery in &story.deliveries {
        let Ok(token) = delivery.got.token else { continue };
        let Some((of, at)) = bodies::time_of(token) else { continue };
        let Some(recurring) = story.recurring.get(&of) else {
            return Err(broken(delivery.to, format!("message {of} recurs, and nobody wants it")));
        };
        let rule = recurring.rule;
        if at < rule.start_ms || !(at - rule.start_ms).is_multiple_of(rule.every_ms) {
            return Err(broken(delivery.to, format!("message {of} comes for {at}: {rule:?}")));
        }
        let now = story.wall_at(delivery.to, delivery.got.shard);
        if now < at {
            return Err(broken(delivery.to, format!("message {of} comes for {at} at {now}")));
        }
        if is_off(story, recurring, at, delivery.to) {
            return Err(broken(delivery.to, format!("message {of} comes for {at}, and was off")));
        }
        if !story.is_first_life(&delivery.got.place) {
            continue;
        }
        let first = *places.entry(token).or_insert(&delivery.got.place);
        if first != &delivery.got.place {
            let what =
                format!("message {of} for {at} is at {first:?} and at {:?}", delivery.got.place);
            return Err(broken(delivery.to, what));
        }
    }
    Ok(())
}

/// Whether the message had been paused or deleted for certain, before that time, when it
/// came.
fn is_off(story: &Story<'_>, recurring: &Recurring<'_>, at: u64, came: usize) -> bool {
    let mut off: Option<u64> = None;
    for (_, to, how, done) in recurring.changes.iter().filter(|(from, ..)| *from < came) {
        match (how, done, to) {
            (Recur::GoOn, Some(false), _) => {}
            (Recur::GoOn, ..) => off = None,
            (_, Some(true), Some(to)) => off = off.or(Some(story.wall_most(*to))),
            _ => {}
        }
    }
    off.is_some_and(|off| off < at)
}

/// (12) Nothing is left out of a message before it is paused or deleted, unless so much time passed
/// at once that it counts as missed.
pub fn complete(story: &Story<'_>) -> Result<(), Violation> {
    let mut times: BTreeMap<Token, BTreeSet<u64>> = BTreeMap::new();
    for token in &story.present {
        if let Some((of, at)) = bodies::time_of(*token) {
            times.entry(of).or_default().insert(at);
        }
    }
    // What is late by so much may be missed: jumps of the clock, and waits for it.
    let mut jumps = Vec::new();
    for pair in story.events.windows(2) {
        for (before, after) in pair[0].seen.iter().zip(pair[1].seen.iter()) {
            if after.wall.since(before.wall) > plan::LATE_MS / 4 {
                jumps.push((before.wall.0, after.wall.0));
            }
        }
    }
    for (of, times) in times {
        let Some(recurring) = story.recurring.get(&of) else { continue };
        let rule = recurring.rule;
        let is_lossy = story.scene.topic(recurring.message.topic).is_none_or(|topic| topic.lossy);
        if is_lossy {
            continue;
        }
        // Whoever changes it may be heard later, and is heard before what is late.
        let change = recurring.changes.iter().map(|(from, ..)| *from).min();
        let until = change
            .map_or(u64::MAX, |from| story.wall_least(from).saturating_sub(plan::LATE_MS / 4));
        let (Some(first), Some(last)) = (times.first(), times.last()) else { continue };
        let all = (*first..*last).step_by(rule.every_ms as usize);
        for at in all.filter(|at| *at < until && !times.contains(at)) {
            let near =
                |(from, to): &(u64, u64)| at + plan::LATE_MS >= *from && at <= *to + plan::LATE_MS;
            if !jumps.iter().any(near) {
                let what = format!("message {of} came before {at} and after, and not then");
                return Err(broken(recurring.from, what));
            }
        }
    }
    Ok(())
}
