//! The order of delivery. Logic without I/O.
//!
//! ```text
//!                    ┌──────────────── window, in memory ────────────────┐
//!  answered ◀────────│ in flight │ spooled …          │ not spooled …    │◀── queue, while the spool
//!                    └───────────┴────────▲───────────┴──────────────────┘    has nothing unread
//!                                         │ read, in order
//!                                 spool, on disk ◀── put ── behind ◀── queue, while it has
//! ```
//! First in, first out: while the spool has anything that is not in the window, everything new goes
//! behind it. One request is in flight at a time, and it is the beginning of the window, so that a
//! request that fails is simply sent again, before anything newer. What is in the window may be put
//! into the spool at any time, also what is in flight: it stays in its place, and its
//! acknowledgement then commits the spool instead of the group's position.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Instant};

use sekiwake_bus::{BootTime, Permission};

use super::entries::Entries;

/// A request counts for at most this much, unless one datagram alone counts for more.
const REQUEST_WEIGHT: usize = 1 << 20;

/// Maximum number of datagrams per request.
pub(super) const REQUEST_DATAGRAMS: usize = 8192;

/// Slow answers do not make requests smaller than this: each request has a cost of its own.
const LEAST_SLOW_DATAGRAMS: usize = 64;

/// After this many rejected requests of one datagram without an accepted one, the other side
/// rejects everything, whatever it contains.
pub(super) const MAX_SUSPECTS: usize = 64;

/// The window, and what waits for the spool, take no more beyond this.
const ROOM: usize = 8 << 20;

/// What a load holds until it is delivered, or spooled: a queued batch.
pub(super) trait Token {
    /// Whether it may be sent.
    fn permission(&self, now: BootTime) -> Permission;
    /// Leaves it to the group. `false`: there is no group.
    fn leave_to_group(&self) -> bool;
    /// When it was queued.
    fn since(&self) -> Instant;
}

/// The datagrams of one batch, or some that were read from the spool.
pub(super) struct Load<T> {
    /// `None`: they are in the spool.
    token: Option<T>,
    entries: Arc<Entries>,
    /// How many are done.
    done: usize,
    /// The number of the first one in the spool, if it was put there from the window.
    first_sequence: Option<u64>,
}

impl<T> Load<T> {
    pub(super) fn queued(token: T, entries: Entries) -> Load<T> {
        Load { token: Some(token), entries: Arc::new(entries), done: 0, first_sequence: None }
    }

    pub(super) fn replayed(entries: Entries) -> Load<T> {
        Load { token: None, entries: Arc::new(entries), done: 0, first_sequence: None }
    }

    fn left(&self) -> usize {
        self.entries.len() - self.done
    }

    /// The number in the spool after the one at this index.
    fn next_sequence(&self, index: usize) -> Option<u64> {
        match (&self.token, self.first_sequence) {
            (Some(_), _) => None,
            (None, Some(first)) => Some(first.wrapping_add(index as u64 + 1)),
            (None, None) => self.entries.get(index).map(|entry| entry.sequence + 1),
        }
    }
}

/// A part of a request: datagrams of one load.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) entries: Arc<Entries>,
    pub(crate) range: Range<usize>,
}

/// The next request.
pub(super) enum Next {
    Request(Vec<Part>),
    Nothing,
    /// Nothing may be sent at the moment.
    Lapsed,
}

/// What became of datagrams.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done<T> {
    /// Datagrams that came from the queue, and their bytes.
    pub(super) live: u64,
    /// Those that were in the spool.
    pub(super) spooled: u64,
    /// How many of both were rejected, each in a request of its own.
    pub(super) rejected: u64,
    /// Bytes of those that were accepted.
    pub(super) bytes: u64,
    /// Up to here the spool can be committed.
    pub(super) commit: Option<u64>,
    pub(super) released: Vec<T>,
}

/// What was given up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GivenUp<T> {
    /// Datagrams left to the group.
    pub(super) left: u64,
    /// Datagrams that have to be counted as dropped.
    pub(super) dropped: u64,
    pub(super) released: Vec<T>,
}

/// How long an answer took, which decides about the size of the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The next one is smaller.
    Slow,
    Fair,
    /// The next one is larger.
    Quick,
}

