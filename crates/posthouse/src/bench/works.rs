//! What is measured, one work after the other.

use hdrhistogram::Histogram;
use std::time::Duration;

use super::disk::{Alone, Disk};
use super::figure::{Figure, median};
use super::lane::{STAMP_BYTES, histogram, quantile_ms};
use super::load::{self, Load, Pace, Round};
use super::node::Node;
use super::{Door, Plan};
use crate::cli::Failure;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The disk alone, in pieces of one batch.
    Disk,
    /// Publishing, at full speed.
    Publish,
    /// Receiving and acknowledging a backlog.
    Deliver,
    /// Publishing, receiving and acknowledging together: at full speed, then the time
    /// from publish to delivery at half of it.
    EndToEnd,
    /// One message at a time: one client, then 64.
    Clients,
}

/// The clients of [`Work::Clients`].
const CLIENTS: usize = 64;

/// The longest that the disk alone is looked at in a round.
const DISK_TIME: Duration = Duration::from_secs(2);

/// Everything that is open during a run.
struct Bench<'a> {
    plan: &'a Plan,
    disk: Option<Disk>,
    nodes: Vec<(Door, Node)>,
    rounds: Vec<Vec<(Round, Alone)>>,
}

pub(super) async fn run(
    work: Work,
    plan: &Plan,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Failure> {
    std::fs::create_dir_all(&plan.dir)?;
    let dir = tempfile::Builder::new().prefix("posthouse-bench-").tempdir_in(&plan.dir)?;
    let disk =
        Disk::new(dir.path()).map_err(|error| Failure { text: error.to_string(), code: 1 })?;
    let mut bench = Bench { plan, disk: Some(disk), nodes: Vec::new(), rounds: Vec::new() };
    if work == Work::Disk {
        return bench.disk_alone(report).await;
    }
    let is_kept = matches!(work, Work::Deliver | Work::EndToEnd);
    for door in &plan.doors {
        let node = Node::start(*door, plan, dir.path()).await?;
        node.prepare(plan, is_kept).await?;
        bench.nodes.push((*door, node));
    }
    let done = match work {
        Work::Disk | Work::Publish => bench.publish(report).await,
        Work::Deliver => bench.deliver(report).await,
        Work::EndToEnd => bench.end_to_end(report).await,
        Work::Clients => bench.clients(report).await,
    };
    for (_, node) in bench.nodes {
        node.stop().await?;
    }
    done
}

impl Bench<'_> {
    /// What the disk does with pieces of `bytes`.
    async fn alone(&mut self, bytes: f64) -> Result<Alone, Failure> {
        let mut disk = self.disk.take().expect("it is there between two rounds");
        let time = (self.plan.time / 2).min(DISK_TIME);
        let ran = tokio::task::spawn_blocking(move || {
            let alone = disk.run(bytes as usize, time);
            (disk, alone)
        });
        let (disk, alone) = ran.await.expect("the disk's thread does not panic");
        self.disk = Some(disk);
        alone.map_err(|error| Failure { text: error.to_string(), code: 1 })
    }

    async fn disk_alone(&mut self, report: &mut dyn FnMut(Figure)) -> Result<(), Failure> {
        let bytes = (self.plan.size * self.plan.batch) as f64;
        let mut all = Vec::new();
        for _ in 0..self.plan.rounds {
            all.push(self.alone(bytes).await?);
        }
        let rate = median(all.iter().map(|alone| alone.bytes_per_second));
        let times = together(all.iter().map(|alone| &alone.each));
        let name = "disk: write, fdatasync".to_owned();
        report(Figure { frame_bytes: Some(bytes), ..self.figure(name, rate, "bytes/s", &times) });
        Ok(())
    }

    /// A load on every door, round by round, each with the disk beside it.
    async fn rounds(&mut self, load: impl Fn(usize) -> Load) -> Result<(), Failure> {
        self.rounds = self.nodes.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.plan.rounds {
            for at in 0..self.nodes.len() {
                let (door, node) = &self.nodes[at];
                let round = load::run(*door, node, self.plan, load(at)).await?;
                let alone = self.alone(round.frame_bytes).await?;
                self.rounds[at].push((round, alone));
            }
        }
        Ok(())
    }

    fn full(&self, consumers: usize) -> Load {
        let Plan { producers, time, .. } = *self.plan;
        Load { producers, consumers, pace: Pace::Full, time }
    }

    async fn publish(&mut self, report: &mut dyn FnMut(Figure)) -> Result<(), Failure> {
        let load = self.full(0);
        // Until segments are used again, as on a node that has run for a while.
        for (door, node) in &self.nodes {
            load::run(*door, node, self.plan, load).await?;
        }
        self.rounds(|_| load).await?;
        self.report_rates("publish", |round| round.published, |round| &round.publish, report);
        Ok(())
    }

    async fn deliver(&mut self, report: &mut dyn FnMut(Figure)) -> Result<(), Failure> {
        self.rounds = self.nodes.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.plan.rounds {
            for at in 0..self.nodes.len() {
                let (door, node) = &self.nodes[at];
                let round = load::backlog(*door, node, self.plan).await?;
                let alone = self.alone(round.frame_bytes).await?;
                self.rounds[at].push((round, alone));
            }
        }
        self.report_rates("deliver and ack", |round| round.acked, |round| &round.delivery, report);
        Ok(())
    }

    async fn end_to_end(&mut self, report: &mut dyn FnMut(Figure)) -> Result<(), Failure> {
        if self.plan.size < STAMP_BYTES {
            return Err(Failure::usage(format!(
                "--size {}: end-to-end needs {STAMP_BYTES} bytes for the time in the body",
                self.plan.size
            )));
        }
        let load = self.full(self.plan.consumers);
        self.rounds(|_| load).await?;
        let name = "publish, deliver and ack";
        self.report_rates(name, |round| round.acked, |round| &round.delivery, report);
        let full: Vec<f64> =
            self.rounds.iter().map(|of| median(of.iter().map(|(round, _)| round.acked))).collect();
        self.rounds(|at| Load { pace: Pace::PerSecond(full[at] / 2.0), ..load }).await?;
        for ((door, _), rounds) in self.nodes.iter().zip(&self.rounds) {
            let p99 = |times: &Histogram<u64>| quantile_ms(times, 0.99);
            let value = median(rounds.iter().map(|(round, _)| p99(&round.delivery)));
            let disk = median(rounds.iter().map(|(_, alone)| p99(&alone.each)));
            let times = together(rounds.iter().map(|(round, _)| &round.delivery));
            let name = format!("delivery p99 at half load, {}", door.name());
            let frame_bytes = median(rounds.iter().map(|(round, _)| round.frame_bytes));
            report(Figure {
                disk: Some(disk),
                disk_p99_ms: Some(disk),
                ratio: Some(value / disk),
                frame_bytes: Some(frame_bytes),
                ..self.figure(name, value, "ms", &times)
            });
        }
        Ok(())
    }

    async fn clients(&mut self, report: &mut dyn FnMut(Figure)) -> Result<(), Failure> {
        let plan = Plan { batch: 1, depth: 1, ..self.plan.clone() };
        let mut bench = Bench {
            plan: &plan,
            disk: self.disk.take(),
            nodes: std::mem::take(&mut self.nodes),
            rounds: Vec::new(),
        };
        let load = Load { producers: 1, ..bench.full(0) };
        let mut rates = Vec::new();
        for clients in [1, CLIENTS] {
            bench.rounds(|_| Load { producers: clients, ..load }).await?;
            let name = if clients == 1 { "1 client" } else { "64 clients" };
            bench.report_rates(name, |round| round.published, |round| &round.publish, report);
            rates.push(bench.rounds.clone());
        }
        for (at, (door, _)) in bench.nodes.iter().enumerate() {
            let times = rates[1][at].iter().zip(&rates[0][at]);
            let times = median(times.map(|(many, one)| many.0.published / one.0.published));
            let name = format!("64 clients by 1, {}", door.name());
            report(bench.figure(name, times, "times", &histogram()));
        }
        self.nodes = bench.nodes;
        Ok(())
    }

    /// Reports a rate of messages through every door.
    fn report_rates(
        &self,
        what: &str,
        rate: impl Fn(&Round) -> f64,
        times: impl Fn(&Round) -> &Histogram<u64>,
        report: &mut dyn FnMut(Figure),
    ) {
        let in_messages = |alone: &Alone| alone.bytes_per_second / self.plan.size as f64;
        let first = &self.rounds[0];
        for ((door, _), rounds) in self.nodes.iter().zip(&self.rounds) {
            let pairs = || rounds.iter().map(|(round, alone)| (rate(round), in_messages(alone)));
            let of_first =
                rounds.iter().zip(first).map(|(own, first)| rate(&own.0) / rate(&first.0));
            let times = together(rounds.iter().map(|(round, _)| times(round)));
            let disk_times = together(rounds.iter().map(|(_, alone)| &alone.each));
            let value = median(pairs().map(|(value, _)| value));
            report(Figure {
                disk: Some(median(pairs().map(|(_, disk)| disk))),
                ratio: Some(median(pairs().map(|(value, disk)| value / disk))),
                of_first_door: (self.nodes.len() > 1).then(|| median(of_first)),
                disk_p99_ms: Some(quantile_ms(&disk_times, 0.99)),
                frame_bytes: Some(median(rounds.iter().map(|(round, _)| round.frame_bytes))),
                ..self.figure(format!("{what}, {}", door.name()), value, "msg/s", &times)
            });
        }
    }

    fn figure(
        &self,
        name: String,
        value: f64,
        unit: &'static str,
        times: &Histogram<u64>,
    ) -> Figure {
        let plan = self.plan;
        Figure {
            name,
            value,
            unit,
            disk: None,
            ratio: None,
            of_first_door: None,
            p50_ms: quantile_ms(times, 0.5),
            p99_ms: quantile_ms(times, 0.99),
            disk_p99_ms: None,
            frame_bytes: None,
            size: plan.size,
            batch: plan.batch,
            producers: plan.producers,
            consumers: plan.consumers,
            topics: plan.topics,
            depth: plan.depth,
            seconds: plan.time.as_secs_f64(),
            rounds: plan.rounds,
            durability: plan.durability.clone(),
        }
    }
}

/// The times of all rounds together.
fn together<'a>(all: impl Iterator<Item = &'a Histogram<u64>>) -> Histogram<u64> {
    let mut sum = histogram();
    for times in all {
        // All have the same bounds.
        let _ = sum.add(times);
    }
    sum
}
