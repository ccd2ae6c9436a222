//! The control plane's shells: sockets, clock and threads around the machines of `sekiwake-group`.
//!
//! ```text
//! StreamControl (DEALER)  ──▶  ControlPlane (ROUTER, in the proxy)  ◀──  GroupSubscriber (DEALER, beside its SUB)
//!  + PublisherControl           + Coordinator                             + Member
//! ```
//! One frame a message. What a socket has no room for waits in the machine of a publisher, and is dropped and counted at the
//! proxy: every message tells a state, and is told again.

mod plane;
mod sources;
mod stream;

use rustix::time::{ClockId, clock_gettime};

pub use plane::{ControlPlane, ControlPlaneSettings};
pub use stream::StreamControl;
pub(crate) use stream::{Body, Common};

use crate::{
    BusError,
    socket::{milliseconds, uninterrupted},
};

/// Control messages that are taken before other things have their turn.
pub(crate) const CONTROL_BURST: usize = 64;

/// The clock of leases, nanoseconds: CLOCK_BOOTTIME, which runs on while the process, or the whole machine, is stopped.
#[inline]
pub fn boot_now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A routing id: 16 random bytes, so that nobody else can speak in this party's name.
pub(crate) fn routing_id() -> Result<[u8; 16], BusError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(BusError::Random)?;
    // libzmq keeps identities that begin with a zero byte for itself.
    id[0] |= 1;
    Ok(id)
}

/// The one frame of the next message; `None` when there is none, or when it is of several parts, which are passed over.
pub(crate) enum Incoming {
    Frame(zmq::Message),
    Malformed,
    Nothing,
}

/// Takes a message from a DEALER.
pub(crate) fn receive(socket: &zmq::Socket, role: &'static str) -> Result<Incoming, BusError> {
    let message = match uninterrupted(|| socket.recv_msg(zmq::DONTWAIT)) {
        Ok(message) => message,
        Err(zmq::Error::EAGAIN) => return Ok(Incoming::Nothing),
        Err(source) => return Err(BusError::Io { role, source }),
    };
    if !message.get_more() {
        return Ok(Incoming::Frame(message));
    }
    pass_over(socket, role)?;
    Ok(Incoming::Malformed)
}

/// Reads the rest of a message of more parts than were expected.
pub(crate) fn pass_over(socket: &zmq::Socket, role: &'static str) -> Result<(), BusError> {
    loop {
        // The parts of a message arrive together, so this does not wait.
        let part = uninterrupted(|| socket.recv_msg(0)).map_err(|source| BusError::Io { role, source })?;
        if !part.get_more() {
            return Ok(());
        }
    }
}

/// Sends one frame, unless there is no room for it.
pub(crate) fn send(socket: &zmq::Socket, frame: Vec<u8>, role: &'static str) -> Result<bool, BusError> {
    match uninterrupted(|| socket.send(&frame[..], zmq::DONTWAIT)) {
        Ok(()) => Ok(true),
        Err(zmq::Error::EAGAIN) => Ok(false),
        Err(source) => Err(BusError::Io { role, source }),
    }
}

/// Milliseconds until `deadline` on the clock of [`boot_now`], at least 1 so as not to spin, at most `limit`.
pub(crate) fn patience(now: u64, deadline: u64, limit: std::time::Duration) -> i64 {
    let until = std::time::Duration::from_nanos(deadline.saturating_sub(now));
    i64::from(milliseconds(until.min(limit))).max(1)
}
