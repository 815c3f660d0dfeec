//! Answers: problems as `application/problem+json` (RFC 9457), everything else as JSON.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
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

/// The same of a call that makes something or changes it: the status says which.
pub fn made<T, U: From<T>>(created: bool, what: T) -> Result<(StatusCode, Json<U>), Refused> {
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(what.into())))
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

/// When to come back if the problem does not say: somebody may have to do something first.
const RETRY_SECONDS: u64 = 60;

fn retry_after(problem: &Problem, status: StatusCode) -> Option<u64> {
    let is_for_now =
        matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let said = problem.retry_after_ms.map(|ms| ms.div_ceil(1000));
    said.or_else(|| is_for_now.then_some(RETRY_SECONDS))
}

/// A problem as a response.
pub fn with_status(problem: &Problem, status: StatusCode) -> Response {
    let mut response = (status, Json(json_with(problem, status))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = retry_after(problem, status) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_put_off_is_told_for_how_long() {
        let retry = |kind, after: Option<u64>| {
            let problem = Problem { retry_after_ms: after, ..Problem::new(kind, "code", "") };
            retry_after(&problem, status_of(&problem))
        };
        assert_eq!(retry(Kind::Exhausted, Some(100)), Some(1));
        assert_eq!(retry(Kind::Exhausted, None), Some(60), "too many topics");
        assert_eq!(retry(Kind::Unavailable, None), Some(60));
        assert_eq!(retry(Kind::DiskFull, Some(5_000)), Some(5));
        assert_eq!(retry(Kind::Invalid, None), None);
    }
}
