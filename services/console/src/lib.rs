//! The console: one page that shows what all services do, and what is lost where.
//!
//! ```text
//! bus (status/) ─▶ StatusReader ─▶ Model ─▶ View ─▶ a view as HTML ─▶ browser, which asks again every second
//! ```
//!
//! The model is pure. Pages are made on the server, one file per view in `views/`; the browser's
//! script only fetches the same page again and changes what differs, so a browser that sleeps or
//! reads slowly costs nothing.

mod bus;
mod clock;
mod guard;
mod metrics;
pub mod model;
mod search;
mod settings;
mod site;
mod views;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sekiwake_bus::Bus;
use sekiwake_runtime::{About, Process, Role, Scope};
use sekiwake_settings::Reader;
use tracing::{info, warn};

pub use guard::{Access, Token};
pub use metrics::names;
pub use settings::ConsoleSettings;

use self::{
    bus::{Looks, RecordReader, StatusReader},
    metrics::ConsoleMetrics,
    model::Model,
    site::Site,
    watch::Watches,
};

/// The console.
#[derive(Debug)]
pub enum Console {}

/// The process.
pub fn process() -> Process {
    Process::of::<Console>()
}

impl Role for Console {
    const ABOUT: About = About {
        service: "console",
        binary: "sekiwake-console",
        summary: "Shows all services, and what is lost where, on one page",
        admin_port: 9608,
    };

    type Settings = ConsoleSettings;

    fn read(reader: &mut Reader) -> ConsoleSettings {
        ConsoleSettings::read(reader)
    }

    fn start(settings: ConsoleSettings, scope: &Scope) -> anyhow::Result<()> {
        let metrics = ConsoleMetrics::new(scope.metrics());
        let connected = scope.readiness(settings.subscribing.readiness("bus"));
        let (from, bus) = (&settings.subscribing, Bus::of(scope));
        let mut reader = StatusReader::connect(&bus, from, scope.metrics(), connected, metrics.clone())?;
        reader.end_waits_at(scope.stop());
        let model = Arc::new(Mutex::new(Model::new(from.nats_servers().next().is_some())));
        let shown = Arc::clone(&model);
        let watches = Arc::new(Mutex::new(Watches::default()));
        let looks = settings.reads_on_demand.then(|| Looks::new(Arc::clone(&watches)));
        scope.spawn("status", move |worker| reader.run(&shown, looks, worker))?;
        let records = RecordReader::new(&settings, Arc::clone(&watches));
        scope.spawn("records", move |worker| records.run(worker))?;
        match settings.access.token {
            Token::Missing => warn!(
                "no console page: SEKIWAKE_ADMIN is not a loopback address and SEKIWAKE_CONSOLE_TOKEN_FILE is not set"
            ),
            Token::NotNeeded | Token::Required(_) => info!(token = ?settings.access.token, "console page enabled"),
        }
        let site = Site::new(settings, model, watches, metrics);
        scope.site(site::PREFIX, move |request| site.answer(&request));
        Ok(())
    }
}

/// Locks. A panic while a lock is held leaves the data usable: it is shown, not relied upon.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
