//! What libzmq offers and the `zmq` crate does not.

use std::{
    ffi::{c_char, c_int},
    io,
};

/// `ZMQ_ZAP_ENFORCE_DOMAIN` of zmq.h, which the crate's constants lack. It is there from libzmq 4.3.0 on.
const ZMQ_ZAP_ENFORCE_DOMAIN: c_int = 93;

/// The length of a key of 32 bytes as Z85 text (ZeroMQ RFC 32).
const KEY_TEXT_BYTES: usize = 40;

unsafe extern "C" {
    /// As in zmq.h since libzmq 4.2.0; `zmq-sys` binds it and keeps it to itself.
    fn zmq_curve_public(public: *mut c_char, secret: *const c_char) -> c_int;
}

/// Switches `ZMQ_XPUB_NODROP`: with it, a send that some subscriber's queue has no room for says `EAGAIN` instead of
/// silently dropping the message for that subscriber.
///
/// # Errors
/// What libzmq answers: `EINVAL` for a socket that is no XPUB or PUB.
pub fn set_xpub_nodrop(socket: &mut zmq::Socket, enabled: bool) -> io::Result<()> {
    set_option(socket, zmq_sys::ZMQ_XPUB_NODROP as c_int, c_int::from(enabled))
}

/// Has a socket that has a ZAP domain refuse connections while nobody answers at `inproc://zeromq.zap.01`. Without this libzmq
/// then lets everybody in.
///
/// # Errors
/// What libzmq answers: `EINVAL` before 4.3.0.
pub fn enforce_zap_domain(socket: &mut zmq::Socket) -> io::Result<()> {
    set_option(socket, ZMQ_ZAP_ENFORCE_DOMAIN, 1)
}

/// The public key that belongs to a secret one; both as Z85 text.
///
/// # Errors
/// `ENOTSUP` when libzmq was built without CURVE, `EINVAL` for text that is no Z85.
pub fn curve_public_key(secret: &[u8; KEY_TEXT_BYTES]) -> io::Result<[u8; KEY_TEXT_BYTES]> {
    let mut secret_text = [0_u8; KEY_TEXT_BYTES + 1];
    secret_text[..KEY_TEXT_BYTES].copy_from_slice(secret);
    let mut public_text = [0_u8; KEY_TEXT_BYTES + 1];
    // SAFETY: libzmq reads the secret up to its NUL, which is there, and writes 40 bytes and a NUL to the other array, which
    // has room for that. It leaves its error in this thread's errno.
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

fn set_option(socket: &mut zmq::Socket, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the socket is alive and exclusively borrowed; libzmq copies the four bytes of the value before it returns, and
    // leaves its error in this thread's errno.
    let (status, errno) = unsafe {
        let status =
            zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), option, (&raw const value).cast(), size_of::<c_int>());
        (status, zmq_sys::zmq_errno())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
