//! Owners of a replicated log, of which each believes for a while that it is the only one:
//! frames get lost, come twice, late and in another order, owners are replaced and do not
//! know it.
//!
//! The log is the one in memory that stands for a partition of a replicated one; its rule
//! is the one that all implementations share. What must hold: a frame that an owner called
//! durable stands in the log for ever, under its number; nobody else's does; each frame is
//! there once; and all readers see the same.

use std::collections::{BTreeMap, BTreeSet};

use posthouse_frame::{FrameBuf, FrameNo, Kind};
use posthouse_log::memory::{MemoryOptions, Mischief, Partition, SharedLog};
use posthouse_log::rng::Rng;
use posthouse_log::{Log as _, LogReader as _, LogState, Part};

use crate::check::Violation;

/// Steps before everything arrives.
const STEPS: u32 = 250;

/// Runs of a seed: each takes little.
const RUNS: u32 = 20;

/// The most owners, one after the other.
const OWNERS: usize = 6;

/// What there was of each kind.
pub type Counts = BTreeMap<&'static str, u64>;

/// One that claims the log.
struct Owner {
    log: SharedLog,
    /// What it sent, by number.
    sent: BTreeMap<u64, u64>,
}

impl Owner {
    fn is_open(&self) -> bool {
        matches!(self.log.reader().state(), LogState::Durable(_))
    }
}

struct Sea {
    rng: Rng,
    partition: Partition,
    owners: Vec<Owner>,
    /// What owners have called durable, by number: which frame.
    promised: BTreeMap<u64, u64>,
    frames: u64,
    counts: Counts,
}

fn broken(what: String) -> Violation {
    Violation::new(1, "fencing", what)
}

/// Carries out the runs of a seed.
///
/// # Errors
/// What must not be.
pub fn run(seed: u64) -> (Result<(), Violation>, Counts) {
    let mut rng = Rng::new(seed ^ 0x0f3ced);
    let mut counts = Counts::new();
    for _ in 0..RUNS {
        let (outcome, more) = one(rng.split());
        more.into_iter().for_each(|(name, n)| *counts.entry(name).or_default() += n);
        if outcome.is_err() {
            return (outcome, counts);
        }
    }
    (Ok(()), counts)
}

fn one(mut rng: Rng) -> (Result<(), Violation>, Counts) {
    let partition = Partition::new(rng.next_u64());
    let mut sea = Sea {
        rng,
        partition,
        owners: Vec::new(),
        promised: BTreeMap::new(),
        frames: 0,
        counts: Counts::new(),
    };
    let outcome = sea.sail();
    (outcome, sea.counts)
}

