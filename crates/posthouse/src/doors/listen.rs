//! The port: connections, TLS, and what may come in at all.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::certificate;
use super::clocks::Clocks;
use super::intake::Intake;
use super::unread::Readers;

/// How long a client may take to say what it wants, and to shake hands.
const HELLO: Duration = Duration::from_secs(15);

/// How long a client may leave unread what was written for it.
pub const READING: Duration = Duration::from_secs(120);

/// Requests of one HTTP/2 connection that may be open.
const STREAMS: u32 = 1024;

/// What HTTP/2 may have under way without our word, per stream and per connection. What a
/// stream that is held back has sent stays in both: with eight of them on a connection
/// there would be no room on it for an acknowledgement.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The largest HTTP/2 frame that we take.
const FRAME_BYTES: u32 = 256 << 10;

/// Bytes of headers of one request.
const HEADER_BYTES: u32 = 64 << 10;

/// How many connections may be open, unless the configuration says otherwise.
pub const CONNECTIONS: usize = 10_000;

/// Settings of a port.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// How many connections may be open.
    pub connections: usize,
    /// How long a client may leave unread what was written for it.
    pub reading: Duration,
    /// Certificate chain and key, in PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where the node's own certificate is kept. With it, and without `tls`, every client
    /// may encrypt or not.
    pub own_certificate: Option<PathBuf>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            connections: CONNECTIONS,
            reading: READING,
            tls: None,
            own_certificate: None,
        }
    }
}

/// Where a request came in: in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Whether it came to a loopback address, and so from this machine.
    pub is_loopback: bool,
}

/// A port that is bound.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    tls: Option<TlsAcceptorBox>,
    /// Whether a client may do without.
    takes_plain: bool,
    connections: Arc<Semaphore>,
    reading: Duration,
    intake: Intake,
}

struct TlsAcceptorBox(TlsAcceptor);

impl std::fmt::Debug for TlsAcceptorBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

/// Why a port cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The system refused.
    #[error("cannot listen on {address}: {error}{}", hint(.error))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A certificate or a key that cannot be used.
    #[error("cannot use {}: {what}", file.display())]
    Tls {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program has this port: stop it, or take another with --listen"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges: take another",
        _ => "",
    }
}

impl Port {
    /// Binds a port.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub async fn bind(address: SocketAddr, options: &ListenOptions) -> Result<Port, ListenError> {
        let tls = match (&options.tls, &options.own_certificate) {
            (Some((chain, key)), _) => {
                let acceptor = certificate::acceptor(chain, key).map_err(|unusable| {
                    ListenError::Tls { file: unusable.file, what: unusable.what }
                });
                Some(acceptor?)
            }
            // Nobody asked for it, so that it cannot be had keeps nothing from starting.
            (None, Some(dir)) => certificate::own(dir).map_or_else(
                |unusable| {
                    let (file, what) = (unusable.file.display(), unusable.what);
                    tracing::warn!("clients that encrypt are not served: {file}: {what}");
                    None
                },
                Some,
            ),
            (None, None) => None,
        };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| ListenError::Bind { address, error })?;
        let connections = Arc::new(Semaphore::new(options.connections));
        let (tls, takes_plain) = (tls.map(TlsAcceptorBox), options.tls.is_none());
        let reading = options.reading;
        let intake = Intake::default();
        Ok(Port { listener, tls, takes_plain, connections, reading, intake })
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// What the system refused.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether every connection is encrypted.
    pub fn is_tls(&self) -> bool {
        !self.takes_plain
    }

    /// Serves until `stop` resolves; then takes no new connections, and lets those that
    /// are there finish for up to `patience`.
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()>, patience: Duration) {
        let graceful = GracefulShutdown::new();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HELLO).max_headers(100);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        tokio::pin!(stop);
        let mut turned_away = TurnedAway::default();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut stop => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most often too many open files: those that are there may end.
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = self.connections.clone().try_acquire_owned() else {
                turned_away.one_more();
                continue;
            };
            let _ = stream.set_nodelay(true);
            let intake = self.intake.clone();
            let local = stream.local_addr();
            let arrival = Arrival {
                is_loopback: local.is_ok_and(|local| local.ip().to_canonical().is_loopback()),
            };
            let readers = Readers::new();
            let follows = readers.clone();
            let service = router
                .clone()
                .map_request(move |request: Request<_>| {
                    let mut request = intake.bound(request.map(Body::new));
                    request.extensions_mut().insert(arrival);
                    request
                })
                .map_response(move |response: Response<Body>| {
                    response.map(|body| follows.follow(body))
                });
            let service = TowerToHyperService::new(service);
            let tls = self.tls.as_ref().map(|tls| tls.0.clone());
            let takes_plain = self.takes_plain;
            let (builder, watcher) = (builder.clone(), graceful.watcher());
            let reading = self.reading;
            tokio::spawn(async move {
                let _place = place;
                let tls = match tls {
                    Some(tls) if takes_plain => match encrypts(&stream).await {
                        Some(encrypts) => encrypts.then_some(tls),
                        None => return,
                    },
                    tls => tls,
                };
                let io: Box<dyn Io> = match tls {
                    None => Box::new(stream),
                    Some(tls) => match shake_hands(tls, stream).await {
                        Some(stream) => Box::new(stream),
                        None => return,
                    },
                };
                let io = TokioIo::new(Clocks::new(io, HELLO, reading));
                let connection = builder.serve_connection_with_upgrades(io, service);
                let served = tokio::select! {
                    served = watcher.watch(connection.into_owned()) => served,
                    () = readers.stall(reading) => {
                        tracing::debug!("a connection is closed: it does not read its answers");
                        return;
                    }
                };
                if let Err(error) = served {
                    tracing::debug!("a connection has ended: {error}");
                }
            });
        }
        drop(self.listener);
        if tokio::time::timeout(patience, graceful.shutdown()).await.is_err() {
            tracing::info!("connections that were still open have been closed");
        }
    }
}

/// A connection, encrypted or not.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

/// Connections for which there was no place. A flood of them is not to flood the log.
#[derive(Debug, Default)]
struct TurnedAway {
    count: u64,
    told: Option<Instant>,
}

impl TurnedAway {
    fn one_more(&mut self) {
        self.count += 1;
        if self.told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
            tracing::warn!("there are too many connections; {} were closed", self.count);
            *self = TurnedAway { count: 0, told: Some(Instant::now()) };
        }
    }
}

/// The first byte of a TLS connection: a record of a handshake (RFC 8446, section 5.1).
/// Neither HTTP/1 nor HTTP/2 can begin with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Whether a client begins to encrypt; `None` if it says nothing.
async fn encrypts(stream: &TcpStream) -> Option<bool> {
    let mut first = [0];
    let peeked = tokio::time::timeout(HELLO, stream.peek(&mut first)).await;
    matches!(peeked, Ok(Ok(1))).then_some(first == [TLS_HANDSHAKE])
}

async fn shake_hands(
    tls: TlsAcceptor,
    stream: TcpStream,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    match tokio::time::timeout(HELLO, tls.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!("a TLS handshake has failed: {error}");
            None
        }
        Err(_) => None,
    }
}
