//! Starting and ending a node.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use posthouse_core::ShardId;
use posthouse_core::catalog::Catalog;
use posthouse_core::queue::Shard;
use posthouse_log::files::Files;
use posthouse_log::local::{Drive, Durability, LocalLog, LocalOptions, Recovery};
use posthouse_log::{Log as _, LogState};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::backup::Backups;
use super::directory::{CatalogLimits, Directory};
use super::quota::Quotas;
use super::space::SpaceGuard;
use super::{Broker, Failure, ShardHandle, publish};
use crate::problem::Problem;
use crate::shard::attend::{Aside, Attendant, Bodies, Effect};
use crate::shard::clock::{Clock, SystemClocks, Time};
use crate::shard::engine::{Engine, EngineOptions};
use crate::shard::mail::Mail;
use crate::shard::mailbox::Mailbox;
use crate::shard::meta::{MetaEngine, MetaMail};
use crate::shard::metrics::ShardMetrics;
use crate::shard::run::{self, Loop, OnFailure, Runner, SnapshotWriter, Tell};
use crate::store::open::{Found, Opened, Replayed, find, prepare};
use crate::store::{META_SHARD, NewStore, Store, StoreError};

/// Settings of a node's heart; doors have theirs.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// The data directory.
    pub data: PathBuf,
    /// When a frame counts as durable.
    pub durability: Durability,
    /// Shards of a new store; `None`: 1 up to 4 cores, 2 up to 8, 4 above.
    pub shards: Option<u16>,
    /// Bytes of a segment of a shard's log.
    pub segment_bytes: u64,
    /// Memory for all caches and buffers together, in bytes.
    pub memory: u64,
    /// Whether topics and groups are made on first use; `None`: while no user is
    /// defined.
    pub auto_create: Option<bool>,
    /// Whether somebody must always be left who may manage the node and has a token,
    /// because anyone could reach it.
    pub keeps_manager: bool,
    /// Bytes of the disk that are kept free; `None`: see [`SpaceGuard`].
    pub disk_reserve: Option<u64>,
    /// The most topics and groups.
    pub limits: CatalogLimits,
    /// A snapshot is due after so many bytes of frames.
    pub snapshot_log_bytes: u64,
}

impl BrokerOptions {
    /// The defaults, in `data`.
    pub fn new(data: PathBuf) -> Self {
        BrokerOptions {
            data,
            durability: Durability::Sync,
            shards: None,
            segment_bytes: 64 << 20,
            memory: 512 << 20,
            auto_create: None,
            keeps_manager: false,
            disk_reserve: None,
            limits: CatalogLimits::default(),
            snapshot_log_bytes: 512 << 20,
        }
    }

    /// What one of `shards` gets of the memory: a quarter of it for blocks of chunks, a
    /// sixteenth for new messages and an eighth for the log's tail.
    fn engine(&self, shards: u64) -> EngineOptions {
        EngineOptions {
            cache_bytes: (self.memory / 4 / shards) as usize,
            young_bytes: (self.memory / 16 / shards) as usize,
            snapshot_log_bytes: self.snapshot_log_bytes,
            ..EngineOptions::default()
        }
    }
}

/// What starting found.
#[derive(Debug)]
pub struct Report {
    /// Of the catalog's log.
    pub meta: (Recovery, Replayed),
    /// Of each shard's.
    pub shards: Vec<(Recovery, Replayed)>,
    /// How long it took.
    pub took: Duration,
}

/// What a node stands on: everything that is not the same every time.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The disk.
    pub files: Arc<dyn Files>,
    /// The time.
    pub time: Arc<dyn Time>,
    /// Numbers that nobody can guess.
    pub chance: Chance,
    /// Where calls that block are made. [`Aside::Here`]: the logs have no threads either,
    /// and are driven by whoever has the [`Parts`].
    pub aside: Aside,
}

/// Random numbers, fresh for each start.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    /// Names the store, if it is new.
    pub store: u64,
    /// Its secret, if it is new.
    pub secret: [u8; 32],
    /// Tells this process from another that claims the same log.
    pub writer: u32,
}

impl Ground {
    /// A disk, and the system's clocks, numbers and threads.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn of_the_system(files: Arc<dyn Files>) -> Result<Ground, StartError> {
        let chance = Chance {
            store: u64::from_le_bytes(random()?),
            secret: random()?,
            writer: u32::from_le_bytes(random()?),
        };
        Ok(Ground { files, time: SystemClocks::shared(), chance, aside: Aside::Threads })
    }
}

/// The loops of a node, to be run.
#[derive(Debug)]
pub struct Parts {
    /// The catalog's.
    pub meta: Part<MetaEngine<LocalLog>>,
    /// Those of the shards.
    pub shards: Vec<Part<Engine<LocalLog>>>,
    failure: Arc<Failure>,
    /// Holds the lock on the data directory as long as they run.
    store: Store,
}

