//! One receiving thread, many destinations: each place has its own queue, its own thread and its own counters.

use std::{collections::BTreeMap, fmt::Display, fs, io, path::Path, sync::Arc, time::Instant};

use prometheus::IntCounter;
use sekiwake_bus::Transport as Carrier;
use sekiwake_record::Kind;
use sekiwake_runtime::Scope;
use tracing::warn;

use crate::{
    Parcel, Registry,
    destination::{Destination, Destinations, MAX_PLACES, Place, Transport},
    egress::Sending,
    flows::Flows,
    flush::Manner,
    metrics::{self, DestinationMetrics},
    preflight::Preflight,
    queue::{Outlet, queue},
    resolve::Resolution,
    route::{PlaceIntake, Route},
    selection::{Chosen, Selection},
    spoof::SpoofSender,
    spools::Spools,
    stream::{SpoolSettings, StreamSettings, StreamWorker, TlsSettings, spool_name},
    target::Target,
    worker::DestinationWorker,
};

/// Where the spools of destinations are, if nobody says otherwise.
pub(crate) const DEFAULT_SPOOL_DIR: &str = "./spool";

/// Sends parcels to all destinations. It belongs to the thread that receives.
///
/// Dropping it lets the workers send what is queued, until the role's deadline when it is stopping, and end.
pub struct Engine<B> {
    kind: Kind,
    received: IntCounter,
    unmatched: IntCounter,
    routes: Vec<Route<B>>,
    /// By label: a place that comes back, or whose options change, counts on.
    metrics: BTreeMap<String, DestinationMetrics>,
    flows: Option<Flows>,
    surroundings: Surroundings,
}

/// What workers are started with.
struct Surroundings {
    scope: Scope,
    resolution: Resolution,
    registry: Registry,
    spools: Spools,
}

