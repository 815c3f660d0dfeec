use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Expression {
    Expression::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn truth(text: &str, parts: &Parts<'_>) -> Option<bool> {
    parse(text).0.truth(&Message::of(parts))
}

const TRUE: Option<bool> = Some(true);
const FALSE: Option<bool> = Some(false);
const UNKNOWN: Option<bool> = None;

/// A message with one header of each sort.
fn message() -> Parts<'static> {
    Parts {
        key: Some("order-7"),
        tags: vec!["paid", "eu"],
        headers: vec![
            ("i", "7"),
            ("d", "2.50"),
            ("s", "north-west"),
            ("t", "TRUE"),
            ("f", "false"),
            ("empty", ""),
            ("a b", "quoted"),
            ("like", "1"),
            (message::KEYS_HEADER, "k1\nk2"),
        ],
        ..Parts::default()
    }
}

#[track_caller]
fn check(cases: &[(&str, Option<bool>)]) {
    for (text, expected) in cases {
        assert_eq!(truth(text, &message()), *expected, "{text}");
    }
}

#[test]
fn a_header_is_read_as_what_stands_beside_it() {
    check(&[
        ("i = 7", TRUE),
        ("i = 7.0", TRUE),
        ("d = 2.5", TRUE),
        ("d > 2", TRUE),
        ("d <> 2", TRUE),
        ("i = '7'", TRUE),
        ("i = '7.0'", FALSE),
        ("s = 'north-west'", TRUE),
        ("s <> 'north'", TRUE),
        ("s != 'north'", TRUE),
        ("s > 'north'", TRUE),
        ("s = 7", UNKNOWN),
        ("s > 7", UNKNOWN),
        ("empty = 0", UNKNOWN),
        ("empty = ''", TRUE),
        ("t = TRUE", TRUE),
        ("t", TRUE),
        ("f", FALSE),
        ("NOT f", TRUE),
        ("s", UNKNOWN),
        ("i = true", UNKNOWN),
        ("FALSE = f", TRUE),
        ("nosuch = 1", UNKNOWN),
        ("nosuch <> 1", UNKNOWN),
        ("nosuch = 'a'", UNKNOWN),
        ("nosuch", UNKNOWN),
        ("i > d", TRUE),
        ("i = i", TRUE),
        ("i = d", FALSE),
        ("s = i", FALSE),
        ("s > i", UNKNOWN),
        ("\"a b\" = 'quoted'", TRUE),
        ("like = 1", TRUE),
        ("I = 7", UNKNOWN),
    ]);
}

#[test]
fn predicates_mean_what_sql_means_by_them() {
    check(&[
        ("i BETWEEN 7 AND 9", TRUE),
        ("i between 8 and 9", FALSE),
        ("i NOT BETWEEN 8 AND 9", TRUE),
        ("s BETWEEN 'm' AND 'o'", TRUE),
        ("5 BETWEEN d AND i", TRUE),
        ("nosuch BETWEEN 1 AND 2", UNKNOWN),
        ("nosuch NOT BETWEEN 1 AND 2", UNKNOWN),
        ("i IN (1, -7, +7)", TRUE),
        ("i IN ('1', '7')", TRUE),
        ("s IN ('north', 'south')", FALSE),
        ("s NOT IN ('north', 'south')", TRUE),
        ("s IN ('north', 7)", UNKNOWN),
        ("s IN (7, 'north-west')", TRUE),
        ("nosuch NOT IN ('a')", UNKNOWN),
        ("i IS NULL", FALSE),
        ("i IS NOT NULL", TRUE),
        ("nosuch IS NULL", TRUE),
        ("nosuch IS NOT NULL", FALSE),
        ("nosuch + 1 IS NULL", TRUE),
        ("(nosuch > 1) IS NULL", TRUE),
        ("s LIKE 'north%'", TRUE),
        ("s LIKE 'north'", FALSE),
        ("s LIKE '%th_west'", TRUE),
        ("s LIKE '%th_wes'", FALSE),
        ("s NOT LIKE '%east'", TRUE),
        ("s LIKE '.*'", FALSE),
        ("nosuch LIKE '%'", UNKNOWN),
        ("'50%' LIKE '50!%' ESCAPE '!'", TRUE),
        ("'500' LIKE '50!%' ESCAPE '!'", FALSE),
        ("'a\nb' LIKE 'a_b'", TRUE),
        ("empty LIKE ''", TRUE),
        ("s CONTAINS 'th-w'", TRUE),
        ("s NOT CONTAINS 'th-w'", FALSE),
        ("s STARTSWITH 'north'", TRUE),
        ("s ENDSWITH 'north'", FALSE),
        ("s NOT ENDSWITH 'north'", TRUE),
        ("i CONTAINS '7'", TRUE),
        ("nosuch CONTAINS ''", UNKNOWN),
        ("'it''s' = 'it''s'", TRUE),
        ("'it''s' CONTAINS ''''", TRUE),
    ]);
}

