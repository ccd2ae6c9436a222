//! The service behind all forwarders: from the bus to the engine. Their differences are in
//! [`Protocol`].

use std::{
    fs, io,
    marker::PhantomData,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, ensure};
use sekiwake_bus::{Bus, Controlling, GroupSettings, Grouping, Reporting, Subscribing};
use sekiwake_decode::mib::Mib;
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Finding, Hangups, MibFolder, Process, Role, Scope};
use sekiwake_settings::{Reader, Setting};
use tracing::info;

use crate::{
    Destination, Destinations, Endpoint, Engine, EngineOptions, Registry, Resolution, Transport,
    config::reload::{DestinationsFile, Inbox, Watcher},
    engine::sink,
    pump::Pump,
    send_test,
    stream::TlsSettings,
};

/// The variable that names the folder of MIB files.
const MIB_DIR: &str = "SEKIWAKE_MIB_DIR";

/// The differences between forwarders.
pub trait Protocol: 'static {
    /// The names of the service.
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

// The subcommands. A doc comment would replace the forwarder's own description.
#[derive(clap::Subcommand)]
enum Command {
    /// Send one test message through each destination, and print the result
    ///
    /// Needs neither bus nor proxy, and touches no spool. Filters and rates do not apply. The exit
    /// status is 0 if all messages were sent, 1 if not, and 2 if a setting is wrong.
    SendTest(send_test::Arguments),
}

/// The settings of a forwarder.
#[derive(Clone, Debug)]
pub struct ForwarderSettings {
    /// The bus.
    pub subscribing: Subscribing,
    /// The control plane.
    pub controlling: Controlling,
    /// Its group, and its name in it.
    pub grouping: Grouping,
    /// The destinations, possibly none.
    pub destinations: Destinations,
    /// The file that lists them.
    pub destinations_file: Option<DestinationsFile>,
    /// The directory of the spools.
    pub spool_dir: PathBuf,
    /// The folder of MIB files, for decoded traps.
    pub mib_dir: Option<PathBuf>,
}

