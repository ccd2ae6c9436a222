//! Features of libzmq that the `zmq` crate does not expose.

use std::{
    ffi::{c_char, c_int},
    io,
    os::fd::BorrowedFd,
};

/// `ZMQ_ZAP_ENFORCE_DOMAIN` of zmq.h, since libzmq 4.3.0; not among the crate's constants.
const ZMQ_ZAP_ENFORCE_DOMAIN: c_int = 93;

/// The length of a key of 32 bytes as Z85 text (ZeroMQ RFC 32).
const KEY_TEXT_BYTES: usize = 40;

unsafe extern "C" {
    /// As in zmq.h, since libzmq 4.2.0; `zmq-sys` does not export it.
    fn zmq_curve_public(public: *mut c_char, secret: *const c_char) -> c_int;
}

/// Sets `ZMQ_XPUB_NODROP`: a send fails with `EAGAIN` if the queue of any subscriber is full,
/// instead of silently dropping the message for that subscriber.
///
/// # Errors
/// libzmq's error: `EINVAL` for a socket that is not an XPUB or PUB.
pub fn set_xpub_nodrop(socket: &mut zmq::Socket, enabled: bool) -> io::Result<()> {
    set_option(socket, zmq_sys::ZMQ_XPUB_NODROP as c_int, c_int::from(enabled))
}

/// Sets `ZMQ_TCP_MAXRT`, which is `TCP_USER_TIMEOUT` on Linux: a connection breaks when its peer
/// has acknowledged no sent bytes for this long, or has kept its window closed.
///
/// # Errors
/// libzmq's error: `EINVAL` for a negative number.
pub fn set_tcp_user_timeout(socket: &mut zmq::Socket, milliseconds: i32) -> io::Result<()> {
    set_option(socket, zmq_sys::ZMQ_TCP_MAXRT as c_int, milliseconds)
}

/// Makes a socket with a ZAP domain reject connections while no handler is bound to
/// `inproc://zeromq.zap.01`. libzmq's default is to accept them then.
///
/// # Errors
/// libzmq's error: `EINVAL` before 4.3.0.
pub fn enforce_zap_domain(socket: &mut zmq::Socket) -> io::Result<()> {
    set_option(socket, ZMQ_ZAP_ENFORCE_DOMAIN, 1)
}

/// The public key of a secret key, both as Z85 text of 40 bytes.
///
/// # Errors
/// `ENOTSUP` when libzmq was built without CURVE, `EINVAL` for text that is not Z85.
pub fn curve_public_key(secret: &[u8; KEY_TEXT_BYTES]) -> io::Result<[u8; KEY_TEXT_BYTES]> {
    let mut secret_text = [0_u8; KEY_TEXT_BYTES + 1];
    secret_text[..KEY_TEXT_BYTES].copy_from_slice(secret);
    let mut public_text = [0_u8; KEY_TEXT_BYTES + 1];
    // SAFETY: libzmq reads the secret up to its NUL, which is there, and writes 40 bytes and a NUL
    // to the other array, which has room for them. It leaves its error in this thread's errno.
    let (status, errno) = unsafe {
        let status = zmq_curve_public(public_text.as_mut_ptr().cast(), secret_text.as_ptr().cast());
        (status, zmq_sys::zmq_errno())
    };
    if status != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let mut public = [0; KEY_TEXT_BYTES];
    public.copy_from_slice(&public_text[..KEY_TEXT_BYTES]);
    Ok(public)
}

/// Ends the monitor of a socket, if it has one: it sends no more events.
///
/// # Errors
/// libzmq's error.
pub fn stop_monitor(socket: &mut zmq::Socket) -> io::Result<()> {
    // SAFETY: the socket is alive and exclusively borrowed, and a null address is what libzmq
    // expects here. It leaves its error in this thread's errno.
    let (status, errno) = unsafe {
        let status = zmq_sys::zmq_socket_monitor(socket.as_mut_ptr(), std::ptr::null(), 0);
        (status, zmq_sys::zmq_errno())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// The descriptor that becomes readable when libzmq has something for a socket (`ZMQ_FD`). That is
/// not always a message: the socket has to be asked.
///
/// # Errors
/// libzmq's error: its context was terminated.
pub fn signal_of(socket: &zmq::Socket) -> io::Result<BorrowedFd<'_>> {
    let descriptor = socket.get_fd().map_err(|error| io::Error::from_raw_os_error(error.to_raw()))?;
    // SAFETY: libzmq closes the descriptor with the socket, which is borrowed.
    Ok(unsafe { BorrowedFd::borrow_raw(descriptor) })
}

fn set_option(socket: &mut zmq::Socket, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the socket is alive and exclusively borrowed; libzmq copies the four bytes of the
    // value before it returns, and leaves its error in this thread's errno.
    let (status, errno) = unsafe {
        let status =
            zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), option, (&raw const value).cast(), size_of::<c_int>());
        (status, zmq_sys::zmq_errno())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
