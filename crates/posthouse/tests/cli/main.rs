//! The command line as people and scripts use it: the real binary, nodes in processes of
//! their own, and what commands print and end with.

mod consume;
mod data;
mod exec;
mod groups;
mod harness;
mod local;
mod publish;
mod repair;
mod topics;
mod transactions;
mod users;
