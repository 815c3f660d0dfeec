//! What is known of clients: what they said they are, their streams of commands, and what
//! they hold whose leases the node renews.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use posthouse_core::catalog::{Group, GroupConfig};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::Status;

use super::fault::Fault;
use super::names::Namespace;
use super::pb::{self, Code, TelemetryCommand};
use super::{Door, settings};
use crate::broker::consume::{Outcome, Verdict};
use crate::broker::{Caller, bounds};

/// Clients that are known at once.
const SESSIONS: usize = 100_000;

/// A client that has said nothing for so long has gone. Clients send a heartbeat every ten
/// seconds.
const SILENCE: Duration = Duration::from_secs(35);

/// What all clients together may have said of themselves, in bytes of memory, nearly.
const SAID_BYTES: usize = 128 << 20;

/// What the settings of a client take beside what is in them.
const SETTINGS_BYTES: usize = 1 << 10;

/// Messages whose leases are renewed for one client.
const HELD: usize = 65_536;

/// Topics of a client's transactions that are remembered beside what it says itself.
const PREPARES: usize = 256;

/// Receives of a client that are known, so that one which is tried again is seen to be.
const ATTEMPTS: usize = 16;

/// A lease is renewed for so long at most: a consumer that hangs does not keep a message
/// for ever.
const RENEWED: Duration = Duration::from_secs(3 * 3600);

/// The shortest lease of a message whose lease is renewed: renewing takes its time.
const RENEWED_LEASE_MS: u64 = 5_000;

/// Where commands to a client go.
pub type Sink = mpsc::Sender<Result<TelemetryCommand, Status>>;

/// A receipt as clients have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle<'a> {
    /// The receipt, as every door has it.
    pub receipt: &'a str,
    /// Whether the node renews the lease.
    pub is_renewed: bool,
}

/// What stands before the receipt of a message whose lease is renewed.
const RENEWS: &str = "r:";

impl<'a> Handle<'a> {
    /// Reads one back.
    pub fn parse(text: &'a str) -> Handle<'a> {
        match text.strip_prefix(RENEWS) {
            Some(receipt) => Handle { receipt, is_renewed: true },
            None => Handle { receipt: text, is_renewed: false },
        }
    }
}

impl fmt::Display for Handle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.is_renewed { RENEWS } else { "" };
        write!(f, "{prefix}{}", self.receipt)
    }
}

/// All clients.
#[derive(Debug)]
pub struct Sessions {
    all: Mutex<HashMap<Arc<str>, Arc<Session>>>,
    /// Bytes that are left for what clients say of themselves.
    room: Arc<Semaphore>,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions { all: Mutex::default(), room: Arc::new(Semaphore::new(SAID_BYTES)) }
    }
}

/// One client.
#[derive(Debug)]
pub struct Session {
    id: Arc<str>,
    state: Mutex<State>,
    /// Whether the client has said goodbye.
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    heard: Instant,
    /// Polls that wait.
    waiting: usize,
    streams: Vec<Stream>,
    /// The topics that it has prepared transactions for: some clients do not say their
    /// settings again to a node that was restarted.
    prepares: Publishes,
    /// Filters that the client has asked for, by topic.
    subscribed: HashMap<String, String>,
    /// What is renewed, by receipt.
    held: HashMap<String, Held>,
    /// The last receives of messages that are renewed.
    attempts: VecDeque<Attempt>,
}

/// What a client calls a receive, hashed: when it is tried again it has the same name.
pub type Attempt = u64;

/// A stream of commands.
#[derive(Debug)]
struct Stream {
    sink: Sink,
    /// Who opened it.
    caller: Caller,
    /// The topics that the client publishes to.
    publishes: Publishes,
    /// What the client said last, and what it was told of its group.
    said: Option<(Said, Option<Arc<Group>>)>,
}

/// Settings, as long as they are kept.
#[derive(Debug)]
pub struct Said {
    settings: pb::Settings,
    /// What they take.
    _room: OwnedSemaphorePermit,
}

/// Topics that a client publishes to, by their names here, and the namespace in which it
/// knows each.
pub type Publishes = Vec<(String, Namespace)>;

