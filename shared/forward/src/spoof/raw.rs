//! The socket for many devices: one raw socket per destination, with the source address per
//! datagram.
//!
//! It is a raw socket of protocol UDP without `IP_HDRINCL`: we write the UDP header, the kernel
//! writes the IP header with the device's address from `IP_PKTINFO` or `IPV6_PKTINFO`, which
//! `IP_TRANSPARENT` or `IPV6_TRANSPARENT` permits. So the kernel sets identification and header
//! checksum, and fragments, which it does not with our own headers. Unlike a bound socket it takes
//! no port, so the port may be in use, below 1024, or change often.
//!
//! Such a socket also receives datagrams from its peer. It is bound to an unused address, so there
//! are none, and a filter drops any others.

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
    past_echoes,
    socket::prepare,
};

/// `BPF_RET | BPF_K` with 0 bytes to keep.
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Reserved (RFC 1112 §4): no datagram to it arrives. A loopback address would not do, because the
/// kernel does not send from one.
const UNUSED_V4: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);

/// From the discard prefix (RFC 6666).
const UNUSED_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

#[derive(Debug)]
pub(super) struct RawSender {
    socket: Socket,
    destination: SocketAddr,
    headers: [[u8; UDP_HEADER_BYTES]; MAX_MESSAGES],
}

impl RawSender {
    /// `local` is the address that this host itself sends from.
    ///
    /// # Errors
    /// Without NET_RAW `EPERM`; no route.
    pub(super) fn connect(destination: SocketAddr, local: IpAddr) -> io::Result<RawSender> {
        let socket = open(Domain::for_address(destination))?;
        socket.attach_filter(&[DROP_ALL])?;
        prepare(&socket, destination, local)?;
        let nowhere = match destination {
            SocketAddr::V4(_) => SocketAddr::from((UNUSED_V4, 0)),
            SocketAddr::V6(_) => SocketAddr::from((UNUSED_V6, 0)),
        };
        socket.bind(&nowhere.into())?;
        // For a raw socket the port is a protocol number: IPv6 accepts its own or 0.
        let mut peer = destination;
        peer.set_port(0);
        socket.connect(&peer.into())?;
        Ok(RawSender { socket, destination, headers: [[0; UDP_HEADER_BYTES]; MAX_MESSAGES] })
    }

    /// Sends the first of `datagrams`, at most [`MAX_MESSAGES`], and returns how many the kernel
    /// accepted.
    ///
    /// # Errors
    /// Those of the first datagram.
    pub(super) fn send(&mut self, datagrams: &[Spoofed<'_>]) -> io::Result<usize> {
        let mut count = 0;
        for (header, datagram) in self.headers.iter_mut().zip(datagrams) {
            let Some(written) = udp_header(datagram.source, self.destination, datagram.payload) else { break };
            *header = written;
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
        past_echoes(&self.socket, || send_batch(self.socket.as_fd(), &messages))
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
}

/// A raw socket for UDP that may send from any address.
///
/// # Errors
/// Without NET_RAW `EPERM`.
pub(super) fn open(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::UDP))?;
    super::socket::set_transparent(&socket, domain)?;
    Ok(socket)
}
