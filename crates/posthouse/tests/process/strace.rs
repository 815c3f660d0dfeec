//! Killed at every call that changes the disk, and every such call failing once.
//!
//! A short scenario is recorded under strace: which calls it makes on which file. Then it is
//! run again for each of them: with signal 9 as the call begins, and with the call failing
//! with EIO, or for want of room. Then the node is started again, and everything that it had
//! acknowledged is there.
//!
//! Takes strace and the permission to trace, and minutes; so it is ignored here, and
//! `.ci/run slow` runs it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use posthouse_client::proto::{self, PublishRequest};
use rustix::process::Signal;

use crate::crash::{drain, finish, verify};
use crate::support::files;
use crate::support::journal::Journal;
use crate::support::load::{self, Actor, GIVE_UP, WORKERS};
use crate::support::node::{Ended, Node, Setup};
use crate::support::rng::Rng;
use crate::support::{step, within};

/// What changes the disk.
const CALLS: [&str; 9] = [
    "pwrite64",
    "pwritev",
    "fdatasync",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "fallocate",
    "ftruncate",
];

/// How long a scenario may take.
const LIFE_SECS: u64 = 60;

/// A call to be met: the so manieth of its sort on a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    call: String,
    /// Below the data directory.
    path: String,
    nth: usize,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {} on {}", self.call, self.nth, self.path)
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Kill,
    Eio,
    Enospc,
}

impl Harm {
    fn words(self) -> &'static str {
        match self {
            Harm::Kill => "signal=KILL",
            Harm::Eio => "error=EIO",
            Harm::Enospc => "error=ENOSPC",
        }
    }

    /// Whether a call can end so.
    fn concerns(self, call: &str) -> bool {
        match self {
            Harm::Kill | Harm::Eio => true,
            Harm::Enospc => matches!(call, "pwrite64" | "pwritev" | "fallocate" | "mkdir"),
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    /// It was not met: calls fall a little differently each time.
    Missed,
    Killed,
    /// The node ended with an error, in words.
    Ended,
    /// It went on, and said what had failed.
    WentOn,
    /// It went on without a word.
    Silent,
}

/// A data directory to begin with, and what is known of it.
struct Base {
    dir: tempfile::TempDir,
    journal: Journal,
    /// Whether topics and groups are there.
    is_prepared: bool,
}

impl Base {
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn copy(&self) -> Base {
        let dir = tempfile::tempdir().expect("a directory");
        let copy = Base { dir, journal: self.journal.copy(), is_prepared: self.is_prepared };
        if self.data().exists() {
            files::copy(&self.data(), &copy.data());
        }
        copy
    }

    fn setup(&self) -> Setup {
        Setup::new(&self.data()).flag("--memory", "64MiB").flag("--shards", "1")
    }
}

/// The node's life: it starts, is used, and is told to stop.
async fn live(setup: &Setup, journal: &Arc<Journal>, is_used: bool) -> Ended {
    let node = match setup.try_start().await {
        Ok(node) => node,
        Err(ended) => return ended,
    };
    if is_used {
        // It may end in the middle of it: whoever asks then gets no answer.
        let _ = within("its use", LIFE_SECS, work(&node, journal)).await;
    }
    node.signal_if_alive(Signal::TERM);
    node.ended(LIFE_SECS).await
}

/// Publishes of several sorts, acks, nacks. `None`: no answer has come.
async fn work(node: &Node, journal: &Arc<Journal>) -> Option<()> {
    let client = posthouse_client::Client::connect(node.url.clone()).await.ok()?;
    let rng = Rng::new(journal.number());
    let mut actor = Actor { client, web: node.web(), journal: journal.clone(), rng };
    for (topics, dedupe) in [
        (&["plain"][..], false),
        (&["left", "right"], false),
        (&["poison"], true),
        (&["wide"], false),
    ] {
        let batch = (topics.len() > 1).then(|| journal.number());
        let (mut uids, mut messages) = (Vec::new(), Vec::new());
        for topic in topics {
            let message = actor.message(dedupe);
            let (uid, mut message) = journal.ask(topic, message, batch);
            message.topic = (*topic).into();
            uids.push(uid);
            messages.push(message);
        }
        let request = PublishRequest { topic: String::new(), messages, apart: false };
        let answer = actor.client.raw().publish(request).await.ok()?.into_inner();
        load::answered(journal, &uids, &answer.messages);
    }
    for group in [WORKERS, GIVE_UP] {
        let ask = proto::ReceiveRequest {
            group: group.into(),
            max: Some(3),
            wait_ms: Some(100),
            ..proto::ReceiveRequest::default()
        };
        let received = actor.client.raw().receive(ask).await.ok()?.into_inner().messages;
        received.iter().for_each(|message| journal.given(group, message));
        if group == WORKERS {
            if !actor.ack(group, &received).await {
                return None;
            }
        } else {
            let receipts = received.iter().map(|message| message.receipt.clone());
            actor.client.nack(group, receipts, Some(Duration::ZERO), "no").await.ok()?;
        }
    }
    Some(())
}

/// The points of a life that begins at `base`.
async fn points(base: &Base, is_used: bool) -> Vec<Point> {
    let base = base.copy();
    let log = base.dir.path().join("calls");
    let trace = format!("trace={}", CALLS.join(","));
    let setup = base.setup().under(&["strace", "-D", "-f", "-qq", "-y", "-e", &trace, "-o"], &log);
    let ended = live(&setup, &Arc::new(base.journal.copy()), is_used).await;
    assert_eq!(ended.code, Some(0), "the scenario does not end in order: {ended:#?}");
    let text = std::fs::read_to_string(&log).expect("strace has written what it saw");
    let data = base.data();
    // strace counts the calls of each thread apart, so the first of a second thread on the
    // same file cannot be met: the first of the first one comes before.
    let mut counts: BTreeMap<(String, String), BTreeMap<&str, usize>> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call, path)) = seen(line, &data) else { continue };
        *counts.entry((call, path)).or_default().entry(thread).or_default() += 1;
    }
    assert!(counts.len() > 5, "strace saw next to nothing:\n{text}");
    let all = counts.into_iter().flat_map(|((call, path), counts)| {
        let most = counts.into_values().max().unwrap_or(0);
        (1..=most).map(move |nth| Point { call: call.clone(), path: path.clone(), nth })
    });
    all.collect()
}

