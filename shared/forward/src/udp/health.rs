//! Whether a UDP endpoint is up, as far as UDP can tell: there are no acknowledgements, only ICMP
//! errors.

use std::time::{Duration, Instant};

use crate::status::EndpointState;

/// How long after an error an endpoint counts as down. Errors are rare even if the port is closed:
/// a Linux host sends at most one port-unreachable message per second.
const DOWN_FOR: Duration = Duration::from_secs(10);

/// How long datagrams must have been sent without an error before an endpoint counts as up.
const SETTLE: Duration = Duration::from_secs(1);

/// A closed port counts as open again after this time without an ICMP error. A Linux host sends one
/// per second.
const QUIET_AFTER_REFUSAL: Duration = Duration::from_secs(2);

/// The same after other errors: the kernel reports a host that does not answer after three seconds.
const QUIET_AFTER_ERROR: Duration = Duration::from_secs(4);

/// Derives the state from the outcomes of sending.
#[derive(Debug)]
pub(crate) struct HealthTracker {
    state: EndpointState,
    /// The state without errors: unknown if errors go to the devices.
    state_without_errors: EndpointState,
    failed_at: Option<Instant>,
    quiet_after: Duration,
    /// The first success since the last failure.
    succeeding_since: Option<Instant>,
}

impl HealthTracker {
    /// `gets_errors`: whether ICMP errors come back to us, and not to the devices whose addresses
    /// are spoofed.
    pub(crate) fn new(gets_errors: bool) -> HealthTracker {
        let state_without_errors = if gets_errors { EndpointState::Up } else { EndpointState::Unknown };
        HealthTracker {
            state: EndpointState::Unknown,
            state_without_errors,
            failed_at: None,
            quiet_after: QUIET_AFTER_ERROR,
            succeeding_since: None,
        }
    }

    /// An ICMP error arrived, a datagram could not be sent, or the endpoint has no address. Gives
    /// the state if it changed.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<EndpointState> {
        self.failed_at = Some(now);
        self.succeeding_since = None;
        self.quiet_after = QUIET_AFTER_ERROR;
        self.change(EndpointState::Down)
    }

    /// The last failure was a refusal by the host.
    pub(crate) fn was_refused(&mut self) {
        self.quiet_after = QUIET_AFTER_REFUSAL;
    }

    /// Whether datagrams have been sent for so long without an error that the endpoint has received
    /// the last of them, although it does not count as up yet.
    pub(crate) fn is_quiet(&self, now: Instant) -> bool {
        self.succeeding_since.is_some_and(|since| now.duration_since(since) >= self.quiet_after)
    }

    /// Another address is in use, about which nothing is known.
    pub(crate) fn moved(&mut self) {
        self.failed_at = None;
        self.succeeding_since = None;
    }

    /// The kernel has accepted datagrams.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.succeeding_since.get_or_insert(now);
    }

    /// The current state.
    pub(crate) fn state(&self) -> EndpointState {
        self.state
    }

    /// Returns the state if time has changed it.
    pub(crate) fn at(&mut self, now: Instant) -> Option<EndpointState> {
        let failed_lately = self.failed_at.is_some_and(|at| now.duration_since(at) < DOWN_FOR);
        let settled = self.succeeding_since.is_some_and(|since| now.duration_since(since) >= SETTLE);
        if settled && !failed_lately { self.change(self.state_without_errors) } else { None }
    }

    fn change(&mut self, state: EndpointState) -> Option<EndpointState> {
        let changed = self.state != state;
        self.state = state;
        changed.then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_after_one_second_without_errors() {
        let mut health = HealthTracker::new(true);
        let start = Instant::now();
        health.sent(start);
        assert_eq!(health.at(start), None);
        assert_eq!(health.at(start + SETTLE), Some(EndpointState::Up));
        assert_eq!(health.at(start + 2 * SETTLE), None, "a change is reported once");
    }

    #[test]
    fn down_until_ten_seconds_without_errors() {
        let mut health = HealthTracker::new(true);
        let start = Instant::now();
        assert_eq!(health.failed(start), Some(EndpointState::Down));
        health.sent(start);
        assert_eq!(health.at(start + DOWN_FOR / 2), None);
        assert_eq!(health.failed(start + DOWN_FOR / 2), None);
        health.sent(start + DOWN_FOR / 2);
        assert_eq!(health.at(start + DOWN_FOR), None, "the second error restarts the ten seconds");
        assert_eq!(health.at(start + 2 * DOWN_FOR), Some(EndpointState::Up));
    }

    #[test]
    fn errors_of_a_former_address_do_not_count() {
        let mut health = HealthTracker::new(true);
        let start = Instant::now();
        health.failed(start);
        health.moved();
        health.sent(start);
        assert_eq!(health.at(start + SETTLE), Some(EndpointState::Up));
    }

    #[test]
    fn never_up_where_errors_go_to_devices() {
        let mut health = HealthTracker::new(false);
        let start = Instant::now();
        health.sent(start);
        assert_eq!(health.at(start + SETTLE), None);
        assert_eq!(health.failed(start + SETTLE), Some(EndpointState::Down), "no route, for one");
        health.sent(start + 2 * SETTLE);
        assert_eq!(health.at(start + 2 * DOWN_FOR), Some(EndpointState::Unknown));
    }

    #[test]
    fn refusals_end_before_the_endpoint_is_up() {
        let mut health = HealthTracker::new(true);
        let start = Instant::now();
        health.failed(start);
        health.was_refused();
        assert!(!health.is_quiet(start + QUIET_AFTER_REFUSAL), "nothing has been sent");
        health.sent(start);
        assert!(!health.is_quiet(start + QUIET_AFTER_REFUSAL / 2));
        assert!(health.is_quiet(start + QUIET_AFTER_REFUSAL));
        assert_eq!(health.at(start + QUIET_AFTER_REFUSAL), None, "it still counts as down");
        health.failed(start + QUIET_AFTER_REFUSAL);
        health.sent(start + QUIET_AFTER_REFUSAL);
        assert!(!health.is_quiet(start + 2 * QUIET_AFTER_REFUSAL), "a host that does not answer takes longer");
        assert!(health.is_quiet(start + 2 * QUIET_AFTER_ERROR));
    }

    #[test]
    fn stays_down_while_nothing_is_sent() {
        let mut health = HealthTracker::new(true);
        let start = Instant::now();
        health.failed(start);
        assert_eq!(health.at(start + 100 * DOWN_FOR), None);
    }
}
