//! `posthouse group`: make, change, look at, move and delete groups.

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::output::{Facts, Table, confirm};
use super::remote::{Remote, if_there};
use super::{Failure, Output, args};
use crate::json::{
    self, DeadLetterName, Duration, GroupConfig, OrderName, StartName, Subscription,
};
use crate::problem::Kind;
use crate::units;

/// Make, change, look at, move and delete groups
#[derive(Debug, Args)]
pub struct Group {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a group
    Create {
        /// Its name: letters, digits and . _ -
        name: String,
        /// If there is one of that name, leave it as it is
        #[arg(long)]
        if_missing: bool,
        #[command(flatten)]
        config: Box<Config>,
    },
    /// Change a group: what is not given stays as it is
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        config: Box<Config>,
    },
    /// List groups
    #[command(visible_alias = "ls")]
    List {
        /// Only those whose names begin so
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a group: how far it is, and who consumes
    Show {
        /// Its name
        name: String,
    },
    /// Delete a group
    Delete {
        /// Its name
        name: String,
        /// Also if it has dead letters, which go with it
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Let a group go on elsewhere; what it has in flight is forgotten
    Seek(Seek),
    /// Let a group get nothing for now
    Pause {
        /// Its name
        name: String,
    },
    /// Let a group go on
    Resume {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
struct Seek {
    /// Its name
    name: String,
    /// Where to: earliest, latest (the end), a time, or how long ago, like 15m
    #[arg(long, value_name = "WHERE", value_parser = args::start,
        required_unless_present = "position", conflicts_with = "position")]
    to: Option<StartName>,
    /// Only on this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Where to, as a position of one partition
    #[arg(long, value_name = "POSITION", requires = "topic")]
    position: Option<u64>,
    /// The partition of --position
    #[arg(long, value_name = "N", requires = "position")]
    partition: Option<u32>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Default, PartialEq, Args)]
struct Config {
    /// A topic that it gets, or a pattern like orders.*, and of it those messages that pass
    /// the filter: on tags, like orders.*:paid && !test, or on headers, like
    /// orders.*:sql: price > 10. Can be repeated; the list replaces the one before
    #[arg(long = "subscribe", visible_alias = "topic", value_name = "TOPIC[:FILTER]",
        value_parser = subscription)]
    subscriptions: Vec<Subscription>,
    /// A subscription beside those that it has
    #[arg(long = "add", value_name = "TOPIC[:FILTER]", value_parser = subscription,
        conflicts_with = "subscriptions")]
    add: Vec<Subscription>,
    /// A topic or a pattern that it gets no more
    #[arg(long = "remove", value_name = "TOPIC", conflicts_with = "subscriptions")]
    remove: Vec<String>,
    /// Where it begins on a topic: earliest, latest, a time, or how long ago
    #[arg(long, value_name = "WHERE", value_parser = args::start)]
    start: Option<StartName>,
    /// How long a consumer has a message before it comes again; 30s by default
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    lease: Option<u64>,
    /// How often a message is given out at most; 16 by default
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// How long a message that was given back waits, attempt by attempt, like 1s,10s,1m
    #[arg(long, value_name = "DURATION,...", value_delimiter = ',',
        value_parser = units::duration_ms)]
    backoff: Vec<u64>,
    /// What follows the last attempt: topic, the dead letters of the group, or drop
    #[arg(long, value_name = "WHAT", value_parser = dead_letter)]
    dead_letter: Option<DeadLetterName>,
    /// In which order: none, or key, one message of a key at a time
    #[arg(long, value_name = "ORDER", value_parser = order)]
    order: Option<OrderName>,
    /// The most messages in flight; 0 for no limit
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// How far acknowledged messages may run ahead of the oldest open one, by partition
    #[arg(long, value_name = "N")]
    window: Option<u32>,
    /// It gets nothing for now
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    paused: Option<bool>,
    /// It goes when nobody has asked for it for so long; 0s for never
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    expire_after: Option<u64>,
}

fn subscription(text: &str) -> Result<Subscription, String> {
    let (topic, filter) = text.split_once(':').unwrap_or((text, ""));
    if topic.is_empty() {
        return Err("a topic, and perhaps :FILTER, is expected".into());
    }
    Ok(Subscription { topic: topic.into(), filter: filter.trim().into() })
}

