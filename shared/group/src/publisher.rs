//! A publisher's side of the control plane.
//!
//! ```text
//! every second ─ Advertise ─▶                         jobs, one a requester
//!                                 Repair ─▶ [ranges ▸ ▸ ▸] ─ token bucket ─▶ Repaired … Done
//!              ◀─ Notice ─ list of destinations, commits of the slowest group
//! ```
//!
//! Repairs are made on the control thread from [`Retention`], within a budget of bytes a second: live data never waits for them.

use std::collections::VecDeque;

use sekiwake_record::{Header, Kind, Topic};

use crate::{
    ADVERTISE_EVERY, Retained, Retention, SECOND, Stream,
    wire::{
        Advertise, Destination, Done, Extent, Frame, Message, Notice, Number, Outcome, Position, Range, Repair,
        Repaired,
    },
};

/// The most requests that wait. One more is told to wait.
const MAX_JOBS: usize = 64;
/// The most answers that are made in one go, so that the lock is held for a moment only.
const MAX_ANSWERS: usize = 32;
/// The most bytes that a request may ask for.
const MAX_REQUEST_BYTES: u64 = 4 << 20;

/// Settings of a [`PublisherControl`].
#[derive(Clone, Debug)]
pub struct PublisherControlSettings {
    /// The stream.
    pub stream: Stream,
    /// The most bytes of repairs in a second.
    pub repair_bytes_per_second: u64,
}

/// The machine that answers for a stream.
#[derive(Debug)]
pub struct PublisherControl {
    settings: PublisherControlSettings,
    started_at: u64,
    number: u64,
    advertise_at: u64,
    wants_commits: bool,
    ended: bool,
    /// The first advertisement of the drain: what answers it speaks of all that was published.
    drain_from: Option<u64>,
    drained: bool,
    coordinator: u64,
    list_version: u64,
    has_complete_list: bool,
    destinations: Vec<Destination>,
    jobs: VecDeque<Job>,
    allowance: u64,
    allowed_at: u64,
    outputs: VecDeque<Vec<u8>>,
    refused: u64,
    repaired_bytes: u64,
}

#[derive(Debug)]
struct Job {
    repair: Repair,
    bytes_left: u64,
    turn: usize,
    retained: Vec<Position>,
}

impl PublisherControl {
    /// A publisher that nobody has heard of.
    pub fn new(settings: PublisherControlSettings, now: u64) -> PublisherControl {
        PublisherControl {
            allowance: settings.repair_bytes_per_second / 10,
            settings,
            started_at: now,
            number: 0,
            advertise_at: now,
            wants_commits: false,
            ended: false,
            drain_from: None,
            drained: false,
            coordinator: 0,
            list_version: 0,
            has_complete_list: false,
            destinations: Vec::new(),
            jobs: VecDeque::new(),
            allowed_at: now,
            outputs: VecDeque::new(),
            refused: 0,
            repaired_bytes: 0,
        }
    }

    /// Takes a message of the coordinator.
    pub fn on_message<B: AsRef<[u8]>>(&mut self, now: u64, frame: &[u8], retention: &mut Retention<B>) {
        match Message::decode(frame) {
            Ok(Message::Repair(repair)) if repair.stream == self.settings.stream => {
                self.on_repair(now, repair, retention)
            }
            Ok(Message::Notice(notice)) if notice.stream == self.settings.stream => {
                self.on_notice(now, notice, retention)
            }
            _ => self.refused += 1,
        }
    }

    /// Does what is due.
    pub fn on_tick<B: AsRef<[u8]>>(&mut self, now: u64, retention: &Retention<B>) {
        if now >= self.advertise_at && !self.ended {
            self.advertise(now, retention);
        }
        self.refill(now);
        for _ in 0..MAX_ANSWERS {
            if self.allowance == 0 || !self.answer(retention) {
                break;
            }
        }
    }

