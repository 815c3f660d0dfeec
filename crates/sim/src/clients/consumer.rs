//! Consumers: diligent, forgetful, late, and those who never come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use posthouse::broker::consume::{Outcome, Receive, Received, Verdict};
use posthouse::broker::{Broker, Caller};
use posthouse_log::rng::Rng;

use super::{Client, Kept, draw};
use crate::bodies;
use crate::history::{Answer, Fail, Got, Place, Say, What};
use crate::plan::Part;

/// Consumes as long as the node runs.
pub async fn lead(client: Client, kept: Kept, group: usize) {
    // What is answered when the lease has ended.
    let mut late: Vec<Got> = Vec::new();
    loop {
        let mut rng = draw(&kept, |memory| memory.rng.split());
        client.rest(&mut rng, 1, 40).await;
        if client.is_draining() {
            drain(&client, group).await;
            continue;
        }
        let got = receive(&client, group, &mut rng).await;
        if client.has(Part::Vanish) && rng.chance(1, 12) {
            client.rest(&mut rng, 1, 300).await;
            continue;
        }
        if !late.is_empty() && rng.chance(1, 4) {
            settle(&client, group, late.drain(..).map(|got| (got, Say::Ack)).collect()).await;
        }
        let (mut now, mut then) = (Vec::new(), Vec::new());
        for got in got {
            match choose(&client, &mut rng) {
                Choice::Say(say) => now.push((got, say)),
                Choice::Extend(ms) => {
                    now.push((got.clone(), Say::Extend(ms)));
                    then.push((got, Say::Ack));
                }
                Choice::Late => late.push(got),
                Choice::Forget => {}
            }
        }
        if rng.chance(1, 3) {
            client.rest(&mut rng, 1, 120).await;
        }
        settle(&client, group, now).await;
        if !then.is_empty() {
            client.rest(&mut rng, 1, 200).await;
            settle(&client, group, then).await;
        }
    }
}

enum Choice {
    Say(Say),
    Extend(u64),
    Late,
    Forget,
}

fn choose(client: &Client, rng: &mut Rng) -> Choice {
    let roll = rng.below(100);
    match roll {
        0..20 if client.has(Part::Nacks) => {
            Choice::Say(Say::Nack(rng.chance(1, 2).then(|| rng.below(400))))
        }
        20..28 if client.has(Part::Extends) => Choice::Extend(100 + rng.below(900)),
        28..36 if client.has(Part::Late) => Choice::Late,
        36..42 if client.has(Part::Vanish) => Choice::Forget,
        _ => Choice::Say(Say::Ack),
    }
}

/// Takes everything, and is done with it.
async fn drain(client: &Client, group: usize) {
    let of = &client.shared.scene.groups[group];
    let ask = Receive {
        max: 50,
        wait: Duration::from_millis(200),
        auto_ack: of.auto,
        consumer: format!("c{}", client.who),
        ..Receive::default()
    };
    let got = ask_for(client, of.name, ask, of.patch.lease_ms.unwrap_or(30_000)).await;
    if !of.auto {
        settle(client, group, got.into_iter().map(|got| (got, Say::Ack)).collect()).await;
    }
}

async fn receive(client: &Client, group: usize, rng: &mut Rng) -> Vec<Got> {
    let of = &client.shared.scene.groups[group];
    let lease_ms = rng.chance(1, 2).then(|| 100 + rng.below(600));
    let ask = Receive {
        max: 1 + rng.below(6) as usize,
        max_bytes: if rng.chance(1, 8) { 300 } else { 1 << 20 },
        wait: Duration::from_millis(if rng.chance(1, 3) { 0 } else { rng.below(300) }),
        lease_ms,
        topic: rng.chance(1, 10).then(|| rng.pick(&client.shared.scene.topics).name.to_owned()),
        auto_ack: of.auto,
        consumer: format!("c{}", client.who),
        ..Receive::default()
    };
    let lease_ms = lease_ms.or(of.patch.lease_ms).unwrap_or(30_000);
    ask_for(client, of.name, ask, lease_ms).await
}

async fn ask_for(client: &Client, group: &'static str, ask: Receive, lease_ms: u64) -> Vec<Got> {
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::Receive { call, group, lease_ms, auto: ask.auto_ack });
    let outcome = client.broker.receive(&Caller::Anyone, group, &ask).await;
    let outcome = outcome.map_err(Fail::from).map(|received| {
        received.iter().map(|received| got(&client.broker, received)).collect::<Vec<Got>>()
    });
    let got = outcome.clone().unwrap_or_default();
    if client.is_draining() {
        client.shared.drained.fetch_add(got.len() as u64, Ordering::Relaxed);
    }
    history.note(client.who, What::Received { call, group, outcome });
    got
}

fn got(_broker: &Arc<Broker>, received: &Received) -> Got {
    let shard = received.topic.partitions.get(received.partition as usize);
    let place = Place {
        topic: received.topic.name.clone(),
        partition: received.partition,
        position: received.position,
    };
    let mut got = Got {
        place,
        shard: shard.map_or(0, |partition| usize::from(partition.shard.0)),
        id: received.id.to_string(),
        receipt: received.receipt.clone(),
        attempt: received.attempt,
        fence: received.fence,
        token: Err("its parts cannot be read".into()),
        parts: Default::default(),
        origin: None,
    };
    if let Ok((parts, payload)) = received.parts() {
        got.token = bodies::token_with(&parts, &payload);
        got.parts = (
            parts.key.map(str::to_owned),
            parts.tags.iter().map(|tag| (*tag).to_owned()).collect(),
            parts.dedupe_id.map(str::to_owned),
            payload.len(),
        );
        got.origin = parts.origin.as_ref().map(|origin| Place {
            topic: origin.topic.into(),
            partition: origin.partition,
            position: origin.position,
        });
    }
    got
}

async fn settle(client: &Client, group: usize, items: Vec<(Got, Say)>) {
    let items: Vec<(Got, Say)> =
        items.into_iter().filter(|(got, _)| !got.receipt.is_empty()).collect();
    if items.is_empty() {
        return;
    }
    let group = client.shared.scene.groups[group].name;
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::Settle { call, group, items: items.clone() });
    let said = items.into_iter().map(|(got, say)| {
        let verdict = match say {
            Say::Ack => Verdict::Ack,
            Say::Nack(delay_ms) => Verdict::Nack { delay_ms, reason: "not now".into() },
            Say::Extend(ms) => Verdict::Extend { lease_ms: Some(ms) },
        };
        (got.receipt, verdict)
    });
    let outcome = client.broker.settle(&Caller::Anyone, group, said.collect()).await;
    let outcome = outcome.map_err(Fail::from).map(|outcomes| {
        let answer = |outcome| match outcome {
            Outcome::Ok => Answer::Ok,
            Outcome::Already => Answer::Already,
            Outcome::Stale(_) => Answer::Stale,
            Outcome::Invalid(_) => Answer::Invalid,
        };
        outcomes.into_iter().map(answer).collect()
    });
    history.note(client.who, What::Settled { call, outcome });
}
