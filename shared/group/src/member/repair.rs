//! How a member gets what it missed.
//!
//! One request at a time for each stream, with all its holes; each has a budget of bytes, and the next follows when the answer is
//! complete. So a member that is slow asks slowly, and what is answered is what it can take. Without an answer the request is
//! made again after 50, 100, 200 ms and so on; without any for two seconds the holes are given up. The silence must be the
//! publisher's: only a coordinator that has granted a renewal sent after those two seconds was there to pass the requests on.

use sekiwake_record::Topic;

use super::{GiveUp, Hold, Member, MemberOutput};
use crate::{
    GIVE_UP_AFTER, MILLISECOND, Peer, UNKNOWN,
    wire::{Done, MAX_RANGES, Number, Outcome, Range, Repair, Repaired},
};

const FIRST_BACK_OFF: u64 = 50 * MILLISECOND;
/// Short enough for five tries before the answer is given up.
const LAST_BACK_OFF: u64 = 400 * MILLISECOND;
/// Streams that are asked at the same time.
const MAX_ASKED: usize = 4;

/// What is being asked of one stream.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// When to look again; `None` while there is nothing to ask for.
    at: Option<u64>,
    request: Option<u64>,
    back_off: u64,
    /// Since when nobody has answered.
    silent_since: Option<u64>,
    gone: bool,
    progress: bool,
}

impl Asking {
    /// There is something to ask for.
    pub(super) fn begin(&mut self, now: u64) {
        self.at.get_or_insert(now);
    }

    /// Whether there is something to ask for.
    pub(super) fn is_open(&self) -> bool {
        self.at.is_some()
    }

    /// Until now there was no way to be answered: the silence says nothing, and what was asked may be lost.
    pub(super) fn was_deaf(&mut self, now: u64) {
        (self.silent_since, self.back_off) = (None, 0);
        self.at = self.at.map(|_| now);
    }

    fn later(&mut self, now: u64) {
        self.back_off = (self.back_off * 2).clamp(FIRST_BACK_OFF, LAST_BACK_OFF);
        self.at = Some(now + self.back_off);
    }
}

impl<B> Member<B> {
    pub(super) fn ask_at(&self) -> u64 {
        self.streams.iter().filter_map(|followed| followed.asking.at).min().unwrap_or(u64::MAX)
    }

    /// Asks for what is missing, where it is time.
    pub(super) fn ask(&mut self, now: u64) {
        for index in 0..self.streams.len() {
            if self.streams[index].asking.at.is_some_and(|at| now >= at) {
                self.ask_stream(now, index);
            }
        }
    }

    fn ask_stream(&mut self, now: u64, index: usize) {
        let (ranges, locate) = self.missing(index);
        if ranges.is_empty() && locate.is_empty() {
            self.streams[index].asking = Asking::default();
            return;
        }
        let asked = self.streams.iter().filter(|followed| followed.asking.request.is_some()).count();
        let lapsed = now >= self.permit.until();
        let busy = self.has_enough || self.outstanding_bytes >= self.settings.outstanding_bytes;
        let asking = &mut self.streams[index].asking;
        // It has been stopped itself when it comes so late.
        let stopped = asking.at.is_some_and(|at| now >= at + LAST_BACK_OFF);
        if lapsed || busy || stopped {
            // The silence is the coordinator's, or this member's own: it says nothing of the publisher.
            asking.silent_since = None;
        }
        if lapsed || busy || (asked >= MAX_ASKED && asking.request.is_none()) {
            asking.at = Some(now + FIRST_BACK_OFF);
            return;
        }
        let silent_since = *asking.silent_since.get_or_insert(now);
        if self.heard_at.is_some_and(|at| at >= silent_since + GIVE_UP_AFTER) {
            let reason = if asking.gone { GiveUp::StreamGone } else { GiveUp::Unanswered };
            *asking = Asking::default();
            return self.give_up_all(now, index, reason);
        }
        self.requests += 1;
        self.counters.requests += 1;
        asking.request = Some(self.requests);
        asking.progress = false;
        asking.later(now);
        let repair = Repair {
            requester: Peer::default(),
            request: self.requests,
            stream: self.streams[index].stream.clone(),
            max_bytes: self.settings.request_bytes,
            ranges,
            locate,
            max_age_ns: self.settings.start_age,
        };
        self.send(repair);
    }

