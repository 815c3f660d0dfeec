//! Lets recurring messages come at their times.
//!
//! One task decides for all of them. The message of a time and the note that the time is
//! decided are one command, and one frame: so after a crash at any moment a time is decided
//! or it is not, and none comes twice. What is decided is looked up in the shards at the
//! start; nothing else is kept.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use posthouse_core::UnixMs;
use posthouse_core::catalog::Recurring;
use posthouse_core::queue::command::Occurrence;

use super::plan::{self, Plan, Step};
use super::{Broker, TEMPLATE_BYTES};
use crate::broker::publish::Submitted;
use crate::problem::{Kind, Problem};

/// What cannot be published is tried again after so long.
const AGAIN_MS: u64 = 1_000;

/// The clock may be set: nobody sleeps longer than this.
const NAP_MS: u64 = 500;

/// Bytes of messages that are handed over before the answers are waited for.
const ROUND_BYTES: usize = 8 << 20;

/// A recurring message and how far it is decided.
struct Entry {
    recurring: Arc<Recurring>,
    /// `None` if its rule is not understood any more.
    plan: Option<Plan>,
    /// The last time that is decided.
    decided: UnixMs,
    /// Nothing is done before this time.
    rests_until: UnixMs,
    /// Whether the last attempt has failed.
    fails: bool,
}

impl Entry {
    fn of(recurring: &Arc<Recurring>, decided: UnixMs) -> Entry {
        let plan = Plan::of(&recurring.name, recurring.created_at, &recurring.config);
        if let Err(problem) = &plan {
            // It was understood when it was made: its zone may have gone with an upgrade.
            tracing::error!("recurring message {} does not come: {problem}", recurring.name);
        }
        Entry {
            recurring: recurring.clone(),
            plan: plan.ok(),
            decided: decided.max(recurring.since),
            rests_until: UnixMs(0),
            fails: false,
        }
    }
}

impl Broker {
    /// Lets recurring messages come until the node stops.
    pub(in crate::broker) async fn keep_recurring(of: Weak<Self>) {
        let Some(bell) = of.upgrade().map(|broker| broker.recurrence.bell.clone()) else { return };
        let mut known: Option<BTreeMap<u32, UnixMs>> = None;
        let mut entries: BTreeMap<u32, Entry> = BTreeMap::new();
        loop {
            let Some(broker) = of.upgrade().filter(|broker| broker.is_ready()) else { return };
            let nap = match &known {
                Some(decided) => {
                    broker.follow_catalog(decided, &mut entries);
                    broker.let_come(&mut entries).await
                }
                None => {
                    known = broker.decided_times().await.ok();
                    if known.is_some() { 0 } else { NAP_MS }
                }
            };
            drop(broker);
            // Whichever comes first; a change that was rung meanwhile is not lost.
            let _ = tokio::time::timeout(Duration::from_millis(nap), bell.notified()).await;
        }
    }

    /// What the shards have decided; what they know of recurring messages that are gone is
    /// forgotten.
    async fn decided_times(&self) -> Result<BTreeMap<u32, UnixMs>, Problem> {
        let mut decided: BTreeMap<u32, UnixMs> = BTreeMap::new();
        for shard in &self.shards {
            let of_shard: Vec<(u32, UnixMs)> =
                self.directory.look(shard.id, |view| Ok(view.shard.recurred().collect())).await?;
            for (recurring, at) in of_shard {
                let last = decided.entry(recurring).or_default();
                *last = at.max(*last);
            }
        }
        let gone: Vec<u32> = {
            let catalog = self.catalog();
            decided.keys().copied().filter(|id| catalog.recurring(*id).is_none()).collect()
        };
        if !gone.is_empty() {
            self.forget_recurring(gone).await?;
        }
        Ok(decided)
    }

