//! What clients are told to do.

use std::time::Duration;

use posthouse_core::catalog::{Group, GroupConfig, Order};
use posthouse_core::message::limits;

use super::message::duration;
use super::pb::settings::PubSub;
use super::pb::telemetry_command::Command;
use super::pb::{self, Language, retry_policy::Strategy};

/// How long a consumer's poll waits for a message, unless it says so itself.
pub const LONG_POLLING: Duration = Duration::from_secs(20);

/// Messages that a push consumer asks for at once.
const BATCH: i32 = 32;

/// How often a producer tries, unless it has a number of its own.
const SEND_ATTEMPTS: i32 = 3;

/// The answer to what a client says of itself: the same, with what the node decides.
/// `body_bytes` is the largest body that its topics take, 0 for the usual.
pub fn answer(mut said: pb::Settings, group: Option<&Group>, body_bytes: usize) -> pb::Settings {
    // Some say another one in the metadata of their calls.
    let language = said.user_agent.as_ref().map_or(Language::Unspecified, pb::Ua::language);
    let default = GroupConfig::default();
    let group = group.map_or(&default, |group| &group.config);
    match &mut said.pub_sub {
        Some(PubSub::Subscription(subscription)) => {
            subscription.fifo = Some(group.order == Order::Key);
            subscription.receive_batch_size = Some(BATCH);
            let polling = subscription.long_polling_timeout.as_ref();
            let asked = polling.is_some_and(|polling| super::message::duration_ms(polling) > 0);
            if !asked {
                let ms = LONG_POLLING.as_millis() as u64;
                subscription.long_polling_timeout = Some(duration(ms));
            }
            said.backoff_policy = Some(retry(group, language));
        }
        Some(PubSub::Publishing(publishing)) => {
            let usual = limits::DEFAULT_BODY_BYTES;
            publishing.max_body_size = if body_bytes == 0 { usual } else { body_bytes } as i32;
            publishing.validate_message_type = true;
            said.backoff_policy = Some(pb::RetryPolicy {
                max_attempts: SEND_ATTEMPTS,
                strategy: Some(exponential(10, 1000)),
            });
        }
        None => {}
    }
    said.metric = Some(pb::Metric { on: false, endpoints: None });
    said
}

/// Settings as a command.
pub fn command(settings: pb::Settings) -> pb::TelemetryCommand {
    pb::TelemetryCommand {
        status: Some(super::fault::ok()),
        command: Some(Command::Settings(settings)),
    }
}

fn exponential(initial_ms: u64, max_ms: u64) -> Strategy {
    Strategy::ExponentialBackoff(pb::ExponentialBackoff {
        initial: Some(duration(initial_ms)),
        max: Some(duration(max_ms)),
        multiplier: 2.0,
    })
}

/// How a group wants its messages tried again.
fn retry(group: &GroupConfig, language: Language) -> pb::RetryPolicy {
    let steps = &group.backoff_ms;
    let (first, last) = (steps.first(), steps.last());
    let strategy = match (language, first, last) {
        // It does not know the other sort, and would give up after the first attempt.
        (Language::NodeJs, Some(first), Some(last)) => exponential((*first).max(1), (*last).max(1)),
        _ => Strategy::CustomizedBackoff(pb::CustomizedBackoff {
            next: steps.iter().map(|ms| duration(*ms)).collect(),
        }),
    };
    pb::RetryPolicy { max_attempts: group.max_attempts.into(), strategy: Some(strategy) }
}
