//! What stands in a body: all the publisher gave, and what became of the message.
//!
//! ```text
//! flags u8 | key | tags | headers | dedupe_id | ttl | origin | name | payload to the end
//! ```
//! Each part is there if its flag is set. Texts are UTF-8 with a varint length
//! before them; lists have a varint count.

use bytes::{BufMut, Bytes, BytesMut};
use posthouse_frame::varint::{self, Cursor, Malformed};

use crate::record::{NameTaken, When};
use crate::words::UnixMs;

/// Bounds on the parts of a message. The body has a bound of its own per topic.
pub mod limits {
    /// The longest key in bytes.
    pub const KEY_BYTES: usize = 1024;
    /// The most tags.
    pub const TAGS: usize = 16;
    /// The longest tag in bytes.
    pub const TAG_BYTES: usize = 128;
    /// The most headers.
    pub const HEADERS: usize = 128;
    /// The longest name of a header in bytes.
    pub const HEADER_NAME_BYTES: usize = 256;
    /// All names and values of headers together, in bytes.
    pub const HEADERS_BYTES: usize = 32 << 10;
    /// The longest publish id in bytes.
    pub const DEDUPE_ID_BYTES: usize = 256;
    /// The largest body that any topic may allow, in bytes.
    pub const BODY_BYTES: usize = 8 << 20;
    /// The largest body unless the topic says otherwise, in bytes.
    pub const DEFAULT_BODY_BYTES: usize = 4 << 20;
    /// The longest time to live: ten years of 366 days, in milliseconds.
    pub const TTL_MS: u64 = 10 * 366 * 86_400_000;
    /// The furthest that a message can be scheduled: ten years of 366 days, in
    /// milliseconds.
    pub const DELAY_MS: u64 = TTL_MS;
    /// The longest name of a scheduled message in bytes.
    pub const NAME_BYTES: usize = 256;
    /// The longest reason of a nack in bytes.
    pub const REASON_BYTES: usize = 1024;
}

/// The header that holds the keys that a RocketMQ producer gave a message, by which people
/// look for it; not the key of its order.
pub const KEYS_HEADER: &str = "rocketmq.keys";

/// What stands between two keys in [`KEYS_HEADER`]. None has a control character.
pub const KEYS_END: char = '\n';

const KEY: u8 = 1;
const TAGS: u8 = 2;
const HEADERS: u8 = 4;
const DEDUPE: u8 = 8;
const TTL: u8 = 16;
const ORIGIN: u8 = 32;
const NAME: u8 = 64;

/// A message, with its parts borrowed from wherever they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Messages of one key keep their order in a group that asks for it.
    pub key: Option<&'a str>,
    /// What filters look at.
    pub tags: Vec<&'a str>,
    /// Names and values, for the consumer.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The publisher's own id of the publish.
    pub dedupe_id: Option<&'a str>,
    /// Time to live in milliseconds.
    pub ttl_ms: Option<u64>,
    /// Where a dead letter, or a redriven message, comes from.
    pub origin: Option<Origin<'a>>,
    /// The publisher's name for a message that is scheduled, unique in the topic.
    pub name: Option<&'a str>,
    /// When the message is due, if it is to be scheduled, and what to do if its name is
    /// taken. Not kept in the body.
    pub later: Option<(When, NameTaken)>,
}

/// Why a message was moved to the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeadReason {
    /// The last attempt was refused by its consumer.
    Nacked = 1,
    /// The last attempt's lease ran out.
    LeaseExpired = 2,
    /// Its time to live ran out.
    Expired = 3,
    /// A consumer asked for it.
    Asked = 4,
}

impl DeadReason {
    /// As users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadReason::Nacked => "nacked",
            DeadReason::LeaseExpired => "lease_expired",
            DeadReason::Expired => "expired",
            DeadReason::Asked => "asked",
        }
    }

    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => DeadReason::Nacked,
            2 => DeadReason::LeaseExpired,
            3 => DeadReason::Expired,
            4 => DeadReason::Asked,
            _ => return None,
        })
    }
}

