//! A local log on a simulated disk, driven by steps.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};

use posthouse_frame::{FrameNo, Header, Kind, Salt};
use posthouse_log::conformance::Script;
use posthouse_log::files::Files;
use posthouse_log::files::sim::SimFiles;
use posthouse_log::local::{
    Drive, LocalLog, LocalOptions, OpenError, Recovery, Report, inspect, verify,
};
use posthouse_log::{Log, LogReader, Part};

pub const STORE: u64 = 0x0123_4567_89ab_cdef;
pub const DIR: &str = "/log";

/// A disk with a log directory, and how the log on it is opened.
#[derive(Clone)]
pub struct Rig {
    pub disk: SimFiles,
    pub options: LocalOptions,
}

/// One unit of a log, as it stands on the disk.
#[derive(Clone, Debug)]
pub struct Place {
    pub file: PathBuf,
    pub offset: u64,
    pub header: Header,
}

impl Place {
    /// Where the next unit stands.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.header.total)
    }
}

impl Rig {
    /// Small segments, fine alignment: rotation is ordinary, and a frame has edges
    /// within blocks.
    pub fn new(seed: u64) -> Rig {
        let disk = SimFiles::new(seed);
        disk.create_dir(Path::new(DIR)).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let options = LocalOptions {
            segment_bytes: 12 << 10,
            max_frame_bytes: 5 << 10,
            align: 512,
            tail_bytes: 0,
            spares: 1,
            drive: Drive::Steps,
            ..LocalOptions::new(STORE, 3)
        };
        Rig { disk, options }
    }

    pub fn try_open(&self) -> Result<(LocalLog, Recovery), OpenError> {
        LocalLog::open(self.disk.shared(), Path::new(DIR), self.options.clone())
    }

    pub fn open(&self) -> (LocalLog, Recovery) {
        self.try_open().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Opens it on another disk with the same content.
    pub fn fork(&self) -> Rig {
        Rig { disk: self.disk.fork(), options: self.options.clone() }
    }

    /// The power fails and comes back.
    pub fn crash(&mut self) {
        self.disk = self.disk.crash();
    }

    pub fn names(&self) -> Vec<String> {
        self.disk.list(Path::new(DIR)).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(DIR).join(name)
    }

    /// Segment files, oldest first.
    pub fn segments(&self) -> Vec<PathBuf> {
        let names = self.names();
        names.iter().filter(|name| name.starts_with("seg-")).map(|name| self.path(name)).collect()
    }

    /// All units of the log, in order.
    pub fn units(&self) -> Vec<Place> {
        let units = inspect(self.disk.shared(), Path::new(DIR), STORE, Part::Meta).unwrap();
        units
            .map(|unit| {
                let unit = unit.unwrap();
                let file = self.path(&format!("seg-{:020}.log", unit.segment.0));
                Place { file, offset: unit.offset, header: unit.header }
            })
            .collect()
    }

    /// The unit that holds frame `no`.
    pub fn place(&self, no: FrameNo) -> Place {
        let is = |unit: &Place| unit.header.kind != Kind::Mark && unit.header.frame_no == no;
        self.units().into_iter().find(is).expect("the frame is in the log")
    }

    pub fn verify(&self) -> Report {
        verify(self.disk.shared(), Path::new(DIR), STORE, |_| ()).unwrap()
    }

    /// Turns one bit of a byte.
    pub fn flip(&self, file: &Path, offset: u64) {
        self.disk.flip(file, offset * 8 + 3);
    }

    /// Puts `bytes` at `offset` of a file.
    pub fn patch(&self, file: &Path, offset: u64, bytes: &[u8]) {
        let mut content = self.disk.content(file);
        content[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        self.disk.set_content(file, content);
    }

    /// Writes the header of a unit anew, changed, with a checksum that holds.
    pub fn rewrite_header(&self, place: &Place, change: impl FnOnce(&mut Header)) {
        let name = place.file.file_name().unwrap().to_string_lossy().into_owned();
        let segment = name["seg-".len()..name.len() - ".log".len()].parse().unwrap();
        let mut header = place.header;
        change(&mut header);
        let salt = Salt { store: STORE, segment, offset: place.offset };
        self.patch(&place.file, place.offset, &header.encode(salt).0);
    }
}

/// Hands frames over and makes them durable, one batch.
pub fn write(log: &mut LocalLog, script: &mut Script, n: usize) {
    script.submit(log, n);
    while log.step() {}
    assert_eq!(log.backlog(), 0, "{:?}", log.reader().state());
}

/// Everything from the first frame held to the tail is as written.
pub fn check(log: &LocalLog, script: &Script) {
    let reader = log.reader();
    let first = reader.segments().first().expect("a log has a segment").first;
    script.check(&reader, first, log.tail());
}
