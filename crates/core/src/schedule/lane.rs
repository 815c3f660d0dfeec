//! A way through all entries, wherever they are, in the order of their times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::entry::{Item, Key};
use super::run::{Reader, Run};
use super::young::Sorted;
use crate::chunk::{ChunkId, Chunks, Miss};
use crate::words::{PartitionId, UnixMs};

/// Where a lane stands in one source.
#[derive(Debug)]
enum Source {
    Young {
        run: Arc<Sorted>,
        next: usize,
    },
    Run {
        run: Run,
        /// The block that is open, or the next to be opened.
        block: usize,
        open: Option<Reader>,
        head: Option<Box<Item>>,
    },
}

impl Source {
    /// No entry that comes next is earlier; `from` is known besides.
    fn head(&self, from: Key) -> Option<Key> {
        match self {
            Source::Young { run, next } => run.entries.get(*next).map(|entry| entry.key()),
            Source::Run { head: Some(item), .. } => Some(item.key()),
            Source::Run { run, block, .. } => run.first_of(*block).map(|key| key.max(from)),
        }
    }
}

/// A way through all entries.
#[derive(Debug)]
pub struct Lane {
    sources: BTreeMap<u32, Source>,
    next_source: u32,
    heads: BinaryHeap<Reverse<(Key, u32)>>,
    /// Where it began.
    began: Key,
    /// Everything before has been taken out of the sources.
    at: Key,
    /// Whose entries are wanted; of all if there is none.
    only: Vec<PartitionId>,
    /// What was taken out and not used yet, in order.
    pub queue: VecDeque<Item>,
}

impl Lane {
    /// A lane that begins at `at`, of the messages of these partitions, or of all.
    pub fn new(at: Key, only: Vec<PartitionId>) -> Lane {
        Lane {
            sources: BTreeMap::new(),
            next_source: 0,
            heads: BinaryHeap::new(),
            began: at,
            at,
            only,
            queue: VecDeque::new(),
        }
    }

    /// Where it stands: everything before has been taken out.
    pub fn at(&self) -> Key {
        self.at
    }

    /// Where it began.
    pub fn began(&self) -> Key {
        self.began
    }

    fn add(&mut self, source: Source, from: Key) {
        let Some(key) = source.head(from) else { return };
        let number = self.next_source;
        self.next_source += 1;
        self.heads.push(Reverse((key, number)));
        self.sources.insert(number, source);
    }

    /// Adds a sorted run, from `from` on: what is there counts although the lane is
    /// further.
    pub fn add_young(&mut self, run: &Arc<Sorted>, from: Key) {
        self.at = self.at.min(from);
        self.add(Source::Young { run: run.clone(), next: run.from(from) }, from);
    }

    /// Adds a run outside memory, from where the lane stands.
    pub fn add_run(&mut self, run: &Run) {
        let at = self.at;
        let block = run.seek(at);
        self.add(Source::Run { run: run.clone(), block, open: None, head: None }, at);
    }

    /// Takes sorted runs away.
    pub fn remove_young(&mut self, gone: &[Arc<Sorted>]) {
        self.sources.retain(|_, source| match source {
            Source::Young { run, .. } => !gone.iter().any(|gone| Arc::ptr_eq(gone, run)),
            Source::Run { .. } => true,
        });
    }

    /// Takes runs outside memory away.
    pub fn remove_runs(&mut self, gone: &[ChunkId]) {
        self.sources.retain(|_, source| match source {
            Source::Young { .. } => true,
            Source::Run { run, .. } => !gone.contains(&run.id()),
        });
    }

    /// No entry that would be taken next is earlier.
    pub fn head(&mut self) -> Option<Key> {
        while let Some(Reverse((key, number))) = self.heads.peek() {
            if self.sources.contains_key(number) {
                return Some(*key);
            }
            self.heads.pop();
        }
        None
    }

    /// Whether something comes before the last of the queue: it came after that was taken
    /// out.
    pub fn is_behind(&mut self) -> bool {
        let last = self.queue.back().map(Item::key);
        last.is_some() && self.head().is_some_and(|head| Some(head) < last)
    }

    /// Takes the next entry out, if it is due at `upto` or earlier. Blocks that will be
    /// needed soon are added to `ahead`.
    ///
    /// # Errors
    /// A [`Miss`] for the block that is needed first.
    pub fn take(
        &mut self,
        chunks: &impl Chunks,
        upto: UnixMs,
        ahead: &mut Vec<Miss>,
    ) -> Result<Option<Item>, Miss> {
        loop {
            let Some(key) = self.head().filter(|key| key.0 <= upto) else { return Ok(None) };
            let Some(Reverse((_, number))) = self.heads.peek().copied() else { return Ok(None) };
            let at = self.at;
            let Some(source) = self.sources.get_mut(&number) else { return Ok(None) };
            let taken = match source {
                Source::Young { run, next } => {
                    *next += 1;
                    Some(run.entries[*next - 1].item())
                }
                Source::Run { run, block, open, head } => {
                    let taken = head.take();
                    if taken.is_none() && open.is_none() {
                        while !run.may_have(*block, &self.only) && *block < run.len() {
                            *block += 1;
                        }
                        if let Some(miss) = run.miss(*block) {
                            let data = chunks.block(miss.chunk, miss.block).ok_or(miss)?;
                            *open = Some(run.open(*block, data));
                            let next = run.first_of(*block + 1).filter(|key| key.0 <= upto);
                            ahead.extend(next.and_then(|_| run.miss(*block + 1)));
                        }
                    }
                    *head = open
                        .as_mut()
                        .and_then(|reader| reader.find(|item| item.key() >= at).map(Box::new));
                    if head.is_none() {
                        *open = None;
                        *block += 1;
                    }
                    taken.map(|item| *item)
                }
            };
            self.heads.pop();
            match source.head(at) {
                Some(key) => self.heads.push(Reverse((key, number))),
                None => drop(self.sources.remove(&number)),
            }
            // A message that was moved away and back has several entries for one time.
            if let Some(item) = taken.filter(|_| key >= at) {
                debug_assert_eq!(item.key(), key);
                self.at = (key.0, key.1 + 1);
                if self.only.is_empty() || self.only.contains(&item.partition) {
                    return Ok(Some(item));
                }
            }
        }
    }
}
