//! The command line.

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

use anyhow::{Context, anyhow};
use clap::Subcommand;
use sekiwake_decode::Style;
use sekiwake_runtime::{MibFolder, Process};
use sekiwake_settings::Environment;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    CaptureService,
    decode::DecoderSettings,
    discover,
    explain::Explain,
    settings::{interface_name, interfaces_or_default, ports},
};

#[derive(Subcommand)]
enum Command {
    /// Print the records that would be published from a savefile, one JSON object per line
    Explain {
        /// Also print datagrams to ports that no setting claims
        #[arg(long)]
        all: bool,
        /// Print what the datagrams say: a line per flow, trap or syslog message;
        /// SEKIWAKE_MIB_DIR names a folder of MIB files
        #[arg(long)]
        decode: bool,
        /// With --decode: text, or json, one object per line [default: text on a terminal]
        #[arg(long, value_name = "STYLE", requires = "decode")]
        output: Option<Style>,
        /// A pcap or pcapng savefile, `-` for standard input
        file: PathBuf,
    },
    /// List the UDP destinations seen on an interface, with rates, sources and formats
    Discover {
        /// How long to observe, in seconds
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
        /// Interfaces [default: the interface of the default route]
        #[arg(value_parser = interface_name)]
        interfaces: Vec<String>,
    },
}

/// The process and its subcommands.
pub fn process() -> Process {
    Process::of::<CaptureService>().commands(run)
}

fn run(command: Command, environment: &Environment) -> anyhow::Result<ExitCode> {
    let ports = sekiwake_settings::read(environment, ports)?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match command {
        Command::Explain { all, decode, output, file } => {
            let decode = decode.then(|| output.unwrap_or_else(|| Style::of(&io::stdout())));
            let mib_dir =
                sekiwake_settings::read(environment, |reader| reader.optional::<PathBuf>("SEKIWAKE_MIB_DIR"))?;
            let mib = match mib_dir.filter(|_| decode.is_some()) {
                Some(path) => {
                    let folder = MibFolder::load(&path)
                        .with_context(|| format!("cannot read SEKIWAKE_MIB_DIR ({})", path.display()))?;
                    Some(folder.mib())
                }
                None => None,
            };
            let explain = Explain { ports, all, decode, mib, decoder: DecoderSettings::default() };
            explain.run(&file, &mut out, &mut sekiwake_runtime::messages())?;
        }
        Command::Discover { seconds, interfaces } => {
            let interrupted = Arc::new(AtomicBool::new(false));
            for signal in [SIGINT, SIGTERM] {
                signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
            }
            let length = Duration::from_secs(seconds);
            let is_interrupted = || interrupted.load(Ordering::Relaxed);
            let interfaces = interfaces_or_default(interfaces)?;
            // All interfaces at the same time, so that their tables can be compared.
            std::thread::scope(|threads| {
                let ports = &ports;
                let mut observations = Vec::new();
                for interface in &interfaces {
                    let observe = move || discover::observe(interface, length, ports, is_interrupted);
                    observations.push((interface, threads.spawn(observe)));
                }
                for (interface, observation) in observations {
                    let traffic = observation.join().map_err(|_| anyhow!("discovery on {interface} panicked"))??;
                    traffic.write(interface, ports, &mut out)?;
                }
                anyhow::Ok(())
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
