//! The service that all forwarders are: bus in, engine out. What one of them knows of its protocol is in its [`Protocol`].

use std::{
    marker::PhantomData,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Bus, Controlling, Frame, GroupSubscriber, GroupSubscriberSettings, Grouping, RegisteredDestination, Subscribing,
    Transport,
};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Role, Scope, Worker};
use sekiwake_settings::{Reader, Setting};
use tracing::{info, warn};

use crate::{
    Destinations, Engine, Parcel, Registry, Resolution,
    reload::{self, Inbox, Watcher},
};

/// How long nothing must have come before a forwarder that has its group to itself, and is told to stop, believes that nothing
/// more comes.
const QUIET: Duration = Duration::from_millis(200);

/// The longest sleep: completions have to get to the group soon when a shard changes hands.
const PATIENCE: Duration = Duration::from_millis(20);

/// How soon it is looked again whether destinations have caught up.
const CATCH_UP: Duration = Duration::from_millis(2);

/// What tells one forwarder from another.
pub trait Protocol: 'static {
    /// What the service is called.
    const ABOUT: About;
    /// The kind that it forwards.
    const KIND: Kind;
    /// The variable that lists its destinations.
    const DESTINATIONS: &'static str;
    /// The variable that names a file with them.
    const DESTINATIONS_FILE: &'static str;
}

/// The service that forwards the kind of this protocol.
pub struct Forwarder<P>(PhantomData<P>);

/// Where a forwarder takes its records from and where it sends them.
#[derive(Clone, Debug)]
pub struct ForwarderSettings {
    /// The bus.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// Which group it is a member of, and as whom.
    pub grouping: Grouping,
    /// The destinations, possibly none.
    pub destinations: Destinations,
    /// The file that they were read from, and are read from again.
    pub destinations_file: Option<PathBuf>,
}

impl<P: Protocol> Forwarder<P> {
    /// Starts the workers on a bus that the process already has.
    ///
    /// # Errors
    /// When the bus refuses an endpoint or the system gives no threads.
    pub fn start_on(bus: &Bus, settings: &ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        if settings.destinations.is_empty() && settings.destinations_file.is_none() {
            // It does not even subscribe: the bus has nothing to carry to it.
            info!(variable = P::DESTINATIONS, "no destinations are set, nothing to forward");
            return Ok(scope.idle()?);
        }
        let group = settings.grouping.group(P::ABOUT.service)?;
        let of_group = GroupSubscriberSettings {
            subscribing: settings.subscribing.clone(),
            controlling: settings.controlling.clone(),
            group,
            label: settings.grouping.label.clone(),
            kind: P::KIND,
            start_age: settings.grouping.start_age,
            notes: false,
        };
        let told = (scope.readiness("lease"), scope.status("group"));
        let subscriber = GroupSubscriber::connect(bus, of_group, scope.metrics(), told)?;
        let registry = Registry::new();
        let engine = Engine::start_with(P::KIND, &settings.destinations, &Resolution::default(), &registry, scope)?;
        info!(kind = %P::KIND, destinations = %settings.destinations, "forwarding");
        let inbox = Inbox::new(P::KIND, scope);
        if let Some(path) = &settings.destinations_file {
            let watcher = Watcher::new(P::KIND, path.clone(), inbox.clone());
            let watched = scope.clone();
            scope.spawn("destinations", move |worker| {
                watcher.run(&watched, worker);
                Ok(())
            })?;
        }
        let pump = Pump { subscriber, engine, inbox, registry, registered: 0, stop: None };
        scope.spawn("receive", move |worker| pump.run(worker))?;
        Ok(())
    }
}

impl<P: Protocol> Role for Forwarder<P> {
    const ABOUT: About = P::ABOUT;

    type Settings = ForwarderSettings;

    fn read(reader: &mut Reader) -> ForwarderSettings {
        let (subscribing, controlling) = (Subscribing::read(reader), Controlling::read(reader));
        let grouping = Grouping::read(reader);
        let (destinations, destinations_file) = read_destinations::<P>(reader);
        ForwarderSettings { subscribing, controlling, grouping, destinations, destinations_file }
    }

    fn start(settings: ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        Forwarder::<P>::start_on(&Bus::shared(), &settings, scope)
    }
}

