use super::*;
use crate::ident::MessageId;
use posthouse_frame::BodyRef;
use proptest::prelude::*;

fn samples() -> Vec<Record<'static>> {
    const RUNS: &[Run] = &[Run { first: 5, len: 3 }, Run { first: 900, len: 1 }];
    const AGAIN: &[AgainRun] = &[
        AgainRun { run: Run { first: 77, len: 1 }, attempt: 2 },
        AgainRun { run: Run { first: 12, len: 2 }, attempt: 300 },
    ];
    const ENTRIES: &[Entry<'_>] = &[
        Entry { len: 108, key: 0, tags: Tags::Slice(&[]), expires: None, dedupe: None, name: None },
        Entry {
            len: 1 << 22,
            key: u64::MAX,
            tags: Tags::Slice(&[2, 3, u64::MAX]),
            expires: Some(UnixMs(1 << 41)),
            dedupe: Some(EntryDedupe { id: u128::MAX - 1, digest: 7 }),
            name: Some(u128::MAX - 5),
        },
    ];
    const MANY: &[Pending] = &[
        Pending { partition: PartitionId(u32::MAX), seq: 5 },
        Pending { partition: PartitionId(1), seq: 1 << 47 },
    ];
    const MOVED: &[Rescheduled] = &[
        Rescheduled { of: MANY[0], due: UnixMs(9) },
        Rescheduled { of: MANY[1], due: UnixMs(1 << 43) },
    ];
    const PARTS: &[PreparedPart] = &[
        PreparedPart { partition: PartitionId(u32::MAX), count: 3, is_later: false },
        PreparedPart { partition: PartitionId(1), count: 2, is_later: true },
    ];
    let (group, partition) = (GroupId(u32::MAX), PartitionId(4));
    let grant = Grant {
        group,
        partition,
        consumer: "worker-1",
        fence: 1 << 47,
        visible_at: ShardMs(1 << 43),
        next: 10,
        fresh: List::Slice(RUNS),
        keys: List::Slice(&[Keys(1), Keys(u64::MAX)]),
        again: List::Slice(AGAIN),
    };
    let place = Place {
        partition,
        position: 3,
        at: UnixMs(9),
        reason: PlaceReason::Dead,
        id: MessageId::from_bits(1 << 126 | 5),
        body: BodyRef { frame: FrameNo(8), at: 64, len: ENTRIES[1].len },
        entry: ENTRIES[1],
        source: Some((group, partition, 1 << 47)),
    };
    let publish = Record::Publish {
        partition,
        first: 1 << 47,
        at: UnixMs(1 << 40),
        body_at: 17,
        entries: Entries::Slice(ENTRIES),
    };
    let why = SkipReason::Expired;
    vec![
        Record::Open { partition, topic: TopicId(9) },
        publish,
        Record::Place(place.clone()),
        Record::Place(Place { source: None, reason: PlaceReason::Redriven, ..place }),
        Record::Attach { group, partition, floor: 8 },
        Record::Detach { group, partition },
        Record::Drop { partition },
        Record::Grant(grant),
        Record::Skip { group, partition, next: 9, why, runs: List::Slice(RUNS) },
        Record::Chain {
            group,
            partition,
            next: 9,
            items: List::Slice(&[Chained { position: 7, key: 1 }, Chained { position: 8, key: 2 }]),
        },
        Record::Ack { group, partition, runs: List::Slice(RUNS) },
        Record::Nack { group, partition, position: 5, visible_at: ShardMs(77), reason: "refusé" },
        Record::Extend { group, partition, visible_at: ShardMs(5), runs: List::Slice(RUNS) },
        Record::Seek { group, partition, position: 0 },
        Record::Trim { partition, head: 5, head_at: UnixMs(6), why: TrimReason::Age },
        Record::Sweep {
            partition,
            upto: 5,
            freed: List::Slice(&[
                Freed { frame: FrameNo(100), bytes: 1 << 30 },
                Freed { frame: FrameNo(9), bytes: 1 },
            ]),
        },
        Record::Close { partition },
        Record::Forget { upto: 1 << 33 },
        Record::Snapshot { frame: FrameNo(3), digest: u64::MAX },
        Record::Schedule {
            partition,
            first: 1 << 47,
            at: UnixMs(1 << 40),
            body_at: 5,
            held: true,
            due: List::Slice(&[DueAt(UnixMs(1 << 43)), DueAt(UnixMs(3))]),
            entries: Entries::Slice(ENTRIES),
        },
        Record::Fire {
            partition,
            first: 9,
            at: UnixMs(77),
            items: List::Slice(&[
                FiredItem { seq: 1 << 47, frame: FrameNo(1 << 50), at: u32::MAX },
                FiredItem { seq: 3, frame: FrameNo(2), at: 0 },
            ]),
            entries: Entries::Slice(ENTRIES),
        },
        Record::Reschedule { items: List::Slice(MOVED) },
        Record::Cancel { why: CancelReason::Replaced, items: List::Slice(MANY) },
        Record::PurgeScheduled { partition, upto: 1 << 40 },
        Record::Prepare(Prepare {
            first: 1 << 47,
            at: UnixMs(1 << 40),
            next_check: ShardMs(1 << 43),
            check_after_ms: 30_000,
            most_checks: u16::MAX,
            bytes: 1 << 33,
            producer: "büro",
            parts: List::Slice(PARTS),
            when: List::Slice(&[When::At(UnixMs(1 << 43)), When::After(5)]),
        }),
        Record::Check { first: 7, checks: 15, next_check: ShardMs(1 << 43) },
        Record::Park { first: 1 << 47 },
        Record::Commit(Commit {
            first: 3,
            at: UnixMs(1 << 40),
            placed: List::Slice(RUNS),
            due: List::Slice(&[DueAt(UnixMs(1 << 43)), DueAt(UnixMs(3))]),
        }),
        Record::Rollback { first: 1 << 47, at: UnixMs(9) },
        Record::ForgetDecisions { upto: 1 << 40 },
        Record::Recur { recurring: 7, at: UnixMs(1 << 41) },
        Record::Carry {
            body_at: 9,
            items: List::Slice(const { &[carried(3, 8, 7), carried(3, 9, 7), carried(1, 0, 90)] }),
        },
    ]
}

