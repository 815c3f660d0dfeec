//! `posthouse data backup` and `posthouse data copy`.

use std::path::{Path, PathBuf};

use clap::Args;
use posthouse_client::proto;
use posthouse_log::files::RealFiles;

use crate::cli::meter::Meter;
use crate::cli::output::plain;
use crate::cli::remote::Remote;
use crate::cli::{Failure, Output};
use crate::json::{self, Damage, Duration};
use crate::problem::Kind;
use crate::shard::clock::wall_ms;
use crate::store::StoreError;
use crate::store::copy::{Copied, Copy, Stopped};
use crate::units;

/// Where a backup goes, and of what.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// A directory that is empty, or not there
    directory: PathBuf,
    /// Ask the node that listens there; the directory is then on its file system. Without it
    /// the data directory is copied, on which no node may run
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The token of a user who may manage the node
    #[arg(long, value_name = "TOKEN", env = "POSTHOUSE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A certificate in PEM that the node's is trusted by; else those of the web
    #[arg(long, value_name = "FILE", env = "POSTHOUSE_CA")]
    ca: Option<PathBuf>,
}

/// From where to where.
#[derive(Debug, Args)]
pub(super) struct From {
    /// The data directory, or a backup; no node may run on it
    from: PathBuf,
    /// A directory that is empty, or not there
    to: PathBuf,
}

impl Backup {
    pub(super) fn run(self, data: &Path, out: &mut Output) -> Result<(), Failure> {
        let Some(url) = self.url else {
            let hint = "; or ask the node for the backup, with --url";
            let backup = copy(data, &self.directory, true).map_err(|failure| match failure {
                CopyFailure::Locked(failure) => Failure { text: failure.text + hint, ..failure },
                CopyFailure::Other(failure) => failure,
            })?;
            return show(&backup, "the backup", out);
        };
        let directory = std::path::absolute(&self.directory)?;
        let Some(directory) = directory.to_str().map(str::to_owned) else {
            let text = format!("{} is not UTF-8: the node cannot be told", directory.display());
            return Err(Failure::usage(text));
        };
        let remote = Remote::to(url, self.token, self.ca, out.is_json());
        let backup: json::Backup = crate::cli::runtime()?.block_on(async {
            let client = remote.connect().await?;
            let asked = client.raw().backup(proto::BackupRequest { directory }).await?;
            Ok::<_, Failure>(asked.into_inner().into())
        })?;
        show(&backup, "the backup", out)
    }
}

impl From {
    pub(super) fn run(self, out: &mut Output) -> Result<(), Failure> {
        let copied = copy(&self.from, &self.to, false).map_err(CopyFailure::failure)?;
        show(&copied, "the copy", out)
    }
}

enum CopyFailure {
    /// A node uses what is to be copied.
    Locked(Failure),
    Other(Failure),
}

impl CopyFailure {
    fn failure(self) -> Failure {
        match self {
            CopyFailure::Locked(failure) | CopyFailure::Other(failure) => failure,
        }
    }
}

fn copy(from: &Path, to: &Path, is_backup: bool) -> Result<json::Backup, CopyFailure> {
    let began = std::time::Instant::now();
    let stopped = Stopped::open(RealFiles::shared(), from).map_err(|error| match error {
        StoreError::Locked { .. } => CopyFailure::Locked(error.into()),
        error => CopyFailure::Other(error.into()),
    })?;
    let other = |error: StoreError| CopyFailure::Other(error.into());
    let meter = Meter::bytes(Some(0));
    let mut step = |progress: crate::store::copy::Progress| {
        meter.set_total(progress.total);
        let what = if progress.is_verifying { "verifying" } else { "copying" };
        meter.set(progress.bytes, || what.to_owned());
        Ok(())
    };
    let mut making = Copy::begin(&stopped.look, to, wall_ms(), &mut step).map_err(other)?;
    making.parts(&stopped.points).map_err(other)?;
    let copied = making.finish(is_backup).map_err(other)?;
    drop(meter);
    let Copied { files, bytes, findings, found } = copied;
    Ok(json::Backup {
        directory: to.display().to_string(),
        store: stopped.look.info.store.clone(),
        files: files as u64,
        bytes,
        took: Duration(began.elapsed().as_millis() as u64),
        damaged: found as u64,
        damage: findings
            .into_iter()
            .map(|found| Damage { file: found.file, offset: found.offset, what: found.what })
            .collect(),
    })
}

fn show(backup: &json::Backup, what: &str, out: &mut Output) -> Result<(), Failure> {
    out.show(backup, |out, backup| {
        for damage in &backup.damage {
            let at = damage.offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
            out.line(plain(&format!("DAMAGED {}{at}: {}", damage.file, damage.what)))?;
        }
        let size = units::show_size(backup.bytes);
        let files = units::counted(backup.files, "file");
        let took = units::show_age(backup.took.0);
        out.line(plain(&format!("{files}, {size} in {}, {took}", backup.directory)))
    })?;
    if backup.damaged == 0 {
        return Ok(());
    }
    out.flush()?;
    let found = units::counted(backup.damaged, "place");
    Err(Failure::new(
        Kind::Corrupt,
        format!(
            "{what} is there, with {found} that do not hold: neither do they in what it was made \
             from; keep the backup before"
        ),
    ))
}
