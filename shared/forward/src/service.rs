//! The service that all forwarders are: bus in, engine out. What one of them knows of its protocol is in its [`Protocol`].

use std::{marker::PhantomData, path::PathBuf};

use sekiwake_bus::{Bus, Controlling, GroupSubscriber, GroupSubscriberSettings, Grouping, Subscribing};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Role, Scope};
use sekiwake_settings::{Reader, Setting};
use tracing::info;

use crate::{
    Destinations, Engine, Registry, Resolution,
    engine::DEFAULT_SPOOL_DIR,
    pump::Pump,
    reload::{DestinationsFile, Inbox, Watcher},
};

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
    pub destinations_file: Option<DestinationsFile>,
    /// Where destinations keep what they miss.
    pub spool_dir: PathBuf,
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
            one_works: false,
            notes: P::KIND == Kind::Xflow,
        };
        let told = (scope.readiness("lease"), scope.status("group"));
        let subscriber = GroupSubscriber::connect(bus, of_group, scope.metrics(), told)?;
        let registry = Registry::new();
        let (spool_dir, destinations) = (&settings.spool_dir, &settings.destinations);
        let engine = Engine::start_in(spool_dir, P::KIND, destinations, (&Resolution::default(), &registry), scope)?;
        info!(kind = %P::KIND, destinations = %settings.destinations, "forwarding");
        let inbox = Inbox::new(P::KIND, scope);
        if let Some(file) = &settings.destinations_file {
            let watcher = Watcher::new(P::KIND, file.clone(), inbox.clone());
            let watched = scope.clone();
            scope.spawn("destinations", move |worker| {
                watcher.run(&watched, worker);
                Ok(())
            })?;
        }
        let pump = Pump::new(subscriber, engine, inbox, registry);
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
        // Only syslog has destinations that keep anything.
        let spool_dir = match P::KIND {
            Kind::Syslog => reader.value("SEKIWAKE_SPOOL_DIR"),
            Kind::Xflow | Kind::SnmpTrap => PathBuf::from(DEFAULT_SPOOL_DIR),
        };
        ForwarderSettings { subscribing, controlling, grouping, destinations, destinations_file, spool_dir }
    }

    fn start(settings: ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        Forwarder::<P>::start_on(&Bus::shared(), &settings, scope)
    }
}

/// The destinations, from the variable or from the file.
fn read_destinations<P: Protocol>(reader: &mut Reader) -> (Destinations, Option<DestinationsFile>) {
    let listed = reader.optional::<Listed<P>>(P::DESTINATIONS).map(|listed| listed.0);
    let file: Option<PathBuf> = reader.optional(P::DESTINATIONS_FILE);
    let Some(path) = &file else { return (listed.unwrap_or_default(), None) };
    let shown = path.display().to_string();
    if listed.is_some() {
        let takes = format!("either this or {}, not both", P::DESTINATIONS);
        reader.mistake(P::DESTINATIONS_FILE, &shown, &takes);
    }
    match DestinationsFile::read(P::KIND, path) {
        Ok((file, destinations)) => (destinations, Some(file)),
        Err(wrong) => {
            reader.mistake(P::DESTINATIONS_FILE, &shown, &format!("a file with {} ({wrong})", Listed::<P>::takes()));
            (Destinations::default(), None)
        }
    }
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
