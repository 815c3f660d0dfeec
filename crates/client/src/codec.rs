//! How messages are read and written: as prost does it, but a request is counted before
//! it is decoded.
//!
//! An empty entry of a list takes two bytes of a message and up to three hundred of
//! memory, so the bound on the bytes of a request is none on what it costs. Requests
//! with lists are walked through first, without taking any memory, and refused if what
//! they would become is too large. Everything else, and all answers, are as prost has
//! them.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::{proto, rpc_status};

/// Entries of the list of a request. No call takes more than 10,000; those that are a
/// few too many are refused there, with better words.
const ENTRIES: usize = 40_000;

/// Bytes of a publish that is not looked into, message by message: whatever is in it
/// takes little.
const SMALL_BYTES: usize = 2 << 20;

/// Tags, headers and other parts of all messages of a larger publish together.
const PARTS: usize = 1_000_000;

/// Bytes of a request with lists that brings no messages.
const REQUEST_BYTES: usize = 4 << 20;

/// The codec.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Counting<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Counting(ProstDecoder::default())
    }
}

/// Counts, then decodes.
#[derive(Debug)]
pub struct Counting<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for Counting<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(lists) = Lists::of::<U>() {
            lists.check(buffer.chunk()).map_err(|what| refusal(&what))?;
        }
        self.0.decode(buffer)
    }
}

/// Where a request has lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    /// Messages, which have lists themselves.
    Messages,
    /// Entries without lists, so many levels below the request.
    Below(u32),
}

/// The number of `PublishRequest.messages`.
const MESSAGES: u64 = 2;

impl Lists {
    fn of<U: 'static>() -> Option<Lists> {
        let of = TypeId::of::<U>();
        let flat = [
            TypeId::of::<proto::AckRequest>(),
            TypeId::of::<proto::NackRequest>(),
            TypeId::of::<proto::ExtendRequest>(),
            TypeId::of::<proto::RescheduleRequest>(),
            TypeId::of::<proto::CancelRequest>(),
            TypeId::of::<proto::RedriveDeadLettersRequest>(),
            TypeId::of::<proto::PurgeDeadLettersRequest>(),
        ];
        let once = [TypeId::of::<proto::ConsumeRequest>(), TypeId::of::<proto::PutUserRequest>()];
        if of == TypeId::of::<proto::PublishRequest>() {
            Some(Lists::Messages)
        } else if flat.contains(&of) {
            Some(Lists::Below(0))
        } else if once.contains(&of) {
            Some(Lists::Below(1))
        } else if of == TypeId::of::<proto::PutGroupRequest>() {
            Some(Lists::Below(2))
        } else {
            None
        }
    }

    fn check(self, request: &[u8]) -> Result<(), String> {
        let is_too_much = match self {
            Lists::Below(_) if request.len() > REQUEST_BYTES => {
                return Err(format!("a request of this sort has at most {REQUEST_BYTES} bytes"));
            }
            Lists::Below(levels) => count(request, levels, ENTRIES) > ENTRIES,
            Lists::Messages => {
                let messages = Fields(request).filter(|(number, _)| *number == MESSAGES);
                let is_small = request.len() <= SMALL_BYTES;
                let mut parts = 0;
                messages.enumerate().any(|(at, (_, message))| {
                    parts += if is_small { 0 } else { Fields(message).count() };
                    at >= ENTRIES || parts > PARTS
                })
            }
        };
        if is_too_much { Err("a request has at most 10000 entries".into()) } else { Ok(()) }
    }
}

/// How many fields there are, down to so many levels; not much further than `most`.
fn count(message: &[u8], levels: u32, most: usize) -> usize {
    let mut found = 0;
    for (_, content) in Fields(message) {
        found += 1;
        if levels > 0 {
            found += count(content, levels - 1, most);
        }
        if found > most {
            break;
        }
    }
    found
}

