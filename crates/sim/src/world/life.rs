//! Starting and ending a node.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use posthouse::broker::{Broker, BrokerOptions, Caller, Ground, StartError};
use posthouse::problem::Problem;
use posthouse::shard::attend::Aside;
use posthouse_core::machine::Machine as _;
use posthouse_core::queue::Shard;
use posthouse_log::files::sim::SimFiles;
use tokio::runtime::{Builder, Runtime};

use super::{Node, World};
use crate::check::Violation;
use crate::clients::{Client, Shared};
use crate::history::What;
use crate::plan::Part;
use crate::scene::Scene;

/// Where the data directory is.
pub const DATA: &str = "/data";

/// Bytes of a segment where bodies may be large, and the most elsewhere: small, so that a
/// run has many.
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
        let plan = &self.shared.plan;
        let (shards, smaller) =
            (plan.shards, if plan.has(Part::Large) { 0 } else { plan.seed % 2 });
        BrokerOptions {
            shards: Some(shards),
            segment_bytes: SEGMENT_BYTES >> smaller,
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

    /// Starts the node, and lets clients come.
    pub(super) fn boot(&mut self) -> Result<(), Violation> {
        for _ in 0..ATTEMPTS {
            self.figures.boots += 1;
            let expected = self.before_boot();
            match self.open_node(&self.disk.clone()) {
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
        let ask = |broker: Arc<Broker>, shared: Arc<Shared>| async move {
            set_up(&broker, &shared.scene).await
        };
        let outcome = self.ask_for(ROUNDS, 1, ask);
        let is_up = outcome == Some(Ok(()));
        let has_fallen = std::mem::take(&mut self.fallen);
        let may_fail = self.disk.is_off() || (has_fallen && self.has_excuse());
        if !is_up && !may_fail {
            let what = format!("a node that has started does not come to serve: {outcome:?}");
            return Err(Violation::new(14, "recovery", what));
        }
        Ok(is_up && !has_fallen)
    }

    /// Asks the node something, and lets everything go on until it has answered. `None` if
    /// it does not.
    pub(super) fn ask<T, F>(&mut self, ask: impl FnOnce(Arc<Broker>, Arc<Shared>) -> F) -> Option<T>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.ask_for(super::ending::ROUNDS, 5, ask)
    }

    /// The same, in at most so many rounds of so many milliseconds.
    pub(super) fn ask_for<T, F>(
        &mut self,
        rounds: u32,
        ms: u64,
        ask: impl FnOnce(Arc<Broker>, Arc<Shared>) -> F,
    ) -> Option<T>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let Node { broker, runtime, .. } = self.node.as_ref()?;
        let told = Arc::new(OnceLock::new());
        let (tell, asked) = (told.clone(), ask(broker.clone(), self.shared.clone()));
        runtime.spawn(async move { drop(tell.set(asked.await)) });
        self.drive(rounds, ms, |_| told.get().is_some());
        told.get().cloned()
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
        if self.rng.chance(1, 4) {
            self.verify()?;
        }
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
        self.open_node(disk).map(|node| digests(&node))
    }

    /// A node on a disk. Nobody drives it yet.
    pub(super) fn open_node(&mut self, disk: &SimFiles) -> Result<Node, StartError> {
        let runtime = runtime();
        let guard = runtime.enter();
        let assembled = Broker::assemble(self.ground(disk), self.options());
        drop(guard);
        let (broker, parts, _) = assembled?;
        Ok(Node { parts, broker, runtime })
    }

    /// The digests of a node that runs.
    pub(super) fn live_digests(&self) -> Option<Vec<u64>> {
        self.node.as_ref().map(digests)
    }
}

/// The digest of the state of each shard, and of how much of its log is needed.
fn digests(node: &Node) -> Vec<u64> {
    let shards = node.parts.shards.iter().map(|part| part.runner.engine().shard());
    let of = |shard: &Shard| {
        let mut needed = DefaultHasher::new();
        for span in shard.spans() {
            (span.first.0, span.bytes, span.live).hash(&mut needed);
        }
        [shard.digest(), needed.finish()]
    };
    shards.flat_map(of).collect()
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
