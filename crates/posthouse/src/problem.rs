//! What can go wrong, as users see it: one vocabulary for every door.
//!
//! A problem has a stable code, says what was wrong, with the value, the limit and
//! the way out. Each door maps [`Kind`] to its own codes, in one exhaustive match
//! ([`Kind::http_status`], [`Kind::grpc_code`]), so the same mistake means the same
//! everywhere.

use std::fmt;

use posthouse_core::catalog::{ConfigError, machine};
use posthouse_core::ident::IdError;
use posthouse_core::message::OutOfBounds;
use posthouse_core::name::NameError;
use posthouse_core::queue::command::{Before, Refusal};

use crate::store::StoreError;

/// The sort of problem: who has to do what about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense; the same again will not either.
    Invalid,
    /// The request is larger than allowed.
    TooLarge,
    /// Nobody has said who asks.
    Unauthenticated,
    /// Whoever asks may not.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The thing is not in the state that the request needs.
    Conflict,
    /// A limit is reached; later it may not be.
    Exhausted,
    /// The disk is full.
    DiskFull,
    /// The server is starting, stopping, or has failed.
    Unavailable,
    /// It was asked for, and nobody can say whether it was done.
    Unknown,
    /// What is stored is damaged.
    Corrupt,
    /// A fault of the server.
    Internal,
}

impl Kind {
    /// The HTTP status.
    pub fn http_status(self) -> u16 {
        match self {
            Kind::Invalid => 400,
            Kind::Unauthenticated => 401,
            Kind::Forbidden => 403,
            Kind::NotFound => 404,
            Kind::Conflict => 409,
            Kind::TooLarge => 413,
            Kind::Exhausted => 429,
            Kind::Corrupt | Kind::Internal => 500,
            Kind::Unavailable => 503,
            Kind::Unknown => 504,
            Kind::DiskFull => 507,
        }
    }

    /// The gRPC status code.
    pub fn grpc_code(self) -> tonic::Code {
        match self {
            Kind::Invalid | Kind::TooLarge => tonic::Code::InvalidArgument,
            Kind::Unauthenticated => tonic::Code::Unauthenticated,
            Kind::Forbidden => tonic::Code::PermissionDenied,
            Kind::NotFound => tonic::Code::NotFound,
            Kind::Conflict => tonic::Code::FailedPrecondition,
            Kind::Exhausted | Kind::DiskFull => tonic::Code::ResourceExhausted,
            Kind::Unavailable => tonic::Code::Unavailable,
            Kind::Unknown => tonic::Code::Unknown,
            Kind::Corrupt => tonic::Code::DataLoss,
            Kind::Internal => tonic::Code::Internal,
        }
    }

    /// What a gRPC status and the code of its problem say: the way back of
    /// [`Kind::grpc_code`], for programs that ask a node.
    pub fn of_grpc(status: tonic::Code, code: &str) -> Kind {
        match status {
            tonic::Code::InvalidArgument if code.ends_with("_too_large") => Kind::TooLarge,
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Kind::Invalid,
            tonic::Code::Unauthenticated => Kind::Unauthenticated,
            tonic::Code::PermissionDenied => Kind::Forbidden,
            tonic::Code::NotFound => Kind::NotFound,
            tonic::Code::FailedPrecondition | tonic::Code::AlreadyExists | tonic::Code::Aborted => {
                Kind::Conflict
            }
            tonic::Code::ResourceExhausted if code == "disk_full" => Kind::DiskFull,
            tonic::Code::ResourceExhausted => Kind::Exhausted,
            tonic::Code::Unavailable => Kind::Unavailable,
            tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => {
                Kind::Unknown
            }
            tonic::Code::DataLoss => Kind::Corrupt,
            tonic::Code::Internal | tonic::Code::Unimplemented | tonic::Code::Ok => Kind::Internal,
        }
    }