impl<B: AsRef<[u8]> + From<Vec<u8>> + Send + Sync + 'static> Engine<B> {
    /// Starts a worker for each place.
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
        Engine::start_in(Path::new(DEFAULT_SPOOL_DIR), kind, destinations, (resolution, registry), scope)
    }

    /// As [`Engine::start_with`], with the spools of destinations in folders of `spool_dir`, or of a folder in it where another process has that.
    ///
    /// # Errors
    /// As [`Engine::start`]; and when a spool cannot be opened, or files for TLS cannot be used.
    pub fn start_in(
        spool_dir: &Path,
        kind: Kind,
        destinations: &Destinations,
        (resolution, registry): (&Resolution, &Registry),
        scope: &Scope,
    ) -> io::Result<Engine<B>> {
        let mut engine = Engine {
            kind,
            received: metrics::received(scope, kind),
            unmatched: metrics::unmatched(scope, kind),
            routes: Vec::new(),
            metrics: BTreeMap::new(),
            flows: (kind == Kind::Xflow).then(|| Flows::new(scope)),
            surroundings: Surroundings {
                scope: scope.clone(),
                resolution: resolution.clone(),
                registry: registry.clone(),
                spools: Spools::new(spool_dir),
            },
        };
        engine.apply(destinations)?;
        Ok(engine)
    }

    /// Goes by these destinations from the next parcel on. Those that stay as they are notice nothing; what is queued for the others is
    /// still sent.
    ///
    /// # Errors
    /// When something that a new destination needs is not there. Then everything is as before.
    pub fn apply(&mut self, destinations: &Destinations) -> io::Result<()> {
        let stays = |route: &Route<B>| destinations.iter().any(|wanted| wanted == route.destination());
        let staying = self.routes.iter().filter(|route| stays(route)).flat_map(Route::places);
        let mut taken: Vec<u32> = staying.map(PlaceIntake::slot).collect();
        let mut new = Vec::new();
        for destination in destinations {
            if !self.routes.iter().any(|route| route.destination() == destination) {
                new.push(self.route(destination, &mut taken)?);
            }
        }
        self.routes.retain(stays);
        self.routes.append(&mut new);
        self.tell_of_orphans(destinations);
        Ok(())
    }

    /// Says which spools are on disk that no destination has: what is in them is not sent.
    fn tell_of_orphans(&self, destinations: &Destinations) {
        let with_spool = destinations.iter().filter(|destination| destination.options.spool.is_some());
        let labels = with_spool.flat_map(|destination| destination.places.iter().map(|place| destination.label(place)));
        let known: Vec<String> = labels.map(|label| spool_name(&label)).collect();
        let spools = &self.surroundings.spools;
        let Some(folders) = (self.kind == Kind::Syslog)
            .then(|| fs::read_dir(spools.dir_if_taken().unwrap_or(spools.base())).ok())
            .flatten()
        else {
            return;
        };
        for folder in folders.flatten() {
            let is_known = known.iter().any(|name| folder.file_name() == name.as_str());
            let is_segment = |file: &fs::DirEntry| file.path().extension().is_some_and(|end| end == "segment");
            let holds_any =
                || fs::read_dir(folder.path()).is_ok_and(|files| files.flatten().any(|file| is_segment(&file)));
            if !is_known && holds_any() {
                let folder = folder.path();
                warn!(folder = %folder.display(), "a spool that no destination has: what is in it is not sent");
            }
        }
    }

    /// Whether every destination is behind, so that it is this process that does not keep up, or all that it sends to: whoever can
    /// get its input again later may wait. One that is slow among others holds up nobody.
    pub fn is_behind(&self) -> bool {
        let mut places = self.routes.iter().flat_map(Route::places).peekable();
        places.peek().is_some() && places.all(PlaceIntake::is_behind)
    }

    /// Queues a parcel for each destination that wants it, and never waits: where the queue is full its records are dropped and
    /// counted.
    pub fn forward(&mut self, parcel: &Arc<Parcel<B>>) {
        let records = parcel.batch.len();
        if records == 0 {
            return;
        }
        self.received.inc_by(records as u64);
        let now = Instant::now();
        let mut matched = Chosen::none(records);
        let mut all_matched = false;
        let mut selections = Vec::new();
        for route in &mut self.routes {
            all_matched |= route.takes_everything();
            selections.extend(route.select(parcel, &mut matched, now));
        }
        if !all_matched {
            self.unmatched.inc_by((records - matched.count()) as u64);
        }
        self.send_owed_templates(parcel, &selections, now);
        for (place, selection) in self.routes.iter().flat_map(Route::places).zip(selections) {
            place.offer(parcel, selection, now);
        }
    }

    /// What is known of exporters, if this engine's kind has any.
    pub(crate) fn flows(&mut self) -> Option<&mut Flows> {
        self.flows.as_mut()
    }

    /// Looks at the parcel's flows, and queues the templates that places have to have before it. `selections` are the places', in their
    /// order.
    fn send_owed_templates(&mut self, parcel: &Parcel<B>, selections: &[Selection], now: Instant) {
        let Some(flows) = &mut self.flows else { return };
        for place in self.routes.iter_mut().flat_map(Route::places_mut) {
            if place.is_owed_templates(now) {
                flows.forget_slot(place.slot());
            }
        }
        let places = || self.routes.iter().flat_map(Route::places);
        let takers: Vec<(u32, &Selection)> = places().map(PlaceIntake::slot).zip(selections).collect();
        let slots_of = |route: &Route<B>| route.places().iter().fold(0u64, |slots, place| slots | 1 << place.slot());
        let pools: Vec<u64> = self.routes.iter().filter(|route| route.places().len() > 1).map(slots_of).collect();
        let wanted = |index| {
            let wants = takers.iter().filter(|(_, selection)| selection.contains(index));
            let wanted = wants.fold(0u64, |slots, (slot, _)| slots | 1 << slot);
            let left = pools.iter().filter(|pool| **pool & wanted != 0).fold(0, |left, pool| left | pool & !wanted);
            (wanted, left)
        };
        for owed in flows.observe(&parcel.batch, wanted, now) {
            for (slot, selection) in owed.by_slot {
                let place = places().find(|place| place.slot() == slot);
                if place.is_some_and(|place| !place.offer_own(&owed.parcel, selection, now)) {
                    flows.forget_slot(slot);
                }
            }
        }
    }

    /// Starts the workers of one destination. Slots that are `taken` are other destinations'.
    fn route(&mut self, destination: &Destination, taken: &mut Vec<u32>) -> io::Result<Route<B>> {
        if destination.options.spoof {
            SpoofSender::check_privilege().map_err(io::Error::other)?;
        }
        let mut places = Vec::new();
        for place in &destination.places {
            // There is always one: no more places than slots are configured.
            let slot = (0..MAX_PLACES as u32).find(|slot| !taken.contains(slot)).unwrap_or_default();
            taken.push(slot);
            if let Some(flows) = &mut self.flows {
                flows.forget_slot(slot);
            }
            places.push(self.place(destination, place, slot)?);
        }
        Ok(Route::new(destination.clone(), places, Instant::now()))
    }

    /// Starts the worker of one place.
    fn place(&mut self, destination: &Destination, place: &Place, slot: u32) -> io::Result<PlaceIntake<B>> {
        let scope = self.surroundings.scope.clone();
        let label = destination.label(place);
        let metrics = match self.metrics.get(&label) {
            Some(metrics) => metrics.clone(),
            None => {
                let metrics = DestinationMetrics::new(&scope, &label);
                self.metrics.insert(label.clone(), metrics.clone());
                metrics
            }
        };
        let metrics = metrics.for_another_worker();
        let (intake, outlet) = queue(metrics.queue_records.clone(), metrics.queue_bytes.clone());
        let intake = PlaceIntake::new(intake, &metrics, slot, destination.options.template_refresh);
        // The kernel shows 15 bytes of a thread's name: those that tell destinations apart.
        let name = place.to_string();
        match destination.transport {
            Transport::Udp => {
                let sender = self.datagram_worker(destination, place, outlet, metrics)?;
                scope.spawn(name, move |worker| {
                    sender.run(worker);
                    Ok(())
                })?;
            }
            Transport::Tcp | Transport::Tls => {
                let sender = self.stream_worker(destination, place, outlet, metrics)?;
                scope.spawn(name, move |worker| {
                    sender.run(worker);
                    Ok(())
                })?;
            }
        }
        Ok(intake)
    }

    fn datagram_worker(
        &self,
        destination: &Destination,
        place: &Place,
        outlet: Outlet<B>,
        metrics: DestinationMetrics,
    ) -> io::Result<DestinationWorker<B>> {
        let Surroundings { scope, resolution, registry, .. } = &self.surroundings;
        let (label, options) = (destination.label(place), &destination.options);
        let sending = Sending { spoof: options.spoof, segmentation: options.segmentation };
        let target = Target::new(
            label.clone(),
            (place, sending),
            resolution.clone(),
            metrics.resolve_failures.clone(),
            (registry.register(), Preflight::new(&label, options.spoof, scope.metrics()), metrics.standing.clone()),
        )?;
        let manner = Manner::of(self.kind, options);
        Ok(DestinationWorker::new(label, (options.segmentation, manner), outlet, target, metrics))
    }

    fn stream_worker(
        &self,
        destination: &Destination,
        place: &Place,
        outlet: Outlet<B>,
        metrics: DestinationMetrics,
    ) -> io::Result<StreamWorker<B>> {
        let Surroundings { scope, resolution, registry, spools } = &self.surroundings;
        let (label, options) = (destination.label(place), &destination.options);
        let failed = |error: &dyn Display| io::Error::other(format!("{label}: {error}"));
        let tls = match destination.transport {
            Transport::Tls => {
                let settings = TlsSettings::from(&options.tls);
                Some(settings.load(&place.host.to_string()).map_err(|error| failed(&error))?)
            }
            Transport::Tcp | Transport::Udp => None,
        };
        let spool = match options.spool {
            Some(max_bytes) => Some(SpoolSettings {
                dir: spools.dir().map_err(|error| failed(&error))?.join(spool_name(&label)),
                max_bytes,
            }),
            None => None,
        };
        let settings = StreamSettings {
            host: place.host.clone(),
            port: place.port,
            label: label.clone(),
            tls,
            spool,
            replay_rate: options.replay,
            add_source: options.add_source,
        };
        let registration = registry.register_over(Carrier::Tcp);
        let worker = StreamWorker::new(settings, outlet, resolution.clone(), registration, metrics, scope);
        worker.map_err(|error| failed(&error))
    }
}
