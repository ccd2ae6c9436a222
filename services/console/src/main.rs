//! `sekiwake-console`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_console::process().run()
}
