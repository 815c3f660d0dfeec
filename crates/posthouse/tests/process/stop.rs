//! Told to stop: everybody is answered, a snapshot is written, leases stay. Held up: what
//! came meanwhile counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use posthouse_client::{Client, Delivery, Error, Outcome, ReceiveOptions};
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::crash;
use crate::support::journal::Journal;
use crate::support::load;
use crate::support::node::{Ended, Node, Setup};
use crate::support::rng::{self, Rng};
use crate::support::{until, web, within};

/// Consumers that wait when the node is told to stop.
const WAITING: usize = 6;

/// Frames that the last start of a node has replayed: those behind its snapshot.
fn replayed(node: &Node) -> u64 {
    let said = node.said();
    let line = said.lines().find(|line| line.contains("opened in")).expect("it says so");
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "frames").expect("it says how many");
    words[at - 1].parse().expect("a number")
}

/// Consumers that wait.
async fn waiting(node: &Node) -> u64 {
    let figures = node.web().get("/metrics").await;
    let text = String::from_utf8_lossy(&figures.body).into_owned();
    let name = "posthouse_shard_waiting{";
    let line = text.lines().find(|line| line.starts_with(name)).expect("a figure");
    let count = line.split_whitespace().last().expect("a value").parse::<f64>();
    count.expect("a number") as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_under_load_it_answers_everybody_keeps_leases_and_leaves_a_snapshot() {
    let mut rng = Rng::new(rng::seed("told to stop under load"));
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let node = setup.start().await;
    load::prepare(&node).await;
    let client = node.client().await;
    for n in 0..3 {
        client.publish("held", format!("{n}")).await.unwrap();
    }
    let lease = Some(Duration::from_secs(300));
    let options =
        ReceiveOptions { max: 10, lease, topic: Some("held".into()), ..ReceiveOptions::default() };
    let held = client.receive("holders", &options).await.unwrap();
    assert_eq!(held.len(), 3);

    // Nothing ever comes for these.
    let mut waiters = JoinSet::new();
    for n in 0..WAITING {
        let topic = Some("silent".to_owned());
        let wait = Duration::from_secs(300);
        let options = ReceiveOptions { wait, topic, ..ReceiveOptions::default() };
        let (client, web) = (client.clone(), node.web());
        waiters.spawn(async move {
            if n % 2 == 0 {
                let error = client.receive("waiters", &options).await.unwrap_err();
                assert_eq!(error.code(), Some("stopping"), "{error}");
            } else {
                let ask = json!({ "wait": "5m", "topic": "silent" });
                let answer = web.try_post("/v1/groups/waiters/receive", &ask).await.unwrap();
                assert_eq!((answer.status, answer.code().as_str()), (503, "stopping"));
                assert!(answer.headers.contains_key("retry-after"));
            }
        });
    }
    until("all of them wait", 30, || async {
        (waiting(&node).await >= WAITING as u64).then_some(())
    })
    .await;
    let journal = Arc::new(Journal::default());
    let tasks = load::begin(&node, &journal, &mut rng).await;
    within("answers come", 60, journal.answers(600)).await;

    let began = Instant::now();
    node.signal(Signal::TERM);
    within("waiters are answered", 20, waiters.join_all()).await;
    let ended = node.ended(20).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    within("clients notice", 20, tasks.join_all()).await;

    let node = setup.start().await;
    let frames = replayed(&node);
    assert!(frames <= 2, "{frames} frames were replayed behind the last snapshot");
    assert!(!node.said().contains("cut "), "nothing is torn: {}", node.said());
    crash::verify(&node, &journal).await;
    let client = node.client().await;
    assert_eq!(client.receive("holders", &options).await.unwrap(), [], "leases stay");
    let acked = client.ack("holders", held.into_iter().map(|d| d.receipt)).await.unwrap();
    assert_eq!(acked, vec![Outcome::Ok; 3], "receipts outlive a restart");
    node.stop().await;
}

/// Held up (SIGSTOP) until leases have ended: an acknowledgement that came meanwhile counts,
/// because nobody else has had the message; what was not acknowledged comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_up_past_its_leases_it_takes_acks_and_gives_the_rest_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).start().await;
    let client = node.client().await;
    for n in 0..6 {
        client.publish("jobs", format!("{n}")).await.unwrap();
    }
    let (lease, topic) = (Some(Duration::from_millis(500)), Some("jobs".to_owned()));
    let options = ReceiveOptions { max: 4, lease, topic, ..ReceiveOptions::default() };
    let held = client.receive("workers", &options).await.unwrap();
    assert_eq!(held.len(), 4);

    node.hold_up().await;
    let receipts = |of: &[Delivery]| -> Vec<String> {
        of.iter().map(|delivery| delivery.receipt.clone()).collect()
    };
    let mut acks = std::pin::pin!(client.ack("workers", receipts(&held[..2])));
    let answered = tokio::time::timeout(Duration::from_millis(1500), acks.as_mut()).await;
    assert!(answered.is_err(), "it is held up");
    node.signal(Signal::CONT);
    let acked = within("acks are answered", 20, acks).await.unwrap();
    assert_eq!(acked, vec![Outcome::Ok; 2]);

    let (lease, wait) = (Some(Duration::from_secs(300)), Duration::from_secs(5));
    let options = ReceiveOptions { max: 10, lease, wait, ..options };
    let mut got = BTreeMap::new();
    while got.len() < 4 {
        let some = within("messages", 20, client.receive("workers", &options)).await.unwrap();
        assert!(!some.is_empty(), "only {got:?} came");
        for delivery in some {
            let body = String::from_utf8(delivery.body.to_vec()).unwrap();
            assert_eq!(got.insert(body, delivery.attempt), None);
        }
    }
    let expected = [("2", 2), ("3", 2), ("4", 1), ("5", 1)];
    assert_eq!(got, expected.map(|(body, attempt)| (body.to_owned(), attempt)).into());
    let late = client.ack("workers", receipts(&held[2..])).await.unwrap();
    let is_stale = |outcome: &Outcome| matches!(outcome, Outcome::Stale(_));
    assert!(late.iter().all(is_stale), "others have them: {late:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_it_ends_in_order_and_new_work_is_refused_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path());
    let node = setup.start().await;
    let client = node.client().await;
    client.publish("t", "before").await.unwrap();
    node.signal(Signal::INT);
    let mut published = 1;
    let refused = within("a publish is refused", 20, async {
        loop {
            match client.publish("t", "meanwhile").await {
                Ok(_) => published += 1,
                Err(error) => return error,
            }
        }
    })
    .await;
    // Told so by the node, or by nobody being there any more.
    let is_refused = refused.code() == Some("stopping") || refused.code().is_none();
    assert!(is_refused, "{refused}");
    let Ended { code, said, .. } = node.ended(20).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("SIGINT"), "{said}");
    let node = setup.start().await;
    let there = crash::browse(&node, "t", 0).await.len();
    let unknown = usize::from(matches!(refused, Error::OutcomeUnknown(_)));
    assert!((published..=published + unknown).contains(&there), "{there}, not {published}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_finish_is_cut_off_and_it_still_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = Setup::new(dir.path()).flag("--stop-timeout", "3s").start().await;
    node.client().await.publish("t", "there").await.unwrap();
    // Says nothing; says half a request; sends half a body; never ends a stream; never
    // reads one.
    let silent = web::connect(node.address).await;
    let mut half = web::connect(node.address).await;
    web::send(&mut half, b"POST /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\n").await;
    let mut body = web::connect(node.address).await;
    let head = b"POST /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000\r\n\r\nabc";
    web::send(&mut body, head).await;
    let publisher = Client::connect(node.url.clone()).await.unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel(4);
    let request = posthouse_client::proto::PublishRequest {
        topic: "t".into(),
        messages: vec![Default::default()],
        apart: false,
    };
    tx.send(request).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
    let mut answers = publisher.raw().publish_stream(stream).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let web = node.web();
    let events = tokio::spawn(async move {
        web.send(Method::GET, "/v1/groups/none/stream?topic=t", &[], Body::empty()).await
    });
    until("the stream of events has its message", 20, || async {
        let group = node.web().get("/v1/groups/none").await;
        (group.status == 200 && group.json()["in_flight"] == 2).then_some(())
    })
    .await;
    let began = Instant::now();
    let ended = {
        node.signal(Signal::TERM);
        node.ended(20).await
    };
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    drop((silent, half, body, tx, events));
}

/// `posthouse serve | head -1` ended the node, and so did the first line of the log that
/// nobody read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_to_read_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let setup = Setup::new(dir.path()).listen(&address.to_string());
    let mut child = setup.begin_unheard();
    let web = web::Web::at(&format!("http://{address}"));
    within("it serves", 60, async {
        loop {
            assert_eq!(child.try_wait().unwrap(), None, "it has ended");
            let answer = web.send(Method::GET, "/healthz", &[], Body::empty()).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let ended = within("it ends", 30, child.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}
