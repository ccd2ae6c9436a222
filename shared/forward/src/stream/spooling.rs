//! The spool: messages that a destination missed, on disk. They are written in groups, replayed in
//! order at a capped rate, and committed when the peer's TCP has acknowledged them.
//!
//! ```text
//! entry = version 1 (1) | captured_at_ns 8, little endian | payload
//! ```
//! The log is that of `sekiwake-segments`. After a stop, a kill or a power failure, replay
//! continues from the newest commit on disk: some messages may arrive twice, none is lost.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sekiwake_runtime::{Losses, RateLimited};
use sekiwake_segments::{Log, LogError, Reader, Settings};
use tracing::{info, warn};

use super::{
    SpoolSettings,
    flight::{PART_BYTES, Sums},
    frame::Framing,
    suspects::Suspects,
};
use crate::metrics::{DropReason, SpoolMetrics};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 8;

/// Room for the longest payload with its header and the framing of the log.
const LEAST_SEGMENT_BYTES: u64 = 128 * 1024;
const LARGEST_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// How long the spool is not used after a disk error.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The largest burst of replayed messages, as time at the capped rate, so that a pause of the
/// thread does not lower the rate.
const BURST: Duration = Duration::from_millis(100);

/// The spool of one destination.
pub(crate) struct Spool {
    label: String,
    framing: Framing,
    log: Log,
    reader: Reader,
    entry: Vec<u8>,
    /// Parts given to the connection.
    parts: VecDeque<Replayed>,
    suspects: Suspects,
    /// The oldest entry when the suspects were last counted: it may be evicted meanwhile.
    suspected_at: u64,
    budget: Budget,
    /// Until then nothing is written, and nothing read.
    failed_until: Option<Instant>,
    read_failed_until: Option<Instant>,
    failed_log: RateLimited,
    metrics: SpoolMetrics,
    dropped: Losses<DropReason>,
}

/// One write to the connection.
struct Replayed {
    /// The position of its end in the stream.
    position: u64,
    /// The sequence number after its last entry.
    next: u64,
    sums: Sums,
}

/// Everything needed to open a spool.
pub(crate) struct Opening {
    pub(crate) settings: SpoolSettings,
    pub(crate) framing: Framing,
    pub(crate) replay_rate: u32,
    pub(crate) metrics: SpoolMetrics,
    pub(crate) dropped: Losses<DropReason>,
}

impl Opening {
    pub(crate) fn open(&self, label: &str, now: Instant) -> Result<Spool, LogError> {
        let Opening { settings, framing, replay_rate, metrics, dropped } = self;
        let segment_bytes = (settings.max_bytes / 8).clamp(LEAST_SEGMENT_BYTES, LARGEST_SEGMENT_BYTES);
        let log_settings = Settings { dir: settings.dir.clone(), segment_bytes, max_bytes: settings.max_bytes };
        let (log, recovered) = Log::open(log_settings)?;
        let messages = recovered.entries;
        let bytes = recovered.bytes;
        let torn_bytes = recovered.torn_bytes;
        if messages > 0 {
            info!(destination = label, messages, bytes, "spool recovered, its messages will be sent");
        }
        if torn_bytes > 0 {
            // After a kill, the rest of one unfinished write; anything longer is damage.
            warn!(destination = label, torn_bytes, "spool truncated, its end is unreadable");
        }
        if recovered.vanished > 0 {
            let messages = recovered.vanished;
            warn!(destination = label, messages, "spool files are missing, their messages are lost");
            dropped.add(DropReason::SpoolCorrupt, messages);
        }
        if recovered.evicted > 0 {
            let messages = recovered.evicted;
            warn!(destination = label, messages, "spool limit reduced, oldest messages dropped");
            dropped.add(DropReason::SpoolFull, messages);
        }
        let reader = Reader::new(log.oldest_sequence());
        let spool = Spool {
            label: label.to_owned(),
            framing: *framing,
            log,
            reader,
            entry: Vec::new(),
            parts: VecDeque::new(),
            suspects: Suspects::default(),
            suspected_at: 0,
            budget: Budget::new(*replay_rate, now),
            failed_until: None,
            read_failed_until: None,
            failed_log: RateLimited::default(),
            metrics: metrics.clone(),
            dropped: dropped.clone(),
        };
        spool.show();
        Ok(spool)
    }

