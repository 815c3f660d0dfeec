//! A byte turns, a file is cut short or is gone, anywhere in a data directory.
//!
//! Whatever it is: the node does not start, names the file and leaves everything as it
//! is; or it starts, and says what is damaged, at the start or when it is read; or it is
//! harmless, because nothing means anything where it stands or only verification looks
//! there. Nothing wrong is ever served, and nothing that was acknowledged goes missing
//! without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use posthouse::broker::consume::{Outcome, Receive, Verdict};
use posthouse::broker::inspect::Browse;
use posthouse::broker::letters::LetterCursor;
use posthouse::broker::manage::{GroupPatch, TopicPatch};
use posthouse::broker::{Broker, Caller};
use posthouse::problem::Kind;
use posthouse::store::manifest::Manifest;
use posthouse_core::catalog::{AccessGrant, Action, Subscription};
use posthouse_core::message::Parts;
use posthouse_log::Part;
use posthouse_log::files::Files as _;
use posthouse_log::files::sim::SimFiles;
use posthouse_log::local::{inspect, verify};

use crate::disk::{stop, try_start};
use crate::support::rng::{self, Rng};
use crate::support::{step, until};

const ANYONE: Caller = Caller::Anyone;
const DATA: &str = "/data";
const LOGS: [&str; 2] = ["/data/meta/log", "/data/shard-0000/log"];
const TOPICS: [(&str, u32); 3] = [("a", 1), ("b", 2), ("dead-end", 1)];

/// Places that are tried every day.
const SAMPLE: usize = 420;

/// What the nodes of this test say.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One test at a time listens to what its nodes say.
static LISTENS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Everything that nodes in this process say from now on.
fn listen() -> Said {
    static SAID: Mutex<Option<Said>> = Mutex::new(None);
    static ONCE: Once = Once::new();
    let said = {
        let mut held = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_with(Said::default).clone()
    };
    ONCE.call_once(|| {
        let writer = said.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    });
    said
}

/// A message as it has to be found: body, key, tags and headers.
type Content = (Vec<u8>, Option<String>, Vec<String>, Vec<(String, String)>);

/// A store, and what is in it.
struct Base {
    disk: SimFiles,
    store: u64,
    messages: BTreeMap<(String, u32, u64), Content>,
    /// What the group is not done with, with the attempt that comes next.
    open: BTreeMap<(String, u32, u64), u16>,
    letters: BTreeSet<Vec<u8>>,
    token: String,
    files: Vec<PathBuf>,
    /// Bytes of marks, which mean nothing where frames follow them.
    marks: Vec<(PathBuf, Range<u64>)>,
    /// Files that only the older snapshots need.
    older: BTreeSet<PathBuf>,
    /// Chunks of the index. Who reads a damaged one is held up for a second each time.
    index: BTreeSet<PathBuf>,
}

fn content(topic: &str, n: u64) -> Content {
    let body = format!("message {n} of {topic} ").repeat(1 + n as usize % 40).into_bytes();
    let key = (!n.is_multiple_of(3)).then(|| format!("key-{}", n % 5));
    let tags = (0..n % 3).map(|tag| format!("tag-{tag}")).collect();
    let headers = (0..n % 4).map(|h| (format!("header-{h}"), format!("value {n}"))).collect();
    (body, key, tags, headers)
}

async fn publish(broker: &Broker, base: &mut Base, topic: &str, numbers: Range<u64>) {
    for n in numbers {
        let (body, key, tags, headers) = content(topic, n);
        let parts = Parts {
            key: key.as_deref(),
            tags: tags.iter().map(String::as_str).collect(),
            headers: headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect(),
            ..Parts::default()
        };
        let to = broker.topic_to_publish(&ANYONE, topic).await.unwrap();
        let mut outbox = broker.outbox(None, false);
        broker.add(&mut outbox, &to, &parts, &body).unwrap();
        let sent = broker.publish(outbox).await.unwrap();
        let placed = broker.placed(&sent).next().unwrap().unwrap();
        let place = (topic.to_owned(), placed.partition, placed.position.unwrap());
        if topic != "dead-end" {
            base.open.insert(place.clone(), 1);
        }
        base.messages.insert(place, content(topic, n));
    }
}

