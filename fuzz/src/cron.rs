//! When recurring messages come: cron expressions and intervals, in the time of a zone.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use posthouse::broker::recurring::cron::{CRON_BYTES, Cron};
use posthouse::broker::recurring::plan::{LATE_MS, Occurrence, Plan, Step};
use posthouse_core::UnixMs;
use posthouse_core::catalog::{Missed, RecurringConfig, Recurs};

use crate::{Seeds, memory, number, text};

/// Clocks that are changed in every way that there is: by an hour, by less, at midnight,
/// over a day that never was, twice a year, no more.
const ZONES: [&str; 12] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Africa/Casablanca",
    "America/Caracas",
    "Antarctica/Troll",
    "Africa/Cairo",
    "Asia/Gaza",
];

/// So many times are looked at, one after the other.
const TIMES: usize = 12;

/// So many seconds before and after a time it is looked whether there was another.
const SECONDS: i64 = 90;

/// Two times in milliseconds, 48 bits each; then lines: a cron expression, or `every` and
/// milliseconds; a zone; start, end and jitter in milliseconds, which may be missing.
pub fn run(data: &[u8]) {
    let Some((after, rest)) = number::<6>(data) else { return };
    let Some((now, rest)) = number::<6>(rest) else { return };
    let mut lines = text(rest).lines();
    let rule = lines.next().unwrap_or_default();
    let zone = lines.next().unwrap_or_default();
    let mut figure = || lines.next().and_then(|line| line.parse::<u64>().ok());
    let (start, end) = (figure().map(UnixMs), figure().map(UnixMs));
    let every_ms = rule.strip_prefix("every ").and_then(|ms| ms.parse().ok());
    let recurs = match every_ms {
        Some(every_ms) => Recurs::Every { every_ms },
        None => Recurs::Cron { cron: rule.to_owned(), zone: zone.to_owned() },
    };
    let config = RecurringConfig {
        topic: "t".to_owned(),
        key: None,
        tags: Vec::new(),
        headers: Default::default(),
        ttl_ms: None,
        body: Vec::new(),
        recurs,
        start,
        end,
        jitter_ms: figure().unwrap_or(0),
        missed: Missed::Once,
        paused: false,
    };
    // The rules of a zone stay in memory once they were read.
    memory::within(64 * data.len() + (256 << 10), || {
        if let Ok(plan) = Plan::of("r", UnixMs(now), &config) {
            ahead(&plan, &config, UnixMs(after));
            step(&plan, UnixMs(after), UnixMs(now));
        }
        match Cron::parse(rule) {
            Ok(cron) => {
                let at = ZONES.iter().position(|known| *known == zone).unwrap_or(zone.len());
                clock(&cron, &Fields::of(rule), ZONES[at % ZONES.len()], after);
            }
            Err(error) => {
                let column = error.column;
                assert!((1..=rule.chars().count() + 1).contains(&column), "{error}");
            }
        }
    });
}

/// Times follow each other, between start and end; each comes before the next.
fn ahead(plan: &Plan, config: &RecurringConfig, after: UnixMs) {
    let next = |before: &Occurrence| plan.next(before.at);
    let times: Vec<Occurrence> =
        std::iter::successors(plan.next(after), next).take(TIMES).collect();
    let mut before = None;
    for of in &times {
        assert!(of.at > after && of.comes >= of.at, "{of:?} after {after:?}");
        assert!(of.comes.since(of.at) <= config.jitter_ms);
        assert!(before.is_none_or(|before| of.at > before), "{of:?} and {before:?} before it");
        assert!(config.start.is_none_or(|start| of.at >= start));
        assert!(config.end.is_none_or(|end| of.at <= end));
        before = Some(of.comes);
    }
    let shown: Vec<UnixMs> = times.iter().map(|of| of.comes).collect();
    assert_eq!(plan.ahead(after, TIMES), shown);
}

/// What is done late is the last that is late, and what is waited for comes later.
fn step(plan: &Plan, last: UnixMs, now: UnixMs) {
    for missed in [Missed::Once, Missed::Skip] {
        match plan.step(last, now, missed) {
            Step::Wait(at) => {
                assert_eq!(at, plan.next(last).map(|of| of.comes));
                assert!(at.is_none_or(|at| at > now), "it waits for {at:?} at {now:?}");
            }
            Step::Publish(of) | Step::Skip(of) => {
                assert!(of.at > last && of.comes <= now, "{of:?} after {last:?} at {now:?}");
                let next = plan.next(of.at).filter(|next| now.since(next.comes) > LATE_MS);
                let is_late = now.since(of.comes) > LATE_MS;
                assert!(next.is_none() || !is_late, "{next:?} is late, and follows {of:?}");
            }
        }
    }
}

/// What the clock on the wall says at each time is what the fields of the expression say,
/// and shortly before and behind it they say nothing.
fn clock(cron: &Cron, fields: &Fields, zone: &str, after: u64) {
    let zone = TimeZone::get(zone).expect("it is compiled in");
    let Ok(mut after) = Timestamp::from_millisecond(after as i64) else { return };
    let is_meant = |at: Timestamp| fields.mean(zone.to_datetime(at));
    for _ in 0..TIMES {
        let Some(found) = cron.next(after, &zone) else { return };
        assert!(found > after, "{found} is not after {after}");
        let (from, to) = (after.as_second() + 1, found.as_second());
        assert_eq!(found.subsec_nanosecond(), 0);
        let is_checked = |at: Timestamp| fields.any_hour || is_even(&zone, at);
        if is_checked(found) {
            assert!(is_meant(found), "{found} is not meant");
        }
        let behind = (from..to).take(SECONDS as usize);
        for second in behind.chain((to - SECONDS).max(from)..to) {
            let at = Timestamp::from_second(second).expect("it lies between two");
            assert!(!is_checked(at) || !is_meant(at), "{at} is meant, and left out");
        }
        after = found;
    }
}

