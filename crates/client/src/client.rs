//! The connection, and the calls that are one request and one answer.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::proto::posthouse_client::PosthouseClient;
use crate::{Delivery, Error, Message, Outcome, Published, ReceiveOptions, proto};

/// The most bytes of one gRPC message: a publish or a receive with all it may hold.
const MESSAGE_BYTES: usize = 80 << 20;

/// What HTTP/2 may have under way without the peer's word, per stream and connection.
const WINDOW_BYTES: u32 = 8 << 20;

/// The generated client, with the token on every call.
pub type RawClient = PosthouseClient<InterceptedService<Channel, Authorize>>;

/// Shows the token with every call.
#[derive(Clone, Debug, Default)]
pub struct Authorize(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorize {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// How to connect.
#[derive(Clone)]
pub struct ClientBuilder {
    address: String,
    token: Option<String>,
    ca: Option<Vec<u8>>,
    connect_timeout: Duration,
}

impl std::fmt::Debug for ClientBuilder {
    /// Without the token, which is nobody's business in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// The token of a user.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A certificate, in PEM, that the server's is trusted by; else those of the web.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// How long to try to connect; 10 s unless said otherwise.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let wrong = |e: tonic::transport::Error| {
            Error::Invalid(format!("{:?} is no address of a server: {e}", self.address))
        };
        let mut endpoint = Endpoint::from_shared(self.address.clone())
            .map_err(wrong)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_while_idle(true);
        if self.address.starts_with("https://") {
            let tls = match &self.ca {
                Some(pem) => {
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem.clone()))
                }
                None => ClientTlsConfig::new().with_webpki_roots(),
            };
            endpoint = endpoint.tls_config(tls).map_err(wrong)?;
        }
        Ok(endpoint)
    }

    fn authorize(&self) -> Result<Authorize, Error> {
        Ok(Authorize(match &self.token {
            None => None,
            Some(token) => {
                let value = format!("Bearer {token}").parse();
                let mut value: MetadataValue<Ascii> = value.map_err(|_| {
                    Error::Invalid("the token has characters that no token has".into())
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        }))
    }

    fn build(channel: Channel, authorize: Authorize) -> Client {
        let raw = PosthouseClient::with_interceptor(channel, authorize)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        Client { raw }
    }

    /// Connects now.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if there is no server; [`Error::Invalid`] if the address or
    /// the token makes no sense.
    pub async fn connect(self) -> Result<Client, Error> {
        let (endpoint, authorize) = (self.endpoint()?, self.authorize()?);
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|e| Error::Unreachable(with_sources(&e)))?;
        Ok(Self::build(channel, authorize))
    }

    /// Connects with the first call.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the address or the token makes no sense.
    pub fn connect_lazily(self) -> Result<Client, Error> {
        let channel = self.endpoint()?.connect_lazy();
        Ok(Self::build(channel, self.authorize()?))
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Some repeat what they wrap.
        if texts.last().is_some_and(|last| text.starts_with(last.as_str())) {
            texts.pop();
        }
        texts.push(text);
        source = error.source();
    }
    texts.join(": ")
}

/// A connection to a server. Cheap to clone; clones share the connection, which is made
/// anew when it breaks.
#[derive(Clone, Debug)]
pub struct Client {
    raw: RawClient,
}

impl Client {
    /// Connects to `address`, like `http://127.0.0.1:7650`.
    ///
    /// # Errors
    /// See [`ClientBuilder::connect`].
    pub async fn connect(address: impl Into<String>) -> Result<Client, Error> {
        Self::builder(address).connect().await
    }

    /// Sets how to connect to `address`.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            address: address.into(),
            token: None,
            ca: None,
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// The generated client, for everything that has no method here.
    pub fn raw(&self) -> RawClient {
        self.raw.clone()
    }

    /// Publishes a message, and waits until it is durable.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish(
        &self,
        topic: &str,
        message: impl Into<Message>,
    ) -> Result<Published, Error> {
        let published = self.publish_all(topic, [message.into()]).await?;
        published
            .into_iter()
            .next()
            .ok_or_else(|| Error::OutcomeUnknown("the server has answered for no message".into()))
    }

    /// Publishes messages, all of them or none, and waits until they are durable. A
    /// message can name a topic of its own.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish_all(
        &self,
        topic: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<Published>, Error> {
        let request = proto::PublishRequest {
            topic: topic.into(),
            messages: messages.into_iter().map(|message| message.0).collect(),
            apart: false,
        };
        let response = self.raw().publish(request).await?.into_inner();
        Ok(response.messages.into_iter().map(Published::from).collect())
    }

    /// Receives messages of a group. An empty list: nothing has come in time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn receive(
        &self,
        group: &str,
        options: &ReceiveOptions,
    ) -> Result<Vec<Delivery>, Error> {
        let request = proto::ReceiveRequest {
            group: group.into(),
            consumer: options.consumer.clone(),
            max: Some(options.max),
            max_bytes: options.max_bytes,
            wait_ms: Some(options.wait.as_millis() as u64),
            lease_ms: options.lease.map(|lease| lease.as_millis() as u64),
            topic: options.topic.clone(),
            auto_ack: options.auto_ack,
            broadcast: options.broadcast,
        };
        let response = self.raw().receive(request).await?.into_inner();
        Ok(response.messages.into_iter().map(Delivery::from).collect())
    }

    /// Acknowledges deliveries: they are done.
    ///
    /// # Errors
    /// See [`Error`]. An outcome for each receipt otherwise.
    pub async fn ack(
        &self,
        group: &str,
        receipts: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Outcome>, Error> {
        let receipts = receipts.into_iter().map(Into::into).collect();
        let request = proto::AckRequest { group: group.into(), receipts };
        Ok(outcomes(self.raw().ack(request).await?))
    }

    /// Gives deliveries back: they come again, after `delay` or as the group says.
    ///
    /// # Errors
    /// See [`Error`]. An outcome for each receipt otherwise.
    pub async fn nack(
        &self,
        group: &str,
        receipts: impl IntoIterator<Item = impl Into<String>>,
        delay: Option<Duration>,
        reason: impl Into<String>,
    ) -> Result<Vec<Outcome>, Error> {
        let request = proto::NackRequest {
            group: group.into(),
            receipts: receipts.into_iter().map(Into::into).collect(),
            delay_ms: delay.map(|delay| delay.as_millis() as u64),
            reason: reason.into(),
        };
        Ok(outcomes(self.raw().nack(request).await?))
    }

    /// Lets the leases of deliveries end `lease` from now, or as the group says.
    ///
    /// # Errors
    /// See [`Error`]. An outcome for each receipt otherwise.
    pub async fn extend(
        &self,
        group: &str,
        receipts: impl IntoIterator<Item = impl Into<String>>,
        lease: Option<Duration>,
    ) -> Result<Vec<Outcome>, Error> {
        let request = proto::ExtendRequest {
            group: group.into(),
            receipts: receipts.into_iter().map(Into::into).collect(),
            lease_ms: lease.map(|lease| lease.as_millis() as u64),
        };
        Ok(outcomes(self.raw().extend(request).await?))
    }
}

fn outcomes(response: tonic::Response<proto::SettleResponse>) -> Vec<Outcome> {
    response.into_inner().results.into_iter().map(Outcome::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_not_shown() {
        let builder = Client::builder("http://127.0.0.1:1").token("ph_secret");
        assert!(!format!("{builder:?}").contains("secret"));
        let client = builder.connect_lazily().unwrap();
        assert!(!format!("{client:?}").contains("secret"), "{client:?}");
    }
}
