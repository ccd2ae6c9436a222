//! `sekiwake`: all roles in one process.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_all_in_one::process().run()
}
