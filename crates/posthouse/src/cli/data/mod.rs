//! `posthouse data`: a data directory, without a node. To be looked at the node may run.

mod copy;
mod dump;
mod repair;
mod stats;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, Output};

/// Verify, dump and count what is in a data directory, also while the node runs; back it up
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
    /// Copy everything to a directory that a node can be started on, with a list that says what is
    /// in it; verified
    Backup(copy::Backup),
    /// Say what keeps a node from starting, what can be done about it without a backup, and what
    /// that loses
    Repair(repair::Repairs),
    /// Move a store: copy everything to another directory
    Copy(copy::From),
}

impl Data {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut out = Output::new(self.json);
        match self.command {
            Command::Verify => verify::run(&self.data, &mut out),
            Command::Dump(dump) => dump.run(&self.data, &mut out),
            Command::Stats => stats::run(&self.data, &mut out),
            Command::Repair(repair) => repair.run(&self.data, &mut out),
            Command::Backup(backup) => backup.run(&self.data, &mut out),
            Command::Copy(copy) => copy.run(&mut out),
        }?;
        out.flush()
    }
}
