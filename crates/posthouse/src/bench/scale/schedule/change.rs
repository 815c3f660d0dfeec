//! Calling back and moving pending messages, each by a client that waits for it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use posthouse_core::ident::MessageId;
use posthouse_core::queue::command::Shift;
use tokio::task::JoinSet;

use super::super::figure::ScaleFigure;
use super::super::host::{Host, kept, stop};
use super::super::pour::{Chance, Ids, Pour, Until, pour};
use super::super::{ScalePlan, failure};
use super::{WEEK_MS, millions, within_a_week};
use crate::bench::figure::median;
use crate::bench::lane::{histogram, quantile_ms};
use crate::broker::Caller;
use crate::broker::schedule::{Changed, Target};
use crate::cli::Failure;

/// Clients that have one request under way each.
const CLIENTS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Cancel,
    Move,
}

pub(super) async fn run(
    plan: &ScalePlan,
    dir: &Path,
    report: &mut (dyn FnMut(ScaleFigure) + Send),
) -> Result<(), Failure> {
    let host = Arc::new(Host::start(plan, dir).await?);
    let topics = host.topics("later", 0..1, &kept()).await?;
    let ids = Ids::default();
    let load = Pour {
        due: Some(within_a_week(&host)),
        ids: Some(ids.clone()),
        ..Pour::new(plan, topics, Until::Count(plan.count))
    };
    let poured = pour(&host, load).await?;
    let name = format!("schedule {}", millions(plan.count));
    report(ScaleFigure::new(name, poured.rate(), "msg/s").on(&host));
    let mut ids = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
    shuffle(&mut ids);
    let ids: Arc<[MessageId]> = ids.into();
    let (from, moved) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));

    let plain = host.topics("plain", 0..1, &kept()).await?;
    let single = Pour {
        batch: 1,
        depth: 1,
        producers: CLIENTS,
        ..Pour::new(plan, plain, Until::Time(plan.time))
    };
    let works = [(Change::Cancel, "call back", from), (Change::Move, "move", moved)];
    let mut publishes = Measured::default();
    let mut changes = [Measured::default(), Measured::default()];
    for _ in 0..plan.rounds {
        let poured = pour(&host, single.clone()).await?;
        publishes.add(poured.rate(), &poured.times());
        for ((change, _, next), measured) in works.iter().zip(&mut changes) {
            let began = Instant::now();
            let times = clients(&host, plan, *change, &ids, next).await?;
            measured.add(times.len() as f64 / began.elapsed().as_secs_f64(), &times);
        }
    }
    let name = format!("publish, one at a time, {CLIENTS} clients");
    let rate = median(publishes.rates.clone());
    report(ScaleFigure::new(name, rate, "msg/s").times(&publishes.times).on(&host));
    let p99 = quantile_ms(&publishes.times, 0.99);
    for ((_, what, _), measured) in works.iter().zip(changes) {
        let ratios = publishes.rates.iter().zip(&measured.rates).map(|(plain, rate)| rate / plain);
        let ratio = median(ratios);
        let figure = ScaleFigure::new(format!("{what} any of them"), median(measured.rates), "/s");
        report(figure.beside(rate).times(&measured.times).on(&host));
        let figure = ScaleFigure::new("  by publishes, of the same round", ratio, "-").on(&host);
        report(figure.must(">= 0.8", ratio >= 0.8));
        let its = quantile_ms(&measured.times, 0.99);
        let figure = ScaleFigure::new("  time", its, "ms p99").beside(p99).on(&host);
        report(figure.must("<= 1 ms above publishes", its <= p99 + 1.0));
    }
    stop(host).await
}

/// Rates of rounds, and the times of all of them.
struct Measured {
    rates: Vec<f64>,
    times: Histogram<u64>,
}

impl Default for Measured {
    fn default() -> Self {
        Measured { rates: Vec::new(), times: histogram() }
    }
}

impl Measured {
    fn add(&mut self, rate: f64, times: &Histogram<u64>) {
        self.rates.push(rate);
        // All have the same bounds.
        let _ = self.times.add(times);
    }
}

/// Any order, the same in every run.
fn shuffle(ids: &mut [MessageId]) {
    let mut chance = Chance(11);
    for at in (1..ids.len()).rev() {
        ids.swap(at, chance.below(at as u64 + 1) as usize);
    }
}

/// Changes one message after the other for as long as the plan says. Those that are
/// called back are taken from the beginning of `ids`, those that are moved from the end,
/// around and around in its second half.
async fn clients(
    host: &Arc<Host>,
    plan: &ScalePlan,
    change: Change,
    ids: &Arc<[MessageId]>,
    next: &Arc<AtomicUsize>,
) -> Result<Histogram<u64>, Failure> {
    let (mut tasks, began, time) = (JoinSet::new(), Instant::now(), plan.time);
    for client in 0..CLIENTS as u64 {
        let (host, ids, next) = (host.clone(), ids.clone(), next.clone());
        tasks.spawn(async move {
            let (mut times, mut chance) = (histogram(), Chance(client + 1));
            let half = ids.len() / 2;
            while began.elapsed() < time {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let at = match change {
                    Change::Cancel if at >= half => {
                        return Err(failure("all are called back; take a greater --count"));
                    }
                    Change::Cancel => at,
                    Change::Move => half + at % (ids.len() - half),
                };
                let (target, one) = (Target::Id(ids[at].to_string()), Instant::now());
                let changed = match change {
                    Change::Cancel => host.broker.cancel(&Caller::Node, vec![target]).await?,
                    Change::Move => {
                        let by = Shift::By(chance.below(WEEK_MS) as i64);
                        host.broker.reschedule(&Caller::Node, vec![(target, by)]).await?
                    }
                };
                times.saturating_record(one.elapsed().as_nanos() as u64);
                if !matches!(changed[..], [Changed::Done { .. }]) {
                    return Err(failure(format!("{} was not changed: {changed:?}", ids[at])));
                }
            }
            Ok::<_, Failure>(times)
        });
    }
    let mut all = histogram();
    while let Some(ended) = tasks.join_next().await {
        let times = ended.map_err(|error| failure(format!("a client has ended: {error}")))??;
        // All have the same bounds.
        let _ = all.add(&times);
    }
    Ok(all)
}
