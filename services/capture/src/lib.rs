//! Takes datagrams off the wire and publishes them on the bus.
//!
//! ```text
//! libpcap ring ─▶ decode ─▶ claim by port ─▶ identify ─▶ Batcher ─▶ Producer ═▶ Publisher thread ─▶ bus
//! └──────────── one thread an interface (or more, by fan-out) ────────────┘
//! ```

pub mod decode;
pub mod discover;
pub mod explain;
pub mod filter;
mod interface;
mod live;
mod metrics;
pub mod packet_file;
pub mod pipeline;
pub mod ports;
mod savefile;
pub mod settings;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::ensure;
use interface::InterfaceSettings;
use sekiwake_bus::{Bus, Overflow, OwnDestinations, Producer, Publisher, PublisherSettings, retain_shares};
use sekiwake_runtime::{About, RateLimited, Role, Scope};
use sekiwake_settings::Reader;

pub use metrics::names;
use settings::{CaptureSettings, Source};

/// How often a capture says that an interface is not there.
const OPEN_LOG_EVERY: Duration = Duration::from_secs(60);

/// The capture service.
pub struct CaptureService;

impl Role for CaptureService {
    const ABOUT: About = About {
        service: "capture",
        binary: "sekiwake-capture",
        summary: "Takes datagrams off the wire and publishes them on the bus",
        admin_port: 9600,
    };

    type Settings = CaptureSettings;

    fn read(reader: &mut Reader) -> CaptureSettings {
        CaptureSettings::read(reader)
    }

    fn describe(settings: &CaptureSettings) -> Vec<(String, String)> {
        let InterfaceSettings { ring_bytes, retire, .. } = settings.interface;
        // A block of 256 KiB closes when its time is up, however empty it is: so many of them make the ring.
        let ring_time = (ring_bytes >> 18) as f64 * retire.as_secs_f64();
        let mut lines = vec![("SEKIWAKE_PUBLISHER".to_owned(), settings.publisher.to_string())];
        match &settings.source {
            Source::Interfaces(names) => {
                lines.push(("SEKIWAKE_CAPTURE_INTERFACES".to_owned(), names.join(",")));
                lines.push((
                    "ring".to_owned(),
                    format!("holds {ring_time:.1} s of an interface's packets at the least"),
                ));
            }
            Source::File(path) => lines.push(("SEKIWAKE_CAPTURE_FILE".to_owned(), path.display().to_string())),
        }
        lines
    }

    fn start(settings: CaptureSettings, scope: &Scope) -> anyhow::Result<()> {
        start(settings, scope)
    }
}

fn start(settings: CaptureSettings, scope: &Scope) -> anyhow::Result<()> {
    let is_file = matches!(settings.source, Source::File(_));
    let publisher = PublisherSettings {
        name: settings.publisher.clone(),
        endpoints: settings.bus.endpoints.clone(),
        keys: settings.bus.keys.clone(),
        retain_bytes: retain_shares(usize::try_from(settings.retain.0)?),
        overflow: if is_file { Overflow::Wait } else { Overflow::Drop },
    };
    let (mut publisher, producer) = Publisher::new(&Bus::shared(), publisher, scope.metrics(), scope.readiness("bus"))?;
    let told = (scope.readiness("control"), scope.status("stream"));
    let control = publisher.control(&settings.controlling, scope.metrics(), told)?;
    let own = control.own_destinations();
    scope.status_with("sources", control.sources());
    match &settings.source {
        Source::File(path) => {
            let reader = savefile::SavefileReader {
                path: path.clone(),
                tunnels: settings.interface.tunnels,
                filter: settings.interface.filter.clone(),
                ports: Arc::clone(&settings.ports),
                wait: settings.wait,
                producer,
                subscribers: publisher.subscription_watch(),
                ready: scope.readiness("savefile"),
                metrics: scope.metrics().clone(),
            };
            scope.spawn("savefile", move |worker| reader.run(worker))?;
        }
        Source::Interfaces(names) => {
            for (index, name) in names.iter().enumerate() {
                start_interface(index, name, &settings, (&producer, &own), scope)?;
            }
        }
    }
    scope.spawn("control", move |worker| Ok(control.run(worker)?))?;
    scope.spawn("publisher", move |worker| {
        let outcome = publisher.run(worker)?;
        // A wire goes on without us; a file was to be published completely.
        ensure!(
            !is_file || outcome.unpublished == 0,
            "{} of {} datagrams did not get onto the bus",
            outcome.unpublished,
            outcome.offered
        );
        ensure!(
            !is_file || outcome.uncommitted == 0,
            "{} of {} datagrams were not handled by every group",
            outcome.uncommitted,
            outcome.offered
        );
        Ok(())
    })?;
    Ok(())
}

fn start_interface(
    index: usize,
    name: &str,
    settings: &CaptureSettings,
    (producer, own): (&Producer, &OwnDestinations),
    scope: &Scope,
) -> anyhow::Result<()> {
    let shared = Arc::new(live::Shared {
        interface: name.to_owned(),
        settings: settings.interface.clone(),
        ports: Arc::clone(&settings.ports),
        tick: settings.tick,
        // Groups are numbered for the whole network namespace: the process and the interface make it unlikely to meet another.
        group: (std::process::id() as u16).wrapping_mul(31).wrapping_add(index as u16),
        has_claimed: AtomicBool::new(false),
        drop_log: RateLimited::default(),
        open_log: RateLimited::new(OPEN_LOG_EVERY),
    });
    for thread in 0..settings.interface.threads {
        let reader = live::Reader {
            shared: Arc::clone(&shared),
            producer: producer.clone(),
            own: own.watch(),
            ready: scope.readiness("interfaces"),
            metrics: scope.metrics().clone(),
            speaks: thread == 0,
        };
        scope.spawn(format!("{name}-{thread}"), move |worker| reader.run(worker))?;
    }
    Ok(())
}
