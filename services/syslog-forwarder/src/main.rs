//! The syslog forwarder's process.

use std::process::ExitCode;

use sekiwake_syslog_forwarder::SyslogForwarder;

fn main() -> ExitCode {
    sekiwake_runtime::run::<SyslogForwarder>()
}
