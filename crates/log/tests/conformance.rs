//! Every implementation keeps the contract of the log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use posthouse_frame::FrameNo;
use posthouse_log::conformance::{Harness, run, wait_settled};
use posthouse_log::files::sim::{Fault, Op, SimFiles};
use posthouse_log::files::{Files, RealFiles};
use posthouse_log::local::{Drive, LocalLog, LocalOptions};
use posthouse_log::memory::{
    MemoryLog, MemoryOptions, MemoryStore, Mischief, Partition, SharedLog,
};
use posthouse_log::{Log, LogReader};

const STORE: u64 = 0x5eed;

fn options(known_durable: FrameNo, drive: Drive) -> LocalOptions {
    LocalOptions {
        segment_bytes: 16 << 10,
        max_frame_bytes: 8 << 10,
        align: 512,
        tail_bytes: 8 << 10,
        known_durable,
        drive,
        // No test here waits for a mark; tests of marks ask for them.
        mark_after: Duration::from_secs(3600),
        ..LocalOptions::new(STORE, 3)
    }
}

/// The local log on a disk that loses power.
struct Simulated {
    disk: SimFiles,
    drive: Drive,
    held: bool,
    epoch: u32,
}

impl Simulated {
    fn new(drive: Drive) -> Self {
        let disk = SimFiles::new(7);
        disk.create_dir(Path::new("/log")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        Simulated { disk, drive, held: false, epoch: 0 }
    }
}

impl Harness for Simulated {
    type Log = LocalLog;

    fn open(&mut self, known_durable: FrameNo) -> LocalLog {
        let options = options(known_durable, self.drive);
        let (log, recovery) =
            LocalLog::open(self.disk.shared(), Path::new("/log"), options).unwrap();
        assert_eq!(recovery.last.next(), log.tail());
        self.epoch = recovery.epoch;
        log
    }

    fn crash(&mut self, log: LocalLog) {
        let disk = self.disk.crash();
        drop(log);
        self.disk = disk;
    }

    fn settle(&mut self, log: &mut LocalLog) {
        match self.drive {
            Drive::Threads => {
                self.disk.let_syncs(None);
                wait_settled(log);
            }
            Drive::Steps => while log.step() {},
        }
    }

    fn hold(&mut self, _: &mut LocalLog) -> bool {
        self.held = true;
        if self.drive == Drive::Threads {
            self.disk.hold_syncs();
        }
        true
    }

    fn break_down(&mut self, _: &mut LocalLog) -> bool {
        self.disk.fail(Fault::next(Op::Sync));
        true
    }

    fn syncs(&self) -> Option<u64> {
        Some(self.disk.counts().syncs)
    }

    fn epoch(&self) -> u32 {
        self.epoch
    }
}

/// The local log on the operating system's disk. Its crash is that of the process.
struct Real {
    dir: tempfile::TempDir,
    files: Arc<dyn Files>,
    epoch: u32,
}

impl Real {
    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Harness for Real {
    type Log = LocalLog;

    fn open(&mut self, known_durable: FrameNo) -> LocalLog {
        let options = options(known_durable, Drive::Threads);
        let (log, recovery) = LocalLog::open(self.files.clone(), &self.path(), options).unwrap();
        self.epoch = recovery.epoch;
        log
    }

    fn crash(&mut self, log: LocalLog) {
        drop(log);
    }

    fn settle(&mut self, log: &mut LocalLog) {
        wait_settled(log);
    }

    fn hold(&mut self, _: &mut LocalLog) -> bool {
        false
    }

    fn break_down(&mut self, _: &mut LocalLog) -> bool {
        false
    }

    fn epoch(&self) -> u32 {
        self.epoch
    }
}

/// The memory log, where frames become durable by themselves or when told.
struct Memory {
    store: MemoryStore,
    options: MemoryOptions,
    epoch: u32,
    crashes: u64,
}

impl Memory {
    fn new(auto: bool, sparse_free: bool) -> Self {
        let options = MemoryOptions {
            auto,
            segment_frames: 7,
            max_frame_bytes: 16 << 10,
            sparse_free,
            ..MemoryOptions::default()
        };
        Memory { store: MemoryStore::new(), options, epoch: 0, crashes: 0 }
    }
}

impl Harness for Memory {
    type Log = MemoryLog;

    fn open(&mut self, _: FrameNo) -> MemoryLog {
        let log = MemoryLog::open(&self.store, self.options).unwrap();
        self.epoch = log.epoch();
        log
    }