#[test]
fn arithmetic_has_its_order_and_its_bounds() {
    check(&[
        ("i + 1 = 8", TRUE),
        ("i - 1 - 1 = 5", TRUE),
        ("i * 2 + 1 = 15", TRUE),
        ("1 + i * 2 = 15", TRUE),
        ("(1 + i) * 2 = 16", TRUE),
        ("i / 2 = 3.5", TRUE),
        ("-i = -7", TRUE),
        ("- -i = 7", TRUE),
        ("+i = 7", TRUE),
        ("i / 0 = 1", UNKNOWN),
        ("i / 0 <> 1", UNKNOWN),
        ("i - -1 = 8", TRUE),
        ("s + 1 > 0", UNKNOWN),
        ("+s = 1", UNKNOWN),
        ("9223372036854775807 + 1 > 9223372036854775807", TRUE),
        ("1e308 * 10 > 1", UNKNOWN),
        ("i = 7L", TRUE),
        ("d = .25e1", TRUE),
    ]);
}

#[test]
fn unknown_is_neither_true_nor_false() {
    let values = [("i = 7", TRUE), ("i = 8", FALSE), ("nosuch = 1", UNKNOWN)];
    for (a, left) in values {
        let expected = left.map(|truth| !truth);
        assert_eq!(truth(&format!("NOT {a}"), &message()), expected, "NOT {a}");
        for (b, right) in values {
            let and = match (left, right) {
                (FALSE, _) | (_, FALSE) => FALSE,
                (TRUE, TRUE) => TRUE,
                _ => UNKNOWN,
            };
            let or = match (left, right) {
                (TRUE, _) | (_, TRUE) => TRUE,
                (FALSE, FALSE) => FALSE,
                _ => UNKNOWN,
            };
            assert_eq!(truth(&format!("{a} AND {b}"), &message()), and, "{a} AND {b}");
            assert_eq!(truth(&format!("{a} OR {b}"), &message()), or, "{a} OR {b}");
        }
    }
    assert!(!parse("nosuch = 1").holds(&message()));
    assert!(!parse("NOT nosuch = 1").holds(&message()));
}

#[test]
fn not_binds_tighter_than_and_and_that_tighter_than_or() {
    check(&[
        ("TRUE OR TRUE AND FALSE", TRUE),
        ("(TRUE OR TRUE) AND FALSE", FALSE),
        ("NOT FALSE AND FALSE", FALSE),
        ("NOT (FALSE AND FALSE)", TRUE),
        ("NOT i = 8", TRUE),
        ("NOT NOT i = 7", TRUE),
        ("(i = 7) = TRUE", TRUE),
        ("i = 7 -- as ever\n AND /* or\n not */ s = 'x'", FALSE),
    ]);
}

