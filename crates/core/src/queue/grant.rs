//! Matching: what a consumer that asks gets.
//!
//! Pairs of a group take turns. A pair first gives what comes again (leases that ran
//! out, waits that ended, keys that came free), then searches on from `next`. What
//! the search passes over is recorded, so that nobody searches there again.

use std::sync::Arc;

use hashbrown::HashSet;
use posthouse_frame::FrameBuf;

use super::Shard;
use super::command::{Claim, Reply};
use super::pair::{Pair, Readiness};
use super::window::State;
use crate::catalog::{Catalog, DeadLetter, Expired, GroupConfig, Order, Role, Topic};
use crate::chunk::{Chunks, Miss};
use crate::filter::Filter;
use crate::index::{Found, Step};
use crate::record::{AgainRun, Chained, Grant, Keys, List, Record, SkipReason};
use crate::words::{Fence, GroupId, Now, PartitionId, Position, Run, ShardMs, TopicId};

/// The most positions that one ask looks at, over all partitions, before others get their
/// turn. What it writes is bounded by that, too.
const SEARCH: usize = 16_384;

/// The most positions of a pair that wait for an earlier one of their key. Beyond
/// it the search waits.
const CHAINED: usize = 20_000;

/// The most messages that are handed out to be looked at, at a time.
const PEEK: usize = 256;

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Its group.
    pub group: GroupId,
    /// Its name.
    pub consumer: &'a str,
    /// The most messages.
    pub max: usize,
    /// The most bytes of sealed bodies. The first message comes even if it is larger.
    pub max_bytes: u64,
    /// How long the leases are.
    pub lease_ms: u64,
    /// Only from this topic.
    pub topic: Option<TopicId>,
    /// Whether the messages are acknowledged with the grant.
    pub auto_ack: bool,
}

/// A message for a consumer. It may leave when the grant is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its group.
    pub group: GroupId,
    /// The partition it is in.
    pub partition: PartitionId,
    /// The topic of that.
    pub topic: TopicId,
    /// What the index knows of it.
    pub found: Found,
    /// Which attempt this is, from 1.
    pub attempt: u16,
    /// The number of the grant.
    pub fence: Fence,
    /// When the lease ends; zero if there is none.
    pub visible_at: ShardMs,
}

/// Messages that can only be judged by what stands in them. Whoever gets them judges, and
/// comes back with a [`Claim`]; meanwhile the pair gives nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// What is to be judged: from here,
    pub from: Position,
    /// up to here.
    pub upto: Position,
    /// The messages that may pass.
    pub candidates: Vec<Found>,
}

/// What came of an [`Ask`].
#[derive(Clone, Debug, Default)]
pub struct Granted {
    /// The messages.
    pub deliveries: Vec<Delivery>,
    /// Blocks to fetch; [`Shard::fetched`] then.
    pub misses: Vec<Miss>,
    /// Messages to judge.
    pub peek: Option<Peek>,
    /// Whether a search ended early and would go on if asked again.
    pub more: bool,
    /// How many positions were looked at.
    pub looked: usize,
    /// Whether there is no room for a consumer of a new name.
    pub too_many_consumers: bool,
}

/// What is decided for one pair.
#[derive(Default)]
struct Plan {
    /// Whether what is granted is done with at once, and so locks no key.
    auto_ack: bool,
    /// Whether what has expired is buried, and not passed over.
    buries: bool,
    fresh: Vec<Run>,
    keys: Vec<Keys>,
    again: Vec<AgainRun>,
    filtered: Vec<Run>,
    expired: Vec<Run>,
    chained: Vec<Chained>,
    next: Position,
    deliveries: Vec<(Found, u16)>,
    /// Positions and keys that the plan has used up.
    taken: HashSet<Position, foldhash::fast::RandomState>,
    locked: HashSet<u64, foldhash::fast::RandomState>,
}

