//! A backup of the running node: a copy of its store in another directory, taken beside
//! the load.
//!
//! While files are copied none is freed ([`Hold`]). That has bounds: it ends when the disk
//! of the data directory is nearly full, and when nothing was copied for a while; then the
//! backup fails, and the node goes on.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use posthouse_core::catalog::Action;
use posthouse_frame::FrameNo;
use posthouse_log::LogReader as _;
use posthouse_log::local::LocalReader;
use tokio::sync::Semaphore;

use super::{Broker, Caller, On};
use crate::problem::{Kind, Problem};
use crate::shard::clock::wall_ms;
use crate::shard::hold::Hold;
use crate::store::StoreError;
use crate::store::copy::{Copied, Copy, Point, Progress, newest_manifest};
use crate::store::look::{Look, Part};
use crate::store::manifest::Manifest;

/// How long nothing may be copied before the node frees files again.
const STUCK: Duration = Duration::from_secs(60);

/// How often it is tried to see the shards while the catalog stands still. A look takes
/// microseconds, a change of the catalog a sync.
const LOOKS: usize = 10_000;

/// The backup that is being taken, if one is.
#[derive(Debug)]
pub(super) struct Backups {
    one: Arc<Semaphore>,
    watched: Mutex<Option<Watched>>,
}

#[derive(Debug)]
struct Watched {
    hold: Arc<Hold>,
    steps: u64,
    since: Instant,
}

impl Default for Backups {
    fn default() -> Self {
        Backups { one: Arc::new(Semaphore::new(1)), watched: Mutex::default() }
    }
}

/// A backup that was taken.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Where it is.
    pub directory: PathBuf,
    /// The number of the store, in hexadecimal.
    pub store: String,
    /// Files, bytes, and what does not hold in it.
    pub copied: Copied,
    /// How long it took.
    pub took: Duration,
}

/// Lets go when the backup is over, or whoever asked for it has gone away.
struct LetGo(Arc<Hold>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl Broker {
    /// Copies the store to `directory`, a path of the node's own file system that is empty
    /// or not there. Everything that was acknowledged before the call is in it. If the
    /// caller goes away, the copy ends; what is there then says that it is not whole.
    ///
    /// # Errors
    /// See [`Problem`]; among others if a backup is being taken already.
    pub async fn backup(&self, caller: &Caller, directory: &str) -> Result<Backup, Problem> {
        caller.check(Action::Manage, On::Node)?;
        let began = Instant::now();
        let to = self.backup_directory(directory)?;
        let permit = self.backups.one.clone().try_acquire_owned().map_err(|_| {
            Problem::new(Kind::Conflict, "backup_under_way", "a backup is being taken already")
                .with_hint("wait for it to end")
                .with_retry(10_000)
        })?;
        let hold = Arc::new(Hold::default());
        let _let_go = LetGo(hold.clone());
        self.watch(&hold);
        self.directory.hold(&hold).await?;
        let look = Look::new(self.space.files().clone(), &self.options.data)?;
        let shards: Vec<LocalReader> =
            self.shards.iter().map(|shard| shard.bodies.reader().clone()).collect();
        let readers = (self.meta_reader.clone(), shards);
        let (target, held) = (to.clone(), hold.clone());
        let copied = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            take(&look, &readers, &target, &held)
        });
        let copied = copied.await.map_err(|error| Problem::internal(error.to_string()))??;
        let backup =
            Backup { directory: to, store: self.info.store.clone(), copied, took: began.elapsed() };
        tracing::info!(
            "{} asked for a backup: {} files, {} MiB in {}, {:?}; {} places in it are damaged",
            caller.name(),
            backup.copied.files,
            backup.copied.bytes >> 20,
            backup.directory.display(),
            backup.took,
            backup.copied.found,
        );
        Ok(backup)
    }

    /// The directory that was asked for, if it can be one.
    fn backup_directory(&self, directory: &str) -> Result<PathBuf, Problem> {
        let wrong = |limit: &str| Problem::invalid("directory", directory, limit);
        let path = Path::new(directory);
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(is_plain) {
            return Err(wrong("an absolute path on the node's file system, without `..`")
                .with_hint("name a directory that is empty, or that is not there"));
        }
        let absolute = std::path::absolute(&self.options.data);
        let data = absolute.unwrap_or_else(|_| self.options.data.clone());
        if path.starts_with(&data) || data.starts_with(path) {
            return Err(wrong("it must not lie in the data directory, nor around it"));
        }
        Ok(path.to_owned())
    }

    fn watch(&self, hold: &Arc<Hold>) {
        let watched = Watched { hold: hold.clone(), steps: 0, since: Instant::now() };
        *self.backups.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
    }

    /// Ends a backup that keeps the node from freeing files when it has to. Called once a
    /// second.
    pub(super) fn watch_backup(&self) {
        let mut slot = self.backups.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watched) = slot.as_mut() else { return };
        let steps = watched.hold.steps();
        if steps != watched.steps {
            (watched.steps, watched.since) = (steps, Instant::now());
        }
        let is_stuck = watched.since.elapsed() >= STUCK;
        if (self.space.is_full() || is_stuck) && watched.hold.cut() {
            tracing::warn!("the backup was ended, so that files can be freed");
        }
        if !watched.hold.holds() {
            *slot = None;
        }
    }
}

fn take(
    look: &Look,
    readers: &(LocalReader, Vec<LocalReader>),
    to: &Path,
    hold: &Hold,
) -> Result<Copied, StoreError> {
    let mut step = |progress: Progress| -> Result<(), StoreError> {
        if !hold.step() && !progress.is_verifying {
            return Err(ended(hold));
        }
        Ok(())
    };
    let mut copy = Copy::begin(look, to, wall_ms(), &mut step)?;
    copy.parts(&points(look, readers)?)?;
    if !hold.let_go() {
        return Err(ended(hold));
    }
    copy.finish(true)
}

fn ended(hold: &Hold) -> StoreError {
    StoreError::Ended {
        why: match hold.is_cut() {
            true => "the data directory's disk is nearly full, or nothing was copied for a minute",
            false => "whoever asked for it has gone away",
        },
    }
}

/// As far as each log goes into the copy: the catalog's and those of shards at one time,
/// so that the shards know nothing that the catalog does not know yet, and the other way.
fn points(
    look: &Look,
    (meta, shards): &(LocalReader, Vec<LocalReader>),
) -> Result<Vec<Point>, StoreError> {
    let mut found: Vec<(Part, Manifest)> = Vec::new();
    for part in look.parts() {
        let manifest = newest_manifest(look, &part)?;
        found.push((part, manifest));
    }
    for _ in 0..LOOKS {
        let catalog = meta.state().durable();
        let each: Vec<FrameNo> = shards.iter().map(|log| log.state().durable()).collect();
        if meta.state().durable() != catalog {
            continue;
        }
        let frames = std::iter::once(catalog).chain(each);
        let point = |((part, manifest), upto)| Point { part, manifest, upto };
        return Ok(found.into_iter().zip(frames).map(point).collect());
    }
    Err(StoreError::Ended { why: "topics, groups or users were changed all the time" })
}
