//! `posthouse bench scale` and `posthouse bench schedule`: what a node does with much of
//! everything, and with messages that come later.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Failure;
use super::bench::{measure, number};
use super::output::Output;
use crate::bench::scale::{self, ScaleFigure, ScalePlan, ScaleWork, ScheduleWork};
use crate::units;

/// Much of everything: topics, groups, messages, time
///
/// Starts a node in this process, with its data in a new directory below --dir, and
/// removes it at the end. Every figure stands beside what it must show, the memory of
/// the process (load and node together) and the room on the disk. A smaller size is a
/// look, not a proof.
#[derive(Debug, Args)]
pub struct Scale {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Many topics (--count, 1000000), and publishes all over them
    Topics(Options),
    /// Many groups (--count, 100000), of which few are active (--active, 1000)
    Groups(Options),
    /// Many messages (--count, 100000000) kept in one topic, looked at anywhere
    Retained(Options),
    /// A log (--bytes, 10GB) with idle topics and groups (--count, --active, none), a
    /// kill, and the time to the first reply
    Restart(Options),
    /// A backlog (--count, 50000000), consumed in order, beside other topics
    Backlog(Options),
    /// One topic that is kept, among others that are not, for --seconds (60)
    Clean(Options),
    /// A disk that fills to the mark (--bytes, 2GB), and is drained
    Full(Options),
    /// A mixed load for --seconds (1800)
    Soak(Options),
}

/// Messages that come later, in any number
///
/// Starts a node in this process, with its data in a new directory below --dir, and
/// removes it at the end. How late a message comes is the time from when it is due to when
/// a consumer has it. A smaller count is a look, not a proof.
#[derive(Debug, Args)]
pub struct Schedule {
    #[command(subcommand)]
    work: Later,
}

#[derive(Debug, Subcommand)]
enum Later {
    /// What pending messages (--count, 100000000) take in memory and on the disk
    Pending(Options),
    /// How fast they are taken in, in turn with plain publishes (--seconds, 5)
    Fill(Options),
    /// Calling back and moving any of them (--count, 2000000), by 64 clients
    Change(Options),
    /// How late they come at 300000, 50000 and 1000 a second (at most --count), for
    /// --seconds (60)
    Fire(Options),
    /// Many (--count, 100000000) in the same millisecond, beside others
    Burst(Options),
    /// A kill with many (--count, 100000000) pending, and the time to the first reply and
    /// to the first that comes
    Restart(Options),
}

#[derive(Debug, Args)]
struct Options {
    /// How many: topics, groups or messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// How much: bytes of bodies
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    bytes: Option<u64>,
    /// The size of a body
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    size: Option<u64>,
    /// Messages of one publish, and at most of one receive
    #[arg(long, value_name = "N", value_parser = number(10_000))]
    batch: Option<u64>,
    /// Groups that are active
    #[arg(long, value_name = "N")]
    active: Option<u64>,
    /// Tasks that publish
    #[arg(long, value_name = "N", default_value = "4", value_parser = number(1000))]
    producers: u64,
    /// Tasks that consume
    #[arg(long, value_name = "N", default_value = "8", value_parser = number(1000))]
    consumers: u64,
    /// Publishes that a producer has under way
    #[arg(long, value_name = "N", default_value = "4", value_parser = number(64))]
    depth: u64,
    /// Seconds of a load
    #[arg(long, value_name = "S", value_parser = number(86_400))]
    seconds: Option<u64>,
    /// Rounds of what is compared
    #[arg(long, value_name = "N", default_value = "3", value_parser = number(100))]
    rounds: u64,
    /// The setting `memory` of the node
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = units::size)]
    memory: u64,
    /// On the disk to be measured
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// The node that is killed
    #[arg(long, hide = true)]
    child: bool,
}

/// What a work does unless told otherwise.
struct Defaults {
    count: u64,
    bytes: u64,
    size: u64,
    batch: u64,
    active: u64,
    seconds: u64,
}

