//! Who may do what, from outside.

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Method;
use posthouse_client::proto::{self, Action};
use posthouse_client::{Client, Error, ReceiveOptions};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::node::{Node, Setup};
use crate::support::{files, web, within};

async fn token(node: &Node, user: &str, grants: serde_json::Value) -> String {
    node.web().put(&format!("/v1/users/{user}"), json!({ "grants": grants })).await.done();
    let path = format!("/v1/users/{user}/tokens");
    let made = node.web().post(&path, json!({ "name": "one" })).await;
    assert_eq!(made.status, 201);
    made.json()["token"].as_str().unwrap().to_owned()
}

async fn with_token(node: &Node, token: &str) -> Client {
    Client::builder(node.url.clone()).token(token).connect().await.unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> (String, tonic::Code) {
    match result {
        Err(Error::Refused(problem)) => (problem.code, problem.status),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_address_is_refused_until_somebody_manages_the_node_or_it_is_insecure() {
    let dir = tempfile::tempdir().unwrap();
    let open = Setup::new(dir.path());
    let public = open.clone().listen("0.0.0.0:0");
    let ended = public.refused().await;
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    for word in ["0.0.0.0:0", "--insecure", "token"] {
        assert!(ended.said.contains(word), "{word}: {}", ended.said);
    }
    let node = public.clone().flag("--insecure", "true").start().await;
    node.stop().await;
    // A user alone is not enough: one who may manage the node, and can show a token.
    let node = open.start().await;
    node.web().put("/v1/users/root", json!({ "grants": [] })).await.done();
    node.stop().await;
    assert_eq!(public.refused().await.code, Some(2));
    let node = open.start().await;
    let all = json!([{ "actions": ["manage"], "topics": ["*"], "groups": ["*"] }]);
    let root = token(&node, "root", all).await;
    node.stop().await;
    let node = public.start().await;
    let at_loopback = format!("http://127.0.0.1:{}", node.address.port());
    let web = web::Web::at(&at_loopback);
    assert_eq!(web.get("/v1/topics").await.status, 401);
    assert_eq!(web.with_token(&root).get("/v1/topics").await.status, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_grants_are_checked_at_both_doors_and_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let node = setup.start().await;
    node.web().put("/v1/topics/orders.eu", json!({})).await.done();
    node.web().put("/v1/topics/payments", json!({})).await.done();
    let subscriptions = json!({ "subscriptions": [{ "topic": "orders.*" }] });
    node.web().put("/v1/groups/billing", subscriptions).await.done();
    let may = json!([{ "actions": ["publish", "consume"], "topics": ["orders.*"],
        "groups": ["billing"] }]);
    let shop = token(&node, "shop", may).await;
    let all = json!([{ "actions": ["manage"], "topics": ["*"], "groups": ["*"] }]);
    let root = token(&node, "root", all).await;
    // Whoever was let in before the door closed has to show a token, too.
    let anyone = node.client().await;
    check_doors(&node, &anyone, &shop, &root).await;
    node.kill().await;
    let node = setup.start().await;
    let anyone = node.client().await;
    check_doors(&node, &anyone, &shop, &root).await;

    // Revoked is revoked at once, on connections that are open, and for good.
    let client = with_token(&node, &shop).await;
    client.publish("orders.eu", "x").await.unwrap();
    let path = "/v1/users/shop/tokens/one";
    let revoked = node.web().with_token(&root).send(Method::DELETE, path, &[], Body::empty()).await;
    assert_eq!(revoked.unwrap().status, 200);
    let refused = code(client.publish("orders.eu", "x").await);
    assert_eq!(refused, ("unauthenticated".into(), tonic::Code::Unauthenticated));
    node.kill().await;
    let node = setup.start().await;
    let refused = code(with_token(&node, &shop).await.publish("orders.eu", "x").await);
    assert_eq!(refused, ("unauthenticated".into(), tonic::Code::Unauthenticated));
    node.stop().await;

    // What is shown once is kept nowhere.
    for file in files::files(dir.path()) {
        let bytes = std::fs::read(dir.path().join(&file)).unwrap();
        for secret in [&shop, &root] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a token stands in {}", file.display());
        }
    }
}

async fn check_doors(node: &Node, anyone: &Client, shop: &str, root: &str) {
    let refused = |status, code: &str| (status, code.to_owned());
    let web = node.web();
    let ask = json!({ "body": "x" });
    let publish = |topic: &str| format!("/v1/topics/{topic}/messages");
    for (web, topic, expected) in [
        (web.clone(), "orders.eu", refused(401, "unauthenticated")),
        (web.with_token("ph_nonsense"), "orders.eu", refused(401, "unauthenticated")),
        (web.with_token(shop), "payments", refused(403, "forbidden")),
        (web.with_token(root), "orders.eu", refused(403, "forbidden")),
    ] {
        let answer = web.post(&publish(topic), ask.clone()).await;
        assert_eq!((answer.status, answer.code()), expected, "{topic}");
        let has_challenge = answer.headers.contains_key("www-authenticate");
        assert_eq!(has_challenge, answer.status == 401);
    }
    web.with_token(shop).post(&publish("orders.eu"), ask).await.done();

    let unauthenticated = ("unauthenticated".to_owned(), tonic::Code::Unauthenticated);
    let forbidden = ("forbidden".to_owned(), tonic::Code::PermissionDenied);
    assert_eq!(code(anyone.publish("orders.eu", "x").await), unauthenticated);
    let wrong = with_token(node, "ph_nonsense").await;
    assert_eq!(code(wrong.publish("orders.eu", "x").await), unauthenticated);
    let (shop, root) = (with_token(node, shop).await, with_token(node, root).await);
    assert_eq!(code(shop.publish("payments", "x").await), forbidden);
    assert_eq!(code(root.publish("orders.eu", "x").await), forbidden);
    let options = ReceiveOptions::default();
    assert_eq!(code(shop.receive("audit", &options).await), forbidden);
    assert_eq!(code(root.receive("billing", &options).await), forbidden);
    let got = shop.receive("billing", &options).await.unwrap();
    assert_eq!(got.len(), 1);
    shop.ack("billing", [got[0].receipt.clone()]).await.unwrap();
    // Nor is a stream a way around.
    let request = proto::PutUserRequest {
        name: "mallory".into(),
        grants: vec![proto::AccessGrant {
            actions: vec![Action::Manage.into()],
            topics: vec!["*".into()],
            groups: vec!["*".into()],
        }],
        publish_quota: None,
    };
    assert_eq!(code(shop.raw().put_user(request).await.map_err(Error::from)), forbidden);
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let open = proto::consume_request::Open {
        group: "audit".into(),
        credit: Some(proto::consume_request::Credit { messages: 1, bytes: 1 }),
        ..Default::default()
    };
    let open = proto::consume_request::Request::Open(open);
    tx.send(proto::ConsumeRequest { request: Some(open) }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
    let ended = within("the stream ends", 20, async {
        shop.raw().consume(stream).await?.into_inner().message().await
    });
    assert_eq!(code(ended.await.map_err(Error::from)), forbidden);
}

/// A certificate for loopback, and its key, in files.
fn certificate(dir: &Path) -> (String, String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".into(), "localhost".into()]);
    let made = made.unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    (text(&certificate), text(&key), made.cert.pem())
}

/// A connection with TLS, to speak HTTP/1 over.
async fn over_tls(node: &Node, pem: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    let pem = tokio_rustls::rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes());
    roots.add(pem.unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let socket = web::connect(node.address).await;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_certificate_both_doors_speak_tls_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key, pem) = certificate(dir.path());
    let data = dir.path().join("data");
    let setup = Setup::new(&data).flag("--tls-cert", &cert).flag("--tls-key", &key);
    let node = setup.start().await;
    assert!(node.url.starts_with("https://"), "{}", node.url);
    let client = Client::builder(node.url.clone()).ca_certificate(pem.clone()).connect().await;
    let client = client.unwrap();
    client.publish("t", "over gRPC").await.unwrap();

    let mut tls = over_tls(&node, &pem).await;
    let request =
        b"GET /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    tls.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut tls, &mut answer);
    within("an answer over TLS", 20, read).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("over gRPC"), "{answer}");

    let plain = format!("http://{}", node.address);
    let refused = web::Web::at(&plain).send(Method::GET, "/v1/topics", &[], Body::empty()).await;
    assert!(refused.is_err(), "a port with TLS has answered without");
    let stranger = Client::connect(node.url.clone()).await;
    assert!(matches!(stranger, Err(Error::Unreachable(_))), "who does not trust is not connected");
    node.stop().await;

    for (cert, key, code, word) in [
        ("nosuch.pem", key.as_str(), 1, "nosuch.pem"),
        (key.as_str(), key.as_str(), 1, "no certificate"),
        (cert.as_str(), cert.as_str(), 1, cert.as_str()),
        (cert.as_str(), "", 2, "needs its key"),
    ] {
        let setup = Setup::new(&data).flag("--tls-cert", cert);
        let setup = if key.is_empty() { setup } else { setup.flag("--tls-key", key) };
        let ended = setup.refused().await;
        assert_eq!(ended.code, Some(code), "{ended:#?}");
        assert!(ended.said.contains(word), "{word}: {}", ended.said);
    }
}
