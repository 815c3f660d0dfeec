//! How messages are read and written: as in the native interface, a request is counted
//! before it is decoded. An empty message of a batch is two bytes, and some hundred in memory.

use std::any::TypeId;

use posthouse_client::codec::{Bounds, Counted, Fields, check_lists, check_messages};

use super::pb;

/// The codec. Commands go both ways; those of the node are read by others.
pub type Codec<T, U> = Counted<T, U, OfRequests>;

/// Bytes of a request that brings no messages and no receipts: a group with as many
/// subscriptions as it may have says them in as many.
const COMMAND_BYTES: usize = 2 << 20;

/// Bytes of a request that is not looked into: whatever is in it takes little.
const SMALL_BYTES: usize = 64 << 10;

/// How far down a command has lists: command, settings, subscription, entries of it.
const COMMAND_LEVELS: u32 = 3;

/// Numbers of fields.
const MESSAGES: u64 = 1;
const SYSTEM_PROPERTIES: u64 = 3;

/// How large requests may be.
#[derive(Debug)]
pub struct OfRequests;

impl Bounds for OfRequests {
    fn check<U: 'static>(request: &[u8]) -> Result<(), String> {
        let of = TypeId::of::<U>();
        let commands = [
            TypeId::of::<pb::QueryRouteRequest>(),
            TypeId::of::<pb::QueryAssignmentRequest>(),
            TypeId::of::<pb::TelemetryCommand>(),
            TypeId::of::<pb::HeartbeatRequest>(),
            TypeId::of::<pb::NotifyClientTerminationRequest>(),
            TypeId::of::<pb::RecallMessageRequest>(),
            TypeId::of::<pb::EndTransactionRequest>(),
            TypeId::of::<pb::ReceiveMessageRequest>(),
            TypeId::of::<pb::ChangeInvisibleDurationRequest>(),
            TypeId::of::<pb::ForwardMessageToDeadLetterQueueRequest>(),
            TypeId::of::<pb::SyncLiteSubscriptionRequest>(),
            TypeId::of::<pb::PullMessageRequest>(),
            TypeId::of::<pb::UpdateOffsetRequest>(),
            TypeId::of::<pb::GetOffsetRequest>(),
            TypeId::of::<pb::QueryOffsetRequest>(),
        ];
        if of == TypeId::of::<pb::SendMessageRequest>() {
            check_messages(request, MESSAGES, parts)
        } else if of == TypeId::of::<pb::AckMessageRequest>() {
            check_lists(request, 0)
        } else if commands.contains(&of) {
            check_command(request)
        } else {
            Ok(())
        }
    }
}

/// How many parts a message has: properties of users, and keys.
fn parts(message: &[u8]) -> usize {
    let system = Fields(message).filter(|(number, _)| *number == SYSTEM_PROPERTIES);
    let of_system: usize = system.map(|(_, system)| Fields(system).count()).sum();
    Fields(message).count() + of_system
}

fn check_command(request: &[u8]) -> Result<(), String> {
    if request.len() <= SMALL_BYTES {
        return Ok(());
    }
    if request.len() > COMMAND_BYTES {
        return Err(format!("a request of this sort has at most {COMMAND_BYTES} bytes"));
    }
    check_lists(request, COMMAND_LEVELS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::settings::PubSub;
    use pb::telemetry_command::Command;
    use prost::Message;

    fn check<T: Message + 'static>(request: &T) -> Result<(), String> {
        OfRequests::check::<T>(&request.encode_to_vec())
    }

    /// A megabyte of empty messages became half a gigabyte before anybody counted them.
    #[test]
    fn many_empty_entries_are_refused_before_they_take_memory() {
        let send =
            |message: pb::Message, count| pb::SendMessageRequest { messages: vec![message; count] };
        let full = pb::Message { body: vec![0; 400].into(), ..Default::default() };
        assert_eq!(check(&send(full, 10_000)), Ok(()));
        assert!(check(&send(pb::Message::default(), 100_000)).is_err());
        let keys = |count| {
            let keys = vec![String::new(); count];
            let system = pb::SystemProperties { keys, ..Default::default() };
            pb::Message { system_properties: Some(system), ..Default::default() }
        };
        assert_eq!(check(&send(keys(1_000), 10)), Ok(()));
        assert!(check(&send(keys(4_000_000), 1)).is_err());
        let ack = |count| {
            let receipt_handle = "x".repeat(90);
            let entry = pb::AckMessageEntry { receipt_handle, ..Default::default() };
            pb::AckMessageRequest { entries: vec![entry; count], ..Default::default() }
        };
        assert_eq!(check(&ack(10_000)), Ok(()));
        assert!(check(&ack(100_000)).is_err());
        let telemetry = |entry: pb::SubscriptionEntry, count| {
            let subscription =
                pb::Subscription { subscriptions: vec![entry; count], ..Default::default() };
            let pub_sub = Some(PubSub::Subscription(subscription));
            let settings = Command::Settings(pb::Settings { pub_sub, ..Default::default() });
            pb::TelemetryCommand { command: Some(settings), ..Default::default() }
        };
        let largest = pb::SubscriptionEntry {
            topic: Some(pb::Resource { name: "x".repeat(200), ..Default::default() }),
            expression: Some(pb::FilterExpression { r#type: 2, expression: "a = 1 ".repeat(680) }),
        };
        assert_eq!(check(&telemetry(largest, 256)), Ok(()));
        assert!(check(&telemetry(pb::SubscriptionEntry::default(), 100_000)).is_err());
        let addresses = vec![pb::Address::default(); 100_000];
        let endpoints = Some(pb::Endpoints { addresses, ..Default::default() });
        assert!(check(&pb::QueryRouteRequest { endpoints, ..Default::default() }).is_err());
    }
}
