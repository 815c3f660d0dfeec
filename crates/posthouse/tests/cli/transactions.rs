//! `transaction`.

use posthouse_client::{Client, Prepare};

use crate::harness::{Node, texts};

#[test]
fn transactions_are_listed_looked_at_and_decided_about() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders", "--check-after", "1h", "--checks", "3"]).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = runtime.block_on(async {
        let client = Client::connect(node.url.clone()).await.unwrap();
        let prepare = |body: &str| Prepare::by("shop").message("orders", body.to_owned());
        let first = client.prepare(prepare("one")).await.unwrap().id;
        (first, client.prepare(prepare("two")).await.unwrap().id)
    });
    let list = node.cli(&["transaction", "list", "--json"]).objects();
    assert_eq!(texts(&list, "id"), [first.as_str(), &second]);
    let table = node.cli(&["transaction", "ls", "--limit", "1"]).ok();
    assert_eq!(table.lines().count(), 2);
    assert!(table.contains("prepared     0/3         1  shop      orders"), "{table}");
    assert_eq!(node.cli(&["transaction", "list", "--parked", "--json"]).ok(), "");
    let shown = node.cli(&["transaction", "show", &first]).ok();
    assert!(shown.contains("first message: one\n"), "{shown}");
    let done = node.cli(&["transaction", "commit", &first]).ok();
    assert_eq!(done, format!("{first} committed: 1 message\n"));
    let done = node.cli(&["transaction", "rollback", &second]).ok();
    assert_eq!(done, format!("{second} rolled back: 1 message\n"));
    node.cli(&["transaction", "commit", &second]).failed(3, "was rolled back before");
    let shown = node.cli(&["transaction", "show", &first, "--json"]).json();
    assert_eq!(shown["messages"][0]["position"], 0);
    assert_eq!(node.cli(&["transaction", "list", "--json"]).ok(), "");
}
