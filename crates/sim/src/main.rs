//! The simulator's command line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use sim::plan::{Part, Plan, STEPS};
use sim::report::Figures;
use sim::run::{Outcome, run, shrink};

const USAGE: &str = "\
usage: sim [--seeds N] [--from SEED]       run many seeds, and report
       sim --seed SEED [--steps N] [--without PART,...] [--tell]
                                           run one, and print what happens with --tell
       sim --planted [NAME] [--into FILE]  find the bugs that are planted (feature `planted`),
                                           and put the table of who found which into a document
";

/// Runs in which everything that there is must have come up.
const COVERING: u64 = 1000;

/// Runs that shrinking may take.
const SHRINK_RUNS: u32 = 80;

struct Args {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    steps: u32,
    without: BTreeSet<Part>,
    is_told: bool,
    planted: Option<Option<String>>,
    into: Option<PathBuf>,
}

fn parse() -> Result<Args, String> {
    let mut args = Args {
        seeds: 100,
        from: 0,
        seed: None,
        steps: STEPS,
        without: BTreeSet::new(),
        is_told: false,
        planted: None,
        into: None,
    };
    let mut given = std::env::args().skip(1).peekable();
    while let Some(arg) = given.next() {
        let mut number = || -> Result<u64, String> {
            let value = given.next().ok_or_else(|| format!("{arg} needs a number"))?;
            value.parse().map_err(|_| format!("{arg} {value}: it is no number"))
        };
        match arg.as_str() {
            "--seeds" => args.seeds = number()?,
            "--from" => args.from = number()?,
            "--seed" => args.seed = Some(number()?),
            "--steps" => args.steps = number()? as u32,
            "--tell" => args.is_told = true,
            "--without" => {
                let names = given.next().ok_or("--without needs names")?;
                for name in names.split(',') {
                    let part = Part::ALL.iter().find(|part| part.name() == name);
                    args.without.insert(*part.ok_or_else(|| {
                        let all: Vec<&str> = Part::ALL.iter().map(|part| part.name()).collect();
                        format!("--without {name}: there is no such part; there are {all:?}")
                    })?);
                }
            }
            "--planted" => {
                args.planted = Some(given.next_if(|next| !next.starts_with("--")));
            }
            "--into" => args.into = Some(given.next().ok_or("--into needs a file")?.into()),
            _ => return Err(format!("{arg} is not known")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(name) = args.planted {
        return planted(name.as_deref(), args.from, args.into.as_deref());
    }
    match args.seed {
        Some(seed) => one(Plan::of(seed).of_steps(args.steps).but(args.without), args.is_told),
        None => many(args.from, args.seeds),
    }
}

fn one(plan: Plan, is_told: bool) -> ExitCode {
    let outcome = run(plan, is_told);
    println!("{}trace {:08x}", outcome.figures, outcome.trace);
    match outcome.violation {
        Some(violation) => {
            println!("FAILED: {violation}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn many(from: u64, seeds: u64) -> ExitCode {
    let began = Instant::now();
    let mut figures = Figures::default();
    let mut failed = 0;
    for seed in from..from + seeds {
        let outcome = run(Plan::of(seed), false);
        figures.add(&outcome.figures);
        if outcome.violation.is_some() {
            failed += 1;
            tell(&outcome);
        }
    }
    let took = began.elapsed().as_secs_f64();
    println!("{figures}{:.1} seeds/s, {failed} failed", seeds as f64 / took);
    let missing = figures.missing();
    if seeds >= COVERING && !missing.is_empty() {
        println!("FAILED: never came up: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Says what failed, and the least that still fails so.
fn tell(outcome: &Outcome) {
    let Some(violation) = &outcome.violation else { return };
    println!("FAILED: seed {}: {violation}", outcome.plan.seed);
    println!("  repeat: {}", outcome.plan.command());
    let least = shrink(outcome, SHRINK_RUNS);
    if let Some(violation) = &least.violation {
        println!("  shrunk: {}", least.plan.command());
        println!("          {violation}");
    }
}

/// Plants each bug, or one, and runs seeds until it is found.
#[cfg(feature = "planted")]
fn planted(name: Option<&str>, from: u64, into: Option<&Path>) -> ExitCode {
    use sim::planted::{BUGS, WITHIN, put_table};
    let wanted = |bug: &&sim::planted::Bug| name.is_none_or(|name| name == bug.name);
    let mut missed = Vec::new();
    let mut found = 0;
    let mut table = String::from("| Bug | What it does | Found by | Seeds |\n|---|---|---|--:|\n");
    for bug in BUGS.iter().filter(wanted) {
        posthouse_frame::plant(bug.name);
        let mut seeds = from..from + WITHIN;
        let caught = seeds.find_map(|seed| run(Plan::of(seed), false).violation.map(|v| (seed, v)));
        posthouse_frame::plant("");
        let row = match caught {
            Some((seed, violation)) => {
                found += 1;
                eprintln!("{}: seed {seed}: {violation}", bug.name);
                let (by, seeds) = (violation.checker, seed - from + 1);
                format!("| `{}` | {} | `{by}` | {seeds} |", bug.name, bug.story)
            }
            None => {
                missed.push(bug.name);
                format!("| `{}` | {} | nobody | |", bug.name, bug.story)
            }
        };
        println!("{row}");
        table += &row;
        table.push('\n');
    }
    if found == 0 && missed.is_empty() {
        eprintln!("there is no such bug");
        return ExitCode::from(2);
    }
    println!("{found} found; not within {WITHIN} seeds: {missed:?}");
    if let Some(into) = into
        && let Err(problem) = put_table(into, &table)
    {
        eprintln!("{}: {problem}", into.display());
        return ExitCode::FAILURE;
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(not(feature = "planted"))]
fn planted(_name: Option<&str>, _from: u64, _into: Option<&Path>) -> ExitCode {
    eprintln!("this build has no planted bugs: build it with --features planted");
    ExitCode::from(2)
}
