//! A message per line: pipelined, in bounded memory, and safe to run again.

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures_util::FutureExt as _;
use posthouse_client::{Client, Error, Message, Pending, Published, Publisher, PublisherOptions};
use posthouse_core::message::limits;
use tokio::sync::mpsc;

use super::failure::kind_of;
use super::meter::Meter;
use super::publish::{Attributes, LinesOptions, shape};
use super::stop::Stop;
use super::{Failure, Output};
use crate::json;
use crate::problem::Kind;
use crate::units;

/// Bytes that are read together.
const READ_BYTES: usize = 256 << 10;

/// The longest line: the largest body, or that in base64 with all that comes with it.
const LINE_BYTES: usize = limits::BODY_BYTES * 3 / 2 + (1 << 20);

/// Messages under way at most.
const UNDER_WAY: usize = 20_000;

/// Bytes under way, unless one message alone has more.
const UNDER_WAY_BYTES: usize = 32 << 20;

/// Bytes of a piece that nobody has taken over: few, because each may hold a long line.
const PIECES: usize = 2;

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The body, as it stands.
    Text,
    /// A message as the HTTP interface takes it.
    Json,
}

/// Lines to publish.
#[derive(Debug)]
pub struct Lines {
    /// Where to.
    pub topic: String,
    /// From where; `-` for stdin.
    pub file: PathBuf,
    /// What every message gets.
    pub attributes: Attributes,
    /// How lines become messages.
    pub options: LinesOptions,
}

/// Lines that were read together.
struct Piece {
    lines: Vec<Vec<u8>>,
    /// Bytes of the source, up to the end of these.
    read: u64,
}

/// A line that was taken, in the order of lines.
struct Sent {
    line: u64,
    bytes: usize,
    answer: Answer,
}

/// What became of a line, or will.
enum Answer {
    Pending(Pending),
    /// It was no message.
    Refused(Refusal),
}

/// Why a line was not published.
#[derive(Clone)]
struct Refusal {
    code: String,
    kind: Kind,
    text: String,
    retry_after_ms: Option<u64>,
}

impl Refusal {
    /// Whether it is about this line, and not about all.
    fn is_of_line(&self) -> bool {
        matches!(self.kind, Kind::Invalid | Kind::TooLarge | Kind::Conflict)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let retry_after = match &error {
            Error::Refused(problem) => problem.retry_after,
            _ => None,
        };
        let unnamed = if error.is_outcome_unknown() { "outcome_unknown" } else { "not_published" };
        Refusal {
            code: error.code().unwrap_or(unnamed).to_owned(),
            kind: kind_of(&error),
            text: error.to_string(),
            retry_after_ms: retry_after.map(|after| after.as_millis() as u64),
        }
    }
}

/// How it went so far.
struct Tally {
    began: Instant,
    published: u64,
    duplicates: u64,
    refused: u64,
    bytes: u64,
    /// The first line that was refused.
    first: Option<(u64, Refusal)>,
    /// Whether lines after it would fare no better.
    is_over: bool,
}

struct Run<'a> {
    lines: &'a Lines,
    publisher: Publisher,
    under_way: VecDeque<Sent>,
    bytes: usize,
    /// The number of the last line that was sent.
    line: u64,
    tally: Tally,
    meter: Meter,
    out: &'a mut Output,
}

impl Lines {
    /// Publishes all lines.
    ///
    /// # Errors
    /// The first line that was refused; see [`Failure`].
    pub async fn publish(&self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let stop = Stop::listen()?;
        let (source, total) = open(&self.file)?;
        let (tx, pieces) = mpsc::channel(PIECES);
        // A thread of its own, not of the runtime: one that waits for a terminal must not
        // keep the process from ending.
        std::thread::spawn(move || read(source, &tx));
        let run = Run {
            lines: self,
            publisher: client.publisher(PublisherOptions::default()),
            under_way: VecDeque::new(),
            bytes: 0,
            line: 0,
            tally: Tally {
                began: Instant::now(),
                published: 0,
                duplicates: 0,
                refused: 0,
                bytes: 0,
                first: None,
                is_over: false,
            },
            meter: Meter::bytes(total),
            out,
        };
        run.all(pieces, stop).await
    }

    fn message(&self, line: Vec<u8>, number: u64) -> Result<Message, Refusal> {
        let mut message = match self.options.line_format {
            Format::Text => Message::new(line),
            Format::Json => parse(&line)?,
        };
        message = self.attributes.add_to(message);
        if let Some(prefix) = &self.options.dedupe_prefix {
            message = message.dedupe_id(format!("{prefix}-{number}"));
        }
        Ok(message)
    }
}

