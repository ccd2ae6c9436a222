//! Sends many datagrams per system call: several messages per call, GSO segments per message, and a
//! source address per message.
//!
//! Not nix, which allocates per call, and not quinn-udp, which sends one destination per call.

use std::{
    ffi::c_int,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::AddressStorage;

/// The most messages per call.
pub const MAX_MESSAGES: usize = 64;

/// The most segments per message (`UDP_MAX_SEGMENTS`, Linux 4.18).
pub const MAX_SEGMENTS: usize = 64;

/// The most bytes per message with segments: the largest payload of an IPv4 datagram.
pub const MAX_SEGMENTED_BYTES: usize = 65_507;

/// One message of a batch. For each `None` the socket's own setting applies:
/// `Outgoing { slices, ..Outgoing::default() }`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    /// The bytes, gathered in this order. At most [`MAX_SEGMENTS`] slices.
    pub slices: &'a [IoSlice<'a>],
    /// The destination; `None` on a connected socket.
    pub to: Option<SocketAddr>,
    /// The kernel splits the bytes into datagrams of this size, the last one possibly shorter
    /// (`UDP_SEGMENT`).
    pub segment_bytes: Option<u16>,
    /// The source address, of the socket's family (`IP_PKTINFO`, `IPV6_PKTINFO`). An address that
    /// this host does not have requires a socket with `IP_TRANSPARENT` or `IPV6_TRANSPARENT`.
    pub from: Option<IpAddr>,
    /// The IPv4 type of service or the IPv6 traffic class, all eight bits (`IP_TOS`,
    /// `IPV6_TCLASS`).
    pub tos: Option<u8>,
}

impl Outgoing<'_> {
    /// Whether it is sent over IPv6; `None` without an address.
    fn is_ipv6(&self) -> Option<bool> {
        self.from.map(|from| from.is_ipv6()).or_else(|| self.to.map(|to| to.is_ipv6()))
    }
}

/// Sends the first [`MAX_MESSAGES`] of `messages` with `sendmmsg(2)`, and returns how many of them
/// the kernel accepted. Does not block: a full socket buffer is `WouldBlock`.
///
/// # Errors
/// The error of the first message. An error of a later one is returned when the caller continues
/// from that message.
pub fn send_batch(socket: BorrowedFd<'_>, messages: &[Outgoing<'_>]) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
    let mut addresses = [const { MaybeUninit::<AddressStorage>::uninit() }; MAX_MESSAGES];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MAX_MESSAGES];
    let count = messages.len().min(MAX_MESSAGES);
    for (index, message) in messages[..count].iter().enumerate() {
        // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        // IoSlice has the layout of iovec (documented), and sendmmsg does not write through it.
        header.msg_hdr.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_iovlen = message.slices.len() as _;
        if let Some(to) = message.to {
            header.msg_hdr.msg_namelen = store_address(&mut addresses[index], to);
            header.msg_hdr.msg_name = addresses[index].as_mut_ptr().cast();
        }
        if message.segment_bytes.is_some() || message.from.is_some() || message.tos.is_some() {
            let control = controls[index].write(Control::of(message));
            header.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.length as _;
        }
        headers[index].write(header);
    }
    // SAFETY: the first `count` headers are initialised and point to slices, addresses and controls
    // that outlive the call.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as u32,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Writes the socket address, and returns its length.
fn store_address(storage: &mut MaybeUninit<AddressStorage>, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            storage.write(AddressStorage {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                },
            });
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            storage.write(AddressStorage {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                },
            });
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

const fn space<T>() -> usize {
    // SAFETY: pure arithmetic on its argument.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

/// Room for every control message that one [`Outgoing`] can need.
const CONTROL_BYTES: usize = space::<u16>() + 2 * space::<c_int>() + space::<libc::in6_pktinfo>();

/// The control messages of one message, aligned as the kernel requires.
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL_BYTES],
    length: usize,
}

impl Control {
    fn of(message: &Outgoing<'_>) -> Control {
        const UDP_SEGMENT: c_int = 103;
        let mut control = Control { bytes: [0; CONTROL_BYTES], length: 0 };
        if let Some(segment_bytes) = message.segment_bytes {
            control.push(libc::SOL_UDP, UDP_SEGMENT, segment_bytes);
        }
        match message.from {
            Some(IpAddr::V4(from)) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                control.push(libc::SOL_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(from)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: from.octets() };
                let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
                control.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        if let Some(tos) = message.tos {
            // The family of a connected socket is not known here. Each family ignores the control
            // message of the other.
            if message.is_ipv6() != Some(true) {
                control.push(libc::SOL_IP, libc::IP_TOS, c_int::from(tos));
            }
            if message.is_ipv6() != Some(false) {
                control.push(libc::SOL_IPV6, libc::IPV6_TCLASS, c_int::from(tos));
            }
        }
        control
    }

    /// Appends one control message. `T` is a plain value as the kernel reads it.
    fn push<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) {
        let room = &mut self.bytes[self.length..][..space::<T>()];
        let header = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: `room` is as large as CMSG_SPACE of the value, so header and value fit; it is
        // aligned for cmsghdr, because the bytes are and every CMSG_SPACE is a multiple of that
        // alignment.
        unsafe {
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.length += space::<T>();
    }
}
