//! The life of one message, read from the log: published, granted to whom and when,
//! given back with what, acknowledged, dead, redriven.
//!
//! Nothing is kept for it besides the log, so it reaches as far back as the log does:
//! a segment in which nothing is live goes, and the events in it with it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use posthouse_core::catalog::Catalog;
use posthouse_core::ident::IdKind;
use posthouse_core::record::{
    CancelReason, List, PlaceReason, Record, Records, SkipReason, TrimReason,
};
use posthouse_core::{GroupId, PartitionId, Position, Run, Seq, UnixMs};
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::{LogReader, Part};

use super::{Broker, Caller};
use crate::problem::Problem;

/// How long one look at the log may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most events of one message.
const EVENTS: usize = 10_000;

/// Something that happened to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When its frame was sealed.
    pub at: UnixMs,
    /// The frame.
    pub frame: FrameNo,
    /// The group that it concerns.
    pub group: Option<String>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was published.
    Published,
    /// It was published, to come later.
    Scheduled {
        /// When.
        due: UnixMs,
    },
    /// It was to come at another time.
    Rescheduled {
        /// When.
        due: UnixMs,
    },
    /// It was called back.
    Cancelled {
        /// Why.
        why: &'static str,
    },
    /// It came in with a transaction, and waited for the decision.
    Prepared,
    /// Its time had come, or its transaction was committed.
    Fired,
    /// A consumer got it.
    Granted {
        /// Who.
        consumer: String,
        /// Which attempt.
        attempt: u16,
        /// The grant.
        fence: u64,
        /// Whether it was acknowledged with that.
        auto_ack: bool,
    },
    /// A lease was changed.
    Extended,
    /// It was given back.
    Nacked {
        /// What the consumer said.
        reason: String,
    },
    /// It was acknowledged.
    Acked,
    /// It waits for an earlier message of its key.
    Chained,
    /// The group is done with it although nobody got it.
    Skipped {
        /// Why.
        why: &'static str,
    },
    /// It became a dead letter.
    Dead,
    /// It got another chance.
    Redriven,
    /// It is gone.
    Trimmed {
        /// Why.
        why: &'static str,
    },
    /// The group went on elsewhere.
    Seeked {
        /// Where.
        position: Position,
    },
}

impl What {
    /// As users see it.
    pub fn name(&self) -> &'static str {
        match self {
            What::Published => "published",
            What::Prepared => "prepared",
            What::Scheduled { .. } => "scheduled",
            What::Rescheduled { .. } => "rescheduled",
            What::Cancelled { .. } => "cancelled",
            What::Fired => "fired",
            What::Granted { .. } => "granted",
            What::Extended => "extended",
            What::Nacked { .. } => "nacked",
            What::Acked => "acked",
            What::Chained => "behind_key",
            What::Skipped { .. } => "skipped",
            What::Dead => "dead",
            What::Redriven => "redriven",
            What::Trimmed { .. } => "trimmed",
            What::Seeked { .. } => "seek",
        }
    }
}

/// The life of a message.
#[derive(Clone, Debug)]
pub struct History {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Whether that is all that the log has.
    pub complete: bool,
    /// Whether parts of the log between have gone.
    pub gaps: bool,
}

/// Follows a message through records.
#[derive(Clone, Default)]
struct Trail {
    /// The places where it was.
    places: BTreeSet<(PartitionId, Position)>,
    /// The number that it was scheduled under.
    seq: Option<Seq>,
    /// Whether its body was carried: the frame that has it is not where its life began.
    carried: bool,
    events: Vec<(UnixMs, FrameNo, Option<GroupId>, What)>,
}

impl Trail {
    fn is_at(&self, partition: PartitionId, mut runs: impl Iterator<Item = Run>) -> bool {
        runs.any(|run| {
            self.places.range((partition, run.first)..(partition, run.end())).next().is_some()
        })
    }

    fn has(&self, partition: PartitionId, runs: &List<'_, Run>) -> bool {
        self.is_at(partition, runs.iter())
    }

    fn is_one_of(&self, first: Seq, count: usize) -> bool {
        self.seq.is_some_and(|seq| (first..first + count as u64).contains(&seq))
    }

