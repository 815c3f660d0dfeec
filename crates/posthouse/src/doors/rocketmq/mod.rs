//! The door for RocketMQ 5 clients: the gRPC service `apache.rocketmq.v2`, over the same
//! broker as every other door. `docs/rocketmq.md` says what each call means here.
//!
//! A client is known by the id that it sends with every call. Whatever a `Session` knows
//! of it can be missing, since a server that was restarted knows nothing: then the
//! configuration of its group does.

mod codec;
mod fault;
mod filter;
mod message;
mod names;
mod receive;
mod route;
mod send;
mod sessions;
mod settings;
mod settle;
mod signature;
mod telemetry;
mod transact;

use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use self::fault::Fault;
pub use self::route::Advertise;
use self::sessions::{Session, Sessions};
use super::calls::Calls;
use crate::broker::{Broker, Caller, bounds};

/// The protocol, generated from its definition.
pub mod pb {
    #![allow(missing_docs, clippy::all, reason = "generated")]
    tonic::include_proto!("apache.rocketmq.v2");
}

use pb::Code;
use pb::messaging_service_server::{MessagingService, MessagingServiceServer};

/// The most bytes of one request: a batch with all that may come with it.
const REQUEST_BYTES: usize = 16 << 20;

/// The most bytes of one response, which has one message.
const RESPONSE_BYTES: usize = 16 << 20;

/// What the node is called in routes.
const BROKER_NAME: &str = "posthouse";

/// How often it is looked whether the node stops.
const TICK: Duration = Duration::from_millis(250);

/// The service over a broker.
#[derive(Clone, Debug)]
pub struct Door {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    broker: Arc<Broker>,
    advertise: Option<Advertise>,
    sessions: Sessions,
    /// Whose turn it is to be asked about a transaction.
    turn: AtomicUsize,
    /// Whether streams have to end.
    stopping: watch::Sender<bool>,
}

/// Who calls.
#[derive(Clone, Debug)]
struct Call {
    caller: Caller,
    client: Arc<str>,
}

impl Door {
    /// A door to `broker`. Has to be made within a runtime: it keeps sessions in order
    /// until the node stops.
    pub fn new(broker: Arc<Broker>, advertise: Option<Advertise>) -> Door {
        let inner = Arc::new(Inner {
            broker,
            advertise,
            sessions: Sessions::default(),
            turn: AtomicUsize::new(0),
            stopping: watch::Sender::new(false),
        });
        tokio::spawn(keep(Arc::downgrade(&inner)));
        tokio::spawn(transact::ask_producers(Arc::downgrade(&inner)));
        Door { inner }
    }

    fn broker(&self) -> &Arc<Broker> {
        &self.inner.broker
    }

    fn session(&self, call: &Call) -> Result<Arc<Session>, Fault> {
        self.inner.sessions.of(&call.client)
    }

    /// Who calls, by what comes with a request.
    fn call(&self, metadata: &MetadataMap) -> Result<Call, Fault> {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let client = text("x-mq-client-id").filter(|id| !id.is_empty()).ok_or_else(|| {
            Fault::new(Code::ClientIdRequired, "the request has no x-mq-client-id")
        })?;
        let most = bounds::CONSUMER_BYTES;
        if client.len() > most {
            let text = format!("the client id has {} bytes; the most is {most}", client.len());
            return Err(Fault::new(Code::BadRequest, text));
        }
        let caller = self.caller(text("authorization"), text("x-mq-date-time"))?;
        Ok(Call { caller, client: client.into() })
    }

    fn caller(&self, authorization: Option<&str>, date: Option<&str>) -> Result<Caller, Fault> {
        let calls = Calls { broker: self.inner.broker.clone() };
        let token = authorization.filter(|value| value.starts_with("Bearer "));
        if token.is_some() || self.broker().is_open() {
            return Ok(calls.caller(token)?);
        }
        match authorization.and_then(signature::Signature::parse) {
            Some(signature) => signature.caller(self.broker(), date),
            None => Ok(calls.caller(None)?),
        }
    }
}

/// The routes of the service.
pub fn router(broker: &Arc<Broker>, advertise: Option<Advertise>) -> axum::Router {
    let service = MessagingServiceServer::new(Door::new(broker.clone(), advertise))
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(RESPONSE_BYTES);
    // What is no route is said by whoever puts the doors together.
    tonic::service::Routes::new(service).prepare().into_axum_router().reset_fallback()
}

/// Keeps sessions in order as long as there is a door, and ends their streams when the
/// node stops.
async fn keep(of: Weak<Inner>) {
    let mut ticks = 0u32;
    loop {
        tokio::time::sleep(TICK).await;
        let Some(inner) = of.upgrade() else { return };
        if !inner.broker.is_ready() {
            inner.stopping.send_replace(true);
            return;
        }
        ticks += 1;
        if ticks.is_multiple_of(4) {
            Door { inner }.look_after_sessions().await;
        }
    }
}

/// A response that can say that it is none.
trait Answer: Default {
    fn refused(fault: &Fault) -> Self;
}

macro_rules! answers {
    ($($response:ident)*) => {
        $(
            impl Answer for pb::$response {
                #[allow(clippy::needless_update, reason = "some have nothing else")]
                fn refused(fault: &Fault) -> Self {
                    Self { status: Some(fault.status()), ..Self::default() }
                }
            }
        )*
    };
}

