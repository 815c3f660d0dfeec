//! Transactions.

use posthouse_client::proto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Message, Outgoing, Time, given, is_zero};
use crate::problem;

/// Messages to prepare.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Who prepares them: whoever goes by the same name is asked about them.
    #[serde(default)]
    pub producer: String,
    /// The messages, each with its topic.
    #[serde(default)]
    pub messages: Vec<Outgoing>,
    /// How long from now the producer is asked for the first time; as the topic of the first
    /// message says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_after: Option<Duration>,
    /// How often it is asked at most; as that topic says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<u32>,
    /// A `dedupe_id` for all of the messages that have none: the same again is the same
    /// transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_id: Option<String>,
}

/// How a transaction is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransactionState {
    /// It waits for a decision.
    Prepared,
    /// The same, and nobody is asked any more.
    Parked,
    /// Its messages have come, or will at their time.
    Committed,
    /// Its messages will not come.
    RolledBack,
}

/// A transaction.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Transaction {
    /// Its id.
    pub id: String,
    /// How it is.
    pub state: TransactionState,
    /// Who prepared it.
    pub producer: String,
    /// When.
    pub prepared_at: Time,
    /// How often the producer was asked, or would have been.
    pub checks: u32,
    /// How often it is asked at most.
    pub max_checks: u32,
    /// When it is asked next, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_check_at: Option<Time>,
    /// When it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Time>,
    /// How many messages it has.
    pub message_count: u64,
    /// Bytes of them, as they are stored.
    pub bytes: u64,
    /// Their topics.
    pub topics: Vec<String>,
    /// The messages; not in a list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<TransactionMessage>,
    /// The content of the first message, when a transaction is asked about or looked at that
    /// waits for a decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_message: Option<Message>,
    /// It had been prepared before under the same publish ids.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicate: bool,
}

/// A message of a transaction.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TransactionMessage {
    /// Its id.
    pub id: String,
    /// Its topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position, if it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// When it comes, if that is a time that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
}

/// A page of transactions that wait for a decision.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Transactions {
    /// In the order in which they came in.
    pub transactions: Vec<Transaction>,
    /// Where to go on, if there are more: the next `after`. A page can be empty and have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Transactions that a producer is asked about.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TransactionChecks {
    /// The checks.
    pub checks: Vec<TransactionCheck>,
}

/// A transaction that its producer is asked about.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TransactionCheck {
    /// The transaction.
    #[serde(flatten)]
    pub transaction: Transaction,
    /// Which check it is, from 1.
    pub check: u32,
}

impl Prepare {
    /// The same for the native interface.
    ///
    /// # Errors
    /// What is wrong with a message.
    pub fn into_proto(self) -> Result<proto::PrepareTransactionRequest, problem::Problem> {
        let messages: Result<_, _> = self.messages.into_iter().map(Outgoing::into_proto).collect();
        Ok(proto::PrepareTransactionRequest {
            producer: self.producer,
            messages: messages?,
            check_after_ms: self.check_after.map(|after| after.0),
            checks: self.checks,
            dedupe_id: self.dedupe_id,
        })
    }
}

impl From<proto::Transaction> for Transaction {
    fn from(of: proto::Transaction) -> Self {
        use proto::TransactionState as Wire;
        let message = |message: proto::TransactionMessage| TransactionMessage {
            id: message.id,
            topic: message.topic,
            partition: message.partition,
            position: message.position,
            deliver_at: message.deliver_at_ms.map(Time),
        };
        Transaction {
            state: match of.state() {
                Wire::Committed => TransactionState::Committed,
                Wire::RolledBack => TransactionState::RolledBack,
                Wire::Parked => TransactionState::Parked,
                Wire::Prepared | Wire::Unspecified => TransactionState::Prepared,
            },
            id: of.id,
            producer: of.producer,
            prepared_at: Time(of.prepared_at_ms),
            checks: of.checks,
            max_checks: of.max_checks,
            next_check_at: of.next_check_at_ms.map(Time),
            decided_at: of.decided_at_ms.map(Time),
            message_count: of.message_count,
            bytes: of.bytes,
            topics: of.topics,
            messages: of.messages.into_iter().map(message).collect(),
            first_message: of.first_message.map(Into::into),
            duplicate: of.duplicate,
        }
    }
}

impl From<proto::ListTransactionsResponse> for Transactions {
    fn from(list: proto::ListTransactionsResponse) -> Self {
        let transactions = list.transactions.into_iter().map(Into::into).collect();
        Transactions { transactions, next: given(list.next) }
    }
}

impl From<proto::TransactionChecks> for TransactionChecks {
    fn from(checks: proto::TransactionChecks) -> Self {
        let check = |check: proto::TransactionCheck| TransactionCheck {
            transaction: check.transaction.unwrap_or_default().into(),
            check: check.check,
        };
        TransactionChecks { checks: checks.checks.into_iter().map(check).collect() }
    }
}
