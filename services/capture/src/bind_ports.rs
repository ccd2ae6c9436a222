//! Sockets that keep ICMP "port unreachable" from devices that send to the capture's own host.
//!
//! Where no process has a port, the kernel answers each datagram with ICMP. A socket on the port
//! prevents that. Its kernel filter accepts nothing: no datagram is queued, nothing is ever read,
//! and the kernel counts each one as a UDP input error (`InErrors`). Capture sees datagrams before
//! the socket does.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::io::Errno;
use sekiwake_runtime::Metrics;
use serde_json::{Map, Value, json};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tracing::{info, warn};

use crate::metrics::names;

/// The most ports that can be bound. Each takes two descriptors, and a process may have 1,024 in
/// most systems.
pub(crate) const MAX_PORTS: usize = 256;

/// What became of a port, in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortState {
    /// A socket of this process has it.
    Bound,
    /// A socket of another process has it, which answers for it.
    InUse,
    /// It is privileged, and this process lacks the capability.
    NotPermitted,
    /// Another error.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// The state of one port in one address family.
struct BoundPort {
    port: u16,
    family: Family,
    state: PortState,
    /// Open as long as the port is to stay bound.
    _socket: Option<Socket>,
}

/// The bound ports. They stay bound until this is dropped.
pub(crate) struct BoundPorts {
    ports: Vec<BoundPort>,
}

impl PortState {
    const ALL: [PortState; 4] = [PortState::Bound, PortState::InUse, PortState::NotPermitted, PortState::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            PortState::Bound => "bound",
            PortState::InUse => "in_use",
            PortState::NotPermitted => "not_permitted",
            PortState::Failed => "failed",
        }
    }

    fn of(error: &io::Error) -> PortState {
        match Errno::from_io_error(error) {
            Some(Errno::ADDRINUSE) => PortState::InUse,
            Some(Errno::ACCESS | Errno::PERM) => PortState::NotPermitted,
            _ => PortState::Failed,
        }
    }
}

impl Family {
    const ALL: [Family; 2] = [Family::V4, Family::V6];

    const fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    fn domain(self) -> Domain {
        match self {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        }
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl BoundPorts {
    /// Binds `ports`, at most [`MAX_PORTS`], in both address families on all addresses, and logs
    /// those that cannot be bound. A port is tried once: were it tried again, a daemon that is
    /// restarted might find its own port taken.
    pub(crate) fn bind(ports: impl Iterator<Item = u16>) -> BoundPorts {
        let mut distinct: Vec<u16> = ports.collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut bound = BoundPorts { ports: Vec::new() };
        for family in Family::ALL {
            for &port in &distinct {
                let (state, socket) = match bind(family, port) {
                    Ok(socket) => (PortState::Bound, Some(socket)),
                    // The kernel has no such family, so no device can send to the port.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => continue,
                    Err(error) => {
                        let state = PortState::of(&error);
                        if state == PortState::Failed {
                            warn!(port, family = family.as_str(), %error, "cannot bind port");
                        }
                        (state, None)
                    }
                };
                bound.ports.push(BoundPort { port, family, state, _socket: socket });
            }
        }
        bound.log();
        bound
    }

    /// Sets the number of ports per family and state.
    pub(crate) fn export(bound: Option<&BoundPorts>, metrics: &Metrics) {
        for family in Family::ALL {
            for state in PortState::ALL {
                let gauge = metrics.gauge(
                    names::BIND_PORTS,
                    "Configured ports, by whether capture has bound them.",
                    &[("family", family.as_str()), ("state", state.as_str())],
                );
                let count = bound.map_or(0, |bound| bound.of(family, state).count());
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// The ports by family and state, for `/status`.
    pub(crate) fn to_json(&self) -> Value {
        let families = Family::ALL.map(|family| {
            let states = PortState::ALL
                .map(|state| (state.as_str().to_owned(), self.of(family, state).collect::<Vec<u16>>().into()));
            (family.as_str().to_owned(), Value::Object(Map::from_iter(states)))
        });
        json!(Map::from_iter(families))
    }

    fn of(&self, family: Family, state: PortState) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().filter(move |bound| bound.family == family && bound.state == state).map(|bound| bound.port)
    }

    fn log(&self) {
        for family in Family::ALL {
            let list = |state| self.of(family, state).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
            let family_name = family.as_str();
            let bound = list(PortState::Bound);
            if !bound.is_empty() {
                info!(ports = bound, family = family_name, "ports bound, no ICMP port unreachable is sent for them");
            }
            let in_use = list(PortState::InUse);
            if !in_use.is_empty() {
                info!(ports = in_use, family = family_name, "ports not bound, in use by another process");
            }
            let not_permitted = list(PortState::NotPermitted);
            if !not_permitted.is_empty() {
                warn!(
                    ports = not_permitted,
                    family = family_name,
                    "ports not bound (SEKIWAKE_CAPTURE_BIND_PORTS): binding ports below \
                     net.ipv4.ip_unprivileged_port_start (1024) needs the capability NET_BIND_SERVICE"
                );
            }
        }
    }
}

/// A socket on `port` that receives nothing.
fn bind(family: Family, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(family.domain(), Type::DGRAM, Some(Protocol::UDP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    // Before it is bound, so that no datagram is queued. BPF_RET | BPF_K with 0: accept 0 bytes.
    socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
    // Without SO_REUSEADDR, which would share the port with a daemon that has set it too.
    socket.bind(&SocketAddr::new(family.unspecified(), port).into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn errors_of_bind_have_their_states() {
        let state = |errno: Errno| PortState::of(&io::Error::from(errno));
        assert_eq!(state(Errno::ADDRINUSE), PortState::InUse);
        assert_eq!(state(Errno::ACCESS), PortState::NotPermitted);
        assert_eq!(state(Errno::MFILE), PortState::Failed);
    }

    #[test]
    fn port_of_another_socket_is_left_alone() {
        let daemon = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let port = daemon.local_addr().expect("its address").port();
        let bound = BoundPorts::bind([port, port].into_iter());
        assert_eq!(bound.of(Family::V4, PortState::InUse).collect::<Vec<_>>(), [port]);
        assert_eq!(bound.to_json()["ipv4"]["in_use"], json!([port]));
        assert_eq!(bound.of(Family::V4, PortState::Bound).count(), 0);
    }
}
