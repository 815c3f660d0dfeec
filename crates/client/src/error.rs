//! What can go wrong.

use prost::Message as _;

use crate::proto;

/// A problem that the server has named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What programs can rely on, like `topic_not_found`.
    pub code: String,
    /// What was wrong, in a sentence.
    pub detail: String,
    /// The way out; may be empty.
    pub hint: String,
    /// When it may be worth trying again.
    pub retry_after: Option<std::time::Duration>,
    /// The gRPC status code.
    pub status: tonic::Code,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl From<proto::Problem> for Problem {
    fn from(problem: proto::Problem) -> Self {
        Problem {
            code: problem.code,
            detail: problem.detail,
            hint: problem.hint,
            retry_after: problem.retry_after_ms.map(std::time::Duration::from_millis),
            status: tonic::Code::from_i32(problem.status),
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused, and said why.
    #[error("{0}")]
    Refused(Problem),
    /// The connection could not be made, or broke before anything was sent.
    #[error("cannot reach the server: {0}")]
    Unreachable(String),
    /// The connection broke, or the server failed, while the request was under way:
    /// nobody can say whether it was done.
    #[error("nobody knows whether it was done: {0}")]
    OutcomeUnknown(String),
    /// The address or an option makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The publisher or the consumer has been closed.
    #[error("it has been closed")]
    Closed,
}

impl Error {
    /// Whether the same call may work later, and could not have done anything now.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Refused(problem) => {
                problem.retry_after.is_some() || problem.status == tonic::Code::Unavailable
            }
            Error::Unreachable(_) => true,
            Error::OutcomeUnknown(_) | Error::Invalid(_) | Error::Closed => false,
        }
    }

    /// Whether the server takes no work: it is starting, stopping, or has failed.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Error::Refused(problem) if problem.status == tonic::Code::Unavailable)
    }

    /// Whether what was asked for may have been done.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Error::Refused(problem) => problem.code == "outcome_unknown",
            Error::OutcomeUnknown(_) => true,
            _ => false,
        }
    }

    /// The code of the problem, if the server has named one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Refused(problem) => Some(&problem.code),
            _ => None,
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        if let Some(problem) = problem_of(&status) {
            return Error::Refused(problem);
        }
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::Unavailable if status.source_is_connect() => Error::Unreachable(message),
            tonic::Code::Unavailable
            | tonic::Code::Unknown
            | tonic::Code::Internal
            | tonic::Code::Cancelled
            | tonic::Code::DeadlineExceeded => Error::OutcomeUnknown(message),
            code => Error::Refused(Problem {
                code: format!("{code:?}").to_lowercase(),
                detail: message,
                hint: String::new(),
                retry_after: None,
                status: code,
            }),
        }
    }
}

trait Source {
    fn source_is_connect(&self) -> bool;
}

impl Source for tonic::Status {
    /// Whether the connection was never made.
    fn source_is_connect(&self) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if error.is::<tonic::ConnectError>() {
                return true;
            }
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return io.kind() == std::io::ErrorKind::ConnectionRefused;
            }
            source = error.source();
        }
        false
    }
}

/// `google.rpc.Status`, as it stands in the details of a gRPC status: see "Richer error
/// model" in the gRPC documentation.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

const PROBLEM_URL: &str = "type.googleapis.com/posthouse.v1.Problem";

fn problem_of(status: &tonic::Status) -> Option<Problem> {
    let rpc = RpcStatus::decode(status.details()).ok()?;
    let any = rpc.details.into_iter().find(|any| any.type_url == PROBLEM_URL)?;
    Some(proto::Problem::decode(any.value.as_slice()).ok()?.into())
}

/// A gRPC status with a problem in its details; for servers.
pub fn rpc_status(problem: &proto::Problem) -> tonic::Status {
    let message = match problem.hint.as_str() {
        "" => problem.detail.clone(),
        hint => format!("{}; {hint}", problem.detail),
    };
    let any = prost_types::Any { type_url: PROBLEM_URL.into(), value: problem.encode_to_vec() };
    let rpc = RpcStatus { code: problem.status, message: message.clone(), details: vec![any] };
    tonic::Status::with_details(
        tonic::Code::from_i32(problem.status),
        message,
        rpc.encode_to_vec().into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_way_through_a_status() {
        let problem = proto::Problem {
            code: "topic_not_found".into(),
            detail: "there is no topic \"x\"".into(),
            hint: "create it".into(),
            retry_after_ms: Some(100),
            status: tonic::Code::NotFound as i32,
            ..Default::default()
        };
        let error = Error::from(rpc_status(&problem));
        assert_eq!(error.to_string(), "there is no topic \"x\"; create it");
        assert_eq!(error.code(), Some("topic_not_found"));
        assert!(error.is_retryable() && !error.is_outcome_unknown());
    }

    #[test]
    fn a_code_of_grpc_without_a_problem_is_told_apart_too() {
        use tonic::Code;
        for (code, is_unknown, is_refused) in [
            (Code::Unknown, true, false),
            (Code::Internal, true, false),
            (Code::Cancelled, true, false),
            (Code::DeadlineExceeded, true, false),
            (Code::Unimplemented, false, true),
            (Code::OutOfRange, false, true),
        ] {
            let error = Error::from(tonic::Status::new(code, "what it says"));
            assert_eq!(error.is_outcome_unknown(), is_unknown, "{code:?}");
            assert_eq!(matches!(error, Error::Refused(_)), is_refused, "{code:?}");
            assert!(!error.is_retryable(), "{code:?}");
        }
    }

    #[test]
    fn a_break_in_the_middle_leaves_the_outcome_unknown() {
        let error = Error::from(tonic::Status::unavailable("broken pipe"));
        assert!(error.is_outcome_unknown() && !error.is_retryable());
    }
}
