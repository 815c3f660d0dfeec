//! From a text to a condition.

use regex::RegexBuilder;

use super::words::{Token, Words, error};
use super::{Comparison, Name, Node, Pattern, Several, compare};
use crate::filter::{FilterError, MAX_DEPTH, MAX_REGEX_BYTES};

/// Words of the language that no header can be named by without quotes.
const RESERVED: [&str; 10] =
    ["AND", "OR", "NOT", "IS", "NULL", "BETWEEN", "IN", "CONTAINS", "STARTSWITH", "ENDSWITH"];

const COMPARISONS: [(&str, Comparison); 5] = [
    ("=", Comparison::Equal),
    ("<", Comparison::Less),
    ("<=", Comparison::LessOrEqual),
    (">", Comparison::Greater),
    (">=", Comparison::GreaterOrEqual),
];

/// Parses a whole condition.
pub fn condition(text: &str) -> Result<Node, FilterError> {
    let mut words = Words::of(text);
    let (at, token) = words.next()?;
    let mut parser = Parser { words, token, at, depth: 0 };
    let node = parser.or()?.condition()?;
    match parser.token {
        Token::End => Ok(node),
        other => Err(error(parser.at, format!("{other} is not expected"))),
    }
}

struct Parser<'a> {
    words: Words<'a>,
    /// The word that comes next, and its first byte.
    token: Token<'a>,
    at: usize,
    depth: usize,
}

/// A part of a condition, and what can be done with it.
struct Piece {
    node: Node,
    sort: Sort,
    /// Its first byte.
    at: usize,
    /// Of what it has one, of several.
    several: Option<Several>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Condition,
    Number,
    Text,
    /// Whatever is needed.
    Header,
}

impl Sort {
    fn name(self) -> &'static str {
        match self {
            Sort::Condition => "a condition",
            Sort::Number => "a number",
            Sort::Text => "a text",
            Sort::Header => "a header",
        }
    }
}

impl Piece {
    fn new(at: usize, sort: Sort, node: Node) -> Piece {
        Piece { node, sort, at, several: None }
    }

    /// It, if it can be of this sort.
    fn be(self, wanted: Sort) -> Result<Piece, FilterError> {
        if self.sort == wanted || self.sort == Sort::Header {
            return Ok(self);
        }
        let (wanted, sort) = (wanted.name(), self.sort.name());
        Err(error(self.at, format!("{wanted} is expected, not {sort},")))
    }

    fn condition(self) -> Result<Node, FilterError> {
        Ok(self.be(Sort::Condition)?.node)
    }

    /// Of what it has one, of several, together with something else.
    ///
    /// # Errors
    /// If that would be of two sorts: each with each is never meant.
    fn several_with(&self, other: Option<Several>) -> Result<Option<Several>, FilterError> {
        match (self.several, other) {
            (Some(one), Some(two)) if one != two => {
                Err(error(self.at, "TAGS and KEYS cannot be in one comparison"))
            }
            (one, two) => Ok(one.or(two)),
        }
    }

