//! A publisher's side of the control plane.
//!
//! ```text
//! every second ─ Advertise ─▶                         jobs, one a requester
//!                                 Repair ─▶ [ranges ▸ ▸ ▸] ─ token bucket ─▶ Repaired … Done
//!              ◀─ Notice ─ list of destinations, commits of the slowest group
//!
//! of a list:  received, number n ──▶ [the capture threads filter by it] ──▶ applied n ──▶ acknowledged, and records may be published
//! ```
//!
//! Repairs are made on the control thread from [`Retention`], within a budget of bytes a second: live data never waits for them.

use std::collections::VecDeque;

use sekiwake_record::{Header, Kind, Topic};

use crate::{
    ADVERTISE_EVERY, MILLISECOND, Retained, Retention, SECOND, Stream,
    wire::{
        Advertise, Destination, Done, Extent, Frame, Message, Notice, Number, Outcome, Position, Range, Repair,
        Repaired,
    },
};

/// How often a publisher that waits for commits asks where groups stand: it reads a file no further ahead.
const ADVERTISE_FOR_COMMITS_EVERY: u64 = 100 * MILLISECOND;
/// The most requests that wait. One more is told to wait.
const MAX_JOBS: usize = 64;
/// The most answers that are made in one go, so that the lock is held for a moment only.
const MAX_ANSWERS: usize = 32;
/// Answers that may wait to be sent; no more are made until the socket has taken some.
const MAX_WAITING: usize = 64;
/// Lists that have been received and not applied. Of more, those in the middle are never acknowledged: a later one is.
const MAX_PENDING: usize = 16;
/// The most bytes that a request may ask for.
const MAX_REQUEST_BYTES: u64 = 4 << 20;

/// How long a reader of a file waits for a group whose last member has gone.
const GROUP_RETURNS_WITHIN: u64 = 30 * SECOND;

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
    /// It reads a file.
    follows: bool,
    /// When a live group last worked on a kind.
    live_at: [Option<u64>; Kind::ALL.len()],
    ended: bool,
    /// The first advertisement of the drain: what answers it speaks of all that was published.
    drain_from: Option<u64>,
    drained: bool,
    coordinator: u64,
    destinations: Vec<Destination>,
    /// Counts changes of the list; 0 until there is one.
    list_number: u64,
    /// The newest list that every capture thread filters by.
    applied: u64,
    pending: VecDeque<PendingList>,
    /// The newest version of this coordinator that has been received.
    received_version: u64,
    /// The newest version of this coordinator that has been applied.
    acknowledged_version: u64,
    may_publish: bool,
    jobs: VecDeque<Job>,
    /// Bytes that may be sent; below zero after a batch that was larger than what was left.
    allowance: i64,
    allowed_at: u64,
    /// Goes before the answers, and only the newest of them goes.
    advertisement: Option<Vec<u8>>,
    outputs: VecDeque<Vec<u8>>,
    refused: u64,
    repaired_bytes: u64,
}

/// A version of the list that is acknowledged when the list of this number is applied.
#[derive(Debug)]
struct PendingList {
    number: u64,
    version: u64,
    complete: bool,
}

#[derive(Debug)]
struct Job {
    repair: Repair,
    bytes_left: u64,
    has_sent: bool,
    turn: usize,
    retained: Vec<Position>,
}

impl PublisherControl {
    /// A publisher that nobody has heard of.
    pub fn new(settings: PublisherControlSettings, now: u64) -> PublisherControl {
        PublisherControl {
            allowance: burst(settings.repair_bytes_per_second),
            settings,
            started_at: now,
            number: 0,
            advertise_at: now,
            wants_commits: false,
            follows: false,
            live_at: [None; Kind::ALL.len()],
            ended: false,
            drain_from: None,
            drained: false,
            coordinator: 0,
            destinations: Vec::new(),
            list_number: 0,
            applied: 0,
            pending: VecDeque::new(),
            received_version: 0,
            acknowledged_version: 0,
            may_publish: false,
            jobs: VecDeque::new(),
            allowed_at: now,
            advertisement: None,
            outputs: VecDeque::new(),
            refused: 0,
            repaired_bytes: 0,
        }
    }