/// A producer that can be asked something.
#[derive(Debug)]
pub struct Publisher {
    /// Where it is asked.
    pub sink: Sink,
    /// Who it is.
    pub caller: Caller,
    /// In which namespace it knows the topic.
    pub namespace: Namespace,
}

#[derive(Debug)]
struct Held {
    group: Arc<str>,
    /// With which receive it went out, if that has a name.
    attempt: Option<Attempt>,
    since: Instant,
    /// When the lease began, or was renewed.
    renewed: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// The session of a client, which was heard of now.
    ///
    /// # Errors
    /// If there are too many.
    pub fn of(&self, client: &Arc<str>) -> Result<Arc<Session>, Fault> {
        let mut all = lock(&self.all);
        if let Some(session) = all.get(client) {
            session.state().heard = Instant::now();
            return Ok(session.clone());
        }
        if all.len() >= SESSIONS {
            let text = format!("this node knows {SESSIONS} clients, which is the most");
            return Err(Fault::new(Code::TooManyRequests, text));
        }
        let session = Arc::new(Session::new(client.clone()));
        all.insert(client.clone(), session.clone());
        Ok(session)
    }

    /// Keeps what a client says of itself.
    ///
    /// # Errors
    /// If all of them together have said too much.
    pub fn keep(&self, settings: pb::Settings) -> Result<Said, Fault> {
        // What is said of a topic is in its session, too.
        let bytes = SETTINGS_BYTES + 2 * settings.encoded_len();
        match self.room.clone().try_acquire_many_owned(bytes as u32) {
            Ok(room) => Ok(Said { settings, _room: room }),
            Err(_) => {
                let text = format!(
                    "the settings take {bytes} bytes, and {} of {SAID_BYTES} are left for those \
                     of all clients",
                    self.room.available_permits()
                );
                Err(Fault::new(Code::TooManyRequests, text))
            }
        }
    }

    /// A client has said goodbye.
    pub fn end(&self, client: &str) -> Option<Arc<Session>> {
        let session = lock(&self.all).remove(client)?;
        session.ended.send_replace(true);
        Some(session)
    }

    /// Who publishes to a topic and can be asked something: those that were heard of lately,
    /// or, where there are none, those that may be there.
    pub fn publishers(&self, topic: &str) -> Vec<Publisher> {
        let mut found: Vec<(bool, Publisher)> =
            self.all().iter().filter_map(|session| session.publisher(topic)).collect();
        if found.iter().any(|(is_heard, _)| *is_heard) {
            found.retain(|(is_heard, _)| *is_heard);
        }
        found.into_iter().map(|(_, publisher)| publisher).collect()
    }

    fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.all).values().cloned().collect()
    }

    fn forget_silent(&self) {
        lock(&self.all).retain(|_, session| !session.state().is_gone());
    }
}

