//! What stands in the body of a message: its parts and its payload.

use bytes::{Bytes, BytesMut};
use posthouse_core::UnixMs;
use posthouse_core::message::{self, DeadReason, Origin, Parts};

use crate::{Seeds, memory};

pub fn run(data: &[u8]) {
    let content = Bytes::copy_from_slice(data);
    memory::within(64 * data.len() + (8 << 10), || {
        let Ok((parts, payload)) = message::decode(&content) else { return };
        let _ = parts.check();
        let mut out = BytesMut::new();
        parts.encode(&payload, &mut out);
        let again = out.freeze();
        let (read, body) = message::decode(&again).expect("what was encoded is decoded");
        assert_eq!((read, body), (parts, payload));
    });
}

pub fn seeds() -> Seeds {
    let made = |parts: Parts<'_>, payload: &[u8]| {
        let mut out = BytesMut::new();
        parts.encode(payload, &mut out);
        out.to_vec()
    };
    let origin = Origin {
        topic: "orders",
        partition: 3,
        position: 1 << 33,
        published_at: UnixMs(1 << 40),
        reason: DeadReason::Nacked,
        attempts: 16,
        died_at: UnixMs(1 << 41),
        error: "no such customer",
    };
    vec![
        ("plain", made(Parts::default(), b"just a body")),
        ("full", {
            let (tags, headers) = (vec!["paid", "eu"], vec![("content-type", "text/plain")]);
            let (key, dedupe_id) = (Some("order-1"), Some("d-1"));
            let (name, ttl_ms) = (Some("reminder"), Some(86_400_000));
            let parts = Parts { key, tags, headers, dedupe_id, name, ttl_ms, ..Parts::default() };
            made(parts, b"a body")
        }),
        ("letter", made(Parts { origin: Some(origin), ..Parts::default() }, b"dead")),
    ]
}