/// A loop, and who writes its snapshots.
#[derive(Debug)]
pub struct Part<E: Loop> {
    /// The loop.
    pub runner: Runner<E>,
    /// Who writes its snapshots.
    pub writer: SnapshotWriter,
}

impl Parts {
    fn start(self) -> std::io::Result<Threads> {
        let Parts { meta, shards, failure, store } = self;
        let on_failure: OnFailure = Arc::new(move |what| failure.report(what));
        let mut threads = Threads { loops: Vec::new(), snapshots: Vec::new(), store };
        threads.add("meta".into(), "meta-snap".into(), meta, &on_failure)?;
        for (id, part) in shards.into_iter().enumerate() {
            threads.add(format!("shard-{id}"), format!("snap-{id}"), part, &on_failure)?;
        }
        Ok(threads)
    }
}

/// The threads of a node.
#[derive(Debug)]
pub(super) struct Threads {
    loops: Vec<JoinHandle<LogState>>,
    snapshots: Vec<JoinHandle<()>>,
    store: Store,
}

impl Threads {
    fn add<E: Loop>(
        &mut self,
        name: String,
        snapshots: String,
        part: Part<E>,
        on_failure: &OnFailure,
    ) -> std::io::Result<()> {
        self.loops.push(run::spawn(name, part.runner, on_failure.clone())?);
        self.snapshots.push(run::spawn_snapshots(snapshots, part.writer)?);
        Ok(())
    }
}

/// Bytes of a segment of the catalog's log, unless those of the shards have fewer.
const META_SEGMENT_BYTES: u64 = 8 << 20;

/// The most bytes of a frame of the catalog's log.
const META_FRAME_BYTES: usize = 6 << 20;

