//! Between what the broker says and what goes over the wire.

use std::sync::Arc;

use posthouse_client::proto;
use posthouse_core::UnixMs;
use posthouse_core::catalog::{self, Group, Topic, User};
use posthouse_core::message::{Origin, Parts};
use posthouse_core::queue::MessageState;

use crate::broker::consume::{Outcome, Received};
use crate::broker::history::{Event, What};
use crate::broker::inspect::{GroupStats, PartitionStats, Seen};
use crate::broker::manage::{GroupPatch, TopicPatch};
use crate::broker::schedule::{Changed, Scheduled};
use crate::problem::Problem;

pub(in crate::doors) fn problem(problem: &Problem) -> proto::Problem {
    let about = problem.about.as_deref().cloned();
    let (field, value, limit) =
        about.map_or_else(Default::default, |about| (about.field, about.value, about.limit));
    proto::Problem {
        code: problem.code.into(),
        detail: problem.detail.clone(),
        field,
        value,
        limit,
        hint: problem.hint.as_deref().unwrap_or_default().to_owned(),
        retry_after_ms: problem.retry_after_ms,
        status: problem.kind.grpc_code() as i32,
    }
}

// ---- messages

pub(in crate::doors) fn received(received: &Received) -> Result<proto::ReceivedMessage, Problem> {
    let (parts, body) = received.parts()?;
    let (topic, partition, position, published_at) = received.place(&parts);
    Ok(proto::ReceivedMessage {
        id: received.id.to_string(),
        topic: topic.to_owned(),
        partition,
        position,
        attempt: received.attempt.into(),
        fence: received.fence,
        published_at_ms: published_at.0,
        receipt: received.receipt.clone(),
        ..content(&parts, body)
    })
}

pub(in crate::doors) fn seen(seen: &Seen) -> Result<proto::ReceivedMessage, Problem> {
    let (parts, body) = seen.parts()?;
    Ok(proto::ReceivedMessage {
        id: seen.id.to_string(),
        topic: seen.topic.name.to_string(),
        partition: seen.partition,
        position: seen.found.position,
        published_at_ms: seen.found.at.0,
        ..content(&parts, body)
    })
}

pub(in crate::doors) fn scheduled(message: &Scheduled) -> Result<proto::ReceivedMessage, Problem> {
    let (parts, body) = message.parts()?;
    Ok(proto::ReceivedMessage {
        id: message.id.to_string(),
        topic: message.topic.name.to_string(),
        partition: message.partition,
        deliver_at_ms: Some(message.due.0),
        ..content(&parts, body)
    })
}

/// A message of a transaction that is not decided: it is due when that is.
pub(in crate::doors) fn prepared(message: &Scheduled) -> Result<proto::ReceivedMessage, Problem> {
    Ok(proto::ReceivedMessage { deliver_at_ms: None, ..scheduled(message)? })
}

pub(in crate::doors) fn changed(changed: Changed) -> proto::ScheduleChange {
    use proto::ScheduleStatus as Status;
    let (status, id) = match &changed {
        Changed::Done { id, .. } => (Status::Ok, Some(id)),
        Changed::Fired { id, .. } => (Status::Fired, Some(id)),
        Changed::Cancelled { id } => (Status::Cancelled, Some(id)),
        Changed::Held { id } => (Status::Held, Some(id)),
        Changed::Unknown => (Status::Unknown, None),
        Changed::Refused(_) => (Status::Refused, None),
    };
    let mut out = proto::ScheduleChange {
        status: status.into(),
        id: id.map_or_else(String::new, |id| id.to_string()),
        ..Default::default()
    };
    match changed {
        Changed::Done { due, .. } => out.deliver_at_ms = Some(due.0),
        Changed::Fired { partition, position, .. } => {
            (out.partition, out.position) = (Some(partition), Some(position));
        }
        Changed::Refused(refused) => out.problem = Some(problem(&refused)),
        Changed::Cancelled { .. } | Changed::Held { .. } | Changed::Unknown => {}
    }
    out
}

