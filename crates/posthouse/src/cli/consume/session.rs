//! A consumer of a group: asks for messages, and says what became of them.

use std::time::{Duration, Instant};

use posthouse_client::{Client, Error, Outcome, proto};
use tokio::task::JoinHandle;

use super::Consume;
use super::held::{Held, RECEIPTS};
use crate::cli::Failure;
use crate::cli::output::note;
use crate::cli::stop::Stop;

/// A receive waits so long at most, and is never broken off: what it brings after a signal
/// is given back.
const POLL: Duration = Duration::from_secs(1);

/// How long one that follows goes on trying when the node cannot be reached.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// Bytes of bodies of one receive.
const BYTES: u64 = 4 << 20;

/// What to say of messages.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Ack,
    Nack {
        /// `None`: as the group says.
        delay: Option<Duration>,
        reason: String,
    },
}

impl Verdict {
    /// They were not handled: they may come again at once.
    pub(super) fn give_back(reason: &str) -> Verdict {
        Verdict::Nack { delay: Some(Duration::ZERO), reason: reason.into() }
    }
}

/// What came of asking.
pub(super) enum Asked {
    Messages(Vec<proto::ReceivedMessage>),
    /// Nothing has come so far.
    Nothing,
    /// There is nothing more, or it was told to stop.
    End,
}

/// A consumer of a group.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) group: String,
    pub(super) held: Held,
    pub(super) stop: Stop,
    pub(super) follow: bool,
    /// Messages that may still come.
    pub(super) left: u64,
    ask: proto::ReceiveRequest,
    wait: Duration,
    /// When the last message came.
    quiet_since: Instant,
    failing: Failing,
    /// Who extends leases, which are so long.
    keeper: Option<(JoinHandle<()>, Duration)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some((keeper, _)) = self.keeper.take() {
            keeper.abort();
        }
    }
}

impl Session {
    pub(super) fn new(client: Client, options: &Consume, stop: Stop) -> Session {
        Session {
            client,
            group: options.group.clone(),
            held: Held::default(),
            stop,
            follow: options.follow,
            left: options.most(),
            ask: proto::ReceiveRequest {
                group: options.group.clone(),
                consumer: options.consumer_name(),
                max: None,
                max_bytes: Some(BYTES),
                wait_ms: None,
                lease_ms: options.lease,
                topic: options.topic.clone(),
                auto_ack: options.auto_ack,
                broadcast: options.broadcast,
            },
            wait: Duration::from_millis(options.wait),
            quiet_since: Instant::now(),
            failing: Failing::default(),
            keeper: None,
        }
    }

    /// Whether messages are acknowledged as they are given out.
    pub(super) fn auto_ack(&self) -> bool {
        self.ask.auto_ack
    }

    /// Asks for up to `most` messages, and waits a second at most. Those that come are held.
    /// Must not be dropped before it is done: what it may have brought would be ours, and
    /// nobody would know.
    ///
    /// # Errors
    /// If the node refuses, or cannot be reached for too long.
    pub(super) async fn ask(&mut self, most: u64) -> Result<Asked, Failure> {
        let most = most.min(self.left);
        if most == 0 || self.stop.is_told() {
            return Ok(Asked::End);
        }
        let wait = match self.follow {
            true => POLL,
            false => self.wait.saturating_sub(self.quiet_since.elapsed()).min(POLL),
        };
        let request = proto::ReceiveRequest {
            max: Some(most as u32),
            wait_ms: Some(wait.as_millis() as u64),
            ..self.ask.clone()
        };
        let messages = match self.client.raw().receive(request).await {
            Ok(received) => received.into_inner().messages,
            Err(status) => {
                self.failing.again(status.into(), self.follow, &mut self.stop).await?;
                return Ok(Asked::Nothing);
            }
        };
        self.failing = Failing::default();
        if messages.is_empty() {
            let is_over = !self.follow && self.quiet_since.elapsed() >= self.wait;
            return Ok(if is_over { Asked::End } else { Asked::Nothing });
        }
        self.quiet_since = Instant::now();
        self.left -= (messages.len() as u64).min(self.left);
        if !self.auto_ack() {
            self.held.add(messages.iter().map(|message| message.receipt.clone()));
            self.keep().await;
        }
        Ok(Asked::Messages(messages))
    }

