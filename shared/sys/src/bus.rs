//! The libzmq option that the `zmq` crate does not offer.

use std::{ffi::c_int, io};

/// Switches `ZMQ_XPUB_NODROP`: with it, a send that some subscriber's queue has no room for says `EAGAIN` instead of
/// silently dropping the message for that subscriber.
///
/// # Errors
/// What libzmq answers: `EINVAL` for a socket that is no XPUB or PUB.
pub fn set_xpub_nodrop(socket: &mut zmq::Socket, enabled: bool) -> io::Result<()> {
    let value = c_int::from(enabled);
    // SAFETY: the socket is alive and exclusively borrowed; libzmq copies the four bytes of the value before it returns, and
    // leaves its error in this thread's errno.
    let (status, errno) = unsafe {
        let option = zmq_sys::ZMQ_XPUB_NODROP as c_int;
        let status =
            zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), option, (&raw const value).cast(), size_of::<c_int>());
        (status, zmq_sys::zmq_errno())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
