//! Between messages on the wire and messages of the node.
//!
//! | On the wire | Here |
//! |---|---|
//! | message id | publish id: a send that is tried again is taken in once |
//! | message group | key |
//! | tag | tag |
//! | user properties | headers |
//! | the rest of what a publisher says | headers that begin with `rocketmq.` |

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use posthouse_core::UnixMs;
use posthouse_core::message::{KEYS_END, KEYS_HEADER, Parts};
use posthouse_core::record::{NameTaken, When};
use prost::Message as _;
use prost_types::{Duration, Timestamp};
use sha1::{Digest as _, Sha1};

use super::fault::Fault;
use super::names::Namespace;
use super::pb;
use super::pb::{Code, MessageType};
use crate::broker::consume::Received;
use crate::broker::schedule::Scheduled;
use crate::broker::transact::Transaction;
use crate::doors::calls::publish::MESSAGE_BYTES;
use crate::problem::Problem;

/// What begins the names of headers that this door keeps for itself.
const OWN: &str = "rocketmq.";
const BORN_HOST: &str = "rocketmq.born_host";
const DELIVER_AT: &str = "rocketmq.deliver_at";
const ENCODING: &str = "rocketmq.encoding";
const TRACE: &str = "rocketmq.trace_context";

/// User properties with these names would be taken for what the system says of a
/// message.
const RESERVED: [&str; 12] = [
    "KEYS",
    "TAGS",
    "DELAY",
    "WAIT",
    "TRAN_MSG",
    "PGROUP",
    "REAL_TOPIC",
    "REAL_QID",
    "RETRY_TOPIC",
    "UNIQ_KEY",
    "INSTANCE_ID",
    "__SHARDINGKEY",
];

/// Digits of a message id as clients make it.
const ID_DIGITS: usize = 34;

/// Ids of messages that other doors took in get this version before them, which is how
/// clients write an id that is none of theirs.
const FOREIGN: &str = "00";

/// What of a message does not stand in it as it is: kept while its parts are borrowed.
#[derive(Debug, Default)]
pub struct Extra(Vec<(&'static str, String)>);

impl Extra {
    /// What the system properties say beside key and tag.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of(system: &pb::SystemProperties) -> Result<Extra, Fault> {
        let mut extra = Vec::new();
        if !system.keys.is_empty() {
            let bad = |key: &String| key.trim().is_empty() || key.chars().any(char::is_control);
            if let Some(key) = system.keys.iter().find(|key| bad(key)) {
                let text = format!("key {key:?}: it must not be blank or have control characters");
                return Err(Fault::new(Code::IllegalMessageKey, text));
            }
            extra.push((KEYS_HEADER, system.keys.join(&KEYS_END.to_string())));
        }
        if !system.born_host.is_empty() {
            extra.push((BORN_HOST, system.born_host.clone()));
        }
        if let Some(at) = &system.delivery_timestamp {
            extra.push((DELIVER_AT, millis(at).to_string()));
        }
        if system.body_encoding() == pb::Encoding::Gzip {
            extra.push((ENCODING, "gzip".into()));
        }
        if let Some(trace) = system.trace_context.as_ref().filter(|trace| !trace.is_empty()) {
            extra.push((TRACE, trace.clone()));
        }
        Ok(Extra(extra))
    }
}

/// The bytes that messages take on their way into the log: all that they have, and what each
/// takes even if there is nothing in it.
pub fn bytes_of(messages: &[pb::Message]) -> usize {
    messages.iter().map(|message| message.encoded_len() + MESSAGE_BYTES).sum()
}

/// The parts of a message that is sent.
///
/// # Errors
/// What is wrong with it, as far as the broker does not find that out.
pub fn parts<'a>(
    message: &'a pb::Message,
    system: &'a pb::SystemProperties,
    extra: &'a Extra,
) -> Result<Parts<'a>, Fault> {
    check_type(system)?;
    let user = &message.user_properties;
    if let Some(name) = user.keys().find(|name| is_reserved(name)) {
        let text = format!("property {name:?}: the name is kept for the system");
        return Err(Fault::new(Code::IllegalMessagePropertyKey, text));
    }
    let mut headers: Vec<(&str, &str)> = Vec::with_capacity(user.len() + extra.0.len());
    headers.extend(user.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    headers.extend(extra.0.iter().map(|(name, value)| (*name, value.as_str())));
    headers.sort_unstable();
    let due = system.delivery_timestamp.as_ref().map(millis);
    Ok(Parts {
        key: system.message_group.as_deref(),
        tags: system.tag.iter().map(String::as_str).collect(),
        headers,
        dedupe_id: Some(system.message_id.as_str()).filter(|id| !id.is_empty()),
        later: due.map(|due| (When::At(UnixMs(due)), NameTaken::Replace)),
        ..Parts::default()
    })
}

