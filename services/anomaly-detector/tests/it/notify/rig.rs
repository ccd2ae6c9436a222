//! A running scope with notifiers, events for them, and their metrics.

use std::time::Duration;

use sekiwake_anomaly_detector::{
    detect::{Bands, Event, EventKind, EventState, Reason},
    notify::{About, Dispatcher, Notifiers, Timing},
};
use sekiwake_record::WallTime;
use sekiwake_runtime::Ending;
use sekiwake_testkit::role::TestRole;

/// The limit of every wait.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// Timing for tests: retries at once.
pub(super) const QUICK: Timing = Timing {
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(20),
    give_up_after: Duration::from_secs(60),
    request: Duration::from_secs(50),
    repeat: Duration::from_secs(60),
};

/// A process with one scope and its notifiers.
pub(super) struct Rig {
    pub(super) dispatcher: Dispatcher,
    role: TestRole,
}

impl Rig {
    pub(super) fn start(notifiers: &str, timing: Timing) -> Rig {
        let role = TestRole::start("2s");
        let about =
            About { detector: "default/a".to_owned(), host: "host1".to_owned(), interval: Duration::from_secs(60) };
        let dispatcher = Dispatcher::start(&Notifiers::parse(notifiers).unwrap(), &about, timing, &role.scope).unwrap();
        Rig { dispatcher, role }
    }

    /// The sum of a metric's children whose labels contain all of these texts.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        self.role.metric(name, labels) as u64
    }

    pub(super) fn sent(&self) -> u64 {
        self.metric("sekiwake_notify_sent_total", &[])
    }

    pub(super) fn retries(&self) -> u64 {
        self.metric("sekiwake_notify_retries_total", &[])
    }

    pub(super) fn dropped(&self, reason: &str) -> u64 {
        self.metric("sekiwake_notify_dropped_total", &[&format!("reason=\"{reason}\"")])
    }

    /// Stops the process, and waits for its end.
    pub(super) fn stop(self) -> Ending {
        self.role.stop()
    }
}

/// Alarm `number` fires.
pub(super) fn firing(number: u64) -> Event {
    let since = WallTime::from_nanos(1_795_615_200_000_000_000 + number * 60_000_000_000);
    Event {
        id: format!("total/high/{}", since.as_nanos()),
        kind: EventKind::High,
        state: EventState::Firing,
        reason: None,
        series: "total".to_owned(),
        source: None,
        start: since,
        end: since + Duration::from_secs(60),
        since,
        count: 900,
        bands: Some(Bands { average: 100.0, lower: 90.0, upper: 110.0 }),
        usual_pause_seconds: None,
    }
}

/// Alarm `number` has resolved.
pub(super) fn resolved(number: u64) -> Event {
    let start = firing(number);
    let reason = Some(Reason::Recovered);
    Event {
        state: EventState::Resolved,
        reason,
        count: 100,
        start: start.end,
        end: start.end + Duration::from_secs(60),
        ..start
    }
}
