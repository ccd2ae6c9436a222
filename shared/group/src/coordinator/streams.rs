//! What the coordinator knows of publishers, and of those who ask for repairs.

use sekiwake_record::Topic;

use crate::{
    MILLISECOND, PUBLISHER_SILENT_AFTER, Peer, SECOND, Stream,
    wire::{Advertise, Answer},
};

/// Requests that a peer may make in a second, and at once.
const REQUESTS_PER_SECOND: u64 = 200;
/// The most streams of which a peer has open requests. One more takes the place of the one asked for longest ago.
const MAX_OPEN: usize = 32;
/// The most bytes of answers that a peer may have asked of a stream and not got.
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
    /// By topic: the oldest record that can be repeated.
    pub(super) oldest: Box<[u64]>,
    /// By topic: the number that the next record will have.
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
            oldest: vec![0; Topic::COUNT].into_boxed_slice(),
            next: vec![0; Topic::COUNT].into_boxed_slice(),
            asked_at: 0,
        }
    }

    /// Takes an advertisement in which no topic's oldest record comes after its next. Numbers only rise.
    pub(super) fn update(&mut self, now: u64, advertise: &Advertise, coordinator: u64) {
        (self.heard_at, self.number) = (now, advertise.number);
        (self.ended, self.wants_commits) = (advertise.ended, advertise.wants_commits);
        let list_version = if advertise.coordinator == coordinator { advertise.list_version } else { 0 };
        self.acknowledged_newly = list_version != self.list_version;
        self.list_version = list_version;
        for extent in &advertise.extents {
            let topic = extent.topic.index();
            self.next[topic] = extent.next.0.max(self.next[topic]);
            self.oldest[topic] = extent.oldest.0.max(self.oldest[topic]);
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
    open: Vec<Open>,
}

/// What has been asked of a stream. Each stream answers within its own: none can use up what is due from another.
#[derive(Debug)]
struct Open {
    stream: Stream,
    asked_at: u64,
    /// The newest.
    request: u64,
    allowance: u64,
}

impl Route {
    pub(super) fn new(now: u64) -> Route {
        Route { memberships: 0, requests: REQUESTS_PER_SECOND, refilled_at: now, open: Vec::new() }
    }

    /// Whether it may make another request at all.
    pub(super) fn may_ask(&mut self, now: u64) -> bool {
        const EACH: u64 = SECOND / REQUESTS_PER_SECOND;
        let refill = now.saturating_sub(self.refilled_at) / EACH;
        self.refilled_at += refill * EACH;
        self.requests = (self.requests + refill.min(REQUESTS_PER_SECOND)).min(REQUESTS_PER_SECOND);
        let may = self.requests > 0;
        self.requests -= u64::from(may);
        may
    }

    /// Notes a request that is passed on.
    pub(super) fn ask(&mut self, now: u64, stream: &Stream, request: u64, bytes: u64) {
        let index = self.open.iter().position(|open| open.stream == *stream).unwrap_or_else(|| {
            if self.open.len() >= MAX_OPEN
                && let Some((oldest, _)) = self.open.iter().enumerate().min_by_key(|(_, open)| open.asked_at)
            {
                self.open.swap_remove(oldest);
            }
            self.open.push(Open { stream: stream.clone(), asked_at: now, request, allowance: 0 });
            self.open.len() - 1
        });
        let open = &mut self.open[index];
        (open.asked_at, open.request) = (now, request);
        // Batches may be as small as their headers, so every answer is counted with less than it costs.
        open.allowance = open.allowance.saturating_add(bytes).saturating_add(64 * MESSAGE_OVERHEAD).min(MAX_ALLOWANCE);
    }

    /// Whether an answer of so many bytes was asked for.
    pub(super) fn answer(&mut self, answer: &Answer, bytes: usize) -> bool {
        let Some(index) = self.open.iter().position(|open| open.stream == answer.stream) else { return false };
        let open = &mut self.open[index];
        let cost = (bytes as u64).saturating_sub(MESSAGE_OVERHEAD).max(1);
        if answer.request > open.request || cost > open.allowance {
            return false;
        }
        open.allowance -= cost;
        // An earlier request may end after a later one was made: what is due then is still to come.
        if answer.is_done && answer.request == open.request {
            self.open.swap_remove(index);
        }
        true
    }
}
