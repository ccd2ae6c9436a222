//! How a member gets missing records.
//!
//! ```text
//! idle ── gap ─▶ scheduled ── due ─▶ requested ── Repaired … Done ─▶ scheduled, or idle when complete
//!                    ▲                   └ no answer: again after 50, 100, 200, 400, 400 … ms
//!                    └ no answer for 2 s: the gaps are left behind; again after 1, 2, 4, 5, 5 … s
//! ```
//!
//! There is one request at a time per stream. It lists all gaps and has a budget of bytes; the next
//! one follows when its answer is complete. A slow member therefore requests slowly, and never gets
//! more than it can take.
//!
//! A gap that nobody answers is not lost: its publisher may be cut off, and return. Delivery goes
//! on behind it. It is lost when the publisher says that it no longer retains it, or when its
//! stream is over. Gaps are left behind only when the publisher is silent. Lost requests must not
//! look like that, so the coordinator, which passes requests on, must have granted a renewal that
//! was sent after those two seconds.

use std::time::Duration;

use sekiwake_record::Topic;

use super::{GiveUp, Member, MemberOutput, Ownership};
use crate::{
    BootTime, LEAVE_BEHIND_AFTER, MAX_NUMBER, PUBLISHER_SILENT_AFTER, Peer,
    coverage::{Coverage, Span},
    time::nanos,
    wire::{Done, MAX_RANGES, Number, Outcome, Range, Repair, Repaired},
};

const MIN_BACK_OFF: Duration = Duration::from_millis(50);
/// Allows five attempts before the gaps are left behind.
const MAX_BACK_OFF: Duration = Duration::from_millis(400);
/// While nobody answers.
const MIN_SLOW_BACK_OFF: Duration = Duration::from_secs(1);
const MAX_SLOW_BACK_OFF: Duration = Duration::from_secs(5);
/// A stream that is silent for so long, and that no publisher answers for, is over.
const OVER_AFTER: Duration = Duration::from_secs(600);
/// How many streams have an open request at the same time.
const MAX_OPEN_REQUESTS: usize = 4;

/// The repair of one stream.
#[derive(Debug, Default)]
pub(super) struct RepairState {
    /// When to act next; `None` while nothing is missing.
    next_at: Option<BootTime>,
    /// The number of the open request.
    request: Option<u64>,
    back_off: Duration,
    /// Since when there is no answer.
    silent_since: Option<BootTime>,
    /// The coordinator has reported that no publisher answers for the stream.
    stream_gone: bool,
    /// The open request has yielded batches.
    has_progress: bool,
    /// Nobody has answered for two seconds.
    is_slow: bool,
}

impl RepairState {
    /// Something is missing.
    pub(super) fn schedule(&mut self, now: BootTime) {
        self.next_at.get_or_insert(now);
    }

    pub(super) fn is_scheduled(&self) -> bool {
        self.next_at.is_some()
    }

    /// Whether nobody has answered for long.
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// No answer could have arrived until now, so the silence means nothing, and the open request
    /// may be lost.
    pub(super) fn reset_timeouts(&mut self, now: BootTime) {
        self.hear();
        self.back_off = Duration::ZERO;
        self.next_at = self.next_at.map(|_| now);
    }

    /// There is an answer, or none could have come.
    fn hear(&mut self) {
        self.silent_since = None;
        self.is_slow = false;
    }

    fn back_off(&mut self, now: BootTime) {
        let limits = if self.is_slow { (MIN_SLOW_BACK_OFF, MAX_SLOW_BACK_OFF) } else { (MIN_BACK_OFF, MAX_BACK_OFF) };
        self.back_off = (self.back_off * 2).clamp(limits.0, limits.1);
        self.next_at = Some(now + self.back_off);
    }

    fn continue_at(&mut self, at: BootTime) {
        self.back_off = Duration::ZERO;
        self.next_at = Some(at);
    }
}

impl<B> Member<B> {
    pub(super) fn next_repair_at(&self) -> BootTime {
        self.streams.iter().filter_map(|followed| followed.repair.next_at).min().unwrap_or(BootTime::NEVER)
    }

    /// Requests missing records where a request is due.
    pub(super) fn request_repairs(&mut self, now: BootTime) {
        for index in 0..self.streams.len() {
            if self.streams[index].repair.next_at.is_some_and(|at| now >= at) {
                self.request_repair(now, index);
            }
        }
    }

