//! What requests bring: who asks, JSON, and the parts of the address.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body::Body as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::answer::Refused;
use super::{OTHER_REQUEST_BYTES, REQUEST_BYTES};
use crate::broker::Caller;
use crate::doors::calls::Calls;
use crate::doors::intake::{CutOff, is_publish};
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
        let is_publish = is_publish(request.uri().path());
        let most = if is_publish { REQUEST_BYTES } else { OTHER_REQUEST_BYTES };
        Ok(Of(parse(&whole(request, most).await?)?))
    }
}

/// The whole body of a request of at most so many bytes.
///
/// # Errors
/// If it is too large, or does not come.
pub async fn whole(request: Request, most: usize) -> Result<Bytes, Problem> {
    // What says itself that it is far too large is not waited for. (A client that sends on
    // may miss the answer then, so what is a little too large is read.)
    if request.body().size_hint().lower() > 2 * REQUEST_BYTES as u64 {
        return Err(too_large(most));
    }
    let read = axum::body::to_bytes(request.into_body(), most).await;
    read.map_err(|error| cut_off(&error, most))
}

/// Why a request of at most so many bytes was not read to its end.
pub fn cut_off(error: &axum::Error, most: usize) -> Problem {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return too_large(most);
        }
        if let Some(cut_off) = error.downcast_ref::<CutOff>() {
            return cut_off.problem();
        }
        cause = error.source();
    }
    let detail = format!("the request was not read: {error}");
    Problem::new(Kind::Unavailable, "cut_off", detail).with_retry(1_000)
}

fn too_large(most: usize) -> Problem {
    let detail = format!("a request of this sort has at most {most} bytes");
    Problem::new(Kind::TooLarge, "request_too_large", detail)
        .with_hint("publish in several requests, or as application/x-ndjson")
}

/// Bytes of JSON that are not counted: whatever is in them takes little.
const SMALL_BYTES: usize = 64 << 10;

/// The most lists and objects of a request: twice what the largest publish needs.
const OBJECTS: usize = 60_000;

/// The most entries of all lists and objects of a request.
const ENTRIES: usize = 1_000_000;

/// Refuses JSON that becomes much larger than it is, before any memory is taken for it: an
/// empty object of a list is three bytes, and some hundred as a message.
fn count(body: &[u8]) -> Result<(), Problem> {
    if body.len() <= SMALL_BYTES {
        return Ok(());
    }
    let (mut objects, mut entries, mut in_text, mut is_escaped) = (0, 0, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => objects += 1,
            b',' if !in_text => entries += 1,
            _ => {}
        }
    }
    if objects <= OBJECTS && entries <= ENTRIES {
        return Ok(());
    }
    let detail = format!("a request has at most {OBJECTS} objects and {ENTRIES} entries");
    Err(Problem::new(Kind::TooLarge, "request_too_large", detail)
        .with_hint("ask for less at once, or publish as application/x-ndjson"))
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
    count(body)?;
    let wrong = |detail: String| {
        Problem::new(Kind::Invalid, "invalid_json", detail)
            .with_hint("GET /openapi.json has the fields of every request")
    };
    if body[0] != b'{' {
        return Err(wrong("the body is no JSON object: it does not begin with {".into()));
    }
    serde_json::from_slice(body).map_err(|error| wrong(format!("the body does not fit: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    /// Sixteen megabytes of empty messages became gigabytes before anybody counted them.
    #[test]
    fn json_of_many_entries_is_refused_before_it_is_read() {
        let messages = |one: &str, count: usize| {
            let body = format!("{{\"messages\":[{}]}}", vec![one; count].join(","));
            parse::<json::Publish>(body.as_bytes())
        };
        let full = r#"{"body":"{[,]}\\\",{","tags":["a","b"],"headers":{"a":"b"}}"#;
        assert_eq!(messages(full, 10_000).unwrap().messages.unwrap().len(), 10_000);
        let refused = messages("{}", 100_000).unwrap_err();
        assert_eq!((refused.kind, refused.code), (Kind::TooLarge, "request_too_large"));
        let receipts = format!("{{\"receipts\":[{}]}}", vec!["\"\""; 1_100_000].join(","));
        assert_eq!(parse::<json::Ack>(receipts.as_bytes()).unwrap_err().code, "request_too_large");
    }
}