    fn see(&mut self, at: UnixMs, frame: FrameNo, record: &Record<'_>) {
        let one = |position| [Run { first: position, len: 1 }].into_iter();
        let (group, what) = match record {
            Record::Publish { partition, first, entries, .. }
                if self.is_at(
                    *partition,
                    [Run { first: *first, len: entries.len() as u64 }].into_iter(),
                ) =>
            {
                (None, What::Published)
            }
            Record::Schedule { first, due, held: true, .. }
                if self.is_one_of(*first, due.len()) =>
            {
                (None, What::Prepared)
            }
            Record::Schedule { first, due, .. } if self.is_one_of(*first, due.len()) => {
                let index = self.seq.map_or(0, |seq| seq - first) as usize;
                let due = due.iter().nth(index).map_or(UnixMs(0), |due| due.0);
                (None, What::Scheduled { due })
            }
            Record::Reschedule { items } => {
                let Some(item) = items.iter().find(|item| Some(item.of.seq) == self.seq) else {
                    return;
                };
                (None, What::Rescheduled { due: item.due })
            }
            Record::Cancel { why, items } if items.iter().any(|of| Some(of.seq) == self.seq) => {
                let why = match why {
                    CancelReason::Asked => "asked",
                    CancelReason::Replaced => "replaced",
                    CancelReason::Purged => "purged",
                    CancelReason::Dropped => "topic_deleted",
                };
                (None, What::Cancelled { why })
            }
            Record::Fire { partition, first, items, .. } => {
                let at = items.iter().position(|item| Some(item.seq) == self.seq);
                let Some(at) = at else { return };
                self.places.insert((*partition, first + at as u64));
                (None, What::Fired)
            }
            Record::Place(place) => {
                let Some((group, partition, position)) = place.source else { return };
                if !self.is_at(partition, one(position)) {
                    return;
                }
                self.places.insert((place.partition, place.position));
                let what = match place.reason {
                    PlaceReason::Dead => What::Dead,
                    PlaceReason::Redriven => What::Redriven,
                };
                ((group != GroupId::OPERATOR).then_some(group), what)
            }
            Record::Grant(grant) => {
                let again = grant
                    .again
                    .iter()
                    .find(|again| self.is_at(grant.partition, std::iter::once(again.run)));
                let attempt = match again {
                    Some(again) => again.attempt,
                    None if self.has(grant.partition, &grant.fresh) => 1,
                    None => return,
                };
                let what = What::Granted {
                    consumer: grant.consumer.to_owned(),
                    attempt,
                    fence: grant.fence,
                    auto_ack: grant.is_auto_ack(),
                };
                (Some(grant.group), what)
            }
            Record::Ack { group, partition, runs } if self.has(*partition, runs) => {
                (Some(*group), What::Acked)
            }
            Record::Extend { group, partition, runs, .. } if self.has(*partition, runs) => {
                (Some(*group), What::Extended)
            }
            Record::Nack { group, partition, position, reason, .. }
                if self.is_at(*partition, one(*position)) =>
            {
                (Some(*group), What::Nacked { reason: (*reason).to_owned() })
            }
            Record::Skip { group, partition, why, runs, .. } if self.has(*partition, runs) => {
                let why = match why {
                    SkipReason::Filtered => "filtered",
                    SkipReason::Expired => "expired",
                    SkipReason::Exhausted => "attempts_exhausted",
                    SkipReason::Purged => "purged",
                };
                ((*group != GroupId::OPERATOR).then_some(*group), What::Skipped { why })
            }
            Record::Chain { group, partition, items, .. }
                if self.is_at(*partition, items.iter().flat_map(|item| one(item.position))) =>
            {
                let expired = items.iter().filter(|item| item.key == 0);
                let what = match self.is_at(*partition, expired.flat_map(|i| one(i.position))) {
                    true => What::Skipped { why: "expired" },
                    false => What::Chained,
                };
                (Some(*group), what)
            }
            Record::Carry { items, .. } => {
                let mut places = items.iter().map(|item| (item.partition, item.position));
                self.carried |= places.any(|place| self.places.contains(&place));
                return;
            }
            Record::Seek { group, partition, position }
                if self.places.iter().any(|(of, _)| of == partition) =>
            {
                (Some(*group), What::Seeked { position: *position })
            }
            Record::Trim { partition, head, why, .. }
                if self.is_at(*partition, [Run { first: 0, len: *head }].into_iter()) =>
            {
                let why = match why {
                    TrimReason::Acknowledged => "acknowledged",
                    TrimReason::Age => "age",
                    TrimReason::Bytes => "bytes",
                    TrimReason::Count => "count",
                    TrimReason::Purged => "purged",
                };
                // What comes after in this partition is about others.
                self.places.retain(|(of, position)| of != partition || *position >= *head);
                (None, What::Trimmed { why })
            }
            _ => return,
        };
        self.events.push((at, frame, group, what));
    }
}