    fn request_repair(&mut self, now: BootTime, index: usize) {
        let (ranges, locate) = self.missing(index);
        if ranges.is_empty() && locate.is_empty() {
            self.streams[index].repair = RepairState::default();
            return;
        }
        let is_open = |state: &RepairState| state.request.is_some() && !state.is_slow;
        let open_requests = self.streams.iter().filter(|followed| is_open(&followed.repair)).count();
        let is_lapsed = now >= self.permit.until();
        let is_busy = self.consumer_is_full || self.outstanding_bytes >= self.settings.outstanding_bytes;
        let state = &mut self.streams[index].repair;
        // A tick that comes this late means that the member itself was stopped.
        let was_stopped = state.next_at.is_some_and(|at| now >= at + MAX_BACK_OFF);
        if is_lapsed || is_busy || was_stopped {
            // The silence is the coordinator's or the member's own, not the publisher's.
            state.hear();
        }
        let has_no_turn = open_requests >= MAX_OPEN_REQUESTS && state.request.is_none() && !state.is_slow;
        if is_lapsed || is_busy || has_no_turn {
            state.next_at = Some(now + MIN_BACK_OFF);
            return;
        }
        let silent_since = *state.silent_since.get_or_insert(now);
        if self.renewals.granted_sent_at.is_some_and(|at| at >= silent_since + LEAVE_BEHIND_AFTER) {
            if self.is_over(now, index) {
                self.streams[index].repair = RepairState::default();
                return self.give_up_all(now, index);
            }
            self.streams[index].repair.is_slow = true;
            self.leave_behind(index);
        }
        let (ranges, locate) = self.missing(index);
        let state = &mut self.streams[index].repair;
        self.requests += 1;
        self.counters.requests += 1;
        state.request = Some(self.requests);
        state.has_progress = false;
        state.back_off(now);
        let repair = Repair {
            requester: Peer::default(),
            request: self.requests,
            stream: self.streams[index].stream.clone(),
            max_bytes: self.settings.request_bytes,
            ranges,
            locate,
            max_age_ns: self.age.map_or(0, |age| age.nanos(now)).saturating_add(nanos(self.settings.start_age)),
            group: Some(self.settings.group.clone()),
        };
        self.send(repair);
    }

    /// The missing records of a stream in the owned shards: the gaps, as many as a request may
    /// list, and the topics whose start is unknown.
    fn missing(&self, index: usize) -> (Vec<Range>, Vec<Topic>) {
        let mut ranges = Vec::new();
        let mut locate = Vec::new();
        for (shard, position) in self.streams[index].positions.iter().enumerate() {
            if !matches!(self.ownership[shard], Ownership::Owned(_)) {
                continue;
            }
            let topic = self.topic(shard);
            if position.needs_start() {
                locate.push(topic);
            }
            let gaps = position.gaps().take(MAX_RANGES - ranges.len());
            ranges.extend(gaps.map(|Span { from, to }| Range { topic, from: Number(from), to: Number(to) }));
        }
        (ranges, locate)
    }

    pub(super) fn on_repaired(&mut self, now: BootTime, repaired: Repaired) {
        let Some(index) = self.find(&repaired.stream) else { return };
        let state = &mut self.streams[index].repair;
        if state.request.is_none() {
            // The answer to a request that was given up or is complete. If the batch is still
            // missing it will be requested again.
            return;
        }
        state.hear();
        state.stream_gone = false;
        state.has_progress = true;
        state.continue_at(now + 4 * MIN_BACK_OFF);
        self.streams[index].is_answered = true;
        self.outputs.push_back(MemberOutput::Repaired {
            topic: repaired.topic,
            header: repaired.header.0,
            body: repaired.body.0,
        });
    }

    pub(super) fn on_done(&mut self, now: BootTime, done: &Done) {
        let Some(index) = self.find(&done.stream) else { return };
        let Some(newest) = self.streams[index].repair.request else { return };
        // One after the other: both must be applied.
        let has_located = self.take_starts(index, done);
        let has_given_up = self.take_retained(index, done);
        let state = &mut self.streams[index].repair;
        let has_progress = state.has_progress || has_located || has_given_up;
        if done.request != newest {
            // The answer took longer than the back-off. It is valid, but the end of the newest
            // request is still to come.
            if has_progress {
                state.hear();
                state.has_progress = true;
            }
            return;
        }
        state.request = None;
        state.stream_gone = done.outcome == Outcome::Gone;
        if has_progress || done.outcome == Outcome::Wait {
            state.hear();
        }
        if has_progress {
            state.continue_at(now);
        } else {
            state.back_off(now);
        }
    }

