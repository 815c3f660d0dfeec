//! How long it takes to open a large local log.
//!
//! ```text
//! cargo run --release -p posthouse-log --example opening [directory] [GiB] [frame bytes]
//! ```
//! Opens it with a manifest that vouches for all but the last 64 MiB, as an owner's
//! does, and without one; each time with the files out of memory.

use std::path::{Path, PathBuf};

use posthouse_frame::{BodyBuf, FrameBuf, FrameNo};
use posthouse_log::files::{Access, Files, RealFiles};
use posthouse_log::local::{LocalLog, LocalOptions};
use posthouse_log::{Log, LogReader, Part};

fn main() {
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let gib: f64 = args.next().map_or(10.0, |s| s.parse().expect("GiB"));
    let frame_bytes: usize = args.next().map_or(256 << 10, |s| s.parse().expect("bytes"));
    let dir = base.join(format!("posthouse-opening-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let known = fill(&dir, (gib * f64::from(1 << 30)) as u64, frame_bytes);
    for (what, known_durable) in [("manifest", known), ("no manifest", FrameNo::ZERO)] {
        forget(&dir);
        let options = LocalOptions { known_durable, ..LocalOptions::new(1, 0) };
        let (log, recovery) =
            LocalLog::open(RealFiles::shared(), &dir, options).expect("the log opens");
        println!(
            "{what:>12}: {:.3} s, {} segments, {:.1} MiB read",
            recovery.took.as_secs_f64(),
            recovery.segments.len(),
            recovery.bytes_read as f64 / f64::from(1 << 20),
        );
        let began = std::time::Instant::now();
        let from = known_durable.next();
        let frames = log.reader().scan(from, Part::Meta).expect("the scan begins").count();
        println!("{:>12}  {frames} metas from there on in {:?}", "", began.elapsed());
        log.close();
    }
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

/// Writes a log of so many bytes. Returns a frame 64 MiB before its end.
fn fill(dir: &Path, bytes: u64, frame_bytes: usize) -> FrameNo {
    let (mut log, _) =
        LocalLog::open(RealFiles::shared(), dir, LocalOptions::new(1, 0)).expect("the log opens");
    let mut body = BodyBuf::default();
    body.seal(|out| out.resize(frame_bytes * 97 / 100, 7));
    let meta = vec![1; frame_bytes * 3 / 100];
    let mut known = FrameNo::ZERO;
    while log.stats().written_bytes < bytes {
        if log.backlog() > 64 {
            std::thread::yield_now();
            continue;
        }
        let mut frame = FrameBuf::new(log.tail().next());
        frame.bodies(body.clone());
        frame.record(1, |out| out.extend_from_slice(&meta));
        if log.stats().written_bytes + (64 << 20) < bytes {
            known = log.tail();
        }
        log.submit(frame.seal(1, 1)).expect("the log is open");
    }
    log.close();
    known
}

/// Drops what memory holds of the files.
fn forget(dir: &Path) {
    for entry in RealFiles.list(dir).expect("the directory can be listed") {
        let file = RealFiles.open(&dir.join(&entry.name), Access::Write).expect("it opens");
        file.sync_data().expect("it syncs");
        file.evict();
    }
}
