//! What can go wrong on the bus.

/// An error of the bus, saying what was attempted and with which value.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A socket could not be made or an option not be set.
    #[error("cannot set up a {role} socket")]
    Socket {
        /// `publisher`, `relay`, `subscriber`.
        role: &'static str,
        /// libzmq's answer.
        source: zmq::Error,
    },
    /// An address could not be bound.
    #[error("cannot bind {endpoint}")]
    Bind {
        /// The address.
        endpoint: String,
        /// libzmq's answer.
        source: zmq::Error,
    },
    /// An address could not be connected to. A peer that is not there is no error: libzmq goes on trying.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The address.
        endpoint: String,
        /// libzmq's answer.
        source: zmq::Error,
    },
    /// A socket that worked stopped working.
    #[error("the {role} socket failed")]
    Io {
        /// `publisher`, `relay`, `subscriber`.
        role: &'static str,
        /// libzmq's answer.
        source: zmq::Error,
    },
    /// The operating system gave no random numbers for a stream's epoch.
    #[error("cannot draw a random stream epoch: {0}")]
    Random(getrandom::Error),
}
