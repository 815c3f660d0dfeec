//! What clients asked and heard, in the order in which it happened.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posthouse::broker::schedule::Target;
use posthouse::broker::transact::State;
use posthouse::problem::{Kind, Problem};
use posthouse_core::Now;
use posthouse_core::queue::command::Shift;
use posthouse_core::record::{NameTaken, When};
use posthouse_frame::crc32c;

use crate::bodies::Token;
use crate::time::SimTime;

/// The number of a call; what is heard of it names the same.
pub type Call = u64;

/// A message, as its publisher means it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its number; also in its body.
    pub token: Token,
    /// The topic.
    pub topic: &'static str,
    /// The key.
    pub key: Option<String>,
    /// The tags.
    pub tags: Vec<&'static str>,
    /// The publish id.
    pub dedupe: Option<String>,
    /// Time to live in milliseconds.
    pub ttl_ms: Option<u64>,
    /// When it is to come, under which name, and what to do if that is taken.
    pub later: Option<(When, Option<String>, NameTaken)>,
    /// Bytes of its body.
    pub len: usize,
}

/// Where a message went.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// Its id.
    pub id: String,
    /// The partition, counted from 0.
    pub partition: u32,
    /// Its position, if it has come already.
    pub position: Option<u64>,
    /// When it is due, if it is to come.
    pub due: Option<u64>,
    /// It had come before under the same publish id.
    pub duplicate: bool,
    /// Another one has its name, and stays.
    pub kept: bool,
}

/// Why something was not done; or not known to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Fail {
    /// The code.
    pub code: &'static str,
    /// In a sentence.
    pub detail: String,
    /// Nobody knows whether it was done.
    pub unknown: bool,
}

impl From<Problem> for Fail {
    fn from(problem: Problem) -> Fail {
        let unknown = problem.kind == Kind::Unknown;
        Fail { code: problem.code, detail: problem.detail, unknown }
    }
}

/// A place that a message has: what a group is given, and given again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The topic; of a redriven message the one through which its group gets it.
    pub topic: Arc<str>,
    /// The partition, counted from 0.
    pub partition: u32,
    /// The position.
    pub position: u64,
}

/// A delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Got {
    /// Where the message is.
    pub place: Place,
    /// The shard that it came from.
    pub shard: usize,
    /// Its id.
    pub id: String,
    /// What to settle it with.
    pub receipt: String,
    /// Which attempt.
    pub attempt: u16,
    /// The number of the grant.
    pub fence: u64,
    /// Which message it is, and which time of it if it recurs ([`bodies::time_of`]); or
    /// what is wrong with its body.
    ///
    /// [`bodies::time_of`]: crate::bodies::time_of
    pub token: Result<Token, String>,
    /// Everything else that the publisher gave: key, tags, publish id, bytes of the body.
    pub parts: (Option<String>, Vec<String>, Option<String>, usize),
    /// Of a redriven message, where it was published first.
    pub origin: Option<Place>,
}

/// What a consumer says of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Say {
    /// It is done.
    Ack,
    /// It has to come again, after so long.
    Nack(Option<u64>),
    /// It takes longer: so long from now.
    Extend(u64),
}

/// What a settle was answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// As was asked.
    Ok,
    /// It was done before.
    Already,
    /// The receipt is of an earlier attempt.
    Stale,
    /// The receipt is none.
    Invalid,
}

/// What became of a change of a message that is to come.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// As was asked; due then, or was to be.
    Done(u64),
    /// It has come, to this partition and position.
    Fired(u32, u64),
    /// It was called back before.
    Cancelled,
    /// There is no such message any more.
    Unknown,
    /// It was refused.
    Refused(&'static str),
}

/// What a producer says of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Who is asked about it.
    pub producer: &'static str,
    /// How long from then, in milliseconds.
    pub check_after_ms: u64,
    /// How often.
    pub checks: u16,
    /// A publish id for all its messages.
    pub dedupe: Option<String>,
}

/// A transaction that was taken in.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Its id.
    pub id: String,
    /// How it was then.
    pub state: State,
    /// It had come before under the same publish ids.
    pub duplicate: bool,
    /// The ids of its messages, in the order in which they were given.
    pub ids: Vec<String>,
}

/// How a transaction is.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    /// Whether it waits, or what was decided.
    pub state: State,
    /// That had been decided before.
    pub late: bool,
    /// How often its producer was asked, and is asked at most.
    pub checks: (u16, u16),
    /// Where its messages went.
    pub puts: Vec<Put>,
}

/// A question about a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Its id.
    pub id: String,
    /// Which question it is, from 1, and how many there are at most.
    pub check: (u16, u16),
    /// Its first message.
    pub token: Option<Token>,
}

/// When a message recurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So far apart.
    pub every_ms: u64,
    /// For the first time then.
    pub start_ms: u64,
}

/// What is done to a recurring message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recur {
    /// It does not come for now.
    Pause,
    /// It comes again.
    GoOn,
    /// It does not come any more.
    Delete,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// Its id.
    pub id: String,
    /// Which message.
    pub token: Result<Token, String>,
    /// Its attempts.
    pub attempts: u16,
    /// Why.
    pub reason: &'static str,
    /// Where it was published.
    pub origin: Place,
}

