//! Cron expressions: the local times that they name, and the instants that those are.
//!
//! ```text
//! second minute hour day month weekday        with five fields: second 0
//! ```
//! A field is `*`, a value, a range `a-b`, each with a step `/n` if wanted, or several of
//! these with commas between. Months and weekdays may have their English names of three
//! letters. Days know `L`, the last of the month; weekdays `FRI#2`, the second one of the
//! month. If neither day nor weekday is `*`, either is enough, as cron has always had it.
//!
//! # When clocks are changed
//! An expression that names hours means local times. One that does not exist is the
//! moment at which the clocks were moved on; one that exists twice is the first. So such an
//! expression fires once for each, never twice and never not at all. An expression that
//! leaves the hour open (`*`) does not depend on which hour it is: it fires at its minutes and
//! seconds in every hour that passes, in both of two that bear the same name.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan as _};

/// The longest expression, in bytes.
pub const CRON_BYTES: usize = 256;

/// How far ahead a time is looked for: 29 February on a given weekday is at most 40 years
/// away.
const YEARS: i16 = 50;

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// Why an expression is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (the {field} field, column {column})")]
pub struct CronError {
    /// Which field.
    pub field: &'static str,
    /// Where in the expression, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub what: String,
}

/// A cron expression that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    // A bit for each value.
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// The last day of the month counts too.
    last_day: bool,
    /// For each weekday a bit for the first to the fifth of the month.
    nth: [u8; 7],
    any_hour: bool,
    any_day: bool,
    any_weekday: bool,
}

struct Field {
    name: &'static str,
    least: u64,
    most: u64,
    names: &'static [&'static str],
    /// What the first name stands for.
    first: u64,
}

static FIELDS: [Field; 6] = [
    Field { name: "second", least: 0, most: 59, names: &[], first: 0 },
    Field { name: "minute", least: 0, most: 59, names: &[], first: 0 },
    Field { name: "hour", least: 0, most: 23, names: &[], first: 0 },
    Field { name: "day", least: 1, most: 31, names: &[], first: 0 },
    Field { name: "month", least: 1, most: 12, names: &MONTHS, first: 1 },
    Field { name: "weekday", least: 0, most: 7, names: &WEEKDAYS, first: 0 },
];

/// A piece of the expression and where it stands.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    column: usize,
}

impl<'a> Piece<'a> {
    /// What stands before and behind the first `mark`.
    fn split(self, mark: char) -> (Piece<'a>, Option<Piece<'a>>) {
        match self.text.split_once(mark) {
            None => (self, None),
            Some((before, behind)) => {
                let column = self.column + before.chars().count() + 1;
                let before = Piece { text: before, column: self.column };
                (before, Some(Piece { text: behind, column }))
            }
        }
    }

    fn error(self, field: &Field, what: impl Into<String>) -> CronError {
        CronError { field: field.name, column: self.column, what: what.into() }
    }
}

impl Field {
    fn value(&self, piece: Piece<'_>) -> Result<u64, CronError> {
        let name = self.names.iter().position(|name| name.eq_ignore_ascii_case(piece.text));
        let number = match name {
            Some(at) => Some(at as u64 + self.first),
            None if piece.text.bytes().all(|b| b.is_ascii_digit()) => piece.text.parse().ok(),
            None => None,
        };
        number.filter(|n| (self.least..=self.most).contains(n)).ok_or_else(|| {
            let Field { least, most, .. } = self;
            let or = match self.names {
                [] => String::new(),
                names => format!(", or a name like {}", names[1]),
            };
            piece.error(self, format!("{:?} is not from {least} to {most}{or}", piece.text))
        })
    }

    /// The bits of an item without its commas.
    fn item(&self, piece: Piece<'_>) -> Result<u64, CronError> {
        let (range, step) = piece.split('/');
        let step_by = match step {
            None => 1,
            Some(step) => {
                let by = step.text.parse::<u64>().ok().filter(|by| (1..=self.most).contains(by));
                by.ok_or_else(|| {
                    let most = self.most;
                    step.error(self, format!("a step is from 1 to {most}, not {:?}", step.text))
                })?
            }
        };
        let (first, last) = match range.split('-') {
            (whole, None) if whole.text == "*" => (self.least, self.most),
            (from, None) => {
                let from = self.value(from)?;
                (from, if step.is_some() { self.most } else { from })
            }
            (from, Some(to)) => {
                let (first, last) = (self.value(from)?, self.value(to)?);
                if first > last {
                    let what = format!("the range {:?} ends before it begins", range.text);
                    return Err(from.error(self, what));
                }
                (first, last)
            }
        };
        Ok((first..=last).step_by(step_by as usize).fold(0, |bits, n| bits | 1 << n))
    }
}