    /// Takes a message of the coordinator.
    pub fn on_message<B: AsRef<[u8]>>(&mut self, now: u64, frame: &[u8], retention: &mut Retention<B>) {
        match Message::decode(frame) {
            Ok(Message::Repair(repair)) if repair.stream == self.settings.stream => self.on_repair(repair, retention),
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
            if self.allowance <= 0 || self.is_congested() || !self.answer(now, retention) {
                break;
            }
        }
    }

    /// When [`PublisherControl::on_tick`] has something to do. While more answers wait than the socket takes, only outputs that are
    /// polled make it earlier: ask again after that.
    pub fn next_deadline(&self) -> u64 {
        let advertise_at = if self.ended { u64::MAX } else { self.advertise_at };
        if self.jobs.is_empty() || self.is_congested() {
            return advertise_at;
        }
        if self.allowance > 0 {
            return self.allowed_at;
        }
        // Enough for the debt and a byte more, and not more often than every millisecond.
        let owed = u128::from(self.allowance.unsigned_abs() + 1) * u128::from(SECOND);
        let wait = owed.div_ceil(u128::from(self.rate())).min(u128::from(SECOND)) as u64;
        advertise_at.min(self.allowed_at + wait.max(MILLISECOND))
    }

    /// The next message for the coordinator. To be polled only while the socket takes more: what waits here bounds what is made.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.advertisement.take().or_else(|| self.outputs.pop_front())
    }

    /// What is addressed to one of these is not published, and the number of this list: it rises with every change, and is 0 until
    /// there is a list. The shell hands it to the capture threads, and calls [`PublisherControl::applied`].
    pub fn list(&self) -> (u64, &[Destination]) {
        (self.list_number, &self.destinations)
    }

    /// Every capture thread filters by the list of this number, or a newer one: it may be acknowledged.
    pub fn applied(&mut self, now: u64, number: u64) {
        self.applied = self.applied.max(number.min(self.list_number));
        self.acknowledge(now);
    }

    /// Whether the capture threads filter by a list that was complete: nothing is published before.
    pub fn may_publish(&self) -> bool {
        self.may_publish
    }

    /// From now on the publisher wants to know where groups stand, to read a file no further ahead than its memory.
    pub fn follow_commits(&mut self, now: u64) {
        self.follows = true;
        self.want_commits(now);
    }

    /// Everything has been published. [`PublisherControl::is_drained`] says when everything has been handled.
    pub fn drain(&mut self, now: u64) {
        self.want_commits(now);
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

    /// Kinds that groups work on, one bit each, as far as it has been told while it wanted to know.
    pub fn live_kinds(&self) -> u8 {
        let live = Kind::ALL.into_iter().filter(|kind| self.live_at[kind.index()].is_some());
        live.fold(0, |mask, kind| mask | 1 << kind.index())
    }

    fn want_commits(&mut self, now: u64) {
        self.wants_commits = true;
        self.advertise_at = now;
    }

    /// Whether a group works on a kind. For a file, one counts for a while after its last member has gone: it may be restarted.
    fn is_live(&self, now: u64, kind: Kind) -> bool {
        let grace = if self.follows { GROUP_RETURNS_WITHIN } else { 0 };
        self.live_at[kind.index()].is_some_and(|at| now <= at + grace)
    }

    fn advertise<B: AsRef<[u8]>>(&mut self, now: u64, retention: &Retention<B>) {
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
            list_version: self.acknowledged_version,
            extents: extents.collect(),
        };
        self.advertisement = Some(Message::from(advertise).encode());
    }

    fn on_notice<B: AsRef<[u8]>>(&mut self, now: u64, notice: Notice, retention: &mut Retention<B>) {
        if notice.coordinator != self.coordinator {
            self.coordinator = notice.coordinator;
            (self.received_version, self.acknowledged_version) = (0, 0);
            self.pending.clear();
        }
        // A notice that answers nothing asks for an advertisement.
        if notice.number != self.number {
            self.advertise_at = self.advertise_at.min(now);
        }
        if notice.has_list && notice.list_version > self.received_version {
            self.receive_list(now, notice.list_version, notice.settled, notice.destinations);
        }
        for position in notice.commits {
            retention.commit(position.topic, position.sequence.0);
        }
        for kind in Kind::ALL.into_iter().filter(|kind| notice.live_kinds & (1 << kind.index()) != 0) {
            self.live_at[kind.index()] = Some(now);
        }
        // What no group works on waits for nobody; but a file waits a while for a group that is being restarted.
        if notice.settled && self.wants_commits {
            let idle: Vec<Kind> = Kind::ALL.into_iter().filter(|&kind| !self.is_live(now, kind)).collect();
            idle.into_iter().for_each(|kind| retention.commit_all(kind));
        }
        let answers_drain = self.drain_from.is_some_and(|number| notice.number >= number);
        if answers_drain && notice.settled {
            let mut live = Kind::ALL.into_iter().filter(|&kind| self.is_live(now, kind));
            self.drained = !live.any(|kind| retention.has_uncommitted(kind));
        }
    }

    fn receive_list(&mut self, now: u64, version: u64, complete: bool, mut list: Vec<Destination>) {
        if !complete {
            // Members that have not been heard yet still send to what they registered with the last coordinator.
            list.extend_from_slice(&self.destinations);
        }
        list.sort();
        list.dedup();
        if list != self.destinations || self.list_number == 0 {
            self.destinations = list;
            self.list_number += 1;
        }
        self.received_version = version;
        if self.pending.len() == MAX_PENDING {
            self.pending.remove(MAX_PENDING / 2);
        }
        self.pending.push_back(PendingList { number: self.list_number, version, complete });
        // A list that says what the last one said is applied already.
        self.acknowledge(now);
    }

    /// Acknowledges the lists that are applied, at once.
    fn acknowledge(&mut self, now: u64) {
        while let Some(list) = self.pending.pop_front_if(|list| list.number <= self.applied) {
            self.acknowledged_version = list.version;
            self.may_publish |= list.complete;
            self.advertise_at = self.advertise_at.min(now);
        }
    }

    fn is_congested(&self) -> bool {
        self.outputs.len() >= MAX_WAITING
    }

    fn on_repair<B: AsRef<[u8]>>(&mut self, repair: Repair, retention: &Retention<B>) {
        // A new request of the same member replaces its old one: what it still misses is in the new one.
        self.jobs.retain(|job| job.repair.requester != repair.requester);
        if self.jobs.len() >= MAX_JOBS {
            // Who is told nothing asks again.
            if self.outputs.len() < 2 * MAX_WAITING {
                self.done(repair, Outcome::Wait, Vec::new(), Vec::new());
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

    /// Makes one answer to the request whose turn it is, from one of its ranges in turn. `false`: there is nothing to do.
    fn answer<B: AsRef<[u8]>>(&mut self, now: u64, retention: &Retention<B>) -> bool {
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
        // One batch always goes: a request for less would be asked for ever.
        if bytes > job.bytes_left && job.has_sent {
            self.finish(now, job, Outcome::More, retention);
            return true;
        }
        (job.bytes_left, job.has_sent) = (job.bytes_left.saturating_sub(bytes), true);
        self.allowance -= bytes as i64;
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

    fn finish<B: AsRef<[u8]>>(&mut self, now: u64, job: Job, outcome: Outcome, retention: &Retention<B>) {
        let since = now.saturating_sub(job.repair.max_age_ns);
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

    fn rate(&self) -> u64 {
        self.settings.repair_bytes_per_second.max(1)
    }

    fn refill(&mut self, now: u64) {
        let (rate, most) = (self.rate(), burst(self.settings.repair_bytes_per_second));
        let elapsed = now.saturating_sub(self.allowed_at);
        let earned = u128::from(rate) * u128::from(elapsed) / u128::from(SECOND);
        let room = most.abs_diff(self.allowance.min(most));
        if earned >= u128::from(room) {
            (self.allowance, self.allowed_at) = (most, now);
            return;
        }
        // The time that makes no whole byte yet counts next time: however low the rate, it is kept.
        self.allowance += earned as i64;
        self.allowed_at += (earned * u128::from(SECOND)).div_ceil(u128::from(rate)) as u64;
    }

    fn send(&mut self, message: impl Into<Message>) {
        self.outputs.push_back(message.into().encode());
    }
}

/// The most bytes that may be sent at once: a tenth of a second's.
fn burst(bytes_per_second: u64) -> i64 {
    i64::try_from(bytes_per_second / 10).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use sekiwake_record::{Name, Shard};

    use super::*;
    use crate::{Peer, wire::Transport};

    fn topic() -> Topic {
        Topic { kind: Kind::Syslog, shard: Shard::new(0).unwrap() }
    }

    /// A publisher with so many batches of 10 records in 1,000 bytes.
    fn publisher(repair_bytes_per_second: u64, batches: u64) -> (PublisherControl, Retention<Vec<u8>>) {
        let stream = Stream::new(&Name::new("tap").unwrap(), 5);
        let mut retention = Retention::new([64 << 20; Kind::ALL.len()]);
        for n in 0..batches {
            let batch = Retained {
                first_sequence: n * 10,
                count: 10,
                first_captured_at_ns: 0,
                last_captured_at_ns: 0,
                published_at: 0,
                body: vec![0; 1000],
            };
            retention.store(topic(), batch);
        }
        (PublisherControl::new(PublisherControlSettings { stream, repair_bytes_per_second }, 0), retention)
    }

    fn notice(list_version: u64, settled: bool, ports: &[u16]) -> Notice {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        Notice {
            stream: Stream::new(&Name::new("tap").unwrap(), 5),
            coordinator: 9,
            number: 1,
            settled,
            list_version,
            has_list: true,
            destinations: ports.iter().map(|&port| Destination::new(address, port, Transport::Udp)).collect(),
            live_kinds: 0,
            commits: Vec::new(),
        }
    }

    fn repair(requester: u8, max_bytes: u64, to: u64) -> Vec<u8> {
        let repair = Repair {
            requester: Peer::new(&[requester]).unwrap(),
            request: 1,
            stream: Stream::new(&Name::new("tap").unwrap(), 5),
            max_bytes,
            ranges: vec![Range { topic: topic(), from: Number(0), to: Number(to) }],
            locate: Vec::new(),
            max_age_ns: 0,
        };
        Message::from(repair).encode()
    }

    fn outputs(control: &mut PublisherControl) -> Vec<Message> {
        std::iter::from_fn(|| control.poll_output()).map(|frame| Message::decode(&frame).unwrap()).collect()
    }

    /// The version that the newest advertisement acknowledges, if there is one.
    fn acknowledged(control: &mut PublisherControl, now: u64, retention: &Retention<Vec<u8>>) -> Option<u64> {
        control.on_tick(now, retention);
        outputs(control).into_iter().rev().find_map(|message| match message {
            Message::Advertise(advertise) => Some(advertise.list_version),
            _ => None,
        })
    }

    #[test]
    fn a_list_is_acknowledged_at_once_when_it_is_applied_and_not_before() {
        let (mut control, mut retention) = publisher(1 << 20, 1);
        assert_eq!((acknowledged(&mut control, 0, &retention), control.list().0), (Some(0), 0));
        control.on_message(10, &Message::from(notice(3, true, &[514])).encode(), &mut retention);
        assert_eq!((control.list().0, control.list().1.len()), (1, 1));
        assert_eq!(acknowledged(&mut control, SECOND, &retention), Some(0));
        assert!(!control.may_publish());
        control.applied(SECOND + 10, 1);
        assert_eq!(control.next_deadline(), SECOND + 10);
        assert_eq!(acknowledged(&mut control, SECOND + 10, &retention), Some(3));
        assert!(control.may_publish());
    }

    #[test]
    fn of_two_lists_each_is_acknowledged_when_it_is_applied() {
        let (mut control, mut retention) = publisher(1 << 20, 1);
        for (version, port) in [(3, 1), (4, 2)] {
            control.on_message(10, &Message::from(notice(version, true, &[port])).encode(), &mut retention);
        }
        control.applied(20, 1);
        assert_eq!(acknowledged(&mut control, 20, &retention), Some(3));
        control.applied(30, 99);
        assert_eq!(acknowledged(&mut control, 30, &retention), Some(4));
    }

    #[test]
    fn a_list_that_says_the_same_needs_no_applying_and_one_that_is_not_complete_takes_nothing_away() {
        let (mut control, mut retention) = publisher(1 << 20, 1);
        control.on_message(10, &Message::from(notice(1, false, &[])).encode(), &mut retention);
        control.applied(10, 1);
        assert!(control.list().0 == 1 && !control.may_publish(), "it is empty, and not complete");
        control.on_message(20, &Message::from(notice(2, true, &[])).encode(), &mut retention);
        assert!(control.list().0 == 1 && control.may_publish());
        control.on_message(30, &Message::from(notice(3, true, &[1, 2])).encode(), &mut retention);
        let other = Notice { coordinator: 10, ..notice(1, false, &[3]) };
        control.on_message(40, &Message::from(other).encode(), &mut retention);
        assert_eq!(control.list().1.len(), 3);
        control.applied(50, 3);
        assert_eq!(acknowledged(&mut control, 50, &retention), Some(1), "of the coordinator that is there");
    }

    #[test]
    fn no_more_answers_are_made_than_the_socket_takes_and_an_advertisement_does_not_wait_behind_them() {
        let (mut control, mut retention) = publisher(1 << 30, 1000);
        control.on_tick(0, &retention);
        outputs(&mut control);
        control.on_message(10, &repair(1, 4 << 20, 10_000), &mut retention);
        (10..20).for_each(|now| control.on_tick(now, &retention));
        assert!(control.next_deadline() >= SECOND, "there is nothing to do until the socket takes some");
        control.on_tick(SECOND, &retention);
        let answers = outputs(&mut control);
        assert_eq!(answers.len(), 1 + MAX_WAITING);
        assert!(matches!(answers[0], Message::Advertise(_)));
        assert!(control.next_deadline() <= SECOND);
        let mut repeated = MAX_WAITING;
        for now in SECOND..SECOND + 100 {
            control.on_tick(now, &retention);
            repeated += outputs(&mut control).iter().filter(|message| matches!(message, Message::Repaired(_))).count();
        }
        assert_eq!(repeated, 1000);
    }

    #[test]
    fn a_flood_of_requests_leaves_few_messages_behind() {
        let (mut control, mut retention) = publisher(1 << 30, 1000);
        for requester in 0..200 {
            (0..50).for_each(|_| control.on_message(0, &repair(requester, 4 << 20, 10_000), &mut retention));
        }
        control.on_tick(0, &retention);
        assert!(control.jobs.len() <= MAX_JOBS && control.outputs.len() <= 2 * MAX_WAITING);
    }

    #[test]
    fn a_budget_of_a_few_bytes_a_second_is_kept_and_not_lost() {
        for rate in [1, 100, 999, 12_345] {
            let (mut control, mut retention) = publisher(rate, 100);
            control.on_message(0, &repair(1, 4 << 20, 1000), &mut retention);
            let (mut now, mut wakes) = (0, 0);
            while now < 3000 * SECOND && control.repaired_bytes() < 100_000 {
                control.on_tick(now, &retention);
                outputs(&mut control);
                now = control.next_deadline().max(now);
                wakes += 1;
            }
            // Debt for one batch, and a tenth of a second's at the beginning.
            let most = rate * (now / SECOND + 1) + 1000 + rate / 10 + 1;
            let least = (rate * (now / SECOND)).min(100_000).saturating_sub(1000);
            assert!((least..=most).contains(&control.repaired_bytes()), "{rate}: {}", control.repaired_bytes());
            assert!(wakes < 7000, "{rate}: {wakes}");
        }
    }

    #[test]
    fn a_request_for_less_than_a_batch_gets_one() {
        let (mut control, mut retention) = publisher(1 << 20, 3);
        control.on_message(0, &repair(1, 10, 30), &mut retention);
        control.on_tick(0, &retention);
        let answers = outputs(&mut control);
        assert!(matches!(&answers[1], Message::Repaired(_)));
        assert!(matches!(&answers[2], Message::Done(done) if done.outcome == Outcome::More));
    }
}
