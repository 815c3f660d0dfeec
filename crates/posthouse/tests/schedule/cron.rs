//! Cron expressions against an implementation that steps through every second of a stretch
//! of time and asks what the clock on the wall says. It reads fields as texts and knows
//! nothing of the one that is tested.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use posthouse::broker::recurring::cron::Cron;

/// Whether a field means a value.
fn means(field: &str, value: i64, least: i64, most: i64, names: &[&str]) -> bool {
    let number = |text: &str| match names.iter().position(|name| *name == text) {
        Some(at) => at as i64 + least.min(1),
        None => text.parse().unwrap(),
    };
    field.split(',').any(|item| {
        let (range, step) = item.split_once('/').unwrap_or((item, "1"));
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (least, most),
            Some((first, last)) => (number(first), number(last)),
            None if item.contains('/') => (number(range), most),
            None => (number(range), number(range)),
        };
        (first..=last).contains(&value) && (value - first) % step.parse::<i64>().unwrap() == 0
    })
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// Whether the six fields of an expression mean what the clock says.
fn matches(fields: &[&str], clock: DateTime) -> bool {
    if !means(fields[0], clock.second().into(), 0, 59, &[])
        || !means(fields[1], clock.minute().into(), 0, 59, &[])
        || !means(fields[2], clock.hour().into(), 0, 23, &[])
        || !means(fields[4], clock.month().into(), 1, 12, &MONTHS)
    {
        return false;
    }
    let day = fields[3].split(',').any(|item| match item {
        "L" => clock.day() == clock.days_in_month(),
        item => means(item, clock.day().into(), 1, 31, &[]),
    });
    let number: i64 = clock.weekday().to_sunday_zero_offset().into();
    let weekday = fields[5].split(',').any(|item| match item.split_once('#') {
        Some((name, nth)) => {
            let nth: i8 = nth.parse().unwrap();
            means(name, number, 0, 7, &WEEKDAYS) && (clock.day() - 1) / 7 + 1 == nth
        }
        None => {
            means(item, number, 0, 7, &WEEKDAYS) || (number == 0 && means(item, 7, 0, 7, &WEEKDAYS))
        }
    });
    let open = |field: &str| field == "*" || field == "?";
    match (open(fields[3]), open(fields[5])) {
        (true, _) => weekday,
        (_, true) => day,
        (false, false) => day || weekday,
    }
}

/// A stretch of time, and what the clock on the wall of a zone says in each second of it.
struct Stretch {
    name: String,
    zone: TimeZone,
    from: i64,
    /// With whether it was changed in this second.
    clock: Vec<(DateTime, bool)>,
}

impl Stretch {
    /// A day on either side of noon of a day.
    fn around(name: &str, day: &str) -> Stretch {
        let zone = TimeZone::get(name).unwrap();
        let noon: DateTime = format!("{day}T12:00:00").parse().unwrap();
        let noon = zone.to_timestamp(noon).unwrap().as_second();
        let (from, to) = (noon - 86_400, noon + 86_400);
        let second = |at: i64| Timestamp::from_second(at).unwrap();
        let offset = |at: i64| zone.to_offset(second(at));
        let clock = (from..=to).map(|at| {
            let is_changed = offset(at) != offset(at - 1);
            (offset(at).to_datetime(second(at)), is_changed)
        });
        let clock = clock.collect();
        Stretch { name: format!("{name} around {day}"), zone, from, clock }
    }

    /// All times that an expression means, but for the first second.
    fn by_counting(&self, expression: &str) -> Vec<i64> {
        let fields: Vec<&str> = expression.split_whitespace().collect();
        let mut found = Vec::new();
        let mut furthest = self.clock[0].0;
        for (at, (now, is_changed)) in (self.from..).zip(&self.clock).skip(1) {
            if fields[2] == "*" {
                if matches(&fields, *now) {
                    found.push(at);
                }
                continue;
            }
            if !is_changed && *now > furthest {
                furthest = *now;
                if matches(&fields, furthest) {
                    found.push(at);
                }
                continue;
            }
            // What the clock has shown before counts once; what it leaves out counts when
            // it does so.
            let mut is_meant = false;
            while furthest < *now {
                furthest = furthest.checked_add(1.second()).unwrap();
                is_meant |= matches(&fields, furthest);
            }
            if is_meant {
                found.push(at);
            }
        }
        found
    }

    fn by_searching(&self, expression: &str) -> Vec<i64> {
        let cron = Cron::parse(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let next = |after: &Timestamp| cron.next(*after, &self.zone);
        let from = Timestamp::from_second(self.from).unwrap();
        let times = std::iter::successors(next(&from), next).map(|at| at.as_second());
        times.take_while(|at| *at < self.from + self.clock.len() as i64).collect()
    }

    fn compare(&self, expression: &str) {
        let (searched, counted) = (self.by_searching(expression), self.by_counting(expression));
        assert_eq!(searched, counted, "{expression} in {}", self.name);
    }
}

/// Zones, and days around which their clocks are changed.
const CHANGES: [(&str, &str); 16] = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    // By half an hour.
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    // At midnight: a day begins at one, another has its last hour twice.
    ("America/Sao_Paulo", "2018-11-04"),
    ("America/Sao_Paulo", "2018-02-18"),
    // By a quarter of an hour, for good.
    ("Asia/Kathmandu", "1986-01-01"),
    // A day that never was.
    ("Pacific/Apia", "2011-12-30"),
    ("Pacific/Apia", "2011-09-24"),
    ("Africa/Casablanca", "2026-02-15"),
    ("America/Caracas", "2016-05-01"),
    ("Europe/London", "2026-03-29"),
    ("UTC", "2026-02-28"),
    ("Asia/Kolkata", "2028-02-29"),
];

