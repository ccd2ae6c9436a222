//! Addresses that this installation itself sends to. Capture leaves alone what goes there, or it would forward its own
//! output again, and again: three milliseconds a round, until the link is full.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sekiwake_forward::{Destination, Destinations, Host};
use sekiwake_runtime::Stop;
use sekiwake_settings::Reader;
use tracing::warn;

/// How often names are resolved again. A forwarder moves to a new address only after longer, so capture knows it first.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// The variables that forwarders read. One environment file can serve all services, so capture can know them too.
const VARIABLES: [&str; 3] =
    ["SEKIWAKE_SYSLOG_DESTINATIONS", "SEKIWAKE_XFLOW_DESTINATIONS", "SEKIWAKE_TRAP_DESTINATIONS"];

/// The addresses and ports of all known destinations. Cheap to clone; all clones see changes.
#[derive(Clone, Debug, Default)]
pub struct OwnDestinations {
    configured: Vec<Destination>,
    addresses: Arc<Mutex<Arc<[SocketAddr]>>>,
}

impl OwnDestinations {
    /// Reads the destinations of the forwarders that share this environment, and resolves them once.
    pub fn read(reader: &mut Reader) -> OwnDestinations {
        let lists = VARIABLES.iter().filter_map(|name| reader.optional::<Destinations>(name));
        let configured: Vec<Destination> = lists.flat_map(|list| list.iter().cloned().collect::<Vec<_>>()).collect();
        let own = OwnDestinations { configured, addresses: Arc::default() };
        own.set(own.configured.iter().filter_map(literal).collect());
        own
    }

    /// Whether any of them is a name, whose addresses may change.
    pub fn has_names(&self) -> bool {
        self.configured.iter().any(|destination| literal(destination).is_none())
    }

    /// Keeps the addresses of names up to date until told to stop. What a name stood for until now counts one round longer: a
    /// forwarder may still send there. The system's resolver may take long and cannot be interrupted, so this wants a thread
    /// that nobody waits for.
    pub(crate) fn keep_resolved(&self, stop: &Stop) {
        let mut before = Vec::new();
        loop {
            let mut addresses = Vec::new();
            for destination in &self.configured {
                match (&destination.host, literal(destination)) {
                    (_, Some(address)) => addresses.push(address),
                    (Host::Name(name), None) => match (name.as_str(), destination.port).to_socket_addrs() {
                        Ok(resolved) => addresses.extend(resolved),
                        Err(error) => {
                            warn!(name, %error, "a destination does not resolve: what is sent there cannot be told from what is to be captured");
                            let known = self.snapshot();
                            addresses.extend(known.iter().filter(|address| address.port() == destination.port));
                        }
                    },
                    (Host::Address(_), None) => {}
                }
            }
            self.set(addresses.iter().chain(&before).copied().collect());
            before = addresses;
            if stop.wait(RESOLVE_EVERY) {
                return;
            }
        }
    }

    /// The list as it is now: to be asked for now and then, not for each packet.
    pub fn snapshot(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, mut addresses: Vec<SocketAddr>) {
        // An IPv4 address may be written, or resolved, as an IPv6 one; in packets it never is.
        addresses.iter_mut().for_each(|address| address.set_ip(address.ip().to_canonical()));
        addresses.sort_unstable();
        addresses.dedup();
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.into();
    }
}

fn literal(destination: &Destination) -> Option<SocketAddr> {
    match destination.host {
        Host::Address(address) => Some(SocketAddr::new(address, destination.port)),
        Host::Name(_) => None,
    }
}

/// Whether a datagram to this address and port is one of our own.
pub(crate) fn is_own(own: &[SocketAddr], address: IpAddr, port: u16) -> bool {
    own.iter().any(|known| known.port() == port && known.ip() == address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_own_however_it_is_written() {
        let own = OwnDestinations::default();
        own.set(vec!["[::ffff:198.51.100.7]:514".parse().unwrap(), "[2001:db8::7]:514".parse().unwrap()]);
        let known = own.snapshot();
        for (address, port, expected) in [
            ("198.51.100.7", 514, true),
            ("::ffff:198.51.100.7", 514, true),
            ("2001:db8::7", 514, true),
            ("198.51.100.7", 515, false),
            ("198.51.100.8", 514, false),
        ] {
            assert_eq!(is_own(&known, address.parse().unwrap(), port), expected, "{address} {port}");
        }
    }
}
