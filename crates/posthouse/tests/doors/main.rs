//! Every door gives the same answer to the same request.
//!
//! The cases are texts in `cases/`: an operation with its arguments on a line that begins
//! with `>`, and below it what is expected: `=` and JSON that the answer has to contain, or
//! `!` and a code with the HTTP and the gRPC status. `$name = path` keeps a value of the
//! last answer; later lines can use it. Each file is run through each door, on a node of
//! its own. What only HTTP has is in `http_alone`.

mod access;
mod door;
mod grpc;
mod http;
mod http_alone;
mod quota;
mod script;
mod slow;

use std::path::{Path, PathBuf};

use door::{Door, Node};

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doors/cases");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 5, "the cases are there");
    cases
}

async fn run_all<D: Door>() {
    for case in cases() {
        let text = std::fs::read_to_string(&case).unwrap();
        let name = case.file_stem().unwrap().to_string_lossy().into_owned();
        let node = Node::start().await;
        let mut door = D::open(&node).await;
        script::run(&name, &text, &mut door).await;
        drop(door);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_does_as_the_cases_say() {
    run_all::<http::Http>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_does_as_the_cases_say() {
    run_all::<grpc::Grpc>().await;
}

/// A failed case fails the test: the scripts assert something.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_expectation_is_found() {
    let wrong = [
        "> put-topic {\"topic\":\"a\"}\n= {\"name\":\"b\"}",
        "> get-topic {\"topic\":\"a\"}\n= {}",
        "> get-topic {\"topic\":\"a\"}\n! topic_not_found 409 NotFound",
        "> get-topic {\"topic\":\"a\"}\n! topic_not_found 404 Internal",
        "> put-topic {\"topic\":\"a\"}\n! topic_not_found 404 NotFound",
    ];
    for text in wrong {
        for is_grpc in [false, true] {
            let node = Node::start().await;
            let at = node.address;
            let failed = tokio::spawn(async move {
                if is_grpc {
                    script::run("wrong", text, &mut grpc::Grpc::at(at)).await;
                } else {
                    script::run("wrong", text, &mut http::Http::at(at)).await;
                }
            });
            let is_http_only = text.contains("409") && is_grpc;
            let is_grpc_only = text.contains("Internal") && !is_grpc;
            assert_eq!(failed.await.is_err(), !is_http_only && !is_grpc_only, "{text}");
            node.stop().await;
        }
    }
}
