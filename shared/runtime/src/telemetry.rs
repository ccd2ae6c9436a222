//! Logs to standard error.

use std::{
    io::{self, IsTerminal},
    sync::Once,
};

use sekiwake_settings::{Reader, Setting};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::log_queue::{self, LogLines};

/// The filter and format of the log.
#[derive(Clone, Debug)]
pub(crate) struct LogSettings {
    filter: LogFilter,
    format: LogFormat,
}

impl LogSettings {
    pub(crate) fn read(reader: &mut Reader) -> LogSettings {
        LogSettings { filter: reader.value("SEKIWAKE_LOG"), format: reader.value("SEKIWAKE_LOG_FORMAT") }
    }
}

/// The NATS client logs each refused login as an error; the bus says it once, with the setting.
const QUIET: &str = "async_nats=off";

/// The directives of an [`EnvFilter`], checked.
#[derive(Clone, Debug)]
struct LogFilter(String);

impl LogFilter {
    /// The directives, after those that the setting may override.
    fn directives(&self) -> String {
        format!("{QUIET},{}", self.0)
    }
}

impl Setting for LogFilter {
    fn takes() -> &'static str {
        "a level (error, warn, info, debug, trace, off) or a filter such as info,sekiwake_bus=debug"
    }

    fn parse(text: &str) -> Result<LogFilter, String> {
        // EnvFilter accepts nearly everything: it takes an unknown word for the name of a module,
        // and logs no other module, so that `inof` would silence the log.
        let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
        let mut directives = Vec::new();
        for directive in text.split(',').map(str::trim) {
            match directive.split_once('=') {
                None if is_level(directive) => {}
                None => return Err(format!("{directive:?} is not a level")),
                Some((module, _)) if !is_module(module) => return Err(format!("{module:?} is not a module")),
                Some((_, level)) if !is_level(level) => return Err(format!("{level:?} is not a level")),
                Some(_) => {}
            }
            directives.push(directive);
        }
        let filter = directives.join(",");
        EnvFilter::builder().parse(&filter).map(|_| LogFilter(filter)).map_err(|error| error.to_string())
    }
}

/// Whether it has the form of a module's path: `sekiwake_bus::relay`.
fn is_module(path: &str) -> bool {
    path.split("::").all(|name| {
        let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_word && !name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit())
    })
}

#[derive(Clone, Copy, Debug)]
enum LogFormat {
    Text,
    Json,
}

impl Setting for LogFormat {
    fn takes() -> &'static str {
        "text or json"
    }

    fn parse(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(String::new()),
        }
    }
}

/// Starts logging, also of panics. A second call has no effect: tests run the roles of several
/// processes in one process.
pub(crate) fn init(settings: &LogSettings) {
    // Asked first, because the queue replaces descriptor 2.
    let is_terminal = io::stderr().is_terminal();
    let is_journal = log_queue::start();
    let filter = EnvFilter::builder().parse_lossy(settings.filter.directives());
    // https://no-color.org: any value except the empty one.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogLines::new(matches!(settings.format, LogFormat::Json)))
        // It would report an error with eprintln!, which panics.
        .log_internal_errors(false)
        .with_ansi(!no_color && is_terminal);
    // Fails only if logging has been started.
    let _ = match settings.format {
        // The journal has its own time. Objects of JSON keep theirs, for their parsers.
        LogFormat::Text if is_journal => builder.without_time().try_init(),
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    static PANICS: Once = Once::new();
    PANICS.call_once(log_panics);
}

/// Logs panics, in the configured format, with thread and location. The line is written before the
/// thread unwinds, because the process may end with it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), location, message, "thread panicked");
        log_queue::flush();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nats_client_is_silent_unless_it_is_named() {
        let filter = |text| EnvFilter::builder().parse_lossy(LogFilter::parse(text).unwrap().directives()).to_string();
        assert!(filter("info").contains("async_nats=off"));
        assert!(!filter("info,async_nats=debug").contains("async_nats=off"));
    }
}
