//! Chunk files: written once, read by the block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use posthouse_core::chunk::{ChunkId, Directory, Miss, SealedChunk, TRAILER_BYTES};
use posthouse_log::files::{Access, File, Files};

use super::StoreError;

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
        let mut offset = 0;
        for piece in &chunk.pieces {
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
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

    /// Removes a chunk's file.
    ///
    /// # Errors
    /// What the system refused; that it is gone already is no error.
    pub fn remove(&self, id: ChunkId) -> Result<(), StoreError> {
        self.lock().remove(&id);
        match self.inner.files.unlink(&self.path(id)) {
            Err(error) if !error.is_missing() => Err(error.into()),
            _ => Ok(()),
        }
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
