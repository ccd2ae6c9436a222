//! Command-line tools: the same flags, settings, logs and signals as a service, without workers and admin server.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use sekiwake_settings::{Environment, Reader};

use crate::stop::{Stop, stop_pair};
use crate::supervisor::{Event, StopHandle};
use crate::telemetry::{self, LogSettings};
use crate::{About, cli, process};

/// How long a tool may take to end after a signal, as [`Stop::deadline`] says it to the tool. Then it is ended: it may be
/// writing to a pipe that nobody reads.
const GRACE: Duration = Duration::from_secs(2);

/// How long standard error, which may be such a pipe too, is waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A tool: something that a person starts at a terminal.
pub trait Tool {
    /// What it is called; the port is not used.
    const ABOUT: About;

    /// Its command line.
    type Arguments: clap::Args;

    /// Its settings, parsed.
    type Settings;

    /// Reads the settings. Never fails: mistakes are noted by the reader.
    fn read(reader: &mut Reader) -> Self::Settings;

    /// As [`Role::describe`](crate::Role::describe).
    fn describe(_settings: &Self::Settings) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Does its work, until it is done or told to stop. An error is printed with its whole chain and ends with status 1.
    fn run(arguments: Self::Arguments, settings: Self::Settings, stop: &Stop) -> anyhow::Result<ExitCode>;
}

/// The whole `main` of a tool.
pub fn run_tool<T: Tool>() -> ExitCode {
    use clap::{Args, FromArgMatches};

    let about = T::ABOUT;
    let command = T::Arguments::augment_args(cli::command(&about, &[about.service]));
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return process::usage_error(&error),
    };
    let mut reader = Reader::new(&Environment::from_process());
    let settings = T::read(&mut reader);
    let log = LogSettings::read(&mut reader);
    let resolved = cli::resolved(&reader, T::describe(&settings));
    if let Err(mistakes) = reader.finish() {
        return process::configuration_error(&mistakes);
    }
    if cli::wants_check(&matches) {
        process::print(&resolved);
        return ExitCode::SUCCESS;
    }
    let arguments = match T::Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => return process::usage_error(&error),
    };
    telemetry::init(&log);
    let result = stop_on_signals(about.binary).and_then(|stop| T::run(arguments, settings, &stop));
    result.unwrap_or_else(|error| process::failure(about.binary, &error))
}

/// A stop that is given by the first SIGTERM or SIGINT, and enforced: past the deadline the process ends with status 1.
fn stop_on_signals(binary: &'static str) -> anyhow::Result<Stop> {
    let (mut stopper, stop) = stop_pair();
    let (sender, events) = crossbeam_channel::bounded(1);
    process::catch_signals_of_tool(StopHandle::new(sender))?;
    std::thread::Builder::new().name("stopper".to_owned()).spawn(move || {
        if let Ok(Event::StopRequested { .. }) = events.recv() {
            stopper.stop(Instant::now() + GRACE);
            std::thread::sleep(GRACE);
            end_at_once(binary);
        }
    })?;
    Ok(stop)
}

/// Ends the process, whatever its other threads do.
fn end_at_once(binary: &'static str) -> ! {
    let (said, heard) = crossbeam_channel::bounded::<()>(0);
    let last_words = std::thread::Builder::new().spawn(move || {
        eprintln!("{binary}: did not end within {} s of being told to stop: ending at once", GRACE.as_secs());
        drop(said);
    });
    // Nothing is ever sent: it is over when the line is out, or when it does not get out.
    let _ = last_words.map(|_| heard.recv_timeout(LAST_WORDS));
    std::process::exit(1);
}
