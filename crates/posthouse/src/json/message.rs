//! Messages on their way in and out, and what has become of them.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use posthouse_client::proto;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Problem, Time, given, is_zero};
use crate::problem;

/// A message to publish.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Outgoing {
    /// Its body as a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its body as bytes in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Messages of one key keep their order in groups that ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What the filters of groups look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whatever else consumers are to know.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub headers: HashMap<String, String>,
    /// How long it is of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// An id of yours: the same message under the same id is published once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_id: Option<String>,
    /// The topic, if it is not that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// When it comes, if not at once. A time that has passed is at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    /// How long until it comes, if not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// A name of yours for a message that comes later, unique in the topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What to do if a message that has not come yet has the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_taken: Option<NameTaken>,
}

/// What to do with a message whose name another one has that has not come yet.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NameTaken {
    /// It takes the other one's place: the default.
    Replace,
    /// The other one stays, and this one is not taken in.
    Keep,
    /// It is refused.
    Refuse,
}

/// Messages to publish: a list of them, or the fields of one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The messages. All of them are published or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Outgoing>>,
    /// The messages need not be published together: each has its own result, and one
    /// that is refused keeps no other out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub apart: bool,
    /// One message: its body as a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// One message: its body as bytes in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub headers: HashMap<String, String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_id: Option<String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One message: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_taken: Option<NameTaken>,
}

/// Where messages went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Published {
    /// In the order they were sent.
    pub messages: Vec<PublishedMessage>,
}

/// Where a message went; or, where messages are published apart, only the `problem` that
/// kept it out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, ToSchema)]
pub struct PublishedMessage {
    /// Its id.
    #[serde(default)]
    pub id: String,
    /// The partition, counted from 0.
    #[serde(default)]
    pub partition: u32,
    /// Its position there. Absent if it comes later.
    #[serde(default)]
    pub position: Option<u64>,
    /// When it comes, if that is later.
    #[serde(default)]
    pub deliver_at: Option<Time>,
    /// It had come before under the same `dedupe_id`; this is where it went then.
    #[serde(default)]
    pub duplicate: bool,
    /// It was not taken in, because the message with this id has its name, and stays.
    #[serde(default)]
    pub kept: bool,
    /// Why this one was refused. It has nothing else then.
    #[serde(default)]
    pub problem: Option<Problem>,
}

impl Serialize for PublishedMessage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(problem) = &self.problem {
            let mut out = serializer.serialize_struct("PublishedMessage", 1)?;
            out.serialize_field("problem", problem)?;
            return out.end();
        }
        let mut out = serializer.serialize_struct("PublishedMessage", 6)?;
        out.serialize_field("id", &self.id)?;
        out.serialize_field("partition", &self.partition)?;
        match &self.position {
            Some(position) => out.serialize_field("position", position)?,
            None => out.skip_field("position")?,
        }
        match &self.deliver_at {
            Some(at) => out.serialize_field("deliver_at", at)?,
            None => out.skip_field("deliver_at")?,
        }
        out.serialize_field("duplicate", &self.duplicate)?;
        match self.kept {
            true => out.serialize_field("kept", &true)?,
            false => out.skip_field("kept")?,
        }
        out.end()
    }
}

/// What a consumer asks for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// The most messages; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// The most bytes of bodies; a single message may be larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// How long to wait for the first message; not at all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Duration>,
    /// The leases, if not as the group says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Duration>,
    /// Only from this topic. Where `auto_create` is on, it makes a group that is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Acknowledge with the grant: at most once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub auto_ack: bool,
    /// The consumer wants its own copy of everything that the group gets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub broadcast: bool,
    /// The consumer's name, for whoever looks at the group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consumer: String,
}

/// A message.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Message {
    /// Its id.
    pub id: String,
    /// Its topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position there. Absent if it has not come yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// When it comes, if it has not come yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    /// The name that it was scheduled under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its body, if that is a text in UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its body in base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Which attempt this is, from 1. Absent if nobody was given the message.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Rises with every grant of the message: for the consumer's own database.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fence: u64,
    /// When it was published, or, if it was scheduled, when it came. Absent if it has not
    /// come yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Time>,
    /// What to ack, nack and extend with. Absent if it is acknowledged already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// How long it is of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// The publisher's id of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_id: Option<String>,
    /// The life it had before it became a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// The life that a dead letter had.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Origin {
    /// The topic it was published to.
    pub topic: String,
    /// The partition there.
    pub partition: u32,
    /// The position there.
    pub position: u64,
    /// When it was published.
    pub published_at: Time,
    /// Why it died: `nacked`, `lease_expired` or `expired`.
    pub reason: String,
    /// How often it was given out.
    pub attempts: u32,
    /// When it died.
    pub died_at: Time,
    /// What the last nack said.
    pub error: String,
}

