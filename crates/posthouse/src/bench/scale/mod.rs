//! `posthouse bench scale`: what a node does with much of everything.
//!
//! Every work says what it measured, beside what it must show, the memory of the
//! process and the room on the disk at that moment. A work at a reduced size is a
//! look, not a proof: sizes stand in every figure.

mod backlog;
mod clean;
mod drain;
mod figure;
mod full;
mod groups;
mod host;
mod pour;
mod probe;
mod restart;
mod retained;
mod schedule;
mod soak;
mod topics;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use figure::ScaleFigure;
pub use schedule::ScheduleWork;

use posthouse_log::files::{Files, RealFiles};

use super::disk::{Alone, Disk};
use crate::cli::Failure;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleWork {
    /// Many topics, and publishes all over them.
    Topics,
    /// Many groups, few of them active.
    Groups,
    /// Many messages kept in one topic, looked at anywhere.
    Retained,
    /// A log of some size, a kill, and the time to the first reply.
    Restart,
    /// The node that [`ScaleWork::Restart`] kills.
    RestartChild,
    /// A backlog that is consumed in order, beside topics that have none.
    Backlog,
    /// Short and long retention in one log.
    Clean,
    /// A disk that fills to the mark, and is drained.
    Full,
    /// A mixed load for long.
    Soak,
    /// Messages that come later.
    Schedule(ScheduleWork),
}

/// How large, and how long.
#[derive(Clone, Debug)]
pub struct ScalePlan {
    /// Topics, groups or messages, as the work says.
    pub count: u64,
    /// Bytes of bodies, for works that go by bytes.
    pub bytes: u64,
    /// Bytes of a body.
    pub size: usize,
    /// Messages of one publish, and at most of one receive.
    pub batch: usize,
    /// Tasks that publish.
    pub producers: usize,
    /// Publishes that a producer has under way.
    pub depth: usize,
    /// Tasks that consume.
    pub consumers: usize,
    /// Active groups, for the groups.
    pub active: u64,
    /// How long a load is measured.
    pub time: Duration,
    /// Rounds of what is compared.
    pub rounds: usize,
    /// The setting `memory` of the node.
    pub memory: u64,
    /// Where data is kept meanwhile.
    pub dir: PathBuf,
}

/// Measures, and hands each figure over as soon as it stands.
///
/// # Errors
/// What the node refuses, or the system.
pub async fn run(
    work: ScaleWork,
    plan: &ScalePlan,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    match work {
        ScaleWork::RestartChild => return restart::child(plan, report).await,
        ScaleWork::Schedule(ScheduleWork::RestartChild) => {
            return schedule::restart::child(plan, report).await;
        }
        _ => {}
    }
    std::fs::create_dir_all(&plan.dir)?;
    let dir = tempfile::Builder::new().prefix("posthouse-scale-").tempdir_in(&plan.dir)?;
    let dir = dir.path();
    match work {
        ScaleWork::Topics => topics::run(plan, dir, report).await,
        ScaleWork::Groups => groups::run(plan, dir, report).await,
        ScaleWork::Retained => retained::run(plan, dir, report).await,
        ScaleWork::Restart => restart::run(plan, dir, report).await,
        ScaleWork::Backlog => backlog::run(plan, dir, report).await,
        ScaleWork::Clean => clean::run(plan, dir, report).await,
        ScaleWork::Full => full::run(plan, dir, report).await,
        ScaleWork::Soak => soak::run(plan, dir, report).await,
        ScaleWork::Schedule(work) => schedule::run(work, plan, dir, report).await,
        ScaleWork::RestartChild => unreachable!("it was answered above"),
    }
}

/// What the disk does alone with pieces of `bytes`, in a file below `dir`.
async fn disk_alone(dir: &Path, bytes: usize, time: Duration) -> Result<Alone, Failure> {
    let path = dir.to_owned();
    let alone = tokio::task::spawn_blocking(move || Disk::new(&path)?.run(bytes, time));
    let alone = alone.await.expect("the disk's thread does not panic");
    // It goes with the directory, if not now.
    let files: &dyn Files = &RealFiles;
    let _ = files.unlink_slowly(&dir.join("disk"));
    alone.map_err(|error| failure(error.to_string()))
}

/// Gives a failure of this benchmark's own.
fn failure(text: impl Into<String>) -> Failure {
    Failure { text: text.into(), code: 1 }
}
