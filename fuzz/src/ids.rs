//! Ids of messages and receipts.

use posthouse_core::ident::{IdKind, IdParts, MessageId, Receipt};
use posthouse_core::{GroupId, MAX_POSITION, PartitionId, ShardId};

use crate::{Seeds, memory, number, secret, text};

pub fn run(data: &[u8]) {
    memory::within(4 << 10, || {
        read(text(data));
        made(data);
    });
}

fn read(text: &str) {
    let secret = secret();
    if let Ok(id) = text.parse::<MessageId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
        assert_eq!(MessageId::from_bits(id.to_bits()), id);
        if let Ok(parts) = id.open(&secret) {
            assert_eq!(MessageId::new(&secret, parts), id, "the id of {parts:?}");
        }
    }
    if let Ok(receipt) = Receipt::open(text, &secret) {
        assert_eq!(receipt.seal(&secret), text, "the text of {receipt:?}");
    }
}

/// An id and a receipt with these numbers say them, and nothing else passes for them.
fn made(data: &[u8]) {
    let Some((numbers, rest)) = data.split_first_chunk::<24>() else { return };
    let n = |at: usize, len: usize| {
        numbers[at..at + len].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let kinds = [IdKind::Stored, IdKind::Scheduled, IdKind::Transaction];
    let parts = IdParts {
        kind: kinds[n(0, 1) as usize % 3],
        shard: ShardId(n(1, 2) as u16 & 0xfff),
        partition: PartitionId(n(3, 4) as u32),
        number: n(7, 6) & MAX_POSITION,
    };
    let secret = secret();
    let id = MessageId::new(&secret, parts);
    assert_eq!(id.open(&secret), Ok(parts));
    read(&id.to_string());
    let receipt = Receipt {
        shard: parts.shard,
        group: GroupId(n(13, 4) as u32),
        partition: parts.partition,
        position: parts.number,
        fence: n(17, 6),
        attempt: n(22, 2) as u16,
    };
    let sealed = receipt.seal(&secret);
    assert_eq!(Receipt::open(&sealed, &secret), Ok(receipt));
    if let Some((at, _)) = number::<1>(rest) {
        let (at, bit) = (at as usize % sealed.len(), at as u8 / 64);
        let mut bad = sealed.into_bytes();
        bad[at] ^= 1 << bit;
        let bad = String::from_utf8_lossy(&bad).into_owned();
        assert!(Receipt::open(&bad, &secret).is_err(), "{bad} passed for a receipt");
    }
}

pub fn seeds() -> Seeds {
    let secret = secret();
    let (shard, partition) = (ShardId(3), PartitionId(5));
    let id = |kind| MessageId::new(&secret, IdParts { kind, shard, partition, number: 77 });
    let (group, position) = (GroupId(9), 77);
    let receipt = Receipt { shard, group, partition, position, fence: 12, attempt: 2 };
    vec![
        ("stored", id(IdKind::Stored).to_string().into()),
        ("scheduled", id(IdKind::Scheduled).to_string().into()),
        ("transaction", id(IdKind::Transaction).to_string().into()),
        ("receipt", receipt.seal(&secret).into()),
        ("numbers", (0..32).collect()),
    ]
}
