//! Entries: that a message is due at a time, and where its body is.

use std::sync::Arc;

use bytes::Bytes;
use posthouse_frame::{BodyRef, FrameNo};

use crate::chunk::Miss;
use crate::index::TagSet;
use crate::record::{Entry, Tags};
use crate::words::{PartitionId, Seq, UnixMs};

/// The order in which messages are fired.
pub type Key = (UnixMs, Seq);

/// What few scheduled messages have, and the index will hold of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// Hash of the key, 0 for none.
    pub key: u64,
    /// Hashes of the tags.
    pub tags: TagSet,
    /// Time to live in milliseconds, from when the message is due.
    pub ttl_ms: Option<u64>,
}

impl Extra {
    /// Of a message that has any of it.
    pub fn of(entry: &Entry<'_>, ttl_ms: Option<u64>) -> Option<Arc<Extra>> {
        if entry.key == 0 && entry.tags.is_empty() && ttl_ms.is_none() {
            return None;
        }
        let tags = TagSet::of(&entry.tags.to_vec());
        Some(Arc::new(Extra { key: entry.key, tags, ttl_ms }))
    }

    /// As it is recorded when the message comes into its partition at time `at`.
    pub fn entry(extra: Option<&Extra>, len: u32, at: UnixMs) -> Entry<'_> {
        let Some(extra) = extra else { return Entry { len, ..Entry::default() } };
        Entry {
            len,
            key: extra.key,
            tags: Tags::Slice(extra.tags.as_slice()),
            expires: extra.ttl_ms.map(|ttl| at.plus(ttl)),
            ..Entry::default()
        }
    }
}

/// An entry in memory, as it came.
#[derive(Clone, Debug)]
pub struct Young {
    /// When the message is due.
    pub due: UnixMs,
    /// Its number.
    pub seq: Seq,
    /// The frame of the body; the first due time of a message that was moved.
    place: u64,
    at: u32,
    len: u32,
    /// Where it will go.
    pub partition: PartitionId,
    /// What few have.
    pub extra: Option<Arc<Extra>>,
}

impl Young {
    /// A message that came with its body.
    pub fn new(
        (due, seq): Key,
        partition: PartitionId,
        body: BodyRef,
        extra: Option<Arc<Extra>>,
    ) -> Young {
        Young { due, seq, place: body.frame.0, at: body.at, len: body.len, partition, extra }
    }

    /// A message that was moved; its body is with the entry of its first due time.
    pub fn moved((due, seq): Key, partition: PartitionId, origin: UnixMs) -> Young {
        Young { due, seq, place: origin.0, at: 0, len: 0, partition, extra: None }
    }

    /// Its place in the order.
    pub fn key(&self) -> Key {
        (self.due, self.seq)
    }

    /// Where the body is, if the entry has one. A sealed body is never empty.
    pub fn body(&self) -> Option<BodyRef> {
        let body = BodyRef { frame: FrameNo(self.place), at: self.at, len: self.len };
        (self.len > 0).then_some(body)
    }

    /// What it is as an item.
    pub fn item(&self) -> Item {
        let (origin, body) = match self.body() {
            Some(body) => (self.due, Body::Log(body)),
            None => (UnixMs(self.place), Body::Elsewhere),
        };
        let (due, seq, partition) = (self.due, self.seq, self.partition);
        Item { due, seq, partition, origin, extra: self.extra.clone(), body }
    }
}

/// Where the body of an [`Item`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the log.
    Log(BodyRef),
    /// Here: sealed, and bound to no frame.
    Sealed(Bytes),
    /// In a block of a run.
    Block {
        /// The block.
        miss: Miss,
        /// The first byte in it.
        at: u32,
        /// How many.
        len: u32,
    },
    /// With the entry of the first due time.
    Elsewhere,
}

/// An entry that was taken out, to be fired or shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// When the message is due.
    pub due: UnixMs,
    /// Its number.
    pub seq: Seq,
    /// Where it will go.
    pub partition: PartitionId,
    /// When it was due at first.
    pub origin: UnixMs,
    /// What few have. Known when the body is.
    pub extra: Option<Arc<Extra>>,
    /// Its body.
    pub body: Body,
}

impl Item {
    /// Its place in the order.
    pub fn key(&self) -> Key {
        (self.due, self.seq)
    }

    /// Bytes of the sealed body, as far as is known.
    pub fn body_len(&self) -> u32 {
        match &self.body {
            Body::Log(body) => body.len,
            Body::Sealed(bytes) => bytes.len() as u32,
            Body::Block { len, .. } => *len,
            Body::Elsewhere => 0,
        }
    }
}
