//! The command line.

use clap::Subcommand;
use sekiwake_runtime::Process;

use crate::{AnomalyDetector, explain};

#[derive(Subcommand)]
enum Command {
    /// Print what the detector would have reported for stored syslog, or for counts
    Explain(Box<explain::Arguments>),
}

/// The process and its subcommands.
pub fn process() -> Process {
    Process::of::<AnomalyDetector>().commands(|command: Command, environment| match command {
        Command::Explain(arguments) => explain::run(&arguments, environment),
    })
}
