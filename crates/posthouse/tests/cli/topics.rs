//! `topic`, `message`, `node` and `top`.

use serde_json::json;

use crate::harness::{Node, texts};

#[test]
fn a_topic_is_made_changed_looked_at_and_deleted() {
    let node = Node::start();
    let said =
        node.cli(&["topic", "create", "orders", "--partitions", "2", "--max-age", "7d"]).ok();
    assert_eq!(said, "created topic orders\n");
    node.cli(&["topic", "create", "orders"]).failed(3, "there is a topic \"orders\" already");
    node.cli(&["topic", "create", "orders", "--if-missing"]).ok();
    node.cli(&["topic", "set", "orders"]).failed(2, "nothing is given to be changed");
    node.cli(&["topic", "set", "orders", "--partitions", "1"]).failed(2, "can only grow");
    node.cli(&["topic", "set", "orders", "--min-age", "1h", "--max-age", "2h"])
        .failed(2, "cannot be used with");
    let topic = node.cli(&["topic", "set", "orders", "--dedupe-window", "1h", "--json"]).json();
    assert_eq!(topic["partitions"], 2);
    assert_eq!(topic["retention"], json!({ "max_age": "7d" }));
    assert_eq!(topic["dedupe_window"], "1h");

    node.cli(&["topic", "create", "payments"]).ok();
    let list = node.cli(&["topic", "list", "--json"]).json();
    assert_eq!(texts(list["topics"].as_array().unwrap(), "name"), ["orders", "payments"]);
    assert_eq!(list["more"], false);
    let table = node.cli(&["topic", "ls", "pay"]).ok();
    assert_eq!(
        table,
        "NAME      PARTITIONS  MESSAGES  BYTES  RETENTION\n\
         payments           1         0    0 B  acknowledged, 1d\n"
    );
    let shown = node.cli(&["topic", "show", "orders"]).ok();
    assert!(shown.contains("retention        at most 7d\n"), "{shown}");
    assert!(shown.contains("delays           taken\n"), "{shown}");
    assert!(shown.contains("expired          passed over\n"), "{shown}");
    let later = ["publish", "orders", "later", "--delay", "1h"];
    node.cli(&later).ok();
    node.cli(&["topic", "set", "orders", "--delays", "false", "--bury-expired", "true"]).ok();
    let shown = node.cli(&["topic", "show", "orders"]).ok();
    for line in
        ["scheduled        1\n", "delays           refused\n", "expired          dead letters\n"]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(shown.contains("\nPARTITION  SHARD  HEAD  NEXT  MESSAGES  BYTES  OLDEST\n"), "{shown}");

    assert_eq!(node.cli(&["topic", "delete", "orders"]).ok(), "deleted topic orders\n");
    node.cli(&["topic", "show", "orders"]).failed(3, "there is no topic \"orders\"");
    node.cli(&["topic", "delete", "orders"]).failed(3, "`posthouse topic create NAME`");
}

#[test]
fn messages_are_browsed_found_and_purged_without_effect_on_anyone() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    for (body, key) in [("a", "k1"), ("b\n\u{1b}[31m", "k2"), ("c", "k1")] {
        node.cli(&["publish", "orders", body, "--key", key]).ok();
    }
    let all = node.cli(&["topic", "browse", "orders", "--json"]).objects();
    assert_eq!(texts(&all, "body"), ["a", "b\n\u{1b}[31m", "c"]);
    let table = node.cli(&["topic", "browse", "orders", "--limit", "2"]).ok();
    assert_eq!(table.lines().count(), 3);
    assert!(table.contains("b\\n\\u{1b}[31m"), "what plays with the terminal is shown: {table}");
    let from =
        ["topic", "browse", "orders", "--partition", "0", "--from", "1", "--limit", "1", "--json"];
    assert_eq!(texts(&node.cli(&from).objects(), "key"), ["k2"]);
    let found = node.cli(&["message", "find", "orders", "--key", "k1", "--json"]).objects();
    assert_eq!(texts(&found, "body"), ["a", "c"]);
    let since = ["message", "find", "orders", "--since", "1h", "--json"];
    assert_eq!(node.cli(&since).objects().len(), 3);
    let until = ["message", "find", "orders", "--until", "1h", "--json"];
    assert_eq!(node.cli(&until).objects().len(), 0);
    node.cli(&["message", "find", "orders"]).failed(2, "give --key, --since or --until");
    node.cli(&["message", "find", "orders", "--since", "soon"]).failed(2, "how long ago");

    let purge = ["topic", "purge", "orders", "--partition", "0", "--before", "2"];
    assert_eq!(node.cli(&purge).ok(), "purged 2 messages\n");
    let purged = node.cli(&["topic", "purge", "orders", "--json"]).json();
    assert_eq!(purged, json!({ "purged": 1 }));
    assert_eq!(node.cli(&["topic", "browse", "orders", "--json"]).objects().len(), 0);
}