    /// Starts the located topics. Returns whether there were any.
    fn take_starts(&mut self, index: usize, done: &Done) -> bool {
        let mut has_progress = false;
        for covered in &done.covered {
            let shard = covered.topic.shard.index();
            let Ownership::Owned(generation) = self.ownership[shard] else { continue };
            let position = &mut self.streams[index].positions[shard];
            if covered.topic.kind == self.settings.kind && position.needs_start() {
                position.learn(&covered.coverage(), false);
                position.is_guess = false;
                has_progress = true;
                self.deliver_ready(index, covered.topic, generation);
            }
        }
        for start in &done.located {
            let shard = start.topic.shard.index();
            let Ownership::Owned(generation) = self.ownership[shard] else { continue };
            let position = &mut self.streams[index].positions[shard];
            if start.topic.kind == self.settings.kind && position.needs_start() {
                // After a guess, what lies between is owed.
                let first = position.covered.first().unwrap_or(start.sequence.0);
                position.begin(start.sequence.0.min(first));
                position.is_guess = false;
                has_progress = true;
                self.deliver_ready(index, start.topic, generation);
            }
        }
        has_progress
    }

    /// Gives up records that the publisher no longer retains. Returns whether there were any.
    fn take_retained(&mut self, index: usize, done: &Done) -> bool {
        let mut has_progress = false;
        for oldest in &done.retained {
            let shard = oldest.topic.shard.index();
            let Ownership::Owned(generation) = self.ownership[shard] else { continue };
            if oldest.topic.kind == self.settings.kind {
                let end = oldest.sequence.0;
                has_progress |= self.give_up_known(index, oldest.topic, generation, end, GiveUp::NotRetained);
            }
        }
        has_progress
    }

    /// Whether nothing will ever come of a stream that nobody answers for: it has ended, or its
    /// publisher runs again, or it has been silent for very long.
    fn is_over(&self, now: BootTime, index: usize) -> bool {
        let followed = &self.streams[index];
        let silent_at = followed.last_heard + PUBLISHER_SILENT_AFTER;
        let runs_again = self.streams.iter().any(|other| {
            let is_other = other.stream.epoch != followed.stream.epoch && other.stream.name == followed.stream.name;
            is_other && other.last_heard >= silent_at
        });
        followed.repair.stream_gone && (followed.ended || runs_again || now >= followed.last_heard + OVER_AFTER)
    }

    /// Goes on behind the gaps that nobody answers for, where batches have arrived behind them. A
    /// topic whose start nobody has located begins with the first of those.
    fn leave_behind(&mut self, index: usize) {
        for shard in 0..self.ownership.len() {
            let Ownership::Owned(generation) = self.ownership[shard] else { continue };
            let topic = self.topic(shard);
            loop {
                self.deliver_ready(index, topic, generation);
                let position = &mut self.streams[index].positions[shard];
                let Some(first) = position.first_buffered().filter(|_| position.covered.has_room()) else { break };
                if position.covered.is_empty() {
                    position.begin(first);
                    position.is_guess = first > 0;
                    if self.settings.mutants.takes_guesses_for_known() {
                        position.learn(&Coverage::up_to(first), false);
                    }
                }
                position.leave_behind(first);
            }
        }
    }

    /// Gives up everything that is missing of a stream that is over.
    fn give_up_all(&mut self, now: BootTime, index: usize) {
        for shard in 0..self.ownership.len() {
            let Ownership::Owned(generation) = self.ownership[shard] else { continue };
            let topic = self.topic(shard);
            let position = &mut self.streams[index].positions[shard];
            let announced = position.announced;
            if position.needs_start() {
                let start = position.covered.first().or(position.first_buffered()).unwrap_or(announced);
                position.begin(position.oldest.min(start));
                position.is_guess = false;
                self.give_up(index, topic, generation, start, GiveUp::Unknown);
            }
            // Also the gaps before what another member has reported, which may be beyond
            // `announced`.
            self.give_up_known(index, topic, generation, MAX_NUMBER, GiveUp::StreamGone);
        }
        self.streams[index].repair.schedule(now);
    }

    /// Gives up what is owed below `end`: the gaps that were left behind, and those ahead, where
    /// the buffered batches between them are delivered. Returns whether there were any.
    pub(super) fn give_up(&mut self, index: usize, topic: Topic, generation: u64, end: u64, reason: GiveUp) -> bool {
        let mut has_lost = false;
        loop {
            self.deliver_ready(index, topic, generation);
            let followed = &mut self.streams[index];
            let position = &mut followed.positions[topic.shard.index()];
            let Some(gap) = position.gaps().next().filter(|gap| gap.from < end) else { return has_lost };
            let gap = Span { from: gap.from, to: gap.to.min(end) };
            position.mark_lost(gap);
            has_lost = true;
            let stream = followed.stream.clone();
            self.counters.given_up[reason as usize] += gap.len();
            self.outputs.push_back(MemberOutput::GaveUp { stream, topic, from: gap.from, to: gap.to, reason });
        }
    }
}
