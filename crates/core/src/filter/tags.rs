//! Expressions on tags.
//!
//! ```text
//! filter  = "*" | or
//! or      = and  { ( "or"  | "||" | "," ) and }
//! and     = not  { ( "and" | "&&" ) not }
//! not     = { "not" | "!" } primary
//! primary = tag | '"' tag '"' | "/" regex "/" | "(" or ")"
//! ```
//! `paid || refunded`, `eu and not test`, `/^v[0-9]+$/`. Words are matched without
//! regard to case only for `and`, `or`, `not`; tags are exact. A message without
//! tags passes `*` and what a `not` lets through.
//!
//! Everything but a regular expression is decided on hashes, which the index
//! holds; a regular expression needs the text, and so the body.

use std::fmt;

use regex::{Regex, RegexBuilder};

use super::{FilterError, MAX_DEPTH, MAX_REGEX_BYTES};
use crate::ident::Secret;

/// The most regular expressions of a filter: one of a few characters takes up to
/// [`MAX_REGEX_BYTES`], and time to be made ready.
const MAX_REGEXES: usize = 16;

/// An expression, ready to be evaluated in one store.
#[derive(Clone, Debug)]
pub struct Expression(Node);

#[derive(Clone, Debug)]
enum Node {
    Everything,
    Tag { hash: u64, text: String },
    Regex(Regex),
    Any(Vec<Node>),
    All(Vec<Node>),
    Not(Box<Node>),
}

impl Default for Expression {
    fn default() -> Self {
        Expression(Node::Everything)
    }
}

impl Expression {
    /// Parses `text` for the store whose secret hashes tags. It is no longer than a filter
    /// can be.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn parse(text: &str, secret: &Secret) -> Result<Expression, FilterError> {
        let mut parser = Parser { text, at: 0, depth: 0, regexes: 0, secret };
        let node = parser.or()?;
        match parser.peek()? {
            Token::End => Ok(Expression(node)),
            other => Err(parser.error(format!("{other} is not expected"))),
        }
    }

    /// Whether every message passes.
    pub fn is_everything(&self) -> bool {
        matches!(self.0, Node::Everything)
    }

    /// Decides on the hashes of a message's tags. `None` if the text is needed.
    pub fn by_hash(&self, tags: &[u64]) -> Option<bool> {
        self.0.by_hash(tags)
    }

    /// Decides on the text of a message's tags.
    pub fn by_text(&self, tags: &[&str]) -> bool {
        self.0.by_text(tags)
    }
}

impl Node {
    fn by_hash(&self, tags: &[u64]) -> Option<bool> {
        match self {
            Node::Everything => Some(true),
            Node::Tag { hash, .. } => Some(tags.contains(hash)),
            Node::Regex(_) => tags.is_empty().then_some(false),
            Node::Not(node) => node.by_hash(tags).map(|passes| !passes),
            Node::Any(nodes) => fold(nodes, tags, true),
            Node::All(nodes) => fold(nodes, tags, false),
        }
    }

    fn by_text(&self, tags: &[&str]) -> bool {
        match self {
            Node::Everything => true,
            Node::Tag { text, .. } => tags.contains(&text.as_str()),
            Node::Regex(regex) => tags.iter().any(|tag| regex.is_match(tag)),
            Node::Not(node) => !node.by_text(tags),
            Node::Any(nodes) => nodes.iter().any(|node| node.by_text(tags)),
            Node::All(nodes) => nodes.iter().all(|node| node.by_text(tags)),
        }
    }
}

