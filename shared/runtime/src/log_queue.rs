//! Writes to standard error through a bounded queue and a thread, so that a log that cannot be
//! written, or that no process reads, costs log lines and nothing else.
//!
//! ```text
//!  a thread that logs ─▶ shorten ─▶ queue of QUEUED_LINES ─▶ thread "log" ─▶ write(2), may block
//!                                      │ full: dropped, counted    │ fails: dropped, counted
//!  libpcap, libzmq ─▶ descriptor 2, which does not block ───────────▶ same pipe or terminal
//! ```
//! If the journal reads them, lines begin with their priority.
//!
//! Queue and thread are those of tracing-appender. Its guard is not used, because it prints to
//! standard output, which carries data, when the queue is full; [`flush`] waits for the lines
//! instead.

use std::{
    borrow::Cow,
    fmt::Display,
    fs::{File, OpenOptions},
    io::{self, LineWriter, Write},
    mem,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    panic::catch_unwind,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::OFlags,
    net::sockopt::{Timeout, set_socket_timeout},
};
use serde_json::{Map, Value};
use tracing::Metadata;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder};
use tracing_subscriber::fmt::MakeWriter;

use crate::journal;

/// The longest line of the log, bytes, with its line feed.
const MAX_LINE_BYTES: usize = 8 << 10;

/// The longest text of one field of a line that is too long, bytes.
const MAX_FIELD_BYTES: usize = 1 << 10;

/// The capacity of the queue. Together with [`MAX_LINE_BYTES`] it bounds the memory.
const QUEUED_LINES: usize = 2048;

/// How long an exit waits for the lines that are queued.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// How often [`flush`] checks whether they have been written.
const FLUSH_ROUND: Duration = Duration::from_millis(1);

/// How long a library's write to standard error may block if that is a socket.
const SOCKET_TIME: Duration = Duration::from_millis(100);

/// The end of a line that was too long.
const CUT: &str = "... (cut)\n";

static QUEUE: OnceLock<Queue> = OnceLock::new();

struct Queue {
    /// `None` if the thread could not be spawned.
    lines: Option<NonBlocking>,
    counts: Arc<Counts>,
    /// Whether the lines are read by the journal.
    is_journal: bool,
}

/// Numbers of lines since the start.
#[derive(Debug, Default)]
struct Counts {
    submitted: AtomicU64,
    /// Written, or failed to be written.
    handled: AtomicU64,
    not_written: AtomicU64,
}

/// The lines that were dropped since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DroppedLines {
    /// The queue was full.
    pub(crate) queue_full: u64,
    /// Writing failed.
    pub(crate) write_failed: u64,
}

/// Starts the thread, and makes descriptor 2 non-blocking. Further calls have no effect. Returns
/// whether the journal reads the lines.
pub(crate) fn start() -> bool {
    queue().is_journal
}

/// Waits until the queued lines are written, for a second at most. To be called before each exit.
pub(crate) fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let submitted = queue.counts.submitted.load(Ordering::SeqCst);
    let give_up = Instant::now() + FLUSH_TIME;
    while queue.counts.handled.load(Ordering::SeqCst) + queue.overflowed() < submitted && Instant::now() < give_up {
        thread::sleep(FLUSH_ROUND);
    }
}

/// Prints a message of any length for the user, after the log lines before it. Waits as `flush`
/// does, and never fails.
pub fn print_message(message: impl Display) {
    let queue = queue();
    let message = message.to_string();
    match queue.is_journal {
        true => queue.push(journal::with_prefix(journal::ERROR, &message).as_bytes()),
        false => queue.push(format!("{message}\n").as_bytes()),
    }
    flush();
}

/// A writer for such messages, which never fails. Lines are written when they are complete.
pub fn messages() -> impl Write {
    LineWriter::new(Messages)
}

/// The lines that were dropped so far.
pub(crate) fn dropped_lines() -> DroppedLines {
    QUEUE.get().map_or_else(DroppedLines::default, |queue| DroppedLines {
        queue_full: queue.overflowed(),
        write_failed: queue.counts.not_written.load(Ordering::SeqCst),
    })
}

/// The writer of the log's lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogLines {
    pub(crate) is_json: bool,
    /// The prefix of the next line.
    prefix: &'static str,
}

impl LogLines {
    pub(crate) fn new(is_json: bool) -> LogLines {
        LogLines { is_json, prefix: "" }
    }
}

impl MakeWriter<'_> for LogLines {
    type Writer = LogLines;

    fn make_writer(&self) -> LogLines {
        *self
    }

    fn make_writer_for(&self, metadata: &Metadata<'_>) -> LogLines {
        let prefix = if queue().is_journal { journal::prefix(*metadata.level()) } else { "" };
        LogLines { prefix, ..*self }
    }
}

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    /// The subscriber calls it once per line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let line = match line.len() <= MAX_LINE_BYTES {
            true => Cow::Borrowed(line),
            false if self.is_json => Cow::Owned(shorten_json(line).into_bytes()),
            false => Cow::Owned(shorten_text(line).into_bytes()),
        };
        match self.prefix {
            "" => queue().push(&line),
            prefix => queue().push(&[prefix.as_bytes(), &line].concat()),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        queue().push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn queue() -> &'static Queue {
    QUEUE.get_or_init(|| {
        let counts = Arc::new(Counts::default());
        // Asked first, because taking it may replace descriptor 2.
        let is_journal = journal::is_stream(io::stderr());
        let output = Output { file: take_standard_error().ok(), counts: Arc::clone(&counts) };
        let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).thread_name("log");
        // It panics when no thread can be spawned.
        let started = catch_unwind(std::panic::AssertUnwindSafe(|| builder.finish(output))).ok();
        let lines = started.map(|(lines, guard)| {
            mem::forget(guard);
            lines
        });
        Queue { lines, counts, is_journal }
    })
}

