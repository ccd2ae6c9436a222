//! `sekiwake-capture`: takes datagrams off the wire, or out of a savefile.

use std::{
    io::{self, BufWriter},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;
use sekiwake_capture::{
    CaptureService,
    decode::DecoderSettings,
    discover,
    explain::Explain,
    settings::{interfaces_or_default, ports},
};
use sekiwake_settings::Environment;

#[derive(Subcommand)]
enum Command {
    /// Print what would be published of a savefile, one JSON object a line
    Explain {
        /// Print every UDP datagram, also those to ports that no setting claims
        #[arg(long)]
        all: bool,
        /// A pcap or pcapng savefile
        file: PathBuf,
    },
    /// Show what talks to which UDP port on an interface, and what it looks like
    Discover {
        /// How long to look, seconds
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
        /// The interfaces; without any, the one of the default route
        interfaces: Vec<String>,
    },
}

fn main() -> ExitCode {
    sekiwake_runtime::run_with::<CaptureService, Command>(run)
}

fn run(command: Command, environment: &Environment) -> anyhow::Result<ExitCode> {
    let ports = sekiwake_settings::read(environment, ports)?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match command {
        Command::Explain { all, file } => {
            let explain = Explain { ports, all, decoder: DecoderSettings::default() };
            explain.run(&file, &mut out, &mut io::stderr().lock())?;
        }
        Command::Discover { seconds, interfaces } => {
            for interface in interfaces_or_default(interfaces)? {
                let seen = discover::observe(&interface, Duration::from_secs(seconds), &ports, || false)?;
                seen.write(&interface, &ports, &mut out)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
