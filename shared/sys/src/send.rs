//! Many datagrams with one system call, and many segments with one message.

use std::{
    ffi::c_int,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::AddressStorage;

/// The most messages that one call sends.
pub const MAX_MESSAGES: usize = 64;

/// The most segments that the kernel cuts one message into (`UDP_MAX_SEGMENTS`, Linux 4.18).
pub const MAX_SEGMENTS: usize = 64;

/// The most bytes that a message with segments may hold: what an IPv4 datagram carries.
pub const MAX_SEGMENTED_BYTES: usize = 65_507;

/// One message of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The bytes, gathered in this order. At most [`MAX_SEGMENTS`] slices.
    pub slices: &'a [IoSlice<'a>],
    /// Where to; `None` on a connected socket.
    pub to: Option<SocketAddr>,
    /// When set, the kernel cuts the bytes into datagrams of this size, the last one possibly shorter (`UDP_SEGMENT`).
    pub segment_bytes: Option<u16>,
}

/// Room for one control message that carries a `u16`, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; SEGMENT_SPACE]);

// SAFETY: pure arithmetic on its argument.
const SEGMENT_SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;

/// Sends the first [`MAX_MESSAGES`] of `messages` with `sendmmsg(2)` and says how many of them the kernel took. Does not
/// block: a full socket buffer is `WouldBlock`.
///
/// # Errors
/// The error of the first message; an error of a later one shows when the caller goes on from there.
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
        if let Some(segment) = message.segment_bytes {
            header.msg_hdr.msg_control = store_segment(&mut controls[index], segment).cast();
            header.msg_hdr.msg_controllen = SEGMENT_SPACE as _;
        }
        headers[index].write(header);
    }
    // SAFETY: the first `count` headers are initialised and point to slices, addresses and controls that outlive the call.
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

/// Writes the socket address and gives its length.
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

/// Writes a `UDP_SEGMENT` control message and gives a pointer to it.
fn store_segment(storage: &mut MaybeUninit<Control>, segment_bytes: u16) -> *mut Control {
    const UDP_SEGMENT: c_int = 103;
    let control = storage.write(Control([0; SEGMENT_SPACE]));
    let pointer: *mut Control = control;
    let header = pointer.cast::<libc::cmsghdr>();
    // SAFETY: `Control` is zeroed, aligned for cmsghdr, and as large as CMSG_SPACE of a u16, so header and value fit.
    unsafe {
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment_bytes);
    }
    pointer
}
