//! `posthouse config`: the settings that are in force, and where each came from.

use clap::Args;
use serde::Serialize;

use super::output::Table;
use super::serve::SettingsArgs;
use super::{Failure, Output};

/// Show the settings in force, and where each came from
///
/// Takes what `serve` takes, and shows what that would run with. Ends with 2 if that would
/// be refused.
#[derive(Debug, Args)]
pub struct Config {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Serialize)]
struct Shown {
    settings: Vec<Setting>,
}

#[derive(Serialize)]
struct Setting {
    name: &'static str,
    /// As text; empty if nothing is set and the node finds out by itself.
    value: String,
    source: String,
}

impl Config {
    pub(super) fn run(self) -> Result<(), Failure> {
        let resolved = self.settings.resolve()?;
        let settings = resolved.iter().map(|(setting, value, source)| Setting {
            name: setting.name,
            value: value.to_owned(),
            source: source.to_string(),
        });
        let mut out = Output::new(self.json);
        out.show(&Shown { settings: settings.collect() }, |out, shown| {
            let mut table = Table::new("SETTING VALUE SOURCE");
            for setting in &shown.settings {
                let value = if setting.value.is_empty() { "-" } else { &setting.value };
                table.row([setting.name.into(), value.into(), setting.source.clone()]);
            }
            out.table(&table)
        })?;
        out.flush()?;
        resolved.settings().map(drop).map_err(|error| Failure::usage(error.to_string()))
    }
}
