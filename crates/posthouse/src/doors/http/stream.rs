//! Messages as server-sent events.
//!
//! Each event is a message with its receipt; the consumer acknowledges through
//! `/ack` and `/nack`. How many it may have at once is bounded: beyond it, nothing is
//! sent until something is acknowledged, given back or runs out.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::Method;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::stream::{self, Stream, StreamExt as _};
use posthouse_client::proto;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Refused, problem};
use super::ask::{At, Params, Who};
use crate::broker::{Caller, Presence};
use crate::doors::calls::Calls;
use crate::json;
use crate::problem::Problem;
use crate::units;

/// Messages in flight unless the consumer says otherwise.
const IN_FLIGHT: u32 = 100;
/// The most messages in flight that a consumer can ask for.
const MOST_IN_FLIGHT: u32 = 10_000;
/// Messages of one look.
const BATCH: u32 = 100;
/// How long one look waits.
const WAIT_MS: u64 = 20_000;
/// How often a consumer that has all it may have is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What a stream gives.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct StreamOf {
    /// The consumer's name. What it has in flight is counted by it, so each stream needs
    /// its own; one is made up if it is absent.
    #[serde(default)]
    consumer: String,
    /// Only from this topic.
    topic: Option<String>,
    /// The most messages that the consumer has at once: 100 by default, 10000 at most.
    max_in_flight: Option<u32>,
    /// The leases, if not as the group says: a duration.
    lease: Option<String>,
    /// Acknowledge with the grant: at most once.
    #[serde(default)]
    auto_ack: bool,
    /// The consumer wants its own copy of everything that the group gets.
    #[serde(default)]
    broadcast: bool,
}

/// Receive messages as server-sent events
///
/// Each event has a message in JSON, and its id. Acknowledge with the receipt.
#[utoipa::path(get, path = "/v1/groups/{group}/stream", tag = "consume",
    params(("group" = String, Path), StreamOf), responses(
    (status = 200, body = json::Message, content_type = "text/event-stream"),
    (status = "default", body = json::Problem)))]
pub async fn stream(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(group): At<String>,
    Params(mut of): Params<StreamOf>,
    method: Method,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    let most = of.max_in_flight.unwrap_or(IN_FLIGHT);
    if !(1..=MOST_IN_FLIGHT).contains(&most) {
        let limit = format!("it must be from 1 to {MOST_IN_FLIGHT}");
        return Err(Refused(Problem::invalid("max_in_flight", most, limit)));
    }
    let lease_ms = match &of.lease {
        None => None,
        Some(text) => Some(
            units::duration_ms(text)
                .map_err(|what| Refused(Problem::invalid("lease", text, what)))?,
        ),
    };
    if of.consumer.is_empty() {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Refused(Problem::internal(error.to_string())))?;
        of.consumer = format!("stream-{:016x}", u64::from_be_bytes(random));
    }
    let ask = proto::ReceiveRequest {
        group,
        consumer: of.consumer,
        lease_ms,
        topic: of.topic,
        auto_ack: of.auto_ack,
        broadcast: of.broadcast,
        ..Default::default()
    };
    // A HEAD wants to know and not to have: nothing is given out for it.
    let is_over = method == Method::HEAD;
    let mut session = Session { calls, caller, ask, most, is_over, presence: None };
    // The first look says what is wrong with the request, while there is a status to say
    // it with.
    let first = if is_over { Vec::new() } else { session.look(0).await? };
    let events = stream::once(async move { (first, session) }).flat_map(|(first, session)| {
        stream::iter(first).chain(stream::unfold(session, Session::next).flat_map(stream::iter))
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(events.map(Ok)).keep_alive(keep_alive))
}

struct Session {
    calls: Calls,
    caller: Caller,
    ask: proto::ReceiveRequest,
    most: u32,
    is_over: bool,
    presence: Option<Presence>,
}

impl Session {
    /// The next events; `None` at the end.
    async fn next(mut self) -> Option<(Vec<Event>, Session)> {
        if self.is_over {
            return None;
        }
        let events = match self.look(WAIT_MS).await {
            Ok(events) => events,
            Err(refused) => {
                self.is_over = true;
                vec![to_event("problem", None, &problem(&refused))]
            }
        };
        Some((events, self))
    }

    /// Gets what there is, as far as the consumer may have more.
    async fn look(&mut self, wait_ms: u64) -> Result<Vec<Event>, Problem> {
        self.caller = self.calls.broker.identify_again(&self.caller)?;
        let room = if self.ask.auto_ack { BATCH } else { self.room().await? };
        if room == 0 {
            tokio::time::sleep(LOOK).await;
            return Ok(Vec::new());
        }
        let ask = proto::ReceiveRequest {
            max: Some(room.min(BATCH)),
            wait_ms: Some(wait_ms),
            ..self.ask.clone()
        };
        let received = self.calls.receive(&self.caller, ask).await?;
        // While it has as much as it may it asks for nothing, and is there all the same.
        let own = self.ask.broadcast.then_some(self.ask.consumer.as_str());
        self.presence = Some(self.calls.broker.presence(&self.ask.group, own));
        let events = received.messages.into_iter().map(|message| {
            let id = message.id.clone();
            to_event("message", Some(id), &json::Message::from(message))
        });
        Ok(events.collect())
    }

    /// How many messages more the consumer may have.
    async fn room(&self) -> Result<u32, Problem> {
        let group = if self.ask.broadcast {
            posthouse_core::name::broadcast_group(&self.ask.group, &self.ask.consumer)
        } else {
            self.ask.group.clone()
        };
        let held = self.calls.broker.held_by(&group, &self.ask.consumer).await?;
        Ok(self.most.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX)))
    }
}

fn to_event(kind: &str, id: Option<String>, data: &impl serde::Serialize) -> Event {
    // JSON of these shapes has no line ends outside of texts, where they are escaped.
    let event = Event::default().event(kind);
    let event = match id {
        Some(id) => event.id(id),
        None => event,
    };
    event.data(serde_json::to_string(data).unwrap_or_default())
}