    /// A predicate that is as true as `node` is for one of several.
    fn predicate(at: usize, several: Option<Several>, negated: bool, mut node: Node) -> Piece {
        if let Some(several) = several {
            node = Node::OneOf(several, Box::new(node));
        }
        if negated {
            node = Node::Not(Box::new(node));
        }
        Piece::new(at, Sort::Condition, node)
    }
}

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Result<(), FilterError> {
        (self.at, self.token) = self.words.next()?;
        Ok(())
    }

    /// That something else should stand here.
    fn expected<T>(&self, what: &str) -> Result<T, FilterError> {
        Err(error(self.at, format!("{what} is expected, not {},", self.token)))
    }

    fn is_word(&self, wanted: &str) -> bool {
        matches!(self.token, Token::Word(word) if word.eq_ignore_ascii_case(wanted))
    }

    fn takes_word(&mut self, wanted: &str) -> Result<bool, FilterError> {
        let is_it = self.is_word(wanted);
        if is_it {
            self.advance()?;
        }
        Ok(is_it)
    }

    fn takes_sign(&mut self, wanted: &str) -> Result<bool, FilterError> {
        let is_it = matches!(self.token, Token::Sign(sign) if sign == wanted);
        if is_it {
            self.advance()?;
        }
        Ok(is_it)
    }

    fn needs_sign(&mut self, wanted: &str) -> Result<(), FilterError> {
        if self.takes_sign(wanted)? { Ok(()) } else { self.expected(wanted) }
    }

    /// What is within something else, so deep as it may be.
    fn within<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, FilterError>,
    ) -> Result<T, FilterError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(error(self.at, format!("more than {MAX_DEPTH} levels")));
        }
        let part = part(self)?;
        self.depth -= 1;
        Ok(part)
    }

    fn or(&mut self) -> Result<Piece, FilterError> {
        self.chain("OR", Self::and, Node::Any)
    }

    fn and(&mut self) -> Result<Piece, FilterError> {
        self.chain("AND", Self::not, Node::All)
    }

    fn chain(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<Piece, FilterError>,
        join: fn(Vec<Node>) -> Node,
    ) -> Result<Piece, FilterError> {
        let first = part(self)?;
        if !self.is_word(word) {
            return Ok(first);
        }
        let at = first.at;
        let mut nodes = vec![first.condition()?];
        while self.takes_word(word)? {
            nodes.push(part(self)?.condition()?);
        }
        Ok(Piece::new(at, Sort::Condition, join(nodes)))
    }

    fn not(&mut self) -> Result<Piece, FilterError> {
        let at = self.at;
        if !self.takes_word("NOT")? {
            return self.predicate();
        }
        let node = self.within(Self::not)?.condition()?;
        Ok(Piece::new(at, Sort::Condition, Node::Not(Box::new(node))))
    }

    fn predicate(&mut self) -> Result<Piece, FilterError> {
        let left = self.sum()?;
        if let Token::Sign(sign) = self.token {
            let negated = matches!(sign, "<>" | "!=");
            let plain = if negated { "=" } else { sign };
            if let Some((_, how)) = COMPARISONS.into_iter().find(|(sign, _)| *sign == plain) {
                self.advance()?;
                let right = self.sum()?;
                return compared(left, how, right, negated);
            }
        }
        if self.takes_word("IS")? {
            let negated = self.takes_word("NOT")?;
            if !self.takes_word("NULL")? {
                return self.expected("NULL");
            }
            let node = Node::IsNull(Box::new(left.node));
            return Ok(Piece::predicate(left.at, None, negated, node));
        }
        let negated = self.takes_word("NOT")?;
        if self.takes_word("BETWEEN")? {
            return self.between(left, negated);
        }
        if self.takes_word("IN")? {
            return self.one_of(left, negated);
        }
        for (word, pattern) in [
            ("CONTAINS", Pattern::Contains as fn(String) -> Pattern),
            ("STARTSWITH", Pattern::Starts),
            ("ENDSWITH", Pattern::Ends),
        ] {
            if self.takes_word(word)? {
                let pattern = pattern(self.text()?);
                return matching(left, pattern, negated);
            }
        }
        if self.takes_word("LIKE")? {
            let pattern = self.like()?;
            return matching(left, pattern, negated);
        }
        if negated {
            return self.expected("BETWEEN, IN, LIKE, CONTAINS, STARTSWITH or ENDSWITH behind NOT");
        }
        Ok(left)
    }

    fn between(&mut self, left: Piece, negated: bool) -> Result<Piece, FilterError> {
        let low = self.sum()?;
        if !self.takes_word("AND")? {
            return self.expected("AND");
        }
        let high = self.sum()?;
        comparable(&left, &low, Comparison::GreaterOrEqual)?;
        comparable(&left, &high, Comparison::LessOrEqual)?;
        if let (Some(least), Some(most)) = (constant(&low.node), constant(&high.node))
            && compare(Comparison::Greater, least, most) == Some(true)
        {
            return Err(error(low.at, "nothing is between a larger one and a smaller one,"));
        }
        let at = left.at;
        let several = high.several_with(low.several_with(left.several)?)?;
        let above = [left.node.clone(), low.node];
        let below = [left.node, high.node];
        let node = Node::All(vec![
            Node::Compare(Comparison::GreaterOrEqual, Box::new(above)),
            Node::Compare(Comparison::LessOrEqual, Box::new(below)),
        ]);
        Ok(Piece::predicate(at, several, negated, node))
    }

    fn one_of(&mut self, left: Piece, negated: bool) -> Result<Piece, FilterError> {
        self.needs_sign("(")?;
        let mut list = Vec::new();
        loop {
            let minus = self.takes_sign("-")?;
            let is_signed = minus || self.takes_sign("+")?;
            let (at, token) = (self.at, self.token);
            let (sort, node) = match token {
                Token::Number(number, _) if minus => (Sort::Number, Node::Number(number.negate())),
                Token::Number(number, _) => (Sort::Number, Node::Number(number)),
                Token::Text(text) if !is_signed => (Sort::Text, Node::Text(single(text))),
                _ => return self.expected("a number or a text"),
            };
            self.advance()?;
            let element = Piece::new(at, sort, node);
            comparable(&left, &element, Comparison::Equal)?;
            list.push(element.node);
            if !self.takes_sign(",")? {
                break;
            }
        }
        self.needs_sign(")")?;
        let node = Node::In(Box::new(left.node), list);
        Ok(Piece::predicate(left.at, left.several, negated, node))
    }

    fn text(&mut self) -> Result<String, FilterError> {
        let Token::Text(text) = self.token else { return self.expected("a text") };
        self.advance()?;
        Ok(single(text))
    }

    fn like(&mut self) -> Result<Pattern, FilterError> {
        let at = self.at;
        let pattern = self.text()?;
        let mut escape = None;
        if self.takes_word("ESCAPE")? {
            let at = self.at;
            let text = self.text()?;
            let mut characters = text.chars();
            escape = characters.next();
            if escape.is_none() || characters.next().is_some() {
                return Err(error(at, "one character is expected behind ESCAPE,"));
            }
        }
        let mut regex = String::from(r"\A");
        let mut characters = pattern.chars();
        while let Some(c) = characters.next() {
            match c {
                _ if Some(c) == escape => {
                    let Some(c) = characters.next() else {
                        return Err(error(at, "nothing follows the last escape of the pattern"));
                    };
                    regex.push_str(&regex::escape(&c.to_string()));
                }
                '%' => regex.push_str(".*"),
                '_' => regex.push('.'),
                _ => regex.push_str(&regex::escape(&c.to_string())),
            }
        }
        regex.push_str(r"\z");
        let mut builder = RegexBuilder::new(&regex);
        builder.dot_matches_new_line(true).size_limit(MAX_REGEX_BYTES);
        let built = builder.build().map_err(|_| error(at, "the pattern is too large"))?;
        Ok(Pattern::Like(built))
    }

    fn sum(&mut self) -> Result<Piece, FilterError> {
        self.arithmetic(["+", "-"], Self::product, Node::Sum)
    }

    fn product(&mut self) -> Result<Piece, FilterError> {
        self.arithmetic(["*", "/"], Self::unary, Node::Product)
    }

    fn arithmetic(
        &mut self,
        [one, other]: [&str; 2],
        part: fn(&mut Self) -> Result<Piece, FilterError>,
        join: fn(Vec<(bool, Node)>) -> Node,
    ) -> Result<Piece, FilterError> {
        let first = part(self)?;
        if !matches!(self.token, Token::Sign(sign) if sign == one || sign == other) {
            return Ok(first);
        }
        let Piece { node, at, mut several, .. } = first.be(Sort::Number)?;
        let mut nodes = vec![(false, node)];
        loop {
            let is_other = self.takes_sign(other)?;
            if !is_other && !self.takes_sign(one)? {
                break;
            }
            let next = part(self)?.be(Sort::Number)?;
            several = next.several_with(several)?;
            nodes.push((is_other, next.node));
        }
        Ok(Piece { node: join(nodes), sort: Sort::Number, at, several })
    }

    fn unary(&mut self) -> Result<Piece, FilterError> {
        let at = self.at;
        let minus = self.takes_sign("-")?;
        if !minus && !self.takes_sign("+")? {
            return self.primary();
        }
        let of = self.within(Self::unary)?.be(Sort::Number)?;
        let node = match of.node {
            Node::Number(number) if minus => Node::Number(number.negate()),
            node if minus => Node::Negate(Box::new(node)),
            // What is a number stays one; a header has to be one.
            node @ Node::Header(_) => Node::Sum(vec![(false, node)]),
            node => node,
        };
        Ok(Piece { node, sort: Sort::Number, at, several: of.several })
    }

    fn primary(&mut self) -> Result<Piece, FilterError> {
        let at = self.at;
        let piece = match self.token {
            Token::Number(number, _) => Piece::new(at, Sort::Number, Node::Number(number)),
            Token::Text(text) => Piece::new(at, Sort::Text, Node::Text(single(text))),
            Token::Quoted("") => return Err(error(at, "a header has a name; \"\" is none")),
            Token::Quoted(name) => {
                let name = Name::Header(name.replace("\"\"", "\""));
                Piece::new(at, Sort::Header, Node::Header(name))
            }
            Token::Word(word) => self.word(word)?,
            Token::Sign("(") => {
                self.advance()?;
                let inner = self.within(Self::or)?;
                self.needs_sign(")")?;
                return Ok(Piece { at, ..inner });
            }
            _ => return self.expected("a header, a number, a text or ("),
        };
        self.advance()?;
        Ok(piece)
    }

    fn word(&self, word: &str) -> Result<Piece, FilterError> {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        if is("TRUE") || is("FALSE") {
            return Ok(Piece::new(self.at, Sort::Condition, Node::Bool(is("TRUE"))));
        }
        if is("NULL") {
            let what = "NULL is equal to nothing: ask with IS NULL or IS NOT NULL;";
            return Err(error(self.at, what));
        }
        if RESERVED.into_iter().any(is) {
            return self.expected("a header, a number, a text or (");
        }
        let (name, several) = match word {
            "TAGS" => (Name::Several(Several::Tags), Some(Several::Tags)),
            "KEYS" => (Name::Several(Several::Keys), Some(Several::Keys)),
            "__SHARDINGKEY" => (Name::Key, None),
            _ => (Name::Header(word.to_owned()), None),
        };
        let node = Node::Header(name);
        Ok(Piece { node, sort: Sort::Header, at: self.at, several })
    }
}