/// What an ask still has room for.
struct Room {
    messages: usize,
    bytes: u64,
    in_flight: u64,
    is_first: bool,
    /// How many positions may still be looked at.
    search: usize,
}

/// How the turn of a pair ended.
enum Turn {
    Drained,
    More,
    Blocked,
    Away(Miss),
    Text,
}

impl Room {
    fn is_full(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    /// Takes room for a message; `false` if there is none. One that somebody had, and
    /// has lost, is in flight already.
    fn take(&mut self, found: &Found, is_held: bool) -> bool {
        let bytes = u64::from(found.body.len);
        if self.messages == 0
            || (self.in_flight == 0 && !is_held)
            || (bytes > self.bytes && !self.is_first)
        {
            return false;
        }
        self.messages -= 1;
        self.in_flight -= u64::from(!is_held);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.is_first = false;
        true
    }
}

impl Shard {
    /// Grants messages to a consumer: writes records into `out`, which the caller
    /// applies at once.
    pub fn grant(
        &mut self,
        ask: &Ask<'_>,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Granted {
        let mut granted = Granted::default();
        let (Some(group), Some(state)) =
            (catalog.group(ask.group).filter(|g| g.is_active()), self.groups.get(ask.group.0))
        else {
            return granted;
        };
        let config = &catalog.effective(group).config;
        if config.paused {
            return granted;
        }
        if !state.has_room_for(ask.consumer) {
            granted.too_many_consumers = true;
            return granted;
        }
        let mut room = Room {
            messages: ask.max,
            bytes: ask.max_bytes,
            in_flight: config
                .max_in_flight
                .map_or(u64::MAX, |most| u64::from(most).saturating_sub(state.in_flight)),
            is_first: true,
            search: SEARCH,
        };
        // What was redriven is in another topic. Of a group that gets nothing but this one it
        // can only be of this one.
        let takes_retries = ask
            .topic
            .and_then(|id| catalog.topic(id))
            .is_some_and(|topic| config.subscriptions.iter().all(|of| *of.topic == *topic.name));
        let is_retry = |id: Option<TopicId>| {
            let topic = id.and_then(|id| catalog.topic(id));
            topic.is_some_and(|topic| matches!(topic.role, Role::Retry(_)))
        };
        let mut fence = self.counters.fence;
        for _ in 0..state.ready.len() {
            if room.is_full() || granted.peek.is_some() {
                break;
            }
            if room.search == 0 {
                granted.more = true;
                break;
            }
            let Some(number) = self.pop_ready(ask.group) else { break };
            let wanted = self.pairs.get(number).is_some_and(|pair| {
                let topic = self.topic_of(pair.partition);
                ask.topic.is_none() || ask.topic == topic || (takes_retries && is_retry(topic))
            });
            if !wanted {
                self.push_ready(ask.group, number);
                continue;
            }
            let mut plan = Plan { auto_ack: ask.auto_ack, ..Plan::default() };
            let turn = self.turn(number, catalog, config, chunks, now, &mut room, &mut plan);
            granted.more |= matches!(turn, Turn::More) && !room.is_full();
            self.end_turn(number, turn, ask, chunks, catalog, &plan, &mut granted);
            self.write_plan(number, plan, ask, now, &mut fence, out, &mut granted.deliveries);
        }
        granted.looked = SEARCH - room.search;
        granted
    }

    fn pop_ready(&mut self, group: GroupId) -> Option<u32> {
        self.groups.derived(group.0)?.ready.pop_front()
    }

    fn push_ready(&mut self, group: GroupId, number: u32) {
        if let Some(group) = self.groups.derived(group.0) {
            group.ready.push_back(number);
        }
    }

