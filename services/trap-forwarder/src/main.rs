//! The trap forwarder's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_trap_forwarder::process().run()
}
