//! How the node is.

use axum::extract::State;
use posthouse_client::proto;

use super::answer::{Answer, Refused, answer};
use super::ask::{Of, Who};
use crate::doors::calls::Calls;
use crate::json::{Backup, BackupTo, Node, Problem};

/// What the node is, and how it is
#[utoipa::path(get, path = "/v1/node", tag = "node", responses(
    (status = 200, body = Node), (status = "default", body = Problem)))]
pub async fn node(State(calls): State<Calls>, Who(caller): Who) -> Answer<Node> {
    answer(calls.get_node(&caller, proto::GetNodeRequest {}).await)
}

/// Copy all that the node holds to a directory of its own, beside the load
///
/// It answers when the copy is there and verified; if the request is given up before, the
/// copy ends. A node can be started on the directory.
#[utoipa::path(post, path = "/v1/backup", tag = "node", request_body = BackupTo, responses(
    (status = 200, body = Backup), (status = "default", body = Problem)))]
pub async fn backup(
    State(calls): State<Calls>,
    Who(caller): Who,
    Of(BackupTo { directory }): Of<BackupTo>,
) -> Answer<Backup> {
    answer(calls.backup(&caller, proto::BackupRequest { directory }).await)
}

/// Whether the process is alive: `ok`, unless a disk has failed
#[utoipa::path(get, path = "/healthz", tag = "node", responses(
    (status = 200, body = String), (status = "default", body = Problem)))]
pub async fn healthz(State(calls): State<Calls>) -> Result<&'static str, Refused> {
    match calls.broker.failure().get() {
        None => Ok("ok\n"),
        Some(what) => Err(Refused(crate::problem::Problem::unknown(&what))),
    }
}

/// Whether it takes work: `ready`, unless it is stopping
#[utoipa::path(get, path = "/readyz", tag = "node", responses(
    (status = 200, body = String), (status = "default", body = Problem)))]
pub async fn readyz(State(calls): State<Calls>) -> Result<&'static str, Refused> {
    if calls.broker.is_ready() {
        Ok("ready\n")
    } else {
        Err(Refused(crate::problem::Problem::stopping()))
    }
}
