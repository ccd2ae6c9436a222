//! The member's own key: renewals, and what is known of their outcomes.
//!
//! ```text
//! write n sent ─┬ stored ───────▶ the lease lasts until 3 s after n was sent; what n lists holds
//!               ├ conflict ─────▶ read the key: one's own earlier write, or another party's
//!               └ no answer ────▶ unsettled; n+1 is sent on the same revision, so at most one is stored
//! ```

use sekiwake_group::{BootTime, LEASE, LEASE_MARGIN, RENEW_EVERY};
use sekiwake_record::Shard;

use super::{Event, Holding, Outcome, PASSES_WITHIN, Table};
use crate::{
    READ_SOON,
    value::{Phase, State},
};

/// The most writes without an answer that are remembered.
const MAX_UNSETTLED: usize = 16;

/// The member's own key.
#[derive(Debug)]
pub(super) struct OwnKey {
    /// Its newest known revision; 0 before it is created.
    pub(super) revision: u64,
    /// The number of the newest write.
    pub(super) number: u64,
    pub(super) in_flight: Option<Sent>,
    /// Writes without an answer: they may be stored, now or later.
    pub(super) unsettled: Vec<Sent>,
    /// When the newest write that is known to be stored was sent.
    pub(super) renewed_at: Option<BootTime>,
    pub(super) next_at: BootTime,
    /// Nothing is written until the key has been read.
    pub(super) must_read: bool,
    pub(super) absent_since: Option<BootTime>,
    pub(super) is_leaving: bool,
    /// Another party has written the key: this incarnation is over.
    pub(super) is_fenced: bool,
    pub(super) has_left: bool,
}

/// A write of the own key.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) id: u64,
    pub(super) number: u64,
    pub(super) at: BootTime,
    pub(super) claims: Vec<(Shard, u64, Phase)>,
    pub(super) state: State,
}

impl OwnKey {
    pub(super) fn new(now: BootTime) -> OwnKey {
        OwnKey {
            revision: 0,
            number: 0,
            in_flight: None,
            unsettled: Vec::new(),
            renewed_at: None,
            next_at: now,
            must_read: false,
            absent_since: None,
            is_leaving: false,
            is_fenced: false,
            has_left: false,
        }
    }

    /// Whether there is no key, and none can come to be.
    pub(super) fn was_never_written(&self) -> bool {
        self.revision == 0 && self.in_flight.is_none() && self.unsettled.is_empty()
    }

    /// Whether renewals pass.
    pub(super) fn passes(&self, now: BootTime) -> bool {
        self.renewed_at.is_some_and(|at| now - at < PASSES_WITHIN)
    }
}

impl Table {
    pub(super) fn may_write_own(&self) -> bool {
        let own = &self.own;
        own.in_flight.is_none() && !own.must_read && !own.is_fenced && !own.has_left
    }

    pub(super) fn own_outcome(&mut self, now: BootTime, outcome: Outcome) {
        let Some(sent) = self.own.in_flight.take() else { return };
        match outcome {
            Outcome::Stored(revision) => self.own_stored(now, revision, sent),
            Outcome::Conflict => {
                self.counters.conflicts += 1;
                if self.mutants.takes_unknown_for_failed() {
                    return self.fence();
                }
                self.own.must_read = true;
                self.next_read_at = self.next_read_at.min(now);
            }
            Outcome::Unknown => {
                self.counters.unknown += 1;
                if self.own.unsettled.len() >= MAX_UNSETTLED {
                    self.own.unsettled.remove(0);
                }
                self.own.unsettled.push(sent);
                // During an election the answer that there is no leader comes at once.
                self.own.next_at = now + READ_SOON;
            }
        }
    }

    /// A write of the own key is known to be stored.
    fn own_stored(&mut self, now: BootTime, revision: u64, sent: Sent) {
        let own = &mut self.own;
        if revision <= own.revision || own.is_fenced {
            return;
        }
        own.revision = revision;
        own.must_read = false;
        own.absent_since = None;
        // They were conditional on an earlier revision.
        own.unsettled.clear();
        let was_passing = own.renewed_at.is_some_and(|at| sent.at - at < PASSES_WITHIN);
        own.renewed_at = own.renewed_at.max(Some(sent.at));
        if !was_passing && !self.mutants.watches_nothing_afresh() {
            self.watch_from = now;
        }
        self.counters.renewals += 1;
        for (shard, generation, phase) in sent.claims {
            let held = &self.shards[shard.index()];
            if held.holding == Holding::Claiming && held.generation == generation && phase == Phase::Held {
                self.own_shard(shard);
            }
        }
        // The shards are set before the lease is extended.
        let from = if self.mutants.lease_from_arrival() { now } else { sent.at };
        self.permit.extend(from + LEASE);
        self.own.has_left = sent.state == State::Gone;
        if self.own.revision == revision && self.assignment.is_some() {
            // Shards that were assigned before the key was created.
            Shard::all().for_each(|shard| self.follow(now, shard));
        }
    }

    /// The own key was read.
    pub(super) fn read_own(&mut self, now: BootTime, revision: u64) {
        let own = &mut self.own;
        own.absent_since = None;
        if own.is_fenced || own.has_left {
            return;
        }
        if revision <= own.revision {
            // Perhaps an old answer: try again, and read again if that fails.
            own.must_read = false;
            return;
        }
        let value = self.members.get(&self.incarnation).and_then(|seen| seen.value.as_ref());
        let (number, state) = value.map_or((u64::MAX, State::Gone), |value| (value.number, value.state));
        if state == State::Gone && own.is_leaving {
            self.has_gone();
            return;
        }
        if state == State::Gone || number > self.own.number {
            if self.mutants.ignores_gone() {
                let sent = Sent { id: 0, number, at: now, claims: Vec::new(), state: State::Live };
                return self.own_stored(now, revision, sent);
            }
            return self.fence();
        }
        if self.own.in_flight.as_ref().is_some_and(|sent| sent.number == number) {
            // Its outcome is on its way.
            return;
        }
        let known = self.own.unsettled.iter().position(|sent| sent.number == number);
        match known.map(|index| self.own.unsettled.swap_remove(index)) {
            Some(sent) => self.own_stored(now, revision, sent),
            None => {
                // One's own, but too old to be remembered.
                self.own.revision = revision;
                self.own.must_read = false;
            }
        }
    }

    /// The own key is not in an answer.
    pub(super) fn own_is_absent(&mut self, now: BootTime) {
        let own = &mut self.own;
        if own.revision == 0 || own.is_fenced || own.has_left {
            own.must_read = false;
            return;
        }
        let since = *own.absent_since.get_or_insert(now);
        if now - since >= 2 * (LEASE + LEASE_MARGIN) && own.must_read {
            return self.fence();
        }
        self.next_read_at = self.next_read_at.min(now + READ_SOON);
        if !own.must_read {
            own.next_at = own.next_at.min(now + RENEW_EVERY);
        }
    }

    /// Another party has ended this incarnation.
    fn fence(&mut self) {
        if self.own.is_leaving {
            return self.has_gone();
        }
        self.own.is_fenced = true;
        self.drop_all();
        self.events.push_back(Event::Fenced);
    }

    /// Nothing is left to release.
    fn has_gone(&mut self) {
        self.own.has_left = true;
        self.drop_all();
    }

    fn drop_all(&mut self) {
        for shard in Shard::all() {
            if matches!(self.shards[shard.index()].holding, Holding::Owned | Holding::Stopping) {
                self.revoke(shard);
            }
            self.shards[shard.index()].holding = Holding::None;
        }
    }
}
