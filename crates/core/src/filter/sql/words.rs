//! The words of a condition, and where each stands.

use std::fmt;

use super::number::Number;
use crate::filter::FilterError;

/// A word of a condition.
#[derive(Clone, Copy, Debug)]
pub enum Token<'a> {
    /// A name, or a word of the language.
    Word(&'a str),
    /// What stands in double quotes; a doubled one in it is one.
    Quoted(&'a str),
    /// What stands in single quotes; a doubled one in it is one.
    Text(&'a str),
    /// A number, and how it is written.
    Number(Number, &'a str),
    /// A sign.
    Sign(&'static str),
    /// There is nothing more.
    End,
}

/// Longer ones first.
const SIGNS: [&str; 14] =
    ["<>", "!=", "<=", ">=", "<", ">", "=", "(", ")", ",", "+", "-", "*", "/"];

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => f.write_str(word),
            Token::Quoted(name) => write!(f, "\"{name}\""),
            Token::Text(text) => write!(f, "'{text}'"),
            Token::Number(_, text) => f.write_str(text),
            Token::Sign(sign) => f.write_str(sign),
            Token::End => f.write_str("the end"),
        }
    }
}

/// That something is wrong at a byte of a condition.
pub fn error(at: usize, what: impl Into<String>) -> FilterError {
    FilterError { at, what: what.into(), part: "SQL expression" }
}

/// The words of a text, one after the other.
#[derive(Debug)]
pub struct Words<'a> {
    text: &'a str,
    end: usize,
}

impl<'a> Words<'a> {
    /// From its beginning.
    pub fn of(text: &'a str) -> Self {
        Words { text, end: 0 }
    }

    /// The next word, and its first byte.
    ///
    /// # Errors
    /// If there is something that is no word.
    pub fn next(&mut self) -> Result<(usize, Token<'a>), FilterError> {
        self.skip()?;
        let at = self.end;
        let rest = &self.text[at..];
        let Some(first) = rest.chars().next() else { return Ok((at, Token::End)) };
        let (token, len) = match first {
            '\'' | '"' => {
                let (inner, len) = quoted(rest, first).ok_or_else(|| {
                    error(at, format!("{first} has no other {first} to close it"))
                })?;
                (if first == '"' { Token::Quoted(inner) } else { Token::Text(inner) }, len)
            }
            _ if is_of_number(rest) => {
                let text = numeral(rest);
                let digits = text.strip_suffix(['l', 'L']).unwrap_or(text);
                let number = Number::parse(digits).ok_or_else(|| {
                    error(at, format!("{text} is no number, or one that is too large,"))
                })?;
                (Token::Number(number, text), text.len())
            }
            _ if is_of_word(first) => {
                let word = &rest[..rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())];
                (Token::Word(word), word.len())
            }
            _ => {
                let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
                let sign = sign.ok_or_else(|| {
                    let hint = "a name that has others than letters, digits, _ and $ stands \
                                in double quotes";
                    error(at, format!("{first:?} is not expected: {hint};"))
                })?;
                (Token::Sign(sign), sign.len())
            }
        };
        self.end = at + len;
        Ok((at, token))
    }

    /// Passes over spaces and comments.
    fn skip(&mut self) -> Result<(), FilterError> {
        loop {
            let rest = self.text[self.end..].trim_start();
            self.end = self.text.len() - rest.len();
            let len = if rest.starts_with("--") {
                rest.find(['\n', '\r']).unwrap_or(rest.len())
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let len = comment.find("*/");
                len.ok_or_else(|| error(self.end, "/* has no */ to close it"))? + 4
            } else {
                return Ok(());
            };
            self.end += len;
        }
    }
}

/// Whether it begins with a digit, or a point and a digit.
fn is_of_number(text: &str) -> bool {
    text.strip_prefix('.').unwrap_or(text).starts_with(|c: char| c.is_ascii_digit())
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// What looks like a number, up to something that can be no part of one.
fn numeral(text: &str) -> &str {
    let mut before = ' ';
    let mut is_part = |c: char| {
        let is_sign_of_exponent = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
        before = c;
        c == '.' || is_of_word(c) || is_sign_of_exponent
    };
    &text[..text.find(|c| !is_part(c)).unwrap_or(text.len())]
}

/// What stands between the quote that `text` begins with and the one that closes it, and
/// the bytes of all.
fn quoted(text: &str, quote: char) -> Option<(&str, usize)> {
    let mut end = 1;
    loop {
        end += text[end..].find(quote)?;
        match text[end + 1..].starts_with(quote) {
            true => end += 2,
            false => return Some((&text[1..end], end + 1)),
        }
    }
}
