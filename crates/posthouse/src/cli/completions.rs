//! `posthouse completions`: what a shell needs to complete our commands.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure, Output};

/// Print completions for a shell
///
/// For bash: `source <(posthouse completions bash)` in ~/.bashrc. For zsh: save it as
/// `_posthouse` in a directory of $fpath. For fish: save it as
/// ~/.config/fish/completions/posthouse.fish.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "posthouse", &mut script);
        let mut out = Output::new(false);
        out.bytes(&script)?;
        out.flush()
    }
}
