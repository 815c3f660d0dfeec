//! Settings: where they come from, and what they are.
//!
//! Flags, then the environment, then a TOML file, then defaults. Every setting has one
//! name: `--max-topics`, `POSTHOUSE_MAX_TOPICS`, `max_topics`. `posthouse config` shows
//! what is in force, and where each value came from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use posthouse_log::local::Durability;

use crate::broker::{BrokerOptions, CatalogLimits};
use crate::doors::listen::{CONNECTIONS, ListenOptions};
use crate::doors::rocketmq::Advertise;
use crate::units;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file.
    pub name: &'static str,
    /// What its value looks like.
    pub value: &'static str,
    /// Its default; empty for none.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// All settings of a node.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "data",
        value: "DIR",
        default: "./posthouse-data",
        help: "Where messages are kept",
    },
    Setting {
        name: "listen",
        value: "ADDR",
        default: "127.0.0.1:7650",
        help: "The address for HTTP and gRPC",
    },
    Setting {
        name: "rocketmq_listen",
        value: "ADDR",
        default: "",
        help: "Another address, for RocketMQ clients alone; they are served on `listen` too",
    },
    Setting {
        name: "advertise",
        value: "HOST:PORT",
        default: "",
        help: "Where RocketMQ clients are told to find the node; at the address that they ask for",
    },
    Setting {
        name: "insecure",
        value: "BOOL",
        default: "false",
        help: "Listen on a public address although anyone could use it",
    },
    Setting {
        name: "tls_cert",
        value: "FILE",
        default: "",
        help: "Certificate chain in PEM; turns TLS on",
    },
    Setting { name: "tls_key", value: "FILE", default: "", help: "Its private key in PEM" },
    Setting {
        name: "durability",
        value: "WHEN",
        default: "sync",
        help: "When a message counts as durable: sync (after fdatasync), interval:DURATION or \
               os (after a write)",
    },
    Setting {
        name: "shards",
        value: "N",
        default: "",
        help: "Shards of a new store; 1 up to 4 cores, 2 up to 8, 4 above",
    },
    Setting {
        name: "memory",
        value: "SIZE",
        default: "512MiB",
        help: "Memory for all caches and buffers together",
    },
    Setting {
        name: "segment_size",
        value: "SIZE",
        default: "64MiB",
        help: "Size of the files of a log; for those made from now on",
    },
    Setting {
        name: "auto_create",
        value: "BOOL",
        default: "",
        help: "Make topics and groups on first use; on until a user who may manage the node has a token",
    },
    Setting {
        name: "disk_reserve",
        value: "SIZE",
        default: "",
        help: "Refuse publishes when less of the disk is free; 5 % of it, and at least 2GiB",
    },
    Setting { name: "max_topics", value: "N", default: "1000000", help: "The most topics" },
    Setting { name: "max_groups", value: "N", default: "200000", help: "The most groups" },
    Setting {
        name: "max_scheduled",
        value: "N",
        default: "200000000",
        help: "The most messages that are scheduled and not due yet",
    },
    Setting {
        name: "max_transactions",
        value: "N",
        default: "100000",
        help: "The most transactions that wait for a decision",
    },
    Setting {
        name: "max_prepared_bytes",
        value: "SIZE",
        default: "4GiB",
        help: "The most bytes of messages in transactions that wait for a decision",
    },
    Setting {
        name: "max_connections",
        value: "N",
        default: "10000",
        help: "The most connections at once",
    },
    Setting {
        name: "stop_timeout",
        value: "DURATION",
        default: "30s",
        help: "How long stopping may take",
    },
    Setting {
        name: "log",
        value: "FILTER",
        default: "info",
        help: "What is logged: error, warn, info, debug, or a filter by module",
    },
    Setting {
        name: "log_format",
        value: "FORMAT",
        default: "text",
        help: "How it is logged: text or json",
    },
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command line.
    Flag,
    /// A variable of the environment.
    Environment,
    /// The configuration file.
    File(PathBuf),
    /// Nobody has said anything.
    Default,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Environment => f.write_str("environment"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("the configuration file {}: {what}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A value.
    #[error("{name} = {value:?} ({origin}): {what}")]
    Value {
        /// The setting.
        name: String,
        /// The value.
        value: String,
        /// Where it came from.
        origin: String,
        /// What it may be.
        what: String,
    },
}

/// Every setting as text, with where it came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    values: BTreeMap<&'static str, (String, Source)>,
}

/// The flag of a setting: dashes for underscores.
pub fn flag(name: &str) -> String {
    name.replace('_', "-")
}

/// The environment's variable of a setting.
pub fn variable(name: &str) -> String {
    format!("POSTHOUSE_{}", name.to_uppercase())
}

