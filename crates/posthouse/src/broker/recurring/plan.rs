//! When a recurring message is due, and what a late look at it comes to.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use posthouse_core::UnixMs;
use posthouse_core::catalog::{Missed, RecurringConfig, Recurs};
use sha2::{Digest as _, Sha256};

use super::cron::Cron;
use crate::problem::{Kind, Problem};

/// What is later than this was missed: the node was down, or its clock was set forward.
pub const LATE_MS: u64 = 10_000;

/// The shortest interval.
pub const EVERY_MIN_MS: u64 = 1_000;

/// The longest interval, and the longest jitter: ten years, and a day.
pub const EVERY_MS: u64 = 10 * 366 * 86_400_000;
/// See [`EVERY_MS`].
pub const JITTER_MS: u64 = 86_400_000;

/// A time at which a recurring message is meant to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The time that its rule says. Names the occurrence.
    pub at: UnixMs,
    /// The same with its jitter.
    pub comes: UnixMs,
}

#[derive(Clone, Debug)]
enum Rule {
    Cron(Box<Cron>, TimeZone),
    Every { every_ms: u64, from: u64 },
}

/// All that says when a recurring message is due.
#[derive(Clone, Debug)]
pub struct Plan {
    rule: Rule,
    start: Option<UnixMs>,
    end: Option<UnixMs>,
    jitter_ms: u64,
    name: Box<str>,
}

/// What is to be done about a recurring message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time; `None`: ever.
    Wait(Option<UnixMs>),
    /// This occurrence is to be published.
    Publish(Occurrence),
    /// Nothing of this occurrence and those before it.
    Skip(Occurrence),
}

impl Plan {
    /// Of a configuration.
    ///
    /// # Errors
    /// If it makes no sense, with the field, and the place in it where that helps.
    pub fn of(name: &str, created_at: UnixMs, config: &RecurringConfig) -> Result<Plan, Problem> {
        let rule = match &config.recurs {
            Recurs::Cron { cron, zone } => {
                let parsed = Cron::parse(cron).map_err(|error| {
                    let detail = format!("the cron expression {cron:?} makes no sense: {error}");
                    Problem::new(Kind::Invalid, "invalid_cron", detail)
                        .with_field("cron", cron, error.to_string())
                        .with_hint(
                            "second minute hour day month weekday, like `0 30 9 * * MON-FRI`",
                        )
                })?;
                Rule::Cron(Box::new(parsed), time_zone(zone)?)
            }
            Recurs::Every { every_ms } => {
                if !(EVERY_MIN_MS..=EVERY_MS).contains(every_ms) {
                    let limit = format!("from {EVERY_MIN_MS} ms to {EVERY_MS} ms (ten years)");
                    return Err(Problem::invalid("every", format!("{every_ms} ms"), limit));
                }
                let from = config.start.unwrap_or(created_at).0;
                Rule::Every { every_ms: *every_ms, from }
            }
        };
        if config.jitter_ms > JITTER_MS {
            let limit = format!("at most {JITTER_MS} ms (a day)");
            return Err(Problem::invalid("jitter", format!("{} ms", config.jitter_ms), limit));
        }
        if let (Some(start), Some(end)) = (config.start, config.end)
            && end < start
        {
            let limit = format!("not before the start, {}", start.0);
            return Err(Problem::invalid("end", end.0, limit));
        }
        let (start, end) = (config.start, config.end);
        Ok(Plan { rule, start, end, jitter_ms: config.jitter_ms, name: name.into() })
    }

    /// The first time after `after` that the rule says, start and end apart.
    fn time(&self, after: UnixMs) -> Option<UnixMs> {
        match &self.rule {
            Rule::Cron(cron, zone) => {
                let after = Timestamp::from_millisecond(i64::try_from(after.0).ok()?).ok()?;
                let next = cron.next(after, zone)?.as_millisecond();
                u64::try_from(next).ok().map(UnixMs)
            }
            Rule::Every { from, .. } if after.0 < *from => Some(UnixMs(*from)),
            Rule::Every { every_ms, from } => {
                let steps = (after.0 - from) / every_ms + 1;
                steps.checked_mul(*every_ms)?.checked_add(*from).map(UnixMs)
            }
        }
    }

    /// The first occurrence after the one at `after`.
    pub fn next(&self, after: UnixMs) -> Option<Occurrence> {
        let before_start = self.start.map_or(0, |start| start.0.saturating_sub(1));
        let at = self.time(UnixMs(after.0.max(before_start)))?;
        if self.end.is_some_and(|end| at > end) {
            return None;
        }
        Some(Occurrence { at, comes: at.plus(self.jitter(at)) })
    }

    /// How much later than its time an occurrence comes: always the same for the same one,
    /// and before the next.
    fn jitter(&self, at: UnixMs) -> u64 {
        if self.jitter_ms == 0 {
            return 0;
        }
        let gap = self.time(at).map_or(u64::MAX, |next| next.since(at));
        let most = self.jitter_ms.min(gap.saturating_sub(1));
        let hash =
            Sha256::new().chain_update(self.name.as_bytes()).chain_update(at.0.to_le_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let hash = hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        hash % (most + 1)
    }

    /// The last occurrence after the one at `after` that comes before `edge`.
    fn last_before(&self, after: UnixMs, edge: UnixMs) -> Option<Occurrence> {
        let next = |from: u64| self.next(UnixMs(from)).filter(|o| o.comes < edge);
        let mut found = next(after.0)?;
        // What comes after this time comes too late.
        let mut end = edge.0;
        while let Some(on) = next(found.at.0) {
            found = on;
            let middle = found.at.0 + end.saturating_sub(found.at.0) / 2;
            match next(middle) {
                Some(on) => found = on,
                None => end = middle,
            }
        }
        Some(found)
    }

    /// What is to be done at `now`, when everything up to the occurrence at `last` is
    /// decided.
    pub fn step(&self, last: UnixMs, now: UnixMs, missed: Missed) -> Step {
        let Some(first) = self.next(last) else { return Step::Wait(None) };
        if first.comes > now {
            return Step::Wait(Some(first.comes));
        }
        if now.since(first.comes) <= LATE_MS {
            return Step::Publish(first);
        }
        let edge = UnixMs(now.0 - LATE_MS);
        let latest = self.last_before(last, edge).unwrap_or(first);
        match missed {
            Missed::Once => Step::Publish(latest),
            Missed::Skip => Step::Skip(latest),
        }
    }

    /// The next times at which it comes, at most `count`.
    pub fn ahead(&self, last: UnixMs, count: usize) -> Vec<UnixMs> {
        let next = |before: &Occurrence| self.next(before.at);
        let times = std::iter::successors(self.next(last), next).take(count);
        times.map(|occurrence| occurrence.comes).collect()
    }
}

fn time_zone(name: &str) -> Result<TimeZone, Problem> {
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| {
        Problem::invalid("zone", name, "a name of the IANA time zone database, like Europe/Berlin")
    })
}
