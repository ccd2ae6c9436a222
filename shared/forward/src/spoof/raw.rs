//! The socket for many devices: one raw socket a destination, the sender's address given with each datagram.
//!
//! It is a raw socket of protocol UDP without `IP_HDRINCL`: the UDP header is ours, the IP header the kernel's, with the device's
//! address from `IP_PKTINFO` or `IPV6_PKTINFO`, which `IP_TRANSPARENT` or `IPV6_TRANSPARENT` permits. So the kernel makes
//! identification, header checksum and, unlike with headers of ours, fragments; and unlike with a bound socket no port is taken, so
//! it does not matter who else holds it, how low it is, or how often it changes.
//!
//! Such a socket is also given what arrives from its peer: here nothing, for it is bound to an address that nobody has, and what comes all the same a filter drops.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
};

use arrayvec::ArrayVec;
use rustix::io::Errno;
use sekiwake_sys::{MAX_MESSAGES, Outgoing, send_batch};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{
    Spoofed,
    checksum::{UDP_HEADER_BYTES, udp_header},
    socket::prepare,
};

/// `BPF_RET | BPF_K` with 0 bytes to keep.
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Reserved (RFC 1112 §4): no datagram for it comes in. A loopback address the kernel does not let out.
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);

/// From the discard prefix (RFC 6666).
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

#[derive(Debug)]
pub(super) struct RawSender {
    socket: Socket,
    destination: SocketAddr,
    headers: [[u8; UDP_HEADER_BYTES]; MAX_MESSAGES],
}

impl RawSender {
    /// `local` is the address from which this host sends there.
    ///
    /// # Errors
    /// Without NET_RAW `EPERM`; no route.
    pub(super) fn connect(destination: SocketAddr, local: IpAddr) -> io::Result<RawSender> {
        let socket = open(Domain::for_address(destination))?;
        socket.attach_filter(&[DROP_ALL])?;
        prepare(&socket, destination, local)?;
        let nowhere = match destination {
            SocketAddr::V4(_) => SocketAddr::from((NOBODY_V4, 0)),
            SocketAddr::V6(_) => SocketAddr::from((NOBODY_V6, 0)),
        };
        socket.bind(&nowhere.into())?;
        // To a raw socket a port is a protocol: IPv6 insists on its own, or none.
        let mut peer = destination;
        peer.set_port(0);
        socket.connect(&peer.into())?;
        Ok(RawSender { socket, destination, headers: [[0; UDP_HEADER_BYTES]; MAX_MESSAGES] })
    }

    /// Sends the first of `datagrams`, [`MAX_MESSAGES`] at most, and says how many the kernel took.
    ///
    /// # Errors
    /// Those of the first datagram.
    pub(super) fn send(&mut self, datagrams: &[Spoofed<'_>]) -> io::Result<usize> {
        let to = (self.destination.ip(), self.destination.port());
        let mut count = 0;
        for (header, datagram) in self.headers.iter_mut().zip(datagrams) {
            let from = (datagram.source.ip(), datagram.source.port());
            let Some(made) = udp_header(from, to, datagram.payload) else { break };
            *header = made;
            count += 1;
        }
        if count == 0 && !datagrams.is_empty() {
            return Err(Errno::MSGSIZE.into());
        }
        let pieces: ArrayVec<[IoSlice<'_>; 2], MAX_MESSAGES> = self.headers[..count]
            .iter()
            .zip(datagrams)
            .map(|(header, datagram)| [IoSlice::new(header), IoSlice::new(datagram.payload)])
            .collect();
        let messages: ArrayVec<Outgoing<'_>, MAX_MESSAGES> = pieces
            .iter()
            .zip(datagrams)
            .map(|(slices, datagram)| Outgoing {
                slices,
                from: Some(datagram.source.ip()),
                tos: datagram.tos,
                ..Outgoing::default()
            })
            .collect();
        send_batch(self.socket.as_fd(), &messages)
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// A raw socket for UDP that may send from anybody's address.
///
/// # Errors
/// Without NET_RAW `EPERM`.
pub(super) fn open(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::UDP))?;
    super::socket::set_transparent(&socket, domain)?;
    Ok(socket)
}
