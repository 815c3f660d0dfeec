//! Settings, and what the node does for clients that are there.

use pb::telemetry_command::Command;
use posthouse_core::catalog::Order;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::pb::settings::PubSub;
use crate::pb::{Code, TelemetryCommand};
use crate::*;

/// One end of a stream of commands.
pub struct Talk {
    say: mpsc::UnboundedSender<TelemetryCommand>,
    hear: Streaming<TelemetryCommand>,
}

impl Talk {
    pub async fn of(client: &Client) -> Talk {
        let (say, said) = mpsc::unbounded_channel();
        let request = client.request(UnboundedReceiverStream::new(said));
        let hear = client.service.clone().telemetry(request).await.unwrap().into_inner();
        Talk { say, hear }
    }

    /// Why there is no stream for a client.
    pub async fn refused(client: &Client) -> tonic::Status {
        let request = client.request(tokio_stream::empty());
        client.service.clone().telemetry(request).await.unwrap_err()
    }

    /// Why the stream has ended.
    pub async fn end(&mut self) -> tonic::Status {
        within("the stream ends", self.hear.message()).await.unwrap_err()
    }

    pub fn say(&self, settings: pb::Settings) {
        let command = TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
        self.say.send(command).unwrap();
    }

    pub async fn hear(&mut self, what: &str) -> Command {
        let heard = within(what, self.hear.message()).await.unwrap().unwrap();
        heard.command.unwrap()
    }

    pub async fn settings(&mut self) -> pb::Settings {
        match self.hear("settings come").await {
            Command::Settings(settings) => settings,
            other => panic!("{other:?}"),
        }
    }
}

fn consumer(group: &str, topic: &str, expression: &str) -> pb::Settings {
    let entry = pb::SubscriptionEntry {
        topic: resource(topic),
        expression: Some(pb::FilterExpression {
            r#type: pb::FilterType::Tag.into(),
            expression: expression.into(),
        }),
    };
    pb::Settings {
        client_type: Some(pb::ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(pb::Subscription {
            group: resource(group),
            subscriptions: vec![entry],
            ..Default::default()
        })),
        user_agent: Some(pb::Ua { version: "5.2.0".into(), ..Default::default() }),
        ..Default::default()
    }
}

pub fn producer(topic: &str) -> pb::Settings {
    let topics = vec![resource(topic).unwrap()];
    pb::Settings {
        client_type: Some(pb::ClientType::Producer.into()),
        pub_sub: Some(PubSub::Publishing(pb::Publishing { topics, ..Default::default() })),
        request_timeout: seconds(3),
        ..Default::default()
    }
}

fn subscription(settings: &pb::Settings) -> &pb::Subscription {
    match &settings.pub_sub {
        Some(PubSub::Subscription(subscription)) => subscription,
        other => panic!("{other:?}"),
    }
}

