//! What is in a data directory, in figures. Reads only, and may run beside the node.

use std::path::Path;

use posthouse_core::ShardId;
use posthouse_core::queue::Shard;
use posthouse_log::files::Files;
use serde::Serialize;

use super::StoreError;
use super::look::{Loaded, Look, Part};

/// A data directory in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// The number that names the store, in hexadecimal.
    pub store: String,
    /// The layout of the directory.
    pub format: u32,
    /// The release that made it.
    pub created_by: String,
    /// When it was made, Unix milliseconds.
    pub created_at_ms: u64,
    /// Topics, those of the system too.
    pub topics: u64,
    /// Groups.
    pub groups: u64,
    /// Users.
    pub users: u64,
    /// The catalog, then every shard.
    pub parts: Vec<PartStats>,
}

/// One log and what belongs to it, in figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartStats {
    /// Its directory, by name.
    pub name: String,
    /// Segments that have frames.
    pub segments: usize,
    /// Bytes of all files of the log; spares and copies of what was cut are in it.
    pub log_bytes: u64,
    /// Segments that are ready to be begun.
    pub spares: usize,
    /// Frames.
    pub frames: u64,
    /// The first of them; zero if there is none.
    pub first_frame: u64,
    /// The last of them.
    pub last_frame: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of the frames, with padding.
    pub frame_bytes: u64,
    /// Bytes of bodies in them.
    pub body_bytes: u64,
    /// Bytes of bodies that are still needed.
    pub live_bytes: u64,
    /// Partitions here.
    pub partitions: u64,
    /// Messages in them, those of the system's topics too.
    pub messages: u64,
    /// Bytes of these messages.
    pub message_bytes: u64,
    /// Chunk files.
    pub chunks: usize,
    /// Bytes of them.
    pub chunk_bytes: u64,
    /// The frame behind which the newest snapshot stands.
    pub snapshot_frame: u64,
}

/// Counts what is in the data directory that `look` looks at.
///
/// # Errors
/// See [`StoreError`]: what is damaged is refused, not counted.
pub fn stats(look: &Look) -> Result<Stats, StoreError> {
    let catalog = look.catalog()?;
    let (topics, groups, users) = catalog.machine.counts();
    let mut parts = Vec::new();
    for part in look.parts() {
        let mut stats = files_of(&*look.files, &part)?;
        if part.is_meta() {
            log_of(&catalog, &mut stats);
        } else {
            let loaded = look.load(&part, || Shard::new(ShardId(part.shard)))?;
            log_of(&loaded, &mut stats);
            messages_of(&loaded.machine, &mut stats);
        }
        parts.push(stats);
    }
    Ok(Stats {
        store: look.info.store.clone(),
        format: look.info.format,
        created_by: look.info.created_by.clone(),
        created_at_ms: look.info.created_at_ms,
        topics: topics as u64,
        groups: groups as u64,
        users: users as u64,
        parts,
    })
}

fn files_of(files: &dyn Files, part: &Part) -> Result<PartStats, StoreError> {
    let entries = |dir: &Path| match files.list(dir) {
        Err(error) if error.is_missing() => Ok(Vec::new()),
        listed => listed,
    };
    let (log, chunks) = (entries(&part.log_dir())?, entries(&part.chunk_dir())?);
    Ok(PartStats {
        name: part.name.clone(),
        log_bytes: log.iter().map(|entry| entry.len).sum(),
        spares: log.iter().filter(|entry| entry.name.starts_with("spare-")).count(),
        chunks: chunks.iter().filter(|entry| entry.name.starts_with("c-")).count(),
        chunk_bytes: chunks.iter().map(|entry| entry.len).sum(),
        ..PartStats::default()
    })
}

fn log_of<M>(loaded: &Loaded<M>, stats: &mut PartStats) {
    let walked = &loaded.walked;
    stats.segments = walked.segments;
    stats.frames = walked.frames;
    stats.first_frame = walked.first.0;
    stats.last_frame = walked.last.0;
    stats.records = walked.records;
    stats.frame_bytes = walked.frame_bytes;
    stats.body_bytes = walked.body_bytes;
    stats.snapshot_frame = loaded.manifest.as_ref().map_or(0, |manifest| manifest.frame.0);
}

fn messages_of(shard: &Shard, stats: &mut PartStats) {
    stats.live_bytes = shard.spans().map(|span| span.live).sum();
    for (_, partition) in shard.partitions() {
        stats.partitions += 1;
        stats.messages += partition.next - partition.head;
        stats.message_bytes += partition.bytes;
    }
}
