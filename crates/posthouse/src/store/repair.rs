//! What keeps a node from starting, and what can be done about it without a backup.
//!
//! For each log: the newest snapshot that holds with all its chunks, or, if the log is
//! there from its first frame on, none at all. Of what does not hold, nothing is lost if
//! a snapshot before it and the log behind that do. Else the log ends where the damage
//! begins, or goes without a segment, and it is said what stood there.
//!
//! Nothing is removed: what is taken out is moved to `repair-<time>/` in the data
//! directory, and a file that is changed is copied there first.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use posthouse_core::ShardId;
use posthouse_core::catalog::Catalog;
use posthouse_core::chunk::ChunkId;
use posthouse_core::machine::Machine;
use posthouse_core::queue::Shard;
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::files::{Access, DirLock, Files};
use posthouse_log::local::{
    Examined, LocalLog, LocalOptions, OpenError, extents, inspect, is_segment,
};
use posthouse_log::{LogReader as _, Part as Read, SegmentNo};

use super::chunks::ChunkFiles;
use super::listing::Listing;
use super::look::{Look, Part};
use super::manifest::Manifest;
use super::open::{Indexed, replay, restore};
use super::{StoreError, write_file};

/// Written and synced at once.
const PIECE_BYTES: usize = 1 << 20;

/// What can be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What nothing can be done about: a backup has to bring it back.
    pub hopeless: Vec<Hopeless>,
}

/// One thing to do.
#[derive(Debug)]
pub struct Step {
    /// `meta`, `shard-0000` and so on.
    pub part: String,
    /// What does not hold.
    pub damage: String,
    /// What is done about it.
    pub action: String,
    /// What is lost by it; `None` if nothing is.
    pub lost: Option<String>,
    does: Vec<Does>,
}

/// Something that nothing can be done about.
#[derive(Debug)]
pub struct Hopeless {
    /// `meta`, `shard-0000` and so on.
    pub part: String,
    /// What does not hold.
    pub damage: String,
}

#[derive(Debug)]
enum Does {
    /// Moves a file aside.
    Aside(PathBuf),
    /// Copies a file aside, and zeroes it from here on.
    Cut(PathBuf, u64),
    /// Writes a manifest.
    Write(Box<Manifest>, Part),
}

impl Plan {
    /// Whether nothing keeps a node from starting.
    pub fn is_sound(&self) -> bool {
        self.steps.is_empty() && self.hopeless.is_empty()
    }
}

/// A store that is repaired; no node runs on it meanwhile.
#[derive(Debug)]
pub struct Repair {
    look: Look,
    _lock: Box<dyn DirLock>,
}

/// A snapshot that may be started from.
struct Candidate {
    manifest: Manifest,
    is_newest: bool,
}

/// The manifests and chunks of a part, and what does not hold of them.
struct Snapshots {
    /// Newest first.
    listed: Vec<(u64, PathBuf)>,
    /// Those that do not hold, or whose chunks do not.
    bad: Vec<PathBuf>,
    /// Newest first; the last is that of a log in which nothing has happened.
    candidates: Vec<Candidate>,
    damage: Vec<String>,
    /// The segments that the newest manifest needs, if it can be read.
    needed: Option<Vec<SegmentNo>>,
    chunks: ChunkFiles,
    chunks_there: Vec<ChunkId>,
}

impl Repair {
    /// Locks the data directory `dir`.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a node uses it, [`StoreError::Unfinished`] if it is a copy
    /// that is not whole; [`StoreError::Damaged`] if `store.json` or `secret` is: nothing
    /// can be done about that.
    pub fn open(files: Arc<dyn Files>, dir: &Path) -> Result<Repair, StoreError> {
        let look = Look::new(files.clone(), dir)?;
        let lock = files.lock(dir).map_err(|error| match error.is_locked() {
            true => StoreError::Locked { dir: dir.to_owned() },
            false => error.into(),
        })?;
        if Listing::read(&*files, dir)?.is_some_and(|listing| !listing.complete) {
            return Err(StoreError::Unfinished { dir: dir.to_owned() });
        }
        Ok(Repair { look, _lock: lock })
    }

    /// What can be done. More may come to light when it has been.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer release wrote it; what the system refused.
    pub fn plan(&self) -> Result<Plan, StoreError> {
        let mut plan = Plan::default();
        let parts = self.look.parts();
        if !parts.iter().any(|part| has_log(&*self.look.files, part)) {
            // No log has begun: a start makes what is missing.
            return Ok(plan);
        }
        for part in parts {
            match part.is_meta() {
                true => self.plan_part(&part, || Catalog::new(self.look.secret), &mut plan)?,
                false => {
                    let machine = || Shard::new(ShardId(part.shard));
                    self.plan_part(&part, machine, &mut plan)?;
                }
            }
        }
        Ok(plan)
    }

