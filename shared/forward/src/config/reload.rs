//! Destinations from a file: read at the start, and again when the file has changed or the process
//! gets a SIGHUP.
//!
//! The whole file is read twice per second, and a change is applied when two reads agree, so that a
//! file is not used half-written, whether it is replaced in place, by rename, or by the symbolic
//! links of a ConfigMap. It is polled, not watched with `inotify`, because to polling all three
//! look alike. A file with a mistake, or without a destination, is rejected: that is logged and
//! shown by a metric, and the current destinations stay.
//!
//! ```text
//! # A comment reaches to the end of the line.
//! udp://198.51.100.7:514?spoof=true
//! tls://siem.example.net:6514?min_severity=warning     # one URI or several on a line
//! ```

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::{IntCounter, IntGauge};
use sekiwake_record::Kind;
use sekiwake_runtime::{FileContents, Scope, Worker};
use sekiwake_settings::printable;
use tracing::{info, warn};

use super::destination::DestinationError;
use crate::{Destinations, metrics::names};

/// How often the file is read.
const READ_EVERY: Duration = Duration::from_millis(500);

/// A larger file is rejected: it is the wrong file.
const MAX_BYTES: u64 = 1 << 20;

/// New destinations, on their way from the watcher to the engine. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    newest: Arc<Mutex<Option<Destinations>>>,
    is_full: Arc<AtomicBool>,
    applied: IntCounter,
    rejected: IntCounter,
    in_use: IntGauge,
}

impl Inbox {
    pub(crate) fn new(kind: Kind, scope: &Scope) -> Inbox {
        let metrics = scope.metrics();
        let labels = [("kind", kind.as_str())];
        let counter = |outcome| {
            let labels = [labels[0], ("outcome", outcome)];
            metrics.counter(names::RELOADS, "Reloads of the destinations file.", &labels)
        };
        let in_use =
            metrics.gauge(names::FILE_IN_USE, "Whether the contents of the destinations file are in use.", &labels);
        in_use.set(1);
        let applied = counter("applied");
        let rejected = counter("rejected");
        Inbox { newest: Arc::default(), is_full: Arc::default(), applied, rejected, in_use }
    }

    /// Applies the newest destinations, if they have not been applied yet.
    pub(crate) fn apply(&self, apply: impl FnOnce(&Destinations) -> io::Result<()>) {
        if !self.is_full.load(Relaxed) {
            return;
        }
        self.is_full.store(false, Relaxed);
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(destinations) = newest else { return };
        match apply(&destinations) {
            Ok(()) => {
                info!(%destinations, "destinations changed");
                self.applied.inc();
                self.in_use.set(1);
            }
            Err(error) => self.reject(&error),
        }
    }

    fn put(&self, destinations: Destinations) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(destinations);
        self.is_full.store(true, Relaxed);
    }

    fn reject(&self, error: &dyn Display) {
        warn!(%error, "destinations file rejected, keeping the current destinations");
        self.rejected.inc();
        self.in_use.set(0);
    }
}

/// A destinations file, as it was read.
#[derive(Clone, Debug)]
pub struct DestinationsFile {
    path: PathBuf,
    text: String,
}