impl Resolved {
    /// Puts the sources together: `flags` and `environment` answer by name; `file` is
    /// the configuration file, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read, or has a setting that there is not.
    pub fn new(
        flags: impl Fn(&str) -> Option<String>,
        environment: impl Fn(&str) -> Option<String>,
        file: Option<&Path>,
    ) -> Result<Resolved, ConfigError> {
        let from_file = match file {
            Some(path) => read(path)?,
            None => BTreeMap::new(),
        };
        let mut values = BTreeMap::new();
        for setting in SETTINGS {
            let name = setting.name;
            let value = if let Some(value) = flags(name) {
                (value, Source::Flag)
            } else if let Some(value) = environment(&variable(name)) {
                (value, Source::Environment)
            } else if let (Some(value), Some(path)) = (from_file.get(name), file) {
                (value.clone(), Source::File(path.to_owned()))
            } else {
                (setting.default.to_owned(), Source::Default)
            };
            values.insert(name, value);
        }
        Ok(Resolved { values })
    }

    /// All settings in the order of [`SETTINGS`]: name, value, where it came from.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, &str, &Source)> {
        SETTINGS.iter().map(|setting| {
            let (value, source) = &self.values[setting.name];
            (setting, value.as_str(), source)
        })
    }

    fn text(&self, name: &str) -> &str {
        &self.values[name].0
    }

    fn parse<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let (value, source) = &self.values[name];
        parse(value).map_err(|what| ConfigError::Value {
            name: name.into(),
            value: value.clone(),
            origin: source.to_string(),
            what,
        })
    }

    fn optional<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.parse(name, |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })
    }

    /// The settings as they are used.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let number = |text: &str| text.parse().map_err(|_| "a number is expected".to_owned());
        let whole = |text: &str| text.parse().map_err(|_| "a number is expected".to_owned());
        let mut broker = BrokerOptions::new(PathBuf::from(self.text("data")));
        broker.durability = self.parse("durability", durability)?;
        broker.shards = self.optional("shards", |text| match text.parse() {
            Ok(shards @ 1..=64) => Ok(shards),
            _ => Err("it must be from 1 to 64".into()),
        })?;
        broker.memory = self.parse("memory", |text| match units::size(text)? {
            small if small < 64 << 20 => Err("at least 64MiB are needed".into()),
            size => Ok(size),
        })?;
        broker.segment_bytes = self.parse("segment_size", |text| match units::size(text)? {
            size if !(20 << 20..=2 << 30).contains(&size) || !size.is_multiple_of(65536) => {
                Err("it must be from 20MiB to 2GiB, and a multiple of 64KiB".into())
            }
            size => Ok(size),
        })?;
        broker.auto_create = self.optional("auto_create", boolean)?;
        broker.disk_reserve = self.optional("disk_reserve", units::size)?;
        broker.limits = CatalogLimits {
            topics: self.parse("max_topics", number)?,
            groups: self.parse("max_groups", number)?,
            scheduled: self.parse("max_scheduled", whole)?,
            transactions: self.parse("max_transactions", whole)?,
            prepared_bytes: self.parse("max_prepared_bytes", units::size)?,
        };
        let certificate = self.optional("tls_cert", |text| Ok(PathBuf::from(text)))?;
        let key = self.optional("tls_key", |text| Ok(PathBuf::from(text)))?;
        let tls = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return self.parse("tls_key", |_| Err("a certificate needs its key".into()));
            }
            (None, Some(_)) => {
                return self.parse("tls_cert", |_| Err("a key needs its certificate".into()));
            }
        };
        Ok(Settings {
            listen: self.parse("listen", |text| {
                text.parse().map_err(|_| "an address like 127.0.0.1:7650 is expected".into())
            })?,
            rocketmq_listen: self.optional("rocketmq_listen", |text| {
                text.parse().map_err(|_| "an address like 127.0.0.1:8081 is expected".into())
            })?,
            advertise: self.optional("advertise", |text| {
                text.parse()
                    .map_err(|_| "a host and a port like queue.example:8081 are expected".into())
            })?,
            insecure: self.parse("insecure", boolean)?,
            doors: ListenOptions {
                connections: self.parse("max_connections", number)?,
                tls,
                own_certificate: Some(broker.data.clone()),
                ..ListenOptions::default()
            },
            stop_timeout: self.parse("stop_timeout", |text| {
                units::duration_ms(text).map(Duration::from_millis)
            })?,
            log: self.text("log").to_owned(),
            log_json: self.parse("log_format", |text| match text {
                "text" => Ok(false),
                "json" => Ok(true),
                _ => Err("it must be text or json".into()),
            })?,
            broker,
        })
    }
}

const _: () = assert!(CONNECTIONS == 10_000, "the default in the table says so");

