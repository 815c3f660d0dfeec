//! What the tests of the process share.

pub mod files;
pub mod journal;
pub mod load;
pub mod node;
pub mod rng;
pub mod web;

use std::time::Duration;

/// Waits for something to be done.
///
/// # Panics
/// If it is not done in `secs`.
pub async fn within<T>(what: &str, secs: u64, done: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(secs), done).await {
        Ok(done) => done,
        Err(_) => panic!("not over in {secs} s: {what}"),
    }
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// If there is none in `secs`.
pub async fn until<T, F>(what: &str, secs: u64, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let mut beat = tokio::time::interval(Duration::from_millis(10));
    within(what, secs, async {
        loop {
            beat.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    })
    .await
}

/// Of so many places that a long test goes over it takes one: all, unless STEP says so.
pub fn step() -> usize {
    std::env::var("STEP").map_or(1, |step| step.parse().expect("STEP is a number"))
}
