//! Problems: RFC 9457, with what programs need.

use posthouse_client::proto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::given;

/// Something that went wrong (`application/problem+json`, RFC 9457).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// What programs can rely on.
    #[schema(example = "topic_not_found")]
    pub code: String,
    /// What sort of problem it is: the text of the HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What was wrong, in a sentence.
    pub detail: String,
    /// Which part of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When it may be worth trying again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl From<proto::Problem> for Problem {
    fn from(problem: proto::Problem) -> Self {
        Problem {
            code: problem.code,
            title: None,
            status: None,
            detail: problem.detail,
            field: given(problem.field),
            value: given(problem.value),
            limit: given(problem.limit),
            hint: given(problem.hint),
            retry_after_ms: problem.retry_after_ms,
        }
    }
}
