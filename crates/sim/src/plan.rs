//! What a seed stands for: who takes part in a run, and what goes wrong in it.

use std::collections::BTreeSet;

use posthouse_log::rng::Rng;

macro_rules! parts {
    ($($(#[$doc:meta])* $part:ident $name:literal $chance:literal,)*) => {
        /// Something that a run may have. Taken out one by one when a run is shrunk.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Part { $($(#[$doc])* $part,)* }

        impl Part {
            /// All of them.
            pub const ALL: &[Part] = &[$(Part::$part,)*];

            /// As the command line calls it.
            pub fn name(self) -> &'static str {
                match self { $(Part::$part => $name,)* }
            }

            /// In how many of 100 runs it takes part.
            fn chance(self) -> u64 {
                match self { $(Part::$part => $chance,)* }
            }
        }
    };
}

parts! {
    /// Publishers whose messages have publish ids, and are published again.
    Dedupe "dedupe" 60,
    /// Messages with keys.
    Keys "keys" 75,
    /// Several messages in one publish.
    Batches "batches" 60,
    /// Messages that do not live long.
    Ttl "ttl" 25,
    /// Larger bodies.
    Large "large" 25,
    /// Messages that come later, and are moved and called back.
    Later "later" 65,
    /// Messages that wait for a decision, and producers that do not make it.
    Transactions "transactions" 60,
    /// Messages that recur.
    Recurring "recurring" 35,
    /// A group that keeps the order of keys.
    Keyed "keyed" 60,
    /// A group whose messages are acknowledged with the grant.
    Auto "auto" 40,
    /// A group with a filter that is decided on hashes.
    Picky "picky" 45,
    /// A group with a filter that needs the text.
    Text "text" 35,
    /// Consumers that give messages back.
    Nacks "nacks" 60,
    /// Consumers that are never heard of again.
    Vanish "vanish" 50,
    /// Consumers that answer when their lease has ended.
    Late "late" 50,
    /// Consumers that need longer.
    Extends "extends" 40,
    /// An operator who gives dead letters another chance.
    Redrive "redrive" 50,
    /// Topics that let go of messages soon.
    Retention "retention" 40,
    /// The power fails.
    Power "power" 55,
    /// The process is killed.
    Kill "kill" 45,
    /// The node is stopped, and started again.
    Stop "stop" 35,
    /// What was begun is interrupted: recovery too.
    Recovery "recovery" 40,
    /// Blocks of chunks are not in memory.
    Misses "misses" 45,
    /// Calls to the disk fail.
    Errors "errors" 25,
    /// The disk has no room for a while.
    Full "full" 20,
    /// Reads and writes take less than they are given.
    Short "short" 25,
    /// Syncs take long.
    Slow "slow" 40,
    /// The wall clock is set.
    Steps "steps" 35,
    /// The wall clock runs fast or slow.
    Drift "drift" 30,
    /// Time passes in leaps.
    Leaps "leaps" 50,
    /// Beside it, owners of a replicated log.
    Fenced "fenced" 50,
    /// Bits of copies of the disk are turned.
    Flips "flips" 25,
    /// The data directory is one of an older format.
    Upgrade "upgrade" 5,
}

/// A run, before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all choices come from.
    pub seed: u64,
    /// Steps before faults stop.
    pub steps: u32,
    /// Shards of the node.
    pub shards: u16,
    /// Of 100 blocks so many are not in memory when they are needed, with
    /// [`Part::Misses`].
    pub miss_percent: u64,
    /// What the run has.
    parts: BTreeSet<Part>,
    /// What was taken out of it.
    pub without: BTreeSet<Part>,
}

/// Steps of a run unless it is told otherwise.
pub const STEPS: u32 = 1500;

impl Plan {
    /// The run that a seed stands for.
    pub fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed ^ 0x9a1b_0c77);
        let shards = *rng.pick(&[1, 1, 2, 4]);
        let miss_percent = *rng.pick(&[10, 50, 100]);
        let parts = Part::ALL.iter().copied().filter(|part| rng.chance(part.chance(), 100));
        let parts: BTreeSet<Part> = parts.collect();
        // As many as the old one has.
        let shards = if parts.contains(&Part::Upgrade) { 1 } else { shards };
        Plan { seed, steps: STEPS, shards, miss_percent, parts, without: BTreeSet::new() }
    }

    /// The same, with so many steps.
    #[must_use]
    pub fn of_steps(self, steps: u32) -> Plan {
        Plan { steps, ..self }
    }

    /// The same, without some of what it has.
    #[must_use]
    pub fn but(mut self, without: impl IntoIterator<Item = Part>) -> Plan {
        self.without.extend(without);
        self
    }

    /// Whether the run has something.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part) && !self.without.contains(&part)
    }

    /// What the run has.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.parts.iter().copied().filter(|part| self.has(*part))
    }

    /// The command that repeats the run.
    pub fn command(&self) -> String {
        let mut command = format!("cargo run -p sim -- --seed {}", self.seed);
        if self.steps != STEPS {
            command += &format!(" --steps {}", self.steps);
        }
        if !self.without.is_empty() {
            let names: Vec<&str> = self.without.iter().map(|part| part.name()).collect();
            command += &format!(" --without {}", names.join(","));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_something_out_leaves_the_rest_as_it_was() {
        let plan = Plan::of(3);
        let out = plan.parts().next().unwrap();
        let less = Plan::of(3).but([out]);
        let rest: Vec<Part> = plan.parts().filter(|part| *part != out).collect();
        assert_eq!(less.parts().collect::<Vec<_>>(), rest);
        assert!(less.command().ends_with(&format!("--seed 3 --without {}", out.name())));
    }
}
