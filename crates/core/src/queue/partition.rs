//! What a shard keeps of a partition.

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::index::Chain;
use crate::page::{Row, TableId};
use crate::words::{Position, Seq, TopicId, UnixMs};

/// A partition: `swept <= head <= next`.
#[derive(Debug)]
pub struct Partition {
    /// Its topic.
    pub topic: TopicId,
    /// The first message that is there.
    pub head: Position,
    /// No message at or after `head` came in earlier.
    pub head_at: UnixMs,
    /// The first message whose space has not been given back.
    pub swept: Position,
    /// The position of the next message.
    pub next: Position,
    /// Bytes of the sealed bodies from `swept` on.
    pub bytes: u64,
    /// Whether the partition was dropped, and only waits for its sweep.
    pub dropped: bool,
    /// Messages that are scheduled for it.
    pub pending: u64,
    /// Those with lower numbers have been purged, although nobody has told each.
    pub purged_upto: Seq,

    // Derived.
    /// For the index.
    pub chain: Chain,
    /// The groups on this partition, by the number of their pair.
    pub pairs: Vec<u32>,
    /// Those that have seen everything and wait for more.
    pub idle: Vec<u32>,
    /// Whether the housekeeper has been told that something came or went.
    pub stirred: bool,
    /// Whether the housekeeper has a date with it.
    pub dated: bool,
    /// Whether the last trim ended before its end.
    pub cut_short: bool,
    /// Whether it is in line for its sweep.
    pub sweeping: bool,
    /// Where in `pairs` the last group stood that had not got beyond `head`.
    pub holder: usize,
}

impl Partition {
    pub(super) fn new(topic: TopicId) -> Self {
        Partition {
            topic,
            head: 0,
            head_at: UnixMs(0),
            swept: 0,
            next: 0,
            bytes: 0,
            dropped: false,
            pending: 0,
            purged_upto: 0,
            chain: Chain::default(),
            pairs: Vec::new(),
            idle: Vec::new(),
            stirred: false,
            dated: false,
            cut_short: false,
            sweeping: false,
            holder: 0,
        }
    }

    /// How many messages are there.
    pub fn len(&self) -> u64 {
        self.next - self.head
    }

    /// Whether a message that is scheduled for it counts.
    pub fn awaits(&self, seq: Seq) -> bool {
        !self.dropped && seq >= self.purged_upto
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.next == self.head
    }
}

impl Row for Partition {
    const TABLE: TableId = TableId::Partitions;
    const PER_PAGE: usize = 64;

    fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.topic.0.into());
        for value in [
            self.swept,
            self.head - self.swept,
            self.next - self.head,
            self.head_at.0,
            self.bytes,
            u64::from(self.dropped),
            self.pending,
            self.purged_upto,
        ] {
            varint::put(out, value);
        }
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let mut row = Partition::new(TopicId(c.varint_u32()?));
        let at = c.position();
        let mut add = |to: u64| -> Result<u64, Malformed> {
            to.checked_add(c.varint()?).ok_or(Malformed { at })
        };
        row.swept = add(0)?;
        row.head = add(row.swept)?;
        row.next = add(row.head)?;
        row.head_at = UnixMs(c.varint()?);
        row.bytes = c.varint()?;
        row.dropped = c.varint()? != 0;
        row.pending = c.varint()?;
        row.purged_upto = c.varint()?;
        Ok(row)
    }
}