    /// All holes of a stream in the shards that are owned, as far as they fit into a request, and the topics without a position.
    fn missing(&self, index: usize) -> (Vec<Range>, Vec<Topic>) {
        let (mut ranges, mut locate) = (Vec::new(), Vec::new());
        for (shard, position) in self.streams[index].positions.iter().enumerate() {
            if !matches!(self.holds[shard], Hold::Owned(_)) {
                continue;
            }
            let topic = self.topic(shard);
            if position.received == UNKNOWN {
                if position.announced > 0 || !position.held.is_empty() {
                    locate.push(topic);
                }
                continue;
            }
            let room = MAX_RANGES - ranges.len();
            let holes = position.holes().take(room);
            ranges.extend(holes.map(|(from, to)| Range { topic, from: Number(from), to: Number(to) }));
        }
        (ranges, locate)
    }

    pub(super) fn on_repaired(&mut self, now: u64, repaired: Repaired) {
        let Some(index) = self.find(&repaired.stream) else { return };
        let asking = &mut self.streams[index].asking;
        if asking.request.is_none() {
            // Of a request that was given up or answered: if it is needed it will be asked for again.
            return;
        }
        (asking.silent_since, asking.gone, asking.progress) = (None, false, true);
        (asking.back_off, asking.at) = (0, Some(now + 4 * FIRST_BACK_OFF));
        self.outputs.push_back(MemberOutput::Repaired {
            topic: repaired.topic,
            header: repaired.header.0,
            body: repaired.body.0,
        });
    }

    pub(super) fn on_done(&mut self, now: u64, done: &Done) {
        let Some(index) = self.find(&done.stream) else { return };
        let Some(newest) = self.streams[index].asking.request else { return };
        let mut progress = self.streams[index].asking.progress;
        for place in &done.located {
            let shard = place.topic.shard.index();
            let Hold::Owned(generation) = self.holds[shard] else { continue };
            let position = &mut self.streams[index].positions[shard];
            if place.topic.kind == self.settings.kind && position.received == UNKNOWN {
                position.received = place.sequence.0;
                progress = true;
                self.deliver_held(index, place.topic, generation);
            }
        }
        for place in &done.retained {
            let shard = place.topic.shard.index();
            let Hold::Owned(generation) = self.holds[shard] else { continue };
            let received = self.streams[index].positions[shard].received;
            if place.topic.kind == self.settings.kind && received < place.sequence.0 {
                progress = true;
                self.give_up(index, place.topic, generation, place.sequence.0, GiveUp::NotRetained);
            }
        }
        let asking = &mut self.streams[index].asking;
        if done.request != newest {
            // An answer that took longer than the back-off. What it says is true; the end of the newest is still to come.
            if progress {
                (asking.silent_since, asking.progress) = (None, true);
            }
            return;
        }
        asking.request = None;
        asking.gone = done.outcome == Outcome::Gone;
        if progress || done.outcome == Outcome::Wait {
            asking.silent_since = None;
        }
        if progress {
            (asking.back_off, asking.at) = (0, Some(now));
        } else {
            asking.later(now);
        }
    }

    fn give_up_all(&mut self, now: u64, index: usize, reason: GiveUp) {
        for shard in 0..self.holds.len() {
            let Hold::Owned(generation) = self.holds[shard] else { continue };
            let topic = self.topic(shard);
            let position = &mut self.streams[index].positions[shard];
            let announced = position.announced;
            if position.received == UNKNOWN {
                if announced == 0 {
                    continue;
                }
                // With what there is. That the group had nothing of what is before cannot be known, so all of it is counted.
                let start = position.held.first_key_value().map_or(announced, |(&first, _)| first);
                position.received = 0;
                self.give_up(index, topic, generation, start, GiveUp::NotLocated);
            }
            self.give_up(index, topic, generation, announced, reason);
        }
        self.streams[index].asking.begin(now);
    }

    /// Moves a position to `end` at least, delivers what is held on the way, and says what is not there.
    fn give_up(&mut self, index: usize, topic: Topic, generation: u64, end: u64, reason: GiveUp) {
        loop {
            self.deliver_held(index, topic, generation);
            let followed = &mut self.streams[index];
            let position = &mut followed.positions[topic.shard.index()];
            if position.received >= end {
                return;
            }
            let from = position.received;
            let held = position.held.first_key_value().map_or(end, |(&first, _)| first);
            let to = held.min(end);
            position.received = to;
            let stream = followed.stream.clone();
            self.counters.given_up[reason as usize] += to - from;
            self.outputs.push_back(MemberOutput::GaveUp { stream, topic, from, to, reason });
        }
    }
}
