//! Two consumers of one group: each message goes to one of them.
//!
//! ```sh
//! cargo run -p posthouse-client --example competing -- http://127.0.0.1:7650
//! ```

use std::time::Duration;

use posthouse_client::{Client, Error, Outcome, ReceiveOptions};

/// Receives what there is as two workers of the group `packing`, and acknowledges it.
/// Returns how many messages each has had.
pub async fn run(client: &Client) -> Result<[usize; 2], Error> {
    let (one, two) = tokio::join!(work(client, "worker-1"), work(client, "worker-2"));
    Ok([one?, two?])
}

async fn work(client: &Client, name: &str) -> Result<usize, Error> {
    let options = ReceiveOptions {
        max: 10,
        wait: Duration::from_secs(1),
        topic: Some("orders".into()),
        consumer: name.into(),
        ..ReceiveOptions::default()
    };
    let mut done = 0;
    loop {
        let deliveries = client.receive("packing", &options).await?;
        if deliveries.is_empty() {
            return Ok(done);
        }
        let receipts = deliveries.iter().map(|delivery| delivery.receipt.as_str());
        for (outcome, delivery) in client.ack("packing", receipts).await?.iter().zip(&deliveries) {
            match outcome {
                Outcome::Ok | Outcome::Already => done += 1,
                // The lease ended, and somebody else has it.
                other => println!("{}: {other:?}", delivery.id),
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7650".into());
    let [one, two] = run(&Client::connect(address).await?).await?;
    println!("worker-1 had {one} messages, worker-2 {two}");
    Ok(())
}
