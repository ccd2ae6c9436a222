//! A collector that keeps nothing and counts everything, for demonstrations and for trying out a
//! set-up.

mod report;
mod tcp;

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

use crate::tcp::TcpCounts;

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
    #[arg(long, short, value_name = "ADDRESS:PORT", value_delimiter = ',', required_unless_present = "listen_tcp")]
    listen: Vec<SocketAddr>,
    /// Addresses to count octet-counted syslog over TCP on, separated by commas
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    listen_tcp: Vec<SocketAddr>,
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
        let tcp = TcpCounts::bind(&arguments.listen_tcp)?;
        let mut printed = None;
        let mut next = Instant::now();
        while !stop.wait(POLL) {
            let received = (sink.received(), tcp.messages());
            if Instant::now() >= next && printed != Some(received) {
                printed = Some(received);
                print(&arguments, &sink.report(), &tcp)?;
                next = Instant::now() + arguments.every;
            }
        }
        print(&arguments, &sink.finish(), &tcp)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print(arguments: &Arguments, report: &Report, tcp: &TcpCounts) -> anyhow::Result<()> {
    let tcp = (!arguments.listen_tcp.is_empty()).then_some(tcp);
    let line = if arguments.json {
        report::json(report, arguments.by_source, tcp).to_string()
    } else if let Some(tcp) = tcp.filter(|_| arguments.listen.is_empty()) {
        report::tcp_text(tcp)
    } else {
        let tcp = tcp.map(|tcp| format!("; {}", report::tcp_text(tcp)));
        report::text(report) + &tcp.unwrap_or_default()
    };
    writeln!(stdout(), "{line}").context("cannot write to standard output")
}
