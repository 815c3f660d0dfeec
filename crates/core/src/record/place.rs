//! The record of a message that the system puts at the end of a partition.

use posthouse_frame::varint::Cursor;
use posthouse_frame::{BodyRef, FrameNo};

use super::{Entries, Entry, RecordError, pair, put_all};
use crate::ident::MessageId;
use crate::words::{GroupId, PartitionId, Position, UnixMs};

/// A message placed by the system: see [`super::Record::Place`].
#[derive(Clone, Debug, PartialEq)]
pub struct Place<'a> {
    /// The partition it is put in.
    pub partition: PartitionId,
    /// Its position there.
    pub position: Position,
    /// When.
    pub at: UnixMs,
    /// Why.
    pub reason: PlaceReason,
    /// The id it was published under, and keeps.
    pub id: MessageId,
    /// The body: in this frame or in an earlier one.
    pub body: BodyRef,
    /// What the index holds of it.
    pub entry: Entry<'a>,
    /// The group that is done with the message at its old place, and that place.
    pub source: Option<(GroupId, PartitionId, Position)>,
}

/// Why a message was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PlaceReason {
    /// It is a dead letter.
    Dead = 1,
    /// It was a dead letter, and gets another chance.
    Redriven = 2,
}

impl Place<'_> {
    pub(super) fn payload(&self, out: &mut Vec<u8>) {
        put_all(out, &[self.partition.0.into(), self.position, self.at.0]);
        out.push(self.reason as u8);
        out.extend_from_slice(&self.id.to_bits().to_le_bytes());
        put_all(out, &[self.body.frame.0, self.body.at.into()]);
        Entries::Slice(std::slice::from_ref(&self.entry)).encode(out);
        match self.source {
            None => out.push(0),
            Some((group, partition, position)) => {
                out.push(1);
                put_all(out, &[group.0.into(), partition.0.into(), position]);
            }
        }
    }

    pub(super) fn read<'a>(kind: u8, c: &mut Cursor<'a>) -> Result<Place<'a>, RecordError> {
        let bad = RecordError::Value { kind };
        let (partition, position, at) =
            (PartitionId(c.varint_u32()?), c.varint()?, UnixMs(c.varint()?));
        let reason = match c.u8()? {
            1 => PlaceReason::Dead,
            2 => PlaceReason::Redriven,
            _ => return Err(bad),
        };
        let id = MessageId::from_bits(c.u128()?);
        let (frame, body_at) = (FrameNo(c.varint()?), c.varint_u32()?);
        let entries = Entries::read(c)?;
        let entry = match (entries.iter().next(), entries.len()) {
            (Some(entry), 1) => entry,
            _ => return Err(bad),
        };
        let source = match c.u8()? {
            0 => None,
            1 => {
                let (group, partition) = pair(c)?;
                Some((group, partition, c.varint()?))
            }
            _ => return Err(bad),
        };
        let body = BodyRef { frame, at: body_at, len: entry.len };
        Ok(Place { partition, position, at, reason, id, body, entry, source })
    }
}
