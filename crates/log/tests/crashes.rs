//! A log and a model of it, through crashes of the process and of the machine.
//!
//! A run is a list of steps that follows from its seed: frames are handed over,
//! batches written, marks left, spares filled, segments released; calls fail, the
//! disk fills up, the process dies, the power fails, now or in the middle of a call,
//! in the middle of recovery, too. The model knows two things: which frames were
//! handed over, and which the log has called durable. After every opening
//!
//! - what was durable is there, as it was written;
//! - what else is there is the beginning of what was handed over since;
//! - nothing that was cut ever comes back;
//! - a verification finds nothing; nor does it before, whatever a crash has left.
//!
//! `PROPTEST_CASES=100000 cargo test --release --test crashes` searches longer.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::Rig;
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::conformance::Script;
use posthouse_log::files::Files;
use posthouse_log::files::sim::{EIO, ENOSPC, Fault, Op};
use posthouse_log::local::{Durability, LocalLog, OpenError};
use posthouse_log::rng::Rng;
use posthouse_log::{Log, LogReader, Part, ScannedFrame};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// How the log's life goes on after one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Killed,
    PowerCut,
}

struct Run {
    rng: Rng,
    rig: Rig,
    script: Script,
    /// Survives anything.
    safe: FrameNo,
    /// Survives the process.
    told: FrameNo,
    /// The highest number that can have been given to a frame.
    most: FrameNo,
    /// Frames in segments that were released: may be found or not.
    freed: BTreeSet<FrameNo>,
    trace: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::new(seed);
        let mut rig = Rig::new(rng.next_u64());
        rig.options.tail_bytes = *rng.pick(&[0, 4 << 10, 1 << 20]);
        rig.options.align = *rng.pick(&[512, 512, 1024, 4096]);
        let align = u64::from(rig.options.align);
        let least = align.max(4096) + (rig.options.max_frame_bytes as u64).next_multiple_of(align);
        rig.options.segment_bytes = least + align * *rng.pick(&[5, 12, 40]);
        rig.options.durability = *rng.pick(&[
            Durability::Sync,
            Durability::Sync,
            Durability::Interval(Duration::from_millis(1)),
            Durability::Os,
        ]);
        rig.disk.short_io(rng.chance(1, 4));
        let script = Script::new(rng.next_u64(), *rng.pick(&[30, 300, 700]));
        Run {
            rng,
            rig,
            script,
            safe: FrameNo::ZERO,
            told: FrameNo::ZERO,
            most: FrameNo::ZERO,
            freed: BTreeSet::new(),
            trace: Vec::new(),
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    fn all(&mut self, lives: usize) {
        let mut end = End::Closed;
        for _ in 0..lives {
            let mut log = self.open(end);
            end = self.live(&mut log);
            if end == End::Closed {
                let reader = log.reader();
                let clean = log.close().is_open();
                self.safe = self.safe.max(reader.synced());
                self.told = if clean { reader.state().durable() } else { reader.synced() };
                end = if clean { end } else { End::Killed };
            } else {
                drop(log);
            }
        }
    }

    /// One owner's life.
    fn live(&mut self, log: &mut LocalLog) -> End {
        let steps = self.rng.below(40);
        for _ in 0..steps {
            if !log.reader().state().is_open() {
                break;
            }
            self.step(log);
            self.told = self.told.max(log.reader().state().durable().min(log.tail()));
            self.safe = self.safe.max(log.reader().synced());
        }
        if !log.reader().state().is_open() {
            // Under other durabilities a failure takes back what was only told.
            self.told = log.reader().synced();
        }
        match self.rig.disk.is_off() {
            true => End::PowerCut,
            false => *self.rng.pick(&[End::Closed, End::Killed, End::PowerCut]),
        }
    }

    fn step(&mut self, log: &mut LocalLog) {
        match self.rng.below(20) {
            0..=6 => {
                let n = 1 + self.rng.below(5) as usize;
                self.note(format!("submit {n} after {}", log.tail()));
                self.script.submit(log, n);
                self.most = self.most.max(log.tail());
            }
            7..=10 => {
                self.note("step");
                log.step();
            }
            11 => {
                self.note("write");
                log.step_write();
            }
            12 => {
                self.note("sync");
                log.step_sync();
            }
            13 => {
                self.note("idle");
                log.step();
                log.idle();
            }
            14 | 15 => {
                log.tend();
            }
            16 | 17 => self.release(log),
            18 => self.fail(),
            _ => {
                let after = 1 + self.rng.below(12);
                self.note(format!("power fails after {after}"));
                self.rig.disk.cut_power_after(after);
            }
        }
    }

    /// Publishes a manifest, and frees segments that it does not name.
    fn release(&mut self, log: &mut LocalLog) {
        let known = log.reader().synced();
        self.rig.options.known_durable = known.max(self.rig.options.known_durable);
        let mut free = log.reader().segments();
        free.retain(|_| self.rng.chance(1, 2));
        self.note(format!("manifest {known}, release {free:?}"));
        for segment in free.iter().filter(|s| !s.active && s.last < known) {
            self.freed.extend((segment.first.0..=segment.last.0).map(FrameNo));
        }
        let numbers: Vec<_> = free.iter().map(|segment| segment.no).collect();
        // Fails only if the power does.
        let _ = log.release(known, &numbers);
    }

    fn fail(&mut self) {
        let op = *self.rng.pick(&[
            Op::Write,
            Op::Sync,
            Op::SyncDir,
            Op::Rename,
            Op::Allocate,
            Op::Truncate,
        ]);
        let errno = *self.rng.pick(&[EIO, EIO, ENOSPC]);
        let after = self.rng.below(4);
        self.note(format!("{op:?} fails with {errno} after {after}"));
        self.rig.disk.fail(Fault { op, path: String::new(), after, times: 1, errno });
    }

    /// Opens the log, however often the power fails meanwhile.
    fn open(&mut self, mut end: End) -> LocalLog {
        for _ in 0..100 {
            if end == End::PowerCut || self.rig.disk.is_off() {
                self.note("power cut");
                let short = self.rng.chance(1, 4);
                self.rig.crash();
                self.rig.disk.short_io(short);
                self.told = self.safe;
            }
            let report = self.rig.verify();
            assert!(report.is_clean(), "before opening: {:?}", report.findings);
            if self.rng.chance(1, 3) {
                let after = 1 + self.rng.below(10);
                self.note(format!("power fails after {after} of recovery"));
                self.rig.disk.cut_power_after(after);
            }
            match self.rig.try_open() {
                Ok((log, recovery)) => {
                    self.note(format!("opened: {} {:?}", recovery.last, recovery.cut));
                    self.opened(&log, recovery.last);
                    return log;
                }
                Err(OpenError::File(error)) => {
                    self.note(format!("not opened: {error}"));
                    // A sync may have failed of what was told too early; and it may have
                    // come as far as to write the epoch frame.
                    self.told = self.safe;
                    self.most = self.most.next();
                    end = if self.rig.disk.is_off() { End::PowerCut } else { End::Killed };
                }
                Err(other) => panic!("{other}"),
            }
        }
        panic!("the log never opened");
    }

    fn opened(&mut self, log: &LocalLog, last: FrameNo) {
        assert!(last >= self.told, "{last} found, {} was durable", self.told);
        assert!(last <= self.most, "{last} found, {} was the last", self.most);
        let reader = log.reader();
        if self.rig.disk.is_off() {
            return;
        }
        let scan = reader.scan(FrameNo::ZERO, Part::Whole).unwrap();
        let Ok(found) = scan.collect::<Result<Vec<ScannedFrame>, _>>() else {
            assert!(self.rig.disk.is_off(), "a scan failed");
            return;
        };
        // Past what was told, the beginning of what was handed over; then epochs.
        let mut begun = false;
        for frame in found.iter().filter(|frame| frame.header.frame_no > self.told) {
            begun |= frame.header.kind == Kind::Epoch;
            assert!(!begun || frame.header.kind == Kind::Epoch, "a frame came back");
        }
        for frame in found.iter().filter(|frame| frame.header.kind == Kind::Epoch) {
            let told = frame.header.frame_no <= self.told;
            let replaced = self.script.frames.remove(&frame.header.frame_no);
            assert!(replaced.is_none() || !told, "an epoch in place of a frame");
        }
        self.script.forget_after(last);
        self.script.check_contents(Part::Whole, &found);
        let numbers: BTreeSet<FrameNo> = found.iter().map(|f| f.header.frame_no).collect();
        for no in (1..=log.tail().0).map(FrameNo) {
            assert!(numbers.contains(&no) || self.freed.contains(&no), "frame {no} is missing");
        }
        for no in &numbers {
            for (place, body) in self.script.frames.get(no).iter().flat_map(|w| &w.bodies) {
                let read = reader.bodies(&[*place]).remove(0);
                assert_eq!(read.as_ref().ok(), Some(body), "{place}: {read:?}");
            }
        }
        if !self.rig.disk.is_off() {
            let report = self.rig.verify();
            assert!(report.is_clean(), "{:?}", report.findings);
        }
        (self.safe, self.told) = (log.tail(), log.tail());
        self.most = self.most.max(log.tail());
        // What comes back after this did so rightly.
        self.freed.retain(|no| *no < log.tail());
    }
}

/// Says what led to a failure.
struct Tell<'a>(&'a mut Run);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = self.0.trace.len().saturating_sub(60);
            eprintln!("{:?}", self.0.rig.options);
            eprintln!("{}", self.0.trace[last..].join("\n"));
        }
    }
}

fn config() -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_durable_is_lost_and_nothing_cut_comes_back(seed in any::<u64>().no_shrink()) {
        let mut run = Run::new(seed);
        Tell(&mut run).0.all(12);
    }

    #[test]
    fn the_same_seed_leaves_the_same_files(seed in any::<u64>().no_shrink()) {
        let contents = || {
            let mut run = Run::new(seed);
            Tell(&mut run).0.all(3);
            let disk = run.rig.disk.crash();
            let names = disk.list(std::path::Path::new(common::DIR)).unwrap();
            let content = |name: &str| disk.content(&run.rig.path(name));
            names.into_iter().map(|e| (content(&e.name), e.name)).collect::<Vec<_>>()
        };
        prop_assert_eq!(contents(), contents());
    }
}
