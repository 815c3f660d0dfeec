//! What the core costs per message, on one thread, without a log:
//! `cargo run --release -p posthouse-core --example cost`.

use std::time::Instant;

use bytes::{BufMut, Bytes};
use posthouse_core::catalog::machine::Command as Meta;
use posthouse_core::catalog::{Catalog, GroupConfig, Role, Subscription, TopicConfig};
use posthouse_core::chunk::{ChunkId, Chunks};
use posthouse_core::ident::Secret;
use posthouse_core::machine::Machine;
use posthouse_core::queue::command::{Batch, Held, Reply, Target};
use posthouse_core::queue::{Ask, Command, Shard};
use posthouse_core::record::Draft;
use posthouse_core::{GroupId, Now, PartitionId, ShardId, ShardMs, TopicId, UnixMs};
use posthouse_frame::{BodyBuf, FrameBuf, FrameNo};

/// No chunk is ever sealed here, so none is ever asked for.
struct NoChunks;

impl Chunks for NoChunks {
    fn block(&self, _: ChunkId, _: u32) -> Option<Bytes> {
        None
    }
}

const FRAME_BYTES: usize = 1 << 20;

struct Bench {
    catalog: Catalog,
    shard: Shard,
    frame: FrameBuf,
    now: Now,
}

impl Bench {
    fn new(topics: u32, groups: u32) -> Bench {
        let secret = Secret::new([3; 32]);
        let mut catalog = Catalog::new(secret);
        let mut meta = |command| {
            let mut frame = FrameBuf::new(FrameNo(1));
            catalog.decide(&command, UnixMs(1), &mut frame).unwrap();
            catalog.apply(FrameNo(1), frame.meta()).unwrap();
        };
        for topic in 0..topics {
            meta(Meta::PutTopic {
                name: format!("t{topic}"),
                role: Role::Messages,
                config: TopicConfig::default(),
                shards: 1,
                only_new: true,
            });
        }
        let subscriptions = vec![Subscription { topic: "t0".into(), filter: "*".into() }];
        for group in 0..groups {
            let config = GroupConfig { subscriptions: subscriptions.clone(), ..Default::default() };
            let name = format!("g{group}");
            meta(Meta::PutGroup { name, parent: None, config, only_new: true });
        }
        let now = Now { wall: UnixMs(1 << 40), lease: ShardMs(1 << 40) };
        let mut bench =
            Bench { catalog, shard: Shard::new(ShardId(0)), frame: FrameBuf::new(FrameNo(1)), now };
        for group in 1..=groups {
            bench.run(Command::Attach {
                group: GroupId(group),
                partition: PartitionId(1),
                topic: TopicId(1),
                start: Target::Earliest,
            });
        }
        bench
    }

    fn run(&mut self, mut command: Command) -> Reply {
        let start = self.frame.meta().len();
        let reply = self
            .shard
            .decide(&mut command, &self.catalog, &NoChunks, self.now, &mut self.frame)
            .unwrap();
        self.apply(start);
        reply
    }

    fn apply(&mut self, start: usize) {
        self.shard.apply(self.frame.no(), &self.frame.meta()[start..]).unwrap();
        if self.frame.content_bytes() > FRAME_BYTES {
            let next = FrameBuf::new(self.frame.no().next());
            let frame = std::mem::replace(&mut self.frame, next).seal(0, 0);
            self.shard.sealed(frame.no, frame.content_bytes());
        }
    }
}

fn batch(partition: u32, count: usize, size: usize) -> Batch {
    let mut bodies = BodyBuf::with_capacity(count * (size + 16));
    let payload = vec![7u8; size];
    let drafts = (0..count)
        .map(|_| Draft { len: bodies.seal(|out| out.put_slice(&payload)), ..Draft::default() })
        .collect();
    Batch { partition: PartitionId(partition), topic: TopicId(partition), bodies, drafts }
}

fn report(what: &str, count: usize, start: Instant) {
    let ns = start.elapsed().as_nanos() as f64 / count as f64;
    println!("{what:<56} {ns:>8.1} ns a message");
}

fn main() {
    let count = 2_000_000;
    for (size, per_batch) in [(100, 1), (100, 10), (100, 100), (100, 1000), (1024, 1000)] {
        let mut bench = Bench::new(1, 0);
        let batches: Vec<Batch> =
            (0..count / 4 / per_batch).map(|_| batch(1, per_batch, size)).collect();
        let start = Instant::now();
        for batch in batches {
            bench.run(Command::Publish { batches: vec![batch], apart: false });
        }
        report(&format!("publish {size} B, {per_batch} a command"), count / 4, start);
    }

    let mut bench = Bench::new(100_000, 0);
    for partition in 1..=100_000 {
        bench.run(Command::Publish { batches: vec![batch(partition, 1, 100)], apart: false });
    }
    let mut seed = 1u64;
    let batches: Vec<Batch> = (0..count / 4)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            batch((seed >> 33) as u32 % 100_000 + 1, 1, 100)
        })
        .collect();
    let start = Instant::now();
    for batch in batches {
        bench.run(Command::Publish { batches: vec![batch], apart: false });
    }
    report("publish 100 B to one of 100,000 topics, 1 a command", count / 4, start);

    for per_batch in [1, 32, 1000] {
        let mut bench = Bench::new(1, 1);
        let count = if per_batch == 1 { count / 8 } else { count };
        for _ in 0..count / 1000 {
            bench.run(Command::Publish { batches: vec![batch(1, 1000, 100)], apart: false });
        }
        let mut held: Vec<Vec<Held>> = Vec::new();
        let start = Instant::now();
        for _ in 0..count / per_batch {
            let ask = Ask {
                group: GroupId(1),
                consumer: "worker",
                max: per_batch,
                max_bytes: u64::MAX,
                lease_ms: 30_000,
                topic: None,
                auto_ack: false,
            };
            let at = bench.frame.meta().len();
            let granted =
                bench.shard.grant(&ask, &bench.catalog, &NoChunks, bench.now, &mut bench.frame);
            bench.apply(at);
            assert_eq!(granted.deliveries.len(), per_batch);
            held.push(
                granted
                    .deliveries
                    .iter()
                    .map(|d| Held {
                        group: d.group,
                        partition: d.partition,
                        position: d.found.position,
                        fence: d.fence,
                    })
                    .collect(),
            );
            // As a consumer does that is a little behind.
            if held.len() == 64 {
                for held in held.drain(..) {
                    bench.run(Command::Ack(held));
                }
            }
        }
        report(&format!("grant and ack 100 B, {per_batch} a command"), count, start);
    }
}