answers! {
    QueryRouteResponse QueryAssignmentResponse HeartbeatResponse NotifyClientTerminationResponse
    SendMessageResponse RecallMessageResponse EndTransactionResponse AckMessageResponse
    ChangeInvisibleDurationResponse ForwardMessageToDeadLetterQueueResponse
    SyncLiteSubscriptionResponse UpdateOffsetResponse GetOffsetResponse QueryOffsetResponse
}

/// Forwards unary calls to methods of [`Door`] that take who calls and the request. Written
/// out as `async_trait` would: it does not see into a macro.
macro_rules! unary {
    ($($name:ident($request:ident) -> $response:ident by $method:ident;)*) => {
        $(
            fn $name<'a, 'f>(
                &'a self,
                request: Request<pb::$request>,
            ) -> Pin<Box<dyn Future<Output = Result<Response<pb::$response>, Status>> + Send + 'f>>
            where
                'a: 'f,
            {
                Box::pin(async move {
                    let answer = match self.call(request.metadata()) {
                        Ok(call) => self.$method(&call, request.into_inner()).await,
                        Err(fault) => Err(fault),
                    };
                    Ok(Response::new(answer.unwrap_or_else(|fault| Answer::refused(&fault))))
                })
            }
        )*
    };
}

#[tonic::async_trait]
impl MessagingService for Door {
    type TelemetryStream = BoxStream<'static, Result<pb::TelemetryCommand, Status>>;
    type ReceiveMessageStream = receive::Delivery;
    type PullMessageStream = BoxStream<'static, Result<pb::PullMessageResponse, Status>>;

    async fn telemetry(
        &self,
        request: Request<Streaming<pb::TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        let call = self.call(request.metadata()).map_err(|fault| fault.grpc())?;
        Ok(Response::new(self.talk(call, request.into_inner())))
    }

    async fn receive_message(
        &self,
        request: Request<pb::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        let budget = receive::budget(request.metadata());
        let delivery = match self.call(request.metadata()) {
            Ok(call) => self.receive(&call, request.into_inner(), budget).await,
            Err(fault) => Err(fault),
        };
        let delivery = delivery.unwrap_or_else(|fault| receive::Delivery::refused(&fault));
        Ok(Response::new(delivery))
    }

    async fn pull_message(
        &self,
        request: Request<pb::PullMessageRequest>,
    ) -> Result<Response<Self::PullMessageStream>, Status> {
        let fault = match self.call(request.metadata()) {
            Ok(_) => no_positions(),
            Err(fault) => fault,
        };
        let content = pb::pull_message_response::Content::Status(fault.status());
        let only = pb::PullMessageResponse { content: Some(content) };
        Ok(Response::new(Box::pin(stream::iter([Ok(only)]))))
    }

    unary! {
        query_route(QueryRouteRequest) -> QueryRouteResponse by route;
        query_assignment(QueryAssignmentRequest) -> QueryAssignmentResponse by assign;
        heartbeat(HeartbeatRequest) -> HeartbeatResponse by hear;
        notify_client_termination(NotifyClientTerminationRequest)
            -> NotifyClientTerminationResponse by end;
        send_message(SendMessageRequest) -> SendMessageResponse by send;
        recall_message(RecallMessageRequest) -> RecallMessageResponse by recall;
        end_transaction(EndTransactionRequest) -> EndTransactionResponse by end_transaction;
        ack_message(AckMessageRequest) -> AckMessageResponse by ack;
        change_invisible_duration(ChangeInvisibleDurationRequest)
            -> ChangeInvisibleDurationResponse by change_invisible;
        forward_message_to_dead_letter_queue(ForwardMessageToDeadLetterQueueRequest)
            -> ForwardMessageToDeadLetterQueueResponse by forward;
        sync_lite_subscription(SyncLiteSubscriptionRequest)
            -> SyncLiteSubscriptionResponse by sync_lite;
        update_offset(UpdateOffsetRequest) -> UpdateOffsetResponse by update_offset;
        get_offset(GetOffsetRequest) -> GetOffsetResponse by get_offset;
        query_offset(QueryOffsetRequest) -> QueryOffsetResponse by query_offset;
    }
}

fn no_positions() -> Fault {
    Fault::new(Code::NotImplemented, "reading by position is not known to this door")
}

// Calls that have no meaning here, each with the reason.
impl Door {
    async fn sync_lite(
        &self,
        _call: &Call,
        _request: pb::SyncLiteSubscriptionRequest,
    ) -> Result<pb::SyncLiteSubscriptionResponse, Fault> {
        Err(Fault::new(Code::Unsupported, "this node has no lite topics"))
    }

    async fn update_offset(
        &self,
        _call: &Call,
        _request: pb::UpdateOffsetRequest,
    ) -> Result<pb::UpdateOffsetResponse, Fault> {
        Err(no_positions())
    }

    async fn get_offset(
        &self,
        _call: &Call,
        _request: pb::GetOffsetRequest,
    ) -> Result<pb::GetOffsetResponse, Fault> {
        Err(no_positions())
    }

    async fn query_offset(
        &self,
        _call: &Call,
        _request: pb::QueryOffsetRequest,
    ) -> Result<pb::QueryOffsetResponse, Fault> {
        Err(no_positions())
    }
}
