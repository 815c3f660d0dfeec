//! The messages that are here: their leases are extended until they are settled.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use posthouse_client::Client;

/// Receipts that one request may have.
pub(super) const RECEIPTS: usize = 10_000;

/// A lease is extended when a third of it is over.
const PART: u32 = 3;

/// Receipts of messages that are here.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    receipts: Arc<Mutex<BTreeSet<String>>>,
}

impl Held {
    fn receipts(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages have come.
    pub(super) fn add(&self, receipts: impl IntoIterator<Item = String>) {
        self.receipts().extend(receipts);
    }

    /// Messages are settled.
    pub(super) fn remove(&self, receipts: &[String]) {
        let mut held = self.receipts();
        for receipt in receipts {
            held.remove(receipt);
        }
    }

    /// All that are here.
    pub(super) fn all(&self) -> Vec<String> {
        self.receipts().iter().cloned().collect()
    }

    /// Extends the leases of what is here, until the returned task is aborted.
    pub(super) fn keep(
        &self,
        client: Client,
        group: String,
        lease: Duration,
    ) -> tokio::task::JoinHandle<()> {
        let held = self.clone();
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(lease / PART);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            beat.tick().await;
            loop {
                beat.tick().await;
                for some in held.all().chunks(RECEIPTS) {
                    // One that fails is followed by others; if none gets through, the lease
                    // ends, and that is told when the message is settled.
                    let _ = client.extend(&group, some.to_vec(), Some(lease)).await;
                }
            }
        })
    }
}
