//! Options that all spoofing sockets share.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use sekiwake_sys::{ErrorOrigin, receive_error, set_receive_errors};
use socket2::{Domain, Socket};

use crate::udp::socket::SEND_BUFFER_BYTES;

/// TTL or hop limit: the default of Linux, and that of the plain socket's multicasts.
const HOPS: u32 = 64;

/// Maximum number of errors that are taken from a queue at once.
const MAX_ERRORS_AT_ONCE: usize = 64;

pub(super) fn set_transparent(socket: &Socket, domain: Domain) -> io::Result<()> {
    if domain == Domain::IPV6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// Sets the options for sending to `destination` on a socket that is not connected yet. Multicasts
/// leave by the interface with the address `local`, because the kernel does not choose one for a
/// foreign source address.
pub(super) fn prepare(socket: &Socket, destination: SocketAddr, local: IpAddr) -> io::Result<()> {
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    // Never "don't fragment", as for the plain socket.
    match destination {
        SocketAddr::V4(destination) => {
            sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)?;
            socket.set_ttl_v4(HOPS)?;
            socket.set_multicast_ttl_v4(HOPS)?;
            socket.set_broadcast(true)?;
            if let (true, IpAddr::V4(local)) = (destination.ip().is_multicast(), local) {
                socket.set_multicast_if_v4(&local)?;
            }
        }
        SocketAddr::V6(_) => {
            sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT)?;
            socket.set_unicast_hops_v6(HOPS)?;
            socket.set_multicast_hops_v6(HOPS)?;
        }
    }
    // Makes the kernel report drops of this host's queueing disciplines.
    set_receive_errors(socket.as_fd(), destination.is_ipv6(), true)
}

/// Empties the error queue, and returns whether it had ICMP errors: they concern earlier datagrams,
/// and arrive here if the device is this host.
pub(super) fn drain_errors(socket: &Socket) -> bool {
    let mut found = false;
    for _ in 0..MAX_ERRORS_AT_ONCE {
        let Ok(Some(queued)) = receive_error(socket.as_fd()) else { break };
        found |= queued.origin == ErrorOrigin::Icmp;
    }
    found | matches!(socket.take_error(), Ok(Some(_)))
}
