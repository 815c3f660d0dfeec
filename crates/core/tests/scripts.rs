//! The core as scripts: text in, printed state out.
//!
//! A script is a list of steps, each a command line, a line of four dashes, and what
//! the command prints, up to an empty line. `SCRIPTS=write` writes what is printed
//! now into the files instead of comparing; read the difference before believing it.

mod harness;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use harness::{Msg, T0, World, held};
use posthouse_core::UnixMs;
use posthouse_core::catalog::{
    DeadLetter, Expired, Group, GroupConfig, Order, Retention, Subscription, Topic, TopicConfig,
};
use posthouse_core::machine::Machine;
use posthouse_core::message::Parts;
use posthouse_core::name;
use posthouse_core::queue::command::{GivenBack, Held, Reply, Settled, Target};
use posthouse_core::queue::{Ask, Command, Delivery, MessageState, Transaction};
use posthouse_core::record::When;

struct Script {
    world: World,
    /// The deliveries of a message, by its body, in order of attempts.
    deliveries: BTreeMap<String, Vec<Delivery>>,
    /// The tags of a message, by its body: what text filters look at.
    tags: BTreeMap<String, Vec<String>>,
}

/// The words of a command line: plain ones, and `name=value`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let mut words = Words { plain: Vec::new(), named: BTreeMap::new() };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) if !name.contains(':') => {
                    words.named.insert(name, value);
                }
                _ => words.plain.push(word),
            }
        }
        words
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.named.get(name).map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v}")))
    }
}

impl Script {
    fn topic(&self, name: &str) -> Arc<Topic> {
        self.world.catalog.topic_named(name).unwrap_or_else(|| panic!("no topic {name}")).clone()
    }

    fn group(&self, name: &str) -> Arc<Group> {
        self.world.catalog.group_named(name).unwrap_or_else(|| panic!("no group {name}")).clone()
    }

    fn run(&mut self, line: &str) -> String {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words = Words::of(rest);
        match command {
            "topic" => self.make_topic(&words),
            "group" => self.make_group(&words),
            "publish" => self.publish(&words),
            "prepare" => self.prepare(&words),
            "commit" => self.end(&words, true),
            "rollback" => self.end(&words, false),
            "checks" => {
                let checks = self.world.checks(words.plain[0]);
                self.world.due();
                let said = checks.iter().map(|(of, check)| format!("{of}, check {check}\n"));
                if checks.is_empty() { "nothing\n".into() } else { said.collect() }
            }
            "transactions" => self.transactions(),
            "delete" => {
                let partition = self.topic(words.plain[0]).partitions[0].id;
                self.world.run(Command::Drop { partition });
                self.world.due();
                String::new()
            }
            "receive" => self.receive(&words),
            "ack" => self.settle(&words, Command::Ack),
            "extend" => {
                let lease_ms = words.number("lease").unwrap();
                self.settle(&words, |held| Command::Extend { held, lease_ms })
            }
            "nack" => {
                let delay_ms = words.number("delay");
                let reason: Arc<str> = (*words.named.get("why").unwrap_or(&"")).into();
                self.settle(&words, |held| {
                    let back = |held| GivenBack { held, delay_ms, reason: reason.clone() };
                    Command::Nack(held.into_iter().map(back).collect())
                })
            }
            "time" => {
                self.world.advance(words.plain[0].parse().unwrap());
                self.world.due();
                String::new()
            }
            "state" => self.state(),
            "seek" => self.seek(&words),
            "purge" => {
                let topic = self.topic(words.plain[0]);
                let before = words.number("before");
                let purge = Command::Purge { partition: topic.partitions[0].id, before };
                let reply = self.world.run(purge);
                format!("{reply:?}\n")
            }
            "letters" => self.letters(words.plain[0]),
            "redrive" => {
                let group = self.group(words.plain[0]);
                let positions: Vec<u64> =
                    words.plain[1..].iter().map(|p| p.parse().unwrap()).collect();
                format!("{} redriven\n", self.world.redrive(&group, &positions))
            }
            "purge-dead" => {
                let dead = self.topic(&name::dead_letter_topic(words.plain[0]));
                let positions: Vec<u64> =
                    words.plain[1..].iter().map(|p| p.parse().unwrap()).collect();
                let positions = (!positions.is_empty()).then_some(positions);
                let from = dead.partitions[0].id;
                format!("{:?}\n", self.world.run(Command::PurgeDead { from, positions }))
            }
            "history" => self.message_states(words.plain[0]),
            "snapshot" => {
                self.world.take_snapshot(|_| ());
                String::new()
            }
            "restart" => {
                self.world.restart(true);
                self.world.due();
                String::new()
            }
            other => panic!("no command {other}"),
        }
    }