/// The thread and the call of a line of strace, and the file in the data directory that it
/// is on.
fn seen<'a>(line: &'a str, data: &Path) -> Option<(&'a str, String, String)> {
    // What another thread interrupts is told twice; the begin has the names.
    let (thread, said) = line.split_once(' ')?;
    let (call, args) = said.trim_start().split_once('(')?;
    let begin = args.find(data.to_str()?)? + data.to_str()?.len();
    let end = args[begin..].find(['"', '>'])?;
    let path = args[begin..begin + end].trim_start_matches('/');
    CALLS.contains(&call).then(|| (thread, call.to_owned(), path.to_owned()))
}

/// Lives once with a harm at a point, then starts again and looks at everything.
async fn harmed(base: &Base, is_used: bool, point: &Point, harm: Harm) -> Came {
    let base = base.copy();
    let what = format!("{harm:?} at {point}");
    let path = base.data().join(&point.path);
    let inject = format!("inject={}:{}:when={}", point.call, harm.words(), point.nth);
    let trace = format!("trace={}", point.call);
    let path_text = path.to_str().expect("our names are UTF-8");
    let log = base.dir.path().join("calls");
    let strace = ["strace", "-D", "-f", "-qq", "-P", path_text, "-e", &trace, "-e", &inject, "-o"];
    let setup = base.setup().under(&strace, &log);
    let journal = Arc::new(base.journal.copy());
    let ended = live(&setup, &journal, is_used).await;
    assert!(!ended.said.contains("panicked"), "{what}: it has panicked: {ended:#?}");
    let was_met = match harm {
        Harm::Kill => ended.signal == Some(9),
        _ => std::fs::read_to_string(&log).expect("strace writes").contains("INJECTED"),
    };
    let came = match (was_met, ended.code) {
        (false, code) => {
            assert_eq!(code, Some(0), "{what}: nothing happened, and it ended so: {ended:#?}");
            Came::Missed
        }
        (true, None) => Came::Killed,
        (true, Some(0)) => {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            if ended.said.contains(&name) { Came::WentOn } else { Came::Silent }
        }
        (true, Some(_)) => {
            let has_words = ended.said.contains(path_text) || ended.said.contains("disk");
            assert!(has_words, "{what}: it does not say what failed: {}", ended.said);
            Came::Ended
        }
    };
    // And again, unharmed.
    let node = match base.setup().try_start().await {
        Ok(node) => node,
        Err(ended) => panic!("{what}: it does not start again: {ended:#?}"),
    };
    if !base.is_prepared {
        load::prepare(&node).await;
    }
    let seen = verify(&node, &journal).await;
    if is_used {
        drain(&node, &journal, &mut Rng::new(1)).await;
        finish(&node, &journal, &seen, 1).await;
    }
    node.kill().await;
    came
}

