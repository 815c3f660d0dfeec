//! Dead letters: what a group could not do, why, and another chance.
//!
//! ```sh
//! cargo run -p posthouse-client --example dead_letters -- http://127.0.0.1:7650
//! ```

use std::time::Duration;

use posthouse_client::proto::{
    DeadLetter, GroupConfig, ListDeadLettersRequest, PutGroupRequest, RedriveDeadLettersRequest,
    Subscription, group_config::Subscriptions,
};
use posthouse_client::{Client, Delivery, Error, ReceiveOptions};

const GROUP: &str = "mailing";

/// Lets a message die, looks at its letter, and gives it another chance. Returns the
/// letter, and the delivery after it.
pub async fn run(client: &Client) -> Result<(Delivery, Delivery), Error> {
    // What has no method of the client is there as the interface has it.
    let subscription = Subscription { topic: "mails".into(), filter: "*".into() };
    let config = GroupConfig {
        subscriptions: Some(Subscriptions { subscriptions: vec![subscription] }),
        max_attempts: Some(1),
        dead_letter: DeadLetter::Topic.into(),
        ..GroupConfig::default()
    };
    let request = PutGroupRequest { name: GROUP.into(), config: Some(config) };
    client.raw().put_group(request).await?;

    client.publish("mails", "to: nobody@example.com").await?;
    let delivery = next(client).await?;
    client.nack(GROUP, [delivery.receipt], None, "550 no such user").await?;

    let letter = loop {
        let request = ListDeadLettersRequest { group: GROUP.into(), ..Default::default() };
        let page = client.raw().list_dead_letters(request).await?.into_inner();
        if let Some(letter) = page.letters.into_iter().next() {
            break Delivery::from(letter);
        }
    };
    if let Some(origin) = &letter.origin {
        let (topic, position) = (&origin.topic, origin.position);
        println!("{topic}/{position} died after {} attempts: {}", origin.attempts, origin.error);
    }

    let request = RedriveDeadLettersRequest {
        group: GROUP.into(),
        ids: vec![letter.id.clone()],
        ..Default::default()
    };
    client.raw().redrive_dead_letters(request).await?;
    let again = next(client).await?;
    client.ack(GROUP, [again.receipt.as_str()]).await?;
    Ok((letter, again))
}

async fn next(client: &Client) -> Result<Delivery, Error> {
    let options = ReceiveOptions { wait: Duration::from_secs(10), ..ReceiveOptions::default() };
    loop {
        if let Some(delivery) = client.receive(GROUP, &options).await?.into_iter().next() {
            return Ok(delivery);
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7650".into());
    let (letter, again) = run(&Client::connect(address).await?).await?;
    println!("{} came again, as attempt {}", letter.id, again.attempt);
    Ok(())
}
