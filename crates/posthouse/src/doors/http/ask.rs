//! What requests bring: who asks, JSON, and the parts of the address.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body::Body as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::REQUEST_BYTES;
use super::answer::Refused;
use crate::broker::Caller;
use crate::doors::calls::Calls;
use crate::doors::intake::CutOff;
use crate::problem::{Kind, Problem};

/// Who asks.
pub struct Who(pub Caller);

impl FromRequestParts<Calls> for Who {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, calls: &Calls) -> Result<Self, Refused> {
        let header = parts.headers.get(header::AUTHORIZATION);
        Ok(Who(calls.caller(header.and_then(|value| value.to_str().ok()))?))
    }
}

/// One part of the path, or several in a tuple.
pub struct At<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(at) = path.map_err(|error| {
            Problem::new(Kind::Invalid, "invalid_path", error.body_text())
                .with_hint("names are letters, digits and ._- ; escape others as in %25dead.NAME")
        })?;
        Ok(At(at))
    }
}

/// The parameters behind the question mark.
pub struct Params<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let Query(params) = Query::try_from_uri(&parts.uri).map_err(|error| {
            let value = parts.uri.query().unwrap_or_default();
            let text = error.body_text();
            let what = text.strip_prefix("Failed to deserialize query string: ");
            Problem::invalid("query", value, what.unwrap_or(&text))
        })?;
        Ok(Params(params))
    }
}

/// A page of a list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PageOf {
    /// Only names that begin so.
    #[serde(default)]
    pub prefix: String,
    /// The name of the last one of the page before.
    #[serde(default)]
    pub after: String,
    /// At most so many; 100 by default, 1000 at most.
    #[serde(default)]
    pub limit: u32,
}

/// The whole body of a request, in JSON. An empty body is an empty object.
pub struct Of<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Calls> for Of<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &Calls) -> Result<Self, Refused> {
        Ok(Of(parse(&whole(request).await?)?))
    }
}

/// The whole body of a request.
///
/// # Errors
/// If it is too large, or does not come.
pub async fn whole(request: Request) -> Result<Bytes, Problem> {
    // What says itself that it is far too large is not waited for. (A client that sends on
    // may miss the answer then, so what is a little too large is read.)
    if request.body().size_hint().lower() > 2 * REQUEST_BYTES as u64 {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(request.into_body(), REQUEST_BYTES).await;
    read.map_err(|error| cut_off(&error))
}

/// Why a request was not read to its end.
pub fn cut_off(error: &axum::Error) -> Problem {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return too_large();
        }
        if let Some(cut_off) = error.downcast_ref::<CutOff>() {
            return cut_off.problem();
        }
        cause = error.source();
    }
    Problem::new(Kind::Unavailable, "cut_off", format!("the request was not read: {error}"))
}

fn too_large() -> Problem {
    let detail = format!("a request has at most {REQUEST_BYTES} bytes");
    Problem::new(Kind::TooLarge, "request_too_large", detail)
        .with_hint("publish in several requests, or as application/x-ndjson")
}

/// JSON as `T`.
///
/// # Errors
/// What does not fit, and where.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let body = match body.trim_ascii() {
        b"" => b"{}",
        body => body,
    };
    let wrong = |detail: String| {
        Problem::new(Kind::Invalid, "invalid_json", detail)
            .with_hint("GET /openapi.json has the fields of every request")
    };
    if body[0] != b'{' {
        return Err(wrong("the body is no JSON object: it does not begin with {".into()));
    }
    serde_json::from_slice(body).map_err(|error| wrong(format!("the body does not fit: {error}")))
}
