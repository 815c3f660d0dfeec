//! Messages that come later, and those that recur.

mod cron;
mod plan;
mod race;