    fn make_topic(&mut self, words: &Words<'_>) -> String {
        let mut config = TopicConfig {
            partitions: words.number("partitions").unwrap_or(1),
            ..TopicConfig::default()
        };
        let limits =
            (words.number("max_age"), words.number("max_bytes"), words.number("max_count"));
        if let (max_age_ms, max_bytes, max_count) = limits
            && (max_age_ms.is_some() || max_bytes.is_some() || max_count.is_some())
        {
            config.retention = Retention::Limits { max_age_ms, max_bytes, max_count };
        } else if let Some(min_age_ms) = words.number("min_age") {
            config.retention = Retention::Acknowledged { min_age_ms };
        }
        if words.named.get("expired") == Some(&"bury") {
            config.expired = Expired::DeadLetter;
        }
        if let Some(window) = words.number("dedupe") {
            config.dedupe_window_ms = window;
        }
        if let Some(ms) = words.number("check_after") {
            config.check_after_ms = ms;
        }
        if let Some(checks) = words.number("checks") {
            config.checks = checks;
        }
        self.world.topic(words.plain[0], config);
        String::new()
    }

    fn make_group(&mut self, words: &Words<'_>) -> String {
        let filter = words.named.get("filter").map_or("*".into(), |f| f.replace('_', " "));
        let defaults = GroupConfig::default();
        let config = GroupConfig {
            subscriptions: words.named["topics"]
                .split(',')
                .map(|topic| Subscription { topic: topic.into(), filter: filter.clone() })
                .collect(),
            lease_ms: words.number("lease").unwrap_or(defaults.lease_ms),
            max_attempts: words.number("attempts").unwrap_or(defaults.max_attempts),
            backoff_ms: words.named.get("backoff").map_or(defaults.backoff_ms, |steps| {
                steps.split(',').map(|ms| ms.parse().unwrap()).collect()
            }),
            dead_letter: match words.named.get("dead") {
                Some(&"drop") => DeadLetter::Drop,
                _ => DeadLetter::Topic,
            },
            order: match words.named.get("order") {
                Some(&"key") => Order::Key,
                _ => Order::None,
            },
            max_in_flight: words.number("cap"),
            window: words.number("window").unwrap_or(defaults.window),
            paused: words.plain.contains(&"paused"),
            ..GroupConfig::default()
        };
        let start = if words.plain.contains(&"latest") { Target::Latest } else { Target::Earliest };
        self.world.group(words.plain[0], config, start);
        String::new()
    }

    fn message(&mut self, word: &str) -> Msg {
        let mut parts = word.split(':');
        let mut message = Msg::of(parts.next().unwrap());
        for part in parts {
            let (name, value) = part.split_once('=').unwrap();
            match name {
                "key" => message.key = Some(value.into()),
                "tag" => message.tags.push(value.into()),
                "ttl" => message.ttl_ms = Some(value.parse().unwrap()),
                "id" => message.dedupe = Some(value.into()),
                "delay" => message.when = Some(When::After(value.parse().unwrap())),
                "at" => {
                    let ms: u64 = value.parse().unwrap();
                    message.when = Some(When::At(UnixMs(T0 + ms)));
                }
                other => panic!("no part {other}"),
            }
        }
        self.tags.insert(message.body.clone(), message.tags.clone());
        message
    }