/// The life that a dead letter had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The topic it was published to.
    pub topic: &'a str,
    /// The partition of that topic, counted from 0.
    pub partition: u32,
    /// Its position there.
    pub position: u64,
    /// When it was published.
    pub published_at: UnixMs,
    /// Why it died.
    pub reason: DeadReason,
    /// How many attempts were granted.
    pub attempts: u16,
    /// When it died.
    pub died_at: UnixMs,
    /// What the last nack said.
    pub error: &'a str,
}

impl Parts<'_> {
    /// The same, with headers in the order of their names.
    #[must_use]
    pub fn with_sorted_headers(&self) -> Self {
        let mut parts = self.clone();
        parts.headers.sort_unstable();
        parts
    }

    /// Appends the encoded parts and the payload to `out`.
    pub fn encode(&self, payload: &[u8], out: &mut BytesMut) {
        let mut flags = 0;
        flags |= if self.key.is_some() { KEY } else { 0 };
        flags |= if self.tags.is_empty() { 0 } else { TAGS };
        flags |= if self.headers.is_empty() { 0 } else { HEADERS };
        flags |= if self.dedupe_id.is_some() { DEDUPE } else { 0 };
        flags |= if self.ttl_ms.is_some() { TTL } else { 0 };
        flags |= if self.origin.is_some() { ORIGIN } else { 0 };
        flags |= if self.name.is_some() { NAME } else { 0 };
        out.reserve(payload.len() + 1);
        out.put_u8(flags);
        if flags != 0 {
            let mut head = Vec::with_capacity(64);
            self.encode_parts(&mut head);
            out.extend_from_slice(&head);
        }
        out.extend_from_slice(payload);
    }

    fn encode_parts(&self, out: &mut Vec<u8>) {
        if let Some(key) = self.key {
            varint::put_bytes(out, key.as_bytes());
        }
        if !self.tags.is_empty() {
            varint::put(out, self.tags.len() as u64);
            for tag in &self.tags {
                varint::put_bytes(out, tag.as_bytes());
            }
        }
        if !self.headers.is_empty() {
            varint::put(out, self.headers.len() as u64);
            for (name, value) in &self.headers {
                varint::put_bytes(out, name.as_bytes());
                varint::put_bytes(out, value.as_bytes());
            }
        }
        if let Some(id) = self.dedupe_id {
            varint::put_bytes(out, id.as_bytes());
        }
        if let Some(ttl) = self.ttl_ms {
            varint::put(out, ttl);
        }
        if let Some(origin) = &self.origin {
            varint::put_bytes(out, origin.topic.as_bytes());
            varint::put(out, u64::from(origin.partition));
            varint::put(out, origin.position);
            varint::put(out, origin.published_at.0);
            out.push(origin.reason as u8);
            varint::put(out, u64::from(origin.attempts));
            varint::put(out, origin.died_at.0);
            varint::put_bytes(out, origin.error.as_bytes());
        }
        if let Some(name) = self.name {
            varint::put_bytes(out, name.as_bytes());
        }
    }
}

/// Takes a body's content apart. The payload is a slice of `content`, not a copy.
///
/// # Errors
/// [`Malformed`] if the content was not made by [`Parts::encode`]. Its checksum has
/// been verified before, so this is a fault of a writer, not of a disk.
pub fn decode(content: &Bytes) -> Result<(Parts<'_>, Bytes), Malformed> {
    let mut cursor = Cursor::new(content);
    let flags = cursor.u8()?;
    if flags & !(KEY | TAGS | HEADERS | DEDUPE | TTL | ORIGIN | NAME) != 0 {
        return Err(Malformed { at: 0 });
    }
    let mut parts = Parts::default();
    if flags & KEY != 0 {
        parts.key = Some(text(&mut cursor)?);
    }
    if flags & TAGS != 0 {
        let count = bounded(&mut cursor, limits::TAGS)?;
        parts.tags.reserve(count);
        for _ in 0..count {
            parts.tags.push(text(&mut cursor)?);
        }
    }
    if flags & HEADERS != 0 {
        let count = bounded(&mut cursor, limits::HEADERS)?;
        parts.headers.reserve(count);
        for _ in 0..count {
            parts.headers.push((text(&mut cursor)?, text(&mut cursor)?));
        }
    }
    if flags & DEDUPE != 0 {
        parts.dedupe_id = Some(text(&mut cursor)?);
    }
    if flags & TTL != 0 {
        parts.ttl_ms = Some(cursor.varint()?);
    }
    if flags & ORIGIN != 0 {
        parts.origin = Some(origin(&mut cursor)?);
    }
    if flags & NAME != 0 {
        parts.name = Some(text(&mut cursor)?);
    }
    let payload = content.slice(cursor.position()..);
    Ok((parts, payload))
}

