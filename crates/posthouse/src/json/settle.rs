//! What consumers say of messages.

use posthouse_client::proto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, given};

/// Messages that are done.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// The receipts that came with them.
    pub receipts: Vec<String>,
}

/// Messages that have to come again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nack {
    /// The receipts that came with them.
    pub receipts: Vec<String>,
    /// How long they wait; as the group's backoff says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Messages that take longer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// The receipts that came with them.
    pub receipts: Vec<String>,
    /// How long their leases are from now; as the group says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Duration>,
}

/// What became of each receipt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Settled {
    /// In the order of the receipts.
    pub results: Vec<SettledReceipt>,
}

/// What became of a receipt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct SettledReceipt {
    /// What.
    pub status: Verdict,
    /// What has happened to the message, if it is not as was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What became of a receipt.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As was asked.
    Ok,
    /// It was done before.
    Already,
    /// Another attempt has followed, or the message was given back.
    Stale,
    /// The receipt is none of this group, or of this store.
    Invalid,
}

impl From<proto::SettleResponse> for Settled {
    fn from(response: proto::SettleResponse) -> Self {
        let result = |result: proto::SettleResult| SettledReceipt {
            status: match result.status() {
                proto::SettleStatus::Ok => Verdict::Ok,
                proto::SettleStatus::Already => Verdict::Already,
                proto::SettleStatus::Stale => Verdict::Stale,
                proto::SettleStatus::Invalid | proto::SettleStatus::Unspecified => Verdict::Invalid,
            },
            detail: given(result.detail),
        };
        Settled { results: response.results.into_iter().map(result).collect() }
    }
}
