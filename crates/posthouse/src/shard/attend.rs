//! What a loop asks the shell to do, and the attendant who does it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use posthouse_core::catalog::Catalog;
use posthouse_core::chunk::Miss;
use posthouse_core::message::{self, Origin, Parts};
use posthouse_core::queue::Peek;
use posthouse_core::queue::clean::Candidate;
use posthouse_core::queue::command::{Burial, Claim, Command, Copied, Reply};
use posthouse_core::record::Draft;
use posthouse_core::{ShardId, UnixMs};
use posthouse_frame::{BodyBuf, BodyRef};
use posthouse_log::{LogReader, ReadError};
use tokio::sync::{mpsc, oneshot};

use super::clock::Time;
use super::mail::Mail;
use super::mailbox::Mailbox;
use super::snapshots::SnapshotStep;
use super::waiters::Waiter;
use crate::broker::directory::Directory;
use crate::problem::Problem;
use crate::store::chunks::ChunkFiles;

/// Something that a loop needs done outside.
#[derive(Debug)]
pub enum Effect {
    /// A block to be read.
    Fetch(Miss),
    /// Messages to be judged by what stands in them.
    Judge(Peek, Waiter),
    /// A message to be copied to the dead letters.
    Bury(Box<Burial>),
    /// Bodies to be carried to the log's tail, found when chunks of the index had been made
    /// anew so many times.
    Carry(u64, Vec<Candidate>),
    /// A step of a snapshot.
    Snapshot(SnapshotStep),
    /// Mail that the loop leaves for itself.
    Send(Mail),
}

/// How long to wait after something could not be read.
const PAUSE: Duration = Duration::from_secs(1);

/// Where calls that block on a disk are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// On threads of the runtime, so that nobody waits who need not.
    Threads,
    /// At once, where they are asked for: nothing has a thread, and the same calls come
    /// in the same order every time.
    Here,
}

impl Aside {
    /// Makes a call. `None` if the thread that made it has ended.
    pub async fn call<T: Send + 'static>(
        self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self {
            Aside::Threads => tokio::task::spawn_blocking(call).await.ok(),
            Aside::Here => Some(call()),
        }
    }
}

/// Reads bodies wherever they are, without blocking whoever asks.
#[derive(Debug)]
pub struct Bodies<R> {
    reader: R,
    aside: Aside,
}

impl<R: LogReader> Clone for Bodies<R> {
    fn clone(&self) -> Self {
        Bodies { reader: self.reader.clone(), aside: self.aside }
    }
}

impl<R: LogReader> Bodies<R> {
    /// Reads from `reader`; from the disk, aside.
    pub fn new(reader: R, aside: Aside) -> Self {
        Bodies { reader, aside }
    }

    /// Where calls are made that block.
    pub fn aside(&self) -> Aside {
        self.aside
    }

    /// The log's reading half.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// The contents of durable bodies, in the order asked for.
    pub async fn read(&self, places: Vec<BodyRef>) -> Vec<Result<Bytes, ReadError>> {
        let mut found: Vec<Option<Bytes>> =
            places.iter().map(|place| self.reader.cached(*place)).collect();
        let missing: Vec<BodyRef> =
            places.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(p, _)| *p).collect();
        if missing.is_empty() {
            return found.into_iter().flatten().map(Ok).collect();
        }
        let reader = self.reader.clone();
        let count = missing.len();
        let read = self.aside.call(move || reader.bodies(&missing)).await;
        let mut read = read.unwrap_or_default().into_iter();
        debug_assert!(read.len() == count, "a body for each place");
        found
            .iter_mut()
            .map(|found| match found.take() {
                Some(body) => Ok(body),
                None => read.next().unwrap_or_else(|| {
                    Err(ReadError::Io {
                        file: "the log".into(),
                        offset: 0,
                        error: "the reading thread has ended".into(),
                    })
                }),
            })
            .collect()
    }
}

