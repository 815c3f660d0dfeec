//! Giving messages out, and taking back what consumers say of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use posthouse_core::catalog::{Action, Group, GroupConfig, Role, Start, Topic};
use posthouse_core::ident::{MessageId, Receipt};
use posthouse_core::message::{self, Parts};
use posthouse_core::name;
use posthouse_core::queue::command::{GivenBack, Held, Reply, Settled};
use posthouse_core::queue::{Command, Delivery};
use posthouse_core::{Fence, GroupId, Position, ShardId, UnixMs};
use tokio::sync::oneshot;

use super::{Broker, Caller, On, bounds};
use crate::problem::{Kind, Problem};
use crate::shard::mail::Mail;
use crate::shard::mailbox::Mailbox;
use crate::shard::waiters::{Came, Ticket, Waiter};

/// How long a group of one consumer that asked for its own copy of everything stays
/// when it is away, unless its configuration says otherwise.
const BROADCAST_STAYS_MS: u64 = 3_600_000;

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct Receive {
    /// The most messages.
    pub max: usize,
    /// The most bytes of bodies.
    pub max_bytes: u64,
    /// How long to wait for the first.
    pub wait: Duration,
    /// How long the leases are; `None`: as the group says.
    pub lease_ms: Option<u64>,
    /// Only from this topic.
    pub topic: Option<String>,
    /// Whether messages are acknowledged with the grant.
    pub auto_ack: bool,
    /// Whether the consumer wants its own copy of everything.
    pub broadcast: bool,
    /// The consumer's name.
    pub consumer: String,
}

impl Default for Receive {
    fn default() -> Self {
        Receive {
            max: 1,
            max_bytes: bounds::RECEIVE_BYTES_DEFAULT,
            wait: Duration::ZERO,
            lease_ms: None,
            topic: None,
            auto_ack: false,
            broadcast: false,
            consumer: String::new(),
        }
    }
}

/// A message that was given to a consumer.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its id.
    pub id: MessageId,
    /// What to acknowledge it with; empty if it is acknowledged already.
    pub receipt: String,
    /// Which attempt this is.
    pub attempt: u16,
    /// The number of the grant.
    pub fence: Fence,
    /// The topic it is in.
    pub topic: Arc<Topic>,
    /// The partition there, counted from 0.
    pub partition: u32,
    /// Its position there.
    pub position: Position,
    /// When it was published.
    pub published_at: UnixMs,
    /// Its content: see [`Received::parts`].
    content: Bytes,
}

impl Received {
    /// All that the publisher gave, and the body.
    ///
    /// # Errors
    /// If the content cannot be read although its checksum holds.
    pub fn parts(&self) -> Result<(Parts<'_>, Bytes), Problem> {
        message::decode(&self.content).map_err(Problem::unreadable)
    }

    /// Its topic, partition, position and time as users know them: of a message that was
    /// redriven, where and when it was published.
    pub fn place<'a>(&'a self, parts: &'a Parts<'a>) -> (&'a str, u32, Position, UnixMs) {
        match &parts.origin {
            Some(origin) if matches!(self.topic.role, Role::Retry(_)) => {
                (origin.topic, origin.partition, origin.position, origin.published_at)
            }
            _ => (&self.topic.name, self.partition, self.position, self.published_at),
        }
    }

    /// The content, as it is stored.
    pub fn content(&self) -> &Bytes {
        &self.content
    }
}

/// What a consumer says of a message.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is done.
    Ack,
    /// It has to come again.
    Nack {
        /// After how long; `None`: as the group says.
        delay_ms: Option<u64>,
        /// Why.
        reason: Arc<str>,
    },
    /// It takes longer.
    Extend {
        /// How long from now; `None`: as the group says.
        lease_ms: Option<u64>,
    },
}

/// What became of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As was asked.
    Ok,
    /// It was done before.
    Already,
    /// Another attempt has followed, or the message was given back, or the group went
    /// on elsewhere.
    Stale(String),
    /// The receipt is none of this group.
    Invalid(Problem),
}

