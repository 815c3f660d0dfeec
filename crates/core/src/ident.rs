//! Ids of messages, receipts of deliveries, and the secret that both carry a
//! proof of.
//!
//! An id *is* the look-up: it names shard, partition and number, so no index of
//! ids exists. The proof (a keyed hash) lets a forged or a foreign id be refused
//! without a read; it is not a permission.

use std::fmt;
use std::hash::Hasher as _;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use siphasher::sip::{SipHasher13, SipHasher24};
use siphasher::sip128::{Hasher128 as _, SipHasher13 as SipHasher13x128};

use crate::words::{Fence, GroupId, MAX_POSITION, PartitionId, Position, ShardId};

/// What a store keeps to itself: 32 random bytes, made with it. Half of them prove
/// ids and receipts, half key the hashes of keys, tags and publish ids, so that
/// nobody outside can choose values that collide.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret {
    mac: (u64, u64),
    hash: (u64, u64),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// From 32 bytes that are as random as the machine can make them.
    pub fn new(bytes: [u8; 32]) -> Self {
        let word = |i: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(w)
        };
        Secret { mac: (word(0), word(1)), hash: (word(2), word(3)) }
    }

    /// The 32 bytes, to derive other secrets from.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.mac.0, self.mac.1, self.hash.0, self.hash.1];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// SipHash-2-4: a keyed hash that does not give its key away.
    fn proof(&self, data: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.mac.0, self.mac.1);
        hasher.write(data);
        hasher.finish()
    }

    /// The hash by which a key or a tag is known in indexes. Never 0 or 1: these
    /// stand for "none" and "several".
    pub fn hash(&self, text: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash.0, self.hash.1);
        hasher.write(text);
        hasher.finish().max(2)
    }

    /// The hash by which a publish id is known in the window.
    pub fn hash128(&self, text: &[u8]) -> u128 {
        let mut hasher = SipHasher13x128::new_with_keys(self.hash.0, self.hash.1);
        hasher.write(text);
        hasher.finish128().as_u128()
    }
}

/// What kind of number an id holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IdKind {
    /// The position of a message that was published at once.
    Stored = 1,
    /// The sequence number of a message that was scheduled.
    Scheduled = 2,
    /// The sequence number of the first message of a transaction: the id is that of the
    /// transaction.
    Transaction = 3,
}

/// The id of a message, for as long as it lives: through delays, retries, dead
/// letters and redrives. 128 bits: version 4, kind 4, shard 12, partition 32,
/// number 48, proof 28. As text 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u128);

/// What a verified id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdParts {
    /// What `number` means.
    pub kind: IdKind,
    /// The shard that gave the id.
    pub shard: ShardId,
    /// The partition the message was published to.
    pub partition: PartitionId,
    /// A position or a sequence number.
    pub number: u64,
}

/// Why a text is not the id of a message, or a receipt, of this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 32 hexadecimal digits.
    #[error("a message id has 32 hexadecimal digits")]
    Form,
    /// Not what a receipt looks like.
    #[error("a receipt has 44 characters of base64url, as the delivery gave it")]
    ReceiptForm,
    /// A layout of a newer release.
    #[error("the id has version {0}, which this release does not know")]
    Version(u8),
    /// The proof does not hold.
    #[error("it was not given by this store: another store's, or made up")]
    Foreign,
}

const ID_VERSION: u128 = 1;
const PROOF_BITS: u32 = 28;

impl MessageId {
    /// Makes the id that `parts` describe.
    ///
    /// # Panics
    /// If the shard has more than 12 bits or the number more than 48.
    pub fn new(secret: &Secret, parts: IdParts) -> Self {
        assert!(parts.shard.0 < 1 << 12 && parts.number <= MAX_POSITION, "{parts:?}");
        let bits = ID_VERSION << 124
            | (parts.kind as u128) << 120
            | u128::from(parts.shard.0) << 108
            | u128::from(parts.partition.0) << 76
            | u128::from(parts.number) << PROOF_BITS;
        MessageId(bits | Self::proof(secret, bits))
    }

    fn proof(secret: &Secret, bits: u128) -> u128 {
        u128::from(secret.proof(&bits.to_be_bytes()) >> (64 - PROOF_BITS))
    }

    /// Verifies the proof and takes the id apart.
    ///
    /// # Errors
    /// [`IdError::Foreign`] for what this store has not given.
    pub fn open(self, secret: &Secret) -> Result<IdParts, IdError> {
        let bits = self.0 & !((1 << PROOF_BITS) - 1);
        let version = (self.0 >> 124) as u8;
        if version as u128 != ID_VERSION {
            return Err(IdError::Version(version));
        }
        if bits | Self::proof(secret, bits) != self.0 {
            return Err(IdError::Foreign);
        }
        let kind = match (bits >> 120) & 0xf {
            1 => IdKind::Stored,
            2 => IdKind::Scheduled,
            3 => IdKind::Transaction,
            _ => return Err(IdError::Foreign),
        };
        Ok(IdParts {
            kind,
            shard: ShardId((bits >> 108) as u16 & 0xfff),
            partition: PartitionId((bits >> 76) as u32),
            number: (bits >> PROOF_BITS) as u64 & MAX_POSITION,
        })
    }

    /// The 128 bits, for records.
    pub fn to_bits(self) -> u128 {
        self.0
    }

    /// From 128 bits that a record holds. Not verified.
    pub fn from_bits(bits: u128) -> Self {
        MessageId(bits)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

impl FromStr for MessageId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Form);
        }
        u128::from_str_radix(text, 16).map(MessageId).map_err(|_| IdError::Form)
    }
}