#[test]
fn of_several_tags_or_keys_one_is_enough() {
    check(&[
        ("TAGS = 'eu'", TRUE),
        ("TAGS = 'us'", FALSE),
        ("TAGS <> 'eu'", FALSE),
        ("TAGS <> 'us'", TRUE),
        ("TAGS IN ('us', 'eu')", TRUE),
        ("TAGS NOT IN ('us', 'eu')", FALSE),
        ("TAGS LIKE 'e%' AND TAGS LIKE 'p%'", TRUE),
        ("TAGS BETWEEN 'e' AND 'f'", TRUE),
        ("TAGS IS NOT NULL", TRUE),
        ("KEYS = 'k2'", TRUE),
        ("KEYS STARTSWITH 'x'", FALSE),
        ("KEYS IS NULL", FALSE),
        ("__SHARDINGKEY = 'order-7'", TRUE),
        ("tags = 'eu'", UNKNOWN),
        ("\"TAGS\" = 'eu'", UNKNOWN),
    ]);
    let bare = Parts::default();
    for (text, expected) in [
        ("TAGS = 'eu'", UNKNOWN),
        ("TAGS <> 'eu'", UNKNOWN),
        ("TAGS IS NULL AND KEYS IS NULL AND __SHARDINGKEY IS NULL", TRUE),
    ] {
        assert_eq!(truth(text, &bare), expected, "{text}");
    }
}

#[test]
fn what_cannot_be_understood_is_named_with_its_place() {
    const PRIMARY: &str = "a header, a number, a text or ( is expected, not";
    for (text, at, what) in [
        ("", 0, &*format!("{PRIMARY} the end,")),
        ("a =", 3, &format!("{PRIMARY} the end,")),
        ("a = = 1", 4, &format!("{PRIMARY} =,")),
        ("a = 1 b", 6, "b is not expected"),
        ("a = 1 = 1", 6, "= is not expected"),
        ("(a = 1", 6, ") is expected, not the end,"),
        ("a = 1)", 5, ") is not expected"),
        ("a AND AND b", 6, &format!("{PRIMARY} AND,")),
        ("a IS 5", 5, "NULL is expected, not 5,"),
        (
            "a NOT 5",
            6,
            "BETWEEN, IN, LIKE, CONTAINS, STARTSWITH or ENDSWITH behind NOT is \
                         expected, not 5,",
        ),
        ("a BETWEEN 1 OR 2", 12, "AND is expected, not OR,"),
        ("a BETWEEN 3 AND 2", 10, "nothing is between a larger one and a smaller one,"),
        ("a IN 'x'", 5, "( is expected, not 'x',"),
        ("a IN ()", 6, "a number or a text is expected, not ),"),
        ("a IN ('x' 'y')", 10, ") is expected, not 'y',"),
        ("a IN (b)", 6, "a number or a text is expected, not b,"),
        ("a CONTAINS b", 11, "a text is expected, not b,"),
        ("a LIKE 'x!' ESCAPE '!'", 7, "nothing follows the last escape of the pattern"),
        ("a LIKE 'x' ESCAPE '!!'", 18, "one character is expected behind ESCAPE,"),
        ("a = 'x", 4, "' has no other ' to close it"),
        ("\"a = 1", 0, "\" has no other \" to close it"),
        ("\"\" = 1", 0, "a header has a name; \"\" is none"),
        ("a = 1 /* b", 6, "/* has no */ to close it"),
        ("a = 5x", 4, "5x is no number, or one that is too large,"),
        ("a = 1e999", 4, "1e999 is no number, or one that is too large,"),
        (
            "a.b = 1",
            1,
            "'.' is not expected: a name that has others than letters, digits, _ \
                        and $ stands in double quotes;",
        ),
        ("a = NULL", 4, "NULL is equal to nothing: ask with IS NULL or IS NOT NULL;"),
        ("5", 0, "a condition is expected, not a number,"),
        ("a = 1 AND 'x'", 10, "a condition is expected, not a text,"),
        ("NOT 5", 4, "a condition is expected, not a number,"),
        ("5 = 'x'", 4, "a number is compared with a text, which is never equal,"),
        ("a > TRUE", 4, "true and false have no order: = or <> is expected"),
        ("'x' + 1 = 2", 0, "a number is expected, not a text,"),
        ("5 CONTAINS '5'", 0, "a text is expected, not a number,"),
        ("TAGS = KEYS", 7, "TAGS and KEYS cannot be in one comparison"),
        ("'é' = 1 AND ü ?", 7, "a text is compared with a number, which is never equal,"),
    ] {
        let error = Expression::parse(text).expect_err(text);
        assert_eq!((error.at, &*error.what), (at, what), "{text}");
    }
    let deep = format!("{}a{}", "(".repeat(33), ")".repeat(33));
    assert_eq!(
        Expression::parse(&deep).unwrap_err().to_string(),
        "more than 32 levels at byte 33 of the SQL expression"
    );
    parse(&deep[1..66]);
    for one in ["NOT ", "- "] {
        let text = format!("{} a = 1", one.repeat(40));
        assert!(Expression::parse(&text).unwrap_err().what.contains("levels"), "{text}");
    }
}

