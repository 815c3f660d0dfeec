//! Chunks: footers and their labels, blocks of the index, whole chunks.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use posthouse_core::PartitionId;
use posthouse_core::chunk::{ChunkBuilder, ChunkId, ChunkKind, Directory, SealedChunk};
use posthouse_core::index::block::{self, Label};
use posthouse_core::index::{IndexChunk, Step};
use posthouse_core::schedule::run::Run;
use posthouse_frame::crc32c_of;
use posthouse_frame::varint::{self, Cursor};

use crate::{Seeds, memory, piece};

const STORE: u64 = 77;
const ID: ChunkId = ChunkId { epoch: 3, number: 9 };

/// A byte that says which, and the bytes.
pub fn run(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    memory::within(256 * data.len() + (64 << 10), || match which % 3 {
        0 => footer(data),
        1 => rows(data),
        _ => whole(data),
    });
}

/// A footer whose checksum holds.
fn footer(data: &[u8]) {
    let mut salt = [0u8; 24];
    salt[..8].copy_from_slice(&STORE.to_le_bytes());
    salt[8..12].copy_from_slice(&ID.epoch.to_le_bytes());
    salt[12..20].copy_from_slice(&ID.number.to_le_bytes());
    salt[20..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut trailer = [0u8; 32];
    trailer[..4].copy_from_slice(&(data.len() as u32).to_le_bytes());
    trailer[4..8].copy_from_slice(&crc32c_of(&[&salt, data]).to_le_bytes());
    let start = blocks_bytes(data).unwrap_or(0);
    let Ok(directory) = Directory::decode(data, &trailer, start, STORE, ID) else { return };
    assert_eq!(directory.blocks.iter().map(|block| u64::from(block.len)).sum::<u64>(), start);
    for block in &directory.blocks {
        let _ = Label::decode(&block.label);
    }
    let directory = Arc::new(directory);
    if let Ok(chunk) = IndexChunk::decode(directory.clone()) {
        assert_eq!(chunk.labels().len(), directory.blocks.len());
    }
    if let Ok(run) = Run::decode(directory) {
        assert!(run.moved() <= run.entries() && run.seqs().start <= run.seqs().end);
    }
}

/// How long all blocks are that a footer speaks of.
fn blocks_bytes(footer: &[u8]) -> Option<u64> {
    let (mut c, mut bytes) = (Cursor::new(footer.get(2..)?), 0u64);
    for _ in 0..c.varint().ok()? {
        bytes = bytes.checked_add(c.varint().ok()?)?;
        c.u32().ok()?;
        c.bytes().ok()?;
    }
    Some(bytes)
}

/// A block of the index: every row has the position behind the one before.
fn rows(data: &[u8]) {
    let before = Cell::new(None);
    let mut count = 0;
    let _ = block::walk_all(
        data,
        |_, _, _| {
            before.set(None);
            true
        },
        |_, found| {
            let before = before.replace(Some(found.position));
            assert!(before.is_none_or(|before| before + 1 == found.position));
            count += 1;
            Step::On
        },
    );
    assert!(count <= data.len(), "a row has at least a byte");
    for range in [0..10, 5..u64::MAX] {
        let _ = block::walk(data, PartitionId(0), range.clone(), &mut |found| {
            assert!(range.contains(&found.position));
            Step::On
        });
    }
}

/// The input as blocks of a chunk, which is read as what was written; and as a chunk.
fn whole(data: &[u8]) {
    let as_it_is = Bytes::copy_from_slice(data);
    let _ = SealedChunk::decode(&as_it_is, STORE, ID);
    let mut c = Cursor::new(data);
    let mut builder = ChunkBuilder::new(STORE, ID, ChunkKind::Pages);
    while !c.is_empty() && builder.blocks() < 16 {
        let (content, label) = (piece(&mut c).to_vec(), piece(&mut c).to_vec());
        builder.block(content, label);
    }
    let sealed = builder.finish(c.rest().to_vec());
    let mut bytes = sealed.pieces.concat();
    let read = SealedChunk::decode(&bytes.clone().into(), STORE, ID).expect("it was just sealed");
    assert_eq!((read.directory, read.pieces), (sealed.directory, sealed.pieces));
    let turned = data.len() * 31 % bytes.len();
    bytes[turned] ^= 1;
    assert!(SealedChunk::decode(&bytes.into(), STORE, ID).is_err(), "byte {turned} was turned");
}

pub fn seeds() -> Seeds {
    let footer = |kind: u8, label: &[u8], summary: &[u8]| {
        let mut out = vec![0, kind, 1];
        varint::put(&mut out, 1);
        varint::put(&mut out, 5);
        out.extend_from_slice(&[1, 2, 3, 4]);
        varint::put_bytes(&mut out, label);
        varint::put_bytes(&mut out, summary);
        out
    };
    let mut entries = vec![1, 9, 1, 20, 3, 2];
    entries.extend_from_slice(&[0; 32]);
    // Two tags, and a run of three rows: full, as the one before, and under another number.
    let mut rows = vec![1, 2];
    rows.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
    let mut run = vec![0b0111_1111, 82, 64, 20, 40];
    run.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
    run.extend_from_slice(&[2, 0, 1, 90]);
    run.extend_from_slice(&[0, 0b1000_0000, 5]);
    rows.extend_from_slice(&[0, 10, 3]);
    varint::put_bytes(&mut rows, &run);
    vec![
        ("index", footer(1, &[0, 10, 0, 12, 20, 30], &[3])),
        ("pages", footer(2, &[1, 2, 3], &[])),
        ("run", footer(3, &entries, &[2, 0, 1, 2])),
        ("rows", rows),
        ("far", [&[1, 0, 0][..], &[0xff; 9], &[1, 2, 2, 0, 0]].concat()),
        ("whole", b"\x02\x05block\x05label\x03two\x00".to_vec()),
    ]
}
