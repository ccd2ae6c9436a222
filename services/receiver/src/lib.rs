//! A collector that keeps nothing and counts everything, for demonstrations and for trying out a
//! set-up.

mod report;

use std::{
    io::{Write, stdout},
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use sekiwake_runtime::{About, Stop, Tool};
use sekiwake_settings::{Reader, positive_duration};
use sekiwake_traffic::sink::{Options, Report, Sink};

/// How often the sink's count is read.
const POLL: Duration = Duration::from_millis(50);
/// Source addresses that are counted separately.
const MAX_SOURCES: usize = 100_000;

/// `sekiwake-receiver`.
pub struct Receiver;

/// Receives datagrams and counts them by port and by source. Detects missing and duplicate
/// datagrams of sekiwake-sender by their numbers.
///
/// Prints a line when datagrams have arrived, at most one per --every. SIGINT and SIGTERM end it
/// with a last line and exit status 0. Two receivers of the same payloads, in any order, print the
/// same digest: the sum, modulo 2^128, of their XXH3 (128 bits).
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Addresses to listen on, separated by commas: 0.0.0.0:514,0.0.0.0:2055
    #[arg(long, short, value_name = "ADDRESS:PORT", value_delimiter = ',', required = true)]
    listen: Vec<SocketAddr>,
    /// Interval between lines: 500ms, 5s, 1m
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = positive_duration)]
    every: Duration,
    /// Print each line as a JSON object
    #[arg(long)]
    json: bool,
    /// Include the number of datagrams per source address (JSON only)
    #[arg(long, requires = "json")]
    by_source: bool,
}

impl Tool for Receiver {
    const ABOUT: About = About {
        service: "receiver",
        binary: "sekiwake-receiver",
        summary: "Receives datagrams and counts them by port and by source",
        admin_port: 0,
    };

    type Arguments = Arguments;
    type Settings = ();

    fn read(_reader: &mut Reader) {}

    fn run(arguments: Arguments, (): (), stop: &Stop) -> anyhow::Result<ExitCode> {
        let options = Options::counts().digest().sources(MAX_SOURCES).numbered();
        let sink = Sink::bind(&arguments.listen, options)?;
        let mut printed = None;
        let mut next = Instant::now();
        while !stop.wait(POLL) {
            if Instant::now() >= next && printed != Some(sink.received()) {
                let report = sink.report();
                printed = Some(report.received);
                print(&arguments, &report)?;
                next = Instant::now() + arguments.every;
            }
        }
        print(&arguments, &sink.finish())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print(arguments: &Arguments, report: &Report) -> anyhow::Result<()> {
    let line =
        if arguments.json { report::json(report, arguments.by_source).to_string() } else { report::text(report) };
    writeln!(stdout(), "{line}").context("cannot write to standard output")
}
