//! What the coordinator knows of publishers, and of those who ask for repairs.

use sekiwake_record::Topic;

use crate::{MILLISECOND, PUBLISHER_SILENT_AFTER, Peer, SECOND, wire::Advertise};

/// Requests that a peer may make in a second, and at once.
const REQUESTS_PER_SECOND: u64 = 200;
/// The most bytes of answers that a peer may have asked for and not got.
const MAX_ALLOWANCE: u64 = 16 << 20;
/// What a message costs beside the body that was asked for.
const MESSAGE_OVERHEAD: u64 = 1024;

/// A stream, as its publisher tells it.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) peer: Peer,
    pub(super) heard_at: u64,
    pub(super) number: u64,
    pub(super) ended: bool,
    pub(super) wants_commits: bool,
    /// The list of destinations that it has of this coordinator.
    pub(super) list_version: u64,
    pub(super) acknowledged_newly: bool,
    /// By topic.
    pub(super) next: Box<[u64]>,
    asked_at: u64,
}

impl StreamState {
    pub(super) fn new(peer: Peer) -> StreamState {
        StreamState {
            peer,
            heard_at: 0,
            number: 0,
            ended: false,
            wants_commits: false,
            list_version: 0,
            acknowledged_newly: false,
            next: vec![0; Topic::COUNT].into_boxed_slice(),
            asked_at: 0,
        }
    }

    pub(super) fn update(&mut self, now: u64, peer: &Peer, advertise: &Advertise, coordinator: u64) {
        self.peer = peer.clone();
        (self.heard_at, self.number) = (now, advertise.number);
        (self.ended, self.wants_commits) = (advertise.ended, advertise.wants_commits);
        let list_version = if advertise.coordinator == coordinator { advertise.list_version } else { 0 };
        self.acknowledged_newly = list_version != self.list_version;
        self.list_version = list_version;
        for extent in &advertise.extents {
            let next = &mut self.next[extent.topic.index()];
            *next = extent.next.0.max(*next);
        }
    }

    /// Whether its last word has not been said.
    pub(super) fn is_live(&self) -> bool {
        !self.ended
    }

    /// Whether it lives and has been heard of.
    pub(super) fn answers(&self, now: u64) -> bool {
        !self.ended && now < self.heard_at + PUBLISHER_SILENT_AFTER
    }

    pub(super) fn may_ask(&mut self, now: u64) -> bool {
        let may = !self.ended && now >= self.asked_at + 20 * MILLISECOND;
        if may {
            self.asked_at = now;
        }
        may
    }
}

/// A member's peer, as far as repairs go.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) memberships: usize,
    requests: u64,
    refilled_at: u64,
    allowance: u64,
}

impl Route {
    pub(super) fn new(now: u64) -> Route {
        Route { memberships: 0, requests: REQUESTS_PER_SECOND, refilled_at: now, allowance: 0 }
    }

    /// Whether it may ask for so much more.
    pub(super) fn ask(&mut self, now: u64, bytes: u64) -> bool {
        let refill = now.saturating_sub(self.refilled_at).min(SECOND) * REQUESTS_PER_SECOND / SECOND;
        if refill > 0 {
            self.refilled_at = now;
            self.requests = (self.requests + refill).min(REQUESTS_PER_SECOND);
        }
        if self.requests == 0 {
            return false;
        }
        self.requests -= 1;
        // Batches may be as small as their headers, so every answer is counted with less than it costs.
        self.allowance = self.allowance.saturating_add(bytes).saturating_add(64 * MESSAGE_OVERHEAD).min(MAX_ALLOWANCE);
        true
    }

    /// Whether an answer of so many bytes was asked for.
    pub(super) fn answer(&mut self, bytes: usize) -> bool {
        let cost = (bytes as u64).saturating_sub(MESSAGE_OVERHEAD).max(1);
        let asked = cost <= self.allowance;
        if asked {
            self.allowance -= cost;
        }
        asked
    }
}