impl Sea {
    fn see(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn sail(&mut self) -> Result<(), Violation> {
        self.claim();
        for _ in 0..STEPS {
            self.step();
            self.listen()?;
        }
        self.partition.set_mischief(Mischief::default());
        self.partition.land();
        for at in 0..self.owners.len() {
            self.owners[at].log.poll();
        }
        self.listen()?;
        self.claim();
        let last = self.owners.len() - 1;
        for _ in 0..3 {
            self.submit(last);
        }
        self.owners[last].log.settle();
        self.listen()?;
        if self.owners[last].log.backlog() > 0 {
            return Err(broken("the last owner cannot write, and nothing is in its way".into()));
        }
        self.look()
    }

    fn step(&mut self) {
        let roll = self.rng.below(100);
        let which = self.rng.below(self.owners.len() as u64) as usize;
        match roll {
            0..35 => self.submit(which),
            35..55 => self.owners[which].log.poll(),
            55..62 => self.owners[which].log.resend(),
            62..88 => drop(self.partition.land_one()),
            88..92 if self.owners.len() < OWNERS => self.claim(),
            92..96 => {
                let percent = |rng: &mut Rng| *rng.pick(&[0, 0, 10, 40]);
                let (lose, repeat) = (percent(&mut self.rng), percent(&mut self.rng));
                let delay = percent(&mut self.rng);
                self.partition.set_mischief(Mischief { lose, repeat, delay });
                for (name, percent) in
                    [("frames lost", lose), ("frames twice", repeat), ("frames late", delay)]
                {
                    if percent > 0 {
                        self.see(name);
                    }
                }
            }
            _ => {}
        }
    }

    fn claim(&mut self) {
        let writer = self.rng.next_u64() as u32;
        let options = MemoryOptions { auto: false, writer, ..MemoryOptions::default() };
        if let Ok(log) = SharedLog::open(&self.partition, options) {
            if self.owners.iter().any(Owner::is_open) {
                self.see("owner replaced");
            }
            self.owners.push(Owner { log, sent: BTreeMap::new() });
        }
    }

    fn submit(&mut self, which: usize) {
        self.frames += 1;
        let name = self.frames;
        let owner = &mut self.owners[which];
        if !owner.is_open() {
            return;
        }
        let no = owner.log.tail().next();
        let mut frame = FrameBuf::new(no);
        frame.record(1, |out| out.extend_from_slice(&name.to_le_bytes()));
        let newest = self.owners.len() - 1;
        let owner = &mut self.owners[which];
        if owner.log.submit(frame.seal(0, 0)).is_ok() {
            owner.sent.insert(no.0, name);
            if which < newest {
                self.see("frame of a zombie");
            }
        }
    }

    /// Hears what owners call durable.
    fn listen(&mut self) -> Result<(), Violation> {
        for (at, owner) in self.owners.iter().enumerate() {
            let durable = owner.log.reader().state().durable();
            for (no, name) in owner.sent.range(..=durable.0) {
                let first = *self.promised.entry(*no).or_insert(*name);
                if first != *name {
                    let what = format!("frame {no} is {first}, and owner {at} says {name}");
                    return Err(broken(what));
                }
            }
            let fenced = matches!(owner.log.reader().state(), LogState::Fenced { .. });
            if fenced {
                self.counts.entry("zombie found out").or_insert(1);
            }
        }
        Ok(())
    }

    /// Looks at the log from its beginning to its end, through all that have read it.
    fn look(&mut self) -> Result<(), Violation> {
        let all: Vec<Vec<(FrameNo, Option<u64>)>> = self.owners.iter().map(read).collect();
        let Some(whole) = all.last() else { return Ok(()) };
        let numbers: Vec<u64> = whole.iter().map(|(no, _)| no.0).collect();
        if numbers != (1..=whole.len() as u64).collect::<Vec<u64>>() {
            return Err(broken(format!("frames {numbers:?}")));
        }
        for (at, seen) in all.iter().enumerate() {
            if seen[..] != whole[..seen.len().min(whole.len())] {
                return Err(broken(format!("owner {at} has read another log than the last")));
            }
        }
        let mut once = BTreeSet::new();
        for (no, name) in whole.iter().filter_map(|(no, name)| Some((no, (*name)?))) {
            if !once.insert(name) {
                return Err(broken(format!("frame {name} is there twice, at {no} too")));
            }
            let is_sent = self.owners.iter().any(|owner| owner.sent.get(&no.0) == Some(&name));
            if !is_sent {
                return Err(broken(format!("nobody has sent frame {name} as number {no}")));
            }
        }
        for (no, name) in &self.promised {
            let found = whole.get(*no as usize - 1).and_then(|(_, name)| *name);
            if found != Some(*name) {
                let what = format!("frame {no} was called durable as {name}, and is {found:?}");
                return Err(broken(what));
            }
        }
        Ok(())
    }
}

/// What an owner has read: numbers, and which frame that is.
fn read(owner: &Owner) -> Vec<(FrameNo, Option<u64>)> {
    let scan = owner.log.reader().scan(FrameNo::ZERO, Part::Meta);
    let frames = scan.into_iter().flatten().map_while(Result::ok);
    frames
        .map(|frame| {
            let is_data = frame.header.kind == Kind::Data;
            let name = is_data.then(|| frame.meta.last_chunk::<8>().copied());
            (frame.header.frame_no, name.flatten().map(u64::from_le_bytes))
        })
        .collect()
}