impl Broker {
    /// The group of that name, for a caller who wants to receive as it. Made if it is
    /// not there, the node makes groups on first use, and `topic` says what it gets.
    async fn group_to_receive(
        &self,
        caller: &Caller,
        name: &str,
        topic: Option<&str>,
    ) -> Result<Arc<Group>, Problem> {
        caller.check(Action::Consume, On::Group(name))?;
        if let Ok(group) = self.group(name) {
            return Ok(group);
        }
        self.make_group(caller, name, topic, "*").await
    }

    /// The own group of a consumer that wants its own copy of everything.
    async fn own_group(&self, parent: &Arc<Group>, consumer: &str) -> Result<Arc<Group>, Problem> {
        name::check(consumer).map_err(|e| Problem::invalid("consumer", consumer, e.to_string()))?;
        let name = name::broadcast_group(&parent.name, consumer);
        if let Ok(group) = self.group(&name) {
            return Ok(group);
        }
        let config = GroupConfig {
            start: Start::Latest,
            expire_after_ms: parent.config.expire_after_ms.or(Some(BROADCAST_STAYS_MS)),
            ..GroupConfig::default()
        };
        Ok(self.directory.put_group(&name, Some(parent.id), config, true).await?.0)
    }

    /// Gives messages to a consumer of a group. An empty list: nothing has come in
    /// time.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn receive(
        &self,
        caller: &Caller,
        group: &str,
        ask: &Receive,
    ) -> Result<Vec<Received>, Problem> {
        check_receive(ask)?;
        let mut group = self.group_to_receive(caller, group, ask.topic.as_deref()).await?;
        if ask.broadcast {
            group = self.own_group(&group, &ask.consumer).await?;
        }
        let _present = self.be_present(&group);
        let topic = match &ask.topic {
            Some(name) => Some(self.topic(name)?),
            None => None,
        };
        let config_lease = {
            let catalog = self.catalog();
            catalog.effective(&group).config.lease_ms
        };
        let waiter = |ticket, tx| Waiter {
            group: group.id,
            consumer: ask.consumer.as_str().into(),
            max: ask.max,
            max_bytes: ask.max_bytes,
            lease_ms: ask.lease_ms.unwrap_or(config_lease),
            topic: topic.as_ref().map(|topic| topic.id),
            auto_ack: ask.auto_ack,
            wait_ms: ask.wait.as_millis() as u64,
            came: Came::default(),
            ticket,
            tx,
        };
        let (shard, deliveries) = match self.shards.as_slice() {
            [only] => {
                let (tx, rx) = oneshot::channel();
                let mut answer = Answer { rx, mailbox: &only.mailbox };
                self.ask_shard(only.id, waiter(Ticket::default(), tx))?;
                (only.id, (&mut answer.rx).await.map_err(|_| Problem::stopping())??)
            }
            _ => self.ask_all(group.id, waiter).await?,
        };
        self.with_bodies(shard, deliveries).await
    }

    fn ask_shard(&self, shard: ShardId, waiter: Waiter) -> Result<(), Problem> {
        let mail = Mail::Receive(waiter);
        self.shard(shard)?.mailbox.send(mail.class(), mail).map_err(|_| Problem::stopping())
    }

    /// Asks every shard; the first that has something answers.
    async fn ask_all(
        &self,
        group: GroupId,
        waiter: impl Fn(Ticket, crate::shard::Tx<Vec<Delivery>>) -> Waiter,
    ) -> Result<(ShardId, Vec<Delivery>), Problem> {
        let directory = self.directory.clone();
        let ticket = Ticket::shared(move || {
            for shard in 0..directory.shards() as u16 {
                // A shard that takes none any more has answered, or will not.
                let _ = directory.send(ShardId(shard), Mail::LookAgain(group));
            }
        });
        let mut answers = FuturesUnordered::new();
        for shard in &self.shards {
            let (tx, rx) = oneshot::channel();
            self.ask_shard(shard.id, waiter(ticket.clone(), tx))?;
            let mut answer = Answer { rx, mailbox: &shard.mailbox };
            answers.push(async move { (shard.id, (&mut answer.rx).await) });
        }
        let mut nothing = (self.shards[0].id, Vec::new());
        while let Some((shard, answer)) = answers.next().await {
            match answer {
                Ok(Ok(deliveries)) if !deliveries.is_empty() => return Ok((shard, deliveries)),
                Ok(Ok(_)) => nothing.0 = shard,
                Ok(Err(problem)) => return Err(problem),
                // Another shard has the ticket.
                Err(_) => {}
            }
        }
        Ok(nothing)
    }

    /// Fetches the bodies of what was granted.
    async fn with_bodies(
        &self,
        shard: ShardId,
        deliveries: Vec<Delivery>,
    ) -> Result<Vec<Received>, Problem> {
        let of = self.shard(shard)?;
        let granted = Granted { deliveries, mailbox: &of.mailbox };
        let places =
            granted.deliveries.iter().map(|d| (d.partition, d.found.position, d.found.body));
        let bodies = self.contents(shard, places.collect()).await?;
        let deliveries = granted.take();
        let mut received = Vec::with_capacity(deliveries.len());
        let mut broken = None;
        for (delivery, body) in deliveries.into_iter().zip(bodies) {
            match body {
                Ok(content) => received.extend(self.received(shard, delivery, content)),
                Err(error) => {
                    // Never served; its lease runs out, and what is damaged is found
                    // in the log of the node and by `data verify`.
                    tracing::error!("a message cannot be delivered: {error}");
                    broken = Some(Problem::unreadable(error));
                }
            }
        }
        match broken {
            Some(problem) if received.is_empty() => Err(problem),
            _ => Ok(received),
        }
    }

    fn received(&self, shard: ShardId, delivery: Delivery, content: Bytes) -> Option<Received> {
        let topic = self.catalog().topic(delivery.topic).cloned()?;
        let position = delivery.found.position;
        let receipt = if delivery.visible_at.0 == 0 {
            String::new()
        } else {
            Receipt {
                shard,
                group: delivery.group,
                partition: delivery.partition,
                position,
                fence: delivery.fence,
                attempt: delivery.attempt,
            }
            .seal(&self.secret)
        };
        Some(Received {
            id: self.id_at(shard, delivery.partition, &delivery.found),
            receipt,
            attempt: delivery.attempt,
            fence: delivery.fence,
            partition: topic.index_of(delivery.partition)?,
            topic,
            position,
            published_at: delivery.found.at,
            content,
        })
    }

    /// What a consumer of a group says of messages, each by its receipt. Each has a
    /// result of its own.
    ///
    /// # Errors
    /// See [`Problem`]; with one, what is in other shards may be settled nevertheless: asked
    /// again, it is [`Outcome::Already`] or [`Outcome::Stale`].
    pub async fn settle(
        &self,
        caller: &Caller,
        group: &str,
        items: Vec<(String, Verdict)>,
    ) -> Result<Vec<Outcome>, Problem> {
        caller.check(Action::Consume, On::Group(group))?;
        if items.len() > bounds::RECEIPTS {
            let most = format!("at most {}", bounds::RECEIPTS);
            return Err(Problem::invalid("receipts", items.len(), most));
        }
        let group = self.group(group)?;
        let _present = self.be_present(&group);
        let lease_ms = self.catalog().effective(&group).config.lease_ms;
        let mut outcomes: Vec<Option<Outcome>> = vec![None; items.len()];
        let mut held: Vec<(usize, ShardId, Held, Verdict)> = Vec::with_capacity(items.len());
        for (at, (receipt, verdict)) in items.into_iter().enumerate() {
            check_verdict(&verdict)?;
            match self.open_receipt(&group, &receipt) {
                Ok((shard, of)) => held.push((at, shard, of, verdict)),
                Err(problem) => outcomes[at] = Some(Outcome::Invalid(problem)),
            }
        }
        for shard in &self.shards {
            for sort in [Sort::Ack, Sort::Nack, Sort::Extend] {
                let of: Vec<_> = held
                    .iter()
                    .filter(|(_, s, _, verdict)| *s == shard.id && Sort::of(verdict) == sort)
                    .collect();
                if !of.is_empty() {
                    self.settle_some(shard.id, lease_ms, &of, &mut outcomes).await?;
                }
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Takes messages back that were received for somebody who is gone, by their receipts.
    pub fn give_back<'a>(&self, receipts: impl Iterator<Item = &'a str>) {
        for receipt in receipts {
            let Ok(of) = Receipt::open(receipt, &self.secret) else { continue };
            let held = Held {
                group: of.group,
                partition: of.partition,
                position: of.position,
                fence: of.fence,
            };
            let Ok(shard) = self.shard(of.shard) else { continue };
            if let Some(mail) = Mail::take_back([held]) {
                // A closed box: their leases end on their own.
                let _ = shard.mailbox.send(mail.class(), mail);
            }
        }
    }

    pub(super) fn open_receipt(
        &self,
        group: &Group,
        receipt: &str,
    ) -> Result<(ShardId, Held), Problem> {
        let receipt = Receipt::open(receipt, &self.secret)?;
        let is_ours = receipt.group == group.id || {
            let of = self.catalog().group(receipt.group).cloned();
            let child = of.filter(|of| of.parent == Some(group.id));
            // Its consumer is there.
            child.map(|child| self.be_present(&child)).is_some()
        };
        if !is_ours {
            let detail = format!("the receipt is of another group than {:?}", &*group.name);
            return Err(Problem::new(Kind::Invalid, "other_group", detail));
        }
        let held = Held {
            group: receipt.group,
            partition: receipt.partition,
            position: receipt.position,
            fence: receipt.fence,
        };
        Ok((receipt.shard, held))
    }

    /// Settles items of one sort on one shard. Extends of different lengths go apart.
    async fn settle_some(
        &self,
        shard: ShardId,
        group_lease_ms: u64,
        items: &[&(usize, ShardId, Held, Verdict)],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Problem> {
        let mut rest = items;
        while let Some((first, _)) = rest.split_first() {
            let count = match &first.3 {
                Verdict::Extend { lease_ms } => rest
                    .iter()
                    .take_while(
                        |i| matches!(&i.3, Verdict::Extend { lease_ms: l } if l == lease_ms),
                    )
                    .count(),
                Verdict::Nack { .. } => reasons_that_fit(rest),
                Verdict::Ack => rest.len(),
            };
            let (some, others) = rest.split_at(count);
            let command = match &first.3 {
                Verdict::Ack => Command::Ack(some.iter().map(|item| item.2).collect()),
                Verdict::Extend { lease_ms } => Command::Extend {
                    held: some.iter().map(|item| item.2).collect(),
                    lease_ms: lease_ms.unwrap_or(group_lease_ms),
                },
                Verdict::Nack { .. } => {
                    Command::Nack(some.iter().filter_map(|i| nack(i)).collect())
                }
            };
            let reply = self.directory.command(shard, command).await?;
            let Reply::Settled(settled) = reply else {
                return Err(Problem::internal(format!("receipts were answered by {reply:?}")));
            };
            for (item, settled) in some.iter().zip(settled) {
                outcomes[item.0] = Some(outcome(settled));
            }
            rest = others;
        }
        Ok(())
    }
}

/// Waits for what a shard grants. Whoever asks may go away meanwhile: then what was
/// granted goes back, and nobody waits until its lease ends.
struct Answer<'a> {
    rx: oneshot::Receiver<Result<Vec<Delivery>, Problem>>,
    mailbox: &'a Mailbox<Mail>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        // From here on the shard sees that nobody is there.
        self.rx.close();
        if let Ok(Ok(deliveries)) = self.rx.try_recv() {
            drop(Granted { deliveries, mailbox: self.mailbox });
        }
    }
}