/// `settles` decides the whole as soon as one part has it: true for "any", false
/// for "all". An undecided part leaves the whole undecided unless another settles.
fn fold(nodes: &[Node], tags: &[u64], settles: bool) -> Option<bool> {
    let mut whole = Some(!settles);
    for node in nodes {
        match node.by_hash(tags) {
            Some(part) if part == settles => return Some(settles),
            Some(_) => {}
            None => whole = None,
        }
    }
    whole
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Quoted(&'a str),
    Pattern(&'a str),
    Star,
    Open,
    Close,
    And,
    Or,
    Not,
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(text) | Token::Quoted(text) => write!(f, "the tag {text:?}"),
            Token::Pattern(text) => write!(f, "the pattern /{text}/"),
            Token::Star => f.write_str("*"),
            Token::Open => f.write_str("("),
            Token::Close => f.write_str(")"),
            Token::And => f.write_str("\"and\""),
            Token::Or => f.write_str("\"or\""),
            Token::Not => f.write_str("\"not\""),
            Token::End => f.write_str("the end"),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    regexes: usize,
    secret: &'a Secret,
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> FilterError {
        FilterError { at: self.at, what: what.into(), part: "filter" }
    }

    /// The next token and the bytes it takes.
    fn token(&mut self) -> Result<(Token<'a>, usize), FilterError> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        let rest = &self.text[self.at..];
        let Some(first) = rest.chars().next() else { return Ok((Token::End, 0)) };
        let twice = |c: char| if rest[1..].starts_with(c) { 2 } else { 1 };
        Ok(match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '*' => (Token::Star, 1),
            '!' => (Token::Not, 1),
            ',' => (Token::Or, 1),
            '|' => (Token::Or, twice('|')),
            '&' => (Token::And, twice('&')),
            '"' | '/' => {
                let Some(end) = closing(&rest[1..], first) else {
                    return Err(self.error(format!("{first} has no other {first} to close it")));
                };
                let inner = &rest[1..1 + end];
                let token = if first == '"' { Token::Quoted(inner) } else { Token::Pattern(inner) };
                (token, end + 2)
            }
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || "()*!,|&\"".contains(c))
                    .unwrap_or(rest.len());
                let word = &rest[..end];
                let token = match word.to_ascii_lowercase().as_str() {
                    "and" => Token::And,
                    "or" => Token::Or,
                    "not" => Token::Not,
                    _ => Token::Word(word),
                };
                (token, end)
            }
        })
    }

    fn peek(&mut self) -> Result<Token<'a>, FilterError> {
        Ok(self.token()?.0)
    }

    /// Takes the next token if it is `wanted`.
    fn takes(&mut self, wanted: Token<'_>) -> Result<bool, FilterError> {
        let (token, len) = self.token()?;
        let is_it = token == wanted;
        if is_it {
            self.at += len;
        }
        Ok(is_it)
    }

    fn or(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.and()?];
        while self.takes(Token::Or)? {
            nodes.push(self.and()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Any(nodes) })
    }

    fn and(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.not()?];
        while self.takes(Token::And)? {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::All(nodes) })
    }

    fn not(&mut self) -> Result<Node, FilterError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("more than {MAX_DEPTH} levels")));
        }
        let node = if self.takes(Token::Not)? {
            Node::Not(Box::new(self.not()?))
        } else {
            self.primary()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn primary(&mut self) -> Result<Node, FilterError> {
        let (token, len) = self.token()?;
        let node = match token {
            Token::Star => Node::Everything,
            Token::Word(text) | Token::Quoted(text) => {
                Node::Tag { hash: self.secret.hash(text.as_bytes()), text: text.to_owned() }
            }
            Token::Pattern(text) => {
                self.regexes += 1;
                if self.regexes > MAX_REGEXES {
                    return Err(self.error(format!("more than {MAX_REGEXES} regular expressions")));
                }
                let regex = RegexBuilder::new(&text.replace("\\/", "/"))
                    .size_limit(MAX_REGEX_BYTES)
                    .build()
                    .map_err(|e| self.error(format!("the regular expression is no good: {e}")))?;
                Node::Regex(regex)
            }
            Token::Open => {
                self.at += len;
                let node = self.or()?;
                if !self.takes(Token::Close)? {
                    return Err(self.error("a ) is missing"));
                }
                return Ok(node);
            }
            other => return Err(self.error(format!("a tag is expected, not {other},"))),
        };
        self.at += len;
        Ok(node)
    }
}

