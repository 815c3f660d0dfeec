//! `publish`: one message and many.

use std::io::Write as _;

use serde_json::json;

use crate::harness::{Node, texts};

#[test]
fn a_body_comes_from_an_argument_or_from_stdin() {
    let node = Node::start();
    let said = node.cli(&["publish", "orders", "hello"]).ok();
    assert!(said.ends_with(" published: partition 0, position 0\n"), "{said}");
    node.cli_with(&["publish", "orders"], "piped in").ok();
    node.cli_with(&["publish", "orders", "-"], b"\xff\xfe\n").ok();
    node.cli_with(&["publish", "orders"], "").ok();
    let all = node.cli(&["topic", "browse", "orders", "--json"]).objects();
    assert_eq!(all[0]["body"], "hello");
    assert_eq!(all[1]["body"], "piped in");
    assert_eq!(all[2]["body_base64"], "//4K");
    assert_eq!(all[3]["body"], "");
}

#[test]
fn the_same_dedupe_id_publishes_once_and_another_body_is_a_conflict() {
    let node = Node::start();
    let publish = |body| node.cli(&["publish", "orders", body, "--dedupe-id", "1", "--json"]);
    let first = publish("a").json();
    let again = publish("a").json();
    assert_eq!(first["messages"][0]["duplicate"], false);
    assert_eq!(again["messages"][0]["duplicate"], true);
    assert_eq!(again["messages"][0]["id"], first["messages"][0]["id"]);
    let said = node.cli(&["publish", "orders", "a", "--dedupe-id", "1"]).ok();
    assert!(said.contains("had been published before"), "{said}");
    publish("b").failed(3, "use another dedupe_id");
}

#[test]
fn a_message_that_cannot_be_is_refused_with_its_limit() {
    let node = Node::start();
    node.cli(&["publish", "no spaces", "x"]).failed(2, "has no place in a name");
    node.cli(&["publish", "orders", "x", "--ttl", "soon"]).failed(2, "a duration like 250ms");
    node.cli(&["publish", "orders", "x", "--header", "novalue"]).failed(2, "NAME=VALUE");
    node.cli(&["publish", "orders", "x", "--tag", "a|b"]).failed(2, "a tag");
    node.cli(&["topic", "create", "small", "--max-message-bytes", "10"]).ok();
    node.cli(&["publish", "small", "more than ten bytes"]).failed(2, "10");
    let too_large = vec![b'x'; (8 << 20) + 1];
    node.cli_with(&["publish", "orders"], too_large).failed(2, "which no topic allows");
    let closed = Node::start_with(&["--auto-create", "false"]);
    closed.cli(&["publish", "orders", "x"]).failed(3, "there is no topic \"orders\"");
}

#[test]
fn every_line_is_a_message_and_a_second_run_publishes_nothing_twice() {
    let node = Node::start();
    let lines: String = (1..=5000).map(|n| format!("line {n}\n")).collect();
    let file = node.file("lines", format!("{lines}\r\nthe last").as_bytes());
    let publish =
        ["publish", "orders", "--lines", &file, "--dedupe-prefix", "run", "--tag", "bulk"];
    let said = node.cli(&publish).ok();
    assert!(said.starts_with("published 5,002 messages, in "), "{said}");
    let again = node.cli(&publish).ok();
    assert!(again.starts_with("published 0 messages, 5,002 had been before, in "), "{again}");
    let all = node.cli(&["topic", "browse", "orders", "--limit", "10000", "--json"]).objects();
    let bodies = texts(&all, "body");
    assert_eq!(bodies.len(), 5002);
    assert_eq!((bodies[0].as_str(), bodies[4999].as_str()), ("line 1", "line 5000"), "in order");
    assert_eq!((bodies[5000].as_str(), bodies[5001].as_str()), ("", "the last"));
    assert_eq!(all[0]["dedupe_id"], "run-1");
    assert_eq!(all[0]["tags"], json!(["bulk"]));
}

#[test]
fn lines_of_a_pipe_are_published_as_they_come() {
    let node = Node::start();
    let mut publish = node.begin(&["publish", "orders", "--lines", "-", "--json"]);
    let mut stdin = publish.stdin();
    for position in 0..3 {
        stdin.write_all(b"something\n").unwrap();
        let line: serde_json::Value = serde_json::from_str(&publish.line()).unwrap();
        assert_eq!(line["position"], position, "it was published before the pipe has ended");
    }
    // A line that is not complete when it is told to stop is none.
    stdin.write_all(b"half a l").unwrap();
    publish.signal(rustix::process::Signal::INT);
    assert_eq!(publish.wait().code(), Some(130));
    assert!(publish.stderr().contains("interrupted behind line 3"));
    let all = node.cli(&["topic", "browse", "orders", "--json"]).objects();
    assert_eq!(all.len(), 3);
}