/// Acknowledges some, gives some back.
async fn consume(broker: &Broker, base: &mut Base, count: usize) {
    let mut received = Vec::new();
    while received.len() < count {
        let max = count - received.len();
        // Blocks may have to be fetched, on a machine that has much to do.
        let wait = Duration::from_secs(20);
        let ask = Receive { max, wait, lease_ms: Some(100), ..Receive::default() };
        let some = broker.receive(&ANYONE, "g", &ask).await.unwrap();
        assert!(!some.is_empty(), "there are only {} of {count}", received.len());
        received.extend(some);
    }
    for (n, message) in received.iter().enumerate() {
        let place = (message.topic.name.to_string(), message.partition, message.position);
        let verdict = match n % 3 {
            0 => Verdict::Nack { delay_ms: Some(0), reason: "again".into() },
            _ => Verdict::Ack,
        };
        let is_ack = matches!(verdict, Verdict::Ack);
        let items = vec![(message.receipt.clone(), verdict)];
        assert_eq!(broker.settle(&ANYONE, "g", items).await.unwrap(), [Outcome::Ok]);
        if is_ack {
            base.open.remove(&place);
        } else {
            base.open.insert(place, message.attempt + 1);
        }
    }
}

/// A store in which a bit of everything has happened: two snapshots, dead letters, a
/// user, and frames behind the snapshots; as kill -9 leaves it.
async fn build() -> Base {
    let disk = SimFiles::new(11);
    let mut base = Base {
        disk: disk.clone(),
        store: 0,
        messages: BTreeMap::new(),
        open: BTreeMap::new(),
        letters: BTreeSet::new(),
        token: String::new(),
        files: Vec::new(),
        marks: Vec::new(),
        older: BTreeSet::new(),
        index: BTreeSet::new(),
    };
    let small = |o: &mut posthouse::broker::BrokerOptions| o.segment_bytes = 1 << 20;
    let (broker, _) = try_start(&disk, small).await.unwrap();
    let group = |topics: &[&str], max_attempts| GroupPatch {
        subscriptions: Some(
            topics
                .iter()
                .map(|topic| Subscription { topic: topic.to_string(), filter: "*".into() })
                .collect(),
        ),
        max_attempts: Some(max_attempts),
        ..GroupPatch::default()
    };
    for (topic, partitions) in TOPICS {
        let config = TopicPatch { partitions: Some(partitions), ..TopicPatch::default() };
        broker.put_topic(&ANYONE, topic, config).await.unwrap();
    }
    broker.put_group(&ANYONE, "g", group(&["a", "b"], 100)).await.unwrap();
    broker.put_group(&ANYONE, "no", group(&["dead-end"], 1)).await.unwrap();
    let grant = AccessGrant {
        actions: vec![Action::Consume],
        topics: vec!["*".into()],
        groups: vec!["*".into()],
    };
    broker.put_user(&ANYONE, "shop", vec![grant], None).await.unwrap();
    base.token = broker.make_token(&ANYONE, "shop", "one").await.unwrap();
    publish(&broker, &mut base, "a", 0..12).await;
    publish(&broker, &mut base, "b", 0..12).await;
    publish(&broker, &mut base, "dead-end", 0..3).await;
    consume(&broker, &mut base, 6).await;
    stop(broker).await;
    let (broker, _) = try_start(&disk, small).await.unwrap();
    publish(&broker, &mut base, "a", 12..18).await;
    let ask = Receive { max: 3, ..Receive::default() };
    for message in broker.receive(&ANYONE, "no", &ask).await.unwrap() {
        let no = Verdict::Nack { delay_ms: Some(0), reason: "cannot be done".into() };
        broker.settle(&ANYONE, "no", vec![(message.receipt.clone(), no)]).await.unwrap();
        base.letters.insert(message.parts().unwrap().1.to_vec());
    }
    until("they are dead letters", 20, || async {
        let page = broker.letters(&ANYONE, "no", LetterCursor::default(), 10).await.unwrap();
        (page.letters.len() == 3).then_some(())
    })
    .await;
    stop(broker).await;
    let (broker, _) = try_start(&disk, small).await.unwrap();
    consume(&broker, &mut base, 9).await;
    publish(&broker, &mut base, "b", 12..20).await;
    base.store = u64::from_str_radix(&broker.info().store, 16).unwrap();
    // Idle, with the spares filled, and the last frames marked: now it is killed.
    let killed = until("nothing is written any more", 30, || async {
        let killed = disk.fork();
        let is_idle = LOGS.iter().all(|log| {
            let units = inspect(killed.shared(), Path::new(log), base.store, Part::Meta).unwrap();
            let last = units.map(Result::unwrap).last().unwrap();
            let names = killed.list(Path::new(log)).unwrap();
            last.header.kind == posthouse_frame::Kind::Mark
                && names.iter().any(|entry| entry.name.starts_with("spare-"))
                && !names.iter().any(|entry| entry.name.starts_with("fill-"))
        });
        is_idle.then_some(killed)
    })
    .await;
    stop(broker).await;
    base.disk = killed;
    base.survey();
    base
}

