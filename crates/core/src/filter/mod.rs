//! Filters: which messages of its topics a group gets.
//!
//! A filter is an expression on tags (see [`tags`]), or `sql:` and a condition on headers
//! (see [`sql`]): `paid || refunded`, `sql: region = 'eu' AND price > 10`.
//!
//! Tags are decided on hashes, which the index holds; a regular expression on a tag and a
//! condition on headers need the body.

pub mod sql;
pub mod tags;

use crate::ident::Secret;
use crate::message::Parts;

/// The longest filter in bytes.
pub const MAX_FILTER_BYTES: usize = 4096;

/// What a condition on headers begins with. A tag that begins like this needs quotes.
pub const SQL: &str = "sql:";

/// How deep conditions can be within each other.
const MAX_DEPTH: usize = 32;

/// The largest program that a regular expression or a pattern is made into, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Why a text is not a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of the {part}")]
pub struct FilterError {
    /// Byte offset of what could not be understood, in the part.
    pub at: usize,
    /// What is wrong.
    pub what: String,
    /// What the offset counts from: the whole filter, or what stands behind `sql:`.
    pub part: &'static str,
}

/// A filter, ready to be evaluated in one store.
#[derive(Clone, Debug, Default)]
pub struct Filter(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Tags(tags::Expression),
    Sql(sql::Expression),
}

impl Default for Kind {
    fn default() -> Self {
        Kind::Tags(tags::Expression::default())
    }
}

impl Filter {
    /// Parses `text` for the store whose secret hashes tags.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn parse(text: &str, secret: &Secret) -> Result<Filter, FilterError> {
        if text.len() > MAX_FILTER_BYTES {
            let what =
                format!("{} bytes are too many, the most is {MAX_FILTER_BYTES},", text.len());
            return Err(FilterError { at: 0, what, part: "filter" });
        }
        Ok(Filter(match text.trim_start().strip_prefix(SQL) {
            Some(condition) => Kind::Sql(sql::Expression::parse(condition.trim_start())?),
            None => Kind::Tags(tags::Expression::parse(text, secret)?),
        }))
    }

    /// Whether every message passes.
    pub fn is_everything(&self) -> bool {
        matches!(&self.0, Kind::Tags(tags) if tags.is_everything())
    }

    /// Decides on the hashes of a message's tags. `None` if the message itself is needed.
    pub fn by_hash(&self, tags: &[u64]) -> Option<bool> {
        match &self.0 {
            Kind::Tags(expression) => expression.by_hash(tags),
            Kind::Sql(_) => None,
        }
    }

    /// Decides on the message.
    pub fn passes(&self, parts: &Parts<'_>) -> bool {
        match &self.0 {
            Kind::Tags(expression) => expression.by_text(&parts.tags),
            Kind::Sql(expression) => expression.holds(parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_on_tags_or_on_headers() {
        let secret = Secret::new([3; 32]);
        let parse = |text: &str| Filter::parse(text, &secret);
        let parts = Parts { tags: vec!["a"], headers: vec![("n", "7")], ..Parts::default() };
        let of_tags = parse("a").unwrap();
        assert_eq!(of_tags.by_hash(&[secret.hash(b"a")]), Some(true));
        assert!(of_tags.passes(&parts));
        let of_headers = parse(" sql: n > 5").unwrap();
        assert_eq!(of_headers.by_hash(&[secret.hash(b"a")]), None);
        assert!(of_headers.passes(&parts));
        assert!(!of_headers.is_everything() && parse("*").unwrap().is_everything());
        assert!(!parse("\"sql:\"").unwrap().passes(&parts), "in quotes it is a tag");
        for text in [&"a".repeat(5000), &format!("sql:{}", "a".repeat(5000))] {
            assert!(parse(text).unwrap_err().to_string().contains("the most is 4096"));
        }
        assert_eq!(
            parse("  sql:  n >").unwrap_err().to_string(),
            "a header, a number, a text or ( is expected, not the end, at byte 3 of the SQL \
             expression"
        );
    }
}
