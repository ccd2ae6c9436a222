//! `sekiwake-capture`: takes datagrams off the wire, or out of a savefile.

use std::{
    io::{self, BufWriter},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::anyhow;
use clap::Subcommand;
use sekiwake_capture::{
    CaptureService,
    decode::DecoderSettings,
    discover,
    explain::Explain,
    settings::{interfaces_or_default, ports},
};
use sekiwake_settings::Environment;
use signal_hook::consts::{SIGINT, SIGTERM};

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
            let interrupted = Arc::new(AtomicBool::new(false));
            for signal in [SIGINT, SIGTERM] {
                signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
            }
            let (length, is_over) = (Duration::from_secs(seconds), || interrupted.load(Ordering::Relaxed));
            let interfaces = interfaces_or_default(interfaces)?;
            // All at the same time: what one shows may be what another does not.
            std::thread::scope(|threads| {
                let look = |interface| {
                    let (ports, is_over) = (&ports, &is_over);
                    threads.spawn(move || discover::observe(interface, length, ports, is_over))
                };
                let looking: Vec<_> =
                    interfaces.iter().map(|interface| (interface, look(interface.as_str()))).collect();
                for (interface, look) in looking {
                    let seen = look.join().map_err(|_| anyhow!("looking at {interface} failed"))??;
                    seen.write(interface, &ports, &mut out)?;
                }
                anyhow::Ok(())
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
