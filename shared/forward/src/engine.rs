//! One receiving thread, many destinations: each endpoint has its own queue, its own thread and its
//! own counters.

use std::{collections::BTreeMap, fmt::Display, io, path::PathBuf, sync::Arc, thread, time::Instant};

use prometheus::IntCounter;
use sekiwake_bus::Transport as Carrier;
use sekiwake_decode::{Decoder, mib::Mib};
use sekiwake_flow::DestinationSlots;
use sekiwake_record::Kind;
use sekiwake_runtime::{Hangups, Scope};
use tracing::warn;

use crate::{
    Parcel, Registry,
    config::{
        address::ApprovedAddress,
        destination::{DeliveryOptions, Destination, Destinations, Endpoint, MAX_ENDPOINTS, Transport},
        preflight::Preflight,
        resolve::Resolution,
    },
    delivery::{
        self, DeliverySettings, DeliveryWorker, Value,
        kafka::{Credentials, KafkaSettings, KafkaSink},
        nats::{NatsSettings, NatsSink},
        otlp::{Headers, OtlpSettings, OtlpSink},
        sending::Sink,
        spool::SpoolPlace,
    },
    metrics::{self, DestinationMetrics, SpoolMetrics},
    orphans::Search,
    queue::{Outlet, queue},
    routing::{
        route::{EndpointIntake, OwedTemplates, Route, TemplateRefresh},
        selection::{RecordSet, Selection},
    },
    spoof::SpoofSender,
    status_page::{ShownEndpoint, ShownEndpoints},
    stream::{SpoolSettings, StreamSettings, StreamWorker, Tls, TlsError, TlsSettings, spool_name, spools::Spools},
    templates::flows::{Flows, OwedToSlot},
    totals::Totals,
    udp::{egress::SocketOptions, flush::DatagramOptions, sending::Sending, target::Target, worker::UdpWorker},
};

/// Offered records are passed on at this number at the latest.
const FLUSH_RECORDS: usize = 1024;

/// The receiving thread sends itself up to this many datagrams in a row. More of them, or more
/// destinations, are worth a thread each.
const MAX_SENT_HERE: usize = 512;

/// The default directory of spools.
const DEFAULT_SPOOL_DIR: &str = "./spool";

/// Sends parcels to all destinations. It belongs to the receiving thread.
///
/// Dropping it lets the workers send the queued batches, until the role's deadline when it is
/// stopping, and end.
pub struct Engine<B> {
    kind: Kind,
    received: IntCounter,
    unmatched: IntCounter,
    routes: Vec<Route<B>>,
    /// By label: an endpoint that is removed and added again, or whose options change, keeps its
    /// counts.
    metrics: BTreeMap<String, DestinationMetrics>,
    /// Of the workers that [`Engine::apply`] has started, by label, until they are in use.
    started: Vec<(String, DestinationMetrics)>,
    shown: ShownEndpoints,
    totals: Totals,
    /// Records offered since the last flush.
    pending: usize,
    flows: Option<Flows>,
    context: WorkerContext,
}

/// How an [`Engine`] is started. The default resolves names by the system, uses every address at
/// once, and keeps spools in `./spool`.
#[derive(Clone)]
pub struct EngineOptions {
    /// How names are looked up.
    pub resolution: Resolution,
    /// Approves addresses before anything is sent to them.
    pub registry: Registry,
    /// The directory of the spools, each in a folder of its own; where another process uses it, in
    /// a folder of that directory.
    pub spool_dir: PathBuf,
    /// The group, which the folders of deliveries' spools are named after.
    pub group: String,
    /// Names for destinations that get decoded traps.
    pub mib: Arc<Mib>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            resolution: Resolution::default(),
            registry: Registry::open(),
            spool_dir: PathBuf::from(DEFAULT_SPOOL_DIR),
            group: "default".to_owned(),
            mib: Arc::default(),
        }
    }
}

/// The parameters that workers are started with.
struct WorkerContext {
    scope: Scope,
    resolution: Resolution,
    registry: Registry,
    /// Those of streams, which only syslog has.
    spools: Spools,
    /// Those of deliveries, in a directory of this kind and group.
    delivery_spools: Spools,
    mib: Arc<Mib>,
}

