//! Lists within records: encoded as a varint count and the items, each by its
//! distance from the one before.

use posthouse_frame::FrameNo;
use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::words::{PartitionId, Position, Run, Seq, UnixMs};

/// An item of a [`List`].
pub trait ListItem: Copy + PartialEq + std::fmt::Debug {
    /// Appends the item; `before` is the item that came before it.
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>);

    /// Reads what [`ListItem::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed>;
}

/// A list of items, either in memory or still encoded.
#[derive(Clone, Copy, Debug)]
pub enum List<'a, T> {
    /// In memory.
    Slice(&'a [T]),
    /// Encoded, and read through once: it holds `count` items.
    Encoded {
        /// How many items.
        count: usize,
        /// Their encoding.
        bytes: &'a [u8],
    },
}

impl<T> Default for List<'_, T> {
    fn default() -> Self {
        List::Slice(&[])
    }
}

impl<T: ListItem> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a, T: ListItem> List<'a, T> {
    /// How many items.
    pub fn len(&self) -> usize {
        match self {
            List::Slice(items) => items.len(),
            List::Encoded { count, .. } => *count,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + 'a {
        let (mut slice, mut cursor, count) = match *self {
            List::Slice(items) => (items.iter(), Cursor::new(&[]), items.len()),
            List::Encoded { count, bytes } => ([].iter(), Cursor::new(bytes), count),
        };
        let mut before = None;
        (0..count).map(move |_| {
            let item = match slice.next() {
                Some(item) => *item,
                None => T::read(before, &mut cursor).expect("the list was read through before"),
            };
            before = Some(item);
            item
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.len() as u64);
        let mut before = None;
        for item in self.iter() {
            item.encode(before, out);
            before = Some(item);
        }
    }

    pub(super) fn read(c: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let at = c.position();
        let count = c.varint()?;
        // Every item takes at least a byte: a count above that is a lie.
        if count > c.remaining() as u64 {
            return Err(Malformed { at });
        }
        let mut ahead = c.clone();
        let start = ahead.position();
        let mut before = None;
        for _ in 0..count {
            before = Some(T::read(before, &mut ahead)?);
        }
        let bytes = c.take(ahead.position() - start)?;
        Ok(List::Encoded { count: count as usize, bytes })
    }
}

impl ListItem for Run {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let from = before.map_or(0, |run| run.end());
        // Runs rise, so the distance is small; a run that falls back (redeliveries
        // come in the order of their time) is rare and only costs bytes.
        varint::put(out, varint::zigzag(self.first.wrapping_sub(from)));
        varint::put(out, self.len);
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let at = c.position();
        let from = before.map_or(0, |run| run.end());
        let first = from.wrapping_add(varint::unzigzag(c.varint()?));
        let len = c.varint()?;
        match first.checked_add(len) {
            Some(_) if len > 0 => Ok(Run { first, len }),
            _ => Err(Malformed { at }),
        }
    }
}

/// A run that is granted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgainRun {
    /// The positions.
    pub run: Run,
    /// The attempt that this grant is, for each of them.
    pub attempt: u16,
}

impl ListItem for AgainRun {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        self.run.encode(before.map(|b| b.run), out);
        varint::put(out, self.attempt.into());
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let run = Run::read(before.map(|b| b.run), c)?;
        let at = c.position();
        let attempt = u16::try_from(c.varint()?).map_err(|_| Malformed { at })?;
        Ok(AgainRun { run, attempt })
    }
}

/// The hash of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys(pub u64);

impl ListItem for Keys {
    fn encode(&self, _before: Option<Self>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }

    fn read(_before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        c.u64().map(Keys)
    }
}

/// A position that waits, and the key it waits for; 0: to be buried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chained {
    /// The position.
    pub position: Position,
    /// The hash of its key.
    pub key: u64,
}

impl ListItem for Chained {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let from = before.map_or(0, |b| b.position);
        varint::put(out, varint::zigzag(self.position.wrapping_sub(from)));
        out.extend_from_slice(&self.key.to_le_bytes());
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let from = before.map_or(0, |b| b.position);
        let position = from.wrapping_add(varint::unzigzag(c.varint()?));
        Ok(Chained { position, key: c.u64()? })
    }
}

/// What was freed in one span of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// A frame of the span.
    pub frame: FrameNo,
    /// Bytes of sealed bodies.
    pub bytes: u64,
}

