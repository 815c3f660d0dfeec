//! The end of a run: faults stop, everything is consumed, and what is left is looked at.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use posthouse::broker::inspect::Browse;
use posthouse::broker::letters::LetterCursor;
use posthouse::broker::transact::Listing;
use posthouse::broker::{Broker, Caller};
use posthouse::problem::Problem;
use posthouse::shard::clock::Time as _;
use posthouse_core::record::Records;
use posthouse_frame::FrameNo;
use posthouse_log::{LogReader as _, Part};

use super::World;
use crate::bodies;
use crate::check::Violation;
use crate::clients::{Shared, producer};
use crate::history::{Fail, Left, Letter, Place, What};
use crate::report;

/// Rounds that draining takes at most, and their length: 150 s.
pub(super) const ROUNDS: u32 = 5_000;
const ROUND_MS: u64 = 30;

/// Rounds in which nothing more must come once all is drained: longer than any lease and
/// back-off of the run.
const AFTERMATH: u32 = 70;

impl World {
    /// See the module's description.
    ///
    /// # Errors
    /// What must not be.
    pub(super) fn end(&mut self) -> Result<(), Violation> {
        self.heal();
        // A log that has failed is found out with the next turn.
        self.drive(3, 1, |_| false);
        self.get_up()?;
        while self.power_fails {
            // Now rather than in peace.
            self.lose_power()?;
        }
        // A wall clock that was set back is right again.
        let seen = self.time.seen().iter().map(|now| now.wall.0).max().unwrap_or(0);
        self.time.set_by(seen.saturating_sub(self.time.wall_ms()) as i64);
        self.note(What::Healed);
        self.shared.draining.store(true, Ordering::Relaxed);
        self.drain()?;
        self.restart("kill")?;
        self.drain()?;
        self.drive(AFTERMATH, ROUND_MS, |_| false);
        let seen = self.look_at_rest()?;
        self.look_at_old()?;
        self.turn_bits(&seen)?;
        self.restart("stop")?;
        self.drive(AFTERMATH / 2, ROUND_MS, |_| false);
        self.count_records();
        self.down("end");
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Violation> {
        let over = self.drive(ROUNDS, ROUND_MS, |world| world.not_drained().is_none());
        if over {
            return Ok(());
        }
        let what = match (self.fallen, self.not_drained()) {
            (true, _) => "the node has failed without a fault".into(),
            (_, left) => format!("not drained: {}", left.unwrap_or_default()),
        };
        Err(Violation::new(16, "drain", what))
    }

    /// What is still to be done, if there is anything.
    fn not_drained(&self) -> Option<String> {
        let node = self.node.as_ref()?;
        let catalog = node.broker.catalog();
        if let Some(recurring) = catalog.all_recurring().next() {
            return Some(format!("message {} recurs", recurring.name));
        }
        for (number, part) in node.parts.shards.iter().enumerate() {
            let engine = part.runner.engine();
            let shard = engine.shard();
            let deals = shard.transactions();
            // What is parked stays.
            if deals.open() > deals.parked() {
                return Some(format!("transactions wait in shard {number}: {deals:?}"));
            }
            let old = self.old.as_ref().map_or(0, |old| old.scheduled);
            let pending = shard.schedule().pending().saturating_sub(deals.messages() + old);
            if pending > 0 {
                return Some(format!("{pending} messages are to come in shard {number}"));
            }
            let is_ours = |name: &str| self.shared.scene.groups.iter().any(|g| g.name == name);
            for group in catalog.groups().filter(|group| is_ours(&group.name)) {
                let pairs = shard.pairs_of(group.id, u32::MAX);
                if let Some(pair) = pairs.iter().find(|pair| pair.lag > 0) {
                    return Some(format!("group {} in shard {number}: {pair:?}", group.name));
                }
            }
            if !engine.is_quiet() {
                return Some(format!("shard {number} waits for its log"));
            }
        }
        None
    }

    /// The node starts again, and finds the state that it had.
    fn restart(&mut self, how: &'static str) -> Result<(), Violation> {
        let live = self.live_digests();
        if how == "stop" {
            self.stop()?;
        } else {
            // Before its first turn: time changes the state.
            self.down(how);
            let found = self.peek(None);
            self.figures.compared += 1;
            if found != live {
                let what = format!("live {live:x?}, replayed {found:x?}");
                return Err(Violation::new(18, "digest", what));
            }
            self.verify()?;
            self.boot()?;
        }
        Ok(())
    }

    fn look_at_rest(&mut self) -> Result<Vec<What>, Violation> {
        match self.ask(|broker, shared| async move { look(&broker, &shared).await }) {
            Some(Ok(seen)) => {
                seen.iter().for_each(|what| self.note(what.clone()));
                Ok(seen)
            }
            outcome => {
                let what = format!("what is left in the end cannot be looked at: {outcome:?}");
                Err(Violation::new(1, "loss", what))
            }
        }
    }
}

/// What is in the topics, the dead letters, and how transactions are.
pub(super) async fn look(broker: &Arc<Broker>, shared: &Shared) -> Result<Vec<What>, Problem> {
    let mut all = Vec::new();
    let caller = Caller::Node;
    for topic in &shared.scene.topics {
        let known = broker.topic_for(&caller, topic.name)?;
        for stats in broker.topic_stats(&known).await? {
            let mut left = Left {
                topic: topic.name,
                partition: stats.index,
                range: (stats.info.head, stats.info.next),
                scheduled: stats.info.scheduled,
                messages: Vec::new(),
            };
            let mut from = Some(stats.info.head);
            while from.is_some() {
                let browse =
                    Browse { partition: stats.index, from, limit: 500, ..Browse::default() };
                let page = broker.browse(&caller, topic.name, &browse).await?;
                for seen in &page.messages {
                    let (parts, payload) = seen.parts()?;
                    let token = bodies::token_with(&parts, &payload);
                    left.messages.push((seen.found.position, token));
                }
                from = page.next;
            }
            all.push(What::Left(left));
        }
    }
    look_at_deals(broker, shared, &mut all).await?;
    for group in &shared.scene.groups {
        let mut letters = Vec::new();
        let mut from = Some(LetterCursor::default());
        while let Some(cursor) = from {
            let page = broker.letters(&caller, group.name, cursor, 500).await?;
            for seen in &page.letters {
                let (parts, payload) = seen.parts()?;
                let Some(origin) = &parts.origin else { continue };
                letters.push(Letter {
                    id: seen.id.to_string(),
                    token: bodies::token_with(&parts, &payload),
                    attempts: origin.attempts,
                    reason: origin.reason.as_str(),
                    origin: Place {
                        topic: origin.topic.into(),
                        partition: origin.partition,
                        position: origin.position,
                    },
                });
            }
            from = page.next;
        }
        all.push(What::Letters { group: group.name, letters });
    }
    Ok(all)
}

/// How transactions are, and which of them wait.
async fn look_at_deals(
    broker: &Arc<Broker>,
    shared: &Shared,
    seen: &mut Vec<What>,
) -> Result<(), Problem> {
    let caller = Caller::Node;
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let listing = Listing { after, limit: 100, ..Listing::default() };
        let (page, next) = broker.transactions(&caller, &listing).await?;
        ids.extend(page.iter().map(|waiting| waiting.id.to_string()));
        if next.is_none() {
            break;
        }
        after = next;
    }
    let mut all: BTreeSet<String> = ids.iter().cloned().collect();
    all.extend(shared.deals.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
    for id in all {
        let outcome = match broker.transaction(&caller, &id).await {
            // What is damaged is refused, as where messages are looked at.
            Err(problem) if problem.code == "unreadable" => return Err(problem),
            outcome => outcome.map_err(Fail::from),
        };
        let outcome = outcome.map(|(transaction, _)| producer::ruling(&transaction, true));
        seen.push(What::Became { id, outcome });
    }
    seen.push(What::Waiting { ids });
    Ok(())
}

/// Takes the first word of what is written, and nothing more.
struct FirstWord(String);

impl std::fmt::Write for FirstWord {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let word: String = text.chars().take_while(char::is_ascii_alphabetic).collect();
        let is_over = word.len() < text.len();
        self.0.push_str(&word);
        if is_over { Err(std::fmt::Error) } else { Ok(()) }
    }
}

impl World {
    /// Counts the records that the logs hold, by kind.
    pub(super) fn count_records(&mut self) {
        use std::fmt::Write as _;
        let Some(node) = &self.node else { return };
        for shard in node.broker.shards() {
            let Ok(scan) = shard.bodies.reader().scan(FrameNo::ZERO, Part::Meta) else { continue };
            for frame in scan.map_while(Result::ok) {
                for record in Records::new(&frame.meta).map_while(Result::ok) {
                    let mut word = FirstWord(String::new());
                    let _ = write!(word, "{record:?}");
                    let known = report::RECORDS.iter().find(|name| **name == word.0);
                    let name = known.copied().unwrap_or("other");
                    *self.figures.records.entry(name).or_default() += 1;
                }
            }
        }
    }
}