    /// Counts a failure to open. A spool that another worker still has is not one.
    pub(crate) fn count_failure(&self, error: &LogError) {
        if !matches!(error, LogError::Locked(_)) {
            self.metrics.errors.inc();
        }
    }
}

impl Spool {
    /// Whether the disk has not failed lately.
    pub(crate) fn is_usable(&mut self, now: Instant) -> bool {
        if self.failed_until.is_some_and(|until| until <= now) {
            self.failed_until = None;
        }
        self.failed_until.is_none()
    }

    /// Writes and syncs messages. Returns the sums of the written and the empty ones, which are
    /// left out; `None` when the disk fails: then none is written, and none will be replayed.
    /// `feed` calls its argument with each message until that returns `false`.
    pub(crate) fn put(&mut self, feed: impl FnOnce(&mut dyn FnMut(&[u8], u64) -> bool), now: Instant) -> Option<Sums> {
        let mark = match self.log.mark() {
            Ok(mark) => mark,
            Err(error) => {
                self.failed(&error, now);
                return None;
            }
        };
        let mut sums = Sums::default();
        let mut outcome = Ok(());
        feed(&mut |payload, captured_at_ns| {
            if self.framing.framed(payload).is_empty() {
                sums.empty += 1;
                return true;
            }
            self.entry.clear();
            self.entry.push(VERSION);
            self.entry.extend_from_slice(&captured_at_ns.to_le_bytes());
            self.entry.extend_from_slice(payload);
            sums.messages += 1;
            sums.bytes += payload.len() as u64;
            // After an error, `false` ends this batch only. Messages of later batches must not be
            // appended either, because the log would have a gap.
            if outcome.is_ok() {
                outcome = self.log.append(&self.entry).map(drop);
            }
            outcome.is_ok()
        });
        let outcome = outcome.and_then(|()| self.log.sync());
        if outcome.is_err() {
            // They are counted elsewhere, or put again: none of them may be replayed.
            if let Err(error) = self.log.withdraw(mark) {
                self.report(&error, now);
            }
        }
        self.dropped.add(DropReason::SpoolFull, self.log.take_evicted());
        if let Err(error) = outcome {
            self.failed(&error, now);
            self.show();
            return None;
        }
        self.metrics.spooled.inc_by(sums.messages);
        self.show();
        Some(sums)
    }

    /// Whether there are messages to replay that are not given to the connection.
    pub(crate) fn has_more(&self) -> bool {
        self.reader.position() < self.log.next_sequence()
    }

    /// Whether something is given to the connection and not acknowledged.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Fills `out` with the frames of the next messages, as many as the rate allows now, and at
    /// most `limit`. Gives their sums.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, limit: u64, now: Instant) -> Option<Sums> {
        out.clear();
        // A full disk can still be read, and replaying makes room.
        if !self.has_more() || self.read_failed_until.is_some_and(|until| now < until) {
            return None;
        }
        let allowed = self.budget.available(now).min(limit);
        let mut sums = Sums::default();
        while sums.messages < allowed && out.len() < PART_BYTES {
            match self.log.read(&mut self.reader) {
                Ok(Some(entry)) => {
                    // An entry of another version is unreadable, and counts as corrupt.
                    if let Some(payload) = payload_of(entry.payload)
                        && self.framing.frame(payload, out)
                    {
                        sums.messages += 1;
                        sums.bytes += payload.len() as u64;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.read_failed_until = Some(now + RETRY_AFTER);
                    self.report(&error, now);
                    break;
                }
            }
        }
        self.budget.spend(sums.messages);
        if sums.messages == 0 {
            if self.parts.is_empty() && allowed > 0 {
                // Only corrupt entries: they are committed.
                self.commit(self.reader.position(), 0, now);
            }
            return None;
        }
        Some(sums)
    }

    /// The filled messages were given to the connection, and end at this position of the stream.
    pub(crate) fn given(&mut self, position: u64, sums: Sums) {
        self.parts.push_back(Replayed { position, next: self.reader.position(), sums });
    }

    /// The peer's TCP has acknowledged the stream up to this position. Returns the sums of the
    /// messages that are sent by that.
    pub(crate) fn acknowledged(&mut self, position: u64, now: Instant) -> Sums {
        let mut next = 0;
        let mut sums = Sums::default();
        while let Some(part) = self.parts.front()
            && part.position <= position
        {
            next = part.next;
            sums.messages += part.sums.messages;
            sums.bytes += part.sums.bytes;
            self.parts.pop_front();
        }
        if sums.messages == 0 {
            return sums;
        }
        if self.parts.is_empty() {
            // Entries skipped since then are corrupt, and committed as well.
            next = self.reader.position();
        }
        self.suspects.survived(sums.messages);
        sums.messages = self.commit(next, sums.messages, now);
        sums
    }

