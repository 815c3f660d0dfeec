//! (8): transactions: nothing comes before a commit, nothing after a rollback, and each
//! comes to an end that is known.

use std::collections::BTreeSet;

use posthouse::broker::transact::State;
use posthouse_core::record::When;

use super::deals::Known;
use super::{Story, Violation};

fn broken(at: usize, what: String) -> Violation {
    Violation::at(8, "transactions", at, what)
}

fn is_decided(state: State) -> bool {
    matches!(state, State::Committed | State::RolledBack)
}

/// (8) What was prepared comes to nobody before a commit of it has begun, and never if it
/// was rolled back.
pub fn hidden(story: &Story<'_>) -> Result<(), Violation> {
    for (number, deal) in &story.deals.all {
        let from = story.deals.may_come_from(*number);
        for message in deal.messages {
            let token = message.token;
            let all = story.deliveries_with(token);
            if let Some(came) = all.map(|delivery| delivery.to).min()
                && from.is_none_or(|from| came < from)
            {
                let what = format!("message {token} came, and nobody had committed it");
                return Err(broken(came, what));
            }
            if from.is_none() && story.present.contains(&token) {
                let what = format!("message {token} is there, and nobody has committed it");
                return Err(Violation::new(8, "transactions", what));
            }
        }
    }
    Ok(())
}

/// (8) A decision is one: who decides it is told so once, and everybody after that hears
/// the same.
pub fn decided(story: &Story<'_>) -> Result<(), Violation> {
    for (id, known) in &story.deals.known {
        one_decision(id, known)?;
        delays(story, known)?;
        checks(story, id, known)?;
        // What was there is known for an hour.
        let since = known.since.unwrap_or(usize::MAX);
        for decision in known.decisions.iter().filter(|decision| decision.from > since) {
            if let Some(Err(fail)) = decision.answer
                && fail.code == "transaction_not_found"
            {
                return Err(broken(decision.from, format!("transaction {id} is not found")));
            }
        }
    }
    Ok(())
}

fn one_decision(id: &str, known: &Known<'_>) -> Result<(), Violation> {
    let mut first: Option<(usize, State)> = None;
    for (from, to, ruling) in known.rulings() {
        let state = ruling.state;
        if !is_decided(state) {
            if let Some((_, before)) = first.filter(|(at, _)| *at < from) {
                return Err(broken(to, format!("{id} was {before:?}, and is {state:?}")));
            }
            continue;
        }
        let (_, before) = *first.get_or_insert((to, state));
        if before != state {
            return Err(broken(to, format!("{id} is {before:?}, and {state:?}")));
        }
        let commit = state == State::Committed;
        let somebody = |d: &super::deals::Decision<'_>| d.commit == commit && d.from < to;
        if !known.decisions.iter().any(somebody) {
            return Err(broken(to, format!("{id} is {state:?}, and nobody has said so")));
        }
    }
    let mut takers = known.decisions.iter().filter_map(|decision| match decision.answer {
        Some(Ok(ruling)) if !ruling.late => Some((decision, ruling)),
        _ => None,
    });
    if let Some((decision, ruling)) = takers.next() {
        let meant = if decision.commit { State::Committed } else { State::RolledBack };
        if ruling.state != meant {
            let what = format!("{id} was to be {meant:?}, and is {:?}", ruling.state);
            return Err(broken(decision.from, what));
        }
    }
    match takers.next() {
        Some((decision, _)) => Err(broken(decision.from, format!("{id} was decided twice"))),
        None => Ok(()),
    }
}

/// What comes later counts from the commit, and is due then.
fn delays(story: &Story<'_>, known: &Known<'_>) -> Result<(), Violation> {
    let deal = known.deal.and_then(|number| story.deals.all.get(&number));
    let (Some(deal), Some(held)) = (deal, known.held) else { return Ok(()) };
    for decision in &known.decisions {
        let Some(Ok(ruling)) = decision.answer.filter(|_| decision.commit) else { continue };
        if ruling.late {
            continue;
        }
        for (message, id) in deal.messages.iter().zip(&held.ids) {
            let Some((When::After(ms), ..)) = &message.later else { continue };
            let put = ruling.puts.iter().find(|put| put.id == *id);
            let least = story.wall_least(decision.from) + ms;
            if let Some(due) = put.and_then(|put| put.due).filter(|due| *due < least) {
                let what = format!("message {} is due at {due}, not {least}", message.token);
                return Err(broken(decision.from, what));
            }
        }
    }
    Ok(())
}

/// Each question is asked once, none too early, none too often, and none about what is
/// decided.
fn checks(story: &Story<'_>, id: &str, known: &Known<'_>) -> Result<(), Violation> {
    let mut asked = BTreeSet::new();
    let decided = known.rulings().filter(|(.., ruling)| is_decided(ruling.state));
    let decided = decided.map(|(_, to, _)| to).min().unwrap_or(usize::MAX);
    let deal = known.deal.and_then(|number| story.deals.all.get(&number));
    for (from, to, check) in &known.checks {
        let number = check.check.0;
        let most = deal.map_or(check.check.1, |deal| deal.terms.checks);
        if !asked.insert(number) || number > most || number == 0 {
            return Err(broken(*to, format!("question {number} of {most} about {id}")));
        }
        if *from > decided {
            return Err(broken(*to, format!("a question about {id}, which is decided")));
        }
        let Some(deal) = deal else { continue };
        // Which shard it is in nobody knows here.
        let begun = deal.prepares.iter().map(|prepare| story.earliest(prepare.from)).min();
        let due = begun.unwrap_or(0) + deal.terms.check_after_ms;
        if story.latest(*to) < due {
            return Err(broken(*to, format!("a question about {id} before {due}")));
        }
    }
    Ok(())
}

/// (8) In the end each transaction is committed, rolled back, or parked, for a reason; and
/// those that wait can be found.
pub fn ended(story: &Story<'_>) -> Result<(), Violation> {
    let Some(waiting) = story.deals.waiting else { return Ok(()) };
    let waiting: BTreeSet<&str> = waiting.iter().map(String::as_str).collect();
    for (id, known) in &story.deals.known {
        let Some((at, outcome)) = known.became else { continue };
        let ruling = match outcome {
            Ok(ruling) => ruling,
            Err(fail) => return Err(broken(at, format!("{id} in the end: {fail:?}"))),
        };
        if ruling.state == State::Prepared {
            return Err(broken(at, format!("{id} still waits in the end")));
        }
        let is_parked = ruling.state == State::Parked;
        if is_parked != waiting.contains(id) {
            return Err(broken(at, format!("{id} is {:?}: {waiting:?} wait", ruling.state)));
        }
        let deal = known.deal.and_then(|number| story.deals.all.get(&number));
        let most = deal.map_or(ruling.checks.1, |deal| deal.terms.checks);
        if is_parked && ruling.checks.0 != most {
            return Err(broken(at, format!("{id} is parked: {ruling:?}")));
        }
    }
    Ok(())
}
