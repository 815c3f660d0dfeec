//! `posthouse data repair`.

use std::path::Path;

use clap::Args;
use posthouse_log::files::RealFiles;
use serde::Serialize;

use crate::cli::output::plain;
use crate::cli::{Failure, Output};
use crate::problem::Kind;
use crate::shard::clock::wall_ms;
use crate::store::StoreError;
use crate::store::repair::{Plan, Repair};
use crate::units;

/// Each repair may bring more to light; a store that is not sound after so many is not
/// going to be.
const ROUNDS: usize = 20;

/// Whether to do it.
#[derive(Debug, Args)]
pub(super) struct Repairs {
    /// Do it; without it, only say what would be done, and what would be lost
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    /// Whether nothing keeps a node from starting, now.
    sound: bool,
    done: bool,
    steps: Vec<ShownStep<'a>>,
    hopeless: Vec<ShownHopeless<'a>>,
    /// Where what was taken out is.
    aside: Vec<String>,
}

#[derive(Serialize)]
struct ShownStep<'a> {
    part: &'a str,
    damage: &'a str,
    action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<&'a str>,
}

#[derive(Serialize)]
struct ShownHopeless<'a> {
    part: &'a str,
    damage: &'a str,
}

impl Repairs {
    pub(super) fn run(self, dir: &Path, out: &mut Output) -> Result<(), Failure> {
        let repair = Repair::open(RealFiles::shared(), dir).map_err(|error| match error {
            StoreError::Damaged { file, what } => {
                let text = format!(
                    "{} is damaged: {what}. Nothing can be done about that; bring it back from a \
                     backup of this store, of any age",
                    file.display()
                );
                Failure::new(Kind::Corrupt, text)
            }
            error => error.into(),
        })?;
        let mut plans = vec![repair.plan()?];
        let mut aside = Vec::new();
        while self.yes && plans.len() <= ROUNDS {
            let Some(plan) = plans.last().filter(|plan| !plan.steps.is_empty()) else { break };
            aside.push(repair.carry_out(plan, wall_ms())?.display().to_string());
            plans.push(repair.plan()?);
        }
        let is_sound = plans.last().is_some_and(Plan::is_sound);
        let steps = plans.iter().flat_map(|plan| &plan.steps).map(|step| ShownStep {
            part: &step.part,
            damage: &step.damage,
            action: &step.action,
            lost: step.lost.as_deref(),
        });
        let hopeless = plans.iter().rev().take(1).flat_map(|plan| &plan.hopeless);
        let shown = Shown {
            sound: is_sound,
            done: !aside.is_empty(),
            steps: steps.collect(),
            hopeless: hopeless
                .map(|of| ShownHopeless { part: &of.part, damage: &of.damage })
                .collect(),
            aside,
        };
        out.show(&shown, |out, shown| people(&plans, shown, out))?;
        out.flush()?;
        match (is_sound, self.yes) {
            (true, _) => Ok(()),
            (false, false) if shown.hopeless.is_empty() => {
                let text = "nothing was done; --yes does it, and keeps what it takes out";
                Err(Failure::new(Kind::Corrupt, text))
            }
            _ => Err(Failure::new(Kind::Corrupt, "a node will not start on it")),
        }
    }
}

fn people(plans: &[Plan], shown: &Shown<'_>, out: &mut Output) -> Result<(), Failure> {
    for step in plans.iter().flat_map(|plan| &plan.steps) {
        out.line(plain_lines(&step.to_string()))?;
    }
    for hopeless in plans.iter().rev().take(1).flat_map(|plan| &plan.hopeless) {
        out.line(plain_lines(&hopeless.to_string()))?;
    }
    for aside in &shown.aside {
        out.line(plain(&format!("what was taken out is in {aside}")))?;
    }
    match (shown.sound, shown.steps.len()) {
        (true, 0) => out
            .line("nothing keeps a node from starting; `posthouse data verify` looks at the rest"),
        (true, count) => {
            let steps = units::counted(count as u64, "repair");
            out.line(format_args!("{steps} done: a node can be started"))
        }
        (false, _) => Ok(()),
    }
}

fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}
