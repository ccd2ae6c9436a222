//! A process with an empty role, for tests of code that needs a [`Scope`].

use std::{
    cell::RefCell,
    thread::{self, JoinHandle},
};

use sekiwake_runtime::{About, Ending, Metrics, Process, Role, Scope, StopHandle};
use sekiwake_settings::{Environment, Reader};

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// A role without work, which passes its scope to the test.
struct EmptyRole;

impl Role for EmptyRole {
    const ABOUT: About = About { service: "test", binary: "test", summary: "an empty role for tests", admin_port: 0 };
    type Settings = ();

    fn read(_: &mut Reader) {}

    fn start((): (), scope: &Scope) -> anyhow::Result<()> {
        SCOPE.set(Some(scope.clone()));
        Ok(scope.idle()?)
    }
}

/// A running role, to which tests add workers. Its threads are in the network namespace of the
/// thread that starts it. It is stopped when dropped.
pub struct TestRole {
    /// Its scope.
    pub scope: Scope,
    stop: StopHandle,
    process: Option<JoinHandle<Ending>>,
}

impl TestRole {
    /// Starts the role with this drain deadline, as in `SEKIWAKE_DRAIN`.
    pub fn start(drain: &str) -> TestRole {
        let environment = Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0"), ("SEKIWAKE_DRAIN", drain)]);
        let process = Process::of::<EmptyRole>().read(&environment).expect("valid settings");
        let running = process.start().expect("a started role");
        let scope = SCOPE.take().expect("the scope of the started role");
        let stop = running.stop_handle();
        TestRole { scope, stop, process: Some(thread::spawn(move || running.run())) }
    }

    /// The metrics of its scope.
    pub fn metrics(&self) -> &Metrics {
        self.scope.metrics()
    }

    /// The sum of a metric's samples whose labels contain all of these texts.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics().text();
        let samples = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let samples = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// A handle to stop it.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Asks it to stop, without waiting.
    pub fn request_stop(&self) {
        self.stop.stop("requested by the test");
    }

    /// Stops it and waits for its end.
    pub fn stop(mut self) -> Ending {
        self.request_stop();
        let process = self.process.take().expect("a running process");
        process.join().expect("a main thread without panic")
    }
}

impl Drop for TestRole {
    fn drop(&mut self) {
        self.request_stop();
        let _ = self.process.take().map(JoinHandle::join);
    }
}