impl DestinationsFile {
    /// Reads the destinations of a file.
    ///
    /// # Errors
    /// As text: that it cannot be read, or the mistake with its line and column.
    pub(crate) fn read(kind: Kind, path: &Path) -> Result<(DestinationsFile, Destinations), String> {
        let text = read_text(path)?;
        let destinations = parse(kind, &text)?;
        Ok((DestinationsFile { path: path.to_owned(), text }, destinations))
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    FileContents::read(path, MAX_BYTES).and_then(FileContents::into_text).map_err(|error| error.to_string())
}

fn parse(kind: Kind, text: &str) -> Result<Destinations, String> {
    let in_line = |DestinationError { column, problem }: DestinationError| {
        let before: String = text.chars().take(column - 1).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        format!("line {line}, column {column}: {}", printable(&problem))
    };
    Destinations::parse(kind, &without_comments(text)).map_err(in_line)
}

/// The text with spaces instead of comments, so that columns stay. A `#` within a word does not
/// begin a comment, and makes the URI invalid.
fn without_comments(text: &str) -> String {
    let mut before = ' ';
    let mut in_comment = false;
    let blank = |character: char| {
        in_comment = character != '\n' && (in_comment || character == '#' && before.is_whitespace());
        before = character;
        if in_comment { ' ' } else { character }
    };
    text.chars().map(blank).collect()
}

/// Watches the file.
pub(crate) struct Watcher {
    kind: Kind,
    path: PathBuf,
    /// The contents that were acted on last.
    last: Result<String, String>,
    /// Changed contents that were read once, to be confirmed by a second read.
    unconfirmed: Option<Result<String, String>>,
    inbox: Inbox,
}

impl Watcher {
    /// A watcher of a file whose destinations have just been read.
    pub(crate) fn new(kind: Kind, file: DestinationsFile, inbox: Inbox) -> Watcher {
        Watcher { kind, path: file.path, last: Ok(file.text), unconfirmed: None, inbox }
    }

    /// Reads the file until the role stops.
    pub(crate) fn run(mut self, scope: &Scope, worker: &Worker) {
        let hangups = scope.hangups();
        let mut seen = hangups.count();
        while !worker.stop().wait(READ_EVERY) {
            worker.beat();
            let is_forced = std::mem::replace(&mut seen, hangups.count()) != seen;
            self.check(is_forced);
        }
    }

    /// Reads the file. `is_forced` makes the next confirmed contents count as changed.
    fn check(&mut self, is_forced: bool) {
        let text = read_text(&self.path);
        if is_forced {
            // Differs from any contents, so that they are acted on once they are confirmed.
            self.last = Err(String::new());
        }
        if text == self.last {
            self.unconfirmed = None;
            return;
        }
        if self.unconfirmed.as_ref() != Some(&text) {
            self.unconfirmed = Some(text);
            return;
        }
        self.unconfirmed = None;
        match text.clone().and_then(|text| parse(self.kind, &text)) {
            Ok(destinations) if destinations.is_empty() => {
                self.inbox.reject(&format!("{}: no destination, expected at least one", self.path.display()));
            }
            Ok(destinations) => self.inbox.put(destinations),
            Err(error) => self.inbox.reject(&format!("{}: {error}", self.path.display())),
        }
        self.last = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_mark_is_skipped_and_others_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("destinations");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            DestinationsFile::read(Kind::Syslog, &path).map(|(_, destinations)| destinations.to_string())
        };
        assert_eq!(read("\u{feff}udp://198.51.100.7:514\r\n").unwrap(), "udp://198.51.100.7:514");
        assert!(read("\u{feff}# none\r\nudp://a:1").is_ok());
        assert_eq!(
            read("\u{feff}udp://a:1 udp://b:5\u{200b}14").unwrap_err(),
            "line 1, column 19: port \"5\\u{200b}14\", expected a number from 1 to 65535"
        );
    }

    #[test]
    fn comments_reach_to_the_end_of_the_line_and_keep_columns() {
        let text = "# udp://no:1\nudp://a:1 # udp://no:2\r\n\n  udp://b:2\tudp://c:3#";
        assert_eq!(
            parse(Kind::Syslog, text).unwrap_err(),
            "line 4, column 22: a fragment is not supported, expected ? or the end"
        );
        let destinations = parse(Kind::Syslog, &text[..text.len() - 1]).unwrap();
        assert_eq!(destinations.to_string(), "udp://a:1 udp://b:2 udp://c:3");
        assert!(parse(Kind::Syslog, "# nothing").unwrap().is_empty());
        assert!(parse(Kind::Syslog, "é\nudp://é:1").unwrap_err().starts_with("line 1, column 1: "));
    }
}