impl<P: Protocol> Forwarder<P> {
    /// The process and its subcommands.
    pub fn process() -> Process {
        let process = Process::of::<Forwarder<P>>().commands(|command: Command, environment| match command {
            Command::SendTest(arguments) => {
                let read = |reader: &mut Reader| (read_destinations::<P>(reader).0, read_mib_dir::<P>(reader));
                let (destinations, mib_dir) = sekiwake_settings::read(environment, read)?;
                ensure!(
                    !destinations.is_empty(),
                    "no destinations, expected {} or {}",
                    P::DESTINATIONS,
                    P::DESTINATIONS_FILE
                );
                let out = &mut io::stdout().lock();
                let all_sent =
                    send_test(P::KIND, &destinations, &arguments.community, &load_mib(mib_dir.as_deref())?, out)?;
                Ok(if all_sent { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        });
        process.env_file_for("send-test")
    }

    /// Starts the workers on a bus that the process already has.
    ///
    /// # Errors
    /// When the bus cannot use an endpoint, or a thread cannot be spawned.
    pub fn start_on(bus: &Bus, settings: &ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        let Some(of_group) = group_settings::<P>(settings)? else {
            // No subscription either, so that the bus sends it nothing.
            info!(variable = P::DESTINATIONS, "no destinations configured, nothing to forward");
            return Ok(scope.idle()?);
        };
        let reporting = Reporting::new(scope, &settings.controlling.readiness("lease"), "group")
            .deduplicating(scope, settings.grouping.deduplicate);
        let mut source = bus.group_source(of_group, reporting)?;
        source.set_destinations_digest(settings.destinations.digest());
        let mib = load_mib(settings.mib_dir.as_deref())?;
        let registry = Registry::new();
        let options = EngineOptions {
            resolution: Resolution::default(),
            registry: registry.clone(),
            spool_dir: settings.spool_dir.clone(),
            group: settings.grouping.name.to_string(),
            mib,
        };
        let engine = Engine::start(P::KIND, &settings.destinations, options, scope)?;
        info!(kind = %P::KIND, destinations = %settings.destinations, "forwarding started");
        let inbox = Inbox::new(P::KIND, scope);
        if let Some(file) = &settings.destinations_file {
            let watcher = Watcher::new(P::KIND, file.clone(), inbox.clone());
            let watched = scope.clone();
            scope.spawn("destinations", move |worker| {
                watcher.run(&watched, worker);
                Ok(())
            })?;
        }
        let pump = Pump::new(source, engine, inbox, registry);
        scope.spawn("receive", move |worker| pump.run(worker))?;
        Ok(())
    }
}

impl<P: Protocol> Role for Forwarder<P> {
    const ABOUT: About = P::ABOUT;

    type Settings = ForwarderSettings;

    fn read(reader: &mut Reader) -> ForwarderSettings {
        let subscribing = Subscribing::read(reader);
        let controlling = Controlling::read(reader);
        let grouping = Grouping::read(reader);
        let (destinations, destinations_file) = read_destinations::<P>(reader);
        let spool_dir = reader.value("SEKIWAKE_SPOOL_DIR");
        let mib_dir = read_mib_dir::<P>(reader);
        check_subjects::<P>(reader, &subscribing, &destinations);
        ForwarderSettings { subscribing, controlling, grouping, destinations, destinations_file, spool_dir, mib_dir }
    }

    fn examine(settings: &ForwarderSettings) -> Vec<Finding> {
        let of_group = group_settings::<P>(settings).ok().flatten();
        of_group.map(|of_group| of_group.examine()).unwrap_or_default()
    }

    fn start(settings: ForwarderSettings, scope: &Scope) -> anyhow::Result<()> {
        Forwarder::<P>::start_on(&Bus::of(scope), &settings, scope)
    }
}

/// The folder of MIB files, which only traps need.
fn read_mib_dir<P: Protocol>(reader: &mut Reader) -> Option<PathBuf> {
    let path: PathBuf = if P::KIND == Kind::SnmpTrap { reader.optional(MIB_DIR)? } else { return None };
    if reader.reads_files()
        && let Err(error) = fs::read_dir(&path)
    {
        let takes = format!("a folder of MIB files that can be read ({error})");
        reader.mistake(MIB_DIR, &path.display().to_string(), &takes);
    }
    Some(path)
}

fn load_mib(folder: Option<&Path>) -> anyhow::Result<Arc<Mib>> {
    let Some(path) = folder else { return Ok(Arc::default()) };
    let folder = MibFolder::load(path);
    Ok(folder.with_context(|| format!("cannot read {MIB_DIR} ({})", path.display()))?.mib())
}

/// A subject of the bus, on its own servers: datagrams there would be taken for batches.
fn check_subjects<P: Protocol>(reader: &mut Reader, subscribing: &Subscribing, destinations: &Destinations) {
    let is_of_bus = |server: &Endpoint| {
        let server = server.to_string();
        subscribing
            .nats_servers()
            .any(|url| url.split_once("://").is_some_and(|(_, address)| address.eq_ignore_ascii_case(&server)))
    };
    for destination in destinations {
        let is_subject_of_bus = destination.path.starts_with("/sekiwake.");
        if destination.transport == Transport::Nats && is_subject_of_bus && destination.servers().any(is_of_bus) {
            let takes = "a subject that does not begin with \"sekiwake.\" on the servers of SEKIWAKE_BUS, because those \
                         are the bus's own";
            let variable = if reader.is_set(P::DESTINATIONS) { P::DESTINATIONS } else { P::DESTINATIONS_FILE };
            reader.mistake(variable, &destination.to_string(), takes);
        }
    }
}

/// The settings of the group; `None` without destinations.
fn group_settings<P: Protocol>(settings: &ForwarderSettings) -> anyhow::Result<Option<GroupSettings>> {
    if settings.destinations.is_empty() && settings.destinations_file.is_none() {
        return Ok(None);
    }
    Ok(Some(GroupSettings {
        subscribing: settings.subscribing.clone(),
        controlling: settings.controlling.clone(),
        group: settings.grouping.group(P::ABOUT.service)?,
        label: settings.grouping.label.clone(),
        kind: P::KIND,
        start_age: settings.grouping.start_age,
        single_active: false,
        handoff: P::KIND == Kind::Xflow,
        deduplicate: settings.grouping.deduplicate,
    }))
}

/// The destinations, from the variable or from the file.
fn read_destinations<P: Protocol>(reader: &mut Reader) -> (Destinations, Option<DestinationsFile>) {
    let listed = reader.optional::<Listed<P>>(P::DESTINATIONS).map(|listed| listed.0);
    check_files::<P>(reader, P::DESTINATIONS, listed.as_ref());
    let file: Option<PathBuf> = reader.optional(P::DESTINATIONS_FILE);
    let Some(path) = &file else { return (listed.unwrap_or_default(), None) };
    let shown = path.display().to_string();
    if listed.is_some() {
        let takes = format!("this or {}, not both", P::DESTINATIONS);
        reader.mistake(P::DESTINATIONS_FILE, &shown, &takes);
    }
    if !reader.reads_files() {
        return (Destinations::default(), None);
    }
    match DestinationsFile::read(P::KIND, path) {
        Ok((file, destinations)) => {
            check_files::<P>(reader, P::DESTINATIONS_FILE, Some(&destinations));
            (destinations, Some(file))
        }
        Err(wrong) => {
            reader.mistake(P::DESTINATIONS_FILE, &shown, &format!("a file with {} ({wrong})", Listed::<P>::takes()));
            (Destinations::default(), None)
        }
    }
}

/// Reads the certificates, keys and secrets of destinations: a problem with one is a mistake in the
/// variable. What is probably not meant is a warning.
fn check_files<P: Protocol>(reader: &mut Reader, variable: &'static str, destinations: Option<&Destinations>) {
    for warning in destinations.into_iter().flatten().flat_map(Destination::warnings) {
        reader.warning(variable, warning);
    }
    if !reader.reads_files() {
        return;
    }
    let with_tls = destinations.into_iter().flatten().filter(|one| one.transport == Transport::Tls);
    for destination in with_tls {
        let settings = TlsSettings::from(&destination.options.tls);
        let load = |endpoint: &Endpoint| settings.load(&endpoint.host.to_string()).err();
        if let Some(error) = destination.endpoints.iter().find_map(load) {
            let takes = format!("certificates and keys that can be used ({error})");
            reader.mistake(variable, &destination.to_string(), &takes);
        }
    }
    for destination in destinations.into_iter().flatten().filter(|one| one.transport.is_delivery()) {
        let load = |endpoint: &Endpoint| sink(P::KIND, destination, endpoint, Hangups::default()).err();
        if let Some(error) = destination.endpoints.iter().find_map(load) {
            let takes = format!("files that can be used ({error})");
            reader.mistake(variable, &destination.to_string(), &takes);
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
