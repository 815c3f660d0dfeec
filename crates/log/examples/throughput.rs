//! The local log beside a bare loop of write and fdatasync, on the same disk.
//!
//! ```text
//! cargo run --release -p posthouse-log --example throughput [directory] [seconds]
//! ```
//! The bare loop writes over blocks that were written before, which is the best that
//! a file can do. The log is measured with recycled segments, once with one frame
//! under way at a time (each frame pays for the hand-over between two threads), once
//! with eight. The two take turns, in rounds of a fraction of a second, because disks
//! and neighbours change their minds; the ratio is of totals.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use bytes::Bytes;
use posthouse_frame::{BodyBuf, Frame, FrameBuf, FrameNo};
use posthouse_log::files::{Access, File, Files, RealFiles};
use posthouse_log::local::{LocalLog, LocalOptions};
use posthouse_log::{Log, LogReader, LogState};

const SEGMENT_BYTES: u64 = 64 << 20;
const ROUNDS: u32 = 8;
const SIZES: [usize; 6] = [512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Times of single writes, and the time in all.
#[derive(Default)]
struct Measured {
    each: Vec<Duration>,
    all: Duration,
}

impl Measured {
    fn add(&mut self, other: Measured) {
        self.each.extend(other.each);
        self.all += other.all;
    }

    fn per_second(&self) -> f64 {
        self.each.len() as f64 / self.all.as_secs_f64()
    }

    fn quantile_us(&mut self, part: f64) -> f64 {
        self.each.sort();
        let at = ((self.each.len() - 1) as f64 * part) as usize;
        self.each[at].as_secs_f64() * 1e6
    }
}

/// Writes of `bytes` each over a file that was written before, one sync each.
struct Bare {
    file: std::sync::Arc<dyn File>,
    data: Vec<u8>,
    offset: u64,
}

impl Bare {
    fn new(dir: &Path, bytes: usize) -> Self {
        let path = dir.join("bare.bin");
        let file = match RealFiles.open(&path, Access::Write) {
            Ok(file) => file,
            Err(_) => {
                let file = RealFiles.create(&path).expect("a file can be made");
                for at in (0..SEGMENT_BYTES).step_by(1 << 20) {
                    file.write_all_at(&vec![1; 1 << 20], at).expect("it can be filled");
                }
                file.sync_all().expect("it can be synced");
                file
            }
        };
        // As the log pads its frames: whole blocks.
        Bare { file, data: vec![7; bytes.next_multiple_of(4096)], offset: 0 }
    }

    fn run(&mut self, time: Duration) -> Measured {
        let mut measured = Measured::default();
        let began = Instant::now();
        while began.elapsed() < time {
            let one = Instant::now();
            self.file.write_all_at(&self.data, self.offset).expect("it can be written");
            self.file.sync_data().expect("it can be synced");
            measured.each.push(one.elapsed());
            self.offset += self.data.len() as u64;
            if self.offset + self.data.len() as u64 > SEGMENT_BYTES {
                self.offset = 0;
            }
        }
        measured.all = began.elapsed();
        measured
    }
}

/// A log that frees its segments as soon as it can.
struct Logged {
    log: LocalLog,
    durable: Receiver<FrameNo>,
    body: Bytes,
    bytes: usize,
}

impl Logged {
    fn new(dir: &Path, bytes: usize) -> Self {
        let dir = dir.join(format!("log-{bytes}"));
        std::fs::create_dir_all(&dir).expect("a directory can be made");
        let options = LocalOptions { spares: 4, ..LocalOptions::new(1, 0) };
        let (mut log, _) =
            LocalLog::open(RealFiles::shared(), &dir, options).expect("the log opens");
        let (tell, durable) = mpsc::channel();
        log.watch(Box::new(move |state| match state {
            LogState::Durable(no) => drop(tell.send(*no)),
            failed => panic!("{failed:?}"),
        }));
        let mut body = BodyBuf::default();
        body.seal(|out| out.resize(out.len() + bytes - 96 - 8, 7));
        let body = body.bind(FrameNo(0), 0).freeze();
        Logged { log, durable, body, bytes }
    }

    /// A frame of exactly `bytes`, header included. All have the same body, as the
    /// bare loop has, and none of it is copied: what is measured is the log alone.
    fn frame(&self) -> Frame {
        let mut frame = FrameBuf::new(self.log.tail().next()).seal(0, 0);
        frame.body_len = self.body.len() as u32;
        frame.bodies = vec![self.body.clone()];
        assert_eq!(frame.content_bytes(), self.bytes);
        frame
    }

    /// Hands frames over with at most `depth` under way, and times each until it is
    /// known to be durable.
    fn run(&mut self, time: Duration, depth: u64) -> Measured {
        let mut measured = Measured::default();
        let mut handed = std::collections::VecDeque::new();
        let began = Instant::now();
        let mut durable = self.log.tail();
        let mut released = began;
        loop {
            let over = began.elapsed() >= time;
            while !over && self.log.tail().0 - durable.0 < depth {
                let frame = self.frame();
                handed.push_back((frame.no, Instant::now()));
                self.log.submit(frame).expect("the log is open");
            }
            if handed.is_empty() {
                break;
            }
            durable = self.durable.recv().expect("the log tells").max(durable);
            while let Some((_, at)) = handed.pop_front_if(|(no, _)| *no <= durable) {
                measured.each.push(at.elapsed());
            }
            if released.elapsed() > Duration::from_millis(10) {
                self.release();
                released = Instant::now();
            }
        }
        measured.all = began.elapsed();
        measured
    }

    fn release(&mut self) {
        let head = self.log.tail();
        let free: Vec<_> = self.log.reader().segments().iter().map(|s| s.no).collect();
        self.log.release(head, &free).expect("segments can be freed");
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds: f64 = args.next().map_or(2.0, |s| s.parse().expect("seconds"));
    let dir = base.join(format!("posthouse-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let round = Duration::from_secs_f64(seconds / f64::from(ROUNDS));
    println!(
        "{:>8} | {:>8} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>6} | {:>8} {:>6}",
        "frame",
        "bare/s",
        "p50 us",
        "p99 us",
        "log/s",
        "p50 us",
        "p99 us",
        "ratio",
        "log x8/s",
        "ratio"
    );
    for bytes in SIZES {
        let (mut bare, mut log) = (Bare::new(&dir, bytes), Logged::new(&dir, bytes));
        // Until segments are recycled ones, and caches warm.
        let warm_up = Instant::now();
        while log.log.stats().written_bytes < 3 * SEGMENT_BYTES
            && warm_up.elapsed() < Duration::from_secs(3)
        {
            log.run(Duration::from_millis(50), 64);
        }
        let [mut alone, mut one, mut eight] = [(); 3].map(|()| Measured::default());
        for _ in 0..ROUNDS {
            alone.add(bare.run(round));
            one.add(log.run(round, 1));
            eight.add(log.run(round, 8));
        }
        println!(
            "{bytes:>8} | {:>8.0} {:>8.1} {:>8.1} | {:>8.0} {:>8.1} {:>8.1} {:>6.3} | {:>8.0} {:>6.2}",
            alone.per_second(),
            alone.quantile_us(0.5),
            alone.quantile_us(0.99),
            one.per_second(),
            one.quantile_us(0.5),
            one.quantile_us(0.99),
            one.per_second() / alone.per_second(),
            eight.per_second(),
            eight.per_second() / alone.per_second(),
        );
        log.log.close();
    }
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}
