//! The stream of checks of transactions.

use std::collections::VecDeque;

use futures_util::stream::{self, BoxStream};
use posthouse_client::proto::{
    CheckTransactionsRequest, TakeTransactionChecksRequest, TransactionCheck,
};
use tonic::Status;

use super::status;
use crate::broker::{Caller, bounds};
use crate::doors::calls::Calls;

/// What leaves before more is taken, and whether the stream has come to its end.
type Rest = (VecDeque<TransactionCheck>, bool);

/// Checks of a producer, as long as somebody reads: none is taken before the last one has
/// left.
pub(super) fn checks(
    calls: Calls,
    caller: Caller,
    request: CheckTransactionsRequest,
) -> BoxStream<'static, Result<TransactionCheck, Status>> {
    let CheckTransactionsRequest { producer, topic } = request;
    let wait_ms = bounds::WAIT.as_millis() as u64;
    let take = TakeTransactionChecksRequest { producer, topic, max: 0, wait_ms };
    let ask = (calls, caller, take);
    let rest: Rest = (VecDeque::new(), false);
    Box::pin(stream::unfold((ask, rest), |(ask, (mut taken, ended))| async move {
        let (calls, caller, take) = &ask;
        while taken.is_empty() && !ended {
            // The stream may have been open for long: the caller is looked at again.
            let found = match calls.broker.identify_again(caller) {
                Ok(caller) => calls.take_transaction_checks(&caller, take.clone()).await,
                Err(problem) => Err(problem),
            };
            match found {
                Ok(found) => taken.extend(found.checks),
                Err(problem) => return Some((Err(status(problem)), (ask, (taken, true)))),
            }
        }
        let check = taken.pop_front()?;
        Some((Ok(check), (ask, (taken, ended))))
    }))
}