    fn plan_part<M: Machine + Indexed>(
        &self,
        part: &Part,
        machine: impl Fn() -> M,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let mut found = self.snapshots(part, &machine)?;
        let mut damage = std::mem::take(&mut found.damage);
        // What costs nothing comes first, with the newest snapshot that it is true of.
        let mut failed = Vec::new();
        for candidate in std::mem::take(&mut found.candidates) {
            match self.opened(part, &candidate, &found, machine()) {
                Ok(()) => {
                    let action = match (candidate.is_newest, candidate.manifest.frame) {
                        (true, _) if found.bad.is_empty() => return Ok(()),
                        (true, _) => "goes on without it: the newest snapshot holds".to_owned(),
                        (false, FrameNo::ZERO) => {
                            "begins again from the log, which is there from its first frame on"
                                .into()
                        }
                        (false, frame) => {
                            format!("goes back to the snapshot behind frame {frame}, and the log")
                        }
                    };
                    let does = self.start_from(part, &candidate, &found);
                    let (part, damage) = (part.name.clone(), damage.join("; "));
                    plan.steps.push(Step { part, damage, action, lost: None, does });
                    return Ok(());
                }
                Err(newer @ StoreError::Newer { .. }) => return Err(newer),
                Err(error) => {
                    damage.push(error.to_string());
                    failed.push((candidate, error));
                }
            }
        }
        damage.dedup();
        let damage = damage.join("; ");
        for (candidate, error) in failed {
            let StoreError::Log(error) = error else { continue };
            let Some((action, lost, does)) = self.with_loss(part, &candidate, &found, &error)?
            else {
                continue;
            };
            let part = part.name.clone();
            plan.steps.push(Step { part, damage, action, lost: Some(lost), does });
            return Ok(());
        }
        plan.hopeless.push(Hopeless { part: part.name.clone(), damage });
        Ok(())
    }

    fn snapshots<M: Machine + Indexed>(
        &self,
        part: &Part,
        machine: &impl Fn() -> M,
    ) -> Result<Snapshots, StoreError> {
        let files = &*self.look.files;
        let chunks = ChunkFiles::new(self.look.files.clone(), &part.chunk_dir(), self.look.number);
        let mut found = Snapshots {
            listed: Manifest::list_if_there(files, &part.dir)?,
            bad: Vec::new(),
            candidates: Vec::new(),
            damage: Vec::new(),
            needed: None,
            chunks_there: chunks.list().unwrap_or_default(),
            chunks,
        };
        for (at, (_, path)) in found.listed.iter().enumerate() {
            let is_newest = at == 0;
            let loaded = Manifest::load(files, path, self.look.number, part.shard);
            if let (true, Ok(manifest)) = (is_newest, &loaded) {
                found.needed = Some(manifest.segments.clone());
            }
            let sound = loaded.and_then(|manifest| {
                self.restored(&manifest, &found.chunks, machine())?;
                Ok(Candidate { manifest, is_newest })
            });
            match sound {
                Ok(candidate) => found.candidates.push(candidate),
                Err(newer @ StoreError::Newer { .. }) => return Err(newer),
                Err(error) => {
                    found.damage.push(error.to_string());
                    found.bad.push(path.clone());
                }
            }
        }
        if found.listed.is_empty() {
            let missing = part.dir.join("manifest-*");
            found.damage.push(format!("{} is missing", missing.display()));
        }
        let next_chunk = found.chunks_there.iter().map(|id| id.number + 1).max().unwrap_or(1);
        let manifest = Manifest { next_chunk, ..Manifest::default() };
        found.candidates.push(Candidate { manifest, is_newest: false });
        Ok(found)
    }

    /// The machine of a snapshot, all of whose chunks hold to the last block.
    fn restored<M: Machine + Indexed>(
        &self,
        manifest: &Manifest,
        chunks: &ChunkFiles,
        mut machine: M,
    ) -> Result<M, StoreError> {
        for chunk in manifest.index.iter().chain(&manifest.runs) {
            chunks.whole(*chunk)?;
        }
        restore(&mut machine, manifest, chunks)?;
        machine.restored();
        Ok(machine)
    }

    /// Opens the log behind a snapshot as a start would, and replays it.
    fn opened<M: Machine + Indexed>(
        &self,
        part: &Part,
        candidate: &Candidate,
        found: &Snapshots,
        machine: M,
    ) -> Result<(), StoreError> {
        let frame = candidate.manifest.frame;
        let mut machine = self.restored(&candidate.manifest, &found.chunks, machine)?;
        let log = self.examined(part, candidate, found.needed.clone())?;
        let reader = log.reader();
        let first = reader.segments().first().map(|segment| segment.first);
        if frame == FrameNo::ZERO && first != Some(FrameNo(1)) {
            let what = "what stood in its first segments was freed, and no snapshot has it";
            return Err(StoreError::damaged(&part.log_dir(), what));
        }
        replay(&mut machine, &reader, frame, &part.dir).map(drop)
    }

