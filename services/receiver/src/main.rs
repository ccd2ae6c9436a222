//! `sekiwake-receiver`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_runtime::run_tool::<sekiwake_receiver::Receiver>()
}
