//! `user`, and who may do what.

use serde_json::json;

use crate::harness::{Node, texts};

#[test]
fn users_get_grants_and_tokens_and_lose_them() {
    let node = Node::start();
    node.cli(&["topic", "create", "orders"]).ok();
    node.cli(&["group", "create", "billing", "--subscribe", "orders"]).ok();
    node.cli(&["user", "put", "admin"]).failed(2, "required");
    node.cli(&["user", "put", "admin", "--grant", "fly topics=*"]).failed(2, "publish, consume");
    assert_eq!(node.cli(&["user", "put", "admin", "--admin"]).ok(), "user admin has 1 grant\n");
    let made = node.cli(&["user", "token", "admin", "--name", "laptop"]);
    assert!(made.stderr.contains("it is never shown again"), "{}", made.stderr);
    let admin = made.ok().trim_end().to_owned();
    assert!(admin.starts_with("ph_"), "only the token is on stdout: {admin}");

    // From here on the node is nobody's.
    node.cli(&["topic", "list"]).failed(4, "`posthouse user token` makes one");
    node.cli_as("ph_wrong", &["topic", "list"]).failed(4, "posthouse");
    node.cli_as(&admin, &["topic", "list"]).ok();
    node.cli(&["topic", "list", "--token", &admin]).ok();

    let grant = "publish,consume topics=orders groups=bill*";
    node.cli_as(&admin, &["user", "put", "shop", "--grant", grant]).ok();
    let token = node.cli_as(&admin, &["user", "token", "shop", "--json"]).json();
    let shop = token["token"].as_str().unwrap().to_owned();
    node.cli_as(&shop, &["publish", "orders", "x"]).ok();
    assert_eq!(node.cli_as(&shop, &["consume", "billing"]).ok(), "x\n");
    node.cli_as(&shop, &["publish", "payments", "x"]).failed(4, "may not publish to");
    node.cli_as(&shop, &["topic", "delete", "orders"]).failed(4, "may not manage");
    node.cli_as(&shop, &["user", "list"]).failed(4, "may not manage this node");
    let made =
        node.cli_as(&admin, &["user", "token", "shop", "--name", "rmq", "--access-key"]).ok();
    let [key, secret] = made.lines().collect::<Vec<_>>()[..] else { panic!("{made}") };
    assert!(key.starts_with("phk_"), "{made}");
    node.cli_as(secret, &["topic", "list"]).ok();
    node.cli_as(&admin, &["user", "revoke", "shop", "rmq"]).ok();
    node.cli_as(secret, &["topic", "list"]).failed(4, "");
    let lines = node.file("lines", "a\n".repeat(5000).as_bytes());
    let bulk = ["publish", "payments", "--lines", &lines, "--dedupe-prefix", "r"];
    node.cli_as(&shop, &bulk).failed(4, "line 1: ");
    node.cli_as("ph_wrong", &bulk).failed(4, "line 1: ");

    let table = node.cli_as(&admin, &["user", "list"]).ok();
    assert!(table.contains(&format!("shop        1  {grant}\n")), "{table}");
    let shown = node.cli_as(&admin, &["user", "show", "shop", "--json"]).json();
    assert_eq!(shown["grants"][0]["actions"], json!(["publish", "consume"]));
    assert_eq!(texts(shown["tokens"].as_array().unwrap(), "name"), ["default"]);
    node.cli_as(&admin, &["user", "token", "shop"]).failed(3, "has a token \"default\" already");
    node.cli_as(&admin, &["user", "revoke", "shop", "nosuch"]).failed(3, "has no token");
    node.cli_as(&admin, &["user", "revoke", "shop", "default"]).ok();
    node.cli_as(&shop, &["publish", "orders", "x"]).failed(4, "");
    node.cli_as(&admin, &["user", "put", "shop", "--no-grants"]).ok();
    node.cli_as(&admin, &["user", "revoke", "admin", "laptop"]).failed(3, "nobody would be left");
    assert_eq!(node.cli_as(&admin, &["user", "delete", "shop"]).ok(), "deleted user shop\n");
    node.cli_as(&admin, &["user", "show", "shop"]).failed(3, "there is no user");
}
