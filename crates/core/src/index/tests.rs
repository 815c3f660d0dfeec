use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use posthouse_frame::FrameNo;
use proptest::prelude::*;

use super::*;
use crate::chunk::ChunkId;
use crate::record::{Entry, Tags};

/// All blocks of all chunks; those in `away` have to be fetched first.
#[derive(Default)]
struct Store {
    blocks: BTreeMap<Miss, Bytes>,
    away: std::cell::RefCell<BTreeSet<Miss>>,
}

impl Chunks for Store {
    fn block(&self, chunk: ChunkId, block: u32) -> Option<Bytes> {
        let name = Miss { chunk, block };
        (!self.away.borrow().contains(&name)).then(|| self.blocks[&name].clone())
    }
}

impl Store {
    fn keep(&mut self, chunk: &SealedChunk) {
        for (block, data) in chunk.pieces.iter().take(chunk.directory.blocks.len()).enumerate() {
            self.blocks
                .insert(Miss { chunk: chunk.directory.id, block: block as u32 }, data.clone());
        }
    }

    fn send_all_away(&self) {
        *self.away.borrow_mut() = self.blocks.keys().copied().collect();
    }

    fn fetch(&self, miss: Miss) {
        assert!(self.away.borrow_mut().remove(&miss), "{miss} was in memory");
    }
}

#[derive(Default)]
struct World {
    index: Index,
    pager: Pager,
    store: Store,
    chains: BTreeMap<PartitionId, Chain>,
    model: BTreeMap<PartitionId, Vec<Found>>,
    frame: u64,
    chunks: u64,
}

#[derive(Clone, Debug)]
struct Publish {
    partition: u32,
    lens: Vec<u32>,
    keyed: bool,
    tags: usize,
    ttl: bool,
    placed: bool,
}

impl World {
    fn publish(&mut self, p: &Publish) {
        self.frame += 1;
        let partition = PartitionId(p.partition);
        let at = UnixMs(1_000_000 + self.frame * 3);
        let tags: Vec<u64> = (0..p.tags as u64).map(|t| 100 + t * 67).collect();
        let lens = if p.placed { &p.lens[..1] } else { &p.lens[..] };
        let entries: Vec<Entry<'_>> = lens
            .iter()
            .enumerate()
            .map(|(i, len)| Entry {
                len: *len,
                key: if p.keyed && i % 2 == 0 { 500 + *len as u64 } else { 0 },
                tags: if i % 3 == 0 { Tags::Slice(&tags) } else { Tags::Slice(&[]) },
                expires: (p.ttl && i % 2 == 1).then(|| at.plus(50)),
                ..Entry::default()
            })
            .collect();
        let model = self.model.entry(partition).or_default();
        let first = model.len() as u64;
        let id = MessageId::from_bits(u128::from(self.frame) << 64 | 7);
        // Numbers do not rise with positions.
        let seqs: Vec<Seq> =
            (0..entries.len() as u64).map(|i| (self.frame * 9) ^ (i * 5)).collect();
        let ids = match (p.placed, p.keyed) {
            (true, _) => Ids::One(id),
            (false, true) => Ids::Seqs(&seqs),
            (false, false) => Ids::Positions,
        };
        let mut body = BodyRef { frame: FrameNo(self.frame), at: 40, len: entries[0].len };
        let entries_of = Entries::Slice(&entries);
        let new = NewMessages { partition, first, body, at, ids, entries: entries_of };
        self.index.add(self.chains.entry(partition).or_default(), new);
        for (i, entry) in entries.iter().enumerate() {
            body.len = entry.len;
            model.push(Found {
                position: first + i as u64,
                body,
                at,
                expires: entry.expires,
                key: entry.key,
                tags: TagSet::of(&entry.tags.to_vec()),
                id: match ids {
                    Ids::Positions => OwnId::Position,
                    Ids::Seqs(seqs) => OwnId::Seq(seqs[i]),
                    Ids::One(id) => OwnId::Other(id),
                },
            });
            body.at += entry.len;
        }
    }