/// What follows from a rejected request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The next request tells which of its datagrams it was.
    Searching,
    /// The other side rejects everything.
    Everything,
}

/// Loads in order, and their totals.
struct Loads<T> {
    loads: VecDeque<Load<T>>,
    weight: usize,
    /// Datagrams that are not done.
    left: usize,
    /// Loads that are in memory only.
    live: usize,
}

impl<T> Loads<T> {
    const fn new() -> Loads<T> {
        Loads { loads: VecDeque::new(), weight: 0, left: 0, live: 0 }
    }

    fn push_back(&mut self, load: Load<T>) {
        self.weight += load.entries.weight();
        self.left += load.left();
        self.live += usize::from(load.token.is_some());
        self.loads.push_back(load);
    }

    fn pop_front(&mut self) -> Option<Load<T>> {
        self.remove(0)
    }

    fn remove(&mut self, index: usize) -> Option<Load<T>> {
        let load = self.loads.remove(index)?;
        self.weight -= load.entries.weight();
        self.left -= load.left();
        self.live -= usize::from(load.token.is_some());
        Some(load)
    }

    fn get(&self, index: usize) -> Option<&Load<T>> {
        self.loads.get(index)
    }

    fn is_empty(&self) -> bool {
        self.loads.is_empty()
    }

    /// Marks datagrams of the first load as done, at most this many.
    fn advance(&mut self, datagrams: usize) -> Option<(&Load<T>, Range<usize>)> {
        let load = self.loads.front_mut()?;
        let range = load.done..load.done + load.left().min(datagrams);
        load.done = range.end;
        self.left -= range.len();
        Some((load, range))
    }
}

/// See the module.
pub(super) struct Outbox<T> {
    window: Loads<T>,
    behind: Loads<T>,
    /// How many datagrams at the beginning of the window were rejected, each in a request of its
    /// own. They are dropped once another one is accepted: until then it may be the settings.
    suspects: usize,
    /// How many datagrams after the suspects are in flight.
    in_flight: Option<usize>,
    /// The most datagrams of the next request.
    limit: usize,
}

impl<T: Token> Outbox<T> {
    pub(super) fn new() -> Outbox<T> {
        Outbox { window: Loads::new(), behind: Loads::new(), suspects: 0, in_flight: None, limit: REQUEST_DATAGRAMS }
    }

    /// Whether it takes more from the queue.
    pub(super) fn has_room(&self) -> bool {
        self.behind.weight + self.window.weight < ROOM
    }

