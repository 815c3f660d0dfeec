//! What commands print: tables and lists for people, JSON for programs, on stdout; notes
//! on stderr.

use std::fmt::Display;
use std::io::{BufWriter, IsTerminal as _, Stdout, Write as _};

use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::Failure;

/// What tables are cut to, in columns.
const WIDTH: usize = 100;

/// The last column of a table keeps at least so much.
const LAST_LEAST: usize = 16;

/// Where a command prints to.
#[derive(Debug)]
pub struct Output {
    json: bool,
    out: BufWriter<Stdout>,
}

impl Output {
    /// Prints for programs if `json`, else for people.
    pub fn new(json: bool) -> Output {
        Output { json, out: BufWriter::new(std::io::stdout()) }
    }

    /// Whether programs read this.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints one object as a line.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let printed = serde_json::to_writer(&mut self.out, value).map_err(std::io::Error::from);
        printed.and_then(|()| self.out.write_all(b"\n")).map_err(|e| Failure::output(&e))
    }

    /// Prints a line.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        writeln!(self.out, "{text}").map_err(|e| Failure::output(&e))
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|e| Failure::output(&e))
    }

    /// Prints a table.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn table(&mut self, table: &Table) -> Result<(), Failure> {
        for line in table.lines() {
            self.line(line)?;
        }
        Ok(())
    }

    /// Prints `value` for programs, or what `people` prints for people.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn show<T: Serialize>(
        &mut self,
        value: &T,
        people: impl FnOnce(&mut Output, &T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.json { self.json(value) } else { people(self, value) }
    }

    /// Prints a line for people; programs have nothing of it.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn say(&mut self, text: impl Display) -> Result<(), Failure> {
        if self.json { Ok(()) } else { self.line(text) }
    }

    /// Hands over what was printed so far.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|e| Failure::output(&e))
    }
}

/// Tells something beside the output.
pub fn note(text: impl Display) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "posthouse: {text}");
}

/// Asks whether something that cannot be undone is meant, if there is somebody to ask.
///
/// # Errors
/// If the answer is no.
pub fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let mut err = std::io::stderr();
    write!(err, "{question} [y/N] ").and_then(|()| err.flush())?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure { text: "nothing was done".into(), code: super::INTERRUPTED }),
    }
}

/// Rows in columns, aligned, and not wider than a page as far as the last column can
/// give way.
#[derive(Debug)]
pub struct Table {
    head: Vec<String>,
    is_right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with the columns in `head`, with blanks between; those with a `>` before
    /// their name are aligned to the right.
    pub fn new(head: &str) -> Table {
        let names = head.split_whitespace();
        let (is_right, head) = names
            .map(|name| match name.strip_prefix('>') {
                Some(name) => (true, name.to_owned()),
                None => (false, name.to_owned()),
            })
            .unzip();
        Table { head, is_right, rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the table has columns.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.head.len(), "a row has a cell for every column");
        self.rows.push(cells.iter().map(|cell| plain(cell)).collect());
    }

    /// Its lines, the names of the columns first.
    pub fn lines(&self) -> Vec<String> {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let last = self.head.len() - 1;
        let mut widths = vec![0; self.head.len()];
        for row in all() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let others: usize = widths[..last].iter().map(|width| width + 2).sum();
        let room = WIDTH.saturating_sub(others).max(LAST_LEAST);
        all().map(|row| self.line(row, &widths, room)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize], room: usize) -> String {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let is_last = at + 1 == row.len();
            let cell = match is_last && !self.is_right[at] {
                true => cut(cell, room),
                false => cell.clone(),
            };
            let pad = " ".repeat(widths[at].saturating_sub(cell.width()));
            if self.is_right[at] {
                line += &pad;
                line += &cell;
            } else {
                line += &cell;
                line += &pad;
            }
            if !is_last {
                line += "  ";
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Names and values, one a line, aligned.
#[derive(Debug, Default)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// Adds a line.
    pub fn add(&mut self, name: impl Into<String>, value: impl Display) {
        self.0.push((name.into(), plain(&value.to_string())));
    }

    /// Adds a line if there is a value.
    pub fn add_some(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// Prints all lines.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn print(&self, out: &mut Output) -> Result<(), Failure> {
        let width = self.0.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
        for (name, value) in &self.0 {
            let pad = " ".repeat(width - name.width());
            out.line(format_args!("{name}{pad}  {value}").to_string().trim_end())?;
        }
        Ok(())
    }
}

/// A text from outside as it can be shown on a terminal: what would move the cursor or
/// change colours is spelled out.
pub fn plain(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut out, c| {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
        out
    })
}

/// A text in at most `most` columns; what is left out shows as an ellipsis.
pub fn cut(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let (mut out, mut width) = (String::new(), 1);
    for c in text.chars() {
        width += c.width().unwrap_or(0);
        if width > most {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

/// A body in passing: its text, or how many bytes it has if it is none.
pub fn excerpt(body: &[u8]) -> String {
    /// Nobody sees more of it in a table.
    const BYTES: usize = 400;
    let head = &body[..body.len().min(BYTES)];
    match std::str::from_utf8(head) {
        Ok(text) => text.to_owned(),
        // The cut may have gone through a character.
        Err(error) if body.len() > BYTES && error.error_len().is_none() => {
            String::from_utf8_lossy(&head[..error.valid_up_to()]).into_owned()
        }
        Err(_) => format!("({} bytes)", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_their_last_column_gives_way() {
        let mut table = Table::new("NAME >COUNT BODY");
        table.row(["a".into(), "1,000".into(), "short".into()]);
        table.row(["注文".into(), "7".into(), "x".repeat(200)]);
        let lines = table.lines();
        assert_eq!(lines[0], "NAME  COUNT  BODY");
        assert_eq!(lines[1], "a     1,000  short");
        assert!(
            lines[2].starts_with("注文      7  xxx") && lines[2].ends_with("x…"),
            "{}",
            lines[2]
        );
        assert_eq!(lines[2].width(), WIDTH);
    }

    #[test]
    fn what_comes_from_outside_cannot_play_with_the_terminal() {
        assert_eq!(plain("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert_eq!(plain("naïve 注文"), "naïve 注文");
    }

    #[test]
    fn bodies_in_passing_are_texts_or_counted() {
        assert_eq!(excerpt(b"hello"), "hello");
        assert_eq!(excerpt(&[0xff, 0xfe]), "(2 bytes)");
        let long = "é".repeat(1000);
        assert_eq!(excerpt(long.as_bytes()), "é".repeat(200));
        let odd = format!("a{long}");
        assert_eq!(excerpt(odd.as_bytes()), format!("a{}", "é".repeat(199)));
    }
}
