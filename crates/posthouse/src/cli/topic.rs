//! `posthouse topic`: make, change, look at and delete topics.

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::args::{QuotaArgs, show_quota};
use super::browse::Browse;
use super::output::{Facts, Table, confirm};
use super::remote::{Remote, if_there};
use super::{Failure, Output};
use crate::json::{self, Duration, Retention, TopicConfig};
use crate::units;

/// Topics in a page of a list.
pub(super) const PAGE: u32 = 1000;

/// Make, change, look at and delete topics
#[derive(Debug, Args)]
pub struct Topic {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a topic
    Create {
        /// Its name: letters, digits and . _ -
        name: String,
        /// If there is one of that name, leave it as it is
        #[arg(long)]
        if_missing: bool,
        #[command(flatten)]
        config: Config,
    },
    /// Change a topic: what is not given stays as it is
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        config: Config,
    },
    /// List topics
    #[command(visible_alias = "ls")]
    List {
        /// Only those whose names begin so
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a topic and its partitions
    Show {
        /// Its name
        name: String,
    },
    /// Delete a topic with all its messages
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Let messages of a topic go, acknowledged or not; the topic stays
    Purge {
        /// Its name
        name: String,
        /// Only those of this partition
        #[arg(long, value_name = "N")]
        partition: Option<u32>,
        /// Only those before this position of the partition
        #[arg(long, value_name = "POSITION", requires = "partition")]
        before: Option<u64>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Look at messages, without effect on anyone
    Browse(Browse),
}

#[derive(Debug, Default, PartialEq, Args)]
struct Config {
    /// How many partitions; can be raised later, never lowered
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// Messages go when every group has acknowledged them and they are that old; the
    /// default, with 24h
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms,
        conflicts_with_all = ["max_age", "max_bytes", "max_count"])]
    min_age: Option<u64>,
    /// Messages go when they are that old, acknowledged or not
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    max_age: Option<u64>,
    /// Messages go when a partition has more bytes, acknowledged or not
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    max_bytes: Option<u64>,
    /// Messages go when a partition has more of them, acknowledged or not
    #[arg(long, value_name = "N")]
    max_count: Option<u64>,
    /// The largest body; 4MiB by default, 8MiB at most
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    max_message_bytes: Option<u64>,
    /// For how long a dedupe id is remembered; 10m by default
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    dedupe_window: Option<u64>,
    /// Whether messages can be scheduled; they can by default
    #[arg(long, value_name = "BOOL")]
    delays: Option<bool>,
    /// Whether messages whose time to live has passed become dead letters
    #[arg(long, value_name = "BOOL")]
    bury_expired: Option<bool>,
    /// How long after it was prepared a producer is asked about a transaction for the first
    /// time
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    check_after: Option<u64>,
    /// How often it is asked at most, before an operator has to decide
    #[arg(long, value_name = "N")]
    checks: Option<u32>,
    /// Which sort of messages it takes; any by default
    #[arg(long, value_name = "SORT")]
    accepts: Option<json::Accepts>,
    #[command(flatten)]
    quota: QuotaArgs,
}

impl Config {
    fn into_json(self) -> TopicConfig {
        let retention = Retention {
            min_age: self.min_age.map(Duration),
            max_age: self.max_age.map(Duration),
            max_bytes: self.max_bytes,
            max_count: self.max_count,
        };
        TopicConfig {
            partitions: self.partitions,
            retention: (retention != Retention::default()).then_some(retention),
            // What is too large for a number is too large for a message: the node says so.
            max_message_bytes: self
                .max_message_bytes
                .map(|size| u32::try_from(size).unwrap_or(u32::MAX)),
            dedupe_window: self.dedupe_window.map(Duration),
            delays: self.delays,
            bury_expired: self.bury_expired,
            check_after: self.check_after.map(Duration),
            checks: self.checks,
            publish_quota: self.quota.into_json(),
            accepts: self.accepts,
        }
    }
}

impl Topic {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::Create { name, if_missing, config } => {
                create(&client, name, if_missing, config, out).await
            }
            Command::Set { name, config } => set(&client, name, config, out).await,
            Command::List { prefix } => list(&client, prefix, out).await,
            Command::Show { name } => {
                let topic = get(&client, &name).await?;
                out.show(&json::Topic::from(topic), show)
            }
            Command::Delete { name, yes } => delete(&client, name, yes, out).await,
            Command::Purge { name, partition, before, yes } => {
                let what = match (partition, before) {
                    (None, _) => format!("all messages of topic {name:?}"),
                    (Some(partition), None) => {
                        format!("all messages of partition {partition} of topic {name:?}")
                    }
                    (Some(partition), Some(before)) => format!(
                        "the messages before position {before} in partition {partition} of topic \
                         {name:?}"
                    ),
                };
                confirm(&format!("Let {what} go, acknowledged or not?"), yes)?;
                let request = proto::PurgeTopicRequest { name, partition, before };
                let done = client.raw().purge_topic(request).await?.into_inner();
                out.show(&json::Purged { purged: done.purged }, |out, done| {
                    out.line(format_args!("purged {}", units::counted(done.purged, "message")))
                })
            }
            Command::Browse(browse) => browse.run(&client, out).await,
        })
    }
}

async fn get(client: &Client, name: &str) -> Result<proto::Topic, Failure> {
    let request = proto::GetTopicRequest { name: name.to_owned() };
    Ok(client.raw().get_topic(request).await?.into_inner())
}