    /// Starts to extend leases. The first receive may have made the group, so its lease is
    /// known only behind it.
    async fn keep(&mut self) {
        if self.keeper.is_some() {
            return;
        }
        let lease_ms = match self.ask.lease_ms {
            Some(lease_ms) => lease_ms,
            None => {
                let request = proto::GetGroupRequest { name: self.group.clone() };
                // If that fails the next messages bring another chance.
                let Ok(group) = self.client.raw().get_group(request).await else { return };
                let config = group.into_inner().config.unwrap_or_default();
                config.lease_ms.unwrap_or_default()
            }
        };
        let lease = Duration::from_millis(lease_ms.max(1));
        let keeper = self.held.keep(self.client.clone(), self.group.clone(), lease);
        self.keeper = Some((keeper, lease));
    }

    /// Who says what became of messages; several can at the same time.
    pub(super) fn settler(&self) -> Settler {
        Settler {
            client: self.client.clone(),
            group: self.group.clone(),
            held: self.held.clone(),
            follow: self.follow,
            patience: self.keeper.as_ref().map_or(Duration::ZERO, |(_, lease)| *lease),
        }
    }

    /// Gives everything back that is still held.
    pub(super) async fn give_all_back(&self, reason: &str) {
        let receipts = self.held.all();
        let verdict = Verdict::give_back(reason);
        if let Err(failure) = self.settler().settle(receipts, &verdict).await {
            note(
                failure
                    .at("messages could not be given back and come again when their lease ends")
                    .text,
            );
        }
    }
}

/// Says what became of messages.
#[derive(Clone, Debug)]
pub(super) struct Settler {
    client: Client,
    group: String,
    held: Held,
    /// Whether it goes on without an answer.
    follow: bool,
    /// As long as a lease may hold, it pays to go on trying.
    patience: Duration,
}

impl Settler {
    /// Settles messages, and goes on trying for as long as their leases may hold. Returns
    /// what happened to those that were not ours any more.
    ///
    /// # Errors
    /// If the node refuses, or, unless it follows, cannot be reached.
    pub(super) async fn settle(
        &self,
        receipts: Vec<String>,
        verdict: &Verdict,
    ) -> Result<Vec<String>, Failure> {
        let mut lost = Vec::new();
        for some in receipts.chunks(RECEIPTS) {
            let outcomes = self.settle_some(some, verdict).await;
            // Settled or not: there is nothing more that we could do for them.
            self.held.remove(some);
            let outcomes = match outcomes {
                // The lease is over: they come again, and this goes on.
                Err(error) if self.follow && may_pass(&error) => {
                    lost.push(error.to_string());
                    continue;
                }
                outcomes => outcomes?,
            };
            for outcome in outcomes {
                if let Outcome::Stale(what) | Outcome::Invalid(what) = outcome {
                    lost.push(what);
                }
            }
        }
        Ok(lost)
    }

    async fn settle_some(
        &self,
        receipts: &[String],
        verdict: &Verdict,
    ) -> Result<Vec<Outcome>, Error> {
        let (began, mut pause) = (Instant::now(), PAUSE);
        loop {
            let receipts = receipts.to_vec();
            let settled = match verdict {
                Verdict::Ack => self.client.ack(&self.group, receipts).await,
                Verdict::Nack { delay, reason } => {
                    self.client.nack(&self.group, receipts, *delay, reason).await
                }
            };
            match settled {
                // It can be said twice: then it has been done already.
                Err(error) if may_pass(&error) && began.elapsed() < self.patience => {
                    if pause == PAUSE {
                        note(format_args!("{error}; trying again"));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MOST);
                }
                settled => return settled,
            }
        }
    }
}

/// Whether the same may work later. What may have been done already can be said again:
/// nothing here does it twice.
fn may_pass(error: &Error) -> bool {
    error.is_retryable() || error.is_outcome_unknown()
}

/// How long it has not worked.
#[derive(Debug, Default)]
struct Failing {
    since: Option<Instant>,
    pause: Duration,
}

impl Failing {
    /// Waits before another try, if it is worth one.
    async fn again(&mut self, error: Error, follow: bool, stop: &mut Stop) -> Result<(), Failure> {
        let is_first = self.since.is_none();
        let since = *self.since.get_or_insert_with(Instant::now);
        if !follow || !may_pass(&error) || since.elapsed() > PATIENCE {
            return Err(error.into());
        }
        if is_first {
            note(format_args!("{error}; trying again"));
            self.pause = PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {}
            () = stop.told() => {}
        }
        self.pause = (self.pause * 2).min(PAUSE_MOST);
        Ok(())
    }
}
