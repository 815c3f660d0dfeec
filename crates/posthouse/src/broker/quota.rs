//! How fast topics may be published to, and users may publish.
//!
//! A quota is a rate. A second's worth can be used at once; a publish that finds some left
//! may use more than is left, and what is owed is waited for: so one publish may be larger
//! than a second's worth, and the rate holds all the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use posthouse_core::TopicId;
use posthouse_core::catalog::{Quota, Topic, User};

use crate::problem::{Kind, Problem};

/// So much can be used at once: nanoseconds of the rate.
const BURST_NS: u64 = 1_000_000_000;

/// At most so much is owed, however large a publish was.
const OWED_NS: u64 = 60_000_000_000;

/// Whose quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Topic(TopicId),
    User(u32),
}

/// A quota, and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    whose: Whose,
    name: &'a str,
    quota: &'a Quota,
    messages: u64,
    bytes: u64,
}

impl<'a> Wanted<'a> {
    /// From a topic; `None` if it has no quota.
    pub(super) fn of_topic(topic: &'a Topic, messages: u64, bytes: u64) -> Option<Wanted<'a>> {
        let quota = Some(&topic.config.publish_quota).filter(|quota| !quota.is_none())?;
        Some(Wanted { whose: Whose::Topic(topic.id), name: &topic.name, quota, messages, bytes })
    }

    /// Of a user; `None` if there is no quota.
    pub(super) fn of_user(user: &'a User, messages: u64, bytes: u64) -> Option<Wanted<'a>> {
        let quota = Some(&user.config.publish_quota).filter(|quota| !quota.is_none())?;
        Some(Wanted { whose: Whose::User(user.id), name: &user.name, quota, messages, bytes })
    }

    fn refusal(&self, is_bytes: bool, wait: Duration) -> Problem {
        let (what, limit) = match is_bytes {
            true => ("bytes", self.quota.bytes_per_s),
            false => ("messages", self.quota.messages_per_s),
        };
        let (limit, name) = (limit.unwrap_or(0), self.name);
        let (who, of) = match self.whose {
            Whose::Topic(_) => (format!("topic {name:?} takes"), "topic"),
            Whose::User(_) => (format!("user {name:?} may publish"), "user"),
        };
        let detail = format!("{who} {limit} {what} per second, and they are used up");
        Problem::new(Kind::Exhausted, "too_many_requests", detail)
            .with_field(
                format!("publish_quota.{what}_per_s"),
                limit,
                format!("{limit} {what} per second of the {of}, over all publishers"),
            )
            .with_hint(format!("publish slower, or raise publish_quota of the {of}"))
            .with_retry(wait.as_millis().max(1) as u64)
    }
}

/// Until when what was used is paid for, in nanoseconds since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Paid {
    messages: u64,
    bytes: u64,
}

/// What was used of quotas.
#[derive(Debug)]
pub(super) struct Quotas {
    began: Instant,
    paid: Mutex<HashMap<Whose, Paid>>,
    refused: AtomicU64,
}

impl Default for Quotas {
    fn default() -> Self {
        let (paid, refused) = (Mutex::default(), AtomicU64::new(0));
        Quotas { began: Instant::now(), paid, refused }
    }
}

impl Quotas {
    /// Now, in nanoseconds since the start.
    pub(super) fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Publishes that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Uses what is wanted, of all or of none.
    ///
    /// # Errors
    /// [`Kind::Exhausted`] if one of them is used up, unless `forced`.
    pub(super) fn take(
        &self,
        wanted: &[Wanted<'_>],
        now: u64,
        forced: bool,
    ) -> Result<(), Problem> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        if !forced && let Some((of, is_bytes, wait)) = longest(&paid, wanted, now) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(of.refusal(is_bytes, wait));
        }
        for of in wanted {
            let paid = paid.entry(of.whose).or_default();
            use_up(&mut paid.messages, of.quota.messages_per_s, of.messages, now);
            use_up(&mut paid.bytes, of.quota.bytes_per_s, of.bytes, now);
        }
        Ok(())
    }

