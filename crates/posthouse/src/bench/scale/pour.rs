//! Pouring messages in: the load of all scale works.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use posthouse_core::UnixMs;
use posthouse_core::catalog::Topic;
use posthouse_core::ident::MessageId;
use posthouse_core::message::Parts;
use posthouse_core::record::{NameTaken, When};
use tokio::task::JoinSet;

use super::failure;
use super::host::Host;
use crate::bench::lane::{Bodies, histogram};
use crate::broker::publish::Sent;
use crate::cli::Failure;
use crate::problem::{Kind, Problem};

/// Until when messages are poured in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// So many.
    Count(u64),
    /// For so long.
    Time(Duration),
}

/// Which topic a message goes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spread {
    /// All of a publish to one, publishes in turn.
    Publishes,
    /// Message by message, in turn.
    Turn,
    /// Message by message, anywhere.
    Random,
}

/// When a message is due, by its number in the pour.
pub(super) type Due = Arc<dyn Fn(u64, &mut Chance) -> When + Send + Sync>;

/// Ids of messages.
pub(super) type Ids = Arc<Mutex<Vec<MessageId>>>;

/// What is poured in.
#[derive(Clone)]
pub(super) struct Pour {
    pub topics: Arc<[Arc<Topic>]>,
    pub spread: Spread,
    pub size: usize,
    pub batch: usize,
    pub producers: usize,
    pub depth: usize,
    pub until: Until,
    /// Messages a second, all producers together; `None`: as fast as they are answered.
    pub pace: Option<f64>,
    /// Keys are drawn from so many; 0: no keys.
    pub keys: u64,
    /// Bodies say when they were due.
    pub stamped: bool,
    /// Messages come later.
    pub due: Option<Due>,
    /// Where their ids go.
    pub ids: Option<Ids>,
    /// Ends the pouring from outside.
    pub stop: Arc<AtomicBool>,
}

impl Pour {
    pub(super) fn new(plan: &super::ScalePlan, topics: Vec<Arc<Topic>>, until: Until) -> Pour {
        Pour {
            topics: topics.into(),
            spread: Spread::Publishes,
            size: plan.size,
            batch: plan.batch,
            producers: plan.producers,
            depth: plan.depth,
            until,
            pace: None,
            keys: 0,
            stamped: false,
            due: None,
            ids: None,
            stop: Arc::default(),
        }
    }
}

/// What came of it.
pub(super) struct Poured {
    pub messages: u64,
    pub took: Duration,
    /// Nanoseconds from sending a publish to its answer: outside of snapshots,
    pub calm: Histogram<u64>,
    /// and while one was taken.
    pub snapshot: Histogram<u64>,
    /// Publishes that were refused because the disk is full.
    pub refused: u64,
    /// Messages answered in each second.
    pub seconds: Vec<u64>,
    /// Messages answered, and seconds, by whether a snapshot was being taken.
    pub rates: [(u64, f64); 2],
}

impl Poured {
    /// Messages a second.
    pub(super) fn rate(&self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }

    /// All times.
    pub(super) fn times(&self) -> Histogram<u64> {
        let mut all = self.calm.clone();
        // Both have the same bounds.
        let _ = all.add(&self.snapshot);
        all
    }
}

/// Numbers that look random: SplitMix64, Steele et al., "Fast splittable pseudorandom
/// number generators" (2014).
#[derive(Clone, Debug)]
pub(super) struct Chance(pub u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }
}

/// The text of a key.
pub(super) fn key(number: u64) -> String {
    format!("key-{number}")
}

struct Shared {
    host: Arc<Host>,
    pour: Pour,
    began: Instant,
    /// Messages that nobody has begun to send.
    left: AtomicU64,
    /// Messages that were given a number.
    numbered: AtomicU64,
    answered: AtomicU64,
    /// A moment, by the clock of the node and by that of stamps.
    moment: (UnixMs, Instant),
}

struct Lane {
    calm: Histogram<u64>,
    snapshot: Histogram<u64>,
    refused: u64,
}

/// Pours messages in.
pub(super) async fn pour(host: &Arc<Host>, pour: Pour) -> Result<Poured, Failure> {
    let left = match pour.until {
        Until::Count(count) => count,
        Until::Time(_) => u64::MAX,
    };
    let shared = Arc::new(Shared {
        host: host.clone(),
        began: Instant::now(),
        left: AtomicU64::new(left),
        numbered: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        moment: (host.broker.now(), Instant::now()),
        pour,
    });
    let mut lanes = JoinSet::new();
    for number in 0..shared.pour.producers {
        lanes.spawn(lane(shared.clone(), number));
    }
    let watching = tokio::spawn(watch(shared.clone()));
    let mut poured = Poured {
        messages: 0,
        took: Duration::ZERO,
        calm: histogram(),
        snapshot: histogram(),
        refused: 0,
        seconds: Vec::new(),
        rates: [(0, 0.0); 2],
    };
    while let Some(lane) = lanes.join_next().await {
        let lane = lane.map_err(|error| failure(format!("a producer has ended: {error}")))??;
        // All have the same bounds.
        let _ = poured.calm.add(&lane.calm);
        let _ = poured.snapshot.add(&lane.snapshot);
        poured.refused += lane.refused;
    }
    poured.took = shared.began.elapsed();
    watching.abort();
    if let Ok((seconds, rates)) = watching.await {
        poured.seconds = seconds;
        poured.rates = rates;
    }
    poured.messages = shared.answered.load(Ordering::Relaxed);
    Ok(poured)
}

type Watched = (Vec<u64>, [(u64, f64); 2]);

