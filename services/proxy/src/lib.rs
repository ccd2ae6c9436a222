//! The one well-known name on the bus: publishers and subscribers connect here, and find each other.

mod keygen;

use sekiwake_bus::{
    Bus, ControlPlane, ControlPlaneSettings, Gatekeeper, GatekeeperSettings, INPROC_CONTROL, INPROC_PUBLISH,
    INPROC_SUBSCRIBE, Relay, RelaySettings, ServerKeys,
};
use sekiwake_runtime::{About, Role, Scope};
use sekiwake_settings::{BindEndpoint, List, Reader};
use tracing::warn;

pub use keygen::keygen;

/// The proxy service.
pub struct ProxyService;

/// Where it binds.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    publish: List<BindEndpoint>,
    subscribe: List<BindEndpoint>,
    control: List<BindEndpoint>,
    keys: Option<GatekeeperSettings>,
    /// Whether to serve publishers and subscribers in the same process as well.
    pub in_process: bool,
}

impl Role for ProxyService {
    const ABOUT: About = About {
        service: "proxy",
        binary: "sekiwake-proxy",
        summary: "The one well-known name on the bus",
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
        }
    }

    fn describe(_settings: &ProxySettings) -> Vec<(String, String)> {
        // The relay's high-water marks count messages, which may be large.
        let (ordinary, worst) =
            (Relay::ordinary_bytes_per_subscriber() >> 20, Relay::worst_bytes_per_subscriber() >> 20);
        let memory = format!(
            "for each subscriber that stalls about {ordinary} MiB of ordinary batches, at most {worst} MiB of the largest datagrams"
        );
        vec![("memory".to_owned(), memory)]
    }

    fn start(settings: ProxySettings, scope: &Scope) -> anyhow::Result<()> {
        let ProxySettings { publish, subscribe, control, keys, in_process } = settings;
        let bus = Bus::shared();
        let keys = match keys {
            Some(keys) => Some(start_gatekeeper(&bus, keys, scope)?),
            None => {
                warn_if_open(publish.0.iter().chain(&subscribe.0).chain(&control.0));
                None
            }
        };
        let mut of_control = ControlPlaneSettings { endpoints: texts(&control), keys: keys.clone() };
        let mut settings = RelaySettings { publish: texts(&publish), subscribe: texts(&subscribe), keys };
        if in_process {
            of_control.endpoints.push(INPROC_CONTROL.to_owned());
            settings.publish.push(INPROC_PUBLISH.to_owned());
            settings.subscribe.push(INPROC_SUBSCRIBE.to_owned());
        }
        let mut relay = Relay::bind(&bus, &settings, scope.metrics())?;
        relay.tell_when_ready(scope.readiness("bus"));
        let told = (scope.readiness("control"), scope.status("control"));
        let plane = ControlPlane::bind(&bus, &of_control, scope.metrics(), told)?;
        scope.spawn("relay", move |worker| Ok(relay.run(worker)?))?;
        scope.spawn("control", move |worker| Ok(plane.run(worker)?))?;
        Ok(())
    }
}

/// Starts the one who says who may connect: before there is anything to connect to.
fn start_gatekeeper(bus: &Bus, settings: GatekeeperSettings, scope: &Scope) -> anyhow::Result<ServerKeys> {
    let gatekeeper = Gatekeeper::bind(bus, settings, scope.metrics())?;
    let keys = gatekeeper.keys();
    scope.spawn("gatekeeper", move |worker| Ok(gatekeeper.run(worker)?))?;
    Ok(keys)
}

fn warn_if_open<'a>(endpoints: impl Iterator<Item = &'a BindEndpoint>) {
    for endpoint in endpoints.filter(|endpoint| !endpoint.is_local()) {
        warn!(%endpoint, "the bus is open beyond this host without encryption: whoever reaches it can read and write it");
    }
}

fn texts(endpoints: &List<BindEndpoint>) -> Vec<String> {
    endpoints.0.iter().map(ToString::to_string).collect()
}
