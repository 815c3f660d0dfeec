//! The native gRPC interface: see `posthouse.proto` for what each call means.

mod consume;
mod publish;
mod transact;

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::BoxStream;
use posthouse_client::proto;
use posthouse_client::proto::posthouse_server::{Posthouse, PosthouseServer};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::calls::{Calls, convert};
use crate::broker::{Broker, Caller};
use crate::problem::Problem;

/// The most bytes of one request: a publish with all that may come with it.
const REQUEST_BYTES: usize = 16 << 20;

/// The most bytes of one response: a receive with all that it may hold.
const RESPONSE_BYTES: usize = 80 << 20;

/// The interface over a broker.
#[derive(Clone, Debug)]
struct Door {
    calls: Calls,
}

type Answer<T> = Result<Response<T>, Status>;

impl Door {
    /// The service, to be served behind [`Who`].
    fn service(broker: Arc<Broker>) -> PosthouseServer<Door> {
        PosthouseServer::new(Door { calls: Calls { broker } })
            .max_decoding_message_size(REQUEST_BYTES)
            .max_encoding_message_size(RESPONSE_BYTES)
    }

    /// Who asks, as [`Who`] has found out.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let known = request.extensions().get::<Caller>();
        known.cloned().ok_or_else(|| status(Problem::internal("nobody has asked who asks")))
    }

    /// The caller, and the request without what came around it.
    fn open<T>(&self, request: Request<T>) -> Result<(Caller, T), Status> {
        let caller = self.caller(&request)?;
        Ok((caller, request.into_inner()))
    }
}

/// Finds out who asks, before a byte of what is asked has been read.
#[derive(Clone, Debug)]
struct Who(Calls);

impl Interceptor for Who {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization");
        let caller = self.0.caller(header.and_then(|value| value.to_str().ok()));
        request.extensions_mut().insert(caller.map_err(status)?);
        Ok(request)
    }
}

/// The service, with health and reflection beside it.
pub fn router(broker: &Arc<Broker>) -> axum::Router {
    let reflection = |set: &'static [u8]| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(set)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let set = proto::FILE_DESCRIPTOR_SET;
    let who = Who(Calls { broker: broker.clone() });
    let door = InterceptedService::new(Door::service(broker.clone()), who);
    let mut routes = tonic::service::Routes::new(door);
    // What was just generated can be read.
    if let Ok(v1) = reflection(set).build_v1() {
        routes = routes.add_service(v1);
    }
    if let Ok(v1alpha) = reflection(set).build_v1alpha() {
        routes = routes.add_service(v1alpha);
    }
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(reporter, Arc::downgrade(broker)));
    routes.add_service(health).prepare().into_axum_router()
}

/// Says that the node serves, as long as it does.
async fn report_health(reporter: tonic_health::server::HealthReporter, broker: Weak<Broker>) {
    reporter.set_serving::<PosthouseServer<Door>>().await;
    while broker.upgrade().is_some_and(|broker| broker.is_ready()) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    reporter.set_not_serving::<PosthouseServer<Door>>().await;
}

/// A problem as a status.
pub(crate) fn status(problem: Problem) -> Status {
    posthouse_client::rpc_status(&convert::problem(&problem))
}

fn answer<T>(result: Result<T, Problem>) -> Answer<T> {
    result.map(Response::new).map_err(status)
}

/// Forwards unary calls to methods of [`Calls`] that take caller and request. Written
/// out as `async_trait` would: it does not see into a macro.
macro_rules! unary {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        $(
            fn $name<'a, 'f>(
                &'a self,
                request: Request<proto::$request>,
            ) -> Pin<Box<dyn Future<Output = Answer<proto::$response>> + Send + 'f>>
            where
                'a: 'f,
            {
                Box::pin(async move {
                    let (caller, request) = self.open(request)?;
                    answer(self.calls.$name(&caller, request).await)
                })
            }
        )*
    };
}

#[tonic::async_trait]
impl Posthouse for Door {
    type PublishStreamStream = BoxStream<'static, Result<proto::PublishResponse, Status>>;
    type ConsumeStream = BoxStream<'static, Result<proto::ConsumeResponse, Status>>;

