//! Answers: problems as `application/problem+json` (RFC 9457), everything else as JSON.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::doors::calls::convert;
use crate::json;
use crate::problem::{Kind, Problem};

/// A request that was refused.
#[derive(Debug)]
pub struct Refused(pub Problem);

/// What a route answers.
pub type Answer<T> = Result<Json<T>, Refused>;

/// Turns what a call gave into an answer.
pub fn answer<T, U: From<T>>(done: Result<T, Problem>) -> Answer<U> {
    Ok(Json(done?.into()))
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Refused(problem)
    }
}

/// A problem in JSON, with the HTTP status.
pub fn problem(problem: &Problem) -> json::Problem {
    json_with(problem, status_of(problem))
}

fn status_of(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn json_with(problem: &Problem, status: StatusCode) -> json::Problem {
    json::Problem {
        title: status.canonical_reason().map(str::to_owned),
        status: Some(status.as_u16()),
        ..convert::problem(problem).into()
    }
}

/// A problem as a response.
pub fn with_status(problem: &Problem, status: StatusCode) -> Response {
    let mut response = (status, Json(json_with(problem, status))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(ms) = problem.retry_after_ms {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    if problem.kind == Kind::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        with_status(&self.0, status_of(&self.0))
    }
}

/// Whether a request is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
