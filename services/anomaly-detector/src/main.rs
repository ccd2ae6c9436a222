//! `sekiwake-anomaly-detector`: detects sudden rises and drops in the rate of syslog.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_anomaly_detector::process().run()
}
