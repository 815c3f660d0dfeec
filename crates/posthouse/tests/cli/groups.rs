//! `group` and `dead`.

use serde_json::json;

use crate::harness::{Node, texts};

#[test]
fn a_group_is_made_changed_moved_and_deleted() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    node.cli(&["publish", "orders", "a"]).ok();
    node.cli(&["group", "create", "billing"]).failed(2, "--subscribe TOPIC");
    let create = [
        "group",
        "create",
        "billing",
        "--subscribe",
        "orders",
        "--subscribe",
        "pay*:eu && !test",
        "--lease",
        "10s",
        "--max-attempts",
        "3",
        "--backoff",
        "1s,1m",
        "--order",
        "key",
        "--dead-letter",
        "drop",
        "--max-in-flight",
        "7",
        "--start",
        "earliest",
    ];
    assert_eq!(node.cli(&create).ok(), "created group billing\n");
    node.cli(&create).failed(3, "there is a group \"billing\" already");
    let group = node.cli(&["group", "show", "billing", "--json"]).json();
    assert_eq!(
        group["subscriptions"],
        json!([
            { "topic": "orders", "filter": "*" },
            { "topic": "pay*", "filter": "eu && !test" },
        ])
    );
    assert_eq!(group["lease"], "10s");
    assert_eq!(group["backoff"], json!(["1s", "1m"]));
    assert_eq!((&group["order"], &group["dead_letter"]), (&json!("key"), &json!("drop")));
    assert_eq!(group["lag"], 1);

    node.cli(&["group", "set", "billing", "--remove", "nosuch"]).failed(3, "no subscription for");
    let set = ["group", "set", "billing", "--remove", "pay*", "--add", "refunds", "--json"];
    let group = node.cli(&set).json();
    assert_eq!(texts(group["subscriptions"].as_array().unwrap(), "topic"), ["orders", "refunds"]);
    assert_eq!(group["lease"], "10s", "what is not given stays");

    node.cli(&["group", "pause", "billing"]).ok();
    let table = node.cli(&["group", "list"]).ok();
    assert!(
        table.contains("billing    1          0        0     0  paused  orders refunds"),
        "{table}"
    );
    assert_eq!(node.cli(&["consume", "billing"]).ok(), "");
    node.cli(&["group", "resume", "billing"]).ok();
    assert_eq!(node.cli(&["consume", "billing"]).ok(), "a\n");

    node.cli(&["group", "seek", "billing"]).failed(2, "--to");
    node.cli(&["group", "seek", "billing", "--position", "0"]).failed(2, "--topic");
    let sought = node.cli(&["group", "seek", "billing", "--to", "latest", "--json"]).json();
    assert_eq!(sought["partitions"], json!([{ "topic": "orders", "partition": 0, "position": 1 }]));
    node.cli(&["group", "seek", "billing", "--topic", "orders", "--position", "0"]).ok();
    assert_eq!(node.cli(&["consume", "billing"]).ok(), "a\n", "it comes again");

    assert_eq!(node.cli(&["group", "delete", "billing"]).ok(), "deleted group billing\n");
    node.cli(&["group", "show", "billing"]).failed(3, "`posthouse group create NAME`");
    node.cli(&["group", "set", "billing", "--lease", "1s"]).failed(3, "there is no group");
}

#[test]
fn dead_letters_are_listed_redriven_and_purged() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    node.cli(&["group", "create", "g", "--subscribe", "orders", "--max-attempts", "1"]).ok();
    for body in ["a", "b", "c"] {
        node.cli(&["publish", "orders", body]).ok();
    }
    node.cli(&["consume", "g", "--exec", "echo no stock >&2; exit 1"]).ok();
    node.until(&["group", "show", "g", "--json"], |group| group["dead_letters"] == 3);
    let letters = node.cli(&["dead", "list", "g", "--json"]).objects();
    assert_eq!(texts(&letters, "body"), ["a", "b", "c"]);
    assert_eq!(letters[0]["origin"]["error"], "exit code 1: no stock");
    assert_eq!(letters[0]["origin"]["topic"], "orders");
    let table = node.cli(&["dead", "ls", "g", "--limit", "1"]).ok();
    assert_eq!(table.lines().count(), 2);
    assert!(table.ends_with("orders       exit code 1: no stock\n"), "{table}");

    let ids = texts(&letters, "id");
    let shown = node.cli(&["dead", "show", "g", &ids[1]]).ok();
    assert!(shown.contains("came from  orders, partition 0, position 1\n"), "{shown}");
    assert_eq!(node.cli(&["dead", "show", "g", &ids[1], "--body"]).ok(), "b");
    let nosuch = "1100000000001000000000000dfed3c8";
    node.cli(&["dead", "show", "g", nosuch]).failed(3, "has no dead letter");

    node.cli(&["dead", "redrive", "g"]).failed(2, "required");
    node.cli(&["dead", "redrive", "g", "--all", &ids[0]]).failed(2, "cannot be used with");
    let done = node.cli(&["dead", "redrive", "g", &ids[1], "--json"]).json();
    assert_eq!(done, json!({ "redriven": 1, "left": 2 }));
    assert_eq!(node.cli(&["consume", "g", "--wait", "20s", "--max", "1"]).ok(), "b\n");
    node.cli(&["dead", "redrive", "g", &ids[1]]).failed(3, "no dead letters with 1 of these ids");
    let purged = node.cli(&["dead", "purge", "g", &ids[0], "--json"]).json();
    assert_eq!(purged, json!({ "purged": 1 }));
    node.cli(&["group", "delete", "g"]).failed(3, "dead letter");
    assert_eq!(
        node.cli(&["dead", "redrive", "g", "--all", "--rate", "100"]).ok(),
        "redriven 1 dead letter, 0 left\n"
    );
    assert_eq!(node.cli(&["dead", "purge", "g", "--all"]).ok(), "purged 0 dead letters\n");
}