    /// `prepare shop a/one:key=k b/two:delay=500`: lists by topic, and whether they are to
    /// come later.
    fn prepare(&mut self, words: &Words<'_>) -> String {
        let mut lists: Vec<(Arc<Topic>, Vec<Msg>)> = Vec::new();
        for word in &words.plain[1..] {
            let (topic, word) = word.split_once('/').unwrap();
            let (topic, message) = (self.topic(topic), self.message(word));
            match lists.last_mut() {
                Some((last, messages))
                    if last.id == topic.id
                        && messages[0].when.is_some() == message.when.is_some() =>
                {
                    messages.push(message);
                }
                _ => lists.push((topic, vec![message])),
            }
        }
        let lists: Vec<(&Topic, Vec<Msg>)> =
            lists.iter().map(|(topic, messages)| (&**topic, messages.clone())).collect();
        match self.world.prepare(words.plain[0], &lists) {
            Ok(prepared) if prepared.is_duplicate => format!("known: {}\n", prepared.first),
            Ok(prepared) => format!("{}\n", prepared.first),
            Err(refusal) => format!("refused: {refusal}\n"),
        }
    }

    fn end(&mut self, words: &Words<'_>, is_commit: bool) -> String {
        let ended = self.world.end(words.plain[0].parse().unwrap(), is_commit);
        self.world.due();
        match ended {
            Ok(ended) => {
                let late = if ended.is_late { "before: " } else { "" };
                format!("{late}{}", self.transaction(&ended.transaction))
            }
            Err(refusal) => format!("refused: {refusal}\n"),
        }
    }

    fn transaction(&self, of: &Transaction) -> String {
        let mut out = match of.decision {
            None if of.is_parked => format!("{} is parked", of.first),
            None => {
                let next = of.next_check.0 - T0;
                format!("{} of {}, {} checks, next at {next}", of.first, of.producer, of.checks)
            }
            Some(d) if d.is_commit => format!("{} is committed", of.first),
            Some(_) => format!("{} is rolled back", of.first),
        };
        for part in &of.parts {
            let topic = self.world.catalog.topic(part.topic).map_or("?", |topic| &topic.name);
            write!(out, ", {} for {topic}", part.count).unwrap();
            if let Some(position) = part.placed {
                write!(out, " from {position} on").unwrap();
            } else if part.is_later {
                out += " later";
            }
        }
        out + "\n"
    }

    fn transactions(&self) -> String {
        let all = self.world.shard.transactions();
        let (open, parked) = (all.open(), all.parked());
        let mut out = format!("{open} open, {parked} parked, {} messages\n", all.messages());
        all.iter(0).for_each(|of| out += &self.transaction(of));
        out
    }

    fn publish(&mut self, words: &Words<'_>) -> String {
        let (name, index) = words.plain[0].split_once('/').unwrap_or((words.plain[0], "0"));
        let topic = self.topic(name);
        let messages: Vec<Msg> = words.plain[1..].iter().map(|word| self.message(word)).collect();
        match self.world.publish(&topic, index.parse().unwrap(), &messages) {
            Ok(published) if published.duplicates.is_empty() => {
                format!("at {}\n", published.first)
            }
            Ok(published) => {
                let mut out = format!("at {}", published.first);
                for known in published.duplicates {
                    let at = known.before.position;
                    write!(out, ", {} is the message at {at}", known.index).unwrap();
                }
                out + "\n"
            }
            Err(refusal) => format!("refused: {refusal}\n"),
        }
    }