/// A partition in the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// The topic.
    pub topic: &'static str,
    /// The partition.
    pub partition: u32,
    /// The first position that is kept, and the one behind the last.
    pub range: (u64, u64),
    /// Messages that are to come to it.
    pub scheduled: u64,
    /// What is there.
    pub messages: Vec<(u64, Result<Token, String>)>,
}

/// Something that happened.
#[allow(missing_docs, reason = "the fields are what the variants speak of")]
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Messages are published; all or nothing, if not apart.
    Publish { call: Call, messages: Vec<Message>, apart: bool },
    /// What became of that.
    Published { call: Call, outcome: Result<Vec<Result<Put, Fail>>, Fail> },
    /// A consumer asks.
    Receive { call: Call, group: &'static str, lease_ms: u64, auto: bool },
    /// What it got.
    Received { call: Call, group: &'static str, outcome: Result<Vec<Got>, Fail> },
    /// A consumer settles what it got.
    Settle { call: Call, group: &'static str, items: Vec<(Got, Say)> },
    /// What it was answered.
    Settled { call: Call, outcome: Result<Vec<Answer>, Fail> },
    /// Messages to come are moved, or called back (`None`).
    Move { call: Call, items: Vec<(Token, Target, Option<Shift>)> },
    /// What became of that.
    Moved { call: Call, outcome: Result<Vec<Change>, Fail> },
    /// Messages are to come when that is decided. The same number: the same messages.
    Prepare { call: Call, number: u64, messages: Vec<Message>, terms: Terms },
    /// What became of that.
    Prepared { call: Call, outcome: Result<Held, Fail> },
    /// A transaction is committed, or rolled back.
    Decide { call: Call, id: String, commit: bool },
    /// What became of that.
    Decided { call: Call, outcome: Result<Ruling, Fail> },
    /// A producer asks what it has to decide.
    AskChecks { call: Call, producer: &'static str },
    /// What that is.
    Asked { call: Call, outcome: Result<Vec<Check>, Fail> },
    /// How a transaction is in the end.
    Became { id: String, outcome: Result<Ruling, Fail> },
    /// The transactions that wait in the end.
    Waiting { ids: Vec<String> },
    /// A message is to recur. Its name is never used again.
    Recur { call: Call, name: String, message: Message, rule: Rule },
    /// A recurring message is paused, goes on, is deleted.
    ChangeRecurring { call: Call, name: String, how: Recur },
    /// What became of either.
    Recurs { call: Call, outcome: Result<(), Fail> },
    /// The dead letters of a group get another chance.
    Redrive { call: Call, group: &'static str },
    /// How many did.
    Redriven { call: Call, outcome: Result<u64, Fail> },
    /// A fault, or the end of one.
    Fault { name: &'static str },
    /// The node ends; what is not durable may be lost.
    Ends { how: &'static str },
    /// The node has started.
    Starts,
    /// No more faults; everybody is to get everything.
    Healed,
    /// What is left in the end.
    Left(Left),
    /// The dead letters of a group in the end.
    Letters { group: &'static str, letters: Vec<Letter> },
}

/// An event, with what the clocks of the shards were last seen to say.
#[derive(Clone, Debug)]
pub struct Event {
    /// Who: the client's number; 0 is the world.
    pub who: u32,
    /// What.
    pub what: What,
    /// By shard: nothing up to now was later, and nothing from now on is earlier.
    pub seen: Arc<[Now]>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Event>,
    trace: u32,
    line: String,
}

/// The history of a run, written by everybody who takes part.
#[derive(Debug)]
pub struct History {
    inner: Mutex<Inner>,
    calls: AtomicU64,
    tokens: AtomicU64,
    time: Arc<SimTime>,
    is_told: bool,
}

impl History {
    /// An empty one. With `is_told`, every event is printed as it comes.
    pub fn new(time: Arc<SimTime>, is_told: bool) -> Self {
        let (calls, tokens) = (AtomicU64::new(1), AtomicU64::new(1));
        History { inner: Mutex::default(), calls, tokens, time, is_told }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a call.
    pub fn call(&self) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// A number for a message.
    pub fn token(&self) -> Token {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes what happened.
    pub fn note(&self, who: u32, what: What) {
        let seen = self.time.seen();
        let mut inner = self.inner();
        let Inner { events, trace, line } = &mut *inner;
        line.clear();
        let _ = write!(line, "{who} {what:?} {seen:?} {trace}");
        *trace = crc32c(line.as_bytes());
        if self.is_told {
            let at = seen.first().copied().unwrap_or_default();
            println!("{:6} {:>10} {who:3} {what:?}", events.len(), at.lease.0);
        }
        events.push(Event { who, what, seen: seen.into() });
    }

    /// Mixes a step of the world into the trace.
    pub fn step(&self, step: u64) {
        let mut inner = self.inner();
        let trace = inner.trace;
        inner.trace = crc32c(&(u64::from(trace) << 32 ^ step).to_le_bytes());
    }

    /// A number that two runs share only if all their events and steps are the same.
    pub fn trace(&self) -> u32 {
        self.inner().trace
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.inner().events.len()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that happened.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.inner().events)
    }
}