    /// How long until something is left of all of them; nothing if it is now.
    pub(super) fn wait(&self, wanted: &[Wanted<'_>], now: u64) -> Option<Duration> {
        let paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        longest(&paid, wanted, now).map(|(.., wait)| wait)
    }

    /// Forgets what has been paid for.
    pub(super) fn tidy(&self) {
        let now = self.now();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.retain(|_, paid| paid.messages.max(paid.bytes) > now);
    }
}

/// The quota that has to be waited for longest, whether for its bytes, and how long.
fn longest<'a, 'b>(
    paid: &HashMap<Whose, Paid>,
    wanted: &'a [Wanted<'b>],
    now: u64,
) -> Option<(&'a Wanted<'b>, bool, Duration)> {
    let wait = |rate: Option<u64>, paid: u64| {
        let wait = paid.saturating_sub(now).saturating_sub(BURST_NS - 1);
        rate.filter(|_| wait > 0).map(|_| Duration::from_nanos(wait))
    };
    let waits = wanted.iter().flat_map(|of| {
        let paid = paid.get(&of.whose).copied().unwrap_or_default();
        let messages = wait(of.quota.messages_per_s, paid.messages);
        let bytes = wait(of.quota.bytes_per_s, paid.bytes);
        [messages.map(|wait| (of, false, wait)), bytes.map(|wait| (of, true, wait))]
    });
    waits.flatten().max_by_key(|(.., wait)| *wait)
}

fn use_up(paid: &mut u64, rate: Option<u64>, count: u64, now: u64) {
    let Some(rate) = rate else { return };
    let cost = u128::from(count) * u128::from(BURST_NS) / u128::from(rate.max(1));
    let cost = u64::try_from(cost).unwrap_or(u64::MAX);
    *paid = (*paid).max(now).saturating_add(cost).min(now + BURST_NS + OWED_NS);
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn wanted(quota: &Quota, messages: u64, bytes: u64) -> [Wanted<'_>; 1] {
        [Wanted { whose: Whose::User(1), name: "shop", quota, messages, bytes }]
    }

    fn rate(messages: Option<u64>, bytes: Option<u64>) -> Quota {
        Quota { messages_per_s: messages, bytes_per_s: bytes }
    }

    #[test]
    fn a_seconds_worth_goes_at_once_and_then_as_fast_as_the_rate_allows() {
        let (quotas, quota) = (Quotas::default(), rate(Some(10), None));
        let one = wanted(&quota, 1, 1000);
        let take = |now| quotas.take(&one, now, false).is_ok();
        assert_eq!((0..20).filter(|_| take(5 * S)).count(), 10);
        let refused = quotas.take(&one, 5 * S, false).unwrap_err();
        assert_eq!(refused.code, "too_many_requests");
        assert_eq!(
            refused.detail,
            "user \"shop\" may publish 10 messages per second, and they are used up"
        );
        assert_eq!(refused.about.unwrap().field, "publish_quota.messages_per_s");
        assert!((1..=100).contains(&refused.retry_after_ms.unwrap()));
        // Ten seconds in steps of a millisecond: a hundred messages.
        let through = (5000..15_000).filter(|ms| take(ms * S / 1000)).count();
        assert!((99..=101).contains(&through), "{through}");
    }

    #[test]
    fn a_publish_larger_than_a_seconds_worth_goes_and_the_rate_holds_all_the_same() {
        let (quotas, quota) = (Quotas::default(), rate(None, Some(1000)));
        let large = wanted(&quota, 1, 5000);
        quotas.take(&large, S, false).unwrap();
        let small = wanted(&quota, 1, 1);
        let refused = quotas.take(&small, S, false).unwrap_err();
        assert_eq!(refused.about.unwrap().field, "publish_quota.bytes_per_s");
        assert_eq!(quotas.wait(&small, S), Some(Duration::from_nanos(4 * S + 1)));
        quotas.take(&small, 5 * S + 1, false).unwrap();
        // What is owed has a bound.
        let vast = wanted(&quota, 1, u64::MAX);
        quotas.take(&vast, 10 * S, false).unwrap();
        assert_eq!(quotas.wait(&small, 10 * S), Some(Duration::from_nanos(OWED_NS + 1)));
    }

    #[test]
    fn of_several_quotas_all_are_used_or_none() {
        let quotas = Quotas::default();
        let (narrow, wide) = (rate(Some(1), None), rate(Some(100), None));
        let user = Wanted { whose: Whose::User(1), name: "u", quota: &wide, messages: 1, bytes: 0 };
        let topic = Whose::Topic(TopicId(1));
        let topic = Wanted { whose: topic, name: "t", quota: &narrow, messages: 1, bytes: 0 };
        quotas.take(&[user, topic], S, false).unwrap();
        for _ in 0..200 {
            let refused = quotas.take(&[user, topic], S, false).unwrap_err();
            assert!(refused.detail.starts_with("topic \"t\" takes 1 messages"), "{refused}");
        }
        assert_eq!(quotas.wait(&[user], S), None, "refusals have used nothing");
        assert_eq!(quotas.refused(), 200);
        quotas.take(&[user, topic], S, true).unwrap();
        assert_eq!(quotas.wait(&[topic], S), Some(Duration::from_nanos(S + 1)));
    }
}
