//! `sekiwake-proxy`.

use std::{io, path::PathBuf, process::ExitCode};

use clap::Subcommand;
use sekiwake_proxy::{ProxyService, keygen};
use sekiwake_settings::Environment;

#[derive(Subcommand)]
enum Command {
    /// Make a key pair: PATH is the secret key, PATH.pub the public one, which is printed as a line for the list of allowed keys
    Keygen {
        /// The file to write, which must not exist; its name becomes the client's name in the list
        path: PathBuf,
    },
}

fn main() -> ExitCode {
    sekiwake_runtime::run_with::<ProxyService, Command>(run)
}

fn run(command: Command, _environment: &Environment) -> anyhow::Result<ExitCode> {
    match command {
        Command::Keygen { path } => keygen(&path, &mut io::stdout().lock())?,
    }
    Ok(ExitCode::SUCCESS)
}
