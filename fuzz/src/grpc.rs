//! The native gRPC interface: requests to a node on a simulated disk.

use std::fmt::Debug;

use posthouse_client::proto::{self, consume_request, reschedule_request, seek_request};
use posthouse_frame::varint::{self, Cursor};
use prost::Message;

use crate::node::{self, IS_LARGE, METHOD, Node, PATIENCE_MS, SCENE, STREAM_MS};
use crate::{Seeds, memory, piece};

/// A method: its name, and whether a request of it is understood.
type Method = (&'static str, fn(&[u8]) -> bool);

macro_rules! methods {
    ($($name:ident($request:ident))*) => {
        [$((stringify!($name), again::<proto::$request>),)*]
    };
}

// The number of a method is its place: new ones come behind the others.
const METHODS: [Method; 50] = methods! {
    Publish(PublishRequest) PublishStream(PublishRequest) Receive(ReceiveRequest) Ack(AckRequest)
    Nack(NackRequest) Extend(ExtendRequest) Consume(ConsumeRequest) PutTopic(PutTopicRequest)
    GetTopic(GetTopicRequest) ListTopics(ListTopicsRequest) DeleteTopic(DeleteTopicRequest)
    PurgeTopic(PurgeTopicRequest) Browse(BrowseRequest) GetMessage(GetMessageRequest)
    GetHistory(GetHistoryRequest) Reschedule(RescheduleRequest) Cancel(CancelRequest)
    ListScheduled(ListScheduledRequest) GetScheduleHours(GetScheduleHoursRequest)
    PurgeScheduled(PurgeScheduledRequest) PrepareTransaction(PrepareTransactionRequest)
    CommitTransaction(TransactionRequest) RollbackTransaction(TransactionRequest)
    GetTransaction(TransactionRequest) ListTransactions(ListTransactionsRequest)
    TakeTransactionChecks(TakeTransactionChecksRequest)
    CheckTransactions(CheckTransactionsRequest) PutRecurring(PutRecurringRequest)
    GetRecurring(GetRecurringRequest) ListRecurring(ListRecurringRequest)
    DeleteRecurring(DeleteRecurringRequest) PauseRecurring(PauseRecurringRequest)
    ResumeRecurring(ResumeRecurringRequest) RunRecurring(RunRecurringRequest)
    PutGroup(PutGroupRequest) GetGroup(GetGroupRequest) ListGroups(ListGroupsRequest)
    DeleteGroup(DeleteGroupRequest) PauseGroup(PauseGroupRequest) ResumeGroup(ResumeGroupRequest)
    Seek(SeekRequest) ListDeadLetters(ListDeadLettersRequest)
    RedriveDeadLetters(RedriveDeadLettersRequest) PurgeDeadLetters(PurgeDeadLettersRequest)
    PutUser(PutUserRequest) GetUser(GetUserRequest) ListUsers(ListUsersRequest)
    DeleteUser(DeleteUserRequest) CreateToken(CreateTokenRequest) RevokeToken(RevokeTokenRequest)
};

/// Whether it is a request. One that is, is written and read as the same.
fn again<T: Message + Default + PartialEq + Debug>(data: &[u8]) -> bool {
    let Ok(request) = T::decode(data) else { return false };
    let again = T::decode(&*request.encode_to_vec()).expect("what was written is read");
    assert_eq!(again, request);
    true
}

/// A byte that says which method, and the request; of a method that takes a stream,
/// requests with their lengths before them.
pub fn run(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    let method = METHODS[usize::from(which & METHOD) % METHODS.len()];
    let is_stream = matches!(method.0, "PublishStream" | "Consume");
    if which & IS_LARGE != 0 {
        if !is_stream {
            node::with_large(data, |node, request| call(node, method.0, &[request], false));
        }
        return;
    }
    let mut requests = vec![data];
    if is_stream {
        let mut c = Cursor::new(data);
        requests = std::iter::from_fn(|| (!c.is_empty()).then(|| piece(&mut c))).collect();
    }
    let is_understood = memory::within(512 * data.len() + (16 << 10), || {
        let understood = |request: &&[u8]| method.1(request);
        // Not only the first that is none: what is behind it is read in any case.
        requests.iter().filter(|request| understood(request)).count() == requests.len()
    });
    node::with_small(data, |node| call(node, method.0, &requests, is_understood));
}

fn call(node: &mut Node, name: &str, requests: &[&[u8]], is_understood: bool) {
    let path = format!("/posthouse.v1.Posthouse/{name}");
    let has_no_end = matches!(name, "Consume" | "CheckTransactions");
    let patience = if has_no_end { STREAM_MS } else { PATIENCE_MS };
    let called = node.call(&path, &[], requests, patience);
    assert!(called.code.is_some() || has_no_end, "{name} has no end");
    // What is no request the library calls an internal error.
    assert!(!called.is_fault() || !is_understood, "{name}: {called:?}");
    let words = called.code == Some(0) || !called.text.is_empty() || called.code.is_none();
    assert!(words, "{name} is refused without a word");
}

pub fn seeds() -> Seeds {
    let scene = &*SCENE;
    let number =
        |name: &str| METHODS.iter().position(|(known, _)| *known == name).expect("a method") as u8;
    let seed = |name: &str, request: &[u8]| [&[number(name)], request].concat();
    let large = |name: &str, request: &[u8]| [&[number(name) | IS_LARGE], request].concat();
    let stream = |name: &str, requests: &[Vec<u8>]| {
        let mut out = vec![number(name)];
        requests.iter().for_each(|request| varint::put_bytes(&mut out, request));
        out
    };
    let text = |text: &str| text.to_owned();
    let message = proto::OutgoingMessage {
        body: "hello".into(),
        key: Some(text("k")),
        tags: vec![text("eu")],
        headers: [(text("a"), text("b"))].into(),
        ttl_ms: Some(60_000),
        dedupe_id: Some(text("d-1")),
        ..Default::default()
    };
    let later = proto::OutgoingMessage {
        topic: text("new"),
        delay_ms: Some(1_000),
        name: Some(text("reminder")),
        name_taken: proto::NameTaken::Keep.into(),
        ..Default::default()
    };
    let publish = proto::PublishRequest {
        topic: text("orders"),
        messages: vec![message.clone(), later],
        apart: true,
    };
    let publish = publish.encode_to_vec();
    let empty = proto::PublishRequest {
        messages: vec![proto::OutgoingMessage::default()],
        ..Default::default()
    };
    let empty = empty.encode_to_vec();
    let (group, receipts) = (text("workers"), vec![scene.receipt.clone(), text("x")]);
    let receive = proto::ReceiveRequest {
        group: group.clone(),
        consumer: text("c"),
        max: Some(10),
        max_bytes: Some(1_000),
        wait_ms: Some(2_000),
        lease_ms: Some(5_000),
        topic: Some(text("orders")),
        ..Default::default()
    };
    let ack = proto::AckRequest { group: group.clone(), receipts: receipts.clone() };
    let nack = proto::NackRequest {
        group: group.clone(),
        receipts: receipts.clone(),
        delay_ms: Some(5),
        reason: text("no"),
    };
    let extend = proto::ExtendRequest {
        group: group.clone(),
        receipts: receipts.clone(),
        lease_ms: Some(60_000),
    };
    let consume = |request| proto::ConsumeRequest { request: Some(request) }.encode_to_vec();
    let open = consume_request::Open {
        group: group.clone(),
        topic: Some(text("orders")),
        credit: Some(consume_request::Credit { messages: 1, bytes: 100 }),
        max_batch: Some(1),
        ..Default::default()
    };
    let credit = consume_request::Credit { messages: u32::MAX, bytes: u64::MAX };
    let stream_ack = consume_request::StreamAck { seq: 9, receipts };
    let consumed = [
        consume(consume_request::Request::Open(open)),
        consume(consume_request::Request::Credit(credit)),
        consume(consume_request::Request::Ack(stream_ack)),
    ];
    let limits = proto::retention::Limits {
        max_age_ms: Some(60_000),
        max_bytes: Some(1 << 20),
        max_count: Some(9),
    };
    let topic = proto::TopicConfig {
        partitions: Some(3),
        retention: Some(proto::Retention {
            retention: Some(proto::retention::Retention::Limits(limits)),
        }),
        dedupe_window_ms: Some(60_000),
        checks: Some(3),
        publish_quota: Some(proto::PublishQuota { messages_per_s: Some(5), bytes_per_s: None }),
        accepts: Some(proto::Accepts::Keyed.into()),
        ..Default::default()
    };
    let topic = proto::PutTopicRequest { name: text("orders"), config: Some(topic) };
    let subscription =
        proto::Subscription { topic: text("orders.*"), filter: text("sql: a > 1 OR TAGS = 'b'") };
    let subscriptions = proto::group_config::Subscriptions { subscriptions: vec![subscription] };
    let config = proto::GroupConfig {
        subscriptions: Some(subscriptions),
        start: Some(proto::Start { start: Some(proto::start::Start::TimeMs(5)) }),
        lease_ms: Some(60_000),
        backoff: Some(proto::group_config::Backoff { steps_ms: vec![5, 60_000] }),
        order: proto::Order::Key.into(),
        window: Some(64),
        ..Default::default()
    };
    let put_group = proto::PutGroupRequest { name: text("new"), config: Some(config) };
    let purge =
        proto::PurgeTopicRequest { name: text("orders"), partition: Some(1), before: Some(1) };
    let browse = proto::BrowseRequest {
        topic: text("orders"),
        since_ms: Some(5),
        until_ms: Some(u64::MAX),
        key: Some(text("k")),
        limit: 2,
        ..Default::default()
    };
    let target = |id: &str, name: &str| proto::ScheduledTarget {
        id: text(id),
        topic: text(if name.is_empty() { "" } else { "orders" }),
        name: text(name),
    };
    let item = |target, to| reschedule_request::Item { target: Some(target), to: Some(to) };
    let moved = proto::RescheduleRequest {
        items: vec![
            item(target(&scene.scheduled, ""), reschedule_request::item::To::ByMs(-5)),
            item(target("", "reminder"), reschedule_request::item::To::DelayMs(90_000)),
        ],
    };
    let cancel = proto::CancelRequest { targets: vec![target("", "reminder")] };
    let scheduled = proto::ListScheduledRequest {
        topic: text("orders"),
        from_ms: Some(5),
        until_ms: Some(u64::MAX),
        limit: 3,
        ..Default::default()
    };
    let prepare = proto::PrepareTransactionRequest {
        producer: text("p"),
        messages: vec![proto::OutgoingMessage { topic: text("orders"), ..message.clone() }],
        check_after_ms: Some(500),
        checks: Some(2),
        dedupe_id: Some(text("t")),
    };
    let transaction = proto::TransactionRequest { id: scene.transaction.clone() }.encode_to_vec();
    let checks = proto::TakeTransactionChecksRequest {
        producer: text("p"),
        max: 3,
        wait_ms: 40_000,
        ..Default::default()
    };
    let cron = proto::recurring_config::Cron {
        expression: text("0 30 9 * * MON-FRI"),
        zone: text("Europe/Berlin"),
    };
    let recurring = proto::RecurringConfig {
        topic: text("orders"),
        body: "again".into(),
        tags: vec![text("t")],
        headers: [(text("a"), text("b"))].into(),
        recurs: Some(proto::recurring_config::Recurs::Cron(cron)),
        jitter_ms: 5,
        missed: proto::Missed::Skip.into(),
        ..Default::default()
    };
    let recurring = proto::PutRecurringRequest { name: text("new"), config: Some(recurring) };
    let nothing = proto::RecurringConfig { tags: vec![text("")], ..Default::default() };
    let tagged = proto::PutRecurringRequest { name: text(""), config: Some(nothing) };
    let seek = proto::SeekRequest {
        group: group.clone(),
        topic: Some(text("orders")),
        to: Some(seek_request::To::Position(seek_request::AtPosition {
            partition: 0,
            position: 1,
        })),
    };
    let redrive = proto::RedriveDeadLettersRequest {
        group: group.clone(),
        ids: vec![scene.letter.clone()],
        rate: Some(5),
        ..Default::default()
    };
    let grant = proto::AccessGrant {
        actions: vec![proto::Action::Publish.into(), proto::Action::Consume.into()],
        topics: vec![text("orders.*")],
        groups: vec![text("*")],
    };
    let user = proto::PutUserRequest {
        name: text("shop"),
        grants: vec![grant],
        publish_quota: Some(proto::PublishQuota::default()),
    };
    let name = |name: &str| proto::GetTopicRequest { name: text(name) }.encode_to_vec();
    let (by_group, by_message) = (name("workers"), name(&scene.message));
    vec![
        ("publish", seed("Publish", &publish)),
        ("publish-stream", stream("PublishStream", &[publish.clone(), Vec::new(), publish])),
        ("receive", seed("Receive", &receive.encode_to_vec())),
        ("ack", seed("Ack", &ack.encode_to_vec())),
        ("nack", seed("Nack", &nack.encode_to_vec())),
        ("extend", seed("Extend", &extend.encode_to_vec())),
        ("consume", stream("Consume", &consumed)),
        ("topic", seed("PutTopic", &topic.encode_to_vec())),
        ("topic-purge", seed("PurgeTopic", &purge.encode_to_vec())),
        ("topic-delete", seed("DeleteTopic", &name("orders"))),
        ("browse", seed("Browse", &browse.encode_to_vec())),
        ("message", seed("GetMessage", &by_message)),
        ("history", seed("GetHistory", &by_message)),
        ("reschedule", seed("Reschedule", &moved.encode_to_vec())),
        ("cancel", seed("Cancel", &cancel.encode_to_vec())),
        ("scheduled", seed("ListScheduled", &scheduled.encode_to_vec())),
        ("hours", seed("GetScheduleHours", &name("orders"))),
        ("prepare", seed("PrepareTransaction", &prepare.encode_to_vec())),
        ("commit", seed("CommitTransaction", &transaction)),
        ("rollback", seed("RollbackTransaction", &transaction)),
        ("transaction", seed("GetTransaction", &transaction)),
        ("checks", seed("TakeTransactionChecks", &checks.encode_to_vec())),
        ("checks-stream", seed("CheckTransactions", &name("p"))),
        ("recurring", seed("PutRecurring", &recurring.encode_to_vec())),
        ("recurring-run", seed("RunRecurring", &name("daily"))),
        ("recurring-pause", seed("PauseRecurring", &name("daily"))),
        ("group", seed("PutGroup", &put_group.encode_to_vec())),
        ("group-get", seed("GetGroup", &by_group)),
        ("group-pause", seed("PauseGroup", &by_group)),
        ("seek", seed("Seek", &seek.encode_to_vec())),
        ("letters", seed("ListDeadLetters", &by_group)),
        ("redrive", seed("RedriveDeadLetters", &redrive.encode_to_vec())),
        ("user", seed("PutUser", &user.encode_to_vec())),
        ("large-publish", large("Publish", &empty)),
        ("large-prepare", large("PrepareTransaction", &empty)),
        ("large-recurring", large("PutRecurring", &tagged.encode_to_vec())),
        (
            "large-ack",
            large(
                "Ack",
                &proto::AckRequest { receipts: vec![text("")], ..Default::default() }
                    .encode_to_vec(),
            ),
        ),
        ("large-group", large("PutGroup", &put_group.encode_to_vec())),
        ("large-user", large("PutUser", &user.encode_to_vec())),
    ]
}
