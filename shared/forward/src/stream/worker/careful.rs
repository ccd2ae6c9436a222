//! The careful side of a stream worker: which message does the peer end its connections at? See
//! `suspects`.

use std::time::Instant;

use sekiwake_bus::boot_now;
use tracing::warn;

use super::{StreamWorker, observe};
use crate::{
    metrics::DropReason,
    stream::{connection::Broken, flight::Filled, spooling::Spool, suspects::TRIES},
};

/// The bytes of a rejected message that are logged.
const LOGGED_BYTES: usize = 128;

impl<B: AsRef<[u8]> + From<Vec<u8>>> StreamWorker<B> {
    /// The peer has ended the connection, perhaps because of a message that is not known to be
    /// sent. Returns whether there is one.
    pub(super) fn suspect(&mut self) -> bool {
        if !self.awaits_acknowledgement() || !self.link.is_careful() && self.link.ended_young() {
            return false;
        }
        let live = self.flight.suspect();
        let spooled = self.spool.spool_mut().is_some_and(Spool::suspect);
        if live || spooled {
            self.link.set_careful(true);
        }
        live || spooled
    }

    /// Drops the messages at which the peer has ended too many connections.
    pub(super) fn reject_suspects(&mut self, now: Instant) {
        let mut rejected = None;
        if self.flight.suspects().convicts_oldest() {
            let (oldest, empty) = self.flight.reject_oldest();
            self.metrics.dropped.add(DropReason::Rejected, u64::from(oldest.is_some()));
            self.metrics.dropped.add(DropReason::Empty, empty);
            rejected = oldest;
            self.release_done();
        }
        if let Some(spool) = self.spool.spool_mut()
            && spool.suspects().convicts_oldest()
        {
            rejected = spool.reject_oldest(now).or(rejected);
        }
        if let Some(message) = rejected
            && let Some(suppressed) = self.logs.rejected.allow(now)
        {
            let bytes = message.len();
            let beginning = message[..bytes.min(LOGGED_BYTES)].escape_ascii();
            warn!(
                destination = &*self.label,
                %beginning,
                bytes,
                tries = TRIES,
                suppressed,
                "message dropped, the destination closes the connection at it"
            );
        }
    }

    fn has_suspects(&self) -> bool {
        self.flight.suspects().any() || self.spool.spool().is_some_and(|spool| spool.suspects().any())
    }

    /// As [`StreamWorker::write`], one part of the live stream or of the spool in turn, each once
    /// the one before counts as sent.
    pub(super) fn write_one_part(&mut self, now: Instant, handed_over: &mut u64) -> Result<(), Broken> {
        let may_give = self.link.has_survived(now) && !self.awaits_acknowledgement();
        let Some(connection) = self.link.connection.as_mut().filter(|connection| connection.is_open()) else {
            return Ok(());
        };
        self.link.is_blocked = !connection.flush()?;
        self.link.is_full = false;
        if !may_give || self.link.is_blocked {
            return Ok(());
        }
        self.spools_next = !self.spools_next;
        if self.spools_next
            && self.closed_at.is_none()
            && let Some(spool) = self.spool.spool_mut()
            && let Some(sums) = spool.fill(&mut self.frames, spool.suspects().limit(), now)
        {
            let position = connection.push(&self.frames)?;
            spool.given(position, sums);
            self.link.quiet_since = None;
        } else {
            let limit = self.flight.suspects().limit();
            match self.flight.fill(&mut self.frames, limit, boot_now(), handed_over) {
                Filled::Nothing => return Ok(()),
                Filled::Lapsed => {
                    self.is_lapsed = true;
                    return Ok(());
                }
                Filled::Part => {}
            }
            let position = connection.push(&self.frames)?;
            let (captured_at_ns, retransmitted) = self.flight.given(position);
            observe(&mut self.latency, captured_at_ns);
            self.stream_metrics.retransmitted.inc_by(retransmitted);
            self.link.quiet_since = None;
        }
        self.link.is_blocked = !connection.flush()?;
        Ok(())
    }

    /// Whether messages that the peer's TCP has acknowledged count as sent.
    pub(super) fn counts_acknowledged(&mut self, now: Instant) -> bool {
        if self.link.is_careful() && self.link.is_trusted() && !self.has_suspects() {
            self.link.set_careful(false);
        }
        if self.link.is_careful() { self.link.has_survived(now) } else { self.link.is_trusted() }
    }
}
