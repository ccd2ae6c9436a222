//! What a destination missed, on disk: put there in one piece, replayed in order at a capped rate, committed when the peer's TCP
//! has acknowledged it.
//!
//! ```text
//! entry = version 1 (1) | captured_at_ns 8, little endian | payload
//! ```
//! The log under it is that of `sekiwake-segments`. After the end of the process, by a signal or of the machine, replaying goes on
//! from the newest commit on disk: some messages may arrive twice, none is left out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sekiwake_runtime::{Losses, RateLimited};
use sekiwake_segments::{Log, LogError, Reader, Settings};
use tracing::{info, warn};

use super::{SpoolSettings, flight::PART_BYTES, frame::frame};
use crate::metrics::{DropReason, SpoolMetrics};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 8;

/// Room for the longest payload that there is, with its head and what the log puts around it.
const LEAST_SEGMENT_BYTES: u64 = 128 * 1024;
const LARGEST_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// How long a disk that has refused is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Messages that may be replayed at once, as time of the capped rate: what a pause of the thread must not cost.
const BURST: Duration = Duration::from_millis(100);

/// The spool of one destination.
pub(crate) struct Spool {
    label: String,
    log: Log,
    reader: Reader,
    entry: Vec<u8>,
    /// What was given to the connection.
    parts: VecDeque<Replayed>,
    budget: Budget,
    /// Until then the disk is left alone.
    failed_until: Option<Instant>,
    failed_log: RateLimited,
    metrics: SpoolMetrics,
    dropped: Losses<DropReason>,
}

/// What was given to the connection in one go.
struct Replayed {
    /// Where in the stream it ends.
    position: u64,
    /// The sequence number after its last entry.
    next: u64,
    messages: u64,
    bytes: u64,
}

/// What it takes to open a spool.
pub(crate) struct Opening {
    pub(crate) settings: SpoolSettings,
    pub(crate) replay_rate: u32,
    pub(crate) of_spool: SpoolMetrics,
    pub(crate) dropped: Losses<DropReason>,
}

impl Opening {
    pub(crate) fn open(&self, label: &str, now: Instant) -> Result<Spool, LogError> {
        let Opening { settings, replay_rate, of_spool, dropped } = self;
        let segment_bytes = (settings.max_bytes / 8).clamp(LEAST_SEGMENT_BYTES, LARGEST_SEGMENT_BYTES);
        let of_log = Settings { dir: settings.dir.clone(), segment_bytes, max_bytes: settings.max_bytes };
        let (log, recovered) = Log::open(of_log)?;
        if recovered.entries > 0 || recovered.torn_bytes > 0 {
            let (messages, bytes, torn_bytes) = (recovered.entries, recovered.bytes, recovered.torn_bytes);
            info!(destination = label, messages, bytes, torn_bytes, "the spool holds what was not sent before");
        }
        // What is found missing at the start was in no gauge of this process.
        let reader = Reader::new(log.oldest_sequence());
        let spool = Spool {
            label: label.to_owned(),
            log,
            reader,
            entry: Vec::new(),
            parts: VecDeque::new(),
            budget: Budget::new(*replay_rate, now),
            failed_until: None,
            failed_log: RateLimited::default(),
            metrics: of_spool.clone(),
            dropped: dropped.clone(),
        };
        spool.show();
        Ok(spool)
    }
}

impl Spool {
    /// Whether the disk has not refused lately.
    pub(crate) fn is_usable(&mut self, now: Instant) -> bool {
        if self.failed_until.is_some_and(|until| until <= now) {
            self.failed_until = None;
        }
        self.failed_until.is_none()
    }

