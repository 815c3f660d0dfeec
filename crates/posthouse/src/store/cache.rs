//! Blocks of chunks that are in memory: what the core sees of them.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use posthouse_core::chunk::{ChunkId, Chunks, Miss};

/// A cache with a bound in bytes. Belongs to one shard's thread; second chance: a
/// block that was used since it was last looked at stays another round.
#[derive(Debug)]
pub struct BlockCache {
    blocks: HashMap<Miss, Cached>,
    order: VecDeque<Miss>,
    bytes: usize,
    capacity: usize,
    misses: u64,
}

#[derive(Debug)]
struct Cached {
    data: Bytes,
    used: Cell<bool>,
}

impl BlockCache {
    /// A cache of at most `capacity` bytes, taken as blocks come.
    pub fn new(capacity: usize) -> Self {
        BlockCache { blocks: HashMap::new(), order: VecDeque::new(), bytes: 0, capacity, misses: 0 }
    }

    /// Puts a block in; others go if there is no room.
    pub fn insert(&mut self, name: Miss, data: Bytes) {
        self.misses += 1;
        let len = data.len();
        let cached = Cached { data, used: Cell::new(false) };
        if let Some(before) = self.blocks.insert(name, cached) {
            self.bytes = self.bytes - before.data.len() + len;
            return;
        }
        // Room is made before the new one is in line: whoever asked for it finds it.
        while self.bytes + len > self.capacity && !self.order.is_empty() {
            self.evict();
        }
        self.bytes += len;
        self.order.push_back(name);
    }

    fn evict(&mut self) {
        let Some(name) = self.order.pop_front() else { return };
        let Some(cached) = self.blocks.get(&name) else { return };
        if cached.used.replace(false) {
            self.order.push_back(name);
        } else {
            self.bytes -= cached.data.len();
            self.blocks.remove(&name);
        }
    }

    /// Forgets the blocks of a chunk that is no more.
    pub fn forget(&mut self, chunk: ChunkId) {
        self.order.retain(|name| name.chunk != chunk);
        self.blocks.retain(|name, _| name.chunk != chunk);
        self.bytes = self.blocks.values().map(|cached| cached.data.len()).sum();
    }

    /// Lets go of blocks. Returns how many.
    pub fn forget_blocks(&mut self, which: impl Fn(Miss) -> bool) -> usize {
        let before = self.order.len();
        self.order.retain(|name| !which(*name));
        self.blocks.retain(|name, _| !which(*name));
        self.bytes = self.blocks.values().map(|cached| cached.data.len()).sum();
        before - self.order.len()
    }

    /// Bytes of the blocks in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many blocks have been fetched.
    pub fn fetched(&self) -> u64 {
        self.misses
    }
}

impl Chunks for BlockCache {
    fn block(&self, chunk: ChunkId, block: u32) -> Option<Bytes> {
        let cached = self.blocks.get(&Miss { chunk, block })?;
        cached.used.set(true);
        Some(cached.data.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(block: u32) -> Miss {
        Miss { chunk: ChunkId { epoch: 1, number: 1 }, block }
    }

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let mut cache = BlockCache::new(1000);
        for block in 0..100 {
            cache.insert(name(block), Bytes::from(vec![0; 100]));
            assert!(cache.bytes() <= 1000);
            assert!(cache.block(name(0).chunk, 0).is_some(), "block 0 is used all the time");
        }
        assert!(cache.block(name(1).chunk, 1).is_none());
        cache.forget(name(0).chunk);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_block_larger_than_the_cache_is_there_once() {
        let mut cache = BlockCache::new(10);
        cache.insert(name(1), Bytes::from(vec![0; 100]));
        assert!(cache.block(name(1).chunk, 1).is_some());
        cache.insert(name(2), Bytes::from(vec![0; 100]));
        assert!(cache.block(name(2).chunk, 2).is_some());
    }
}
