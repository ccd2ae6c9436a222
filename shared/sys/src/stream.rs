//! What the kernel knows of a TCP connection.

use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// How a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpState {
    /// Retransmissions and window probes in a row that the peer has not answered; 0 as soon as it says anything.
    pub unanswered: u32,
    /// How long ago the peer's last acknowledgement came.
    pub last_acknowledged: Duration,
}

/// Bytes that were written to a TCP socket and that the peer's TCP has not acknowledged (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// When it is no TCP socket.
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: c_int = 0;
    // SAFETY: the descriptor is borrowed, so it is open, and the kernel writes one int, which outlives the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status == 0 { Ok(bytes.unsigned_abs().into()) } else { Err(io::Error::last_os_error()) }
}

/// How a connection stands (`TCP_INFO`, tcp(7)).
///
/// # Errors
/// When it is no TCP socket.
pub fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<TcpState> {
    // SAFETY: the structure is made of integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes into `info`; older kernels write fewer.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpState {
        unanswered: u32::from(info.tcpi_retransmits) + u32::from(info.tcpi_probes),
        last_acknowledged: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}