#[test]
fn every_time_is_found_where_clocks_are_changed() {
    for (zone, day) in CHANGES {
        let stretch = Stretch::around(zone, day);
        for expression in [
            "0 30 2 * * *",
            "0 0 2 * * *",
            "0 0 3 * * *",
            "59 59 1,2,3 * * *",
            "0 */10 2 * * *",
            "0 15,45 0-3 * * *",
            "0 0 0 * * *",
            "0 30 23,0 * * *",
            "0 0 */2 * * *",
            "0 0 * * * *",
            "0 */15 * * * *",
            "30 59 * * * *",
            "0 0 12 L * *",
            "0 0 9 * * MON-FRI",
            "0 0 1 1 * 0",
            "0 5 4 * * SUN#1,SUN#5",
            "17 3 1-5/2 */2 MAR,OCT,11,4 *",
        ] {
            stretch.compare(expression);
        }
    }
}

#[test]
fn expressions_put_together_at_random_mean_what_counting_says() {
    // A fixed seed: the same expressions every time.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut field = |least: u64, most: u64| {
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let (a, b) = (least + below(most - least + 1), least + below(most - least + 1));
        match below(6) {
            0 | 1 => "*".to_owned(),
            2 => format!("{a}"),
            3 => format!("{}-{}", a.min(b), a.max(b)),
            4 => format!("{a},{b}"),
            _ => format!("*/{}", 1 + below(most)),
        }
    };
    for (zone, day) in CHANGES {
        let stretch = Stretch::around(zone, day);
        for second in ["0", "30", "59", "0", "13", "59"] {
            let (minute, hour) = (field(0, 59), field(0, 23));
            let (days, month, weekday) = (field(1, 31), field(1, 12), field(0, 7));
            let expression = format!("{second} {minute} {hour} {days} {month} {weekday}");
            if Cron::parse(&expression).is_ok() {
                stretch.compare(&expression);
            }
        }
    }
}

#[test]
fn a_local_time_that_does_not_exist_is_the_change_and_one_that_exists_twice_is_the_first() {
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let next = |expression: &str, after: &str| {
        let after: Timestamp = after.parse().unwrap();
        Cron::parse(expression).unwrap().next(after, &berlin).unwrap().to_string()
    };
    // At 2:00 it becomes 3:00.
    let spring = "2026-03-28T12:00:00Z";
    assert_eq!(next("0 30 2 * * *", spring), "2026-03-29T01:00:00Z");
    assert_eq!(next("0 30 2 * * *", "2026-03-29T01:00:00Z"), "2026-03-30T00:30:00Z");
    // Ten-minute steps of an hour that is not there are one.
    assert_eq!(next("0 */10 2 * * *", spring), "2026-03-29T01:00:00Z");
    assert_eq!(next("0 */10 2 * * *", "2026-03-29T01:00:00Z"), "2026-03-30T00:00:00Z");
    // At 3:00 it becomes 2:00 again.
    let autumn = "2026-10-24T12:00:00Z";
    assert_eq!(next("0 30 2 * * *", autumn), "2026-10-25T00:30:00Z");
    assert_eq!(next("0 30 2 * * *", "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
    // An hour that is left open passes twice.
    assert_eq!(next("0 30 * * * *", "2026-10-25T00:00:00Z"), "2026-10-25T00:30:00Z");
    assert_eq!(next("0 30 * * * *", "2026-10-25T00:30:00Z"), "2026-10-25T01:30:00Z");
    assert_eq!(next("0 30 * * * *", "2026-10-25T01:30:00Z"), "2026-10-25T02:30:00Z");
}

#[test]
fn what_is_far_away_is_found_and_what_never_comes_refused() {
    let next = |expression: &str, after: &str| {
        let after: Timestamp = after.parse().unwrap();
        Cron::parse(expression).unwrap().next(after, &TimeZone::UTC).unwrap().to_string()
    };
    assert_eq!(next("0 0 0 29 2 *", "2096-03-01T00:00:00Z"), "2104-02-29T00:00:00Z");
    // A fifth Sunday in February.
    assert_eq!(next("0 0 0 ? 2 SUN#5", "2026-01-01T00:00:00Z"), "2032-02-29T00:00:00Z");
    assert_eq!(next("0 0 * * *", "2026-01-01T00:00:00.001Z"), "2026-01-02T00:00:00Z");
    let error = Cron::parse("0 0 0 30 2 *").unwrap_err();
    assert_eq!((error.field, error.column), ("day", 7));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (expression, field, column, word) in [
        ("0 0 25 * * *", "hour", 5, "0 to 23"),
        ("0 60 * * * *", "minute", 3, "0 to 59"),
        ("0 0 0 * * FRY", "weekday", 11, "FRY"),
        ("0 0 0 1-x * *", "day", 9, "\"x\""),
        ("0 0 0 20-10 * *", "day", 7, "ends before"),
        ("0 0 0 1,,3 * *", "day", 9, "missing"),
        ("*/0 * * * * *", "second", 3, "a step"),
        ("0 0 0 * * MON#6", "weekday", 15, "1 to 5"),
        ("0 0 0", "hour", 6, "3 fields"),
        ("0 0 0 * * * 2026", "weekday", 13, "7 fields"),
        ("", "second", 1, "0 fields"),
        ("0 0  5 * 13 *", "month", 10, "1 to 12"),
    ] {
        let error = Cron::parse(expression).unwrap_err();
        assert_eq!((error.field, error.column), (field, column), "{expression}: {error}");
        assert!(error.to_string().contains(word), "{expression}: {error}");
    }
}