#[test]
fn long_chains_are_not_deep() {
    let sum = format!("a = 0{}", "+1".repeat(2000));
    let parts = Parts { headers: vec![("a", "2000")], ..Parts::default() };
    assert!(parse(&sum).holds(&parts));
    let all = format!("TRUE{}", " AND TRUE".repeat(400));
    assert!(parse(&all).holds(&parts));
}

// ---- against a plain evaluator

/// A condition, made at random, with what SQL says that it means.
#[derive(Clone, Debug)]
enum Plain {
    Number(&'static str, &'static str, i64),
    Text(&'static str, &'static str, &'static str),
    Null(&'static str),
    Between(&'static str, i64, i64),
    In(&'static str, Vec<&'static str>),
    Like(&'static str, &'static str),
    Not(Box<Plain>),
    And(Box<Plain>, Box<Plain>),
    Or(Box<Plain>, Box<Plain>),
}

type Headers = Vec<(&'static str, &'static str)>;

impl Plain {
    fn write(&self) -> String {
        match self {
            Plain::Number(name, sign, number) => format!("{name} {sign} {number}"),
            Plain::Text(name, sign, text) => format!("{name}{sign}'{text}'"),
            Plain::Null(name) => format!("{name} is null"),
            Plain::Between(name, low, high) => format!("{name} BETWEEN {low} AND {high}"),
            Plain::In(name, list) => format!("{name} IN ('{}')", list.join("','")),
            Plain::Like(name, pattern) => format!("{name} LIKE '{pattern}'"),
            Plain::Not(one) => format!("NOT ({})", one.write()),
            Plain::And(one, other) => format!("({}) AND ({})", one.write(), other.write()),
            Plain::Or(one, other) => format!("({} )OR( {})", one.write(), other.write()),
        }
    }

    /// 2 is true, 1 unknown, 0 false: AND is the least, OR the greatest.
    fn value(&self, headers: &Headers) -> u8 {
        let get = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        let number = |name: &str| get(name).and_then(|value| value.parse::<f64>().ok());
        let of = |truth: Option<bool>| truth.map_or(1, |truth| if truth { 2 } else { 0 });
        match self {
            Plain::Number(name, sign, number_) => of(number(name).map(|value| {
                let other = *number_ as f64;
                match *sign {
                    "=" => value == other,
                    "<>" => value != other,
                    "<" => value < other,
                    "<=" => value <= other,
                    ">" => value > other,
                    _ => value >= other,
                }
            })),
            Plain::Text(name, sign, text) => of(get(name).map(|value| match *sign {
                "=" => value == *text,
                "<>" => value != *text,
                "<" => value < *text,
                "<=" => value <= *text,
                ">" => value > *text,
                _ => value >= *text,
            })),
            Plain::Null(name) => of(Some(get(name).is_none())),
            Plain::Between(name, low, high) => {
                of(number(name).map(|value| value >= *low as f64 && value <= *high as f64))
            }
            Plain::In(name, list) => of(get(name).map(|value| list.contains(&value))),
            Plain::Like(name, pattern) => {
                of(get(name).map(|value| like(value.as_bytes(), pattern.as_bytes())))
            }
            Plain::Not(one) => 2 - one.value(headers),
            Plain::And(one, other) => one.value(headers).min(other.value(headers)),
            Plain::Or(one, other) => one.value(headers).max(other.value(headers)),
        }
    }
}

fn like(text: &[u8], pattern: &[u8]) -> bool {
    match (text, pattern) {
        (_, [b'%', rest @ ..]) => (0..=text.len()).any(|at| like(&text[at..], rest)),
        ([_, text @ ..], [b'_', rest @ ..]) => like(text, rest),
        ([a, text @ ..], [b, rest @ ..]) => a == b && like(text, rest),
        (text, pattern) => text.is_empty() && pattern.is_empty(),
    }
}

const VALUES: [&str; 8] = ["0", "1", "2.5", "-3", "true", "ab", "abc", ""];

fn plain() -> impl Strategy<Value = Plain> {
    let name = || proptest::sample::select(vec!["a", "b", "c"]);
    let sign = || proptest::sample::select(vec!["=", "<>", "<", "<=", ">", ">="]);
    let text = || proptest::sample::select(VALUES.to_vec());
    let pattern = proptest::sample::select(vec!["%", "a%", "_b", "%b%", "", "__", "a_c", "%.5"]);
    let leaf = prop_oneof![
        (name(), sign(), -3i64..4).prop_map(|(n, s, i)| Plain::Number(n, s, i)),
        (name(), sign(), text()).prop_map(|(n, s, t)| Plain::Text(n, s, t)),
        name().prop_map(Plain::Null),
        (name(), -3i64..4, 0i64..4).prop_map(|(n, low, by)| Plain::Between(n, low, low + by)),
        (name(), proptest::collection::vec(text(), 1..4)).prop_map(|(n, l)| Plain::In(n, l)),
        (name(), pattern).prop_map(|(n, p)| Plain::Like(n, p)),
    ];
    leaf.prop_recursive(5, 32, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Plain::Not(Box::new(one))),
            (inner.clone(), inner.clone())
                .prop_map(|(one, other)| Plain::And(Box::new(one), Box::new(other))),
            (inner.clone(), inner)
                .prop_map(|(one, other)| Plain::Or(Box::new(one), Box::new(other))),
        ]
    })
}

fn headers() -> impl Strategy<Value = Headers> {
    let value = || proptest::option::of(proptest::sample::select(VALUES.to_vec()));
    (value(), value(), value()).prop_map(|(a, b, c)| {
        let named = [("a", a), ("b", b), ("c", c)];
        named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    })
}

proptest! {
    #[test]
    fn a_condition_is_as_true_as_a_plain_evaluator_says(plain in plain(), headers in headers()) {
        let expected = [FALSE, UNKNOWN, TRUE][usize::from(plain.value(&headers))];
        let parts = Parts { headers, ..Parts::default() };
        prop_assert_eq!(truth(&plain.write(), &parts), expected, "{}", plain.write());
    }

    #[test]
    fn no_text_panics(text in "[ab1.'\"()=<>!*/+, \n-]{0,24}|(NOT|AND|IN|LIKE|a|1|'x'|=|\\(|\\)| ){0,12}") {
        match Expression::parse(&text) {
            Ok(expression) => _ = expression.holds(&message()),
            Err(error) => prop_assert!(error.at <= text.len(), "{error}"),
        }
    }
}
