//! Renewals and grants.
//!
//! ```text
//! sent renewals  7, 8, 9 ─▶ grant of 8 ─▶ the lease runs from when 8 was *sent*
//! commits        those of the newest renewal are acknowledged by its grant
//! ```

use std::{collections::VecDeque, time::Duration};

use sekiwake_record::{SHARDS, Topic};

use super::{Member, Ownership, Position};
use crate::{
    BootTime, LEASE, RENEW_EVERY, RENEW_IDLE_EVERY, Stream,
    coverage::{Age, Coverage},
    time::nanos,
    wire::{self, Covered, Grant, MAX_COVERED_RANGES, Number, Renew, StreamCoverage, StreamPositions},
};

/// The shortest pause between two renewals when something has changed.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Bytes handled after a renewal until the next one is sent early: a publisher that reads a file
/// waits for commits.
const RENEW_AFTER_BYTES: usize = 4 << 20;
/// The shortest pause before such an early renewal.
const MIN_PAUSE_FOR_BYTES: Duration = Duration::from_millis(50);
/// The shortest pause before a release is reported again.
const MIN_PAUSE_FOR_RELEASE: Duration = Duration::from_millis(50);
/// How often the member checks for ended and silent streams.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Every eighth renewal repeats all commits, also acknowledged ones: the coordinator may have
/// rejected them at the time.
const REPEAT_COMMITS_EVERY: u64 = 8;
/// Acknowledged commits of a stream that has been silent for longer are not repeated.
const REPEAT_COMMITS_FOR: Duration = Duration::from_secs(60);
/// How many sent renewals are remembered.
const MAX_SENT: usize = 16;

/// The renewals that the member has sent, and the newest that was granted.
#[derive(Debug)]
pub(super) struct Renewals {
    /// The number of the newest; 0 before the first.
    number: u64,
    /// The newest ones.
    sent: VecDeque<SentRenewal>,
    next_at: BootTime,
    /// The reports of the newest, until they are acknowledged.
    unacknowledged: Vec<Report>,
    /// Bytes handled since the newest.
    handled_bytes: usize,
    newest_grant: GrantNumber,
    /// When the newest renewal that was granted was sent.
    pub(super) granted_sent_at: Option<BootTime>,
    /// The same of the coordinator under which the member last had shards.
    former_sent_at: Option<BootTime>,
    sweep_at: BootTime,
}

/// What a member has handled of a topic.
#[derive(Debug)]
struct Report {
    stream: Stream,
    topic: Topic,
    covered: Coverage,
}

#[derive(Clone, Copy, Debug)]
struct SentRenewal {
    number: u64,
    sent_at: BootTime,
}

/// Orders grants.
#[derive(Clone, Copy, Debug, Default)]
struct GrantNumber {
    /// The renewal that it answers.
    renewal: u64,
    /// The coordinator's count of its grants.
    number: u64,
}

impl Renewals {
    pub(super) fn new(now: BootTime) -> Renewals {
        Renewals {
            number: 0,
            sent: VecDeque::new(),
            next_at: now,
            unacknowledged: Vec::new(),
            handled_bytes: 0,
            newest_grant: GrantNumber::default(),
            granted_sent_at: None,
            former_sent_at: None,
            sweep_at: now,
        }
    }

    pub(super) fn next_at(&self) -> BootTime {
        self.next_at
    }

    pub(super) fn is_due(&self, now: BootTime) -> bool {
        now >= self.next_at
    }

    pub(super) fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// Something has changed that must be reported to the coordinator.
    pub(super) fn schedule_soon(&mut self, now: BootTime) {
        self.schedule(now, MIN_PAUSE);
    }

    /// The coordinator may not know of a release yet, or its grant was in flight: the next renewal
    /// repeats it.
    pub(super) fn repeat_release(&mut self, now: BootTime) {
        self.schedule(now, MIN_PAUSE_FOR_RELEASE);
    }

    pub(super) fn on_handled(&mut self, now: BootTime, bytes: usize) {
        self.handled_bytes += bytes;
        if self.handled_bytes >= RENEW_AFTER_BYTES {
            self.schedule(now, MIN_PAUSE_FOR_BYTES);
        }
        self.schedule(now, RENEW_EVERY);
    }

    /// The newest renewal was sent by a member that does nothing: the next one may be later.
    fn slow_down(&mut self) {
        if let Some(last) = self.sent.back() {
            self.next_at = last.sent_at + RENEW_IDLE_EVERY;
        }
    }

    /// Whether the newest renewal was granted.
    fn is_granted(&self) -> bool {
        self.granted_sent_at.is_some() && self.granted_sent_at == self.sent.back().map(|last| last.sent_at)
    }

