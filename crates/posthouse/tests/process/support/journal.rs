//! What the node has acknowledged, noted when the answer arrives, and what must be true
//! because of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use posthouse_client::proto::{self, OutgoingMessage, ReceivedMessage};

/// The header by which a message is known here.
const UID: &str = "uid";

/// A message that was handed to the node.
#[derive(Clone, Debug)]
pub struct Sent {
    pub topic: String,
    pub message: OutgoingMessage,
    /// Messages with the same number are all there or none.
    pub batch: Option<u64>,
    /// It was handed to the node before, and no answer came.
    pub again: bool,
    pub fate: Fate,
}

/// What is known of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No answer has come.
    Unknown,
    /// It is published.
    Placed { id: String, partition: u32, position: u64 },
    /// It is not, and never will be, for this reason.
    Refused(String),
}

/// Where a message is: its topic, partition and position.
pub type Place = (String, u32, u64);

/// What a group was given of one message.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The fence of each attempt.
    pub fences: BTreeMap<u32, u64>,
    /// The attempt that was acknowledged for certain.
    pub acked: Option<u32>,
    pub id: String,
}

#[derive(Clone, Debug, Default)]
struct Notes {
    sent: HashMap<String, Sent>,
    given: HashMap<String, BTreeMap<Place, Given>>,
    /// What is answered now comes from a node without a disk.
    in_doubt: bool,
    /// What groups were given of such a node.
    doubtful: HashMap<String, BTreeSet<Place>>,
    next: u64,
    events: u64,
}

/// The journal.
#[derive(Debug, Default)]
pub struct Journal {
    notes: Mutex<Notes>,
    events: tokio::sync::watch::Sender<u64>,
}