fn refusal(what: &str) -> Status {
    rpc_status(&proto::Problem {
        code: "request_too_large".into(),
        detail: what.into(),
        hint: "ask for less at once".into(),
        status: tonic::Code::InvalidArgument as i32,
        ..Default::default()
    })
}

/// The fields of an encoded message: number, and content if it has a length. Ends where
/// the encoding makes no sense; prost says what is wrong with it.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for (at, byte) in self.0.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * at).min(63);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (content, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(content)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.number()?;
        let content = match key & 7 {
            0 => self.number().map(|_| &[][..])?,
            1 => self.take(8)?,
            2 => {
                let len = self.number()?;
                self.take(len)?
            }
            5 => self.take(4)?,
            // Groups are long gone; prost walks through them, and keeps nothing.
            3 | 4 => &[],
            _ => return None,
        };
        Some((key >> 3, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consume_request::{self, StreamAck};
    use crate::proto::group_config::Subscriptions;
    use crate::proto::{
        AckRequest, ConsumeRequest, GroupConfig, OutgoingMessage, PublishRequest, PutGroupRequest,
        Subscription,
    };

    fn check<T: Message + 'static>(request: &T) -> Result<(), String> {
        Lists::of::<T>().unwrap().check(&request.encode_to_vec())
    }

    #[test]
    fn fields_are_found_as_prost_writes_them() {
        let message = OutgoingMessage {
            body: vec![1; 300].into(),
            key: Some("k".into()),
            tags: vec!["a".into(), "b".into()],
            ttl_ms: Some(u64::MAX),
            topic: "t".into(),
            ..Default::default()
        };
        let request = PublishRequest { topic: "t".into(), messages: vec![message; 3], apart: true };
        let wire = request.encode_to_vec();
        let numbers: Vec<u64> = Fields(&wire).map(|(number, _)| number).collect();
        assert_eq!(numbers, [1, 2, 2, 2, 3]);
        let (_, first) = Fields(&wire).nth(1).unwrap();
        let parts: Vec<(u64, usize)> =
            Fields(first).map(|(n, content)| (n, content.len())).collect();
        assert_eq!(parts, [(1, 300), (2, 1), (3, 1), (3, 1), (5, 0), (7, 1)]);
        for len in 0..wire.len() {
            assert!(Fields(&wire[..len]).count() <= 5);
        }
        assert_eq!(Fields(&[0xff; 20]).count(), 0);
    }

    /// Sixteen megabytes of empty entries became gigabytes before anybody counted them.
    #[test]
    fn many_empty_entries_are_refused_before_they_take_memory() {
        let messages = |count| PublishRequest {
            messages: vec![OutgoingMessage::default(); count],
            ..Default::default()
        };
        assert_eq!(check(&messages(10_001)), Ok(()), "the call says what is wrong with them");
        assert!(check(&messages(1_000_000)).is_err());
        let tagged = |count| {
            let message =
                OutgoingMessage { tags: vec![String::new(); count], ..Default::default() };
            PublishRequest { messages: vec![message], ..Default::default() }
        };
        assert_eq!(check(&tagged(100_000)), Ok(()));
        assert!(check(&tagged(4_000_000)).is_err());
        let receipts =
            |count| AckRequest { receipts: vec![String::new(); count], ..Default::default() };
        assert_eq!(check(&receipts(10_001)), Ok(()));
        assert!(check(&receipts(100_000)).is_err());
        let ack = StreamAck { receipts: receipts(100_000).receipts, ..Default::default() };
        let request = Some(consume_request::Request::Ack(ack));
        assert!(check(&ConsumeRequest { request }).is_err());
        let subscriptions = vec![Subscription::default(); 100_000];
        let subscriptions = Some(Subscriptions { subscriptions });
        let config = Some(GroupConfig { subscriptions, ..Default::default() });
        assert!(check(&PutGroupRequest { config, ..Default::default() }).is_err());
        let large = AckRequest { receipts: vec!["x".repeat(5 << 20)], ..Default::default() };
        assert!(check(&large).is_err());
    }
}