/// A message as the HTTP interface takes it.
fn parse(line: &[u8]) -> Result<Message, Refusal> {
    let refused = |text: String| Refusal {
        code: "invalid_argument".into(),
        kind: Kind::Invalid,
        text,
        retry_after_ms: None,
    };
    let outgoing: json::Outgoing =
        serde_json::from_slice(line).map_err(|error| refused(error.to_string()))?;
    let outgoing = outgoing.into_proto().map_err(|problem| refused(problem.to_string()))?;
    Ok(Message::from_proto(outgoing))
}

fn open(file: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let wrong = |error| Failure::usage(format!("cannot read {}: {error}", file.display()));
    let source = std::fs::File::open(file).map_err(wrong)?;
    let metadata = source.metadata().map_err(wrong)?;
    let total = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(source), total))
}

/// Reads lines and hands them over, until nobody takes them.
fn read(mut source: impl Read, pieces: &mpsc::Sender<Result<Piece, Failure>>) {
    let mut buffer = Vec::new();
    let mut read = 0u64;
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let piece = match source.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => Err(Failure::from(error).at("cannot read on")),
            Ok(0) => {
                // What is left without a line end is a line.
                let lines = if buffer.is_empty() { Vec::new() } else { vec![buffer] };
                let _ = pieces.blocking_send(Ok(Piece { lines, read }));
                return;
            }
            Ok(n) => {
                read += n as u64;
                let lines = split(&mut buffer, &chunk[..n]);
                match buffer.len() {
                    len if len > LINE_BYTES => Err(Failure::usage(format!(
                        "a line has more than {LINE_BYTES} bytes, which is more than any message"
                    ))),
                    left => Ok(Piece { lines, read: read - left as u64 }),
                }
            }
        };
        let is_over = piece.is_err();
        if pieces.blocking_send(piece).is_err() || is_over {
            return;
        }
    }
}

/// Takes the lines out of what was left before and what came now; what has no line end
/// stays in `buffer`.
fn split(buffer: &mut Vec<u8>, chunk: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut rest = chunk;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let mut line = std::mem::take(buffer);
        line.extend_from_slice(&rest[..end]);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        lines.push(line);
        rest = &rest[end + 1..];
    }
    buffer.extend_from_slice(rest);
    lines
}

impl Run<'_> {
    async fn all(
        mut self,
        mut pieces: mpsc::Receiver<Result<Piece, Failure>>,
        mut stop: Stop,
    ) -> Result<(), Failure> {
        let mut broken = None;
        let mut is_open = true;
        while is_open || !self.under_way.is_empty() {
            tokio::select! {
                biased;
                () = stop.told(), if is_open => is_open = false,
                result = first(&mut self.under_way), if !self.under_way.is_empty() => {
                    self.settle(result)?;
                    is_open &= self.goes_on();
                    if self.under_way.is_empty() {
                        self.out.flush()?;
                    }
                }
                piece = pieces.recv(), if is_open => match piece {
                    None => is_open = false,
                    Some(Err(failure)) => (is_open, broken) = (false, Some(failure)),
                    Some(Ok(piece)) => is_open = self.send(piece, &stop).await?,
                },
            }
        }
        self.end(broken, stop.is_told())
    }

    fn goes_on(&self) -> bool {
        match self.lines.options.keep_going {
            true => !self.tally.is_over,
            false => self.tally.first.is_none(),
        }
    }

    /// Sends the lines of a piece. Whether to go on behind it.
    async fn send(&mut self, piece: Piece, stop: &Stop) -> Result<bool, Failure> {
        for line in piece.lines {
            self.line += 1;
            let (number, bytes) = (self.line, line.len());
            let is_full = |run: &Self| {
                run.under_way.len() >= UNDER_WAY || run.bytes + bytes > UNDER_WAY_BYTES
            };
            while is_full(self) && !self.under_way.is_empty() {
                let result = first(&mut self.under_way).await;
                self.settle(result)?;
            }
            let answer = match self.lines.message(line, number) {
                Err(refusal) => Answer::Refused(refusal),
                Ok(message) => {
                    let topic = self.lines.topic.as_str();
                    Answer::Pending(self.publisher.send(topic, message).await?)
                }
            };
            let is_refused = matches!(answer, Answer::Refused(_));
            self.bytes += bytes;
            self.under_way.push_back(Sent { line: number, bytes, answer });
            let ends = is_refused && !self.lines.options.keep_going;
            if ends || !self.goes_on() || stop.is_told() {
                return Ok(false);
            }
        }
        let published = self.tally.published;
        self.meter.set(piece.read, || units::counted(published, "message"));
        Ok(true)
    }

    /// Takes the outcome of the first message under way, and of all behind it that are
    /// known.
    fn settle(&mut self, mut result: Result<Published, Refusal>) -> Result<(), Failure> {
        while let Some(sent) = self.under_way.pop_front() {
            self.bytes -= sent.bytes;
            match result {
                Ok(published) => self.published(published, sent.bytes)?,
                Err(refusal) => self.refused(sent.line, refusal)?,
            }
            match first(&mut self.under_way).now_or_never() {
                Some(next) => result = next,
                None => break,
            }
        }
        Ok(())
    }

    fn published(&mut self, published: Published, bytes: usize) -> Result<(), Failure> {
        self.tally.published += u64::from(!published.duplicate);
        self.tally.duplicates += u64::from(published.duplicate);
        self.tally.bytes += bytes as u64;
        if self.out.is_json() { self.out.json(&shape(published)) } else { Ok(()) }
    }

    fn refused(&mut self, line: u64, refusal: Refusal) -> Result<(), Failure> {
        #[derive(serde::Serialize)]
        struct Refused {
            problem: json::Problem,
        }
        self.tally.refused += 1;
        self.tally.is_over |= !refusal.is_of_line();
        if self.out.is_json() {
            let problem = json::Problem {
                code: refusal.code.clone(),
                title: None,
                status: None,
                detail: refusal.text.clone(),
                field: None,
                value: None,
                limit: None,
                hint: None,
                retry_after_ms: refusal.retry_after_ms,
            };
            self.out.json(&Refused { problem })?;
        }
        if self.lines.options.keep_going && refusal.is_of_line() {
            self.meter.above(format_args!("line {line}: {}", refusal.text));
        }
        if self.tally.first.is_none() {
            self.tally.first = Some((line, refusal));
        }
        Ok(())
    }

    fn end(self, broken: Option<Failure>, is_told: bool) -> Result<(), Failure> {
        let Run { tally, meter, out, line, .. } = self;
        drop(meter);
        out.say(tally.summary())?;
        out.flush()?;
        if let Some((line, refusal)) = tally.first {
            let more = match tally.refused {
                1 => String::new(),
                refused => format!(" ({} were refused)", units::counted(refused, "line")),
            };
            let text = format!("line {}: {}{more}", units::show_count(line), refusal.text);
            return Err(Failure::new(refusal.kind, text));
        }
        if let Some(broken) = broken {
            return Err(broken.at(format_args!("behind line {}", units::show_count(line))));
        }
        if is_told {
            let line = units::show_count(line);
            return Err(Failure::interrupted(format!("interrupted behind line {line}")));
        }
        Ok(())
    }
}