impl<B: AsRef<[u8]> + From<Vec<u8>> + Send + Sync + 'static> Engine<B> {
    /// Starts one worker per endpoint.
    ///
    /// # Errors
    /// When a thread cannot be spawned, a spool cannot be opened, files for TLS cannot be used, or
    /// the process may not spoof. An unreachable or unresolved destination is not an error, because
    /// that may change.
    pub fn start(
        kind: Kind,
        destinations: &Destinations,
        options: EngineOptions,
        scope: &Scope,
    ) -> io::Result<Engine<B>> {
        let EngineOptions { resolution, registry, spool_dir, group, mib } = options;
        let delivery_spools = Spools::new(&spool_dir.join(format!("{kind}.{group}")));
        let received = metrics::received(scope, kind);
        let unmatched = metrics::unmatched(scope, kind);
        let mut engine = Engine {
            kind,
            totals: Totals::new(kind, received.clone(), unmatched.clone()),
            received,
            unmatched,
            routes: Vec::new(),
            metrics: BTreeMap::new(),
            started: Vec::new(),
            pending: 0,
            shown: ShownEndpoints::default(),
            flows: (kind == Kind::Xflow).then(|| Flows::new(scope)),
            context: WorkerContext {
                scope: scope.clone(),
                resolution,
                registry,
                spools: Spools::new(&spool_dir),
                delivery_spools,
                mib,
            },
        };
        engine.apply(destinations)?;
        let shown = engine.shown.clone();
        scope.brief_status_with("destinations", move || shown.to_json());
        let totals = engine.totals.clone();
        scope.at_end(move || totals.log());
        Ok(engine)
    }

    /// Uses these destinations from the next parcel on. Unchanged ones are not interrupted; what is
    /// queued for removed ones is still sent.
    ///
    /// # Errors
    /// As [`Engine::start`]. Then nothing changes.
    pub fn apply(&mut self, destinations: &Destinations) -> io::Result<()> {
        self.flush();
        let stays = |route: &Route<B>| destinations.iter().any(|wanted| wanted == route.destination());
        let staying = self.routes.iter().filter(|route| stays(route)).flat_map(Route::endpoints);
        let mut taken: Vec<u32> = staying.map(EndpointIntake::slot).collect();
        let mut new = Vec::new();
        self.started.clear();
        for destination in destinations {
            if !self.routes.iter().any(|route| route.destination() == destination) {
                new.push(self.start_route(destination, &mut taken)?);
            }
        }
        self.routes.retain(stays);
        self.routes.append(&mut new);
        self.show(destinations);
        self.warn_of_orphaned_spools(destinations);
        Ok(())
    }

    /// Shows these destinations on `/status`.
    fn show(&mut self, destinations: &Destinations) {
        let mut known: BTreeMap<String, ShownEndpoint> = self.shown.by_label();
        let started = std::mem::take(&mut self.started);
        known.extend(started.into_iter().map(|(label, metrics)| (label, ShownEndpoint { metrics, spool: None })));
        let mut shown = Vec::new();
        for destination in destinations {
            for label in destination.endpoints.iter().map(|endpoint| destination.label(endpoint)) {
                let Some(ShownEndpoint { metrics, .. }) = known.remove(&label) else { continue };
                let spool = destination.options.spool.map(|_| SpoolMetrics::new(&self.context.scope, &label));
                shown.push((label, ShownEndpoint { metrics, spool }));
            }
        }
        self.shown.set(shown);
    }

    /// The state and the counts of each destination, as in `/status`.
    pub fn status(&self) -> serde_json::Value {
        self.shown.to_json()
    }

    /// Reports the spools on disk that belong to no destination, from a thread of its own, because
    /// a disk may hang.
    fn warn_of_orphaned_spools(&self, destinations: &Destinations) {
        let mut known: Vec<String> = Vec::new();
        for destination in destinations.iter().filter(|destination| destination.options.spool.is_some()) {
            let name = if destination.transport.is_delivery() { delivery::spool_name } else { spool_name };
            known.extend(destination.endpoints.iter().map(|endpoint| name(&destination.label(endpoint))));
        }
        let WorkerContext { spools, delivery_spools, .. } = &self.context;
        let mut dirs = vec![delivery_spools.dir_if_taken().unwrap_or(delivery_spools.base()).to_owned()];
        if self.kind == Kind::Syslog {
            dirs.push(spools.dir_if_taken().unwrap_or(spools.base()).to_owned());
        }
        let group = delivery_spools.base().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let search = Search {
            own: dirs,
            used: known,
            base: spools.base().to_owned(),
            kind_prefix: format!("{}.", self.kind),
            own_group: group,
        };
        let count = metrics::orphaned_spools(&self.context.scope, self.kind);
        let warn = move || {
            let found = search.find();
            for folder in &found {
                warn!(folder = %folder.display(), "orphaned spool, its contents will not be sent");
            }
            count.set(found.len() as i64);
        };
        // Without the thread there is no warning, and no other harm.
        let _ = thread::Builder::new().name("orphans".to_owned()).spawn(warn);
    }

    /// Whether every destination is behind, so that the bottleneck is this process or all of its
    /// destinations: input that can be retransmitted later should wait. One slow destination among
    /// others does not delay them, nor does one whose name has not been resolved yet.
    pub fn is_behind(&self) -> bool {
        let endpoints = self.routes.iter().flat_map(Route::endpoints);
        let mut endpoints = endpoints.filter(|endpoint| !endpoint.is_unresolved()).peekable();
        endpoints.peek().is_some() && endpoints.all(EndpointIntake::is_behind)
    }

    /// Whether any destination is behind: where nothing may be dropped, input has to wait.
    pub fn is_any_behind(&self) -> bool {
        self.routes.iter().flat_map(Route::endpoints).any(EndpointIntake::is_behind)
    }

    /// Reads the templates in a parcel that is not to be sent, so that destinations get them before
    /// the first records that need them.
    pub fn learn_templates(&mut self, parcel: &Parcel<B>) {
        if let Some(flows) = &mut self.flows {
            let nowhere = |_| DestinationSlots { wanted: 0, left: 0 };
            flows.observe(&parcel.batch, nowhere, Instant::now());
        }
    }

    /// Offers a parcel and flushes.
    pub fn forward(&mut self, parcel: &Arc<Parcel<B>>) {
        self.offer(parcel);
        self.flush();
    }

    /// Passes on what was offered, and never waits. What a UDP destination takes at once is sent in
    /// this thread, unless that is much.
    pub fn flush(&mut self) {
        if self.pending == 0 {
            return;
        }
        let endpoints = self.routes.iter().map(|route| route.endpoints().len()).sum::<usize>();
        let may_send = self.pending * endpoints <= MAX_SENT_HERE;
        self.pending = 0;
        for endpoint in self.routes.iter_mut().flat_map(Route::endpoints_mut) {
            endpoint.flush(may_send);
        }
    }

    /// Adds a parcel for each destination that selects it, and never waits: where a queue is full,
    /// its records are dropped and counted. It is passed on by [`Engine::flush`], or earlier.
    pub fn offer(&mut self, parcel: &Arc<Parcel<B>>) {
        let records = parcel.batch.len();
        if records == 0 {
            return;
        }
        self.received.inc_by(records as u64);
        let now = Instant::now();
        let mut matched = RecordSet::empty(records);
        let mut all_matched = false;
        let mut selections = Vec::new();
        for route in &mut self.routes {
            all_matched |= route.takes_everything();
            selections.extend(route.select(parcel, &mut matched, now));
        }
        if !all_matched {
            self.unmatched.inc_by((records - matched.count()) as u64);
        }
        self.queue_owed_templates(parcel, &selections, now);
        for (endpoint, selection) in self.routes.iter_mut().flat_map(Route::endpoints_mut).zip(selections) {
            endpoint.offer(parcel, selection, now);
        }
        self.pending += records;
        if self.pending >= FLUSH_RECORDS {
            self.flush();
        }
    }

    /// The templates and sequences of exporters, if this engine's kind has any.
    pub(crate) fn flows(&mut self) -> Option<&mut Flows> {
        self.flows.as_mut()
    }

    /// Reads the parcel's flows, and queues the templates that endpoints need before it.
    /// `selections` are the endpoints', in their order.
    fn queue_owed_templates(&mut self, parcel: &Parcel<B>, selections: &[Selection], now: Instant) {
        let Some(flows) = &mut self.flows else { return };
        for endpoint in self.routes.iter_mut().flat_map(Route::endpoints_mut) {
            match endpoint.owed_templates(now) {
                OwedTemplates::None => {}
                OwedTemplates::All => flows.forget_slot(endpoint.slot()),
                OwedTemplates::Due { after, counts_repeats } => {
                    flows.refresh_slot(endpoint.slot(), after, counts_repeats, now);
                }
            }
        }
        let endpoints = || self.routes.iter().flat_map(Route::endpoints);
        // Sets of slots are bits of a word, because this runs once per record and endpoint: an
        // exporter remembers in one such word which endpoints have its templates.
        let mut pools: Vec<u64> = Vec::new();
        for route in self.routes.iter().filter(|route| route.endpoints().len() > 1) {
            pools.push(slot_set(route.endpoints().iter().map(EndpointIntake::slot)));
        }
        let takers: Vec<(u32, &Selection)> = endpoints().map(EndpointIntake::slot).zip(selections).collect();
        let slots_of_record = |index| {
            let chosen = takers.iter().filter(|(_, selection)| selection.contains(index));
            let wanted = slot_set(chosen.map(|(slot, _)| *slot));
            let mut left = 0;
            for pool in &pools {
                // A pool that gets the record through one member does not get it through the
                // others. Those are owed the exporter's templates again, because these may
                // change before it comes back to them. For a pool that filters the record out,
                // nothing changes.
                if pool & wanted != 0 {
                    left |= pool & !wanted;
                }
            }
            DestinationSlots { wanted, left }
        };
        for owed in flows.observe(&parcel.batch, slots_of_record, now) {
            for OwedToSlot { slot, selection } in owed.by_slot {
                let mut endpoints = self.routes.iter_mut().flat_map(Route::endpoints_mut);
                let endpoint = endpoints.find(|endpoint| endpoint.slot() == slot);
                if endpoint.is_some_and(|endpoint| !endpoint.offer_synthetic(&owed.parcel, selection, now)) {
                    flows.forget_slot(slot);
                }
            }
        }
    }

    /// Starts the workers of one destination. Slots in `taken` belong to other endpoints.
    fn start_route(&mut self, destination: &Destination, taken: &mut Vec<u32>) -> io::Result<Route<B>> {
        if destination.options.spoof {
            SpoofSender::check_privilege().map_err(io::Error::other)?;
        }
        for warning in destination.warnings() {
            warn!(warning, "check the destination");
        }
        let mut endpoints = Vec::new();
        for endpoint in &destination.endpoints {
            // One is always free, because a list has at most as many endpoints as there are slots.
            let slot = (0..MAX_ENDPOINTS as u32).find(|slot| !taken.contains(slot)).unwrap_or_default();
            taken.push(slot);
            if let Some(flows) = &mut self.flows {
                flows.forget_slot(slot);
                if let Some(every) = destination.options.template_refresh {
                    // From now on it is known when templates are sent to the slot.
                    flows.refresh_slot(slot, every, true, Instant::now());
                }
            }
            endpoints.push(self.start_endpoint(destination, endpoint, slot)?);
        }
        Ok(Route::new(destination.clone(), endpoints, Instant::now()))
    }

    /// Starts the worker of one endpoint.
    fn start_endpoint(
        &mut self,
        destination: &Destination,
        endpoint: &Endpoint,
        slot: u32,
    ) -> io::Result<EndpointIntake<B>> {
        let scope = self.context.scope.clone();
        let label = destination.label(endpoint);
        let known = self.metrics.entry(label).or_insert_with_key(|label| DestinationMetrics::new(&scope, label));
        let metrics = known.clone().for_another_worker();
        self.started.push((destination.label(endpoint), metrics.clone()));
        self.totals.include(&destination.label(endpoint), &metrics);
        let (intake, outlet) = queue(metrics.queue_records.clone(), metrics.queue_bytes.clone());
        let options = &destination.options;
        // Above the rate, what exporters repeat may be dropped.
        let refresh = |every| TemplateRefresh { every, counts_repeats: options.rate.is_none() };
        let refresh = options.template_refresh.map(refresh);
        // The kernel shows 15 bytes of a thread's name: without the scheme, they tell endpoints
        // apart.
        let name = endpoint.to_string();
        let mut shortcut = None;
        let shown = metrics.clone();
        match destination.transport {
            Transport::Udp => {
                let sender = self.udp_worker(destination, endpoint, outlet, metrics)?;
                shortcut = (!options.spoof).then(|| sender.shortcut());
                scope.spawn(name, move |worker| {
                    sender.run(worker);
                    Ok(())
                })?;
            }
            Transport::Tcp | Transport::Tls => {
                let sender = self.stream_worker(destination, endpoint, outlet, metrics)?;
                scope.spawn(name, move |worker| {
                    sender.run(worker);
                    Ok(())
                })?;
            }
            Transport::OtlpHttp | Transport::OtlpHttps | Transport::Kafka | Transport::Nats => {
                let sender = self.delivery_worker(destination, endpoint, outlet, metrics)?;
                scope.spawn(name, move |worker| {
                    sender.run(worker);
                    Ok(())
                })?;
            }
        }
        Ok(EndpointIntake::new(intake, shortcut, &shown, slot, refresh))
    }

    fn udp_worker(
        &self,
        destination: &Destination,
        endpoint: &Endpoint,
        outlet: Outlet<B>,
        metrics: DestinationMetrics,
    ) -> io::Result<UdpWorker<B>> {
        let WorkerContext { scope, resolution, registry, .. } = &self.context;
        let label = destination.label(endpoint);
        let options = &destination.options;
        let failures = metrics.resolve_failures.clone();
        let address = ApprovedAddress::new(endpoint, resolution.clone(), failures, registry.register(Carrier::Udp))?;
        let preflight = Preflight::new(&label, options.spoof, scope.metrics());
        let sockets = SocketOptions { spoof: options.spoof, segmentation: options.segmentation };
        let target = Target::new(label.clone(), address, sockets, preflight, metrics.status.clone());
        let sending = Sending::new(label, DatagramOptions::of(self.kind, options), target, metrics);
        Ok(UdpWorker::new(outlet, sending))
    }

    fn stream_worker(
        &self,
        destination: &Destination,
        endpoint: &Endpoint,
        outlet: Outlet<B>,
        metrics: DestinationMetrics,
    ) -> io::Result<StreamWorker<B>> {
        let WorkerContext { scope, resolution, registry, spools, .. } = &self.context;
        let label = destination.label(endpoint);
        let options = &destination.options;
        let failed = |error: &dyn Display| io::Error::other(format!("{label}: {error}"));
        let tls = load_tls(destination, endpoint).map_err(|error| failed(&error))?;
        let spool = match options.spool {
            Some(max_bytes) => Some(SpoolSettings {
                dir: spools.dir().map_err(|error| failed(&error))?.join(spool_name(&label)),
                max_bytes,
            }),
            None => None,
        };
        let settings = StreamSettings {
            host: endpoint.host.clone(),
            port: endpoint.port,
            label: label.clone(),
            tls,
            framing: options.framing,
            spool,
            replay_rate: options.replay,
            add_source: options.add_source,
        };
        let registration = registry.register(Carrier::Tcp);
        let worker = StreamWorker::new(settings, outlet, resolution.clone(), registration, metrics, scope);
        worker.map_err(|error| failed(&error))
    }

    fn delivery_worker(
        &self,
        destination: &Destination,
        endpoint: &Endpoint,
        outlet: Outlet<B>,
        metrics: DestinationMetrics,
    ) -> io::Result<DeliveryWorker<B>> {
        let WorkerContext { scope, resolution, registry, delivery_spools, mib, .. } = &self.context;
        let label = destination.label(endpoint);
        let failed = |error: &dyn Display| io::Error::other(format!("{label}: {error}"));
        let sink = sink(self.kind, destination, endpoint, scope.hangups()).map_err(|error| failed(&error))?;
        let spool = match destination.options.spool {
            Some(max_bytes) => Some(SpoolPlace {
                dir: delivery_spools.dir().map_err(|error| failed(&error))?.join(delivery::spool_name(&label)),
                max_bytes,
            }),
            None => None,
        };
        let address = match destination.transport.is_cluster() {
            // Its servers name each other.
            true => None,
            false => {
                let failures = metrics.resolve_failures.clone();
                let registration = registry.register(Carrier::Tcp);
                Some(ApprovedAddress::new(endpoint, resolution.clone(), failures, registration)?)
            }
        };
        let decoder = (destination.options.delivery.value == Value::Decoded).then(|| {
            let mut decoder = Decoder::new();
            decoder.set_mib(Arc::clone(mib));
            decoder
        });
        let needs_ids = destination.transport == Transport::Nats;
        let settings = DeliverySettings { kind: self.kind, label: label.clone(), decoder, needs_ids, spool };
        let worker = DeliveryWorker::new(settings, outlet, address, sink, metrics, || SpoolMetrics::new(scope, &label));
        worker.map_err(|error| failed(&error))
    }
}

