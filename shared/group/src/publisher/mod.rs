//! A publisher's side of the control plane.
//!
//! ```text
//! every second ─ Advertise ─▶                       jobs, one per requester
//!                               Repair ─▶ [ranges ▸ ▸ ▸] ─ token bucket ─▶ Repaired … Done
//!              ◀─ Notice ─ list of destinations, commits of the slowest group
//!
//! list:  received as number n ──▶ [capture threads filter by it] ──▶ applied(n) ──▶ acknowledged, publishing is allowed
//! ```
//!
//! Repairs are answered on the control thread from [`Retention`], within a budget of bytes per
//! second, so live data never waits for them.
//!
//! The shell calls four types of methods:
//!
//! - **Inputs**: [`PublisherControl::on_message`] takes a message of the coordinator,
//!   [`PublisherControl::applied`] the number of the list that all capture threads filter by.
//!   [`PublisherControl::follow_commits`], [`PublisherControl::drain`] and
//!   [`PublisherControl::end`] are the life of the publisher.
//! - [`PublisherControl::on_tick`] performs the actions that are due.
//! - [`PublisherControl::next_deadline`] says when to call `on_tick` next. It may change with every
//!   other call.
//! - [`PublisherControl::poll_output`] returns one message after another, while the socket takes
//!   them.

pub(crate) mod budget;
mod groups;
mod list;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use sekiwake_record::{Header, Kind, Topic};

pub use self::list::CurrentList;
use self::{budget::RepairBudget, groups::KnownGroups, list::ReceivedList};
use crate::{
    ADVERTISE_EVERY, BootTime, Retained, Retention, Stream,
    time::nanos,
    wire::{
        Advertise, Covered, Destination, Done, Extent, Frame, LeftAlone, MAX_CLIENTS_DESTINATIONS, Message, Notice,
        Number, Outcome, Position, Range, Repair, Repaired, Transport,
    },
};

/// How often a publisher that waits for commits (it drains or reads a file) advertises.
const ADVERTISE_FOR_COMMITS_EVERY: Duration = Duration::from_millis(100);
/// Maximum number of requests in progress. Another one is answered with Wait.
const MAX_JOBS: usize = 64;
/// Maximum number of answers per tick, which holds the lock of the retention.
const MAX_ANSWERS: usize = 32;
/// Answers that may wait for the socket. No more are made until it has taken some.
const MAX_QUEUED: usize = 64;
/// Maximum bytes of answers to one request.
const MAX_REQUEST_BYTES: u64 = 4 << 20;
/// How long a publisher that reads a file waits for a group whose last member has left.
const GROUP_RETURNS_WITHIN: Duration = Duration::from_secs(30);

/// Settings of a [`PublisherControl`].
#[derive(Clone, Debug)]
pub struct PublisherControlSettings {
    /// The stream.
    pub stream: Stream,
    /// Maximum bytes retransmitted per second.
    pub repair_bytes_per_second: u64,
}

/// The machine of a stream, on the publisher's side.
#[derive(Debug)]
pub struct PublisherControl {
    settings: PublisherControlSettings,
    started_at: BootTime,
    /// The number of the newest advertisement.
    number: u64,
    advertise_at: BootTime,
    wants_commits: bool,
    /// It reads a file no further ahead than commits allow.
    follows_commits: bool,
    /// By kind: when a group was last known to work on it.
    live_at: [Option<BootTime>; Kind::ALL.len()],
    ended: bool,
    /// The first advertisement of the drain. A notice that answers it covers everything published.
    drain_from: Option<u64>,
    drained: bool,
    /// The epoch of the coordinator; 0 before the first.
    coordinator: u64,
    /// When it was last heard.
    heard_at: Option<BootTime>,
    /// When the coordinator before it was last heard.
    former_heard_at: Option<BootTime>,
    list: ReceivedList,
    groups: KnownGroups,
    /// Datagrams to counted destinations.
    left_alone: Vec<LeftAlone>,
    jobs: VecDeque<Job>,
    budget: RepairBudget,
    /// Sent before the answers, and only the newest.
    advertisement: Option<Vec<u8>>,
    outputs: VecDeque<Vec<u8>>,
    rejected: u64,
    retransmitted_bytes: u64,
    retransmitted_records: u64,
}