impl Journal {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, notes: &mut Notes) {
        notes.events += 1;
        self.events.send_replace(notes.events);
    }

    /// The same notes, to be gone on with apart.
    pub fn copy(&self) -> Journal {
        Journal { notes: Mutex::new(self.notes().clone()), ..Journal::default() }
    }

    /// The power fails now. Who could still hear an answer would know nothing by it: it may
    /// have been kept, or not.
    pub fn power_fails(&self) {
        self.notes().in_doubt = true;
    }

    /// It is back, and nobody is left of those who heard the node that had no disk.
    pub fn power_is_back(&self) {
        self.notes().in_doubt = false;
    }

    /// Waits until `n` more answers have come.
    pub async fn answers(&self, n: u64) {
        let mut events = self.events.subscribe();
        let wanted = *events.borrow() + n;
        events.wait_for(|events| *events >= wanted).await.expect("the journal lives");
    }

    /// A number that nobody else has.
    pub fn number(&self) -> u64 {
        let mut notes = self.notes();
        notes.next += 1;
        notes.next
    }

    /// Notes a message that is about to be sent, and gives it its mark.
    pub fn ask(
        &self,
        topic: &str,
        mut message: OutgoingMessage,
        batch: Option<u64>,
    ) -> (String, OutgoingMessage) {
        let uid = format!("{:06}", self.number());
        message.headers.insert(UID.into(), uid.clone());
        let sent = Sent {
            topic: topic.into(),
            message: message.clone(),
            batch,
            again: false,
            fate: Fate::Unknown,
        };
        self.notes().sent.insert(uid.clone(), sent);
        (uid, message)
    }

    /// The answer: it is published.
    pub fn placed(&self, uid: &str, published: &proto::PublishedMessage) {
        let (id, partition, position) =
            (published.id.clone(), published.partition, published.position);
        let mut notes = self.notes();
        let in_doubt = notes.in_doubt;
        let sent = notes.sent.get_mut(uid).expect("it was asked for");
        let fate = Fate::Placed { id, partition, position };
        match &sent.fate {
            Fate::Unknown if in_doubt => {}
            Fate::Unknown => sent.fate = fate,
            before => assert_eq!(before, &fate, "message {uid} was published before"),
        }
        self.event(&mut notes);
    }

    /// The answer: it is not published, for this reason. Of a message that is handed in
    /// again that says nothing of the first time.
    pub fn refused(&self, uid: &str, why: &str) {
        let mut notes = self.notes();
        let sent = notes.sent.get_mut(uid).expect("it was asked for");
        assert_eq!(sent.fate, Fate::Unknown, "message {uid} was answered before");
        if !sent.again {
            sent.fate = Fate::Refused(why.into());
        }
        self.event(&mut notes);
    }

    /// Messages with a publish id of which nobody knows whether they are there.
    pub fn to_send_again(&self) -> Vec<(String, Sent)> {
        let mut notes = self.notes();
        let unknown = notes.sent.iter_mut().filter(|(_, sent)| {
            sent.fate == Fate::Unknown && sent.message.dedupe_id.is_some() && sent.batch.is_none()
        });
        let again = unknown.map(|(uid, sent)| {
            sent.again = true;
            (uid.clone(), sent.clone())
        });
        again.collect()
    }

    /// Some message with a publish id that is published.
    pub fn known_id(&self) -> Option<Sent> {
        let notes = self.notes();
        let placed = |sent: &&Sent| {
            matches!(sent.fate, Fate::Placed { .. }) && sent.message.dedupe_id.is_some()
        };
        notes.sent.values().find(placed).cloned()
    }

    /// A message was received, or looked at: it is what was sent, and where it was said
    /// to be. Returns its mark.
    pub fn check(&self, message: &ReceivedMessage) -> String {
        let notes = self.notes();
        let place = format!("{}/{}/{}", message.topic, message.partition, message.position);
        let uid = message.headers.get(UID).unwrap_or_else(|| panic!("{place} is from nowhere"));
        let sent = notes.sent.get(uid).unwrap_or_else(|| panic!("{place} is from nowhere"));
        let (is_refused, fate) = (matches!(sent.fate, Fate::Refused(_)), &sent.fate);
        assert!(!is_refused, "{place} ({uid}) was refused, and is there: {fate:?}");
        let (is, was) = (message, &sent.message);
        let (origin_topic, origin_place) = match &is.origin {
            Some(origin) => (&origin.topic, (origin.partition, origin.position)),
            None => (&is.topic, (is.partition, is.position)),
        };
        assert_eq!(origin_topic, &sent.topic, "the topic of {place} ({uid})");
        assert!(is.body == was.body, "the body of {place} ({uid}) is another");
        assert_eq!(is.key, was.key, "the key of {place} ({uid})");
        assert_eq!(is.tags, was.tags, "the tags of {place} ({uid})");
        assert_eq!(is.headers, was.headers, "the headers of {place} ({uid})");
        assert_eq!(is.dedupe_id, was.dedupe_id, "the publish id of {place} ({uid})");
        if let Fate::Placed { id, partition, position } = &sent.fate {
            assert_eq!(&is.id, id, "the id of {place} ({uid})");
            assert_eq!(origin_place, (*partition, *position), "the place of {place} ({uid})");
        }
        uid.clone()
    }

    /// A group was given a message.
    pub fn given(&self, group: &str, message: &ReceivedMessage) {
        self.check(message);
        let mut notes = self.notes();
        let place = (message.topic.clone(), message.partition, message.position);
        if notes.in_doubt {
            notes.doubtful.entry(group.into()).or_default().insert(place);
            return self.event(&mut notes);
        }
        let given = notes.given.entry(group.into()).or_default();
        let given = given.entry(place.clone()).or_default();
        given.id.clone_from(&message.id);
        let (attempt, fence) = (message.attempt, message.fence);
        if let Some(acked) = given.acked {
            assert!(
                attempt < acked,
                "{group} got {place:?} as attempt {attempt} after it had acknowledged {acked}"
            );
        }
        let before = given.fences.insert(attempt, fence);
        assert_eq!(before, None, "{group} got {place:?} as attempt {attempt} twice");
        let rises = given.fences.values().is_sorted_by(|a, b| a < b);
        assert!(rises, "fences of {place:?} for {group}: {:?}", given.fences);
        self.event(&mut notes);
    }

    /// A group has acknowledged what it was given.
    pub fn acked(&self, group: &str, message: &ReceivedMessage) {
        let mut notes = self.notes();
        if notes.in_doubt {
            return self.event(&mut notes);
        }
        let place = (message.topic.clone(), message.partition, message.position);
        let given = notes.given.get_mut(group).and_then(|given| given.get_mut(&place));
        let given = given.expect("it was given");
        given.acked = Some(message.attempt);
        if let Some((attempt, _)) = given.fences.range(message.attempt + 1..).next() {
            panic!(
                "{group} has acknowledged {place:?} as attempt {}, and got attempt {attempt}",
                message.attempt
            );
        }
        self.event(&mut notes);
    }

    /// What a group was given so far.
    pub fn of_group(&self, group: &str) -> BTreeMap<Place, Given> {
        self.notes().given.get(group).cloned().unwrap_or_default()
    }

    /// What a group may have been given beside that, and have acknowledged.
    pub fn doubtful_of_group(&self, group: &str) -> BTreeSet<Place> {
        self.notes().doubtful.get(group).cloned().unwrap_or_default()
    }

    /// The message with this mark.
    pub fn sent(&self, uid: &str) -> Option<Sent> {
        self.notes().sent.get(uid).cloned()
    }

    /// All messages that were handed to the node.
    pub fn all(&self) -> HashMap<String, Sent> {
        self.notes().sent.clone()
    }
}
