//! Schedulers: messages that come later, are moved and are called back.

use std::sync::PoisonError;

use posthouse::broker::Caller;
use posthouse::broker::schedule::{Changed, Target};
use posthouse_core::UnixMs;
use posthouse_core::queue::command::Shift;
use posthouse_core::record::{NameTaken, When};
use posthouse_log::rng::Rng;

use super::{Client, Kept, draw, publisher};
use crate::bodies::Token;
use crate::history::{Change, Fail, What};

/// A message that may still be to come.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Which.
    pub token: Token,
    /// Its id.
    pub id: String,
    /// Its topic and name.
    pub name: Option<(&'static str, String)>,
}

/// The furthest that a message is scheduled in a run, in milliseconds.
pub const FURTHEST_MS: u64 = 4_000;

/// Schedules until the node is healed.
pub async fn lead(client: Client, kept: Kept) {
    loop {
        let mut rng = draw(&kept, |memory| memory.rng.split());
        client.rest(&mut rng, 1, 60).await;
        if client.is_draining() {
            return;
        }
        match rng.below(5) {
            0..3 => schedule(&client, &mut rng).await,
            _ => change(&client, &mut rng).await,
        }
    }
}

fn when(client: &Client, rng: &mut Rng) -> When {
    let ms = if rng.chance(1, 2) { rng.below(300) } else { rng.below(FURTHEST_MS) };
    match rng.chance(1, 2) {
        true => When::After(ms),
        false => When::At(UnixMs(client.broker.now().0 + ms)),
    }
}

async fn schedule(client: &Client, rng: &mut Rng) {
    let topic = rng.pick(&client.shared.scene.topics).name;
    let mut message = publisher::fresh(client, rng, topic);
    message.ttl_ms = None;
    let name = rng.chance(1, 2).then(|| format!("n{}", rng.below(12)));
    let taken = *rng.pick(&[NameTaken::Replace, NameTaken::Keep, NameTaken::Refuse]);
    message.later = Some((when(client, rng), name.clone(), taken));
    let token = message.token;
    let Some(puts) = publisher::publish(client, vec![message], rng.chance(1, 2)).await else {
        return;
    };
    if let Some(put) = puts.first().filter(|put| !put.kept) {
        let name = name.map(|name| (topic, name));
        let pending = Pending { token, id: put.id.clone(), name };
        let mut all = client.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(pending);
    }
}

async fn change(client: &Client, rng: &mut Rng) {
    let chosen: Vec<Pending> = {
        let all = client.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return;
        }
        let one = |rng: &mut Rng| {
            let back = rng.below(10.min(all.len() as u64)) as usize;
            all[all.len() - 1 - back].clone()
        };
        let mut chosen: Vec<Pending> = Vec::new();
        for _ in 0..1 + rng.below(3) {
            let pending = one(rng);
            if chosen.iter().all(|known| known.token != pending.token) {
                chosen.push(pending);
            }
        }
        chosen
    };
    let cancels = rng.chance(1, 2);
    let items: Vec<(Token, Target, Option<Shift>)> = chosen
        .into_iter()
        .map(|pending| {
            let shift = match rng.below(3) {
                0 => Shift::By(rng.below(1000) as i64 - 300),
                _ => Shift::To(when(client, rng)),
            };
            (pending.token, Target::Id(pending.id), (!cancels).then_some(shift))
        })
        .collect();
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::Move { call, items: items.clone() });
    let outcome = match cancels {
        true => {
            let targets = items.into_iter().map(|(_, target, _)| target).collect();
            client.broker.cancel(&Caller::Anyone, targets).await
        }
        false => {
            let shifts =
                items.into_iter().filter_map(|(_, target, shift)| Some((target, shift?))).collect();
            client.broker.reschedule(&Caller::Anyone, shifts).await
        }
    };
    let outcome = outcome.map_err(Fail::from).map(|all| all.into_iter().map(changed).collect());
    history.note(client.who, What::Moved { call, outcome });
}

fn changed(changed: Changed) -> Change {
    match changed {
        Changed::Done { due, .. } => Change::Done(due.0),
        Changed::Fired { partition, position, .. } => Change::Fired(partition, position),
        Changed::Cancelled { .. } => Change::Cancelled,
        Changed::Unknown => Change::Unknown,
        Changed::Refused(problem) => Change::Refused(problem.code),
        Changed::Held { .. } => Change::Refused("held"),
    }
}