    fn receive(&mut self, words: &Words<'_>) -> String {
        let group = self.group(words.plain[0]);
        let config = self.world.catalog.effective(&group).config.clone();
        let ask = Ask {
            group: group.id,
            consumer: words.plain[1],
            max: words.number("max").unwrap_or(10),
            max_bytes: words.number("max_bytes").unwrap_or(1 << 20),
            lease_ms: words.number("lease").unwrap_or(config.lease_ms),
            topic: words.named.get("topic").map(|name| self.topic(name).id),
            auto_ack: words.plain.contains(&"auto"),
        };
        self.world.seal();
        let filters: Vec<_> = group.subscriptions(&self.world.secret).to_vec();
        let tags = self.tags.clone();
        let bodies: BTreeMap<_, _> =
            self.world.log.iter().map(|frame| (frame.no, frame.clone())).collect();
        let judge = |found: &posthouse_core::index::Found| {
            let frame = &bodies[&found.body.frame];
            let sealed = frame.sealed(found.body.at, found.body.len).unwrap();
            let body = String::from_utf8(sealed[8..].to_vec()).unwrap();
            let tags: Vec<&str> = tags[&body].iter().map(String::as_str).collect();
            let parts = Parts { tags, ..Parts::default() };
            filters.iter().any(|(_, filter)| filter.passes(&parts))
        };
        let deliveries = self.world.receive(&ask, &judge);
        if deliveries.is_empty() {
            return "nothing\n".into();
        }
        let mut out = String::new();
        for delivery in deliveries {
            let body = self.world.body(delivery.found.body);
            let until = delivery.visible_at.0.saturating_sub(T0);
            writeln!(
                out,
                "{body} at {}, attempt {}, fence {}, until {until}",
                delivery.found.position, delivery.attempt, delivery.fence
            )
            .unwrap();
            self.deliveries.entry(body).or_default().push(delivery);
        }
        out
    }

    /// `a` is the last delivery of the message a, `a@1` its first attempt.
    fn settle(&mut self, words: &Words<'_>, command: impl FnOnce(Vec<Held>) -> Command) -> String {
        let held: Vec<Held> = words
            .plain
            .iter()
            .map(|word| {
                let (body, attempt) = match word.split_once('@') {
                    Some((body, attempt)) => (body, attempt.parse::<usize>().unwrap()),
                    None => (
                        *word,
                        self.deliveries
                            .get(*word)
                            .unwrap_or_else(|| panic!("{word} was not delivered"))
                            .len(),
                    ),
                };
                held(&self.deliveries[body][attempt - 1])
            })
            .collect();
        let Reply::Settled(settled) = self.world.run(command(held)) else { panic!() };
        self.world.due();
        let mut out = String::new();
        for (word, settled) in words.plain.iter().zip(settled) {
            let said = match settled {
                Settled::Done { attempt, visible_at: None } => format!("ok, attempt {attempt}"),
                Settled::Done { attempt, visible_at: Some(at) } => {
                    format!("ok, attempt {attempt}, until {}", at.0 - T0)
                }
                Settled::Already => "done before".into(),
                Settled::Regranted { attempt, fence, consumer } => {
                    format!("stale: {consumer} has attempt {attempt}, fence {fence}")
                }
                Settled::GivenBack => "stale: given back".into(),
                Settled::NotHeld => "stale: not held".into(),
            };
            writeln!(out, "{word}: {said}").unwrap();
        }
        out
    }

    fn seek(&mut self, words: &Words<'_>) -> String {
        let (group, topic) = (self.group(words.plain[0]), self.topic(words.plain[1]));
        let to = match words.plain[2] {
            "earliest" => Target::Earliest,
            "latest" => Target::Latest,
            other => match other.strip_prefix("t+") {
                Some(ms) => Target::Time(UnixMs(T0 + ms.parse::<u64>().unwrap())),
                None => Target::Position(other.parse().unwrap()),
            },
        };
        let partition = topic.partitions[0].id;
        format!("{:?}\n", self.world.run(Command::Seek { group: group.id, partition, to }))
    }

