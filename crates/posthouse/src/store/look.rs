//! Looking at a data directory that somebody else may be using: nothing is locked, made
//! or changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use posthouse_core::catalog::Catalog;
use posthouse_core::ident::Secret;
use posthouse_core::machine::Machine;
use posthouse_core::record::READER;
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::Part as Read;
use posthouse_log::files::Files;
use posthouse_log::local::inspect;

use super::chunks::ChunkFiles;
use super::manifest::Manifest;
use super::open::{Indexed, restore};
use super::{META_SHARD, StoreError, StoreInfo, read_info, read_secret, shard_dir};

/// How often a look begins anew because the node has taken a snapshot meanwhile, and has
/// removed what the one before needed.
pub(super) const TRIES: usize = 10;

/// A data directory that is looked at.
#[derive(Debug)]
pub struct Look {
    /// The disk.
    pub files: Arc<dyn Files>,
    /// Where it is.
    pub dir: PathBuf,
    /// What it says of itself.
    pub info: StoreInfo,
    /// The number that names it.
    pub number: u64,
    /// What ids are proved with.
    pub secret: Secret,
}

/// The directory of one log and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `meta`, `shard-0000` and so on: the name of the directory.
    pub name: String,
    /// The shard's number; [`META_SHARD`] for the catalog.
    pub shard: u16,
    /// The directory.
    pub dir: PathBuf,
}

impl Part {
    /// The directory of the log's segments.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The directory of chunk files.
    pub fn chunk_dir(&self) -> PathBuf {
        self.dir.join("chunks")
    }

    /// Whether it is the catalog's.
    pub fn is_meta(&self) -> bool {
        self.shard == META_SHARD
    }
}

/// What a walk over a log came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Segments that have frames.
    pub segments: usize,
    /// Frames.
    pub frames: u64,
    /// The first of them; zero if there is none.
    pub first: FrameNo,
    /// The last of them.
    pub last: FrameNo,
    /// Records in them.
    pub records: u64,
    /// Bytes of the frames, with padding.
    pub frame_bytes: u64,
    /// Bytes of their meta sections.
    pub meta_bytes: u64,
    /// Bytes of their body sections.
    pub body_bytes: u64,
}

/// A machine as the directory has it.
#[derive(Debug)]
pub struct Loaded<M> {
    /// The machine.
    pub machine: M,
    /// The snapshot it began from; `None` if the node was never started to its end.
    pub manifest: Option<Manifest>,
    /// What its log has.
    pub walked: Walked,
}

/// The directories of a store with so many shards, the catalog's first.
pub(super) fn parts(dir: &Path, shards: u16) -> Vec<Part> {
    let meta = Part { name: "meta".into(), shard: META_SHARD, dir: dir.join("meta") };
    let shard = |shard| {
        let dir = shard_dir(dir, shard);
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        Part { name: name.unwrap_or_default(), shard, dir }
    };
    std::iter::once(meta).chain((0..shards).map(shard)).collect()
}

/// Whether there is a store in `dir`.
///
/// # Errors
/// [`StoreError::NoStore`] if not, or what the system refused.
pub(super) fn check_is_store(files: &dyn Files, dir: &Path) -> Result<(), StoreError> {
    let no_store = || StoreError::NoStore { dir: dir.to_owned() };
    match files.list(dir) {
        Err(error) if error.is_missing() => Err(no_store()),
        Err(error) => Err(error.into()),
        Ok(entries) => {
            // Without a store.json, but with data: then that is what is damaged.
            let has = |name: &str| entries.iter().any(|entry| entry.name == name);
            if has(super::STORE_FILE) || has("meta") { Ok(()) } else { Err(no_store()) }
        }
    }
}

impl Look {
    /// Looks at the data directory `dir`.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] if there is none; else see [`StoreError`].
    pub fn new(files: Arc<dyn Files>, dir: &Path) -> Result<Look, StoreError> {
        check_is_store(&*files, dir)?;
        let info = read_info(&*files, dir)?;
        let number = info.number().ok_or_else(|| {
            let what = "its store is no hexadecimal number";
            StoreError::damaged(&dir.join(super::STORE_FILE), what)
        })?;
        let secret = read_secret(&*files, dir)?;
        Ok(Look { files, dir: dir.to_owned(), info, number, secret })
    }