    /// Whether any renewal was sent between these two.
    fn has_sent_between(&self, from: BootTime, to: BootTime) -> bool {
        self.sent.iter().any(|sent| from < sent.sent_at && sent.sent_at < to)
    }

    /// Makes the next renewal due when this pause after the last one is over, if not before.
    fn schedule(&mut self, now: BootTime, pause: Duration) {
        let earliest = self.sent.back().map_or(now, |last| now.max(last.sent_at + pause));
        self.next_at = self.next_at.min(earliest);
    }

    fn on_sent(&mut self, now: BootTime) {
        self.number += 1;
        self.next_at = now + RENEW_EVERY;
        self.handled_bytes = 0;
        if self.sent.len() == MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(SentRenewal { number: self.number, sent_at: now });
    }

    fn sent_at(&self, number: u64) -> Option<BootTime> {
        self.sent.iter().find(|sent| sent.number == number).map(|sent| sent.sent_at)
    }
}

impl<B> Member<B> {
    pub(super) fn renew(&mut self, now: BootTime) {
        let is_idle = self.is_idle();
        self.renewals.on_sent(now);
        self.counters.renewals += 1;
        if now >= self.renewals.sweep_at {
            self.renewals.sweep_at = now + SWEEP_EVERY;
            self.forget_streams(now);
        }
        if self.renewals.number.is_multiple_of(REPEAT_COMMITS_EVERY) {
            self.repeat_owned(now - REPEAT_COMMITS_FOR);
        }
        self.renewals.unacknowledged = self.unacknowledged_reports();
        if is_idle && self.renewals.unacknowledged.is_empty() {
            self.renewals.slow_down();
        }
        let (commits, coverage) = encode_reports(&self.renewals.unacknowledged);
        let renew = Renew {
            group: self.settings.group.clone(),
            kind: self.settings.kind,
            incarnation: self.incarnation,
            label: self.settings.label.clone(),
            renewal: self.renewals.number,
            lowest_protocol: self.settings.protocols.0,
            highest_protocol: self.settings.protocols.1,
            leaving: self.leaving_from_renewal.is_some(),
            coordinator: self.coordinator,
            holdings: self.holdings(),
            commits,
            single_active: self.settings.single_active,
            coverage,
            age_ns: self.age.map_or(0, |age| age.nanos(now)),
            destinations_digest: self.destinations_digest,
            doubts: self.doubts.reported(now),
            former_lease_age_ns: self.renewals.former_sent_at.map_or(0, |sent_at| nanos(now - sent_at)),
        };
        self.send(renew);
        self.register();
    }

    /// Whether nothing happens, so that nobody waits for the next renewal: it only extends the
    /// lease. A member whose last renewal was not granted is in haste.
    fn is_idle(&self) -> bool {
        let is_at_rest = |ownership: &Ownership| matches!(ownership, Ownership::None | Ownership::Owned(_));
        self.renewals.is_granted()
            && self.renewals.handled_bytes == 0
            && self.outstanding_bytes == 0
            && self.reorder_bytes == 0
            && self.leaving_from_renewal.is_none()
            && self.ownership.iter().all(is_at_rest)
    }

    /// What was handled and the coordinator has not acknowledged, also of shards that other members
    /// have by now, and all of released shards.
    fn unacknowledged_reports(&self) -> Vec<Report> {
        let (mut reports, mut ranges) = (Vec::new(), 0);
        for followed in &self.streams {
            for (shard, (ownership, position)) in self.ownership.iter().zip(&followed.positions).enumerate() {
                let covered = self.report(position);
                let is_known = position.acknowledged.as_ref() == Some(covered);
                if covered.is_empty() || (is_known && !matches!(ownership, Ownership::Released(_))) {
                    continue;
                }
                ranges += covered.spans().len();
                if ranges > MAX_COVERED_RANGES {
                    // The next renewal has the rest.
                    return reports;
                }
                let (stream, topic, covered) = (followed.stream.clone(), self.topic(shard), covered.clone());
                reports.push(Report { stream, topic, covered });
            }
        }
        reports
    }

