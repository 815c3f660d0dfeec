//! Conditions on the headers of a message, in the words of SQL-92.
//!
//! ```text
//! condition = and { OR and }
//! and       = not { AND not }
//! not       = NOT not | predicate
//! predicate = sum [ ( "=" | "<>" | "<" | "<=" | ">" | ">=" ) sum
//!                 | IS [ NOT ] NULL
//!                 | [ NOT ] BETWEEN sum AND sum
//!                 | [ NOT ] IN "(" constant { "," constant } ")"
//!                 | [ NOT ] LIKE text [ ESCAPE text ]
//!                 | [ NOT ] ( CONTAINS | STARTSWITH | ENDSWITH ) text ]
//! sum       = product { ( "+" | "-" ) product }
//! product   = unary { ( "*" | "/" ) unary }
//! unary     = ( "+" | "-" ) unary | primary
//! primary   = header | number | text | TRUE | FALSE | "(" condition ")"
//! constant  = [ "+" | "-" ] number | text
//! ```
//! Words are matched without regard to case; a text is in single quotes, in which `''` is
//! one. A header's name is letters, digits, `_` and `$`, no digit first; any other stands
//! in double quotes. `--` begins a comment up to the line's end; `/* */` are one.
//!
//! **Headers are texts**; what else takes part says how one is read. Beside a number it is
//! a number, beside a text a text, beside `TRUE` or `FALSE`, or alone as a condition, one of
//! these. Two headers are compared as numbers if both are some, else they are only equal or
//! not, as texts. Texts are ordered by their bytes.
//!
//! **Three values**: true, false and unknown. What is not there, or cannot be read as it
//! would have to be, makes a predicate unknown, and so do a division by zero and a number
//! that is too large. `NOT`, `AND` and `OR` are those of SQL. A message passes if the
//! condition is true.
//!
//! **Names of the system** mean parts of a message, unless they are in quotes: `TAGS` its
//! tags, `KEYS` the keys that a RocketMQ producer gave it, `__SHARDINGKEY` its key. Of
//! several tags or keys one is enough: `TAGS = 'a'` is true if one of them is `a`, and
//! `TAGS <> 'a'` if none is.

mod number;
mod parse;
#[cfg(test)]
mod tests;
mod words;

use std::cmp::Ordering;

use number::Number;
use regex::Regex;

use super::FilterError;
use crate::message::{self, Parts};

/// A condition, ready to be evaluated.
#[derive(Clone, Debug)]
pub struct Expression(Node);

impl Expression {
    /// Parses a condition. It is no longer than a filter can be.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn parse(text: &str) -> Result<Expression, FilterError> {
        parse::condition(text).map(Expression)
    }

    /// Whether the condition is true of a message.
    pub fn holds(&self, parts: &Parts<'_>) -> bool {
        self.0.truth(&Message::of(parts)) == Some(true)
    }
}

#[derive(Clone, Debug)]
enum Node {
    Header(Name),
    Number(Number),
    Text(String),
    Bool(bool),
    Negate(Box<Node>),
    /// `first + ... - ...`: each with whether it is subtracted.
    Sum(Vec<(bool, Node)>),
    /// `first * ... / ...`: each with whether it divides.
    Product(Vec<(bool, Node)>),
    Compare(Comparison, Box<[Node; 2]>),
    In(Box<Node>, Vec<Node>),
    Matches(Box<Node>, Pattern),
    IsNull(Box<Node>),
    /// True if the predicate is for one of them.
    OneOf(Several, Box<Node>),
    Not(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
}

#[derive(Clone, Debug)]
enum Name {
    Header(String),
    Key,
    Several(Several),
}

/// Of what a message can have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Several {
    Tags,
    Keys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug)]
enum Pattern {
    Contains(String),
    Starts(String),
    Ends(String),
    Like(Regex),
}

/// What a condition is evaluated on.
#[derive(Clone, Copy)]
struct Message<'a> {
    parts: &'a Parts<'a>,
    /// The one that counts at the moment.
    tag: Option<&'a str>,
    key: Option<&'a str>,
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Unknown,
    Bool(bool),
    Number(Number),
    Text(&'a str),
    /// A text that may be meant as something else.
    Header(&'a str),
}

impl<'a> Message<'a> {
    fn of(parts: &'a Parts<'a>) -> Self {
        let tag = parts.tags.first().copied();
        Message { parts, tag, key: keys(parts).next() }
    }

    fn get(&self, name: &Name) -> Option<&'a str> {
        match name {
            Name::Header(name) => header(self.parts, name),
            Name::Key => self.parts.key,
            Name::Several(Several::Tags) => self.tag,
            Name::Several(Several::Keys) => self.key,
        }
    }
}

fn header<'a>(parts: &Parts<'a>, name: &str) -> Option<&'a str> {
    parts.headers.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
}

fn keys<'a>(parts: &Parts<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    header(parts, message::KEYS_HEADER).into_iter().flat_map(|text| text.split(message::KEYS_END))
}

