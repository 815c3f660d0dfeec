//! (9): order per key.

use std::collections::BTreeMap;

use super::story::Delivery;
use super::{Story, Violation};
use crate::history::Say;

/// (9) In a group that keeps the order of keys, a message comes when those before it are
/// done with.
pub fn order(story: &Story<'_>) -> Result<(), Violation> {
    for group in story.scene.groups.iter().filter(|group| group.keyed) {
        // Of each key in a partition: its messages, by position.
        let mut lines: BTreeMap<(&str, u32, &str), BTreeMap<u64, &Delivery<'_>>> = BTreeMap::new();
        let all = || story.deliveries.iter().filter(|delivery| delivery.group == group.name);
        for delivery in all() {
            let got = delivery.got;
            let Some(key) = &got.parts.0 else { continue };
            let line = (&*got.place.topic, got.place.partition, key.as_str());
            lines.entry(line).or_default().entry(got.place.position).or_insert(delivery);
        }
        for delivery in all() {
            let got = delivery.got;
            let Some(key) = &got.parts.0 else { continue };
            let line = &lines[&(&*got.place.topic, got.place.partition, key.as_str())];
            for (position, earlier) in line.range(..got.place.position) {
                if is_over(story, group.name, earlier, delivery.to, group.max_attempts()) {
                    continue;
                }
                let what = format!(
                    "{:?} of key {key} comes before {position} of it is done with",
                    got.place
                );
                return Err(Violation::at(9, "order", delivery.to, what));
            }
        }
    }
    Ok(())
}

/// Whether a message may be over for the group when `at` happens.
fn is_over(
    story: &Story<'_>,
    group: &'static str,
    first: &Delivery<'_>,
    at: usize,
    max_attempts: u16,
) -> bool {
    let place = &first.got.place;
    let mut settles = story.settles_of(group, place);
    if settles.any(|settle| settle.from < at && *settle.say == Say::Ack) {
        return true;
    }
    let message = first.got.token.as_ref().ok().and_then(|token| story.message(*token));
    if message.is_none_or(|message| story.may_go(message)) {
        return true;
    }
    // Grants that nobody has seen count as attempts.
    let unseen = story.unseen(group, at);
    let seen = story.deliveries_of(group, place).filter(|delivery| delivery.to < at);
    let attempts = seen.map(|delivery| u64::from(delivery.got.attempt)).max().unwrap_or(0);
    attempts + unseen >= u64::from(max_attempts)
}
