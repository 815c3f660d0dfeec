//! Chunks: immutable data outside memory.
//!
//! ```text
//! block 0 | block 1 | ... | footer | trailer
//! footer:  kind u8 | version u8 | blocks varint
//!          | per block: length varint, crc u32, label (varint length, bytes)
//!          | summary (varint length, bytes)
//! trailer: footer length u32 | footer crc u32 | store u64 | epoch u32 | number u64 | magic u32
//! ```
//! Little-endian. Every CRC-32C is salted with the store, the chunk and what it
//! covers, so that a block of another chunk, or at another place, does not pass.
//! There is one format for all: what a block, its label and the summary hold
//! depends on the kind.
//!
//! The core builds chunks and reads blocks that are in memory; writing, fetching
//! and caching is the shell's work (see [`Chunks`]).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::crc32c_of;
use posthouse_frame::varint::{self, Cursor, Malformed};

/// The size that builders fill a block to, in bytes.
pub const BLOCK_BYTES: usize = 32 << 10;

/// A block larger than this is taken for corrupt.
pub const MAX_BLOCK_BYTES: u64 = 16 << 20;

const VERSION: u8 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"PHc1");
/// The size of the trailer in bytes.
pub const TRAILER_BYTES: usize = 32;

/// The name of a chunk: the ownership under which it was made, and a number that
/// is never used again in its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    /// See the frame header's epoch.
    pub epoch: u32,
    /// Rises with every chunk.
    pub number: u64,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

/// A block that is needed and not in memory. Nothing has changed; fetch it and ask
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("block {block} of chunk {chunk} is not in memory")]
pub struct Miss {
    /// The chunk.
    pub chunk: ChunkId,
    /// The block in it.
    pub block: u32,
}

/// What the shell lends to the core: the blocks that are in memory.
pub trait Chunks {
    /// A verified block, if it is in memory. `None` is an ordinary answer, never an
    /// error: see [`Miss`].
    fn block(&self, chunk: ChunkId, block: u32) -> Option<Bytes>;
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// Part of the topic index: see [`crate::index`].
    Index = 1,
    /// Pages of the state: see [`crate::page`].
    Pages = 2,
    /// Scheduled messages: see [`crate::schedule::run`].
    Run = 3,
}

/// Where a block stands in its chunk, and what it is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Byte offset in the chunk.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Its salted CRC.
    pub crc: u32,
    /// What the kind needs to know of it without reading it.
    pub label: Bytes,
}

/// What stands in the footer. Stays in memory as long as the chunk is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The store that the chunk belongs to.
    pub store: u64,
    /// Its name.
    pub id: ChunkId,
    /// What it holds.
    pub kind: ChunkKind,
    /// Its blocks, in order.
    pub blocks: Vec<Block>,
    /// What the kind needs to know of the whole.
    pub summary: Bytes,
}

/// A finished chunk, to be kept.
#[derive(Clone, Debug)]
pub struct SealedChunk {
    /// What stays in memory.
    pub directory: Arc<Directory>,
    /// The whole content, in pieces, in order.
    pub pieces: Vec<Bytes>,
}