/// Does what one shard's loop asks for.
#[derive(Debug)]
pub struct Attendant<R: LogReader> {
    /// The shard.
    pub shard: ShardId,
    /// Where answers go.
    pub mailbox: Mailbox<Mail>,
    /// Its chunk files.
    pub chunks: ChunkFiles,
    /// Its bodies.
    pub bodies: Bodies<R>,
    /// The catalog.
    pub catalog: Arc<RwLock<Catalog>>,
    /// Who makes topics.
    pub directory: Arc<Directory>,
    /// Who writes its snapshots.
    pub snapshots: std::sync::mpsc::Sender<SnapshotStep>,
    /// What time it is.
    pub time: Arc<dyn Time>,
}

impl<R: LogReader> Clone for Attendant<R> {
    fn clone(&self) -> Self {
        Attendant {
            shard: self.shard,
            mailbox: self.mailbox.clone(),
            chunks: self.chunks.clone(),
            bodies: self.bodies.clone(),
            catalog: self.catalog.clone(),
            directory: self.directory.clone(),
            snapshots: self.snapshots.clone(),
            time: self.time.clone(),
        }
    }
}

impl<R: LogReader> Attendant<R> {
    /// Attends until the loop has ended.
    pub async fn attend(self, mut effects: mpsc::UnboundedReceiver<Effect>) {
        while let Some(effect) = effects.recv().await {
            match effect {
                Effect::Snapshot(step) => drop(self.snapshots.send(step)),
                Effect::Send(mail) => self.send(mail),
                Effect::Fetch(miss) => drop(tokio::spawn(self.clone().fetch(miss))),
                Effect::Judge(peek, waiter) => {
                    drop(tokio::spawn(self.clone().judge(peek, waiter)));
                }
                Effect::Carry(folds, found) => drop(tokio::spawn(self.clone().carry(folds, found))),
                Effect::Bury(burial) => drop(tokio::spawn(self.clone().bury(*burial))),
            }
        }
    }

    fn send(&self, mail: Mail) {
        // A closed box: the shard has ended, and nobody needs it any more.
        let _ = self.mailbox.send(mail.class(), mail);
    }

    async fn fetch(self, miss: Miss) {
        let chunks = self.chunks.clone();
        let read = self.bodies.aside().call(move || chunks.block(miss)).await;
        let data = match read {
            Some(Ok(data)) => Ok(data),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the reading thread has ended".into()),
        };
        if let Err(error) = &data {
            tracing::error!("{error}");
            tokio::time::sleep(PAUSE).await;
        }
        self.send(Mail::Fetched { miss, data });
    }

    async fn judge(self, peek: Peek, waiter: Waiter) {
        let places = peek.candidates.iter().map(|found| found.body).collect();
        let bodies = self.bodies.read(places).await;
        let mut pass = Vec::new();
        let mut upto = peek.upto;
        for (found, body) in peek.candidates.iter().zip(bodies) {
            match body {
                Ok(content) => {
                    let is_off = posthouse_frame::planted("judged-off-by-one")
                        && found.position + 1 == peek.upto;
                    if self.passes(&peek, &content) && !is_off {
                        pass.push(found.position);
                    }
                    // A long filter over large headers takes its time; others get theirs.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    // What cannot be read cannot be judged: the group stops in front
                    // of it, and whoever waits is told.
                    tracing::error!("{error}");
                    upto = found.position;
                    break;
                }
            }
        }
        if upto == peek.from && pass.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let claim = Claim {
            group: peek.group,
            partition: peek.partition,
            from: peek.from,
            upto,
            pass,
            max: waiter.max,
            max_bytes: waiter.max_bytes,
            consumer: waiter.consumer.clone(),
            lease_ms: waiter.lease_ms,
            auto_ack: waiter.auto_ack,
        };
        self.send(Mail::Judged { claim, waiter });
    }

    fn passes(&self, peek: &Peek, content: &Bytes) -> bool {
        if posthouse_frame::planted("text-unread") {
            return true;
        }
        let Ok((parts, _)) = message::decode(content) else { return true };
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        let (Some(group), Some(topic)) =
            (catalog.group(peek.group), catalog.topic_of(peek.partition))
        else {
            return false;
        };
        let group = catalog.effective(group);
        group.filters(&topic.name, catalog.secret()).any(|filter| filter.passes(&parts))
    }

