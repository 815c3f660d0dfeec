//! `posthouse bench`: what a node does on this machine, beside what its disk does.
//!
//! Every figure is measured next to the disk's own: after each round of load the same
//! directory is written to in pieces of the size that the node's frames had, one
//! fdatasync each. Rounds of all doors take turns, so that a machine that is slow for
//! a while is slow for all of them; what is shown is the median of the rounds.

mod broker;
mod disk;
mod figure;
mod grpc;
mod http;
mod lane;
mod load;
mod node;
pub mod scale;
mod works;

use std::path::PathBuf;
use std::time::Duration;

pub use figure::Figure;
pub use works::Work;

use crate::cli::Failure;

/// How a node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The broker, in this process.
    InProcess,
    /// gRPC streams, to a process of its own.
    Grpc,
    /// HTTP/1.1 with JSON, to a process of its own.
    Http,
}

impl Door {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Door::InProcess => "in-process",
            Door::Grpc => "grpc",
            Door::Http => "http",
        }
    }
}

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The ways in, in the order they take turns.
    pub doors: Vec<Door>,
    /// Bytes of a body.
    pub size: usize,
    /// Messages of one publish, and at most of one receive.
    pub batch: usize,
    /// Connections that publish.
    pub producers: usize,
    /// Connections that consume.
    pub consumers: usize,
    /// Topics, which producers take in turn.
    pub topics: usize,
    /// Publishes that a producer has under way.
    pub depth: usize,
    /// How long a round of load is measured.
    pub time: Duration,
    /// Rounds.
    pub rounds: usize,
    /// The setting `durability` of the nodes.
    pub durability: String,
    /// Where data is kept meanwhile: on the disk that is measured. Everything in it
    /// goes afterwards.
    pub dir: PathBuf,
}

/// Measures, and hands each figure over as soon as it stands.
///
/// # Errors
/// What a node refuses, or the system.
pub async fn run(work: Work, plan: &Plan, report: &mut dyn FnMut(Figure)) -> Result<(), Failure> {
    works::run(work, plan, report).await
}