impl Session {
    fn new(id: Arc<str>) -> Session {
        let state = State {
            heard: Instant::now(),
            waiting: 0,
            streams: Vec::new(),
            prepares: Vec::new(),
            subscribed: HashMap::new(),
            held: HashMap::new(),
            attempts: VecDeque::new(),
        };
        Session { id, state: Mutex::new(state), ended: watch::Sender::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Tells when the client has said goodbye.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// A poll waits as long as this is kept: so long the client is there.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.state().waiting += 1;
        Waiting(self.clone())
    }

    /// Notes the filter that the client asks for. `false` if it is what it asked for before.
    pub fn subscribes(&self, topic: &str, filter: &str) -> bool {
        let mut state = self.state();
        match state.subscribed.get_mut(topic) {
            Some(known) if known == filter => false,
            Some(known) => {
                filter.clone_into(known);
                true
            }
            None => {
                if state.subscribed.len() < posthouse_core::catalog::config::bounds::SUBSCRIPTIONS {
                    state.subscribed.insert(topic.into(), filter.into());
                }
                true
            }
        }
    }

    /// Forgets what the client asked for on a topic, since it could not be done.
    pub fn unsubscribes(&self, topic: &str) {
        self.state().subscribed.remove(topic);
    }

    /// Commands go to `sink` from now on, too.
    pub fn open(&self, sink: Sink, caller: Caller) {
        self.state().streams.push(Stream { sink, caller, publishes: Vec::new(), said: None });
    }

    /// What the client said on one of its streams, which topics it publishes to, and what
    /// its group was then.
    pub fn says(&self, sink: &Sink, said: Said, publishes: Publishes, group: Option<Arc<Group>>) {
        let mut state = self.state();
        state.heard = Instant::now();
        if let Some(stream) = state.streams.iter_mut().find(|of| of.sink.same_channel(sink)) {
            stream.publishes = publishes;
            stream.said = Some((said, group));
        }
    }

    /// The client prepares transactions for a topic: it can be asked about such ones.
    pub fn prepares(&self, topic: &str, namespace: Namespace) {
        let prepares = &mut self.state().prepares;
        if prepares.len() < PREPARES && !prepares.iter().any(|(name, _)| name == topic) {
            prepares.push((topic.into(), namespace));
        }
    }

    /// Where the client can be asked as one that publishes to a topic, and whether it was
    /// heard of lately.
    fn publisher(&self, topic: &str) -> Option<(bool, Publisher)> {
        let state = self.state();
        // The newest: those before it may be of connections that are no more.
        let mut streams = state.streams.iter().rev();
        let found = streams.find_map(|stream| {
            let mut topics = stream.publishes.iter().chain(&state.prepares);
            let (_, namespace) = topics.find(|(name, _)| name == topic)?;
            Some(Publisher {
                sink: stream.sink.clone(),
                caller: stream.caller.clone(),
                namespace: namespace.clone(),
            })
        });
        Some((state.heard.elapsed() <= SILENCE, found?))
    }

    /// A stream has ended.
    pub fn close(&self, sink: &Sink) {
        let mut state = self.state();
        state.streams.retain(|of| !of.sink.same_channel(sink));
        state.heard = Instant::now();
    }

    /// A receive begins under the name that the client gives it. The messages that went out
    /// under the same one: the answer was lost, and the client tries again.
    pub fn attempts(&self, name: &str) -> (Attempt, Vec<String>) {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let attempt = hasher.finish();
        let mut state = self.state();
        let mut lost = Vec::new();
        if state.attempts.contains(&attempt) {
            let went = state.held.extract_if(|_, held| held.attempt == Some(attempt));
            lost.extend(went.map(|(receipt, _)| receipt));
        } else {
            if state.attempts.len() >= ATTEMPTS {
                state.attempts.pop_front();
            }
            state.attempts.push_back(attempt);
        }
        (attempt, lost)
    }

    /// The client has these messages: their leases are renewed until it is done with them.
    pub fn hold(&self, group: &str, receipts: Vec<String>, attempt: Option<Attempt>) {
        let group: Arc<str> = group.into();
        let now = Instant::now();
        let mut state = self.state();
        for receipt in receipts {
            if state.held.len() >= HELD {
                return;
            }
            let group = group.clone();
            state.held.insert(receipt, Held { group, attempt, since: now, renewed: now });
        }
    }

    /// The client is done with a message, one way or another.
    pub fn let_go(&self, handle: Handle<'_>) {
        if handle.is_renewed {
            self.state().held.remove(handle.receipt);
        }
    }

    /// What the client held, by group.
    pub fn let_all_go(&self) -> HashMap<Arc<str>, Vec<String>> {
        let held = std::mem::take(&mut self.state().held);
        by_group(held.into_iter().map(|(receipt, held)| (held.group, receipt)))
    }

    /// What has to be renewed now, where a lease of a group is so long; by group.
    fn due(&self, lease: impl Fn(&str) -> Option<Duration>) -> HashMap<Arc<str>, Vec<String>> {
        let mut state = self.state();
        let now = Instant::now();
        if !state.is_there() {
            // Its leases run out, also where a stream is open on which nothing is said.
            state.held.clear();
        }
        state.held.retain(|_, held| now.duration_since(held.since) < RENEWED);
        let mut leases: HashMap<Arc<str>, Option<Duration>> = HashMap::new();
        let mut due = Vec::new();
        for (receipt, held) in &mut state.held {
            let lease = leases.entry(held.group.clone()).or_insert_with(|| lease(&held.group));
            let Some(lease) = lease else { continue };
            if now.duration_since(held.renewed) >= *lease / 3 {
                held.renewed = now;
                due.push((held.group.clone(), receipt.clone()));
            }
        }
        drop(state);
        by_group(due)
    }

    /// Settings that have to be said again, since the group is another one now.
    fn outdated(&self, group: impl Fn(&pb::Settings) -> Option<Arc<Group>>) {
        let mut state = self.state();
        for stream in &mut state.streams {
            let Some((said, told)) = &mut stream.said else { continue };
            let said = &said.settings;
            let now = group(said);
            let is_same = match (&now, &*told) {
                (Some(now), Some(told)) => {
                    Arc::ptr_eq(now, told) || is_alike(&now.config, &told.config)
                }
                (None, _) => true,
                (Some(_), None) => false,
            };
            if !is_same {
                let settings = settings::answer(said.clone(), now.as_deref(), 0);
                // A client that does not read is told another time.
                if stream.sink.try_send(Ok(settings::command(settings))).is_ok() {
                    *told = now;
                }
            }
        }
    }
}

/// Whether clients are told the same of both.
fn is_alike(a: &GroupConfig, b: &GroupConfig) -> bool {
    (a.order, a.max_attempts, &a.backoff_ms) == (b.order, b.max_attempts, &b.backoff_ms)
}

fn by_group(
    receipts: impl IntoIterator<Item = (Arc<str>, String)>,
) -> HashMap<Arc<str>, Vec<String>> {
    let mut groups: HashMap<Arc<str>, Vec<String>> = HashMap::new();
    for (group, receipt) in receipts {
        groups.entry(group).or_default().push(receipt);
    }
    groups
}

impl State {
    /// Whether the client waits for something, or was heard of lately.
    fn is_there(&self) -> bool {
        self.waiting > 0 || self.heard.elapsed() <= SILENCE
    }

