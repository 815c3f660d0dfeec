//! `posthouse bench`: what this machine gives.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Failure;
use super::output::Output;
use crate::bench::{self, Door, Figure, Plan};
use crate::units;

/// Measure a node on this machine, beside its disk
///
/// Starts nodes of its own in a new directory below --dir, and removes it at the end.
/// Every round of load is followed by the disk alone with pieces of the frames' size; a
/// ratio is that of the two in one round. Figures are medians over the rounds.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// The disk alone: write and fdatasync, in pieces of one batch
    Disk(Options),
    /// Publishing at full speed
    Publish(Options),
    /// Receiving and acknowledging a backlog
    Deliver(Options),
    /// Publish, deliver and ack together; then the delivery time at half of that rate
    EndToEnd(Options),
    /// One message at a time: one client, then 64
    Clients(Options),
    Scale(super::scale::Scale),
    Schedule(super::scale::Schedule),
}

#[derive(Debug, Args)]
struct Options {
    /// Measure in this process, without a connection
    #[arg(long)]
    in_process: bool,
    /// Measure over gRPC streams
    #[arg(long)]
    grpc: bool,
    /// Measure over HTTP/1.1 with JSON. Without any of the three, all take turns
    #[arg(long)]
    http: bool,
    /// The size of a body
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = units::size)]
    size: u64,
    /// Messages of one publish, and at most of one receive
    #[arg(long, value_name = "N", default_value = "1000", value_parser = number(10_000))]
    batch: u64,
    /// Connections that publish
    #[arg(long, value_name = "N", default_value = "4", value_parser = number(1000))]
    producers: u64,
    /// Connections that consume
    #[arg(long, value_name = "N", default_value = "4", value_parser = number(1000))]
    consumers: u64,
    /// Topics, which producers take in turn
    #[arg(long, value_name = "N", default_value = "1", value_parser = number(1_000_000))]
    topics: u64,
    /// Publishes that a producer has under way
    #[arg(long, value_name = "N", default_value = "4", value_parser = number(64))]
    depth: u64,
    /// Seconds of load in a round
    #[arg(long, value_name = "S", default_value = "3", value_parser = number(3600))]
    seconds: u64,
    /// Rounds
    #[arg(long, value_name = "N", default_value = "5", value_parser = number(100))]
    rounds: u64,
    /// When a message counts as durable: sync, interval:DURATION or os
    #[arg(long, value_name = "WHEN", default_value = "sync")]
    durability: String,
    /// On the disk to be measured
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn number(most: u64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::builder::RangedU64ValueParser::new().range(1..=most)
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (work, options) = match self.work {
            Work::Disk(options) => (bench::Work::Disk, options),
            Work::Publish(options) => (bench::Work::Publish, options),
            Work::Deliver(options) => (bench::Work::Deliver, options),
            Work::EndToEnd(options) => (bench::Work::EndToEnd, options),
            Work::Clients(options) => (bench::Work::Clients, options),
            Work::Scale(scale) => return scale.run(),
            Work::Schedule(schedule) => return schedule.run(),
        };
        let plan = options.plan()?;
        let shown = |out: &mut Output, figure: &Figure| out.line(figure.line());
        let mut out = Output::new(options.json);
        out.say(Figure::HEAD)?;
        measure(&mut out, shown, async |report| bench::run(work, &plan, report).await)?;
        out.say(format_args!("\n{}", described(&plan)))?;
        out.flush()
    }
}

/// Prints figures as they come, until `work` has ended, somebody presses Ctrl-C, or nobody
/// reads any more.
pub(super) fn measure<F: Serialize>(
    out: &mut Output,
    shown: fn(&mut Output, &F) -> Result<(), Failure>,
    work: impl AsyncFnOnce(&mut (dyn FnMut(F) + Send)) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (failed, mut failure) = tokio::sync::oneshot::channel();
    let mut failed = Some(failed);
    out.flush()?;
    let mut report = |figure: F| {
        let printed = out.show(&figure, shown).and_then(|()| out.flush());
        if let (Err(error), Some(failed)) = (printed, failed.take()) {
            let _ = failed.send(error);
        }
    };
    super::runtime()?.block_on(async {
        tokio::select! {
            done = work(&mut report) => done,
            Ok(error) = &mut failure => Err(error),
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted("interrupted")),
        }
    })
}

impl Options {
    fn plan(&self) -> Result<Plan, Failure> {
        let chosen =
            [(self.in_process, Door::InProcess), (self.grpc, Door::Grpc), (self.http, Door::Http)];
        let none = chosen.iter().all(|(is_chosen, _)| !is_chosen);
        let doors = chosen.into_iter().filter(|(is_chosen, _)| *is_chosen || none);
        if self.size == 0 || self.size > 8 << 20 {
            return Err(Failure::usage(format!("--size {}: from 1 to 8MiB", self.size)));
        }
        let (size, batch) = (self.size as usize, self.batch as usize);
        if size * batch > 8 << 20 {
            return Err(Failure::usage(format!(
                "--size {size} --batch {batch}: a publish has at most 8MiB; take a smaller batch"
            )));
        }
        Ok(Plan {
            doors: doors.map(|(_, door)| door).collect(),
            size,
            batch,
            producers: self.producers as usize,
            consumers: self.consumers as usize,
            topics: self.topics as usize,
            depth: self.depth as usize,
            time: Duration::from_secs(self.seconds),
            rounds: self.rounds as usize,
            durability: self.durability.clone(),
            dir: self.dir.clone(),
        })
    }
}

/// What was set, under the table.
fn described(plan: &Plan) -> String {
    let Plan { size, batch, producers, consumers, topics, depth, rounds, durability, .. } = plan;
    let (bytes, seconds) = (units::show_size(*size as u64), plan.time.as_secs());
    format!(
        "bodies of {bytes}, batches of {batch}, {producers} producers with {depth} under way, \
         {consumers} consumers, {topics} topics, {rounds} rounds of {seconds} s, durability \
         {durability}\nratio: by the disk alone, in the same round, in pieces of the frames' size \
         with one fdatasync each\nof first: by the first door in the table, in the same round"
    )
}
