//! Damage that nobody asked for: a bit of the disk is another. What is damaged is refused
//! with its name, or it does not matter; it is never served. A verification finds it, and
//! finds nothing where nothing is damaged.

use std::path::{Path, PathBuf};

use posthouse::store::verify::{Report, verify};
use posthouse_log::files::Files as _;
use posthouse_log::files::sim::SimFiles;

use super::life::DATA;
use super::{World, ending};
use crate::check::Violation;
use crate::history::What;
use crate::plan::Part;

/// How many bits are turned, each on a copy of its own.
const FLIPS: u32 = 3;

impl World {
    /// Turns bits of copies of a disk on which everything is certain; `whole` is what is
    /// there.
    ///
    /// # Errors
    /// If a node serves what is damaged, or starts from it as if nothing had been.
    pub(super) fn turn_bits(&mut self, whole: &[What]) -> Result<(), Violation> {
        if !self.has(Part::Flips) {
            return Ok(());
        }
        // The log says how far it is certain.
        for which in 0..self.slow.len() {
            self.log_step(which);
            self.idle(which);
            self.log_step(which);
        }
        let Some(live) = self.live_digests() else { return Ok(()) };
        for _ in 0..FLIPS {
            let copy = self.disk.fork();
            copy.clear_faults();
            let files = files(&copy, Path::new(DATA));
            let path = self.rng.pick(&files).clone();
            let content = copy.content(&path);
            // Most of a segment is empty.
            let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            if used == 0 {
                continue;
            }
            let bit = self.rng.below(8 * used as u64);
            copy.flip(&path, bit);
            let report = verified(&copy);
            let mut outcome = self.outcome_of(&copy, &live, whole);
            if outcome == Ok("flip refused") && report.is_ok_and(|report| report.is_clean()) {
                outcome = Err("it is refused, and a verification finds nothing".into());
            }
            let name = outcome.map_err(|what| {
                let what = format!("bit {bit} of {} was turned: {what}", path.display());
                Violation::new(2, "damage", what)
            })?;
            *self.figures.faults.entry(name).or_default() += 1;
        }
        Ok(())
    }

    /// Looks for damage where there is none, on a copy of the disk as it is.
    ///
    /// # Errors
    /// If any is found.
    pub(super) fn verify(&mut self) -> Result<(), Violation> {
        let copy = self.disk.fork();
        copy.clear_faults();
        self.figures.verified += 1;
        match verified(&copy) {
            Ok(report) if report.is_clean() => Ok(()),
            Ok(report) => Err(format!("{:?}", report.findings)),
            Err(error) => Err(error),
        }
        .map_err(|what| Violation::new(2, "verify", format!("damage where there is none: {what}")))
    }

    /// What a node does on a damaged disk; an error if it must not.
    fn outcome_of(
        &mut self,
        copy: &SimFiles,
        live: &[u64],
        whole: &[What],
    ) -> Result<&'static str, String> {
        let node = match self.open_node(copy) {
            Ok(node) => node,
            Err(error) => {
                let said = error.to_string();
                return match said.contains(DATA) {
                    true => Ok("flip refused"),
                    false => Err(format!("the node says {said:?}, and not where")),
                };
            }
        };
        let (healthy, digests) = (self.node.replace(node), self.live_digests());
        let is_same = digests.as_deref() == Some(live);
        let seen = match is_same {
            true => self.ask(|broker, shared| async move {
                broker.settle_in().await?;
                ending::look(&broker, &shared).await
            }),
            false => None,
        };
        let has_fallen = std::mem::take(&mut self.fallen);
        self.node = healthy;
        match seen {
            _ if !is_same => Err(format!("the node starts with {digests:x?}, not {live:x?}")),
            Some(Ok(seen)) if seen == whole => Ok("flip harmless"),
            Some(Ok(seen)) => {
                let differs = seen.iter().zip(whole).find(|(seen, whole)| seen != whole);
                Err(format!("the node shows {differs:?}"))
            }
            Some(Err(_)) => Ok("flip refused"),
            None if has_fallen => Ok("flip refused"),
            None => Err("the node does not answer".into()),
        }
    }
}

fn verified(disk: &SimFiles) -> Result<Report, String> {
    verify(&disk.shared(), Path::new(DATA), |_| {}).map_err(|error| error.to_string())
}

/// All files in a directory and those below it.
fn files(disk: &SimFiles, dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in disk.list(dir).unwrap_or_default() {
        let path = dir.join(&entry.name);
        match entry.is_dir {
            true => all.extend(files(disk, &path)),
            false => all.push(path),
        }
    }
    all
}
