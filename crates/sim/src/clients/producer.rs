//! Producers of transactions: they prepare, commit and roll back, at once or late, twice
//! or against each other, or die and leave it to whoever answers under their name.

use std::sync::PoisonError;
use std::time::Duration;

use posthouse::broker::Caller;
use posthouse::broker::transact::{self, AskChecks, Listing, Transaction};
use posthouse::problem::Problem;
use posthouse_core::record::{NameTaken, When};
use posthouse_log::rng::Rng;

use super::{Client, Kept, Memory, draw, publisher};
use crate::bodies;
use crate::history::{Check, Fail, Held, Message, Put, Ruling, Terms, What};

/// The names that producers go by. Both answer to the first; nobody to the last.
const NAMES: [&str; 4] = ["office", "office", "office", "gone"];

/// The most milliseconds until a transaction's first check.
const CHECK_AFTER_MS: u64 = 400;

/// A transaction that may be prepared again.
#[derive(Clone, Debug)]
pub struct Deal {
    number: u64,
    messages: Vec<Message>,
    terms: Terms,
}

impl Client {
    /// Somebody may decide about the transaction, or ask for it.
    fn knows(&self, id: &str) {
        let deals = &self.shared.deals;
        deals.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }
}

/// Prepares and decides until the node is healed.
pub async fn lead(client: Client, kept: Kept) {
    loop {
        let mut rng = draw(&kept, |memory| memory.rng.split());
        client.rest(&mut rng, 1, 120).await;
        if client.is_draining() {
            return;
        }
        match rng.below(10) {
            0..5 => prepare(&client, &kept, &mut rng).await,
            5..8 => answer_checks(&client, &mut rng).await,
            8 => decide_some(&client, &mut rng).await,
            _ => decide_parked(&client, &mut rng).await,
        }
    }
}

async fn prepare(client: &Client, kept: &Kept, rng: &mut Rng) {
    let deal = draw(kept, |memory| choose(client, memory, rng));
    let history = &client.shared.history;
    let call = history.call();
    let Deal { number, messages, terms } = deal.clone();
    history.note(client.who, What::Prepare { call, number, messages, terms });
    let outcome = try_prepare(client, &deal).await.map_err(Fail::from);
    let held = outcome.as_ref().ok().cloned();
    history.note(client.who, What::Prepared { call, outcome });
    let Some(Held { id, .. }) = held else { return };
    client.knows(&id);
    let commit = rng.chance(3, 5);
    match rng.below(10) {
        0..4 => decide(client, &id, commit).await,
        4..6 => {
            client.rest(rng, 1, 900).await;
            decide(client, &id, commit).await;
        }
        6 => {
            decide(client, &id, commit).await;
            decide(client, &id, rng.chance(1, 2)).await;
        }
        7 => drop(tokio::join!(decide(client, &id, commit), decide(client, &id, !commit))),
        // It dies.
        _ => {}
    }
}

fn choose(client: &Client, memory: &mut Memory, rng: &mut Rng) -> Deal {
    if !memory.deals.is_empty() && rng.chance(1, 4) {
        let back = rng.below(3.min(memory.deals.len() as u64)) as usize;
        return memory.deals[memory.deals.len() - 1 - back].clone();
    }
    let topics = &client.shared.scene.topics;
    // All of it goes to one shard.
    let one_shard = client.shared.plan.shards == 1;
    let (topic, key) = (rng.pick(topics).name, publisher::key(client, rng));
    let mut messages = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let topic = if one_shard { rng.pick(topics).name } else { topic };
        let mut message = publisher::fresh(client, rng, topic);
        if !one_shard {
            message.key = key.clone();
        }
        if rng.chance(1, 4) {
            message.later = Some((When::After(rng.below(600)), None, NameTaken::Replace));
            message.ttl_ms = None;
        }
        messages.push(message);
    }
    let number = messages[0].token;
    let is_known = rng.chance(1, 2);
    let producer = *rng.pick(&NAMES);
    let terms = Terms {
        producer,
        check_after_ms: 100 + rng.below(CHECK_AFTER_MS - 99),
        checks: rng.below(4) as u16,
        dedupe: is_known.then(|| format!("deal-{number}")),
    };
    let deal = Deal { number, messages, terms };
    if is_known {
        memory.deals.push(deal.clone());
    }
    deal
}

