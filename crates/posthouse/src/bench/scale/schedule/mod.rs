//! Messages that come later, in any number: what they take, how fast they are taken in,
//! changed, and how late they come.

mod burst;
mod change;
mod fill;
mod fire;
pub(super) mod restart;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use posthouse_core::UnixMs;
use posthouse_core::record::When;

use super::figure::ScaleFigure;
use super::host::Host;
use super::pour::{Chance, Due, Pour, Poured, Until, pour};
use super::{ScalePlan, failure};
use crate::cli::Failure;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleWork {
    /// What many pending messages take.
    Pending,
    /// How fast they are taken in, beside plain publishes.
    Fill,
    /// Calling back and moving, one at a time.
    Change,
    /// How late they come, at several rates.
    Fire,
    /// All in one millisecond, with others that are on time.
    Burst,
    /// A kill, and the time to the first reply and to the first that comes.
    Restart,
    /// The node that [`ScheduleWork::Restart`] kills.
    RestartChild,
}

/// Times of messages that are pending are spread over so long.
const WEEK_MS: u64 = 7 * 86_400_000;

/// No pending message is due before so long.
const FAR_MS: u64 = 86_400_000;

pub(super) async fn run(
    work: ScheduleWork,
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    match work {
        ScheduleWork::Pending => fill::pending(plan, dir, report).await,
        ScheduleWork::Fill => fill::rates(plan, dir, report).await,
        ScheduleWork::Change => change::run(plan, dir, report).await,
        ScheduleWork::Fire => fire::run(plan, dir, report).await,
        ScheduleWork::Burst => burst::run(plan, dir, report).await,
        ScheduleWork::Restart => restart::run(plan, dir, report).await,
        ScheduleWork::RestartChild => Err(failure("the child is run by its parent")),
    }
}

/// Due at random within a week, from tomorrow on.
fn within_a_week(host: &Host) -> Due {
    let from = host.broker.now().plus(FAR_MS);
    Arc::new(move |_, chance: &mut Chance| When::At(from.plus(chance.below(WEEK_MS))))
}

/// All due at the same time.
fn all_at(at: UnixMs) -> Due {
    Arc::new(move |_, _| When::At(at))
}

/// Schedules `count` messages of a topic of the name `topic`-0.
async fn fill(
    host: &Arc<Host>,
    plan: &ScalePlan,
    topic: &str,
    count: u64,
    due: Due,
) -> Result<Poured, Failure> {
    let topics = host.topics(topic, 0..1, &super::host::kept()).await?;
    let load = Pour { due: Some(due), ..Pour::new(plan, topics, Until::Count(count)) };
    pour(host, load).await
}

/// Messages that are pending, in the words of a figure.
fn millions(count: u64) -> String {
    match count {
        n if n >= 1_000_000 && n.is_multiple_of(100_000) => format!("{}M", n as f64 / 1e6),
        n => n.to_string(),
    }
}

/// How long filling may take until something is due, with time to spare.
fn ample(count: u64) -> Duration {
    Duration::from_secs(3) + Duration::from_secs_f64(count as f64 / SLOWEST)
}

/// Messages a second that are taken in at least, or a work that fills in advance fails.
const SLOWEST: f64 = 100_000.0;

/// Waits until the node's clock shows `at`.
async fn until(host: &Host, at: UnixMs) {
    let left = at.since(host.broker.now());
    tokio::time::sleep(Duration::from_millis(left)).await;
}
