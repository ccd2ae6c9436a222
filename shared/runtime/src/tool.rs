//! Command-line tools: the same flags, settings, logs and signals as a service, without workers and
//! without an admin server.

use std::{
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};

use clap::{Args, FromArgMatches};
use sekiwake_settings::{Environment, Reader};

use crate::{
    About,
    cli::{self, CommandLine},
    log_queue::{self, print_message},
    process,
    stop::{Stop, stop_pair},
    supervisor::{Event, StopHandle},
    telemetry::{self, LogSettings},
};

/// How long a tool may take to end after a signal; [`Stop::deadline`] tells the tool. Then the
/// process exits, because the tool may be blocked writing to a pipe.
const GRACE: Duration = Duration::from_secs(2);

/// A tool, started from a terminal.
pub trait Tool {
    /// Its name; the port is not used.
    const ABOUT: About;

    /// Its command line.
    type Arguments: Args;

    /// Its settings, parsed.
    type Settings;

    /// Reads the settings. It cannot fail: the reader records mistakes.
    fn read(reader: &mut Reader) -> Self::Settings;

    /// As [`Role::describe`](crate::Role::describe).
    fn describe(_settings: &Self::Settings) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Runs until it has finished or is stopped. An error is printed with its whole chain and gives
    /// status 1.
    fn run(arguments: Self::Arguments, settings: Self::Settings, stop: &Stop) -> anyhow::Result<ExitCode>;
}

/// The whole `main` of a tool.
pub fn run_tool<T: Tool>() -> ExitCode {
    let code = run_to_end::<T>();
    log_queue::flush();
    code
}

/// The command line of a tool, for documentation.
pub fn tool_command_line<T: Tool>() -> CommandLine {
    // A tool reads only some of the variables of all services: its help lists these.
    let mut reader = Reader::new(&Environment::default());
    T::read(&mut reader);
    LogSettings::read(&mut reader);
    let mut line = CommandLine::new(T::ABOUT, |variable| reader.resolved().any(|(name, _)| name == variable.name));
    // The summary replaces the comment on the arguments, which clap would use.
    line.command = T::Arguments::augment_args(line.command).about(T::ABOUT.summary);
    line
}

fn run_to_end<T: Tool>() -> ExitCode {
    let about = T::ABOUT;
    let matches = match tool_command_line::<T>().command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return process::usage_error(&error),
    };
    let environment = match cli::environment(&matches) {
        Ok(environment) => environment,
        Err(error) => return process::usage_failure(about.binary, &error),
    };
    let mut reader = Reader::new(&environment);
    if !cli::wants_files(&matches) {
        reader = reader.without_files();
    }
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

/// A stop that the first SIGTERM or SIGINT requests, and that is enforced: after the deadline the
/// process exits with status 1.
fn stop_on_signals(binary: &'static str) -> anyhow::Result<Stop> {
    let (mut stopper, stop) = stop_pair();
    let (sender, events) = mpsc::sync_channel(1);
    process::catch_tool_signals(StopHandle::new(sender))?;
    std::thread::Builder::new().name("stopper".to_owned()).spawn(move || {
        if let Ok(Event::StopRequested { .. }) = events.recv() {
            stopper.stop(Instant::now() + GRACE);
            std::thread::sleep(GRACE);
            let limit = GRACE.as_secs();
            print_message(format_args!("{binary}: did not end within {limit} s after the signal, exiting"));
            std::process::exit(1);
        }
    })?;
    Ok(stop)
}
