//! Repairs on their way through the coordinator: requests from members to publishers, answers back.
//!
//! ```text
//! member ── Repair ─▶ 200 per second and peer ─▶ the stream is responsive? ─▶ publisher
//!        ◀─ Done: Gone, or Wait in the grace period ──────────┘ no
//! member ◀─ Repaired, Done ── was it requested, within the bytes requested? ◀── publisher
//! ```

use std::time::Duration;

use super::Coordinator;
use crate::{
    BootTime, Peer, Stream,
    time::nanos,
    wire::{Answer, Done, Outcome, Repair},
};

/// Requests that a peer may make per second, and in one burst.
const REQUESTS_PER_SECOND: u64 = 200;
/// Maximum number of streams from which a peer has open requests. One more replaces the oldest
/// request.
const MAX_OPEN: usize = 32;
/// Maximum bytes of answers from one stream that a peer has requested and not received.
const MAX_ALLOWANCE: u64 = 16 << 20;
/// Bytes of a message beside the requested body.
const MESSAGE_OVERHEAD: u64 = 1024;

/// The peer of a member, and its open requests.
#[derive(Debug)]
pub(super) struct Route {
    /// How many groups it is a member of.
    pub(super) memberships: usize,
    /// Requests that it may still make.
    tokens: u64,
    refilled_at: BootTime,
    open: Vec<OpenRequest>,
}

/// The open request to one stream. Each stream has an allowance of its own, so that none can
/// use up another's.
#[derive(Debug)]
struct OpenRequest {
    stream: Stream,
    requested_at: BootTime,
    /// The newest request.
    number: u64,
    /// Bytes of answers that are outstanding.
    allowance: u64,
}

impl Route {
    pub(super) fn new(now: BootTime) -> Route {
        Route { memberships: 0, tokens: REQUESTS_PER_SECOND, refilled_at: now, open: Vec::new() }
    }

    /// Whether the peer may make another request. Takes one from its budget.
    fn take_token(&mut self, now: BootTime) -> bool {
        const NANOS_PER_TOKEN: u64 = 1_000_000_000 / REQUESTS_PER_SECOND;
        let earned = nanos(now - self.refilled_at) / NANOS_PER_TOKEN;
        self.refilled_at += Duration::from_nanos(earned * NANOS_PER_TOKEN);
        self.tokens = (self.tokens + earned.min(REQUESTS_PER_SECOND)).min(REQUESTS_PER_SECOND);
        let may = self.tokens > 0;
        self.tokens -= u64::from(may);
        may
    }

    /// Records a request that is passed on.
    fn open(&mut self, now: BootTime, stream: &Stream, number: u64, bytes: u64) {
        let index = self.open.iter().position(|open| open.stream == *stream).unwrap_or_else(|| {
            if self.open.len() >= MAX_OPEN
                && let Some((oldest, _)) = self.open.iter().enumerate().min_by_key(|(_, open)| open.requested_at)
            {
                self.open.swap_remove(oldest);
            }
            self.open.push(OpenRequest { stream: stream.clone(), requested_at: now, number, allowance: 0 });
            self.open.len() - 1
        });
        let open = &mut self.open[index];
        open.requested_at = now;
        open.number = number;
        // Batches may be as small as their headers, so the overhead of many messages is allowed
        // for.
        open.allowance = open.allowance.saturating_add(bytes).saturating_add(64 * MESSAGE_OVERHEAD).min(MAX_ALLOWANCE);
    }

    /// Whether this answer, of this size, was requested. Takes it from the allowance.
    fn accept(&mut self, answer: &Answer, bytes: usize) -> bool {
        let Some(index) = self.open.iter().position(|open| open.stream == answer.stream) else { return false };
        let open = &mut self.open[index];
        let cost = (bytes as u64).saturating_sub(MESSAGE_OVERHEAD).max(1);
        if answer.request > open.number || cost > open.allowance {
            return false;
        }
        open.allowance -= cost;
        // An older request may end after a newer one was made, whose answers are outstanding.
        if answer.is_done && answer.request == open.number {
            self.open.swap_remove(index);
        }
        true
    }
}

impl Coordinator {
    pub(super) fn on_repair(&mut self, now: BootTime, peer: &Peer, repair: Repair) {
        let Some(route) = self.routes.get_mut(peer) else {
            self.rejections.repairs += 1;
            return;
        };
        if !route.take_token(now) {
            self.rejections.repairs += 1;
            return;
        }
        if let Some(state) = self.streams.get(&repair.stream).filter(|state| state.is_responsive(now)) {
            route.open(now, &repair.stream, repair.request, repair.max_bytes);
            let publisher = state.peer.clone();
            self.send(&publisher, Repair { requester: peer.clone(), ..repair });
            return;
        }
        // In the grace period the publisher may just not have advertised yet.
        let done = Done {
            requester: peer.clone(),
            request: repair.request,
            stream: repair.stream,
            outcome: if self.grace_period_over(now) { Outcome::Gone } else { Outcome::Wait },
            retained: Vec::new(),
            located: Vec::new(),
            covered: Vec::new(),
        };
        self.send(peer, done);
    }

    /// Passes an answer on to the member that has requested it, without decoding the rest.
    pub(super) fn pass_on(&mut self, peer: &Peer, answer: &Answer, frame: &[u8]) {
        let is_publisher = self.streams.get(&answer.stream).is_some_and(|state| state.peer == *peer);
        let route = self.routes.get_mut(&answer.requester).filter(|_| is_publisher);
        if route.is_some_and(|route| route.accept(answer, frame.len())) {
            self.outputs.push_back((answer.requester.clone(), frame.to_vec()));
        } else {
            self.rejections.repairs += 1;
        }
    }
}