fn content(parts: &Parts<'_>, body: bytes::Bytes) -> proto::ReceivedMessage {
    proto::ReceivedMessage {
        body,
        key: parts.key.map(str::to_owned),
        tags: parts.tags.iter().map(|tag| (*tag).to_owned()).collect(),
        headers: parts.headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        ttl_ms: parts.ttl_ms,
        dedupe_id: parts.dedupe_id.map(str::to_owned),
        name: parts.name.map(str::to_owned),
        origin: parts.origin.as_ref().map(origin),
        ..Default::default()
    }
}

fn origin(origin: &Origin<'_>) -> proto::Origin {
    proto::Origin {
        topic: origin.topic.to_owned(),
        partition: origin.partition,
        position: origin.position,
        published_at_ms: origin.published_at.0,
        reason: origin.reason.as_str().into(),
        attempts: origin.attempts.into(),
        died_at_ms: origin.died_at.0,
        error: origin.error.to_owned(),
    }
}

pub(in crate::doors) fn outcome(outcome: Outcome) -> proto::SettleResult {
    let (status, detail) = match outcome {
        Outcome::Ok => (proto::SettleStatus::Ok, String::new()),
        Outcome::Already => (proto::SettleStatus::Already, String::new()),
        Outcome::Stale(detail) => (proto::SettleStatus::Stale, detail),
        Outcome::Invalid(problem) => (proto::SettleStatus::Invalid, problem.detail),
    };
    proto::SettleResult { status: status.into(), detail }
}

pub(in crate::doors) fn state(
    group: &str,
    state: &MessageState,
    left_ms: Option<u64>,
) -> proto::GroupState {
    let mut out =
        proto::GroupState { group: group.into(), left_ms, ..proto::GroupState::default() };
    out.state = match state {
        MessageState::Ahead => "ahead",
        MessageState::InFlight { consumer, attempt, fence, .. } => {
            out.consumer = consumer.clone();
            out.attempt = (*attempt).into();
            out.fence = *fence;
            "in_flight"
        }
        MessageState::Waiting { attempts, reason, .. } => {
            out.attempt = (*attempts).into();
            out.reason = reason.clone();
            "waiting"
        }
        MessageState::Chained => "behind_key",
        MessageState::Done => "done",
    }
    .into();
    out
}

pub(in crate::doors) fn event(event: &Event) -> proto::HistoryEvent {
    let mut out = proto::HistoryEvent {
        at_ms: event.at.0,
        group: event.group.clone().unwrap_or_default(),
        event: event.what.name().into(),
        ..Default::default()
    };
    match &event.what {
        What::Granted { consumer, attempt, fence, auto_ack } => {
            out.consumer = consumer.clone();
            out.attempt = (*attempt).into();
            out.fence = *fence;
            out.auto_ack = *auto_ack;
        }
        What::Nacked { reason } => out.reason = reason.clone(),
        What::Skipped { why } | What::Trimmed { why } | What::Cancelled { why } => {
            out.reason = (*why).into();
        }
        What::Scheduled { due } | What::Rescheduled { due } => out.deliver_at_ms = Some(due.0),
        What::Seeked { position } => out.position = Some(*position),
        What::Published
        | What::Fired
        | What::Extended
        | What::Acked
        | What::Chained
        | What::Prepared
        | What::Dead
        | What::Redriven => {}
    }
    out
}

// ---- topics

pub(in crate::doors) fn topic_patch(
    config: Option<proto::TopicConfig>,
) -> Result<TopicPatch, Problem> {
    let config = config.unwrap_or_default();
    Ok(TopicPatch {
        partitions: config.partitions,
        retention: config.retention.and_then(retention),
        max_message_bytes: config.max_message_bytes,
        dedupe_window_ms: config.dedupe_window_ms,
        delays: config.delays,
        expired: config.bury_expired.map(|bury| match bury {
            true => catalog::Expired::DeadLetter,
            false => catalog::Expired::Drop,
        }),
        check_after_ms: config.check_after_ms,
        checks: config.checks.map(checks).transpose()?,
        publish_quota: config.publish_quota.map(quota),
        accepts: config.accepts.map(accepts).transpose()?,
    })
}

