//! `sekiwake-storer`: stores syslog on disk.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_storer::process().run()
}
