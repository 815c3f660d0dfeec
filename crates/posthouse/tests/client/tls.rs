//! TLS with a certificate authority of one's own, and a token.

use std::sync::Arc;

use posthouse_client::{Client, ConsumeOptions, Delivery, Error, PublisherOptions, proto};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::Notify;

use crate::process::Process;
use crate::within;

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_and_a_token_are_all_it_takes() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let chain = file("chain.pem", certificate.pem());
    let secret = file("key.pem", key.serialize_pem());
    let node = Process::start_with(&["--tls-cert", &chain, "--tls-key", &secret]);
    let address = format!("https://{}", node.address);

    // Whom nobody vouches for is not talked to, whoever asks.
    let stranger = self::authority();
    for builder in [
        Client::builder(&address),
        Client::builder(&address).ca_certificate(stranger.pem()),
        Client::builder(format!("http://{}", node.address)),
    ] {
        let tried =
            within("it fails", async { builder.connect().await?.publish("orders", "x").await });
        let error = tried.await.unwrap_err();
        assert!(!matches!(error, Error::Refused(_)), "{error:?}");
    }

    let builder = Client::builder(&address).ca_certificate(authority.pem());
    let client = builder.clone().connect().await.unwrap();
    client.publish("orders", "before there are users").await.unwrap();
    let all = vec!["*".to_owned()];
    let grant = proto::AccessGrant {
        actions: [proto::Action::Publish, proto::Action::Consume, proto::Action::Manage]
            .map(Into::into)
            .to_vec(),
        topics: all.clone(),
        groups: all,
    };
    let request =
        proto::PutUserRequest { name: "root".into(), grants: vec![grant], publish_quota: None };
    client.raw().put_user(request).await.unwrap();
    let request = proto::CreateTokenRequest {
        user: "root".into(),
        name: "test".into(),
        ..Default::default()
    };
    let token = client.raw().create_token(request).await.unwrap().into_inner().token;

    let error = client.publish("orders", "x").await.unwrap_err();
    assert_eq!(error.code(), Some("unauthenticated"));
    let client = builder.token(token).connect().await.unwrap();
    crate::put_group(&client, "billing", "orders", 3).await;
    let publisher = client.publisher(PublisherOptions::default());
    publisher.publish("orders", "over a stream").await.unwrap();
    let stop = Arc::new(Notify::new());
    let finished = stop.clone();
    let handler = move |delivery: Delivery| {
        let finished = finished.clone();
        async move {
            if delivery.body == "over a stream" {
                finished.notify_one();
            }
            Ok(())
        }
    };
    let options = ConsumeOptions::default();
    let consumed = client.consume_until("billing", options, stop.notified(), handler);
    within("it is consumed", consumed).await.unwrap();
    assert_eq!(crate::group(&client, "billing").await.lag, 0);
}
