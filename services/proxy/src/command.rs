//! The command line.

use std::{io, path::PathBuf, process::ExitCode};

use clap::Subcommand;
use sekiwake_runtime::Process;
use sekiwake_settings::Environment;

use crate::{ProxyService, keygen};

#[derive(Subcommand)]
enum Command {
    /// Create a key pair: the secret key in PATH, the public key in PATH.pub. Prints the line for
    /// the list of allowed keys
    Keygen {
        /// File for the secret key; must not exist. Its name becomes the client's name in the list
        path: PathBuf,
    },
}

/// The process and its subcommands.
pub fn process() -> Process {
    Process::of::<ProxyService>().commands(run)
}

fn run(command: Command, _environment: &Environment) -> anyhow::Result<ExitCode> {
    match command {
        Command::Keygen { path } => keygen(&path, &mut io::stdout().lock())?,
    }
    Ok(ExitCode::SUCCESS)
}
