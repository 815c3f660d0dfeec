//! A log whose files are not what was written: recovery, and reading what it has found.

use std::path::Path;
use std::sync::LazyLock;

use posthouse_frame::FrameNo;
use posthouse_frame::varint::{self, Cursor};
use posthouse_log::conformance::Script;
use posthouse_log::files::Files as _;
use posthouse_log::files::sim::SimFiles;
use posthouse_log::local::{Drive, LocalLog, LocalOptions, verify};
use posthouse_log::{Log as _, LogReader as _, Part};

use crate::{Seeds, memory, piece};

const STORE: u64 = 7;
const DIR: &str = "/log";

fn options() -> LocalOptions {
    LocalOptions {
        segment_bytes: 12 << 10,
        max_frame_bytes: 5 << 10,
        align: 512,
        tail_bytes: 0,
        spares: 1,
        drive: Drive::Steps,
        ..LocalOptions::new(STORE, 3)
    }
}

/// A log of two segments, closed; its segment files; and what was written.
static BASE: LazyLock<(SimFiles, Vec<String>, Script)> = LazyLock::new(|| {
    let disk = SimFiles::new(1);
    disk.create_dir(Path::new(DIR)).expect("a new directory");
    disk.sync_dir(Path::new("/")).expect("it is synced");
    let (mut log, _) = LocalLog::open(disk.shared(), Path::new(DIR), options()).expect("it opens");
    let mut script = Script::new(77, 250);
    while log.reader().segments().len() < 2 || script.frames.len() < 12 {
        let next = log.tail().next();
        log.submit(script.frame(next)).expect("it is taken");
        while log.step() {}
        log.idle();
    }
    log.close();
    let names = disk.list(Path::new(DIR)).expect("a directory").into_iter();
    let segments = names.map(|entry| entry.name).filter(|name| name.starts_with("seg-"));
    (disk.clone(), segments.collect(), script)
});

/// For each patch: the file, where, and what is written there.
pub fn run(data: &[u8]) {
    let (base, segments, script) = &*BASE;
    let disk = base.fork();
    let mut c = Cursor::new(data);
    while let (Ok(file), Ok(at)) = (c.u8(), c.varint()) {
        let path = Path::new(DIR).join(&segments[usize::from(file) % segments.len()]);
        let (bytes, mut content) = (piece(&mut c), disk.content(&path));
        let at = (at % (content.len() as u64 + 1)) as usize;
        match bytes {
            // Nothing to write: it is cut there.
            [] => content.truncate(at),
            bytes => {
                let end = content.len().min(at + bytes.len());
                content[at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
        disk.set_content(&path, content);
    }
    memory::within(2 << 20, || {
        let _ = verify(disk.shared(), Path::new(DIR), STORE, |_| ());
        let Ok((log, _)) = LocalLog::open(disk.shared(), Path::new(DIR), options()) else { return };
        let reader = log.reader();
        let Ok(scan) = reader.scan(FrameNo::ZERO, Part::Whole) else { return };
        for frame in scan.map_while(Result::ok) {
            // The new owner's own has no records.
            let Some(written) = script.frames.get(&frame.header.frame_no) else { continue };
            if frame.header.records > 0 {
                assert_eq!(frame.meta, written.meta, "frame {}", frame.header.frame_no);
                assert_eq!(frame.body.as_ref(), Some(&written.section));
            }
        }
        log.close();
        // Whatever was found and settled is settled.
        let again = LocalLog::open(disk.shared(), Path::new(DIR), options());
        assert!(again.is_ok(), "it opened once, and then no more: {:?}", again.err());
    });
}

pub fn seeds() -> Seeds {
    let patch = |file: u8, at: u64, bytes: &[u8]| {
        let mut out = vec![file];
        varint::put(&mut out, at);
        varint::put_bytes(&mut out, bytes);
        out
    };
    vec![
        ("as-it-is", Vec::new()),
        ("magic", patch(0, 4096, b"PHf1")),
        ("turned", patch(1, 4096 + 200, &[0xff; 8])),
        ("cut", patch(1, 6000, &[])),
        ("torn", patch(1, 5120, &[0; 512])),
    ]
}