fn is_reserved(name: &str) -> bool {
    name.starts_with(OWN) || RESERVED.contains(&name)
}

/// Whether the message has what its type asks for. What it has beside that is no conflict:
/// a delayed message may have a group, and one of a transaction both.
fn check_type(system: &pb::SystemProperties) -> Result<(), Fault> {
    let unsupported = |what| Err(Fault::new(Code::Unsupported, what));
    match MessageType::try_from(system.message_type) {
        Ok(MessageType::Unspecified | MessageType::Normal) => Ok(()),
        Ok(MessageType::Fifo) if system.message_group.as_deref().unwrap_or("").is_empty() => {
            Err(Fault::new(Code::IllegalMessageGroup, "an ordered message needs a message group"))
        }
        Ok(MessageType::Delay) if system.delivery_timestamp.is_none() => {
            let text = "a message that is to come later needs a delivery timestamp";
            Err(Fault::new(Code::IllegalDeliveryTime, text))
        }
        Ok(MessageType::Fifo | MessageType::Delay | MessageType::Transaction) => Ok(()),
        Ok(MessageType::Lite) => unsupported("this node has no lite topics"),
        Ok(MessageType::Priority) => unsupported("this node has no priorities"),
        Err(_) => unsupported("this node does not know the type of the message"),
    }
}

/// A message as a consumer gets it; `handle` is what it is acknowledged with.
///
/// # Errors
/// If the content cannot be read although its checksum holds.
pub fn delivered(
    received: &Received,
    namespace: &Namespace,
    handle: String,
    lease: Option<Duration>,
) -> Result<pb::Message, Problem> {
    let (parts, body) = received.parts()?;
    let (topic, partition, position, published_at) = received.place(&parts);
    let published_at = Some(timestamp(published_at.0));
    let system = pb::SystemProperties {
        message_id: id(&parts, &received.id.to_string()).into_owned(),
        message_type: MessageType::Normal.into(),
        born_timestamp: published_at,
        store_timestamp: published_at,
        receipt_handle: Some(handle),
        queue_id: partition as i32,
        queue_offset: Some(position as i64),
        invisible_duration: lease,
        delivery_attempt: Some(received.attempt.into()),
        ..Default::default()
    };
    let mut message = shown(&parts, body, namespace, topic, system);
    if let Some(system) = &mut message.system_properties {
        if parts.key.is_some() {
            system.set_message_type(MessageType::Fifo);
        }
        if system.delivery_timestamp.is_some() {
            system.set_message_type(MessageType::Delay);
        }
    }
    Ok(message)
}

/// The message of a transaction as a producer is asked about it.
///
/// # Errors
/// If the content cannot be read although its checksum holds.
pub fn asked_about(
    transaction: &Transaction,
    message: &Scheduled,
    namespace: &Namespace,
) -> Result<pb::Message, Problem> {
    let (parts, body) = message.parts()?;
    let prepared_at = Some(timestamp(transaction.prepared_at.0));
    let system = pb::SystemProperties {
        message_id: id(&parts, &message.id.to_string()).into_owned(),
        message_type: MessageType::Transaction.into(),
        born_timestamp: prepared_at,
        store_timestamp: prepared_at,
        queue_id: message.partition as i32,
        ..Default::default()
    };
    Ok(shown(&parts, body, namespace, &message.topic.name, system))
}