/// Without the doubled quotes that it is written with.
fn single(text: &str) -> String {
    text.replace("''", "'")
}

/// The value of what is the same for every message.
fn constant(node: &Node) -> Option<super::Value<'_>> {
    match node {
        Node::Number(number) => Some(super::Value::Number(*number)),
        Node::Text(text) => Some(super::Value::Text(text)),
        _ => None,
    }
}

fn comparable(left: &Piece, right: &Piece, how: Comparison) -> Result<(), FilterError> {
    let has_order = how != Comparison::Equal;
    for side in [left, right] {
        if has_order && side.sort == Sort::Condition {
            return Err(error(side.at, "true and false have no order: = or <> is expected"));
        }
    }
    match (left.sort, right.sort) {
        (Sort::Header, _) | (_, Sort::Header) => Ok(()),
        (one, other) if one == other => Ok(()),
        (one, other) => {
            let (one, other) = (one.name(), other.name());
            let what = format!("{one} is compared with {other}, which is never equal,");
            Err(error(right.at, what))
        }
    }
}

fn compared(
    left: Piece,
    how: Comparison,
    right: Piece,
    negated: bool,
) -> Result<Piece, FilterError> {
    comparable(&left, &right, how)?;
    let several = right.several_with(left.several)?;
    let node = Node::Compare(how, Box::new([left.node, right.node]));
    Ok(Piece::predicate(left.at, several, negated, node))
}

fn matching(left: Piece, pattern: Pattern, negated: bool) -> Result<Piece, FilterError> {
    let left = left.be(Sort::Text)?;
    let node = Node::Matches(Box::new(left.node), pattern);
    Ok(Piece::predicate(left.at, left.several, negated, node))
}
