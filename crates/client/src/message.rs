//! Messages on their way in and out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::proto;

/// A message to publish.
#[derive(Clone, Debug, Default)]
pub struct Message(pub(crate) proto::OutgoingMessage);

impl Message {
    /// A message with a body of any bytes.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Message(proto::OutgoingMessage { body: body.into(), ..Default::default() })
    }

    /// A message as the native interface has it.
    pub fn from_proto(message: proto::OutgoingMessage) -> Self {
        Message(message)
    }

    /// Messages of one key keep their order in groups that ask for it.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.0.key = Some(key.into());
        self
    }

    /// Adds a tag, which the filters of groups look at.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.0.tags.push(tag.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.headers.insert(name.into(), value.into());
        self
    }

    /// Lets the message expire after a time.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.0.ttl_ms = Some(ttl.as_millis() as u64);
        self
    }

    /// Gives the message an id of yours: the same message under the same id is
    /// published once, however often it is sent.
    #[must_use]
    pub fn dedupe_id(mut self, id: impl Into<String>) -> Self {
        self.0.dedupe_id = Some(id.into());
        self
    }

    /// Lets the message come at `time`; at once if that has passed.
    #[must_use]
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        (self.0.deliver_at_ms, self.0.delay_ms) = (Some(unix_ms(time)), None);
        self
    }

    /// Lets the message come so long after the server has taken it in.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        (self.0.deliver_at_ms, self.0.delay_ms) = (None, Some(delay.as_millis() as u64));
        self
    }

    /// Gives a message that comes later a name of yours, unique in its topic, to move it
    /// or to call it back by.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.0.name = Some(name.into());
        self
    }

    /// Says what happens if a message that is to come has the name already.
    #[must_use]
    pub fn name_taken(mut self, then: NameTaken) -> Self {
        self.0.set_name_taken(match then {
            NameTaken::Replace => proto::NameTaken::Replace,
            NameTaken::Keep => proto::NameTaken::Keep,
            NameTaken::Refuse => proto::NameTaken::Refuse,
        });
        self
    }

    /// Sends the message to another topic than the call names: one call can publish to
    /// several topics, all or nothing.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.0.topic = topic.into();
        self
    }
}

impl<T: Into<Bytes>> From<T> for Message {
    fn from(body: T) -> Self {
        Message::new(body)
    }
}

/// What happens to a message whose [`Message::name`] another one has that is to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameTaken {
    /// It takes the other's place.
    #[default]
    Replace,
    /// The other one stays, and it is not taken in: see [`Published::kept`].
    Keep,
    /// It is refused.
    Refuse,
}

/// Where a message went. It is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Its id.
    pub id: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position there; none if it comes later.
    pub position: Option<u64>,
    /// When it comes, if that is later.
    pub deliver_at: Option<SystemTime>,
    /// Whether it had come before under the same [`Message::dedupe_id`].
    pub duplicate: bool,
    /// Whether it was not taken in, because the message with this id has its name.
    pub kept: bool,
}

impl From<proto::PublishedMessage> for Published {
    fn from(message: proto::PublishedMessage) -> Self {
        Published {
            id: message.id,
            partition: message.partition,
            position: message.deliver_at_ms.is_none().then_some(message.position),
            deliver_at: message.deliver_at_ms.map(time),
            duplicate: message.duplicate,
            kept: message.kept,
        }
    }
}

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// The most messages; 1 unless said otherwise.
    pub max: u32,
    /// The most bytes of bodies.
    pub max_bytes: Option<u64>,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// How long the leases are, if not as the group says.
    pub lease: Option<Duration>,
    /// Only from this topic.
    pub topic: Option<String>,
    /// Acknowledge with the grant: at most once.
    pub auto_ack: bool,
    /// Get an own copy of everything that the group gets.
    pub broadcast: bool,
    /// The consumer's name, for whoever looks at the group.
    pub consumer: String,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        ReceiveOptions {
            max: 1,
            max_bytes: None,
            wait: Duration::ZERO,
            lease: None,
            topic: None,
            auto_ack: false,
            broadcast: false,
            consumer: String::new(),
        }
    }
}

/// A message that was given to this consumer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// Its id, the same at every attempt.
    pub id: String,
    /// Its topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position there.
    pub position: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Rises with every grant of the message. A database that has seen a higher one
    /// should refuse what this delivery writes.
    pub fence: u64,
    /// When it was published.
    pub published_at: SystemTime,
    /// What it is settled with.
    pub receipt: String,
    /// The body.
    pub body: Bytes,
    /// The key.
    pub key: Option<String>,
    /// The tags.
    pub tags: Vec<String>,
    /// The headers.
    pub headers: HashMap<String, String>,
    /// The publisher's id of it.
    pub dedupe_id: Option<String>,
    /// How long it is of use, from its publishing on.
    pub ttl: Option<Duration>,
    /// The life it had before it became a dead letter, if it was one.
    pub origin: Option<Origin>,
}

/// The life that a dead letter had.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The topic it was published to.
    pub topic: String,
    /// The partition there.
    pub partition: u32,
    /// Its position there.
    pub position: u64,
    /// When it was published.
    pub published_at: SystemTime,
    /// Why it died: `nacked`, `lease_expired` or `expired`.
    pub reason: String,
    /// How often it was given out.
    pub attempts: u32,
    /// When it died.
    pub died_at: SystemTime,
    /// What the last nack said.
    pub error: String,
}

impl From<proto::Origin> for Origin {
    fn from(origin: proto::Origin) -> Self {
        Origin {
            topic: origin.topic,
            partition: origin.partition,
            position: origin.position,
            published_at: time(origin.published_at_ms),
            reason: origin.reason,
            attempts: origin.attempts,
            died_at: time(origin.died_at_ms),
            error: origin.error,
        }
    }
}

/// Milliseconds since 1970; 0 for what was before.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(crate) fn time(unix_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms)
}

impl From<proto::ReceivedMessage> for Delivery {
    fn from(message: proto::ReceivedMessage) -> Self {
        Delivery {
            id: message.id,
            topic: message.topic,
            partition: message.partition,
            position: message.position,
            attempt: message.attempt,
            fence: message.fence,
            published_at: time(message.published_at_ms),
            receipt: message.receipt,
            body: message.body,
            key: message.key,
            tags: message.tags,
            headers: message.headers,
            dedupe_id: message.dedupe_id,
            ttl: message.ttl_ms.map(Duration::from_millis),
            origin: message.origin.map(Origin::from),
        }
    }
}

/// What became of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As was asked.
    Ok,
    /// It was done before.
    Already,
    /// Another attempt has followed, or the message was given back: what happened, in a
    /// sentence.
    Stale(String),
    /// The receipt is none of the group's.
    Invalid(String),
}

impl From<proto::SettleResult> for Outcome {
    fn from(result: proto::SettleResult) -> Self {
        match result.status() {
            proto::SettleStatus::Ok => Outcome::Ok,
            proto::SettleStatus::Already => Outcome::Already,
            proto::SettleStatus::Stale => Outcome::Stale(result.detail),
            proto::SettleStatus::Invalid | proto::SettleStatus::Unspecified => {
                Outcome::Invalid(result.detail)
            }
        }
    }
}