/// A message with what its publisher said of it, and `system` beside.
fn shown(
    parts: &Parts<'_>,
    body: Bytes,
    namespace: &Namespace,
    topic: &str,
    mut system: pb::SystemProperties,
) -> pb::Message {
    system.tag = parts.tags.first().map(|tag| (*tag).to_owned());
    system.body_digest = Some(digest(&body));
    system.set_body_encoding(pb::Encoding::Identity);
    system.store_host = super::BROKER_NAME.into();
    system.message_group = parts.key.map(str::to_owned);
    if let Some(origin) = &parts.origin {
        system.dead_letter_queue = Some(pb::DeadLetterQueue {
            topic: namespace.topic(origin.topic).name,
            message_id: system.message_id.clone(),
        });
    }
    let mut user = HashMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        match *name {
            KEYS_HEADER => system.keys = value.split(KEYS_END).map(str::to_owned).collect(),
            BORN_HOST => system.born_host = (*value).to_owned(),
            TRACE => system.trace_context = Some((*value).to_owned()),
            ENCODING => system.set_body_encoding(pb::Encoding::Gzip),
            DELIVER_AT => system.delivery_timestamp = value.parse().ok().map(timestamp),
            _ => drop(user.insert((*name).to_owned(), (*value).to_owned())),
        }
    }
    pb::Message {
        topic: Some(namespace.topic(topic)),
        user_properties: user,
        system_properties: Some(system),
        body,
    }
}

/// The id under which clients know a message: the one that its publisher gave it, else
/// that of the node.
pub fn id<'a>(parts: &Parts<'a>, own: &str) -> Cow<'a, str> {
    let is_id = |id: &&str| id.len() == ID_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    match parts.dedupe_id.filter(is_id) {
        Some(id) => Cow::Borrowed(id),
        None => Cow::Owned(format!("{FOREIGN}{}", own.to_ascii_uppercase())),
    }
}

/// SHA-1: the one digest that all clients write alike. With CRC32 some leave out leading
/// zeros and others do not.
fn digest(body: &[u8]) -> pb::Digest {
    let checksum = Sha1::digest(body).iter().map(|byte| format!("{byte:02X}")).collect();
    pb::Digest { r#type: pb::DigestType::Sha1.into(), checksum }
}

/// A time on the wire in Unix milliseconds; one before 1970 is 1970.
pub fn millis(at: &Timestamp) -> u64 {
    whole_ms(at.seconds, at.nanos)
}

/// Seconds and nanoseconds of the wire in milliseconds; what is negative counts as none.
fn whole_ms(seconds: i64, nanos: i32) -> u64 {
    let ms = u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    ms.saturating_add(u64::from(nanos.max(0).unsigned_abs()) / 1_000_000)
}

/// Unix milliseconds on the wire.
pub fn timestamp(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

/// Milliseconds of a duration on the wire; a negative one is none.
pub fn duration_ms(duration: &Duration) -> u64 {
    whole_ms(duration.seconds, duration.nanos)
}

/// Milliseconds on the wire.
pub fn duration(ms: u64) -> Duration {
    Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages without bodies took the room of none, whatever else they had.
    #[test]
    fn a_message_takes_room_whatever_it_has() {
        let user = [("a".to_owned(), "x".repeat(30_000))].into();
        let message = pb::Message { user_properties: user, ..Default::default() };
        assert!(bytes_of(&vec![message; 100]) > 3_000_000);
        assert_eq!(bytes_of(&vec![pb::Message::default(); 100]), 100 * MESSAGE_BYTES);
    }
}
