//! The power fails under a file system of its own: what its journal and its caches had not
//! brought to the disk is gone, and nothing that was acknowledged with it.
//!
//! A file with an ext4 in it is mounted, and shut down while a node writes to it: the kernel
//! then refuses everything, and writes nothing more, neither data nor its journal. What the
//! node had acknowledged is known to this process, which the power cut does not concern.
//!
//! Takes root and a loop device, and so is ignored here: `.ci/power-cut` runs it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::crash::{drain, finish, verify};
use crate::support::journal::{Fate, Journal};
use crate::support::load;
use crate::support::node::Setup;
use crate::support::rng::{self, Rng};
use crate::support::within;

/// How long one round may take.
const ROUND_SECS: u64 = 60;

/// After so many rounds everything is consumed, and another disk is begun.
const ROUNDS_OF_A_DISK: u32 = 25;

/// The size of the disk.
const DISK_BYTES: u64 = 3 << 30;

/// How the file system ends.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// At once: what its journal holds in memory is lost.
    Hard = 2,
    /// After its journal is written, but no data beside it.
    AfterJournal = 1,
}

/// A file system in a file, mounted.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Disk {
        let disk = Disk { image: dir.join("disk.img"), at: dir.join("disk") };
        let file = std::fs::File::create(&disk.image).expect("a new file");
        file.set_len(DISK_BYTES).expect("a hole costs nothing");
        std::fs::create_dir_all(&disk.at).expect("a directory");
        told(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image));
        disk.mount();
        disk
    }

    fn mount(&self) {
        told(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at));
    }

    fn unmount(&self) {
        told(Command::new("umount").arg(&self.at));
    }

    /// EXT4_IOC_SHUTDOWN. Python calls it: there is no safe way to call it from here.
    ///
    /// What is answered from the moment before the call counts for nothing. A real power
    /// cut ends the node, too; this one lets it run on, and the kernel with it: a sync that
    /// was under way is called done although what the journal was to say of the file (that
    /// a part of it is written) never comes to the disk.
    fn cut(&self, how: Cut, journal: &Journal) {
        const CALL: &str = "import fcntl, os, struct, sys\n\
            fd = os.open(sys.argv[1], os.O_RDONLY)\n\
            how = struct.pack('I', int(sys.argv[2]))\n\
            print('ready', flush=True)\n\
            sys.stdin.readline()\n\
            fcntl.ioctl(fd, 0x8004587d, how)";
        let mut python = Command::new("python3");
        python.args(["-c", CALL]).arg(&self.at).arg((how as u32).to_string());
        let python = python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut python = python.spawn().expect("python3 can be run");
        let mut line = String::new();
        let said = python.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("a line");
        journal.power_fails();
        // If it has ended before, that is said below.
        let _ = python.stdin.take().expect("a pipe").write_all(b"now\n");
        let done = python.wait_with_output().expect("python3 ends");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "the disk cannot be shut down (is this root?): {said}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may have been unmounted before, and a test that fails has said why.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// Runs a command to its end.
fn told(command: &mut Command) {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?} has failed (is this root?): {said}");
}

/// Cuts the power under load `count` times on one disk; each time everything that was
/// acknowledged is there.
async fn rounds(rng: &mut Rng, durability: &str, count: u32) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let setup = Setup::new(&disk.at.join("data")).flag("--memory", "64MiB");
    let setup = setup.flag("--durability", durability);
    let journal = Arc::new(Journal::default());
    let node = setup.start().await;
    load::prepare(&node).await;
    // Else an empty disk would be all there is to come back to.
    node.stop().await;
    for round in 0..count {
        let node = setup.start().await;
        if round > 0 {
            verify(&node, &journal).await;
        }
        let tasks = load::begin(&node, &journal, rng).await;
        let enough = rng.range(20, 500);
        within("answers come", ROUND_SECS, journal.answers(enough)).await;
        // Sometimes while it stops, with its last snapshot half written.
        if rng.percent(25) {
            node.signal(Signal::TERM);
            let patience = Duration::from_millis(rng.below(100));
            let _ = tokio::time::timeout(patience, journal.answers(rng.below(30))).await;
        }
        let how = if rng.percent(75) { Cut::Hard } else { Cut::AfterJournal };
        disk.cut(how, &journal);
        // It goes on without a disk, and neither panics nor calls refused what is there.
        let patience = Duration::from_millis(rng.below(50));
        let _ = tokio::time::timeout(patience, journal.answers(rng.below(30))).await;
        let ended = node.kill_or_ended().await;
        let panicked = ended.said.contains("panicked");
        assert!(!panicked, "round {round}, {how:?}: the node has panicked:\n{}", ended.said);
        within("clients notice", ROUND_SECS, tasks.join_all()).await;
        disk.unmount();
        disk.mount();
        journal.power_is_back();
    }
    let node = setup.start().await;
    let seen = verify(&node, &journal).await;
    drain(&node, &journal, rng).await;
    finish(&node, &journal, &seen, count).await;
    node.stop().await;
    disk.unmount();
    journal.all().values().filter(|sent| matches!(sent.fate, Fate::Placed { .. })).count()
}

fn wanted(default: u32) -> u32 {
    std::env::var("ROUNDS").map_or(default, |n| n.parse().expect("ROUNDS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes root and a loop device; .ci/power-cut runs it"]
async fn when_the_power_fails_under_load_nothing_acknowledged_is_lost_or_changed() {
    let mut rng = Rng::new(rng::seed("the power fails"));
    let (mut left, mut placed) = (wanted(20), 0);
    let all = left;
    while left > 0 {
        let count = left.min(ROUNDS_OF_A_DISK);
        placed += rounds(&mut rng, "sync", count).await;
        left -= count;
        eprintln!("{} of {all} power cuts, {placed} messages acknowledged", all - left);
    }
    assert!(placed > 20 * all as usize, "there was no load");
}

/// The check can fail: a node that is told not to sync loses what it has acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes root and a loop device; .ci/power-cut runs it"]
async fn when_the_power_fails_under_a_node_that_does_not_sync_the_loss_is_found() {
    for attempt in 0..5 {
        let lost = tokio::spawn(async move {
            let mut rng = Rng::new(rng::seed("the power fails without syncs") + attempt);
            rounds(&mut rng, "os", 2).await
        });
        match lost.await {
            Ok(placed) => eprintln!("attempt {attempt}: {placed} messages, and none was lost"),
            Err(found) => {
                let what = found.into_panic();
                let text = what.downcast_ref::<String>().cloned().unwrap_or_default();
                let is_loss = text.contains("is lost") || text.contains("is damaged");
                assert!(is_loss, "it has failed otherwise: {text}");
                return;
            }
        }
    }
    panic!("nothing was lost in 10 power cuts: the check finds nothing");
}
