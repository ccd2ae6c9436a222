//! The service that all forwarders are: bus in, engine out. What one of them knows of its protocol is in its [`Protocol`].

use std::{
    marker::PhantomData,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Bus, Controlling, Frame, GroupSubscriber, GroupSubscriberSettings, Grouping, RegisteredDestination, Subscribing,
    Transport,
};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Role, Scope, Worker};
use sekiwake_settings::Reader;
use tracing::{info, warn};

use crate::{Destinations, Engine, Parcel, Registry, Resolution};

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
}

impl<P: Protocol> Forwarder<P> {
    /// Starts the workers on a bus that the process already has.
    ///
    /// # Errors
    /// When the bus refuses an endpoint or the system gives no threads.
    pub fn start_on(bus: &Bus, settings: &ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        if settings.destinations.is_empty() {
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
        let pump = Pump { subscriber, engine, registry, registered: 0, stop: None };
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
        let destinations = reader.optional(P::DESTINATIONS).unwrap_or_default();
        ForwarderSettings { subscribing, controlling, grouping, destinations }
    }

    fn start(settings: ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        Forwarder::<P>::start_on(&Bus::shared(), &settings, scope)
    }
}

/// Carries batches from the bus to the engine, and addresses from the destinations to the control plane.
struct Pump {
    subscriber: GroupSubscriber,
    engine: Engine<Frame>,
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
            let destination =
                |address: &SocketAddr| RegisteredDestination::new(address.ip(), address.port(), Transport::Udp);
            self.subscriber.set_destinations(addresses.iter().map(destination).collect());
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