const fn carried(partition: u32, position: u64, from: u64) -> CarriedItem {
    let (partition, from) = (PartitionId(partition), FrameNo(from));
    CarriedItem { partition, position, from, len: 1 << 20 }
}

fn written(records: &[Record<'_>]) -> Vec<u8> {
    let mut frame = FrameBuf::new(FrameNo(1));
    for record in records {
        record.write(&mut frame);
    }
    frame.meta().to_vec()
}

#[test]
fn every_kind_comes_back_as_it_was_written() {
    let records = samples();
    let meta = written(&records);
    let read: Vec<Record<'_>> = Records::new(&meta).map(|r| r.unwrap()).collect();
    assert_eq!(read, records);
    assert_eq!(written(&read), meta, "what was read is written the same");
    let kinds: std::collections::BTreeSet<u8> = records.iter().map(Record::kind).collect();
    assert_eq!(kinds, (1..=23).chain(32..=39).collect(), "a kind has no sample");
}

#[test]
fn a_cut_anywhere_is_an_error_not_a_panic() {
    for record in samples() {
        let meta = written(std::slice::from_ref(&record));
        for end in 1..meta.len() {
            assert!(Records::new(&meta[..end]).next().unwrap().is_err(), "{record:?} to {end}");
        }
    }
}

#[test]
fn an_unknown_kind_is_named() {
    assert_eq!(Records::new(&[200, 1, 0]).next(), Some(Err(RecordError::Kind(200))));
}

#[test]
fn bytes_behind_the_last_field_are_an_error() {
    assert!(matches!(
        Records::new(&[kind::DROP, 2, 1, 9]).next(),
        Some(Err(RecordError::Malformed(_)))
    ));
}

#[test]
fn a_thousand_plain_messages_cost_a_byte_or_two_each() {
    let entries = vec![Entry { len: 109, ..Entry::default() }; 1000];
    let meta = written(&[Record::Publish {
        partition: PartitionId(1),
        first: 1 << 30,
        at: UnixMs(1_900_000_000_000),
        body_at: 0,
        entries: Entries::Slice(&entries),
    }]);
    assert!(meta.len() < 1040, "{} bytes", meta.len());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), first in 1u8..=40) {
        let mut meta = vec![first];
        varint::put_bytes(&mut meta, &bytes);
        for record in Records::new(&meta).flatten() {
            let _ = format!("{record:?}");
            let _ = record == record.clone();
        }
    }
}
