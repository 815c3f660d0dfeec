//! Transactions: messages that come together when that is decided, or not at all.

use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _};

use crate::message::time;
use crate::{Client, Delivery, Error, Message, proto};

/// Messages to prepare: see [`Client::prepare`].
#[derive(Clone, Debug, Default)]
pub struct Prepare(proto::PrepareTransactionRequest);

impl Prepare {
    /// By a producer: whoever goes by the same name is asked about the transaction, see
    /// [`Client::checks`].
    pub fn by(producer: impl Into<String>) -> Self {
        let producer = producer.into();
        Prepare(proto::PrepareTransactionRequest { producer, ..Default::default() })
    }

    /// Adds a message for a topic.
    #[must_use]
    pub fn message(mut self, topic: impl Into<String>, message: impl Into<Message>) -> Self {
        self.0.messages.push(message.into().topic(topic).0);
        self
    }

    /// How long from now the producer is asked for the first time, instead of what the topic
    /// of the first message says.
    #[must_use]
    pub fn check_after(mut self, after: Duration) -> Self {
        self.0.check_after_ms = Some(after.as_millis() as u64);
        self
    }

    /// How often it is asked at most, instead of what that topic says.
    #[must_use]
    pub fn checks(mut self, most: u32) -> Self {
        self.0.checks = Some(most);
        self
    }

    /// An id of yours: the same messages under the same id are the same transaction.
    #[must_use]
    pub fn dedupe_id(mut self, id: impl Into<String>) -> Self {
        self.0.dedupe_id = Some(id.into());
        self
    }
}

/// How a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Transaction {
    /// Its id.
    pub id: String,
    /// How it is.
    pub state: TransactionState,
    /// Who prepared it.
    pub producer: String,
    /// When.
    pub prepared_at: SystemTime,
    /// When it was decided.
    pub decided_at: Option<SystemTime>,
    /// Its messages, in the order in which they were given when they were prepared.
    pub messages: Vec<TransactionMessage>,
    /// The content of the first message, when one is asked about it.
    pub first_message: Option<Delivery>,
    /// It had been prepared before under the same publish ids.
    pub duplicate: bool,
}

/// A message of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionMessage {
    /// Its id, which it keeps.
    pub id: String,
    /// Its topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position, if it has come.
    pub position: Option<u64>,
    /// When it comes, if that is a time that is known.
    pub deliver_at: Option<SystemTime>,
}

impl From<proto::Transaction> for Transaction {
    fn from(of: proto::Transaction) -> Self {
        use proto::TransactionState as Wire;
        let message = |message: proto::TransactionMessage| TransactionMessage {
            id: message.id,
            topic: message.topic,
            partition: message.partition,
            position: message.position,
            deliver_at: message.deliver_at_ms.map(time),
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
            prepared_at: time(of.prepared_at_ms),
            decided_at: of.decided_at_ms.map(time),
            messages: of.messages.into_iter().map(message).collect(),
            first_message: of.first_message.map(Into::into),
            duplicate: of.duplicate,
        }
    }
}

/// A transaction that its producer is asked about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check {
    /// The transaction.
    pub transaction: Transaction,
    /// Which check it is, from 1.
    pub check: u32,
}

impl Client {
    /// Takes messages in that nobody gets until [`Client::commit`]; durable when it returns.
    ///
    /// # Errors
    /// See [`Error`]. After one that leaves it open whether it was done, prepare again with
    /// the same [`Prepare::dedupe_id`], or wait to be asked.
    pub async fn prepare(&self, prepare: Prepare) -> Result<Transaction, Error> {
        Ok(self.raw().prepare_transaction(prepare.0).await?.into_inner().into())
    }

    /// Lets the messages of a transaction come. Again is no error, also not after one that
    /// left it open whether it was done.
    ///
    /// # Errors
    /// See [`Error`]; `already_rolled_back` if that was decided before.
    pub async fn commit(&self, id: impl Into<String>) -> Result<Transaction, Error> {
        let request = proto::TransactionRequest { id: id.into() };
        Ok(self.raw().commit_transaction(request).await?.into_inner().into())
    }

    /// Lets the messages of a transaction go.
    ///
    /// # Errors
    /// See [`Error`]; `already_committed` if that was decided before.
    pub async fn rollback(&self, id: impl Into<String>) -> Result<Transaction, Error> {
        let request = proto::TransactionRequest { id: id.into() };
        Ok(self.raw().rollback_transaction(request).await?.into_inner().into())
    }

    /// A transaction, and what became of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transaction(&self, id: impl Into<String>) -> Result<Transaction, Error> {
        let request = proto::TransactionRequest { id: id.into() };
        Ok(self.raw().get_transaction(request).await?.into_inner().into())
    }

    /// Transactions of a producer that wait for a decision longer than they should, as long
    /// as the stream is read: answer with [`Client::commit`], [`Client::rollback`], or not
    /// yet. With a `topic` only those whose first message is for it. The stream ends with
    /// the first error, or with the node: ask again then.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn checks(
        &self,
        producer: &str,
        topic: Option<&str>,
    ) -> Result<impl Stream<Item = Result<Check, Error>> + Send + use<>, Error> {
        let (producer, topic) = (producer.to_owned(), topic.unwrap_or_default().to_owned());
        let request = proto::CheckTransactionsRequest { producer, topic };
        let checks = self.raw().check_transactions(request).await?.into_inner();
        Ok(checks.map(|check| {
            let check = check?;
            let transaction = check.transaction.unwrap_or_default().into();
            Ok(Check { transaction, check: check.check })
        }))
    }
}
