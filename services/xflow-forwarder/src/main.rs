//! The xflow forwarder's process.

use std::process::ExitCode;

use sekiwake_xflow_forwarder::XflowForwarder;

fn main() -> ExitCode {
    sekiwake_runtime::run::<XflowForwarder>()
}