    /// Whether nothing has to be known of it any more.
    fn is_gone(&self) -> bool {
        !self.is_there() && self.streams.is_empty()
    }
}

/// A poll that waits.
#[derive(Debug)]
pub struct Waiting(Arc<Session>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting -= 1;
        state.heard = Instant::now();
    }
}

impl Door {
    /// Renews leases, says settings again that have changed, and forgets who has gone.
    pub(super) async fn look_after_sessions(&self) {
        for session in self.inner.sessions.all() {
            let due = session.due(|group| self.renewed_lease(group).map(Duration::from_millis));
            for (group, receipts) in due {
                self.renew(&session, &group, receipts).await;
            }
            session.outdated(|said| self.group_of(said));
        }
        self.inner.sessions.forget_silent();
    }

    /// How long the leases of a group are that are renewed, in milliseconds; `None` if there
    /// is no such group.
    pub(super) fn renewed_lease(&self, group: &str) -> Option<u64> {
        let catalog = self.broker().catalog();
        Some(catalog.group_named(group)?.config.lease_ms.max(RENEWED_LEASE_MS))
    }

    async fn renew(&self, session: &Session, group: &str, receipts: Vec<String>) {
        for some in receipts.chunks(bounds::RECEIPTS) {
            let verdict = Verdict::Extend { lease_ms: self.renewed_lease(group) };
            let items = some.iter().map(|receipt| (receipt.clone(), verdict.clone())).collect();
            match self.broker().settle(&Caller::Node, group, items).await {
                Ok(outcomes) => {
                    for (receipt, outcome) in some.iter().zip(outcomes) {
                        if outcome != Outcome::Ok {
                            session.let_go(Handle { receipt, is_renewed: true });
                        }
                    }
                }
                Err(problem) => {
                    tracing::debug!("leases of {} are not renewed: {problem}", session.id);
                }
            }
        }
    }

