//! `posthouse data verify`.

use std::path::Path;

use posthouse_log::files::RealFiles;
use serde::Serialize;

use crate::cli::meter::Meter;
use crate::cli::output::{Table, plain};
use crate::cli::{Failure, Output};
use crate::problem::Kind;
use crate::store::verify::{Finding, Report, verify};
use crate::units;

#[derive(Serialize)]
struct Shown<'a> {
    clean: bool,
    findings: &'a [Finding],
    /// How many there are; the list has the first 1000.
    found: usize,
    parts: Vec<Part<'a>>,
    bytes: u64,
    bytes_per_s: u64,
    took_ms: u64,
}

#[derive(Serialize)]
struct Part<'a> {
    name: &'a str,
    manifests: usize,
    chunks: usize,
    blocks: u64,
    segments: usize,
    frames: u64,
    first_frame: u64,
    last_frame: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    torn: Option<Torn<'a>>,
}

/// The remains of a write that did not get through: no damage.
#[derive(Serialize)]
struct Torn<'a> {
    file: &'a str,
    offset: u64,
}

pub(super) fn run(dir: &Path, out: &mut Output) -> Result<(), Failure> {
    let meter = Meter::bytes(Some(0));
    let report = verify(&RealFiles::shared(), dir, |progress| {
        meter.set_total(progress.total);
        meter.set(progress.bytes, || match progress.findings {
            0 => progress.part.to_owned(),
            found => format!("{}, {found} FINDINGS", progress.part),
        });
    });
    drop(meter);
    let report = report?;
    out.show(&shown(&report), |out, _| people(&report, out))?;
    if report.is_clean() {
        return Ok(());
    }
    out.flush()?;
    let found = units::counted(report.found as u64, "finding");
    Err(Failure::new(
        Kind::Corrupt,
        format!(
            "{} is damaged: {found}; keep it as it is, and bring the files back from a \
             backup",
            dir.display()
        ),
    ))
}

fn shown(report: &Report) -> Shown<'_> {
    let parts = report.parts.iter().map(|part| Part {
        name: &part.name,
        manifests: part.manifests,
        chunks: part.chunks,
        blocks: part.blocks,
        segments: part.segments,
        frames: part.frames,
        first_frame: part.first.0,
        last_frame: part.last.0,
        torn: part.torn.as_ref().map(|(file, offset)| Torn { file, offset: *offset }),
    });
    Shown {
        clean: report.is_clean(),
        findings: &report.findings,
        found: report.found,
        parts: parts.collect(),
        bytes: report.bytes,
        bytes_per_s: report.bytes_per_s(),
        took_ms: report.took.as_millis() as u64,
    }
}

fn people(report: &Report, out: &mut Output) -> Result<(), Failure> {
    for finding in &report.findings {
        let at = finding.offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
        out.line(plain(&format!("DAMAGED {}{at}: {}", finding.file, finding.what)))?;
    }
    let hidden = report.found - report.findings.len();
    if hidden > 0 {
        out.line(format_args!("... and {} more", units::show_count(hidden as u64)))?;
    }
    if report.found > 0 {
        out.line("")?;
    }
    let mut table = Table::new("PART >MANIFESTS >CHUNKS >BLOCKS >SEGMENTS >FRAMES LAST");
    for part in &report.parts {
        table.row([
            part.name.clone(),
            part.manifests.to_string(),
            part.chunks.to_string(),
            units::show_count(part.blocks),
            part.segments.to_string(),
            units::show_count(part.frames),
            part.last.0.to_string(),
        ]);
    }
    out.table(&table)?;
    for part in &report.parts {
        if let Some((file, offset)) = &part.torn {
            out.line(plain(&format!(
                "an unfinished write in {file} from byte {offset} on: nothing acknowledged is in \
                 it, and the next start cuts it off"
            )))?;
        }
    }
    out.line(format_args!(
        "{} read in {:.1} s: {}/s; {}",
        units::show_size(report.bytes),
        report.took.as_secs_f64(),
        units::show_size(report.bytes_per_s()),
        if report.is_clean() { "everything holds" } else { "see above" }
    ))
}