    /// What a program that was told so ends with. Scripts can tell apart what was
    /// wrong with the request (2), what is not there (3), what is not allowed (4),
    /// what may work later (5), and what nobody knows (6).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Invalid | Kind::TooLarge => 2,
            Kind::NotFound | Kind::Conflict => 3,
            Kind::Unauthenticated | Kind::Forbidden => 4,
            Kind::Exhausted | Kind::DiskFull | Kind::Unavailable => 5,
            Kind::Unknown => 6,
            Kind::Corrupt | Kind::Internal => 1,
        }
    }
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The sort.
    pub kind: Kind,
    /// What programs can rely on, like `topic_not_found`.
    pub code: &'static str,
    /// What was wrong, in a sentence.
    pub detail: String,
    /// Which part of the request.
    pub about: Option<Box<About>>,
    /// The way out, in a sentence.
    pub hint: Option<Box<str>>,
    /// When it may be worth trying again, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

/// The part of a request that was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub limit: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// The most bytes of a value, and of a sentence about it, that are said back to whoever
/// has sent it.
const VALUE_BYTES: usize = 500;
const DETAIL_BYTES: usize = 2000;

fn clip(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push_str("...");
    }
    text
}

impl Problem {
    /// A problem with a code and a sentence.
    pub fn new(kind: Kind, code: &'static str, detail: impl Into<String>) -> Problem {
        let detail = clip(detail.into(), DETAIL_BYTES);
        Problem { kind, code, detail, about: None, hint: None, retry_after_ms: None }
    }

    /// Names the part of the request, its value, and what it may be.
    #[must_use]
    pub fn with_field(
        mut self,
        field: impl Into<String>,
        value: impl ToString,
        limit: impl Into<String>,
    ) -> Problem {
        let (field, value, limit) =
            (field.into(), clip(value.to_string(), VALUE_BYTES), limit.into());
        self.about = Some(Box::new(About { field, value, limit }));
        self
    }

