//! `posthouse data stats`.

use std::path::Path;

use posthouse_log::files::RealFiles;

use crate::cli::output::{Facts, Table};
use crate::cli::{Failure, Output};
use crate::store::look::Look;
use crate::store::stats::{Stats, stats};
use crate::units;

pub(super) fn run(dir: &Path, out: &mut Output) -> Result<(), Failure> {
    let look = Look::new(RealFiles::shared(), dir)?;
    out.show(&stats(&look)?, people)
}

fn people(out: &mut Output, stats: &Stats) -> Result<(), Failure> {
    let mut facts = Facts::default();
    facts.add("store", &stats.store);
    facts.add("format", stats.format);
    facts.add(
        "made",
        format!("{}, by release {}", units::show_second(stats.created_at_ms), stats.created_by),
    );
    facts.add("topics", units::show_count(stats.topics));
    facts.add("groups", units::show_count(stats.groups));
    facts.add("users", units::show_count(stats.users));
    facts.print(out)?;
    out.line("")?;
    let mut log = Table::new("PART >SEGMENTS >SPARES >ON-DISK >FRAMES >FIRST >LAST >USED >LIVE");
    let mut state =
        Table::new("PART >PARTITIONS >MESSAGES >BYTES >CHUNKS >ON-DISK >SNAPSHOT-AT >BEHIND-IT");
    for part in &stats.parts {
        log.row([
            part.name.clone(),
            part.segments.to_string(),
            part.spares.to_string(),
            units::show_size(part.log_bytes),
            units::show_count(part.frames),
            part.first_frame.to_string(),
            part.last_frame.to_string(),
            units::show_size(part.frame_bytes),
            units::show_size(part.live_bytes),
        ]);
        state.row([
            part.name.clone(),
            units::show_count(part.partitions),
            units::show_count(part.messages),
            units::show_size(part.message_bytes),
            part.chunks.to_string(),
            units::show_size(part.chunk_bytes),
            part.snapshot_frame.to_string(),
            units::show_count(part.last_frame.saturating_sub(part.snapshot_frame)),
        ]);
    }
    out.table(&log)?;
    out.line("")?;
    out.table(&state)
}
