//! What runs came across: counts, and what was never reached.

use std::collections::BTreeMap;

/// What is counted in runs.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Runs.
    pub runs: u64,
    /// Steps.
    pub steps: u64,
    /// Events that clients saw or caused.
    pub events: u64,
    /// Milliseconds that passed for them.
    pub virtual_ms: u64,
    /// Starts of a node.
    pub boots: u64,
    /// Starts that were refused for something that the run had done.
    pub refused_starts: u64,
    /// Power cuts that struck.
    pub power: u64,
    /// Recoveries that were interrupted on a copy of the disk.
    pub interrupted: u64,
    /// Nodes that ended because their log had failed.
    pub failed: u64,
    /// Batches that a log wrote.
    pub frames: u64,
    /// Steps of snapshots.
    pub snapshot_steps: u64,
    /// How often the live state was compared with what is on the disk.
    pub compared: u64,
    /// How often the data directory was verified.
    pub verified: u64,
    /// Faults, by their kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Records in the logs at the end, by their kind.
    pub records: BTreeMap<&'static str, u64>,
    /// What clients saw, by its kind.
    pub seen: BTreeMap<&'static str, u64>,
}

impl Figures {
    /// Adds the figures of other runs.
    pub fn add(&mut self, other: &Figures) {
        for (to, from) in [
            (&mut self.runs, other.runs),
            (&mut self.steps, other.steps),
            (&mut self.events, other.events),
            (&mut self.virtual_ms, other.virtual_ms),
            (&mut self.boots, other.boots),
            (&mut self.refused_starts, other.refused_starts),
            (&mut self.power, other.power),
            (&mut self.interrupted, other.interrupted),
            (&mut self.failed, other.failed),
            (&mut self.frames, other.frames),
            (&mut self.snapshot_steps, other.snapshot_steps),
            (&mut self.compared, other.compared),
            (&mut self.verified, other.verified),
        ] {
            *to += from;
        }
        for (to, from) in [
            (&mut self.faults, &other.faults),
            (&mut self.records, &other.records),
            (&mut self.seen, &other.seen),
        ] {
            from.iter().for_each(|(name, count)| *to.entry(name).or_default() += count);
        }
    }
}

/// Faults that a long search must have come across.
pub const FAULTS: &[&str] = &[
    "clock set",
    "create fails",
    "flip harmless",
    "flip refused",
    "frame of a zombie",
    "frames late",
    "frames lost",
    "frames twice",
    "full",
    "kill",
    "miss",
    "old format",
    "owner replaced",
    "power",
    "power after answers",
    "power in a snapshot",
    "power in recovery",
    "power soon",
    "read fails",
    "short",
    "slow sync",
    "stop",
    "sync fails",
    "write fails",
    "zombie found out",
];

/// Kinds of records that a long search must have come across.
pub const RECORDS: &[&str] = &[
    "Ack",
    "Attach",
    "Cancel",
    "Carry",
    "Chain",
    "Check",
    "Commit",
    "Extend",
    "Fire",
    "Grant",
    "Nack",
    "Open",
    "Park",
    "Place",
    "Prepare",
    "Publish",
    "Recur",
    "Reschedule",
    "Rollback",
    "Schedule",
    "Skip",
    "Snapshot",
    "Sweep",
    "Trim",
];

/// What clients must have seen in a long search.
pub const SEEN: &[&str] = &[
    "ack already",
    "ack ok",
    "ack stale",
    "asked",
    "asked again",
    "cancel fired",
    "committed",
    "conflict",
    "dead letter",
    "decided late",
    "delivered",
    "delivered again",
    "duplicate",
    "extend ok",
    "move cancelled",
    "move done",
    "nack ok",
    "name kept",
    "parked",
    "prepared",
    "prepared again",
    "published",
    "published later",
    "recurred",
    "redriven",
    "refused",
    "rolled back",
    "unanswered",
    "unknown",
];

impl Figures {
    /// What was never come across, of what there is to come across.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (sort, names, counts) in [
            ("fault", FAULTS, &self.faults),
            ("record", RECORDS, &self.records),
            ("transition", SEEN, &self.seen),
        ] {
            let never = names.iter().filter(|name| !counts.contains_key(*name));
            missing.extend(never.map(|name| format!("{sort} {name:?}")));
        }
        missing
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} seeds, {} steps, {} events, {} s of their time",
            self.runs,
            self.steps,
            self.events,
            self.virtual_ms / 1000
        )?;
        writeln!(
            f,
            "{} starts ({} refused), {} power cuts, {} failed logs, {} recoveries interrupted",
            self.boots, self.refused_starts, self.power, self.failed, self.interrupted
        )?;
        writeln!(
            f,
            "{} batches written, {} steps of snapshots, {} times live and found state compared, \
             {} times everything verified",
            self.frames, self.snapshot_steps, self.compared, self.verified
        )?;
        for (title, counts) in
            [("faults", &self.faults), ("records", &self.records), ("seen", &self.seen)]
        {
            let all: Vec<String> =
                counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "{title}: {}", all.join(", "))?;
        }
        Ok(())
    }
}