    /// Names the way out.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into().into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn with_retry(mut self, after_ms: u64) -> Problem {
        self.retry_after_ms = Some(after_ms);
        self
    }

    /// A value that is out of its bounds, or makes no sense.
    pub fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        limit: impl Into<String>,
    ) -> Problem {
        let (field, value, limit) =
            (field.into(), clip(value.to_string(), VALUE_BYTES), limit.into());
        let detail = format!("{field} is {value}: {limit}");
        Problem::new(Kind::Invalid, "invalid_argument", detail).with_field(field, value, limit)
    }

    /// Where to go on in a list is said by nothing but the page before.
    pub fn bad_cursor(text: &str) -> Problem {
        Problem::invalid("after", text, "the `next` of the page before")
    }

    /// There is no topic of that name.
    pub fn no_topic(name: &str) -> Problem {
        Problem::new(Kind::NotFound, "topic_not_found", format!("there is no topic {name:?}"))
            .with_field("topic", name, "the name of a topic")
            .with_hint("create it with PUT /v1/topics/NAME or `posthouse topic create NAME`")
    }

    /// There is no group of that name.
    pub fn no_group(name: &str) -> Problem {
        Problem::new(Kind::NotFound, "group_not_found", format!("there is no group {name:?}"))
            .with_field("group", name, "the name of a group")
            .with_hint("create it with PUT /v1/groups/NAME or `posthouse group create NAME`")
    }

    /// There is no message of that id.
    pub fn no_message(id: &str) -> Problem {
        let detail =
            format!("there is no message {id}: it has been removed by retention or purged");
        Problem::new(Kind::NotFound, "message_not_found", detail)
    }

    /// No message of that name is scheduled for the topic.
    pub fn no_scheduled(topic: &str, name: &str) -> Problem {
        let detail = format!("no message that is to come to topic {topic:?} is called {name:?}");
        Problem::new(Kind::NotFound, "message_not_found", detail)
            .with_field("name", name, "the name of a message that is scheduled")
            .with_hint("it may have come, or been called back")
    }

    /// There is no recurring message of that name.
    pub fn no_recurring(name: &str) -> Problem {
        let detail = format!("there is no recurring message {name:?}");
        Problem::new(Kind::NotFound, "recurring_not_found", detail)
            .with_field("name", name, "the name of a recurring message")
            .with_hint("create it with PUT /v1/recurring/NAME or `posthouse recurring put NAME`")
    }

    /// Another message, `before`, has come under this `dedupe_id`. In a
    /// publish of several, all or nothing, it is the one `at` this place, from 0.
    pub fn dedupe_conflict(before: Before, at: Option<usize>) -> Problem {
        let (detail, field, done) = match at {
            None => (
                "another message has come under this dedupe_id".to_owned(),
                "dedupe_id".to_owned(),
                "this message was not published",
            ),
            Some(at) => (
                format!("another message has come under the dedupe_id of message {at}"),
                format!("messages[{at}].dedupe_id"),
                "nothing was published",
            ),
        };
        let value = match before.is_later {
            false => format!("that of the message at position {}", before.position),
            true => "that of a message that is scheduled".into(),
        };
        Problem::new(Kind::Conflict, "dedupe_conflict", detail)
            .with_field(field, value, "the id of one message only")
            .with_hint(format!("use another dedupe_id for another message; {done}"))
    }

    /// Another message that is to come has this name. In a publish of several, all or
    /// nothing, it is that of the one `at` this place, from 0.
    pub fn name_taken(at: Option<usize>) -> Problem {
        let (whose, field, done) = match at {
            None => ("this name".to_owned(), "name".to_owned(), "this message was not published"),
            Some(at) => (
                format!("the name of message {at}"),
                format!("messages[{at}].name"),
                "nothing was published",
            ),
        };
        let detail = format!("another message that is to come has {whose}");
        Problem::new(Kind::Conflict, "name_taken", detail)
            .with_field(
                field,
                "that of a message that is scheduled",
                "the name of one message only",
            )
            .with_hint(format!(
                "give another name, or let the message replace the one that has it \
                 (name_taken), or keep that; {done}"
            ))
    }

    /// A limit on what is under way is reached.
    pub fn busy(what: impl Into<String>) -> Problem {
        Problem::new(Kind::Exhausted, "too_many_requests", what).with_retry(100)
    }

    /// The server is on its way down.
    pub fn stopping() -> Problem {
        Problem::new(Kind::Unavailable, "stopping", "the server is stopping and takes no new work")
            .with_hint("try again when it is back")
            .with_retry(1_000)
    }

    /// The log has failed: what was asked for may or may not have been done.
    pub fn unknown(error: &str) -> Problem {
        let detail = format!("the disk has failed and the outcome is not known: {error}");
        Problem::new(Kind::Unknown, "outcome_unknown", detail)
            .with_hint("ask again when the server is back, with the same dedupe_id")
    }

    /// What is stored cannot be read.
    pub fn unreadable(error: impl fmt::Display) -> Problem {
        Problem::new(Kind::Corrupt, "unreadable", error.to_string())
            .with_hint("`posthouse data verify` shows what is damaged")
    }

    /// A fault of ours.
    pub fn internal(what: impl Into<String>) -> Problem {
        Problem::new(Kind::Internal, "internal", what)
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Problem {
        Problem::new(Kind::Invalid, "invalid_name", error.to_string())
    }
}