fn default_shards() -> u16 {
    match std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
        0..=4 => 1,
        5..=8 => 2,
        _ => 4,
    }
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StartError::Random(e.to_string()))?;
    Ok(bytes)
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// No thread.
    #[error("the system gives no thread: {0}")]
    Thread(#[from] std::io::Error),
    /// What a crash left could not be finished.
    #[error("{0}")]
    Problem(#[from] Problem),
}

impl Broker {
    /// Opens the data directory, and starts. Needs a runtime to be running.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        files: Arc<dyn Files>,
        options: BrokerOptions,
    ) -> Result<(Arc<Broker>, Report), StartError> {
        let ground = Ground::of_the_system(files)?;
        let (broker, parts, report) = Broker::assemble(ground, options)?;
        let threads = parts.start()?;
        *broker.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(threads);
        broker.settle_in().await?;
        Ok((broker, report))
    }

    /// Opens the data directory, and gives what has to be run. Needs a runtime to be
    /// running. Once the parts run, [`Broker::settle_in`] before anybody is served.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn assemble(
        ground: Ground,
        options: BrokerOptions,
    ) -> Result<(Arc<Broker>, Parts, Report), StartError> {
        let started = Instant::now();
        let Ground { files, time, chance, .. } = ground.clone();
        let new = || NewStore {
            shards: options.shards.unwrap_or_else(default_shards).clamp(1, 64),
            number: chance.store,
            secret: chance.secret,
            now_ms: time.wall_ms(),
        };
        let mut store = Store::open(files.clone(), &options.data, new)?;
        let shards = store.info.shards;

        prepare(&store)?;
        let meta = find_meta(&store, &options, &ground)?;
        let mut found = Vec::new();
        for shard in 0..shards {
            found.push(find_shard(&store, &options, &ground, shard)?);
        }
        // All of it can be used: only now is anything changed.
        store.take_over()?;
        let meta = meta.begin()?;
        let mut opened = Vec::new();
        for shard in found {
            opened.push(shard.begin()?);
        }
        let published = published(&store, &meta.machine)?;
        let catalog = Arc::new(RwLock::new(published));
        let report = Report {
            meta: (meta.recovery.clone(), meta.replayed),
            shards: opened.iter().map(|o| (o.recovery.clone(), o.replayed)).collect(),
            took: started.elapsed(),
        };

        let failure = Arc::new(Failure::default());
        let meta_box = Mailbox::default();
        let boxes: Vec<Mailbox<Mail>> = (0..shards).map(|_| Mailbox::default()).collect();
        let directory = Arc::new(Directory::new(
            catalog.clone(),
            meta_box.clone(),
            boxes.clone(),
            options.limits,
        ));
        let (info, secret) = (store.info.clone(), store.secret);
        let meta_reader = LocalLog::reader(&meta.log);
        let meta = assemble_meta(meta, catalog.clone(), meta_box, &ground);
        let (mut handles, mut parts) = (Vec::new(), Vec::new());
        for (opened, mailbox) in opened.into_iter().zip(boxes) {
            let shell = Shell {
                id: ShardId(handles.len() as u16),
                mailbox,
                catalog: catalog.clone(),
                directory: directory.clone(),
                engine: options.engine(shards.into()),
                ground: ground.clone(),
            };
            let (handle, part) = assemble_shard(opened, shell);
            handles.push(handle);
            parts.push(part);
        }
        let space = SpaceGuard::new(files, options.data.clone(), options.disk_reserve);
        let broker = Arc::new(Broker {
            info,
            secret,
            directory,
            shards: handles,
            meta_reader,
            backups: Backups::default(),
            quotas: Quotas::default(),
            bytes_in_flight: Arc::new(Semaphore::new(publish::all_permits())),
            turn: AtomicU64::new(0),
            seen: Arc::default(),
            subscribing: tokio::sync::Mutex::default(),
            space: Arc::new(space),
            user_changes: Arc::default(),
            checks: tokio::sync::watch::Sender::default(),
            recurrence: super::recurring::Recurrence::default(),
            is_stopping: AtomicBool::new(false),
            failure: failure.clone(),
            threads: Mutex::default(),
            started,
            time,
            options,
        });
        Ok((broker, Parts { meta, shards: parts, failure, store }, report))
    }

    /// Finishes what a crash has left unfinished, and begins to keep house. The parts
    /// must be running.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn settle_in(self: &Arc<Self>) -> Result<(), Problem> {
        self.directory.reconcile().await?;
        tokio::spawn(Broker::keep_house(Arc::downgrade(self)));
        tokio::spawn(Broker::look_for_checks(Arc::downgrade(self)));
        tokio::spawn(Broker::keep_recurring(Arc::downgrade(self)));
        Ok(())
    }

    /// Takes no new work from now on, and answers who waits for messages.
    pub fn begin_stop(&self) {
        if !self.is_stopping.swap(true, Ordering::AcqRel) {
            self.bytes_in_flight.close();
            for shard in &self.shards {
                let mail = Mail::EndWaits;
                // A closed box: the loop has ended already.
                let _ = shard.mailbox.send(mail.class(), mail);
            }
        }
    }

    /// Ends the loops, each with a last snapshot. They must be running.
    pub async fn end_loops(&self) {
        self.begin_stop();
        let mut done = Vec::new();
        for shard in &self.shards {
            let (tx, rx) = oneshot::channel();
            let mail = Mail::Stop(tx);
            // A closed box: the loop has ended already.
            let _ = shard.mailbox.send(mail.class(), mail);
            done.push(rx);
        }
        for rx in done {
            let _ = rx.await;
        }
        // The catalog last: shards may need it to the end.
        self.directory.end_meta().await;
    }

    /// Ends: takes no new work, answers who waits, takes a last snapshot. Returns how
    /// the logs ended, or what was not over in time.
    ///
    /// # Errors
    /// [`crate::problem::Kind::Unavailable`] if it is not over in `patience`.
    pub async fn stop(&self, patience: Duration) -> Result<(), Problem> {
        self.begin_stop();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(threads) = threads else { return Ok(()) };
        let over = async {
            self.end_loops().await;
            let _ = tokio::task::spawn_blocking(move || {
                threads.loops.into_iter().for_each(|thread| drop(thread.join()));
                threads.snapshots.into_iter().for_each(|thread| drop(thread.join()));
                drop(threads.store);
            })
            .await;
        };
        tokio::time::timeout(patience, over).await.map_err(|_| {
            let detail = format!("it has not come to its end in {} s", patience.as_secs());
            Problem::new(crate::problem::Kind::Unavailable, "stop_timeout", detail)
        })
    }
}

fn log_options(
    store: &Store,
    options: &BrokerOptions,
    ground: &Ground,
    shard: u16,
) -> LocalOptions {
    LocalOptions {
        writer: ground.chance.writer,
        durability: options.durability,
        drive: match ground.aside {
            Aside::Threads => Drive::Threads,
            Aside::Here => Drive::Steps,
        },
        ..LocalOptions::new(store.number, shard)
    }
}

fn find_meta(
    store: &Store,
    options: &BrokerOptions,
    ground: &Ground,
) -> Result<Found<Catalog>, StoreError> {
    let log = LocalOptions {
        segment_bytes: META_SEGMENT_BYTES.min(options.segment_bytes),
        max_frame_bytes: META_FRAME_BYTES.min(options.segment_bytes as usize / 2),
        tail_bytes: 1 << 20,
        spares: 1,
        ..log_options(store, options, ground, META_SHARD)
    };
    find(store, &store.meta_dir(), Catalog::new(store.secret), log)
}

