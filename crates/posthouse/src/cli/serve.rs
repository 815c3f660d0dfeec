//! `posthouse serve`: a node.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt as _;
use posthouse_log::files::RealFiles;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::broker::{Broker, Report};
use crate::config::{self, Resolved, SETTINGS, Settings};
use crate::doors;
use crate::doors::listen::Port;
use crate::units;

/// Connections have this part of the time that stopping may take.
const DOORS_PART: u32 = 3;

/// Flags for every setting, and the configuration file.
#[derive(Debug)]
pub struct SettingsArgs {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

impl SettingsArgs {
    /// All sources put together.
    ///
    /// # Errors
    /// See [`config::ConfigError`].
    pub fn resolve(&self) -> Result<Resolved, Failure> {
        let flag = |name: &str| {
            self.flags.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        };
        let environment = |name: &str| std::env::var(name).ok();
        let file = self.file.clone().or_else(|| environment("POSTHOUSE_CONFIG").map(Into::into));
        Resolved::new(flag, environment, file.as_deref())
            .map_err(|error| Failure::usage(error.to_string()))
    }
}

impl clap::FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let flags = SETTINGS
            .iter()
            .filter_map(|s| Some((s.name, matches.get_one::<String>(s.name)?.clone())));
        Ok(SettingsArgs {
            file: matches.get_one::<PathBuf>("config").cloned(),
            flags: flags.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for SettingsArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = clap::Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A TOML file with settings [env: POSTHOUSE_CONFIG]");
        SETTINGS.iter().fold(command.arg(file), |command, setting| {
            let default = match setting.default {
                "" => String::new(),
                default => format!(" [default: {default}]"),
            };
            let variable = config::variable(setting.name);
            let arg = clap::Arg::new(setting.name)
                .long(config::flag(setting.name))
                .value_name(setting.value)
                .help(format!("{}{default} [env: {variable}]", setting.help));
            // A switch can stand alone.
            let arg = match setting.value {
                "BOOL" => arg.num_args(0..=1).default_missing_value("true"),
                _ => arg,
            };
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// Run a node
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let settings = self.settings.resolve()?.settings();
        let settings = settings.map_err(|error| Failure::usage(error.to_string()))?;
        log_to_stderr(&settings)?;
        super::runtime()?.block_on(serve(settings))
    }
}

fn log_to_stderr(settings: &Settings) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|e| Failure::usage(format!("log = {:?}: {e}", settings.log)))?;
    let is_terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_ansi(is_terminal)
        .with_env_filter(filter)
        // Where nobody reads the log there is nobody to tell that it cannot be written,
        // and trying to would end whatever thread has something to say.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    if settings.log_json {
        builder.json().init();
    } else {
        builder.with_target(false).init();
    }
    Ok(())
}

async fn serve(mut settings: Settings) -> Result<(), Failure> {
    let mut addresses = std::iter::once(settings.listen).chain(settings.rocketmq_listen);
    let public = addresses.find(|address| !address.ip().is_loopback());
    let public = public.filter(|_| !settings.insecure);
    settings.broker.keeps_manager = public.is_some();
    // Signals from here on are ours: one that comes while the store opens ends the node
    // as soon as it is open.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (broker, report) = Broker::start(RealFiles::shared(), settings.broker.clone()).await?;
    tell(&report);
    if let (true, Some(address)) = (broker.is_open(), public) {
        broker.stop(settings.stop_timeout).await?;
        return Err(Failure::usage(format!(
            "no user who may manage this node has a token, so anyone who reaches {address} could \
             read and delete everything. Make one first (`posthouse user put` and `user token`, \
             with the node on a loopback address), or say --insecure if the network is yours alone"
        )));
    }
    let port = Port::bind(settings.listen, &settings.doors).await?;
    let address = port.address()?;
    let rocketmq = match settings.rocketmq_listen {
        Some(address) => Some(Port::bind(address, &settings.doors).await?),
        None => None,
    };
    tracing::info!("listening on {address}");
    if let Some(port) = &rocketmq {
        tracing::info!("RocketMQ clients are served on {} too", port.address()?);
    }
    if let Err(error) = greet(&broker, address, port.is_tls()) {
        // A reader that has gone is no reason not to serve.
        tracing::debug!("nobody reads what it says: {error}");
    }
    let failure = broker.failure().clone();
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to stop (SIGTERM)"),
            _ = interrupt.recv() => tracing::info!("told to stop (SIGINT)"),
            what = failure.wait() => tracing::error!("{what}"),
        }
    };
    let patience = settings.stop_timeout / DOORS_PART;
    let stopping = broker.clone();
    let stop = async move {
        stop.await;
        stopping.begin_stop();
    };
    let stop = stop.shared();
    let (all, for_rocketmq) = doors::routers(&broker, settings.advertise);
    let second = async {
        if let Some(port) = rocketmq {
            port.serve(for_rocketmq, stop.clone(), patience).await;
        }
    };
    tokio::join!(port.serve(all, stop.clone(), patience), second);
    let stopped = broker.stop(settings.stop_timeout).await;
    if let Some(what) = broker.failure().get() {
        return Err(Failure { text: format!("stopped because a disk failed: {what}"), code: 1 });
    }
    stopped?;
    tracing::info!("stopped");
    Ok(())
}

fn tell(report: &Report) {
    let all = std::iter::once(&report.meta).chain(&report.shards);
    for (recovery, _) in all {
        for cut in &recovery.cut {
            tracing::warn!("{cut}");
        }
    }
    let frames: u64 = report.shards.iter().map(|(_, replayed)| replayed.frames).sum();
    let bytes: u64 = report.shards.iter().map(|(_, replayed)| replayed.log_bytes).sum();
    tracing::info!(
        "opened in {} ms: {frames} frames ({}) replayed",
        report.took.as_millis(),
        units::show_size(bytes)
    );
}

/// Says where it listens, and what to try first.
fn greet(broker: &Arc<Broker>, address: SocketAddr, is_tls: bool) -> io::Result<()> {
    let scheme = if is_tls { "https" } else { "http" };
    let url = format!("{scheme}://{address}");
    let mut out = io::stdout().lock();
    writeln!(out, "Posthouse {} listens on {url}", env!("CARGO_PKG_VERSION"))?;
    if broker.catalog().counts().0 == 0 {
        writeln!(
            out,
            "
Try:
  curl -X PUT {url}/v1/topics/orders
  curl {url}/v1/topics/orders/messages -H 'content-type: application/json' -d '{{\"body\":\"hello\"}}'
  curl {url}/v1/groups/billing/receive -H 'content-type: application/json' -d '{{\"topic\":\"orders\"}}'
"
        )?;
    }
    out.flush()
}
