//! Records of a shard.

use posthouse_core::ident::MessageId;
use posthouse_core::record::{
    AgainRun, CancelReason, Chained, Commit, DueAt, Entries, Entry, EntryDedupe, FiredItem, Freed,
    Grant, Keys, List, Pending, Place, PlaceReason, Prepare, PreparedPart, Record, Records,
    Rescheduled, SkipReason, Tags, TrimReason, When,
};
use posthouse_core::{GroupId, PartitionId, Run, ShardMs, TopicId, UnixMs};
use posthouse_frame::{BodyRef, FrameBuf, FrameNo};

use crate::{Seeds, memory};

pub fn run(data: &[u8]) {
    memory::within(512 * data.len() + (16 << 10), || {
        let read: Vec<Record<'_>> = Records::new(data).map_while(Result::ok).collect();
        let meta = written(&read);
        let again: Result<Vec<Record<'_>>, _> = Records::new(&meta).collect();
        let again = again.expect("what was written is read");
        assert_eq!(again, read, "what was written is another");
        assert_eq!(written(&again), meta, "the same is written in two ways");
    });
}

fn written(records: &[Record<'_>]) -> Vec<u8> {
    let mut frame = FrameBuf::new(FrameNo(1));
    records.iter().for_each(|record| record.write(&mut frame));
    frame.meta().to_vec()
}

const RUNS: &[Run] = &[Run { first: 5, len: 3 }, Run { first: 900, len: 1 }];
const ENTRIES: &[Entry<'_>] = &[
    Entry { len: 108, key: 0, tags: Tags::Slice(&[]), expires: None, dedupe: None, name: None },
    Entry {
        len: 1 << 22,
        key: 77,
        tags: Tags::Slice(&[2, 3]),
        expires: Some(UnixMs(1 << 41)),
        dedupe: Some(EntryDedupe { id: 5, digest: 7 }),
        name: Some(9),
    },
];

pub fn seeds() -> Seeds {
    let (group, partition) = (GroupId(3), PartitionId(4));
    let (at, frame) = (UnixMs(1 << 40), FrameNo(8));
    let one = |record: Record<'_>| written(&[record]);
    let due = List::Slice(&[DueAt(UnixMs(1 << 43)), DueAt(UnixMs(3))]);
    let entries = Entries::Slice(ENTRIES);
    let of = [Pending { partition, seq: 5 }, Pending { partition, seq: 1 << 40 }];
    let moved = of.map(|of| Rescheduled { of, due: UnixMs(9) });
    let place = Place {
        partition,
        position: 3,
        at,
        reason: PlaceReason::Dead,
        id: MessageId::from_bits(1 << 126 | 5),
        body: BodyRef { frame, at: 64, len: ENTRIES[1].len },
        entry: ENTRIES[1],
        source: Some((group, partition, 12)),
    };
    let grant = Grant {
        group,
        partition,
        consumer: "worker-1",
        fence: 1 << 40,
        visible_at: ShardMs(1 << 43),
        next: 10,
        fresh: List::Slice(RUNS),
        keys: List::Slice(&[Keys(1), Keys(2)]),
        again: List::Slice(&[AgainRun { run: RUNS[0], attempt: 300 }]),
    };
    let prepare = Prepare {
        first: 1 << 40,
        at,
        next_check: ShardMs(1 << 43),
        check_after_ms: 30_000,
        most_checks: 15,
        bytes: 1 << 33,
        producer: "büro",
        parts: List::Slice(&[PreparedPart { partition, count: 3, is_later: true }]),
        when: List::Slice(&[When::At(UnixMs(1 << 43)), When::After(5)]),
    };
    let items = [FiredItem { seq: 1 << 40, frame, at: 0 }, FiredItem { seq: 3, frame, at: 7 }];
    let (upto, first, runs) = (5, 9, List::Slice(RUNS));
    vec![
        ("open", one(Record::Open { partition, topic: TopicId(9) })),
        ("publish", one(Record::Publish { partition, first, at, body_at: 17, entries })),
        ("place", one(Record::Place(place))),
        ("attach", one(Record::Attach { group, partition, floor: 8 })),
        ("detach", one(Record::Detach { group, partition })),
        ("drop", one(Record::Drop { partition })),
        ("grant", one(Record::Grant(grant))),
        ("skip", one(Record::Skip { group, partition, next: 9, why: SkipReason::Expired, runs })),
        ("chain", {
            let items = List::Slice(&[Chained { position: 7, key: 1 }]);
            one(Record::Chain { group, partition, next: 9, items })
        }),
        ("ack", one(Record::Ack { group, partition, runs })),
        ("nack", {
            let visible_at = ShardMs(77);
            one(Record::Nack { group, partition, position: 5, visible_at, reason: "no" })
        }),
        ("extend", one(Record::Extend { group, partition, visible_at: ShardMs(5), runs })),
        ("seek", one(Record::Seek { group, partition, position: 3 })),
        ("trim", one(Record::Trim { partition, head: 5, head_at: at, why: TrimReason::Age })),
        ("sweep", {
            one(Record::Sweep { partition, upto, freed: List::Slice(&[Freed { frame, bytes: 9 }]) })
        }),
        ("close", one(Record::Close { partition })),
        ("forget", one(Record::Forget { upto })),
        ("snapshot", one(Record::Snapshot { frame, digest: 77 })),
        ("schedule", {
            let held = false;
            one(Record::Schedule { partition, first, at, body_at: 5, held, due, entries })
        }),
        ("fire", {
            one(Record::Fire { partition, first, at, items: List::Slice(&items), entries })
        }),
        ("reschedule", one(Record::Reschedule { items: List::Slice(&moved) })),
        ("cancel", {
            one(Record::Cancel { why: CancelReason::Replaced, items: List::Slice(&of) })
        }),
        ("purge", one(Record::PurgeScheduled { partition, upto })),
        ("prepare", one(Record::Prepare(prepare))),
        ("check", one(Record::Check { first, checks: 15, next_check: ShardMs(7) })),
        ("park", one(Record::Park { first })),
        ("commit", one(Record::Commit(Commit { first, at, placed: runs, due }))),
        ("rollback", one(Record::Rollback { first, at })),
        ("forget-decisions", one(Record::ForgetDecisions { upto })),
        ("recur", one(Record::Recur { recurring: 7, at })),
    ]
}
