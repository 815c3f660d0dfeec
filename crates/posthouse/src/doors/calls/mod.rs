//! The calls that every door offers, once: a request in the terms of the native
//! interface, checked and carried out by the broker, and its answer in the same terms.
//!
//! A door only has to read its own encoding into these requests and write the answers,
//! so an operation means the same, and fails the same, at every door.

pub mod consume;
pub mod convert;
mod manage;
pub mod publish;
mod recurring;
mod schedule;
mod transact;

use std::sync::Arc;

use crate::broker::{Broker, Caller};
use crate::problem::Problem;

/// The calls on a broker.
#[derive(Clone, Debug)]
pub struct Calls {
    /// The broker.
    pub broker: Arc<Broker>,
}

impl Calls {
    /// Who asks, by the value of an `Authorization` header.
    ///
    /// # Errors
    /// If users are defined and this is none of them.
    pub fn caller(&self, authorization: Option<&str>) -> Result<Caller, Problem> {
        let token = authorization.map(|text| match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_start(),
            _ => text,
        });
        self.broker.identify(token)
    }
}