/// Messages with their leases.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Received {
    /// The messages; none if nothing has come in time.
    pub messages: Vec<Message>,
}

/// A page of messages of a partition.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Browsed {
    /// The messages.
    pub messages: Vec<Message>,
    /// Where to go on, if there are more: the next `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A message, and what it is to each group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct MessageInfo {
    /// The message.
    #[serde(flatten)]
    pub message: Message,
    /// The groups that get it.
    pub groups: Vec<GroupState>,
}

/// What a message is to a group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct GroupState {
    /// The group.
    pub group: String,
    /// `ahead`, `in_flight`, `waiting`, `behind_key` or `done`.
    pub state: String,
    /// Who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// How often it was given out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// The last grant.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fence: u64,
    /// How long the lease or the wait has to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Duration>,
    /// What the last nack said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The life of a message, as far as the log has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct History {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Whether that is all that the log has.
    pub complete: bool,
    /// Whether parts of the log in between are gone.
    pub gaps: bool,
}

/// Something that happened to a message.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// When.
    pub at: Time,
    /// `published`, `prepared`, `scheduled`, `rescheduled`, `cancelled`, `fired`, `granted`, `extended`, `nacked`, `acked`, `behind_key`, `skipped`,
    /// `dead`, `redriven`, `trimmed` or `seek`.
    pub event: String,
    /// The group that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Who got it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Which attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// The grant.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fence: u64,
    /// Whether it was acknowledged with the grant.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub auto_ack: bool,
    /// Why, or what a nack said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where a seek went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// When the message was to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
}

/// A page of dead letters.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Letters {
    /// The letters, oldest first.
    pub messages: Vec<Message>,
    /// Where to go on, if there are more: the next `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which dead letters: those with these message ids, or all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// Message ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// All of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub all: bool,
    /// For a redrive: at most so many a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// What a redrive did. It comes back after a while even if there are more.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct LettersDone {
    /// Letters that got another chance.
    pub redriven: u64,
    /// Letters that are left.
    pub left: u64,
}

/// How many messages went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Purged {
    /// How many.
    pub purged: u64,
}

/// The bytes of a body that came in as one or the other.
pub(super) fn body_in(
    text: Option<String>,
    base64: Option<String>,
) -> Result<Bytes, problem::Problem> {
    match (text, base64) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(text)) => BASE64.decode(&text).map(Bytes::from).map_err(|error| {
            let what = format!("it must be base64 (RFC 4648, with padding): {error}");
            problem::Problem::invalid("body_base64", excerpt(&text), what)
        }),
        (text, _) => {
            let value = if text.is_some() { "both" } else { "not given" };
            let limit = "give either body (a text) or body_base64 (bytes)";
            Err(problem::Problem::invalid("body", value, limit))
        }
    }
}

/// A body as a text, or, if it is none, in base64.
pub(super) fn body_out(body: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(body))),
    }
}

impl Outgoing {
    /// The same for the native interface.
    ///
    /// # Errors
    /// If there is no body, or two, or one that is not base64.
    pub fn into_proto(self) -> Result<proto::OutgoingMessage, problem::Problem> {
        Ok(proto::OutgoingMessage {
            body: body_in(self.body, self.body_base64)?,
            key: self.key,
            tags: self.tags,
            headers: self.headers,
            ttl_ms: self.ttl.map(|ttl| ttl.0),
            dedupe_id: self.dedupe_id,
            topic: self.topic.unwrap_or_default(),
            deliver_at_ms: self.deliver_at.map(|at| at.0),
            delay_ms: self.delay.map(|delay| delay.0),
            name: self.name,
            name_taken: self.name_taken.map_or(0, |taken| match taken {
                NameTaken::Replace => proto::NameTaken::Replace as i32,
                NameTaken::Keep => proto::NameTaken::Keep as i32,
                NameTaken::Refuse => proto::NameTaken::Refuse as i32,
            }),
        })
    }
}

/// The beginning of a text that may be long.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Publish {
    /// The same for the native interface, to a topic unless a message says otherwise.
    ///
    /// # Errors
    /// If it is neither a list nor one message.
    pub fn into_proto(self, topic: String) -> Result<proto::PublishRequest, problem::Problem> {
        let apart = self.apart;
        let one = Outgoing {
            body: self.body,
            body_base64: self.body_base64,
            key: self.key,
            tags: self.tags,
            headers: self.headers,
            ttl: self.ttl,
            dedupe_id: self.dedupe_id,
            topic: self.topic,
            deliver_at: self.deliver_at,
            delay: self.delay,
            name: self.name,
            name_taken: self.name_taken,
        };
        let messages = match self.messages {
            Some(_) if one != Outgoing::default() => {
                let limit = "a request has either messages, or the fields of one message";
                return Err(problem::Problem::invalid("messages", "both", limit));
            }
            Some(messages) => messages,
            None => vec![one],
        };
        let messages: Result<_, problem::Problem> =
            messages.into_iter().map(Outgoing::into_proto).collect();
        Ok(proto::PublishRequest { topic, messages: messages?, apart })
    }
}

