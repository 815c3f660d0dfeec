//! Receiving: a long poll, answered by one stream of status, messages and time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::fault::{Fault, ok};
use super::message::{self, duration, duration_ms, timestamp};
use super::names::{self, Namespace};
use super::pb::receive_message_response::Content;
use super::pb::{self, Code, ReceiveMessageResponse};
use super::sessions::{Attempt, Handle, Session};
use super::{Call, Door, filter, settings};
use crate::broker::consume::Receive;
use crate::broker::{Broker, bounds};

/// A poll answers so long before the client gives up on it, or a quarter of its time.
const MARGIN: Duration = Duration::from_millis(500);

/// A client that gives less time cannot be answered in it.
const LEAST: Duration = Duration::from_millis(50);

/// How long the client waits for the whole call, if it says so: `grpc-timeout`, digits and
/// a unit.
pub fn budget(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.saturating_mul(3600)),
        "M" => Duration::from_secs(count.saturating_mul(60)),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// How long to wait for the first message, so that the client still gets the answer.
fn patience(asked: Option<Duration>, budget: Option<Duration>) -> Result<Duration, Fault> {
    let asked = asked.unwrap_or(settings::LONG_POLLING).min(bounds::WAIT);
    let Some(budget) = budget else { return Ok(asked) };
    if budget < LEAST {
        let text = format!("the call ends in {budget:?}: there is no time to wait for a message");
        return Err(Fault::new(Code::IllegalPollingTime, text));
    }
    Ok(asked.min(budget - MARGIN.min(budget / 4)))
}

impl Door {
    pub(super) async fn receive(
        &self,
        call: &Call,
        request: pb::ReceiveMessageRequest,
        budget: Option<Duration>,
    ) -> Result<Delivery, Fault> {
        let group = names::group(request.group.as_ref())?;
        let queue = request.message_queue.unwrap_or_default();
        let resource = queue.topic.unwrap_or_default();
        let topic = names::topic(Some(&resource))?;
        let filter = filter::meant(request.filter_expression.as_ref())?;
        let wait = request.long_polling_timeout.as_ref().map(duration_ms);
        let wait = patience(wait.map(Duration::from_millis), budget)?;
        let lease_ms = match (&request.invisible_duration, request.auto_renew) {
            (_, true) => None,
            (Some(duration), false) => Some(duration_ms(duration)),
            (None, false) => {
                let text = "a consumer whose leases are not renewed says how long they are";
                return Err(Fault::new(Code::IllegalInvisibleTime, text));
            }
        };
        let session = self.session(call)?;
        self.subscribe(call, &session, &group, &topic, &filter).await?;
        let attempt = request.attempt_id.as_deref().filter(|name| !name.is_empty());
        let attempt = attempt.filter(|_| request.auto_renew).map(|name| {
            let (attempt, lost) = session.attempts(name);
            self.broker().give_back(lost.iter().map(String::as_str));
            attempt
        });
        let most = bounds::RECEIVE_MESSAGES;
        let lease_ms = lease_ms.or_else(|| self.renewed_lease(&group));
        let ask = Receive {
            max: usize::try_from(request.batch_size).unwrap_or(0).clamp(1, most),
            wait,
            lease_ms,
            topic: Some(topic),
            consumer: call.client.to_string(),
            ..Receive::default()
        };
        let _waiting = session.wait();
        let mut ended = session.ended();
        let received = tokio::select! {
            received = self.broker().receive(&call.caller, &group, &ask) => received?,
            // A consumer that says goodbye waits for its polls.
            _ = ended.wait_for(|ended| *ended) => Vec::new(),
        };
        if received.is_empty() {
            let text = "no message has come in time";
            return Ok(Delivery::refused(&Fault::new(Code::MessageNotFound, text)));
        }
        let namespace = Namespace::of(&resource);
        let mut parcel = Parcel {
            broker: self.broker().clone(),
            session,
            group,
            receipts: Vec::with_capacity(received.len()),
            is_renewed: request.auto_renew,
            attempt,
            is_sent: false,
        };
        let mut responses = Vec::with_capacity(received.len() + 2);
        let mut say = |content| responses.push(ReceiveMessageResponse { content: Some(content) });
        say(Content::Status(ok()));
        for received in &received {
            let handle = Handle { receipt: &received.receipt, is_renewed: request.auto_renew };
            let lease = lease_ms.map(duration);
            let message = message::delivered(received, &namespace, handle.to_string(), lease);
            match message {
                Ok(message) => {
                    parcel.receipts.push(received.receipt.clone());
                    say(Content::Message(message));
                }
                // Never served; its lease runs out.
                Err(problem) => tracing::error!("a message cannot be delivered: {problem}"),
            }
        }
        say(Content::DeliveryTimestamp(timestamp(self.broker().now().0)));
        Ok(Delivery { responses: responses.into_iter(), parcel: Some(parcel) })
    }
}

/// The answer to one receive.
#[derive(Debug)]
pub struct Delivery {
    responses: std::vec::IntoIter<ReceiveMessageResponse>,
    parcel: Option<Parcel>,
}

impl Delivery {
    /// An answer that only says why there is no message.
    pub fn refused(fault: &Fault) -> Delivery {
        let content = Some(Content::Status(fault.status()));
        Delivery { responses: vec![ReceiveMessageResponse { content }].into_iter(), parcel: None }
    }
}

impl Stream for Delivery {
    type Item = Result<ReceiveMessageResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.responses.next();
        if next.is_none()
            && let Some(parcel) = &mut self.parcel
        {
            parcel.is_sent = true;
        }
        Poll::Ready(next.map(Ok))
    }
}

/// Messages on their way to a consumer. If the consumer goes before they were all handed
/// to its connection, they are given back: nobody has seen them.
#[derive(Debug)]
struct Parcel {
    broker: Arc<Broker>,
    session: Arc<Session>,
    group: String,
    receipts: Vec<String>,
    is_renewed: bool,
    attempt: Option<Attempt>,
    is_sent: bool,
}

impl Drop for Parcel {
    fn drop(&mut self) {
        let receipts = std::mem::take(&mut self.receipts);
        if self.is_sent {
            if self.is_renewed {
                self.session.hold(&self.group, receipts, self.attempt);
            }
            return;
        }
        self.broker.give_back(receipts.iter().map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_ends_before_the_call_does() {
        let seconds = Duration::from_secs;
        let waits = |asked, budget| patience(asked, budget).unwrap();
        assert_eq!(waits(Some(seconds(20)), Some(seconds(23))), seconds(20));
        assert_eq!(waits(Some(seconds(20)), Some(seconds(20))), Duration::from_millis(19_500));
        assert_eq!(waits(Some(seconds(20)), Some(seconds(1))), Duration::from_millis(750));
        assert_eq!(waits(None, None), settings::LONG_POLLING);
        assert_eq!(waits(Some(seconds(9000)), None), bounds::WAIT);
        let refused = patience(None, Some(Duration::from_millis(10))).unwrap_err();
        assert_eq!(refused.code, Code::IllegalPollingTime);
    }

    #[test]
    fn the_time_of_a_call_is_read_in_every_unit() {
        for (text, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("2M", Some(Duration::from_secs(120))),
            ("1H", Some(Duration::from_secs(3600))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("5", None),
            ("5x", None),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(budget(&metadata), expected, "{text:?}");
        }
    }
}