/// What became of the first line under way.
async fn first(under_way: &mut VecDeque<Sent>) -> Result<Published, Refusal> {
    match under_way.front_mut().map(|sent| &mut sent.answer) {
        Some(Answer::Pending(pending)) => pending.await.map_err(Refusal::from),
        Some(Answer::Refused(refusal)) => Err(refusal.clone()),
        None => std::future::pending().await,
    }
}

impl Tally {
    fn summary(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-6);
        let done = self.published + self.duplicates;
        let mut text = format!("published {}", units::counted(self.published, "message"));
        if self.duplicates > 0 {
            text += &format!(", {} had been before", units::show_count(self.duplicates));
        }
        if self.refused > 0 {
            text += &format!(", {} were refused", units::show_count(self.refused));
        }
        format!(
            "{text}, in {seconds:.1} s: {}/s, {}/s",
            units::show_count((done as f64 / seconds) as u64),
            units::show_size((self.bytes as f64 / seconds) as u64)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(text: &[u8], chunk: usize) -> Vec<Vec<u8>> {
        let mut buffer = Vec::new();
        let mut lines = Vec::new();
        for piece in text.chunks(chunk) {
            lines.extend(split(&mut buffer, piece));
        }
        if !buffer.is_empty() {
            lines.push(buffer);
        }
        lines
    }

    #[test]
    fn lines_are_the_same_however_they_are_read() {
        let text = b"one\n\nthree\r\nfour \xff\nlast";
        for chunk in 1..=text.len() {
            let lines = lines_of(text, chunk);
            let expected: [&[u8]; 5] = [b"one", b"", b"three", b"four \xff", b"last"];
            assert_eq!(lines, expected, "in pieces of {chunk}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_memory_is_taken_for_it() {
        let (tx, mut rx) = mpsc::channel(PIECES);
        let reader = std::thread::spawn(move || read(std::io::repeat(b'x'), &tx));
        let failure = loop {
            match rx.blocking_recv().expect("it says why it ends") {
                Ok(piece) => assert!(piece.lines.is_empty()),
                Err(failure) => break failure,
            }
        };
        assert!(failure.text.contains("a line has more than"), "{}", failure.text);
        assert!(rx.blocking_recv().is_none());
        reader.join().expect("it ends");
    }

    #[test]
    fn a_line_of_json_is_a_message_as_http_takes_it() {
        let line = br#"{"body":"x","key":"k","tags":["a"],"headers":{"h":"v"},"ttl":"30s"}"#;
        assert!(parse(line).is_ok());
        let refusal = parse(br#"{"body":"x","colour":"red"}"#).map(drop).unwrap_err();
        assert!(refusal.text.contains("unknown field `colour`"), "{}", refusal.text);
        assert!(refusal.is_of_line());
    }
}