/// What a consumer shows to acknowledge, refuse or extend one delivery. 33 bytes,
/// 44 characters of base64url; opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The shard that granted.
    pub shard: ShardId,
    /// The group that was granted to.
    pub group: GroupId,
    /// The partition of the message.
    pub partition: PartitionId,
    /// Its position.
    pub position: Position,
    /// The grant. A later grant of the same message makes this receipt stale.
    pub fence: Fence,
    /// Which attempt it was. Informative: the fence decides.
    pub attempt: u16,
}

const RECEIPT_VERSION: u8 = 1;
const RECEIPT_BYTES: usize = 33;

impl Receipt {
    /// As text, with a proof.
    pub fn seal(&self, secret: &Secret) -> String {
        let mut out = [0u8; RECEIPT_BYTES];
        out[0] = RECEIPT_VERSION;
        out[1..3].copy_from_slice(&self.shard.0.to_be_bytes());
        out[3..7].copy_from_slice(&self.group.0.to_be_bytes());
        out[7..11].copy_from_slice(&self.partition.0.to_be_bytes());
        out[11..17].copy_from_slice(&self.position.to_be_bytes()[2..]);
        out[17..23].copy_from_slice(&self.fence.to_be_bytes()[2..]);
        out[23..25].copy_from_slice(&self.attempt.to_be_bytes());
        let proof = secret.proof(&out[..25]);
        out[25..].copy_from_slice(&proof.to_be_bytes());
        URL_SAFE_NO_PAD.encode(out)
    }

    /// Reads a receipt back and verifies its proof.
    ///
    /// # Errors
    /// [`IdError::ReceiptForm`] or [`IdError::Foreign`].
    pub fn open(text: &str, secret: &Secret) -> Result<Receipt, IdError> {
        let mut b = [0u8; RECEIPT_BYTES];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut b) {
            Ok(RECEIPT_BYTES) => {}
            _ => return Err(IdError::ReceiptForm),
        }
        if b[0] != RECEIPT_VERSION {
            return Err(IdError::Version(b[0]));
        }
        if secret.proof(&b[..25]).to_be_bytes() != b[25..] {
            return Err(IdError::Foreign);
        }
        let wide = |at: usize, n: usize| {
            b[at..at + n].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        Ok(Receipt {
            shard: ShardId(wide(1, 2) as u16),
            group: GroupId(wide(3, 4) as u32),
            partition: PartitionId(wide(7, 4) as u32),
            position: wide(11, 6),
            fence: wide(17, 6),
            attempt: wide(23, 2) as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> Secret {
        Secret::new(std::array::from_fn(|i| i as u8))
    }

    fn parts() -> impl Strategy<Value = IdParts> {
        let kinds = vec![IdKind::Stored, IdKind::Scheduled, IdKind::Transaction];
        (prop::sample::select(kinds), 0u16..4096, any::<u32>(), 0..=MAX_POSITION).prop_map(
            |(kind, shard, partition, number)| IdParts {
                kind,
                shard: ShardId(shard),
                partition: PartitionId(partition),
                number,
            },
        )
    }

    proptest! {
        #[test]
        fn an_id_says_what_it_was_made_from(parts in parts()) {
            let id = MessageId::new(&secret(), parts);
            prop_assert_eq!(id.open(&secret()), Ok(parts));
            prop_assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
            prop_assert_eq!(MessageId::from_bits(id.to_bits()), id);
        }

        #[test]
        fn an_id_with_a_flipped_bit_is_foreign(parts in parts(), bit in 0u32..124) {
            let id = MessageId(MessageId::new(&secret(), parts).0 ^ 1 << bit);
            prop_assert_eq!(id.open(&secret()), Err(IdError::Foreign));
        }

        #[test]
        fn a_receipt_says_what_it_was_made_from(
            group in any::<u32>(), partition in any::<u32>(),
            position in 0..=MAX_POSITION, fence in 0..=MAX_POSITION, attempt in any::<u16>(),
        ) {
            let receipt = Receipt {
                shard: ShardId(3),
                group: GroupId(group),
                partition: PartitionId(partition),
                position,
                fence,
                attempt,
            };
            let text = receipt.seal(&secret());
            prop_assert_eq!(text.len(), 44);
            prop_assert_eq!(Receipt::open(&text, &secret()), Ok(receipt));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            prop_assert!(Receipt::open(&text, &secret()).is_err());
            let _ = text.parse::<MessageId>();
        }
    }

    #[test]
    fn another_store_refuses_both() {
        let other = Secret::new([9; 32]);
        let id = MessageId::new(
            &secret(),
            IdParts {
                kind: IdKind::Stored,
                shard: ShardId(0),
                partition: PartitionId(1),
                number: 2,
            },
        );
        assert_eq!(id.open(&other), Err(IdError::Foreign));
        let receipt = Receipt {
            shard: ShardId(0),
            group: GroupId(1),
            partition: PartitionId(1),
            position: 2,
            fence: 3,
            attempt: 1,
        };
        assert_eq!(Receipt::open(&receipt.seal(&secret()), &other), Err(IdError::Foreign));
    }

    #[test]
    fn layouts_are_carved_in_stone() {
        let id = MessageId::new(
            &secret(),
            IdParts {
                kind: IdKind::Stored,
                shard: ShardId(0xabc),
                partition: PartitionId(0x0123_4567),
                number: 0x89ab_cdef_0123,
            },
        );
        assert_eq!(&id.to_string()[..25], "11abc0123456789abcdef0123");
        let receipt = Receipt {
            shard: ShardId(1),
            group: GroupId(2),
            partition: PartitionId(3),
            position: 4,
            fence: 5,
            attempt: 6,
        };
        assert_eq!(&receipt.seal(&secret())[..33], "AQABAAAAAgAAAAMAAAAAAAQAAAAAAAUAB");
    }
}