/// Every point of three lives: a node that makes its store, one that is used for the first
/// time, one that has snapshots to put others in the place of.
async fn every_point(harms: &[Harm]) -> BTreeMap<(Harm, Came), usize> {
    let step = step();
    let new = || Base {
        dir: tempfile::tempdir().expect("a directory"),
        journal: Journal::default(),
        is_prepared: false,
    };
    let mut used = new();
    let node = used.setup().start().await;
    load::prepare(&node).await;
    node.kill().await;
    used.is_prepared = true;
    let mut often = used.copy();
    for _ in 0..2 {
        let journal = Arc::new(often.journal.copy());
        let ended = live(&often.setup(), &journal, true).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        often.journal = journal.copy();
    }
    let mut counts: BTreeMap<(Harm, Came), usize> = BTreeMap::new();
    for (life, base, is_used) in
        [("new", new(), false), ("used", used, true), ("often", often, true)]
    {
        let points = points(&base, is_used).await;
        eprintln!("{life}: {} calls", points.len());
        for (n, point) in points.iter().enumerate().step_by(step) {
            for harm in harms.iter().filter(|harm| harm.concerns(&point.call)) {
                let came = harmed(&base, is_used, point, *harm).await;
                if came == Came::Silent {
                    eprintln!("{life}: {harm:?} at {point}: without a word");
                }
                *counts.entry((*harm, came)).or_default() += 1;
            }
            if n % 50 == 0 {
                eprintln!("{life}: {n}: {counts:?}");
            }
        }
    }
    eprintln!("{counts:?}");
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes strace and minutes; .ci/run slow runs it"]
async fn killed_at_every_call_that_changes_the_disk_nothing_acknowledged_is_lost() {
    let counts = every_point(&[Harm::Kill]).await;
    let killed = counts.get(&(Harm::Kill, Came::Killed)).copied().unwrap_or(0);
    let missed = counts.get(&(Harm::Kill, Came::Missed)).copied().unwrap_or(0);
    assert!(killed > 5 * missed.max(1), "it was killed {killed} times, and {missed} times not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes strace and minutes; .ci/run slow runs it"]
async fn every_call_that_changes_the_disk_may_fail_and_nothing_acknowledged_is_lost() {
    let counts = every_point(&[Harm::Eio, Harm::Enospc]).await;
    let of = |came| [Harm::Eio, Harm::Enospc].map(|harm| counts.get(&(harm, came)).copied());
    assert!(of(Came::Ended).iter().all(Option::is_some), "no failure ended it: {counts:?}");
}
