//! `sekiwake-capture`: takes datagrams off the wire, or out of a savefile.

use std::{
    io::{self, BufWriter},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use sekiwake_capture::{decode::DecoderSettings, explain::Explain, ports::Ports};

/// Takes datagrams off the wire and publishes them on the bus.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print what would be published of a savefile, one JSON object a line.
    Explain {
        /// Print every UDP datagram, also those to ports that no setting claims.
        #[arg(long)]
        all: bool,
        /// A pcap or pcapng savefile.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Explain { all, file } => {
            let explain = Explain { ports: Ports::default(), all, decoder: DecoderSettings::default() };
            let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
            Ok(explain.run(&file, &mut out, &mut io::stderr().lock())?)
        }
    }
}
