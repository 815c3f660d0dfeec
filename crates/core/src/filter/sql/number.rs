//! Numbers: 64-bit integers, and floating point for what is none.

use std::cmp::Ordering;

/// A number. A floating point one is finite.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// An integer.
    Int(i64),
    /// Any other number, or an integer of more than 64 bits.
    Float(f64),
}

use Number::{Float, Int};

impl Number {
    /// The number that the whole of `text` is: perhaps a sign, digits, perhaps with a point
    /// among them, perhaps an exponent. `None` if it is none, or too large.
    pub fn parse(text: &str) -> Option<Number> {
        // Rust also reads words, like "inf", which are headers like any other.
        if !text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
            return None;
        }
        match text.parse() {
            Ok(int) => Some(Int(int)),
            Err(_) => finite(text.parse().ok()?),
        }
    }

    fn float(self) -> f64 {
        match self {
            Int(int) => int as f64,
            Float(float) => float,
        }
    }

    /// `-self`.
    pub fn negate(self) -> Number {
        match self {
            Int(int) => int.checked_neg().map_or(Float(-(int as f64)), Int),
            Float(float) => Float(-float),
        }
    }

    /// `self + other`. `None`, here and below, if there is no such number or it is too large.
    pub fn plus(self, other: Number) -> Option<Number> {
        self.result(other, i64::checked_add, |a, b| a + b)
    }

    /// `self - other`.
    pub fn minus(self, other: Number) -> Option<Number> {
        self.result(other, i64::checked_sub, |a, b| a - b)
    }

    /// `self * other`.
    pub fn times(self, other: Number) -> Option<Number> {
        self.result(other, i64::checked_mul, |a, b| a * b)
    }

    /// `self / other`: 7 / 2 is 3.5.
    pub fn over(self, other: Number) -> Option<Number> {
        let whole = |a: i64, b| a.checked_rem(b).filter(|rest| *rest == 0).and(a.checked_div(b));
        self.result(other, whole, |a, b| a / b)
    }

    fn result(
        self,
        other: Number,
        of_ints: impl Fn(i64, i64) -> Option<i64>,
        of_floats: impl Fn(f64, f64) -> f64,
    ) -> Option<Number> {
        if let (Int(a), Int(b)) = (self, other)
            && let Some(int) = of_ints(a, b)
        {
            return Some(Int(int));
        }
        finite(of_floats(self.float(), other.float()))
    }

    /// Which one is less: exact, also where an integer has more digits than a floating
    /// point number.
    pub fn order(self, other: Number) -> Ordering {
        match (self, other) {
            (Int(a), Int(b)) => a.cmp(&b),
            (Float(a), Float(b)) => a.partial_cmp(&b).expect("both are finite"),
            (Int(a), Float(b)) => int_to_float(a, b),
            (Float(a), Int(b)) => int_to_float(b, a).reverse(),
        }
    }
}

fn finite(float: f64) -> Option<Number> {
    float.is_finite().then_some(Float(float))
}

fn int_to_float(int: i64, float: f64) -> Ordering {
    // The first floating point number that is larger than every integer.
    const END: f64 = 9_223_372_036_854_775_808.0;
    if float >= END {
        return Ordering::Less;
    }
    if float < -END {
        return Ordering::Greater;
    }
    let rest = if float.fract() > 0.0 {
        Ordering::Less
    } else if float.fract() < 0.0 {
        Ordering::Greater
    } else {
        Ordering::Equal
    };
    int.cmp(&(float.trunc() as i64)).then(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap_or_else(|| panic!("{text} is a number"))
    }

    #[track_caller]
    fn same(result: Option<Number>, expected: &str) {
        let result = result.unwrap_or_else(|| panic!("{expected} is expected"));
        assert_eq!(result.order(number(expected)), Ordering::Equal, "{result:?}, not {expected}");
    }

    #[test]
    fn a_number_is_the_whole_text() {
        for text in ["0", "-5", "+5", "007", "2.5", ".5", "5.", "1e3", "-1.5E-3", "1e308"] {
            number(text);
        }
        for text in
            ["", " 5", "5 ", "5x", "-", ".", "e5", "1e", "inf", "NaN", "0x1", "1_0", "1e309"]
        {
            assert!(Number::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_integer_any_more_goes_on_as_floating_point() {
        let most = Int(i64::MAX);
        same(number("7").over(number("2")), "3.5");
        same(number("8").over(number("-2")), "-4");
        same(number("0.5").plus(number("1")), "1.5");
        same(most.plus(number("1")), "9223372036854775808");
        same(Int(i64::MIN).over(number("-1")), "9223372036854775808");
        same(Some(Int(i64::MIN).negate()), "9223372036854775808");
        same(most.times(most), "8.507059173023462e37");
        same(number("3").minus(number("5")), "-2");
        assert!(number("1").over(number("0")).is_none());
        assert!(number("0").over(number("0.0")).is_none());
        assert!(number("1e308").times(number("10")).is_none());
    }

    #[test]
    fn integers_and_floating_point_are_compared_exactly() {
        let sorted = [
            "-1e300",
            "-9223372036854775808",
            "-9223372036854775807",
            "-2.5",
            "-2",
            "-0.5",
            "0",
            "0.5",
            "2",
            "2.5",
            "9007199254740992.0",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "1e300",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(number(a).order(number(b)), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(number("-9223372036854775808.0").order(Int(i64::MIN)), Ordering::Equal);
        assert_eq!(number("-0.0").order(Int(0)), Ordering::Equal);
    }
}
