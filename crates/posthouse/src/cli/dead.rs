//! `posthouse dead`: the dead letters of a group.

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::message::{attributes, print_body};
use super::meter::Meter;
use super::output::{Table, confirm};
use super::remote::Remote;
use super::{Failure, Output};
use crate::json;
use crate::problem::Kind;
use crate::units;

/// Letters that are fetched together.
const PAGE: u32 = 200;

/// Look at, redrive and purge the dead letters of a group
#[derive(Debug, Args)]
pub struct Dead {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// The group
        group: String,
        /// So many at most
        #[arg(long, value_name = "N", default_value = "100",
            value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Show one dead letter
    Show {
        /// The group
        group: String,
        /// Its id
        id: String,
        /// Only the body, as it is
        #[arg(long)]
        body: bool,
    },
    /// Give dead letters another chance: the group gets them again
    Redrive {
        #[command(flatten)]
        which: Which,
        /// At most so many a second
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
    },
    /// Let dead letters go
    Purge {
        #[command(flatten)]
        which: Which,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// The group
    group: String,
    /// Ids of dead letters
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Dead {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::List { group, limit } => list(&client, group, limit, out).await,
            Command::Show { group, id, body } => show(&client, group, id, body, out).await,
            Command::Redrive { which, rate } => redrive(&client, which, rate, out).await,
            Command::Purge { which, yes } => purge(&client, which, yes, out).await,
        })
    }
}

async fn page(
    client: &Client,
    group: &str,
    after: String,
    limit: u32,
) -> Result<proto::ListDeadLettersResponse, Failure> {
    let request = proto::ListDeadLettersRequest { group: group.to_owned(), after, limit };
    Ok(client.raw().list_dead_letters(request).await?.into_inner())
}

async fn list(client: &Client, group: String, limit: u64, out: &mut Output) -> Result<(), Failure> {
    let mut table = Table::new("ID DIED >ATTEMPTS TOPIC KEY REASON");
    let (mut left, mut after) = (limit, String::new());
    while left > 0 {
        let page = page(client, &group, after, left.min(PAGE.into()) as u32).await?;
        left -= (page.letters.len() as u64).min(left);
        for letter in page.letters {
            let letter = json::Message::from(letter);
            if out.is_json() {
                out.json(&letter)?;
            } else {
                table.row(row(letter));
            }
        }
        after = page.next;
        if after.is_empty() {
            break;
        }
    }
    if out.is_json() { Ok(()) } else { out.table(&table) }
}

fn row(letter: json::Message) -> [String; 6] {
    let key = letter.key.unwrap_or_default();
    match letter.origin {
        Some(origin) => [
            letter.id,
            units::show_second(origin.died_at.0),
            origin.attempts.to_string(),
            origin.topic,
            key,
            if origin.error.is_empty() { origin.reason } else { origin.error },
        ],
        None => [letter.id, String::new(), String::new(), letter.topic, key, String::new()],
    }
}

async fn show(
    client: &Client,
    group: String,
    id: String,
    body: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut after = String::new();
    let letter = loop {
        let page = page(client, &group, after, PAGE).await?;
        if let Some(letter) = page.letters.into_iter().find(|letter| letter.id == id) {
            break letter;
        }
        after = page.next;
        if after.is_empty() {
            let text = format!("group {group:?} has no dead letter {id}");
            return Err(Failure::new(Kind::NotFound, text));
        }
    };
    let bytes = letter.body.clone();
    if body {
        return out.bytes(&bytes);
    }
    out.show(&json::Message::from(letter), |out, letter| {
        attributes(letter).print(out)?;
        out.line("")?;
        print_body(out, &bytes, format_args!("({} bytes that are no text)", bytes.len()))
    })
}

async fn redrive(
    client: &Client,
    which: Which,
    rate: Option<u32>,
    out: &mut Output,
) -> Result<(), Failure> {
    let Which { group, ids, all } = which;
    let wanted = ids.len() as u64;
    let meter = Meter::bytes(None);
    let mut total = 0;
    // One request comes back after a while, whatever is left.
    let left = loop {
        let request =
            proto::RedriveDeadLettersRequest { group: group.clone(), ids: ids.clone(), all, rate };
        let done = client.raw().redrive_dead_letters(request).await?.into_inner();
        total += done.redriven;
        meter.set(total, || format!("{} left", units::show_count(done.left)));
        if done.left == 0 || done.redriven == 0 || (!all && total >= wanted) {
            break done.left;
        }
    };
    drop(meter);
    out.show(&json::LettersDone { redriven: total, left }, |out, done| {
        out.line(format_args!(
            "redriven {}, {} left",
            units::counted(done.redriven, "dead letter"),
            units::show_count(done.left)
        ))
    })?;
    missing(&group, wanted, total, out)
}

async fn purge(client: &Client, which: Which, yes: bool, out: &mut Output) -> Result<(), Failure> {
    let Which { group, ids, all } = which;
    let wanted = ids.len() as u64;
    let what = match all {
        true => "all dead letters".to_owned(),
        false => units::counted(wanted, "dead letter"),
    };
    confirm(&format!("Let {what} of group {group:?} go?"), yes)?;
    let request = proto::PurgeDeadLettersRequest { group: group.clone(), ids, all };
    let purged = client.raw().purge_dead_letters(request).await?.into_inner().purged;
    out.show(&json::Purged { purged }, |out, done| {
        out.line(format_args!("purged {}", units::counted(done.purged, "dead letter")))
    })?;
    missing(&group, wanted, purged, out)
}

/// Says if some of the letters that were named were none.
fn missing(group: &str, wanted: u64, done: u64, out: &mut Output) -> Result<(), Failure> {
    if done >= wanted {
        return Ok(());
    }
    out.flush()?;
    let text = format!("group {group:?} has no dead letters with {} of these ids", wanted - done);
    Err(Failure::new(Kind::NotFound, text))
}