/// A request that is being answered.
#[derive(Debug)]
struct Job {
    /// The ranges that are left.
    repair: Repair,
    bytes_left: u64,
    has_sent: bool,
    /// The range of the next answer.
    turn: usize,
    /// The oldest retained records, of topics for which older ones were requested.
    retained: Vec<Position>,
}

impl PublisherControl {
    /// A publisher that the coordinator does not know yet.
    pub fn new(settings: PublisherControlSettings, now: BootTime) -> PublisherControl {
        PublisherControl {
            budget: RepairBudget::new(settings.repair_bytes_per_second, now),
            settings,
            started_at: now,
            number: 0,
            advertise_at: now,
            wants_commits: false,
            follows_commits: false,
            live_at: [None; Kind::ALL.len()],
            ended: false,
            drain_from: None,
            drained: false,
            coordinator: 0,
            heard_at: None,
            former_heard_at: None,
            list: ReceivedList::default(),
            groups: KnownGroups::default(),
            left_alone: Vec::new(),
            jobs: VecDeque::new(),
            advertisement: None,
            outputs: VecDeque::new(),
            rejected: 0,
            retransmitted_bytes: 0,
            retransmitted_records: 0,
        }
    }

    /// Takes a message of the coordinator.
    pub fn on_message<B: AsRef<[u8]>>(&mut self, now: BootTime, frame: &[u8], retention: &mut Retention<B>) {
        match Message::decode(frame) {
            Ok(Message::Repair(repair)) if repair.stream == self.settings.stream => self.on_repair(repair, retention),
            Ok(Message::Notice(notice)) if notice.stream == self.settings.stream => {
                self.on_notice(now, notice, retention)
            }
            _ => self.rejected += 1,
        }
    }

    /// Performs the actions that are due.
    pub fn on_tick<B: AsRef<[u8]>>(&mut self, now: BootTime, retention: &Retention<B>) {
        if now >= self.advertise_at && !self.ended {
            self.advertise(now, retention);
        }
        self.budget.refill(now);
        for _ in 0..MAX_ANSWERS {
            if !self.budget.has_room() || self.is_congested() || !self.answer(now, retention) {
                break;
            }
        }
    }

    /// When [`PublisherControl::on_tick`] has something to do. While too many answers are queued,
    /// polling them makes it earlier.
    pub fn next_deadline(&self) -> BootTime {
        let advertise_at = if self.ended { BootTime::NEVER } else { self.advertise_at };
        if self.jobs.is_empty() || self.is_congested() {
            return advertise_at;
        }
        if self.budget.has_room() {
            return self.budget.next_room();
        }
        advertise_at.min(self.budget.next_room())
    }

