//! Bugs that are in the sources on purpose, behind the feature `planted`: a checker that
//! has never found one proves nothing.

use std::path::Path;
use std::{fs, io};

/// A bug.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    /// What the sources call it.
    pub name: &'static str,
    /// What it does.
    pub story: &'static str,
}

/// In so many seeds each has to be found.
pub const WITHIN: u64 = 300;

/// What stands before and behind the table in a document.
const AROUND: [&str; 2] = ["<!-- planted: from here", "<!-- planted: to here -->\n"];

/// Puts the table of who found which bug into a document, in place of the one before.
///
/// # Errors
/// If it cannot be read or written, or has no place for the table.
pub fn put_table(document: &Path, table: &str) -> io::Result<()> {
    let text = fs::read_to_string(document)?;
    let place = || {
        let (before, rest) = text.split_once(AROUND[0])?;
        let (line, rest) = rest.split_once('\n')?;
        let (_, after) = rest.split_once(AROUND[1])?;
        Some(format!("{before}{}{line}\n{table}{}{after}", AROUND[0], AROUND[1]))
    };
    let none = || io::Error::other(format!("there is no line {:?}", AROUND[0]));
    fs::write(document, place().ok_or_else(none)?)
}

macro_rules! bugs {
    ($($name:literal: $story:literal,)*) => {
        /// All of them.
        pub const BUGS: &[Bug] = &[$(Bug { name: $name, story: $story },)*];
    };
}

bugs! {
    "sync-skipped": "the log calls frames durable without a sync",
    "durable-before-sync": "a frame is called durable when it is written, and synced then",
    "rotated-unsynced": "a segment that is full is left without a last sync",
    "sync-error-ignored": "a sync that fails passes for one that did not",
    "sync-covers-later-writes": "what is written while a sync runs counts as synced by it",
    "claims-unsynced": "frames on the disk call themselves durable before a sync",
    "manifest-unsynced": "a manifest is renamed into place before it is synced",
    "manifest-name-unsynced": "the directory is not synced after a manifest is renamed",
    "chunk-unsynced": "a manifest names chunks that are not synced",
    "chunk-name-unsynced": "a manifest names chunk files whose directory is not synced",
    "live-segment-freed": "segments go although messages are in them",
    "tail-not-replayed": "opening replays only the first frames behind the snapshot",
    "spans-not-replayed": "a start does not count anew what the frames behind the snapshot occupy",
    "page-left-out": "a snapshot leaves some of the changed pages out",
    "lost-pages-forgotten": "after a snapshot that failed, the next one has only what changed since",
    "index-not-named": "a manifest does not name the new chunk of the index",
    "index-removed": "a start removes a chunk that the manifest needs",
    "run-not-named": "a manifest does not name the new run of the schedule",
    "run-not-installed": "a new run of the schedule is not taken into use",
    "schedule-resumes-late": "after a start the schedule begins behind what was due at the snapshot",
    "leases-not-restored": "leases that a snapshot holds do not end after a start",
    "keys-not-restored": "keys that a snapshot holds are free after a start",
    "fence-restarts": "the counter of grants begins anew after a start",
    "gate-open": "replies and messages leave before what they rest on is durable",
    "gate-off-by-one": "replies and messages leave one frame early",
    "failed-answered": "when the log fails, what waits for it is answered as if it had not",
    "fetched-untold": "who waits for a block is not told that it has come",
    "any-fence": "any receipt of a message that somebody has will do",
    "settle-loses-last": "of several receipts the last is answered and not recorded",
    "nack-at-once": "what is given back for a time comes at once",
    "extend-unrecorded": "an extension is answered and not recorded",
    "extended-for-ever": "a lease that was extended does not end",
    "lease-of-before": "a lease that was extended ends when it would have before",
    "attempt-not-kept": "a second grant counts as the first",
    "one-attempt-more": "there is one attempt more than the group allows",
    "buried-and-kept": "a message becomes a dead letter, and stays with its group",
    "buried-twice": "a message becomes two dead letters",
    "letter-not-written": "after its last attempt a message is passed over",
    "letter-stays": "a letter that was redriven stays a letter",
    "redriven-again": "a letter that was redriven can be redriven again",
    "conflict-unseen": "another message under a known publish id passes for a duplicate",
    "ids-of-last-second": "publish ids are known for a second only",
    "ids-forgotten": "publish ids are forgotten when they are 100 ms old",
    "position-ahead": "with a duplicate in a batch, positions are answered one too high",
    "publish-in-part": "of a publish that is refused, the first batches are taken",
    "skip-dropped": "what was passed over is not recorded in the state",
    "chain-dropped": "messages that wait for their key are not recorded in the state",
    "keys-ignored": "a group that keeps the order of keys does not",
    "nack-lets-key-go": "a message that is given back does not hold up its key",
    "floor-one-far": "the floor of a group moves one message too far",
    "passed-over": "now and then a message is passed over",
    "search-off-by-one": "a search that has found enough goes on one message too far",
    "filter-forgotten": "now and then a message passes a filter that it should not",
    "text-unread": "filters on the text let everything through",
    "judged-off-by-one": "the last message that is judged by its text does not pass",
    "trimmed-too-far": "messages go when one group is done with them, not all",
    "fired-early": "scheduled messages come 40 ms early",
    "fired-body-off": "the body of a scheduled message is taken from another place",
    "move-unrecorded": "a reschedule is answered and not recorded",
    "moved-nowhere": "a message that was moved is in no queue any more",
    "cancel-loses-rest": "of several cancels only the first is recorded",
    "prepared-comes": "messages of a transaction do not wait for its decision",
    "prepared-twice": "what is prepared again is another transaction",
    "commit-in-part": "a commit leaves out the first of several partitions",
    "commit-forgets-delay": "what comes later than its commit comes 100 ms early",
    "late-unsaid": "who commits what was decided is told that it was his decision",
    "rollback-overrules": "a rollback after a commit is answered as if it had been in time",
    "rollback-keeps-one": "a rollback leaves the first message waiting for ever",
    "check-unrecorded": "producers are asked, and that is not recorded",
    "one-check-more": "producers are asked once more than allowed",
    "parked-dropped": "what nobody has decided is rolled back instead of parked",
    "transactions-not-restored": "transactions that a snapshot holds are not found after a start",
    "recur-unrecorded": "a recurring message comes, and that it did is not recorded",
    "recur-left-out": "now and then a time of a recurring message is left out",
    "zombie-accepted": "frames of an owner that was replaced count",
    "gap-accepted": "a frame counts although one before it is missing",
    "repeat-accepted": "a frame that comes again counts again",
    "durable-when-sent": "an owner calls a frame durable before it has read it back",
    "cancelled-comes": "some that were called back come nevertheless",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names_in(dir: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names_in(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let calls = text.split("planted(\"").skip(1);
                names.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
            }
        }
    }

    #[test]
    fn the_table_has_the_bugs_that_the_sources_have() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut planted = BTreeSet::new();
        for name in ["core", "log", "posthouse"] {
            names_in(&crates.join(name).join("src"), &mut planted);
        }
        let listed: BTreeSet<String> = BUGS.iter().map(|bug| bug.name.to_owned()).collect();
        assert_eq!(planted, listed);
        assert_eq!(listed.len(), BUGS.len(), "each is listed once");
    }
}
