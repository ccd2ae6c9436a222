//! Messages over a client's DEALER socket.

use crate::{
    BusError,
    zeromq::{
        inlet::Inlet,
        socket::{receive_rest, uninterrupted},
    },
};

/// Control messages handled before other work continues.
pub(crate) const CONTROL_BURST: usize = 64;

/// A random routing id of 16 bytes, so that no other client can impersonate this one.
pub(crate) fn routing_id() -> Result<[u8; 16], BusError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(BusError::Random)?;
    // libzmq reserves identities that begin with a zero byte.
    id[0] |= 1;
    Ok(id)
}

/// The next message, if there is one.
pub(crate) enum Incoming {
    Frame(zmq::Message),
    /// It had several parts, which have been read and discarded.
    Malformed,
    Nothing,
}

/// Receives a message without blocking.
pub(crate) fn receive(inlet: &mut Inlet, role: &'static str) -> Result<Incoming, BusError> {
    let failed = |source: zmq::Error| BusError::Io { role, source: source.into() };
    let Some(message) = inlet.receive().map_err(failed)? else { return Ok(Incoming::Nothing) };
    if !message.get_more() {
        return Ok(Incoming::Frame(message));
    }
    receive_rest::<0>(inlet.socket(), &message).map_err(failed)?;
    Ok(Incoming::Malformed)
}

/// Sends one frame without blocking. `false` if there is no room for it.
pub(crate) fn send(inlet: &mut Inlet, frame: &[u8], role: &'static str) -> Result<bool, BusError> {
    let socket = inlet.socket();
    match uninterrupted(|| socket.send(frame, zmq::DONTWAIT)) {
        Ok(()) => Ok(true),
        Err(zmq::Error::EAGAIN) => Ok(false),
        Err(source) => Err(BusError::Io { role, source: source.into() }),
    }
}
