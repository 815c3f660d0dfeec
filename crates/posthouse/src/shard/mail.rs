//! What a shard of messages can be sent.

use std::sync::Arc;

use bytes::Bytes;
use posthouse_core::catalog::{Catalog, Change};
use posthouse_core::chunk::Miss;
use posthouse_core::queue::command::{Batch, Claim, Command, GivenBack, Held, Reply};
use posthouse_core::queue::{Delivery, Shard, Transactions};
use posthouse_core::{GroupId, Now, PartitionId, Position};
use tokio::sync::oneshot;

use super::Tx;
use super::hold::Hold;
use super::waiters::Waiter;
use crate::problem::Problem;
use crate::store::cache::BlockCache;
use crate::store::snapshot::Taken;

/// Room that is taken until whoever holds this lets go of it.
pub type Room = Option<Arc<tokio::sync::OwnedSemaphorePermit>>;

/// Mail for a shard.
#[derive(Debug)]
pub enum Mail {
    /// Something to decide.
    Command {
        /// What.
        command: Command,
        /// Who wants to know.
        tx: Tx<Reply>,
        /// The room that its bodies take on their way into the log.
        room: Room,
    },
    /// A consumer asks.
    Receive(Waiter),
    /// Something to look up.
    Question(Box<dyn Question>),
    /// Messages have been judged by their text.
    Judged {
        /// Which of them pass.
        claim: Claim,
        /// Who waits for them.
        waiter: Waiter,
    },
    /// A block has been fetched, or cannot be.
    Fetched {
        /// Which.
        miss: Miss,
        /// Its content, or what is wrong.
        data: Result<Bytes, String>,
    },
    /// The catalog has changed.
    Changed(Vec<Change>),
    /// Who of a group wanted a ticket that another shard had can have it.
    LookAgain(GroupId),
    /// A message could not be buried.
    BuryAgain {
        /// Its group.
        group: GroupId,
        /// Its partition.
        partition: PartitionId,
        /// Its position.
        position: Position,
    },
    /// A snapshot has been taken, or could not be.
    SnapshotTaken(Result<Taken, String>),
    /// Bodies have been carried: so many bytes.
    Carried(u64),
    /// A snapshot would let segments go.
    WantSnapshot,
    /// Files are about to be copied: none is freed as long as it holds.
    Hold(Arc<Hold>, oneshot::Sender<()>),
    /// The node stops soon: who waits for messages is answered.
    EndWaits,
    /// End: no new work, what waits is answered, a last snapshot.
    Stop(oneshot::Sender<()>),
}

impl Mail {
    /// In what order mail is opened: what frees something first, publishes last.
    pub fn class(&self) -> usize {
        match self {
            Mail::Command { command, .. } => match command {
                Command::Ack(_)
                | Command::Nack(_)
                | Command::Extend { .. }
                | Command::Cancel(_)
                | Command::Reschedule(_)
                | Command::Commit { .. }
                | Command::Rollback { .. } => 0,
                Command::Publish { .. } | Command::Prepare(_) | Command::Recur { .. } => 3,
                _ => 2,
            },
            Mail::Fetched { .. }
            | Mail::Changed(_)
            | Mail::LookAgain(_)
            | Mail::BuryAgain { .. }
            | Mail::SnapshotTaken(_)
            | Mail::Carried(_)
            | Mail::WantSnapshot
            | Mail::Hold(..)
            | Mail::EndWaits
            | Mail::Stop(_) => 0,
            Mail::Receive(_) | Mail::Judged { .. } => 1,
            Mail::Question(_) => 2,
        }
    }

    /// Whether it publishes messages that are to come later.
    pub fn is_later(&self) -> bool {
        let Mail::Command { command: Command::Publish { batches, .. }, .. } = self else {
            return false;
        };
        batches.iter().any(Batch::is_later)
    }

    /// How many bytes the command will put in the log at most, or nearly so.
    pub fn cost(&self, transactions: &Transactions) -> usize {
        const ITEM: usize = 64;
        let Mail::Command { command, .. } = self else { return ITEM };
        let taken_in = |batches: &[Batch]| -> usize {
            let of = |batch: &Batch| {
                let tags: usize = batch.drafts.iter().map(|d| d.tags.as_slice().len()).sum();
                batch.bodies.len() + batch.drafts.len() * ITEM + tags * 8 + ITEM
            };
            batches.iter().map(of).sum()
        };
        match command {
            Command::Publish { batches, .. } | Command::Recur { batches, .. } => taken_in(batches),
            Command::Prepare(what) => taken_in(&what.batches) + what.producer.len() + ITEM,
            // Bodies that are in the log no more are written again.
            Command::Commit { first } => transactions.get(*first).map_or(ITEM, |of| {
                of.bytes as usize + of.messages() as usize * ITEM + of.parts.len() * ITEM
            }),
            Command::TakeChecks { most, .. } => most * 32 + ITEM,
            Command::Ack(held) | Command::Extend { held, .. } => held.len() * 16 + ITEM,
            Command::Nack(given) => {
                given.iter().map(|given| given.reason.len() + ITEM).sum::<usize>() + ITEM
            }
            Command::Reschedule(items) => items.len() * 24 + ITEM,
            Command::Cancel(items) => items.len() * 16 + ITEM,
            Command::ForgetRecurring(gone) => gone.len() * 16 + ITEM,
            Command::Carry { items, bodies, .. } => bodies.len() + items.len() * 32 + ITEM,
            Command::Bury { copy, .. } => copy.body.len() + 4 * ITEM,
            Command::Redrive { letters, .. } => {
                letters.iter().map(|(_, copy)| copy.body.len() + 4 * ITEM).sum::<usize>() + ITEM
            }
            _ => ITEM,
        }
    }