impl Node {
    /// Whether it is true. `None` is unknown.
    fn truth(&self, message: &Message<'_>) -> Option<bool> {
        match self {
            Node::Not(node) => node.truth(message).map(|truth| !truth),
            Node::Any(nodes) => one_of(nodes.iter().map(|node| node.truth(message))),
            Node::All(nodes) => {
                one_of(nodes.iter().map(|node| node.truth(message).map(|truth| !truth)))
                    .map(|one_is_false| !one_is_false)
            }
            Node::Compare(how, sides) => {
                compare(*how, sides[0].value(message), sides[1].value(message))
            }
            Node::In(node, list) => {
                let value = node.value(message);
                let equal = |other: &Node| compare(Comparison::Equal, value, other.value(message));
                one_of(list.iter().map(equal))
            }
            Node::Matches(node, pattern) => match node.value(message) {
                Value::Text(text) | Value::Header(text) => Some(pattern.matches(text)),
                _ => None,
            },
            Node::IsNull(node) => Some(matches!(node.value(message), Value::Unknown)),
            Node::OneOf(Several::Tags, node) if message.parts.tags.len() > 1 => {
                let tags = message.parts.tags.iter();
                one_of(tags.map(|tag| node.truth(&Message { tag: Some(tag), ..*message })))
            }
            Node::OneOf(Several::Keys, node) if message.key.is_some() => {
                let keys = keys(message.parts);
                one_of(keys.map(|key| node.truth(&Message { key: Some(key), ..*message })))
            }
            Node::OneOf(_, node) => node.truth(message),
            _ => self.value(message).truth(),
        }
    }

    fn value<'a>(&'a self, message: &Message<'a>) -> Value<'a> {
        match self {
            Node::Header(name) => message.get(name).map_or(Value::Unknown, Value::Header),
            Node::Number(number) => Value::Number(*number),
            Node::Text(text) => Value::Text(text),
            Node::Bool(truth) => Value::Bool(*truth),
            Node::Negate(_) | Node::Sum(_) | Node::Product(_) => {
                self.number(message).map_or(Value::Unknown, Value::Number)
            }
            _ => self.truth(message).map_or(Value::Unknown, Value::Bool),
        }
    }

    fn number(&self, message: &Message<'_>) -> Option<Number> {
        match self {
            Node::Negate(node) => node.number(message).map(Number::negate),
            Node::Sum(terms) => fold(terms, message, Number::plus, Number::minus),
            Node::Product(factors) => fold(factors, message, Number::times, Number::over),
            _ => self.value(message).number(),
        }
    }
}

/// The first with all that follow, each by `other` if it is marked, else by `one`.
fn fold(
    nodes: &[(bool, Node)],
    message: &Message<'_>,
    one: fn(Number, Number) -> Option<Number>,
    other: fn(Number, Number) -> Option<Number>,
) -> Option<Number> {
    let (first, rest) = nodes.split_first()?;
    let first = first.1.number(message)?;
    rest.iter().try_fold(first, |sum, (is_other, node)| {
        let node = node.number(message)?;
        if *is_other { other(sum, node) } else { one(sum, node) }
    })
}

/// True if one is, else unknown if one is.
fn one_of(mut parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    parts
        .try_fold(Some(false), |so_far, part| match part {
            Some(true) => Err(()),
            Some(false) => Ok(so_far),
            None => Ok(None),
        })
        .unwrap_or(Some(true))
}

impl Value<'_> {
    fn truth(self) -> Option<bool> {
        match self {
            Value::Bool(truth) => Some(truth),
            Value::Header(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::Header(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }

    fn number(self) -> Option<Number> {
        match self {
            Value::Number(number) => Some(number),
            Value::Header(text) => Number::parse(text),
            _ => None,
        }
    }
}

fn compare(how: Comparison, left: Value<'_>, right: Value<'_>) -> Option<bool> {
    let order = match (left, right) {
        (Value::Bool(_), _) | (_, Value::Bool(_)) => left.truth()?.cmp(&right.truth()?),
        (Value::Header(left), Value::Header(right)) => {
            match (Number::parse(left), Number::parse(right)) {
                (Some(left), Some(right)) => left.order(right),
                _ if how == Comparison::Equal => left.cmp(right),
                _ => return None,
            }
        }
        (Value::Text(left), Value::Header(right) | Value::Text(right))
        | (Value::Header(left), Value::Text(right)) => left.cmp(right),
        _ => left.number()?.order(right.number()?),
    };
    Some(match how {
        Comparison::Equal => order == Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::LessOrEqual => order != Ordering::Greater,
        Comparison::Greater => order == Ordering::Greater,
        Comparison::GreaterOrEqual => order != Ordering::Less,
    })
}

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::Contains(part) => text.contains(part),
            Pattern::Starts(part) => text.starts_with(part),
            Pattern::Ends(part) => text.ends_with(part),
            Pattern::Like(regex) => regex.is_match(text),
        }
    }
}