fn dead_letter(text: &str) -> Result<DeadLetterName, String> {
    match text {
        "topic" => Ok(DeadLetterName::Topic),
        "drop" => Ok(DeadLetterName::Drop),
        _ => Err("topic or drop is expected".into()),
    }
}

fn order(text: &str) -> Result<OrderName, String> {
    match text {
        "none" => Ok(OrderName::None),
        "key" => Ok(OrderName::Key),
        _ => Err("none or key is expected".into()),
    }
}

impl Config {
    /// The configuration, on top of the subscriptions that there are.
    fn into_json(self, before: Vec<Subscription>) -> Result<GroupConfig, Failure> {
        let mut subscriptions = None;
        if !self.subscriptions.is_empty() {
            subscriptions = Some(self.subscriptions);
        } else if !self.add.is_empty() || !self.remove.is_empty() {
            let mut list = before;
            for topic in &self.remove {
                let count = list.len();
                list.retain(|subscription| subscription.topic != *topic);
                if list.len() == count {
                    let text = format!("the group has no subscription for {topic:?}");
                    return Err(Failure::new(Kind::NotFound, text));
                }
            }
            list.extend(self.add);
            subscriptions = Some(list);
        }
        Ok(GroupConfig {
            subscriptions,
            start: self.start,
            lease: self.lease.map(Duration),
            max_attempts: self.max_attempts,
            backoff: (!self.backoff.is_empty())
                .then(|| self.backoff.into_iter().map(Duration).collect()),
            dead_letter: self.dead_letter,
            order: self.order,
            max_in_flight: self.max_in_flight,
            window: self.window,
            paused: self.paused,
            expire_after: self.expire_after.map(Duration),
        })
    }
}

impl Group {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::Create { name, if_missing, config } => {
                create(&client, name, if_missing, *config, out).await
            }
            Command::Set { name, config } => set(&client, name, *config, out).await,
            Command::List { prefix } => list(&client, prefix, out).await,
            Command::Show { name } => out.show(&get(&client, &name).await?, show),
            Command::Delete { name, force, yes } => delete(&client, name, force, yes, out).await,
            Command::Seek(seek) => seek.run(&client, out).await,
            Command::Pause { name } => {
                let request = proto::PauseGroupRequest { name };
                let group = client.raw().pause_group(request).await?.into_inner();
                out.show(&json::Group::from(group), |out, group| {
                    out.line(format_args!("paused group {}", group.name))
                })
            }
            Command::Resume { name } => {
                let request = proto::ResumeGroupRequest { name };
                let group = client.raw().resume_group(request).await?.into_inner();
                out.show(&json::Group::from(group), |out, group| {
                    out.line(format_args!("resumed group {}", group.name))
                })
            }
        })
    }
}

async fn get(client: &Client, name: &str) -> Result<json::Group, Failure> {
    let request = proto::GetGroupRequest { name: name.to_owned() };
    Ok(client.raw().get_group(request).await?.into_inner().into())
}

async fn put(
    client: &Client,
    name: String,
    config: GroupConfig,
    out: &mut Output,
) -> Result<(), Failure> {
    let request = proto::PutGroupRequest { name: name.clone(), config: Some(config.into()) };
    let put = client.raw().put_group(request).await?.into_inner();
    let what = if put.created { "created" } else { "changed" };
    out.show(&json::Group::from(put.group.unwrap_or_default()), |out, _| {
        out.line(format_args!("{what} group {name}"))
    })
}

async fn create(
    client: &Client,
    name: String,
    if_missing: bool,
    config: Config,
    out: &mut Output,
) -> Result<(), Failure> {
    let request = proto::GetGroupRequest { name: name.clone() };
    match if_there(client.raw().get_group(request).await)? {
        None if config.subscriptions.is_empty() && config.add.is_empty() => {
            Err(Failure::usage(format!(
                "a group without a topic gets nothing; say which with `posthouse group create \
                 {name} --subscribe TOPIC`"
            )))
        }
        None => put(client, name, config.into_json(Vec::new())?, out).await,
        Some(group) if if_missing => out.show(&json::Group::from(group), |out, group| {
            out.line(format_args!("group {} is there already, and stays as it is", group.name))
        }),
        Some(_) => Err(Failure::exists("group", &name)),
    }
}

