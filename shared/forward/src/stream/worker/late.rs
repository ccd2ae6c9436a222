//! The end of a stream worker's patience: what has waited too long goes into the spool, or is
//! dropped, and the group's positions no longer wait for it.

use std::time::{Duration, Instant};

use sekiwake_bus::{Permission, boot_now};
use sekiwake_runtime::Worker;

use super::{CHECK_EVERY, StreamWorker};
use crate::{
    metrics::DropReason,
    queue::{MAX_UNACKNOWLEDGED_TIME, Queued},
    stream::spool_policy::Backlog,
};

/// The longest time that a replaced worker may take to send its messages.
const REPLACED_AT_MOST: Duration = Duration::from_secs(10);

/// Maximum number of messages that are written to the spool with one sync.
const SPOOL_AT_ONCE: u64 = 32_768;

/// An endpoint that reads nothing for this long although messages are waiting is down.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(2);

impl<B: AsRef<[u8]> + From<Vec<u8>>> StreamWorker<B> {
    /// Moves messages that have waited too long into the spool, or drops them; all of them at the
    /// drain deadline. Returns whether that is reached.
    pub(super) fn give_up_late(&mut self, worker: &Worker, now: Instant) -> bool {
        let boot_now = boot_now();
        let lapsed = |queued: &Queued<B>| queued.parcel.permission(boot_now) == Permission::Lapsed;
        let is_unresolved = self.address.is_unresolved();
        self.metrics.status.set_unresolved(is_unresolved);
        if is_unresolved && self.closed_at.is_none() && self.spool.usable(now).is_none() {
            self.clock.exclude_until(now);
            self.let_group_move_on(now);
        }
        if self.address.awaits_approval() || self.is_lapsed || self.flight.longest_waiting().is_some_and(lapsed) {
            self.clock.exclude_until(now);
        }
        let is_leaving = is_unresolved && worker.deadline().is_some();
        let over = is_leaving || self.clock.is_over(worker.deadline(), now);
        self.forget_held_up(now);
        // A replaced worker does not wait longer for a peer that does not read than any message
        // waits.
        let is_hopeless = self
            .closed_at
            .is_some_and(|since| self.is_stalled(now) || now.saturating_duration_since(since) >= REPLACED_AT_MOST)
            && self.link.is_open();
        if (over || is_hopeless) && (!self.flight.is_empty() || self.awaits_acknowledgement()) {
            // Unacknowledged messages may not have arrived, so they wait again.
            self.disconnect();
            self.link.retry_at = now + Duration::from_secs(3600);
        }
        if self.spool.usable(now).is_some() {
            self.spool_late(over, now);
        }
        let reason = match (over, self.address.current()) {
            (true, _) => DropReason::Shutdown,
            (false, _) if self.link.is_open() && self.link.is_held_up() => DropReason::Stalled,
            (false, _) if self.link.is_open() => DropReason::Expired,
            (false, None) => DropReason::Unresolved,
            (false, Some(_)) => DropReason::Disconnected,
        };
        while let Some(queued) = self.flight.longest_waiting() {
            let revoked = queued.parcel.permission(boot_now) == Permission::Revoked;
            if !over && !revoked && !queued.is_expired(now, &self.clock) {
                break;
            }
            let left = (revoked || over) && queued.parcel.leave_to_group();
            let messages = self.flight.give_up_waiting();
            match left {
                true => {
                    self.metrics.handed_over.inc_by(messages);
                    if over {
                        self.clock.leave_to_group(messages);
                    }
                }
                false => self.metrics.dropped.add(reason, messages),
            }
        }
        self.release_done();
        over
    }

    /// Whether the peer has read nothing for a while although messages are waiting, for reasons of
    /// its own.
    fn is_stalled(&self, now: Instant) -> bool {
        let since = self.clock.waiting_since(self.link.progress_at);
        self.link.is_open() && now.saturating_duration_since(since) >= STALLED_AFTER
    }

    /// Stops waiting for acknowledgements of a peer that reads nothing, or too little, because the
    /// group's positions wait for them, for all destinations. The messages go into the spool,
    /// although they may still arrive, or stay here as copies.
    fn forget_held_up(&mut self, now: Instant) {
        let Some(oldest) = self.flight.oldest_flying() else { return };
        let since = self.clock.waiting_since(oldest.since);
        let is_too_long = now.saturating_duration_since(since) >= MAX_UNACKNOWLEDGED_TIME;
        if !self.link.is_open() || self.is_lapsed || !(self.is_stalled(now) || is_too_long) {
            return;
        }
        if let Some(spool) = self.spool.usable(now) {
            let flight = &mut self.flight;
            if spool.put(|visit| flight.each_flying(visit), now).is_some() {
                let sums = self.flight.forget_flying();
                self.metrics.dropped.add(DropReason::Empty, sums.empty);
                return self.release_done();
            }
        }
        self.flight.all_flying().for_each(Queued::detach);
    }

    /// The group's positions do not wait for a name to be resolved either.
    fn let_group_move_on(&mut self, now: Instant) {
        if now.saturating_duration_since(self.moved_group_on_at) < CHECK_EVERY {
            return;
        }
        self.moved_group_on_at = now;
        let is_long = |queued: &&mut Queued<B>| now.saturating_duration_since(queued.since) >= MAX_UNACKNOWLEDGED_TIME;
        self.flight.all_waiting_whole().take_while(is_long).for_each(Queued::detach);
    }

    /// Puts messages that have waited too long into the spool.
    fn spool_late(&mut self, over: bool, now: Instant) {
        loop {
            let is_connected = self.link.is_open();
            let is_held_up = self.link.is_held_up();
            let backlog = self.flight.longest_waiting().map(|oldest| Backlog {
                waited: now.saturating_duration_since(self.clock.waiting_since(oldest.since)),
                queue_bytes: self.outlet.used_bytes(),
                is_connected,
                is_held_up,
                is_ending: self.closed_at.is_some(),
                is_over: over,
            });
            let is_sending = is_connected && !is_held_up;
            if !self.spool.is_due(backlog.as_ref(), is_sending) || !self.put_into_spool(now) {
                return;
            }
            self.spool.spooled();
        }
    }

    /// Puts waiting messages into the spool, as many as one sync takes. `false`: none.
    fn put_into_spool(&mut self, now: Instant) -> bool {
        let Some(spool) = self.spool.spool_mut() else { return false };
        let boot_now = boot_now();
        let mut loads = 0;
        let mut messages = 0;
        let mut revoked = false;
        for (queued, range) in self.flight.all_waiting() {
            match queued.parcel.permission(boot_now) {
                Permission::Granted if messages < SPOOL_AT_ONCE => {}
                Permission::Revoked if loads == 0 => {
                    queued.parcel.leave_to_group();
                    revoked = true;
                    break;
                }
                _ => break,
            }
            loads += 1;
            messages += range.len() as u64;
        }
        if revoked {
            let handed_over = self.flight.give_up_waiting();
            self.metrics.handed_over.inc_by(handed_over);
            return true;
        }
        if loads == 0 {
            return false;
        }
        let flight = &mut self.flight;
        let Some(sums) = spool.put(|visit| flight.each_waiting(loads, visit), now) else { return false };
        self.metrics.dropped.add(DropReason::Empty, sums.empty);
        for _ in 0..loads {
            self.flight.give_up_waiting();
        }
        self.release_done();
        true
    }
}
