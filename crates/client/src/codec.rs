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
pub const ENTRIES: usize = 40_000;

/// Bytes of a publish that is not looked into, message by message: whatever is in it
/// takes little.
const SMALL_BYTES: usize = 2 << 20;

/// Tags, headers and other parts of all messages of a larger publish together.
const PARTS: usize = 1_000_000;

/// Bytes of a request with lists that brings no messages.
pub const REQUEST_BYTES: usize = 4 << 20;

/// The codec of the native interface.
pub type Codec<T, U> = Counted<T, U, Native>;

/// How large requests may be, each of its type.
pub trait Bounds: Send + 'static {
    /// Looks at an encoded `U`.
    ///
    /// # Errors
    /// What there is too much of.
    fn check<U: 'static>(request: &[u8]) -> Result<(), String>;
}

/// Those of the native interface.
#[derive(Debug)]
pub struct Native;

impl Bounds for Native {
    fn check<U: 'static>(request: &[u8]) -> Result<(), String> {
        Lists::of::<U>().map_or(Ok(()), |lists| lists.check(request))
    }
}

/// A codec that looks at what comes before it is decoded.
#[derive(Debug)]
pub struct Counted<T, U, B>(PhantomData<(T, U, B)>);

impl<T, U, B> Default for Counted<T, U, B> {
    fn default() -> Self {
        Counted(PhantomData)
    }
}

impl<T, U, B> tonic::codec::Codec for Counted<T, U, B>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
    B: Bounds,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Counting<U, B>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Counting(ProstDecoder::default(), PhantomData)
    }
}

/// Counts, then decodes.
#[derive(Debug)]
pub struct Counting<U, B>(ProstDecoder<U>, PhantomData<B>);

impl<U: Message + Default + 'static, B: Bounds> Decoder for Counting<U, B> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        B::check::<U>(buffer.chunk()).map_err(|what| refusal(&what))?;
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

/// The number of `messages` in a `PublishRequest`, and in a `PrepareTransactionRequest`.
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
        let once = [
            TypeId::of::<proto::ConsumeRequest>(),
            TypeId::of::<proto::PutUserRequest>(),
            TypeId::of::<proto::PutRecurringRequest>(),
        ];
        let messages = [
            TypeId::of::<proto::PublishRequest>(),
            TypeId::of::<proto::PrepareTransactionRequest>(),
        ];
        if messages.contains(&of) {
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
        match self {
            Lists::Below(levels) => check_lists(request, levels),
            Lists::Messages => check_messages(request, MESSAGES, |message| Fields(message).count()),
        }
    }
}

/// Looks at a request that has lists so many levels below itself, and brings no messages.
///
/// # Errors
/// What there is too much of.
pub fn check_lists(request: &[u8], levels: u32) -> Result<(), String> {
    if request.len() > REQUEST_BYTES {
        return Err(format!("a request of this sort has at most {REQUEST_BYTES} bytes"));
    }
    if count(request, levels, ENTRIES) > ENTRIES { Err(too_many()) } else { Ok(()) }
}

/// Looks at a request whose messages have this number; `parts` says how many one has.
///
/// # Errors
/// What there is too much of.
pub fn check_messages(
    request: &[u8],
    number: u64,
    parts: impl Fn(&[u8]) -> usize,
) -> Result<(), String> {
    let messages = Fields(request).filter(|(of, _)| *of == number);
    let is_small = request.len() <= SMALL_BYTES;
    let mut found = 0;
    let is_too_much = messages.enumerate().any(|(at, (_, message))| {
        found += if is_small { 0 } else { parts(message) };
        at >= ENTRIES || found > PARTS
    });
    if is_too_much { Err(too_many()) } else { Ok(()) }
}

fn too_many() -> String {
    "a request has at most 10000 entries".into()
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
#[derive(Debug)]
pub struct Fields<'a>(pub &'a [u8]);

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
        AckRequest, ConsumeRequest, GroupConfig, OutgoingMessage, PrepareTransactionRequest,
        PublishRequest, PutGroupRequest, PutRecurringRequest, RecurringConfig, Subscription,
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

    /// Prepares and recurring messages have messages, too, and were not counted: a megabyte of
    /// empty ones became two hundred.
    #[test]
    fn messages_are_counted_wherever_they_are() {
        let prepare = |count| PrepareTransactionRequest {
            messages: vec![OutgoingMessage::default(); count],
            ..Default::default()
        };
        assert_eq!(check(&prepare(10_001)), Ok(()), "the call says what is wrong with them");
        assert!(check(&prepare(1_000_000)).is_err());
        let recurring = |count| {
            let config = RecurringConfig { tags: vec![String::new(); count], ..Default::default() };
            PutRecurringRequest { config: Some(config), ..Default::default() }
        };
        assert_eq!(check(&recurring(1_000)), Ok(()));
        assert!(check(&recurring(1_000_000)).is_err());
    }
}