    /// When [`PublisherControl::on_tick`] has something to do.
    pub fn next_deadline(&self) -> u64 {
        let advertise_at = if self.ended { u64::MAX } else { self.advertise_at };
        match (self.jobs.is_empty(), self.allowance) {
            (true, _) => advertise_at,
            (false, 0) => advertise_at.min(self.allowed_at + SECOND / 1000),
            (false, _) => self.allowed_at,
        }
    }

    /// The next message for the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }

    /// What is addressed to one of these is not published.
    pub fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    /// Whether the list of destinations is there and complete: nothing is published before.
    pub fn may_publish(&self) -> bool {
        self.has_complete_list
    }

    /// From now on the publisher wants to know where groups stand, to read a file no further ahead than its memory.
    pub fn follow_commits(&mut self, now: u64) {
        self.wants_commits = true;
        self.advertise_at = now;
    }

    /// Everything has been published. [`PublisherControl::is_drained`] says when everything has been handled.
    pub fn drain(&mut self, now: u64) {
        self.follow_commits(now);
        self.drain_from.get_or_insert(self.number + 1);
    }

    /// Whether every live group has committed all there is.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The last word: the stream has ended.
    pub fn end<B: AsRef<[u8]>>(&mut self, now: u64, retention: &Retention<B>) {
        self.ended = true;
        self.advertise(now, retention);
    }

    /// Messages that were refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Bytes of bodies that were sent again.
    pub fn repaired_bytes(&self) -> u64 {
        self.repaired_bytes
    }

    fn advertise<B: AsRef<[u8]>>(&mut self, now: u64, retention: &Retention<B>) {
        self.advertise_at = now + ADVERTISE_EVERY;
        self.number += 1;
        let extents = Topic::all().filter(|&topic| retention.next_sequence(topic) > 0).map(|topic| Extent {
            topic,
            oldest: Number(retention.oldest_sequence(topic)),
            next: Number(retention.next_sequence(topic)),
        });
        let advertise = Advertise {
            stream: self.settings.stream.clone(),
            number: self.number,
            ended: self.ended,
            wants_commits: self.wants_commits,
            coordinator: self.coordinator,
            list_version: self.list_version,
            extents: extents.collect(),
        };
        self.send(advertise);
    }

    fn on_notice<B: AsRef<[u8]>>(&mut self, now: u64, notice: Notice, retention: &mut Retention<B>) {
        if notice.coordinator != self.coordinator {
            self.coordinator = notice.coordinator;
            self.list_version = 0;
        }
        // A notice that answers nothing asks for an advertisement; so does a new list, for the acknowledgement.
        if notice.number != self.number {
            self.advertise_at = self.advertise_at.min(now);
        }
        if notice.has_list && (notice.settled || notice.list_version > self.list_version) {
            self.list_version = notice.list_version;
            self.advertise_at = now;
            if !notice.settled {
                // Members that have not been heard yet still send to what they registered with the last coordinator.
                let known = std::mem::take(&mut self.destinations);
                self.destinations = known.into_iter().chain(notice.destinations).collect();
                self.destinations.sort();
                self.destinations.dedup();
            } else {
                self.destinations = notice.destinations;
                self.has_complete_list = true;
            }
        }
        for position in notice.commits {
            retention.commit(position.topic, position.sequence.0);
        }
        let answers_drain = self.drain_from.is_some_and(|number| notice.number >= number);
        if answers_drain && notice.settled {
            let is_live = |kind: &&Kind| notice.live_kinds & (1 << kind.index()) != 0;
            self.drained = !Kind::ALL.iter().filter(is_live).any(|&kind| retention.has_uncommitted(kind));
        }
    }

    fn on_repair<B: AsRef<[u8]>>(&mut self, now: u64, repair: Repair, retention: &Retention<B>) {
        // A new request of the same member replaces its old one: what it still misses is in the new one.
        self.jobs.retain(|job| job.repair.requester != repair.requester);
        if self.jobs.len() >= MAX_JOBS {
            return self.done(repair, Outcome::Wait, Vec::new(), Vec::new());
        }
        let mut retained = Vec::new();
        for range in &repair.ranges {
            let oldest = retention.oldest_sequence(range.topic);
            if range.from.0 < oldest && !retained.iter().any(|known: &Position| known.topic == range.topic) {
                retained.push(Position { topic: range.topic, sequence: Number(oldest) });
            }
        }
        let bytes_left = repair.max_bytes.min(MAX_REQUEST_BYTES);
        self.jobs.push_back(Job { repair, bytes_left, turn: 0, retained });
        self.refill(now);
    }