/// Messages on their way to whoever asked. They go back if it has gone away.
struct Granted<'a> {
    deliveries: Vec<Delivery>,
    mailbox: &'a Mailbox<Mail>,
}

impl Granted<'_> {
    fn take(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        if let Some(mail) = Mail::give_back(&self.deliveries) {
            // A closed box: their leases end on their own.
            let _ = self.mailbox.send(mail.class(), mail);
        }
    }
}

/// How many of the first items have reasons that may go together; one at least.
fn reasons_that_fit(items: &[&(usize, ShardId, Held, Verdict)]) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take_while(|item| {
        let fits = bytes < bounds::REASON_BYTES;
        if let Verdict::Nack { reason, .. } = &item.3 {
            bytes += reason.len();
        }
        fits
    });
    fits.count()
}

fn nack(item: &(usize, ShardId, Held, Verdict)) -> Option<GivenBack> {
    match &item.3 {
        Verdict::Nack { delay_ms, reason } => {
            Some(GivenBack { held: item.2, delay_ms: *delay_ms, reason: reason.clone() })
        }
        _ => None,
    }
}

fn outcome(settled: Settled) -> Outcome {
    match settled {
        Settled::Done { .. } => Outcome::Ok,
        Settled::Already => Outcome::Already,
        Settled::Regranted { attempt, fence, consumer } if consumer.is_empty() => Outcome::Stale(
            format!("attempt {attempt} (fence {fence}) has followed, and was given back"),
        ),
        Settled::Regranted { attempt, fence, consumer } => Outcome::Stale(format!(
            "attempt {attempt} (fence {fence}) has followed: consumer {consumer:?} has the message"
        )),
        Settled::GivenBack => Outcome::Stale("the message was given back, and waits".into()),
        Settled::NotHeld => Outcome::Stale(
            "the group has gone on elsewhere since (a seek), or has the topic no more".into(),
        ),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Ack,
    Nack,
    Extend,
}

impl Sort {
    fn of(verdict: &Verdict) -> Sort {
        match verdict {
            Verdict::Ack => Sort::Ack,
            Verdict::Nack { .. } => Sort::Nack,
            Verdict::Extend { .. } => Sort::Extend,
        }
    }
}

fn check_receive(ask: &Receive) -> Result<(), Problem> {
    let most = bounds::RECEIVE_MESSAGES;
    if !(1..=most).contains(&ask.max) {
        return Err(Problem::invalid("max", ask.max, format!("it must be from 1 to {most}")));
    }
    let most = bounds::RECEIVE_BYTES;
    if !(1..=most).contains(&ask.max_bytes) {
        let limit = format!("it must be from 1 to {most}");
        return Err(Problem::invalid("max_bytes", ask.max_bytes, limit));
    }
    if ask.wait > bounds::WAIT {
        let limit = format!("at most {} s", bounds::WAIT.as_secs());
        return Err(Problem::invalid("wait", format!("{:?}", ask.wait), limit));
    }
    if let Some(lease_ms) = ask.lease_ms {
        check_lease(lease_ms)?;
    }
    let most = bounds::CONSUMER_BYTES;
    if ask.consumer.len() > most {
        let limit = format!("at most {most} bytes");
        return Err(Problem::invalid("consumer", format!("{} bytes", ask.consumer.len()), limit));
    }
    Ok(())
}

fn check_lease(lease_ms: u64) -> Result<(), Problem> {
    use posthouse_core::catalog::config::bounds::{LEASE_MIN_MS, LEASE_MS};
    if (LEASE_MIN_MS..=LEASE_MS).contains(&lease_ms) {
        return Ok(());
    }
    let limit = format!("it must be from {LEASE_MIN_MS} ms to {LEASE_MS} ms");
    Err(Problem::invalid("lease", format!("{lease_ms} ms"), limit))
}

fn check_verdict(verdict: &Verdict) -> Result<(), Problem> {
    match verdict {
        Verdict::Ack => Ok(()),
        Verdict::Extend { lease_ms } => lease_ms.map_or(Ok(()), check_lease),
        Verdict::Nack { delay_ms, reason } => {
            let most = posthouse_core::catalog::config::bounds::BACKOFF_MS;
            if delay_ms.is_some_and(|delay| delay > most) {
                let limit = format!("at most {most} ms");
                return Err(Problem::invalid("delay", delay_ms.unwrap_or_default(), limit));
            }
            let most = posthouse_core::message::limits::REASON_BYTES;
            if reason.len() > most {
                let limit = format!("at most {most} bytes");
                return Err(Problem::invalid("reason", format!("{} bytes", reason.len()), limit));
            }
            Ok(())
        }
    }
}
