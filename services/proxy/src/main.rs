//! `sekiwake-proxy`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_proxy::process().run()
}