    /// Puts messages in, and waits until the disk has them. Gives how many were put in, and how many are empty and are not; `None`
    /// when the disk refuses: then none counts, although some of them may be replayed. `feed` shows the messages to the function
    /// that it is given until that says `false`.
    pub(crate) fn put(
        &mut self,
        feed: impl FnOnce(&mut dyn FnMut(&[u8], u64) -> bool),
        now: Instant,
    ) -> Option<(u64, u64)> {
        let (mut put, mut empty) = (0, 0);
        let mut outcome = Ok(());
        feed(&mut |payload, captured_at_ns| {
            if payload.is_empty() {
                empty += 1;
                return true;
            }
            self.entry.clear();
            self.entry.push(VERSION);
            self.entry.extend_from_slice(&captured_at_ns.to_le_bytes());
            self.entry.extend_from_slice(payload);
            put += 1;
            // After a refusal nothing more is fed, of this batch; of the others each is refused again, or is a repetition.
            if outcome.is_ok() {
                outcome = self.log.append(&self.entry).map(drop);
            }
            outcome.is_ok()
        });
        let outcome = outcome.and_then(|()| self.log.sync());
        self.dropped.add(DropReason::SpoolFull, self.log.take_evicted());
        if let Err(error) = outcome {
            self.failed(&error, now);
            self.show();
            return None;
        }
        self.metrics.spooled.inc_by(put);
        self.show();
        Some((put, empty))
    }

    /// Whether there is something to be replayed that was not given to the connection.
    pub(crate) fn has_more(&self) -> bool {
        self.reader.position() < self.log.next_sequence()
    }

    /// Whether something was given to the connection and not acknowledged.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Fills `out` with frames of the next messages, as many as the rate allows now, and says how many they are and their bytes.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(u64, u64)> {
        out.clear();
        if !self.has_more() || !self.is_usable(now) {
            return None;
        }
        let allowed = self.budget.available(now);
        let (mut messages, mut bytes) = (0, 0);
        while messages < allowed && out.len() < PART_BYTES {
            match self.log.read(&mut self.reader) {
                Ok(Some(entry)) => {
                    // What another version has written differently is no message here, and counted as corrupt.
                    if let Some(payload) = payload_of(entry.payload)
                        && frame(payload, out)
                    {
                        messages += 1;
                        bytes += payload.len() as u64;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.failed(&error, now);
                    break;
                }
            }
        }
        self.budget.spend(messages);
        if messages == 0 {
            if self.parts.is_empty() && allowed > 0 {
                // Nothing but corrupt entries: they are done with.
                self.commit(self.reader.position(), 0, now);
            }
            return None;
        }
        Some((messages, bytes))
    }

    /// What was filled was given to the connection and ends at this position of the stream.
    pub(crate) fn given(&mut self, position: u64, messages: u64, bytes: u64) {
        self.parts.push_back(Replayed { position, next: self.reader.position(), messages, bytes });
    }

    /// The peer's TCP has the stream up to this position. Gives how many messages and bytes are sent by that.
    pub(crate) fn acknowledged(&mut self, position: u64, now: Instant) -> (u64, u64) {
        let (mut next, mut messages, mut bytes) = (0, 0, 0);
        while let Some(part) = self.parts.front()
            && part.position <= position
        {
            (next, messages, bytes) = (part.next, messages + part.messages, bytes + part.bytes);
            self.parts.pop_front();
        }
        if messages == 0 {
            return (0, 0);
        }
        (self.commit(next, messages, now), bytes)
    }

    /// The connection is gone: what is not acknowledged is replayed again.
    pub(crate) fn broken(&mut self) {
        self.parts.clear();
        if self.reader.position() > self.log.oldest_sequence() {
            self.reader = Reader::new(self.log.oldest_sequence());
        }
    }

    /// Commits all below `next`, of which so many were sent; gives how many of these had not been evicted, and counted, before.
    fn commit(&mut self, next: u64, messages: u64, now: Instant) -> u64 {
        let before = self.log.entries();
        if let Err(error) = self.log.commit(next) {
            self.failed(&error, now);
        }
        let passed = before.saturating_sub(self.log.entries());
        let sent = messages.min(passed);
        self.metrics.replayed.inc_by(sent);
        self.dropped.add(DropReason::SpoolCorrupt, passed - sent);
        self.show();
        sent
    }

    fn failed(&mut self, error: &LogError, now: Instant) {
        self.failed_until = Some(now + RETRY_AFTER);
        self.metrics.errors.inc();
        if let Some(suppressed) = self.failed_log.allow(now) {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            warn!(destination = self.label, %error, cause, suppressed, "the spool does not work");
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

/// A token bucket, in messages.
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
    fn the_rate_is_kept_over_seconds_and_a_pause_saves_up_no_more_than_a_tenth() {
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
