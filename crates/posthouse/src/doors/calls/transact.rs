//! Transactions.

use std::time::Duration;

use posthouse_client::proto;
use posthouse_core::UnixMs;

use super::publish::bytes_of;
use super::{Calls, convert, manage};
use crate::broker::Caller;
use crate::broker::transact::{AskChecks, Check, Ended, Listing, State, Terms, Transaction};
use crate::problem::{Kind, Problem};

/// How many checks are taken unless the request says otherwise.
const CHECKS: usize = 10;

/// What was not decided as was asked is an error, so that nobody takes it for done.
fn decided(ended: &Ended, wanted: State) -> Result<proto::Transaction, Problem> {
    let of = &ended.transaction;
    if of.state == wanted {
        return Ok(transaction(of));
    }
    let at = of.decided_at.map_or(0, |at| at.0);
    let refuse = |code, how: &str| {
        let detail = format!("transaction {} was {how} before", of.id);
        let problem = Problem::new(Kind::Conflict, code, detail);
        problem.with_field("decided_at", at, "what is decided is final")
    };
    Err(match of.state {
        State::Committed => refuse("already_committed", "committed"),
        _ => refuse("already_rolled_back", "rolled back"),
    })
}

fn transaction(of: &Transaction) -> proto::Transaction {
    use proto::TransactionState as Wire;
    let state = match of.state {
        State::Prepared => Wire::Prepared,
        State::Parked => Wire::Parked,
        State::Committed => Wire::Committed,
        State::RolledBack => Wire::RolledBack,
    };
    let ms = |at: Option<UnixMs>| at.map(|at| at.0);
    let messages = of.parts.iter().map(|part| proto::TransactionMessage {
        id: part.id.to_string(),
        topic: part.topic.to_string(),
        partition: part.partition,
        position: part.position,
        deliver_at_ms: ms(part.due),
    });
    proto::Transaction {
        id: of.id.to_string(),
        state: state.into(),
        producer: of.producer.to_string(),
        prepared_at_ms: of.prepared_at.0,
        checks: of.checks.into(),
        max_checks: of.most_checks.into(),
        next_check_at_ms: ms(of.next_check),
        decided_at_ms: ms(of.decided_at),
        message_count: of.messages,
        bytes: of.bytes,
        topics: of.topics.iter().map(|topic| topic.to_string()).collect(),
        messages: messages.collect(),
        first_message: None,
        duplicate: false,
    }
}

fn check(check: &Check) -> Result<proto::TransactionCheck, Problem> {
    let mut of = transaction(&check.transaction);
    of.first_message = check.message.as_ref().map(convert::prepared).transpose()?;
    Ok(proto::TransactionCheck { transaction: Some(of), check: check.check.into() })
}

impl Calls {
    pub(in crate::doors) async fn prepare_transaction(
        &self,
        caller: &Caller,
        request: proto::PrepareTransactionRequest,
    ) -> Result<proto::Transaction, Problem> {
        let messages = request.messages;
        let publish = proto::PublishRequest { topic: String::new(), messages, apart: false };
        let permit = self.broker.permit(bytes_of(&publish))?;
        let outbox = self.fill(caller, &publish, permit).await?;
        let terms = Terms {
            producer: request.producer,
            check_after_ms: request.check_after_ms,
            checks: request.checks.map(convert::checks).transpose()?,
            dedupe_id: request.dedupe_id,
        };
        let (prepared, duplicate) = self.broker.prepare(outbox, &terms).await?;
        Ok(proto::Transaction { duplicate, ..transaction(&prepared) })
    }

    pub(in crate::doors) async fn commit_transaction(
        &self,
        caller: &Caller,
        request: proto::TransactionRequest,
    ) -> Result<proto::Transaction, Problem> {
        decided(&self.broker.commit(caller, &request.id).await?, State::Committed)
    }

    pub(in crate::doors) async fn rollback_transaction(
        &self,
        caller: &Caller,
        request: proto::TransactionRequest,
    ) -> Result<proto::Transaction, Problem> {
        decided(&self.broker.rollback(caller, &request.id).await?, State::RolledBack)
    }

    pub(in crate::doors) async fn get_transaction(
        &self,
        caller: &Caller,
        request: proto::TransactionRequest,
    ) -> Result<proto::Transaction, Problem> {
        let (of, message) = self.broker.transaction(caller, &request.id).await?;
        let first_message = message.as_ref().map(convert::prepared).transpose()?;
        Ok(proto::Transaction { first_message, ..transaction(&of) })
    }

    pub(in crate::doors) async fn list_transactions(
        &self,
        caller: &Caller,
        request: proto::ListTransactionsRequest,
    ) -> Result<proto::ListTransactionsResponse, Problem> {
        let given = |text: String| (!text.is_empty()).then_some(text);
        let listing = Listing {
            is_parked: request.parked,
            producer: given(request.producer),
            topic: given(request.topic),
            after: given(request.after).map(|after| after.parse()).transpose()?,
            limit: manage::page(request.limit),
        };
        let (found, next) = self.broker.transactions(caller, &listing).await?;
        Ok(proto::ListTransactionsResponse {
            transactions: found.iter().map(transaction).collect(),
            next: next.map_or_else(String::new, |next| next.to_string()),
        })
    }

    pub(in crate::doors) async fn take_transaction_checks(
        &self,
        caller: &Caller,
        request: proto::TakeTransactionChecksRequest,
    ) -> Result<proto::TransactionChecks, Problem> {
        let ask = AskChecks {
            producer: request.producer,
            topic: (!request.topic.is_empty()).then_some(request.topic),
            max: if request.max == 0 { CHECKS } else { request.max as usize },
            wait: Duration::from_millis(request.wait_ms),
        };
        let checks: Result<_, Problem> =
            self.broker.checks(caller, &ask).await?.iter().map(check).collect();
        Ok(proto::TransactionChecks { checks: checks? })
    }
}
