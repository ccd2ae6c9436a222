//! The trap forwarder's process.

use std::process::ExitCode;

use sekiwake_trap_forwarder::TrapForwarder;

fn main() -> ExitCode {
    sekiwake_runtime::run::<TrapForwarder>()
}