fn origin<'a>(cursor: &mut Cursor<'a>) -> Result<Origin<'a>, Malformed> {
    let at = cursor.position();
    Ok(Origin {
        topic: text(cursor)?,
        partition: cursor.varint_u32()?,
        position: cursor.varint()?,
        published_at: UnixMs(cursor.varint()?),
        reason: DeadReason::from_u8(cursor.u8()?).ok_or(Malformed { at })?,
        attempts: u16::try_from(cursor.varint()?).map_err(|_| Malformed { at })?,
        died_at: UnixMs(cursor.varint()?),
        error: text(cursor)?,
    })
}

fn text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Malformed> {
    let at = cursor.position();
    std::str::from_utf8(cursor.bytes()?).map_err(|_| Malformed { at })
}

fn bounded(cursor: &mut Cursor<'_>, most: usize) -> Result<usize, Malformed> {
    let at = cursor.position();
    let count = cursor.varint()?;
    if count > most as u64 {
        return Err(Malformed { at });
    }
    Ok(count as usize)
}

/// Why a message cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value}; {limit}")]
pub struct OutOfBounds {
    /// Which part, in the words of the interface: `key`, `tags`, `headers`, ...
    pub field: &'static str,
    /// The same in a sentence.
    pub what: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub limit: String,
}

impl Parts<'_> {
    /// About how many bytes they take in a body and, for the tags, in the index.
    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 2 + 8).sum();
        let texts = [self.key, self.dedupe_id, self.name];
        headers + tags + texts.into_iter().flatten().map(str::len).sum::<usize>()
    }

    /// Checks every part against its bound.
    ///
    /// # Errors
    /// The first part that is over it.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        if let Some(key) = self.key {
            if key.is_empty() {
                return Err(bad("key", "the key", "empty".into(), "leave it out instead".into()));
            }
            most("key", "the key", key.len(), limits::KEY_BYTES, "bytes")?;
        }
        most("tags", "the number of tags", self.tags.len(), limits::TAGS, "tags")?;
        for tag in &self.tags {
            most("tags", "the length of a tag", tag.len(), limits::TAG_BYTES, "bytes")?;
            if tag.is_empty() || tag.chars().any(|c| c.is_control() || c == '|') {
                return Err(bad(
                    "tags",
                    "a tag",
                    format!("{tag:?}"),
                    "it must not be empty or have control characters or |".into(),
                ));
            }
        }
        most("headers", "the number of headers", self.headers.len(), limits::HEADERS, "headers")?;
        let mut bytes = 0;
        for (name, value) in &self.headers {
            if name.is_empty() {
                return Err(bad(
                    "headers",
                    "the name of a header",
                    "empty".into(),
                    "it must have a character".into(),
                ));
            }
            let name_most = limits::HEADER_NAME_BYTES;
            most("headers", "the length of a header's name", name.len(), name_most, "bytes")?;
            if self.headers.iter().filter(|(other, _)| other == name).count() > 1 {
                let limit = "each name can be there once".into();
                return Err(bad("headers", "a header", format!("{name:?} twice"), limit));
            }
            bytes += name.len() + value.len();
        }
        most("headers", "the size of all headers", bytes, limits::HEADERS_BYTES, "bytes")?;
        if let Some(id) = self.dedupe_id {
            if id.is_empty() {
                let limit = "leave it out instead".into();
                return Err(bad("dedupe_id", "the dedupe_id", "empty".into(), limit));
            }
            most("dedupe_id", "the dedupe_id", id.len(), limits::DEDUPE_ID_BYTES, "bytes")?;
        }
        if let Some(ttl) = self.ttl_ms
            && !(1..=limits::TTL_MS).contains(&ttl)
        {
            return Err(bad(
                "ttl",
                "the time to live",
                format!("{ttl} ms"),
                format!("it must be from 1 ms to {} ms (ten years)", limits::TTL_MS),
            ));
        }
        if let Some(name) = self.name {
            if name.is_empty() {
                return Err(bad("name", "the name", "empty".into(), "leave it out instead".into()));
            }
            most("name", "the name", name.len(), limits::NAME_BYTES, "bytes")?;
            if self.later.is_none() {
                let limit = "only a message with deliver_at or delay has one".into();
                return Err(bad("name", "the name", format!("{name:?}"), limit));
            }
        }
        if let Some((When::After(ms), _)) = self.later
            && ms > limits::DELAY_MS
        {
            let limit = format!("at most {} ms", limits::DELAY_MS);
            return Err(bad("delay", "the delay", format!("{ms} ms"), limit));
        }
        Ok(())
    }
}

