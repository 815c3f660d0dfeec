//! Publishers: with publish ids and without, with keys and without, one message or
//! several.

use posthouse::broker::Caller;
use posthouse::broker::publish::Outbox;
use posthouse::problem::Problem;
use posthouse_core::message::Parts;
use posthouse_core::record::NameTaken;
use posthouse_log::rng::Rng;

use super::{Client, Kept, Memory, draw};
use crate::bodies;
use crate::history::{Fail, Message, Put, What};
use crate::plan::Part;
use crate::scene::TAGS;

/// Publishes until the node is healed.
pub async fn lead(client: Client, kept: Kept) {
    loop {
        let mut rng = draw(&kept, |memory| memory.rng.split());
        client.rest(&mut rng, 1, 60).await;
        if client.is_draining() {
            return;
        }
        let apart = rng.chance(1, 3);
        let messages = draw(&kept, |memory| choose(&client, memory, &mut rng, apart));
        publish(&client, messages, apart).await;
    }
}

fn choose(client: &Client, memory: &mut Memory, rng: &mut Rng, apart: bool) -> Vec<Message> {
    let count = if client.has(Part::Batches) && rng.chance(1, 2) { 1 + rng.below(5) } else { 1 };
    // What is all or nothing goes to one shard.
    let one_shard = client.shared.plan.shards == 1;
    let key = key(client, rng);
    let topics = &client.shared.scene.topics;
    let topic = rng.pick(topics).name;
    let mut messages = Vec::new();
    for _ in 0..count {
        if rng.chance(1, 3)
            && let Some(again) = again(memory, rng, client)
            && (apart || one_shard || count == 1)
        {
            messages.push(again);
            continue;
        }
        let may_spread = apart || one_shard;
        let topic = if may_spread { rng.pick(topics).name } else { topic };
        let mut message = fresh(client, rng, topic);
        if !may_spread {
            message.key = key.clone();
        }
        let may_have_id = may_spread || message.key.is_some() || count == 1;
        if client.has(Part::Dedupe) && may_have_id && rng.chance(1, 2) {
            message.dedupe = Some(format!("id-{}", message.token));
            memory.sent.push(message.clone());
        }
        messages.push(message);
    }
    messages
}

/// One that was published before: the same, or another one under the same id.
fn again(memory: &mut Memory, rng: &mut Rng, client: &Client) -> Option<Message> {
    if memory.sent.is_empty() {
        return None;
    }
    // The last ones are those whose outcome may be open.
    let back = rng.below(4.min(memory.sent.len() as u64)) as usize;
    let known = memory.sent[memory.sent.len() - 1 - back].clone();
    if rng.chance(1, 6) {
        let token = client.shared.history.token();
        return Some(Message { token, ..known });
    }
    Some(known)
}

pub(super) fn key(client: &Client, rng: &mut Rng) -> Option<String> {
    (client.has(Part::Keys) && rng.chance(2, 3)).then(|| format!("k{}", rng.below(5)))
}

/// A new message for a topic.
pub fn fresh(client: &Client, rng: &mut Rng, topic: &'static str) -> Message {
    let mut tags = Vec::new();
    for _ in 0..rng.below(3) {
        let tag = *rng.pick(&TAGS);
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    let len = match client.has(Part::Large) && rng.chance(1, 8) {
        true => 1000 + rng.below(12_000),
        false => 8 + rng.below(120),
    };
    Message {
        token: client.shared.history.token(),
        topic,
        key: key(client, rng),
        tags,
        dedupe: None,
        ttl_ms: (client.has(Part::Ttl) && rng.chance(1, 5)).then(|| 100 + rng.below(2000)),
        later: None,
        len: len as usize,
    }
}

/// Publishes, and notes what came of it.
pub async fn publish(client: &Client, messages: Vec<Message>, apart: bool) -> Option<Vec<Put>> {
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::Publish { call, messages: messages.clone(), apart });
    let outcome = try_publish(client, &messages, apart).await.map_err(Fail::from);
    let puts = outcome
        .as_ref()
        .ok()
        .map(|puts| puts.iter().filter_map(|put| put.as_ref().ok().cloned()).collect::<Vec<Put>>());
    history.note(client.who, What::Published { call, outcome });
    puts.filter(|puts| puts.len() == messages.len())
}

async fn try_publish(
    client: &Client,
    messages: &[Message],
    apart: bool,
) -> Result<Vec<Result<Put, Fail>>, Problem> {
    let outbox = outbox(client, messages, apart).await?;
    let broker = &client.broker;
    let sent = broker.publish(outbox).await?;
    let puts = broker.placed(&sent).map(|placed| {
        placed.map_err(Fail::from).map(|placed| Put {
            id: placed.id.to_string(),
            partition: placed.partition,
            position: placed.position,
            due: placed.due.map(|due| due.0),
            duplicate: placed.duplicate,
            kept: placed.kept,
        })
    });
    Ok(puts.collect())
}

/// Messages, ready to be handed over.
pub async fn outbox(client: &Client, messages: &[Message], apart: bool) -> Result<Outbox, Problem> {
    let broker = &client.broker;
    let mut outbox = broker.outbox(None, apart);
    for message in messages {
        let topic = broker.topic_to_publish(&Caller::Anyone, message.topic).await?;
        let later = message.later.as_ref();
        let parts = Parts {
            key: message.key.as_deref(),
            tags: message.tags.clone(),
            dedupe_id: message.dedupe.as_deref(),
            ttl_ms: message.ttl_ms,
            name: later.and_then(|(_, name, _)| name.as_deref()),
            later: later.map(|(when, _, taken): &(_, _, NameTaken)| (*when, *taken)),
            ..Parts::default()
        };
        let body = bodies::body(message.token, message.len);
        broker.add(&mut outbox, &topic, &parts, &body)?;
    }
    Ok(outbox)
}
