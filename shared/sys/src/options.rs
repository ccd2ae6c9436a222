//! Socket options.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// How the kernel spreads packets over the sockets of a fan-out group (packet(7), PACKET_FANOUT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanoutMode {
    /// By flow hash: the fragments of one datagram, and the datagrams of one pair of addresses and ports, stay together.
    Hash,
}

/// Puts a packet socket into fan-out group `group`.
///
/// # Errors
/// `EINVAL` when the socket is no bound packet socket or the group was made with another mode.
pub fn join_fanout(socket: &impl AsRawFd, group: u16, mode: FanoutMode) -> io::Result<()> {
    let mode = match mode {
        FanoutMode::Hash => libc::PACKET_FANOUT_HASH,
    };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, (u32::from(group) | mode << 16) as c_int)
}

/// Lets the kernel hand several datagrams of one sender and size to one receive call (`UDP_GRO`, udp(7)).
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.0.
pub fn set_udp_gro(socket: BorrowedFd<'_>, enabled: bool) -> io::Result<()> {
    const UDP_GRO: c_int = 104;
    set_option(&socket, libc::SOL_UDP, UDP_GRO, c_int::from(enabled))
}

/// Sets the receive buffer past `net.core.rmem_max` where NET_ADMIN allows it, else as far as that limit goes.
///
/// # Errors
/// What the kernel answers to the plain option; never for a size over the limit.
pub fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let value = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value)
        .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, value))
}

/// Waits until `descriptor` is readable, at most `timeout`, and says whether it is. An error condition counts as readable:
/// the next read tells what it is. A signal ends the wait early.
///
/// # Errors
/// What `poll(2)` answers, other than `EINTR`.
pub fn poll_readable(descriptor: &impl AsRawFd, timeout: Duration) -> io::Result<bool> {
    let mut item = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let nanoseconds = timeout.subsec_nanos();
    let timeout = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: nanoseconds.into() };
    // SAFETY: one item, and both it and the time limit outlive the call; a descriptor that is not open is reported, not used.
    let ready = unsafe { libc::ppoll(&raw mut item, 1, &raw const timeout, std::ptr::null()) };
    match ready {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

pub(crate) fn set_option(socket: &impl AsRawFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the owner of the descriptor is borrowed, so it is open, and the kernel copies the four bytes of the value.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