    /// Its directories, the catalog's first.
    pub fn parts(&self) -> Vec<Part> {
        parts(&self.dir, self.info.shards)
    }

    /// The catalog as it is.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn catalog(&self) -> Result<Loaded<Catalog>, StoreError> {
        self.load(&self.parts()[0], || Catalog::new(self.secret))
    }

    /// A machine as it is: its newest snapshot, and the log behind it. `machine` makes
    /// one in which nothing has happened.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn load<M: Machine + Indexed>(
        &self,
        part: &Part,
        machine: impl Fn() -> M,
    ) -> Result<Loaded<M>, StoreError> {
        let mut tries = 1;
        loop {
            let newest = Manifest::newest_generation(&*self.files, &part.dir)?;
            let loaded = self.load_once(part, machine());
            if loaded.is_ok() || tries == TRIES {
                return loaded;
            }
            if Manifest::newest_generation(&*self.files, &part.dir)? == newest {
                return loaded;
            }
            tries += 1;
        }
    }

    fn load_once<M: Machine + Indexed>(
        &self,
        part: &Part,
        mut machine: M,
    ) -> Result<Loaded<M>, StoreError> {
        let manifest = self.newest_manifest(part)?;
        if let Some(manifest) = &manifest {
            let chunks = ChunkFiles::new(self.files.clone(), &part.chunk_dir(), self.number);
            restore(&mut machine, manifest, &chunks)?;
        }
        machine.restored();
        let after = manifest.as_ref().map_or(FrameNo::ZERO, |manifest| manifest.frame);
        let walked = match &manifest {
            Some(_) => self.replay(part, &mut machine, after)?,
            None => Walked::default(),
        };
        Ok(Loaded { machine, manifest, walked })
    }

    /// The newest manifest that holds.
    fn newest_manifest(&self, part: &Part) -> Result<Option<Manifest>, StoreError> {
        let mut failed = None;
        for (_, path) in Manifest::list_if_there(&*self.files, &part.dir)? {
            match Manifest::load(&*self.files, &path, self.number, part.shard) {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(newer @ StoreError::Newer { .. }) => return Err(newer),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn replay<M: Machine>(
        &self,
        part: &Part,
        machine: &mut M,
        after: FrameNo,
    ) -> Result<Walked, StoreError> {
        let (dir, mut walked, mut expected) = (part.log_dir(), Walked::default(), after.next());
        let mut walk = inspect(self.files.clone(), &dir, self.number, Read::Meta)?;
        for unit in &mut walk {
            let unit = unit?;
            let header = unit.header;
            if header.kind == Kind::Mark {
                continue;
            }
            walked.add(&header);
            if header.frame_no <= after {
                continue;
            }
            if header.frame_no != expected {
                let what = format!("after frame {} comes {}", expected.prev(), header.frame_no);
                return Err(StoreError::damaged(&dir, what));
            }
            expected = expected.next();
            if header.min_reader > READER {
                let found = header.min_reader.into();
                return Err(StoreError::Newer { path: part.dir.clone(), found });
            }
            if header.kind == Kind::Data {
                machine.apply(header.frame_no, &unit.meta).map_err(|error| {
                    let what = format!("frame {} of the log: {error}", header.frame_no);
                    StoreError::damaged(&dir, what)
                })?;
                machine.sealed(header.frame_no, header.content_bytes() as usize);
            }
        }
        walked.segments = walk.segments();
        Ok(walked)
    }
}

impl Walked {
    fn add(&mut self, header: &posthouse_frame::Header) {
        if self.frames == 0 {
            self.first = header.frame_no;
        }
        self.frames += 1;
        self.last = header.frame_no;
        self.records += u64::from(header.records);
        self.frame_bytes += u64::from(header.total);
        self.meta_bytes += u64::from(header.meta_len);
        self.body_bytes += u64::from(header.body_len);
    }
}