    /// Gives back what a client held that has said goodbye.
    pub(super) async fn give_back(&self, session: &Session) {
        for (group, receipts) in session.let_all_go() {
            for some in receipts.chunks(bounds::RECEIPTS) {
                let back =
                    Verdict::Nack { delay_ms: None, reason: "the consumer has ended".into() };
                let items = some.iter().map(|receipt| (receipt.clone(), back.clone())).collect();
                if let Err(problem) = self.broker().settle(&Caller::Node, &group, items).await {
                    tracing::debug!("what {} held waits for its leases: {problem}", session.id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_says_whether_its_lease_is_renewed() {
        for is_renewed in [false, true] {
            let handle = Handle { receipt: "abc", is_renewed };
            assert_eq!(Handle::parse(&handle.to_string()), handle);
        }
    }

    /// Each client could have the node keep two megabytes, and there may be 100,000.
    #[test]
    fn what_clients_say_of_themselves_is_bounded_for_all_of_them_together() {
        let sessions = Sessions::default();
        let topic = pb::Resource { name: "x".repeat(1 << 20), ..Default::default() };
        let publishing = pb::Publishing { topics: vec![topic], ..Default::default() };
        let pub_sub = Some(pb::settings::PubSub::Publishing(publishing));
        let large = pb::Settings { pub_sub, ..Default::default() };
        let mut kept: Vec<Said> = (0..63).map(|_| sessions.keep(large.clone()).unwrap()).collect();
        assert_eq!(sessions.keep(large.clone()).unwrap_err().code, Code::TooManyRequests);
        assert!(sessions.keep(pb::Settings::default()).is_ok(), "a small one finds room");
        kept.pop();
        assert!(sessions.keep(large).is_ok());
    }

    #[test]
    fn a_filter_is_told_to_the_group_once_until_it_changes() {
        let session = Session::new("c".into());
        assert!(session.subscribes("orders", "*"));
        assert!(!session.subscribes("orders", "*"));
        assert!(session.subscribes("orders", "paid"));
        session.unsubscribes("orders");
        assert!(session.subscribes("orders", "paid"));
    }

    #[test]
    fn leases_are_renewed_when_a_third_of_them_has_gone_and_not_after_an_ack() {
        let session = Session::new("c".into());
        session.hold("g", vec!["a".into(), "b".into()], None);
        let hour = |_: &str| Some(Duration::from_secs(3600));
        assert!(session.due(hour).is_empty());
        session.let_go(Handle { receipt: "a", is_renewed: true });
        let due = session.due(|_| Some(Duration::ZERO));
        assert_eq!(due, HashMap::from([("g".into(), vec!["b".to_owned()])]));
        assert!(session.due(|_| None).is_empty(), "a group that is not there has no leases");
    }

    #[test]
    fn what_went_out_with_a_receive_that_is_tried_again_is_not_held_any_more() {
        let session = Session::new("c".into());
        let (first, lost) = session.attempts("first");
        assert!(lost.is_empty());
        session.hold("g", vec!["a".into()], Some(first));
        let (second, lost) = session.attempts("second");
        assert!(lost.is_empty());
        session.hold("g", vec!["b".into()], Some(second));
        assert_eq!(session.attempts("first"), (first, vec!["a".into()]));
        assert_eq!(session.attempts("first"), (first, vec![]), "it is given back once");
        assert_eq!(session.let_all_go()["g"], ["b"]);
        // As many as there may be, and one more: the oldest is not known any more.
        session.hold("g", vec!["c".into()], Some(second));
        for n in 0..ATTEMPTS {
            session.attempts(&n.to_string());
        }
        assert_eq!(session.attempts("second").1, [""; 0]);
    }

    #[test]
    fn the_leases_of_a_client_that_is_silent_run_out_though_its_stream_is_open() {
        let session = Session::new("c".into());
        let (sink, _commands) = mpsc::channel(1);
        session.open(sink.clone(), Caller::Anyone);
        session.hold("g", vec!["a".into()], None);
        let always = |_: &str| Some(Duration::ZERO);
        assert!(!session.due(always).is_empty());
        let before = Instant::now().checked_sub(SILENCE + Duration::from_secs(1)).unwrap();
        session.state().heard = before;
        let poll = Arc::new(session);
        let waiting = poll.wait();
        assert!(!poll.due(always).is_empty(), "it waits for messages");
        drop(waiting);
        poll.state().heard = before;
        assert!(poll.due(always).is_empty());
        assert!(!poll.state().is_gone(), "it can still be told something");
        poll.close(&sink);
        poll.state().heard = before;
        assert!(poll.state().is_gone());
    }
}