/// Counts what is answered, second by second, and by whether a snapshot is taken. Ends
/// by itself when the pouring does.
async fn watch(shared: Arc<Shared>) -> Watched {
    const STEP: Duration = Duration::from_millis(10);
    let mut watched: Watched = (Vec::new(), [(0, 0.0); 2]);
    let (mut last, mut at) = (0, Instant::now());
    let (mut second, mut second_at) = (0, Instant::now());
    while !shared.is_over() {
        tokio::time::sleep(STEP).await;
        let (now, answered) = (Instant::now(), shared.answered.load(Ordering::Relaxed));
        let sort = usize::from(shared.host.is_snapshotting());
        watched.1[sort].0 += answered - last;
        watched.1[sort].1 += (now - at).as_secs_f64();
        (last, at) = (answered, now);
        if second_at.elapsed() >= Duration::from_secs(1) {
            watched.0.push(answered - second);
            (second, second_at) = (answered, now);
        }
    }
    watched
}

impl Shared {
    /// Whether no more is to be sent.
    fn is_over(&self) -> bool {
        let over = match self.pour.until {
            Until::Count(_) => self.left.load(Ordering::Relaxed) == 0,
            Until::Time(time) => self.began.elapsed() >= time,
        };
        over || self.pour.stop.load(Ordering::Relaxed)
    }

    /// The moment that a message is due.
    fn instant_of(&self, when: When) -> Instant {
        match when {
            When::After(ms) => Instant::now() + Duration::from_millis(ms),
            When::At(at) => self.moment.1 + Duration::from_millis(at.since(self.moment.0)),
        }
    }

    /// How many messages the next publish has; 0 at the end.
    fn take(&self) -> usize {
        if self.is_over() {
            return 0;
        }
        let batch = self.pour.batch as u64;
        let take = |left: u64| Some(left.saturating_sub(batch));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        before.unwrap_or(0).min(batch) as usize
    }
}

/// A publish that was sent, and not answered yet.
type Pending = (BoxFuture<'static, Result<Sent, Problem>>, usize, Instant, bool);

async fn lane(shared: Arc<Shared>, number: usize) -> Result<Lane, Failure> {
    let pour = &shared.pour;
    let mut lane = Lane { calm: histogram(), snapshot: histogram(), refused: 0 };
    let bodies = Bodies::new(pour.size, pour.stamped);
    let mut chance = Chance(number as u64 * 7919 + 1);
    let mut pending: VecDeque<Pending> = VecDeque::new();
    let apart =
        pour.pace.map(|pace| Duration::from_secs_f64((pour.batch * pour.producers) as f64 / pace));
    let mut due = shared.began;
    let mut turn = number as u64;
    loop {
        while pending.len() < pour.depth {
            if let Some(apart) = apart {
                due += apart;
                if !pending.is_empty() && due > Instant::now() {
                    due -= apart;
                    break;
                }
                tokio::time::sleep_until(due.into()).await;
            }
            let count = shared.take();
            if count == 0 {
                break;
            }
            let now = if apart.is_some() { due } else { Instant::now() };
            turn += pour.producers as u64;
            match send(&shared, &bodies, now, count, turn, &mut chance).await {
                Ok(answer) => {
                    pending.push_back((answer, count, now, shared.host.is_snapshotting()));
                }
                Err(problem) if problem.kind == Kind::DiskFull => {
                    lane.refused += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(problem) => return Err(problem.into()),
            }
        }
        let Some((answer, count, began, snapshot)) = pending.pop_front() else {
            if shared.is_over() {
                return Ok(lane);
            }
            continue;
        };
        match answer.await {
            Ok(sent) => {
                shared.answered.fetch_add(count as u64, Ordering::Relaxed);
                if let Some(ids) = &pour.ids {
                    let placed = shared.host.broker.placed(&sent);
                    let placed: Result<Vec<_>, _> = placed.map(|p| p.map(|p| p.id)).collect();
                    ids.lock().unwrap_or_else(PoisonError::into_inner).extend(placed?);
                }
                let nanos = began.elapsed().as_nanos() as u64;
                let times = match snapshot || shared.host.is_snapshotting() {
                    true => &mut lane.snapshot,
                    false => &mut lane.calm,
                };
                times.saturating_record(nanos);
            }
            Err(problem) if problem.kind == Kind::DiskFull => lane.refused += 1,
            Err(problem) => return Err(problem.into()),
        }
    }
}

async fn send(
    shared: &Shared,
    bodies: &Bodies,
    now: Instant,
    count: usize,
    turn: u64,
    chance: &mut Chance,
) -> Result<BoxFuture<'static, Result<Sent, Problem>>, Problem> {
    let (broker, pour) = (&shared.host.broker, &shared.pour);
    let mut body = bodies.body(now);
    let permit = broker.wait_for_permit(body.len() * count).await?;
    let mut outbox = broker.outbox(Some(permit), true);
    if matches!(pour.spread, Spread::Publishes) {
        outbox.expect(count, body.len() * count);
    }
    let topics = pour.topics.len() as u64;
    let first = shared.numbered.fetch_add(count as u64, Ordering::Relaxed);
    for n in 0..count as u64 {
        let at = match pour.spread {
            Spread::Publishes => turn % topics,
            Spread::Turn => (turn * pour.batch as u64 + n) % topics,
            Spread::Random => chance.below(topics),
        };
        let topic = &pour.topics[at as usize];
        let when = pour.due.as_ref().map(|due| due(first + n, chance));
        if let Some(when) = when.filter(|_| pour.stamped) {
            body = bodies.body(shared.instant_of(when));
        }
        let key = (pour.keys > 0).then(|| key(chance.below(pour.keys)));
        let later = when.map(|when| (when, NameTaken::default()));
        let parts = Parts { key: key.as_deref(), later, ..Parts::default() };
        broker.add(&mut outbox, topic, &parts, &body)?;
    }
    Ok(broker.submit(outbox)?.wait().boxed())
}
