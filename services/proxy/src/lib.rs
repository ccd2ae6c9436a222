//! The proxy: the one well-known address on the bus, to which publishers and subscribers connect.
//!
//! Its logic is elsewhere: the relay, the control plane's sockets and the gatekeeper are in
//! `shared/bus`, the coordinator in `shared/group`. This crate reads the settings and starts them.

mod command;
mod keygen;

use sekiwake_bus::{
    BusError, Reporting,
    zeromq::{
        Context, ControlPlane, ControlPlaneSettings, Gatekeeper, GatekeeperSettings, INPROC_CONTROL, INPROC_PUBLISH,
        INPROC_SUBSCRIBE, Relay, RelaySettings, ServerKeys, status_channel,
    },
};
use sekiwake_runtime::{About, Role, Scope};
use sekiwake_settings::{BindEndpoint, List, Reader};
use tracing::warn;

pub use command::process;
pub use keygen::keygen;

/// The proxy service.
pub struct ProxyService;

/// The endpoints to bind, and the keys.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    publish: List<BindEndpoint>,
    subscribe: List<BindEndpoint>,
    control: List<BindEndpoint>,
    keys: Option<GatekeeperSettings>,
    /// Whether to serve publishers and subscribers in the same process, too.
    pub in_process: bool,
    /// Whether the bus is another one, so that there is nothing to do.
    pub is_unused: bool,
}

impl Role for ProxyService {
    const ABOUT: About = About {
        service: "proxy",
        binary: "sekiwake-proxy",
        summary: "Relays records from publishers to subscribers and coordinates groups",
        admin_port: 9601,
    };

    type Settings = ProxySettings;

    fn read(reader: &mut Reader) -> ProxySettings {
        ProxySettings {
            publish: reader.value("SEKIWAKE_PROXY_PUBLISH"),
            subscribe: reader.value("SEKIWAKE_PROXY_SUBSCRIBE"),
            control: reader.value("SEKIWAKE_PROXY_CONTROL"),
            keys: GatekeeperSettings::read(reader),
            in_process: false,
            is_unused: false,
        }
    }

    fn describe(_settings: &ProxySettings) -> Vec<(String, String)> {
        // The relay's high-water marks count messages, which may be large.
        let ordinary = Relay::ordinary_bytes_per_subscriber() >> 20;
        let worst = Relay::worst_bytes_per_subscriber() >> 20;
        let memory = format!(
            "per stalled subscriber about {ordinary} MiB of ordinary batches, at most {worst} MiB of the largest datagrams"
        );
        vec![("memory".to_owned(), memory)]
    }

    fn start(settings: ProxySettings, scope: &Scope) -> anyhow::Result<()> {
        let ProxySettings { publish, subscribe, control, keys, in_process, is_unused } = settings;
        if is_unused {
            return Ok(scope.idle()?);
        }
        let context = Context::shared();
        let keys = match keys {
            Some(keys) => Some(start_gatekeeper(&context, keys, scope)?),
            None => {
                warn_if_open(publish.0.iter().chain(&subscribe.0).chain(&control.0));
                None
            }
        };
        let mut control_settings = ControlPlaneSettings { endpoints: texts(&control), keys: keys.clone() };
        let mut settings = RelaySettings { publish: texts(&publish), subscribe: texts(&subscribe), keys };
        let variables = [
            ("SEKIWAKE_PROXY_PUBLISH", settings.publish.clone()),
            ("SEKIWAKE_PROXY_SUBSCRIBE", settings.subscribe.clone()),
            ("SEKIWAKE_PROXY_CONTROL", control_settings.endpoints.clone()),
        ];
        let named = move |error| with_variable(error, &variables);
        if in_process {
            control_settings.endpoints.push(INPROC_CONTROL.to_owned());
            settings.publish.push(INPROC_PUBLISH.to_owned());
            settings.subscribe.push(INPROC_SUBSCRIBE.to_owned());
        }
        let mut relay = Relay::bind(&context, &settings, scope.metrics()).map_err(&named)?;
        relay.set_readiness(scope.readiness("bus"));
        let reporting = Reporting::new(scope, "control", "control");
        let mut plane = ControlPlane::bind(&context, &control_settings, reporting).map_err(&named)?;
        let (inlet, outlet) = status_channel()?;
        plane.set_status(inlet);
        relay.set_status(outlet);
        // It binds the endpoints of publishers when the captures can be served.
        scope.spawn("relay", move |worker| relay.run(worker).map_err(named))?;
        scope.spawn("control", move |worker| Ok(plane.run(worker)?))?;
        Ok(())
    }
}

/// Starts the gatekeeper, before any socket that it guards is bound.
fn start_gatekeeper(context: &Context, settings: GatekeeperSettings, scope: &Scope) -> anyhow::Result<ServerKeys> {
    let gatekeeper = Gatekeeper::bind(context, settings, scope.metrics())?;
    let keys = gatekeeper.keys();
    scope.spawn("gatekeeper", move |worker| Ok(gatekeeper.run(worker)?))?;
    Ok(keys)
}

/// The error with the variable that names the endpoint which could not be bound.
fn with_variable(error: BusError, variables: &[(&str, Vec<String>)]) -> anyhow::Error {
    let BusError::Bind { endpoint, source } = error else { return error.into() };
    let naming = variables.iter().filter(|(_, endpoints)| endpoints.contains(&endpoint)).map(|(name, _)| *name);
    let names = naming.collect::<Vec<_>>().join(", ");
    anyhow::Error::from_boxed(source).context(format!("cannot bind {endpoint} ({names})"))
}

fn warn_if_open<'a>(endpoints: impl Iterator<Item = &'a BindEndpoint>) {
    for endpoint in endpoints.filter(|endpoint| !endpoint.is_local()) {
        warn!(%endpoint, "the bus is open to the network without encryption: anyone who can connect can read and write it");
    }
}

fn texts(endpoints: &List<BindEndpoint>) -> Vec<String> {
    endpoints.0.iter().map(ToString::to_string).collect()
}