/// Why a chunk cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Fewer bytes than the parts need.
    #[error("the chunk is cut short: {0}")]
    Short(&'static str),
    /// The end is not the end of a chunk.
    #[error("this is not the end of a chunk")]
    Magic,
    /// Another store's, or another chunk under this name.
    #[error("this is chunk {found} of store {store:016x}")]
    Other {
        /// The chunk that it says it is.
        found: ChunkId,
        /// The store that it says it is from.
        store: u64,
    },
    /// The footer's checksum does not hold.
    #[error("the checksum of the footer does not hold")]
    Footer,
    /// A block's checksum does not hold.
    #[error("the checksum of block {0} does not hold")]
    Block(u32),
    /// A layout of a newer release.
    #[error("the chunk has kind {kind} and layout {version}, which this release does not know")]
    Version {
        /// As stored.
        kind: u8,
        /// As stored.
        version: u8,
    },
    /// The content contradicts itself although every checksum holds.
    #[error("broken encoding: {0}")]
    Malformed(#[from] Malformed),
}

impl Directory {
    fn crc(store: u64, id: ChunkId, what: u32, data: &[u8]) -> u32 {
        let mut salt = [0u8; 24];
        salt[..8].copy_from_slice(&store.to_le_bytes());
        salt[8..12].copy_from_slice(&id.epoch.to_le_bytes());
        salt[12..20].copy_from_slice(&id.number.to_le_bytes());
        salt[20..].copy_from_slice(&what.to_le_bytes());
        crc32c_of(&[&salt, data])
    }

    /// Bytes of all blocks.
    pub fn block_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.len)).sum()
    }

    /// Verifies the bytes of block `block`.
    ///
    /// # Errors
    /// [`ChunkError::Block`] if they are not what was written.
    pub fn verify(&self, block: u32, data: &[u8]) -> Result<(), ChunkError> {
        let info = self.blocks.get(block as usize).ok_or(ChunkError::Block(block))?;
        let holds = data.len() == info.len as usize
            && Self::crc(self.store, self.id, block, data) == info.crc;
        if holds { Ok(()) } else { Err(ChunkError::Block(block)) }
    }

    /// The length of a whole chunk of which `trailer` is the end, and where its
    /// footer starts, after a check that it is chunk `id` of `store`.
    ///
    /// # Errors
    /// See [`ChunkError`].
    pub fn footer_range(
        trailer: &[u8],
        chunk_len: u64,
        store: u64,
        id: ChunkId,
    ) -> Result<std::ops::Range<u64>, ChunkError> {
        let t: &[u8; TRAILER_BYTES] =
            trailer.try_into().map_err(|_| ChunkError::Short("no trailer"))?;
        let mut c = Cursor::new(t);
        let (len, _crc, of, epoch, number, magic) =
            (c.u32()?, c.u32()?, c.u64()?, c.u32()?, c.u64()?, c.u32()?);
        if magic != MAGIC {
            return Err(ChunkError::Magic);
        }
        let found = ChunkId { epoch, number };
        if of != store || found != id {
            return Err(ChunkError::Other { found, store: of });
        }
        let end = chunk_len
            .checked_sub(TRAILER_BYTES as u64)
            .ok_or(ChunkError::Short("no room for a trailer"))?;
        let start = end.checked_sub(len.into()).ok_or(ChunkError::Short("no room for a footer"))?;
        Ok(start..end)
    }

    /// Decodes the footer, which starts at byte `start` of the chunk.
    ///
    /// # Errors
    /// See [`ChunkError`].
    pub fn decode(
        footer: &[u8],
        trailer: &[u8],
        start: u64,
        store: u64,
        id: ChunkId,
    ) -> Result<Directory, ChunkError> {
        let crc = Cursor::new(trailer.get(4..8).ok_or(ChunkError::Short("no trailer"))?).u32()?;
        if Self::crc(store, id, u32::MAX, footer) != crc {
            return Err(ChunkError::Footer);
        }
        let mut c = Cursor::new(footer);
        let (kind, version) = (c.u8()?, c.u8()?);
        let kind = match (kind, version) {
            (1, VERSION) => ChunkKind::Index,
            (2, VERSION) => ChunkKind::Pages,
            (3, VERSION) => ChunkKind::Run,
            _ => return Err(ChunkError::Version { kind, version }),
        };
        let count = c.varint()?;
        let mut blocks = Vec::with_capacity(count.min(c.remaining() as u64) as usize);
        let mut offset = 0;
        for _ in 0..count {
            let at = c.position();
            let len = c.varint()?;
            if len > MAX_BLOCK_BYTES {
                return Err(Malformed { at }.into());
            }
            let crc = c.u32()?;
            let label = Bytes::copy_from_slice(c.bytes()?);
            blocks.push(Block { offset, len: len as u32, crc, label });
            offset += len;
        }
        let summary = Bytes::copy_from_slice(c.bytes()?);
        if !c.is_empty() || offset != start {
            return Err(Malformed { at: c.position() }.into());
        }
        Ok(Directory { store, id, kind, blocks, summary })
    }
}

/// Builds a chunk, block by block.
#[derive(Debug)]
pub struct ChunkBuilder {
    directory: Directory,
    pieces: Vec<Bytes>,
    offset: u64,
}

impl ChunkBuilder {
    /// An empty chunk.
    pub fn new(store: u64, id: ChunkId, kind: ChunkKind) -> Self {
        let directory = Directory { store, id, kind, blocks: Vec::new(), summary: Bytes::new() };
        ChunkBuilder { directory, pieces: Vec::new(), offset: 0 }
    }

    /// Bytes of all blocks so far.
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// How many blocks it has so far: the number of the next.
    pub fn blocks(&self) -> u32 {
        self.directory.blocks.len() as u32
    }

    /// Whether it has no block yet.
    pub fn is_empty(&self) -> bool {
        self.directory.blocks.is_empty()
    }

    /// Adds a block and returns its number.
    pub fn block(&mut self, data: Vec<u8>, label: Vec<u8>) -> u32 {
        let number = self.directory.blocks.len() as u32;
        let (store, id) = (self.directory.store, self.directory.id);
        let crc = Directory::crc(store, id, number, &data);
        let len = data.len() as u32;
        self.directory.blocks.push(Block {
            offset: self.offset,
            len,
            crc,
            label: Bytes::from(label),
        });
        self.offset += u64::from(len);
        self.pieces.push(Bytes::from(data));
        number
    }

