//! What ends a command, and with which exit code.

use posthouse_client::Error;

use crate::broker::StartError;
use crate::doors::listen::ListenError;
use crate::problem::{Kind, Problem};
use crate::store::StoreError;

/// The exit code of a command that was interrupted: that of a shell for SIGINT.
pub const INTERRUPTED: u8 = 130;

/// What ends a command.
#[derive(Debug)]
pub struct Failure {
    /// What to tell; nothing if it is empty.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// A failure of some kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: kind.exit_code() }
    }

    /// The request makes no sense.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Invalid, text)
    }

    /// What is to be made, a topic or a group, is there.
    pub fn exists(what: &str, name: &str) -> Failure {
        let text = format!(
            "there is a {what} {name:?} already; `posthouse {what} set {name}` changes it, \
             --if-missing leaves it as it is"
        );
        Failure::new(Kind::Conflict, text)
    }

    /// A topic or a group is to be changed, and nothing says how.
    pub fn nothing_to_change(what: &str) -> Failure {
        Failure::usage(format!(
            "nothing is given to be changed; `posthouse {what} set --help` shows what can be"
        ))
    }

    /// Somebody pressed Ctrl-C.
    pub fn interrupted(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: INTERRUPTED }
    }

    /// Who reads our output has gone. That is no fault of anybody: `... | head` does it.
    pub fn nobody_reads() -> Failure {
        Failure { text: String::new(), code: 0 }
    }

    /// The output cannot be written.
    pub fn output(error: &std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::nobody_reads();
        }
        Failure { text: format!("cannot write the output: {error}"), code: 1 }
    }

    /// The same with where it happened before it.
    #[must_use]
    pub fn at(mut self, place: impl std::fmt::Display) -> Failure {
        self.text = format!("{place}: {}", self.text);
        self
    }
}

/// The kind of an error that a node, or the way to it, gave.
pub fn kind_of(error: &Error) -> Kind {
    match error {
        Error::Refused(problem) => Kind::of_grpc(problem.status, &problem.code),
        Error::Unreachable(_) => Kind::Unavailable,
        Error::OutcomeUnknown(_) => Kind::Unknown,
        Error::Invalid(_) => Kind::Invalid,
        _ => Kind::Internal,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::new(kind_of(&error), error.to_string())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Error::from(status).into()
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure { text: error.to_string(), code: 1 }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure::new(problem.kind, problem.to_string())
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Failure { text: error.to_string(), code: 1 }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Problem(problem) => problem.into(),
            other => Failure { text: other.to_string(), code: 1 },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::new(Kind::of_store(&error), error.to_string())
    }
}
