//! Keeps web pages out that a browser on this machine happens to show.
//!
//! A node without users trusts whoever reaches it, and a page from anywhere can make a
//! browser send requests to loopback addresses. Browsers say which page asks (`Origin`),
//! and to which name (`Host`): the first has to be this node's own, and the second no
//! name that somebody else's DNS has pointed here.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Refused;
use crate::problem::{Kind, Problem};

/// Refuses requests that a page of another origin makes.
pub async fn check(request: Request, next: Next) -> Response {
    let host = host_of(&request);
    match foreign(request.headers(), host.as_deref()) {
        None => next.run(request).await,
        Some(origin) => {
            let detail = format!("a page of {origin} asks, and this node is not of that origin");
            let problem = Problem::new(Kind::Forbidden, "foreign_origin", detail)
                .with_hint("call the node from your server, or put a proxy before both");
            Refused(problem).into_response()
        }
    }
}

fn host_of(request: &Request) -> Option<String> {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    header.or(request.uri().authority().map(Authority::as_str)).map(str::to_owned)
}

/// The origin that asks, if it is another than `host`, or `host` itself if a page asks
/// that was led here by a name.
fn foreign(headers: &HeaderMap, host: Option<&str>) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?;
    let Some(authority) = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|o| o.1)
    else {
        return Some(String::from_utf8_lossy(origin.as_bytes()).into_owned());
    };
    let is_own = host == Some(authority) && is_here(authority);
    (!is_own).then(|| authority.to_owned())
}

/// Whether a host is an address or `localhost`, and so cannot be anyone's DNS.
fn is_here(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn is_refused(origin: Option<&'static str>, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        foreign(&headers, Some(host)).is_some()
    }

    #[test]
    fn pages_of_others_are_refused_and_programs_are_not() {
        assert!(!is_refused(None, "127.0.0.1:7650"));
        assert!(!is_refused(None, "queue.example"));
        assert!(!is_refused(Some("http://127.0.0.1:7650"), "127.0.0.1:7650"));
        assert!(!is_refused(Some("http://localhost:7650"), "localhost:7650"));
        assert!(!is_refused(Some("http://[::1]:7650"), "[::1]:7650"));
        assert!(is_refused(Some("https://evil.example"), "127.0.0.1:7650"));
        assert!(is_refused(Some("http://evil.example:7650"), "evil.example:7650"));
        assert!(is_refused(Some("http://localhost:8080"), "localhost:7650"));
        assert!(is_refused(Some("null"), "127.0.0.1:7650"));
    }
}