async fn put(
    client: &Client,
    name: String,
    config: Config,
    out: &mut Output,
) -> Result<(), Failure> {
    let config = Some(config.into_json().into_proto()?);
    let request = proto::PutTopicRequest { name: name.clone(), config };
    let put = client.raw().put_topic(request).await?.into_inner();
    let what = if put.created { "created" } else { "changed" };
    out.show(&json::Topic::from(put.topic.unwrap_or_default()), |out, _| {
        out.line(format_args!("{what} topic {name}"))
    })
}

async fn create(
    client: &Client,
    name: String,
    if_missing: bool,
    config: Config,
    out: &mut Output,
) -> Result<(), Failure> {
    let request = proto::GetTopicRequest { name: name.clone() };
    match if_there(client.raw().get_topic(request).await)? {
        None => put(client, name, config, out).await,
        Some(topic) if if_missing => out.show(&json::Topic::from(topic), |out, topic| {
            out.line(format_args!("topic {} is there already, and stays as it is", topic.name))
        }),
        Some(_) => Err(Failure::exists("topic", &name)),
    }
}

async fn set(
    client: &Client,
    name: String,
    config: Config,
    out: &mut Output,
) -> Result<(), Failure> {
    if config == Config::default() {
        return Err(Failure::nothing_to_change("topic"));
    }
    get(client, &name).await?;
    put(client, name, config, out).await
}

async fn delete(client: &Client, name: String, yes: bool, out: &mut Output) -> Result<(), Failure> {
    let topic = get(client, &name).await?;
    let messages = units::counted(topic.messages, "message");
    confirm(&format!("Delete topic {name:?} with its {messages}?"), yes)?;
    client.raw().delete_topic(proto::DeleteTopicRequest { name: name.clone() }).await?;
    out.show(&serde_json::json!({ "deleted": name }), |out, _| {
        out.line(format_args!("deleted topic {name}"))
    })
}

/// All topics whose names begin with `prefix`, at most `most`; whether there are more.
pub(super) async fn all(
    client: &Client,
    prefix: &str,
    most: usize,
) -> Result<json::Topics, Failure> {
    let mut topics: Vec<json::Topic> = Vec::new();
    loop {
        let request = proto::ListTopicsRequest {
            prefix: prefix.into(),
            after: topics.last().map_or_else(String::new, |topic| topic.name.clone()),
            limit: PAGE,
        };
        let page = json::Topics::from(client.raw().list_topics(request).await?.into_inner());
        let is_over = !page.more || page.topics.is_empty();
        topics.extend(page.topics);
        if is_over || topics.len() >= most {
            let more = !is_over || topics.len() > most;
            topics.truncate(most);
            return Ok(json::Topics { topics, more });
        }
    }
}

async fn list(client: &Client, prefix: String, out: &mut Output) -> Result<(), Failure> {
    let topics = all(client, &prefix, usize::MAX).await?;
    out.show(&topics, |out, topics| {
        let mut table = Table::new("NAME >PARTITIONS >MESSAGES >BYTES RETENTION");
        for topic in &topics.topics {
            table.row([
                topic.name.clone(),
                topic.config.partitions.unwrap_or(1).to_string(),
                units::show_count(topic.messages),
                units::show_size(topic.bytes),
                retention(topic.config.retention.as_ref()),
            ]);
        }
        out.table(&table)
    })
}

/// What a retention means, in a few words.
fn retention(retention: Option<&Retention>) -> String {
    let Some(retention) = retention else { return String::new() };
    if let Some(age) = retention.min_age {
        return format!("acknowledged, {}", units::show_duration(age.0));
    }
    let limits = [
        retention.max_age.map(|age| units::show_duration(age.0)),
        retention.max_bytes.map(units::show_size),
        retention.max_count.map(|count| units::counted(count, "message")),
    ];
    format!("at most {}", limits.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn show(out: &mut Output, topic: &json::Topic) -> Result<(), Failure> {
    let mut facts = Facts::default();
    facts.add("name", &topic.name);
    facts.add("created", units::show_second(topic.created_at.0));
    facts.add("messages", units::show_count(topic.messages));
    facts.add("bytes", units::show_size(topic.bytes));
    facts.add("scheduled", units::show_count(topic.scheduled));
    facts.add("retention", retention(topic.config.retention.as_ref()));
    let largest = topic.config.max_message_bytes.map(|size| units::show_size(size.into()));
    facts.add_some("largest message", largest);
    let window = topic.config.dedupe_window.map(|window| units::show_duration(window.0));
    facts.add_some("dedupe window", window);
    facts.add_some("publish quota", topic.config.publish_quota.map(show_quota));
    let delays = |on| if on { "taken" } else { "refused" };
    facts.add_some("delays", topic.config.delays.map(delays));
    let expired = |bury| if bury { "dead letters" } else { "passed over" };
    facts.add_some("expired", topic.config.bury_expired.map(expired));
    let accepts = topic.config.accepts.map(|sort| format!("{sort:?} messages").to_lowercase());
    facts.add_some("accepts", accepts);
    facts.print(out)?;
    out.line("")?;
    let mut table = Table::new(">PARTITION >SHARD >HEAD >NEXT >MESSAGES >BYTES OLDEST");
    for partition in &topic.partition_list {
        table.row([
            partition.partition.to_string(),
            partition.shard.to_string(),
            partition.head.to_string(),
            partition.next.to_string(),
            units::show_count(partition.next - partition.head),
            units::show_size(partition.bytes),
            partition.oldest_at.map_or_else(String::new, |time| units::show_second(time.0)),
        ]);
    }
    out.table(&table)
}
