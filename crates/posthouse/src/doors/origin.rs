//! Keeps web pages out that a browser on this machine happens to show.
//!
//! A node without users trusts whoever reaches it, and a page from anywhere can make a
//! browser send requests to loopback addresses. Three things tell such a request:
//!
//! - `Origin`, which browsers send with all that a script asks of another site, and with
//!   whatever is not read only: it has to be this node's own.
//! - `Sec-Fetch-Site`, which they send with everything else, an image or a frame too.
//! - The name that was asked for (`Host`): behind a name of somebody else's DNS that
//!   points here, a page is of the same origin, and says neither. So whoever comes over
//!   loopback to a node without users has to ask for an address or for `localhost`.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};

use super::listen::Arrival;
use crate::broker::Broker;
use crate::problem::{Kind, Problem};

/// Refuses a request that a page of another origin makes.
///
/// # Errors
/// `foreign_origin`.
pub fn check(broker: &Broker, request: &Request) -> Result<(), Problem> {
    let host = host_of(request);
    let is_page = request.uri().path() == "/";
    if let Some(origin) = foreign(request.headers(), host, is_page) {
        let detail = format!("a page of {origin} asks, and this node is not of that origin");
        return Err(Problem::new(Kind::Forbidden, "foreign_origin", detail)
            .with_hint("call the node from your server, or put a proxy before both"));
    }
    let is_local = request.extensions().get::<Arrival>().is_some_and(|arrival| arrival.is_loopback);
    let is_named = |host: &&str| !is_here(host) && !is_rocketmq(request, host);
    match host.filter(|host| is_local && is_named(host)) {
        Some(host) if broker.is_open() => {
            let detail = format!(
                "{host} is a name that anybody's DNS can point here, and this node has no users"
            );
            Err(Problem::new(Kind::Forbidden, "foreign_origin", detail)
                .with_hint("ask for 127.0.0.1 or localhost, or give a user of the node a token"))
        }
        _ => Ok(()),
    }
}

fn host_of(request: &Request) -> Option<&str> {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    header.or(request.uri().authority().map(Authority::as_str))
}

/// The origin that asks, if it is another than `host`, or `host` itself if a page asks
/// that was led here by a name. `is_page`: the request is for the page of the node, which
/// a link anywhere may lead to.
fn foreign(headers: &HeaderMap, host: Option<&str>, is_page: bool) -> Option<String> {
    let text = |name: &str| {
        headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let Some(origin) = text("origin") else {
        let site = text("sec-fetch-site")?;
        let is_link = is_page && text("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
        let is_own = matches!(site.as_str(), "same-origin" | "none") || is_link;
        return (!is_own).then(|| format!("another site ({site})"));
    };
    let Some((_, authority)) = origin.split_once("://") else { return Some(origin) };
    let is_own = host == Some(authority) && is_here(authority);
    (!is_own).then(|| authority.to_owned())
}

/// Whether a RocketMQ client asks: some ask for this name, whatever the address they came by.
fn is_rocketmq(request: &Request, host: &str) -> bool {
    host == "IPAuthority" && request.uri().path().starts_with("/apache.rocketmq.v2.")
}

/// Whether a host is an address or `localhost`, and so cannot be anyone's DNS.
fn is_here(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn is_refused(said: &[(&'static str, &'static str)], host: &str, is_page: bool) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        foreign(&headers, Some(host), is_page).is_some()
    }

    #[test]
    fn pages_of_others_are_refused_and_programs_are_not() {
        let origin =
            |origin: &'static str, host: &str| is_refused(&[("origin", origin)], host, false);
        assert!(!is_refused(&[], "127.0.0.1:7650", false));
        assert!(!is_refused(&[], "queue.example", false));
        assert!(!origin("http://127.0.0.1:7650", "127.0.0.1:7650"));
        assert!(!origin("http://localhost:7650", "localhost:7650"));
        assert!(!origin("http://[::1]:7650", "[::1]:7650"));
        assert!(origin("https://evil.example", "127.0.0.1:7650"));
        assert!(origin("http://evil.example:7650", "evil.example:7650"));
        assert!(origin("http://localhost:8080", "localhost:7650"));
        assert!(origin("null", "127.0.0.1:7650"));
    }

    #[test]
    fn what_a_page_of_others_embeds_is_refused_and_a_link_to_the_page_is_not() {
        let site = |site: &'static str, mode: &'static str, is_page: bool| {
            let said = [("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            is_refused(&said, "127.0.0.1:7650", is_page)
        };
        assert!(site("cross-site", "no-cors", false), "an image");
        assert!(site("cross-site", "navigate", false), "a link to a stream of messages");
        assert!(site("same-site", "no-cors", false), "a page on another port of localhost");
        assert!(site("cross-site", "no-cors", true));
        assert!(!site("cross-site", "navigate", true));
        assert!(!site("none", "navigate", false), "typed in");
        assert!(!site("same-origin", "cors", false), "the node's own page");
    }

    #[test]
    fn an_address_or_localhost_is_here_and_a_name_may_be_anywhere() {
        for host in ["127.0.0.1", "127.0.0.1:7650", "[::1]:7650", "LocalHost:1", "a.localhost"] {
            assert!(is_here(host), "{host}");
        }
        for host in ["queue.example", "localhost.evil.example:7650", "1.2.3.4.evil.example", ""] {
            assert!(!is_here(host), "{host}");
        }
    }
}
