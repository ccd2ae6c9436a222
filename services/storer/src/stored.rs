//! Stored datagrams in the order of their capture, read ahead by a thread.
//!
//! ```text
//! files ─▶ read, in a thread ─ chunks, a few ─▶ Stored: peek, advance
//! ```

use std::{
    cell::RefCell,
    io,
    ops::{ControlFlow, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use sekiwake_archive::{Found, Origin, SearchSummary, Selection, read};
use sekiwake_record::{Kind, Record};

/// A chunk is passed on at this size, or this late.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNK_DATAGRAMS: usize = 2048;
const CHUNK_AGE: Duration = Duration::from_millis(20);

/// How many chunks are read ahead.
const CHUNKS: usize = 4;

/// How long a stopped reader may take to say what it has read.
const END_WITHIN: Duration = Duration::from_secs(1);

/// A stored datagram.
pub(crate) struct Datagram<'a> {
    pub(crate) origin: Origin,
    pub(crate) kind: Kind,
    pub(crate) record: Record<'a>,
}

/// The result of [`Stored::peek`].
pub(crate) enum Peeked<'a> {
    Datagram(Datagram<'a>),
    /// Nothing has been read in time.
    Nothing,
    End,
}

/// Datagrams that have been read.
#[derive(Default)]
struct Chunk {
    entries: Vec<Entry>,
    payloads: Vec<u8>,
}

struct Entry {
    origin: Origin,
    kind: Kind,
    /// Without its payload.
    record: Record<'static>,
    payload: Range<usize>,
}

enum Read {
    Chunk(Chunk),
    End(io::Result<SearchSummary>),
}

/// The selected datagrams, oldest first.
pub(crate) struct Stored {
    messages: Receiver<Read>,
    is_stopped: Arc<AtomicBool>,
    chunk: Chunk,
    next: usize,
    summary: Option<io::Result<SearchSummary>>,
}

impl Stored {
    /// Starts to read.
    ///
    /// # Errors
    /// No thread can be spawned.
    pub(crate) fn open(selection: Selection) -> io::Result<Stored> {
        let (sender, messages) = bounded(CHUNKS);
        let is_stopped = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&is_stopped);
        thread::Builder::new().name("read".to_owned()).spawn(move || {
            let collector = RefCell::new(Collector { sender, chunk: Chunk::default(), since: Instant::now() });
            let is_wanted = || {
                !stopped.load(Relaxed) && collector.try_borrow_mut().is_ok_and(|mut all| all.flush_old().is_continue())
            };
            let mut visit = |found: &Found<'_>| collector.borrow_mut().add(found);
            let outcome = read(&selection, &is_wanted, &mut visit);
            let mut collector = collector.into_inner();
            if collector.flush().is_continue() {
                let _ = collector.sender.send(Read::End(outcome));
            }
        })?;
        Ok(Stored { messages, is_stopped, chunk: Chunk::default(), next: 0, summary: None })
    }

    /// The next datagram, if there is one within `timeout`.
    pub(crate) fn peek(&mut self, timeout: Duration) -> Peeked<'_> {
        while self.next >= self.chunk.entries.len() {
            if self.summary.is_some() {
                return Peeked::End;
            }
            match self.messages.recv_timeout(timeout) {
                Ok(Read::Chunk(chunk)) => (self.chunk, self.next) = (chunk, 0),
                Ok(Read::End(summary)) => self.summary = Some(summary),
                Err(RecvTimeoutError::Timeout) => return Peeked::Nothing,
                Err(RecvTimeoutError::Disconnected) => {
                    self.summary = Some(Err(io::Error::other("the reading thread has panicked")));
                }
            }
        }
        let Entry { origin, kind, record, payload } = &self.chunk.entries[self.next];
        let payload = &self.chunk.payloads[payload.clone()];
        Peeked::Datagram(Datagram { origin: *origin, kind: *kind, record: Record { payload, ..record.clone() } })
    }

    /// Moves on to the datagram behind the one that was peeked at.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }

    /// Stops reading. What was read, as far as that is known.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub(crate) fn finish(mut self) -> io::Result<SearchSummary> {
        self.is_stopped.store(true, Relaxed);
        let until = Instant::now() + END_WITHIN;
        loop {
            if let Some(summary) = self.summary {
                return summary;
            }
            match self.messages.recv_deadline(until) {
                Ok(Read::Chunk(_)) => {}
                Ok(Read::End(summary)) => self.summary = Some(summary),
                Err(_) => return Ok(SearchSummary::default()),
            }
        }
    }
}

/// Makes chunks of what is found.
struct Collector {
    sender: Sender<Read>,
    chunk: Chunk,
    /// When the chunk was begun.
    since: Instant,
}

impl Collector {
    fn add(&mut self, found: &Found<'_>) -> ControlFlow<()> {
        // What is damaged was counted when it was read.
        let Some(message) = found.message() else { return ControlFlow::Continue(()) };
        if self.chunk.entries.is_empty() {
            self.since = Instant::now();
        }
        let start = self.chunk.payloads.len();
        self.chunk.payloads.extend_from_slice(&message.payload);
        let kind = message.kind;
        let record = Record { payload: &[], ..message.record() };
        let payload = start..self.chunk.payloads.len();
        self.chunk.entries.push(Entry { origin: found.origin(), kind, record, payload });
        match self.chunk.payloads.len() >= CHUNK_BYTES || self.chunk.entries.len() >= CHUNK_DATAGRAMS {
            true => self.flush(),
            false => ControlFlow::Continue(()),
        }
    }

    fn flush_old(&mut self) -> ControlFlow<()> {
        match !self.chunk.entries.is_empty() && self.since.elapsed() >= CHUNK_AGE {
            true => self.flush(),
            false => ControlFlow::Continue(()),
        }
    }

    /// Passes the chunk on, and waits for room.
    fn flush(&mut self) -> ControlFlow<()> {
        if self.chunk.entries.is_empty() {
            return ControlFlow::Continue(());
        }
        match self.sender.send(Read::Chunk(std::mem::take(&mut self.chunk))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}