impl Base {
    /// Notes which files there are, and what is in them.
    fn survey(&mut self) {
        let mut dirs = vec![PathBuf::from(DATA)];
        while let Some(dir) = dirs.pop() {
            for entry in self.disk.list(&dir).unwrap() {
                let path = dir.join(&entry.name);
                if entry.is_dir { dirs.push(path) } else { self.files.push(path) }
            }
        }
        self.files.sort();
        for log in LOGS {
            let units = inspect(self.disk.shared(), Path::new(log), self.store, Part::Meta);
            for unit in units.unwrap().map(Result::unwrap) {
                if unit.header.kind == posthouse_frame::Kind::Mark {
                    let file = format!("{log}/seg-{:020}.log", unit.segment.0);
                    let end = unit.offset + u64::from(unit.header.total);
                    self.marks.push((file.into(), unit.offset..end));
                }
            }
        }
        for (part, shard) in [("meta", u16::MAX), ("shard-0000", 0)] {
            let dir = Path::new(DATA).join(part);
            let manifests = Manifest::list(&self.disk, &dir).unwrap();
            assert_eq!(manifests.len(), 2, "two snapshots are kept");
            let newest = Manifest::load(&self.disk, &manifests[0].1, self.store, shard).unwrap();
            let needed: BTreeSet<String> =
                newest.chunks().iter().map(|c| format!("c-{}-{}", c.epoch, c.number)).collect();
            let index = newest.index.iter().map(|c| format!("c-{}-{}", c.epoch, c.number));
            self.index.extend(index.map(|name| dir.join("chunks").join(name)));
            for entry in self.disk.list(&dir.join("chunks")).unwrap() {
                if !needed.contains(&entry.name) {
                    self.older.insert(dir.join("chunks").join(entry.name));
                }
            }
        }
    }

    /// All places of a file in which something stands, and some in which nothing does.
    fn places(&self, file: &Path, rng: &mut Rng) -> Vec<u64> {
        let content = self.disk.content(file);
        let filled = (0..content.len() as u64).filter(|at| content[*at as usize] != 0);
        let mut places: Vec<u64> = filled.collect();
        for _ in 0..3 {
            places.push(rng.below(content.len() as u64));
        }
        places
    }

    /// Whether a byte may turn there without a word at the start.
    fn is_harmless(&self, file: &Path, at: u64) -> bool {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("spare-")
            || self.older.contains(file)
            || self.disk.content(file)[at as usize] == 0
            || self.marks.iter().any(|(of, range)| of == file && range.contains(&at))
    }
}

/// What a start came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    Refused,
    Reported,
    Silent,
}

/// Starts a node on a damaged disk, and reads all that can be read.
async fn try_disk(base: &Base, disk: &SimFiles, file: &Path, said: &Said, what: &str) -> Came {
    let before = disk.fork();
    said.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let small = |o: &mut posthouse::broker::BrokerOptions| o.segment_bytes = 1 << 20;
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let broker = match try_start(disk, small).await {
        Ok((broker, _)) => broker,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(&name), "{what}: it does not name the file: {text}");
            let same = base.files.iter().all(|file| {
                let there = before.open(file, posthouse_log::files::Access::Read).is_ok();
                !there || before.content(file) == disk.content(file)
            });
            assert!(same, "{what}: it was refused, and something has changed");
            return Came::Refused;
        }
    };
    let (broken, missing) = read_all(base, &broker, &name, what).await;
    stop(broker).await;
    let said = said.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let is_told = String::from_utf8_lossy(&said).contains(&name);
    assert!(is_told || missing == 0, "{what}: {missing} messages are missing without a word");
    if is_told || broken > 0 { Came::Reported } else { Came::Silent }
}

