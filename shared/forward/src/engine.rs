//! One receiving thread, many destinations: each has its own queue, its own thread and its own counters.

use std::{io, sync::Arc, time::Instant};

use prometheus::IntCounter;
use sekiwake_record::Kind;
use sekiwake_runtime::{Losses, Scope};

use crate::{
    Parcel, Registry,
    destination::Destinations,
    metrics::{self, DestinationMetrics, DropReason},
    queue::{Intake, queue},
    resolve::Resolution,
    target::Target,
    worker::DestinationWorker,
};

/// Sends parcels to all destinations. It belongs to the thread that receives.
///
/// Dropping it lets the workers send what is queued, until the role's deadline when it is stopping, and end.
pub struct Engine<B> {
    received: IntCounter,
    routes: Vec<Route<B>>,
}

struct Route<B> {
    intake: Intake<B>,
    dropped: Losses<DropReason>,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Engine<B> {
    /// Starts a worker for each destination.
    ///
    /// # Errors
    /// When the system gives no threads. A destination that cannot be reached or resolved is none: that may change.
    pub fn start(kind: Kind, destinations: &Destinations, scope: &Scope) -> io::Result<Engine<B>> {
        Engine::start_with(kind, destinations, &Resolution::default(), &Registry::open(), scope)
    }

    /// As [`Engine::start`], with names looked up in another way, and addresses that are used once `registry` approves of them.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with(
        kind: Kind,
        destinations: &Destinations,
        resolution: &Resolution,
        registry: &Registry,
        scope: &Scope,
    ) -> io::Result<Engine<B>> {
        let mut routes = Vec::new();
        for destination in destinations {
            let metrics = DestinationMetrics::new(scope, destination.label());
            let (intake, outlet) = queue(metrics.queue_records.clone(), metrics.queue_bytes.clone());
            routes.push(Route { intake, dropped: metrics.dropped.clone() });
            let target =
                Target::new(destination, resolution.clone(), metrics.resolve_failures.clone(), registry.register())?;
            let label = destination.label().to_owned();
            // The kernel shows 15 bytes of a thread's name: those that tell destinations apart.
            let name = label.trim_start_matches("udp://").to_owned();
            let sender = DestinationWorker::new(label, destination.segmentation, outlet, target, metrics);
            scope.spawn(name, move |worker| {
                sender.run(worker);
                Ok(())
            })?;
        }
        Ok(Engine { received: metrics::received(scope, kind), routes })
    }

    /// Whether every destination is behind, so that it is this process that does not keep up, or all that it sends to: whoever can
    /// get its input again later may wait. One that is slow among others holds up nobody.
    pub fn is_behind(&self) -> bool {
        self.routes.iter().all(|route| route.intake.is_behind())
    }

    /// Queues a parcel for each destination, and never waits: where the queue is full its records are dropped and counted.
    pub fn forward(&mut self, parcel: &Arc<Parcel<B>>) {
        let records = parcel.batch.len() as u64;
        if records == 0 {
            return;
        }
        self.received.inc_by(records);
        let now = Instant::now();
        for route in &self.routes {
            if !route.intake.offer(parcel, now) {
                route.dropped.add(DropReason::QueueFull, records);
            }
        }
    }
}