    #[allow(clippy::too_many_arguments)] // One turn, with all it may look at.
    fn end_turn(
        &mut self,
        number: u32,
        turn: Turn,
        ask: &Ask<'_>,
        chunks: &impl Chunks,
        catalog: &Catalog,
        plan: &Plan,
        granted: &mut Granted,
    ) {
        let turn = match turn {
            // Who has got something already does not wait for a judgement.
            Turn::Text if !plan.deliveries.is_empty() || !granted.deliveries.is_empty() => {
                Turn::More
            }
            Turn::Text => match self.peek(number, plan.next, catalog, chunks) {
                Ok(peek) => {
                    granted.peek = Some(peek);
                    if let Some(pair) = self.pairs.derived(number) {
                        pair.readiness = Readiness::Away;
                    }
                    return;
                }
                Err(miss) => Turn::Away(miss),
            },
            turn => turn,
        };
        match turn {
            Turn::Drained => self.make_idle(number),
            Turn::More | Turn::Text => self.push_ready(ask.group, number),
            Turn::Blocked => self.make_blocked(number),
            Turn::Away(miss) => {
                granted.misses.push(miss);
                self.away.push((miss, number));
                if let Some(pair) = self.pairs.derived(number) {
                    pair.readiness = Readiness::Away;
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // One turn, with all it may look at.
    fn turn(
        &mut self,
        number: u32,
        catalog: &Catalog,
        config: &GroupConfig,
        chunks: &impl Chunks,
        now: Now,
        room: &mut Room,
        plan: &mut Plan,
    ) -> Turn {
        let Some(mut waiting) =
            self.pairs.derived(number).map(|pair| std::mem::take(&mut pair.again))
        else {
            return Turn::Drained;
        };
        let partition = self.pairs.get(number).map(|pair| pair.partition);
        let topic = partition.and_then(|id| catalog.topic_of(id));
        plan.buries = topic.is_some_and(|topic| buries_expired(topic, config));
        let mut exhausted = Vec::new();
        let mut over_cap = Vec::new();
        let mut miss = None;
        while room.search > 0
            && let Some(position) = waiting.pop_front()
        {
            room.search -= 1;
            match self.plan_again(number, position, config, chunks, now, room, plan) {
                Again::Granted | Again::Void => {}
                Again::Over => exhausted.push((number, position, true)),
                // What somebody had is in flight already: it may be behind this one.
                Again::OverCap => over_cap.push(position),
                Again::NoRoom => {
                    waiting.push_front(position);
                    break;
                }
                Again::Away(block) => {
                    waiting.push_front(position);
                    miss = Some(block);
                    break;
                }
            }
        }
        let wants_cap = !over_cap.is_empty();
        let wants_room = !waiting.is_empty();
        over_cap.into_iter().rev().for_each(|position| waiting.push_front(position));
        self.exhausted.extend(exhausted);
        let Some(pair) = self.pairs.derived(number) else { return Turn::Drained };
        pair.again = waiting;
        plan.next = pair.next;
        let pair = &self.pairs.get(number).expect("it was there a moment ago");
        let Some(topic) = self.topic_of(pair.partition).and_then(|id| catalog.topic(id)) else {
            return Turn::Drained;
        };
        let turn = self.plan_fresh(pair, config, chunks, now, room, plan, None, |found| {
            verdict(catalog, pair.group, topic, found)
        });
        match (turn, miss) {
            (_, Some(miss)) => Turn::Away(miss),
            // So many wait for one that is in flight that nothing else was looked at: when
            // it is done is the time to look again.
            _ if wants_cap && room.search == 0 => Turn::Blocked,
            (Turn::Drained | Turn::Blocked, None) if wants_room => Turn::More,
            (Turn::Drained, None) if wants_cap => Turn::Blocked,
            (turn, None) => turn,
        }
    }

    #[allow(clippy::too_many_arguments)] // One turn, with all it may look at.
    fn plan_again(
        &self,
        number: u32,
        position: Position,
        config: &GroupConfig,
        chunks: &impl Chunks,
        now: Now,
        room: &mut Room,
        plan: &mut Plan,
    ) -> Again {
        let Some(pair) = self.pairs.get(number) else { return Again::Void };
        let State::Used(slot) = pair.windows.state(position) else { return Again::Void };
        let is_held = slot.visible_at() > now.lease;
        if (is_held && !posthouse_frame::planted("lease-of-before"))
            || plan.taken.contains(&position)
            || !pair.is_first_of(pair.windows.key(position), position)
        {
            return Again::Void;
        }
        let more = u16::from(posthouse_frame::planted("one-attempt-more"));
        if slot.attempt() >= config.max_attempts + more {
            return Again::Over;
        }
        if room.is_full() {
            return Again::NoRoom;
        }
        if room.in_flight == 0 && !slot.is_held() {
            return Again::OverCap;
        }
        let Some(row) = self.partition(pair.partition) else { return Again::Void };
        let found = match self.index.get(chunks, pair.partition, row.chain, position) {
            Ok(Some(found)) => found,
            Ok(None) => return Again::Void,
            Err(miss) => return Again::Away(miss),
        };
        if found.is_expired(now.wall) {
            if plan.buries {
                return Again::Over;
            }
            plan.taken.insert(position);
            Run::push(&mut plan.expired, position);
            return Again::Granted;
        }
        if !room.take(&found, slot.is_held()) {
            return Again::NoRoom;
        }
        let attempt = slot.attempt() + 1;
        match plan.again.last_mut() {
            Some(last) if last.run.end() == position && last.attempt == attempt => {
                last.run.len += 1;
            }
            _ => plan.again.push(AgainRun { run: Run { first: position, len: 1 }, attempt }),
        }
        plan.taken.insert(position);
        plan.deliveries.push((found, attempt));
        Again::Granted
    }

    /// Searches on from `plan.next`, up to `upto` or as far as the window allows.
    #[allow(clippy::too_many_arguments)] // One turn, with all it may look at.
    fn plan_fresh(
        &self,
        pair: &Pair,
        config: &GroupConfig,
        chunks: &impl Chunks,
        now: Now,
        room: &mut Room,
        plan: &mut Plan,
        upto: Option<Position>,
        mut judge: impl FnMut(&Found) -> Option<bool>,
    ) -> Turn {
        let Some(row) = self.partition(pair.partition) else { return Turn::Drained };
        let window_end = pair.floor.saturating_add(config.window.into());
        let end = upto.unwrap_or(row.next).min(row.next).min(window_end);
        let keyed = config.order == Order::Key;
        let mut turn = None;
        let range = plan.next.max(row.head)..end;
        let walked = self.index.walk(chunks, pair.partition, row.chain, range, |found| {
            if room.search == 0 {
                turn = Some(Turn::More);
                return Step::Stop;
            }
            room.search -= 1;
            let position = found.position;
            let is_expired = found.is_expired(now.wall);
            let is_lost = posthouse_frame::planted("passed-over") && position % 16 == 7;
            if is_lost || (is_expired && !plan.buries) {
                Run::push(&mut plan.expired, position);
                plan.next = position + 1;
                return Step::On;
            }
            match judge(found) {
                Some(true) => {}
                Some(false) => {
                    Run::push(&mut plan.filtered, position);
                    plan.next = position + 1;
                    return Step::On;
                }
                None => {
                    turn = Some(Turn::Text);
                    return Step::Stop;
                }
            }
            let key = if keyed && !is_expired { found.key } else { 0 };
            let is_locked = key != 0
                && !posthouse_frame::planted("keys-ignored")
                && (pair.keys.contains_key(&key) || plan.locked.contains(&key));
            if is_expired || is_locked {
                if plan.chained.len() + pair.waiting as usize >= CHAINED {
                    turn = Some(Turn::Blocked);
                    return Step::Stop;
                }
                plan.chained.push(Chained { position, key });
                plan.next = position + 1;
                return Step::On;
            }
            if !room.take(found, false) {
                turn = Some(if room.in_flight == 0 { Turn::Blocked } else { Turn::More });
                return Step::Stop;
            }
            if keyed {
                plan.keys.push(Keys(key));
                if key != 0 && !plan.auto_ack {
                    plan.locked.insert(key);
                }
            }
            Run::push(&mut plan.fresh, position);
            plan.deliveries.push((found.clone(), 1));
            let off = posthouse_frame::planted("search-off-by-one") && room.messages == 1;
            plan.next = position + 1 + u64::from(off);
            Step::On
        });
        match (walked, turn) {
            (Err(miss), _) => Turn::Away(miss),
            (Ok(_), Some(turn)) => turn,
            (Ok(_), None) if end < row.next && upto.is_none() => Turn::Blocked,
            (Ok(_), None) => Turn::Drained,
        }
    }

    /// Gathers messages to be judged by what stands in them.
    fn peek(
        &self,
        number: u32,
        from: Position,
        catalog: &Catalog,
        chunks: &impl Chunks,
    ) -> Result<Peek, Miss> {
        let pair = self.pairs.get(number).expect("its turn has just ended");
        let row = self.partition(pair.partition).expect("a pair has a partition");
        let topic = catalog.topic(row.topic).expect("its turn has just looked at it");
        let mut peek = Peek {
            group: pair.group,
            partition: pair.partition,
            from,
            upto: from,
            candidates: Vec::new(),
        };
        let mut searched = 0;
        let walked = self.index.walk(chunks, pair.partition, row.chain, from..row.next, |found| {
            if verdict(catalog, pair.group, topic, found) != Some(false) {
                peek.candidates.push(found.clone());
            }
            peek.upto = found.position + 1;
            searched += 1;
            let enough = peek.candidates.len() == PEEK || searched == SEARCH;
            if enough { Step::Stop } else { Step::On }
        });
        match walked {
            Err(miss) if peek.candidates.is_empty() => Err(miss),
            _ => Ok(peek),
        }
    }

    /// Writes what was planned for a pair, and hands its messages out.
    #[allow(clippy::too_many_arguments)] // One turn, with all it may look at.
    fn write_plan(
        &self,
        number: u32,
        plan: Plan,
        ask: &Ask<'_>,
        now: Now,
        fence: &mut Fence,
        out: &mut FrameBuf,
        deliveries: &mut Vec<Delivery>,
    ) {
        let Some(pair) = self.pairs.get(number) else { return };
        let (group, partition, next) = (pair.group, pair.partition, plan.next);
        for (runs, why) in
            [(&plan.expired, SkipReason::Expired), (&plan.filtered, SkipReason::Filtered)]
        {
            if !runs.is_empty() {
                let runs = List::Slice(runs);
                Record::Skip { group, partition, next, why, runs }.write(out);
            }
        }
        if !plan.deliveries.is_empty() {
            self.write_grant(pair, &plan, ask, now, fence, out, deliveries);
        }
        // Behind the grant: they wait for what it has granted, or to be buried.
        if !plan.chained.is_empty() {
            let items = List::Slice(&plan.chained);
            Record::Chain { group, partition, next, items }.write(out);
        }
    }

    #[allow(clippy::too_many_arguments)] // One turn, with all it may look at.
    fn write_grant(
        &self,
        pair: &Pair,
        plan: &Plan,
        ask: &Ask<'_>,
        now: Now,
        fence: &mut Fence,
        out: &mut FrameBuf,
        deliveries: &mut Vec<Delivery>,
    ) {
        let (group, partition, next) = (pair.group, pair.partition, plan.next);
        *fence += 1;
        let visible_at = if ask.auto_ack { ShardMs(0) } else { now.lease.plus(ask.lease_ms) };
        Record::Grant(Grant {
            group,
            partition,
            consumer: ask.consumer,
            fence: *fence,
            visible_at,
            next,
            fresh: List::Slice(&plan.fresh),
            keys: List::Slice(&plan.keys),
            again: List::Slice(&plan.again),
        })
        .write(out);
        let topic = self.topic_of(partition).unwrap_or_default();
        let fence = *fence;
        deliveries.extend(plan.deliveries.iter().map(|(found, attempt)| Delivery {
            group,
            partition,
            topic,
            found: found.clone(),
            attempt: *attempt,
            fence,
            visible_at,
        }));
    }

    /// Grants what was judged to pass.
    pub(super) fn claim(
        &self,
        claim: &Claim,
        catalog: &Catalog,
        chunks: &impl Chunks,
        now: Now,
        out: &mut FrameBuf,
    ) -> Result<Reply, Miss> {
        let nothing = Ok(Reply::Claimed(Vec::new()));
        let Some(number) = self.pair_of.get(&(claim.group, claim.partition)).copied() else {
            return nothing;
        };
        let (Some(pair), Some(group), Some(state)) = (
            self.pairs.get(number),
            catalog.group(claim.group).filter(|g| g.is_active()),
            self.groups.get(claim.group.0),
        ) else {
            return nothing;
        };
        let config = &catalog.effective(group).config;
        if pair.next != claim.from || config.paused || !state.has_room_for(&claim.consumer) {
            return nothing;
        }
        let mut room = Room {
            messages: claim.max,
            bytes: claim.max_bytes,
            in_flight: config
                .max_in_flight
                .map_or(u64::MAX, |most| u64::from(most).saturating_sub(state.in_flight)),
            is_first: true,
            search: SEARCH,
        };
        let topic = catalog.topic_of(claim.partition);
        let buries = topic.is_some_and(|topic| buries_expired(topic, config));
        let (next, auto_ack) = (pair.next, claim.auto_ack);
        let mut plan = Plan { next, auto_ack, buries, ..Plan::default() };
        let upto = Some(claim.upto);
        let turn =
            self.plan_fresh(pair, config, chunks, now, &mut room, &mut plan, upto, |found| {
                Some(claim.pass.binary_search(&found.position).is_ok())
            });
        if let Turn::Away(miss) = turn {
            return Err(miss);
        }
        let ask = Ask {
            group: claim.group,
            consumer: &claim.consumer,
            max: claim.max,
            max_bytes: claim.max_bytes,
            lease_ms: claim.lease_ms,
            topic: None,
            auto_ack: claim.auto_ack,
        };
        let mut fence = self.counters.fence;
        let mut deliveries = Vec::new();
        self.write_plan(number, plan, &ask, now, &mut fence, out, &mut deliveries);
        Ok(Reply::Claimed(deliveries))
    }
}

enum Again {
    /// It is in the plan.
    Granted,
    /// There is nothing to grant.
    Void,
    /// Its last attempt has failed, or it has expired and is to be buried.
    Over,
    /// There is something, and no room for it.
    NoRoom,
    /// There is something, and the group has as many in flight as it may.
    OverCap,
    /// A block is needed.
    Away(Miss),
}

/// Whether what expires in a topic goes to the dead letters of a group.
pub(super) fn buries_expired(topic: &Topic, config: &GroupConfig) -> bool {
    topic.config.expired == Expired::DeadLetter && config.dead_letter == DeadLetter::Topic
}

/// Whether a message passes the group's filters for its topic; `None` if its body is
/// needed to say.
fn verdict(catalog: &Catalog, group: GroupId, topic: &Arc<Topic>, found: &Found) -> Option<bool> {
    if matches!(topic.role, Role::Retry(of) if of == group) {
        return Some(true);
    }
    let Some(group) = catalog.group(group) else { return Some(false) };
    let group = catalog.effective(group);
    if posthouse_frame::planted("filter-forgotten") && found.position % 8 == 5 {
        return Some(true);
    }
    let mut verdict = Some(false);
    for filter in group.filters(&topic.name, catalog.secret()) {
        match by_hash(filter, found) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => verdict = None,
        }
    }
    verdict
}

fn by_hash(filter: &Filter, found: &Found) -> Option<bool> {
    if filter.is_everything() { Some(true) } else { filter.by_hash(found.tags.as_slice()) }
}
