//! `consume`, printing.

use std::io::Read as _;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Node, texts};

/// A node with a topic of these messages, and a group that gets them.
fn node(bodies: &[&str]) -> Node {
    Node::with_messages(&[], bodies)
}

#[test]
fn what_was_printed_is_acknowledged() {
    let node = node(&["a", "b", "c"]);
    assert_eq!(node.cli(&["consume", "g", "--max", "1"]).ok(), "a\n");
    let group_after_one = node.group();
    assert_eq!((&group_after_one["lag"], &group_after_one["in_flight"]), (&2.into(), &0.into()));
    let rest = node.cli(&["consume", "g", "--json", "--consumer", "me"]).objects();
    assert_eq!(texts(&rest, "body"), ["b", "c"]);
    assert_eq!(rest[0]["attempt"], 1);
    assert!(rest[0]["receipt"].is_string());
    assert_eq!(node.group()["lag"], 0);
    assert_eq!(node.cli(&["consume", "g"]).ok(), "", "there is nothing more");
    node.cli(&["consume", "nosuch"]).failed(3, "there is no group \"nosuch\"");
    node.cli(&["consume", "g", "--lease", "1ms"]).failed(2, "lease");
}

#[test]
fn a_look_gives_everything_back_and_counts_as_an_attempt() {
    let node = node(&["a", "b"]);
    assert_eq!(node.cli(&["consume", "g", "--no-ack"]).ok(), "a\nb\n");
    let after = node.group();
    assert_eq!((&after["lag"], &after["in_flight"]), (&2.into(), &0.into()));
    let again = node.cli(&["consume", "g", "--json"]).objects();
    assert_eq!(again[0]["attempt"], 2);
    node.cli(&["consume", "g", "--no-ack", "--follow"]).failed(2, "cannot be used with");
    node.cli(&["consume", "g", "--no-ack", "--max", "10001"]).failed(2, "at most 10000");
}

#[test]
fn a_message_that_is_acknowledged_as_it_is_given_out_has_no_receipt() {
    let node = node(&["a"]);
    let got = node.cli(&["consume", "g", "--auto-ack", "--json"]).objects();
    assert_eq!((got[0]["body"].as_str(), got[0].get("receipt")), (Some("a"), None));
    assert_eq!(node.group()["lag"], 0);
}

#[test]
fn who_follows_gets_what_comes_until_told_to_stop() {
    let node = node(&["a"]);
    let mut consume = node.begin(&["consume", "g", "--follow"]);
    assert_eq!(consume.line(), "a");
    node.cli(&["publish", "orders", "b"]).ok();
    assert_eq!(consume.line(), "b");
    consume.signal(Signal::INT);
    assert_eq!(consume.wait().code(), Some(0));
    let after = node.group();
    assert_eq!((&after["lag"], &after["in_flight"]), (&0.into(), &0.into()));
}

#[test]
fn who_follows_goes_on_when_the_node_is_back() {
    let node = node(&["a"]);
    let mut consume = node.begin(&["consume", "g", "--follow"]);
    assert_eq!(consume.line(), "a");
    let node = node.restart_after(|| consume.says("trying again"));
    node.cli(&["publish", "orders", "b"]).ok();
    assert_eq!(consume.line(), "b");
    consume.signal(Signal::TERM);
    assert_eq!(consume.wait().code(), Some(0));
}

#[test]
fn a_topic_makes_a_group_where_the_node_makes_what_is_missing() {
    let node = Node::start();
    node.cli(&["publish", "orders", "a"]).ok();
    assert_eq!(node.cli(&["consume", "new", "--topic", "orders"]).ok(), "a\n");
}

#[test]
fn one_that_waits_ends_when_nothing_comes() {
    let node = node(&[]);
    let mut consume = node.begin(&["consume", "g", "--wait", "60s", "--max", "1"]);
    node.cli(&["publish", "orders", "late"]).ok();
    assert_eq!(consume.line(), "late");
    assert_eq!(consume.wait().code(), Some(0), "it has had what it was to have");
    assert_eq!(node.cli(&["consume", "g", "--wait", "50ms"]).ok(), "");
    let mut consume = node.begin(&["consume", "g", "--wait", "60s"]);
    node.cli(&["publish", "orders", "later"]).ok();
    assert_eq!(consume.line(), "later");
    consume.signal(Signal::INT);
    assert_eq!(consume.wait().code(), Some(130), "it was not done");
}

#[test]
fn what_nobody_reads_is_given_back() {
    let node = node(&[]);
    // More than a pipe holds.
    let line = format!("{}\n", "x".repeat(4000));
    node.cli_with(&["publish", "orders", "--lines", "-"], line.repeat(200)).ok();
    let (mut consume, mut stdout) = node.begin_unread(&["consume", "g"]);
    let mut some = [0; 5000];
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    assert_eq!(consume.wait().code(), Some(0), "that is what `| head` does");
    assert_eq!(consume.stderr(), "");
    let after = node.group();
    assert_eq!((&after["lag"], &after["in_flight"]), (&200.into(), &0.into()));
}

#[test]
fn a_reader_that_does_not_read_keeps_nobody_from_stopping() {
    let node = node(&[]);
    let line = format!("{}\n", "x".repeat(4000));
    node.cli_with(&["publish", "orders", "--lines", "-"], line.repeat(200)).ok();
    node.cli(&["group", "set", "g", "--lease", "1s"]).ok();
    let (mut consume, _stdout) = node.begin_unread(&["consume", "g"]);
    // Held for longer than the lease: it is extended.
    let held = node.until(&["group", "show", "g", "--json"], |group| group["in_flight"] == 200);
    assert_eq!(held["lag"], 200);
    let receipt_lasts = std::time::Instant::now();
    while receipt_lasts.elapsed() < std::time::Duration::from_secs(2) {
        assert_eq!(node.group()["in_flight"], 200);
    }
    consume.signal(Signal::INT);
    assert_eq!(consume.wait().code(), Some(130));
    let after = node.group();
    assert_eq!((&after["lag"], &after["in_flight"]), (&200.into(), &0.into()));
    let again = node.cli(&["consume", "g", "--json", "--max", "1"]).objects();
    assert_eq!(again[0]["attempt"], 2, "nobody else has had it meanwhile");
}

#[test]
fn each_consumer_of_a_broadcast_gets_its_own_copy() {
    let node = node(&[]);
    let follow =
        |name| node.begin(&["consume", "g", "--broadcast", "--consumer", name, "--follow"]);
    node.cli(&["consume", "g", "--broadcast"]).failed(2, "--consumer");
    let (mut first, mut second) = (follow("one"), follow("two"));
    // They get what comes from their first receive on.
    let both = |list: &Value| {
        let names = texts(list["groups"].as_array().unwrap(), "name");
        ["%broadcast.g%one", "%broadcast.g%two"].iter().all(|n| names.contains(&n.to_string()))
    };
    node.until(&["group", "list", "%", "--json"], both);
    node.cli(&["publish", "orders", "news"]).ok();
    assert_eq!((first.line(), second.line()), ("news".into(), "news".into()));
}