/// The client of a delivery's endpoint. Each of `hangups` makes one of NATS read its files again.
///
/// # Errors
/// A file that it needs cannot be used.
pub(crate) fn sink(
    kind: Kind,
    destination: &Destination,
    endpoint: &Endpoint,
    hangups: Hangups,
) -> Result<Box<dyn Sink>, String> {
    let options = &destination.options;
    match destination.transport {
        Transport::Kafka => return kafka_sink(kind, destination, endpoint),
        Transport::Nats => return Ok(Box::new(NatsSink::new(NatsSettings::read(kind, destination)?, hangups)?)),
        _ => {}
    }
    let DeliveryOptions { value, encoding, is_compressed, headers, .. } = &options.delivery;
    let headers = headers.as_deref().map(Headers::read).transpose()?.unwrap_or_default();
    let tls = match destination.transport {
        Transport::OtlpHttps => {
            let loaded = TlsSettings::from(&options.tls).load_for_http(&endpoint.host.to_string());
            Some(loaded.map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    Ok(Box::new(OtlpSink::new(OtlpSettings {
        kind,
        value: *value,
        encoding: *encoding,
        is_compressed: *is_compressed,
        headers,
        tls,
        authority: endpoint.to_string(),
        path: destination.path.clone(),
    })))
}

fn kafka_sink(kind: Kind, destination: &Destination, endpoint: &Endpoint) -> Result<Box<dyn Sink>, String> {
    let options = &destination.options;
    let DeliveryOptions { is_encrypted, user, password, kafka, .. } = &options.delivery;
    let tls = match is_encrypted {
        true => {
            let loaded = TlsSettings::from(&options.tls).load(&endpoint.host.to_string());
            Some(loaded.map_err(|error| error.to_string())?)
        }
        false => None,
    };
    let credentials = match (&kafka.sasl, user, password) {
        (Some(mechanism), Some(user), Some(password)) => Some(Credentials::read(*mechanism, user, password)?),
        _ => None,
    };
    Ok(Box::new(KafkaSink::new(KafkaSettings {
        kind,
        value: options.delivery.value,
        compression: kafka.compression,
        bootstrap: [std::slice::from_ref(endpoint), &destination.bootstrap].concat(),
        topic: destination.path.trim_start_matches('/').to_owned(),
        tls,
        is_server_named: options.tls.server_name.is_some(),
        credentials,
    })))
}

/// The TLS settings of an endpoint, if it has any.
pub(crate) fn load_tls(destination: &Destination, endpoint: &Endpoint) -> Result<Option<Tls>, TlsError> {
    match destination.transport {
        Transport::Tls => TlsSettings::from(&destination.options.tls).load(&endpoint.host.to_string()).map(Some),
        _ => Ok(None),
    }
}

/// The set of these slots, each 0 to 63, as bits.
fn slot_set(slots: impl Iterator<Item = u32>) -> u64 {
    slots.fold(0, |set, slot| set | 1 << slot)
}
