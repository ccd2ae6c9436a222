//! The UDP socket of one destination.
//!
//! It is connected, so that the kernel looks up the route once and returns ICMP errors. They wait
//! in the socket's error queue and make the next send fail, although they concern an earlier
//! datagram: so the queue is emptied and the datagram is sent again. The same option makes the
//! kernel report datagrams that a queueing discipline of this host has dropped (`ENOBUFS`).
//!
//! Broadcast and multicast addresses work as well. They cause no ICMP errors, so such a destination
//! always appears to be up.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery},
};
use sekiwake_sys::{ErrorOrigin, MAX_SEGMENTED_BYTES, Outgoing, receive_error, send_batch, set_receive_errors};
use socket2::{Domain, SockRef, Socket, Type};

use crate::metrics::ErrorKind;

/// The send buffer that every sending socket requests, in bytes: a burst of this size waits in the
/// kernel and not in the engine's queue. The kernel cuts it down to `net.core.wmem_max`.
pub(crate) const SEND_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Maximum number of errors that are taken from the queue at once, so that a storm of them cannot
/// block sending.
const MAX_ERRORS_AT_ONCE: usize = 1024;

/// TTL or hop limit of multicast datagrams. The first router would silently drop them with the
/// kernel's default of 1; their reach is up to the group's scope and the routers (RFC 2365, RFC
/// 4291 §2.7).
const MULTICAST_HOPS: u32 = 64;

const UDP_HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;

/// A socket that is connected to a destination.
#[derive(Debug)]
pub(crate) struct UdpSender {
    socket: UdpSocket,
    destination: SocketAddr,
    max_segment_bytes: usize,
}

impl UdpSender {
    /// # Errors
    /// No route, no socket, or a kernel without the required options.
    pub(crate) fn connect(destination: SocketAddr) -> io::Result<UdpSender> {
        let socket = Socket::new(Domain::for_address(destination), Type::DGRAM.cloexec(), None)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        let any = match destination {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        socket.bind(&any.into())?;
        // Never "don't fragment": a datagram larger than the path's MTU is fragmented here or on
        // the way, as the device's was. Otherwise it would be lost until the MTU is known, or
        // always where ICMP is filtered.
        match destination {
            SocketAddr::V4(_) => {
                sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
                socket.set_multicast_ttl_v4(MULTICAST_HOPS)?;
                // Connecting to a broadcast address fails without it, and which addresses are
                // broadcast depends on the routes.
                socket.set_broadcast(true)?;
            }
            SocketAddr::V6(_) => {
                sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DONT)?;
                socket.set_multicast_hops_v6(MULTICAST_HOPS)?;
            }
        }
        set_receive_errors(socket.as_fd(), destination.is_ipv6(), true)?;
        socket.connect(&destination.into())?;
        let mut sender = UdpSender { socket: socket.into(), destination, max_segment_bytes: 0 };
        sender.refresh_mtu();
        Ok(sender)
    }

    /// The address and port that it sends from.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The largest datagram that fits the path's MTU. The kernel rejects larger segments
    /// (`EMSGSIZE`, older kernels `EINVAL`).
    pub(crate) fn max_segment_bytes(&self) -> usize {
        self.max_segment_bytes
    }

    /// Reads the path's MTU from the kernel.
    pub(crate) fn refresh_mtu(&mut self) {
        let (mtu, header_bytes) = match self.destination {
            SocketAddr::V4(_) => (sockopt::ip_mtu(&self.socket), IPV4_HEADER_BYTES),
            SocketAddr::V6(_) => (sockopt::ipv6_mtu(&self.socket), IPV6_HEADER_BYTES),
        };
        // Without a route there is no MTU, and every datagram is a message of its own.
        self.max_segment_bytes = mtu
            .map_or(0, |mtu| (mtu as usize).saturating_sub(header_bytes + UDP_HEADER_BYTES).min(MAX_SEGMENTED_BYTES));
    }

    /// As [`send_batch`].
    pub(crate) fn send(&self, messages: &[Outgoing<'_>]) -> io::Result<usize> {
        send_batch(self.socket.as_fd(), messages)
    }

    /// Takes the ICMP errors from the error queue, calls `handle` with each, and returns how many
    /// there were. Without this the next sends fail, and `poll` returns at once.
    pub(crate) fn take_errors(&self, mut handle: impl FnMut(io::Error)) -> usize {
        let mut icmp_errors = 0;
        for _ in 0..MAX_ERRORS_AT_ONCE {
            let Ok(Some(queued)) = receive_error(self.socket.as_fd()) else { break };
            if queued.origin == ErrorOrigin::Icmp {
                icmp_errors += 1;
                handle(queued.error);
            }
        }
        // Errors beyond a full queue are left here.
        if let Ok(Some(error)) = SockRef::from(&self.socket).take_error() {
            icmp_errors += 1;
            handle(error);
        }
        icmp_errors
    }

    /// Waits until the socket is writable.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // An error of poll does not matter: the next send reports it.
        let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&timeout));
    }
}

/// A socket that is connected to `destination` and sends nothing.
pub(crate) fn probe(destination: SocketAddr) -> io::Result<UdpSocket> {
    let any = match destination {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_broadcast(true)?;
    socket.connect(destination)?;
    Ok(socket)
}

/// How to react to a send error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Interrupted by a signal: retry at once.
    Interrupted,
    /// The socket's buffer is full: retry when it is writable.
    SocketFull,
    /// A device queue or the kernel's memory is full: retry soon.
    NoBuffers,
    /// The destination is unreachable: retry later.
    Unreachable(ErrorKind),
    /// This datagram can never be sent; a segmented message perhaps in another form.
    Unsendable(ErrorKind),
}

impl Fault {
    pub(crate) fn of(error: &io::Error) -> Fault {
        let Some(errno) = Errno::from_io_error(error) else { return Fault::Unsendable(ErrorKind::Other) };
        match errno {
            Errno::INTR => Fault::Interrupted,
            Errno::AGAIN => Fault::SocketFull,
            Errno::NOBUFS | Errno::NOMEM => Fault::NoBuffers,
            Errno::CONNREFUSED => Fault::Unreachable(ErrorKind::ConnectionRefused),
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Fault::Unreachable(ErrorKind::HostUnreachable),
            Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL => {
                Fault::Unreachable(ErrorKind::NetworkUnreachable)
            }
            Errno::MSGSIZE => Fault::Unsendable(ErrorKind::MessageTooLong),
            Errno::PERM | Errno::ACCESS => Fault::Unsendable(ErrorKind::PermissionDenied),
            _ => Fault::Unsendable(ErrorKind::Other),
        }
    }

    /// The value of the label `error`, if the error counts as one.
    pub(crate) fn kind(self) -> Option<ErrorKind> {
        match self {
            Fault::Interrupted | Fault::SocketFull => None,
            Fault::NoBuffers => Some(ErrorKind::NoBufferSpace),
            Fault::Unreachable(kind) | Fault::Unsendable(kind) => Some(kind),
        }
    }
}
