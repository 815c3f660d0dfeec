//! `posthouse node`: what a node is, and how it is.

use clap::Args;
use posthouse_client::proto;

use super::output::Facts;
use super::remote::Remote;
use super::{Failure, Output};
use crate::json;
use crate::units;

/// Show what the node is, and how it is
#[derive(Debug, Args)]
pub struct Node {
    #[command(flatten)]
    remote: Remote,
}

impl Node {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.remote.run(async |client, out| {
            let node = client.raw().get_node(proto::GetNodeRequest {}).await?.into_inner();
            out.show(&json::Node::from(node), show)
        })
    }
}

fn show(out: &mut Output, node: &json::Node) -> Result<(), Failure> {
    let mut facts = Facts::default();
    facts.add("release", &node.version);
    facts.add("store", &node.store);
    facts.add("shards", node.shards);
    facts.add("up for", units::show_age(node.uptime.0));
    facts.add("durability", &node.durability);
    facts.add("topics", units::show_count(node.topics));
    facts.add("groups", units::show_count(node.groups));
    facts.add("users", units::show_count(node.users));
    facts.add("makes on first use", if node.auto_create { "yes" } else { "no" });
    let full = if node.disk_full { "; nearly full: publishes are refused" } else { "" };
    facts.add("free on disk", format!("{}{full}", units::show_size(node.disk_free_bytes)));
    facts.print(out)
}
