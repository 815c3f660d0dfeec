//! Durations, sizes and times as people write them.

use std::fmt::Write as _;
use std::time::SystemTime;

/// A duration in milliseconds, from `250ms`, `30s`, `15m`, `24h`, `7d`, or several in a
/// row (`1h30m`).
///
/// # Errors
/// What is expected instead.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "a duration like 250ms, 30s, 15m, 24h or 7d is expected";
    let expected = || EXPECTED.to_owned();
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(expected());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let number: u64 = rest[..digits].parse().map_err(|_| expected())?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |end| digits + end);
        let unit = match rest[digits..unit_end].trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(expected()),
        };
        total = number
            .checked_mul(unit)
            .and_then(|ms| total.checked_add(ms))
            .ok_or_else(|| "it is longer than time itself".to_owned())?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

/// A duration as it is shown: the largest units that give it exactly.
pub fn show_duration(ms: u64) -> String {
    if ms == 0 {
        return "0s".into();
    }
    let mut out = String::new();
    let mut left = ms;
    for (unit, size) in
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
    {
        let count = left / size;
        left %= size;
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(out, "{count}{unit}");
        }
    }
    out
}

/// A duration as it is told in passing: its two largest units, like `3d4h` or `1m30s`.
pub fn show_age(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let Some(at) = units.iter().position(|(_, size)| ms >= *size) else {
        return format!("{ms}ms");
    };
    let (unit, size) = units[at];
    let mut out = format!("{}{unit}", ms / size);
    if let Some((unit, smaller)) = units.get(at + 1)
        && ms % size >= *smaller
    {
        let _ = write!(out, "{}{unit}", ms % size / smaller);
    }
    out
}

/// A size in bytes, from `4096`, `64KiB`, `512MiB`, `2GiB`, `1TiB`, or with decimal
/// units (`kB`, `MB`, `GB`, `TB`).
///
/// # Errors
/// What is expected instead.
pub fn size(text: &str) -> Result<u64, String> {
    let expected = || "a size like 4096, 64KiB, 512MiB or 2GiB is expected".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(expected()),
    };
    number.checked_mul(unit).ok_or_else(|| "it is larger than any disk".into())
}

/// A size as it is shown, in binary units.
pub fn show_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A number as people read it: with a comma after every three digits.
pub fn show_count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How many there are of something: `1 message`, `2,000 messages`.
pub fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", show_count(number))
}

/// A time as it is shown where room is short: RFC 3339 in UTC, to the second.
pub fn show_second(ms: u64) -> String {
    let known = i64::try_from(ms / 1000).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    known.map_or_else(|| ms.to_string(), |time| time.to_string())
}

/// A time in Unix milliseconds; 0 for what was before 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A time in Unix milliseconds, from RFC 3339 (`2026-11-21T08:30:00Z`) or a number of
/// milliseconds.
///
/// # Errors
/// What is expected instead.
pub fn time_ms(text: &str) -> Result<u64, String> {
    let expected =
        || "a time like 2026-11-21T08:30:00Z, or Unix milliseconds, is expected".to_owned();
    if let Ok(ms) = text.parse::<u64>() {
        return Ok(ms);
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| expected())?;
    u64::try_from(time.as_millisecond()).map_err(|_| "times before 1970 are not known here".into())
}

/// A time as it is shown: RFC 3339 in UTC, with milliseconds.
pub fn show_time(ms: u64) -> String {
    let known = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    known.map_or_else(|| ms.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for (text, ms) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("15m", 900_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
            assert_eq!(duration_ms(&show_duration(ms)), Ok(ms), "{text}");
        }
        assert_eq!(show_duration(5_400_000), "1h30m");
        for bad in ["", "30", "s", "30 parsecs", "-1s", "99999999999999999999s", "1e3s"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("3 MB"), Ok(3_000_000));
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(17), "17 B");
        for bad in ["", "GiB", "1.5GiB", "10 parsecs", "99999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_read_and_shown() {
        assert_eq!(time_ms("1970-01-01T00:00:01.5Z"), Ok(1500));
        assert_eq!(time_ms("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(time_ms("1700000000000"), Ok(1_700_000_000_000));
        assert_eq!(show_time(1500), "1970-01-01T00:00:01.500Z");
        assert!(time_ms("yesterday").is_err());
    }

    #[test]
    fn what_is_told_in_passing_is_short() {
        for (ms, age) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (90_500, "1m30s"),
            (3_600_000, "1h"),
            (3_605_000, "1h"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(show_age(ms), age);
        }
        for (number, shown) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")]
        {
            assert_eq!(show_count(number), shown);
        }
        assert_eq!(show_second(1500), "1970-01-01T00:00:01Z");
        assert_eq!(counted(1, "message"), "1 message");
        assert_eq!(counted(2000, "message"), "2,000 messages");
    }
}
