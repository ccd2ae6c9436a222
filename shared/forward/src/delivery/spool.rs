//! The spool of one delivery: first in, first out.
//!
//! Entries have the form of [`entries`](super::entries). They are written and synced in groups,
//! read into the window in order, and committed when the other side has acknowledged them.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use sekiwake_runtime::{Losses, RateLimited};
use sekiwake_segments::{Log, LogError, Reader, Settings};
use tracing::{info, warn};

use super::{entries::Entries, outbox::Part};
use crate::metrics::{DropReason, SpoolMetrics};

/// The smallest spool, and its segments: the longest entry, a datagram with its rows, has less.
pub(crate) const LEAST_SPOOL_BYTES: u64 = 16 << 20;
const LEAST_SEGMENT_BYTES: u64 = 2 << 20;
const LARGEST_SEGMENT_BYTES: u64 = 16 << 20;

/// Datagrams are read from the spool in portions of about this many bytes.
const PORTION_BYTES: usize = 1 << 20;

/// How long the spool is not used after a disk error, and how often a locked one is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The place and the size of a spool.
#[derive(Clone, Debug)]
pub(crate) struct SpoolPlace {
    pub(crate) dir: PathBuf,
    pub(crate) max_bytes: u64,
}

/// A spool, or the wait for one that the worker before this one has not closed yet.
pub(super) struct Spool {
    label: String,
    place: SpoolPlace,
    open: Option<Open>,
    retry_at: Instant,
    failed_until: Option<Instant>,
    read_failed_until: Option<Instant>,
    failed_log: RateLimited,
    entry: Vec<u8>,
    metrics: SpoolMetrics,
    dropped: Losses<DropReason>,
}

struct Open {
    log: Log,
    reader: Reader,
}

impl Spool {
    /// # Errors
    /// When it cannot be opened, unless another worker still has it.
    pub(super) fn new(
        label: &str,
        place: SpoolPlace,
        metrics: SpoolMetrics,
        dropped: Losses<DropReason>,
        now: Instant,
    ) -> Result<Spool, LogError> {
        let mut spool = Spool {
            label: label.to_owned(),
            place,
            open: None,
            retry_at: now + RETRY_AFTER,
            failed_until: None,
            read_failed_until: None,
            failed_log: RateLimited::default(),
            entry: Vec::new(),
            metrics,
            dropped,
        };
        match spool.open() {
            Ok(()) | Err(LogError::Locked(_)) => Ok(spool),
            Err(error) => Err(error),
        }
    }

    fn open(&mut self) -> Result<(), LogError> {
        let max_bytes = self.place.max_bytes;
        let segment_bytes = (max_bytes / 8).clamp(LEAST_SEGMENT_BYTES, LARGEST_SEGMENT_BYTES);
        let (log, recovered) = Log::open(Settings { dir: self.place.dir.clone(), segment_bytes, max_bytes })?;
        let destination = &*self.label;
        if recovered.entries > 0 {
            let (datagrams, bytes) = (recovered.entries, recovered.bytes);
            info!(destination, datagrams, bytes, "spool recovered, its datagrams will be sent");
        }
        if recovered.torn_bytes > 0 {
            warn!(destination, torn_bytes = recovered.torn_bytes, "spool truncated, its end is unreadable");
        }
        if recovered.vanished > 0 {
            warn!(destination, datagrams = recovered.vanished, "spool files are missing, their datagrams are lost");
            self.dropped.add(DropReason::SpoolCorrupt, recovered.vanished);
        }
        if recovered.evicted > 0 {
            warn!(destination, datagrams = recovered.evicted, "spool limit reduced, oldest datagrams dropped");
            self.dropped.add(DropReason::SpoolFull, recovered.evicted);
        }
        let reader = Reader::new(log.oldest_sequence());
        self.open = Some(Open { log, reader });
        self.show();
        Ok(())
    }

    /// Opens a spool that was locked, when it is time to try again.
    pub(super) fn open_locked(&mut self, now: Instant) {
        if self.open.is_some() || now < self.retry_at {
            return;
        }
        self.retry_at = now + RETRY_AFTER;
        match self.open() {
            Ok(()) => {}
            Err(LogError::Locked(_)) => {
                if let Some(suppressed) = self.failed_log.allow(now) {
                    warn!(destination = self.label, suppressed, "spool is still in use, waiting for it");
                }
            }
            Err(error) => self.report(&error, now),
        }
    }

    /// Whether another worker still has it: nothing may overtake what is in it.
    pub(super) fn is_locked(&self) -> bool {
        self.open.is_none()
    }