async fn set(
    client: &Client,
    name: String,
    config: Config,
    out: &mut Output,
) -> Result<(), Failure> {
    if config == Config::default() {
        return Err(Failure::nothing_to_change("group"));
    }
    let before = get(client, &name).await?.config.subscriptions.unwrap_or_default();
    put(client, name, config.into_json(before)?, out).await
}

async fn delete(
    client: &Client,
    name: String,
    force: bool,
    yes: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let group = get(client, &name).await?;
    let letters = match group.dead_letters {
        0 => String::new(),
        letters => format!(" with its {}", units::counted(letters, "dead letter")),
    };
    confirm(&format!("Delete group {name:?}{letters}?"), yes)?;
    let request = proto::DeleteGroupRequest { name: name.clone(), force };
    client.raw().delete_group(request).await?;
    out.show(&serde_json::json!({ "deleted": name }), |out, _| {
        out.line(format_args!("deleted group {name}"))
    })
}

impl Seek {
    async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let Seek { name, to, topic, position, partition, yes } = self;
        confirm(
            &format!("Let group {name:?} go on elsewhere? What it has in flight is forgotten."),
            yes,
        )?;
        let request = json::Seek { to, topic, partition, position }.into_proto(name);
        let sought = client.raw().seek(request).await?.into_inner();
        out.show(&json::SoughtList::from(sought), |out, sought| {
            let mut table = Table::new("TOPIC >PARTITION >POSITION");
            for to in &sought.partitions {
                let (partition, position) = (to.partition.to_string(), to.position.to_string());
                table.row([to.topic.clone(), partition, position]);
            }
            out.table(&table)
        })
    }
}

/// All groups whose names begin with `prefix`, at most `most`; whether there are more.
pub(super) async fn all(
    client: &Client,
    prefix: &str,
    most: usize,
) -> Result<json::Groups, Failure> {
    let mut groups: Vec<json::Group> = Vec::new();
    loop {
        let request = proto::ListGroupsRequest {
            prefix: prefix.into(),
            after: groups.last().map_or_else(String::new, |group| group.name.clone()),
            limit: super::topic::PAGE,
        };
        let page = json::Groups::from(client.raw().list_groups(request).await?.into_inner());
        let is_over = !page.more || page.groups.is_empty();
        groups.extend(page.groups);
        if is_over || groups.len() >= most {
            let more = !is_over || groups.len() > most;
            groups.truncate(most);
            return Ok(json::Groups { groups, more });
        }
    }
}

async fn list(client: &Client, prefix: String, out: &mut Output) -> Result<(), Failure> {
    let groups = all(client, &prefix, usize::MAX).await?;
    out.show(&groups, |out, groups| {
        let mut table = Table::new("NAME >LAG >IN-FLIGHT >WAITING >DEAD STATE SUBSCRIPTIONS");
        for group in &groups.groups {
            table.row([
                group.name.clone(),
                units::show_count(group.lag),
                units::show_count(group.in_flight),
                units::show_count(group.waiting),
                units::show_count(group.dead_letters),
                state(group).into(),
                subscriptions(group),
            ]);
        }
        out.table(&table)
    })
}

pub(super) fn state(group: &json::Group) -> &'static str {
    let is_full = group.partitions.iter().any(|partition| partition.window_full);
    match (group.config.paused, is_full) {
        (Some(true), _) => "paused",
        (_, true) => "window full",
        _ => "active",
    }
}

fn subscriptions(group: &json::Group) -> String {
    let list = group.config.subscriptions.iter().flatten();
    let each = list.map(|subscription| match subscription.filter.as_str() {
        "" | "*" => subscription.topic.clone(),
        filter => format!("{}:{filter}", subscription.topic),
    });
    each.collect::<Vec<_>>().join(" ")
}

