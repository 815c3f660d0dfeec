//! Printing messages: a body a line, or an object a line.

use std::io::Write as _;
use std::time::Duration;

use posthouse_client::proto;
use tokio::sync::{mpsc, oneshot};

use super::session::{Asked, Session, Verdict};
use super::tell_stale;
use crate::cli::{Failure, Output};
use crate::json;

/// Messages that are printed and acknowledged together.
const BATCH: u64 = 256;

/// How long what is being printed has to get through when it was told to stop.
const LINGER: Duration = Duration::from_secs(1);

/// Said of messages that nobody has seen.
const NOT_PRINTED: &str = "the consumer has ended before it was printed";

/// Said of messages that somebody has only looked at.
const LOOKED_AT: &str = "somebody has looked at it";

/// Prints until there are no more, or it is told to stop.
pub(super) async fn run(
    session: &mut Session,
    only_looks: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let done = print_all(session, only_looks, out).await;
    let reason = if only_looks { LOOKED_AT } else { NOT_PRINTED };
    session.give_all_back(reason).await;
    done?;
    match session.stop.is_told() && !session.follow {
        true => Err(Failure::interrupted("interrupted")),
        false => Ok(()),
    }
}

async fn print_all(
    session: &mut Session,
    only_looks: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let printer = Printer::start(out.is_json());
    loop {
        let messages = match session.ask(BATCH).await? {
            Asked::Messages(messages) => messages,
            Asked::Nothing => continue,
            Asked::End => return Ok(()),
        };
        // What came with the signal is not begun any more.
        if session.stop.is_told() && !session.auto_ack() {
            return Ok(());
        }
        let receipts: Vec<String> =
            messages.iter().map(|message| message.receipt.clone()).collect();
        let mut printing = std::pin::pin!(printer.print(messages));
        tokio::select! {
            printed = &mut printing => printed?,
            () = session.stop.told() => match tokio::time::timeout(LINGER, printing).await {
                Ok(printed) => printed?,
                // Nobody reads what is printed, and that may go on for ever.
                Err(_) => return Ok(()),
            },
        }
        if !only_looks && !session.auto_ack() {
            let lost = session.settler().settle(receipts, &Verdict::Ack).await?;
            tell_stale(&lost, out)?;
        }
    }
}

type Job = (Vec<proto::ReceivedMessage>, oneshot::Sender<Result<(), Failure>>);

/// Prints on a thread of its own: one that waits for its reader must not keep the process
/// from ending, nor leases from being extended.
struct Printer {
    jobs: mpsc::Sender<Job>,
}

impl Printer {
    fn start(is_json: bool) -> Printer {
        let (jobs, mut rx) = mpsc::channel::<Job>(1);
        std::thread::spawn(move || {
            while let Some((messages, done)) = rx.blocking_recv() {
                // Nobody waits any more if it was told to stop.
                drop(done.send(print(messages, is_json)));
            }
        });
        Printer { jobs }
    }

    /// Prints messages, and waits until they have been handed over.
    async fn print(&self, messages: Vec<proto::ReceivedMessage>) -> Result<(), Failure> {
        let (done, printed) = oneshot::channel();
        let gone = || Failure { text: "the printing thread has ended".into(), code: 1 };
        self.jobs.send((messages, done)).await.map_err(|_| gone())?;
        printed.await.map_err(|_| gone())?
    }
}

fn print(messages: Vec<proto::ReceivedMessage>, is_json: bool) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for message in messages {
            if is_json {
                serde_json::to_writer(&mut out, &json::Message::from(message))?;
            } else {
                out.write_all(&message.body)?;
            }
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    write().map_err(|error| Failure::output(&error))
}
