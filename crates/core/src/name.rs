//! Names of topics and groups, and patterns over topics.

use std::fmt;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 200;

/// The longest name that the system makes of those of a group and a consumer, in bytes.
pub const MAX_SYSTEM_BYTES: usize = 2 * MAX_NAME_BYTES + 32;

/// What begins the names of topics and groups that the system keeps for itself.
pub const SYSTEM_PREFIX: char = '%';

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a name cannot be empty")]
    Empty,
    /// Too long.
    #[error("the name has {bytes} bytes; the most is {MAX_NAME_BYTES}")]
    Long {
        /// Its length.
        bytes: usize,
    },
    /// A character that has no place in a name.
    #[error(
        "{found:?} at byte {at} has no place in a name; letters a-z A-Z, digits and . _ - have"
    )]
    Character {
        /// The character.
        found: char,
        /// Where it stands.
        at: usize,
    },
    /// A leading `%`.
    #[error("names that begin with % are kept for the system")]
    System,
}

/// Checks a name that a user gives to something new.
///
/// # Errors
/// See [`NameError`]; names of the system are refused.
pub fn check(name: &str) -> Result<(), NameError> {
    if name.starts_with(SYSTEM_PREFIX) {
        return Err(NameError::System);
    }
    check_rest(name, None, MAX_NAME_BYTES)
}

/// Checks the name of something that may belong to the system: such a name is made of
/// others, and may be longer.
///
/// # Errors
/// See [`NameError`].
pub fn check_any(name: &str) -> Result<(), NameError> {
    match name.strip_prefix(SYSTEM_PREFIX) {
        Some("") => Err(NameError::Empty),
        Some(_) => check_rest(name, Some(SYSTEM_PREFIX), MAX_SYSTEM_BYTES),
        None => check(name),
    }
}

/// Checks characters, of which `also` is one, and length.
fn check_rest(rest: &str, also: Option<char>, most: usize) -> Result<(), NameError> {
    if rest.is_empty() {
        return Err(NameError::Empty);
    }
    if rest.len() > most {
        return Err(NameError::Long { bytes: rest.len() });
    }
    for (at, found) in rest.char_indices() {
        let fits = found.is_ascii_alphanumeric()
            || matches!(found, '.' | '_' | '-')
            || also == Some(found);
        if !fits {
            return Err(NameError::Character { found, at });
        }
    }
    Ok(())
}

/// Which topics a subscription means: one by its name, or all that match a
/// pattern, in which `*` stands for any characters, also none. A pattern never
/// matches a topic of the system; a plain name may be one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPattern(String);

impl TopicPattern {
    /// Parses a name or a pattern.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.contains('*') {
            if text.starts_with(SYSTEM_PREFIX) {
                return Err(NameError::System);
            }
            check_rest(text, Some('*'), MAX_NAME_BYTES)?;
        } else {
            check_any(text)?;
        }
        Ok(TopicPattern(text.to_owned()))
    }

    /// The text it was parsed from.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one topic that it names, if it is not a pattern.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }

    /// Whether `topic` is meant.
    pub fn matches(&self, topic: &str) -> bool {
        match self.exact() {
            Some(name) => name == topic,
            None => !topic.starts_with(SYSTEM_PREFIX) && glob(self.0.as_bytes(), topic.as_bytes()),
        }
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Matches with one point of return, the last star: linear for one star, never
/// worse than the product of both lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p + 1, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((after_star, taken)) = retry {
            retry = Some((after_star, taken + 1));
            p = after_star;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// The dead-letter topic of a group.
pub fn dead_letter_topic(group: &str) -> String {
    format!("%dead.{group}")
}

/// The topic through which a group gets redriven messages again.
pub fn retry_topic(group: &str) -> String {
    format!("%retry.{group}")
}

/// The group of one consumer that asked for its own copy of what `group` gets. Between
/// the two stands what neither can have: other groups and consumers make other names.
pub fn broadcast_group(group: &str, consumer: &str) -> String {
    format!("%broadcast.{group}%{consumer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_letters_digits_and_three_marks() {
        assert_eq!(check("orders.eu_west-1"), Ok(()));
        assert_eq!(check(""), Err(NameError::Empty));
        assert_eq!(check("%dead.g"), Err(NameError::System));
        assert_eq!(check_any("%dead.g"), Ok(()));
        assert_eq!(check_any("%"), Err(NameError::Empty));
        assert_eq!(check("a b"), Err(NameError::Character { found: ' ', at: 1 }));
        assert_eq!(check("%a"), Err(NameError::System));
        assert_eq!(check_any("%a b"), Err(NameError::Character { found: ' ', at: 2 }));
        assert_eq!(check(&"x".repeat(200)), Ok(()));
        assert_eq!(check(&"x".repeat(201)), Err(NameError::Long { bytes: 201 }));
        assert_eq!(check("bestellungen-ä"), Err(NameError::Character { found: 'ä', at: 13 }));
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        let cases = [
            ("orders.*", "orders.created", true),
            ("orders.*", "orders.eu.created", true),
            ("orders.*", "orders.", true),
            ("orders.*", "orders", false),
            ("*.created", "orders.created", true),
            ("*.created", "orders.created.x", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("*", "anything", true),
            ("*", "%dead.g", false),
            ("%dead.g", "%dead.g", true),
            ("orders", "orders", true),
            ("orders", "orders.x", false),
        ];
        for (pattern, topic, expected) in cases {
            let pattern = TopicPattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(topic), expected, "{pattern} over {topic}");
        }
        assert_eq!(TopicPattern::parse("%dead.*"), Err(NameError::System));
    }

    #[test]
    fn whatever_a_group_and_a_consumer_are_called_the_system_has_a_name_for_what_is_theirs() {
        let long = "x".repeat(MAX_NAME_BYTES);
        let own = broadcast_group(&long, &long);
        for group in [&long, &own] {
            assert_eq!(check_any(&dead_letter_topic(group)), Ok(()));
            assert_eq!(check_any(&retry_topic(group)), Ok(()));
        }
        assert_ne!(broadcast_group("a.b", "c"), broadcast_group("a", "b.c"));
    }

    #[test]
    fn a_pattern_full_of_stars_ends_soon() {
        let pattern = TopicPattern::parse(&"a*".repeat(100)).unwrap();
        let topic = "a".repeat(99) + &"b".repeat(100);
        assert!(!pattern.matches(&topic));
    }
}