impl Broker {
    /// The life of a message, as far as the log has it.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn history(&self, caller: &Caller, id: &str) -> Result<History, Problem> {
        let message: posthouse_core::ident::MessageId = id.parse()?;
        let parts = message.open(&self.secret)?;
        let bodies = &self.shard(parts.shard)?.bodies;
        let reader = bodies.reader().clone();
        let trail = match parts.kind {
            IdKind::Stored => {
                // Where it was published, and where it is now if that is elsewhere.
                let mut places = BTreeSet::from([(parts.partition, parts.number)]);
                let (seen, _) = self.message(caller, id).await?;
                let (here, _) = self.partition(&seen.topic, seen.partition)?;
                places.insert((here, seen.found.position));
                let from = seen.found.body.frame;
                (from, Trail { places, ..Trail::default() })
            }
            IdKind::Scheduled => {
                // Nothing says where in the log it came in: all of it is read.
                self.check_scheduled_id(caller, id).await?;
                let seq = Some(parts.number);
                (FrameNo(1), Trail { seq, ..Trail::default() })
            }
            IdKind::Transaction => return Err(Problem::no_message(id)),
        };
        let (from, trail) = trail;
        let scanned = bodies.aside().call(move || scan(&reader, from, trail)).await;
        let (trail, complete, gaps) =
            scanned.ok_or_else(|| Problem::internal("the reading thread has ended"))??;
        let catalog = self.catalog();
        let events = trail.events.into_iter().map(|(at, frame, group, what)| Event {
            at,
            frame,
            group: group.map(|group| group_name(&catalog, group)),
            what,
        });
        Ok(History { events: events.collect(), complete, gaps })
    }
}

fn group_name(catalog: &Catalog, group: GroupId) -> String {
    catalog.group(group).map_or_else(|| format!("(deleted group {group})"), |g| g.name.to_string())
}

fn scan<R: LogReader>(
    reader: &R,
    from: FrameNo,
    mut trail: Trail,
) -> Result<(Trail, bool, bool), Problem> {
    let began = Instant::now();
    let mut expected = from;
    let mut gaps = false;
    let unseen = trail.clone();
    let first = reader.segments().first().map_or(from, |segment| segment.first.max(from));
    for frame in reader.scan(first, Part::Meta).map_err(Problem::unreadable)? {
        let frame = frame.map_err(Problem::unreadable)?;
        let header = frame.header;
        gaps |= header.frame_no != expected;
        expected = header.frame_no.next();
        if header.kind != Kind::Data {
            continue;
        }
        for record in Records::new(&frame.meta) {
            let record = record.map_err(Problem::unreadable)?;
            trail.see(UnixMs(header.wall_ms), header.frame_no, &record);
        }
        if trail.carried && header.frame_no == from && from > FrameNo(1) {
            // Nothing says where in the log it came in.
            return scan(reader, FrameNo(1), unseen);
        }
        if began.elapsed() > PATIENCE || trail.events.len() >= EVENTS {
            return Ok((trail, false, gaps));
        }
    }
    Ok((trail, true, gaps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_core::ShardMs;
    use posthouse_core::record::{AgainRun, Grant};

    fn grant<'a>(fresh: &'a [Run], again: &'a [AgainRun]) -> Record<'a> {
        Record::Grant(Grant {
            group: GroupId(1),
            partition: PartitionId(2),
            consumer: "w",
            fence: 9,
            visible_at: ShardMs(5),
            next: 9,
            fresh: List::Slice(fresh),
            keys: List::default(),
            again: List::Slice(again),
        })
    }

    #[test]
    fn a_trail_follows_one_message_and_no_other() {
        let place = (PartitionId(2), 5);
        let places = BTreeSet::from([place]);
        let mut trail = Trail { places, ..Trail::default() };
        let mut see = |record: &Record<'_>| trail.see(UnixMs(1), FrameNo(1), record);
        see(&grant(&[Run { first: 0, len: 5 }], &[]));
        see(&grant(&[Run { first: 4, len: 2 }], &[]));
        see(&grant(&[], &[AgainRun { run: Run { first: 5, len: 1 }, attempt: 7 }]));
        let runs = [Run { first: 5, len: 1 }];
        let (group, partition) = (GroupId(1), PartitionId(3));
        see(&Record::Ack { group, partition, runs: List::Slice(&runs) });
        let partition = PartitionId(2);
        see(&Record::Ack { group, partition, runs: List::Slice(&runs) });
        let why = TrimReason::Age;
        see(&Record::Trim { partition, head: 6, head_at: UnixMs(1), why });
        see(&Record::Trim { partition, head: 7, head_at: UnixMs(1), why });
        let attempt =
            |attempt| What::Granted { consumer: "w".into(), attempt, fence: 9, auto_ack: false };
        let what: Vec<What> = trail.events.into_iter().map(|event| event.3).collect();
        assert_eq!(what, [attempt(1), attempt(7), What::Acked, What::Trimmed { why: "age" }]);
    }
}
