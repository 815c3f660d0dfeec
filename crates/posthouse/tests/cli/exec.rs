//! `consume --exec`: a command for every message.

use rustix::process::Signal;

use crate::harness::{Node, texts};

fn node(bodies: &[&str]) -> Node {
    Node::with_messages(&["--backoff", "1h", "--lease", "1s"], bodies)
}

#[test]
fn exit_code_zero_acknowledges_and_any_other_gives_back_with_the_reason() {
    let node = node(&["good", "bad", "good"]);
    let command =
        "read body; echo \"got $body\"; [ $body = good ] || { echo no stock >&2; exit 3; }";
    let ended = node.cli_with(&["consume", "g", "--exec", command], "");
    assert_eq!(ended.stdout, "got good\ngot bad\ngot good\n");
    assert!(ended.stderr.contains("was given back: exit code 3: no stock"), "{}", ended.stderr);
    assert!(ended.stderr.contains("2 acknowledged, 1 given back"), "{}", ended.stderr);
    ended.ok();
    let after = node.group();
    assert_eq!((&after["lag"], &after["waiting"]), (&1.into(), &1.into()));
    let left = node.cli(&["message", "find", "orders", "--since", "1h", "--json"]).objects();
    let id = left[1]["id"].as_str().unwrap();
    let shown = node.cli(&["message", "show", id, "--json"]).json();
    assert_eq!(shown["groups"][0]["state"], "waiting");
    assert_eq!(shown["groups"][0]["reason"], "exit code 3: no stock");
}

#[test]
fn a_command_finds_all_about_the_message_in_its_environment() {
    let node = node(&[]);
    let publish = [
        "publish",
        "orders",
        "x",
        "--key",
        "k 1",
        "--tag",
        "eu",
        "--tag",
        "paid",
        "--header",
        "x-trace=7",
        "--dedupe-id",
        "o-1",
    ];
    node.cli(&publish).ok();
    let command = "echo \"$POSTHOUSE_TOPIC $POSTHOUSE_PARTITION $POSTHOUSE_POSITION \
                   $POSTHOUSE_KEY $POSTHOUSE_TAGS $POSTHOUSE_ATTEMPT $POSTHOUSE_GROUP \
                   $POSTHOUSE_HEADER_X_TRACE $POSTHOUSE_DEDUPE_ID\"; \
                   [ ${#POSTHOUSE_ID} = 32 ] && [ $POSTHOUSE_FENCE -ge 1 ] && \
                   [ -n \"$POSTHOUSE_PUBLISHED_AT\" ]";
    assert_eq!(
        node.cli(&["consume", "g", "--exec", command]).ok(),
        "orders 0 0 k 1 eu,paid 1 g 7 o-1\n"
    );
    assert_eq!(node.group()["lag"], 0);
}

#[test]
fn for_programs_every_message_is_a_line_and_what_commands_print_is_beside_it() {
    let node = node(&["a", "b"]);
    let command = "echo noise; [ $POSTHOUSE_POSITION = 0 ]";
    let ended = node.cli(&["consume", "g", "--exec", command, "--json"]);
    assert!(ended.stderr.contains("noise\n"), "{}", ended.stderr);
    let lines = ended.objects();
    assert_eq!(texts(&lines, "status"), ["acked", "given_back"]);
    assert_eq!(lines[1]["reason"], "exit code 1");
}

#[test]
fn commands_run_side_by_side_as_many_as_allowed() {
    let node = node(&["a", "b"]);
    // Each waits for the other: one after the other they would never end.
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let command =
        format!("touch {at}/$POSTHOUSE_POSITION; until [ -e {at}/0 ] && [ -e {at}/1 ]; do :; done");
    node.cli(&["consume", "g", "--exec", &command, "--concurrency", "2"]).ok();
    assert_eq!(node.group()["lag"], 0);
}

#[test]
fn a_command_that_takes_longer_than_the_lease_keeps_its_message() {
    let node = node(&["a"]);
    // Longer than the lease of a second.
    node.cli(&["consume", "g", "--exec", "sleep 2.5"]).ok();
    assert_eq!(node.group()["lag"], 0);
    let first = node.cli(&["topic", "browse", "orders", "--json"]).objects();
    let life = node.cli(&["message", "history", first[0]["id"].as_str().unwrap(), "--json"]).json();
    let events = texts(life["events"].as_array().unwrap(), "event");
    assert_eq!(events.iter().filter(|event| *event == "granted").count(), 1, "{events:?}");
    assert!(events.contains(&"extended".to_owned()), "{events:?}");
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let node = node(&["a"]);
    let ended =
        node.cli(&["consume", "g", "--exec", "sleep 600 & wait", "--exec-timeout", "200ms"]);
    assert!(ended.stderr.contains("killed after 200ms (--exec-timeout)"), "{}", ended.stderr);
    ended.ok();
    assert_eq!(node.group()["waiting"], 1);
}

#[test]
fn a_command_that_cannot_be_run_uses_up_no_more_than_one_message() {
    let node = node(&["a", "b", "c"]);
    node.cli(&["consume", "g", "--exec", "/nosuch/command"])
        .failed(1, "the command cannot be run: exit code 127");
    let after = node.group();
    assert_eq!((&after["lag"], &after["waiting"]), (&3.into(), &1.into()));
}

#[test]
fn the_first_signal_waits_for_commands_and_the_second_kills_them() {
    let node = node(&["a", "b"]);
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let command = format!("echo begun; until [ -e {at}/go ]; do :; done; echo done");
    let mut consume = node.begin(&["consume", "g", "--exec", &command, "--follow"]);
    assert_eq!(consume.line(), "begun");
    consume.signal(Signal::INT);
    std::fs::write(dir.path().join("go"), b"").unwrap();
    assert_eq!(consume.line(), "done");
    assert_eq!(consume.wait().code(), Some(0));
    let after = node.group();
    assert_eq!((&after["lag"], &after["in_flight"]), (&1.into(), &0.into()), "b was not begun");

    let mut consume = node.begin(&["consume", "g", "--exec", "echo $$; sleep 600 & wait"]);
    let shell: i32 = consume.line().parse().unwrap();
    consume.signal(Signal::INT);
    // Signals of one kind melt together while the first is not taken: until it ends.
    let began = std::time::Instant::now();
    while !std::fs::read_to_string(format!("/proc/{shell}/stat"))
        .map_or(true, |stat| stat.contains(") Z "))
    {
        consume.signal(Signal::TERM);
        assert!(began.elapsed() < crate::harness::PATIENCE, "the command is not killed");
    }
    assert_eq!(consume.wait().code(), Some(130));
    let after = node.group();
    assert_eq!((&after["lag"], &after["in_flight"]), (&1.into(), &0.into()), "it was given back");
    let got = node.cli(&["consume", "g", "--json", "--wait", "20s", "--max", "1"]).objects();
    assert_eq!((&got[0]["body"], &got[0]["attempt"]), (&"b".into(), &2.into()));
}
