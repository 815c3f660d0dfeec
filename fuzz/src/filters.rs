//! Filters on tags and on headers: what they say of messages.

use posthouse_core::filter::{Filter, FilterError, MAX_FILTER_BYTES, SQL};
use posthouse_core::message::Parts;

use crate::{Seeds, memory, secret, text};

/// So many messages of an input are looked at.
const MESSAGES: usize = 8;

/// What a filter may take. It is not in proportion to its text: each of its regular
/// expressions may have a megabyte, and as much again while it is made and looks at texts.
const FILTER_BYTES: usize = 64 << 20;

/// The filter; behind a zero byte messages, with a line for each of their parts: `name=value`
/// is a header, `@text` the key, any other line a tag. An empty line ends a message.
pub fn run(data: &[u8]) {
    let (filter, messages) = text(data).split_once('\0').unwrap_or((text(data), ""));
    let messages: Vec<Parts<'_>> = messages.split("\n\n").take(MESSAGES).map(parts).collect();
    let Some(passed) = memory::within(FILTER_BYTES, || alone(filter, &messages)) else { return };
    let passed_in = |text: String| memory::within(FILTER_BYTES, || judged(&text, &messages));
    let (same, not, unknown) = match filter.trim_start().strip_prefix(SQL) {
        // A comment may be the last thing in it, up to the end of the line. A header alone
        // is not NULL if it is there, whatever it would be as a condition.
        Some(of) => (
            passed_in(format!("{SQL} ({of}\n)")),
            passed_in(format!("{SQL} NOT ({of}\n)")),
            passed_in(format!("{SQL} (({of}\n) AND TRUE) IS NULL")),
        ),
        None => (
            passed_in(format!("({filter})")),
            passed_in(format!("not ({filter})")),
            // Tags are there or not.
            Some(vec![false; messages.len()]),
        ),
    };
    assert!(same.is_none_or(|same| same == passed), "another filter with parentheses around it");
    if let (Some(not), Some(unknown)) = (not, unknown) {
        for ((passes, not), unknown) in passed.into_iter().zip(not).zip(unknown) {
            let holds = [passes, not, unknown].into_iter().filter(|holds| *holds).count();
            assert_eq!(holds, 1, "true {passes}, false {not}, unknown {unknown}");
        }
    }
}

/// Which messages pass, if the filter is understood: by themselves, and as far as hashes
/// decide.
fn alone(filter: &str, messages: &[Parts<'_>]) -> Option<Vec<bool>> {
    let parsed = match parse(filter) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(error.at <= filter.len() && !error.what.is_empty(), "{error}");
            return None;
        }
    };
    assert!(filter.len() <= MAX_FILTER_BYTES);
    let needs_no_message = !filter.trim_start().starts_with(SQL) && !filter.contains('/');
    let judge = |message: &Parts<'_>| {
        let passes = parsed.passes(message);
        let secret = secret();
        let hash = |tag: &&str| secret.hash(tag.as_bytes());
        let by_hash = parsed.by_hash(&message.tags.iter().map(hash).collect::<Vec<_>>());
        assert!(by_hash.is_none_or(|by_hash| by_hash == passes), "{parsed:?} over {message:?}");
        assert!(by_hash.is_some() || !needs_no_message, "{parsed:?} over {message:?}");
        assert!(passes || !parsed.is_everything());
        passes
    };
    Some(messages.iter().map(judge).collect())
}

/// Which messages pass. A filter within another may have become too long or too deep.
fn judged(filter: &str, messages: &[Parts<'_>]) -> Option<Vec<bool>> {
    let parsed = parse(filter).ok()?;
    Some(messages.iter().map(|message| parsed.passes(message)).collect())
}

fn parse(text: &str) -> Result<Filter, FilterError> {
    Filter::parse(text, &secret())
}

fn parts(lines: &str) -> Parts<'_> {
    let mut parts = Parts::default();
    for line in lines.lines() {
        match (line.strip_prefix('@'), line.split_once('=')) {
            (Some(key), _) => parts.key = Some(key),
            (None, Some(header)) => parts.headers.push(header),
            (None, None) => parts.tags.push(line),
        }
    }
    parts
}

pub fn seeds() -> Seeds {
    let messages = "\0paid\neu\n\na=7\nb=x\n@order-1\n\n\nurgent=true\nregion=eu";
    let seed = |filter: &str| format!("{filter}{messages}").into_bytes();
    vec![
        ("everything", seed("*")),
        ("tags", seed("paid || refunded, eu and not (test && \"x y\")")),
        ("regex", seed(r"eu or /^v[0-9]+\/$/ & !/a|b/")),
        ("compare", seed("sql: region = 'eu' AND (a * 2 - -1.5e3 >= b / 10 OR urgent)")),
        ("ranges", seed("sql: a NOT BETWEEN 1 AND 9 OR b IN (-1, 2.5) OR b NOT IN ('x', 'it''s')")),
        ("texts", seed("sql: b LIKE '_!%%' ESCAPE '!' OR b CONTAINS 'x' AND NOT b STARTSWITH 'y'")),
        ("nulls", seed("sql: \"a\" IS NOT NULL -- why\n AND (a > b) IS NULL AND FALSE <> TRUE")),
        (
            "several",
            seed("sql: TAGS = 'eu' AND KEYS <> 'k' /* all */ AND __SHARDINGKEY ENDSWITH '1'"),
        ),
    ]
}
