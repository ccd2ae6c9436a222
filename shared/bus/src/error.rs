//! Errors of the bus.

use std::error::Error;

/// What a bus's own library says of an error.
pub type Cause = Box<dyn Error + Send + Sync>;

/// An error of the bus: what was attempted, and with which value.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A socket could not be created, or one of its options could not be set.
    #[error("cannot set up a {role} socket")]
    Socket {
        /// `publisher`, `relay`, `subscriber`.
        role: &'static str,
        /// The error of libzmq or another library.
        source: Cause,
    },
    /// An address could not be bound.
    #[error("cannot bind {endpoint}")]
    Bind {
        /// The address.
        endpoint: String,
        /// The error of libzmq or another library.
        source: Cause,
    },
    /// An address is invalid. An absent peer is not an error, because connecting is repeated.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The address.
        endpoint: String,
        /// The error of libzmq or another library.
        source: Cause,
    },
    /// A working socket failed.
    #[error("{role} socket failed")]
    Io {
        /// `publisher`, `relay`, `subscriber`.
        role: &'static str,
        /// The error of libzmq or another library.
        source: Cause,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// No descriptor is left to wake a thread with.
    #[error("cannot wake a thread: {0}")]
    Wake(std::io::Error),
    /// The operating system provided no random numbers for an epoch or routing id.
    #[error("cannot get random numbers: {0}")]
    Random(getrandom::Error),
}
