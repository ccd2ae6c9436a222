//! The service that all forwarders are: bus in, engine out. What one of them knows of its protocol is in its [`Protocol`].

use std::{
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{Bus, Frame, Subscriber, Subscribing};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Role, Scope, Worker};
use sekiwake_settings::Reader;
use tracing::info;

use crate::{Destinations, Engine};

/// How long the bus must have been silent before a forwarder that stops believes that nothing more comes.
const QUIET: Duration = Duration::from_millis(200);

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
        let prefix = format!("{}/", P::KIND);
        let connected = scope.readiness("bus");
        let subscriber = Subscriber::connect(bus, &settings.subscribing, &[prefix], scope.metrics(), connected)?;
        let engine = Engine::start(P::KIND, &settings.destinations, scope)?;
        info!(kind = %P::KIND, destinations = %settings.destinations, "forwarding");
        scope.spawn("receive", move |worker| pump(subscriber, engine, worker))?;
        Ok(())
    }
}

impl<P: Protocol> Role for Forwarder<P> {
    const ABOUT: About = P::ABOUT;

    type Settings = ForwarderSettings;

    fn read(reader: &mut Reader) -> ForwarderSettings {
        let subscribing = Subscribing::read(reader);
        let destinations = reader.optional(P::DESTINATIONS).unwrap_or_default();
        ForwarderSettings { subscribing, destinations }
    }

    fn start(settings: ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        Forwarder::<P>::start_on(&Bus::shared(), &settings, scope)
    }
}

/// Carries batches from the bus to the engine. When told to stop it goes on while more arrives, for half of the time it has at
/// most: the other half is for the queues.
fn pump(mut subscriber: Subscriber, mut engine: Engine<Frame>, worker: &Worker) -> anyhow::Result<()> {
    let mut stopping = None;
    loop {
        worker.beat();
        let delivery = subscriber.receive(QUIET)?;
        let received = delivery.is_some();
        if let Some(delivery) = delivery {
            engine.forward(&Arc::new(delivery.batch));
        }
        let Some(deadline) = worker.deadline() else { continue };
        let now = Instant::now();
        // Silence counts from the stop on: what was captured just before may have its way here still to go.
        let (until, last) = stopping.get_or_insert((now + deadline.saturating_duration_since(now) / 2, now));
        if received {
            *last = now;
        }
        if now.duration_since(*last) >= QUIET || now >= *until {
            return Ok(());
        }
    }
}