async fn try_prepare(client: &Client, deal: &Deal) -> Result<Held, Problem> {
    let outbox = publisher::outbox(client, &deal.messages, false).await?;
    let terms = transact::Terms {
        producer: deal.terms.producer.to_owned(),
        check_after_ms: Some(deal.terms.check_after_ms),
        checks: Some(deal.terms.checks),
        dedupe_id: deal.terms.dedupe.clone(),
    };
    let (transaction, duplicate) = client.broker.prepare(outbox, &terms).await?;
    let ids = transaction.parts.iter().map(|part| part.id.to_string()).collect();
    let (id, state) = (transaction.id.to_string(), transaction.state);
    Ok(Held { id, state, duplicate, ids })
}

/// How a transaction is.
pub fn ruling(of: &Transaction, late: bool) -> Ruling {
    let put = |part: &transact::Part| Put {
        id: part.id.to_string(),
        partition: part.partition,
        position: part.position,
        due: part.due.map(|due| due.0),
        duplicate: late,
        kept: false,
    };
    let puts = of.parts.iter().map(put).collect();
    Ruling { state: of.state, late, checks: (of.checks, of.most_checks), puts }
}

async fn decide(client: &Client, id: &str, commit: bool) {
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::Decide { call, id: id.to_owned(), commit });
    let outcome = match commit {
        true => client.broker.commit(&Caller::Anyone, id).await,
        false => client.broker.rollback(&Caller::Anyone, id).await,
    };
    let outcome = outcome.map(|ended| ruling(&ended.transaction, ended.is_late));
    let outcome = outcome.map_err(Fail::from);
    history.note(client.who, What::Decided { call, outcome });
}

/// Answers what is asked of its name, whoever prepared it.
async fn answer_checks(client: &Client, rng: &mut Rng) {
    let history = &client.shared.history;
    let call = history.call();
    let producer = NAMES[0];
    history.note(client.who, What::AskChecks { call, producer });
    let ask = AskChecks {
        producer: producer.to_owned(),
        topic: rng.chance(1, 4).then(|| rng.pick(&client.shared.scene.topics).name.to_owned()),
        max: 1 + rng.below(4) as usize,
        wait: Duration::from_millis(if rng.chance(1, 2) { 0 } else { rng.below(800) }),
    };
    let outcome = client.broker.checks(&Caller::Anyone, &ask).await.map_err(Fail::from);
    let outcome = outcome.map(|checks| checks.iter().map(asked).collect::<Vec<Check>>());
    let checks = outcome.clone().unwrap_or_default();
    history.note(client.who, What::Asked { call, outcome });
    for check in checks {
        client.knows(&check.id);
        match rng.below(10) {
            0..4 => decide(client, &check.id, true).await,
            4..6 => decide(client, &check.id, false).await,
            // It does not know yet, or dies.
            _ => {}
        }
    }
}

fn asked(check: &transact::Check) -> Check {
    let first = check.message.as_ref().and_then(|message| message.parts().ok());
    Check {
        id: check.transaction.id.to_string(),
        check: (check.check, check.transaction.most_checks),
        token: first.and_then(|(_, payload)| bodies::token_of(&payload).ok()),
    }
}

/// Decides about something that may have been decided long ago.
async fn decide_some(client: &Client, rng: &mut Rng) {
    let id = {
        let deals = client.shared.deals.lock().unwrap_or_else(PoisonError::into_inner);
        if deals.is_empty() {
            return;
        }
        let back = rng.below(20.min(deals.len() as u64)) as usize;
        deals[deals.len() - 1 - back].clone()
    };
    decide(client, &id, rng.chance(1, 2)).await;
}

/// Decides about something that nobody is asked about any more.
async fn decide_parked(client: &Client, rng: &mut Rng) {
    let listing = Listing { is_parked: Some(true), limit: 20, ..Listing::default() };
    let Ok((parked, _)) = client.broker.transactions(&Caller::Anyone, &listing).await else {
        return;
    };
    if !parked.is_empty() {
        let id = rng.pick(&parked).id.to_string();
        client.knows(&id);
        decide(client, &id, rng.chance(1, 2)).await;
    }
}
