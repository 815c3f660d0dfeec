//! A machine with a node on it, and everything that befalls them.

mod damage;
mod ending;
mod faults;
mod life;
mod upgrade;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthouse::broker::{Broker, Chance, Parts};
use posthouse_log::files::sim::SimFiles;
use posthouse_log::local::LocalLog;
use posthouse_log::rng::Rng;
use tokio::runtime::Runtime;

use crate::check::Violation;
use crate::clients::{Kept, Life, Memory, Shared};
use crate::history::{History, What};
use crate::plan::{Part, Plan};
use crate::report::Figures;
use crate::scene::Scene;
use crate::time::SimTime;
use upgrade::Old;

const DAY_MS: u64 = 86_400_000;

/// A node that runs. Dropped in this order when it ends: what is not written by then is
/// not written.
#[derive(Debug)]
struct Node {
    parts: Parts,
    broker: Arc<Broker>,
    runtime: Runtime,
}

/// A run under way.
#[derive(Debug)]
pub struct World {
    rng: Rng,
    disk: SimFiles,
    time: Arc<SimTime>,
    shared: Arc<Shared>,
    lives: Vec<(Life, Kept)>,
    node: Option<Node>,
    secret: [u8; 32],
    /// Loops whose syncs take long: until this step.
    slow: Vec<u32>,
    /// The disk has its room again at this step.
    full_until: Option<u32>,
    /// Of 1000 milliseconds, the wall clock makes so many.
    drift: u64,
    step: u32,
    /// What was there in an older format, before the run.
    old: Option<Old>,
    /// The power is going to fail.
    power_fails: bool,
    /// It fails when answers have left and not everything on the disk is synced: what they
    /// rest on has to be.
    answers_are_last: bool,
    /// It fails while a snapshot of this loop, whose log hangs, is written.
    snapshot_is_last: Option<usize>,
    /// A log has failed, and the node has to end.
    fallen: bool,
    /// What is counted.
    pub figures: Figures,
}

impl World {
    /// A machine on which nothing has happened.
    pub fn new(plan: Plan, is_told: bool) -> World {
        let mut rng = Rng::new(plan.seed);
        let time = Arc::new(SimTime::new(plan.shards, rng.below(DAY_MS)));
        let scene = Scene::of(&plan);
        let lives = Life::of(&plan, &scene);
        let lives = lives.into_iter().map(|life| {
            let memory = Memory { rng: rng.split(), sent: Vec::new(), deals: Vec::new() };
            (life, Arc::new(Mutex::new(memory)))
        });
        let lives = lives.collect();
        let mut secret = [0; 32];
        secret.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
        let disk = SimFiles::new(rng.next_u64());
        disk.short_io(plan.has(Part::Short));
        let drift = if plan.has(Part::Drift) { *rng.pick(&[900, 990, 1010, 1100]) } else { 1000 };
        let loops = usize::from(plan.shards) + 1;
        let history = History::new(time.clone(), is_told);
        let shared = Shared {
            plan,
            scene,
            history,
            pending: Mutex::default(),
            deals: Mutex::default(),
            rules: Mutex::default(),
            draining: Default::default(),
            drained: Default::default(),
        };
        World {
            rng,
            disk,
            time,
            shared: Arc::new(shared),
            lives,
            node: None,
            secret,
            slow: vec![0; loops],
            full_until: None,
            drift,
            step: 0,
            old: None,
            power_fails: false,
            answers_are_last: false,
            snapshot_is_last: None,
            fallen: false,
            figures: Figures::default(),
        }
    }

    fn has(&self, part: Part) -> bool {
        self.shared.plan.has(part)
    }

    fn note(&self, what: What) {
        self.shared.history.note(0, what);
    }

    /// The history, when the run is over.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Topics and groups of the run.
    pub fn scene(&self) -> &Scene {
        &self.shared.scene
    }

    /// Carries the run out, to its end.
    ///
    /// # Errors
    /// What the world itself saw that must not be. What clients saw is in the history.
    pub fn run(&mut self) -> Result<(), Violation> {
        if self.has(Part::Short) {
            self.strike("short");
        }
        if self.has(Part::Upgrade) {
            self.install_old()?;
        }
        self.boot()?;
        let steps = self.shared.plan.steps;
        while self.step < steps {
            self.step += 1;
            self.fault()?;
            self.one_step();
            self.get_up()?;
        }
        self.end()
    }

    /// A number that tells this process from others.
    fn chance(&mut self) -> Chance {
        Chance { store: 0x51b, secret: self.secret, writer: self.rng.next_u64() as u32 }
    }

    /// Time passes, and clients live in it.
    fn pass(&mut self, ms: u64) {
        let wall = (ms * self.drift).div_ceil(1000);
        self.time.pass(ms, wall);
        self.figures.virtual_ms += ms;
        if let Some(node) = &self.node {
            let nap = async { tokio::time::sleep(Duration::from_millis(ms)).await };
            node.runtime.block_on(nap);
        }
    }

