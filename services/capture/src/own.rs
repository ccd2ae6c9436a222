//! Addresses that this installation itself sends to. Capture leaves alone what goes there, or it would forward its own
//! output again, and again.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

/// The addresses and ports of all known destinations. Cheap to clone; all clones see changes.
#[derive(Clone, Debug, Default)]
pub struct OwnDestinations {
    addresses: Arc<Mutex<Arc<[SocketAddr]>>>,
}

impl OwnDestinations {
    /// Replaces the list.
    pub fn set(&self, addresses: Vec<SocketAddr>) {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.into();
    }

    /// The list as it is now: to be asked for now and then, not for each packet.
    pub fn snapshot(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a datagram to this address and port is one of our own.
pub(crate) fn is_own(own: &[SocketAddr], address: IpAddr, port: u16) -> bool {
    own.iter().any(|known| known.port() == port && known.ip() == address)
}