/// The offset of the closing mark, passing over one behind a backslash.
fn closing(text: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if mark == '/' => escaped = true,
            _ if c == mark => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        Secret::new([3; 32])
    }

    fn parse(text: &str) -> Expression {
        Expression::parse(text, &secret()).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[track_caller]
    fn check(filter: &str, tags: &[&str], expected: bool) {
        let parsed = parse(filter);
        assert_eq!(parsed.by_text(tags), expected, "{filter} over {tags:?} by text");
        let hashes: Vec<u64> = tags.iter().map(|t| secret().hash(t.as_bytes())).collect();
        if let Some(by_hash) = parsed.by_hash(&hashes) {
            assert_eq!(by_hash, expected, "{filter} over {tags:?} by hash");
        } else {
            assert!(filter.contains('/'), "{filter} over {tags:?} is undecided");
        }
    }

    #[test]
    fn tags_are_combined_by_and_or_not() {
        check("*", &[], true);
        check("paid", &["paid"], true);
        check("paid", &["Paid"], false);
        check("paid", &[], false);
        check("paid || refunded", &["refunded"], true);
        check("paid, refunded", &["refunded", "eu"], true);
        check("paid or refunded", &["eu"], false);
        check("eu and paid", &["paid", "eu"], true);
        check("eu && paid", &["eu"], false);
        check("not test", &[], true);
        check("eu AND NOT test", &["eu", "test"], false);
        check("eu and !test", &["eu"], true);
        check("a or b and c", &["a"], true);
        check("(a or b) and c", &["a"], false);
        check("!(a or b)", &["c"], true);
        check("\"and\" or \"x y\"", &["x y"], true);
        check("\"and\"", &["and"], true);
    }

    #[test]
    fn a_regular_expression_looks_at_each_tag() {
        check("/^v[0-9]+$/", &["eu", "v12"], true);
        check("/^v[0-9]+$/", &["v12x"], false);
        check("/a\\/b/", &["a/b"], true);
        check("/^v/ and not v1", &["v1"], false);
        check("/^v/", &[], false);
        check("eu or /^v/", &["eu"], true);
    }

    #[test]
    fn hashes_decide_unless_the_regular_expression_matters() {
        let hash = |t: &str| secret().hash(t.as_bytes());
        assert_eq!(parse("eu or /^v/").by_hash(&[hash("eu")]), Some(true));
        assert_eq!(parse("eu or /^v/").by_hash(&[hash("v1")]), None);
        assert_eq!(parse("eu and /^v/").by_hash(&[hash("v1")]), Some(false));
    }

    #[test]
    fn what_cannot_be_understood_is_named_with_its_place() {
        let error = |text: &str| Expression::parse(text, &secret()).unwrap_err().to_string();
        assert_eq!(error(""), "a tag is expected, not the end, at byte 0 of the filter");
        assert_eq!(error("a or"), "a tag is expected, not the end, at byte 4 of the filter");
        assert_eq!(error("a b"), "the tag \"b\" is not expected at byte 2 of the filter");
        assert_eq!(error("(a"), "a ) is missing at byte 2 of the filter");
        assert_eq!(error("a)"), ") is not expected at byte 1 of the filter");
        assert_eq!(error("x \"a"), "\" has no other \" to close it at byte 2 of the filter");
        assert!(error("/(/").starts_with("the regular expression is no good"));
        assert_eq!(error(&"!".repeat(40)), "more than 32 levels at byte 32 of the filter");
    }

    /// Four kilobytes of short expressions took a hundred megabytes, and seconds each time the
    /// filter was read.
    #[test]
    fn a_filter_has_only_so_many_regular_expressions() {
        let of = |count: usize| vec!["/a/"; count].join(" or ");
        assert!(Expression::parse(&of(MAX_REGEXES), &secret()).is_ok());
        let refused = Expression::parse(&of(MAX_REGEXES + 1), &secret()).unwrap_err();
        assert_eq!(refused.what, "more than 16 regular expressions");
    }
}