fn bad(field: &'static str, what: &'static str, value: String, limit: String) -> OutOfBounds {
    OutOfBounds { field, what, value, limit }
}

fn most(
    field: &'static str,
    what: &'static str,
    value: usize,
    most: usize,
    unit: &str,
) -> Result<(), OutOfBounds> {
    if value <= most {
        return Ok(());
    }
    Err(bad(field, what, format!("{value} {unit}"), format!("the most is {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(parts: &Parts<'_>, payload: &[u8]) {
        let mut out = BytesMut::new();
        parts.encode(payload, &mut out);
        let content = out.freeze();
        let (decoded, body) = decode(&content).unwrap();
        assert_eq!(&decoded, parts);
        assert_eq!(body, payload);
    }

    #[test]
    fn everything_the_publisher_gave_comes_back() {
        round_trip(&Parts::default(), b"");
        round_trip(&Parts::default(), b"just a body");
        round_trip(
            &Parts {
                key: Some("order-1"),
                tags: vec!["paid", "eu"],
                headers: vec![("content-type", "text/plain"), ("empty", "")],
                dedupe_id: Some("d-1"),
                ttl_ms: Some(86_400_000),
                origin: Some(Origin {
                    topic: "orders",
                    partition: 3,
                    position: 1 << 40,
                    published_at: UnixMs(1_900_000_000_000),
                    reason: DeadReason::Nacked,
                    attempts: 16,
                    died_at: UnixMs(1_900_000_100_000),
                    error: "connection refused",
                }),
                name: Some("reminder-7"),
                later: None,
            },
            &[0, 255, 128],
        );
    }

    #[test]
    fn a_body_without_parts_costs_one_byte() {
        let mut out = BytesMut::new();
        Parts::default().encode(b"abc", &mut out);
        assert_eq!(out.len(), 4);
    }

    proptest! {
        #[test]
        fn no_content_panics(content in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&Bytes::from(content));
        }
    }

    #[test]
    fn parts_over_their_bounds_are_refused_with_the_value_and_the_limit() {
        let long = "k".repeat(1025);
        let key = Parts { key: Some(&long), ..Default::default() };
        assert_eq!(key.check().unwrap_err().to_string(), "the key is 1025 bytes; the most is 1024");
        let tags = Parts { tags: vec!["a|b"], ..Default::default() };
        assert_eq!(
            tags.check().unwrap_err().to_string(),
            "a tag is \"a|b\"; it must not be empty or have control characters or |"
        );
        let value = "v".repeat(32 << 10);
        let headers = Parts { headers: vec![("h", &value)], ..Default::default() };
        assert_eq!(
            headers.check().unwrap_err().to_string(),
            "the size of all headers is 32769 bytes; the most is 32768"
        );
        assert_eq!(
            Parts { ttl_ms: Some(0), ..Default::default() }.check().unwrap_err().field,
            "ttl"
        );
    }
}