    fn examined(
        &self,
        part: &Part,
        candidate: &Candidate,
        must_have: Option<Vec<SegmentNo>>,
    ) -> Result<Examined, OpenError> {
        let options = LocalOptions {
            known_durable: candidate.manifest.frame,
            must_have,
            ..LocalOptions::new(self.look.number, part.shard)
        };
        LocalLog::examine(self.look.files.clone(), &part.log_dir(), options)
    }

    /// Lets a start take this snapshot: moves manifests aside that are newer or do not
    /// hold, and chunks that are not its own, and names the segments that are there.
    fn start_from(&self, part: &Part, candidate: &Candidate, found: &Snapshots) -> Vec<Does> {
        let Candidate { manifest, is_newest } = candidate;
        let generation = manifest.generation;
        let newer = found.listed.iter().filter(|(listed, _)| *listed > generation);
        let mut aside: BTreeSet<PathBuf> = newer.map(|(_, path)| path.clone()).collect();
        aside.extend(found.bad.iter().cloned());
        let own = manifest.chunks();
        let others = found.chunks_there.iter().filter(|id| !own.contains(id));
        aside.extend(others.map(|id| found.chunks.path(*id)));
        let mut does: Vec<Does> = aside.into_iter().map(Does::Aside).collect();
        if !is_newest {
            does.push(self.named_again(part, manifest, found));
        }
        does
    }

    /// Writes a manifest anew, as the newest, with those of its segments that are there.
    fn named_again(&self, part: &Part, manifest: &Manifest, found: &Snapshots) -> Does {
        let generation = found.listed.first().map_or(0, |(generation, _)| *generation) + 1;
        let there = |no: &&SegmentNo| self.is_there(part, **no);
        let segments = manifest.segments.iter().filter(there).copied().collect();
        let manifest = Manifest { generation, segments, ..manifest.clone() };
        Does::Write(Box::new(manifest), part.clone())
    }

    fn is_there(&self, part: &Part, no: SegmentNo) -> bool {
        is_segment(&*self.look.files, &part.log_dir(), self.look.number, no).unwrap_or(false)
    }

    /// What can be done about a log that does not open: what is done, what is lost by it,
    /// and how. `None` if nothing can.
    fn with_loss(
        &self,
        part: &Part,
        candidate: &Candidate,
        found: &Snapshots,
        error: &OpenError,
    ) -> Result<Option<(String, String, Vec<Does>)>, StoreError> {
        let known = candidate.manifest.frame;
        match error {
            OpenError::MissingSegment { .. } => {
                let needed = found.needed.iter().flatten();
                let gone: Vec<SegmentNo> =
                    needed.filter(|no| !self.is_there(part, **no)).copied().collect();
                // The log goes on behind the last of them: without that it ends before.
                let last = found.needed.iter().flatten().max();
                if gone.is_empty() || gone.iter().any(|no| Some(no) == last) {
                    return match self.examined(part, candidate, None).err() {
                        None | Some(OpenError::MissingSegment { .. }) => Ok(None),
                        Some(error) => self.with_loss(part, candidate, found, &error),
                    };
                }
                let names: Vec<String> = gone.iter().map(|no| no.0.to_string()).collect();
                let names = names.join(", ");
                let lost = format!(
                    "the bodies of messages that stood in segment {names}: they are listed, and \
                     cannot be delivered; seek or purge past them"
                );
                let mut does = match candidate.is_newest {
                    true => vec![self.named_again(part, &candidate.manifest, found)],
                    false => self.start_from(part, candidate, found),
                };
                let path = |no: &SegmentNo| part.log_dir().join(format!("seg-{:020}.log", no.0));
                let is_file = |path: &PathBuf| self.look.files.open(path, Access::Read).is_ok();
                does.extend(gone.iter().map(path).filter(is_file).map(Does::Aside));
                Ok(Some((format!("goes on without segment {names}"), lost, does)))
            }
            OpenError::Corrupt { frame, .. } | OpenError::Missing { first: frame, .. }
                if *frame > known && known > FrameNo::ZERO =>
            {
                let lost = self.behind(part, *frame)?;
                let mut does = match candidate.is_newest {
                    true => Vec::new(),
                    false => self.start_from(part, candidate, found),
                };
                does.extend(self.cut(part, *frame)?);
                Ok(Some((format!("ends the log behind frame {}", frame.prev()), lost, does)))
            }
            _ => Ok(None),
        }
    }

