//! `posthouse consume`: messages of a group, printed or handed to a command.
//!
//! ```text
//!   intake ──> held ──> printed, or given to a command ──> settled
//!               │
//!               └─ leases are extended as long as a message is here
//! ```
//! Whatever ends it, what was not printed to its end, and what no command has handled,
//! is given back.

mod exec;
mod held;
mod print;
mod session;

use std::time::Duration;

use clap::Args;

use super::remote::Remote;
use super::stop::Stop;
use super::{Failure, Output};
use crate::units;

/// Messages that a look at a group takes unless told otherwise.
const LOOK: u64 = 100;

/// Messages that a look at a group takes at most: they are all held until its end.
const LOOK_MOST: u64 = 10_000;

/// Consume messages of a group
///
/// Takes what is there and ends; with --follow it waits for more. A message is
/// acknowledged when it was printed, or when the command of --exec has ended with 0.
/// Ctrl-C ends it well: commands that run are waited for, and what is not done is given
/// back.
#[derive(Debug, Args)]
pub struct Consume {
    /// The group
    group: String,
    /// Only from this topic. Where the node makes groups on first use, it also says what a
    /// new group gets
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Wait for more
    #[arg(long)]
    follow: bool,
    /// Without --follow: how long to wait for a message before it ends
    #[arg(long, value_name = "DURATION", default_value = "0s", conflicts_with = "follow",
        value_parser = units::duration_ms)]
    wait: u64,
    /// Give each message to a command, run by sh: the body on stdin, the rest in variables
    /// POSTHOUSE_ID, _TOPIC, _PARTITION, _POSITION, _KEY, _TAGS, _ATTEMPT, _FENCE,
    /// _PUBLISHED_AT, _GROUP, _DEDUPE_ID and _HEADER_NAME. It is acknowledged if the command
    /// ends with 0, else given back with the end of its stderr as the reason
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Commands that run at the same time
    #[arg(long, value_name = "N", default_value_t = 1, requires = "exec",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,
    /// Kill a command that takes longer, and give its message back
    #[arg(long, value_name = "DURATION", requires = "exec", value_parser = units::duration_ms)]
    exec_timeout: Option<u64>,
    /// Only look: give everything back at the end, to come again at once. It counts as an
    /// attempt; `posthouse topic browse` has no effect on anyone
    #[arg(long, conflicts_with_all = ["exec", "follow", "auto_ack"])]
    no_ack: bool,
    /// Let messages be acknowledged as they are given out: at most once
    #[arg(long, conflicts_with = "exec")]
    auto_ack: bool,
    /// How long a message is ours before somebody else may get it, if not as the group says.
    /// It is extended as long as a message is here
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    lease: Option<u64>,
    /// Get an own copy of everything the group gets; needs --consumer
    #[arg(long, requires = "consumer")]
    broadcast: bool,
    /// The consumer's name, for whoever looks at the group [default: HOST.PID]
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

impl Consume {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(max) = self.max.filter(|max| self.no_ack && *max > LOOK_MOST) {
            return Err(Failure::usage(format!(
                "--max {max}: with --no-ack at most {LOOK_MOST}, because all of them are held \
                 until the end"
            )));
        }
        let remote = self.remote.clone();
        remote.run(async |client, out| {
            let stop = Stop::listen()?;
            let mut session = session::Session::new(client, &self, stop);
            match self.exec {
                Some(command) => {
                    let timeout = self.exec_timeout.map(Duration::from_millis);
                    exec::run(&mut session, command, self.concurrency, timeout, out).await
                }
                None => print::run(&mut session, self.no_ack, out).await,
            }
        })
    }

    /// The most messages in all.
    fn most(&self) -> u64 {
        match self.max {
            Some(max) => max,
            None if self.no_ack => LOOK,
            None => u64::MAX,
        }
    }

    fn consumer_name(&self) -> String {
        self.consumer.clone().unwrap_or_else(|| {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            format!("{host}.{}", std::process::id())
        })
    }
}

/// Prints what happened to messages that are no longer ours.
fn tell_stale(lost: &[String], out: &mut Output) -> Result<(), Failure> {
    // What was printed so far comes first, where both go to one place.
    out.flush()?;
    lost.iter().for_each(super::output::note);
    Ok(())
}