impl From<proto::PublishedMessage> for PublishedMessage {
    fn from(message: proto::PublishedMessage) -> Self {
        let has_place = message.deliver_at_ms.is_none() && !message.kept;
        PublishedMessage {
            id: message.id,
            partition: message.partition,
            position: has_place.then_some(message.position),
            deliver_at: message.deliver_at_ms.map(Time),
            duplicate: message.duplicate,
            kept: message.kept,
            problem: message.problem.map(Into::into),
        }
    }
}

impl From<proto::PublishResponse> for Published {
    fn from(response: proto::PublishResponse) -> Self {
        Published { messages: response.messages.into_iter().map(Into::into).collect() }
    }
}

impl Receive {
    /// The same for the native interface.
    pub fn into_proto(self, group: String) -> proto::ReceiveRequest {
        proto::ReceiveRequest {
            group,
            consumer: self.consumer,
            max: self.max,
            max_bytes: self.max_bytes,
            wait_ms: self.wait.map(|wait| wait.0),
            lease_ms: self.lease.map(|lease| lease.0),
            topic: self.topic,
            auto_ack: self.auto_ack,
            broadcast: self.broadcast,
        }
    }
}

impl From<proto::ReceivedMessage> for Message {
    fn from(message: proto::ReceivedMessage) -> Self {
        let (body, body_base64) = body_out(&message.body);
        Message {
            id: message.id,
            topic: message.topic,
            partition: message.partition,
            position: message.deliver_at_ms.is_none().then_some(message.position),
            deliver_at: message.deliver_at_ms.map(Time),
            name: message.name,
            body,
            body_base64,
            key: message.key,
            tags: message.tags,
            headers: message.headers.into_iter().collect(),
            attempt: message.attempt,
            fence: message.fence,
            published_at: message.deliver_at_ms.is_none().then_some(Time(message.published_at_ms)),
            receipt: given(message.receipt),
            ttl: message.ttl_ms.map(Duration),
            dedupe_id: message.dedupe_id,
            origin: message.origin.map(Into::into),
        }
    }
}

impl From<proto::Origin> for Origin {
    fn from(origin: proto::Origin) -> Self {
        Origin {
            topic: origin.topic,
            partition: origin.partition,
            position: origin.position,
            published_at: Time(origin.published_at_ms),
            reason: origin.reason,
            attempts: origin.attempts,
            died_at: Time(origin.died_at_ms),
            error: origin.error,
        }
    }
}

fn messages(messages: Vec<proto::ReceivedMessage>) -> Vec<Message> {
    messages.into_iter().map(Into::into).collect()
}

impl From<proto::ReceiveResponse> for Received {
    fn from(response: proto::ReceiveResponse) -> Self {
        Received { messages: messages(response.messages) }
    }
}

impl From<proto::BrowseResponse> for Browsed {
    fn from(response: proto::BrowseResponse) -> Self {
        Browsed { messages: messages(response.messages), next: response.next }
    }
}

impl From<proto::ListDeadLettersResponse> for Letters {
    fn from(response: proto::ListDeadLettersResponse) -> Self {
        Letters { messages: messages(response.letters), next: given(response.next) }
    }
}

impl From<proto::GetMessageResponse> for MessageInfo {
    fn from(response: proto::GetMessageResponse) -> Self {
        let state = |state: proto::GroupState| GroupState {
            group: state.group,
            state: state.state,
            consumer: given(state.consumer),
            attempt: state.attempt,
            fence: state.fence,
            left: state.left_ms.map(Duration),
            reason: given(state.reason),
        };
        MessageInfo {
            message: response.message.unwrap_or_default().into(),
            groups: response.groups.into_iter().map(state).collect(),
        }
    }
}

impl From<proto::GetHistoryResponse> for History {
    fn from(response: proto::GetHistoryResponse) -> Self {
        let event = |event: proto::HistoryEvent| Event {
            at: Time(event.at_ms),
            event: event.event,
            group: given(event.group),
            consumer: given(event.consumer),
            attempt: event.attempt,
            fence: event.fence,
            auto_ack: event.auto_ack,
            reason: given(event.reason),
            position: event.position,
            deliver_at: event.deliver_at_ms.map(Time),
        };
        History {
            events: response.events.into_iter().map(event).collect(),
            complete: response.complete,
            gaps: response.gaps,
        }
    }
}

impl From<proto::RedriveDeadLettersResponse> for LettersDone {
    fn from(done: proto::RedriveDeadLettersResponse) -> Self {
        LettersDone { redriven: done.redriven, left: done.left }
    }
}
