//! The simulator: whole nodes, from one seed, in one thread.
//!
//! A seed is a [`plan::Plan`]: how many shards, which clients, which faults. A
//! [`world::World`] carries it out. In it the node is the real one, from the broker down
//! to the files: its loops, its logs and whoever writes its snapshots are driven step by
//! step, in an order that the seed draws; its disk loses power and fails; its clocks are
//! set and drift. Clients ([`clients`]) call the broker as a door does, and all that they
//! ask and hear is a [`history::History`]. When the run is over, checkers ([`check`]) look
//! for what must never be in one.
//!
//! ```text
//!  seed -> plan -> world: steps of the node, of its disk, of its clocks
//!                    |
//!                  clients -> history -> checkers -> nothing, or a violation
//! ```
//! The same seed gives the same history, byte for byte.

pub mod bodies;
pub mod check;
pub mod clients;
pub mod fenced;
pub mod history;
pub mod plan;
pub mod planted;
pub mod report;
pub mod run;
pub mod scene;
pub mod time;
pub mod world;
