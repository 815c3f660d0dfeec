//! Pages of both machines, as snapshots hold them.

use posthouse_core::catalog::Catalog;
use posthouse_core::machine::Machine;
use posthouse_core::page::{Captured, PageId, TableId};
use posthouse_core::queue::Shard;
use posthouse_core::record::{DueAt, Entries, Entry, List, Record, Tags};
use posthouse_core::{PartitionId, ShardId, TopicId, UnixMs};
use posthouse_frame::varint::{self, Cursor};
use posthouse_frame::{FrameBuf, FrameNo};

use crate::{Seeds, catalog, memory, piece, secret};

const TABLES: [TableId; 17] = [
    TableId::Globals,
    TableId::Partitions,
    TableId::Pairs,
    TableId::Windows,
    TableId::Groups,
    TableId::Dedupe,
    TableId::Spans,
    TableId::Times,
    TableId::Hours,
    TableId::Names,
    TableId::Transactions,
    TableId::Recurred,
    TableId::Topics,
    TableId::GroupConfigs,
    TableId::Users,
    TableId::Recurring,
    TableId::Carried,
];

/// Numbers of pages are dense, so what a page costs beside its content goes by its number.
const PAGES: u64 = 64;

/// Whose pages, then for each: table, owner, number, bytes with their length before them.
pub fn run(data: &[u8]) {
    let mut c = Cursor::new(data);
    memory::within(4096 * data.len() + (8 << 20), || match c.u8() {
        Ok(0) => restored(c, || Shard::new(ShardId(0))),
        Ok(_) => restored(c, || Catalog::new(secret())),
        Err(_) => {}
    });
}

/// What takes a page takes it again as it gives it away.
fn restored<M: Machine>(mut c: Cursor<'_>, new: impl Fn() -> M) {
    let mut machine = new();
    while let (Ok(table), Ok(owner), Ok(number)) = (c.u8(), c.varint_u32(), c.varint()) {
        let table = TABLES[usize::from(table) % TABLES.len()];
        let id = PageId { table, owner, number: number % PAGES };
        if machine.restore_page(id, piece(&mut c)).is_err() {
            return;
        }
    }
    let pages = captured(&mut machine);
    let mut again = new();
    for (id, bytes) in &pages {
        let Some(bytes) = bytes else { continue };
        again.restore_page(*id, bytes).unwrap_or_else(|e| panic!("{id:?} is not taken again: {e}"));
    }
    assert_eq!(captured(&mut again), pages);
}

/// All pages, in the order of their names.
fn captured<M: Machine>(machine: &mut M) -> Vec<Captured> {
    machine.touch_all();
    machine.begin_snapshot();
    let (mut pages, is_all) = machine.walk(usize::MAX);
    assert!(is_all);
    // A page that has ceased to be may have been one that nobody had filled.
    pages.retain(|(_, bytes)| bytes.is_some());
    pages.sort_unstable();
    pages
}

fn written(of: u8, pages: &[Captured]) -> Vec<u8> {
    let mut out = vec![of];
    for (id, bytes) in pages {
        let table = TABLES.iter().position(|table| *table == id.table).expect("a known table");
        out.push(table as u8);
        varint::put(&mut out, id.owner.into());
        varint::put(&mut out, id.number);
        varint::put_bytes(&mut out, bytes.as_deref().unwrap_or_default());
    }
    out
}

pub fn seeds() -> Seeds {
    let mut shard = Shard::new(ShardId(0));
    let partition = PartitionId(3);
    let entry = Entry { len: 20, key: 7, tags: Tags::Slice(&[9]), ..Entry::default() };
    let (first, at, body_at) = (0, UnixMs(1_900_000_000_000), 0);
    let mut frame = FrameBuf::new(FrameNo(1));
    let entries = [entry, entry];
    let due = [DueAt(at.plus(60_000)), DueAt(at.plus(90_000))];
    let entries = Entries::Slice(&entries);
    let due = List::Slice(&due);
    for record in [
        Record::Open { partition, topic: TopicId(1) },
        Record::Publish { partition, first, at, body_at, entries },
        Record::Schedule { partition, first, at, body_at, held: false, due, entries },
        Record::Recur { recurring: 5, at },
    ] {
        record.write(&mut frame);
    }
    shard.apply(FrameNo(1), frame.meta()).expect("it was just written");
    shard.sealed(FrameNo(1), 4096);
    let (mut catalog, _) = catalog::made();
    vec![
        ("shard", written(0, &captured(&mut shard))),
        ("catalog", written(1, &captured(&mut catalog))),
    ]
}
