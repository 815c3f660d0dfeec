//! The command line.
//!
//! Every command ends with an exit code that scripts can use: 0 done; 1 a fault of the
//! node or of its data; 2 the request makes no sense; 3 something is not there, or not
//! in the state that is needed; 4 not allowed; 5 not now, later perhaps; 6 nobody knows
//! whether it was done.

pub mod bench;
pub mod scale;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::broker::StartError;
use crate::doors::listen::ListenError;
use crate::problem::Problem;

/// A message queue in one binary.
#[derive(Debug, Parser)]
#[command(name = "posthouse", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    Serve(serve::Serve),
    Bench(bench::Bench),
}

/// What ends a command.
#[derive(Debug)]
pub struct Failure {
    /// What to tell.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure { text: error.to_string(), code: 1 }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure { code: problem.kind.exit_code(), text: problem.to_string() }
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Failure { text: error.to_string(), code: 1 }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Problem(problem) => problem.into(),
            other => Failure { text: other.to_string(), code: 1 },
        }
    }
}

impl Failure {
    /// The request makes no sense.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: 2 }
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Bench(bench) => bench.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("posthouse: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// A runtime for a command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