fn find_shard(
    store: &Store,
    options: &BrokerOptions,
    ground: &Ground,
    shard: u16,
) -> Result<Found<Shard>, StoreError> {
    let shards = u64::from(store.info.shards);
    let log = LocalOptions {
        segment_bytes: options.segment_bytes,
        tail_bytes: (options.memory / 8 / shards) as usize,
        max_frame_bytes: (10 << 20).min(options.segment_bytes as usize / 2),
        ..log_options(store, options, ground, shard)
    };
    find(store, &store.shard_dir(shard), Shard::new(ShardId(shard)), log)
}

/// A copy of the catalog, for everybody to read.
fn published(store: &Store, state: &Catalog) -> Result<Catalog, StoreError> {
    use posthouse_core::catalog::Change;
    let mut copy = Catalog::new(store.secret);
    state.topics().for_each(|topic| copy.adopt(&Change::Topic(topic.clone())));
    state.groups().for_each(|group| copy.adopt(&Change::Group(group.clone())));
    state.users().for_each(|user| copy.adopt(&Change::User(user.clone())));
    state.all_recurring().for_each(|of| copy.adopt(&Change::Recurring(of.clone())));
    Ok(copy)
}

fn assemble_meta(
    opened: Opened<Catalog>,
    catalog: Arc<RwLock<Catalog>>,
    mailbox: Mailbox<MetaMail>,
    ground: &Ground,
) -> Part<MetaEngine<LocalLog>> {
    let Opened { machine, log, recovery, snapshots, clocks, .. } = opened;
    let at = (snapshots.newest_frame(), recovery.epoch);
    let engine = MetaEngine::new(machine, catalog, log, at);
    let (tx, rx) = mpsc::unbounded_channel();
    let clock = Clock::resume(ground.time.clone(), clocks);
    let bell = mailbox.clone();
    let (steps_tx, steps_rx) = std::sync::mpsc::channel();
    let tell: Tell = Box::new(move |taken| {
        let mail = MetaMail::SnapshotTaken(taken);
        // A closed box: the loop has ended, and needs to know nothing any more.
        let _ = bell.send(mail.class(), mail);
    });
    tokio::spawn(forward_snapshots(rx, steps_tx));
    Part {
        runner: Runner::new(engine, clock, mailbox, tx),
        writer: SnapshotWriter::new(snapshots, steps_rx, tell),
    }
}

/// The catalog asks for nothing but snapshots.
async fn forward_snapshots(
    mut effects: mpsc::UnboundedReceiver<Effect>,
    steps: std::sync::mpsc::Sender<crate::shard::snapshots::SnapshotStep>,
) {
    while let Some(effect) = effects.recv().await {
        if let Effect::Snapshot(step) = effect {
            drop(steps.send(step));
        }
    }
}

struct Shell {
    id: ShardId,
    mailbox: Mailbox<Mail>,
    catalog: Arc<RwLock<Catalog>>,
    directory: Arc<Directory>,
    engine: EngineOptions,
    ground: Ground,
}

fn assemble_shard(opened: Opened<Shard>, shell: Shell) -> (ShardHandle, Part<Engine<LocalLog>>) {
    let Opened { machine, log, recovery, chunks, snapshots, clocks, .. } = opened;
    let Shell { id, mailbox, catalog, directory, ground, .. } = shell;
    let bodies = Bodies::new(LocalLog::reader(&log), ground.aside);
    let metrics = Arc::new(ShardMetrics::default());
    let at = (snapshots.newest_frame(), recovery.epoch);
    let engine = Engine::new(machine, log, catalog.clone(), shell.engine, at, metrics.clone());
    let (tx, rx) = mpsc::unbounded_channel();
    let clock = Clock::resume(ground.time.clone(), clocks);
    let runner = Runner::new(engine, clock, mailbox.clone(), tx);
    let (steps_tx, steps_rx) = std::sync::mpsc::channel();
    let bell = mailbox.clone();
    let tell: Tell = Box::new(move |taken| {
        let mail = Mail::SnapshotTaken(taken);
        // A closed box: the loop has ended, and needs to know nothing any more.
        let _ = bell.send(mail.class(), mail);
    });
    let writer = SnapshotWriter::new(snapshots, steps_rx, tell);
    let attendant = Attendant {
        shard: id,
        mailbox: mailbox.clone(),
        chunks,
        bodies: bodies.clone(),
        catalog,
        directory,
        snapshots: steps_tx,
        time: ground.time,
    };
    tokio::spawn(attendant.attend(rx));
    (ShardHandle { id, mailbox, bodies, metrics }, Part { runner, writer })
}