impl Queue {
    fn push(&self, line: &[u8]) {
        self.counts.submitted.fetch_add(1, Ordering::SeqCst);
        match &self.lines {
            Some(lines) => {
                // It never fails: excess lines are counted.
                let _ = lines.clone().write_all(line);
            }
            None => self.counts.skip(),
        }
    }

    /// Lines dropped because the queue was full.
    fn overflowed(&self) -> u64 {
        self.lines.as_ref().map_or(0, |lines| lines.error_counter().dropped_lines() as u64)
    }
}

impl Counts {
    fn skip(&self) {
        self.not_written.fetch_add(1, Ordering::SeqCst);
        self.handled.fetch_add(1, Ordering::SeqCst);
    }
}

/// The thread's end of the queue.
struct Output {
    /// `None` if there is no standard error.
    file: Option<File>,
    counts: Arc<Counts>,
}

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    /// tracing-appender calls it once per line. An error would make it print to standard error.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        match self.file.as_ref().map(|file| write_blocking(file, line)) {
            Some(Ok(())) => {
                self.counts.handled.fetch_add(1, Ordering::SeqCst);
            }
            Some(Err(_)) | None => self.counts.skip(),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of it, also to a pipe that another process has made non-blocking.
fn write_blocking(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(file, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A file for the thread. Descriptor 2 is left to libraries, and is non-blocking from now on.
fn take_standard_error() -> io::Result<File> {
    let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_char_device() {
        // The flag belongs to the open file description, which other processes may share, so the
        // file is opened again. A regular file is left alone: it never blocks, and a second
        // description would have a position of its own.
        let mut options = OpenOptions::new();
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = options.write(true).custom_flags(flags.bits() as i32).open("/proc/self/fd/2");
        if let Ok(opened) = opened {
            let _ = rustix::stdio::dup2_stderr(&opened);
        }
    } else if kind.is_socket() {
        let _ = set_socket_timeout(&file, Timeout::Send, Some(SOCKET_TIME));
    }
    Ok(file)
}

fn shorten_text(line: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(&line[..MAX_LINE_BYTES - CUT.len()]).into_owned();
    cut(&mut text, MAX_LINE_BYTES - CUT.len());
    text + CUT
}

/// The same line with shorter texts, so that it remains JSON.
fn shorten_json(line: &[u8]) -> String {
    let mut fields: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
    for value in fields.values_mut() {
        if let Value::String(text) = value
            && text.len() > MAX_FIELD_BYTES
        {
            cut(text, MAX_FIELD_BYTES);
            text.push_str(CUT.trim_end());
        }
    }
    fields.insert("cut".to_owned(), Value::from(line.len()));
    let shortened = Value::from(fields.clone()).to_string() + "\n";
    if shortened.len() <= MAX_LINE_BYTES {
        return shortened;
    }
    // A field is at most six times as long in JSON, so that these five fit.
    fields.retain(|name, _| ["timestamp", "level", "target", "message", "cut"].contains(&name.as_str()));
    for value in fields.values_mut() {
        if let Value::String(text) = value {
            cut(text, MAX_FIELD_BYTES / 4);
        }
    }
    Value::from(fields).to_string() + "\n"
}

/// Shortens it to at most `bytes`.
fn cut(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_and_ends_in_a_line_feed() {
        let line = "é\u{1f600}".repeat(MAX_LINE_BYTES) + "\n";
        for start in 0..6 {
            let text = shorten_text(&line.as_bytes()[start..]);
            assert!(text.len() <= MAX_LINE_BYTES + CUT.len() && text.ends_with(CUT), "{} bytes", text.len());
        }
    }

    #[test]
    fn a_long_line_of_json_remains_json() {
        let long = "\u{1}ä".repeat(MAX_LINE_BYTES);
        let one = serde_json::json!({"level": "WARN", "message": "x", "error": long});
        let shortened: Value = serde_json::from_str(&shorten_json(one.to_string().as_bytes())).unwrap();
        assert_eq!((&shortened["level"], &shortened["message"]), (&Value::from("WARN"), &Value::from("x")));
        assert!(shortened["error"].as_str().unwrap().ends_with("(cut)"));

        let fields = (0..100).map(|number| (format!("field{number}"), Value::from(long.as_str())));
        let many: Map<String, Value> = fields.chain([("message".to_owned(), Value::from(long.as_str()))]).collect();
        let shortened = shorten_json(Value::from(many).to_string().as_bytes());
        assert!(shortened.len() <= MAX_LINE_BYTES, "{} bytes", shortened.len());
        let shortened: Value = serde_json::from_str(&shortened).unwrap();
        assert!(shortened["message"].as_str().unwrap().starts_with("\u{1}ä"));
    }
}
