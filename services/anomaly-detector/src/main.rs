//! `sekiwake-anomaly-detector`: notices that the rate of syslog is not what it was.

use std::process::ExitCode;

use clap::Subcommand;
use sekiwake_anomaly_detector::{AnomalyDetector, explain};

#[derive(Subcommand)]
enum Command {
    /// Print what the detector would have said of stored syslog, or of counts
    Explain(Box<explain::Arguments>),
}

fn main() -> ExitCode {
    sekiwake_runtime::run_with::<AnomalyDetector, Command>(|command, environment| match command {
        Command::Explain(arguments) => explain::run(&arguments, environment),
    })
}
