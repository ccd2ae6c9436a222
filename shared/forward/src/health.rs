//! Whether a UDP destination is there, as far as UDP lets one know: nobody acknowledges, only refusals are heard.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus::Gauge;

/// How long after a refusal a destination counts as down. Refusals are rare even when nobody is there: a Linux host answers at
/// most one closed-port datagram a second.
const DOWN_FOR: Duration = Duration::from_secs(10);

/// How long datagrams must have left without a refusal before a destination counts as up.
const SETTLE: Duration = Duration::from_secs(1);

/// What is known of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing sent yet, or not long enough ago.
    Unknown,
    /// Datagrams leave and nobody refuses them.
    Up,
    /// Refused, unreachable, or without an address.
    Down,
}

impl State {
    /// The value of the gauge.
    pub(crate) fn as_gauge(self) -> f64 {
        match self {
            State::Unknown => f64::NAN,
            State::Up => 1.0,
            State::Down => 0.0,
        }
    }
}

/// The state of one place as all may see it: a gauge for people, and what decides where a pool sends.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    gauge: Gauge,
    state: Arc<AtomicU8>,
    /// Rises each time that another host may be meant than before.
    moves: Arc<AtomicU32>,
    /// Something was dropped that the place may have needed to read what comes after it.
    has_lost: Arc<AtomicBool>,
}

impl Standing {
    pub(crate) fn new(gauge: Gauge) -> Standing {
        let standing = Standing { gauge, state: Arc::default(), moves: Arc::default(), has_lost: Arc::default() };
        standing.set(State::Unknown);
        standing
    }

    /// A standing of its own that shows in the same gauge: for a worker that takes the place of another.
    pub(crate) fn fresh(&self) -> Standing {
        Standing::new(self.gauge.clone())
    }

    /// Records for the place were dropped.
    pub(crate) fn lost(&self) {
        self.has_lost.store(true, Relaxed);
    }

    /// Whether records were dropped since this was asked last.
    pub(crate) fn take_lost(&self) -> bool {
        self.has_lost.load(Relaxed) && self.has_lost.swap(false, Relaxed)
    }

    pub(crate) fn set(&self, state: State) {
        self.gauge.set(state.as_gauge());
        self.state.store(state as u8, Relaxed);
    }

    /// Another address is in use than before.
    pub(crate) fn moved(&self) {
        self.moves.fetch_add(1, Relaxed);
    }

    pub(crate) fn moves(&self) -> u32 {
        self.moves.load(Relaxed)
    }

    pub(crate) fn is_down(&self) -> bool {
        self.state.load(Relaxed) == State::Down as u8
    }
}

/// Draws the state from what sending saw.
#[derive(Debug)]
pub(crate) struct Health {
    state: State,
    /// What it is when nobody complains: unknown where complaints go to the devices.
    uncontested: State,
    failed_at: Option<Instant>,
    /// The first success since the last failure.
    succeeding_since: Option<Instant>,
}

impl Health {
    /// `hears_refusals`: whether ICMP errors come back to us, and not to the devices in whose names datagrams are sent.
    pub(crate) fn new(hears_refusals: bool) -> Health {
        let uncontested = if hears_refusals { State::Up } else { State::Unknown };
        Health { state: State::Unknown, uncontested, failed_at: None, succeeding_since: None }
    }

    /// A datagram was refused, could not leave, or there is no address to send it to. Gives the state if it changed.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<State> {
        self.failed_at = Some(now);
        self.succeeding_since = None;
        self.change(State::Down)
    }

    /// The kernel took datagrams.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.succeeding_since.get_or_insert(now);
    }

    /// What is known.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Gives the state if time has changed it.
    pub(crate) fn at(&mut self, now: Instant) -> Option<State> {
        let refused_lately = self.failed_at.is_some_and(|at| now.duration_since(at) < DOWN_FOR);
        let settled = self.succeeding_since.is_some_and(|since| now.duration_since(since) >= SETTLE);
        if settled && !refused_lately { self.change(self.uncontested) } else { None }
    }

    fn change(&mut self, state: State) -> Option<State> {
        let changed = self.state != state;
        self.state = state;
        changed.then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_up_when_datagrams_leave_and_nobody_refuses_for_a_second() {
        let (mut health, start) = (Health::new(true), Instant::now());
        health.sent(start);
        assert_eq!(health.at(start), None);
        assert_eq!(health.at(start + SETTLE), Some(State::Up));
        assert_eq!(health.at(start + 2 * SETTLE), None, "a state is told once");
    }

    #[test]
    fn a_refusal_makes_it_down_until_ten_seconds_pass_without_another() {
        let (mut health, start) = (Health::new(true), Instant::now());
        assert_eq!(health.failed(start), Some(State::Down));
        health.sent(start);
        assert_eq!(health.at(start + DOWN_FOR / 2), None);
        assert_eq!(health.failed(start + DOWN_FOR / 2), None);
        health.sent(start + DOWN_FOR / 2);
        assert_eq!(health.at(start + DOWN_FOR), None, "the second refusal counts anew");
        assert_eq!(health.at(start + 2 * DOWN_FOR), Some(State::Up));
    }

    #[test]
    fn where_refusals_are_not_heard_a_destination_is_down_or_unknown() {
        let (mut health, start) = (Health::new(false), Instant::now());
        health.sent(start);
        assert_eq!(health.at(start + SETTLE), None);
        assert_eq!(health.failed(start + SETTLE), Some(State::Down), "no route, for one");
        health.sent(start + 2 * SETTLE);
        assert_eq!(health.at(start + 2 * DOWN_FOR), Some(State::Unknown));
    }

    #[test]
    fn silence_after_a_refusal_proves_nothing() {
        let (mut health, start) = (Health::new(true), Instant::now());
        health.failed(start);
        assert_eq!(health.at(start + 100 * DOWN_FOR), None);
    }
}