    /// Closes the chunk.
    pub fn finish(mut self, summary: Vec<u8>) -> SealedChunk {
        let directory = &mut self.directory;
        directory.summary = Bytes::from(summary);
        let mut end = vec![directory.kind as u8, VERSION];
        varint::put(&mut end, directory.blocks.len() as u64);
        for block in &directory.blocks {
            varint::put(&mut end, block.len.into());
            end.extend_from_slice(&block.crc.to_le_bytes());
            varint::put_bytes(&mut end, &block.label);
        }
        varint::put_bytes(&mut end, &directory.summary);
        let footer_len = end.len() as u32;
        let crc = Directory::crc(directory.store, directory.id, u32::MAX, &end);
        end.extend_from_slice(&footer_len.to_le_bytes());
        end.extend_from_slice(&crc.to_le_bytes());
        end.extend_from_slice(&directory.store.to_le_bytes());
        end.extend_from_slice(&directory.id.epoch.to_le_bytes());
        end.extend_from_slice(&directory.id.number.to_le_bytes());
        end.extend_from_slice(&MAGIC.to_le_bytes());
        self.pieces.push(Bytes::from(end));
        SealedChunk { directory: Arc::new(self.directory), pieces: self.pieces }
    }
}

impl SealedChunk {
    /// Decodes a whole chunk and verifies all of it.
    ///
    /// # Errors
    /// See [`ChunkError`].
    pub fn decode(data: &Bytes, store: u64, id: ChunkId) -> Result<SealedChunk, ChunkError> {
        let trailer_at =
            data.len().checked_sub(TRAILER_BYTES).ok_or(ChunkError::Short("no trailer"))?;
        let trailer = &data[trailer_at..];
        let range = Directory::footer_range(trailer, data.len() as u64, store, id)?;
        let footer = &data[range.start as usize..range.end as usize];
        let directory = Directory::decode(footer, trailer, range.start, store, id)?;
        let mut pieces = Vec::with_capacity(directory.blocks.len() + 1);
        for (number, block) in directory.blocks.iter().enumerate() {
            let start = block.offset as usize;
            let piece = data.slice(start..start + block.len as usize);
            directory.verify(number as u32, &piece)?;
            pieces.push(piece);
        }
        pieces.push(data.slice(range.start as usize..));
        Ok(SealedChunk { directory: Arc::new(directory), pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ChunkId = ChunkId { epoch: 3, number: 9 };

    fn sample() -> (SealedChunk, Bytes) {
        let mut builder = ChunkBuilder::new(77, ID, ChunkKind::Pages);
        assert_eq!(builder.block(b"first".to_vec(), b"a".to_vec()), 0);
        assert_eq!(builder.block(Vec::new(), Vec::new()), 1);
        assert_eq!(builder.block(vec![5; 100], b"label".to_vec()), 2);
        let sealed = builder.finish(b"summary".to_vec());
        let whole = Bytes::from(sealed.pieces.concat());
        (sealed, whole)
    }

    #[test]
    fn what_is_sealed_is_decoded() {
        let (sealed, whole) = sample();
        let decoded = SealedChunk::decode(&whole, 77, ID).unwrap();
        assert_eq!(decoded.directory, sealed.directory);
        assert_eq!(decoded.pieces, sealed.pieces);
    }

    #[test]
    fn a_flip_of_any_bit_and_a_cut_anywhere_are_seen() {
        let (_, whole) = sample();
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SealedChunk::decode(&bad.into(), 77, ID).is_err(), "bit {bit} went unseen");
        }
        for end in 0..whole.len() {
            assert!(SealedChunk::decode(&whole.slice(..end), 77, ID).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn another_chunk_under_this_name_is_named() {
        let (_, whole) = sample();
        let other = ChunkId { epoch: 3, number: 10 };
        let error = SealedChunk::decode(&whole, 77, other).unwrap_err();
        assert_eq!(error, ChunkError::Other { found: ID, store: 77 });
        assert!(SealedChunk::decode(&whole, 78, ID).is_err());
    }

    #[test]
    fn a_block_does_not_pass_for_another() {
        let mut builder = ChunkBuilder::new(77, ID, ChunkKind::Pages);
        builder.block(b"same".to_vec(), Vec::new());
        builder.block(b"same".to_vec(), Vec::new());
        let directory = builder.finish(Vec::new()).directory;
        assert_ne!(directory.blocks[0].crc, directory.blocks[1].crc);
        assert_eq!(directory.verify(0, b"same"), Ok(()));
        assert_eq!(directory.verify(2, b"same"), Err(ChunkError::Block(2)));
    }
}