    /// Makes one answer to the request whose turn it is, from one of its ranges in turn. `false`: there is nothing to do.
    fn answer<B: AsRef<[u8]>>(&mut self, retention: &Retention<B>) -> bool {
        let Some(mut job) = self.jobs.pop_front() else { return false };
        let oldest = |range: &Range| range.from.0.max(retention.oldest_sequence(range.topic));
        while let Some(range) = job.repair.ranges.get_mut(job.turn) {
            range.from = Number(oldest(range));
            if range.from < range.to && retention.batch(range.topic, range.from.0).is_some() {
                break;
            }
            job.repair.ranges.swap_remove(job.turn);
            if job.turn >= job.repair.ranges.len() {
                job.turn = 0;
            }
        }
        let next = job.repair.ranges.get_mut(job.turn);
        let found = next.and_then(|range| retention.batch(range.topic, range.from.0).map(|batch| (range, batch)));
        let Some((range, batch)) = found else {
            self.finish(job, Outcome::Complete, retention);
            return true;
        };
        let bytes = batch.body.as_ref().len() as u64;
        if bytes > job.bytes_left {
            self.finish(job, Outcome::More, retention);
            return true;
        }
        job.bytes_left -= bytes;
        self.allowance = self.allowance.saturating_sub(bytes);
        self.repaired_bytes += bytes;
        range.from = Number(batch.first_sequence + u64::from(batch.count));
        let repaired = Repaired {
            requester: job.repair.requester.clone(),
            request: job.repair.request,
            stream: self.settings.stream.clone(),
            topic: range.topic,
            header: Frame(self.header(batch)),
            body: Frame(batch.body.as_ref().to_vec()),
        };
        job.turn = (job.turn + 1) % job.repair.ranges.len();
        self.send(repaired);
        self.jobs.push_back(job);
        true
    }

    fn header<B>(&self, batch: &Retained<B>) -> Vec<u8> {
        let mut frame = Vec::with_capacity(64);
        let header = Header {
            stream_name: &self.settings.stream.name,
            stream_epoch: self.settings.stream.epoch,
            first_sequence: batch.first_sequence,
            count: batch.count,
            first_captured_at_ns: batch.first_captured_at_ns,
            last_captured_at_ns: batch.last_captured_at_ns,
        };
        header.encode(&mut frame);
        frame
    }

    fn finish<B: AsRef<[u8]>>(&mut self, job: Job, outcome: Outcome, retention: &Retention<B>) {
        let since = self.allowed_at.saturating_sub(job.repair.max_age_ns);
        // Of a stream that is younger than the age asked for, everything is wanted, retained or not: what is not is then counted.
        let from = |topic| if since <= self.started_at { 0 } else { retention.first_since(topic, since) };
        let locate = |&topic| Position { topic, sequence: Number(from(topic)) };
        let located = job.repair.locate.iter().map(locate).collect();
        self.done(job.repair, outcome, job.retained, located);
    }

    fn done(&mut self, repair: Repair, outcome: Outcome, retained: Vec<Position>, located: Vec<Position>) {
        let Repair { requester, request, stream, .. } = repair;
        self.send(Done { requester, request, stream, outcome, retained, located });
    }

    fn refill(&mut self, now: u64) {
        let rate = self.settings.repair_bytes_per_second;
        let elapsed = now.saturating_sub(self.allowed_at).min(SECOND);
        self.allowed_at = now;
        self.allowance =
            (self.allowance + (u128::from(rate) * u128::from(elapsed) / u128::from(SECOND)) as u64).min(rate / 10);
    }

    fn send(&mut self, message: impl Into<Message>) {
        self.outputs.push_back(message.into().encode());
    }
}