/// Whether nobody sets a clock for a day before and after.
fn is_even(zone: &TimeZone, at: Timestamp) -> bool {
    let day = SignedDuration::from_hours(26);
    let (Ok(from), Ok(to)) = (at.checked_sub(day), at.checked_add(day)) else { return false };
    zone.following(from).next().is_none_or(|change| change.timestamp() > to)
}

/// The values of each field of an expression that was understood.
struct Fields {
    /// Second, minute, hour, month.
    values: [Vec<u64>; 4],
    any_hour: bool,
    day: Option<String>,
    weekday: Option<String>,
}

const MONTHS: &str = "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC";
const WEEKDAYS: &str = "SUNMONTUEWEDTHUFRISAT";

impl Fields {
    fn of(expression: &str) -> Fields {
        assert!(expression.len() <= CRON_BYTES);
        let mut fields: Vec<String> =
            expression.to_ascii_uppercase().split_whitespace().map(str::to_owned).collect();
        if fields.len() == 5 {
            fields.insert(0, "0".to_owned());
        }
        let [second, minute, hour, day, month, weekday] =
            fields.try_into().expect("it was understood");
        let is_open = |field: &String| field == "*" || field == "?";
        Fields {
            values: [
                values(&second, 0, 59, ""),
                values(&minute, 0, 59, ""),
                values(&hour, 0, 23, ""),
                values(&month, 1, 12, MONTHS),
            ],
            any_hour: is_open(&hour),
            day: (!is_open(&day)).then_some(day),
            weekday: (!is_open(&weekday)).then_some(weekday),
        }
    }

    fn mean(&self, clock: DateTime) -> bool {
        let [second, minute, hour, month] = &self.values;
        let has = |values: &[u64], value: i8| values.contains(&(value as u64));
        if !has(second, clock.second())
            || !has(minute, clock.minute())
            || !has(hour, clock.hour())
            || !has(month, clock.month())
        {
            return false;
        }
        let is_day = |field: &String| {
            has(&values(field, 1, 31, ""), clock.day())
                || (clock.day() == clock.days_in_month()
                    && field.split(',').any(|item| item == "L"))
        };
        let today = clock.weekday().to_sunday_zero_offset();
        let is_weekday = |field: &String| {
            let nth = |item: &str| {
                let (day, nth) = item.split_once('#')?;
                let is_nth = nth.parse() == Ok((clock.day() - 1) / 7 + 1);
                Some(is_nth && weekdays(day).contains(&(today as u64)))
            };
            has(&weekdays(field), today) || field.split(',').filter_map(nth).any(|is| is)
        };
        match (&self.day, &self.weekday) {
            (None, None) => true,
            (Some(day), None) => is_day(day),
            (None, Some(weekday)) => is_weekday(weekday),
            (Some(day), Some(weekday)) => is_day(day) || is_weekday(weekday),
        }
    }
}

fn weekdays(field: &str) -> Vec<u64> {
    values(field, 0, 7, WEEKDAYS).into_iter().map(|day| day % 7).collect()
}

/// What the items of a field mean; of those with a mark, nothing. `names` have three letters
/// each, and stand for numbers from `least` on.
fn values(field: &str, least: u64, most: u64, names: &str) -> Vec<u64> {
    let value = |text: &str| match names.find(text) {
        Some(at) if text.len() == 3 => at as u64 / 3 + least,
        _ => text.parse().expect("it was understood"),
    };
    let mut found = Vec::new();
    for item in field.split(',').filter(|item| *item != "L" && !item.contains('#')) {
        let (range, step) = item.split_once('/').unwrap_or((item, "1"));
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (value(first), value(last)),
            None if range == "*" || range == "?" => (least, most),
            None if item.contains('/') => (value(range), most),
            None => (value(range), value(range)),
        };
        let step: usize = step.parse().expect("it was understood");
        found.extend((first..=last).step_by(step));
    }
    found
}

pub fn seeds() -> Seeds {
    let seed = |after: u64, now: u64, lines: &str| {
        let mut out = Vec::new();
        for time in [after, now] {
            out.extend_from_slice(&time.to_le_bytes()[..6]);
        }
        out.extend_from_slice(lines.as_bytes());
        out
    };
    // Around changes of the clocks of 2026 and 2027.
    let (spring, autumn, new_year) = (1_774_740_000_000, 1_792_880_000_000, 1_798_761_590_500);
    let year = 366 * 86_400_000;
    vec![
        ("minutes", seed(spring, spring + year, "*/10 * * * *\nEurope/Berlin")),
        ("named", seed(spring, spring + 5_000, "0 30 2,23-0 * * MON-FRI\nEurope/Berlin")),
        ("night", seed(autumn, autumn + year, "59 */15 1-3/2 L JAN,OCT ?\nAmerica/New_York")),
        ("days", seed(new_year, new_year, "0 0 12 13 * FRI#2,SUN#5\nAustralia/Lord_Howe")),
        ("either", seed(autumn, spring, "0 5 4 1-7 * 1-7/3\nAfrica/Casablanca")),
        ("far", seed(new_year, new_year + 1, "0 0 * ? 2 SUN#5\nAsia/Gaza")),
        ("leap", seed(spring, new_year, "0 0 0 29 2 *\nPacific/Apia\n1\n9000000000000\n3600000")),
        ("every", seed(spring, autumn, "every 90000\n\n1774740000001\n\n1000")),
    ]
}
