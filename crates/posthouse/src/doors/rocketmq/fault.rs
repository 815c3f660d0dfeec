//! Problems as the codes that RocketMQ clients act on.

use super::pb::{Code, Status};
use crate::problem::{Kind, Problem};

/// Why a call, or an entry of it, was not done.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What clients decide on.
    pub code: Code,
    /// What was wrong, for people.
    pub text: String,
}

impl Fault {
    /// A fault with a sentence.
    pub fn new(code: Code, text: impl Into<String>) -> Fault {
        Fault { code, text: text.into() }
    }

    /// The same problem, under the code that this part of the request has.
    pub fn coded(code: Code, problem: &Problem) -> Fault {
        Fault::new(code, problem.to_string())
    }

    /// As it stands in a response.
    pub fn status(&self) -> Status {
        Status { code: self.code.into(), message: self.text.clone() }
    }

    /// For a stream of commands, which has no other way to say what was wrong: the number
    /// of the code stands before the sentence.
    pub fn grpc(&self) -> tonic::Status {
        let text = format!("{}: {}", self.code as i32, self.text);
        match self.code {
            Code::Unauthorized => tonic::Status::unauthenticated(text),
            Code::Forbidden => tonic::Status::permission_denied(text),
            Code::TooManyRequests => tonic::Status::resource_exhausted(text),
            Code::HaNotAvailable => tonic::Status::unavailable(text),
            _ => tonic::Status::invalid_argument(text),
        }
    }
}

/// That it was done.
pub fn ok() -> Status {
    Status { code: Code::Ok.into(), message: "OK".into() }
}

/// What a list of results comes to: their code if they have one in common.
pub fn sum<'a>(results: impl IntoIterator<Item = &'a Status>) -> Status {
    let mut results = results.into_iter();
    let Some(first) = results.next() else { return ok() };
    match results.all(|other| other.code == first.code) {
        true => first.clone(),
        false => Status {
            code: Code::MultipleResults.into(),
            message: "not all was done: see the entries".into(),
        },
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Fault {
        let field = problem.about.as_deref().map_or("", |about| about.field.as_str());
        let code = match (problem.code, field) {
            ("topic_not_found", _) => Code::TopicNotFound,
            ("group_not_found" | "not_subscribed", _) => Code::ConsumerGroupNotFound,
            ("message_not_found" | "already_fired" | "already_cancelled", _) => {
                Code::MessageNotFound
            }
            ("system_topic" | "invalid_name", _) => Code::IllegalTopic,
            ("message_too_large", _) => Code::MessageBodyTooLarge,
            ("batch_too_large", _) => Code::PayloadTooLarge,
            ("invalid_receipt" | "other_group", _) => Code::InvalidReceiptHandle,
            ("invalid_id" | "foreign_id" | "not_scheduled" | "dedupe_conflict", _) => {
                Code::IllegalMessageId
            }
            ("transaction_not_found", _) => Code::InvalidTransactionId,
            ("delays_off" | "wrong_sort", _) => Code::MessagePropertyConflictWithType,
            ("invalid_message", "key") => Code::IllegalMessageGroup,
            ("invalid_message", "tags") => Code::IllegalMessageTag,
            ("invalid_message", "headers") => Code::MessagePropertiesTooLarge,
            ("invalid_message", "dedupe_id") => Code::IllegalMessageId,
            (_, "deliver_at" | "delay") => Code::IllegalDeliveryTime,
            (_, "lease") => Code::IllegalInvisibleTime,
            ("invalid_config", "subscriptions.filter") => Code::IllegalFilterExpression,
            _ => match problem.kind {
                Kind::Invalid | Kind::Conflict => Code::BadRequest,
                Kind::TooLarge => Code::PayloadTooLarge,
                Kind::Unauthenticated => Code::Unauthorized,
                Kind::Forbidden => Code::Forbidden,
                Kind::NotFound => Code::NotFound,
                // Clients wait a while after this one, which is what a full disk needs too.
                Kind::Exhausted | Kind::DiskFull => Code::TooManyRequests,
                Kind::Unavailable => Code::HaNotAvailable,
                Kind::Unknown => Code::MasterPersistenceTimeout,
                Kind::Corrupt | Kind::Internal => Code::InternalServerError,
            },
        };
        Fault::new(code, problem.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_one_sort_are_that_sort_and_others_are_multiple() {
        let fault = |code| Fault::new(code, "").status();
        assert_eq!(sum(&[]).code, Code::Ok as i32);
        assert_eq!(sum(&[ok(), ok()]).code, Code::Ok as i32);
        let handles = [fault(Code::InvalidReceiptHandle), fault(Code::InvalidReceiptHandle)];
        assert_eq!(sum(&handles).code, Code::InvalidReceiptHandle as i32);
        assert_eq!(sum(&[ok(), handles[0].clone()]).code, Code::MultipleResults as i32);
    }
}