impl From<OutOfBounds> for Problem {
    fn from(error: OutOfBounds) -> Problem {
        Problem::new(Kind::Invalid, "invalid_message", error.to_string()).with_field(
            error.field,
            error.value,
            error.limit,
        )
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Problem {
        Problem::new(Kind::Invalid, "invalid_config", error.to_string()).with_field(
            error.field,
            error.value,
            error.limit,
        )
    }
}

impl From<IdError> for Problem {
    fn from(error: IdError) -> Problem {
        let code = match error {
            IdError::ReceiptForm => "invalid_receipt",
            IdError::Form => "invalid_id",
            IdError::Version(_) | IdError::Foreign => "foreign_id",
        };
        Problem::new(Kind::Invalid, code, error.to_string())
    }
}

impl From<machine::Refusal> for Problem {
    fn from(refusal: machine::Refusal) -> Problem {
        match refusal {
            machine::Refusal::NotFound { kind: "topic", name } => Problem::no_topic(&name),
            machine::Refusal::NotFound { kind: "group", name } => Problem::no_group(&name),
            machine::Refusal::NotFound { kind: "recurring message", name } => {
                Problem::no_recurring(&name)
            }
            machine::Refusal::NotFound { .. } => {
                Problem::new(Kind::NotFound, "user_not_found", refusal.to_string())
            }
            machine::Refusal::Deleting { .. } => {
                Problem::new(Kind::Conflict, "being_deleted", refusal.to_string()).with_retry(100)
            }
            machine::Refusal::Name(error) => error.into(),
            machine::Refusal::Config(error) => error.into(),
            machine::Refusal::Exhausted(_) => {
                Problem::new(Kind::Exhausted, "numbers_exhausted", refusal.to_string())
            }
        }
    }
}

impl Kind {
    /// The sort of what is wrong with a data directory or a copy of one.
    pub fn of_store(error: &StoreError) -> Kind {
        match error {
            StoreError::NoStore { .. } => Kind::NotFound,
            StoreError::NotEmpty { .. } | StoreError::Unfinished { .. } => Kind::Conflict,
            StoreError::Locked { .. } | StoreError::Ended { .. } => Kind::Unavailable,
            StoreError::NoRoom { .. } => Kind::DiskFull,
            StoreError::File(error) if error.is_full() => Kind::DiskFull,
            _ => Kind::Corrupt,
        }
    }
}

/// What a node says of a backup that it could not take.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let detail = error.to_string();
        match error {
            StoreError::NotEmpty { .. } | StoreError::Unfinished { .. } => {
                Problem::new(Kind::Conflict, "directory_not_empty", detail)
            }
            StoreError::NoRoom { .. } => Problem::new(Kind::DiskFull, "disk_full", detail),
            StoreError::File(error) if error.is_full() => {
                Problem::new(Kind::DiskFull, "disk_full", detail)
            }
            StoreError::Locked { .. } | StoreError::Ended { .. } => {
                Problem::new(Kind::Unavailable, "backup_ended", detail)
            }
            StoreError::File(_) => Problem::new(Kind::Invalid, "directory_unusable", detail)
                .with_hint("name a directory that the node's user may write to"),
            _ => Problem::unreadable(detail),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let detail = refusal.to_string();
        match refusal {
            Refusal::NoPartition(_) => Problem::new(Kind::NotFound, "topic_not_found", detail),
            Refusal::NotAttached(_) => Problem::new(Kind::NotFound, "not_subscribed", detail)
                .with_hint("the group has no subscription for this topic"),
            Refusal::Conflict { before, .. } => Problem::dedupe_conflict(before, None),
            Refusal::NameTaken { .. } => Problem::name_taken(None),
            Refusal::NumbersExhausted => Problem::new(Kind::Exhausted, "numbers_exhausted", detail),
            Refusal::PartitionFull(_) => Problem::new(Kind::Exhausted, "partition_full", detail),
            Refusal::NoTransaction => Problem::new(Kind::NotFound, "transaction_not_found", detail)
                .with_hint(
                    "what was decided is remembered for an hour, and of the last 65,536 \
                     transactions of a shard",
                ),
            Refusal::NotRecurring(_) => Problem::new(Kind::Conflict, "not_recurring", detail),
            Refusal::Gone => Problem::new(Kind::Conflict, "gone", detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_the_way_through_a_grpc_status() {
        for (kind, code) in [
            (Kind::Invalid, "invalid_argument"),
            (Kind::TooLarge, "message_too_large"),
            (Kind::TooLarge, "batch_too_large"),
            (Kind::Unauthenticated, "unauthenticated"),
            (Kind::Forbidden, "forbidden"),
            (Kind::NotFound, "topic_not_found"),
            (Kind::Conflict, "gone"),
            (Kind::Exhausted, "too_many"),
            (Kind::DiskFull, "disk_full"),
            (Kind::Unavailable, "stopping"),
            (Kind::Unknown, "outcome_unknown"),
            (Kind::Corrupt, "unreadable"),
            (Kind::Internal, "internal"),
        ] {
            assert_eq!(Kind::of_grpc(kind.grpc_code(), code), kind, "{code}");
        }
    }
}
