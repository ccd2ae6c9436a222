//! Logs to standard error.

use std::io::{self, IsTerminal};

use sekiwake_settings::{Reader, Setting};
use tracing_subscriber::EnvFilter;

/// How and what to log.
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

/// The directives of an [`EnvFilter`], checked.
#[derive(Clone, Debug)]
struct LogFilter(String);

impl Setting for LogFilter {
    fn takes() -> &'static str {
        "a level (error, warn, info, debug, trace, off) or a filter such as info,sekiwake_bus=debug"
    }

    fn parse(text: &str) -> Result<LogFilter, String> {
        // EnvFilter takes a word that is no level for the name of a module, and then logs nothing else: `inof` would be silence.
        let is_level = |word: &str| word.parse::<tracing::level_filters::LevelFilter>().is_ok();
        let is_plain = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if let Some(word) = text.split(',').map(str::trim).find(|word| is_plain(word) && !is_level(word)) {
            return Err(format!("{word:?} is no level"));
        }
        EnvFilter::builder().parse(text).map(|_| LogFilter(text.to_owned())).map_err(|error| error.to_string())
    }
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

/// Starts logging. What was started first stays: tests run several processes' worth of roles in one.
pub(crate) fn init(settings: &LogSettings) {
    let filter = EnvFilter::builder().parse_lossy(&settings.filter.0);
    // https://no-color.org: any value but the empty one.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(!no_color && io::stderr().is_terminal());
    // An error says that there is a subscriber already.
    let _ = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
}

/// Panics go to the log as well, in the format that was asked for, with the thread and the place.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), location, message, "panicked");
    }));
}