    /// The next message for the coordinator. Poll only while the socket takes more, because the
    /// length of this queue limits how many answers are made.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.advertisement.take().or_else(|| self.outputs.pop_front())
    }

    /// The destinations that must not be captured. The shell passes the list to the capture
    /// threads, and calls [`PublisherControl::applied`] when all of them use it.
    pub fn list(&self) -> CurrentList<'_> {
        self.list.current()
    }

    /// Every capture thread filters by the list with this number, or a newer one, so it may be
    /// acknowledged.
    pub fn applied(&mut self, now: BootTime, number: u64) {
        if self.list.apply(number) {
            self.advertise_at = self.advertise_at.min(now);
        }
    }

    /// Takes how many datagrams to each counted destination the capture threads have left alone
    /// so far. The next advertisements say it.
    pub fn set_left_alone(&mut self, left_alone: impl IntoIterator<Item = (SocketAddr, u64)>) {
        let counts = left_alone.into_iter().map(|(address, datagrams)| {
            let Destination { address, port, .. } = Destination::new(address.ip(), address.port(), Transport::Udp);
            LeftAlone { address, port, datagrams }
        });
        self.left_alone.clear();
        self.left_alone.extend(counts.take(MAX_CLIENTS_DESTINATIONS));
    }

    /// Whether the capture threads filter by a complete list. Nothing may be published before.
    pub fn may_publish(&self) -> bool {
        self.list.has_complete()
    }

    /// From now on the publisher requests commits, to read a file no further ahead than its memory
    /// allows.
    pub fn follow_commits(&mut self, now: BootTime) {
        self.follows_commits = true;
        self.want_commits(now);
    }

    /// Everything is published. [`PublisherControl::is_drained`] says when everything is handled.
    pub fn drain(&mut self, now: BootTime) {
        self.want_commits(now);
        self.drain_from.get_or_insert(self.number + 1);
    }

    /// Whether every live group has committed everything.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Announces the end of the stream.
    pub fn end<B: AsRef<[u8]>>(&mut self, now: BootTime, retention: &Retention<B>) {
        self.ended = true;
        self.advertise(now, retention);
    }

    /// Messages rejected.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Bytes of bodies retransmitted.
    pub fn retransmitted_bytes(&self) -> u64 {
        self.retransmitted_bytes
    }

    /// Records retransmitted.
    pub fn retransmitted_records(&self) -> u64 {
        self.retransmitted_records
    }

    /// The kinds that groups work on, one bit each.
    pub fn live_kinds(&self) -> u8 {
        let live = Kind::ALL.into_iter().filter(|kind| self.live_at[kind.index()].is_some());
        live.fold(0, |mask, kind| mask | 1 << kind.index())
    }

    fn want_commits(&mut self, now: BootTime) {
        self.wants_commits = true;
        self.advertise_at = now;
    }

    /// Whether a group works on a kind. While a file is read, a group still counts for a while
    /// after its last member has left, because it may be restarting.
    fn is_live(&self, now: BootTime, kind: Kind) -> bool {
        let grace = if self.follows_commits { GROUP_RETURNS_WITHIN } else { Duration::ZERO };
        self.live_at[kind.index()].is_some_and(|at| now <= at + grace)
    }

    fn advertise<B: AsRef<[u8]>>(&mut self, now: BootTime, retention: &Retention<B>) {
        self.advertise_at = now + if self.wants_commits { ADVERTISE_FOR_COMMITS_EVERY } else { ADVERTISE_EVERY };
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
            list_version: self.list.acknowledged_version(),
            extents: extents.collect(),
            groups: self.groups.presented(now),
            former_age_ns: self.former_heard_at.map_or(0, |at| nanos(now - at).max(1)),
            left_alone: self.left_alone.clone(),
        };
        self.advertisement = Some(Message::from(advertise).encode());
    }

    fn on_notice<B: AsRef<[u8]>>(&mut self, now: BootTime, notice: Notice, retention: &mut Retention<B>) {
        let is_new_coordinator = notice.coordinator != self.coordinator;
        if is_new_coordinator {
            self.coordinator = notice.coordinator;
            self.former_heard_at = self.heard_at;
            self.list.on_new_coordinator();
        }
        self.heard_at = Some(now);
        // A notice with another number requests an advertisement.
        if notice.number != self.number {
            self.advertise_at = self.advertise_at.min(now);
        }
        if notice.has_list
            && self.list.receive(notice.list_version, notice.complete, notice.destinations, notice.counted)
        {
            self.advertise_at = self.advertise_at.min(now);
        }
        if self.groups.on_notice(now, &notice.groups) && is_new_coordinator {
            self.advertise_at = self.advertise_at.min(now);
        }
        for position in notice.commits {
            retention.commit(position.topic, position.sequence.0);
        }
        for kind in Kind::ALL.into_iter().filter(|kind| notice.live_kinds & (1 << kind.index()) != 0) {
            self.live_at[kind.index()] = Some(now);
        }
        // Records of a kind that no group works on count as handled.
        if notice.complete && self.wants_commits {
            let idle: Vec<Kind> = Kind::ALL.into_iter().filter(|&kind| !self.is_live(now, kind)).collect();
            idle.into_iter().for_each(|kind| retention.commit_all(kind));
        }
        let answers_drain = self.drain_from.is_some_and(|number| notice.number >= number);
        if answers_drain && notice.complete {
            let mut live = Kind::ALL.into_iter().filter(|&kind| self.is_live(now, kind));
            self.drained = !live.any(|kind| retention.has_uncommitted(kind));
        }
    }

    fn is_congested(&self) -> bool {
        self.outputs.len() >= MAX_QUEUED
    }

    fn on_repair<B: AsRef<[u8]>>(&mut self, repair: Repair, retention: &Retention<B>) {
        // A new request of a member replaces its old one, since it lists everything that is still
        // missing.
        self.jobs.retain(|job| job.repair.requester != repair.requester);
        if self.jobs.len() >= MAX_JOBS {
            // A member that gets no answer requests again.
            if self.outputs.len() < 2 * MAX_QUEUED {
                self.done(repair, Outcome::Wait, Vec::new(), Vec::new(), Vec::new());
            }
            return;
        }
        let mut retained = Vec::new();
        for range in &repair.ranges {
            let oldest = retention.oldest_sequence(range.topic);
            if range.from.0 < oldest && !retained.iter().any(|known: &Position| known.topic == range.topic) {
                retained.push(Position { topic: range.topic, sequence: Number(oldest) });
            }
        }
        let bytes_left = repair.max_bytes.min(MAX_REQUEST_BYTES);
        self.jobs.push_back(Job { repair, bytes_left, has_sent: false, turn: 0, retained });
    }

    /// Makes one answer to the next request, from its next range, so that requests and topics
    /// advance together. Returns whether there was anything to do.
    fn answer<B: AsRef<[u8]>>(&mut self, now: BootTime, retention: &Retention<B>) -> bool {
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
            self.finish(now, job, Outcome::Complete, retention);
            return true;
        };
        let bytes = batch.body.as_ref().len() as u64;
        // At least one batch is sent, or a request with a small budget would be repeated forever.
        if bytes > job.bytes_left && job.has_sent {
            self.finish(now, job, Outcome::More, retention);
            return true;
        }
        job.bytes_left = job.bytes_left.saturating_sub(bytes);
        job.has_sent = true;
        self.budget.spend(bytes);
        self.retransmitted_bytes += bytes;
        self.retransmitted_records += u64::from(batch.count);
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

    fn finish<B: AsRef<[u8]>>(&mut self, now: BootTime, job: Job, outcome: Outcome, retention: &Retention<B>) {
        let since = now - Duration::from_nanos(job.repair.max_age_ns);
        // A stream that is younger than the requested age is wanted from its first record on, also
        // where that is no longer retained: the member then counts the loss.
        let from = |topic| if since <= self.started_at { 0 } else { retention.first_since(topic, since) };
        let locate = |&topic| Position { topic, sequence: Number(from(topic)) };
        let mut located: Vec<Position> = job.repair.locate.iter().map(locate).collect();
        let group = job.repair.group.as_ref();
        let covered = group.map_or_else(Vec::new, |group| self.groups.covered(group, &job.repair.locate));
        located.retain(|position| !covered.iter().any(|covered| covered.topic == position.topic));
        self.done(job.repair, outcome, job.retained, located, covered);
    }

    fn done(
        &mut self,
        repair: Repair,
        outcome: Outcome,
        retained: Vec<Position>,
        located: Vec<Position>,
        covered: Vec<Covered>,
    ) {
        let Repair { requester, request, stream, .. } = repair;
        self.send(Done { requester, request, stream, outcome, retained, located, covered });
    }

    fn send(&mut self, message: impl Into<Message>) {
        self.outputs.push_back(message.into().encode());
    }
}