/// Everything is as it was acknowledged, or refused with the name of the damaged file.
/// Returns how many were refused, and how many just did not come.
async fn read_all(base: &Base, broker: &Broker, name: &str, what: &str) -> (usize, usize) {
    let mut broken = BTreeSet::new();
    let looks = base.messages.keys().map(|place| async move {
        let (partition, from) = (place.1, Some(place.2));
        let browse = Browse { partition, from, limit: 1, ..Browse::default() };
        broker.browse(&ANYONE, &place.0, &browse).await
    });
    let looks = futures_util::future::join_all(looks).await;
    for ((place, expected), looked) in base.messages.iter().zip(looks) {
        match looked {
            Ok(page) => {
                let seen = page.messages.first();
                let seen = seen.unwrap_or_else(|| panic!("{what}: {place:?} is missing"));
                assert_eq!(seen.found.position, place.2, "{what}: {place:?} is missing");
                let (parts, body) = seen.parts().unwrap();
                let found: Content = (
                    body.to_vec(),
                    parts.key.map(str::to_owned),
                    parts.tags.iter().map(|tag| tag.to_string()).collect(),
                    parts.headers.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
                );
                assert!(&found == expected, "{what}: {place:?} is another: {found:?}");
            }
            Err(problem) => {
                assert_eq!(problem.kind, Kind::Corrupt, "{what}: {problem}");
                assert!(problem.detail.contains(name), "{what}: {problem}");
                broken.insert(place.clone());
            }
        }
    }
    let mut open = base.open.clone();
    let ask = Receive { max: 100, wait: Duration::from_millis(20), ..Receive::default() };
    for _ in 0..base.open.len() {
        let received = match broker.receive(&ANYONE, "g", &ask).await {
            Ok(received) => received,
            Err(problem) => {
                assert_eq!(problem.kind, Kind::Corrupt, "{what}: {problem}");
                assert!(problem.detail.contains(name), "{what}: {problem}");
                continue;
            }
        };
        if received.is_empty() {
            break;
        }
        for message in received {
            let place = (message.topic.name.to_string(), message.partition, message.position);
            let attempt = open.remove(&place);
            let attempt = attempt.unwrap_or_else(|| panic!("{what}: {place:?} was done"));
            assert_eq!(message.attempt, attempt, "{what}: attempts of {place:?}");
            let body = message.parts().unwrap().1;
            assert!(body == base.messages[&place].0, "{what}: {place:?} is another");
        }
    }
    let lost = open.keys().filter(|place| !broken.contains(*place)).count();
    let mut letters = base.letters.clone();
    match broker.letters(&ANYONE, "no", LetterCursor::default(), 100).await {
        Ok(page) => {
            for letter in page.letters {
                let body = letter.parts().unwrap().1.to_vec();
                assert!(letters.remove(&body), "{what}: a letter is another");
            }
        }
        Err(problem) => {
            assert!(problem.detail.contains(name), "{what}: {problem}");
            broken.insert(("letters".into(), 0, 0));
            letters.clear();
        }
    }
    let user = broker
        .catalog()
        .user_by_token(&posthouse::broker::access::token_hash(&base.token))
        .cloned();
    assert_eq!(user.map(|user| user.name.to_string()).as_deref(), Some("shop"), "{what}");
    (broken.len(), lost + letters.len())
}

