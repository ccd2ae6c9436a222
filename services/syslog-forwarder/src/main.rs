//! The syslog forwarder's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_syslog_forwarder::process().run()
}
