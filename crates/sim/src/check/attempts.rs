//! (10), (11): attempts, dead letters, redrives.

use std::collections::{BTreeMap, BTreeSet};

use super::{Story, Violation};
use crate::bodies::Token;
use crate::history::{Answer, Place, Say};

/// (10) Attempts are counted one by one, and there are no more than the group allows.
pub fn attempts(story: &Story<'_>) -> Result<(), Violation> {
    for ((group, place), which) in &story.by_place {
        let most = story.scene.group(group).max_attempts();
        let mut last = 0;
        for (seen, at) in (0u64..).zip(which) {
            let delivery = &story.deliveries[*at];
            let attempt = delivery.got.attempt;
            let broken = |what: String| Err(Violation::at(10, "attempts", delivery.to, what));
            if attempt <= last {
                return broken(format!("{place:?} for {group}: attempt {last}, then {attempt}"));
            }
            if attempt > most {
                return broken(format!("{place:?} for {group}: attempt {attempt} of {most}"));
            }
            // Grants that nobody has seen are attempts too.
            let unseen = story.unseen(group, delivery.to);
            if u64::from(attempt) > seen + 1 + unseen {
                return broken(format!(
                    "{place:?} for {group}: attempt {attempt}, after {seen} deliveries"
                ));
            }
            last = attempt;
        }
    }
    Ok(())
}

/// (10), (11) In the end a message has come to one end in each group: it is acknowledged
/// once, or it is one dead letter.
pub fn letters(story: &Story<'_>) -> Result<(), Violation> {
    for group in story.scene.groups.iter().filter(|group| !group.auto) {
        let letters = story.letters.get(group.name).copied().unwrap_or_default();
        let mut dead: BTreeMap<Token, usize> = BTreeMap::new();
        for letter in letters {
            let Ok(token) = letter.token else {
                let what = format!("dead letter {letter:?} of {}", group.name);
                return Err(Violation::new(2, "intact", what));
            };
            *dead.entry(token).or_default() += 1;
            let expired = letter.reason == "expired";
            if !expired && letter.attempts != group.max_attempts() {
                let what = format!("{letter:?} of {} after fewer attempts", group.name);
                return Err(Violation::new(10, "attempts", what));
            }
        }
        // Places of each message in which it was acknowledged for certain.
        let mut done: BTreeMap<Token, BTreeSet<&Place>> = BTreeMap::new();
        for settle in story.settles.iter().filter(|settle| settle.group == group.name) {
            // What became a letter is done with too, and answered so.
            let is_done = settle.answer == Some(&Answer::Ok);
            if let (Ok(token), Say::Ack, true) = (&settle.got.token, settle.say, is_done) {
                done.entry(*token).or_default().insert(&settle.got.place);
            }
        }
        for (token, count) in &dead {
            if *count > 1 {
                let what = format!("message {token} is {count} dead letters of {}", group.name);
                return Err(Violation::new(10, "attempts", what));
            }
            if let Some(place) = done.get(token).and_then(|places| places.first()) {
                let what = format!(
                    "message {token} was acknowledged at {place:?}, and is a dead letter of {}",
                    group.name
                );
                return Err(Violation::new(10, "attempts", what));
            }
        }
        for (token, places) in &done {
            if places.len() > 1 {
                let what = format!(
                    "message {token} was acknowledged by {} in {} lives: {places:?}",
                    group.name,
                    places.len()
                );
                return Err(Violation::new(11, "redrive", what));
            }
        }
    }
    Ok(())
}
