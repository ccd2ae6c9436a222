//! `sekiwake-proxy`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sekiwake_runtime::run::<sekiwake_proxy::ProxyService>()
}
