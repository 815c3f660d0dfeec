//! Clients: what they do follows from their seed, and what they remember outlives the
//! node.

pub mod consumer;
pub mod operator;
pub mod planner;
pub mod producer;
pub mod publisher;
pub mod scheduler;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use posthouse::broker::Broker;
use posthouse_log::rng::Rng;

use crate::history::{History, Message};
use crate::plan::{Part, Plan};
use crate::scene::Scene;

/// What all clients share.
#[derive(Debug)]
pub struct Shared {
    /// The run.
    pub plan: Plan,
    /// Topics and groups.
    pub scene: Scene,
    /// Where everything is noted.
    pub history: History,
    /// Messages that are to come, which schedulers move.
    pub pending: Mutex<Vec<scheduler::Pending>>,
    /// Transactions that somebody may decide about, or ask for.
    pub deals: Mutex<Vec<String>>,
    /// The names of messages that recur.
    pub rules: Mutex<Vec<String>>,
    /// Set when faults have stopped: nothing new, and everything is settled.
    pub draining: AtomicBool,
    /// Messages given out since the node was healed.
    pub drained: AtomicU64,
}

/// One client, as a node that runs knows it.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its number.
    pub who: u32,
    /// The node.
    pub broker: Arc<Broker>,
    /// What it shares with others.
    pub shared: Arc<Shared>,
}

impl Client {
    async fn rest(&self, rng: &mut Rng, from_ms: u64, to_ms: u64) {
        let ms = from_ms + rng.below(to_ms - from_ms + 1);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn has(&self, part: Part) -> bool {
        self.shared.plan.has(part)
    }

    fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }
}

/// What a client remembers over restarts of the node.
#[derive(Debug)]
pub struct Memory {
    /// Its choices.
    pub rng: Rng,
    /// Messages with publish ids that it may publish again.
    pub sent: Vec<Message>,
    /// Transactions with publish ids that it may prepare again.
    pub deals: Vec<producer::Deal>,
}

/// A client's memory, shared with the task that is its life.
pub type Kept = Arc<Mutex<Memory>>;

/// Draws from a memory that nobody else uses at the time.
pub fn draw<T>(kept: &Kept, act: impl FnOnce(&mut Memory) -> T) -> T {
    act(&mut kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The lives that clients lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Publishes.
    Publisher,
    /// Consumes as a group, by its place in the scene.
    Consumer(usize),
    /// Publishes messages that come later, moves them and calls them back.
    Scheduler,
    /// Prepares transactions, decides about them, or does not.
    Producer,
    /// Lets messages recur.
    Planner,
    /// Gives dead letters another chance.
    Operator,
}

impl Life {
    /// Who takes part in a run.
    pub fn of(plan: &Plan, scene: &Scene) -> Vec<Life> {
        let mut lives = vec![Life::Publisher, Life::Publisher];
        for group in 0..scene.groups.len() {
            lives.extend([Life::Consumer(group), Life::Consumer(group)]);
        }
        if plan.has(Part::Later) {
            lives.extend([Life::Scheduler, Life::Scheduler]);
        }
        if plan.has(Part::Transactions) {
            lives.extend([Life::Producer, Life::Producer]);
        }
        if plan.has(Part::Recurring) {
            lives.push(Life::Planner);
        }
        if plan.has(Part::Redrive) {
            lives.push(Life::Operator);
        }
        lives
    }

    /// Leads it, as long as the node runs.
    pub async fn lead(self, client: Client, kept: Kept) {
        match self {
            Life::Publisher => publisher::lead(client, kept).await,
            Life::Consumer(group) => consumer::lead(client, kept, group).await,
            Life::Scheduler => scheduler::lead(client, kept).await,
            Life::Producer => producer::lead(client, kept).await,
            Life::Planner => planner::lead(client, kept).await,
            Life::Operator => operator::lead(client, kept).await,
        }
    }
}
