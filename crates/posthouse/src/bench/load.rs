//! Lanes under load: at full speed, or at a pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::lane::{Bodies, Consumes, Publishes, age, histogram};
use super::node::Node;
use super::{Door, Plan, broker, grpc, http};
use crate::cli::Failure;

/// Load before a round is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// What lanes have done, counted while they run.
#[derive(Debug, Default)]
struct Tally {
    /// Messages whose publish was answered.
    published: AtomicU64,
    /// Messages whose acknowledgement was answered.
    acked: AtomicU64,
    /// Whether times are taken down.
    records: AtomicBool,
    /// No more is published.
    is_over: AtomicBool,
    /// Consumers leave as well.
    is_closed: AtomicBool,
}

impl Tally {
    fn count(&self) -> (u64, u64) {
        (self.published.load(Ordering::Relaxed), self.acked.load(Ordering::Relaxed))
    }
}

/// What a round came to.
#[derive(Clone, Debug)]
pub(super) struct Round {
    /// Messages published a second.
    pub published: f64,
    /// Messages acknowledged a second.
    pub acked: f64,
    /// Nanoseconds from sending a batch to its answer.
    pub publish: Histogram<u64>,
    /// Nanoseconds from when a message was due to when a consumer had it.
    pub delivery: Histogram<u64>,
    /// Bytes of a frame, on average.
    pub frame_bytes: f64,
}

/// How fast producers publish.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// As fast as they get answers.
    Full,
    /// So many messages a second, all of them together.
    PerSecond(f64),
}

/// What runs in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Connections that publish.
    pub producers: usize,
    /// Connections that consume.
    pub consumers: usize,
    /// How fast it is published.
    pub pace: Pace,
    /// For how long it is measured.
    pub time: Duration,
}

enum Task {
    Published(Histogram<u64>),
    Consumed(Histogram<u64>),
}

type Tasks = JoinSet<Result<Task, Failure>>;

/// Runs a load on a node.
pub(super) async fn run(
    door: Door,
    node: &Node,
    plan: &Plan,
    load: Load,
) -> Result<Round, Failure> {
    let tally = Arc::new(Tally::default());
    let mut tasks = Tasks::new();
    for number in 0..load.consumers {
        consume(door, node, plan, number, &tally, &mut tasks).await?;
    }
    let bodies = Bodies::new(plan.size, load.consumers > 0);
    for number in 0..load.producers {
        publish(door, node, plan, bodies.clone(), (number, load), &tally, &mut tasks).await?;
    }
    watch(&mut tasks, WARM_UP).await?;
    let (frames, before, began) = (node.frames().await?, tally.count(), Instant::now());
    tally.records.store(true, Ordering::Relaxed);
    watch(&mut tasks, load.time).await?;
    let (after, took) = (tally.count(), began.elapsed().as_secs_f64());
    tally.records.store(false, Ordering::Relaxed);
    let frame_bytes = node.frames().await?.bytes_each(frames);
    let mut round = Round {
        published: (after.0 - before.0) as f64 / took,
        acked: (after.1 - before.1) as f64 / took,
        publish: histogram(),
        delivery: histogram(),
        frame_bytes,
    };
    tally.is_over.store(true, Ordering::Relaxed);
    drain(&mut tasks, &tally, &mut round).await?;
    Ok(round)
}

/// Publishes a backlog for `time`, without anyone who consumes; then lets the consumers
/// of the plan take all of it. What is measured is the second part.
pub(super) async fn backlog(door: Door, node: &Node, plan: &Plan) -> Result<Round, Failure> {
    let load = Load { producers: plan.producers, consumers: 0, pace: Pace::Full, time: plan.time };
    let tally = Arc::new(Tally::default());
    let mut tasks = Tasks::new();
    for number in 0..plan.producers {
        let bodies = Bodies::new(plan.size, true);
        publish(door, node, plan, bodies, (number, load), &tally, &mut tasks).await?;
    }
    watch(&mut tasks, plan.time).await?;
    tally.is_over.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        joined(task)?;
    }
    let all = tally.count().0;
    let (frames, began) = (node.frames().await?, Instant::now());
    for number in 0..plan.consumers {
        consume(door, node, plan, number, &tally, &mut tasks).await?;
    }
    while tally.count().1 < all {
        watch(&mut tasks, Duration::from_millis(5)).await?;
    }
    let acked = all as f64 / began.elapsed().as_secs_f64();
    let frame_bytes = node.frames().await?.bytes_each(frames);
    let (publish, delivery) = (histogram(), histogram());
    let mut round = Round { published: 0.0, acked, publish, delivery, frame_bytes };
    drain(&mut tasks, &tally, &mut round).await?;
    Ok(round)
}

/// Waits for `time`, unless something fails.
async fn watch(tasks: &mut Tasks, time: Duration) -> Result<(), Failure> {
    let until = tokio::time::Instant::now() + time;
    while let Ok(ended) = tokio::time::timeout_at(until, tasks.join_next()).await {
        match ended {
            Some(task) => drop(joined(task)?),
            None => tokio::time::sleep_until(until).await,
        }
    }
    Ok(())
}

fn joined(task: Result<Result<Task, Failure>, tokio::task::JoinError>) -> Result<Task, Failure> {
    task.map_err(|error| Failure { text: format!("a lane has ended: {error}"), code: 1 })?
}