fn show(out: &mut Output, group: &json::Group) -> Result<(), Failure> {
    configuration(group).print(out)?;
    out.line("")?;
    let mut table =
        Table::new("TOPIC >PART >FLOOR >NEXT >END >LAG >IN-FLIGHT >WAITING >DROPPED OLDEST");
    for partition in &group.partitions {
        table.row([
            partition.topic.clone(),
            partition.partition.to_string(),
            partition.floor.to_string(),
            partition.next.to_string(),
            partition.end.to_string(),
            units::show_count(partition.lag),
            units::show_count(partition.in_flight),
            units::show_count(partition.waiting),
            units::show_count(partition.dropped),
            partition.oldest_at.map_or_else(String::new, |time| units::show_second(time.0)),
        ]);
    }
    out.table(&table)?;
    if group.consumers.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let mut table = Table::new("CONSUMER >HELD");
    for consumer in &group.consumers {
        table.row([consumer.name.clone(), units::show_count(consumer.held)]);
    }
    out.table(&table)
}

fn configuration(group: &json::Group) -> Facts {
    let config = &group.config;
    let mut facts = Facts::default();
    facts.add("name", &group.name);
    facts.add("created", units::show_second(group.created_at.0));
    facts.add("state", state(group));
    for subscription in config.subscriptions.iter().flatten() {
        let json::Subscription { topic, filter } = subscription;
        match filter.as_str() {
            "" | "*" => facts.add("subscribes to", topic),
            filter => facts.add("subscribes to", format!("{topic}, of it {filter}")),
        }
    }
    let start = config.start.as_ref().map(|start| match start {
        StartName::Earliest => "earliest".to_owned(),
        StartName::Latest => "latest".to_owned(),
        StartName::Time(time) => units::show_time(time.0),
    });
    facts.add_some("starts at", start);
    let duration = |duration: &Duration| units::show_duration(duration.0);
    facts.add_some("lease", config.lease.as_ref().map(duration));
    facts.add_some("attempts", config.max_attempts);
    let backoff = config.backoff.as_ref();
    let backoff = backoff.map(|steps| steps.iter().map(duration).collect::<Vec<_>>().join(", "));
    facts.add_some("backoff", backoff);
    facts.add_some(
        "after the last",
        config.dead_letter.map(|dead_letter| match dead_letter {
            DeadLetterName::Topic => "dead letters",
            DeadLetterName::Drop => "dropped",
        }),
    );
    facts.add_some(
        "order",
        config.order.map(|order| match order {
            OrderName::None => "none",
            OrderName::Key => "by key",
        }),
    );
    facts.add_some("most in flight", config.max_in_flight.filter(|most| *most > 0));
    facts.add_some("window", config.window.map(|window| units::show_count(window.into())));
    let expires = config.expire_after.as_ref().filter(|after| after.0 > 0);
    facts.add_some("goes when unused for", expires.map(duration));
    facts.add("lag", units::show_count(group.lag));
    facts.add("in flight", units::show_count(group.in_flight));
    facts.add("waiting", units::show_count(group.waiting));
    facts.add("dropped unread", units::show_count(group.dropped));
    facts.add("dead letters", units::show_count(group.dead_letters));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_a_topic_and_perhaps_a_filter() {
        let parsed = subscription("orders.*:paid && !test").unwrap();
        assert_eq!((parsed.topic.as_str(), parsed.filter.as_str()), ("orders.*", "paid && !test"));
        let parsed = subscription("orders").unwrap();
        assert_eq!((parsed.topic.as_str(), parsed.filter.as_str()), ("orders", ""));
        let parsed = subscription("orders:sql: price > 10").unwrap();
        assert_eq!((parsed.topic.as_str(), parsed.filter.as_str()), ("orders", "sql: price > 10"));
        assert!(subscription(":paid").is_err());
    }

    #[test]
    fn subscriptions_are_added_to_and_taken_from_those_that_there_are() {
        let before = vec![subscription("a").unwrap(), subscription("b").unwrap()];
        let config = Config {
            add: vec![subscription("c:x").unwrap()],
            remove: vec!["a".into()],
            ..Config::default()
        };
        let after = config.into_json(before.clone()).unwrap().subscriptions.unwrap();
        let topics: Vec<&str> = after.iter().map(|s| s.topic.as_str()).collect();
        assert_eq!(topics, ["b", "c"]);
        let config = Config { remove: vec!["nosuch".into()], ..Config::default() };
        assert_eq!(config.into_json(before).unwrap_err().code, 3);
    }
}