    fn letters(&mut self, group: &str) -> String {
        let Some(dead) = self.world.catalog.topic_named(&name::dead_letter_topic(group)).cloned()
        else {
            return "none\n".into();
        };
        self.world.seal();
        let letters =
            self.world.shard.letters(dead.partitions[0].id, 0, 100, &self.world.store).unwrap();
        let mut out = String::new();
        for letter in letters {
            writeln!(out, "{} at {}", self.world.body(letter.body), letter.position).unwrap();
        }
        if out.is_empty() { "none\n".into() } else { out }
    }

    fn message_states(&mut self, body: &str) -> String {
        let delivery = &self.deliveries[body][0];
        let (partition, position) = (delivery.partition, delivery.found.position);
        let mut out = String::new();
        for group in self.world.shard.groups_on(partition) {
            let state = self.world.shard.state_for(group, partition, position).unwrap();
            let name = &self.world.catalog.group(group).unwrap().name;
            let said = match state {
                MessageState::Ahead => "ahead".into(),
                MessageState::Done => "done".into(),
                MessageState::Chained => "behind its key".into(),
                MessageState::InFlight { consumer, attempt, fence, until } => {
                    format!(
                        "{consumer} has attempt {attempt}, fence {fence}, until {}",
                        until.0 - T0
                    )
                }
                MessageState::Waiting { attempts, until, reason } => {
                    format!("waits after attempt {attempts} until {}: {reason}", until.0 - T0)
                }
            };
            writeln!(out, "{name}: {said}").unwrap();
        }
        out
    }

    fn state(&mut self) -> String {
        let mut out = String::new();
        let world = &self.world;
        for (id, info) in world.shard.partitions() {
            let topic = world.catalog.topic(info.topic).unwrap();
            let swept = world.shard.partition(id).unwrap().swept;
            writeln!(
                out,
                "{}/{}: {}..{}, {} bytes, swept to {swept}",
                topic.name,
                topic.index_of(id).unwrap(),
                info.head,
                info.next,
                info.bytes
            )
            .unwrap();
            for group in world.shard.groups_on(id) {
                let Some(config) = world.catalog.group(group) else { continue };
                let window = world.catalog.effective(config).config.window;
                let pairs = world.shard.pairs_of(group, window);
                let pair = pairs.iter().find(|p| p.partition == id).unwrap();
                writeln!(
                    out,
                    "  {}: floor {}, next {}, lag {}, {} in flight, {} waiting, {} dropped",
                    config.name,
                    pair.floor,
                    pair.next,
                    pair.lag,
                    pair.in_flight,
                    pair.waiting,
                    pair.dropped
                )
                .unwrap();
            }
        }
        out
    }
}

fn run_file(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let world = World::new();
    let mut script = Script { world, deliveries: BTreeMap::new(), tags: BTreeMap::new() };
    let mut printed = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            writeln!(printed, "{line}").unwrap();
            continue;
        }
        writeln!(printed, "{line}\n----").unwrap();
        if lines.next_if_eq(&"----").is_some() {
            while lines.peek().is_some_and(|line| !line.is_empty()) {
                lines.next();
            }
        }
        if std::env::var("SCRIPTS").is_ok() {
            eprintln!("{}: {line}", path.display());
        }
        printed += &script.run(line);
        if lines.peek() != Some(&"") {
            printed.push('\n');
        }
    }
    script.world.seal();
    let digest = script.world.shard.digest();
    assert_eq!(script.world.replayed().digest(), digest, "{}: replay differs", path.display());
    assert_eq!(script.world.restored().digest(), digest, "{}: restore differs", path.display());
    if std::env::var("SCRIPTS").is_ok_and(|v| v == "write") {
        std::fs::write(path, printed).unwrap();
    } else {
        assert_eq!(printed, text, "{}: it prints something else", path.display());
    }
}

#[test]
fn every_script_prints_what_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "scripts are missing");
    files.iter().for_each(|file| run_file(file));
}
