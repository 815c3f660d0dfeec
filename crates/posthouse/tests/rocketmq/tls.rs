//! One port takes clients that encrypt and clients that do not; another one may be for
//! RocketMQ clients alone, and clients may be sent elsewhere.

use std::sync::Arc;

use posthouse::broker::{Broker, BrokerOptions};
use posthouse::doors;
use posthouse::doors::listen::{ListenOptions, Port};
use posthouse_log::files::RealFiles;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::*;

const ASK: &[u8] = b"GET /v1/node HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(ASK).await.unwrap();
    let mut answer = Vec::new();
    // A peer that closes without saying so in TLS is no matter here.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_takes_who_encrypts_and_who_does_not_and_sends_clients_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = BrokerOptions::new(dir.path().to_owned());
    options.disk_reserve = Some(0);
    let (broker, _) = Broker::start(RealFiles::shared(), options).await.unwrap();
    let listen =
        ListenOptions { own_certificate: Some(dir.path().to_owned()), ..ListenOptions::default() };
    let port = Port::bind("127.0.0.1:0".parse().unwrap(), &listen).await.unwrap();
    assert!(!port.is_tls(), "nobody has to encrypt");
    let address = port.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let advertise = Some("[::1]:8081".parse().unwrap());
    let (_, for_rocketmq) = doors::routers(&broker, advertise);
    let serving = tokio::spawn(async move {
        let stopped = async move { stopped.await.unwrap_or_default() };
        port.serve(for_rocketmq, stopped, Duration::from_secs(5)).await;
    });

    // What is served is for RocketMQ clients alone, plain and encrypted.
    let plain = within("an answer", ask(TcpStream::connect(address).await.unwrap())).await;
    assert!(plain.starts_with("HTTP/1.1 404"), "{plain}");
    let own = dir.path().join("own-certificate.pem");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(own).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let encrypted = within("an answer", ask(stream)).await;
    assert!(encrypted.starts_with("HTTP/1.1 404"), "{encrypted}");

    let client = Client::at(address, "c");
    let route = client.route("orders").await;
    let endpoints = route.message_queues[0].broker.as_ref().unwrap().endpoints.as_ref().unwrap();
    assert_eq!(endpoints.scheme(), pb::AddressScheme::IPv6);
    assert_eq!(endpoints.addresses, [pb::Address { host: "::1".into(), port: 8081 }]);

    broker.begin_stop();
    stop.send(()).unwrap();
    within("it stops", serving).await.unwrap();
    broker.stop(Duration::from_secs(20)).await.unwrap();
}