    /// Whether the window takes more.
    pub(super) fn has_room_in_window(&self) -> bool {
        self.window.weight < ROOM / 2
    }

    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty() && self.behind.is_empty()
    }

    /// Whether something is in memory only.
    pub(super) fn has_live(&self) -> bool {
        self.window.live + self.behind.live > 0
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether the window has something that is in the spool as well.
    pub(super) fn has_spooled(&self) -> bool {
        self.window.live < self.window.loads.len()
    }

    /// Whether the window has enough for a request.
    pub(super) fn is_full_request(&self) -> bool {
        self.window.left >= self.limit || self.window.weight >= REQUEST_WEIGHT
    }

    /// Whether the window has anything for a request.
    pub(super) fn has_next(&self) -> bool {
        self.window.left > self.suspects
    }

    /// Whether datagrams were rejected, and it is not known yet whether that is their fault.
    pub(super) fn has_suspects(&self) -> bool {
        self.suspects > 0
    }

    /// Takes a batch. `is_unread`: the spool has datagrams that are not in the window.
    pub(super) fn offer(&mut self, load: Load<T>, is_unread: bool) {
        if is_unread || !self.behind.is_empty() || !self.has_room_in_window() {
            self.behind.push_back(load);
        } else {
            self.window.push_back(load);
        }
    }

    /// Takes what was read from the spool.
    pub(super) fn replay(&mut self, load: Load<T>) {
        self.window.push_back(load);
    }

    /// Nothing in the spool is unread: what waited behind it follows the window.
    pub(super) fn caught_up(&mut self) {
        while self.has_room_in_window()
            && let Some(load) = self.behind.pop_front()
        {
            self.window.push_back(load);
        }
    }

    /// When the oldest datagram that is in memory only was queued.
    pub(super) fn oldest_live(&self) -> Option<Instant> {
        let loads = if self.window.live > 0 { &self.window } else { &self.behind };
        loads.loads.iter().find_map(|load| load.token.as_ref().map(Token::since))
    }

    /// The next request, which is in flight from now on. Batches whose shard belongs to another
    /// member by now are left out.
    pub(super) fn next(&mut self, now: BootTime, given_up: &mut GivenUp<T>) -> Next {
        debug_assert!(self.in_flight.is_none(), "one request at a time");
        let mut parts = Vec::new();
        let (mut datagrams, mut size) = (0, 0);
        let mut index = 0;
        let mut passed = 0;
        let mut is_lapsed = false;
        while let Some(load) = self.window.get(index) {
            match load.token.as_ref().map_or(Permission::Granted, |token| token.permission(now)) {
                Permission::Granted => {}
                Permission::Lapsed => {
                    is_lapsed = true;
                    break;
                }
                Permission::Revoked => {
                    if passed < self.suspects {
                        // Which of them are left is not known.
                        self.suspects = passed;
                    }
                    given_up.extend(self.window.remove(index));
                    continue;
                }
            }
            let start = load.done + load.left().min(self.suspects - passed);
            passed += start - load.done;
            let mut end = start;
            while end < load.entries.len() && datagrams < self.limit {
                let weight = load.entries.weight_of(end);
                if datagrams > 0 && size + weight > REQUEST_WEIGHT {
                    break;
                }
                size += weight;
                datagrams += 1;
                end += 1;
            }
            if end > start {
                parts.push(Part { entries: Arc::clone(&load.entries), range: start..end });
            }
            if end < load.entries.len() {
                break;
            }
            index += 1;
        }
        if datagrams == 0 {
            return if is_lapsed { Next::Lapsed } else { Next::Nothing };
        }
        self.in_flight = Some(datagrams);
        Next::Request(parts)
    }

    /// The request in flight was accepted, and with it the suspects are done.
    pub(super) fn accepted(&mut self, pace: Pace) -> Done<T> {
        match pace {
            Pace::Slow => self.shrink(),
            Pace::Fair => {}
            Pace::Quick => self.limit = (self.limit * 2).min(REQUEST_DATAGRAMS),
        }
        let rejected = std::mem::take(&mut self.suspects);
        let suspects = self.advance(rejected);
        let datagrams = self.in_flight.take().unwrap_or(0);
        let mut done = self.advance(datagrams);
        done.live += suspects.live;
        done.spooled += suspects.spooled;
        done.rejected = rejected as u64;
        done.commit = done.commit.or(suspects.commit);
        done.released.extend(suspects.released);
        done
    }

    /// The request in flight was rejected for good. The next one is smaller, so that the datagram
    /// that is rejected is found; it becomes a suspect.
    pub(super) fn rejected(&mut self) -> Rejection {
        let datagrams = self.in_flight.take().unwrap_or(0);
        if datagrams > 1 {
            self.limit = datagrams.div_ceil(2);
            return Rejection::Searching;
        }
        self.suspects += datagrams;
        if self.suspects < MAX_SUSPECTS {
            return Rejection::Searching;
        }
        self.suspects = 0;
        Rejection::Everything
    }

    /// The request in flight has failed, and is sent again. `is_too_slow`: the next one is smaller.
    pub(super) fn failed(&mut self, is_too_slow: bool) {
        self.forget_flight();
        if is_too_slow {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if self.limit > LEAST_SLOW_DATAGRAMS {
            self.limit = (self.limit / 2).max(LEAST_SLOW_DATAGRAMS);
        }
    }

    fn advance(&mut self, mut datagrams: usize) -> Done<T> {
        let mut done = Done { live: 0, spooled: 0, rejected: 0, bytes: 0, commit: None, released: Vec::new() };
        while datagrams > 0
            && let Some((load, range)) = self.window.advance(datagrams)
        {
            let count = range.len();
            done.bytes += load.entries.range(range).map(|entry| entry.record.payload.len() as u64).sum::<u64>();
            match load.token {
                Some(_) => done.live += count as u64,
                None => done.spooled += count as u64,
            }
            datagrams -= count;
            if count > 0 {
                done.commit = load.next_sequence(load.done - 1).or(done.commit);
            }
            if load.left() > 0 {
                break;
            }
            done.released.extend(self.window.pop_front().and_then(|load| load.token));
        }
        done
    }

    /// What can be put into the spool, in order: as many loads as may be sent now. Those whose
    /// shard belongs to another member are left out, unless they are in flight.
    /// Also tells how many of the first ones are in the window.
    pub(super) fn spoolable(&mut self, now: BootTime, given_up: &mut GivenUp<T>) -> (Vec<Part>, usize) {
        let mut flying = self.flying();
        let mut parts = Vec::new();
        let mut in_window = 0;
        for (number, loads) in [&mut self.window, &mut self.behind].into_iter().enumerate() {
            let mut index = 0;
            while let Some(load) = loads.get(index) {
                let is_flying = flying > 0;
                flying = flying.saturating_sub(load.left());
                let Some(token) = &load.token else {
                    index += 1;
                    continue;
                };
                match token.permission(now) {
                    Permission::Granted => {}
                    // Whatever comes after it must not overtake it.
                    Permission::Lapsed => return (parts, in_window),
                    Permission::Revoked if is_flying => return (parts, in_window),
                    Permission::Revoked => {
                        self.suspects = if self.in_flight.is_some() { self.suspects } else { 0 };
                        given_up.extend(loads.remove(index));
                        continue;
                    }
                }
                parts.push(Part { entries: Arc::clone(&load.entries), range: load.done..load.entries.len() });
                in_window += usize::from(number == 0);
                index += 1;
            }
        }
        (parts, in_window)
    }

    /// These first `loads` of [`Outbox::spoolable`] are in the spool, which numbers their datagrams
    /// from `first` on. Those behind leave the memory.
    pub(super) fn spooled(&mut self, loads: usize, first: u64) -> Vec<T> {
        let mut released = Vec::new();
        let mut next = first;
        let mut left = loads;
        for load in self.window.loads.iter_mut().filter(|load| load.token.is_some()) {
            if left == 0 {
                return released;
            }
            // The number that the first one of the load would have.
            load.first_sequence = Some(next.wrapping_sub(load.done as u64));
            next += load.left() as u64;
            released.extend(load.token.take());
            self.window.live -= 1;
            left -= 1;
        }
        for _ in 0..left {
            released.extend(self.behind.pop_front().and_then(|load| load.token));
        }
        released
    }

    /// Gives up the loads that are in memory only, not in flight, and `is_late`. Those whose shard
    /// belongs to another member are left to it; with `leaves`, all are left to the group, if there
    /// is one.
    pub(super) fn give_up(&mut self, now: BootTime, leaves: bool, is_late: impl Fn(&T) -> bool) -> GivenUp<T> {
        let mut given_up = GivenUp::new();
        let mut flying = self.flying();
        for loads in [&mut self.window, &mut self.behind] {
            let mut index = 0;
            while let Some(load) = loads.get(index) {
                let is_flying = flying > 0;
                flying = flying.saturating_sub(load.left());
                let Some(token) = load.token.as_ref().filter(|_| !is_flying) else {
                    index += 1;
                    continue;
                };
                let is_revoked = token.permission(now) == Permission::Revoked;
                if !is_revoked && !is_late(token) {
                    index += 1;
                    continue;
                }
                if let Some(load) = loads.remove(index) {
                    self.suspects = if self.in_flight.is_some() { self.suspects } else { 0 };
                    if is_revoked || leaves { given_up.add(load) } else { given_up.drop(load) }
                }
            }
        }
        given_up
    }

    /// Nothing is waited for any more: the request in flight counts as not sent.
    pub(super) fn forget_flight(&mut self) {
        self.in_flight = None;
        self.suspects = 0;
    }

    /// How many datagrams at the beginning of the window a request in flight fixes there.
    fn flying(&self) -> usize {
        self.in_flight.map_or(0, |datagrams| self.suspects + datagrams)
    }
}

impl<T: Token> GivenUp<T> {
    pub(super) fn new() -> GivenUp<T> {
        GivenUp { left: 0, dropped: 0, released: Vec::new() }
    }

    fn extend(&mut self, load: Option<Load<T>>) {
        load.into_iter().for_each(|load| self.add(load));
    }

    /// Leaves the load to the group, if there is one.
    fn add(&mut self, load: Load<T>) {
        if load.token.as_ref().is_some_and(Token::leave_to_group) {
            self.left += load.left() as u64;
            self.released.extend(load.token);
        } else {
            self.drop(load);
        }
    }

    fn drop(&mut self, load: Load<T>) {
        self.dropped += load.left() as u64;
        self.released.extend(load.token);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use proptest::prelude::*;
    use sekiwake_record::Kind;
    use sekiwake_testkit::fixtures::record;

    use super::*;

    /// A token that tells whether it was released, and whose shard may move away.
    #[derive(Clone)]
    struct TestToken {
        permission: Rc<Cell<Permission>>,
        left: Rc<Cell<bool>>,
        since: Instant,
    }

    impl Token for TestToken {
        fn permission(&self, _: BootTime) -> Permission {
            self.permission.get()
        }

        fn leave_to_group(&self) -> bool {
            self.left.set(true);
            true
        }

        fn since(&self) -> Instant {
            self.since
        }
    }

    fn token() -> TestToken {
        TestToken { permission: Rc::new(Cell::new(Permission::Granted)), left: Rc::default(), since: Instant::now() }
    }

    fn entries(numbers: Range<u64>) -> Entries {
        let mut entries = Entries::default();
        numbers.for_each(|number| entries.push(Kind::Syslog, &record(&number.to_be_bytes()), "", None));
        entries
    }

    fn numbers(parts: &[Part]) -> Vec<u64> {
        let entries = parts.iter().flat_map(|part| part.entries.range(part.range.clone()));
        entries.map(|entry| u64::from_be_bytes(entry.record.payload.try_into().unwrap())).collect()
    }

    fn now() -> BootTime {
        sekiwake_bus::boot_now()
    }

    fn request(outbox: &mut Outbox<TestToken>) -> Vec<u64> {
        match outbox.next(now(), &mut GivenUp::new()) {
            Next::Request(parts) => numbers(&parts),
            Next::Nothing | Next::Lapsed => Vec::new(),
        }
    }

    #[test]
    fn rejected_datagram_is_found_by_halving() {
        let mut outbox = Outbox::new();
        outbox.offer(Load::queued(token(), entries(0..5)), false);
        outbox.offer(Load::queued(token(), entries(5..8)), false);
        let mut dropped = 0;
        let mut sent = Vec::new();
        let mut requests = 0;
        loop {
            let wanted = request(&mut outbox);
            if wanted.is_empty() {
                break;
            }
            requests += 1;
            if wanted.contains(&6) {
                assert_eq!(outbox.rejected(), Rejection::Searching);
            } else {
                dropped += outbox.accepted(Pace::Quick).rejected;
                sent.extend(wanted);
            }
        }
        assert_eq!((dropped, sent), (1, vec![0, 1, 2, 3, 4, 5, 7]));
        assert!(requests <= 10 && outbox.is_empty(), "{requests}");
    }

    #[test]
    fn rejection_of_everything_drops_nothing() {
        let mut outbox = Outbox::new();
        let count = 2 * MAX_SUSPECTS as u64;
        outbox.offer(Load::queued(token(), entries(0..count)), false);
        for _ in 0..2 {
            while !request(&mut outbox).is_empty() && outbox.rejected() == Rejection::Searching {}
            assert!(!outbox.has_suspects(), "the search ends before everything is a suspect");
        }
        let mut sent = Vec::new();
        while outbox.has_next() {
            sent.extend(request(&mut outbox));
            assert_eq!(outbox.accepted(Pace::Quick).rejected, 0);
        }
        assert_eq!(sent, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn suspect_waits_for_an_accepted_datagram() {
        let mut outbox = Outbox::new();
        outbox.offer(Load::queued(token(), entries(0..1)), false);
        assert_eq!((request(&mut outbox), outbox.rejected()), (vec![0], Rejection::Searching));
        assert!(!outbox.has_next() && outbox.has_live() && request(&mut outbox).is_empty());
        outbox.offer(Load::queued(token(), entries(1..3)), false);
        assert_eq!(request(&mut outbox), [1, 2]);
        assert_eq!(outbox.give_up(now(), false, |_| true).dropped, 0, "both loads are fixed by the request");
        let done = outbox.accepted(Pace::Quick);
        assert_eq!((done.live, done.rejected, done.bytes, done.released.len()), (3, 1, 16, 2));
        // One that is given up is no longer a suspect.
        outbox.offer(Load::queued(token(), entries(3..4)), false);
        assert_eq!((request(&mut outbox), outbox.rejected()), (vec![3], Rejection::Searching));
        assert_eq!(outbox.give_up(now(), false, |_| true).dropped, 1);
        outbox.offer(Load::queued(token(), entries(4..5)), false);
        assert_eq!((request(&mut outbox), outbox.accepted(Pace::Quick).rejected), (vec![4], 0));
    }

    #[test]
    fn slow_answers_shrink_requests_to_64_and_others_enlarge_them() {
        let mut outbox = Outbox::new();
        let next = |outbox: &mut Outbox<TestToken>, pace| {
            outbox.offer(Load::queued(token(), entries(0..1)), false);
            request(outbox);
            outbox.accepted(pace);
            outbox.limit
        };
        let limits: Vec<usize> = (0..9).map(|_| next(&mut outbox, Pace::Slow)).collect();
        assert_eq!(limits, [4096, 2048, 1024, 512, 256, 128, 64, 64, 64], "however small the slow request was");
        let paces = [Pace::Quick, Pace::Fair, Pace::Quick];
        assert_eq!(paces.map(|pace| next(&mut outbox, pace)), [128, 128, 256]);
        request(&mut outbox);
        outbox.failed(true);
        assert_eq!(outbox.limit, 128);
    }

    #[test]
    fn batch_of_another_owner_is_left_out_and_lapsed_ones_wait() {
        let mut outbox = Outbox::new();
        let (first, second) = (token(), token());
        outbox.offer(Load::queued(first.clone(), entries(0..2)), false);
        outbox.offer(Load::queued(second.clone(), entries(2..4)), false);
        second.permission.set(Permission::Lapsed);
        assert_eq!(request(&mut outbox), [0, 1], "nothing overtakes what may not be sent");
        outbox.failed(false);
        first.permission.set(Permission::Revoked);
        second.permission.set(Permission::Granted);
        let mut given_up = GivenUp::new();
        let Next::Request(parts) = outbox.next(now(), &mut given_up) else { panic!() };
        assert_eq!((numbers(&parts), given_up.left, first.left.get()), (vec![2, 3], 2, true));
        assert_eq!(outbox.accepted(Pace::Quick).released.len(), 1);
    }

    #[test]
    fn request_in_flight_may_be_spooled_and_then_commits_the_spool() {
        let mut outbox = Outbox::new();
        outbox.offer(Load::queued(token(), entries(0..3)), false);
        assert_eq!(request(&mut outbox), [0, 1, 2]);
        outbox.offer(Load::queued(token(), entries(3..5)), false);
        let (parts, in_window) = outbox.spoolable(now(), &mut GivenUp::new());
        assert_eq!((numbers(&parts), in_window), (vec![0, 1, 2, 3, 4], 2));
        assert_eq!(outbox.spooled(parts.len(), 10).len(), 2, "the tokens");
        assert!(!outbox.has_live() && outbox.is_in_flight());
        let done = outbox.accepted(Pace::Quick);
        assert_eq!((done.live, done.spooled, done.commit), (0, 3, Some(13)));
        assert_eq!(request(&mut outbox), [3, 4]);
        assert_eq!(outbox.accepted(Pace::Quick).commit, Some(15));
    }

    #[test]
    fn what_waits_too_long_is_given_up_but_not_what_is_in_flight() {
        let mut outbox = Outbox::new();
        outbox.offer(Load::queued(token(), entries(0..2)), false);
        assert_eq!(request(&mut outbox), [0, 1]);
        outbox.offer(Load::queued(token(), entries(2..4)), false);
        let given_up = outbox.give_up(now(), false, |_| true);
        assert_eq!((given_up.dropped, given_up.left, given_up.released.len()), (2, 0, 1));
        outbox.failed(false);
        assert_eq!(outbox.give_up(now(), true, |_| true).left, 2);
        assert!(outbox.is_empty());
    }

    /// The spool as a list: what is read, and what is committed.
    #[derive(Default)]
    struct TestSpool {
        all: Vec<u64>,
        read: usize,
        committed: usize,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Offer(u8),
        Request,
        Accept,
        Reject,
        Fail,
        Put,
        Replay(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1u8..20).prop_map(Step::Offer),
            Just(Step::Request),
            Just(Step::Accept),
            Just(Step::Reject),
            Just(Step::Fail),
            Just(Step::Put),
            (1u8..20).prop_map(Step::Replay),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever happens, datagrams are done in order, each once, and none is missing.
        #[test]
        fn first_in_first_out(steps in steps()) {
            let mut outbox = Outbox::new();
            let mut spool = TestSpool::default();
            let (mut offered, mut done, mut released, mut loads) = (0, 0, 0, 0);
            let mut flying: Vec<u64> = Vec::new();
            let finish = (0..2_000).flat_map(|_| [Step::Replay(20), Step::Request, Step::Accept]);
            // The last one is accepted, so that nothing remains a suspect.
            for step in steps.into_iter().chain([Step::Offer(1)]).chain(finish) {
                match step {
                    Step::Offer(count) => {
                        let end = offered + u64::from(count);
                        outbox.offer(Load::queued(token(), entries(offered..end)), spool.read < spool.all.len());
                        offered = end;
                        loads += 1;
                    }
                    Step::Request if flying.is_empty() => flying = request(&mut outbox),
                    Step::Accept | Step::Reject if !flying.is_empty() => {
                        if matches!(step, Step::Reject) {
                            outbox.rejected();
                        } else {
                            let outcome = outbox.accepted(Pace::Quick);
                            prop_assert_eq!(flying[0], done + outcome.rejected, "in order, and none is missing");
                            let datagrams = flying.len() as u64 + outcome.rejected;
                            done += datagrams;
                            prop_assert_eq!(outcome.live + outcome.spooled, datagrams);
                            released += outcome.released.len();
                            if let Some(commit) = outcome.commit {
                                prop_assert!(commit as usize > spool.committed && commit as usize <= spool.all.len());
                                spool.committed = commit as usize;
                                prop_assert!(spool.all[..spool.committed].iter().all(|&number| number < done));
                            }
                        }
                        flying.clear();
                    }
                    Step::Fail if !flying.is_empty() => {
                        outbox.failed(true);
                        flying.clear();
                    }
                    Step::Put => {
                        let (parts, in_window) = outbox.spoolable(now(), &mut GivenUp::new());
                        let first = spool.all.len();
                        spool.all.extend(numbers(&parts));
                        if in_window > 0 {
                            prop_assert_eq!(spool.read, first, "what is in the window has nothing unread before it");
                            spool.read = first + numbers(&parts[..in_window]).len();
                        }
                        released += outbox.spooled(parts.len(), first as u64).len();
                        prop_assert!(!outbox.has_live());
                    }
                    Step::Replay(count) => {
                        let end = (spool.read + usize::from(count)).min(spool.all.len());
                        if spool.read < end {
                            let mut replayed = Entries::default();
                            for index in spool.read..end {
                                let mut entry = Vec::new();
                                entries(spool.all[index]..spool.all[index] + 1).get(0).unwrap().encode(&mut entry);
                                prop_assert!(replayed.push_spooled(&entry, index as u64));
                            }
                            outbox.replay(Load::replayed(replayed));
                            spool.read = end;
                        }
                        if spool.read == spool.all.len() {
                            outbox.caught_up();
                        }
                    }
                    _ => {}
                }
                for loads in [&outbox.window, &outbox.behind] {
                    let sum = |value: fn(&Load<TestToken>) -> usize| loads.loads.iter().map(value).sum::<usize>();
                    prop_assert_eq!(loads.weight, sum(|load| load.entries.weight()));
                    prop_assert_eq!(loads.left, sum(Load::left));
                    prop_assert_eq!(loads.live, sum(|load| usize::from(load.token.is_some())));
                }
            }
            prop_assert_eq!((done, spool.committed), (offered, spool.all.len()));
            prop_assert!(outbox.is_empty() && released == loads);
        }
    }
}
