//! `sekiwake-storer`: keeps syslog on disk.

use std::process::ExitCode;

use clap::Subcommand;
use sekiwake_storer::{Storer, find};

#[derive(Subcommand)]
enum Command {
    /// Print stored messages as JSON lines, oldest first
    Search(find::Arguments),
}

fn main() -> ExitCode {
    sekiwake_runtime::run_with::<Storer, Command>(|command, environment| match command {
        Command::Search(arguments) => find::run(&arguments, environment),
    })
}
