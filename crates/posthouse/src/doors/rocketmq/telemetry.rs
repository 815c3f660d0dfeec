//! The stream of commands of a client: its settings and ours.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use posthouse_core::catalog::Group;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::fault::{Fault, ok};
use super::names::Namespace;
use super::pb::settings::PubSub;
use super::pb::telemetry_command::Command;
use super::pb::{self, TelemetryCommand};
use super::sessions::{Session, Sink};
use super::{Call, Door, filter, names, settings};

/// Commands that a client has not read yet.
const UNREAD: usize = 16;

impl Door {
    /// Talks with a client until one side ends it.
    pub(super) fn talk(
        &self,
        call: Call,
        mut incoming: Streaming<TelemetryCommand>,
    ) -> BoxStream<'static, Result<TelemetryCommand, Status>> {
        let (sink, commands) = mpsc::channel(UNREAD);
        let door = self.clone();
        tokio::spawn(async move {
            let mut stopping = door.inner.stopping.subscribe();
            let session = match door.session(&call) {
                Ok(session) => session,
                Err(fault) => {
                    let _ = sink.send(Err(fault.grpc())).await;
                    return;
                }
            };
            session.open(sink.clone(), call.caller.clone());
            let mut ended = session.ended();
            loop {
                let said = tokio::select! {
                    said = incoming.message() => said,
                    _ = stopping.wait_for(|stopping| *stopping) => break,
                    _ = ended.wait_for(|ended| *ended) => break,
                    () = sink.closed() => break,
                };
                let Ok(Some(said)) = said else { break };
                // What else clients say answers commands that are never given.
                let Some(Command::Settings(said)) = said.command else { continue };
                let answer = match door.broker().identify_again(&call.caller) {
                    Ok(caller) => {
                        let call = Call { caller, client: call.client.clone() };
                        door.settle_settings(&call, &session, &sink, said).await
                    }
                    Err(problem) => Err(problem.into()),
                };
                let is_fault = answer.is_err();
                let answer = answer.map_err(|fault| fault.grpc());
                if sink.send(answer).await.is_err() || is_fault {
                    break;
                }
            }
            session.close(&sink);
        });
        Box::pin(ReceiverStream::new(commands))
    }

    async fn settle_settings(
        &self,
        call: &Call,
        session: &Session,
        sink: &Sink,
        said: pb::Settings,
    ) -> Result<TelemetryCommand, Fault> {
        let kept = self.inner.sessions.keep(said.clone())?;
        let mut body_bytes = 0;
        let mut publishes = Vec::new();
        match &said.pub_sub {
            Some(PubSub::Subscription(subscription)) => {
                let group = names::group(subscription.group.as_ref())?;
                for entry in &subscription.subscriptions {
                    let topic = names::topic(entry.topic.as_ref())?;
                    let filter = filter::meant(entry.expression.as_ref())?;
                    self.subscribe(call, session, &group, &topic, &filter).await?;
                }
            }
            Some(PubSub::Publishing(publishing)) => {
                for resource in &publishing.topics {
                    let topic = names::topic(Some(resource))?;
                    if let Ok(topic) = self.broker().topic_for(&call.caller, &topic) {
                        body_bytes = body_bytes.max(topic.config.max_message_bytes as usize);
                    }
                    publishes.push((topic, Namespace::of(resource)));
                }
            }
            None => {}
        }
        let group = self.group_of(&said);
        session.says(sink, kept, publishes, group.clone());
        let answer = settings::answer(said, group.as_deref(), body_bytes);
        Ok(settings::command(answer))
    }

    /// Tells the group what the client wants of a topic, unless it has before.
    pub(super) async fn subscribe(
        &self,
        call: &Call,
        session: &Session,
        group: &str,
        topic: &str,
        filter: &str,
    ) -> Result<(), Fault> {
        // The group may have been deleted since, and made anew by somebody else.
        if !session.subscribes(topic, filter) && self.gets(group, topic) {
            return Ok(());
        }
        let subscribed = self.broker().subscribe(&call.caller, group, topic, filter).await;
        if let Err(problem) = subscribed {
            session.unsubscribes(topic);
            return Err(problem.into());
        }
        Ok(())
    }

    /// Whether the group is there and has a subscription to the topic.
    fn gets(&self, group: &str, topic: &str) -> bool {
        let catalog = self.broker().catalog();
        let group = catalog.group_named(group).filter(|group| group.is_active());
        group.is_some_and(|group| group.config.subscriptions.iter().any(|of| of.topic == topic))
    }

    /// The group that settings speak of, as it is now.
    pub(super) fn group_of(&self, said: &pb::Settings) -> Option<Arc<Group>> {
        let Some(PubSub::Subscription(subscription)) = &said.pub_sub else { return None };
        let name = names::group(subscription.group.as_ref()).ok()?;
        self.broker().catalog().group_named(&name).cloned()
    }

    pub(super) async fn hear(
        &self,
        call: &Call,
        _request: pb::HeartbeatRequest,
    ) -> Result<pb::HeartbeatResponse, Fault> {
        self.session(call)?;
        Ok(pb::HeartbeatResponse { status: Some(ok()) })
    }

    pub(super) async fn end(
        &self,
        call: &Call,
        _request: pb::NotifyClientTerminationRequest,
    ) -> Result<pb::NotifyClientTerminationResponse, Fault> {
        if let Some(session) = self.inner.sessions.end(&call.client) {
            self.give_back(&session).await;
        }
        Ok(pb::NotifyClientTerminationResponse { status: Some(ok()) })
    }
}
