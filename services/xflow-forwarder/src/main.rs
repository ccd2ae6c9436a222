//! The xflow forwarder's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_xflow_forwarder::process().run()
}