/// Lets consumers have what is left, and collects what lanes have taken down.
async fn drain(tasks: &mut Tasks, tally: &Tally, round: &mut Round) -> Result<(), Failure> {
    let patience = Instant::now() + Duration::from_secs(60);
    while !tasks.is_empty() {
        let (published, acked) = tally.count();
        if acked >= published || Instant::now() > patience || round.acked == 0.0 {
            tally.is_closed.store(true, Ordering::Relaxed);
        }
        let wait = tokio::time::timeout(Duration::from_millis(20), tasks.join_next());
        match wait.await {
            Ok(Some(task)) => match joined(task)? {
                // Both are in nanoseconds with the same bounds.
                Task::Published(times) => round.publish.add(times).unwrap_or(()),
                Task::Consumed(times) => round.delivery.add(times).unwrap_or(()),
            },
            Ok(None) => break,
            Err(_) => {}
        }
    }
    Ok(())
}

async fn publish(
    door: Door,
    node: &Node,
    plan: &Plan,
    bodies: Bodies,
    (number, load): (usize, Load),
    tally: &Arc<Tally>,
    tasks: &mut Tasks,
) -> Result<(), Failure> {
    let share = Share { batch: plan.batch, depth: plan.depth, number, load };
    match (door, node) {
        (_, Node::Here(broker)) => {
            let lane = broker::Publisher::new(broker, plan, bodies, number).await?;
            tasks.spawn(produce(lane, share, tally.clone()));
        }
        (Door::Http, Node::Process { url, .. }) => {
            let lane = http::Publisher::new(url, plan, bodies, number);
            tasks.spawn(produce(lane, share, tally.clone()));
        }
        (_, Node::Process { url, .. }) => {
            let lane = grpc::Publisher::new(url, plan, bodies, number).await?;
            tasks.spawn(produce(lane, share, tally.clone()));
        }
    }
    Ok(())
}

async fn consume(
    door: Door,
    node: &Node,
    plan: &Plan,
    number: usize,
    tally: &Arc<Tally>,
    tasks: &mut Tasks,
) -> Result<(), Failure> {
    match (door, node) {
        (_, Node::Here(broker)) => {
            tasks.spawn(take(broker::Consumer::new(broker, plan, number), tally.clone()));
        }
        (Door::Http, Node::Process { url, .. }) => {
            tasks.spawn(take(http::Consumer::new(url, plan, number), tally.clone()));
        }
        (_, Node::Process { url, .. }) => {
            let lane = grpc::Consumer::new(url, plan, number).await?;
            tasks.spawn(take(lane, tally.clone()));
        }
    }
    Ok(())
}

/// What one producer does of a load.
struct Share {
    batch: usize,
    depth: usize,
    number: usize,
    load: Load,
}

async fn produce(lane: impl Publishes, share: Share, tally: Arc<Tally>) -> Result<Task, Failure> {
    match share.load.pace {
        Pace::Full => at_full_speed(lane, share, &tally).await,
        Pace::PerSecond(rate) => at_a_pace(lane, share, rate, &tally).await,
    }
}

async fn at_full_speed(
    mut lane: impl Publishes,
    share: Share,
    tally: &Tally,
) -> Result<Task, Failure> {
    let mut times = histogram();
    let mut sent = std::collections::VecDeque::with_capacity(share.depth);
    loop {
        while sent.len() < share.depth && !tally.is_over.load(Ordering::Relaxed) {
            let now = Instant::now();
            sent.push_back(now);
            lane.send(now).await?;
        }
        let Some(began) = sent.pop_front() else { return Ok(Task::Published(times)) };
        lane.answer().await?;
        tally.published.fetch_add(share.batch as u64, Ordering::Relaxed);
        if tally.records.load(Ordering::Relaxed) {
            times.saturating_record(began.elapsed().as_nanos() as u64);
        }
    }
}

/// Batches are due at equal distances; one that is late does not move the next, and its
/// messages' time counts from when they were due.
async fn at_a_pace(
    mut lane: impl Publishes,
    share: Share,
    rate: f64,
    tally: &Tally,
) -> Result<Task, Failure> {
    let mut times = histogram();
    let mut sent = std::collections::VecDeque::new();
    let producers = share.load.producers as f64;
    let apart = Duration::from_secs_f64(share.batch as f64 * producers / rate);
    let mut ticks = ticks(Instant::now() + apart.mul_f64(share.number as f64 / producers), apart);
    while !tally.is_over.load(Ordering::Relaxed) || !sent.is_empty() {
        tokio::select! {
            biased;
            answered = lane.answer(), if !sent.is_empty() => {
                answered?;
                let began: Instant = sent.pop_front().expect("something was sent");
                tally.published.fetch_add(share.batch as u64, Ordering::Relaxed);
                if tally.records.load(Ordering::Relaxed) {
                    times.saturating_record(began.elapsed().as_nanos() as u64);
                }
            }
            Some(due) = ticks.recv() => {
                if !tally.is_over.load(Ordering::Relaxed) {
                    sent.push_back(due);
                    lane.send(due).await?;
                }
            }
        }
    }
    Ok(Task::Published(times))
}

/// The times at which something is due, each when it has come; until nobody listens.
/// A thread of its own waits for them: the runtime's timers know whole milliseconds only.
fn ticks(first: Instant, apart: Duration) -> mpsc::UnboundedReceiver<Instant> {
    let (tx, rx) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut due = first;
        loop {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if tx.send(due).is_err() {
                return;
            }
            due += apart;
        }
    });
    rx
}

async fn take(mut lane: impl Consumes, tally: Arc<Tally>) -> Result<Task, Failure> {
    let mut times = histogram();
    while !tally.is_closed.load(Ordering::Relaxed) {
        let records = tally.records.load(Ordering::Relaxed);
        let mut arrived = |body: &[u8]| {
            if records && let Some(age) = age(body) {
                times.saturating_record(age.as_nanos() as u64);
            }
        };
        let acked = lane.step(&mut arrived).await?;
        tally.acked.fetch_add(acked, Ordering::Relaxed);
    }
    Ok(Task::Consumed(times))
}
