//! A disk that fills up to the mark, and is drained.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use posthouse_log::files::{Files as _, RealFiles};

use super::drain::{consume, leave, wait_for};
use super::figure::ScaleFigure;
use super::host::{Host, until_acknowledged};
use super::pour::{Pour, Until, pour};
use super::{ScalePlan, failure};
use crate::cli::Failure;

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let space = RealFiles.space(dir).map_err(|error| failure(error.to_string()))?;
    let reserve = space.available.saturating_sub(plan.bytes);
    let host = Arc::new(Host::start_with(plan, dir, Some(reserve)).await?);
    let topics = host.topics("filling", 0..1, &until_acknowledged()).await?;
    host.groups("filling", 0..1, |_| "filling-0".to_owned()).await?;
    let load = Pour::new(plan, topics.clone(), Until::Time(Duration::from_secs(3600)));
    let stop = load.stop.clone();
    let pouring = {
        let host = host.clone();
        tokio::spawn(async move { pour(&host, load).await })
    };
    let began = Instant::now();
    while !host.broker.space().is_full() && !pouring.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let published = host.sum(|m| &m.published);
    let took = began.elapsed().as_secs_f64();
    let figure = ScaleFigure::new("until publishes are refused", took, "s");
    let size = plan.bytes;
    report(figure.on(&host).must(&format!("beyond {size} bytes"), host.broker.space().is_full()));

    let (drained, mut consumers) = consume(&host, plan, "filling-0");
    let began = Instant::now();
    // Publishers are still there, and go on as soon as they may.
    wait_for("publishes after the drain", || {
        let acked = drained.acked.load(Ordering::Relaxed);
        (host.sum(|m| &m.published) > published + 10_000, acked)
    })
    .await?;
    let took = began.elapsed().as_secs_f64();
    let acked = drained.acked.load(Ordering::Relaxed);
    let figure = ScaleFigure::new("until publishes come back", took, "s").on(&host);
    report(figure.must("by themselves", true));
    report(ScaleFigure::new("  acknowledged by then", acked as f64, "msg").on(&host));
    stop.store(true, Ordering::Relaxed);
    let poured = pouring.await.map_err(|error| failure(format!("a task has ended: {error}")))??;
    report(ScaleFigure::new("publishes refused", poured.refused as f64, "publishes").on(&host));
    leave(&drained, &mut consumers).await?;
    let refused = drained.refused.load(Ordering::Relaxed) as f64;
    let figure = ScaleFigure::new("receives and acknowledgements refused", refused, "requests");
    report(figure.on(&host).must("none", refused == 0.0));
    super::host::stop(host).await
}
