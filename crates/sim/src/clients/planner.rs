//! Planners: messages that recur, are paused, go on, and are deleted.

use std::sync::PoisonError;

use posthouse::broker::Caller;
use posthouse::broker::recurring::{RecurringPut, plan};
use posthouse_core::UnixMs;
use posthouse_core::catalog::{Missed, RecurringConfig, Recurs};
use posthouse_log::rng::Rng;

use super::{Client, Kept, draw, publisher};
use crate::bodies;
use crate::history::{Fail, Message, Recur, Rule, What};

/// How many recurring messages a run has at most.
const MOST: usize = 4;

/// Lets messages recur until the node is healed, and none after that.
pub async fn lead(client: Client, kept: Kept) {
    loop {
        let mut rng = draw(&kept, |memory| memory.rng.split());
        client.rest(&mut rng, 20, 600).await;
        let known: Vec<String> = {
            let rules = client.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
            rules.clone()
        };
        if client.is_draining() {
            for name in &known {
                change(&client, name, Recur::Delete).await;
            }
            continue;
        }
        if known.len() < MOST && rng.chance(1, 2) {
            put(&client, &mut rng).await;
        } else if !known.is_empty() {
            let name = rng.pick(&known);
            let how = *rng.pick(&[Recur::Pause, Recur::GoOn, Recur::GoOn, Recur::Delete]);
            // Most of them are to last.
            if how != Recur::Delete || rng.chance(1, 6) {
                change(&client, name, how).await;
            }
        }
    }
}

async fn put(client: &Client, rng: &mut Rng) {
    let topic = rng.pick(&client.shared.scene.topics).name;
    let mut message = publisher::fresh(client, rng, topic);
    (message.ttl_ms, message.dedupe) = (None, None);
    let name = bodies::name_of(message.token);
    let rule = Rule {
        every_ms: plan::EVERY_MIN_MS + rng.below(700),
        start_ms: client.broker.now().0 + rng.below(500),
    };
    client.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
    let history = &client.shared.history;
    let call = history.call();
    let noted = message.clone();
    history.note(client.who, What::Recur { call, name: name.clone(), message: noted, rule });
    let config = config(&message, rule);
    let put = RecurringPut { config, keep_paused: false };
    let outcome = client.broker.put_recurring(&Caller::Anyone, &name, put).await;
    let outcome = outcome.map(drop).map_err(Fail::from);
    history.note(client.who, What::Recurs { call, outcome });
}

fn config(message: &Message, rule: Rule) -> RecurringConfig {
    RecurringConfig {
        topic: message.topic.to_owned(),
        key: message.key.clone(),
        tags: message.tags.iter().map(|tag| (*tag).to_owned()).collect(),
        headers: Default::default(),
        ttl_ms: None,
        body: bodies::body(message.token, message.len),
        recurs: Recurs::Every { every_ms: rule.every_ms },
        start: Some(UnixMs(rule.start_ms)),
        end: None,
        jitter_ms: 0,
        missed: Missed::default(),
        paused: false,
    }
}

async fn change(client: &Client, name: &str, how: Recur) {
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::ChangeRecurring { call, name: name.to_owned(), how });
    let broker = &client.broker;
    let outcome = match how {
        Recur::Pause => broker.pause_recurring(&Caller::Anyone, name, true).await.map(drop),
        Recur::GoOn => broker.pause_recurring(&Caller::Anyone, name, false).await.map(drop),
        Recur::Delete => broker.delete_recurring(&Caller::Anyone, name).await,
    };
    let outcome = outcome.map_err(Fail::from);
    let is_gone = match &outcome {
        Ok(()) => how == Recur::Delete,
        Err(fail) => fail.code == "recurring_not_found",
    };
    history.note(client.who, What::Recurs { call, outcome });
    if is_gone {
        let mut rules = client.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.retain(|known| known != name);
    }
}
