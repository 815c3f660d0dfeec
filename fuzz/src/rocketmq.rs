//! The door for RocketMQ clients: requests to a node on a simulated disk.

use std::collections::HashMap;

use axum::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use posthouse::doors::rocketmq::pb::{self, Code, MessageType};
use posthouse_frame::varint::{self, Cursor};
use prost::Message;

use crate::node::{self, Called, IS_LARGE, METHOD, Node, PATIENCE_MS, SCENE, STREAM_MS};
use crate::{Seeds, memory, piece};

/// A method: its name, whether a request of it is understood, and the status of an answer.
type Method = (&'static str, fn(&[u8]) -> bool, fn(&[u8]) -> Option<pb::Status>);

macro_rules! methods {
    ($($name:ident($request:ident) -> $response:ident by $status:expr;)*) => {
        [$((
            stringify!($name),
            |data| pb::$request::decode(data).is_ok(),
            |data| {
                let status: fn(pb::$response) -> Option<pb::Status> = $status;
                status(pb::$response::decode(data).expect("an answer"))
            },
        ),)*]
    };
}

// The number of a method is its place: new ones come behind the others.
const METHODS: [Method; 17] = methods! {
    SendMessage(SendMessageRequest) -> SendMessageResponse by |of| of.status;
    ReceiveMessage(ReceiveMessageRequest) -> ReceiveMessageResponse by |of| {
        match of.content? {
            pb::receive_message_response::Content::Status(status) => Some(status),
            _ => None,
        }
    };
    AckMessage(AckMessageRequest) -> AckMessageResponse by |of| of.status;
    ChangeInvisibleDuration(ChangeInvisibleDurationRequest)
        -> ChangeInvisibleDurationResponse by |of| of.status;
    ForwardMessageToDeadLetterQueue(ForwardMessageToDeadLetterQueueRequest)
        -> ForwardMessageToDeadLetterQueueResponse by |of| of.status;
    Telemetry(TelemetryCommand) -> TelemetryCommand by |of| of.status;
    QueryRoute(QueryRouteRequest) -> QueryRouteResponse by |of| of.status;
    QueryAssignment(QueryAssignmentRequest) -> QueryAssignmentResponse by |of| of.status;
    Heartbeat(HeartbeatRequest) -> HeartbeatResponse by |of| of.status;
    NotifyClientTermination(NotifyClientTerminationRequest)
        -> NotifyClientTerminationResponse by |of| of.status;
    RecallMessage(RecallMessageRequest) -> RecallMessageResponse by |of| of.status;
    EndTransaction(EndTransactionRequest) -> EndTransactionResponse by |of| of.status;
    SyncLiteSubscription(SyncLiteSubscriptionRequest)
        -> SyncLiteSubscriptionResponse by |of| of.status;
    PullMessage(PullMessageRequest) -> PullMessageResponse by |of| match of.content? {
        pb::pull_message_response::Content::Status(status) => Some(status),
        _ => None,
    };
    UpdateOffset(UpdateOffsetRequest) -> UpdateOffsetResponse by |of| of.status;
    GetOffset(GetOffsetRequest) -> GetOffsetResponse by |of| of.status;
    QueryOffset(QueryOffsetRequest) -> QueryOffsetResponse by |of| of.status;
};

/// A byte that says which method; how long the client waits, as a text with its length
/// before it; and the request. For a stream of commands, each with its length before it.
pub fn run(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let method = &METHODS[usize::from(which & METHOD) % METHODS.len()];
    if which & IS_LARGE != 0 {
        node::with_large(rest, |node, request| call(node, method, None, &[request], false));
        return;
    }
    let mut c = Cursor::new(rest);
    let timeout = HeaderValue::from_bytes(piece(&mut c)).ok();
    let mut requests = Vec::new();
    match method.0 {
        "Telemetry" => requests.extend(std::iter::from_fn(|| {
            let is_more = !c.is_empty();
            is_more.then(|| piece(&mut c))
        })),
        _ => requests.push(c.rest()),
    }
    let is_understood = memory::within(1024 * data.len() + (16 << 10), || {
        requests.iter().filter(|request| (method.1)(request)).count() == requests.len()
    });
    node::with_small(data, |node| {
        let called = call(node, method, timeout, &requests, is_understood);
        if method.0 == "SendMessage" && is_understood {
            comes_back(node, requests[0], &called);
        }
    });
}

fn call(
    node: &mut Node,
    (name, _, status): &Method,
    timeout: Option<HeaderValue>,
    requests: &[&[u8]],
    is_understood: bool,
) -> Called {
    let path = format!("/apache.rocketmq.v2.MessagingService/{name}");
    let client = HeaderName::from_static("x-mq-client-id");
    let mut headers = vec![(client, HeaderValue::from_static("a client"))];
    let timeout = timeout.filter(|timeout| !timeout.is_empty());
    headers.extend(timeout.map(|value| (HeaderName::from_static("grpc-timeout"), value)));
    let patience = if *name == "Telemetry" { STREAM_MS } else { PATIENCE_MS };
    let called = node.call(&path, &headers, requests, patience);
    assert!(called.code.is_some(), "{name} has no end");
    // What is no request the library calls an internal error.
    assert!(!called.is_fault() || !is_understood, "{name}: {called:?}");
    for status in called.messages.iter().filter_map(|message| status(message)) {
        assert_ne!(status.code(), Code::Unspecified, "{name}: {status:?}");
        let is_fault = matches!(status.code(), Code::InternalError | Code::InternalServerError);
        assert!(!is_fault && !status.message.is_empty(), "{name}: {status:?}");
    }
    called
}

/// What was sent comes to a group as it was, and can be acknowledged.
fn comes_back(node: &mut Node, request: &[u8], called: &Called) {
    let (Ok(sent), [answer]) = (pb::SendMessageRequest::decode(request), &called.messages[..])
    else {
        return;
    };
    let taken = pb::SendMessageResponse::decode(&answer[..]).expect("an answer").entries;
    let Some(topic) = sent.messages.first().and_then(|message| message.topic.clone()) else {
        return;
    };
    let is_at_once = |message: &pb::Message| {
        message.system_properties.as_ref().is_none_or(|system| {
            system.delivery_timestamp.is_none() && system.message_type() != MessageType::Transaction
        })
    };
    // Of messages with one id the first is taken in.
    let mut wanted: HashMap<String, &pb::Message> = HashMap::new();
    for (message, entry) in sent.messages.iter().zip(&taken) {
        let is_taken = entry.status.as_ref().is_some_and(|status| status.code() == Code::Ok);
        if is_taken && is_at_once(message) {
            // An id that is none is shown as one of the node.
            let id = entry.message_id.clone();
            if id.len() == 34 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                wanted.entry(id).or_insert(message);
            }
        }
    }
    if wanted.is_empty() {
        return;
    }
    let group = Some(pb::Resource { name: "back".to_owned(), ..topic.clone() });
    let receive = pb::ReceiveMessageRequest {
        group: group.clone(),
        message_queue: Some(pb::MessageQueue { topic: Some(topic), ..Default::default() }),
        batch_size: 10_000,
        auto_renew: true,
        ..Default::default()
    };
    let received = call(node, &METHODS[1], None, &[&receive.encode_to_vec()], true);
    let mut entries = Vec::new();
    for message in received.messages.iter().filter_map(message_of) {
        let system = message.system_properties.clone().expect("the node has something to say");
        entries.push(pb::AckMessageEntry {
            message_id: system.message_id.clone(),
            receipt_handle: system.receipt_handle.clone().expect("it can be acknowledged"),
            ..Default::default()
        });
        if let Some(sent) = wanted.remove(&system.message_id) {
            same(sent, &message, &system);
        }
    }
    assert!(wanted.is_empty(), "{wanted:?} was taken in, and does not come");
    let ack = pb::AckMessageRequest { group, entries, ..Default::default() };
    let acked = call(node, &METHODS[2], None, &[&ack.encode_to_vec()], true);
    let acked = pb::AckMessageResponse::decode(&acked.messages[0][..]).expect("an answer");
    assert_eq!(
        acked.status.map(|status| status.code),
        Some(Code::Ok.into()),
        "{:?}",
        acked.entries
    );
}