/// The destinations, from the variable or from the file.
fn read_destinations<P: Protocol>(reader: &mut Reader) -> (Destinations, Option<PathBuf>) {
    let listed = reader.optional::<Listed<P>>(P::DESTINATIONS).map(|listed| listed.0);
    let file: Option<PathBuf> = reader.optional(P::DESTINATIONS_FILE);
    let Some(path) = &file else { return (listed.unwrap_or_default(), None) };
    let shown = path.display().to_string();
    if listed.is_some() {
        let takes = format!("either this or {}, not both", P::DESTINATIONS);
        reader.mistake(P::DESTINATIONS_FILE, &shown, &takes);
    }
    let destinations = reload::read_file(P::KIND, path).unwrap_or_else(|wrong| {
        reader.mistake(P::DESTINATIONS_FILE, &shown, &format!("a file with {} ({wrong})", Listed::<P>::takes()));
        Destinations::default()
    });
    (destinations, file)
}

/// Destinations for this protocol, as a variable lists them.
struct Listed<P>(Destinations, PhantomData<P>);

impl<P: Protocol> Setting for Listed<P> {
    fn takes() -> &'static str {
        "URIs such as udp://198.51.100.7:514, separated by white space"
    }

    fn parse(text: &str) -> Result<Listed<P>, String> {
        let destinations = Destinations::parse(P::KIND, text).map_err(|error| error.to_string())?;
        Ok(Listed(destinations, PhantomData))
    }
}

/// Carries batches from the bus to the engine, and addresses from the destinations to the control plane.
struct Pump {
    subscriber: GroupSubscriber,
    engine: Engine<Frame>,
    /// Destinations that have changed.
    inbox: Inbox,
    registry: Registry,
    /// The number of the list of addresses that was registered last.
    registered: u64,
    stop: Option<Stopping>,
}

/// A pump that has been told to stop.
struct Stopping {
    /// When something came last.
    last: Instant,
    /// Silence is waited for no longer than until then: the rest of the time is for giving the shards back.
    quiet_until: Instant,
    /// What is queued leaves until then.
    leave_until: Instant,
    leaving: bool,
}

impl Pump {
    fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.inbox.apply(|destinations| self.engine.apply(destinations));
            self.register();
            // What is not received now waits at the proxy, or is repeated by its publisher.
            let delivery = if self.engine.is_behind() {
                self.subscriber.tend(CATCH_UP)?;
                None
            } else {
                self.subscriber.receive(PATIENCE)?
            };
            let received = delivery.is_some();
            if let Some(delivery) = delivery {
                self.engine.forward(&Arc::new(Parcel::new(delivery.batch, delivery.ticket)));
            }
            if let Some(deadline) = worker.deadline()
                && self.stop(received, deadline)
            {
                return Ok(());
            }
        }
    }

    /// Tells the control plane of addresses that have changed, and destinations when they may be used.
    fn register(&mut self) {
        if self.registry.number() != self.registered {
            let (number, addresses) = self.registry.list();
            let destination = |(address, transport): (SocketAddr, Transport)| {
                RegisteredDestination::new(address.ip(), address.port(), transport)
            };
            self.subscriber.set_destinations(addresses.into_iter().map(destination).collect());
            self.registered = number;
        }
        if self.subscriber.may_use_destinations() {
            self.registry.approve(self.registered);
        }
    }

    /// Gives the shards back, and says when that is done. A member that has the group to itself first takes what still comes:
    /// nobody else would, and captures that were told to stop at the same time wait for it.
    fn stop(&mut self, received: bool, deadline: Instant) -> bool {
        let now = Instant::now();
        let stopping = self.stop.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(now);
            Stopping { last: now, quiet_until: now + left / 2, leave_until: now + left * 9 / 10, leaving: false }
        });
        // Silence of our own making is none: work that is not done, holes that are being repaired.
        if received || !stopping.leaving && (self.engine.is_behind() || !self.subscriber.is_caught_up()) {
            stopping.last = now;
        }
        let quiet = now.duration_since(stopping.last) >= QUIET || now >= stopping.quiet_until;
        if !stopping.leaving && (quiet || !self.subscriber.owns_all()) {
            stopping.leaving = true;
            self.subscriber.leave();
        }
        if !stopping.leaving {
            return false;
        }
        if self.subscriber.has_left() {
            return true;
        }
        // Without a proxy there is nobody to give anything back to; what was sent and not committed is sent again by others.
        let alone = quiet && !self.subscriber.has_lease();
        if alone || now >= stopping.leave_until {
            warn!("ending without having given all shards back: the group takes them when the lease runs out");
            return true;
        }
        false
    }
}