/// Settings of a node, ready to be used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The broker's.
    pub broker: BrokerOptions,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it listens for RocketMQ clients alone.
    pub rocketmq_listen: Option<SocketAddr>,
    /// Where RocketMQ clients are told to find it.
    pub advertise: Option<Advertise>,
    /// Whether it may listen on a public address without users.
    pub insecure: bool,
    /// The port's.
    pub doors: ListenOptions,
    /// How long stopping may take.
    pub stop_timeout: Duration,
    /// What is logged.
    pub log: String,
    /// Whether it is logged as JSON.
    pub log_json: bool,
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err("it must be true or false".into()),
    }
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "sync" => Ok(Durability::Sync),
        "os" => Ok(Durability::Os),
        other => match other.strip_prefix("interval:").map(units::duration_ms) {
            Some(Ok(ms @ 1..=60_000)) => Ok(Durability::Interval(Duration::from_millis(ms))),
            Some(Ok(_)) => Err("an interval is from 1ms to 60s".into()),
            Some(Err(what)) => Err(what),
            None => Err("it must be sync, os or interval:DURATION".into()),
        },
    }
}

/// Reads the settings of a file. All values become text.
fn read(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let wrong = |what: String| ConfigError::File { file: path.to_owned(), what };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
    let mut values = BTreeMap::new();
    for (name, value) in table {
        if !SETTINGS.iter().any(|setting| setting.name == name) {
            return Err(wrong(format!(
                "there is no setting {name:?}; `posthouse config` lists all"
            )));
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(on) => on.to_string(),
            other => {
                let kind = other.type_str();
                return Err(wrong(format!(
                    "{name} is a {kind}; a text, number or boolean is expected"
                )));
            }
        };
        values.insert(name, text);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn defaults_can_be_used_as_they_are() {
        let settings = Resolved::new(none, none, None).unwrap().settings().unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:7650");
        assert_eq!(settings.broker.durability, Durability::Sync);
        assert_eq!(settings.broker.memory, 512 << 20);
        assert_eq!(settings.broker.auto_create, None);
        assert_eq!(settings.rocketmq_listen, None);
    }

    #[test]
    fn where_clients_are_told_to_go_is_a_host_and_a_port() {
        let advertise = |text: &str| {
            let flags = |name: &str| (name == "advertise").then(|| text.to_owned());
            let settings = Resolved::new(flags, none, None).unwrap().settings();
            settings.map(|settings| settings.advertise.unwrap().to_string())
        };
        for good in ["queue.example:8081", "10.0.0.1:8081", "[::1]:8081"] {
            assert_eq!(advertise(good).unwrap(), good);
        }
        for bad in
            ["queue.example", ":8081", "queue.example:", "queue.example:0", "::1:8081", "a b:1"]
        {
            assert!(advertise(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_flag_goes_before_the_environment_and_that_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("posthouse.toml");
        std::fs::write(&file, "data = \"from-file\"\nmax_topics = 7\nauto_create = false\n")
            .unwrap();
        let flags = |name: &str| (name == "data").then(|| "from-flag".to_owned());
        let environment = |name: &str| {
            ["POSTHOUSE_DATA", "POSTHOUSE_MAX_TOPICS"].contains(&name).then(|| "8".to_owned())
        };
        let resolved = Resolved::new(flags, environment, Some(&file)).unwrap();
        let source = |name: &str| resolved.iter().find(|(s, ..)| s.name == name).unwrap().2.clone();
        assert_eq!(source("data"), Source::Flag);
        assert_eq!(source("max_topics"), Source::Environment);
        assert_eq!(source("auto_create"), Source::File(file));
        assert_eq!(source("memory"), Source::Default);
        let settings = resolved.settings().unwrap();
        assert_eq!(settings.broker.data, PathBuf::from("from-flag"));
        assert_eq!(settings.broker.limits.topics, 8);
        assert_eq!(settings.broker.auto_create, Some(false));
    }

    #[test]
    fn what_makes_no_sense_is_named_with_where_it_came_from() {
        let flags = |name: &str| (name == "memory").then(|| "lots".to_owned());
        let error = Resolved::new(flags, none, None).unwrap().settings().unwrap_err();
        assert!(error.to_string().starts_with("memory = \"lots\" (flag): "), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("posthouse.toml");
        std::fs::write(&file, "max_topcis = 7\n").unwrap();
        let error = Resolved::new(none, none, Some(&file)).unwrap_err();
        assert!(error.to_string().contains("there is no setting \"max_topcis\""), "{error}");
        let flags = |name: &str| (name == "tls_cert").then(|| "cert.pem".to_owned());
        let error = Resolved::new(flags, none, None).unwrap().settings().unwrap_err();
        assert!(error.to_string().contains("a certificate needs its key"), "{error}");
    }
}