fn message_of(response: &Bytes) -> Option<pb::Message> {
    let response = pb::ReceiveMessageResponse::decode(&response[..]).expect("an answer");
    match response.content? {
        pb::receive_message_response::Content::Message(message) => Some(message),
        _ => None,
    }
}

fn same(sent: &pb::Message, message: &pb::Message, system: &pb::SystemProperties) {
    let said = sent.system_properties.clone().unwrap_or_default();
    assert_eq!(message.body, sent.body);
    assert_eq!(message.topic, sent.topic);
    assert_eq!(message.user_properties, sent.user_properties);
    let of = |system: &pb::SystemProperties| {
        let is_gzip = system.body_encoding() == pb::Encoding::Gzip;
        let pb::SystemProperties { tag, keys, born_host, message_group, .. } = system.clone();
        let trace = system.trace_context.clone().filter(|trace| !trace.is_empty());
        (tag, keys, born_host, message_group, trace, is_gzip)
    };
    assert_eq!(of(system), of(&said));
}

pub fn seeds() -> Seeds {
    let scene = &*SCENE;
    let number =
        |name: &str| METHODS.iter().position(|(known, ..)| *known == name).expect("a method") as u8;
    let seed = |name: &str, timeout: &str, requests: &[Vec<u8>]| {
        let mut out = vec![number(name)];
        varint::put_bytes(&mut out, timeout.as_bytes());
        for request in requests {
            match name {
                "Telemetry" => varint::put_bytes(&mut out, request),
                _ => out.extend_from_slice(request),
            }
        }
        out
    };
    let one = |name: &str, request: Vec<u8>| seed(name, "", &[request]);
    let large = |name: &str, request: Vec<u8>| [&[number(name) | IS_LARGE], &request[..]].concat();
    let resource = |name: &str| {
        Some(pb::Resource { resource_namespace: String::new(), name: name.to_owned() })
    };
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 500_000_000 });
    let message = |topic: &str, change: &dyn Fn(&mut pb::SystemProperties)| {
        let mut system = pb::SystemProperties {
            message_id: "01A1B2C3D4E5F60718293A4B5C6D7E8F90".to_owned(),
            tag: Some("eu".to_owned()),
            keys: vec!["k1".to_owned(), "k 2".to_owned()],
            born_host: "host".to_owned(),
            message_type: MessageType::Normal.into(),
            ..Default::default()
        };
        change(&mut system);
        pb::Message {
            topic: resource(topic),
            user_properties: [("a".to_owned(), "b".to_owned())].into(),
            system_properties: Some(system),
            body: "hello".into(),
        }
    };
    let send = |messages| pb::SendMessageRequest { messages }.encode_to_vec();
    let plain = send(vec![
        message("new", &|system| {
            system.set_body_encoding(pb::Encoding::Gzip);
            system.trace_context = Some("00-1".to_owned());
        }),
        message("new", &|system| {
            system.set_message_type(MessageType::Fifo);
            system.message_group = Some("g".to_owned());
            system.message_id = "0".repeat(34);
        }),
        message("new", &|system| system.message_id = "of another".to_owned()),
    ]);
    let later = send(vec![message("orders", &|system| {
        system.set_message_type(MessageType::Delay);
        system.delivery_timestamp =
            Some(prost_types::Timestamp { seconds: (node::BEGIN_MS / 1000) as i64 + 5, nanos: 0 });
    })]);
    let prepared = send(vec![message("orders", &|system| {
        system.set_message_type(MessageType::Transaction);
        system.orphaned_transaction_recovery_duration = seconds(5);
    })]);
    let address = pb::Address { host: "127.0.0.1".to_owned(), port: 8081 };
    let endpoints = Some(pb::Endpoints { scheme: 1, addresses: vec![address] });
    let route = pb::QueryRouteRequest { topic: resource("wide"), endpoints: endpoints.clone() };
    let assignment = pb::QueryAssignmentRequest {
        topic: resource("%DLQ%workers"),
        group: resource("workers"),
        endpoints: endpoints.clone(),
    };
    let filter = |sort: pb::FilterType, text: &str| {
        Some(pb::FilterExpression { r#type: sort.into(), expression: text.to_owned() })
    };
    let queue = Some(pb::MessageQueue { topic: resource("orders"), ..Default::default() });
    let receive = pb::ReceiveMessageRequest {
        group: resource("workers"),
        message_queue: queue.clone(),
        filter_expression: filter(pb::FilterType::Tag, "eu || not"),
        batch_size: 32,
        long_polling_timeout: seconds(20),
        auto_renew: true,
        attempt_id: Some("a".to_owned()),
        ..Default::default()
    };
    let simple = pb::ReceiveMessageRequest {
        filter_expression: filter(pb::FilterType::Sql, "a > 1 OR TAGS = 'eu'"),
        invisible_duration: seconds(30),
        auto_renew: false,
        ..receive.clone()
    };
    let handle = |is_renewed: bool| match is_renewed {
        true => format!("r:{}", scene.receipt),
        false => scene.receipt.clone(),
    };
    let entry = |handle| pb::AckMessageEntry {
        message_id: "m".to_owned(),
        receipt_handle: handle,
        ..Default::default()
    };
    let ack = pb::AckMessageRequest {
        group: resource("workers"),
        topic: resource("orders"),
        entries: vec![entry(handle(true)), entry("x".to_owned())],
    };
    let change = |is_renewed, seconds| {
        let request = pb::ChangeInvisibleDurationRequest {
            group: resource("workers"),
            topic: resource("orders"),
            receipt_handle: handle(is_renewed),
            invisible_duration: seconds,
            ..Default::default()
        };
        request.encode_to_vec()
    };
    let forward = pb::ForwardMessageToDeadLetterQueueRequest {
        group: resource("workers"),
        topic: resource("orders"),
        receipt_handle: handle(false),
        delivery_attempt: 1,
        max_delivery_attempts: 1,
        ..Default::default()
    };
    let settings = |pub_sub| {
        let settings = pb::Settings {
            client_type: Some(pb::ClientType::PushConsumer.into()),
            access_point: endpoints.clone(),
            request_timeout: seconds(3),
            user_agent: Some(pb::Ua {
                language: pb::Language::NodeJs.into(),
                ..Default::default()
            }),
            pub_sub: Some(pub_sub),
            ..Default::default()
        };
        let command = Some(pb::telemetry_command::Command::Settings(settings));
        pb::TelemetryCommand { status: None, command }.encode_to_vec()
    };
    let entry_of = pb::SubscriptionEntry {
        topic: resource("orders"),
        expression: filter(pb::FilterType::Tag, "*"),
    };
    let subscription = pb::Subscription {
        group: resource("workers"),
        subscriptions: vec![entry_of],
        ..Default::default()
    };
    let publishing = pb::Publishing {
        topics: vec![resource("orders").expect("a resource")],
        max_body_size: 1,
        ..Default::default()
    };
    let commands = [
        settings(pb::settings::PubSub::Publishing(publishing)),
        settings(pb::settings::PubSub::Subscription(subscription)),
    ];
    let recall = pb::RecallMessageRequest {
        topic: resource("orders"),
        recall_handle: scene.scheduled.clone(),
    };
    let end = |resolution: pb::TransactionResolution| {
        let request = pb::EndTransactionRequest {
            topic: resource("orders"),
            transaction_id: scene.transaction.clone(),
            resolution: resolution.into(),
            ..Default::default()
        };
        request.encode_to_vec()
    };
    let pull = pb::PullMessageRequest {
        group: resource("workers"),
        message_queue: queue,
        offset: 1,
        batch_size: 5,
        ..Default::default()
    };
    let empty = send(vec![pb::Message::default()]);
    let no_address = pb::QueryRouteRequest {
        topic: None,
        endpoints: Some(pb::Endpoints { scheme: 0, addresses: vec![pb::Address::default()] }),
    };
    let topics = settings(pb::settings::PubSub::Publishing(pb::Publishing {
        topics: vec![pb::Resource::default()],
        ..Default::default()
    }));
    let acks = pb::AckMessageRequest { entries: vec![Default::default()], ..Default::default() };
    vec![
        ("send", one("SendMessage", plain)),
        ("send-later", one("SendMessage", later)),
        ("send-prepared", one("SendMessage", prepared)),
        ("receive", seed("ReceiveMessage", "23S", &[receive.encode_to_vec()])),
        ("receive-simple", seed("ReceiveMessage", "1500m", &[simple.encode_to_vec()])),
        ("ack", one("AckMessage", ack.encode_to_vec())),
        ("change", one("ChangeInvisibleDuration", change(false, seconds(30)))),
        ("change-renewed", one("ChangeInvisibleDuration", change(true, seconds(0)))),
        ("forward", one("ForwardMessageToDeadLetterQueue", forward.encode_to_vec())),
        ("telemetry", seed("Telemetry", "", &commands)),
        ("route", one("QueryRoute", route.encode_to_vec())),
        ("assignment", one("QueryAssignment", assignment.encode_to_vec())),
        ("heartbeat", one("Heartbeat", pb::HeartbeatRequest::default().encode_to_vec())),
        ("end", {
            let request = pb::NotifyClientTerminationRequest { group: resource("workers") };
            one("NotifyClientTermination", request.encode_to_vec())
        }),
        ("recall", one("RecallMessage", recall.encode_to_vec())),
        ("commit", one("EndTransaction", end(pb::TransactionResolution::Commit))),
        ("rollback", one("EndTransaction", end(pb::TransactionResolution::Rollback))),
        ("pull", one("PullMessage", pull.encode_to_vec())),
        ("large-send", large("SendMessage", empty)),
        ("large-ack", large("AckMessage", acks.encode_to_vec())),
        ("large-route", large("QueryRoute", no_address.encode_to_vec())),
        ("large-telemetry", large("Telemetry", topics)),
    ]
}