fn steps(settings: &pb::Settings) -> Vec<i64> {
    match settings.backoff_policy.as_ref().and_then(|policy| policy.strategy.as_ref()) {
        Some(pb::retry_policy::Strategy::CustomizedBackoff(backoff)) => {
            backoff.next.iter().map(|step| step.seconds).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_told_what_it_may_send() {
    let node = Node::start().await;
    let client = Client::of(&node, "p");
    client.route("orders").await;
    let mut talk = Talk::of(&client).await;
    let said = producer("orders");
    // Some say it again and again: each is answered.
    for _ in 0..3 {
        talk.say(said.clone());
        let told = talk.settings().await;
        assert_eq!(told.client_type, said.client_type);
        assert_eq!(told.request_timeout, said.request_timeout);
        let Some(PubSub::Publishing(publishing)) = &told.pub_sub else { panic!("{told:?}") };
        assert_eq!(publishing.max_body_size, 4 << 20);
        assert!(publishing.validate_message_type);
        let strategy = told.backoff_policy.unwrap().strategy.unwrap();
        assert!(matches!(strategy, pb::retry_policy::Strategy::ExponentialBackoff(_)));
        assert!(!told.metric.unwrap().on);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_told_what_its_group_wants_and_again_when_that_changes() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    let mut talk = Talk::of(&client).await;
    talk.say(consumer("g", "orders", "a || b"));
    let told = talk.settings().await;
    assert_eq!(told.user_agent.as_ref().unwrap().version, "5.2.0");
    let group = node.broker.catalog().group_named("g").cloned().unwrap();
    assert_eq!(group.config.subscriptions[0].filter, "a || b");
    assert_eq!(subscription(&told).fifo, Some(false));
    assert_eq!(subscription(&told).receive_batch_size, Some(32));
    assert_eq!(subscription(&told).long_polling_timeout, seconds(20));
    assert_eq!(told.backoff_policy.as_ref().unwrap().max_attempts, 16);
    assert_eq!(steps(&told).len(), 15);
    put_group(&node, "g", "orders", |patch| {
        patch.max_attempts = Some(3);
        patch.backoff_ms = Some(vec![1000, 5000]);
        patch.order = Some(Order::Key);
    })
    .await;
    let told = talk.settings().await;
    assert_eq!(told.backoff_policy.as_ref().unwrap().max_attempts, 3);
    assert_eq!(steps(&told), [1, 5]);
    assert_eq!(subscription(&told).fifo, Some(true));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_one_sort_of_back_off_gets_that_one() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    let mut talk = Talk::of(&client).await;
    let mut said = consumer("g", "orders", "*");
    said.user_agent.as_mut().unwrap().set_language(pb::Language::NodeJs);
    talk.say(said);
    let strategy = talk.settings().await.backoff_policy.unwrap().strategy.unwrap();
    assert!(matches!(strategy, pb::retry_policy::Strategy::ExponentialBackoff(_)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_met_end_the_stream_with_the_reason() {
    let node = Node::start_with(|options| options.auto_create = Some(false)).await;
    let client = Client::of(&node, "c");
    for (settings, code) in [
        (consumer("g", "orders", "*"), "40403"),
        (consumer("g", "orders", "a |"), "40010"),
        (consumer("g b", "orders", "*"), "40003"),
    ] {
        let mut talk = Talk::of(&client).await;
        talk.say(settings);
        let ended = within("the stream ends", talk.hear.message()).await.unwrap_err();
        assert_eq!(ended.code(), tonic::Code::InvalidArgument);
        assert!(ended.message().starts_with(code), "{}", ended.message());
    }
    node.stop().await;
}

/// The group's lease is far shorter than what the consumer takes: the node renews it as
/// long as the consumer is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_consumer_has_does_not_come_again_while_it_is_there() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    put_group(&node, "g", "orders", |patch| {
        patch.lease_ms = Some(1000);
        patch.backoff_ms = Some(vec![0]);
    })
    .await;
    let mut talk = Talk::of(&client).await;
    talk.say(consumer("g", "orders", "*"));
    talk.settings().await;
    client.sent(message("orders", 1, "slow")).await;
    let got = client.one(push("g", "orders")).await;
    let other = Client::of(&node, "d");
    let wait =
        pb::ReceiveMessageRequest { long_polling_timeout: seconds(8), ..push("g", "orders") };
    assert!(other.receive(wait).await.is_empty(), "it came again while it was held");
    assert_eq!(client.ack("g", &[got]).await.status.unwrap().code(), Code::Ok);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_says_goodbye_ends_its_polls_and_gives_back_what_it_has() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    put_group(&node, "g", "orders", |patch| patch.backoff_ms = Some(vec![0])).await;
    client.sent(message("orders", 1, "a")).await;
    client.one(push("g", "orders")).await;
    let polling = tokio::spawn({
        let client = client.clone();
        async move { client.receive(push("h", "nothing")).await }
    });
    let goodbye = async || {
        let request = client.request(pb::NotifyClientTerminationRequest { group: None });
        client.service.clone().notify_client_termination(request).await.unwrap();
    };
    let ended = async {
        // Until the poll is one that the node knows of, there is nothing to end.
        while !polling.is_finished() {
            goodbye().await;
        }
    };
    let ((), took) = timed(within("the poll ends", ended)).await;
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(polling.await.unwrap().is_empty());
    let again = Client::of(&node, "d").one(push("g", "orders")).await;
    assert_eq!(system(&again).delivery_attempt, Some(2));
    node.stop().await;
}

/// A node that was restarted knows no client, and some never say their settings again.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_the_node_does_not_know_is_served() {
    let node = Node::start().await;
    put_group(&node, "g", "orders", |_| ()).await;
    let client = Client::of(&node, "c");
    let beat = pb::HeartbeatRequest {
        group: resource("g"),
        client_type: pb::ClientType::PushConsumer.into(),
    };
    let beat = client.service.clone().heartbeat(client.request(beat)).await.unwrap();
    assert_eq!(beat.into_inner().status.unwrap().code(), Code::Ok);
    client.route("orders").await;
    client.sent(message("orders", 1, "a")).await;
    let got = client.one(push("g", "orders")).await;
    assert_eq!(client.ack("g", &[got]).await.status.unwrap().code(), Code::Ok);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_the_node_stops() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    client.route("orders").await;
    let mut talk = Talk::of(&client).await;
    talk.say(consumer("g", "orders", "*"));
    talk.settings().await;
    let ((), took) = timed(node.stop()).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    let rest = within("the stream ends", talk.hear.message()).await;
    assert!(matches!(rest, Ok(None) | Err(_)));
}
