//! Socket options.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

/// How the kernel distributes packets to the sockets of a fan-out group (packet(7),
/// PACKET_FANOUT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanoutMode {
    /// By flow hash: one socket gets all fragments of a datagram, and all datagrams between two
    /// pairs of address and port.
    Hash,
}

/// Adds a packet socket to fan-out group `group`.
///
/// # Errors
/// `EINVAL` when it is not a bound packet socket, or the group has another mode.
pub fn join_fanout(socket: &impl AsRawFd, group: u16, mode: FanoutMode) -> io::Result<()> {
    let mode = match mode {
        FanoutMode::Hash => libc::PACKET_FANOUT_HASH,
    };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, (u32::from(group) | mode << 16) as c_int)
}

/// The length of the classic BPF program that filters a socket in the kernel, instructions; 0 if
/// none is attached.
///
/// # Errors
/// `getsockopt(2)` failed for `SO_GET_FILTER`.
pub fn kernel_filter_length(socket: &impl AsRawFd) -> io::Result<usize> {
    let mut instructions: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes no program, only its length in instructions.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut instructions,
        )
    };
    if status == 0 { Ok(instructions as usize) } else { Err(io::Error::last_os_error()) }
}

/// Lets the kernel coalesce datagrams of one sender and size into one received message (`UDP_GRO`,
/// udp(7)).
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.0.
pub fn set_udp_gro(socket: BorrowedFd<'_>, enabled: bool) -> io::Result<()> {
    const UDP_GRO: c_int = 104;
    set_option(&socket, libc::SOL_UDP, UDP_GRO, c_int::from(enabled))
}

/// Sets the size of the receive buffer, bytes. With the capability NET_ADMIN it may exceed
/// `net.core.rmem_max`, without it the kernel limits it to that.
///
/// # Errors
/// `setsockopt(2)` failed for `SO_RCVBUF`; never because of the size.
pub fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let value = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value)
        .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, value))
}

/// Waits until `descriptor` is readable, for `timeout` at most, and returns whether it is. An error
/// condition counts as readable, because the next read returns it. A signal ends the wait early.
///
/// # Errors
/// `ppoll(2)` failed, other than with `EINTR`.
pub fn poll_readable(descriptor: &impl AsRawFd, timeout: Duration) -> io::Result<bool> {
    poll_readable_or(descriptor, None, timeout)
}

/// As [`poll_readable`]. The wait also ends when `other` is readable.
///
/// # Errors
/// As [`poll_readable`].
pub fn poll_readable_or(
    descriptor: &impl AsRawFd,
    other: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> io::Result<bool> {
    let item = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // The kernel skips negative numbers.
    let mut items = [item(descriptor.as_raw_fd()), item(other.map_or(-1, |other| other.as_raw_fd()))];
    let nanoseconds = timeout.subsec_nanos();
    let timeout = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: nanoseconds.into() };
    // SAFETY: both items and the time limit outlive the call; a descriptor that is not open is
    // reported, not used.
    let ready = unsafe { libc::ppoll(items.as_mut_ptr(), 2, &raw const timeout, std::ptr::null()) };
    match ready {
        0 => Ok(false),
        1.. => Ok(items[0].revents != 0),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

pub(crate) fn set_option(socket: &impl AsRawFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the owner of the descriptor is borrowed, so it is open, and the kernel copies the
    // four bytes of the value.
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
