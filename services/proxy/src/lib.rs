//! The one well-known name on the bus: publishers and subscribers connect here, and find each other.

use std::fmt::Display;

use sekiwake_bus::{Bus, Relay, RelaySettings, refuse_keys};
use sekiwake_runtime::{About, Role, Scope};
use sekiwake_settings::{BindEndpoint, List, Reader};
use tracing::warn;

/// The proxy service.
pub struct ProxyService;

/// Where it binds.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    publish: List<BindEndpoint>,
    subscribe: List<BindEndpoint>,
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
        refuse_keys(reader);
        ProxySettings {
            publish: reader.value("SEKIWAKE_PROXY_PUBLISH"),
            subscribe: reader.value("SEKIWAKE_PROXY_SUBSCRIBE"),
        }
    }

    fn describe(_settings: &ProxySettings) -> Vec<(String, String)> {
        // The relay's high-water marks count messages.
        let worst = Relay::worst_bytes_per_subscriber() >> 20;
        vec![("memory".to_owned(), format!("up to {worst} MiB for each subscriber that stalls"))]
    }

    fn start(settings: ProxySettings, scope: &Scope) -> anyhow::Result<()> {
        start(&Bus::default(), settings, &[], &[], scope)
    }
}

/// Binds and starts the relay on a bus that others in the process may share; `publish` and `subscribe` are bound besides.
///
/// # Errors
/// An address that is taken.
pub fn start(
    bus: &Bus,
    settings: ProxySettings,
    publish: &[&str],
    subscribe: &[&str],
    scope: &Scope,
) -> anyhow::Result<()> {
    for endpoint in settings.publish.0.iter().chain(&settings.subscribe.0).filter(|endpoint| !endpoint.is_local()) {
        warn!(%endpoint, "the bus is open beyond this host without encryption: whoever reaches it can read and write it");
    }
    let settings =
        RelaySettings { publish: all(&settings.publish.0, publish), subscribe: all(&settings.subscribe.0, subscribe) };
    let relay = Relay::bind(bus, &settings, scope.metrics())?;
    scope.readiness("bus").set(true);
    scope.spawn("relay", move |worker| Ok(relay.run(worker)?))?;
    Ok(())
}

fn all(own: &[impl Display], more: &[&str]) -> Vec<String> {
    own.iter().map(ToString::to_string).chain(more.iter().map(|&endpoint| endpoint.to_owned())).collect()
}
