//! A command for every message.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use posthouse_client::proto;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::session::{Asked, Session, Settler, Verdict};
use crate::cli::output::note;
use crate::cli::stop::Stop;
use crate::cli::{Failure, Output};
use crate::units;

/// The most bytes of a reason that a node takes.
const REASON_BYTES: usize = 1024;

/// What a shell ends with if it cannot run a command, or cannot find it.
const CANNOT_RUN: [i32; 2] = [126, 127];

/// How long the end of stderr is waited for when the command has ended: something it has
/// started may keep it open.
const LINGER: Duration = Duration::from_millis(200);

/// Said of messages that no command has got.
const NOT_HANDLED: &str = "the consumer has ended before it was handled";

/// What commands are run with.
struct Plan {
    command: String,
    timeout: Option<Duration>,
    group: String,
    /// Commands print to stderr, because stdout is for programs.
    to_stderr: bool,
}

/// How a command ended.
enum Ended {
    Done,
    /// Not well: why.
    Failed(String),
    /// It could not be run, and neither can others.
    CannotRun(String),
    /// It was killed because there was no more time.
    Interrupted,
}

/// A message that a command has had.
struct Finished {
    message: proto::ReceivedMessage,
    ended: Ended,
    took: Duration,
    settled: Result<Vec<String>, Failure>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    topic: &'a str,
    partition: u32,
    position: u64,
    attempt: u32,
    /// `acked` or `given_back`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    took_ms: u64,
}

#[derive(Default)]
struct Tally {
    acked: u64,
    given_back: u64,
}

/// Runs commands until there are no more messages, or it is told to stop.
pub(super) async fn run(
    session: &mut Session,
    command: String,
    concurrency: u32,
    timeout: Option<Duration>,
    out: &mut Output,
) -> Result<(), Failure> {
    let group = session.group.clone();
    let plan = Arc::new(Plan { command, timeout, group, to_stderr: out.is_json() });
    let mut tally = Tally::default();
    let mut running = JoinSet::new();
    let mut ended =
        run_all(session, &plan, concurrency as usize, &mut running, &mut tally, out).await;
    // Whatever ended it: commands that run are waited for.
    while let Some(finished) = running.join_next().await {
        let told = joined(finished).and_then(|finished| tell(finished, &mut tally, out));
        ended = ended.and(told);
    }
    session.give_all_back(NOT_HANDLED).await;
    out.flush()?;
    note(format_args!(
        "{} acknowledged, {} given back",
        units::show_count(tally.acked),
        units::show_count(tally.given_back)
    ));
    ended?;
    match session.stop.is_told() && !session.follow {
        true => Err(Failure::interrupted("interrupted")),
        false => Ok(()),
    }
}

async fn run_all(
    session: &mut Session,
    plan: &Arc<Plan>,
    concurrency: usize,
    running: &mut JoinSet<Finished>,
    tally: &mut Tally,
    out: &mut Output,
) -> Result<(), Failure> {
    // Whether there was nothing more, and nothing has been given back since.
    let mut is_dry = false;
    loop {
        let room = (concurrency - running.len()) as u64;
        let asks = room > 0 && !is_dry && !session.stop.is_told();
        if !asks {
            let Some(finished) = running.join_next().await else { return Ok(()) };
            tell(joined(finished)?, tally, out)?;
            is_dry = false;
            continue;
        }
        // Only as many as can be begun at once: others may have time for the rest.
        let mut failed = None;
        let asked = {
            let mut asking = std::pin::pin!(session.ask(room));
            loop {
                tokio::select! {
                    asked = &mut asking => break asked?,
                    Some(finished) = running.join_next() => {
                        let told = joined(finished).and_then(|done| tell(done, tally, out));
                        failed = failed.or(told.err());
                    }
                }
            }
        };
        if let Some(failure) = failed {
            return Err(failure);
        }
        match asked {
            Asked::Nothing => {}
            Asked::End => is_dry = true,
            // They came with the signal.
            Asked::Messages(messages) if session.stop.is_told() => {
                let receipts = messages.into_iter().map(|message| message.receipt).collect();
                session.settler().settle(receipts, &Verdict::give_back(NOT_HANDLED)).await?;
            }
            Asked::Messages(messages) => {
                for message in messages {
                    let (stop, settler) = (session.stop.clone(), session.settler());
                    running.spawn(plan.clone().handle(message, stop, settler));
                }
            }
        }
    }
}