    fn freeze(&mut self) {
        self.index.freeze();
    }

    fn thaw(&mut self) {
        let chains = &mut self.chains;
        self.index.thaw(|partition, with| with(chains.entry(partition).or_default()));
    }

    fn install(&mut self) {
        if let Some(frozen) = self.index.frozen.clone() {
            self.chunks += 1;
            let id = ChunkId { epoch: 1, number: self.chunks };
            let sealed = block::build(&frozen, 9, id);
            self.store.keep(&sealed);
            self.index.install(&sealed);
        }
    }

    /// Carries every `nth` message, whose bodies are frames of their own then.
    fn carry(&mut self, nth: usize) {
        for (partition, messages) in &mut self.model {
            for found in messages.iter_mut().step_by(nth) {
                self.frame += 1;
                found.body = BodyRef { frame: FrameNo(self.frame), at: 3, len: found.body.len };
                let carried = self.index.carried_mut();
                carried.set(&mut self.pager, *partition, found.position, found.body);
            }
        }
    }

    /// Makes one chunk of the first `count`.
    fn fold(&mut self, count: usize) {
        let inputs: Vec<IndexChunk> = self.index.chunks.iter().take(count).cloned().collect();
        let from: Vec<ChunkId> = inputs.iter().map(IndexChunk::id).collect();
        self.chunks += 1;
        let id = ChunkId { epoch: 1, number: self.chunks };
        let (blocks, index) = (&self.store.blocks, &self.index);
        let mut read = |miss: Miss| -> Result<Bytes, ()> { Ok(blocks[&miss].clone()) };
        let mut now = |partition, found: &Found| {
            let carried = index.carried().get(partition, found.position);
            Ok(Some(carried.unwrap_or(found.body)))
        };
        let (chunk, moved) = fold::fold(&inputs, (9, id), &mut read, &mut now).unwrap();
        chunk.iter().for_each(|chunk| self.store.keep(chunk));
        self.index.refold(&from, chunk.as_ref());
        self.index.forget_carried(&mut self.pager, &moved);
    }

    fn walk(&self, partition: PartitionId, range: std::ops::Range<u64>) -> Vec<Found> {
        let mut seen: Vec<Found> = Vec::new();
        loop {
            let from = seen.last().map_or(range.start, |f| f.position + 1);
            let walked = self.index.walk(
                &self.store,
                partition,
                self.chains.get(&partition).copied().unwrap_or_default(),
                from..range.end,
                |found| {
                    seen.push(found.clone());
                    Step::On
                },
            );
            match walked {
                Ok(_) => return seen,
                Err(miss) => self.store.fetch(miss),
            }
        }
    }

    fn check(&self) {
        for away in [false, true] {
            for (partition, model) in &self.model {
                if away {
                    self.store.send_all_away();
                }
                let end = model.len() as u64;
                assert_eq!(&self.walk(*partition, 0..end + 3), model, "{partition}");
                for from in [end / 3, end / 2, end.saturating_sub(1)] {
                    let to = (from + 5).min(end);
                    let part = &model[from as usize..to as usize];
                    assert_eq!(self.walk(*partition, from..to), part, "{partition} {from}..{to}");
                }
            }
        }
        assert_eq!(self.walk(PartitionId(99), 0..10), []);
    }
}