#[test]
fn a_line_that_is_refused_ends_it_unless_it_is_to_go_on() {
    let node = Node::start();
    let lines = concat!(
        "{\"body\":\"a\",\"key\":\"k\"}\n",
        "{\"bdoy\":\"b\"}\n",
        "{\"body\":\"c\",\"ttl\":\"1h\"}\n"
    );
    let args = ["publish", "orders", "--lines", "-", "--line-format", "json"];
    node.cli_with(&args, lines).failed(2, "line 2: unknown field `bdoy`");
    let all = node.cli(&["topic", "browse", "orders", "--json"]).objects();
    assert_eq!(texts(&all, "body"), ["a"]);

    let args = [&args[..], &["--keep-going", "--json"]].concat();
    let ended = node.cli_with(&args, lines);
    let objects: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 3, "a line for every line: {objects:?}");
    assert_eq!(objects[0]["position"], 1);
    assert_eq!(objects[1]["problem"]["code"], "invalid_argument");
    assert_eq!(objects[2]["position"], 2);
    ended.failed(2, "line 2: unknown field");
}

#[test]
fn what_is_refused_as_a_whole_is_refused_at_once() {
    let node = Node::start_with(&["--auto-create", "false"]);
    let lines = "a\n".repeat(5000);
    node.cli_with(&["publish", "orders", "--lines", "-", "--dedupe-prefix", "r"], &lines)
        .failed(3, "there is no topic \"orders\"");
    node.cli_with(&["publish", "orders", "--lines", "-", "--keep-going"], &lines)
        .failed(3, "line 1: there is no topic \"orders\"");
    node.cli(&["publish", "orders", "--lines", "/nosuch"]).failed(2, "cannot read /nosuch");
    node.cli(&["publish", "orders", "x", "--lines", "-"]).failed(2, "cannot be used with");
}

#[test]
fn a_message_comes_later_alone_and_as_a_line() {
    let node = Node::start();
    node.cli(&["group", "create", "g", "--subscribe", "orders"]).ok();
    let said = node.cli(&["publish", "orders", "one", "--delay", "1h", "--name", "first"]).ok();
    assert!(said.contains(" published: partition 0, comes at "), "{said}");
    let keep = ["--delay", "1h", "--name", "first", "--name-taken", "keep"];
    let said = node.cli(&[&["publish", "orders", "other"], &keep[..]].concat()).ok();
    assert!(said.contains(" has the name, and stays: "), "{said}");
    let line = "{\"body\":\"two\",\"delay\":\"2h\",\"name\":\"second\"}\n";
    let args = ["publish", "orders", "--lines", "-", "--line-format", "json", "--json"];
    let published = node.cli_with(&args, line).objects().remove(0);
    assert!(published["deliver_at"].is_string(), "{published}");
    assert!(published["position"].is_null(), "{published}");
    assert_eq!(node.cli(&["consume", "g"]).ok(), "", "nothing has come yet");
    let listed = node.cli(&["schedule", "list", "orders", "--json"]).objects();
    assert_eq!(texts(&listed, "body"), ["one", "two"], "in the order in which they come");
    assert_eq!(texts(&listed, "name"), ["first", "second"]);
    let hours = node.cli(&["schedule", "hours", "orders", "--json"]).json();
    assert_eq!(hours["pending"], 2);
    let moved = ["schedule", "move", "second", "--topic", "orders", "--delay", "0s"];
    assert!(node.cli(&moved).ok().starts_with("second comes at "));
    assert_eq!(node.cli(&["consume", "g", "--wait", "10s", "--max", "1"]).ok(), "two\n");
    let id = listed[0]["id"].as_str().unwrap();
    let said = node.cli(&["schedule", "cancel", id]).ok();
    assert!(said.contains(" called back; it was to come at "), "{said}");
    node.cli(&["schedule", "cancel", id]).failed(3, "1 of 1 message stayed as it was");
    node.cli(&["schedule", "cancel", "nosuch", "--topic", "orders"]).failed(3, "stayed as it was");
    node.cli(&["publish", "orders", "three", "--delay", "1h"]).ok();
    assert_eq!(node.cli(&["schedule", "purge", "orders", "--yes"]).ok(), "purged 1 message\n");
    assert!(node.cli(&["schedule", "list", "orders", "--json"]).objects().is_empty());
}
