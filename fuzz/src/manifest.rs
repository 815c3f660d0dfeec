//! Manifests: the root of a snapshot, as a data directory has it.

use std::path::Path;

use posthouse::store::StoreError;
use posthouse::store::manifest::Manifest;
use posthouse_core::chunk::ChunkId;
use posthouse_core::page::{Located, PageId, PageMap, TableId};
use posthouse_frame::varint::{Cursor, Malformed};
use posthouse_frame::{FrameNo, crc32c};
use posthouse_log::SegmentNo;
use posthouse_log::files::Files as _;
use posthouse_log::files::sim::SimFiles;

use crate::{Seeds, memory};

const STORE: u64 = 77;
const SHARD: u16 = 3;
const DIR: &str = "/shard";

/// Bytes before the numbers: magic, versions, store, shard.
const HEAD_BYTES: usize = 18;

/// A byte that says whether what names the manifest is as it has to be, and its content
/// without a checksum.
pub fn run(data: &[u8]) {
    let Some((as_it_is, content)) = data.split_first() else { return };
    let mut content = content.to_vec();
    if as_it_is.is_multiple_of(2)
        && let Some(head) = content.first_chunk_mut::<HEAD_BYTES>()
    {
        *head = head_of_ours();
    }
    set_digest(&mut content);
    let crc = crc32c(&content);
    content.extend_from_slice(&crc.to_le_bytes());
    memory::within(256 * data.len() + (64 << 10), || {
        let disk = SimFiles::new(1);
        disk.create_dir(Path::new(DIR)).expect("a new directory");
        let read = match load(&disk, &content) {
            Ok(read) => read,
            Err(StoreError::Damaged { .. } | StoreError::Newer { .. }) => return,
            Err(other) => panic!("it is read from a disk that works: {other}"),
        };
        assert_eq!(Manifest::store_of(&content), Some(STORE));
        assert!(read.chunks().len() <= read.index.len() + read.runs.len() + read.pages.len());
        read.write(&disk, Path::new(DIR), STORE, SHARD).expect("it can be written");
        let listed = Manifest::list(&disk, Path::new(DIR)).expect("a directory");
        let [(generation, file)] = &listed[..] else { panic!("there is one, not {listed:?}") };
        assert_eq!(*generation, read.generation);
        let again = Manifest::load(&disk, file, STORE, SHARD).expect("it was just written");
        assert_eq!(again, read);
    });
}

/// A manifest with this content, as it is read from a disk.
fn load(disk: &SimFiles, content: &[u8]) -> Result<Manifest, StoreError> {
    let other = Path::new("/shard/read");
    disk.create(other).expect("a new file");
    disk.set_content(other, content.to_vec());
    Manifest::load(disk, other, STORE, SHARD)
}

fn head_of_ours() -> [u8; HEAD_BYTES] {
    let written = encoded(&Manifest::default());
    *written.first_chunk().expect("it has a head")
}

/// Makes the digest of the map of pages hold, which stands before it.
fn set_digest(content: &mut [u8]) {
    let Ok((at, digest)) = digest(content) else { return };
    content[at..at + 8].copy_from_slice(&digest.to_le_bytes());
}

/// Where the digest stands, and what it has to be.
fn digest(content: &[u8]) -> Result<(usize, u64), Malformed> {
    let mut c = Cursor::new(content);
    c.take(HEAD_BYTES)?;
    for _ in 0..6 {
        c.varint()?;
    }
    // Segments are numbers, chunks are two.
    for numbers in [1, 2, 2] {
        for _ in 0..c.varint()? {
            for _ in 0..numbers {
                c.varint()?;
            }
        }
    }
    c.varint()?;
    let at = c.position();
    c.u64()?;
    let mut digest = 0u64;
    for _ in 0..c.varint()? {
        c.u8()?;
        for _ in 0..5 {
            c.varint()?;
        }
        digest = digest.wrapping_add(c.u64()?);
    }
    Ok((at, digest))
}

/// The content of a manifest, without its checksum.
fn encoded(manifest: &Manifest) -> Vec<u8> {
    let disk = SimFiles::new(1);
    disk.create_dir(Path::new(DIR)).expect("a new directory");
    manifest.write(&disk, Path::new(DIR), STORE, SHARD).expect("it can be written");
    let file = Path::new(DIR).join(Manifest::file_name(manifest.generation));
    let mut content = disk.content(&file);
    content.truncate(content.len() - 4);
    content
}

pub fn seeds() -> Seeds {
    let chunk = |epoch, number| ChunkId { epoch, number };
    let mut pages = PageMap::default();
    for (table, number) in [(TableId::Globals, 0), (TableId::Pairs, 1), (TableId::Windows, 9)] {
        let id = PageId::of(table, number);
        pages.set(id, Located { chunk: chunk(1, 3), block: 7, hash: id.hash(b"a page") });
    }
    let full = Manifest {
        generation: 7,
        frame: FrameNo(1 << 40),
        epoch: 3,
        next_chunk: 12,
        wall_ms: 1_900_000_000_000,
        lease_ms: 1_900_000_000_001,
        segments: vec![SegmentNo(4), SegmentNo(9)],
        index: vec![chunk(1, 2), chunk(2, 4)],
        runs: vec![chunk(2, 5)],
        due_from_ms: 1_900_000_000_500,
        pages,
    };
    let seed = |manifest: &Manifest| [&[0][..], &encoded(manifest)].concat();
    let of_another = {
        let mut content = encoded(&full);
        content[HEAD_BYTES - 1] += 1;
        [&[1][..], &content].concat()
    };
    let newer = {
        let mut content = encoded(&full);
        content[4] += 1;
        [&[1][..], &content].concat()
    };
    vec![
        ("empty", seed(&Manifest::default())),
        ("full", seed(&full)),
        ("of-another", of_another),
        ("newer", newer),
    ]
}
