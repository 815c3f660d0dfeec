//! Posthouse as a library: everything the binary is made of.

pub mod bench;
pub mod broker;
pub mod cli;
pub mod config;
pub mod doors;
pub mod json;
pub mod problem;
pub mod shard;
pub mod store;
pub mod units;
