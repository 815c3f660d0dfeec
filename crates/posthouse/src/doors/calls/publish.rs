//! Publishing.

use std::sync::Arc;

use posthouse_client::proto::{
    self, OutgoingMessage, PublishRequest, PublishResponse, PublishedMessage,
};
use posthouse_core::UnixMs;
use posthouse_core::catalog::Topic;
use posthouse_core::message::Parts;
use posthouse_core::record::{NameTaken, When};

use super::{Calls, convert};
use crate::broker::publish::{Outbox, Permit, Placed, Sent, Submitted};
use crate::broker::{Caller, bounds};
use crate::problem::Problem;

impl Calls {
    pub(in crate::doors) async fn publish(
        &self,
        caller: &Caller,
        request: PublishRequest,
    ) -> Result<PublishResponse, Problem> {
        let sent = self.send(caller, &request).await?;
        Ok(self.response(&sent))
    }

    /// Publishes the messages of a request, and waits until they are durable.
    pub(in crate::doors) async fn send(
        &self,
        caller: &Caller,
        request: &PublishRequest,
    ) -> Result<Sent, Problem> {
        let permit = self.broker.permit(bytes_of(request))?;
        let outbox = self.fill(caller, request, permit).await?;
        self.broker.publish(outbox).await
    }

    /// The same for a request of a stream: it waits for quotas, and for room, and answers
    /// when it has been handed over. The stream may have been open for long: the caller is
    /// looked at again.
    pub(in crate::doors) async fn submit_in_turn(
        &self,
        caller: &Caller,
        request: &PublishRequest,
    ) -> Result<Submitted, Problem> {
        let caller = &self.broker.identify_again(caller)?;
        let topics = request.messages.iter().map(|message| topic_of(request, message));
        // Those in a row are mostly the same.
        let mut last = None;
        let topics = topics.filter(move |topic| last.replace(*topic) != Some(*topic));
        self.broker.wait_for_quotas(caller, topics).await?;
        let permit = self.broker.wait_for_permit(bytes_of(request)).await?;
        let outbox = self.fill(caller, request, permit).await?;
        self.broker.submit(outbox)
    }

    /// Puts the messages of a request in an outbox.
    pub(super) async fn fill(
        &self,
        caller: &Caller,
        request: &PublishRequest,
        permit: Permit,
    ) -> Result<Outbox, Problem> {
        let (count, most) = (request.messages.len(), bounds::PUBLISH_MESSAGES);
        if count > most {
            // Apart too: there would be as many refusals.
            return Err(Problem::invalid("messages", count, format!("at most {most}")));
        }
        let mut outbox = self.broker.outbox_of(caller, Some(permit), request.apart);
        outbox.expect(count, bodies_of(request));
        let mut last: Option<(&str, Arc<Topic>)> = None;
        for message in &request.messages {
            let name = topic_of(request, message);
            let known = last.take().filter(|(known, _)| *known == name);
            let topic = match known {
                Some((_, topic)) => Ok(topic),
                None => self.broker.topic_to_publish(caller, name).await,
            };
            let added = topic.and_then(|topic| {
                let added = parts(message)
                    .and_then(|parts| self.broker.add(&mut outbox, &topic, &parts, &message.body));
                last = Some((name, topic));
                added
            });
            match added {
                Err(problem) if request.apart => outbox.refuse(problem),
                added => added?,
            }
        }
        Ok(outbox)
    }

    pub(in crate::doors) fn response(&self, sent: &Sent) -> PublishResponse {
        let messages = self.broker.placed(sent).map(|placed| match placed {
            Ok(placed) => published(&placed),
            Err(problem) => PublishedMessage {
                problem: Some(convert::problem(&problem)),
                ..PublishedMessage::default()
            },
        });
        PublishResponse { messages: messages.collect(), problem: None }
    }
}

/// The topic that a message of a request is for.
fn topic_of<'a>(request: &'a PublishRequest, message: &'a OutgoingMessage) -> &'a str {
    if message.topic.is_empty() { &request.topic } else { &message.topic }
}

/// Where a message went.
pub(in crate::doors) fn published(placed: &Placed) -> PublishedMessage {
    PublishedMessage {
        id: placed.id.to_string(),
        partition: placed.partition,
        position: placed.position.unwrap_or(0),
        duplicate: placed.duplicate,
        kept: placed.kept,
        deliver_at_ms: placed.due.map(|due| due.0),
        problem: None,
    }
}

/// The bytes of all bodies of a request.
fn bodies_of(request: &PublishRequest) -> usize {
    request.messages.iter().map(|message| message.body.len()).sum()
}

/// What a message takes on its way into the log beside its content, about.
pub(in crate::doors) const MESSAGE_BYTES: usize = 256;

/// The bytes that a request takes on its way into the log: all that its messages have,
/// and what each takes even if there is nothing in it.
pub(super) fn bytes_of(request: &PublishRequest) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let of = |message: &OutgoingMessage| {
        let tags: usize = message.tags.iter().map(String::len).sum();
        let headers: usize = message.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        let texts = text(&message.key) + text(&message.dedupe_id) + text(&message.name);
        message.body.len() + texts + tags + headers + MESSAGE_BYTES
    };
    request.messages.iter().map(of).sum()
}

fn parts(message: &OutgoingMessage) -> Result<Parts<'_>, Problem> {
    let when = match (message.deliver_at_ms, message.delay_ms) {
        (None, None) => None,
        (Some(at), None) => Some(When::At(UnixMs(at))),
        (None, Some(ms)) => Some(When::After(ms)),
        (Some(at), Some(_)) => {
            return Err(Problem::invalid("deliver_at", at, "give deliver_at or delay, not both"));
        }
    };
    let taken = match message.name_taken() {
        proto::NameTaken::Unspecified | proto::NameTaken::Replace => NameTaken::Replace,
        proto::NameTaken::Keep => NameTaken::Keep,
        proto::NameTaken::Refuse => NameTaken::Refuse,
    };
    Ok(Parts {
        key: message.key.as_deref(),
        tags: message.tags.iter().map(String::as_str).collect(),
        headers: message.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect(),
        dedupe_id: message.dedupe_id.as_deref(),
        ttl_ms: message.ttl_ms,
        origin: None,
        name: message.name.as_deref(),
        later: when.map(|when| (when, taken)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand messages without bodies took the room of none.
    #[test]
    fn a_message_takes_room_whatever_it_has() {
        let text = |len: usize| Some("x".repeat(len));
        let message = OutgoingMessage {
            body: vec![0; 100].into(),
            key: text(20),
            tags: vec!["eu".into(), "paid".into()],
            headers: [("trace".to_owned(), "t-1".to_owned())].into(),
            dedupe_id: text(7),
            name: text(3),
            ..Default::default()
        };
        let request = |messages| PublishRequest { messages, ..Default::default() };
        let bytes = 100 + 20 + 6 + 8 + 7 + 3 + MESSAGE_BYTES;
        assert_eq!(bytes_of(&request(vec![message])), bytes);
        assert!(bytes_of(&request(vec![OutgoingMessage::default(); 10_000])) > 1 << 20);
    }
}
