//! `sekiwake-capture`: captures datagrams from interfaces or from a savefile.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_capture::process().run()
}