    /// One step of something.
    fn one_step(&mut self) {
        self.figures.steps += 1;
        let roll = self.rng.below(100);
        let loops = usize::from(self.shared.plan.shards) + 1;
        // The catalog has less to do.
        let which = match self.rng.chance(1, 6) {
            true => loops - 1,
            false => self.rng.below(loops as u64 - 1) as usize,
        };
        self.shared.history.step(roll << 8 | which as u64);
        match roll {
            0..34 => self.turn(which),
            34..58 if self.answers_are_last && self.rng.chance(1, 2) => self.log_ahead(which),
            34..58 => self.log_step(which),
            58..66 => self.write_snapshot(which),
            66..70 => self.tend(which),
            70..72 => self.idle(which),
            72 if self.has(Part::Leaps) => {
                let ms = 200 + self.rng.below(1500);
                self.pass(ms);
            }
            73..79 => self.log_ahead(which),
            _ => {
                let ms = 1 + self.rng.below(12);
                self.pass(ms);
            }
        }
    }

    /// A node that has come to its end starts again.
    fn get_up(&mut self) -> Result<(), Violation> {
        if self.disk.is_off() {
            // The others were at work meanwhile, and what they said reaches clients.
            (0..self.slow.len()).for_each(|which| self.turn(which));
            self.pass(1);
            self.fallen = false;
            return self.lose_power();
        }
        if std::mem::take(&mut self.fallen) {
            self.figures.failed += 1;
            // What clients were told still reaches them.
            self.pass(1);
            self.down("failed");
            self.disk.clear_faults();
            return self.boot();
        }
        Ok(())
    }

    fn turn(&mut self, which: usize) {
        self.miss(which);
        let Some(node) = &mut self.node else { return };
        let ended = match node.parts.shards.get_mut(which) {
            Some(part) => {
                let (rest, now) = part.runner.turn(Some(Duration::ZERO));
                self.time.saw(which, now);
                rest.ended
            }
            None => node.parts.meta.runner.turn(Some(Duration::ZERO)).0.ended,
        };
        // A loop that was stopped ends when all have; one that failed takes the node along.
        let failed = match node.parts.shards.get(which) {
            Some(part) => part.runner.engine().failed().is_some(),
            None => node.parts.meta.runner.engine().failed().is_some(),
        };
        self.fallen |= ended && failed;
    }

    /// The log that belongs to a loop, unless the node is down or the disk hangs.
    fn log(&mut self, which: usize) -> Option<&mut LocalLog> {
        if self.slow[which] > self.step {
            return None;
        }
        let parts = &mut self.node.as_mut()?.parts;
        Some(match parts.shards.get_mut(which) {
            Some(part) => part.runner.engine_mut().log_mut(),
            None => parts.meta.runner.engine_mut().log_mut(),
        })
    }

    fn log_step(&mut self, which: usize) {
        let wrote = self.log(which).is_some_and(LocalLog::step);
        self.figures.frames += u64::from(wrote);
        if wrote && self.answers_are_last && self.disk.has_unsynced() {
            self.answers_are_last = false;
            self.disk.cut_power_after(0);
        }
    }

    /// Parts of a step: frames are written while a sync runs, which ends later.
    fn log_ahead(&mut self, which: usize) {
        if self.rng.chance(1, 2) {
            if let Some(log) = self.log(which) {
                log.step_write();
                log.step_sync();
            }
            self.turn(which);
        }
        if let Some(log) = self.log(which) {
            log.step_write();
        }
        if self.answers_are_last {
            self.log_step(which);
        }
    }

    fn tend(&mut self, which: usize) {
        let Some(node) = &mut self.node else { return };
        match node.parts.shards.get_mut(which) {
            Some(part) => part.runner.engine_mut().log_mut().tend(),
            None => node.parts.meta.runner.engine_mut().log_mut().tend(),
        };
    }

    fn idle(&mut self, which: usize) {
        if let Some(log) = self.log(which) {
            log.idle();
        }
    }

    fn write_snapshot(&mut self, which: usize) {
        let before = self.disk.counts().dir_syncs;
        let Some(node) = &mut self.node else { return };
        let wrote = match node.parts.shards.get_mut(which) {
            Some(part) => part.writer.step(),
            None => node.parts.meta.writer.step(),
        };
        self.figures.snapshot_steps += u64::from(wrote);
        // What is in place has a name that is synced.
        let is_in_place = wrote && self.disk.counts().dir_syncs > before;
        if is_in_place && self.snapshot_is_last == Some(which) && self.rng.chance(1, 2) {
            self.snapshot_is_last = None;
            self.disk.cut_power_after(0);
        }
    }

    /// Everything that has to do something does it, until `done`; at most so many rounds,
    /// each of so many milliseconds. `false` if it is not done: too many, or the node has
    /// fallen.
    fn drive(&mut self, rounds: u32, ms: u64, mut done: impl FnMut(&World) -> bool) -> bool {
        let loops = usize::from(self.shared.plan.shards) + 1;
        for _ in 0..rounds {
            if done(self) {
                return true;
            }
            for which in 0..loops {
                self.turn(which);
                self.log_step(which);
                self.write_snapshot(which);
                self.tend(which);
            }
            self.pass(ms);
            if self.disk.is_off() || self.fallen {
                return false;
            }
        }
        done(self)
    }

    /// Whether every frame is durable, and every answer has left.
    fn is_quiet(&self) -> bool {
        let Some(node) = &self.node else { return false };
        node.parts.shards.iter().all(|part| part.runner.engine().is_quiet())
    }
}
