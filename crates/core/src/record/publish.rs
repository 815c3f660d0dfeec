//! The messages of a publish record.
//!
//! ```text
//! count varint | shape u8 | per message: len varint
//!   and, if the shape says that any message of the batch has something:
//!   parts u8 | key u64 | tag count u8, tags u64 each | lives varint | id u128, digest u64
//!     | name u128
//! ```
//! A batch of plain messages costs one to three bytes a message.

use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::index::TagSet;
use crate::words::UnixMs;

const KEY: u8 = 1;
const TAGS: u8 = 2;
const EXPIRES: u8 = 4;
const DEDUPE: u8 = 8;
const NAME: u8 = 16;

/// The hashes of a message's tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags<'a> {
    /// In memory.
    Slice(&'a [u64]),
    /// Encoded, eight bytes each.
    Encoded(&'a [u8]),
}

impl Tags<'_> {
    /// How many tags.
    pub fn len(&self) -> usize {
        match self {
            Tags::Slice(tags) => tags.len(),
            Tags::Encoded(bytes) => bytes.len() / 8,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tag at `index`, which must be below [`Tags::len`].
    pub fn get(&self, index: usize) -> u64 {
        match self {
            Tags::Slice(tags) => tags[index],
            Tags::Encoded(bytes) => {
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
                u64::from_le_bytes(word)
            }
        }
    }

    /// All of them, in order.
    pub fn to_vec(&self) -> Vec<u64> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }
}

impl Default for Tags<'_> {
    fn default() -> Self {
        Tags::Slice(&[])
    }
}

/// A message's publish id, as the window knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryDedupe {
    /// Hash of the id the publisher gave.
    pub id: u128,
    /// Hash of the message: another message under the same id is a conflict.
    pub digest: u64,
}

/// What the index needs to know of one message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry<'a> {
    /// Sealed length of the body in bytes.
    pub len: u32,
    /// Hash of the key, 0 for none.
    pub key: u64,
    /// Hashes of the tags.
    pub tags: Tags<'a>,
    /// When it expires; `None` for never. Of a message that is scheduled: how long after
    /// it is due.
    pub expires: Option<UnixMs>,
    /// The publish id, if it has one.
    pub dedupe: Option<EntryDedupe>,
    /// Hash of the name of a message that is scheduled.
    pub name: Option<u128>,
}

impl PartialEq for Entry<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self.key == other.key
            && self.tags.to_vec() == other.tags.to_vec()
            && self.expires == other.expires
            && self.dedupe == other.dedupe
            && self.name == other.name
    }
}

impl Entry<'_> {
    fn shape(&self) -> u8 {
        let mut shape = 0;
        shape |= if self.key == 0 { 0 } else { KEY };
        shape |= if self.tags.is_empty() { 0 } else { TAGS };
        shape |= if self.expires.is_some() { EXPIRES } else { 0 };
        shape |= if self.dedupe.is_some() { DEDUPE } else { 0 };
        shape |= if self.name.is_some() { NAME } else { 0 };
        shape
    }
}

/// A message as it is handed in: its sealed body is elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Sealed length of the body in bytes.
    pub len: u32,
    /// Hash of the key, 0 for none.
    pub key: u64,
    /// Hashes of the tags.
    pub tags: TagSet,
    /// Time to live in milliseconds.
    pub ttl_ms: Option<u64>,
    /// The publish id, if it has one.
    pub dedupe: Option<Box<EntryDedupe>>,
    /// When it is due, if it is to be scheduled. All messages of a batch are, or none.
    pub later: Option<Box<Later>>,
}

/// When a message that is to be scheduled is due, and what it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// When.
    pub when: When,
    /// Hash of its name, unique in the topic.
    pub name: Option<u128>,
    /// What to do if another pending message has the name.
    pub taken: NameTaken,
}

/// A time, or a time from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Then.
    At(UnixMs),
    /// So many milliseconds after it came in.
    After(u64),
}

impl When {
    /// The time that is meant `now`. One that has passed is now.
    pub fn due(self, now: UnixMs) -> UnixMs {
        match self {
            When::At(at) => at.max(now),
            When::After(ms) => now.plus(ms),
        }
    }
}

/// What to do with a message whose name another pending one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameTaken {
    /// It takes the other one's place.
    #[default]
    Replace,
    /// The other one stays, and this one is not taken in.
    Keep,
    /// It is refused.
    Refuse,
}

