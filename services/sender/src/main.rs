//! `sekiwake-sender`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_runtime::run_tool::<sekiwake_sender::SenderTool>()
}
