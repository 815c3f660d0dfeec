//! `posthouse transaction`: messages that wait for a decision.

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::output::{Table, excerpt};
use super::remote::Remote;
use super::{Failure, Output};
use crate::json::{self, TransactionState};
use crate::units;

/// Transactions that are fetched together.
const PAGE: u32 = 200;

/// Look at transactions, and decide about them
#[derive(Debug, Args)]
pub struct Transaction {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List transactions that wait for a decision, oldest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Show a transaction, and what became of it
    Show {
        /// Its id
        id: String,
    },
    /// Let the messages of transactions come
    Commit {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Let the messages of transactions go: nobody will ever get them
    Rollback {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct List {
    /// Only those about which nobody is asked any more
    #[arg(long)]
    parked: bool,
    /// Only those of this producer
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    producer: String,
    /// Only those whose first message is for this topic
    #[arg(long, value_name = "TOPIC", default_value = "", hide_default_value = true)]
    topic: String,
    /// So many at most
    #[arg(long, value_name = "N", default_value = "100",
        value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

impl Transaction {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::List(which) => list(&client, which, out).await,
            Command::Show { id } => {
                let request = proto::TransactionRequest { id };
                let mut found = client.raw().get_transaction(request).await?.into_inner();
                let body = found.first_message.as_ref().map(|message| message.body.clone());
                found.first_message = found.first_message.filter(|_| out.is_json());
                let body = body.map_or_else(String::new, |body| excerpt(&body));
                out.show(&json::Transaction::from(found), |out, of| show(of, &body, out))
            }
            Command::Commit { ids } => {
                for id in ids {
                    let request = proto::TransactionRequest { id };
                    let done = client.raw().commit_transaction(request).await?.into_inner();
                    out.show(&json::Transaction::from(done), |out, of| decided(of, out))?;
                }
                Ok(())
            }
            Command::Rollback { ids } => {
                for id in ids {
                    let request = proto::TransactionRequest { id };
                    let done = client.raw().rollback_transaction(request).await?.into_inner();
                    out.show(&json::Transaction::from(done), |out, of| decided(of, out))?;
                }
                Ok(())
            }
        })
    }
}

fn name(state: TransactionState) -> &'static str {
    match state {
        TransactionState::Prepared => "prepared",
        TransactionState::Parked => "parked",
        TransactionState::Committed => "committed",
        TransactionState::RolledBack => "rolled back",
    }
}

fn decided(of: &json::Transaction, out: &mut Output) -> Result<(), Failure> {
    let messages = units::counted(of.message_count, "message");
    out.line(format_args!("{} {}: {messages}", of.id, name(of.state)))
}

async fn list(client: &Client, which: List, out: &mut Output) -> Result<(), Failure> {
    let List { parked, producer, topic, limit } = which;
    let mut table = Table::new("PREPARED ID STATE >CHECKS >MESSAGES PRODUCER TOPICS");
    let (mut left, mut after) = (limit, String::new());
    loop {
        let request = proto::ListTransactionsRequest {
            parked: parked.then_some(true),
            producer: producer.clone(),
            topic: topic.clone(),
            after,
            limit: left.min(PAGE.into()) as u32,
        };
        let page = client.raw().list_transactions(request).await?.into_inner();
        left -= (page.transactions.len() as u64).min(left);
        for of in page.transactions.into_iter().map(json::Transaction::from) {
            if out.is_json() {
                out.json(&of)?;
                continue;
            }
            table.row([
                units::show_time(of.prepared_at.0),
                of.id,
                name(of.state).to_owned(),
                format!("{}/{}", of.checks, of.max_checks),
                units::show_count(of.message_count),
                of.producer,
                of.topics.join(", "),
            ]);
        }
        after = page.next;
        if after.is_empty() || left == 0 {
            break;
        }
    }
    if out.is_json() { Ok(()) } else { out.table(&table) }
}

fn show(of: &json::Transaction, body: &str, out: &mut Output) -> Result<(), Failure> {
    let at = |at: Option<json::Time>| at.map_or_else(String::new, |at| units::show_time(at.0));
    out.line(format_args!("{} of {}: {}", of.id, of.producer, name(of.state)))?;
    out.line(format_args!("prepared at {}", units::show_time(of.prepared_at.0)))?;
    if of.decided_at.is_some() {
        out.line(format_args!("decided at {}", at(of.decided_at)))?;
    } else {
        let (checks, most) = (of.checks, of.max_checks);
        out.line(format_args!("asked about {checks} of {most} times"))?;
    }
    if of.next_check_at.is_some() {
        out.line(format_args!("asked about next at {}", at(of.next_check_at)))?;
    }
    if !body.is_empty() {
        out.line(format_args!("first message: {body}"))?;
    }
    let mut table = Table::new("ID TOPIC >PARTITION >POSITION COMES");
    for message in &of.messages {
        table.row([
            message.id.clone(),
            message.topic.clone(),
            message.partition.to_string(),
            message.position.map_or_else(String::new, |position| position.to_string()),
            at(message.deliver_at),
        ]);
    }
    out.table(&table)
}
