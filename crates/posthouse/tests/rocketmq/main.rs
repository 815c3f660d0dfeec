//! The door for RocketMQ clients, call by call, through the generated client. What the
//! official clients make of it is tried in `interop/rocketmq`.

#[path = "../doors/door.rs"]
#[allow(dead_code, reason = "the doors' tests use the rest")]
mod door;

mod access;
mod consuming;
mod publishing;
mod refusals;
mod sessions;
mod tls;
mod transactions;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use door::Node;
use pb::messaging_service_client::MessagingServiceClient;
use pb::receive_message_response::Content;
use pb::{Code, MessageType};
use posthouse::broker::Caller;
use posthouse::broker::manage::GroupPatch;
use posthouse::doors::rocketmq::pb;
use posthouse_core::catalog::Subscription;
use tonic::Request;
use tonic::transport::Channel;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client, known by its id.
#[derive(Clone)]
struct Client {
    service: MessagingServiceClient<Channel>,
    id: String,
    /// What it shows with every call: the time, and who has signed it.
    signed: Option<(String, String)>,
    endpoints: pb::Endpoints,
}

fn resource(name: &str) -> Option<pb::Resource> {
    Some(pb::Resource { resource_namespace: String::new(), name: name.into() })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

impl Client {
    fn of(node: &Node, id: &str) -> Client {
        Client::at(node.address, id)
    }

    fn at(address: SocketAddr, id: &str) -> Client {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let address = pb::Address { host: address.ip().to_string(), port: address.port().into() };
        Client {
            service: MessagingServiceClient::new(channel.connect_lazy()),
            id: id.into(),
            signed: None,
            endpoints: pb::Endpoints {
                scheme: pb::AddressScheme::IPv4.into(),
                addresses: vec![address],
            },
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("x-mq-client-id", self.id.parse().unwrap());
        if let Some((date, authorization)) = &self.signed {
            metadata.insert("x-mq-date-time", date.parse().unwrap());
            metadata.insert("authorization", authorization.parse().unwrap());
        }
        request
    }

    async fn route(&self, topic: &str) -> pb::QueryRouteResponse {
        let endpoints = Some(self.endpoints.clone());
        let request = pb::QueryRouteRequest { topic: resource(topic), endpoints };
        self.service.clone().query_route(self.request(request)).await.unwrap().into_inner()
    }

    async fn send(&self, messages: Vec<pb::Message>) -> pb::SendMessageResponse {
        let request = pb::SendMessageRequest { messages };
        self.service.clone().send_message(self.request(request)).await.unwrap().into_inner()
    }

    /// Sends one, which has to be taken in.
    async fn sent(&self, message: pb::Message) -> pb::SendResultEntry {
        let mut response = self.send(vec![message]).await;
        assert_eq!(response.status.unwrap().code(), Code::Ok);
        response.entries.remove(0)
    }

    /// What a receive says, message by message.
    async fn receives(&self, request: pb::ReceiveMessageRequest) -> Vec<Content> {
        let mut request = self.request(request);
        request.set_timeout(Duration::from_secs(30));
        let mut stream = self.service.clone().receive_message(request).await.unwrap().into_inner();
        let mut contents = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            contents.extend(response.content);
        }
        contents
    }

    /// The messages of a receive, which says before them that it is well.
    async fn receive(&self, request: pb::ReceiveMessageRequest) -> Vec<pb::Message> {
        let contents = self.receives(request).await;
        let Some(Content::Status(status)) = contents.first() else { panic!("{contents:?}") };
        match status.code() {
            Code::MessageNotFound => {
                assert_eq!(contents.len(), 1, "nothing else is said");
                return Vec::new();
            }
            Code::Ok => {}
            other => panic!("{other:?}: {}", status.message),
        }
        assert!(matches!(contents.last(), Some(Content::DeliveryTimestamp(_))));
        let message = |content| match content {
            Content::Message(message) => Some(message),
            _ => None,
        };
        contents.into_iter().filter_map(message).collect()
    }

    /// The one message that comes.
    async fn one(&self, request: pb::ReceiveMessageRequest) -> pb::Message {
        let mut messages = self.receive(request).await;
        assert_eq!(messages.len(), 1);
        messages.remove(0)
    }

    async fn ack(&self, group: &str, messages: &[pb::Message]) -> pb::AckMessageResponse {
        let entry = |message: &pb::Message| pb::AckMessageEntry {
            message_id: system(message).message_id.clone(),
            receipt_handle: handle(message),
            lite_topic: None,
        };
        let request = pb::AckMessageRequest {
            group: resource(group),
            topic: messages[0].topic.clone(),
            entries: messages.iter().map(entry).collect(),
        };
        self.service.clone().ack_message(self.request(request)).await.unwrap().into_inner()
    }

    async fn forward(&self, group: &str, message: &pb::Message) -> pb::Status {
        let request = pb::ForwardMessageToDeadLetterQueueRequest {
            group: resource(group),
            topic: message.topic.clone(),
            receipt_handle: handle(message),
            message_id: system(message).message_id.clone(),
            delivery_attempt: 3,
            max_delivery_attempts: 3,
            lite_topic: None,
        };
        let request = self.request(request);
        let done = self.service.clone().forward_message_to_dead_letter_queue(request).await;
        done.unwrap().into_inner().status.unwrap()
    }

    async fn change(
        &self,
        group: &str,
        message: &pb::Message,
        ms: u64,
    ) -> pb::ChangeInvisibleDurationResponse {
        let request = pb::ChangeInvisibleDurationRequest {
            group: resource(group),
            topic: message.topic.clone(),
            receipt_handle: handle(message),
            invisible_duration: Some(Duration::from_millis(ms).try_into().unwrap()),
            message_id: system(message).message_id.clone(),
            ..Default::default()
        };
        let request = self.request(request);
        self.service.clone().change_invisible_duration(request).await.unwrap().into_inner()
    }
}

fn system(message: &pb::Message) -> &pb::SystemProperties {
    message.system_properties.as_ref().unwrap()
}

fn handle(message: &pb::Message) -> String {
    system(message).receipt_handle.clone().unwrap()
}

fn bodies(messages: &[pb::Message]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8(m.body.to_vec()).unwrap()).collect()
}

