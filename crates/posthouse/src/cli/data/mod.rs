//! `posthouse data`: a data directory, looked at without a node. The node may run.

mod dump;
mod stats;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, Output};

/// Verify, dump and count what is in a data directory, also while the node runs
#[derive(Debug, Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
    /// The data directory
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "POSTHOUSE_DATA",
        default_value = "./posthouse-data"
    )]
    data: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify everything that a checksum covers; ends with 1 if anything does not hold
    Verify,
    /// Print frames and records, oldest first
    Dump(dump::Dump),
    /// Count segments, frames, bytes, and messages
    Stats,
}

impl Data {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut out = Output::new(self.json);
        match self.command {
            Command::Verify => verify::run(&self.data, &mut out),
            Command::Dump(dump) => dump.run(&self.data, &mut out),
            Command::Stats => stats::run(&self.data, &mut out),
        }?;
        out.flush()
    }
}