fn accepts(number: i32) -> Result<catalog::Accepts, Problem> {
    match proto::Accepts::try_from(number) {
        Ok(proto::Accepts::Unspecified | proto::Accepts::Any) => Ok(catalog::Accepts::Any),
        Ok(proto::Accepts::Normal) => Ok(catalog::Accepts::Normal),
        Ok(proto::Accepts::Keyed) => Ok(catalog::Accepts::Keyed),
        Ok(proto::Accepts::Delayed) => Ok(catalog::Accepts::Delayed),
        Ok(proto::Accepts::Prepared) => Ok(catalog::Accepts::Prepared),
        Err(_) => Err(Problem::invalid("accepts", number, "a sort of messages that is known")),
    }
}

fn accepts_out(accepts: catalog::Accepts) -> proto::Accepts {
    match accepts {
        catalog::Accepts::Any => proto::Accepts::Any,
        catalog::Accepts::Normal => proto::Accepts::Normal,
        catalog::Accepts::Keyed => proto::Accepts::Keyed,
        catalog::Accepts::Delayed => proto::Accepts::Delayed,
        catalog::Accepts::Prepared => proto::Accepts::Prepared,
    }
}

pub(in crate::doors) fn quota(quota: proto::PublishQuota) -> catalog::Quota {
    let proto::PublishQuota { messages_per_s, bytes_per_s } = quota;
    catalog::Quota { messages_per_s, bytes_per_s }
}

fn quota_out(quota: catalog::Quota) -> Option<proto::PublishQuota> {
    let catalog::Quota { messages_per_s, bytes_per_s } = quota;
    (!quota.is_none()).then_some(proto::PublishQuota { messages_per_s, bytes_per_s })
}

/// How often a producer is asked about a transaction at most.
pub(in crate::doors) fn checks(checks: u32) -> Result<u16, Problem> {
    let limit = format!("at most {}", catalog::config::bounds::CHECKS);
    u16::try_from(checks).map_err(|_| Problem::invalid("checks", checks, limit))
}

fn retention(retention: proto::Retention) -> Option<catalog::Retention> {
    use proto::retention::Retention as Wire;
    Some(match retention.retention? {
        Wire::Acknowledged(acknowledged) => {
            catalog::Retention::Acknowledged { min_age_ms: acknowledged.min_age_ms }
        }
        Wire::Limits(limits) => catalog::Retention::Limits {
            max_age_ms: limits.max_age_ms,
            max_bytes: limits.max_bytes,
            max_count: limits.max_count,
        },
    })
}