impl Work {
    fn parts(self) -> (ScaleWork, Options, Defaults) {
        let usual = Defaults { count: 0, bytes: 0, size: 100, batch: 1000, active: 0, seconds: 10 };
        match self {
            Work::Topics(options) => {
                (ScaleWork::Topics, options, Defaults { count: 1_000_000, batch: 100, ..usual })
            }
            Work::Groups(options) => {
                (ScaleWork::Groups, options, Defaults { count: 100_000, active: 1000, ..usual })
            }
            Work::Retained(options) => {
                (ScaleWork::Retained, options, Defaults { count: 100_000_000, ..usual })
            }
            Work::Restart(options) => {
                let work = match options.child {
                    true => ScaleWork::RestartChild,
                    false => ScaleWork::Restart,
                };
                (work, options, Defaults { bytes: 10_000_000_000, size: 1000, batch: 100, ..usual })
            }
            Work::Backlog(options) => {
                (ScaleWork::Backlog, options, Defaults { count: 50_000_000, ..usual })
            }
            Work::Clean(options) => {
                let defaults = Defaults { size: 1000, batch: 100, seconds: 60, ..usual };
                (ScaleWork::Clean, options, defaults)
            }
            Work::Full(options) => {
                let defaults = Defaults { bytes: 2_000_000_000, size: 1000, batch: 100, ..usual };
                (ScaleWork::Full, options, defaults)
            }
            Work::Soak(options) => {
                let defaults = Defaults { size: 500, batch: 100, seconds: 1800, ..usual };
                (ScaleWork::Soak, options, defaults)
            }
        }
    }
}

impl Later {
    fn parts(self) -> (ScaleWork, Options, Defaults) {
        let many = 100_000_000;
        let usual =
            Defaults { count: many, bytes: 0, size: 100, batch: 1000, active: 0, seconds: 10 };
        let (work, options, defaults) = match self {
            Later::Pending(options) => (ScheduleWork::Pending, options, usual),
            Later::Fill(options) => (ScheduleWork::Fill, options, Defaults { seconds: 5, ..usual }),
            Later::Change(options) => {
                (ScheduleWork::Change, options, Defaults { count: 2_000_000, seconds: 5, ..usual })
            }
            Later::Fire(options) => {
                (ScheduleWork::Fire, options, Defaults { count: 0, seconds: 60, ..usual })
            }
            Later::Burst(options) => (ScheduleWork::Burst, options, usual),
            Later::Restart(options) => match options.child {
                true => (ScheduleWork::RestartChild, options, usual),
                false => (ScheduleWork::Restart, options, usual),
            },
        };
        (ScaleWork::Schedule(work), options, defaults)
    }
}

impl Scale {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (work, options, defaults) = self.work.parts();
        options.run(work, &defaults)
    }
}

impl Schedule {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (work, options, defaults) = self.work.parts();
        options.run(work, &defaults)
    }
}

impl Options {
    fn run(&self, work: ScaleWork, defaults: &Defaults) -> Result<(), Failure> {
        let plan = self.plan(defaults)?;
        let shown = |out: &mut Output, figure: &ScaleFigure| out.line(figure.line());
        let mut out = Output::new(self.json);
        out.say(ScaleFigure::HEAD)?;
        measure(&mut out, shown, async |report| scale::run(work, &plan, report).await)
    }

    fn plan(&self, defaults: &Defaults) -> Result<ScalePlan, Failure> {
        let size = self.size.unwrap_or(defaults.size);
        let batch = self.batch.unwrap_or(defaults.batch);
        if size == 0 || size * batch > 8 << 20 {
            return Err(Failure::usage(format!(
                "--size {size} --batch {batch}: a publish has at most 8MiB; take a smaller batch"
            )));
        }
        Ok(ScalePlan {
            count: self.count.unwrap_or(defaults.count),
            bytes: self.bytes.unwrap_or(defaults.bytes),
            size: size as usize,
            batch: batch as usize,
            producers: self.producers as usize,
            depth: self.depth as usize,
            consumers: self.consumers as usize,
            active: self.active.unwrap_or(defaults.active),
            time: Duration::from_secs(self.seconds.unwrap_or(defaults.seconds)),
            rounds: self.rounds as usize,
            memory: self.memory,
            dir: self.dir.clone(),
        })
    }
}
