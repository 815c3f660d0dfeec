//! Chunk files: written once, read by the block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use posthouse_core::chunk::{ChunkId, Directory, Miss, SealedChunk, TRAILER_BYTES};
use posthouse_log::files::{Access, File, Files, PIECE_BYTES};

use super::StoreError;

/// Before the number of a chunk whose file is being removed.
const GONE: &str = "gone-";

/// The chunk files of one shard. Shared by whoever reads and writes them.
#[derive(Clone, Debug)]
pub struct ChunkFiles {
    inner: Arc<Inner>,
}

/// Chunks whose files are open.
type Open = BTreeMap<ChunkId, (Arc<dyn File>, Arc<Directory>)>;

#[derive(Debug)]
struct Inner {
    files: Arc<dyn Files>,
    dir: PathBuf,
    store: u64,
    open: Mutex<Open>,
}

impl ChunkFiles {
    /// The chunk files in `dir`.
    pub fn new(files: Arc<dyn Files>, dir: &Path, store: u64) -> Self {
        let open = Mutex::new(BTreeMap::new());
        ChunkFiles { inner: Arc::new(Inner { files, dir: dir.to_owned(), store, open }) }
    }

    /// The file of a chunk.
    pub fn path(&self, id: ChunkId) -> PathBuf {
        self.inner.dir.join(format!("c-{}-{}", id.epoch, id.number))
    }

    /// The chunk that a file of this name holds.
    pub fn id_of(name: &str) -> Option<ChunkId> {
        let (epoch, number) = name.strip_prefix("c-")?.split_once('-')?;
        Some(ChunkId { epoch: epoch.parse().ok()?, number: number.parse().ok()? })
    }

    /// Writes a chunk, durably.
    ///
    /// # Errors
    /// What the system refused.
    pub fn write(&self, chunk: &SealedChunk) -> Result<(), StoreError> {
        let inner = &self.inner;
        let path = self.path(chunk.directory.id);
        match inner.files.unlink(&path) {
            Err(error) if !error.is_missing() => return Err(error.into()),
            _ => {}
        }
        let file = inner.files.create(&path)?;
        let (mut offset, mut synced) = (0, 0);
        for piece in &chunk.pieces {
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
            if offset - synced >= PIECE_BYTES as u64 {
                // For the log's syncs, which would wait for one of all at the end.
                file.sync_data()?;
                synced = offset;
            }
        }
        if !posthouse_frame::planted("chunk-unsynced") {
            file.sync_all()?;
        }
        if !posthouse_frame::planted("chunk-name-unsynced") {
            inner.files.sync_dir(&inner.dir)?;
        }
        self.lock().insert(chunk.directory.id, (file, chunk.directory.clone()));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.inner.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The directory of a chunk, from its footer.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it does not hold.
    pub fn directory(&self, id: ChunkId) -> Result<Arc<Directory>, StoreError> {
        Ok(self.open(id)?.1)
    }

    fn open(&self, id: ChunkId) -> Result<(Arc<dyn File>, Arc<Directory>), StoreError> {
        if let Some(open) = self.lock().get(&id) {
            return Ok(open.clone());
        }
        let path = self.path(id);
        let store = self.inner.store;
        let file = self.inner.files.open(&path, Access::Read)?;
        let len = file.size()?;
        let mut trailer = [0; TRAILER_BYTES];
        let trailer_at = len
            .checked_sub(TRAILER_BYTES as u64)
            .ok_or_else(|| StoreError::damaged(&path, "it is too short for a chunk"))?;
        file.read_exact_at(&mut trailer, trailer_at)?;
        let damaged = |e| StoreError::damaged(&path, e);
        let range = Directory::footer_range(&trailer, len, store, id).map_err(damaged)?;
        let mut footer = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut footer, range.start)?;
        let directory =
            Directory::decode(&footer, &trailer, range.start, store, id).map_err(damaged)?;
        let open = (file, Arc::new(directory));
        self.lock().insert(id, open.clone());
        Ok(open)
    }

    /// A block, verified.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it does not hold.
    pub fn block(&self, miss: Miss) -> Result<Bytes, StoreError> {
        let (file, directory) = self.open(miss.chunk)?;
        let path = self.path(miss.chunk);
        let Some(block) = directory.blocks.get(miss.block as usize) else {
            return Err(StoreError::damaged(&path, format!("it has no block {}", miss.block)));
        };
        let mut data = vec![0; block.len as usize];
        file.read_exact_at(&mut data, block.offset)?;
        directory.verify(miss.block, &data).map_err(|e| {
            StoreError::damaged(&path, format!("{e} (byte {} of the file)", block.offset))
        })?;
        Ok(Bytes::from(data))
    }

    /// A whole chunk, every block verified.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it does not hold.
    pub fn whole(&self, id: ChunkId) -> Result<SealedChunk, StoreError> {
        let path = self.path(id);
        let bytes = super::read_file(&*self.inner.files, &path)?;
        SealedChunk::decode(&Bytes::from(bytes), self.inner.store, id)
            .map_err(|e| StoreError::damaged(&path, e))
    }

    /// Removes a chunk's file. Under another name first: whoever reads it meanwhile, from
    /// another process perhaps, finds it shorter and then gone, which is no damage.
    ///
    /// # Errors
    /// What the system refused; that it is gone already is no error.
    pub fn remove(&self, id: ChunkId) -> Result<(), StoreError> {
        self.lock().remove(&id);
        let gone = self.inner.dir.join(format!("{GONE}{}-{}", id.epoch, id.number));
        match self.inner.files.rename(&self.path(id), &gone) {
            Err(error) if error.is_missing() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(self.inner.files.unlink_slowly(&gone)?),
        }
    }

    /// Removes the files of all chunks but those that are needed, and what was being removed
    /// when the process ended; at once, for a start, when nobody's syncs would wait.
    ///
    /// # Errors
    /// What the system refused.
    pub fn remove_leftovers(&self, is_needed: impl Fn(ChunkId) -> bool) -> Result<(), StoreError> {
        let Inner { files, dir, .. } = &*self.inner;
        for entry in files.list(dir)? {
            let is_left = Self::id_of(&entry.name).is_some_and(|chunk| !is_needed(chunk));
            if is_left || entry.name.starts_with(GONE) {
                files.unlink(&dir.join(&entry.name))?;
            }
        }
        Ok(())
    }

    /// The chunks that have files.
    ///
    /// # Errors
    /// What the system refused.
    pub fn list(&self) -> Result<Vec<ChunkId>, StoreError> {
        let entries = self.inner.files.list(&self.inner.dir)?;
        Ok(entries.iter().filter_map(|entry| Self::id_of(&entry.name)).collect())
    }
}
