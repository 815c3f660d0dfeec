//! Manifests: the root of a snapshot.
//!
//! ```text
//! magic u32 | version u16 | min_reader u16 | store u64 | shard u16 | generation u64
//! frame u64 | epoch u32 | next_chunk u64 | wall_ms u64 | lease_ms u64
//! segments: count, number each | index chunks: count, (epoch, number) each
//! page map | crc32c u32
//! ```
//! Two generations are kept. A file is written whole under another name, synced, and
//! renamed, so a torn one cannot be: a manifest that does not hold is damage.

use std::path::{Path, PathBuf};

use posthouse_core::chunk::ChunkId;
use posthouse_core::page::PageMap;
use posthouse_core::record::READER;
use posthouse_frame::varint::{self, Cursor, Malformed};
use posthouse_frame::{FrameNo, crc32c};
use posthouse_log::SegmentNo;
use posthouse_log::files::Files;

use super::{StoreError, read_file, write_file};

const MAGIC: u32 = u32::from_le_bytes(*b"PHm1");
const VERSION: u16 = 1;
const PREFIX: &str = "manifest-";

/// A snapshot's root.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Rises with every manifest of a shard.
    pub generation: u64,
    /// The snapshot is the state behind this frame.
    pub frame: FrameNo,
    /// The ownership under which it was written.
    pub epoch: u32,
    /// The number of the next chunk. Files with this number or a higher one are
    /// leftovers.
    pub next_chunk: u64,
    /// The wall clock at that frame.
    pub wall_ms: u64,
    /// The lease clock at that frame.
    pub lease_ms: u64,
    /// The segments of the log that are needed.
    pub segments: Vec<SegmentNo>,
    /// The chunks of the topic index, oldest first.
    pub index: Vec<ChunkId>,
    /// The runs of the schedule, oldest first.
    pub runs: Vec<ChunkId>,
    /// Everything that is scheduled is due then or later, Unix milliseconds.
    pub due_from_ms: u64,
    /// Where the pages of the state are.
    pub pages: PageMap,
}