    /// Ends the log before `frame`: what stands from there on in its segment, and all
    /// segments behind it.
    fn cut(&self, part: &Part, frame: FrameNo) -> Result<Vec<Does>, StoreError> {
        let (files, dir) = (&*self.look.files, part.log_dir());
        let mut does = Vec::new();
        let kept = extents(files, &dir, self.look.number, &[], frame.prev())?;
        for entry in files.list(&dir)?.iter().filter(|entry| entry.name.starts_with("seg-")) {
            let path = dir.join(&entry.name);
            match kept.iter().find(|extent| extent.name == entry.name) {
                Some(extent) if extent.used < extent.bytes => {
                    does.push(Does::Cut(path, extent.used));
                }
                Some(_) => {}
                None => does.push(Does::Aside(path)),
            }
        }
        Ok(does)
    }

    /// What stands in a log from a frame on, as far as it can be read.
    fn behind(&self, part: &Part, frame: FrameNo) -> Result<String, StoreError> {
        let files = self.look.files.clone();
        let walk = inspect(files, &part.log_dir(), self.look.number, Read::Meta)?;
        let (mut frames, mut records, mut bytes, mut last) = (0u64, 0u64, 0u64, frame);
        for unit in walk.flatten() {
            let header = unit.header;
            if header.kind != Kind::Data || header.frame_no < frame {
                continue;
            }
            frames += 1;
            records += u64::from(header.records);
            bytes += u64::from(header.body_len);
            last = last.max(header.frame_no);
        }
        Ok(format!(
            "everything from frame {frame} to the end of the log (at least frame {last}): of what \
             can be read of it, {frames} frames with {records} records and {bytes} bytes of \
             messages"
        ))
    }

    /// Does what a plan says. Returns where it has put what it took out.
    ///
    /// # Errors
    /// What the system refused. What was done stays done; a plan made anew goes on.
    pub fn carry_out(&self, plan: &Plan, now_ms: u64) -> Result<PathBuf, StoreError> {
        let files = &*self.look.files;
        let aside = self.look.dir.join(format!("repair-{now_ms}"));
        files.create_dir(&aside)?;
        files.sync_dir(&self.look.dir)?;
        let mut report = String::new();
        for step in &plan.steps {
            report.push_str(&format!("{step}\n"));
            for does in &step.does {
                self.carry_out_one(does, &aside)?;
            }
        }
        write_file(files, &aside, "report.txt", report.as_bytes())?;
        Ok(aside)
    }

    fn carry_out_one(&self, does: &Does, aside: &Path) -> Result<(), StoreError> {
        let files = &*self.look.files;
        match does {
            Does::Write(manifest, part) => {
                manifest.write(files, &part.dir, self.look.number, part.shard)
            }
            Does::Aside(path) => {
                let target = self.place(path, aside)?;
                files.rename(path, &target)?;
                for path in [&target, path] {
                    if let Some(dir) = path.parent() {
                        files.sync_dir(dir)?;
                    }
                }
                Ok(())
            }
            Does::Cut(path, from) => {
                let target = self.place(path, aside)?;
                let (file, copy) = (files.open(path, Access::Write)?, files.create(&target)?);
                let len = file.size()?;
                let mut piece = vec![0; PIECE_BYTES];
                for at in (0..len).step_by(PIECE_BYTES) {
                    let piece = &mut piece[..(PIECE_BYTES as u64).min(len - at) as usize];
                    file.read_exact_at(piece, at)?;
                    copy.write_all_at(piece, at)?;
                }
                copy.sync_all()?;
                if let Some(dir) = target.parent() {
                    files.sync_dir(dir)?;
                }
                piece.fill(0);
                for at in (*from..len).step_by(PIECE_BYTES) {
                    let piece = &piece[..(PIECE_BYTES as u64).min(len - at) as usize];
                    file.write_all_at(piece, at)?;
                }
                Ok(file.sync_data()?)
            }
        }
    }

    /// Where a file of the store goes below `aside`.
    fn place(&self, path: &Path, aside: &Path) -> Result<PathBuf, StoreError> {
        let relative = path.strip_prefix(&self.look.dir).unwrap_or(path);
        let mut dir = aside.to_owned();
        for name in relative.parent().iter().flat_map(|parent| parent.components()) {
            let parent = dir.clone();
            dir.push(name);
            self.look.files.create_dir(&dir)?;
            self.look.files.sync_dir(&parent)?;
        }
        Ok(dir.join(relative.file_name().unwrap_or_default()))
    }
}

fn has_log(files: &dyn Files, part: &Part) -> bool {
    let entries = files.list(&part.log_dir()).unwrap_or_default();
    entries.iter().any(|entry| entry.name.starts_with("seg-"))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.part, self.damage)?;
        writeln!(f, "    repair: {}", self.action)?;
        write!(f, "    lost:   {}", self.lost.as_deref().unwrap_or("nothing"))
    }
}

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.part, self.damage)?;
        write!(f, "    repair: cannot; bring the files back from a backup")
    }
}