/// A message as a client sends it: with an id of its own, and what is said of where and
/// when it was born.
fn message(topic: &str, number: u32, body: &str) -> pb::Message {
    pb::Message {
        topic: resource(topic),
        user_properties: HashMap::new(),
        system_properties: Some(pb::SystemProperties {
            message_id: format!("01AABBCCDDEEFF0011{number:016X}"),
            body_encoding: pb::Encoding::Identity.into(),
            message_type: MessageType::Normal.into(),
            born_timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            born_host: "host-1".into(),
            ..Default::default()
        }),
        body: body.to_owned().into(),
    }
}

fn with(mut message: pb::Message, change: impl FnOnce(&mut pb::SystemProperties)) -> pb::Message {
    change(message.system_properties.as_mut().unwrap());
    message
}

/// A receive as a SimpleConsumer sends it.
fn simple(group: &str, topic: &str) -> pb::ReceiveMessageRequest {
    pb::ReceiveMessageRequest {
        group: resource(group),
        message_queue: Some(pb::MessageQueue { topic: resource(topic), ..Default::default() }),
        batch_size: 32,
        invisible_duration: seconds(30),
        long_polling_timeout: seconds(20),
        ..Default::default()
    }
}

/// A receive as a PushConsumer sends it.
fn push(group: &str, topic: &str) -> pb::ReceiveMessageRequest {
    pb::ReceiveMessageRequest { invisible_duration: None, auto_renew: true, ..simple(group, topic) }
}

/// The same, which does not wait.
fn at_once(request: pb::ReceiveMessageRequest) -> pb::ReceiveMessageRequest {
    pb::ReceiveMessageRequest { long_polling_timeout: seconds(0), ..request }
}

async fn put_group(node: &Node, name: &str, topic: &str, change: impl FnOnce(&mut GroupPatch)) {
    let subscription = Subscription { topic: topic.into(), filter: "*".into() };
    let mut patch = GroupPatch { subscriptions: Some(vec![subscription]), ..Default::default() };
    change(&mut patch);
    node.broker.put_group(&Caller::Node, name, patch).await.unwrap();
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("it never came to that: {what}"))
}

/// How long something took.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (future.await, began.elapsed())
}
