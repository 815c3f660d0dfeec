//! Where clients find topics: here, at the address that they came by.

use std::net::IpAddr;
use std::sync::Arc;

use posthouse_core::catalog::{Accepts, Topic};

use super::fault::{Fault, ok};
use super::names;
use super::pb::{self, AddressScheme, Code, MessageType, Permission};
use super::{BROKER_NAME, Call, Door};
use crate::problem::Problem;

/// Addresses of an access point that are said back, and bytes of each name: a route has them
/// once for every partition.
const ADDRESSES: usize = 16;
const HOST_BYTES: usize = 255;

/// The queue of an assignment that means all of them: which partition a consumer gets its
/// messages from is the group's affair.
const ANY_QUEUE: i32 = -1;

impl Door {
    pub(super) async fn route(
        &self,
        call: &Call,
        request: pb::QueryRouteRequest,
    ) -> Result<pb::QueryRouteResponse, Fault> {
        let resource = request.topic.unwrap_or_default();
        let topic = self.topic_for_route(call, &names::topic(Some(&resource))?).await?;
        let broker = self.node_at(request.endpoints)?;
        let queue = |id| pb::MessageQueue {
            topic: Some(resource.clone()),
            id,
            permission: Permission::ReadWrite.into(),
            broker: Some(broker.clone()),
            accept_message_types: accepted(&topic),
        };
        let message_queues = (0..topic.partitions.len() as i32).map(queue).collect();
        Ok(pb::QueryRouteResponse { status: Some(ok()), message_queues })
    }

    /// The topic, made on first use where the node does that.
    async fn topic_for_route(&self, call: &Call, name: &str) -> Result<Arc<Topic>, Problem> {
        match self.broker().topic_for(&call.caller, name) {
            Err(problem) if problem.code == "topic_not_found" && !name.starts_with('%') => {
                self.broker().topic_to_publish(&call.caller, name).await
            }
            known => known,
        }
    }

    pub(super) async fn assign(
        &self,
        call: &Call,
        request: pb::QueryAssignmentRequest,
    ) -> Result<pb::QueryAssignmentResponse, Fault> {
        names::group(request.group.as_ref())?;
        let resource = request.topic.unwrap_or_default();
        let topic = self.topic_for_route(call, &names::topic(Some(&resource))?).await?;
        let message_queue = pb::MessageQueue {
            topic: Some(resource),
            id: ANY_QUEUE,
            permission: Permission::ReadWrite.into(),
            broker: Some(self.node_at(request.endpoints)?),
            accept_message_types: accepted(&topic),
        };
        let assignments = vec![pb::Assignment { message_queue: Some(message_queue) }];
        Ok(pb::QueryAssignmentResponse { status: Some(ok()), assignments })
    }
}

impl Door {
    /// The node, where it is said to be, or at the address that the client came by.
    fn node_at(&self, asked: Option<pb::Endpoints>) -> Result<pb::Broker, Fault> {
        broker_at(match &self.inner.advertise {
            Some(Advertise { host, port }) => {
                let address = pb::Address { host: host.clone(), port: (*port).into() };
                Some(pb::Endpoints { scheme: 0, addresses: vec![address] })
            }
            None => asked,
        })
    }
}

/// Where clients are told to find the node: a host and a port, which are not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// A name or an address.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
}

impl std::fmt::Display for Advertise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl std::str::FromStr for Advertise {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(())?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match inner {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', ' ', '/']),
        };
        let host = inner.unwrap_or(host).to_owned();
        is_host.then_some(Advertise { host, port }).ok_or(())
    }
}

/// What clients may send to a topic: they refuse the rest by themselves.
fn accepted(topic: &Topic) -> Vec<i32> {
    let types: &[MessageType] = match (topic.config.accepts, topic.config.delays) {
        (Accepts::Any, true) => {
            &[MessageType::Normal, MessageType::Fifo, MessageType::Delay, MessageType::Transaction]
        }
        (Accepts::Any, false) => {
            &[MessageType::Normal, MessageType::Fifo, MessageType::Transaction]
        }
        (Accepts::Normal, _) => &[MessageType::Normal],
        (Accepts::Keyed, _) => &[MessageType::Fifo],
        (Accepts::Delayed, _) => &[MessageType::Delay],
        (Accepts::Prepared, _) => &[MessageType::Transaction],
    };
    types.iter().map(|sort| (*sort).into()).collect()
}

/// The node, at the address that the client came by.
fn broker_at(asked: Option<pb::Endpoints>) -> Result<pb::Broker, Fault> {
    let endpoints = asked.filter(|endpoints| !endpoints.addresses.is_empty()).ok_or_else(|| {
        Fault::new(Code::IllegalAccessPoint, "the request does not say by which address it came")
    })?;
    let is_name = |address: &pb::Address| address.host.len() <= HOST_BYTES;
    if endpoints.addresses.len() > ADDRESSES || !endpoints.addresses.iter().all(is_name) {
        let text = format!(
            "an access point has at most {ADDRESSES} addresses, of {HOST_BYTES} bytes each"
        );
        return Err(Fault::new(Code::IllegalAccessPoint, text));
    }
    let scheme = match endpoints.addresses[0].host.parse() {
        Ok(IpAddr::V4(_)) => AddressScheme::IPv4,
        Ok(IpAddr::V6(_)) => AddressScheme::IPv6,
        Err(_) => AddressScheme::DomainName,
    };
    let endpoints = pb::Endpoints { scheme: scheme.into(), ..endpoints };
    Ok(pb::Broker { name: BROKER_NAME.into(), id: 0, endpoints: Some(endpoints) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_that_of_the_address() {
        for (host, scheme) in [
            ("127.0.0.1", AddressScheme::IPv4),
            ("::1", AddressScheme::IPv6),
            ("queue.example", AddressScheme::DomainName),
        ] {
            let addresses = vec![pb::Address { host: host.into(), port: 8081 }];
            let asked = pb::Endpoints { scheme: 0, addresses };
            let broker = broker_at(Some(asked)).unwrap();
            assert_eq!(broker.endpoints.unwrap().scheme(), scheme);
        }
        assert_eq!(broker_at(None).unwrap_err().code, Code::IllegalAccessPoint);
    }

    /// A route of a topic with many partitions had all that the request had as often: a
    /// megabyte became a gigabyte.
    #[test]
    fn what_is_said_back_for_every_partition_is_small() {
        let asked = |host: &str, count| {
            let address = pb::Address { host: host.into(), port: 8081 };
            Some(pb::Endpoints { scheme: 0, addresses: vec![address; count] })
        };
        assert!(broker_at(asked("127.0.0.1", 16)).is_ok());
        for bad in [asked("127.0.0.1", 17), asked(&"x".repeat(256), 1)] {
            assert_eq!(broker_at(bad).unwrap_err().code, Code::IllegalAccessPoint);
        }
    }
}
