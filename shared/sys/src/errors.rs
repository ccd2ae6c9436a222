//! The error queue of a datagram socket (ip(7), `IP_RECVERR`): errors from ICMP and from this
//! host's devices about datagrams that a send call had already accepted.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::options::set_option;

/// Room for the control messages of one error: the error, the address of the reporting host, and
/// others that the socket has requested.
const CONTROL_BYTES: usize = 256;

/// An error from the queue.
#[derive(Debug)]
pub struct QueuedError {
    /// Where it comes from.
    pub origin: ErrorOrigin,
    /// The error, as the kernel translates it into an errno.
    pub error: io::Error,
}

/// Where an error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorOrigin {
    /// An ICMP or ICMPv6 message: it is about an earlier datagram.
    Icmp,
    /// This host: a send call has already returned it.
    Local,
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Makes the kernel report more errors: a send that a queueing discipline of this host drops fails
/// with `ENOBUFS`, and every ICMP error is queued for [`receive_error`] and fails one send. The
/// queue shares the memory limit of the receive buffer.
///
/// # Errors
/// `setsockopt(2)` failed; never for an IPv4 or IPv6 socket.
pub fn set_receive_errors(socket: BorrowedFd<'_>, ipv6: bool, enabled: bool) -> io::Result<()> {
    let (level, option) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_RECVERR) } else { (libc::SOL_IP, libc::IP_RECVERR) };
    set_option(&socket, level, option, c_int::from(enabled))
}

/// Takes one error from the queue without blocking; `None` when it is empty. Taking the last one
/// clears the error that is pending on the socket.
///
/// # Errors
/// `recvmsg(2)` failed, other than with `EAGAIN`.
pub fn receive_error(socket: BorrowedFd<'_>) -> io::Result<Option<QueuedError>> {
    let mut control = Control([0; CONTROL_BYTES]);
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths. The datagram that
    // caused the error is not read.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the header points to a control buffer of the given length that outlives the call.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if received < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    // SAFETY: the kernel has filled the header's control buffer.
    let extended = unsafe { extended_error(&header) };
    Ok(Some(extended.map_or_else(
        || QueuedError { origin: ErrorOrigin::Local, error: io::Error::from_raw_os_error(libc::EIO) },
        |extended| QueuedError {
            origin: match extended.ee_origin {
                libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => ErrorOrigin::Icmp,
                _ => ErrorOrigin::Local,
            },
            error: io::Error::from_raw_os_error(extended.ee_errno as c_int),
        },
    )))
}

/// # Safety
/// The kernel must have filled the header's control buffer.
unsafe fn extended_error(header: &libc::msghdr) -> Option<libc::sock_extended_err> {
    // SAFETY: by this function's contract the control messages are well-formed; CMSG_NXTHDR stays
    // within msg_controllen, and the value is read only where the message is long enough for it.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            let level = (*control).cmsg_level;
            let kind = (*control).cmsg_type;
            let is_error =
                matches!((level, kind), (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR));
            let needed = libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32) as usize;
            if is_error && (*control).cmsg_len as usize >= needed {
                return Some(libc::CMSG_DATA(control).cast::<libc::sock_extended_err>().read_unaligned());
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
