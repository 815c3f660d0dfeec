//! Starting and ending a node.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use posthouse::broker::{Broker, BrokerOptions, Caller, Ground, StartError};
use posthouse::problem::Problem;
use posthouse::shard::attend::Aside;
use posthouse_core::machine::Machine as _;
use posthouse_log::files::sim::SimFiles;
use tokio::runtime::{Builder, Runtime};

use super::{Node, World};
use crate::check::Violation;
use crate::clients::Client;
use crate::history::What;
use crate::plan::Part;
use crate::scene::Scene;

/// Where the data directory is.
pub const DATA: &str = "/data";

/// Bytes of a segment: small, so that a run has many.
const SEGMENT_BYTES: u64 = 128 << 10;

/// How often a node may fail to start for reasons that the run gives it.
const ATTEMPTS: u32 = 20;

/// Rounds of [`World::drive`] that starting takes at most.
const ROUNDS: u32 = 2_000;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

impl World {
    fn options(&self) -> BrokerOptions {
        let shards = self.shared.plan.shards;
        BrokerOptions {
            shards: Some(shards),
            segment_bytes: SEGMENT_BYTES,
            memory: u64::from(shards) * (192 << 10),
            auto_create: Some(false),
            disk_reserve: Some(1 << 20),
            snapshot_log_bytes: 64 << 10,
            ..BrokerOptions::new(Path::new(DATA).to_owned())
        }
    }

    fn ground(&mut self, disk: &SimFiles) -> Ground {
        let chance = self.chance();
        Ground { files: disk.shared(), time: self.time.clone(), chance, aside: Aside::Here }
    }

    fn open(&mut self) -> Result<Node, StartError> {
        let runtime = runtime();
        let guard = runtime.enter();
        let ground = self.ground(&self.disk.clone());
        let assembled = Broker::assemble(ground, self.options());
        drop(guard);
        let (broker, parts, _) = assembled?;
        Ok(Node { parts, broker, runtime })
    }

    /// Starts the node, and lets clients come.
    pub(super) fn boot(&mut self) -> Result<(), Violation> {
        for _ in 0..ATTEMPTS {
            self.figures.boots += 1;
            let expected = self.before_boot();
            match self.open() {
                Ok(node) => {
                    let digests = digests(&node);
                    if let Some(expected) = expected.filter(|expected| *expected != digests) {
                        let what = format!("recovered to {expected:?}, then to {digests:?}");
                        return Err(Violation::new(14, "recovery", what));
                    }
                    self.node = Some(node);
                    if self.settle_in()? {
                        self.note(What::Starts);
                        self.start_clients();
                        return Ok(());
                    }
                }
                Err(_) if self.disk.is_off() => {}
                Err(error) => {
                    if !self.has_excuse() {
                        let what = format!("the node does not start: {error}");
                        return Err(Violation::new(14, "recovery", what));
                    }
                    self.figures.refused_starts += 1;
                }
            }
            self.after_failed_boot();
        }
        Err(Violation::new(14, "recovery", "the node does not start, again and again".into()))
    }

    /// Finishes what a crash has left, and makes topics and groups. `false` if the node
    /// has ended meanwhile.
    fn settle_in(&mut self) -> Result<bool, Violation> {
        let Some(node) = &self.node else { return Ok(false) };
        let done = Arc::new(Mutex::new(None));
        let (broker, scene, told) = (node.broker.clone(), self.shared.scene.clone(), done.clone());
        node.runtime.spawn(async move {
            let outcome = set_up(&broker, &scene).await;
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        });
        let came = || done.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.drive(ROUNDS, 1, |_| came().is_some());
        let outcome = came();
        let is_up = outcome == Some(Ok(()));
        let has_fallen = std::mem::take(&mut self.fallen);
        let may_fail = self.disk.is_off() || (has_fallen && self.has_excuse());
        if !is_up && !may_fail {
            let what = format!("a node that has started does not come to serve: {outcome:?}");
            return Err(Violation::new(14, "recovery", what));
        }
        Ok(is_up && !has_fallen)
    }

    fn start_clients(&mut self) {
        let Some(node) = &self.node else { return };
        for (who, (life, kept)) in (1..).zip(&self.lives) {
            let client = Client { who, broker: node.broker.clone(), shared: self.shared.clone() };
            node.runtime.spawn(life.lead(client, kept.clone()));
        }
    }

    /// The process ends, as it is.
    pub(super) fn down(&mut self, how: &'static str) {
        if let Some(node) = self.node.take() {
            self.note(What::Ends { how });
            let Node { parts, broker, runtime } = node;
            drop(parts);
            drop(broker);
            drop(runtime);
        }
    }

    /// The power has failed.
    pub(super) fn lose_power(&mut self) -> Result<(), Violation> {
        self.down("power");
        self.figures.power += 1;
        self.disk = self.disk.crash();
        self.power_fails = false;
        self.disk.short_io(self.has(Part::Short));
        self.boot()
    }

    /// What recovery finds, by looking at a copy; the more so if it is interrupted there.
    pub(super) fn peek(&mut self, interrupt: Option<u64>) -> Option<Vec<u64>> {
        let mut copy = self.disk.fork();
        copy.clear_faults();
        if let Some(after) = interrupt {
            copy.cut_power_after(after);
            drop(self.open_on(&copy));
            self.figures.interrupted += u64::from(copy.is_off());
            copy = copy.crash();
        }
        self.open_on(&copy).ok()
    }

    fn open_on(&mut self, disk: &SimFiles) -> Result<Vec<u64>, StartError> {
        let runtime = runtime();
        let guard = runtime.enter();
        let assembled = Broker::assemble(self.ground(disk), self.options());
        drop(guard);
        let (broker, parts, _) = assembled?;
        let node = Node { parts, broker, runtime };
        Ok(digests(&node))
    }

    /// The digests of a node that runs.
    pub(super) fn live_digests(&self) -> Option<Vec<u64>> {
        self.node.as_ref().map(digests)
    }
}

/// The digest of the state of each shard.
fn digests(node: &Node) -> Vec<u64> {
    node.parts.shards.iter().map(|part| part.runner.engine().shard().digest()).collect()
}

async fn set_up(broker: &Arc<Broker>, scene: &Scene) -> Result<(), Problem> {
    broker.settle_in().await?;
    for topic in &scene.topics {
        broker.put_topic(&Caller::Node, topic.name, topic.patch.clone()).await?;
    }
    for group in &scene.groups {
        broker.put_group(&Caller::Node, group.name, group.patch.clone()).await?;
    }
    Ok(())
}