async fn turn(base: &Base, file: &Path, at: u64, bit: u64, said: &Said) -> Came {
    let disk = base.disk.fork();
    disk.flip(file, at * 8 + bit);
    let what = format!("bit {bit} of byte {at} of {}", file.display());
    let is_found = LOGS.iter().any(|log| {
        if !file.starts_with(log) {
            return false;
        }
        let report = verify(disk.shared(), Path::new(log), base.store, |_| ()).unwrap();
        !report.is_clean() || report.torn.is_some()
    });
    let came = try_disk(base, &disk, file, said, &what).await;
    let may_be_silent = is_found || base.is_harmless(file, at);
    assert!(came != Came::Silent || may_be_silent, "{what}: without a word");
    came
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turned_bit_anywhere_is_refused_reported_or_harmless_and_never_served() {
    let mut rng = Rng::new(rng::seed("a turned bit anywhere"));
    let _alone = LISTENS.lock().await;
    let said = listen();
    let base = build().await;
    let mut counts: BTreeMap<Came, usize> = BTreeMap::new();
    for file in &base.files {
        let mut places = base.places(file, &mut rng);
        let share = if base.index.contains(file) { 2 } else { SAMPLE / base.files.len() };
        while places.len() > share {
            let at = rng.below(places.len() as u64) as usize;
            places.swap_remove(at);
        }
        for at in places {
            let came = turn(&base, file, at, rng.below(8), &said).await;
            *counts.entry(came).or_default() += 1;
        }
    }
    eprintln!("{counts:?}");
    assert!(counts.len() == 3, "every sort of outcome was seen: {counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour; .ci/run slow runs a part of it"]
async fn every_turned_byte_is_refused_reported_or_harmless_and_never_served() {
    let mut rng = Rng::new(rng::seed("every turned byte"));
    let _alone = LISTENS.lock().await;
    let said = listen();
    let base = build().await;
    let step = step();
    let mut counts: BTreeMap<Came, usize> = BTreeMap::new();
    for file in &base.files {
        for at in base.places(file, &mut rng).into_iter().step_by(step) {
            let came = turn(&base, file, at, at % 8, &said).await;
            *counts.entry(came).or_default() += 1;
        }
    }
    eprintln!("{counts:?}");
    assert!(counts.len() == 3, "every sort of outcome was seen: {counts:?}");
}

/// Cuts a file to so many bytes, or takes it away.
async fn cut(base: &Base, file: &Path, keep: Option<usize>, said: &Said) -> Came {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let disk = base.disk.fork();
    let what = format!("{} cut to {keep:?} bytes", file.display());
    match keep {
        Some(keep) => disk.set_content(file, base.disk.content(file)[..keep].to_vec()),
        None => {
            disk.unlink(file).unwrap();
            disk.sync_dir(file.parent().unwrap()).unwrap();
        }
    }
    if keep.is_none() && name == "store.json" {
        // Then the directory is what cannot be used, and that is said.
        assert!(try_start(&disk, |_| ()).await.is_err());
        return Came::Refused;
    }
    let came = try_disk(base, &disk, file, said, &what).await;
    // One manifest of two may go: the other has what it takes.
    let is_manifest = name.starts_with("manifest-") && keep.is_none();
    let may_be_silent = name.starts_with("spare-") || base.older.contains(file) || is_manifest;
    assert!(came != Came::Silent || may_be_silent, "{what}: without a word");
    came
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_cut_short_or_gone_is_refused_reported_or_harmless() {
    let _alone = LISTENS.lock().await;
    let said = listen();
    let base = build().await;
    for file in &base.files {
        let len = base.disk.content(file).len();
        for keep in [Some(0), Some(1), Some(len / 2), Some(len - 1), None] {
            cut(&base, file, keep, &said).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour; .ci/run slow runs a part of it"]
async fn every_file_cut_at_every_length_is_refused_reported_or_harmless() {
    let _alone = LISTENS.lock().await;
    let said = listen();
    let base = build().await;
    let step = step();
    let mut counts: BTreeMap<Came, usize> = BTreeMap::new();
    for file in &base.files {
        // A cut within zeros is the same as one where they begin, or end.
        let content = base.disk.content(file);
        let is_edge = |at: &usize| *at == 0 || content[*at - 1] != 0 || content[*at] != 0;
        let lengths = (0..content.len()).filter(is_edge).step_by(step).map(Some);
        for keep in lengths.chain([None]) {
            *counts.entry(cut(&base, file, keep, &said).await).or_default() += 1;
        }
    }
    eprintln!("{counts:?}");
    assert!(counts.len() == 3, "every sort of outcome was seen: {counts:?}");
}
