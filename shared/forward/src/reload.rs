//! Destinations from a file: read at the start, and again when the file has changed or the process gets a SIGHUP.
//!
//! What is wrong with a changed file is logged and shown by a metric; the destinations that were in use stay. The file is looked at twice a
//! second, whole, and a change counts when it was found twice, so that a file that is being written is not read half: it does not matter
//! how it is replaced, in place, by rename, or by the symbolic links of a ConfigMap. A file without a destination is refused.
//!
//! ```text
//! # A comment reaches to the end of the line.
//! udp://198.51.100.7:514?spoof=true
//! tls://siem.example.net:6514?min_severity=warning     # one URI or several on a line
//! ```

use std::{
    fmt::Display,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::{IntCounter, IntGauge};
use sekiwake_record::Kind;
use sekiwake_runtime::{Scope, Worker};
use tracing::{info, warn};

use crate::{Destinations, destination::DestinationError, metrics::names};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A file larger than this is refused: it is the wrong file.
const MAX_BYTES: u64 = 1 << 20;

/// Destinations that are to be used from now on, on their way from the watcher to whoever uses them. Clones are the same box.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    newest: Arc<Mutex<Option<Destinations>>>,
    is_full: Arc<AtomicBool>,
    applied: IntCounter,
    refused: IntCounter,
    in_use: IntGauge,
}

impl Inbox {
    pub(crate) fn new(kind: Kind, scope: &Scope) -> Inbox {
        let (metrics, labels) = (scope.metrics(), [("kind", kind.as_str())]);
        let counter = |outcome| {
            let labels = [labels[0], ("outcome", outcome)];
            metrics.counter(names::RELOADS, "Times that the file of destinations was read again.", &labels)
        };
        let in_use = metrics.gauge(names::FILE_IN_USE, "Whether what the file says is in use.", &labels);
        in_use.set(1);
        let (applied, refused) = (counter("applied"), counter("refused"));
        Inbox { newest: Arc::default(), is_full: Arc::default(), applied, refused, in_use }
    }

    /// Has the newest applied, if there are any that were not yet.
    pub(crate) fn apply(&self, apply: impl FnOnce(&Destinations) -> io::Result<()>) {
        if !self.is_full.load(Relaxed) {
            return;
        }
        self.is_full.store(false, Relaxed);
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(destinations) = newest else { return };
        match apply(&destinations) {
            Ok(()) => {
                info!(%destinations, "other destinations are in use");
                self.applied.inc();
                self.in_use.set(1);
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn put(&self, destinations: Destinations) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(destinations);
        self.is_full.store(true, Relaxed);
    }

    fn refuse(&self, error: &dyn Display) {
        warn!(%error, "the file of destinations is refused, those in use stay");
        self.refused.inc();
        self.in_use.set(0);
    }
}

/// A file of destinations, as it was read.
#[derive(Clone, Debug)]
pub struct DestinationsFile {
    path: PathBuf,
    text: String,
}

impl DestinationsFile {
    /// Reads the destinations of a file.
    ///
    /// # Errors
    /// In words: that it cannot be read, or where in it what is wrong.
    pub(crate) fn read(kind: Kind, path: &Path) -> Result<(DestinationsFile, Destinations), String> {
        let text = read_text(path)?;
        let destinations = parse(kind, &text)?;
        Ok((DestinationsFile { path: path.to_owned(), text }, destinations))
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > MAX_BYTES => Err(format!("larger than {MAX_BYTES} bytes")),
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

fn parse(kind: Kind, text: &str) -> Result<Destinations, String> {
    let in_line = |DestinationError { column, problem }: DestinationError| {
        let before: String = text.chars().take(column - 1).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        format!("line {line}, column {column}: {problem}")
    };
    Destinations::parse(kind, &without_comments(text)).map_err(in_line)
}

/// The text with spaces instead of comments, so that places in it stay. A `#` within a word is no comment, and refused by whoever
/// reads the word.
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
    /// What it said when it was looked at last.
    last: Result<String, String>,
    /// What it said when it had changed, to be seen again.
    fresh: Option<Result<String, String>>,
    inbox: Inbox,
}

impl Watcher {
    /// A watcher of a file whose destinations have just been read.
    pub(crate) fn new(kind: Kind, file: DestinationsFile, inbox: Inbox) -> Watcher {
        Watcher { kind, path: file.path, last: Ok(file.text), fresh: None, inbox }
    }

    /// Looks at the file until the role is told to stop.
    pub(crate) fn run(mut self, scope: &Scope, worker: &Worker) {
        let hangups = scope.hangups();
        let mut heard = hangups.count();
        while !worker.stop().wait(LOOK_EVERY) {
            worker.beat();
            let is_asked = std::mem::replace(&mut heard, hangups.count()) != heard;
            self.look(is_asked);
        }
    }

    fn look(&mut self, is_asked: bool) {
        let text = read_text(&self.path);
        if is_asked {
            // To be acted on when it is seen again, changed or not.
            self.last = Err(String::new());
        }
        if text == self.last {
            self.fresh = None;
            return;
        }
        if self.fresh.as_ref() != Some(&text) {
            self.fresh = Some(text);
            return;
        }
        self.fresh = None;
        match text.clone().and_then(|text| parse(self.kind, &text)) {
            Ok(destinations) if destinations.is_empty() => {
                self.inbox.refuse(&format!("{}: there is no destination in it", self.path.display()));
            }
            Ok(destinations) => self.inbox.put(destinations),
            Err(error) => self.inbox.refuse(&format!("{}: {error}", self.path.display())),
        }
        self.last = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_reach_to_the_end_of_the_line_and_places_stay_right() {
        let text = "# udp://no:1\nudp://a:1 # udp://no:2\r\n\n  udp://b:2\tudp://c:3#";
        assert_eq!(
            parse(Kind::Syslog, text).unwrap_err(),
            "line 4, column 22: a fragment has no meaning here, expected ? or the end"
        );
        let destinations = parse(Kind::Syslog, &text[..text.len() - 1]).unwrap();
        assert_eq!(destinations.to_string(), "udp://a:1 udp://b:2 udp://c:3");
        assert!(parse(Kind::Syslog, "# nothing").unwrap().is_empty());
        assert!(parse(Kind::Syslog, "é\nudp://é:1").unwrap_err().starts_with("line 1, column 1: "));
    }
}
