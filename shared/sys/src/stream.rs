//! The kernel's state of a TCP connection.

use std::{
    ffi::c_int,
    io, mem,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use crate::{AddressStorage, receive::load_address};

/// The liveness of a connection's peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpState {
    /// Consecutive retransmissions and window probes that the peer has not answered; 0 once it
    /// answers.
    pub unanswered: u32,
    /// Time since the peer's last acknowledgement.
    pub last_acknowledged: Duration,
}

/// Bytes written to a TCP socket that the peer's TCP has not acknowledged (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// When it is not a TCP socket.
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: c_int = 0;
    // SAFETY: the descriptor is borrowed, so it is open, and the kernel writes one int, which
    // outlives the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status == 0 { Ok(bytes.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}

/// The liveness of a connection's peer (`TCP_INFO`, tcp(7)).
///
/// # Errors
/// When it is not a TCP socket.
pub fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<TcpState> {
    let info = tcp_info(socket.as_raw_fd())?;
    Ok(TcpState {
        unanswered: u32::from(info.tcpi_retransmits) + u32::from(info.tcpi_probes),
        last_acknowledged: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

/// Bytes received on a TCP connection that belongs to a library, since it was established. The
/// library may have closed it: a number that is no open descriptor is an error.
///
/// # Errors
/// When it is not a TCP socket.
pub fn received_bytes(descriptor: RawFd) -> io::Result<u64> {
    Ok(tcp_info(descriptor)?.tcpi_bytes_received)
}

/// The peer of a connection that belongs to a library, which may have closed it.
///
/// # Errors
/// When it is not a connected socket of IPv4 or IPv6.
pub fn peer_address(descriptor: RawFd) -> io::Result<SocketAddr> {
    // SAFETY: the union consists of structures of integers, for which zero is valid.
    let mut storage: AddressStorage = unsafe { mem::zeroed() };
    let mut length = size_of::<AddressStorage>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `storage`, which outlives the call.
    let status = unsafe { libc::getpeername(descriptor, (&raw mut storage).cast(), &raw mut length) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written an address, which begins with its family.
    let family = c_int::from(unsafe { storage.v4.sin_family });
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the storage holds an address of one of these families.
    Ok(unsafe { load_address(&storage) })
}

/// Shuts down a connection that belongs to a library, which then reads its end and closes it. The
/// close resets the connection, so that a peer whose window is closed is told too.
///
/// # Errors
/// When it is not a connected socket.
pub fn shut_down(descriptor: RawFd) -> io::Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `at_once`, which outlives the call; the second
    // call takes no memory. A number that is no socket is an error.
    let status = unsafe {
        libc::setsockopt(descriptor, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const at_once).cast(), length);
        libc::shutdown(descriptor, libc::SHUT_RDWR)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn tcp_info(descriptor: RawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: the structure consists of integers, for which zero is valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`; older kernels write fewer. A
    // number that is no open descriptor is an error.
    let status = unsafe {
        libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if status == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}
