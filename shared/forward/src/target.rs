//! Where one destination is at the moment: its address, which may change, and the socket that is connected to it.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use tracing::debug;

use crate::{
    destination::{Destination, Host},
    metrics::DropReason,
    resolve::{Addresses, Resolution},
    udp::UdpSender,
};

/// How often a socket is made again for an address that has none, or whose socket keeps failing.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// The address of a destination and the socket connected to it, as far as there are any.
pub(crate) struct Target {
    /// `None` when the destination was written as an address.
    addresses: Option<Addresses>,
    address: Option<SocketAddr>,
    sender: Option<UdpSender>,
    connected_at: Option<Instant>,
}

impl Target {
    /// # Errors
    /// When the system gives no thread for look-ups.
    pub(crate) fn new(destination: &Destination, resolution: Resolution, failures: IntCounter) -> io::Result<Target> {
        let (addresses, address) = match &destination.host {
            Host::Address(ip) => (None, Some(SocketAddr::new(*ip, destination.port))),
            Host::Name(name) => (Some(Addresses::of(name.clone(), destination.port, resolution, failures)?), None),
        };
        Ok(Target { addresses, address, sender: None, connected_at: None })
    }

    /// The connected socket.
    ///
    /// # Errors
    /// Why datagrams cannot leave now, as the reason to drop those that have waited too long for it.
    pub(crate) fn sender(&mut self, now: Instant) -> Result<&mut UdpSender, DropReason> {
        if let Some(address) = self.addresses.as_ref().and_then(Addresses::changed) {
            self.move_to(address);
        }
        if self.sender.is_none() {
            self.reconnect(now);
        }
        let absence = if self.address.is_none() { DropReason::Unresolved } else { DropReason::Unreachable };
        self.sender.as_mut().ok_or(absence)
    }

    /// Makes the socket again, unless that was done less than a second ago: with a route that has changed, a connected socket
    /// may be left with a source address that is no longer ours. Says whether there is a new one.
    pub(crate) fn reconnect(&mut self, now: Instant) -> bool {
        let Some(address) = self.address else { return false };
        if self.connected_at.is_some_and(|at| now.duration_since(at) < RECONNECT_EVERY) {
            return false;
        }
        self.connected_at = Some(now);
        match UdpSender::connect(address) {
            Ok(sender) => {
                self.sender = Some(sender);
                true
            }
            Err(error) => {
                debug!(%address, %error, "cannot connect a socket");
                false
            }
        }
    }

    /// Lets time pass; ends early when the address has changed.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        match &self.addresses {
            None => thread::sleep(timeout),
            Some(addresses) => {
                if let Some(address) = addresses.wait(timeout) {
                    self.move_to(address);
                }
            }
        }
    }

    fn move_to(&mut self, address: SocketAddr) {
        self.address = Some(address);
        self.sender = None;
        self.connected_at = None;
    }
}
