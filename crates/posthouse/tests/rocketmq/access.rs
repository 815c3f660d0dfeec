//! Access keys: who signs is who the access key belongs to.

use jiff::{Timestamp, ToSpan as _};
use posthouse::broker::access_keys::AccessKey;
use posthouse::broker::manage::TopicPatch;
use posthouse_core::catalog::{AccessGrant, Action};
use ring::hmac;

use crate::pb::Code;
use crate::sessions::{Talk, producer};
use crate::*;

fn grant(actions: &[Action], topics: &[&str], groups: &[&str]) -> AccessGrant {
    let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
    AccessGrant { actions: actions.to_vec(), topics: texts(topics), groups: texts(groups) }
}

/// A node with users, topics `orders` and `invoices`, and a group of the first; the access
/// key of one who may publish to `orders` and consume as the group.
async fn node_with_users() -> (Node, AccessKey) {
    let node = Node::start().await;
    let broker = &node.broker;
    for topic in ["orders", "invoices"] {
        broker.put_topic(&Caller::Node, topic, TopicPatch::default()).await.unwrap();
    }
    put_group(&node, "billing", "orders", |_| ()).await;
    let grants = vec![
        grant(&[Action::Publish], &["orders"], &[]),
        grant(&[Action::Consume], &[], &["billing"]),
    ];
    broker.put_user(&Caller::Node, "shop", grants, None).await.unwrap();
    let key = broker.make_access_key(&Caller::Node, "shop", "key").await.unwrap();
    let root = vec![grant(&[Action::Manage], &["*"], &["*"])];
    broker.put_user(&Caller::Node, "root", root, None).await.unwrap();
    broker.make_token(&Caller::Node, "root", "token").await.unwrap();
    (node, key)
}

impl Client {
    /// Signs that it is `hours` from now, as a client does in another time zone.
    fn signs(&self, id: &str, secret: &str, hours: i64) -> Client {
        let at = Timestamp::now() + hours.hours();
        let date = at.strftime("%Y%m%dT%H%M%SZ").to_string();
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let signature = hmac::sign(&key, date.as_bytes());
        let hex: String = signature.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let authorization = format!(
            "MQv2-HMAC-SHA1 Credential={id}//Rocketmq, SignedHeaders=x-mq-date-time, Signature={hex}"
        );
        Client { signed: Some((date, authorization)), ..self.clone() }
    }

    async fn code_of_send(&self, topic: &str) -> Code {
        self.send(vec![message(topic, 1, "a")]).await.status.unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_may_what_the_user_may() {
    let (node, key) = node_with_users().await;
    let client = Client::of(&node, "c").signs(&key.id, &key.secret, 0);
    assert_eq!(client.route("orders").await.status.unwrap().code(), Code::Ok);
    client.sent(message("orders", 1, "a")).await;
    let got = client.one(simple("billing", "orders")).await;
    assert_eq!(client.ack("billing", &[got]).await.status.unwrap().code(), Code::Ok);
    assert_eq!(client.code_of_send("invoices").await, Code::Forbidden);
    assert_eq!(client.route("invoices").await.status.unwrap().code(), Code::Forbidden);
    let refused = client.receives(at_once(simple("audit", "orders"))).await;
    let [Content::Status(status)] = refused.as_slice() else { panic!("{refused:?}") };
    assert_eq!(status.code(), Code::Forbidden);
    // A user without a signature shows the token itself.
    let bearer = Some((String::new(), format!("Bearer {}", key.secret)));
    let client = Client { signed: bearer, ..client };
    assert_eq!(client.code_of_send("orders").await, Code::Ok);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_signature_is_nobody() {
    let (node, key) = node_with_users().await;
    let client = Client::of(&node, "c");
    let signed = |id: &str, secret: &str| client.signs(id, secret, 0);
    for (who, what) in [
        (client.clone(), "nothing is signed"),
        (signed("", ""), "no access key"),
        (signed(&key.id, "secret"), "another secret"),
        (signed("phk_nobody", &key.secret), "another key"),
        (client.signs(&key.id, &key.secret, 15), "signed too late"),
        (client.signs(&key.id, &key.secret, -13), "signed too early"),
    ] {
        assert_eq!(who.code_of_send("orders").await, Code::Unauthorized, "{what}");
        let answer = Talk::refused(&who).await;
        assert_eq!(answer.code(), tonic::Code::Unauthenticated, "{what}");
        assert!(answer.message().starts_with("40100"), "{answer:?}");
    }
    // The signature is that of another time.
    let (mut now, before) = (signed(&key.id, &key.secret), client.signs(&key.id, &key.secret, -1));
    let (date, _) = now.signed.take().unwrap();
    now.signed = Some((date, before.signed.unwrap().1));
    assert_eq!(now.code_of_send("orders").await, Code::Unauthorized);
    // Some write the time of their zone.
    for hours in [-12, -5, 8, 14] {
        let client = client.signs(&key.id, &key.secret, hours);
        assert_eq!(client.code_of_send("orders").await, Code::Ok, "{hours}");
    }
    node.stop().await;
}

/// A stream that is open stays, but nothing is done for whoever has lost the key.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_is_nobodys_at_once() {
    let (node, key) = node_with_users().await;
    let client = Client::of(&node, "c").signs(&key.id, &key.secret, 0);
    let mut talk = Talk::of(&client).await;
    talk.say(producer("orders"));
    talk.settings().await;
    node.broker.revoke_token(&Caller::Node, "shop", "key").await.unwrap();
    assert_eq!(client.code_of_send("orders").await, Code::Unauthorized);
    talk.say(producer("orders"));
    let ended = talk.end().await;
    assert!(ended.message().starts_with("40100"), "{ended:?}");
    node.stop().await;
}

/// Clients that have no key sign with an empty one; on a node without users nobody asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_users_takes_any_signature() {
    let node = Node::start().await;
    let client = Client::of(&node, "c");
    for signed in [client.signs("", "", 0), client.signs("phk_x", "y", 100)] {
        assert_eq!(signed.code_of_send("orders").await, Code::Ok);
    }
    node.stop().await;
}