    /// Takes messages back that were granted to somebody who is gone; `None` if there are
    /// none to be taken back.
    pub fn give_back(deliveries: &[Delivery]) -> Option<Mail> {
        // What was acknowledged with the grant is done.
        let held = deliveries.iter().filter(|delivery| delivery.visible_at.0 > 0);
        Mail::take_back(held.map(|delivery| Held {
            group: delivery.group,
            partition: delivery.partition,
            position: delivery.found.position,
            fence: delivery.fence,
        }))
    }

    /// The same for what somebody holds.
    pub fn take_back(held: impl IntoIterator<Item = Held>) -> Option<Mail> {
        let reason: Arc<str> = "the consumer was gone before it had the message".into();
        let given: Vec<GivenBack> = held
            .into_iter()
            .map(|held| GivenBack { held, delay_ms: Some(0), reason: reason.clone() })
            .collect();
        if given.is_empty() {
            return None;
        }
        let tx = oneshot::channel().0;
        Some(Mail::Command { command: Command::Nack(given), tx, room: None })
    }

    /// Answers that it will not be done.
    pub fn refuse(self, problem: Problem) {
        match self {
            Mail::Command { tx, .. } => drop(tx.send(Err(problem))),
            Mail::Receive(waiter) => waiter.refuse(problem),
            // It has its ticket already.
            Mail::Judged { waiter, .. } => drop(waiter.tx.send(Err(problem))),
            Mail::Question(question) => question.refuse(problem),
            Mail::Stop(tx) => {
                let _ = tx.send(());
            }
            Mail::Fetched { .. }
            | Mail::Changed(_)
            | Mail::LookAgain(_)
            | Mail::BuryAgain { .. }
            | Mail::EndWaits
            | Mail::Carried(_)
            | Mail::WantSnapshot
            | Mail::Hold(..)
            | Mail::SnapshotTaken(_) => {}
        }
    }
}

/// What a question may look at.
#[derive(Debug)]
pub struct View<'a> {
    /// The state.
    pub shard: &'a Shard,
    /// Blocks of chunks.
    pub chunks: &'a BlockCache,
    /// The catalog.
    pub catalog: &'a Catalog,
    /// The time.
    pub now: Now,
}

/// A look at the state. Asked again when a block that it needs has been fetched.
pub trait Question: Send + std::fmt::Debug {
    /// Looks, and keeps what it finds.
    ///
    /// # Errors
    /// A [`Miss`] if a block is needed first.
    fn ask(&mut self, view: &View<'_>) -> Result<(), Miss>;

    /// Lets the answer go: everything that it rests on is durable.
    fn answer(self: Box<Self>);

    /// Says that there will be no answer.
    fn refuse(self: Box<Self>, problem: Problem);
}

/// A question from a closure.
pub struct Look<T, F> {
    look: F,
    found: Option<T>,
    tx: Tx<T>,
}

impl<T, F> std::fmt::Debug for Look<T, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

impl<T, F> Look<T, F>
where
    T: Send + 'static,
    F: FnMut(&View<'_>) -> Result<T, Miss> + Send + 'static,
{
    /// Asks what `look` finds, for `tx`.
    pub fn question(look: F, tx: Tx<T>) -> Box<dyn Question> {
        Box::new(Look { look, found: None, tx })
    }
}

impl<T, F> Question for Look<T, F>
where
    T: Send + 'static,
    F: FnMut(&View<'_>) -> Result<T, Miss> + Send + 'static,
{
    fn ask(&mut self, view: &View<'_>) -> Result<(), Miss> {
        self.found = Some((self.look)(view)?);
        Ok(())
    }

    fn answer(self: Box<Self>) {
        if let Some(found) = self.found {
            drop(self.tx.send(Ok(found)));
        }
    }

    fn refuse(self: Box<Self>, problem: Problem) {
        drop(self.tx.send(Err(problem)));
    }
}