    /// Reads bodies, and has them carried.
    async fn carry(self, folds: u64, found: Vec<Candidate>) {
        let read = self.bodies.read(found.iter().map(|item| item.body).collect()).await;
        let total: usize = found.iter().map(|item| item.body.len as usize).sum();
        let mut bodies = BodyBuf::with_capacity(total);
        let mut items = Vec::with_capacity(found.len());
        for (item, body) in found.into_iter().zip(read) {
            match body {
                Ok(content) => {
                    bodies.seal(|out| out.extend_from_slice(&content));
                    items.push(item);
                }
                // Its message is, too.
                Err(ReadError::Gone { .. }) => {}
                // It stays where it is, and its segment with it.
                Err(error) => tracing::error!("a message cannot be carried: {error}"),
            }
        }
        let (tx, rx) = oneshot::channel();
        let command = Command::Carry { folds, items, bodies };
        self.send(Mail::Command { command, tx, room: None });
        let bytes = match rx.await {
            Ok(Ok(Reply::Count(bytes))) => bytes,
            _ => 0,
        };
        self.send(Mail::Carried(bytes));
    }

    /// Copies a message to the dead letters of its group.
    async fn bury(self, burial: Burial) {
        let (group, partition, position) = (burial.group, burial.partition, burial.found.position);
        if let Err(problem) = self.try_bury(burial).await {
            if problem.code != "gone" {
                tracing::error!(
                    "message {position} of partition {partition} of group {group} cannot be moved to the dead letters: {problem}"
                );
            }
            tokio::time::sleep(PAUSE).await;
            self.send(Mail::BuryAgain { group, partition, position });
        }
    }

    async fn try_bury(&self, burial: Burial) -> Result<(), Problem> {
        let to = self.directory.dead_letters(burial.group).await?;
        let Some(partition) = to.partitions.iter().find(|p| p.shard == self.shard) else {
            return Err(Problem::internal("the dead-letter topic has no partition here"));
        };
        let mut bodies = self.bodies.read(vec![burial.found.body]).await;
        let content = bodies.remove(0).map_err(Problem::unreadable)?;
        let copy = letter(
            &self.catalog.read().unwrap_or_else(PoisonError::into_inner),
            &burial,
            &content,
            UnixMs(self.time.wall_ms()),
        )?;
        let to = (partition.id, to.id);
        let (tx, rx) = oneshot::channel();
        let command = Command::Bury { burial, to, copy };
        self.send(Mail::Command { command, tx, room: None });
        match rx.await.map_err(|_| Problem::stopping())?? {
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Ok(()),
        }
    }
}

/// The message as the dead-letter topic holds it: with its life before. `content` is what it
/// is where it was published; it dies `now`.
///
/// # Errors
/// If the content cannot be read.
pub fn letter(
    catalog: &Catalog,
    burial: &Burial,
    content: &Bytes,
    now: UnixMs,
) -> Result<Copied, Problem> {
    let (mut parts, payload) = message::decode(content).map_err(Problem::unreadable)?;
    let topic = catalog.topic_of(burial.partition);
    let origin = parts.origin.take();
    let name = topic.map_or("", |topic| &topic.name);
    let index = topic.and_then(|topic| topic.index_of(burial.partition));
    // A message that was redriven keeps where it first came from.
    let first = origin.as_ref();
    parts.origin = Some(Origin {
        topic: first.map_or(name, |o| o.topic),
        partition: first.map_or(index.unwrap_or(0), |o| o.partition),
        position: first.map_or(burial.found.position, |o| o.position),
        published_at: first.map_or(burial.found.at, |o| o.published_at),
        reason: burial.reason,
        attempts: burial.attempts,
        died_at: now,
        error: &burial.error,
    });
    Ok(copy(&parts, &payload, burial.found.key, burial.found.tags.clone()))
}

/// Seals a copy of a message. It has no publish id and no time to live: what moves it
/// decides about both.
pub fn copy(
    parts: &Parts<'_>,
    payload: &[u8],
    key: u64,
    tags: posthouse_core::index::TagSet,
) -> Copied {
    let mut body = BodyBuf::with_capacity(payload.len() + 256);
    let len = body.seal(|out| parts.encode(payload, out));
    Copied { body, draft: Draft { len, key, tags, ..Draft::default() } }
}
