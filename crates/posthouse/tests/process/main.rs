//! The process, from outside: started, killed, stopped, damaged, filled, and pestered.
//!
//! Every test runs the real binary on a directory of its own; where a disk has to fail
//! in a way that no disk here can be made to, the broker runs on the simulated one. What
//! is waited for is waited for with a bound. Whatever is chosen at random follows from a
//! seed that is printed; `SEED=n` chooses it.

mod support;

mod access;
mod backup;
mod bounds;
mod crash;
mod damage;
mod disk;
mod fixtures;
mod hostile;
mod idle;
mod power;
mod recurring;
mod refusal;
mod stop;
mod strace;
mod transactions;
