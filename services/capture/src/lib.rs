//! Captures UDP datagrams from network interfaces or a savefile, and publishes them on the bus.
//!
//! ```text
//! libpcap ring ─▶ decode ─▶ claim by port ─▶ identify ─▶ Batcher ─▶ Producer ═▶ Publisher ─▶ bus
//! └──────── one thread per interface (or several, by fan-out) ──────────────┘   one thread
//! ```

mod bind_ports;
mod command;
pub mod decode;
pub mod deduplicate;
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
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use anyhow::ensure;
use sekiwake_bus::{Bus, Overflow, Producer, PublishedStream, Reporting, StreamSettings, retain_shares};
use sekiwake_group::OwnDestinations;
use sekiwake_runtime::{About, Finding, RateLimited, Role, Scope};
use sekiwake_settings::Reader;

use crate::{
    bind_ports::BoundPorts,
    interface::InterfaceSettings,
    metrics::Meter,
    settings::{CaptureSettings, Source},
};

pub use command::process;
pub use metrics::names;

/// The least time between two log lines of an interface that cannot be opened.
const OPEN_LOG_EVERY: Duration = Duration::from_secs(60);

/// The capture service.
pub struct CaptureService;

impl Role for CaptureService {
    const ABOUT: About = About {
        service: "capture",
        binary: "sekiwake-capture",
        summary: "Captures UDP datagrams and publishes them on the bus",
        admin_port: 9600,
    };

    type Settings = CaptureSettings;

    fn read(reader: &mut Reader) -> CaptureSettings {
        CaptureSettings::read(reader)
    }

    fn describe(settings: &CaptureSettings) -> Vec<(String, String)> {
        let InterfaceSettings { ring_bytes, retire, .. } = settings.interface;
        // The ring consists of blocks of 256 KiB, and the kernel closes a block when its time is
        // up, full or not. So this is the time that the ring covers at low rates.
        let ring_time = (ring_bytes >> 18) as f64 * retire.as_secs_f64();
        let mut lines = vec![("SEKIWAKE_PUBLISHER".to_owned(), settings.publisher.to_string())];
        match &settings.source {
            Source::Interfaces(names) => {
                lines.push(("SEKIWAKE_CAPTURE_INTERFACES".to_owned(), names.join(",")));
                lines.push(("ring".to_owned(), format!("buffers at least {ring_time:.1} s of packets per interface")));
            }
            Source::File(path) => lines.push(("SEKIWAKE_CAPTURE_FILE".to_owned(), path.display().to_string())),
        }
        lines
    }

    fn examine(settings: &CaptureSettings) -> Vec<Finding> {
        settings.bus.examine()
    }

    fn start(settings: CaptureSettings, scope: &Scope) -> anyhow::Result<()> {
        start(settings, scope)
    }
}

fn start(settings: CaptureSettings, scope: &Scope) -> anyhow::Result<()> {
    if let Source::Interfaces(names) = &settings.source {
        // Before anything else is started, which would have to be drained.
        names.iter().try_for_each(|name| interface::check_permission(name, &settings.interface))?;
    }
    let is_file = matches!(settings.source, Source::File(_));
    let stream = StreamSettings {
        name: settings.publisher.clone(),
        publishing: settings.bus.clone(),
        retain_bytes: retain_shares(usize::try_from(settings.retain.0)?),
        overflow: if is_file { Overflow::Wait } else { Overflow::Drop },
    };
    let connected = scope.readiness(settings.bus.readiness("bus"));
    let reporting = Reporting::new(scope, &settings.controlling.readiness("control"), "stream");
    let stream = Bus::of(scope).stream(stream, &settings.controlling, connected, reporting)?;
    let PublishedStream { producer, own, subscribers, sources, writer, responder } = stream;
    scope.status_with("sources", sources);
    match &settings.source {
        Source::File(path) => {
            let reader = savefile::SavefileReader {
                path: path.clone(),
                tunnels: settings.interface.tunnels,
                deduplicate: settings.interface.deduplicate,
                filter: settings.interface.filter.clone(),
                ports: Arc::clone(&settings.ports),
                wait: settings.wait,
                producer,
                subscribers,
                ready: scope.readiness("savefile"),
                metrics: scope.metrics().clone(),
            };
            scope.spawn("savefile", move |worker| reader.run(worker))?;
        }
        Source::Interfaces(names) => {
            let bound = settings.bind_ports.then(|| BoundPorts::bind(settings.ports.iter()));
            BoundPorts::export(bound.as_ref(), scope.metrics());
            if let Some(bound) = bound {
                // The part owns the sockets, so that the ports stay bound until the process ends.
                scope.brief_status_with("bind_ports", move || bound.to_json());
            }
            let mut interfaces = Vec::new();
            for (index, name) in names.iter().enumerate() {
                let shared = start_interface(index, name, &settings, &producer, &own, scope)?;
                interfaces.push((shared, Meter::new(scope.metrics(), name).counters()));
            }
            scope.brief_status_with("interfaces", move || {
                interfaces.iter().map(|(shared, counters)| shared.status(counters)).collect()
            });
        }
    }
    if let Some(responder) = responder {
        scope.spawn("control", move |worker| Ok(responder.run(worker)?))?;
    }
    scope.spawn("publisher", move |worker| {
        let outcome = writer.run(worker)?;
        // Live capture cannot block, so it may lose datagrams; a file must be published completely.
        ensure!(
            !is_file || outcome.unpublished == 0,
            "{} of {} datagrams of the savefile were not published",
            outcome.unpublished,
            outcome.offered
        );
        ensure!(
            !is_file || outcome.uncommitted == 0,
            "{} of {} datagrams of the savefile were not acknowledged by every group",
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
    producer: &Producer,
    own: &OwnDestinations,
    scope: &Scope,
) -> anyhow::Result<Arc<live::Shared>> {
    let shared = Arc::new(live::Shared {
        interface: name.to_owned(),
        settings: settings.interface.clone(),
        ports: Arc::clone(&settings.ports),
        tick: settings.tick,
        waits_for_tick: settings.bus.messages_are_costly(),
        number: u8::try_from(index).unwrap_or(u8::MAX),
        // Fan-out groups share one number space per network namespace. Process id and interface
        // make a collision with another capture unlikely.
        group: (std::process::id() as u16).wrapping_mul(31).wrapping_add(index as u16),
        has_claimed: AtomicBool::new(false),
        drop_log: RateLimited::default(),
        open_log: RateLimited::new(OPEN_LOG_EVERY),
        history: Mutex::new(live::History::new()),
    });
    for thread in 0..settings.interface.threads {
        let reader = live::InterfaceReader {
            shared: Arc::clone(&shared),
            producer: producer.clone(),
            own: own.watch(),
            ready: scope.readiness("interfaces"),
            metrics: scope.metrics().clone(),
            is_first: thread == 0,
        };
        scope.spawn(format!("{name}-{thread}"), move |worker| reader.run(worker))?;
    }
    Ok(shared)
}
