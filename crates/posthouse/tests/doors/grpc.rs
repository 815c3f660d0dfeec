//! The gRPC door, through the generated client.

use std::net::SocketAddr;

use posthouse::json;
use posthouse_client::proto::{self, posthouse_client::PosthouseClient};
use posthouse_client::{Client, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tonic::Request;
use tonic::transport::Channel;

use crate::door::{Args, Door, Node, Refusal, take};

pub struct Grpc {
    client: PosthouseClient<Channel>,
    token: Option<String>,
}

impl Grpc {
    pub fn at(address: SocketAddr) -> Grpc {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        Grpc { client: PosthouseClient::new(channel.connect_lazy()), token: None }
    }

    fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }
}

fn json<T: DeserializeOwned>(args: Args) -> T {
    serde_json::from_value(Value::Object(args)).unwrap()
}

fn number(args: &mut Args, name: &str) -> Option<u64> {
    args.remove(name).map(|value| value.as_u64().unwrap())
}

fn text(args: &mut Args, name: &str) -> String {
    args.remove(name).map_or_else(String::new, |value| value.as_str().unwrap().to_owned())
}

fn time(args: &mut Args, name: &str) -> Option<u64> {
    args.remove(name).map(|value| serde_json::from_value::<json::Time>(value).unwrap().0)
}

fn show<T: Serialize>(shape: T) -> Value {
    serde_json::to_value(shape).unwrap()
}

fn refusal(status: tonic::Status) -> Refusal {
    let code = format!("{:?}", status.code());
    match Error::from(status) {
        Error::Refused(problem) => Refusal { code: problem.code.clone(), status: code },
        other => panic!("a refusal without a problem: {other:?}"),
    }
}

fn local(problem: posthouse::problem::Problem) -> Refusal {
    let status = format!("{:?}", problem.kind.grpc_code());
    Refusal { code: problem.code.into(), status }
}

macro_rules! call {
    ($self:ident.$method:ident($request:expr) as $shape:ty) => {{
        let request = $self.with_token($request);
        let response = $self.client.$method(request).await.map_err(refusal)?;
        Ok(show(<$shape>::from(response.into_inner())))
    }};
    ($self:ident.$method:ident($request:expr) => $show:expr) => {{
        let request = $self.with_token($request);
        let response = $self.client.$method(request).await.map_err(refusal)?;
        Ok($show(response.into_inner()))
    }};
}

fn nothing<T>(_: T) -> Value {
    Value::Object(Args::new())
}

impl Door for Grpc {
    async fn open(node: &Node) -> Self {
        // The crate's own client has to come to the same place.
        Client::connect(format!("http://{}", node.address)).await.unwrap();
        Grpc::at(node.address)
    }

    fn set_token(&mut self, token: Option<String>) {
        self.token = token;
    }

