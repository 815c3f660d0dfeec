//! Being told to stop: Ctrl-C or SIGTERM, once to end well, twice to end at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Failure;

/// Knows how often it was told to stop.
#[derive(Clone, Debug)]
pub struct Stop {
    told: watch::Receiver<u32>,
}

impl Stop {
    /// From here on signals do not end the process, but count.
    ///
    /// # Errors
    /// What the system refused.
    pub fn listen() -> Result<Stop, Failure> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (tx, told) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = tx.closed() => return,
                }
                tx.send_modify(|told| *told += 1);
            }
        });
        Ok(Stop { told })
    }

    /// Whether it was told to stop.
    pub fn is_told(&self) -> bool {
        *self.told.borrow() > 0
    }

    /// Waits until it is told to stop.
    pub async fn told(&mut self) {
        self.times(1).await;
    }

    /// Waits until it is told to stop at once.
    pub async fn told_twice(&mut self) {
        self.times(2).await;
    }

    async fn times(&mut self, times: u32) {
        if self.told.wait_for(|told| *told >= times).await.is_err() {
            // Nobody can tell any more.
            std::future::pending::<()>().await;
        }
    }
}