impl Cron {
    /// Understands an expression.
    ///
    /// # Errors
    /// [`CronError`], with the field and the column that are wrong.
    pub fn parse(text: &str) -> Result<Cron, CronError> {
        let whole = Piece { text, column: 1 };
        if text.len() > CRON_BYTES {
            let what = format!("the expression has {} bytes; at most {CRON_BYTES}", text.len());
            return Err(whole.error(&FIELDS[0], what));
        }
        let pieces = pieces(text);
        let (pieces, fields) = match pieces.len() {
            6 => (pieces, &FIELDS[..]),
            5 => (pieces, &FIELDS[1..]),
            count => {
                let at = pieces.get(6).map_or(text.chars().count() + 1, |piece| piece.column);
                let field = &FIELDS[count.saturating_sub(1).min(5)];
                let what = format!(
                    "there are {count} fields; there must be 6 (second minute hour day month \
                     weekday), or 5 without the second"
                );
                return Err(CronError { field: field.name, column: at, what });
            }
        };
        let mut cron = Cron {
            seconds: 1,
            minutes: 0,
            hours: 0,
            days: 0,
            months: 0,
            weekdays: 0,
            last_day: false,
            nth: [0; 7],
            any_hour: false,
            any_day: false,
            any_weekday: false,
        };
        for (field, piece) in fields.iter().zip(&pieces) {
            cron.read(field, *piece)?;
        }
        if cron.next_local(DateTime::constant(2000, 1, 1, 0, 0, 0, 0)).is_none() {
            let day = pieces[pieces.len() - 3];
            return Err(day.error(&FIELDS[3], "no month that is meant has such a day"));
        }
        Ok(cron)
    }

    fn read(&mut self, field: &Field, piece: Piece<'_>) -> Result<(), CronError> {
        let mut bits = 0;
        let mut rest = Some(piece);
        while let Some(all) = rest {
            let (item, behind) = all.split(',');
            rest = behind;
            match (field.name, item.text) {
                (_, "") => return Err(item.error(field, "something is missing")),
                ("day", "L" | "l") => self.last_day = true,
                ("day" | "weekday", "?") => bits |= field.item(Piece { text: "*", ..item })?,
                ("weekday", text) if text.contains('#') => {
                    let (day, nth) = item.split('#');
                    let day = field.value(day)? % 7;
                    let nth = nth.unwrap_or(item);
                    let n = nth.text.parse::<u8>().ok().filter(|n| (1..=5).contains(n));
                    let n = n.ok_or_else(|| {
                        nth.error(field, format!("after # is 1 to 5, not {:?}", nth.text))
                    })?;
                    self.nth[day as usize] |= 1 << n;
                }
                _ => bits |= field.item(item)?,
            }
        }
        let is_open = matches!(piece.text, "*" | "?");
        match field.name {
            "second" => self.seconds = bits,
            "minute" => self.minutes = bits,
            "hour" => (self.hours, self.any_hour) = (bits, is_open),
            "day" => (self.days, self.any_day) = (bits, is_open),
            "month" => self.months = bits,
            _ => {
                // 7 is Sunday, too.
                self.weekdays = (bits | bits >> 7) & 0x7f;
                self.any_weekday = is_open;
            }
        }
        Ok(())
    }