impl Draft {
    /// As it is recorded when it comes in at time `at`.
    pub fn entry(&self, at: UnixMs) -> Entry<'_> {
        Entry {
            len: self.len,
            key: self.key,
            tags: Tags::Slice(self.tags.as_slice()),
            expires: self.ttl_ms.map(|ttl| at.plus(ttl)),
            dedupe: self.dedupe.as_deref().copied(),
            name: self.later.as_deref().and_then(|later| later.name),
        }
    }
}

/// The messages of a record, either in memory or still encoded.
#[derive(Clone, Copy, Debug)]
pub enum Entries<'a> {
    /// In memory.
    Slice(&'a [Entry<'a>]),
    /// As they were handed in, at a time.
    Drafts(&'a [Draft], UnixMs),
    /// Encoded, and read through once.
    Encoded {
        /// How many messages.
        count: usize,
        /// What any of them has.
        shape: u8,
        /// Their encoding.
        bytes: &'a [u8],
    },
}

impl PartialEq for Entries<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a> Entries<'a> {
    /// How many messages.
    pub fn len(&self) -> usize {
        match self {
            Entries::Slice(entries) => entries.len(),
            Entries::Drafts(drafts, _) => drafts.len(),
            Entries::Encoded { count, .. } => *count,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all that any message has is a body.
    pub fn is_plain(&self) -> bool {
        match self {
            Entries::Slice(_) | Entries::Drafts(..) => self.iter().all(|e| e.shape() == 0),
            Entries::Encoded { shape, .. } => *shape == 0,
        }
    }

    /// The messages in order.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'a>> + 'a {
        let entries = *self;
        let mut cursor = match entries {
            Entries::Encoded { bytes, .. } => Cursor::new(bytes),
            _ => Cursor::new(&[]),
        };
        (0..entries.len()).map(move |index| match entries {
            Entries::Slice(entries) => entries[index],
            Entries::Drafts(drafts, at) => drafts[index].entry(at),
            Entries::Encoded { shape, .. } => {
                read_one(&mut cursor, shape).expect("the list was read through before")
            }
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.len() as u64);
        let shape = self.iter().fold(0, |shape, entry| shape | entry.shape());
        out.push(shape);
        for entry in self.iter() {
            varint::put(out, entry.len.into());
            if shape != 0 {
                write_parts(&entry, out);
            }
        }
    }

    pub(super) fn read(c: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let at = c.position();
        let count = c.varint()?;
        let shape = c.u8()?;
        if count > c.remaining() as u64 || shape & !(KEY | TAGS | EXPIRES | DEDUPE | NAME) != 0 {
            return Err(Malformed { at });
        }
        let mut ahead = c.clone();
        let start = ahead.position();
        for _ in 0..count {
            read_one(&mut ahead, shape)?;
        }
        let bytes = c.take(ahead.position() - start)?;
        Ok(Entries::Encoded { count: count as usize, shape, bytes })
    }
}

fn write_parts(entry: &Entry<'_>, out: &mut Vec<u8>) {
    out.push(entry.shape());
    if entry.key != 0 {
        out.extend_from_slice(&entry.key.to_le_bytes());
    }
    if !entry.tags.is_empty() {
        out.push(entry.tags.len() as u8);
        for index in 0..entry.tags.len() {
            out.extend_from_slice(&entry.tags.get(index).to_le_bytes());
        }
    }
    if let Some(expires) = entry.expires {
        varint::put(out, expires.0);
    }
    if let Some(dedupe) = entry.dedupe {
        out.extend_from_slice(&dedupe.id.to_le_bytes());
        out.extend_from_slice(&dedupe.digest.to_le_bytes());
    }
    if let Some(name) = entry.name {
        out.extend_from_slice(&name.to_le_bytes());
    }
}

#[inline]
fn read_one<'a>(c: &mut Cursor<'a>, shape: u8) -> Result<Entry<'a>, Malformed> {
    let mut entry = Entry { len: c.varint_u32()?, ..Entry::default() };
    if shape == 0 {
        return Ok(entry);
    }
    let at = c.position();
    let parts = c.u8()?;
    if parts & !shape != 0 {
        return Err(Malformed { at });
    }
    if parts & KEY != 0 {
        entry.key = c.u64()?;
    }
    if parts & TAGS != 0 {
        let count = usize::from(c.u8()?);
        entry.tags = Tags::Encoded(c.take(count * 8)?);
    }
    if parts & EXPIRES != 0 {
        entry.expires = Some(UnixMs(c.varint()?));
    }
    if parts & DEDUPE != 0 {
        entry.dedupe = Some(EntryDedupe { id: c.u128()?, digest: c.u64()? });
    }
    if parts & NAME != 0 {
        entry.name = Some(c.u128()?);
    }
    Ok(entry)
}