fn publish() -> impl Strategy<Value = Publish> {
    (
        0u32..4,
        prop_oneof![
            3 => proptest::collection::vec(prop_oneof![3 => Just(108u32), 1 => 9u32..5000], 1..8),
            1 => (600usize..1500, 9u32..200).prop_map(|(n, len)| vec![len; n]),
        ],
        any::<bool>(),
        0usize..4,
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(partition, lens, keyed, tags, ttl, placed)| Publish {
            partition,
            lens,
            keyed,
            tags,
            ttl,
            placed,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_was_added_is_found_wherever_it_is(
        steps in proptest::collection::vec((publish(), 0u8..10), 1..40),
    ) {
        let mut world = World::default();
        for (publish, then) in &steps {
            world.publish(publish);
            match then {
                0 => { world.install(); world.freeze(); }
                1 => world.install(),
                2 => world.thaw(),
                3 => world.carry(3),
                4 => world.fold(2),
                _ => {}
            }
        }
        world.check();
        world.install();
        world.check();
        world.carry(2);
        world.check();
        let frozen = world.index.frozen.is_some() || !world.index.active.is_empty();
        world.fold(usize::MAX);
        prop_assert!(world.index.chunks.len() <= 1);
        prop_assert!(frozen || world.index.carried().is_empty());
        world.check();
    }
}

fn plain(partition: u32, count: usize) -> Publish {
    Publish { partition, lens: vec![108; count], keyed: false, tags: 0, ttl: false, placed: false }
}

#[test]
fn a_plain_message_costs_about_a_byte_in_a_chunk() {
    let mut world = World::default();
    for _ in 0..100 {
        world.publish(&plain(1, 1000));
    }
    world.freeze();
    world.install();
    let bytes = world.index.chunks[0].bytes();
    assert!(bytes < 120_000, "{bytes} bytes for 100,000 messages");
    world.check();
}

#[test]
fn a_plain_message_costs_four_bytes_in_the_table_and_finding_it_few_steps() {
    let mut world = World::default();
    for _ in 0..100 {
        world.publish(&plain(1, 1000));
    }
    let bytes = world.index.young_bytes();
    assert!(bytes < 600_000, "{bytes} bytes for 100,000 messages");
}

#[test]
fn a_block_without_a_tag_says_so() {
    let mut world = World::default();
    world.publish(&Publish { tags: 2, ..plain(1, 3) });
    world.freeze();
    world.install();
    let label = &world.index.chunks[0].labels()[0];
    assert!(label.may_have_tag(100) && label.may_have_tag(167));
    assert!(!label.may_have_tag(101));
    assert_eq!((label.first, label.last), ((PartitionId(1), 0), (PartitionId(1), 2)));
}

#[test]
fn the_first_message_at_a_time_is_found_by_halving() {
    let mut world = World::default();
    for _ in 0..10 {
        world.publish(&plain(1, 5));
    }
    let chain = world.chains[&PartitionId(1)];
    let first_at = |time| {
        world.index.first_at(&world.store, PartitionId(1), chain, 0..50, UnixMs(time)).unwrap()
    };
    assert_eq!(first_at(0), 0);
    assert_eq!(first_at(1_000_003), 0);
    assert_eq!(first_at(1_000_004), 5);
    assert_eq!(first_at(1_000_030), 45);
    assert_eq!(first_at(1_000_031), 50);
}

#[test]
fn a_chunk_is_dead_when_no_partition_needs_it() {
    let mut world = World::default();
    for partition in 0..3 {
        world.publish(&plain(partition, 1000));
    }
    world.freeze();
    world.install();
    let mut chunk = world.index.chunks[0].clone();
    let store = &world.store;
    let mut dead = |heads: [Option<u64>; 3]| {
        chunk.advance_dead(store, |p| heads.get(p.0 as usize).copied().flatten()).unwrap()
    };
    assert!(!dead([Some(1000), Some(999), Some(1000)]));
    assert!(!dead([Some(1000), Some(1000), Some(0)]));
    assert!(dead([Some(1000), Some(5000), None]));
}

/// A run at the end of all numbers wrapped around, and so did the positions of its rows.
#[test]
fn a_run_beyond_the_last_position_is_malformed() {
    // No tags; partition 0, the last position of all, two rows of a byte each.
    let block = [&[0, 0][..], &[0xff; 9], &[1, 2, 2, 0, 0]].concat();
    assert!(block::walk_all(&block, |_, _, _| true, |_, _| Step::On).is_err());
}