    fn report<'a>(&self, position: &'a Position<B>) -> &'a Coverage {
        if self.settings.mutants.commits_before_send() { &position.covered } else { &position.handled }
    }

    pub(super) fn on_grant(&mut self, now: BootTime, grant: &Grant) {
        let is_new_coordinator = grant.coordinator != self.coordinator;
        let newest = self.renewals.newest_grant;
        if grant.renewal < newest.renewal || (!is_new_coordinator && grant.number <= newest.number) {
            return;
        }
        self.renewals.newest_grant = GrantNumber { renewal: grant.renewal, number: grant.number };
        if is_new_coordinator {
            self.coordinator = grant.coordinator;
            if self.owned().next().is_some() {
                self.renewals.former_sent_at = self.renewals.granted_sent_at;
            }
            self.registration.on_new_coordinator();
            self.repeat_all();
            // When the lease expired before the new coordinator answered, the old one may have
            // granted the shards to another member, and the new one would not know.
            if now >= self.permit.until() && self.owned().next().is_some() {
                self.drop_all();
                return self.renewals.schedule_soon(now);
            }
        }
        self.protocol = grant.protocol;
        self.registration.on_grant(grant);
        if self.differing != grant.differing {
            self.differing.clone_from(&grant.differing);
        }
        if grant.renewal == self.renewals.number {
            self.acknowledge_commits();
        }
        let mut assigned = [None; SHARDS];
        for assignment in &grant.assignments {
            assigned[assignment.shard.index()] = Some((assignment.role, assignment.generation.0));
        }
        self.age.get_or_insert(Age::new(now)).learn(now, grant.age_ns);
        let before = self.ownership;
        let has_acted = self.owned().next().is_some();
        for (shard, assignment) in assigned.into_iter().enumerate() {
            self.apply(now, shard, assignment);
        }
        self.take_coverage(now, grant, &before);
        self.take_doubts(now, grant);
        // The lease last, so that no thread sees it extended before it sees the shards it is for.
        if let Some(sent_at) = self.renewals.sent_at(grant.renewal) {
            self.extend_lease(now, sent_at, is_new_coordinator);
        }
        if grant.assignments.is_empty() && self.leaving_from_renewal.is_some_and(|first| grant.renewal >= first) {
            self.left |= !has_acted;
            if has_acted {
                // What it had handled of shards that others have by now is still to be reported.
                self.leaving_from_renewal = Some(self.renewals.next_number());
                self.renewals.schedule_soon(now);
            }
        }
    }

    fn extend_lease(&mut self, now: BootTime, sent_at: BootTime, is_new_coordinator: bool) {
        let missed_grants =
            |last: BootTime| sent_at > last + 2 * RENEW_EVERY && self.renewals.has_sent_between(last, sent_at);
        if is_new_coordinator || self.renewals.granted_sent_at.is_some_and(missed_grants) {
            self.streams.iter_mut().for_each(|followed| followed.repair.reset_timeouts(now));
        }
        self.renewals.granted_sent_at = self.renewals.granted_sent_at.max(Some(sent_at));
        // From when it was sent, not from when the grant arrived: the coordinator counts from when
        // it received the renewal, which is later, so its lease ends after the member's.
        let from = if self.settings.mutants.lease_from_arrival() { now } else { sent_at };
        self.permit.extend(from + LEASE);
    }

    /// Has the next renewal repeat everything that is known.
    fn repeat_all(&mut self) {
        let positions = self.streams.iter_mut().flat_map(|followed| &mut followed.positions);
        positions.for_each(|position| position.acknowledged = None);
    }

    /// Has the next renewal repeat what is known of the owned shards, in streams that were last
    /// heard since then.
    fn repeat_owned(&mut self, since: BootTime) {
        for followed in self.streams.iter_mut().filter(|followed| followed.last_heard >= since) {
            let shards = self.ownership.iter().zip(&mut followed.positions);
            let owned = shards.filter(|(ownership, _)| matches!(ownership, Ownership::Owned(_)));
            owned.for_each(|(_, position)| position.acknowledged = None);
        }
    }

    fn acknowledge_commits(&mut self) {
        for Report { stream, topic, covered } in std::mem::take(&mut self.renewals.unacknowledged) {
            if let Some(index) = self.find(&stream) {
                self.streams[index].positions[topic.shard.index()].acknowledged = Some(covered);
            }
        }
    }
}

/// The reports on the wire, where one range from the beginning is a single number.
fn encode_reports(reports: &[Report]) -> (Vec<StreamPositions>, Vec<StreamCoverage>) {
    let (mut commits, mut coverage) = (Vec::<StreamPositions>::new(), Vec::<StreamCoverage>::new());
    for Report { stream, topic, covered } in reports {
        let Some(prefix) = covered.prefix_end() else { continue };
        if commits.last().is_none_or(|last| last.stream != *stream) {
            commits.push(StreamPositions { stream: stream.clone(), positions: Vec::new() });
        }
        if let Some(last) = commits.last_mut() {
            last.positions.push(wire::Position { topic: *topic, sequence: Number(prefix) });
        }
        if covered.single().is_some() {
            continue;
        }
        if coverage.last().is_none_or(|last| last.stream != *stream) {
            coverage.push(StreamCoverage { stream: stream.clone(), covered: Vec::new() });
        }
        if let Some(last) = coverage.last_mut() {
            last.covered.push(Covered::new(*topic, covered));
        }
    }
    (commits, coverage)
}