fn joined(finished: Result<Finished, tokio::task::JoinError>) -> Result<Finished, Failure> {
    finished.map_err(|error| Failure { text: format!("a task has failed: {error}"), code: 1 })
}

/// Tells what became of a message.
fn tell(finished: Finished, tally: &mut Tally, out: &mut Output) -> Result<(), Failure> {
    let Finished { message, ended, took, settled } = finished;
    let reason = match &ended {
        Ended::Done => None,
        Ended::Failed(reason) | Ended::CannotRun(reason) => Some(reason.as_str()),
        Ended::Interrupted => Some("interrupted"),
    };
    let lost = settled?;
    for what in &lost {
        note(format_args!("message {}: too late: {what}", message.id));
    }
    match reason {
        None => tally.acked += u64::from(lost.is_empty()),
        Some(_) => tally.given_back += u64::from(lost.is_empty()),
    }
    if out.is_json() {
        let status = if reason.is_none() { "acked" } else { "given_back" };
        out.json(&Line {
            id: &message.id,
            topic: &message.topic,
            partition: message.partition,
            position: message.position,
            attempt: message.attempt,
            status,
            reason,
            took_ms: took.as_millis() as u64,
        })?;
        out.flush()?;
    } else if let Some(reason) = reason {
        let last = reason.lines().last().unwrap_or_default();
        note(format_args!(
            "message {} (attempt {}) was given back: {last}",
            message.id, message.attempt
        ));
    }
    match ended {
        Ended::CannotRun(what) => {
            Err(Failure { text: format!("the command cannot be run: {what}"), code: 1 })
        }
        _ => Ok(()),
    }
}

impl Plan {
    async fn handle(
        self: Arc<Self>,
        mut message: proto::ReceivedMessage,
        mut stop: Stop,
        settler: Settler,
    ) -> Finished {
        let began = Instant::now();
        let body = std::mem::take(&mut message.body);
        let ended = match self.start(&message) {
            Ok(child) => self.attend(child, body, &mut stop).await,
            Err(error) => Ended::CannotRun(format!("sh: {error}")),
        };
        let verdict = match &ended {
            Ended::Done => Verdict::Ack,
            Ended::Failed(reason) | Ended::CannotRun(reason) => {
                Verdict::Nack { delay: None, reason: reason.clone() }
            }
            Ended::Interrupted => Verdict::give_back("the consumer was interrupted"),
        };
        let settled = settler.settle(vec![message.receipt.clone()], &verdict).await;
        Finished { message, ended, took: began.elapsed(), settled }
    }

    fn start(&self, message: &proto::ReceivedMessage) -> std::io::Result<Child> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command);
        for (name, value) in variables(message, &self.group) {
            command.env(name, value);
        }
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        if self.to_stderr {
            command.stdout(std::io::stderr());
        }
        // A group of its own: Ctrl-C is for us, and what we kill we kill with its children.
        command.process_group(0).kill_on_drop(true).spawn()
    }

    async fn attend(&self, mut child: Child, body: Bytes, stop: &mut Stop) -> Ended {
        let group = child.id().and_then(|id| Pid::from_raw(id as i32));
        let stdin = child.stdin.take();
        let feeding = tokio::spawn(async move {
            if let Some(mut stdin) = stdin {
                // A command need not read what it is given.
                let _ = stdin.write_all(&body).await;
            }
        });
        let (tail, mut reading) = (Arc::new(std::sync::Mutex::new(Tail::default())), None);
        if let Some(stderr) = child.stderr.take() {
            reading = Some(tokio::spawn(follow(stderr, tail.clone())));
        }
        let limit = async {
            match self.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let kill = || {
            if let Some(group) = group {
                // It may have ended just now.
                let _ = kill_process_group(group, Signal::KILL);
            }
        };
        let mut cut_short = None;
        let status = tokio::select! {
            status = child.wait() => status,
            () = limit => {
                let timeout = self.timeout.unwrap_or_default().as_millis() as u64;
                let timeout = units::show_duration(timeout);
                cut_short = Some(Ended::Failed(format!("killed after {timeout} (--exec-timeout)")));
                kill();
                child.wait().await
            }
            () = stop.told_twice() => {
                cut_short = Some(Ended::Interrupted);
                kill();
                child.wait().await
            }
        };
        feeding.abort();
        if let Some(reading) = &mut reading
            && tokio::time::timeout(LINGER, &mut *reading).await.is_err()
        {
            reading.abort();
        }
        let tail =
            std::mem::take(&mut *tail.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        match (cut_short, status) {
            (Some(Ended::Failed(what)), _) => Ended::Failed(tail.reason(&what)),
            (Some(ended), _) => ended,
            (None, Err(error)) => Ended::Failed(format!("nobody knows how it ended: {error}")),
            (None, Ok(status)) if status.success() => Ended::Done,
            (None, Ok(status)) => {
                let reason = tail.reason(&described(status));
                match status.code() {
                    Some(code) if CANNOT_RUN.contains(&code) => Ended::CannotRun(reason),
                    _ => Ended::Failed(reason),
                }
            }
        }
    }
}

fn described(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The end of what a command has said on stderr.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(REASON_BYTES);
        self.0.drain(..surplus);
    }

    /// How it ended and the end of what it said, as far as a reason may be long.
    fn reason(self, how: &str) -> String {
        let said: Vec<u8> = self.0.into();
        let said = String::from_utf8_lossy(&said);
        let said = said.trim().trim_start_matches(char::REPLACEMENT_CHARACTER);
        let mut reason = how.to_owned();
        if !said.is_empty() {
            let room = REASON_BYTES.saturating_sub(how.len() + 2);
            let from = (0..=said.len())
                .find(|at| said.is_char_boundary(*at) && said.len() - at <= room)
                .unwrap_or(said.len());
            // Writing to a string cannot fail.
            let _ = write!(reason, ": {}", said[from..].trim_start());
        }
        reason
    }
}

