//! Values on the command line that several commands take.

use clap::Args;

use crate::json::{PublishQuota, StartName, Time};
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

/// How fast something may be published.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct QuotaArgs {
    /// So many messages per second at most, over all publishers
    #[arg(long, value_name = "N")]
    publish_messages_per_s: Option<u64>,
    /// So many bytes per second at most, over all publishers
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    publish_bytes_per_s: Option<u64>,
    /// As fast as may be
    #[arg(long, conflicts_with_all = ["publish_messages_per_s", "publish_bytes_per_s"])]
    no_publish_quota: bool,
}

impl QuotaArgs {
    /// The quota, if one is given.
    pub fn into_json(self) -> Option<PublishQuota> {
        let quota = PublishQuota {
            messages_per_s: self.publish_messages_per_s,
            bytes_per_s: self.publish_bytes_per_s,
        };
        (self.no_publish_quota || quota != PublishQuota::default()).then_some(quota)
    }
}

/// A quota for people.
pub fn show_quota(quota: PublishQuota) -> String {
    let messages = quota.messages_per_s.map(|n| units::counted(n, "message"));
    let bytes = quota.bytes_per_s.map(units::show_size);
    let all: Vec<String> = [messages, bytes].into_iter().flatten().collect();
    format!("{} per second", all.join(" and "))
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
