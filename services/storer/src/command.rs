//! The command line.

use clap::Subcommand;
use sekiwake_runtime::Process;

use crate::{Storer, find};

#[derive(Subcommand)]
enum Command {
    /// Print stored messages as JSON lines
    Search(find::Arguments),
}

/// The process and its subcommands.
pub fn process() -> Process {
    Process::of::<Storer>().commands(|command: Command, environment| match command {
        Command::Search(arguments) => find::run(&arguments, environment),
    })
}
