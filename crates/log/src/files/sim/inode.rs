//! One simulated file: what a program sees of it, and what the disk holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::rng::Rng;

/// What a power cut can tear a write into.
pub(super) const SECTOR_BYTES: usize = 512;
/// What room on the disk is given out in.
pub(super) const BLOCK_BYTES: usize = 4096;

type Sector = [u8; SECTOR_BYTES];

/// The content of a file, twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// As the program sees it. Shared, as the other one is, until it is written: most
    /// files of a disk are the same before and after a power cut, and on a copy of it.
    cache: Arc<Vec<u8>>,
    /// As it would be found after a power cut in which nothing more got written.
    disk: Arc<Vec<u8>>,
    /// Sectors written since the last sync, with every content they had: any of
    /// them may be what reaches the disk.
    dirty: BTreeMap<usize, Vec<Sector>>,
    /// Sectors whose write failed: shown by the cache, not on the disk, and not
    /// going to be written any more.
    stray: BTreeSet<usize>,
    /// Which blocks have room on the disk.
    blocks: Vec<bool>,
    allocated: u64,
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.cache.len() as u64
    }

    /// Bytes of room this file takes.
    pub(super) fn room(&self) -> u64 {
        self.allocated * BLOCK_BYTES as u64
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let from = (offset as usize).min(self.cache.len());
        let n = buf.len().min(self.cache.len() - from);
        buf[..n].copy_from_slice(&self.cache[from..from + n]);
        n
    }

    /// Room that must be found before the bytes from `from` to `to` can be written.
    pub(super) fn room_needed(&self, from: u64, to: u64) -> u64 {
        let blocks = from as usize / BLOCK_BYTES..(to as usize).div_ceil(BLOCK_BYTES);
        let new = blocks.filter(|b| !self.blocks.get(*b).is_some_and(|has| *has)).count();
        (new * BLOCK_BYTES) as u64
    }

    /// Gives the bytes from `from` to `to` room.
    pub(super) fn take_room(&mut self, from: u64, to: u64) {
        let end = (to as usize).div_ceil(BLOCK_BYTES);
        if self.blocks.len() < end {
            self.blocks.resize(end, false);
        }
        for block in from as usize / BLOCK_BYTES..end {
            self.allocated += u64::from(!self.blocks[block]);
            self.blocks[block] = true;
        }
    }

    pub(super) fn grow(&mut self, len: u64) {
        if self.cache.len() < len as usize {
            Arc::make_mut(&mut self.cache).resize(len as usize, 0);
        }
    }

    /// Cuts off what lies behind `len` bytes. It is gone from the disk with the next sync.
    pub(super) fn truncate(&mut self, len: u64) {
        let len = len as usize;
        if self.cache.len() <= len {
            return;
        }
        Arc::make_mut(&mut self.cache).truncate(len);
        let (sectors, blocks) = (len.div_ceil(SECTOR_BYTES), len.div_ceil(BLOCK_BYTES));
        self.dirty.split_off(&sectors);
        self.stray.split_off(&sectors);
        let freed = self.blocks.drain(blocks.min(self.blocks.len())..).filter(|has| *has).count();
        self.allocated -= freed as u64;
    }

    /// Writes into the cache. Room has been taken before.
    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let from = offset as usize;
        let to = from + data.len();
        self.grow(to as u64);
        Arc::make_mut(&mut self.cache)[from..to].copy_from_slice(data);
        for sector in from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES) {
            let content = self.sector(sector);
            self.dirty.entry(sector).or_default().push(content);
        }
    }

    fn sector(&self, sector: usize) -> Sector {
        let mut content = [0; SECTOR_BYTES];
        let from = sector * SECTOR_BYTES;
        let to = (from + SECTOR_BYTES).min(self.cache.len());
        content[..to - from].copy_from_slice(&self.cache[from..to]);
        content
    }

    fn put_on_disk(&mut self, sector: usize, content: &Sector) {
        let from = sector * SECTOR_BYTES;
        let to = (from + SECTOR_BYTES).min(self.disk.len());
        if from < to {
            Arc::make_mut(&mut self.disk)[from..to].copy_from_slice(&content[..to - from]);
        }
    }

    /// Whether something was written that need not reach the disk.
    pub(super) fn has_unsynced(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// All that was written reaches the disk.
    pub(super) fn sync(&mut self) {
        if self.disk.len() != self.cache.len() {
            Arc::make_mut(&mut self.disk).resize(self.cache.len(), 0);
        }
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if let Some(last) = versions.last() {
                self.put_on_disk(sector, last);
            }
            self.stray.remove(&sector);
        }
    }

    /// A sync that failed: some of it reached the disk, and the rest is forgotten.
    pub(super) fn sync_fails(&mut self, rng: &mut Rng) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            match versions.last() {
                Some(last) if rng.chance(1, 2) => self.put_on_disk(sector, last),
                _ => {
                    self.stray.insert(sector);
                }
            }
        }
    }

    /// The cache lets go of what it need not write.
    pub(super) fn evict(&mut self) {
        for sector in std::mem::take(&mut self.stray) {
            if self.dirty.contains_key(&sector) {
                self.stray.insert(sector);
                continue;
            }
            let from = sector * SECTOR_BYTES;
            let to = (from + SECTOR_BYTES).min(self.cache.len());
            let on_disk = to.min(self.disk.len()).max(from);
            let cache = Arc::make_mut(&mut self.cache);
            cache[from..to].fill(0);
            let held = on_disk - from;
            cache[from..from + held].copy_from_slice(&self.disk[from..on_disk]);
        }
    }

    /// The power fails: of what was not synced each sector is written or not.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        // Whole files lost and whole files kept must be as likely as any mixture.
        let part = *rng.pick(&[0, 1, 4, 7, 8]);
        if self.cache.len() != self.disk.len() && rng.chance(part, 8) {
            Arc::make_mut(&mut self.disk).resize(self.cache.len(), 0);
        }
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if rng.chance(part, 8) {
                let content = *rng.pick(&versions);
                self.put_on_disk(sector, &content);
            }
        }
        self.cache = self.disk.clone();
        self.stray.clear();
    }

    /// Turns one bit, on the disk and in the cache.
    pub(super) fn flip(&mut self, bit: u64) {
        let (byte, mask) = ((bit / 8) as usize, 1u8 << (bit % 8));
        for side in [&mut self.cache, &mut self.disk] {
            if let Some(byte) = Arc::make_mut(side).get_mut(byte) {
                *byte ^= mask;
            }
        }
    }

    /// The content, as a program sees it.
    pub(super) fn content(&self) -> &[u8] {
        &self.cache
    }

    /// Sets the content, on the disk and in the cache.
    pub(super) fn set_content(&mut self, content: Vec<u8>) {
        self.take_room(0, content.len() as u64);
        self.dirty.clear();
        self.stray.clear();
        self.cache = Arc::new(content);
        self.disk = self.cache.clone();
    }
}