    /// The first instant after `after` that is meant, in milliseconds.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self.any_hour {
            true => self.next_passing(after, zone),
            false => self.next_named(after, zone),
        }
    }

    /// Of an expression that leaves the hour open: from one change of the clocks to the
    /// next, local time runs evenly.
    fn next_passing(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut offset = zone.to_offset(after);
        let mut local = offset.to_datetime(after);
        let mut changes = zone.following(after);
        loop {
            let change = changes.next();
            let found = self.next_local(local);
            let found = found.and_then(|local| offset.to_timestamp(local).ok());
            match (found, change) {
                (found, None) => return found,
                (Some(found), Some(change)) if found < change.timestamp() => return Some(found),
                (None, Some(_)) => return None,
                (_, Some(change)) => {
                    offset = change.offset();
                    let begin = offset.to_datetime(change.timestamp());
                    // What is looked for comes after: the change itself may be it.
                    local = begin.checked_sub(1.second()).ok()?;
                }
            }
        }
    }

    /// Of an expression that names hours: local times, in their order.
    fn next_named(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut local = zone.to_offset(after).to_datetime(after);
        loop {
            local = self.next_local(local)?;
            let found = instant(local, zone)?;
            if found > after {
                return Some(found);
            }
        }
    }

    /// The first local time after `after` that is meant, in whole seconds.
    fn next_local(&self, after: DateTime) -> Option<DateTime> {
        let start = after.with().subsec_nanosecond(0).build().ok()?;
        let start = start.checked_add(1.second()).ok()?;
        let (mut date, mut from) = (start.date(), start.time());
        while date.year() <= start.year() + YEARS {
            if self.months & 1 << date.month() == 0 {
                date = date.last_of_month().tomorrow().ok()?;
                from = Time::midnight();
                continue;
            }
            if self.is_day(date)
                && let Some(time) = self.next_time(from)
            {
                return Some(date.to_datetime(time));
            }
            date = date.tomorrow().ok()?;
            from = Time::midnight();
        }
        None
    }

    fn is_day(&self, date: Date) -> bool {
        let weekday = date.weekday().to_sunday_zero_offset() as usize;
        let nth = (date.day() as u8 - 1) / 7 + 1;
        let is_day = self.days & 1 << date.day() != 0
            || (self.last_day && date.day() == date.days_in_month());
        let is_weekday = self.weekdays & 1 << weekday != 0 || self.nth[weekday] & 1 << nth != 0;
        match (self.any_day, self.any_weekday) {
            (true, true) => true,
            (true, false) => is_weekday,
            (false, true) => is_day,
            (false, false) => is_day || is_weekday,
        }
    }

    /// The first time of a day from `from` on.
    fn next_time(&self, from: Time) -> Option<Time> {
        let (hour, minute, second) = (from.hour(), from.minute(), from.second());
        let time = |h: i8, m: i8, s: i8| Time::new(h, m, s, 0).ok();
        let mut at_hour = next_bit(self.hours, hour)?;
        if at_hour == hour {
            let mut at_minute = next_bit(self.minutes, minute);
            if at_minute == Some(minute) {
                if let Some(second) = next_bit(self.seconds, second) {
                    return time(hour, minute, second);
                }
                at_minute = next_bit(self.minutes, minute + 1);
            }
            if let Some(minute) = at_minute {
                return time(hour, minute, next_bit(self.seconds, 0)?);
            }
            at_hour = next_bit(self.hours, hour + 1)?;
        }
        time(at_hour, next_bit(self.minutes, 0)?, next_bit(self.seconds, 0)?)
    }
}

/// The instant of a local time: of one that exists twice the first, of one that does not
/// exist the moment at which the clocks were moved on.
fn instant(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            let behind = before.to_timestamp(local).ok()?;
            let behind = behind.checked_add(SignedDuration::from_secs(1)).ok()?;
            zone.preceding(behind).next().map(|change| change.timestamp())
        }
    }
}

/// The first value from `from` on whose bit is set.
fn next_bit(bits: u64, from: i8) -> Option<i8> {
    let left = bits.checked_shr(from as u32)?;
    (left != 0).then(|| from + left.trailing_zeros() as i8)
}

/// The fields, and where they stand.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut begin: Option<(usize, usize)> = None;
    let ends = std::iter::once((text.len(), ' '));
    for (column, (at, c)) in (1..).zip(text.char_indices().chain(ends)) {
        match (c.is_whitespace(), begin) {
            (false, None) => begin = Some((at, column)),
            (true, Some((from, column))) => {
                pieces.push(Piece { text: &text[from..at], column });
                begin = None;
            }
            _ => {}
        }
    }
    pieces
}
