//! (12), (13), (17): publish ids, positions, and publishes that are whole or absent.

use std::collections::{BTreeMap, BTreeSet};

use super::{Story, Violation};
use crate::bodies::Token;
use crate::history::Place;

/// (12) One message under one publish id: every publish of it names the same place, and
/// another message under the id is refused.
pub fn dedupe(story: &Story<'_>) -> Result<(), Violation> {
    // Ids are a topic's own.
    let mut ids: BTreeMap<(&str, &str), Token> = BTreeMap::new();
    for (token, sent) in &story.sent {
        let mut place = None;
        for sent in sent {
            let Some(Ok(put)) = sent.outcome else { continue };
            if put.kept {
                continue;
            }
            let here = (&put.id, put.partition, put.position);
            let first = *place.get_or_insert(here);
            if first.0 != here.0 || (first.2.is_some() && first.2 != here.2) {
                let what = format!("message {token} was put at {first:?}, and at {here:?}");
                return Err(Violation::at(12, "dedupe", sent.from, what));
            }
            if let Some(id) = &sent.message.dedupe
                && let Some(other) = ids.insert((sent.message.topic, id), *token)
                && other != *token
            {
                let what = format!("messages {other} and {token} were taken under id {id:?}");
                return Err(Violation::at(12, "dedupe", sent.from, what));
            }
        }
    }
    // Nobody sees a message in two places of its topic.
    let mut places: BTreeMap<Token, &Place> = BTreeMap::new();
    for delivery in &story.deliveries {
        let got = delivery.got;
        if !story.is_first_life(&got.place) {
            continue;
        }
        let Ok(token) = got.token else { continue };
        let first = *places.entry(token).or_insert(&got.place);
        if first != &got.place {
            let what = format!("message {token} is at {first:?}, and at {:?}", got.place);
            return Err(Violation::at(12, "dedupe", delivery.to, what));
        }
    }
    Ok(())
}

/// A publish: the call, the answer, and the position.
type Answered = (usize, usize, u64);

/// (13) A position holds one message, positions have no gaps, and who publishes later
/// gets a later one.
pub fn positions(story: &Story<'_>) -> Result<(), Violation> {
    let mut at: BTreeMap<Place, Token> = BTreeMap::new();
    let mut hold = |place: Place, token: Token, event: Option<usize>| {
        let first = *at.entry(place.clone()).or_insert(token);
        let what = || format!("{place:?} holds message {first}, and message {token}");
        match first == token {
            true => Ok(()),
            false => Err(Violation { promise: 13, checker: "positions", what: what(), at: event }),
        }
    };
    // Of each partition: publishes in the order of their answers.
    let mut answered: BTreeMap<(&str, u32), Vec<Answered>> = BTreeMap::new();
    for (token, sent) in &story.sent {
        for sent in sent {
            let (Some(Ok(put)), Some(to)) = (sent.outcome, sent.to) else { continue };
            let Some(position) = put.position.filter(|_| !put.kept) else { continue };
            let topic = sent.message.topic;
            let place = Place { topic: topic.into(), partition: put.partition, position };
            hold(place, *token, Some(sent.from))?;
            if !put.duplicate {
                let of = answered.entry((topic, put.partition)).or_default();
                of.push((sent.from, to, position));
            }
        }
    }
    for delivery in &story.deliveries {
        if let Ok(token) = delivery.got.token {
            hold(delivery.got.place.clone(), token, Some(delivery.to))?;
        }
    }
    for left in &story.left {
        let (head, next) = left.range;
        let found: Vec<u64> = left.messages.iter().map(|(position, _)| *position).collect();
        if found != (head..next).collect::<Vec<u64>>() {
            let what = format!(
                "{}/{} holds {head} to {next}, and has {found:?}",
                left.topic, left.partition
            );
            return Err(Violation::new(13, "positions", what));
        }
        for (position, token) in &left.messages {
            if let Ok(token) = token {
                let (topic, partition) = (left.topic.into(), left.partition);
                hold(Place { topic, partition, position: *position }, *token, None)?;
            }
        }
    }
    for ((topic, partition), mut all) in answered {
        all.sort_unstable_by_key(|(_, to, _)| *to);
        let mut ended: Vec<(usize, u64)> = Vec::new();
        all.iter().for_each(|(_, to, position)| ended.push((*to, *position)));
        for (from, _, position) in &all {
            let before = ended.iter().take_while(|(to, _)| to < from);
            let highest = before.map(|(_, position)| *position).max();
            if highest.is_some_and(|highest| highest >= *position) {
                let what =
                    format!("{topic}/{partition}: position {position} was given after {highest:?}");
                return Err(Violation::at(13, "positions", *from, what));
            }
        }
    }
    Ok(())
}

/// (17) Of what is published all or nothing, all or nothing is there.
pub fn atomic(story: &Story<'_>) -> Result<(), Violation> {
    for (call, tokens) in &story.atomic {
        // What may go by itself, and what came by another publish, proves nothing.
        let telling: BTreeSet<Token> = tokens
            .iter()
            .copied()
            .filter(|token| story.sent[token].len() == 1)
            .filter(|token| story.message(*token).is_some_and(|m| !story.may_go(m)))
            .filter(|token| is_seen_by_somebody(story, *token))
            .collect();
        let there = telling.iter().filter(|token| story.present.contains(token)).count();
        if there != 0 && there != telling.len() {
            let what = format!("of the publish of {telling:?}, {there} are there");
            let from = story.sent[&tokens[0]].iter().find(|sent| sent.call == *call);
            return Err(Violation {
                promise: 17,
                checker: "atomic",
                what,
                at: from.map(|s| s.from),
            });
        }
    }
    Ok(())
}

/// Whether a message that is there shows: some group that is not given only once gets it.
fn is_seen_by_somebody(story: &Story<'_>, token: Token) -> bool {
    let Some(message) = story.message(token) else { return false };
    story.scene.groups.iter().any(|group| !group.auto && group.passes(&message.tags))
}