    /// The suspects among the oldest messages.
    pub(crate) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// The peer has ended the connection. Returns whether it may be because of a message here.
    pub(crate) fn suspect(&mut self) -> bool {
        let given = self.parts.iter().map(|part| part.sums.messages).sum();
        let oldest = self.log.oldest_sequence();
        if std::mem::replace(&mut self.suspected_at, oldest) != oldest {
            self.suspects = Suspects::default();
        }
        self.suspects.ended(given);
        given > 0
    }

    /// Drops the oldest message, which is not given to a connection, and returns it.
    pub(crate) fn reject_oldest(&mut self, now: Instant) -> Option<Vec<u8>> {
        let mut reader = Reader::new(self.log.oldest_sequence());
        let oldest = loop {
            match self.log.read(&mut reader) {
                Ok(Some(entry)) => match payload_of(entry.payload) {
                    Some(payload) if !self.framing.framed(payload).is_empty() => break payload.to_vec(),
                    _ => {}
                },
                Ok(None) => return None,
                Err(error) => {
                    self.report(&error, now);
                    return None;
                }
            }
        };
        let passed = self.pass(reader.position(), now);
        self.dropped.add(DropReason::Rejected, passed.min(1));
        self.dropped.add(DropReason::SpoolCorrupt, passed.saturating_sub(1));
        self.suspects.removed(1);
        self.reader = Reader::new(self.log.oldest_sequence());
        self.show();
        Some(oldest)
    }

    /// The connection is closed: unacknowledged messages are replayed again.
    pub(crate) fn broken(&mut self) {
        self.parts.clear();
        if self.reader.position() > self.log.oldest_sequence() {
            self.reader = Reader::new(self.log.oldest_sequence());
        }
    }

    /// Commits all entries below `next`, of which `messages` were sent. Returns how many of the
    /// sent ones had not been evicted, and counted, before.
    fn commit(&mut self, next: u64, messages: u64, now: Instant) -> u64 {
        let passed = self.pass(next, now);
        let sent = messages.min(passed);
        self.metrics.replayed.inc_by(sent);
        self.dropped.add(DropReason::SpoolCorrupt, passed - sent);
        self.show();
        sent
    }

    /// Commits all entries below `next`, and returns how many there were.
    fn pass(&mut self, next: u64, now: Instant) -> u64 {
        let before = self.log.entries();
        if let Err(error) = self.log.commit(next) {
            self.failed(&error, now);
        }
        before.saturating_sub(self.log.entries())
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
        self.metrics.datagrams.set(self.log.entries() as i64);
        self.metrics.bytes.set(self.log.bytes() as i64);
    }
}

fn payload_of(entry: &[u8]) -> Option<&[u8]> {
    match entry.first() {
        Some(&VERSION) => entry.get(HEAD_BYTES..),
        _ => None,
    }
}

/// A token bucket, in messages. Not that of `routing`, because this one is empty at first and its
/// burst is shorter than a second.
#[derive(Debug)]
struct Budget {
    rate: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn new(rate: u32, now: Instant) -> Budget {
        Budget { rate: f64::from(rate.max(1)), tokens: 0.0, at: now }
    }

    fn available(&mut self, now: Instant) -> u64 {
        let burst = (self.rate * BURST.as_secs_f64()).max(1.0);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(burst);
        self.at = now;
        self.tokens as u64
    }

    fn spend(&mut self, messages: u64) {
        self.tokens -= messages as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_kept_and_bursts_are_a_tenth_of_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(5_000, start);
        let mut spent = 0;
        for millisecond in 1..=2_000 {
            let available = budget.available(start + Duration::from_millis(millisecond));
            budget.spend(available);
            spent += available;
        }
        assert!((9_990..=10_000).contains(&spent), "{spent}");
        assert_eq!(budget.available(start + Duration::from_secs(3_600)), 500);
        let mut slow = Budget::new(1, start);
        assert_eq!(slow.available(start + Duration::from_millis(900)), 0);
        assert_eq!(slow.available(start + Duration::from_millis(1_001)), 1);
    }
}