impl Manifest {
    fn encode(&self, store: u64, shard: u16) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.pages.len() * 24);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&READER.to_le_bytes());
        out.extend_from_slice(&store.to_le_bytes());
        out.extend_from_slice(&shard.to_le_bytes());
        for value in [self.generation, self.frame.0, self.epoch.into(), self.next_chunk] {
            varint::put(&mut out, value);
        }
        varint::put(&mut out, self.wall_ms);
        varint::put(&mut out, self.lease_ms);
        varint::put(&mut out, self.segments.len() as u64);
        self.segments.iter().for_each(|segment| varint::put(&mut out, segment.0));
        varint::put(&mut out, self.index.len() as u64);
        for chunk in &self.index {
            varint::put(&mut out, chunk.epoch.into());
            varint::put(&mut out, chunk.number);
        }
        varint::put(&mut out, self.runs.len() as u64);
        for chunk in &self.runs {
            varint::put(&mut out, chunk.epoch.into());
            varint::put(&mut out, chunk.number);
        }
        varint::put(&mut out, self.due_from_ms);
        self.pages.encode(&mut out);
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], store: u64, shard: u16) -> Result<Manifest, Unusable> {
        let damaged = |what: &str| Unusable::Damaged(what.into());
        let Some((content, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(damaged("it is too short"));
        };
        if crc32c(content) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum does not hold"));
        }
        let mut c = Cursor::new(content);
        let broken = |e: Malformed| Unusable::Damaged(format!("broken encoding: {e}"));
        let head = || -> Result<(u32, u16, u16, u64, u16), Malformed> {
            let mut c = Cursor::new(content);
            let magic = c.u32()?;
            let (version, reader) = (c.u32()?, c.u64()?);
            let shard = u16::from_le_bytes([c.u8()?, c.u8()?]);
            Ok((magic, version as u16, (version >> 16) as u16, reader, shard))
        };
        let (magic, version, reader, of_store, of_shard) = head().map_err(broken)?;
        c.take(18).map_err(broken)?;
        if magic != MAGIC {
            return Err(damaged("it is no manifest"));
        }
        if version > VERSION || reader > READER {
            return Err(Unusable::Newer(version.max(reader)));
        }
        if (of_store, of_shard) != (store, shard) {
            let what = format!("it belongs to shard {of_shard} of store {of_store:016x}");
            return Err(Unusable::Damaged(what));
        }
        Self::read(&mut c).map_err(broken)
    }

    fn read(c: &mut Cursor<'_>) -> Result<Manifest, Malformed> {
        let mut manifest = Manifest {
            generation: c.varint()?,
            frame: FrameNo(c.varint()?),
            epoch: c.varint_u32()?,
            next_chunk: c.varint()?,
            wall_ms: c.varint()?,
            lease_ms: c.varint()?,
            ..Manifest::default()
        };
        for _ in 0..c.varint()? {
            manifest.segments.push(SegmentNo(c.varint()?));
        }
        for _ in 0..c.varint()? {
            manifest.index.push(ChunkId { epoch: c.varint_u32()?, number: c.varint()? });
        }
        for _ in 0..c.varint()? {
            manifest.runs.push(ChunkId { epoch: c.varint_u32()?, number: c.varint()? });
        }
        manifest.due_from_ms = c.varint()?;
        manifest.pages = PageMap::decode(c)?;
        if c.is_empty() { Ok(manifest) } else { Err(Malformed { at: c.position() }) }
    }

    /// Every chunk that the snapshot needs.
    pub fn chunks(&self) -> std::collections::BTreeSet<ChunkId> {
        let listed = self.index.iter().chain(&self.runs).copied();
        listed.chain(self.pages.by_chunk().into_keys()).collect()
    }

    /// The name of its file.
    pub fn file_name(generation: u64) -> String {
        format!("{PREFIX}{generation:020}")
    }

    /// Writes the manifest, durably.
    ///
    /// # Errors
    /// What the system refused.
    pub fn write(
        &self,
        files: &dyn Files,
        dir: &Path,
        store: u64,
        shard: u16,
    ) -> Result<(), StoreError> {
        write_file(files, dir, &Self::file_name(self.generation), &self.encode(store, shard))
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it does not hold, [`StoreError::Newer`] if it is of a
    /// release after this one.
    pub fn load(
        files: &dyn Files,
        file: &Path,
        store: u64,
        shard: u16,
    ) -> Result<Manifest, StoreError> {
        let bytes = read_file(files, file)?;
        Manifest::decode(&bytes, store, shard).map_err(|unusable| match unusable {
            Unusable::Damaged(what) => StoreError::damaged(file, what),
            Unusable::Newer(found) => {
                StoreError::Newer { path: file.to_owned(), found: found.into() }
            }
        })
    }

    /// The store that the manifest in these bytes belongs to, if its checksum holds.
    pub fn store_of(bytes: &[u8]) -> Option<u64> {
        let (content, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c(content) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut c = Cursor::new(content);
        let magic = c.u32().ok()?;
        c.take(4).ok()?;
        c.u64().ok().filter(|_| magic == MAGIC)
    }

    /// The manifests in a directory, newest first.
    ///
    /// # Errors
    /// What the system refused.
    pub fn list(files: &dyn Files, dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
        let mut found: Vec<(u64, PathBuf)> = files
            .list(dir)?
            .into_iter()
            .filter_map(|entry| {
                let generation = entry.name.strip_prefix(PREFIX)?.parse().ok()?;
                Some((generation, dir.join(&entry.name)))
            })
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// The manifests in a directory, newest first; none if the directory is not there.
    ///
    /// # Errors
    /// What the system refused.
    pub fn list_if_there(files: &dyn Files, dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
        match Self::list(files, dir) {
            Err(StoreError::File(error)) if error.is_missing() => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// The generation of the newest manifest in a directory, whether it holds or not.
    ///
    /// # Errors
    /// What the system refused.
    pub fn newest_generation(files: &dyn Files, dir: &Path) -> Result<Option<u64>, StoreError> {
        Ok(Self::list_if_there(files, dir)?.first().map(|(generation, _)| *generation))
    }
}

/// Why bytes are no manifest that can be used here.
#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    Damaged(String),
    /// A newer release wrote it, in this format.
    Newer(u16),
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_core::page::{Located, PageId, TableId};

    fn sample() -> Manifest {
        let mut pages = PageMap::default();
        let chunk = ChunkId { epoch: 1, number: 3 };
        for number in 0..5 {
            let id = PageId::of(TableId::Pairs, number);
            pages.set(id, Located { chunk, block: number as u32, hash: id.hash(b"x") });
        }
        Manifest {
            generation: 7,
            frame: FrameNo(1 << 40),
            epoch: 3,
            next_chunk: 12,
            wall_ms: 1_900_000_000_000,
            lease_ms: 1_900_000_000_001,
            segments: vec![SegmentNo(4), SegmentNo(9)],
            index: vec![ChunkId { epoch: 1, number: 2 }, ChunkId { epoch: 2, number: 4 }],
            runs: vec![ChunkId { epoch: 2, number: 5 }],
            due_from_ms: 1_900_000_000_500,
            pages,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_names_its_chunks() {
        let bytes = sample().encode(5, 2);
        assert_eq!(Manifest::decode(&bytes, 5, 2), Ok(sample()));
        assert_eq!(sample().chunks().len(), 4);
        assert_eq!(Manifest::store_of(&bytes), Some(5));
    }

    #[test]
    fn a_flip_of_any_bit_and_a_cut_anywhere_are_seen() {
        let bytes = sample().encode(5, 2);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad, 5, 2).is_err(), "bit {bit} went unseen");
        }
        for end in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..end], 5, 2).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn another_shards_manifest_is_refused_by_name() {
        let bytes = sample().encode(5, 2);
        let error = Manifest::decode(&bytes, 5, 3).unwrap_err();
        let what = "it belongs to shard 2 of store 0000000000000005".to_owned();
        assert_eq!(error, Unusable::Damaged(what));
    }

    #[test]
    fn a_manifest_of_a_newer_release_is_not_taken_for_damage() {
        let mut bytes = sample().encode(5, 2);
        bytes[4] += 1;
        let end = bytes.len() - 4;
        let crc = crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&bytes, 5, 2), Err(Unusable::Newer(VERSION + 1)));
    }
}
