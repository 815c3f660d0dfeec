//! Verifying a log directory from end to end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_frame::{FrameNo, Kind};

use super::inspect::inspect;
use crate::files::{FileError, Files};
use crate::{Part, ReadError};

/// Progress is told after so many bytes.
const TELL_BYTES: u64 = 16 << 20;
/// Findings beyond this many are counted only.
const FINDINGS_MAX: usize = 1000;

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// What does not hold.
    pub what: String,
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Segments begun.
    pub segments: usize,
    /// Frames that hold.
    pub frames: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Findings.
    pub findings: usize,
}

/// What a verification found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The first frame held; zero if none is.
    pub first: FrameNo,
    /// The last.
    pub last: FrameNo,
    /// Totals.
    pub total: Progress,
    /// What does not hold: the first 1000; `total` counts all.
    pub findings: Vec<Finding>,
    /// The remains of a write at the log's end that did not get through: file and
    /// offset. No finding: nothing acknowledged is lost, and the next opening cuts it.
    pub torn: Option<(String, u64)>,
    /// Time taken.
    pub took: Duration,
}

impl Report {
    /// Whether everything holds.
    pub fn is_clean(&self) -> bool {
        self.total.findings == 0
    }

    /// Bytes read per second.
    pub fn bytes_per_s(&self) -> u64 {
        (self.total.bytes as f64 / self.took.as_secs_f64().max(1e-9)) as u64
    }
}

/// Verifies every checksum, body, padding and link in the log directory `dir` of the
/// store `store`. Reads only, and may run beside the owner: see
/// [`inspect`](super::inspect()) for how what happens meanwhile is told from damage.
/// Unused space and spares are not looked at, nor what follows a mark in its block;
/// nothing in them can do harm.
///
/// # Errors
/// If the directory cannot be listed. A file that cannot be read is a finding.
pub fn verify(
    files: Arc<dyn Files>,
    dir: &Path,
    store: u64,
    mut on_progress: impl FnMut(Progress),
) -> Result<Report, FileError> {
    let began = Instant::now();
    let mut walk = inspect(files, dir, store, Part::Whole)?;
    let (mut first, mut last, mut told) = (FrameNo::ZERO, FrameNo::ZERO, 0);
    let mut total = Progress { segments: 0, frames: 0, bytes: 0, findings: 0 };
    let mut findings = Vec::new();
    while let Some(item) = walk.next() {
        match item {
            Ok(unit) if unit.header.kind == Kind::Mark => {}
            Ok(unit) => {
                first = if total.frames == 0 { unit.header.frame_no } else { first };
                last = unit.header.frame_no;
                total.frames += 1;
            }
            Err(error) => {
                total.findings += 1;
                if findings.len() < FINDINGS_MAX {
                    findings.push(finding(error));
                }
            }
        }
        total.segments = walk.segments();
        total.bytes = walk.bytes_read();
        if total.bytes >= told + TELL_BYTES {
            told = total.bytes;
            on_progress(total);
        }
    }
    total.segments = walk.segments();
    total.bytes = walk.bytes_read();
    on_progress(total);
    let torn = walk.torn().map(|(path, offset)| (path.display().to_string(), *offset));
    Ok(Report { first, last, total, findings, torn, took: began.elapsed() })
}

fn finding(error: ReadError) -> Finding {
    match error {
        ReadError::Corrupt { file, offset, what } => Finding { file, offset, what },
        ReadError::Io { file, offset, error } => Finding { file, offset, what: error },
        ReadError::Gone { .. } => {
            Finding { file: String::new(), offset: 0, what: error.to_string() }
        }
    }
}