pub(in crate::doors) fn topic(topic: &Topic, partitions: &[PartitionStats]) -> proto::Topic {
    use proto::retention::{Acknowledged, Limits, Retention as Wire};
    let config = &topic.config;
    let retention = match &config.retention {
        catalog::Retention::Acknowledged { min_age_ms } => {
            Wire::Acknowledged(Acknowledged { min_age_ms: *min_age_ms })
        }
        catalog::Retention::Limits { max_age_ms, max_bytes, max_count } => Wire::Limits(Limits {
            max_age_ms: *max_age_ms,
            max_bytes: *max_bytes,
            max_count: *max_count,
        }),
    };
    let partition = |stats: &PartitionStats| {
        let info = stats.info;
        proto::Partition {
            partition: stats.index,
            shard: stats.shard.0.into(),
            head: info.head,
            next: info.next,
            bytes: info.bytes,
            oldest_at_ms: (info.next > info.head).then_some(info.head_at.0),
            scheduled: info.scheduled,
        }
    };
    proto::Topic {
        name: topic.name.to_string(),
        config: Some(proto::TopicConfig {
            partitions: Some(config.partitions),
            retention: Some(proto::Retention { retention: Some(retention) }),
            max_message_bytes: Some(config.max_message_bytes),
            dedupe_window_ms: Some(config.dedupe_window_ms),
            delays: Some(config.delays),
            bury_expired: Some(config.expired == catalog::Expired::DeadLetter),
            check_after_ms: Some(config.check_after_ms),
            checks: Some(config.checks.into()),
            publish_quota: quota_out(config.publish_quota),
            accepts: (config.accepts != catalog::Accepts::Any)
                .then(|| accepts_out(config.accepts).into()),
        }),
        created_at_ms: topic.created_at.0,
        messages: partitions.iter().map(|p| p.info.next - p.info.head).sum(),
        bytes: partitions.iter().map(|p| p.info.bytes).sum(),
        scheduled: partitions.iter().map(|p| p.info.scheduled).sum(),
        partitions: partitions.iter().map(partition).collect(),
    }
}

// ---- groups

pub(in crate::doors) fn group_patch(
    config: Option<proto::GroupConfig>,
) -> Result<GroupPatch, Problem> {
    let config = config.unwrap_or_default();
    let subscription = |subscription: proto::Subscription| catalog::Subscription {
        topic: subscription.topic,
        filter: match subscription.filter {
            filter if filter.is_empty() => "*".into(),
            filter => filter,
        },
    };
    let attempts = |attempts: u32| {
        u16::try_from(attempts)
            .map_err(|_| Problem::invalid("max_attempts", attempts, "at most 10000"))
    };
    Ok(GroupPatch {
        dead_letter: match config.dead_letter() {
            proto::DeadLetter::Unspecified => None,
            proto::DeadLetter::Topic => Some(catalog::DeadLetter::Topic),
            proto::DeadLetter::Drop => Some(catalog::DeadLetter::Drop),
        },
        order: match config.order() {
            proto::Order::Unspecified => None,
            proto::Order::None => Some(catalog::Order::None),
            proto::Order::Key => Some(catalog::Order::Key),
        },
        subscriptions: config
            .subscriptions
            .map(|list| list.subscriptions.into_iter().map(subscription).collect()),
        start: config.start.and_then(start),
        lease_ms: config.lease_ms,
        max_attempts: config.max_attempts.map(attempts).transpose()?,
        backoff_ms: config.backoff.map(|backoff| backoff.steps_ms),
        max_in_flight: config.max_in_flight.map(|most| (most > 0).then_some(most)),
        window: config.window,
        paused: config.paused,
        expire_after_ms: config.expire_after_ms.map(|ms| (ms > 0).then_some(ms)),
    })
}

fn start(start: proto::Start) -> Option<catalog::Start> {
    use proto::start::Start as Wire;
    Some(match start.start? {
        Wire::Earliest(_) => catalog::Start::Earliest,
        Wire::Latest(_) => catalog::Start::Latest,
        Wire::TimeMs(time) => catalog::Start::Time(UnixMs(time)),
    })
}