    async fn call(&mut self, operation: &str, mut args: Args) -> Result<Value, Refusal> {
        let mut named = |name: &str| take(&mut args, name);
        match operation {
            "put-topic" => {
                let name = named("topic");
                let config: json::TopicConfig = json(args);
                let config = Some(config.into_proto().map_err(local)?);
                call!(self.put_topic(proto::PutTopicRequest { name, config })
                    => |done: proto::PutTopicResponse| show(json::Topic::from(done.topic.unwrap())))
            }
            "get-topic" => {
                call!(self.get_topic(proto::GetTopicRequest { name: named("topic") }) as json::Topic)
            }
            "list-topics" => {
                let (prefix, after) = (text(&mut args, "prefix"), text(&mut args, "after"));
                let limit = number(&mut args, "limit").unwrap_or(0) as u32;
                call!(self.list_topics(proto::ListTopicsRequest { prefix, after, limit })
                    as json::Topics)
            }
            "delete-topic" => {
                call!(self.delete_topic(proto::DeleteTopicRequest { name: named("topic") })
                    => nothing)
            }
            "purge-topic" => {
                let name = named("topic");
                let json::PurgeTopic { partition, before } = json(args);
                call!(self.purge_topic(proto::PurgeTopicRequest { name, partition, before })
                    => |done: proto::PurgeTopicResponse| show(json::Purged { purged: done.purged }))
            }
            "publish" => {
                let topic = named("topic");
                let request = json::Publish::into_proto(json(args), topic).map_err(local)?;
                call!(self.publish(request) as json::Published)
            }
            "publish-many" => {
                let request = json::Publish::into_proto(json(args), String::new());
                call!(self.publish(request.map_err(local)?) as json::Published)
            }
            "browse" => {
                let request = proto::BrowseRequest {
                    topic: named("topic"),
                    partition: number(&mut args, "partition").unwrap_or(0) as u32,
                    from: number(&mut args, "from"),
                    since_ms: time(&mut args, "since"),
                    until_ms: time(&mut args, "until"),
                    key: Some(text(&mut args, "key")).filter(|key| !key.is_empty()),
                    limit: number(&mut args, "limit").unwrap_or(0) as u32,
                };
                call!(self.browse(request) as json::Browsed)
            }
            "scheduled" => {
                let request = proto::ListScheduledRequest {
                    topic: named("topic"),
                    from_ms: time(&mut args, "from"),
                    until_ms: time(&mut args, "until"),
                    key: Some(text(&mut args, "key")).filter(|key| !key.is_empty()),
                    name: None,
                    after: text(&mut args, "after"),
                    limit: number(&mut args, "limit").unwrap_or(0) as u32,
                };
                call!(self.list_scheduled(request) as json::ScheduledList)
            }
            "scheduled-named" => {
                let (topic, name) = (named("topic"), Some(named("name")));
                let request = proto::ListScheduledRequest { topic, name, ..Default::default() };
                call!(self.list_scheduled(request) => |done: proto::ListScheduledResponse| {
                    show(json::Message::from(done.messages.into_iter().next().unwrap()))
                })
            }
            "purge-scheduled" => {
                call!(self.purge_scheduled(proto::PurgeScheduledRequest { topic: named("topic") })
                => |done: proto::PurgeScheduledResponse| {
                    show(json::Purged { purged: done.purged })
                })
            }
            "hours" => {
                call!(
                    self.get_schedule_hours(proto::GetScheduleHoursRequest {
                        topic: named("topic")
                    }) as json::Hours
                )
            }
            "move" => {
                let json::Moves { messages } = json(args);
                let items: Result<_, _> =
                    messages.into_iter().map(json::Move::into_proto).collect();
                let items = items.map_err(local)?;
                call!(self.reschedule(proto::RescheduleRequest { items }) as json::Changes)
            }
            "cancel" => {
                let json::Targets { messages } = json(args);
                let targets = messages.into_iter().map(json::Target::into_proto).collect();
                call!(self.cancel(proto::CancelRequest { targets }) as json::Changes)
            }
            "put-recurring" => {
                let name = named("name");
                let config: json::RecurringConfig = json(args);
                let config = Some(config.into_proto().map_err(local)?);
                call!(self.put_recurring(proto::PutRecurringRequest { name, config })
                => |done: proto::PutRecurringResponse| {
                    show(json::Recurring::from(done.recurring.unwrap()))
                })
            }
            "get-recurring" => {
                call!(self.get_recurring(proto::GetRecurringRequest { name: named("name") })
                    as json::Recurring)
            }
            "list-recurring" => {
                let request = proto::ListRecurringRequest {
                    prefix: text(&mut args, "prefix"),
                    topic: text(&mut args, "topic"),
                    after: text(&mut args, "after"),
                    limit: number(&mut args, "limit").unwrap_or(0) as u32,
                };
                call!(self.list_recurring(request) as json::RecurringList)
            }
            "delete-recurring" => {
                call!(self.delete_recurring(proto::DeleteRecurringRequest { name: named("name") })
                    => nothing)
            }
            "pause-recurring" => {
                call!(self.pause_recurring(proto::PauseRecurringRequest { name: named("name") })
                    as json::Recurring)
            }
            "resume-recurring" => {
                call!(self.resume_recurring(proto::ResumeRecurringRequest { name: named("name") })
                    as json::Recurring)
            }
            "run-recurring" => {
                call!(self.run_recurring(proto::RunRecurringRequest { name: named("name") })
                    as json::PublishedMessage)
            }
            "message" => {
                call!(self.get_message(proto::GetMessageRequest { id: named("id") })
                    as json::MessageInfo)
            }
            "history" => {
                call!(
                    self.get_history(proto::GetHistoryRequest { id: named("id") }) as json::History
                )
            }
            "prepare" => {
                let request = json::Prepare::into_proto(json(args)).map_err(local)?;
                call!(self.prepare_transaction(request) as json::Transaction)
            }
            "transactions" => {
                let request = proto::ListTransactionsRequest {
                    parked: args.remove("parked").map(|parked| parked == true),
                    producer: text(&mut args, "producer"),
                    topic: text(&mut args, "topic"),
                    after: text(&mut args, "after"),
                    limit: number(&mut args, "limit").unwrap_or(0) as u32,
                };
                call!(self.list_transactions(request) as json::Transactions)
            }
            "transaction" => {
                let id = named("id");
                call!(self.get_transaction(proto::TransactionRequest { id }) as json::Transaction)
            }
            "commit" => {
                let id = named("id");
                call!(self.commit_transaction(proto::TransactionRequest { id }) as json::Transaction)
            }
            "rollback" => {
                let id = named("id");
                call!(self.rollback_transaction(proto::TransactionRequest { id })
                    as json::Transaction)
            }
            "checks" => {
                let wait: Option<json::Duration> =
                    args.remove("wait").map(|wait| serde_json::from_value(wait).unwrap());
                let request = proto::TakeTransactionChecksRequest {
                    producer: text(&mut args, "producer"),
                    topic: text(&mut args, "topic"),
                    max: number(&mut args, "max").unwrap_or(0) as u32,
                    wait_ms: wait.map_or(0, |wait| wait.0),
                };
                call!(self.take_transaction_checks(request) as json::TransactionChecks)
            }
            "put-group" => {
                let name = named("group");
                let config: json::GroupConfig = json(args);
                let config = Some(config.into());
                call!(self.put_group(proto::PutGroupRequest { name, config })
                    => |done: proto::PutGroupResponse| show(json::Group::from(done.group.unwrap())))
            }
            "get-group" => {
                call!(self.get_group(proto::GetGroupRequest { name: named("group") }) as json::Group)
            }
            "list-groups" => {
                let (prefix, after) = (text(&mut args, "prefix"), text(&mut args, "after"));
                let limit = number(&mut args, "limit").unwrap_or(0) as u32;
                call!(self.list_groups(proto::ListGroupsRequest { prefix, after, limit })
                    as json::Groups)
            }
            "delete-group" => {
                let name = named("group");
                let force = args.remove("force").is_some_and(|force| force == true);
                call!(self.delete_group(proto::DeleteGroupRequest { name, force }) => nothing)
            }
            "pause" => {
                call!(self.pause_group(proto::PauseGroupRequest { name: named("group") })
                    as json::Group)
            }
            "resume" => {
                call!(self.resume_group(proto::ResumeGroupRequest { name: named("group") })
                    as json::Group)
            }
            "seek" => {
                let group = named("group");
                call!(self.seek(json::Seek::into_proto(json(args), group)) as json::SoughtList)
            }
            "receive" => {
                let group = named("group");
                call!(self.receive(json::Receive::into_proto(json(args), group)) as json::Received)
            }
            "ack" => {
                let group = named("group");
                let json::Ack { receipts } = json(args);
                call!(self.ack(proto::AckRequest { group, receipts }) as json::Settled)
            }
            "nack" => {
                let group = named("group");
                let json::Nack { receipts, delay, reason } = json(args);
                let delay_ms = delay.map(|delay| delay.0);
                let request = proto::NackRequest { group, receipts, delay_ms, reason };
                call!(self.nack(request) as json::Settled)
            }
            "extend" => {
                let group = named("group");
                let json::Extend { receipts, lease } = json(args);
                let lease_ms = lease.map(|lease| lease.0);
                call!(self.extend(proto::ExtendRequest { group, receipts, lease_ms })
                    as json::Settled)
            }
            "dead" => {
                let group = named("group");
                let after = text(&mut args, "after");
                let limit = number(&mut args, "limit").unwrap_or(0) as u32;
                call!(self.list_dead_letters(proto::ListDeadLettersRequest { group, after, limit })
                    as json::Letters)
            }
            "redrive" => {
                let group = named("group");
                let json::Select { ids, all, rate } = json(args);
                let request = proto::RedriveDeadLettersRequest { group, ids, all, rate };
                call!(self.redrive_dead_letters(request) as json::LettersDone)
            }
            "purge-dead" => {
                let group = named("group");
                let json::Select { ids, all, .. } = json(args);
                let purged = |done: proto::PurgeDeadLettersResponse| {
                    show(json::Purged { purged: done.purged })
                };
                call!(self.purge_dead_letters(proto::PurgeDeadLettersRequest { group, ids, all })
                    => purged)
            }
            "put-user" => {
                let name = named("user");
                let json::UserConfig { grants, publish_quota } = json(args);
                let grants = grants.into_iter().map(Into::into).collect();
                let publish_quota = publish_quota.map(Into::into);
                let request = proto::PutUserRequest { name, grants, publish_quota };
                call!(self.put_user(request) as json::User)
            }
            "get-user" => {
                call!(self.get_user(proto::GetUserRequest { name: named("user") }) as json::User)
            }
            "list-users" => call!(self.list_users(proto::ListUsersRequest {}) as json::Users),
            "delete-user" => {
                call!(self.delete_user(proto::DeleteUserRequest { name: named("user") })
                    => nothing)
            }
            "create-token" => {
                let user = named("user");
                let name = named("name");
                let access_key = args.remove("access_key").is_some_and(|wanted| wanted == true);
                let token = |made: proto::CreateTokenResponse| {
                    show(json::NewToken { token: made.token, access_key: made.access_key })
                };
                call!(self.create_token(proto::CreateTokenRequest { user, name, access_key }) => token)
            }
            "revoke-token" => {
                let user = named("user");
                let name = named("name");
                call!(self.revoke_token(proto::RevokeTokenRequest { user, name }) as json::User)
            }
            "node" => call!(self.get_node(proto::GetNodeRequest {}) as json::Node),
            other => panic!("there is no operation {other}"),
        }
    }

    fn status<'a>(_http: &'a str, grpc: &'a str) -> &'a str {
        grpc
    }
}
