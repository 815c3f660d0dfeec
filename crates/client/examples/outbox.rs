//! An outbox: what a database has decided is published once, whatever breaks.
//!
//! The work and a row in a table `outbox` are written in one transaction. A relay reads
//! rows, publishes them with the row's number as `dedupe_id`, and marks them. If it dies
//! in between it does so again, and the node says `duplicate` instead of publishing
//! twice.
//!
//! ```sh
//! cargo run -p posthouse-client --example outbox -- http://127.0.0.1:7650
//! ```

use posthouse_client::{Client, Error, Message, PublisherOptions};

/// A row of the outbox; a vector stands for the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number, which is never used again.
    pub number: u64,
    /// What has to be published.
    pub body: String,
    /// Whether it is known to be published.
    pub is_sent: bool,
}

/// Publishes the rows that are not marked, and marks them. Returns how many were
/// published now, and how many had been before.
///
/// # Errors
/// What was not published stays as it is: call again.
pub async fn relay(client: &Client, outbox: &mut [Row]) -> Result<(usize, usize), Error> {
    let publisher = client.publisher(PublisherOptions::default());
    let mut pending = Vec::new();
    for row in outbox.iter_mut().filter(|row| !row.is_sent) {
        // One key: they are published, and consumed with `order: key`, in their order.
        let message = Message::new(row.body.clone())
            .key("outbox")
            .dedupe_id(format!("shop-outbox-{}", row.number));
        pending.push((publisher.send("orders", message).await?, row));
    }
    let (mut published, mut duplicates) = (0, 0);
    for (answer, row) in pending {
        match answer.await?.duplicate {
            false => published += 1,
            true => duplicates += 1,
        }
        row.is_sent = true;
    }
    Ok((published, duplicates))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7650".into());
    let client = Client::connect(address).await?;
    let rows = (1..=100).map(|number| Row { number, body: format!("{number}"), is_sent: false });
    let mut outbox: Vec<Row> = rows.collect();
    let before = outbox.clone();
    println!("published, duplicates: {:?}", relay(&client, &mut outbox).await?);
    // It has died before its marks were written: all of it once more.
    outbox = before;
    println!("published, duplicates: {:?}", relay(&client, &mut outbox).await?);
    Ok(())
}
