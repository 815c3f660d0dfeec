//! Values on the command line that several commands take.

use crate::json::{StartName, Time};
use crate::shard::clock::wall_ms;
use crate::units;

/// A moment in Unix milliseconds: a time, or a duration for so long ago.
///
/// # Errors
/// What is expected instead.
pub fn moment(text: &str) -> Result<u64, String> {
    moment_at(text, wall_ms())
}

fn moment_at(text: &str, now_ms: u64) -> Result<u64, String> {
    if let Ok(ago) = units::duration_ms(text) {
        return Ok(now_ms.saturating_sub(ago));
    }
    units::time_ms(text).map_err(|_| {
        "a time like 2026-11-21T08:30:00Z, or how long ago, like 15m, is expected".to_owned()
    })
}

/// Where a group begins, or goes on: `earliest`, `latest` or a [`moment`].
///
/// # Errors
/// What is expected instead.
pub fn start(text: &str) -> Result<StartName, String> {
    match text {
        "earliest" => Ok(StartName::Earliest),
        "latest" => Ok(StartName::Latest),
        time => moment(time)
            .map(|ms| StartName::Time(Time(ms)))
            .map_err(|what| format!("earliest, latest, or {what}")),
    }
}

/// `NAME=VALUE`.
///
/// # Errors
/// What is expected instead.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE is expected".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        assert_eq!(moment_at("15m", 1_000_000), Ok(100_000));
        assert_eq!(moment_at("7d", 1_000_000), Ok(0));
        assert_eq!(moment_at("1970-01-01T00:00:01Z", 5), Ok(1000));
        assert_eq!(moment_at("1700000000000", 5), Ok(1_700_000_000_000));
        assert!(moment_at("soon", 5).unwrap_err().contains("how long ago"));
        assert_eq!(start("latest"), Ok(StartName::Latest));
        assert!(start("soon").unwrap_err().starts_with("earliest, latest, or a time"));
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("=x").is_err() && pair("x").is_err());
    }
}
