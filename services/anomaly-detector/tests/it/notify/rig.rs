//! A running scope with notifiers in it, events to give them, and their metrics.

use std::{
    cell::RefCell,
    thread::{self, JoinHandle},
    time::Duration,
};

use sekiwake_anomaly_detector::{
    detect::{Bands, Event, EventKind, EventState, Reason},
    notify::{About, Notifiers, Patience, Telling},
};
use sekiwake_runtime::{About as Service, Ending, Process, Role, Scope, StopHandle};
use sekiwake_settings::{Environment, Reader};

/// How long anything is waited for.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// Patience of a test: it tries again at once.
pub(super) const QUICK: Patience = Patience {
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(20),
    give_up_after: Duration::from_secs(60),
    request: Duration::from_secs(5),
    repeat: Duration::from_secs(60),
};

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// A role that does nothing but lend its scope.
struct Lender;

impl Role for Lender {
    const ABOUT: Service =
        Service { service: "anomaly-detector", binary: "test", summary: "lends its scope", admin_port: 0 };
    type Settings = ();
    fn read(_reader: &mut Reader) {}
    fn start(_settings: (), scope: &Scope) -> anyhow::Result<()> {
        SCOPE.set(Some(scope.clone()));
        Ok(scope.idle()?)
    }
}

/// A process with one scope and its notifiers.
pub(super) struct Rig {
    pub(super) telling: Telling,
    scope: Scope,
    stop: StopHandle,
    process: JoinHandle<Ending>,
}

impl Rig {
    pub(super) fn start(notifiers: &str, patience: Patience) -> Rig {
        let environment = Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0"), ("SEKIWAKE_DRAIN", "2s")]);
        let running = Process::new(Lender::ABOUT).add::<Lender>().read(&environment).unwrap().start().unwrap();
        let stop = running.stop_handle();
        let process = thread::spawn(move || running.run());
        let scope = SCOPE.take().unwrap();
        let about = About { detector: "default/a".to_owned(), host: "host1".to_owned(), interval_seconds: 60.0 };
        let telling = Telling::start(&Notifiers::parse(notifiers).unwrap(), &about, patience, &scope).unwrap();
        Rig { telling, scope, stop, process }
    }

    /// The sum of a metric's children whose labels contain all of these texts.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.scope.metrics().text();
        let children = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let children = children.filter(|line| labels.iter().all(|label| line.contains(label)));
        children.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
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

    /// Tells the process to stop, and waits for its end.
    pub(super) fn stop(self) -> Ending {
        self.stop.stop("the test is over");
        self.process.join().unwrap()
    }
}

/// An alarm of this number begins.
pub(super) fn firing(number: u64) -> Event {
    let since_ns = 1_795_615_200_000_000_000 + number * 60_000_000_000;
    Event {
        id: format!("total/high/{since_ns}"),
        kind: EventKind::High,
        state: EventState::Firing,
        reason: None,
        series: "total".to_owned(),
        source: None,
        start_ns: since_ns,
        end_ns: since_ns + 60_000_000_000,
        since_ns,
        count: 900,
        bands: Some(Bands { average: 100.0, lower: 90.0, upper: 110.0 }),
        usual_pause_seconds: None,
    }
}

/// It is over.
pub(super) fn resolved(number: u64) -> Event {
    let begin = firing(number);
    let start_ns = begin.end_ns;
    let end_ns = start_ns + 60_000_000_000;
    let reason = Some(Reason::Recovered);
    Event { state: EventState::Resolved, reason, count: 100, start_ns, end_ns, ..begin }
}
