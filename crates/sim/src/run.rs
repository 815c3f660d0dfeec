//! Runs of seeds: one, many, and the smallest that still fails.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use posthouse::broker::transact::State;

use crate::bodies;
use crate::check::{self, Violation};
use crate::fenced;
use crate::history::{Answer, Change, Event, Say, What};
use crate::plan::{Part, Plan};
use crate::report::Figures;
use crate::world::World;

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The run.
    pub plan: Plan,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
    /// The same only for runs in which the same happened.
    pub trace: u32,
    /// What was counted.
    pub figures: Figures,
}

/// Panics are noted, wherever in the run they happen, and printed by nobody.
fn note_panics() {
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            PANIC.with_borrow_mut(|noted| {
                noted.get_or_insert_with(|| info.to_string());
            });
        }));
    });
}

/// Carries out a run. With `is_told`, what happens in it is printed.
pub fn run(plan: Plan, is_told: bool) -> Outcome {
    note_panics();
    PANIC.take();
    let mut world = World::new(plan.clone(), is_told);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let trace = world.history().trace();
    let events = world.history().take();
    let mut figures = world.figures.clone();
    let scene = world.scene().clone();
    // What holds the node may be in any state.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(world)));
    figures.runs = 1;
    figures.events = events.len() as u64;
    count(&events, &mut figures);
    let panic = PANIC.take().map(|what| Violation::new(0, "panic", what));
    let beside = match plan.has(Part::Fenced) {
        true => fenced::run(plan.seed),
        false => (Ok(()), Default::default()),
    };
    beside.1.iter().for_each(|(name, n)| *figures.faults.entry(name).or_default() += n);
    let panic = panic.or_else(|| beside.0.err());
    let violation = panic.or_else(|| match ran {
        // What clients saw says more than what came of it.
        Ok(seen) => check::check(&scene, &events, seen.is_ok()).err().or(seen.err()),
        Err(_) => Some(Violation::new(0, "panic", "without a word".into())),
    });
    Outcome { plan, violation, trace, figures }
}

/// Takes away from a run that fails what it fails without, in at most `tries` runs.
pub fn shrink(failed: &Outcome, tries: u32) -> Outcome {
    let checker = failed.violation.as_ref().map(|violation| violation.checker);
    let mut best = Outcome {
        plan: failed.plan.clone(),
        violation: failed.violation.clone(),
        trace: failed.trace,
        figures: failed.figures.clone(),
    };
    let mut left = tries;
    let mut attempt = |best: &mut Outcome, plan: Plan| {
        if left == 0 {
            return false;
        }
        left -= 1;
        let outcome = run(plan, false);
        let fails = outcome.violation.as_ref().map(|violation| violation.checker) == checker;
        if fails {
            *best = outcome;
        }
        fails
    };
    let mut steps = best.plan.steps;
    while steps > 10 {
        let plan = best.plan.clone().of_steps(steps / 2);
        if !attempt(&mut best, plan) {
            break;
        }
        steps /= 2;
    }
    for part in best.plan.parts().collect::<Vec<_>>() {
        let plan = best.plan.clone().but([part]);
        attempt(&mut best, plan);
    }
    let mut step = best.plan.steps / 4;
    while step > 4 {
        let plan = best.plan.clone().of_steps(best.plan.steps - step);
        if !attempt(&mut best, plan) {
            step /= 2;
        }
        step = step.min(best.plan.steps / 2);
    }
    best
}

/// Counts what clients saw.
fn count(events: &[Event], figures: &mut Figures) {
    let mut see = |name: &'static str| *figures.seen.entry(name).or_default() += 1;
    let mut open = 0i64;
    let mut settles = std::collections::BTreeMap::new();
    for event in events {
        match &event.what {
            What::Publish { .. }
            | What::Receive { .. }
            | What::Move { .. }
            | What::Prepare { .. }
            | What::Decide { .. }
            | What::AskChecks { .. } => open += 1,
            What::Settle { call, items, .. } => {
                open += 1;
                settles.insert(*call, items);
            }
            What::Published { outcome, .. } => {
                open -= 1;
                for put in outcome.iter().flatten() {
                    match put {
                        Ok(put) if put.duplicate => see("duplicate"),
                        Ok(put) if put.kept => see("name kept"),
                        Ok(put) if put.due.is_some() => see("published later"),
                        Ok(_) => see("published"),
                        Err(fail) if fail.code == "dedupe_conflict" => see("conflict"),
                        Err(_) => see("refused"),
                    }
                }
                match outcome {
                    Err(fail) if fail.unknown => see("unknown"),
                    Err(fail) if fail.code == "dedupe_conflict" => see("conflict"),
                    Err(_) => see("refused"),
                    Ok(_) => {}
                }
            }
            What::Received { outcome, .. } => {
                open -= 1;
                for got in outcome.iter().flatten() {
                    if got.token.as_ref().is_ok_and(|token| bodies::time_of(*token).is_some()) {
                        see("recurred");
                    }
                    see(if got.attempt > 1 { "delivered again" } else { "delivered" });
                    if got.origin.is_some() {
                        see("redriven");
                    }
                }
            }
            What::Settled { call, outcome } => {
                open -= 1;
                let said = settles.get(call).into_iter().flat_map(|items| items.iter());
                for ((_, say), answer) in said.zip(outcome.iter().flatten()) {
                    match (say, answer) {
                        (Say::Ack, Answer::Ok) => see("ack ok"),
                        (Say::Ack, Answer::Already) => see("ack already"),
                        (Say::Ack, Answer::Stale) => see("ack stale"),
                        (Say::Nack(_), Answer::Ok) => see("nack ok"),
                        (Say::Extend(_), Answer::Ok) => see("extend ok"),
                        (_, Answer::Invalid) => see("invalid"),
                        _ => see("stale"),
                    }
                }
            }
            What::Moved { outcome, .. } => {
                open -= 1;
                for change in outcome.iter().flatten() {
                    match change {
                        Change::Done(_) => see("move done"),
                        Change::Fired(..) => see("cancel fired"),
                        Change::Cancelled => see("move cancelled"),
                        _ => see("move refused"),
                    }
                }
            }
            What::Prepared { outcome, .. } => {
                open -= 1;
                match outcome {
                    Ok(held) if held.duplicate => see("prepared again"),
                    Ok(_) => see("prepared"),
                    Err(fail) if fail.code == "dedupe_conflict" => see("prepare conflict"),
                    Err(fail) if fail.unknown => see("unknown"),
                    Err(_) => see("refused"),
                }
            }
            What::Decided { outcome, .. } => {
                open -= 1;
                match outcome {
                    Ok(ruling) if ruling.late => see("decided late"),
                    Ok(ruling) if ruling.state == State::Committed => see("committed"),
                    Ok(_) => see("rolled back"),
                    Err(fail) if fail.unknown => see("unknown"),
                    Err(_) => see("refused"),
                }
            }
            What::Asked { outcome, .. } => {
                open -= 1;
                for check in outcome.iter().flatten() {
                    see(if check.check.0 > 1 { "asked again" } else { "asked" });
                }
            }
            What::Became { outcome: Ok(ruling), .. } if ruling.state == State::Parked => {
                see("parked");
            }
            What::Letters { letters, .. } => letters.iter().for_each(|_| see("dead letter")),
            _ => {}
        }
    }
    (0..open).for_each(|_| see("unanswered"));
}