fn group_config(config: &catalog::GroupConfig) -> proto::GroupConfig {
    use proto::start::Start as Wire;
    let subscriptions = config.subscriptions.iter().map(|subscription| proto::Subscription {
        topic: subscription.topic.clone(),
        filter: subscription.filter.clone(),
    });
    proto::GroupConfig {
        subscriptions: Some(proto::group_config::Subscriptions {
            subscriptions: subscriptions.collect(),
        }),
        start: Some(proto::Start {
            start: Some(match config.start {
                catalog::Start::Earliest => Wire::Earliest(true),
                catalog::Start::Latest => Wire::Latest(true),
                catalog::Start::Time(time) => Wire::TimeMs(time.0),
            }),
        }),
        lease_ms: Some(config.lease_ms),
        max_attempts: Some(config.max_attempts.into()),
        backoff: Some(proto::group_config::Backoff { steps_ms: config.backoff_ms.clone() }),
        dead_letter: match config.dead_letter {
            catalog::DeadLetter::Topic => proto::DeadLetter::Topic.into(),
            catalog::DeadLetter::Drop => proto::DeadLetter::Drop.into(),
        },
        order: match config.order {
            catalog::Order::None => proto::Order::None.into(),
            catalog::Order::Key => proto::Order::Key.into(),
        },
        max_in_flight: Some(config.max_in_flight.unwrap_or(0)),
        window: Some(config.window),
        paused: Some(config.paused),
        expire_after_ms: Some(config.expire_after_ms.unwrap_or(0)),
    }
}

pub(in crate::doors) fn group(group: &Arc<Group>, stats: &GroupStats) -> proto::Group {
    let pairs = stats.pairs.iter().map(|pair| {
        let info = &pair.info;
        proto::GroupPartition {
            topic: pair.topic.to_string(),
            partition: pair.partition,
            floor: info.floor,
            next: info.next,
            end: info.end,
            lag: info.lag,
            in_flight: info.in_flight,
            waiting: info.waiting,
            dropped: info.dropped,
            oldest_at_ms: pair.oldest_at.map(|at| at.0),
            window_full: info.window_full,
        }
    });
    let consumer = |consumer: &crate::broker::inspect::ConsumerStats| proto::Consumer {
        name: consumer.name.clone(),
        held: consumer.held,
    };
    proto::Group {
        name: group.name.to_string(),
        config: Some(group_config(&group.config)),
        created_at_ms: group.created_at.0,
        partitions: pairs.collect(),
        consumers: stats.consumers.iter().map(consumer).collect(),
        lag: stats.sum(|info| info.lag),
        in_flight: stats.sum(|info| info.in_flight),
        waiting: stats.sum(|info| info.waiting),
        dropped: stats.sum(|info| info.dropped),
        dead_letters: stats.dead_letters,
    }
}

// ---- users

pub(in crate::doors) fn user(user: &User) -> proto::User {
    let action = |action: &catalog::Action| match action {
        catalog::Action::Publish => proto::Action::Publish.into(),
        catalog::Action::Consume => proto::Action::Consume.into(),
        catalog::Action::Manage => proto::Action::Manage.into(),
    };
    let grant = |grant: &catalog::AccessGrant| proto::AccessGrant {
        actions: grant.actions.iter().map(action).collect(),
        topics: grant.topics.clone(),
        groups: grant.groups.clone(),
    };
    let token = |token: &catalog::Token| proto::Token {
        name: token.name.clone(),
        created_at_ms: token.created_at.0,
    };
    proto::User {
        name: user.name.to_string(),
        grants: user.config.grants.iter().map(grant).collect(),
        tokens: user.config.tokens.iter().map(token).collect(),
        created_at_ms: user.created_at.0,
        publish_quota: quota_out(user.config.publish_quota),
    }
}

pub(in crate::doors) fn grants(
    grants: Vec<proto::AccessGrant>,
) -> Result<Vec<catalog::AccessGrant>, Problem> {
    grants
        .into_iter()
        .map(|grant| {
            let actions: Result<Vec<catalog::Action>, Problem> = grant
                .actions()
                .map(|action| match action {
                    proto::Action::Publish => Ok(catalog::Action::Publish),
                    proto::Action::Consume => Ok(catalog::Action::Consume),
                    proto::Action::Manage => Ok(catalog::Action::Manage),
                    proto::Action::Unspecified => Err(Problem::invalid(
                        "grants.actions",
                        "unspecified",
                        "publish, consume or manage",
                    )),
                })
                .collect();
            Ok(catalog::AccessGrant {
                actions: actions?,
                topics: grant.topics,
                groups: grant.groups,
            })
        })
        .collect()
}
