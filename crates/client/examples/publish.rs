//! Publishing: one message, several together, and many from many tasks.
//!
//! ```sh
//! cargo run -p posthouse-client --example publish -- http://127.0.0.1:7650
//! ```

use posthouse_client::{Client, Error, Message, Published, PublisherOptions};

/// Publishes in three ways. Each answer says that a message is durable, and where.
pub async fn run(client: &Client) -> Result<Vec<Published>, Error> {
    // One message, with all that it can have.
    let message = Message::new("three books")
        .key("customer-7")
        .tag("eu")
        .header("trace", "t-1")
        .ttl(std::time::Duration::from_secs(3600))
        .dedupe_id("order-1");
    let mut published = vec![client.publish("orders", message).await?];

    // Several, all of them or none: over topics, if the node has one shard.
    let together = [Message::new("a lamp"), Message::new("12.50 EUR").topic("payments")];
    published.extend(client.publish_all("orders", together).await?);

    // Many, from many tasks, over one stream: what waits is sent together.
    let publisher = client.publisher(PublisherOptions::default());
    let mut pending = Vec::new();
    for number in 0..1000 {
        let message = Message::new(format!("order {number}")).dedupe_id(format!("bulk-{number}"));
        pending.push(publisher.send("orders", message).await?);
    }
    for answer in pending {
        published.push(answer.await?);
    }
    Ok(published)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7650".into());
    let published = run(&Client::connect(address).await?).await?;
    if let Some(last) = published.last() {
        println!("{} messages are durable; the last is {}", published.len(), last.id);
    }
    Ok(())
}
