//! The command line.
//!
//! Every command ends with an exit code that scripts can use: 0 done; 1 a fault of the
//! node or of its data; 2 the request makes no sense; 3 something is not there, or not
//! in the state that is needed; 4 not allowed; 5 not now, later perhaps; 6 nobody knows
//! whether it was done. One that was interrupted ends with 130.
//!
//! `serve` and `bench` run nodes. Everything else talks to one as any client does
//! (`remote`), or looks at a data directory without one (`data`): nothing here reaches
//! into a broker.

mod args;
pub mod bench;
mod browse;
mod completions;
mod config;
mod consume;
mod data;
mod dead;
mod failure;
mod group;
mod lines;
mod message;
mod meter;
mod node;
mod output;
mod publish;
mod recurring;
mod remote;
pub mod scale;
mod schedule;
pub mod serve;
mod stop;
mod top;
mod topic;
mod transaction;
mod user;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::{Failure, INTERRUPTED};
use output::Output;

/// A message queue in one binary.
#[derive(Debug, Parser)]
#[command(name = "posthouse", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Publish(publish::Publish),
    Consume(Box<consume::Consume>),
    Topic(topic::Topic),
    Group(group::Group),
    Dead(dead::Dead),
    Message(message::Message),
    Schedule(schedule::Schedule),
    Transaction(transaction::Transaction),
    Recurring(recurring::Recurring),
    User(user::User),
    Node(node::Node),
    Top(top::Top),
    Config(config::Config),
    Data(data::Data),
    Bench(bench::Bench),
    Completions(completions::Completions),
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Publish(publish) => publish.run(),
        Command::Consume(consume) => consume.run(),
        Command::Topic(topic) => topic.run(),
        Command::Group(group) => group.run(),
        Command::Dead(dead) => dead.run(),
        Command::Message(message) => message.run(),
        Command::Schedule(schedule) => schedule.run(),
        Command::Transaction(transaction) => transaction.run(),
        Command::Recurring(recurring) => recurring.run(),
        Command::User(user) => user.run(),
        Command::Node(node) => node.run(),
        Command::Top(top) => top.run(),
        Command::Config(config) => config.run(),
        Command::Data(data) => data.run(),
        Command::Bench(bench) => bench.run(),
        Command::Completions(completions) => completions.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                output::note(&failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// A runtime for a command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
