//! Frames: varints, headers, body sections.

use posthouse_frame::header::{HEADER_BYTES, MAGIC};
use posthouse_frame::varint::{self, Cursor};
use posthouse_frame::{BodyBuf, BodyRef, FrameNo, Header, Kind, Salt, body};

use crate::{Seeds, memory, piece};

const SALT: Salt = Salt { store: 7, segment: 3, offset: 8192 };
const FRAME: FrameNo = FrameNo(41);

pub fn run(data: &[u8]) {
    memory::within(16 * data.len() + (16 << 10), || {
        varints(data);
        header(data);
        bodies(data);
    });
}

fn varints(data: &[u8]) {
    let mut c = Cursor::new(data);
    while let Ok(value) = c.varint() {
        let mut out = Vec::new();
        varint::put(&mut out, value);
        assert_eq!(out.len(), varint::len(value));
        assert_eq!(Cursor::new(&out).varint(), Ok(value));
        assert_eq!(varint::unzigzag(varint::zigzag(value)), value);
    }
}

fn header(data: &[u8]) {
    let _ = Header::decode(data, SALT);
    let Some(head) = data.first_chunk::<HEADER_BYTES>() else { return };
    let mut head = *head;
    head[..4].copy_from_slice(&MAGIC.to_le_bytes());
    let crc = SALT.crc(&head[8..]);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    if let Ok((header, found)) = Header::decode(&head, SALT) {
        assert_eq!(found, crc);
        assert!(header.content_bytes() <= u64::from(header.total));
        let (again, crc) = header.encode(SALT);
        assert_eq!(Header::decode(&again, SALT), Ok((header, crc)));
    }
}

fn bodies(data: &[u8]) {
    // As it is: whatever passes lies within, one behind the other.
    let mut at = 0;
    let _ = body::walk(data, FRAME, |place, content| {
        assert_eq!((place.at, place.len as usize), (at, content.len() + body::HEADER_BYTES));
        at += place.len;
    });
    // Cut into bodies, sealed, and read back.
    let (mut c, mut sealed, mut contents) = (Cursor::new(data), BodyBuf::default(), Vec::new());
    while !c.is_empty() && contents.len() < 100 {
        let content = piece(&mut c);
        let len = sealed.seal(|out| out.extend_from_slice(content));
        contents.push((content, len));
    }
    let section = sealed.bind(FRAME, 0).freeze();
    let (mut n, mut places) = (0, Vec::new());
    body::walk(&section, FRAME, |place, content| {
        assert_eq!((content, place.len), contents[n]);
        places.push(place);
        n += 1;
    })
    .expect("what was sealed holds");
    assert_eq!(n, contents.len());
    for (place, (content, _)) in places.into_iter().zip(contents) {
        let alone = section.slice(place.at as usize..(place.at + place.len) as usize);
        assert_eq!(body::open(alone.clone(), place).as_deref(), Ok(content));
        let elsewhere = BodyRef { frame: FRAME.next(), ..place };
        assert!(body::open(alone, elsewhere).is_err(), "a body of another frame passed");
    }
}

pub fn seeds() -> Seeds {
    let header = Header {
        kind: Kind::Data,
        flags: 0,
        total: 8192,
        meta_len: 1000,
        body_len: 4000,
        records: 12,
        frame_no: FRAME,
        epoch: 2,
        meta_crc: 5,
        durable_no: FrameNo(40),
        wall_ms: 1_900_000_000_123,
        lease_ms: 1_900_000_000_001,
        prev_header_crc: 6,
        writer: 99,
        min_reader: 1,
        shard: 5,
    };
    let mark = Header { kind: Kind::Mark, meta_len: 0, body_len: 0, records: 0, ..header };
    let mut section = BodyBuf::default();
    for content in ["first", "", "the third"] {
        section.seal(|out| out.extend_from_slice(content.as_bytes()));
    }
    vec![
        ("data", header.encode(SALT).0.to_vec()),
        ("mark", mark.encode(SALT).0.to_vec()),
        ("bodies", section.bind(FRAME, 0).to_vec()),
    ]
}