/// Passes on what a command says on stderr, and keeps its end.
async fn follow(mut stderr: impl tokio::io::AsyncRead + Unpin, tail: Arc<std::sync::Mutex<Tail>>) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        // Where our stderr is closed there is nobody to tell.
        let _ = std::io::stderr().write_all(&buffer[..n]);
        tail.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(&buffer[..n]);
    }
}

/// What a command finds in its environment.
fn variables(message: &proto::ReceivedMessage, group: &str) -> Vec<(String, String)> {
    let mut all = vec![
        ("ID".to_owned(), message.id.clone()),
        ("TOPIC".to_owned(), message.topic.clone()),
        ("PARTITION".to_owned(), message.partition.to_string()),
        ("POSITION".to_owned(), message.position.to_string()),
        ("ATTEMPT".to_owned(), message.attempt.to_string()),
        ("FENCE".to_owned(), message.fence.to_string()),
        ("PUBLISHED_AT".to_owned(), units::show_time(message.published_at_ms)),
        ("GROUP".to_owned(), group.to_owned()),
        ("TAGS".to_owned(), message.tags.join(",")),
        // Always there, so that a command never gets what was set for us.
        ("KEY".to_owned(), message.key.clone().unwrap_or_default()),
        ("DEDUPE_ID".to_owned(), message.dedupe_id.clone().unwrap_or_default()),
    ];
    for (name, value) in &message.headers {
        let name = name.to_uppercase();
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        all.push((format!("HEADER_{name}"), value.clone()));
    }
    // The environment cannot hold a zero.
    let clean = |value: String| value.replace('\0', "\u{fffd}");
    all.into_iter().map(|(name, value)| (format!("POSTHOUSE_{name}"), clean(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_how_it_ended_and_the_end_of_what_was_said() {
        let mut tail = Tail::default();
        tail.add(b"  no stock\n");
        assert_eq!(tail.reason("exit code 1"), "exit code 1: no stock");
        assert_eq!(Tail::default().reason("exit code 2"), "exit code 2");
        let mut tail = Tail::default();
        tail.add("é".repeat(5000).as_bytes());
        tail.add(b"the end");
        let reason = tail.reason("exit code 1");
        assert!(reason.len() <= REASON_BYTES, "{} bytes", reason.len());
        assert!(reason.starts_with("exit code 1: é") && reason.ends_with("éthe end"), "{reason}");
    }

    #[test]
    fn attributes_become_variables() {
        let message = proto::ReceivedMessage {
            topic: "orders".into(),
            key: Some("a\0b".into()),
            headers: [("x-trace.id".to_owned(), "7".to_owned())].into(),
            ..Default::default()
        };
        let all = variables(&message, "billing");
        let value = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(value("POSTHOUSE_TOPIC"), Some("orders"));
        assert_eq!(value("POSTHOUSE_GROUP"), Some("billing"));
        assert_eq!(value("POSTHOUSE_KEY"), Some("a\u{fffd}b"));
        assert_eq!(value("POSTHOUSE_HEADER_X_TRACE_ID"), Some("7"));
    }
}