    async fn publish_stream(
        &self,
        request: Request<tonic::Streaming<proto::PublishRequest>>,
    ) -> Answer<Self::PublishStreamStream> {
        let caller = self.caller(&request)?;
        let session = publish::Session::new(self.calls.clone(), caller, request.into_inner());
        Ok(Response::new(Box::pin(session)))
    }

    async fn consume(
        &self,
        request: Request<tonic::Streaming<proto::ConsumeRequest>>,
    ) -> Answer<Self::ConsumeStream> {
        let caller = self.caller(&request)?;
        Ok(Response::new(consume::session(self.calls.clone(), caller, request.into_inner())))
    }

    type CheckTransactionsStream = BoxStream<'static, Result<proto::TransactionCheck, Status>>;

    async fn check_transactions(
        &self,
        request: Request<proto::CheckTransactionsRequest>,
    ) -> Answer<Self::CheckTransactionsStream> {
        let (caller, request) = self.open(request)?;
        Ok(Response::new(transact::checks(self.calls.clone(), caller, request)))
    }

    unary! {
        prepare_transaction(PrepareTransactionRequest) -> Transaction;
        commit_transaction(TransactionRequest) -> Transaction;
        rollback_transaction(TransactionRequest) -> Transaction;
        get_transaction(TransactionRequest) -> Transaction;
        list_transactions(ListTransactionsRequest) -> ListTransactionsResponse;
        take_transaction_checks(TakeTransactionChecksRequest) -> TransactionChecks;
        publish(PublishRequest) -> PublishResponse;
        receive(ReceiveRequest) -> ReceiveResponse;
        ack(AckRequest) -> SettleResponse;
        nack(NackRequest) -> SettleResponse;
        extend(ExtendRequest) -> SettleResponse;
        put_topic(PutTopicRequest) -> PutTopicResponse;
        get_topic(GetTopicRequest) -> Topic;
        list_topics(ListTopicsRequest) -> ListTopicsResponse;
        delete_topic(DeleteTopicRequest) -> DeleteTopicResponse;
        purge_topic(PurgeTopicRequest) -> PurgeTopicResponse;
        browse(BrowseRequest) -> BrowseResponse;
        get_message(GetMessageRequest) -> GetMessageResponse;
        get_history(GetHistoryRequest) -> GetHistoryResponse;
        reschedule(RescheduleRequest) -> ScheduleChangeResponse;
        cancel(CancelRequest) -> ScheduleChangeResponse;
        list_scheduled(ListScheduledRequest) -> ListScheduledResponse;
        get_schedule_hours(GetScheduleHoursRequest) -> GetScheduleHoursResponse;
        purge_scheduled(PurgeScheduledRequest) -> PurgeScheduledResponse;
        put_recurring(PutRecurringRequest) -> PutRecurringResponse;
        get_recurring(GetRecurringRequest) -> Recurring;
        list_recurring(ListRecurringRequest) -> ListRecurringResponse;
        delete_recurring(DeleteRecurringRequest) -> DeleteRecurringResponse;
        pause_recurring(PauseRecurringRequest) -> Recurring;
        resume_recurring(ResumeRecurringRequest) -> Recurring;
        run_recurring(RunRecurringRequest) -> PublishedMessage;
        put_group(PutGroupRequest) -> PutGroupResponse;
        get_group(GetGroupRequest) -> Group;
        list_groups(ListGroupsRequest) -> ListGroupsResponse;
        delete_group(DeleteGroupRequest) -> DeleteGroupResponse;
        pause_group(PauseGroupRequest) -> Group;
        resume_group(ResumeGroupRequest) -> Group;
        seek(SeekRequest) -> SeekResponse;
        list_dead_letters(ListDeadLettersRequest) -> ListDeadLettersResponse;
        redrive_dead_letters(RedriveDeadLettersRequest) -> RedriveDeadLettersResponse;
        purge_dead_letters(PurgeDeadLettersRequest) -> PurgeDeadLettersResponse;
        put_user(PutUserRequest) -> User;
        get_user(GetUserRequest) -> User;
        list_users(ListUsersRequest) -> ListUsersResponse;
        delete_user(DeleteUserRequest) -> DeleteUserResponse;
        create_token(CreateTokenRequest) -> CreateTokenResponse;
        revoke_token(RevokeTokenRequest) -> User;
        get_node(GetNodeRequest) -> Node;
        backup(BackupRequest) -> Backup;
    }
}