    fn follow_catalog(&self, decided: &BTreeMap<u32, UnixMs>, entries: &mut BTreeMap<u32, Entry>) {
        let catalog = self.catalog();
        entries.retain(|id, _| catalog.recurring(*id).is_some());
        for of in catalog.all_recurring() {
            let before = entries.get(&of.id);
            if !before.is_some_and(|entry| Arc::ptr_eq(&entry.recurring, of)) {
                let before = before.map(|entry| entry.decided);
                let last = before.or_else(|| decided.get(&of.id).copied()).unwrap_or_default();
                entries.insert(of.id, Entry::of(of, last));
            }
        }
        let mut shown = self.recurrence.decided.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|id, _| entries.contains_key(id));
        for (id, at) in decided {
            if entries.contains_key(id) {
                shown.entry(*id).or_insert(*at);
            }
        }
    }

    /// Lets come what is due. Returns how long nothing is, in milliseconds.
    async fn let_come(&self, entries: &mut BTreeMap<u32, Entry>) -> u64 {
        let now = self.now();
        let mut wake = now.plus(NAP_MS);
        let mut handed_over: Vec<(u32, UnixMs, Submitted)> = Vec::new();
        for (id, entry) in entries.iter_mut() {
            let Some(plan) = entry.plan.as_ref().filter(|_| !entry.recurring.config.paused) else {
                continue;
            };
            if entry.rests_until > now {
                wake = wake.min(entry.rests_until);
                continue;
            }
            match plan.step(entry.decided, now, entry.recurring.config.missed) {
                Step::Wait(None) => {}
                Step::Wait(Some(at)) => wake = wake.min(at),
                Step::Skip(latest) => {
                    self.recurrence.counts.missed.fetch_add(1, Ordering::Relaxed);
                    self.decide(entry, latest.at);
                    wake = now;
                }
                Step::Publish(of) => {
                    if now.since(of.comes) > plan::LATE_MS {
                        self.recurrence.counts.missed.fetch_add(1, Ordering::Relaxed);
                    }
                    // What follows may be due, too.
                    wake = now;
                    match self.hand_over(&entry.recurring, of.at) {
                        Ok(submitted) => handed_over.push((*id, of.at, submitted)),
                        Err(problem) => self.rest(entry, now, &problem),
                    }
                }
            }
            if handed_over.len() * TEMPLATE_BYTES >= ROUND_BYTES {
                break;
            }
        }
        for (id, at, submitted) in handed_over {
            let done = submitted.wait().await;
            let Some(entry) = entries.get_mut(&id) else { continue };
            match done {
                Ok(_) => {
                    self.recurrence.counts.published.fetch_add(1, Ordering::Relaxed);
                    self.decide(entry, at);
                }
                // It has changed meanwhile: what is new is followed, and this time is not its.
                Err(problem) if problem.code == "not_recurring" => self.decide(entry, at),
                Err(problem) => self.rest(entry, now, &problem),
            }
        }
        wake.since(self.now())
    }

    fn hand_over(&self, recurring: &Recurring, at: UnixMs) -> Result<Submitted, Problem> {
        let outbox = self.recurring_outbox(&recurring.name, &recurring.config, at)?;
        let Recurring { id, revision, .. } = *recurring;
        self.submit(outbox.of(Occurrence { recurring: id, revision, at }))
    }

    fn decide(&self, entry: &mut Entry, at: UnixMs) {
        let at = match entry.plan.as_ref().and_then(|plan| plan.next(at)) {
            Some(next) if posthouse_frame::planted("recur-left-out") && at.0 % 2 == 1 => next.at,
            _ => at,
        };
        (entry.decided, entry.fails) = (at, false);
        let mut shown = self.recurrence.decided.lock().unwrap_or_else(PoisonError::into_inner);
        shown.insert(entry.recurring.id, at);
    }

    fn rest(&self, entry: &mut Entry, now: UnixMs, problem: &Problem) {
        self.recurrence.counts.failed.fetch_add(1, Ordering::Relaxed);
        entry.rests_until = now.plus(AGAIN_MS);
        if !entry.fails && problem.kind != Kind::Unavailable {
            let name = &entry.recurring.name;
            tracing::warn!("recurring message {name} cannot come, and is tried again: {problem}");
        }
        entry.fails = true;
    }
}
