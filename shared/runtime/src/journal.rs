//! Standard error as a stream of systemd's journal, which stores the time of each line itself and
//! reads its priority from a prefix such as `<4>` (sd-daemon(3)).

use std::{env, os::fd::AsFd};

use rustix::fs::fstat;
use tracing::Level;

/// The priority of messages that are not log lines: reasons why the process cannot start.
pub(crate) const ERROR: &str = "<3>";

/// Whether this file is a stream of the journal: `JOURNAL_STREAM` has its device and inode
/// (systemd.exec(5)). A process whose standard error was redirected inherits the variable too.
pub(crate) fn is_stream(file: impl AsFd) -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    fstat(file).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The prefix of a line of this level.
pub(crate) fn prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => ERROR,
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// The text with a prefix before each of its lines.
pub(crate) fn with_prefix(prefix: &str, text: &str) -> String {
    text.lines().map(|line| format!("{prefix}{line}\n")).collect()
}
