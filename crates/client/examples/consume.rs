//! Consuming with a handler: acknowledged when it is done, given back when it fails, and
//! with the lease extended as long as it takes.
//!
//! ```sh
//! cargo run -p posthouse-client --example consume -- http://127.0.0.1:7650
//! ```

use std::time::Duration;

use posthouse_client::{Client, ConsumeOptions, Delivery, Error, HandlerError};

/// Handles the orders of the group `billing` until `stop` is ready; what is being
/// handled then is finished first.
pub async fn run(client: &Client, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let options = ConsumeOptions {
        concurrency: 8,
        consumer: "example".into(),
        topic: Some("orders".into()), // makes the group, if it is not there
        ..ConsumeOptions::default()
    };
    client.consume_until("billing", options, stop, handle).await
}

async fn handle(order: Delivery) -> Result<(), HandlerError> {
    // An error gives the message back, with its text: it comes again as the group's
    // backoff says, and is a dead letter after the last attempt.
    let text = std::str::from_utf8(&order.body)?;
    if text.contains("tomorrow") {
        return Err(HandlerError::retry_after(Duration::from_secs(3600), "not before tomorrow"));
    }
    println!("{} (attempt {}): {text}", order.id, order.attempt);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7650".into());
    let client = Client::connect(address).await?;
    // Without a way to listen for Ctrl-C there is none to stop in peace.
    run(&client, async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await
}