impl ListItem for Freed {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let from = before.map_or(0, |b| b.frame.0);
        varint::put(out, varint::zigzag(self.frame.0.wrapping_sub(from)));
        varint::put(out, self.bytes);
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let from = before.map_or(0, |b| b.frame.0);
        let frame = FrameNo(from.wrapping_add(varint::unzigzag(c.varint()?)));
        Ok(Freed { frame, bytes: c.varint()? })
    }
}

/// A message whose body was carried: see [`super::Record::Carry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedItem {
    /// Its partition.
    pub partition: PartitionId,
    /// Its position.
    pub position: Position,
    /// The frame that had the body.
    pub from: FrameNo,
    /// Sealed length of the body in bytes.
    pub len: u32,
}

impl ListItem for CarriedItem {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let place = |item: &Self| Pending { partition: item.partition, seq: item.position };
        place(self).encode(before.as_ref().map(place), out);
        let from = before.map_or(0, |b| b.from.0);
        varint::put(out, varint::zigzag(self.from.0.wrapping_sub(from)));
        varint::put(out, self.len.into());
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let place = |item: &Self| Pending { partition: item.partition, seq: item.position };
        let Pending { partition, seq } = Pending::read(before.as_ref().map(place), c)?;
        let from = before.map_or(0, |b| b.from.0);
        let from = FrameNo(from.wrapping_add(varint::unzigzag(c.varint()?)));
        Ok(CarriedItem { partition, position: seq, from, len: c.varint_u32()? })
    }
}

/// When a message of a batch is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueAt(pub UnixMs);

impl ListItem for DueAt {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let from = before.map_or(0, |b| b.0.0);
        varint::put(out, varint::zigzag(self.0.0.wrapping_sub(from)));
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let from = before.map_or(0, |b| b.0.0);
        Ok(DueAt(UnixMs(from.wrapping_add(varint::unzigzag(c.varint()?)))))
    }
}

/// A scheduled message that comes into its partition, and the place of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiredItem {
    /// Its number.
    pub seq: Seq,
    /// The frame that has the body.
    pub frame: FrameNo,
    /// Byte offset in the frame's body section.
    pub at: u32,
}

impl ListItem for FiredItem {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let (seq, frame) = before.map_or((0, 0), |b| (b.seq, b.frame.0));
        varint::put(out, varint::zigzag(self.seq.wrapping_sub(seq)));
        varint::put(out, varint::zigzag(self.frame.0.wrapping_sub(frame)));
        varint::put(out, self.at.into());
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let (seq, frame) = before.map_or((0, 0), |b| (b.seq, b.frame.0));
        Ok(FiredItem {
            seq: seq.wrapping_add(varint::unzigzag(c.varint()?)),
            frame: FrameNo(frame.wrapping_add(varint::unzigzag(c.varint()?))),
            at: c.varint_u32()?,
        })
    }
}

/// A scheduled message, by the partition it will go to and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pending {
    /// The partition.
    pub partition: PartitionId,
    /// The number.
    pub seq: Seq,
}

impl ListItem for Pending {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        let (partition, seq) = before.map_or((0, 0), |b| (b.partition.0, b.seq));
        varint::put(
            out,
            varint::zigzag(u64::from(self.partition.0).wrapping_sub(partition.into())),
        );
        varint::put(out, varint::zigzag(self.seq.wrapping_sub(seq)));
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let (partition, seq) = before.map_or((0, 0), |b| (b.partition.0, b.seq));
        let at = c.position();
        let partition = u64::from(partition).wrapping_add(varint::unzigzag(c.varint()?));
        let partition = u32::try_from(partition).map_err(|_| Malformed { at })?;
        let seq = seq.wrapping_add(varint::unzigzag(c.varint()?));
        Ok(Pending { partition: PartitionId(partition), seq })
    }
}

/// A scheduled message, and when it is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescheduled {
    /// Which.
    pub of: Pending,
    /// When.
    pub due: UnixMs,
}

impl ListItem for Rescheduled {
    fn encode(&self, before: Option<Self>, out: &mut Vec<u8>) {
        self.of.encode(before.map(|b| b.of), out);
        DueAt(self.due).encode(before.map(|b| DueAt(b.due)), out);
    }

    fn read(before: Option<Self>, c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let of = Pending::read(before.map(|b| b.of), c)?;
        Ok(Rescheduled { of, due: DueAt::read(before.map(|b| DueAt(b.due)), c)?.0 })
    }
}
