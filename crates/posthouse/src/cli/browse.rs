//! Looking at messages of a topic: by place, by key, by time.

use clap::Args;
use posthouse_client::{Client, proto};

use super::output::{Table, excerpt};
use super::{Failure, Output, args};
use crate::json;
use crate::units;

/// Messages that are fetched together.
const PAGE: u32 = 200;

/// Which messages to look at.
#[derive(Debug, Args)]
pub struct Browse {
    /// The topic
    topic: String,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// From this position of the partition on
    #[arg(long, value_name = "POSITION", requires = "partition")]
    from: Option<u64>,
    #[command(flatten)]
    by: By,
}

/// What to look for.
#[derive(Debug, Args)]
pub struct By {
    /// Only messages with this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only those published at this time or later: a time, or how long ago, like 15m
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    since: Option<u64>,
    /// Only those published up to this time
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    until: Option<u64>,
    /// So many at most
    #[arg(long, value_name = "N", default_value = "100",
        value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

impl By {
    /// Whether it looks for anything.
    pub(super) fn is_given(&self) -> bool {
        self.key.is_some() || self.since.is_some() || self.until.is_some()
    }
}

impl Browse {
    /// Over all partitions of a topic.
    pub(super) fn of(topic: String, by: By) -> Browse {
        Browse { topic, partition: None, from: None, by }
    }

    /// Looks, and prints what it sees.
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let partitions = match self.partition {
            Some(partition) => partition..partition + 1,
            None => {
                let request = proto::GetTopicRequest { name: self.topic.clone() };
                let topic = client.raw().get_topic(request).await?.into_inner();
                0..topic.partitions.len() as u32
            }
        };
        let mut table = Table::new(">PART >POSITION ID PUBLISHED KEY BODY");
        let mut left = self.by.limit;
        for partition in partitions {
            let mut from = self.from;
            loop {
                let request = proto::BrowseRequest {
                    topic: self.topic.clone(),
                    partition,
                    from,
                    since_ms: self.by.since,
                    until_ms: self.by.until,
                    key: self.by.key.clone(),
                    limit: left.min(PAGE.into()) as u32,
                };
                let page = client.raw().browse(request).await?.into_inner();
                left -= (page.messages.len() as u64).min(left);
                for message in page.messages {
                    if out.is_json() {
                        out.json(&json::Message::from(message))?;
                    } else {
                        table.row(row(&message));
                    }
                }
                from = page.next;
                if from.is_none() || left == 0 {
                    break;
                }
            }
            if left == 0 {
                break;
            }
        }
        if out.is_json() { Ok(()) } else { out.table(&table) }
    }
}

fn row(message: &proto::ReceivedMessage) -> [String; 6] {
    [
        message.partition.to_string(),
        message.position.to_string(),
        message.id.clone(),
        units::show_second(message.published_at_ms),
        message.key.clone().unwrap_or_default(),
        excerpt(&message.body),
    ]
}
