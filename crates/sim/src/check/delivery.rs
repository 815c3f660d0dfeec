//! (1), (2), (5): nothing is lost, and nothing comes from nowhere.

use super::{Story, Violation};
use crate::history::{Answer, Say};

/// (2) What is delivered was published, to this topic, and is as it was.
pub fn intact(story: &Story<'_>) -> Result<(), Violation> {
    for delivery in &story.deliveries {
        let got = delivery.got;
        let broken = |what: String| Violation::at(2, "intact", delivery.to, what);
        let token = match &got.token {
            Ok(token) => *token,
            Err(what) => return Err(broken(format!("{what}, at {:?}", got.place))),
        };
        let Some(sent) = story.sent.get(&token) else {
            return Err(broken(format!("message {token} was never published")));
        };
        if sent.iter().all(|sent| sent.from > delivery.to) {
            return Err(broken(format!("message {token} came before it was published")));
        }
        if sent.iter().all(|sent| matches!(sent.outcome, Some(Err(_)))) {
            return Err(broken(format!("message {token} was refused, and is delivered")));
        }
        let message = sent[0].message;
        let meant = (
            message.key.clone(),
            message.tags.iter().map(|tag| (*tag).to_owned()).collect(),
            message.dedupe.clone(),
            message.len.max(8),
        );
        if got.parts != meant {
            return Err(broken(format!("message {token} has {:?}, not {meant:?}", got.parts)));
        }
        let origin = got.origin.as_ref().unwrap_or(&got.place);
        if &*origin.topic != message.topic {
            return Err(broken(format!("message {token} comes from {origin:?}")));
        }
        let group = story.scene.group(delivery.group);
        if !group.passes(&message.tags) {
            let tags = &message.tags;
            return Err(broken(format!("group {} gets tags {tags:?}", group.name)));
        }
    }
    for left in &story.left {
        for (position, token) in &left.messages {
            let place = format!("{}/{} at {position}", left.topic, left.partition);
            let broken = |what: String| Violation::new(2, "intact", format!("{what}, in {place}"));
            let token = token.as_ref().map_err(|what| broken(what.clone()))?;
            let is_refused = |sent: &super::story::Sent<'_>| matches!(sent.outcome, Some(Err(_)));
            match story.sent.get(token) {
                None => return Err(broken(format!("message {token} was never published"))),
                Some(sent) if sent.iter().all(is_refused) => {
                    return Err(broken(format!("message {token} was refused, and is there")));
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// (1), (5) What was acknowledged to its publisher, or has shown itself to anybody, has
/// come to every group, and to an end there.
pub fn loss(story: &Story<'_>) -> Result<(), Violation> {
    for (token, sent) in &story.sent {
        let message = sent[0].message;
        let put = sent.iter().find(|sent| matches!(sent.outcome, Some(Ok(put)) if !put.kept));
        if (put.is_none() && !story.present.contains(token)) || story.may_go(message) {
            continue;
        }
        for group in &story.scene.groups {
            if !group.passes(&message.tags) {
                continue;
            }
            let of_group =
                || story.deliveries_with(*token).filter(|delivery| delivery.group == group.name);
            if group.auto {
                let lost = story.unseen(group.name, usize::MAX);
                if of_group().next().is_none() && lost == 0 {
                    let what = format!("message {token} never came to group {}", group.name);
                    return Err(Violation::new(1, "loss", what));
                }
                continue;
            }
            let is_done = story.settles.iter().any(|settle| {
                settle.group == group.name
                    && settle.got.token == Ok(*token)
                    && *settle.say == Say::Ack
                    && matches!(settle.answer, None | Some(Answer::Ok | Answer::Already))
            });
            let letters = story.letters.get(group.name).copied().unwrap_or_default();
            let is_dead = letters.iter().any(|letter| letter.token == Ok(*token));
            if is_done || is_dead {
                continue;
            }
            let seen = of_group().count();
            let what = match seen {
                0 => format!("message {token} never came to group {}", group.name),
                _ => format!(
                    "message {token} came to group {} {seen} times, was not acknowledged, and \
                     came no more",
                    group.name
                ),
            };
            let (promise, checker) = if seen == 0 { (1, "loss") } else { (5, "again") };
            return Err(Violation { promise, checker, what, at: put.map(|sent| sent.from) });
        }
    }
    Ok(())
}
