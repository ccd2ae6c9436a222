//! `sekiwake-receiver`: a collector that keeps nothing and counts everything, for demonstrations and for trying a set-up out.

mod shown;

use std::{
    io::{Write, stdout},
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use sekiwake_sender::{cli::duration, sequence_of};
use sekiwake_testkit::sink::{Numbered, Options, Report, Sink};
use signal_hook::consts::{SIGINT, SIGTERM};

/// How soon a signal is seen.
const GLANCE: Duration = Duration::from_millis(50);
/// Addresses that are told apart.
const MAX_SOURCES: usize = 100_000;

/// Receives datagrams and counts them: by port, by source, and what is missing or doubled of what sekiwake-sender numbered.
///
/// Prints a line whenever something new has come, at most once per --every. SIGINT and SIGTERM end it, with a last line and exit status 0.
/// Two receivers that got the same payloads, in whatever order, show the same digest: the sum, modulo 2^128, of XXH3 (128 bits).
#[derive(Debug, Parser)]
#[command(name = "sekiwake-receiver", version)]
struct Arguments {
    /// Where to listen, several separated by commas: 0.0.0.0:514,0.0.0.0:2055.
    #[arg(long, short, value_name = "ADDRESS:PORT", value_delimiter = ',', required = true)]
    listen: Vec<SocketAddr>,
    /// How often to say what came: 500ms, 5s, 1m.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    every: Duration,
    /// Makes each line a JSON object.
    #[arg(long)]
    json: bool,
    /// Lists the sources with how much came from each (JSON only).
    #[arg(long, requires = "json")]
    by_source: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sekiwake-receiver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends the process at once.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))
            .context("cannot watch for signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot watch for signals")?;
    }
    let options = Options::counts().digest().sources(MAX_SOURCES).sequence(|payload| {
        let number = sequence_of(payload)?;
        Some(Numbered { stream: number.stream(), sequence: number.sequence, step: number.step })
    });
    let sink = Sink::bind(&arguments.listen, options)?;
    let mut shown = None;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(GLANCE);
        if Instant::now() >= next && shown != Some(sink.received()) {
            let report = sink.report();
            shown = Some(report.received);
            show(arguments, &report)?;
            next = Instant::now() + arguments.every;
        }
    }
    show(arguments, &sink.finish())
}

fn show(arguments: &Arguments, report: &Report) -> anyhow::Result<()> {
    let line = if arguments.json { shown::json(report, arguments.by_source).to_string() } else { shown::text(report) };
    writeln!(stdout(), "{line}").context("cannot write to standard output")
}