#[test]
fn a_message_is_shown_with_its_life() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    node.cli(&["group", "create", "billing", "--subscribe", "orders"]).ok();
    let args = [
        "publish",
        "orders",
        "an order",
        "--key",
        "k",
        "--tag",
        "eu",
        "--tag",
        "paid",
        "--header",
        "trace=7",
        "--ttl",
        "1h",
        "--dedupe-id",
        "o-1",
        "--json",
    ];
    let published = node.cli(&args).json();
    let id = published["messages"][0]["id"].as_str().unwrap();
    let shown = node.cli(&["message", "show", id, "--json"]).json();
    assert_eq!(shown["body"], "an order");
    assert_eq!(shown["key"], "k");
    assert_eq!(shown["tags"], json!(["eu", "paid"]));
    assert_eq!(shown["headers"], json!({ "trace": "7" }));
    assert_eq!(shown["ttl"], "1h");
    assert_eq!(shown["dedupe_id"], "o-1");
    assert_eq!(shown["groups"][0]["state"], "ahead");
    let people = node.cli(&["message", "show", id]).ok();
    assert!(people.contains("header trace  7\n") && people.ends_with("\nan order\n"), "{people}");
    assert_eq!(node.cli(&["message", "show", id, "--body"]).ok(), "an order");

    node.cli(&["consume", "billing", "--consumer", "worker"]).ok();
    let life = node.cli(&["message", "history", id, "--json"]).json();
    assert_eq!(life["complete"], true);
    let events = life["events"].as_array().unwrap();
    assert_eq!(texts(events, "event"), ["published", "granted", "acked"]);
    let table = node.cli(&["message", "history", id]).ok();
    assert!(table.contains("worker"), "{table}");

    node.cli(&["message", "show", "abc"]).failed(2, "32 hexadecimal digits");
    let foreign = "1100000000001000000000000dfed3c8";
    node.cli(&["message", "show", foreign]).failed(2, "not given by this store");
}

#[test]
fn a_node_says_what_it_is_and_what_goes_on() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    node.cli(&["group", "create", "billing", "--subscribe", "orders"]).ok();
    node.cli(&["publish", "orders", "x"]).ok();
    let info = node.cli(&["node", "--json"]).json();
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["topics"], 1);
    assert!(node.cli(&["node"]).ok().contains("durability          sync\n"));

    let top = node.cli(&["top", "--once", "--interval", "100ms", "--json"]).json();
    assert_eq!(top["topics"][0]["name"], "orders");
    assert_eq!(top["topics"][0]["messages"], 1);
    assert_eq!(top["groups"][0]["lag"], 1);
    assert!(top["groups"][0]["oldest_at"].is_string());
    let table = node.cli(&["top", "bil", "--once", "--interval", "100ms"]).ok();
    assert!(table.contains("\nbilling       0    1          0        0     0"), "{table}");
    assert!(!table.contains("orders "), "the prefix counts: {table}");
    assert!(!table.contains('\u{1b}'), "no terminal, no control sequences: {table:?}");
    node.cli(&["top", "--interval", "1ms"]).failed(2, "from 100ms to 1h");
}

#[test]
fn top_counts_what_is_published_between_two_looks_and_ends_with_a_signal() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    let mut top = node.begin(&["top", "--interval", "100ms", "--json"]);
    top.line();
    node.cli(&["publish", "orders", "x"]).ok();
    let rate = |line: &str| {
        let view: serde_json::Value = serde_json::from_str(line).unwrap();
        view["topics"][0]["published_per_s"].as_f64().unwrap()
    };
    while rate(&top.line()) == 0.0 {}
    top.signal(rustix::process::Signal::INT);
    assert!(top.wait().success());
}