    /// Whether the disk has not failed lately.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.open.is_some() && self.failed_until.is_none_or(|until| until <= now)
    }

    /// Whether it has datagrams that were not read since the start.
    pub(super) fn is_unread(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.reader.position() < open.log.next_sequence())
    }

    /// Writes and syncs datagrams, and returns the number of the first one. `None` when the disk
    /// fails: then none is written, and none will be read. `is_in_window`: how many of the first
    /// parts are in the window, and not to be read.
    pub(super) fn put(&mut self, parts: &[Part], in_window: usize, now: Instant) -> Option<u64> {
        let Some(Open { log, reader }) = &mut self.open else { return None };
        let mark = match log.mark() {
            Ok(mark) => mark,
            Err(error) => {
                self.failed(&error, now);
                return None;
            }
        };
        let first = log.next_sequence();
        let mut datagrams = 0;
        let mut outcome = Ok(());
        'parts: for part in parts {
            for entry in part.entries.range(part.range.clone()) {
                self.entry.clear();
                entry.encode(&mut self.entry);
                if let Err(error) = log.append(&self.entry) {
                    outcome = Err(error);
                    break 'parts;
                }
                datagrams += 1;
            }
        }
        let outcome = outcome.and_then(|()| log.sync());
        if let Err(error) = outcome {
            // They are counted elsewhere, or put again: none of them may be read.
            let withdrawn = log.withdraw(mark);
            self.dropped.add(DropReason::SpoolFull, log.take_evicted());
            self.failed(&error, now);
            if let Err(error) = withdrawn {
                self.report(&error, now);
            }
            self.show();
            return None;
        }
        self.dropped.add(DropReason::SpoolFull, log.take_evicted());
        if in_window > 0 {
            let kept: usize = parts.iter().take(in_window).map(|part| part.range.len()).sum();
            *reader = Reader::new(first + kept as u64);
        }
        self.metrics.spooled.inc_by(datagrams);
        self.show();
        Some(first)
    }

    /// The next datagrams, in order.
    pub(super) fn read(&mut self, now: Instant) -> Option<Entries> {
        // A full disk can still be read, and sending makes room.
        if !self.is_unread() || self.read_failed_until.is_some_and(|until| now < until) {
            return None;
        }
        let Some(Open { log, reader }) = &mut self.open else { return None };
        let mut entries = Entries::default();
        let mut failure = None;
        while entries.weight() < PORTION_BYTES {
            match log.read(reader) {
                // An entry of another version is unreadable, and counts as corrupt.
                Ok(Some(entry)) => {
                    entries.push_spooled(entry.payload, entry.sequence);
                }
                Ok(None) => break,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = failure {
            self.read_failed_until = Some(now + RETRY_AFTER);
            self.report(&error, now);
        }
        (entries.len() > 0).then_some(entries)
    }

    /// Commits what is below `next`, of which `datagrams` were sent or rejected. Returns how many
    /// of them had not been evicted, and counted, before.
    pub(super) fn commit(&mut self, next: u64, datagrams: u64, now: Instant) -> u64 {
        let Some(Open { log, .. }) = &mut self.open else { return datagrams };
        let before = log.entries();
        let outcome = log.commit(next.min(log.next_sequence()));
        let passed = before.saturating_sub(log.entries());
        if let Err(error) = outcome {
            self.failed(&error, now);
        }
        let counted = datagrams.min(passed);
        self.dropped.add(DropReason::SpoolCorrupt, passed - counted);
        self.metrics.replayed.inc_by(counted);
        self.show();
        counted
    }

    /// Everything that could be read is done: what is left is corrupt.
    pub(super) fn commit_read(&mut self, now: Instant) {
        let Some(Open { log, reader }) = &self.open else { return };
        let next = reader.position();
        if log.entries() > 0 && next > log.oldest_sequence() {
            self.commit(next, 0, now);
        }
    }

    fn failed(&mut self, error: &LogError, now: Instant) {
        self.failed_until = Some(now + RETRY_AFTER);
        self.report(error, now);
    }

    fn report(&mut self, error: &LogError, now: Instant) {
        self.metrics.errors.inc();
        if let Some(suppressed) = self.failed_log.allow(now) {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            warn!(destination = self.label, %error, cause, suppressed, "spool I/O failed");
        }
    }

    fn show(&self) {
        if let Some(Open { log, .. }) = &self.open {
            self.metrics.datagrams.set(log.entries() as i64);
            self.metrics.bytes.set(log.bytes() as i64);
        }
    }
}