    fn crash(&mut self, log: MemoryLog) {
        self.crashes += 1;
        self.store.crash(|more| self.crashes % (more + 1));
        drop(log);
    }

    fn settle(&mut self, log: &mut MemoryLog) {
        log.sync();
    }

    fn hold(&mut self, _: &mut MemoryLog) -> bool {
        !self.options.auto
    }

    fn break_down(&mut self, _: &mut MemoryLog) -> bool {
        self.store.fail_next_sync("the disk is on fire");
        true
    }

    fn syncs(&self) -> Option<u64> {
        Some(self.store.syncs())
    }

    fn epoch(&self) -> u32 {
        self.epoch
    }
}

/// A claimant of a partition on which messages get lost, repeated and overtaken, and
/// on which the owners before it still have messages under way.
struct Shared {
    partition: Partition,
    auto: bool,
    owners: u32,
    epoch: u32,
}

impl Shared {
    fn new(auto: bool, mischief: Mischief) -> Self {
        let partition = Partition::new(5);
        partition.set_mischief(mischief);
        Shared { partition, auto, owners: 0, epoch: 0 }
    }
}

impl Harness for Shared {
    type Log = SharedLog;

    fn open(&mut self, _: FrameNo) -> SharedLog {
        self.owners += 1;
        let options = MemoryOptions {
            auto: self.auto,
            segment_frames: 7,
            max_frame_bytes: 16 << 10,
            writer: self.owners,
            ..MemoryOptions::default()
        };
        let log = SharedLog::open(&self.partition, options).unwrap();
        self.epoch = log.epoch();
        log
    }

    fn crash(&mut self, log: SharedLog) {
        drop(log);
    }

    fn settle(&mut self, log: &mut SharedLog) {
        log.settle();
    }

    fn hold(&mut self, _: &mut SharedLog) -> bool {
        !self.auto
    }

    fn break_down(&mut self, log: &mut SharedLog) -> bool {
        log.fail_next("the connection is lost");
        true
    }

    fn epoch(&self) -> u32 {
        self.epoch
    }
}

#[test]
fn the_local_log_with_threads_on_a_simulated_disk() {
    run(|_| Simulated::new(Drive::Threads));
}

#[test]
fn the_local_log_by_steps_on_a_simulated_disk() {
    run(|_| Simulated::new(Drive::Steps));
}

#[test]
fn the_local_log_on_a_disk_with_short_reads_and_writes() {
    run(|_| {
        let harness = Simulated::new(Drive::Steps);
        harness.disk.short_io(true);
        harness
    });
}

#[test]
fn the_local_log_on_the_real_disk() {
    run(|_| Real { dir: tempfile::tempdir().unwrap(), files: RealFiles::shared(), epoch: 0 });
}

#[test]
fn the_memory_log() {
    run(|_| Memory::new(true, true));
    run(|_| Memory::new(false, true));
    run(|_| Memory::new(false, false));
}

#[test]
fn the_shared_log() {
    for auto in [true, false] {
        run(|_| Shared::new(auto, Mischief::default()));
        run(|_| Shared::new(auto, Mischief { lose: 20, repeat: 20, delay: 40 }));
    }
}

#[test]
fn an_owner_that_was_replaced_learns_it_and_the_new_one_has_all_that_was_durable() {
    let mut harness = Shared::new(false, Mischief { lose: 10, repeat: 20, delay: 40 });
    let mut script = posthouse_log::conformance::Script::new(1, 200);
    let mut old = harness.open(FrameNo::ZERO);
    script.submit(&mut old, 20);
    old.settle();
    let durable = old.reader().state().durable();
    script.submit(&mut old, 5);
    let mut new = harness.open(FrameNo::ZERO);
    assert!(new.tail().prev() >= durable);
    script.forget_after(new.tail().prev());
    script.submit(&mut new, 3);
    old.settle();
    let fenced = old.reader().state();
    assert!(matches!(fenced, posthouse_log::LogState::Fenced { by, .. } if by == new.epoch()));
    assert_eq!(fenced.durable(), new.reader().segments()[0].first.max(fenced.durable()));
    assert!(fenced.durable() >= durable && fenced.durable() < new.tail());
    let late = script.clone().frame(old.tail().next());
    assert!(old.submit(late).is_err(), "a fenced owner takes nothing");
    new.settle();
    script.check(&new.reader(), FrameNo(1), new.tail());
    harness.partition.land();
    new.poll();
    assert!(new.reader().state().is_open(), "what a zombie left under way changes nothing");
}
